use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tiercache_core::tier::{Hold, Look, Resting};
use tiercache_core::{Decoded, Entry, Extras, Generation, Key, Levels, Timestamp};

/// An entry as it stands in a table. What use changes is atomic, so that a hit needs no more than a shared lock.
///
/// 112 bytes, ordered so that what a hit touches is together, the key last: there the tables put their own marks.
#[repr(C)]
pub(crate) struct Slot {
    extras: OnceLock<Arc<Extras>>,
    created: Timestamp,
    /// Bytes counted against the limit; fixed, since the engines subtract what they once added.
    pub(crate) weight: u32,
    uses: AtomicU32,
    /// The newest invalidation this entry is known to have outlived.
    checked: AtomicU64,
    stamp: Stamp,
    /// When it turns stale. Its deadline is later by what the extras say.
    fresh_until: Timestamp,
    stay: u64,
    used: AtomicU64,
    value: Bytes,
    pub(crate) key: Key,
}

const _: () = assert!(size_of::<Slot>() <= 112);

/// The generation in the upper 48 bits; below it the levels, and whether the deadline was asked for.
#[derive(Clone, Copy)]
struct Stamp(u64);

const EXPLICIT_TTL: u64 = 1 << 8;

impl Stamp {
    fn of(entry: &Entry) -> Self {
        let explicit_ttl = if entry.explicit_ttl { EXPLICIT_TTL } else { 0 };
        Self(entry.generation.get() << 16 | explicit_ttl | u64::from(entry.levels.bits()))
    }

    #[inline]
    const fn generation(self) -> Generation {
        Generation::new(self.0 >> 16)
    }
}

impl Slot {
    /// The bytes an entry counts for.
    pub(crate) fn weigh(key: &Key, entry: &Entry, overhead: u64) -> u64 {
        let extras = entry.extras.as_ref().map_or(0, |extras| {
            let pairs = extras.tags.iter().chain(&extras.user);
            size_of::<Extras>()
                + pairs.map(|(name, value)| name.len() + value.len() + 2 * size_of::<String>()).sum::<usize>()
                + extras.content_type.as_ref().map_or(0, String::len)
        });
        overhead + (key.encoded().len() + entry.value.len() + extras) as u64
    }

    pub(crate) fn new(key: Key, entry: Entry, hold: Hold, weight: u32) -> Self {
        Self {
            stamp: Stamp::of(&entry),
            fresh_until: entry.fresh_until(),
            extras: entry.extras.map_or_else(OnceLock::new, OnceLock::from),
            created: entry.created,
            weight,
            uses: AtomicU32::new(0),
            checked: AtomicU64::new(0),
            stay: hold.stay.as_millis(),
            used: AtomicU64::new(hold.now.as_millis()),
            value: entry.value,
            key,
        }
    }

    #[inline]
    pub(crate) fn generation(&self) -> Generation {
        self.stamp.generation()
    }

    /// Answers `look` with the value and counts the use.
    #[inline]
    pub(crate) fn hit(&self, look: &Look) -> Option<Bytes> {
        self.answers(look).then(|| {
            let value = self.value.clone();
            self.count_use(look.now);
            value
        })
    }

    /// Answers `look` with the decoded value, if there is one, and counts the use.
    #[inline]
    pub(crate) fn hit_decoded(&self, look: &Look) -> Option<Decoded> {
        let decoded = self.extras.get()?.decoded.get()?;
        self.answers(look).then(|| {
            self.count_use(look.now);
            decoded.clone()
        })
    }

    #[inline]
    fn answers(&self, look: &Look) -> bool {
        look.now.after_millis(look.slack) < self.stays_until().min(self.fresh_until)
            && (self.generation() >= look.valid_from || self.checked.load(Relaxed) >= look.valid_from.get())
    }

    #[inline]
    fn count_use(&self, now: Timestamp) {
        if self.used.load(Relaxed) < now.as_millis() {
            self.used.store(now.as_millis(), Relaxed);
        }
        self.uses.fetch_add(1, Relaxed);
    }

    /// When it leaves if nobody uses it.
    #[inline]
    pub(crate) fn until(&self) -> Timestamp {
        self.stays_until().min(self.deadline())
    }

    #[inline]
    fn stays_until(&self) -> Timestamp {
        Timestamp::from_millis(self.used.load(Relaxed).saturating_add(self.stay))
    }

    fn deadline(&self) -> Timestamp {
        self.extras.get().map_or(self.fresh_until, |extras| self.fresh_until.after(extras.stale))
    }

    pub(crate) fn revalidate(&self, valid_from: Generation) {
        self.checked.fetch_max(valid_from.get(), Relaxed);
    }

    pub(crate) fn attach_decoded(&self, decoded: Decoded) {
        // Whoever comes first wins: both decoded the same bytes.
        let _ = self.extras.get_or_init(Default::default).decoded.set(decoded);
    }

    pub(crate) fn take_uses(&self) -> u32 {
        self.uses.swap(0, Relaxed)
    }

    pub(crate) fn uses(&self) -> u32 {
        self.uses.load(Relaxed)
    }

    pub(crate) fn entry(&self) -> Entry {
        Entry {
            value: self.value.clone(),
            generation: self.generation(),
            created: self.created,
            deadline: self.deadline(),
            levels: Levels::from_bits(self.stamp.0 as u8),
            explicit_ttl: self.stamp.0 & EXPLICIT_TTL != 0,
            extras: self.extras.get().cloned(),
        }
    }

    /// Bytes of the value.
    pub(crate) fn value_len(&self) -> u64 {
        self.value.len() as u64
    }

    pub(crate) fn resting(&self) -> Resting {
        Resting { entry: self.entry(), until: self.until(), uses: self.uses() }
    }
}

/// A copy for walks over a table, without the value: cloning that may allocate, and nobody asked for it.
impl Clone for Slot {
    fn clone(&self) -> Self {
        Self {
            key: self.key.clone(),
            value: Bytes::new(),
            used: AtomicU64::new(self.used.load(Relaxed)),
            checked: AtomicU64::new(self.checked.load(Relaxed)),
            uses: AtomicU32::new(self.uses()),
            extras: self.extras.clone(),
            ..*self
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("key", &self.key).field("entry", &self.entry()).finish_non_exhaustive()
    }
}
