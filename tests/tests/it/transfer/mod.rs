//! Entries that travel, warm-ups, and configurations that change while a cache is used.

mod foreign;
mod migrate;
mod reload;
mod stream;
mod warm;

use std::sync::Arc;

use tiercache_core::testing::{ManualClock, MemoryTier};
use tiercache_core::{CacheManager, Entry, Generation};
use tiercache_tests::rig::{builder, ram};

/// RAM over a level in memory that counts as one that lasts.
async fn cache(clock: &Arc<ManualClock>) -> CacheManager {
    builder(clock).hot(ram()).dry(MemoryTier::persistent()).build().await.unwrap()
}

/// One with nothing in RAM, as a command that has just opened it finds it.
async fn cold_cache(clock: &Arc<ManualClock>) -> CacheManager {
    builder(clock).dry(MemoryTier::persistent()).build().await.unwrap()
}

/// What travels of an entry: all but its generation.
async fn traveller(cache: &CacheManager, key: &[u8]) -> Option<Entry> {
    let entry = cache.snapshot(key).await.unwrap();
    entry.map(|entry| Entry { generation: Generation::ZERO, ..entry })
}
