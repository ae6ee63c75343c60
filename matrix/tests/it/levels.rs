//! Any backend may stand at any level.

use std::time::Duration;

use tiercache::{CacheManager, Level};
use tiercache_matrix::{BACKENDS, Backend, open};

async fn stands_everywhere(name: &'static str) {
    let Some(backend) = Backend::start(name).await else { return };
    for (at, level) in Level::ALL.into_iter().enumerate() {
        let mut sections =
            ["{ backend: none }".to_owned(), "{ backend: none }".into(), "{ backend: none }".into()];
        sections[at] = backend.section("ttl: null");
        let [hot, cold, dry] = &sections;
        let text = format!(
            "hot_cache: {hot}\ncold_cache: {cold}\ndry_cache: {dry}\ntracking: {{ backend: memory }}"
        );
        let cache = open(&text).await.unwrap_or_else(|error| panic!("{name} at {level}: {error}"));
        does_what_a_cache_does(&cache, level).await;
        let report = cache.close(Duration::from_secs(10)).await.expect("it closes");
        assert!(report.failures.is_empty(), "{name} at {level}: {report:?}");
        // What only RAM holds ends with the process.
        assert!(report.dropped() == 0 || name == "ram", "{name} at {level}: {report:?}");
    }
}

async fn does_what_a_cache_does(cache: &CacheManager, level: Level) {
    let what = format!("at {level}");
    cache.set("a", "1").tag("kind", "number").await.expect(&what);
    cache.set("b", vec![7u8; 100_000]).ttl(Duration::from_secs(600)).await.expect(&what);
    assert_eq!(cache.get("a").await.expect(&what).as_deref(), Some(&b"1"[..]), "{what}");
    assert_eq!(cache.get("b").await.expect(&what).map(|value| value.len()), Some(100_000), "{what}");
    cache.set("a", "2").tag("kind", "number").await.expect(&what);
    assert_eq!(cache.get("a").await.expect(&what).as_deref(), Some(&b"2"[..]), "{what}");
    let entry = cache.entry("b").await.expect(&what).expect("it is there");
    assert_eq!(entry.level, level, "{what}");
    assert!(cache.delete("b").await.expect(&what).degraded.is_empty(), "{what}");
    assert_eq!(cache.get("b").await.expect(&what), None, "{what}");
    assert!(cache.invalidate_tag("kind", "number").await.expect(&what).degraded.is_empty(), "{what}");
    assert_eq!(cache.get("a").await.expect(&what), None, "{what}");
    let tenant = cache.namespace("tenant").expect(&what);
    tenant.set("a", "theirs").await.expect(&what);
    cache.set("a", "ours").await.expect(&what);
    assert!(tenant.clear().await.expect(&what).degraded.is_empty(), "{what}");
    assert_eq!(tenant.get("a").await.expect(&what), None, "{what}");
    assert_eq!(cache.get("a").await.expect(&what).as_deref(), Some(&b"ours"[..]), "{what}");
}

macro_rules! everywhere {
    ($($backend:ident),*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $backend() {
            assert!(BACKENDS.contains(&stringify!($backend)));
            stands_everywhere(stringify!($backend)).await;
        }
    )*};
}

everywhere!(ram, local, sqlite, memcached, redis, s3, mongodb);
