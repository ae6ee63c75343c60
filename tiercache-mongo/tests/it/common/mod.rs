//! What the tests of this crate share.

pub(crate) mod stub;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tiercache_core::tier::{Hold, Permit, Put};
use tiercache_core::{Entry, Generation, Key, Stay, Tier, Timestamp};
use tiercache_mongo::{MongoConfig, MongoTier, MongoTracking, MongoTrackingConfig};

/// A prefix of this test's own.
pub(crate) fn prefix() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    format!("t{}_{}_{}", std::process::id(), since.subsec_nanos(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn config(url: &str) -> MongoConfig {
    MongoConfig { uri: Some(url.into()), prefix: prefix(), ..MongoConfig::default() }
}

pub(crate) fn tracking_config(url: &str) -> MongoTrackingConfig {
    MongoTrackingConfig { uri: Some(url.into()), prefix: prefix(), ..MongoTrackingConfig::default() }
}

pub(crate) async fn tier(config: &MongoConfig) -> Arc<MongoTier> {
    Arc::new(MongoTier::open(config.clone(), "dry").await.expect("opens"))
}

pub(crate) async fn tracking(config: &MongoTrackingConfig) -> Arc<MongoTracking> {
    Arc::new(MongoTracking::open(config.clone()).await.expect("opens"))
}

/// The real time: stores that expire things themselves count from it.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    Timestamp::from_millis(since.as_millis() as u64)
}

pub(crate) fn hold() -> Hold {
    Hold { now: now(), stay: Stay::Forever }
}

pub(crate) fn key(name: &str) -> Key {
    Key::new("", name.as_bytes()).expect("a valid key")
}

pub(crate) fn of(generation: u64) -> Generation {
    Generation::new(generation)
}

pub(crate) fn entry(generation: u64, value: impl Into<bytes::Bytes>) -> Entry {
    Entry::new(value, of(generation), Timestamp::from_millis(1_700_000_000_000))
}

pub(crate) async fn put(tier: &dyn Tier, name: &str, entry: &Entry) -> Put {
    tier.put(&key(name), entry, hold(), &tiercache_core::tier::Always).await.expect("a put")
}

pub(crate) async fn get(tier: &dyn Tier, name: &str) -> Option<Entry> {
    tier.get(&key(name)).await.expect("a get")
}

/// Waits for something that happens in the background.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < Duration::from_secs(8), "waited too long: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A permit that is withdrawn when it is asked for the n-th time.
pub(crate) struct Times(pub(crate) AtomicU32);

impl Permit for Times {
    fn holds(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}
