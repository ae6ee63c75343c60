//! What the level holds, in RAM: hash to place, about 40 bytes an entry.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use tiercache_core::{Generation, Stay, Timestamp};

/// 40 bits of hash: the upper 8 choose the shard, the lower 32 are the key within it.
pub(crate) const SHARDS: usize = 256;

/// Locks even after a panic of somebody else's code: every section leaves its data whole at each step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What stands behind a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// An entry that is answered.
    Live,
    /// An entry that is no longer answered but whose record a restart would find again. It stays known until its
    /// segment is reclaimed, so that a mutation knows that it must be fenced.
    Gone,
    /// A removal: entries of a lower generation are refused.
    Removed,
}

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: u32,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

/// An entry of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) state: State,
    pub(crate) place: Place,
    pub(crate) generation: Generation,
    pub(crate) deadline: Timestamp,
    /// The last use, or the put.
    pub(crate) since: Timestamp,
    /// How long it may remain without a use, by its number in [`Stays`].
    pub(crate) stay: u16,
    pub(crate) namespace: u16,
    /// Uses since it was written, up to 63.
    pub(crate) uses: u8,
}

const LOW_48: u64 = (1 << 48) - 1;
const MAX_USES: u8 = 63;

/// A slot in nine words, so that with its key it takes 40 bytes.
#[derive(Clone, Copy, Debug)]
struct Packed([u32; 9]);

impl Packed {
    fn new(slot: &Slot) -> Self {
        let time = |at: Timestamp| at.as_millis().min(LOW_48);
        let flags = (slot.state as u64) << 6 | u64::from(slot.uses.min(MAX_USES));
        let a = slot.generation.get() & LOW_48 | flags << 48;
        let b = time(slot.since) | u64::from(slot.stay) << 48;
        let c = time(slot.deadline) | u64::from(slot.namespace) << 48;
        let Place { segment, offset, len } = slot.place;
        let (low, high) = (|word: u64| word as u32, |word: u64| (word >> 32) as u32);
        Self([low(a), high(a), low(b), high(b), low(c), high(c), segment, offset, len])
    }

    fn slot(&self) -> Slot {
        let [a, a2, b, b2, c, c2, segment, offset, len] = self.0;
        let word = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let (a, b, c) = (word(a, a2), word(b, b2), word(c, c2));
        let time = |word: u64| match word & LOW_48 {
            LOW_48 => Timestamp::NEVER,
            millis => Timestamp::from_millis(millis),
        };
        let state = match (a >> 54) & 0b11 {
            0 => State::Live,
            1 => State::Gone,
            _ => State::Removed,
        };
        Slot {
            state,
            place: Place { segment, offset, len },
            generation: Generation::new(a & LOW_48),
            deadline: time(c),
            since: time(b),
            stay: (b >> 48) as u16,
            namespace: (c >> 48) as u16,
            uses: (a >> 48) as u8 & MAX_USES,
        }
    }
}

