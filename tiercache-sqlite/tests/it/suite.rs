//! The SQLite level keeps the contract of a tier, and of one that outlives the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tiercache_core::testing::{ManualClock, lease, tier};
use tiercache_core::{Leasing, SystemClock, Tier};
use tiercache_sqlite::{SqliteConfig, SqliteTier, Synchronous};

async fn keeps_the_contract(config: SqliteConfig) {
    let dir = tempfile::tempdir().unwrap();
    let next = AtomicUsize::new(0);
    let open = |path| -> Arc<dyn Tier> {
        let config = SqliteConfig { path: Some(dir.path().join(path)), max_size: 8 << 20, ..config.clone() };
        Arc::new(SqliteTier::open_blocking(config, ManualClock::new()).unwrap())
    };
    tier::suite(async || open(next.fetch_add(1, Ordering::Relaxed).to_string())).await;
    tier::persistent_suite(async |place| open(format!("kept {place}"))).await;
}

#[tokio::test]
async fn as_it_comes_it_keeps_the_contract() {
    keeps_the_contract(SqliteConfig::default()).await;
}

#[tokio::test]
async fn with_one_shard_and_every_value_in_a_file_too() {
    let config = SqliteConfig { shards: Some(1), inline_max: 0, ..SqliteConfig::default() };
    keeps_the_contract(SqliteConfig { synchronous: Synchronous::Off, ..config }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_two_threads_too() {
    keeps_the_contract(SqliteConfig { readers: 1, ..SqliteConfig::default() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_gives_out_leases() {
    let dir = tempfile::tempdir().unwrap();
    let open = async |place: usize| {
        let path = Some(dir.path().join(place.to_string()));
        let config = SqliteConfig { path, max_size: 8 << 20, ..SqliteConfig::default() };
        Arc::new(SqliteTier::open(config, SystemClock::start()).await.unwrap()) as Arc<dyn Leasing>
    };
    lease::suite(Duration::from_millis(200), open).await;
}
