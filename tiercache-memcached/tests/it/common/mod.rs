//! What the tests here share.

use std::time::Duration;

use tiercache_core::tier::{Always, Hold, Put, Removal};
use tiercache_core::{Entry, Generation, Key, Stay, Tier, Timestamp};
use tiercache_memcached::{MemcachedConfig, MemcachedTier};

pub(crate) const T0: Timestamp = Timestamp::from_millis(1_700_000_000_000);
pub(crate) const HOLD: Hold = Hold { now: T0, stay: Stay::Forever };

pub(crate) fn config(servers: &[&str]) -> MemcachedConfig {
    let servers = servers.iter().map(|&server| server.to_owned()).collect();
    let timeout = Duration::from_millis(400);
    MemcachedConfig { servers, timeout, connect_timeout: timeout, ..MemcachedConfig::default() }
}

/// The level as one process has it.
pub(crate) async fn open(servers: &[&str]) -> MemcachedTier {
    MemcachedTier::open(config(servers), "cold").await.unwrap()
}

pub(crate) fn key(name: &str) -> Key {
    Key::new("", name.as_bytes()).unwrap()
}

pub(crate) fn entry(generation: u64, value: impl Into<Vec<u8>>) -> Entry {
    Entry::new(value.into(), Generation::new(generation), T0)
}

pub(crate) async fn put(tier: &MemcachedTier, name: &str, generation: u64, value: &str) -> Put {
    tier.put(&key(name), &entry(generation, value), HOLD, &Always).await.unwrap()
}

pub(crate) async fn get(tier: &MemcachedTier, name: &str) -> Option<Entry> {
    tier.get(&key(name)).await.unwrap()
}

pub(crate) async fn remove(tier: &MemcachedTier, name: &str, below: u64) -> Removal {
    tier.remove(&key(name), Generation::new(below)).await.unwrap()
}

/// Lets a process hear what became of the record, which it does within a second by itself.
pub(crate) async fn hear(tier: &MemcachedTier, generation: u64) {
    remove(tier, "nobody's key", generation).await;
}
