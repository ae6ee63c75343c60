//! What a cache does while its lower level is in trouble, and after. Whatever befalls the level: nothing panics, no
//! older value is ever answered, hits above do not wait, reads wait no longer than one deadline, and when the trouble
//! is over the level is used again within five seconds.

use std::time::{Duration, Instant};

use tiercache::{CacheManager, Level};
use tiercache_matrix::{Backend, FAULTS, open};
use tiercache_services::Fault;

/// The longest a read may take: its level's deadline, and as much again for a busy machine.
const PATIENCE: Duration = Duration::from_millis(2_000);

async fn lives_through(name: &'static str) {
    let Some(backend) = Backend::start(name) else { return };
    let text = format!(
        "hot_cache: {{ backend: ram }}\ncold_cache: {{ backend: none }}\ndry_cache: {}\n\
         tracking: {{ backend: memory }}\nwrite: through",
        backend.section().replace("ttl: null", "ttl: null, read_timeout: 500ms, write_timeout: 2s")
    );
    let cache = open(&text).await.expect("it opens");
    // `cargo xtask matrix` runs the faults many times over one cache, the test command once.
    let rounds =
        std::env::var("TIERCACHE_MATRIX_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1);
    let mut round = 0;
    for (fault, kind) in FAULTS.iter().copied().cycle().take(FAULTS.len() * rounds) {
        round += 1;
        trouble(
            &cache,
            round,
            &format!("{name}, {fault}"),
            || backend.proxy().set(kind),
            || {
                backend.proxy().set(Fault::Pass);
            },
        )
        .await;
    }
    round += 1;
    trouble(
        &cache,
        round,
        &format!("{name}, stopped"),
        || backend.server().pause(),
        || backend.server().resume(),
    )
    .await;
    round += 1;
    trouble(
        &cache,
        round,
        &format!("{name}, killed"),
        || backend.server().kill(),
        || {
            backend.server().restart();
            backend.wipe();
        },
    )
    .await;
    round += 1;
    trouble(&cache, round, &format!("{name}, killed and back at once"), || backend.kill_and_restart(), || {})
        .await;
    round += 1;
    trouble(&cache, round, &format!("{name}, wiped"), || backend.wipe(), || {}).await;
    cache.close(Duration::from_secs(5)).await.expect("it closes");
}

async fn trouble(cache: &CacheManager, round: u32, what: &str, begin: impl FnOnce(), end: impl FnOnce()) {
    let value = |step: u32| format!("{round}.{step}");
    let (below, above) = (format!("below {round}"), format!("above {round}"));
    works(cache, what).await;
    cache.set(&*below, value(0)).await.expect(what);
    cache.flush(Level::Hot).await.expect(what);
    cache.set(&*above, value(0)).await.expect(what);

    begin();
    assert_eq!(text(cache, &above).await, Some(value(0)), "{what}: a hit above needs nobody");
    for key in ["never set", "nor this", "nor that"] {
        let asked = Instant::now();
        assert_eq!(text(cache, key).await, None, "{what}");
        assert!(asked.elapsed() < PATIENCE, "{what}: a miss took {:?}", asked.elapsed());
    }
    let replaced = cache.set(&*below, value(1)).await;
    if replaced.is_ok() {
        let found = text(cache, &below).await;
        assert!(found.is_none() || found == Some(value(1)), "{what}: {found:?} after a set");
    }
    let removed = cache.delete(&*above).await.expect(what);
    assert_eq!(text(cache, &above).await, None, "{what}: degraded {:?}", removed.degraded);

    end();
    works(cache, what).await;
    cache.flush(Level::Hot).await.expect(what);
    let found = text(cache, &below).await;
    // A set that failed has removed what was there.
    assert!(found.is_none() || found == Some(value(1)), "{what}: {found:?} in the end, the set {replaced:?}");
    assert_eq!(text(cache, &above).await, None, "{what}: a removed value is back");
}

/// The level takes values and gives them back, within five seconds.
async fn works(cache: &CacheManager, what: &str) {
    let began = Instant::now();
    let mut again = tokio::time::interval(Duration::from_millis(50));
    loop {
        again.tick().await;
        let set = cache.set("probe", "alive").await;
        if set.as_ref().is_ok_and(|written| written.degraded.is_empty()) {
            cache.flush(Level::Hot).await.expect(what);
            if text(cache, "probe").await.as_deref() == Some("alive") {
                return;
            }
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{what}: the level is not used again: {set:?}");
    }
}

async fn text(cache: &CacheManager, key: &str) -> Option<String> {
    let value = cache.get(key).await.expect("a get does not fail");
    value.map(|value| String::from_utf8_lossy(&value).into_owned())
}

macro_rules! every_fault {
    ($($backend:ident),*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $backend() {
            lives_through(stringify!($backend)).await;
        }
    )*};
}

every_fault!(memcached, redis, s3, mongodb);
