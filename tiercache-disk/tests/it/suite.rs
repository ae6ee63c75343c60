//! The disk level keeps the contract of a tier, and of one that outlives the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tiercache_core::testing::{ManualClock, tier};
use tiercache_core::tier::Tier;
use tiercache_disk::{DiskConfig, DiskTier, Flush};

fn open(path: std::path::PathBuf, flush: Flush) -> Arc<dyn Tier> {
    let config = DiskConfig { path: Some(path), max_size: 8 << 20, flush, ..DiskConfig::default() };
    Arc::new(DiskTier::open_blocking(config, ManualClock::new()).unwrap())
}

async fn keeps_the_contract(flush: Flush) {
    let dir = tempfile::tempdir().unwrap();
    let next = AtomicUsize::new(0);
    let fresh = || dir.path().join(next.fetch_add(1, Ordering::Relaxed).to_string());
    tier::suite(async || open(fresh(), flush)).await;
    tier::persistent_suite(async |place| open(dir.path().join(format!("kept {place}")), flush)).await;
}

#[tokio::test]
async fn never_flushed_it_keeps_the_contract() {
    keeps_the_contract(Flush::Never).await;
}

#[tokio::test]
async fn flushed_every_second_it_keeps_the_contract() {
    keeps_the_contract(Flush::EverySecond).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushed_each_time_and_on_two_threads_too() {
    keeps_the_contract(Flush::Each).await;
}
