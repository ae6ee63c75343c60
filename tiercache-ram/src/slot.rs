use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tiercache_core::tier::{Hold, Look, Resting};
use tiercache_core::{Decoded, Entry, Extras, Generation, Key, Levels, Timestamp};

/// An entry as it stands in a table: everything a hit needs in two cache lines. What use changes is atomic, so
/// that a hit needs no more than a shared lock.
pub(crate) struct Slot {
    pub(crate) key: Key,
    value: Bytes,
    pub(crate) generation: Generation,
    deadline: Timestamp,
    stay: u64,
    used: AtomicU64,
    /// The newest invalidation this entry is known to have outlived.
    checked: AtomicU64,
    uses: AtomicU32,
    levels: Levels,
    explicit_ttl: bool,
    created: Timestamp,
    extras: OnceLock<Arc<Extras>>,
    /// Bytes counted against the limit; fixed, since the engines subtract what they once added.
    pub(crate) weight: u64,
}

impl Slot {
    pub(crate) fn new(key: Key, entry: Entry, hold: Hold, overhead: u64) -> Self {
        let weight = weight(&key, &entry, overhead);
        let Entry { value, generation, created, deadline, levels, explicit_ttl, extras } = entry;
        Self {
            key,
            value,
            generation,
            deadline,
            stay: hold.stay.as_millis(),
            used: AtomicU64::new(hold.now.as_millis()),
            checked: AtomicU64::new(0),
            uses: AtomicU32::new(0),
            levels,
            explicit_ttl,
            created,
            extras: extras.map_or_else(OnceLock::new, OnceLock::from),
            weight,
        }
    }

    /// Answers `look` with the value and counts the use.
    #[inline]
    pub(crate) fn hit(&self, look: Look) -> Option<Bytes> {
        self.answers(look).then(|| {
            self.count_use(look.now);
            self.value.clone()
        })
    }

    /// Answers `look` with the decoded value, if there is one, and counts the use.
    #[inline]
    pub(crate) fn hit_decoded(&self, look: Look) -> Option<Decoded> {
        let decoded = self.extras.get()?.decoded.get()?;
        self.answers(look).then(|| {
            self.count_use(look.now);
            decoded.clone()
        })
    }

    #[inline]
    fn answers(&self, look: Look) -> bool {
        look.now.after_millis(look.slack) < self.until()
            && (self.generation >= look.valid_from || self.checked.load(Relaxed) >= look.valid_from.get())
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
        Timestamp::from_millis(self.used.load(Relaxed).saturating_add(self.stay)).min(self.deadline)
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
            generation: self.generation,
            created: self.created,
            deadline: self.deadline,
            levels: self.levels,
            explicit_ttl: self.explicit_ttl,
            extras: self.extras.get().cloned(),
        }
    }

    pub(crate) fn resting(&self) -> Resting {
        Resting { entry: self.entry(), until: self.until(), uses: self.uses() }
    }
}

/// A snapshot.
impl Clone for Slot {
    fn clone(&self) -> Self {
        Self {
            key: self.key.clone(),
            value: self.value.clone(),
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

/// Bytes an entry counts for.
fn weight(key: &Key, entry: &Entry, overhead: u64) -> u64 {
    let extras = entry.extras.as_ref().map_or(0, |extras| {
        let pairs = extras.tags.iter().chain(&extras.user);
        size_of::<Extras>()
            + pairs.map(|(name, value)| name.len() + value.len() + 2 * size_of::<String>()).sum::<usize>()
            + extras.content_type.as_ref().map_or(0, String::len)
    });
    overhead + (key.encoded().len() + entry.value.len() + extras) as u64
}
