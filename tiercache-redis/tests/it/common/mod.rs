//! What the tests of this crate share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use tiercache_core::tier::{Always, Hold, Put};
use tiercache_core::{Address, Entry, Generation, Key, Level, Result, Stay, Tier, Timestamp};
use tiercache_redis::{RedisConfig, RedisTier};

pub(crate) const T0: Timestamp = Timestamp::from_millis(1_700_000_000_000);
pub(crate) const HOLD: Hold = Hold { now: T0, stay: Stay::Forever };

pub(crate) fn config(url: &str) -> RedisConfig {
    RedisConfig { url: Some(Address::from(url)), ..RedisConfig::default() }
}

pub(crate) async fn open(url: &str) -> Arc<RedisTier> {
    open_at(url, Level::Cold).await
}

pub(crate) async fn open_at(url: &str, level: Level) -> Arc<RedisTier> {
    Arc::new(RedisTier::open(config(url), level).await.expect("opens"))
}

/// A client of our own, to do at the server what the tier does not.
pub(crate) async fn client(url: &str) -> MultiplexedConnection {
    redis::Client::open(url).expect("a url").get_multiplexed_async_connection().await.expect("connects")
}

pub(crate) fn key(name: &str) -> Key {
    Key::new("", name.as_bytes()).expect("a key")
}

pub(crate) fn entry(generation: u64, value: &str) -> Entry {
    Entry::new(value.to_owned(), Generation::new(generation), T0)
}

pub(crate) async fn put(tier: &dyn Tier, name: &str, generation: u64, value: &str) -> Result<Put> {
    tier.put(&key(name), &entry(generation, value), HOLD, &Always).await
}

pub(crate) async fn value(tier: &dyn Tier, name: &str) -> Option<String> {
    let found = tier.get(&key(name)).await.expect("a get");
    found.map(|entry| String::from_utf8(entry.value.to_vec()).expect("text"))
}

pub(crate) fn of(generation: u64) -> Generation {
    Generation::new(generation)
}

/// Tries until it is true, and fails after `limit`.
pub(crate) async fn within(limit: Duration, what: &str, mut is: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !is().await {
        assert!(started.elapsed() < limit, "{what} took longer than {limit:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
