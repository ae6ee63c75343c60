//! Several managers over one shared level, each with a count of its own.

use std::sync::Arc;

use tiercache_core::testing::{Fault, FaultTier, MemoryTier, Op, When};
use tiercache_core::{CacheManager, Level, Tier};
use tiercache_ram::{Policy, RamConfig, RamTier};

async fn over(shared: Arc<dyn Tier>) -> CacheManager {
    let ram = Arc::new(RamTier::new(RamConfig { max_size: 1 << 20, policy: Policy::Adaptive }));
    CacheManager::builder().hot(ram).dry(shared).manual().build().await.expect("no trouble")
}

/// Two processes; the first is far ahead in its count.
async fn two() -> (CacheManager, CacheManager) {
    let tier = MemoryTier::shared();
    let (ahead, behind) = (over(tier.clone()).await, over(tier.reopen()).await);
    for n in 0..100 {
        ahead.set(format!("other {n}"), "x").await.expect("no trouble");
    }
    (ahead, behind)
}

async fn text(cache: &CacheManager, key: &str) -> Option<String> {
    cache.get(key).await.expect("no trouble").map(|value| String::from_utf8_lossy(&value).into_owned())
}

/// What a level below RAM gives once RAM is empty.
async fn below(cache: &CacheManager, key: &str) -> Option<String> {
    cache.flush(Level::Hot).await.expect("no trouble");
    text(cache, key).await
}

#[tokio::test]
async fn a_set_replaces_what_a_process_far_ahead_wrote_before() {
    let (ahead, behind) = two().await;
    ahead.set("k", "theirs").pin(Level::Dry).await.expect("no trouble");
    behind.set("k", "ours").pin(Level::Dry).await.expect("no trouble");
    assert_eq!(text(&behind, "k").await.as_deref(), Some("ours"));
    assert_eq!(text(&ahead, "k").await.as_deref(), Some("ours"), "the level has one value for both");
    ahead.set("k", "theirs again").pin(Level::Dry).await.expect("no trouble");
    assert_eq!(text(&behind, "k").await.as_deref(), Some("theirs again"));
}

#[tokio::test]
async fn a_removal_reaches_what_a_process_far_ahead_wrote_before() {
    let (ahead, behind) = two().await;
    ahead.set("k", "theirs").pin(Level::Dry).await.expect("no trouble");
    let removed = behind.delete("k").await.expect("no trouble");
    assert!(removed.degraded.is_empty());
    assert_eq!((text(&behind, "k").await, text(&ahead, "k").await), (None, None));
}

#[tokio::test]
async fn a_clear_reaches_what_a_process_far_ahead_wrote_before_and_nothing_after() {
    let (ahead, behind) = two().await;
    ahead.set("k", "theirs").tag("t", "a").pin(Level::Dry).await.expect("no trouble");
    behind.invalidate_tag("t", "a").await.expect("no trouble");
    assert_eq!(text(&behind, "k").await, None, "by its tag");
    ahead.set("k", "theirs").pin(Level::Dry).await.expect("no trouble");
    behind.clear().await.expect("no trouble");
    assert_eq!(text(&behind, "k").await, None);
    behind.set("k", "ours").pin(Level::Dry).await.expect("no trouble");
    assert_eq!(below(&behind, "k").await.as_deref(), Some("ours"));
}

#[tokio::test]
async fn a_pop_takes_out_what_a_process_far_ahead_wrote() {
    let (ahead, behind) = two().await;
    ahead.set("k", "theirs").pin(Level::Dry).await.expect("no trouble");
    let popped = behind.pop("k").await.expect("no trouble");
    assert_eq!(popped.value.as_deref(), Some(&b"theirs"[..]));
    assert_eq!((text(&behind, "k").await, text(&ahead, "k").await), (None, None));
}

#[tokio::test]
async fn what_a_removal_did_not_reach_is_not_believed() {
    let tier = MemoryTier::shared();
    let ahead = over(tier.clone()).await;
    let faulty = Arc::new(FaultTier::new(tier.reopen()));
    let behind = over(faulty.clone()).await;
    for n in 0..100 {
        ahead.set(format!("other {n}"), "x").await.expect("no trouble");
    }
    ahead.set("k", "theirs").pin(Level::Dry).await.expect("no trouble");
    faulty.inject(Op::Remove, When::Always, Fault::FailBefore);
    let removed = behind.delete("k").await.expect("no trouble");
    assert_eq!(removed.degraded.len(), 1, "the level was not reached");
    assert_eq!(text(&behind, "k").await, None, "though the level still answers with it");
}
