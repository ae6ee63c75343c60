//! Counts that every thread adds to without touching another's cache line.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::Level;
use crate::tracking::Totals;

const STRIPES: usize = 16;

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
}

const COUNTS: usize = 14;

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
        }
    }
}

#[repr(align(128))]
#[derive(Debug, Default)]
struct Stripe([AtomicU64; COUNTS]);

#[derive(Debug, Default)]
pub(super) struct Counters([Stripe; STRIPES]);

thread_local! {
    static STRIPE: Cell<usize> = const { Cell::new(usize::MAX) };
}

impl Counters {
    #[inline]
    pub(super) fn count(&self, what: Count) {
        self.add(what, 1);
    }

    #[inline]
    pub(super) fn add(&self, what: Count, more: u64) {
        self.0[stripe()].0[what.index()].fetch_add(more, Ordering::Relaxed);
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

/// The stripe of this thread, dealt out in turn.
#[inline]
fn stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    STRIPE.with(|stripe| {
        let mut at = stripe.get();
        if at == usize::MAX {
            at = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
            stripe.set(at);
        }
        at
    })
}
