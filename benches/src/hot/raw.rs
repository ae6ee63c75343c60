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
struct Weigh;

impl Weighter<String, Bytes> for Weigh {
    fn weight(&self, key: &String, value: &Bytes) -> u64 {
        (key.len() + value.len()) as u64
    }
}

/// The hook of what is evicted, which every level needs.
#[derive(Clone)]
struct Hook;

impl Lifecycle<String, Bytes> for Hook {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), key: String, value: Bytes) {
        drop(std::hint::black_box((key, value)));
    }
}

fn quick(room: Room) -> Contender {
    let options = OptionsBuilder::new()
        .estimated_items_capacity(room.entries.max(1_000))
        .weight_capacity(bytes(room))
        .shards(32)
        .build()
        .expect("both capacities are given");
    let cache = quick_cache::sync::Cache::with_options(options, Weigh, RandomState::default(), Hook);
    let cache = std::sync::Arc::new(cache);
    let written = cache.clone();
    direct("quick_cache", move |key| cache.get(key), move |key, value| written.insert(key.clone(), value))
}

fn moka(room: Room) -> Contender {
    let cache = moka::sync::Cache::builder()
        .max_capacity(bytes(room))
        .weigher(|key: &String, value: &Bytes| (key.len() + value.len()) as u32)
        .eviction_policy(moka::policy::EvictionPolicy::lru())
        .build_with_hasher(RandomState::default());
    let written = cache.clone();
    direct("moka", move |key| cache.get(key), move |key, value| written.insert(key.clone(), value))
}
