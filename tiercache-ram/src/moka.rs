//! The engine of `policy: lru` and `policy: tinylfu`.
//!
//! Four things are worked around, each found in moka's source:
//! - It evicts in maintenance, some time after the insert that went over the limit. Here an insert that goes
//!   over the limit runs the maintenance before it returns; a capacity a little below the limit makes that rare.
//!   Should maintenance leave something all the same, a walk over the table evicts down to that capacity: a walk looks
//!   at many entries, and so it is paid for by all that comes in until the next.
//! - Maintenance makes an entry invisible *before* it calls the listener. It runs under one lock, so that a look-up
//!   that found nothing runs it once itself: afterwards whatever was missed has been handed over.
//! - A removal that overtakes a replacement in its queue makes it count the weight of the wrong one, for good. A
//!   removal runs the maintenance first.
//! - It cannot be resized. A resized engine is a second table; the first one is emptied into it.

use std::iter;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tiercache_core::tier::Resting;
use tiercache_core::{Key, KeyRef};

use crate::Policy;
use crate::engine::{KeyHash, Stripes};
use crate::outlet::Outlet;
use crate::slot::Slot;

/// What maintenance aims at, below the limit by what may come in until it runs. Small tiers get their full size.
const fn capacity(limit: u64) -> u64 {
    if limit < 1 << 20 { limit } else { limit - limit / 64 }
}

/// Runs of the maintenance that evict nothing before it is not relied on.
const FRUITLESS_RUNS: u32 = 8;

#[derive(Debug)]
pub(crate) struct Moka {
    policy: Policy,
    outlet: Arc<Outlet>,
    table: Table,
    /// Order writes of one key among each other: moka has no conditional ones.
    writes: Stripes,
    /// Walks over a table for room.
    walks: AtomicU64,
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
    /// The bytes among these that are being inserted: maintenance cannot evict for them yet, and whoever inserts them
    /// makes room afterwards.
    arriving: AtomicU64,
}

impl Held {
    fn arrived(&self) -> u64 {
        // In this order: what arrives in between is counted, and it is there.
        let bytes = self.bytes.load(SeqCst);
        bytes.saturating_sub(self.arriving.load(SeqCst))
    }
}

impl Moka {
    pub(crate) fn new(policy: Policy, capacity: u64, outlet: Arc<Outlet>) -> Self {
        let table = Table::new(policy, capacity, outlet.clone());
        Self { policy, outlet, table, writes: Stripes::new(), walks: AtomicU64::new(0) }
    }

    pub(crate) fn entry_limit(&self) -> u64 {
        capacity(self.table.current().limit)
    }

    #[inline]
    pub(crate) fn hit(&self, key: &KeyRef<'_>, visit: impl FnOnce(&Slot) -> bool) {
        if let Some(slot) = self.table.current().cache.get(key) {
            visit(&slot);
        }
    }

    pub(crate) fn peek<T>(&self, key: KeyRef<'_>, visit: impl FnOnce(&Slot) -> Option<T>) -> Option<T> {
        visit(&*self.find(key)?)
    }

    pub(crate) fn insert(&self, slot: Slot) {
        let exclusive = self.writes.lock(slot.key.as_ref());
        self.table.current().insert(Arc::new(slot));
        drop(exclusive);
        self.trim();
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
        let cache = &self.table.current().cache;
        cache.run_pending_tasks();
        cache.invalidate(&key);
        Some(resting)
    }

    pub(crate) fn each(&self) -> impl Iterator<Item = Slot> + Send + '_ {
        self.slots().map(|slot| Slot::clone(&slot))
    }

    /// Every entry that is there from the beginning to the end. When the table is replaced meanwhile, the one that takes
    /// its place is walked over, too, and shows again what came from there.
    pub(crate) fn slots(&self) -> impl Iterator<Item = Arc<Slot>> + Send + '_ {
        let mut table = self.table.current();
        let mut walk = table.cache.iter();
        iter::from_fn(move || {
            loop {
                if let Some((_, slot)) = walk.next() {
                    return Some(slot);
                }
                table = table.next.get()?;
                walk = table.cache.iter();
            }
        })
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
        let exclusive = self.writes.lock_all();
        let old = self.table.current();
        let new = Box::new(Table::new(self.policy, capacity, self.outlet.clone()));
        for (_, slot) in old.cache.iter() {
            if u64::from(slot.weight) <= new.limit {
                new.insert(slot);
            } else {
                self.outlet.evict(&slot);
            }
        }
        // Readers go over to the new table here; nothing is removed from the old one before.
        if old.next.set(new).is_err() {
            unreachable!("every stripe is locked, nobody else resizes");
        }
        old.cache.invalidate_all();
        old.cache.run_pending_tasks();
        drop(exclusive);
        self.trim();
    }

    /// Evicts what is over the limit. One run of the maintenance may leave something when other threads keep it busy;
    /// what several runs leave is evicted in no order, so that the limit holds whatever moka counts.
    fn trim(&self) {
        let table = self.table.current();
        let mut fruitless = 0;
        while fruitless < FRUITLESS_RUNS {
            if table.held.arrived() <= table.limit {
                return;
            }
            let evicted = self.outlet.evicted();
            table.cache.run_pending_tasks();
            fruitless += u32::from(self.outlet.evicted() == evicted);
        }
        self.walks.fetch_add(1, Relaxed);
        let aim = capacity(table.limit);
        for (key, _) in table.cache.iter().take_while(|_| table.held.arrived() > aim) {
            self.remove_if(key.as_ref().as_ref(), |slot| {
                self.outlet.evict(slot);
                true
            });
        }
    }

    /// The slot of `key`. If there is none, evictions that hid it have been handed over.
    fn find(&self, key: KeyRef<'_>) -> Option<Arc<Slot>> {
        loop {
            let table = self.table.current();
            let found = table.cache.get(&key);
            if found.is_some() {
                return found;
            }
            table.cache.run_pending_tasks();
            // A table that is replaced meanwhile was emptied into the next one.
            table.next.get()?;
        }
    }
}

