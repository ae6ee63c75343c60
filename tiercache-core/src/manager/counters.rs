//! Counts that every thread adds to without touching another's cache line.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::Level;
use crate::tracking::Totals;

/// Stripes that belong to one thread each while it lives.
const OWNED: usize = 63;
/// The stripe of the threads that came when all others were taken.
const SHARED: usize = OWNED;

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Count {
    Hit(Level),
    Miss,
    Set,
    Delete,
    /// Copied or moved up.
    Promoted,
    /// Arrived a level below.
    Sunk,
    /// Left the last level.
    Faded,
    /// Dropped on the way down for want of room.
    Overflowed,
    /// Something old that was about to be published and was not.
    Refused,
    /// Bytes that did not decode as the type asked for.
    Undecodable,
    /// Gets that joined another's read of the lower levels.
    Joined,
    /// Mutations that could not reach every level and are tried again.
    Degraded,
    /// Times a level had to be emptied because too many removals waited for it.
    Emptied,
    /// Loads that somebody waited for.
    Loaded,
    /// Loads in the background, of what was there.
    Refreshed,
    /// Refreshes that were due while too many ran.
    RefreshSkipped,
    /// Callers that joined another's load.
    LoadJoined,
    /// Loads that failed.
    LoadFailed,
    /// Answers that were stale.
    ServedStale,
    /// Removals that wait and could not be noted in the journal.
    Unnoted,
}

const COUNTS: usize = 22;

impl Count {
    const fn index(self) -> usize {
        match self {
            Self::Hit(level) => level as usize,
            Self::Miss => 3,
            Self::Set => 4,
            Self::Delete => 5,
            Self::Promoted => 6,
            Self::Sunk => 7,
            Self::Faded => 8,
            Self::Overflowed => 9,
            Self::Refused => 10,
            Self::Undecodable => 11,
            Self::Joined => 12,
            Self::Degraded => 13,
            Self::Emptied => 14,
            Self::Loaded => 15,
            Self::Refreshed => 16,
            Self::RefreshSkipped => 17,
            Self::LoadJoined => 18,
            Self::LoadFailed => 19,
            Self::ServedStale => 20,
            Self::Unnoted => 21,
        }
    }
}

#[repr(align(128))]
#[derive(Debug, Default)]
struct Stripe([AtomicU64; COUNTS]);

#[derive(Debug)]
pub(super) struct Counters(Box<[Stripe]>);

impl Default for Counters {
    fn default() -> Self {
        Self((0..=OWNED).map(|_| Stripe::default()).collect())
    }
}

impl Counters {
    #[inline]
    pub(super) fn count(&self, what: Count) {
        self.add(what, 1);
    }

    #[inline]
    pub(super) fn add(&self, what: Count, more: u64) {
        let at = Place::mine();
        let counter = &self.0[at].0[what.index()];
        if at == SHARED {
            counter.fetch_add(more, Ordering::Relaxed);
        } else {
            // Nobody else writes here: no need to keep others out, which is most of what counting would cost.
            counter.store(counter.load(Ordering::Relaxed) + more, Ordering::Relaxed);
        }
    }

    pub(super) fn sum(&self, what: Count) -> u64 {
        self.0.iter().map(|stripe| stripe.0[what.index()].load(Ordering::Relaxed)).sum()
    }

    pub(super) fn totals(&self) -> Totals {
        Totals {
            hits: Level::ALL.map(|level| self.sum(Count::Hit(level))),
            misses: self.sum(Count::Miss),
            sets: self.sum(Count::Set),
            deletes: self.sum(Count::Delete),
        }
    }
}

/// The stripe this thread counts in, in every manager. Given back when the thread ends.
struct Place(Cell<usize>);

/// Stripes that nobody has. The lock also hands what the last owner counted over to the next.
static FREE: Mutex<[bool; OWNED]> = Mutex::new([true; OWNED]);

const NONE: usize = usize::MAX;

thread_local! {
    static PLACE: Place = const { Place(Cell::new(NONE)) };
}

impl Place {
    #[inline]
    fn mine() -> usize {
        // A thread that ends may count in what it drops.
        PLACE
            .try_with(|place| if place.0.get() == NONE { place.take() } else { place.0.get() })
            .unwrap_or(SHARED)
    }

    #[cold]
    fn take(&self) -> usize {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let at = free.iter().position(|free| *free).unwrap_or(SHARED);
        if let Some(free) = free.get_mut(at) {
            *free = false;
        }
        self.0.set(at);
        at
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(free) = FREE.lock().unwrap_or_else(PoisonError::into_inner).get_mut(self.0.get()) {
            *free = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_many_threads_at_once_and_one_after_the_other_are_all_there() {
        let counters = Counters::default();
        for _ in 0..3 {
            std::thread::scope(|scope| {
                for _ in 0..2 * OWNED {
                    scope.spawn(|| (0..1_000).for_each(|_| counters.count(Count::Miss)));
                }
            });
        }
        assert_eq!(counters.sum(Count::Miss), 3 * 2 * OWNED as u64 * 1_000);
    }
}
