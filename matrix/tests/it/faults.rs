//! What a cache does while a level with a server of its own is in trouble, and after. Whatever befalls the level: nothing
//! panics, no older value is ever answered, hits above do not wait, reads wait no longer than one deadline, and when the
//! trouble is over the level is used again within five seconds.

use std::time::Duration;

use tiercache_matrix::{Backend, Cell, READ_TIMEOUT, Trouble, WRITE_TIMEOUT, Watch, open, rounds};

async fn lives_through(name: &'static str) {
    let Some(backend) = Backend::start(name).await else { return };
    let limits = format!("ttl: null, read_timeout: {READ_TIMEOUT:?}, write_timeout: {WRITE_TIMEOUT:?}");
    let text = format!(
        "hot_cache: {{ backend: ram }}\ncold_cache: {{ backend: none }}\ndry_cache: {}\n\
         tracking: {{ backend: memory }}\nwrite: through",
        backend.section(&limits)
    );
    let cache = open(&text).await.expect("it opens");
    let troubles = Trouble::ALL.into_iter().filter(|trouble| Cell::of(name, *trouble) == Cell::Itself);
    let count = troubles.clone().count();
    // The troubles come one after another over one cache, which remembers what it has not reached.
    for (round, trouble) in troubles.cycle().take(count * rounds()).enumerate() {
        let mut watch = Watch::before(&cache, format!("{name}, {trouble}"), round).await;
        backend.begin(trouble).await;
        let felt = watch.during(&cache).await;
        assert!(felt || !trouble.is_felt(), "{name}, {trouble}: nothing came of it");
        backend.end(trouble).await;
        watch.after(&cache).await;
    }
    cache.close(Duration::from_secs(5)).await.expect("it closes");
}

macro_rules! every_trouble {
    ($($backend:ident),*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $backend() {
            lives_through(stringify!($backend)).await;
        }
    )*};
}

every_trouble!(memcached, redis, s3, mongodb);