#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(byte.into());
        }
    }

    fn write_u32(&mut self, hash: u32) {
        // Keys are hashes already; the table wants its high bits to differ too.
        self.0 = u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

type Map = HashMap<u32, Packed, BuildHasherDefault<Spread>>;

/// The index of a level.
pub(crate) struct Index {
    shards: Box<[Mutex<Map>]>,
    entries: AtomicU64,
    bytes: AtomicU64,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index")
            .field("entries", &self.entries)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Index {
    pub(crate) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, entries: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// Makes room for that many more entries.
    pub(crate) fn reserve(&self, entries: usize) {
        for shard in &self.shards {
            lock(shard).reserve(entries / SHARDS + entries / SHARDS / 16);
        }
    }

    /// The shard of `hash`, locked.
    pub(crate) fn shard(&self, hash: u64) -> Shard<'_> {
        Shard { index: self, map: lock(&self.shards[shard_of(hash)]) }
    }

    /// Entries that are answered.
    pub(crate) fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Bytes of their records.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Entries and bytes, counted anew.
    #[cfg(test)]
    pub(crate) fn recount(&self) -> (u64, u64) {
        let mut total = (0, 0);
        for shard in &self.shards {
            for slot in lock(shard).values().map(Packed::slot).filter(|slot| slot.state == State::Live) {
                total = (total.0 + 1, total.1 + u64::from(slot.place.len));
            }
        }
        total
    }

    /// Hash and slot of what is in shard `number`, in no order.
    pub(crate) fn collect(&self, number: usize, mut wanted: impl FnMut(&Slot) -> bool) -> Vec<(u64, Slot)> {
        let map = lock(&self.shards[number]);
        map.iter()
            .map(|(&low, packed)| ((number as u64) << 32 | u64::from(low), packed.slot()))
            .filter(|(_, slot)| wanted(slot))
            .collect()
    }

    /// Changes or drops what is in shard `number`.
    pub(crate) fn retain(&self, number: usize, mut keep: impl FnMut(u64, &Slot) -> bool) {
        let mut map = lock(&self.shards[number]);
        map.retain(|&low, packed| {
            let slot = packed.slot();
            let keeps = keep((number as u64) << 32 | u64::from(low), &slot);
            if !keeps {
                self.count(Some(&slot), None);
            }
            keeps
        });
    }

    fn count(&self, before: Option<&Slot>, after: Option<&Slot>) {
        let live = |slot: Option<&Slot>| {
            slot.filter(|slot| slot.state == State::Live)
                .map_or((0, 0), |slot| (1, u64::from(slot.place.len)))
        };
        let ((n0, b0), (n1, b1)) = (live(before), live(after));
        // Wrapping, so that a difference below zero is one.
        if n0 != n1 {
            self.entries.fetch_add(u64::wrapping_sub(n1, n0), Ordering::Relaxed);
        }
        if b0 != b1 {
            self.bytes.fetch_add(u64::wrapping_sub(b1, b0), Ordering::Relaxed);
        }
    }
}

pub(crate) fn shard_of(hash: u64) -> usize {
    (hash >> 32) as usize % SHARDS
}

/// A part of the index, locked: what orders puts, removals and reclaim of a key.
pub(crate) struct Shard<'a> {
    index: &'a Index,
    map: MutexGuard<'a, Map>,
}

impl Shard<'_> {
    pub(crate) fn get(&self, hash: u64) -> Option<Slot> {
        self.map.get(&(hash as u32)).map(Packed::slot)
    }

    pub(crate) fn set(&mut self, hash: u64, slot: &Slot) {
        let before = self.map.insert(hash as u32, Packed::new(slot)).map(|packed| packed.slot());
        self.index.count(before.as_ref(), Some(slot));
    }

    pub(crate) fn remove(&mut self, hash: u64) {
        let before = self.map.remove(&(hash as u32)).map(|packed| packed.slot());
        self.index.count(before.as_ref(), None);
    }

    /// The entry that is answered, used at `now`.
    pub(crate) fn use_live(&mut self, hash: u64, now: Timestamp) -> Option<Slot> {
        let packed = self.map.get_mut(&(hash as u32))?;
        let mut slot = packed.slot();
        if slot.state != State::Live {
            return None;
        }
        slot.uses = slot.uses.saturating_add(1);
        slot.since = slot.since.max(now);
        *packed = Packed::new(&slot);
        Some(slot)
    }

    /// Stops answering for what is at `place`; its record stays known. Whether it was answered.
    pub(crate) fn give_up(&mut self, hash: u64, place: Place) -> bool {
        match self.get(hash) {
            Some(slot) if slot.place == place && slot.state == State::Live => {
                self.set(hash, &Slot { state: State::Gone, ..slot });
                true
            }
            _ => false,
        }
    }
}

/// Numbers for a few values that many entries share.
#[derive(Debug)]
struct Interned<T> {
    known: RwLock<(HashMap<T, u16>, Vec<T>)>,
}

/// The number of what came when all numbers were taken.
pub(crate) const OTHER: u16 = u16::MAX;

