//! SQLite tracking keeps the contract of tracking, across restarts, too.
#![cfg(feature = "sqlite")]

use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use tiercache_core::Tracking;
use tiercache_core::testing::tracking::{persistent_suite, suite};
use tiercache_tracking::{SqliteConfig, SqliteTracking};

async fn open(folder: &Path) -> Arc<dyn Tracking> {
    Arc::new(
        SqliteTracking::open(SqliteConfig { path: folder.join("index.db") })
            .await
            .expect("a store and its folder"),
    )
}

/// Runs the suite in folders that go when it ends.
async fn run_suite() {
    let folders = std::cell::RefCell::new(Vec::new());
    suite(async || {
        let folder = TempDir::new().expect("a store and its folder");
        let tracking = open(folder.path()).await;
        folders.borrow_mut().push(folder);
        tracking
    })
    .await;
}

#[tokio::test]
async fn on_one_thread() {
    run_suite().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_several_threads() {
    run_suite().await;
}

#[tokio::test]
async fn across_restarts() {
    persistent_suite(|| {
        let folder = TempDir::new().expect("a store and its folder");
        async move || open(folder.path()).await
    })
    .await;
}
