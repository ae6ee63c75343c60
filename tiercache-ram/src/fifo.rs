//! The engine of `policy: fifo`.
//!
//! Shards of a slab of slots, a table from a key's hash to its place in the slab, and a list through the slab in the order
//! of insertion. A use moves nothing, so that a hit needs no more than a shared lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hashbrown::HashTable;
use tiercache_core::KeyRef;
use tiercache_core::tier::Resting;

use crate::outlet::Outlet;
use crate::quick::shards;
use crate::slot::Slot;

/// Places looked at under one lock.
const PLACES: usize = 256;

#[derive(Debug)]
pub(crate) struct Fifo {
    shards: Box<[RwLock<Shard>]>,
    /// The bytes of one shard.
    limit: AtomicU64,
    outlet: Arc<Outlet>,
}

#[derive(Debug, Default)]
struct Shard {
    places: HashTable<u32>,
    nodes: Vec<Option<Node>>,
    free: Vec<u32>,
    oldest: Option<u32>,
    newest: Option<u32>,
    bytes: u64,
}

#[derive(Debug)]
struct Node {
    slot: Slot,
    older: Option<u32>,
    newer: Option<u32>,
}

impl Fifo {
    pub(crate) fn new(capacity: u64, outlet: Arc<Outlet>) -> Self {
        let shards = shards(capacity);
        Self {
            shards: (0..shards).map(|_| RwLock::default()).collect(),
            limit: AtomicU64::new(capacity / shards),
            outlet,
        }
    }

    /// The most bytes an entry may have: all of a shard.
    pub(crate) fn entry_limit(&self) -> u64 {
        self.limit.load(Relaxed)
    }

    pub(crate) fn hit(&self, key: &KeyRef<'_>, visit: impl FnOnce(&Slot) -> bool) {
        if let Some(slot) = read(self.shard(*key)).find(*key) {
            visit(slot);
        }
    }

    pub(crate) fn peek<T>(&self, key: KeyRef<'_>, visit: impl FnOnce(&Slot) -> Option<T>) -> Option<T> {
        visit(read(self.shard(key)).find(key)?)
    }

    /// What it replaces is not handed over; what has to go for it is, before anybody can miss it.
    pub(crate) fn insert(&self, slot: Slot) {
        let limit = self.entry_limit();
        let mut shard = write(self.shard(slot.key.as_ref()));
        drop(shard.remove(slot.key.as_ref(), |_| true));
        shard.push(slot);
        self.trim(&mut shard, limit);
    }

    pub(crate) fn remove_if(
        &self,
        key: KeyRef<'_>,
        condition: impl FnOnce(&Slot) -> bool,
    ) -> Option<Resting> {
        let removed = write(self.shard(key)).remove(key, condition)?;
        Some(removed.resting())
    }

    /// Every entry that is there from the beginning to the end: it keeps its place. A shard is locked for some places at a
    /// time.
    pub(crate) fn each(&self) -> impl Iterator<Item = Slot> + Send + '_ {
        self.shards.iter().flat_map(|shard| {
            let places = (0..).step_by(PLACES).map_while(move |from| {
                let shard = read(shard);
                let nodes = shard.nodes.get(from..).filter(|nodes| !nodes.is_empty())?;
                let slots = nodes.iter().take(PLACES).flatten().map(|node| node.slot.clone());
                Some(slots.collect::<Vec<_>>())
            });
            places.flatten()
        })
    }

    pub(crate) fn entries(&self) -> u64 {
        self.shards.iter().map(|shard| read(shard).places.len() as u64).sum()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| read(shard).bytes).sum()
    }

    pub(crate) fn resize(&self, capacity: u64) {
        let limit = capacity / self.shards.len() as u64;
        self.limit.store(limit, Relaxed);
        for shard in &self.shards {
            self.trim(&mut write(shard), limit);
        }
    }

    fn trim(&self, shard: &mut Shard, limit: u64) {
        while shard.bytes > limit
            && let Some(oldest) = shard.oldest
        {
            if let Some(node) = shard.node(oldest) {
                self.outlet.evict(&node.slot);
            }
            shard.take(oldest);
        }
    }

    fn shard(&self, key: KeyRef<'_>) -> &RwLock<Shard> {
        // Not the bits that the table goes by: the lowest and the highest.
        &self.shards[(key.hash64() >> 24) as usize % self.shards.len()]
    }
}

impl Shard {
    fn node(&self, place: u32) -> Option<&Node> {
        self.nodes.get(place as usize)?.as_ref()
    }

    fn node_mut(&mut self, place: u32) -> Option<&mut Node> {
        self.nodes.get_mut(place as usize)?.as_mut()
    }

    fn place(&self, key: KeyRef<'_>) -> Option<u32> {
        let same = |&place: &u32| self.node(place).is_some_and(|node| key.is(&node.slot.key));
        self.places.find(key.hash64(), same).copied()
    }

    fn find(&self, key: KeyRef<'_>) -> Option<&Slot> {
        Some(&self.node(self.place(key)?)?.slot)
    }

    fn remove(&mut self, key: KeyRef<'_>, condition: impl FnOnce(&Slot) -> bool) -> Option<Slot> {
        let place = self.place(key)?;
        if condition(&self.node(place)?.slot) { self.take(place) } else { None }
    }

    /// Adds a slot whose key is not there, as the newest.
    fn push(&mut self, slot: Slot) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(None);
            // A shard of that many entries would take half a terabyte.
            (self.nodes.len() - 1) as u32
        });
        let (hash, weight, older) = (slot.key.hash64(), slot.weight, self.newest.replace(place));
        self.nodes[place as usize] = Some(Node { slot, older, newer: None });
        match older.and_then(|older| self.node_mut(older)) {
            Some(older) => older.newer = Some(place),
            None => self.oldest = Some(place),
        }
        let nodes = &self.nodes;
        let rehash = |&place: &u32| nodes[place as usize].as_ref().map_or(0, |node| node.slot.key.hash64());
        self.places.insert_unique(hash, place, rehash);
        self.bytes += u64::from(weight);
    }

    /// Takes a slot out of everything.
    fn take(&mut self, place: u32) -> Option<Slot> {
        let Node { slot, older, newer } = self.nodes.get_mut(place as usize)?.take()?;
        match older.and_then(|older| self.node_mut(older)) {
            Some(older) => older.newer = newer,
            None => self.oldest = newer,
        }
        match newer.and_then(|newer| self.node_mut(newer)) {
            Some(newer) => newer.older = older,
            None => self.newest = older,
        }
        if let Ok(found) = self.places.find_entry(slot.key.hash64(), |&found| found == place) {
            found.remove();
        }
        self.free.push(place);
        self.bytes -= u64::from(slot.weight);
        Some(slot)
    }
}

// What runs under the locks does not panic: spills are caught in the outlet.
fn read(shard: &RwLock<Shard>) -> RwLockReadGuard<'_, Shard> {
    shard.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(shard: &RwLock<Shard>) -> RwLockWriteGuard<'_, Shard> {
    shard.write().unwrap_or_else(PoisonError::into_inner)
}
