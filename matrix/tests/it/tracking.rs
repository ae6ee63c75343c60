//! What a cache does while its tracking store is in trouble, and after: nothing but listings takes notice of it, those
//! end in time, and when the trouble is over the store is told what it has missed.

use std::time::{Duration, Instant};

use tiercache::CacheManager;
use tiercache::core::tracking::Query;
use tiercache_matrix::{Backend, Cell, Trouble, Watch, open, rounds};

/// The longest a listing may take: five seconds to tell the store what is new, as many for its answer, and what a busy
/// machine adds.
const LISTING: Duration = Duration::from_millis(11_500);
/// After the end of a trouble the store knows everything within this.
const HEALTHY: Duration = Duration::from_secs(5);

async fn lives_through(name: &'static str) {
    let Some(backend) = Backend::start(name).await else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let text = format!(
        "hot_cache: {{ backend: ram }}\ncold_cache: {{ backend: none }}\n\
         dry_cache: {{ backend: local, path: {}, ttl: null }}\nwrite: through\ntracking: {}",
        folder.path().join("level").display(),
        backend.section("timeout: 1s, connect_timeout: 1s")
    );
    let cache = open(&text).await.expect("it opens");
    let troubles = Trouble::ALL.into_iter().filter(|trouble| Cell::of(name, *trouble) == Cell::Itself);
    let count = troubles.clone().count();
    for (round, trouble) in troubles.cycle().take(count * rounds()).enumerate() {
        let what = format!("{name}, {trouble}");
        is_told(&cache, &format!("before {round}"), &what).await;
        let mut watch = Watch::before(&cache, what.clone(), round).await;
        backend.begin(trouble).await;
        assert!(!watch.during(&cache).await, "{what}: a level is not tracking");
        let missed = format!("missed {round}");
        cache.set(&missed, "value").await.expect(&what);
        let asked = Instant::now();
        let listed = cache.keys(Query { prefix: missed.clone().into(), ..Query::default() }).next().await;
        assert!(asked.elapsed() < LISTING, "{what}: a listing took {:?}", asked.elapsed());
        assert!(listed.is_err() || !trouble.is_felt(), "{what}: nothing came of it: {listed:?}");
        backend.end(trouble).await;
        watch.after(&cache).await;
        is_told(&cache, &format!("after {round}"), &what).await;
        // What it was told and has lost it is not told again.
        if trouble.is_felt() {
            is_known(&cache, &missed, &what).await;
        }
    }
    cache.close(Duration::from_secs(5)).await.expect("it closes");
}

/// The store is told of what is new, within [`HEALTHY`].
async fn is_told(cache: &CacheManager, key: &str, what: &str) {
    cache.set(key, "value").await.expect(what);
    is_known(cache, key, what).await;
}

async fn is_known(cache: &CacheManager, key: &str, what: &str) {
    let began = Instant::now();
    let mut again = tokio::time::interval(Duration::from_millis(50));
    loop {
        again.tick().await;
        let listed = cache.keys(Query { prefix: key.into(), ..Query::default() }).next().await;
        if listed.as_ref().is_ok_and(Option::is_some) {
            return;
        }
        assert!(began.elapsed() < HEALTHY, "{what}: tracking does not know of {key}: {listed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres() {
    lives_through("postgres").await;
}