impl<T: Clone + Eq + std::hash::Hash> Interned<T> {
    fn id<Q>(&self, value: &Q) -> u16
    where
        T: std::borrow::Borrow<Q>,
        Q: Eq + std::hash::Hash + ToOwned<Owned = T> + ?Sized,
    {
        if let Some(id) = self.known(value) {
            return id;
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(&id) = known.0.get(value) {
            return id;
        }
        let id = known.1.len();
        if id >= usize::from(OTHER) {
            return OTHER;
        }
        known.0.insert(value.to_owned(), id as u16);
        known.1.push(value.to_owned());
        id as u16
    }

    fn known<Q>(&self, value: &Q) -> Option<u16>
    where
        T: std::borrow::Borrow<Q>,
        Q: Eq + std::hash::Hash + ?Sized,
    {
        self.known.read().unwrap_or_else(PoisonError::into_inner).0.get(value).copied()
    }

    fn value(&self, id: u16) -> Option<T> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).1.get(usize::from(id)).cloned()
    }
}

/// Namespaces by number; 0 is the default one.
#[derive(Debug)]
pub(crate) struct Names(Interned<String>);

impl Default for Names {
    fn default() -> Self {
        let known = (HashMap::from([(String::new(), 0)]), vec![String::new()]);
        Self(Interned { known: RwLock::new(known) })
    }
}

impl Names {
    pub(crate) fn id(&self, namespace: &str) -> u16 {
        if namespace.is_empty() { 0 } else { self.0.id(namespace) }
    }

    /// The number of a namespace that was met before.
    pub(crate) fn known(&self, namespace: &str) -> Option<u16> {
        self.0.known(namespace)
    }

    /// The namespace of that number; that of [`OTHER`] is not known and comes out as the default one.
    pub(crate) fn name(&self, id: u16) -> String {
        self.0.value(id).unwrap_or_default()
    }
}

/// Stays by number; 0 is for ever, as is what found no number.
#[derive(Debug)]
pub(crate) struct Stays(Interned<u64>);

impl Default for Stays {
    fn default() -> Self {
        Self(Interned { known: RwLock::new((HashMap::from([(u64::MAX, 0)]), vec![u64::MAX])) })
    }
}

impl Stays {
    pub(crate) fn id(&self, stay: Stay) -> u16 {
        if stay == Stay::Forever { 0 } else { self.0.id(&stay.as_millis()) }
    }

    pub(crate) fn millis(&self, id: u16) -> u64 {
        if id == 0 { u64::MAX } else { self.0.value(id).unwrap_or(u64::MAX) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_and_its_key_take_40_bytes_and_lose_nothing() {
        assert_eq!(size_of::<(u32, Packed)>(), 40);
        let slot = Slot {
            state: State::Removed,
            place: Place { segment: u32::MAX, offset: 7, len: 9 },
            generation: Generation::MAX,
            deadline: Timestamp::NEVER,
            since: Timestamp::from_millis(1_700_000_000_123),
            stay: 513,
            namespace: OTHER,
            uses: 63,
        };
        assert_eq!(Packed::new(&slot).slot(), slot);
        let other = Slot { state: State::Gone, uses: 0, stay: 0, namespace: 0, ..slot };
        assert_eq!(Packed::new(&other).slot(), other);
    }

    #[test]
    fn counters_follow_every_change() {
        let index = Index::new();
        let place = Place { segment: 1, offset: 64, len: 100 };
        let slot = Slot {
            state: State::Live,
            place,
            generation: Generation::new(1),
            deadline: Timestamp::NEVER,
            since: Timestamp::EPOCH,
            stay: 0,
            namespace: 0,
            uses: 0,
        };
        for hash in 0..1_000u64 {
            index.shard(hash << 30).set(hash << 30, &slot);
        }
        assert!(index.shard(5 << 30).give_up(5 << 30, place));
        assert!(!index.shard(5 << 30).give_up(5 << 30, place));
        index.shard(6 << 30).remove(6 << 30);
        index.retain(shard_of(7 << 30), |_, _| false);
        assert_eq!((index.entries(), index.bytes()), index.recount());
        assert!(index.entries() < 998);
    }
}
