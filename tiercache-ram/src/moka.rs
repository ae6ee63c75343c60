//! The engine of `policy: lru` and `policy: tinylfu`.
//!
//! Three things are worked around, each found in moka's source:
//! - It evicts in maintenance, some time after the insert that went over the limit. Here its capacity is a 64th
//!   below the limit, and an insert that would go over the limit runs the maintenance before it returns.
//! - Maintenance makes an entry invisible *before* it calls the listener. It runs under one lock, so that a look-up
//!   that found nothing runs it once itself: afterwards whatever was missed has been handed over.
//! - It cannot be resized. A resized engine is a second table; the first one is emptied into it.

use std::hash::{Hash, Hasher};
use std::iter;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use quick_cache::Equivalent;
use tiercache_core::tier::{Cause, Resting};
use tiercache_core::{Key, KeyRef};

use crate::Policy;
use crate::engine::{KeyHash, Stripes};
use crate::outlet::Outlet;
use crate::slot::Slot;

/// The share of the limit that is left for what maintenance has not evicted yet.
const LATE: u64 = 64;

#[derive(Debug)]
pub(crate) struct Moka {
    policy: Policy,
    outlet: Arc<Outlet>,
    table: Table,
    /// Order writes of one key among each other: moka has no conditional ones.
    writes: Stripes,
}

/// A table and, after a resize, the one that took its place.
#[derive(Debug)]
struct Table {
    cache: Cache<Key, Arc<Slot>, KeyHash>,
    limit: u64,
    held: Arc<Held>,
    next: OnceLock<Box<Table>>,
}

/// What is visible in a table, counted at once and not when maintenance gets to it.
#[derive(Debug, Default)]
struct Held {
    entries: AtomicU64,
    bytes: AtomicU64,
}

impl Moka {
    pub(crate) fn new(policy: Policy, capacity: u64, outlet: Arc<Outlet>) -> Self {
        let table = Table::new(policy, capacity, outlet.clone());
        Self { policy, outlet, table, writes: Stripes::new() }
    }

    pub(crate) fn entry_limit(&self) -> u64 {
        let limit = self.table.current().limit;
        // Weights are 32 bits wide there.
        (limit - limit / LATE).min(u64::from(u32::MAX))
    }

    #[inline]
    pub(crate) fn hit<T>(&self, key: KeyRef<'_>, visit: impl FnOnce(&Slot) -> Option<T>) -> Option<T> {
        visit(&*self.table.current().cache.get(&Lookup(key))?)
    }

    pub(crate) fn peek<T>(&self, key: KeyRef<'_>, visit: impl FnOnce(&Slot) -> Option<T>) -> Option<T> {
        visit(&*self.find(key)?)
    }

    pub(crate) fn insert(&self, slot: Slot) {
        let _exclusive = self.writes.lock(slot.key.as_ref());
        self.table.current().insert(Arc::new(slot));
    }

    pub(crate) fn remove_if(
        &self,
        key: KeyRef<'_>,
        condition: impl FnOnce(&Slot) -> bool,
    ) -> Option<Resting> {
        let _exclusive = self.writes.lock(key);
        let slot = self.find(key)?;
        if !condition(&slot) {
            return None;
        }
        let resting = slot.resting();
        self.table.current().cache.invalidate(&Lookup(key));
        Some(resting)
    }

    pub(crate) fn each(&self) -> impl Iterator<Item = (Key, Resting)> + Send + '_ {
        self.table.current().cache.iter().map(|(_, slot)| (slot.key.clone(), slot.resting()))
    }

    pub(crate) fn maintain(&self) {
        self.table.current().cache.run_pending_tasks();
    }

    pub(crate) fn entries(&self) -> u64 {
        self.table.current().held.entries.load(Relaxed)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.table.current().held.bytes.load(Relaxed)
    }

    pub(crate) fn resize(&self, capacity: u64) {
        let _exclusive = self.writes.lock_all();
        let old = self.table.current();
        let new = Box::new(Table::new(self.policy, capacity, self.outlet.clone()));
        for (_, slot) in old.cache.iter() {
            if slot.weight <= new.limit {
                new.insert(slot);
            } else {
                self.outlet.hand_over(&slot, Cause::Evicted);
            }
        }
        // Readers go over to the new table here; nothing is removed from the old one before.
        if old.next.set(new).is_err() {
            unreachable!("every stripe is locked, nobody else resizes");
        }
        old.cache.invalidate_all();
        old.cache.run_pending_tasks();
    }

    /// The slot of `key`. If there is none, evictions that hid it have been handed over.
    fn find(&self, key: KeyRef<'_>) -> Option<Arc<Slot>> {
        let cache = &self.table.current().cache;
        let found = cache.get(&Lookup(key));
        if found.is_none() {
            cache.run_pending_tasks();
        }
        found
    }
}

impl Table {
    fn new(policy: Policy, limit: u64, outlet: Arc<Outlet>) -> Self {
        let held = Arc::new(Held::default());
        let counted = held.clone();
        let cache = Cache::builder()
            .max_capacity(limit - limit / LATE)
            .eviction_policy(match policy {
                Policy::TinyLfu => EvictionPolicy::tiny_lfu(),
                Policy::Lru | Policy::Adaptive => EvictionPolicy::lru(),
            })
            .weigher(|_: &Key, slot: &Arc<Slot>| u32::try_from(slot.weight).unwrap_or(u32::MAX))
            .eviction_listener(move |_, slot: Arc<Slot>, cause| {
                counted.entries.fetch_sub(1, Relaxed);
                counted.bytes.fetch_sub(slot.weight, Relaxed);
                if cause == RemovalCause::Size {
                    outlet.hand_over(&slot, Cause::Evicted);
                }
            })
            .build_with_hasher(KeyHash);
        Self { cache, limit, held, next: OnceLock::new() }
    }

    #[inline]
    fn current(&self) -> &Self {
        let mut table = self;
        while let Some(next) = table.next.get() {
            table = next;
        }
        table
    }

    fn insert(&self, slot: Arc<Slot>) {
        self.held.entries.fetch_add(1, Relaxed);
        self.held.bytes.fetch_add(slot.weight, Relaxed);
        self.cache.insert(slot.key.clone(), slot);
        // One run may leave something for the next one when other threads keep it busy.
        for _ in iter::repeat_n((), 8).take_while(|()| self.held.bytes.load(Relaxed) > self.limit) {
            self.cache.run_pending_tasks();
        }
    }
}

/// A borrowed key, for look-ups without an owned one.
struct Lookup<'a>(KeyRef<'a>);

impl Hash for Lookup<'_> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Equivalent<Key> for Lookup<'_> {
    #[inline]
    fn equivalent(&self, key: &Key) -> bool {
        self.0.is(key)
    }
}
