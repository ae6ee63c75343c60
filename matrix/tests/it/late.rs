//! A cache that begins though a server is not there, and uses it once it is.

use std::time::{Duration, Instant};

use tiercache::{CacheManager, Level};
use tiercache_matrix::{Backend, open};
use tiercache_services::Fault;

/// A level that is back is used within this.
const BACK: Duration = Duration::from_secs(5);

const REMOTE: [&str; 4] = ["memcached", "redis", "s3", "mongodb"];

fn config(backend: &Backend, when_down: &str, folder: &std::path::Path) -> String {
    let section = backend.section(&format!("ttl: null, when_down: {when_down}"));
    format!(
        "hot_cache: {{ backend: ram }}\ncold_cache: {section}\n\
         dry_cache: {{ backend: local, path: {} }}\ntracking: {{ backend: none }}",
        folder.join("dry").display()
    )
}

async fn until(what: &str, limit: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn is_healthy(cache: &CacheManager) -> bool {
    let stats = cache.stats().await.expect("stats");
    stats
        .levels
        .iter()
        .all(|level| level.level != Level::Cold || (!level.breaker_open && level.usage.is_some()))
}

async fn text(cache: &CacheManager, key: &str) -> Option<String> {
    let value = cache.get(key).await.expect("a get never fails");
    value.map(|value| String::from_utf8_lossy(&value).into_owned())
}

/// The error with its cause, if it has one of its own.
fn told(error: &tiercache::Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

async fn joins_late(name: &'static str) {
    let Some(backend) = Backend::start(name).await else { return };
    let folders: Vec<_> = (0..2).map(|_| tempfile::tempdir().expect("a folder")).collect();
    let folder = |at: usize| folders[at].path();

    // Another process has counted far, and left values and an invalidation.
    let other = open(&config(&backend, "fail", folder(0))).await.expect("it opens");
    for round in 0..50 {
        other.set("replaced", format!("old {round}")).pin(Level::Cold).await.expect("set");
    }
    for key in ["kept", "removed"] {
        other.set(key, "old").pin(Level::Cold).await.expect("set");
    }
    other.set("tagged", "old").tag("t", "1").pin(Level::Cold).await.expect("set");
    other.invalidate_tag("t", "1").await.expect("invalidate");
    other.close(Duration::from_secs(5)).await.expect("close");

    backend.proxy().set(Fault::Refuse);
    let refused = open(&config(&backend, "fail", folder(1))).await.expect_err("its server is away");
    let told = told(&refused);
    assert!(told.contains("cold_cache"), "{name}: {told}");

    let cache = open(&config(&backend, "wait", folder(1))).await.expect("it begins all the same");
    assert_eq!(text(&cache, "kept").await, None, "{name}: away is a miss");
    let written = cache.set("replaced", "new").await.expect("set");
    assert_eq!(written.degraded.len(), 1, "{name}: {written:?}");
    assert_eq!(text(&cache, "replaced").await.as_deref(), Some("new"));
    assert_eq!(cache.delete("removed").await.expect("delete").degraded.len(), 1, "{name}");
    assert_eq!(cache.stats().await.expect("stats").unnoted, 0, "{name}");

    backend.proxy().set(Fault::Pass);
    until(&format!("{name} joins"), BACK, async || is_healthy(&cache).await).await;
    assert_eq!(text(&cache, "kept").await.as_deref(), Some("old"), "{name}: what it held is there");
    assert_eq!(text(&cache, "removed").await, None, "{name}");
    assert_eq!(text(&cache, "tagged").await, None, "{name}: what it remembers is taken over");
    let replaced = text(&cache, "replaced").await;
    assert!(replaced.is_none() || replaced.as_deref() == Some("new"), "{name}: {replaced:?}");
    until(&format!("{name}: removals are made"), Duration::from_secs(30), async || {
        cache.stats().await.expect("stats").in_flight == 0
    })
    .await;
    cache.set("kept", "newer").await.expect("set");
    assert_eq!(text(&cache, "kept").await.as_deref(), Some("newer"), "{name}");
    cache.close(Duration::from_secs(5)).await.expect("close");

    let next = open(&config(&backend, "wait", folder(0))).await.expect("it opens");
    assert_eq!(text(&next, "removed").await, None, "{name}: gone from the level itself");
    assert_ne!(text(&next, "replaced").await.as_deref(), Some("old 49"), "{name}");
    next.close(Duration::from_secs(5)).await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn levels_whose_servers_are_away_join_when_they_are_back() {
    for name in REMOTE {
        joins_late(name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tracking_whose_server_is_away_is_told_when_it_is_back() {
    let Some(backend) = Backend::start("redis").await else { return };
    let section = backend.section("when_down: wait");
    let text = format!(
        "hot_cache: {{ backend: ram }}\ncold_cache: {{ backend: none }}\ndry_cache: {{ backend: none }}\n\
         tracking: {section}"
    );
    backend.server().kill();
    let failing = open(&text.replace("wait", "fail")).await.expect_err("its server is away");
    let told = told(&failing);
    assert!(told.contains("tracking"), "{told}");
    let cache = open(&text).await.expect("it begins all the same");
    cache.set("k", "v").await.expect("set");
    backend.server().restart();
    until("tracking is told", Duration::from_secs(10), async || {
        cache.stats().await.expect("stats").totals.sets == 1
            && cache.keys(Default::default()).page(10).await.is_ok_and(|keys| keys.len() == 1)
    })
    .await;
    cache.close(Duration::from_secs(5)).await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_has_a_server_can_be_waited_for() {
    for backend in ["ram", "local", "sqlite", "none"] {
        let text = format!("cold_cache: {{ backend: {backend}, when_down: wait }}");
        let error = open(&text).await.expect_err(backend).to_string();
        assert!(error.contains("cold_cache.when_down: there is no server to wait for"), "{error}");
    }
    let error = open("cold_cache: { backend: ram, when_down: wiat }").await.expect_err("a word").to_string();
    assert!(error.contains("allowed: fail, wait; did you mean `wait`?"), "{error}");
}