impl Table {
    fn new(policy: Policy, limit: u64, outlet: Arc<Outlet>) -> Self {
        let held = Arc::new(Held::default());
        let counted = held.clone();
        let cache = Cache::builder()
            .max_capacity(capacity(limit))
            .eviction_policy(match policy {
                Policy::TinyLfu => EvictionPolicy::tiny_lfu(),
                Policy::Lru | Policy::Adaptive | Policy::Fifo => EvictionPolicy::lru(),
            })
            .weigher(|_: &Key, slot: &Arc<Slot>| slot.weight)
            .eviction_listener(move |_, slot: Arc<Slot>, cause| {
                counted.entries.fetch_sub(1, Relaxed);
                counted.bytes.fetch_sub(u64::from(slot.weight), Relaxed);
                if cause == RemovalCause::Size {
                    outlet.evict(&slot);
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
        let weight = u64::from(slot.weight);
        self.held.arriving.fetch_add(weight, SeqCst);
        self.held.entries.fetch_add(1, Relaxed);
        self.held.bytes.fetch_add(weight, SeqCst);
        self.cache.insert(slot.key.clone(), slot);
        self.held.arriving.fetch_sub(weight, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tiercache_core::tier::Hold;
    use tiercache_core::{Entry, Generation, Stay, Timestamp};

    use super::*;

    const WEIGHT: u32 = 1_024;

    fn insert(engine: &Moka, number: u64) {
        let key = Key::new("", &number.to_le_bytes()).unwrap();
        let entry = Entry::new("value", Generation::new(number + 1), Timestamp::EPOCH);
        let hold = Hold { now: Timestamp::EPOCH, stay: Stay::Forever };
        engine.insert(Slot::new(key, entry, hold, WEIGHT));
    }

    fn of(limit: u64) -> Moka {
        Moka::new(Policy::Lru, limit, Arc::default())
    }

    #[test]
    fn what_goes_through_a_room_is_evicted_by_maintenance_alone() {
        let engine = of(4 << 20);
        for number in 0..20_000 {
            insert(&engine, number);
            assert!(engine.bytes() <= 4 << 20);
        }
        assert_eq!((engine.walks.load(Relaxed), engine.entries() >= 4_000), (0, true));
    }

    #[test]
    fn a_walk_for_room_is_paid_for_by_many_inserts() {
        let limit = 4 << 20;
        let engine = of(limit);
        // More than moka knows of, for good.
        engine.table.held.bytes.fetch_add(limit / 8, SeqCst);
        for number in 0..20_000 {
            insert(&engine, number);
            assert!(engine.bytes() <= limit);
        }
        let walks = engine.walks.load(Relaxed);
        let inserts_a_walk = (limit - capacity(limit)) / u64::from(WEIGHT);
        assert!((1..=20_000 / inserts_a_walk).contains(&walks), "{walks} walks");
    }

    #[test]
    fn what_others_are_inserting_makes_nobody_walk() {
        // No room between what maintenance aims at and the limit.
        let engine = of(512 * u64::from(WEIGHT));
        thread::scope(|threads| {
            for thread in 0..4 {
                let engine = &engine;
                threads.spawn(move || (0..5_000).for_each(|number| insert(engine, number * 4 + thread)));
            }
        });
        assert!(engine.bytes() <= 512 * u64::from(WEIGHT));
        assert_eq!((engine.walks.load(Relaxed), engine.table.held.arriving.load(SeqCst)), (0, 0));
    }
}
