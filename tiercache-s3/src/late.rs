//! What may still arrive.
//!
//! S3 knows no generations, so a write that was sent before a removal and arrives after it stands there as if it were
//! new. Within one process removals wait for earlier writes; that leaves writes whose outcome nobody knows, because
//! their caller went away, the connection broke or the time was over, and those of other processes.
//!
//! So the tier remembers up to which generation a key was removed: for a minute because of other processes, and for as
//! long as a request can be late when a write of its own is in doubt. What is found below that is not answered, not put,
//! and deleted. A write is in doubt until it is seen to have arrived or [`LATEST`] is over: a request's signature is good
//! for 15 minutes, give or take as much between the clocks. Each is sent once, so that it arrives once at most.
//!
//! The memory is bounded. Without room for what is in doubt, everything that is not newer than it is a miss: too few
//! hits, never an old value.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tiercache_core::{Clock, Generation, Timestamp};

use crate::names::Hash;

/// How late a write of this process may arrive.
pub(crate) const LATEST: Duration = Duration::from_secs(30 * 60);
/// How late writes of other processes are reckoned with.
const OTHERS: Duration = Duration::from_secs(60);
/// Keys to remember.
const MOST: usize = 65_536;

#[derive(Debug)]
pub(crate) struct Late {
    clock: Arc<dyn Clock>,
    most: usize,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    keys: HashMap<Hash, Doubt>,
    /// What is below is a miss, whatever the key: there was no room to say it of one.
    floor: Generation,
}

#[derive(Debug)]
struct Doubt {
    /// Writes that may yet arrive.
    writes: Vec<Generation>,
    /// Up to where the key was removed.
    removed: Generation,
    until: Timestamp,
}

impl Late {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self::with_room(clock, MOST)
    }

    fn with_room(clock: Arc<dyn Clock>, most: usize) -> Self {
        Self { clock, most, known: Mutex::default() }
    }

    /// Below which generation nothing of the key may be answered.
    pub(crate) fn floor(&self, key: Hash) -> Generation {
        let now = self.clock.now();
        let known = self.known();
        let removed = known.keys.get(&key).filter(|doubt| now < doubt.until).map(|doubt| doubt.removed);
        removed.unwrap_or_default().max(known.floor)
    }

    /// Notes a removal that is about to be made.
    pub(crate) fn removing(&self, key: Hash, below: Generation) {
        let until = self.clock.now().after(OTHERS);
        self.note(key, |doubt| {
            doubt.removed = doubt.removed.max(below);
            doubt.until = doubt.until.max(until);
        });
    }

    /// Notes that a write is being sent. It is in doubt unless its outcome is told.
    pub(crate) fn sending(self: &Arc<Self>, key: Hash, generation: Generation) -> Sending {
        Sending { late: self.clone(), key, generation, known: false }
    }

    /// Notes what stands there: a write of that generation has arrived.
    pub(crate) fn seen(&self, key: Hash, generation: Generation) {
        let mut known = self.known();
        if let Some(doubt) = known.keys.get_mut(&key) {
            doubt.writes.retain(|write| *write != generation);
        }
    }

    fn doubt(&self, key: Hash, generation: Generation) {
        let until = self.clock.now().after(LATEST);
        self.note(key, |doubt| {
            doubt.writes.push(generation);
            doubt.until = until;
        });
    }

    fn note(&self, key: Hash, change: impl FnOnce(&mut Doubt)) {
        let now = self.clock.now();
        let mut known = self.known();
        if !known.keys.contains_key(&key) && known.keys.len() >= self.most {
            known.make_room(now, self.most);
        }
        let fresh = || Doubt { writes: Vec::new(), removed: Generation::ZERO, until: now };
        change(known.keys.entry(key).or_insert_with(fresh));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.known().keys.len()
    }
}

impl Known {
    fn make_room(&mut self, now: Timestamp, most: usize) {
        self.keys.retain(|_, doubt| now < doubt.until);
        if self.keys.len() < most {
            return;
        }
        // What other processes may do is only a guess.
        self.keys.retain(|_, doubt| !doubt.writes.is_empty());
        if self.keys.len() < most {
            return;
        }
        let newest = self.keys.values().flat_map(|doubt| &doubt.writes).max().copied().unwrap_or_default();
        tracing::warn!(
            below = newest.get() + 1,
            "too many writes to S3 in doubt, everything older than them is a miss"
        );
        self.floor = self.floor.max(Generation::new(newest.get() + 1));
        self.keys.clear();
    }
}

/// A write under way.
#[derive(Debug)]
pub(crate) struct Sending {
    late: Arc<Late>,
    key: Hash,
    generation: Generation,
    known: bool,
}

impl Sending {
    /// It is over: it has arrived, or never will.
    pub(crate) fn end(mut self) {
        self.known = true;
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.known {
            self.late.doubt(self.key, self.generation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tiercache_core::testing::ManualClock;

    fn generation(number: u64) -> Generation {
        Generation::new(number)
    }

    #[test]
    fn a_removal_is_remembered_for_a_minute_and_longer_when_a_write_is_in_doubt() {
        let clock = ManualClock::new();
        let late = Arc::new(Late::new(clock.clone()));
        late.sending(1, generation(5)).end();
        drop(late.sending(2, generation(5)));
        for key in [1, 2] {
            assert_eq!(late.floor(key), Generation::ZERO, "nothing was removed");
            late.removing(key, generation(9));
            late.removing(key, generation(8));
            assert_eq!(late.floor(key), generation(9));
        }
        clock.advance(OTHERS);
        assert_eq!((late.floor(1), late.floor(2)), (Generation::ZERO, generation(9)));
        clock.advance(LATEST);
        assert_eq!(late.floor(2), Generation::ZERO);
    }

    #[test]
    fn without_room_the_guesses_go_first_and_then_everything_old_is_a_miss() {
        let late = Arc::new(Late::with_room(ManualClock::new(), 4));
        for key in 0..4 {
            late.removing(key, generation(3));
        }
        drop(late.sending(10, generation(7)));
        assert_eq!((late.len(), late.floor(0)), (1, Generation::ZERO), "a guess is given up");
        for key in 11..15 {
            drop(late.sending(key, generation(key as u64)));
        }
        assert_eq!(late.floor(99), generation(14), "not newer than what was in doubt");
        assert!(late.len() <= 4);
    }

    #[test]
    fn what_has_arrived_is_not_in_doubt() {
        let late = Arc::new(Late::with_room(ManualClock::new(), 2));
        for key in 1..=2 {
            drop(late.sending(key, generation(key as u64)));
            late.seen(key, generation(key as u64));
        }
        late.removing(3, generation(9));
        assert_eq!(late.floor(4), Generation::ZERO, "nothing is in doubt, so nothing had to be given up");
    }
}
