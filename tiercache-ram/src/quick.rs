//! The engine of `policy: adaptive`.
//!
//! The cache is a set of slots: the slot is the engine's *key* and its value is empty. A look-up's [`Probe`] is
//! compared with the slot under the shard's lock and takes from it what it came for, so that a hit clones nothing
//! but the value's `Bytes`, and a conditional removal judges and removes in one step.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Lifecycle, OptionsBuilder, Weighter};
use tiercache_core::tier::Resting;
use tiercache_core::{Generation, KeyRef};

use crate::engine::KeyHash;
use crate::outlet::Outlet;
use crate::slot::Slot;

/// A shard has at least so many bytes, so that entries of a few MiB fit into it.
const SHARD_BYTES: u64 = 4 << 20;
/// More shards would let fewer large entries in and gain nothing.
const MAX_SHARDS: u64 = 32;
/// The share of a shard that its hot part may take, and with it the largest entry.
const HOT: f64 = 0.97;
/// Divides the capacity into an estimate of how many entries it will hold. The engine remembers half as many that it
/// evicted, at about 130 bytes each: 6 % of the capacity, for one to three points of hits on traces of applications.
const TYPICAL_BYTES: u64 = 1024;

#[derive(Debug)]
pub(crate) struct Quick {
    cache: Cache<Slot, (), Weigh, KeyHash, Evict>,
    limit: AtomicU64,
}

impl Quick {
    pub(crate) fn new(capacity: u64, outlet: Arc<Outlet>) -> Self {
        let shards = shards(capacity);
        let shard = capacity / shards;
        let options = OptionsBuilder::new()
            .shards(shards as usize)
            .estimated_items_capacity((capacity / TYPICAL_BYTES).max(32 * shards) as usize)
            .weight_capacity(shard * shards)
            .hot_allocation(HOT)
            .build()
            .expect("both capacities are given");
        let cache = Cache::with_options(options, Weigh, KeyHash, Evict { outlet });
        Self { cache, limit: AtomicU64::new(entry_limit(shard)) }
    }

    /// The most bytes an entry may have: what the hot part of one shard takes.
    pub(crate) fn entry_limit(&self) -> u64 {
        self.limit.load(Relaxed)
    }

    #[inline]
    pub(crate) fn hit(&self, key: &KeyRef<'_>, visit: impl FnOnce(&Slot) -> bool) {
        self.cache.get(&Probe::new(key, visit));
    }

    pub(crate) fn peek<T>(&self, key: KeyRef<'_>, visit: impl FnOnce(&Slot) -> Option<T>) -> Option<T> {
        let mut answer = None;
        self.cache.contains_key(&Probe::new(&key, |slot| {
            answer = visit(slot);
            answer.is_some()
        }));
        answer
    }

    pub(crate) fn insert(&self, slot: Slot, replaces: bool) {
        let mut inserting = Inserting(replaces.then(|| (slot.key.hash64(), slot.generation())));
        self.cache.insert_with_lifecycle(slot, (), &mut inserting);
    }

    /// Removes the entry if `condition`, which sees it under the lock it is removed under.
    pub(crate) fn remove_if(
        &self,
        key: KeyRef<'_>,
        condition: impl FnOnce(&Slot) -> bool,
    ) -> Option<Resting> {
        self.cache.remove(&Probe::new(&key, condition)).map(|(slot, ())| slot.resting())
    }

    /// Every entry that is there from the beginning to the end, each locked for itself.
    pub(crate) fn each(&self) -> impl Iterator<Item = Slot> + Send + '_ {
        self.cache.iter().map(|(snapshot, ())| snapshot)
    }

    pub(crate) fn entries(&self) -> u64 {
        self.cache.len() as u64
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.cache.weight()
    }

    pub(crate) fn resize(&self, capacity: u64) {
        let shard = capacity / self.cache.num_shards() as u64;
        self.limit.store(entry_limit(shard), Relaxed);
        self.cache.set_capacity(shard * self.cache.num_shards() as u64);
    }
}

/// How many shards a table of so many bytes has.
pub(crate) fn shards(capacity: u64) -> u64 {
    let shards = (capacity / SHARD_BYTES).clamp(1, MAX_SHARDS);
    // Rounded down: the bytes of all shards together must not exceed the capacity.
    if shards.is_power_of_two() { shards } else { shards.next_power_of_two() / 2 }
}

/// What the engine takes. It rounds differently after a resize: a put it then refuses comes back as evicted.
fn entry_limit(shard: u64) -> u64 {
    (shard as f64 * HOT) as u64
}

/// A look-up that shows the slot it finds to `visit`; `false` lets the slot pass for another key's.
struct Probe<'a, F> {
    key: &'a KeyRef<'a>,
    visit: Cell<Option<F>>,
}

impl<'a, F: FnOnce(&Slot) -> bool> Probe<'a, F> {
    #[inline]
    fn new(key: &'a KeyRef<'a>, visit: F) -> Self {
        Self { key, visit: Cell::new(Some(visit)) }
    }
}

impl<F> Hash for Probe<'_, F> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

impl<F: FnOnce(&Slot) -> bool> Equivalent<Slot> for Probe<'_, F> {
    #[inline]
    fn equivalent(&self, slot: &Slot) -> bool {
        self.key.is(&slot.key) && self.visit.take().is_some_and(|visit| visit(slot))
    }
}

impl Hash for Slot {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

impl PartialEq for Slot {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Slot {}

#[derive(Clone, Debug)]
struct Weigh;

impl Weighter<Slot, ()> for Weigh {
    fn weight(&self, slot: &Slot, _: &()) -> u64 {
        u64::from(slot.weight)
    }
}

/// Called by the engine under the shard's lock, before anybody can miss what it evicts.
#[derive(Clone, Debug)]
struct Evict {
    outlet: Arc<Outlet>,
}

/// What is inserted over an older entry, to tell what it replaces from what it displaces: the key's hash, and the
/// generation that an older entry is below. Another key of the same 64 bits, displaced in that moment, would be lost;
/// a copy of the key would cost every replacement more than that is worth.
#[derive(Default)]
struct Inserting(Option<(u64, Generation)>);

impl Lifecycle<Slot, ()> for Evict {
    type RequestState = Inserting;

    fn on_evict(&self, Inserting(inserting): &mut Inserting, slot: Slot, _: ()) {
        let replaced = inserting
            .is_some_and(|(hash, generation)| slot.generation() < generation && slot.key.hash64() == hash);
        if !replaced {
            self.outlet.evict(&slot);
        }
    }
}
