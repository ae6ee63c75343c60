//! Other caches and frameworks, each as its documentation sets it up.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use cached::{ConcurrentCached, ShardedLruCache};
use foyer::{
    BlockEngineConfig, CacheBuilder, DeviceBuilder, FsDeviceBuilder, HybridCache, HybridCacheBuilder,
};
use multi_tier_cache::{CacheStrategy, CacheSystemBuilder, MokaCacheConfig, TierConfig};
use tokio::runtime::{Builder, Runtime};

use super::Room;
use super::contender::{Contender, awaited, direct};
use super::raw::bytes;

/// Where the frameworks' background work runs.
static BACKGROUND: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime of one worker")
});

/// What foyer's hybrid cache keeps on disk meanwhile; gone with the process.
static SCRATCH: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a directory for temporary files"));

pub(super) fn all(room: Room) -> Vec<Contender> {
    vec![foyer_memory(room), foyer_hybrid(room), multi_tier(room), sharded_lru(room)]
}

/// foyer's cache in RAM, of so many bytes.
pub(crate) fn foyer_in_ram(bytes: u64) -> foyer::Cache<String, Bytes> {
    CacheBuilder::new(bytes as usize)
        .with_weighter(|key: &String, value: &Bytes| key.len() + value.len())
        .build()
}

fn foyer_memory(room: Room) -> Contender {
    let cache = foyer_in_ram(bytes(room));
    let written = cache.clone();
    direct(
        "foyer-memory",
        move |key| cache.get(key.as_str()).map(|entry| entry.value().clone()),
        move |key, value| drop(written.insert(key.clone(), value)),
    )
}

fn foyer_hybrid(room: Room) -> Contender {
    let cache: HybridCache<String, Bytes> = BACKGROUND.block_on(async {
        let directory = SCRATCH.path().join(room.entries.to_string());
        let device =
            FsDeviceBuilder::new(directory).with_capacity(256 << 20).build().expect("a small device");
        HybridCacheBuilder::new()
            .memory(bytes(room) as usize)
            .with_weighter(|key: &String, value: &Bytes| key.len() + value.len())
            .storage()
            .with_engine_config(BlockEngineConfig::new(device))
            .build()
            .await
            .expect("a new directory")
    });
    awaited(
        "foyer-hybrid",
        cache,
        async |cache: &HybridCache<String, Bytes>, key: &String| {
            cache.get(key).await.map(|entry| entry.map(|entry| entry.value().clone()))
        },
        async |cache: &HybridCache<String, Bytes>, key: &String, value| {
            drop(cache.insert(key.clone(), value))
        },
    )
}

fn multi_tier(room: Room) -> Contender {
    type Manager = Arc<multi_tier_cache::CacheManager>;
    let tier = |entries: usize| {
        // It counts entries, not bytes.
        let config = MokaCacheConfig {
            max_capacity: entries as u64,
            time_to_live: Duration::from_secs(86_400),
            time_to_idle: Duration::from_secs(86_400),
        };
        Arc::new(multi_tier_cache::L1Cache::new(config).expect("a valid configuration"))
    };
    let entries = room.entries * if room.tight { 1 } else { 2 };
    let cache: Manager = BACKGROUND.block_on(async {
        let system = CacheSystemBuilder::new()
            .with_tier(tier(entries), TierConfig::as_l1())
            .with_tier(tier(entries), TierConfig::as_l2())
            .build()
            .await
            .expect("tiers in memory need nothing");
        system.cache_manager().clone()
    });
    awaited(
        "multi-tier-cache",
        cache,
        async |cache: &Manager, key: &String| cache.get(key).await,
        async |cache: &Manager, key: &String, value| {
            drop(cache.set_with_strategy(key, value, CacheStrategy::LongTerm).await);
        },
    )
}

fn sharded_lru(room: Room) -> Contender {
    let entries = room.entries * if room.tight { 1 } else { 2 } + 1_000;
    let cache =
        ShardedLruCache::<String, Bytes>::builder().max_size(entries).build().expect("a size is given");
    let cache = Arc::new(cache);
    let written = cache.clone();
    direct(
        "cached",
        move |key| cache.cache_get(key),
        move |key, value| drop(written.cache_set(key.clone(), value)),
    )
}
