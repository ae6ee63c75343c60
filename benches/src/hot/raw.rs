//! The engines tiercache stands on, by themselves.

use bytes::Bytes;
use foldhash::fast::RandomState;
use quick_cache::{Lifecycle, OptionsBuilder, Weighter};

use super::contender::{Contender, direct};
use super::{Room, VALUE_BYTES};

pub(super) fn all(room: Room) -> Vec<Contender> {
    vec![quick(room), moka(room)]
}

/// Bytes that hold that many entries as these engines weigh them; twice as many where all must stay.
pub(super) fn bytes(room: Room) -> u64 {
    let each = (VALUE_BYTES + 24) as u64;
    room.entries as u64 * each * if room.tight { 1 } else { 2 } + if room.tight { 0 } else { 64 << 20 }
}

#[derive(Clone)]
pub(crate) struct Weigh;

impl Weighter<String, Bytes> for Weigh {
    fn weight(&self, key: &String, value: &Bytes) -> u64 {
        (key.len() + value.len()) as u64
    }
}

/// The hook of what is evicted, which every level needs.
#[derive(Clone)]
pub(crate) struct Hook;

impl Lifecycle<String, Bytes> for Hook {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), key: String, value: Bytes) {
        drop(std::hint::black_box((key, value)));
    }
}

pub(crate) type QuickCache = quick_cache::sync::Cache<String, Bytes, Weigh, RandomState, Hook>;
pub(crate) type Moka = moka::sync::Cache<String, Bytes, RandomState>;

/// quick_cache of so many bytes, expecting so many entries.
pub(crate) fn quick_cache(bytes: u64, entries: usize) -> QuickCache {
    let options = OptionsBuilder::new()
        .estimated_items_capacity(entries)
        .weight_capacity(bytes)
        .shards(32)
        .build()
        .expect("both capacities are given");
    QuickCache::with_options(options, Weigh, RandomState::default(), Hook)
}

/// moka of so many bytes.
pub(crate) fn moka_lru(bytes: u64) -> Moka {
    moka::sync::Cache::builder()
        .max_capacity(bytes)
        .weigher(|key: &String, value: &Bytes| (key.len() + value.len()) as u32)
        .eviction_policy(moka::policy::EvictionPolicy::lru())
        .build_with_hasher(RandomState::default())
}

fn quick(room: Room) -> Contender {
    let cache = std::sync::Arc::new(quick_cache(bytes(room), room.entries.max(1_000)));
    let written = cache.clone();
    direct("quick_cache", move |key| cache.get(key), move |key, value| written.insert(key.clone(), value))
}

fn moka(room: Room) -> Contender {
    let cache = moka_lru(bytes(room));
    let written = cache.clone();
    direct("moka", move |key| cache.get(key), move |key, value| written.insert(key.clone(), value))
}
