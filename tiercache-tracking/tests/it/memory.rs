//! Memory tracking keeps the contract of tracking.

use std::sync::Arc;

use tiercache_core::Tracking;
use tiercache_core::testing::tracking::suite;
use tiercache_tracking::MemoryTracking;

async fn fresh() -> Arc<dyn Tracking> {
    Arc::new(MemoryTracking::default())
}

#[tokio::test]
async fn on_one_thread() {
    suite(fresh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_several_threads() {
    suite(fresh).await;
}
