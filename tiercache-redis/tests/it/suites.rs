//! The public suites against a real server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tiercache_core::testing::{lease, tier, tracking};
use tiercache_core::{Address, EncryptionConfig, Leasing, Level, Secret, Tier, Tracking};
use tiercache_redis::{RedisConfig, RedisTier, RedisTracking, RedisTrackingConfig};
use tiercache_services::Redis;

static LAST: AtomicUsize = AtomicUsize::new(0);

/// A prefix no other case has, even when the server is shared with other runs.
fn prefix() -> String {
    format!("tiercache-{}-{}", std::process::id(), LAST.fetch_add(1, Ordering::Relaxed))
}

async fn open(server: &Redis, prefix: String) -> Arc<RedisTier> {
    let url = Some(Address::from(server.url().as_str()));
    let config = RedisConfig { url, prefix, max_entry_bytes: 4 << 20, ..RedisConfig::default() };
    Arc::new(RedisTier::open(config, Level::Cold).await.expect("opens"))
}

async fn track(server: &Redis, prefix: String) -> Arc<RedisTracking> {
    let url = Some(Address::from(server.url().as_str()));
    let config = RedisTrackingConfig { url, prefix, ..RedisTrackingConfig::default() };
    Arc::new(RedisTracking::open(config).await.expect("opens"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tier_keeps_the_contract() {
    let Some(server) = Redis::start() else { return };
    tier::suite(async || open(&server, prefix()).await as Arc<dyn Tier>).await;
}

#[tokio::test]
async fn the_tier_keeps_it_on_one_thread() {
    let Some(server) = Redis::start() else { return };
    tier::suite(async || open(&server, prefix()).await as Arc<dyn Tier>).await;
}

#[tokio::test]
async fn the_tier_keeps_it_with_sealed_entries() {
    let Some(server) = Redis::start() else { return };
    let key = Some(Secret::from("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".to_owned()));
    let encryption = Some(EncryptionConfig { key, ..EncryptionConfig::default() });
    tier::suite(async || {
        let (url, encryption) = (Some(Address::from(server.url().as_str())), encryption.clone());
        let config = RedisConfig {
            url,
            prefix: prefix(),
            max_entry_bytes: 4 << 20,
            encryption,
            ..RedisConfig::default()
        };
        Arc::new(RedisTier::open(config, Level::Cold).await.expect("opens")) as Arc<dyn Tier>
    })
    .await;
}

#[tokio::test]
async fn the_tier_keeps_it_across_processes() {
    let Some(server) = Redis::start() else { return };
    let place = prefix();
    tier::persistent_suite(async |number| open(&server, format!("{place}-{number}")).await as Arc<dyn Tier>)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tracking_keeps_the_contract() {
    let Some(server) = Redis::start() else { return };
    tracking::suite(async || track(&server, prefix()).await as Arc<dyn Tracking>).await;
}

#[tokio::test]
async fn the_tracking_keeps_it_on_one_thread() {
    let Some(server) = Redis::start() else { return };
    tracking::suite(async || track(&server, prefix()).await as Arc<dyn Tracking>).await;
}

#[tokio::test]
async fn the_tracking_keeps_it_across_processes() {
    let Some(server) = Redis::start() else { return };
    tracking::persistent_suite(|| {
        let place = prefix();
        let server = &server;
        async move || track(server, place.clone()).await as Arc<dyn Tracking>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tier_gives_out_leases() {
    let Some(server) = Redis::start() else { return };
    let place = prefix();
    let opened = async |number| open(&server, format!("{place}-{number}")).await as Arc<dyn Leasing>;
    lease::suite(Duration::from_millis(200), opened).await;
}

#[tokio::test]
async fn the_tracking_gives_out_leases() {
    let Some(server) = Redis::start() else { return };
    let place = prefix();
    let opened = async |number| track(&server, format!("{place}-{number}")).await as Arc<dyn Leasing>;
    lease::suite(Duration::from_millis(200), opened).await;
}
