//! Removals that wait for a level that could not be reached, and the journal that has them outlive the process.
//!
//! In order:
//! 1. The removal is noted at the level that keeps the journal, if there is one: before the mutation returns.
//! 2. From here on nothing the level holds in its reach is answered, and it is tried again, with growing pauses, until
//!    the level has done it. A later mutation of the key that reaches the level will do as well.
//! 3. The note is struck. A kill before that makes the next process begin at step 2, before it answers anything.
//!
//! A level for which too many wait is emptied instead; one note says so.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::counters::Count;
use super::remove::Invalidating;
use super::slot::Slot;
use super::{InFlight, Shared};
use crate::bugs::seeded;
use crate::tier::{Journal, Reach, Scope, Waiting};
use crate::{Error, Generation, Key, Level, Result};

/// The pause after the first retry of a removal; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// The most removals that wait, one by one, for a level that could not be reached.
pub(super) const MOST_WAITING: usize = 10_000;

/// The number of a note, where one was made.
type Note = Option<u64>;

/// Which level keeps the journal: one of this process alone rather than one that other processes write to as well.
pub(super) fn keeper<'a>(slots: impl Iterator<Item = &'a Slot>) -> Option<Level> {
    let keepers = slots.filter(|slot| slot.tier.journal().is_some());
    keepers.min_by_key(|slot| slot.profile.shared).map(|slot| slot.level)
}

/// What a process before this has left to be done.
pub(super) async fn notes(slot: &Slot) -> Result<Vec<(u64, Waiting)>> {
    let Some(journal) = slot.tier.journal().filter(|_| !seeded("journal-forgotten")) else {
        return Ok(Vec::new());
    };
    slot.call("read the journal", slot.limits().write_timeout, journal.notes()).await
}

impl Shared {
    /// Sees to a removal of a key that could not reach the level; it returns when that is noted. The caller has the
    /// key's turn. Returns the mutation's generation, which is above everything that a read brought up from there, and
    /// whether another process's mutation was among that.
    pub(super) async fn clean_later(
        self: &Arc<Self>,
        slot: &Slot,
        key: &Key,
        below: Generation,
    ) -> (Generation, bool) {
        let hash = key.hash64();
        if self.is_cleaned_already(slot, key, below) {
            return (below, false);
        }
        let waits = slot.begin_waiting();
        if !waits {
            self.empty_later(slot).await;
            if below > slot.doubted_since() {
                return (below, false);
            }
        }
        let (below, overtaken) = {
            let mut stripe = self.stripes.lock(hash);
            if waits {
                stripe.enter(hash, below);
                stripe.begin_lag(hash, slot.level);
            }
            if slot.profile.shared {
                // From here on reads doubt what they find there. What they found before may have gone down to another
                // level by now, so the mutation must come after it there, too.
                let overtaken = stripe.has_met(hash, below);
                (self.raise(&mut stripe, key), overtaken)
            } else {
                stripe.mutate(hash, below);
                (below, false)
            }
        };
        if waits {
            let flight = InFlight { shared: self.clone(), hash };
            let note = self.note(slot.level, Reach::Key(key.clone()), below).await;
            self.clean(flight, slot.level, key.clone(), below, note);
        }
        (below, overtaken)
    }

    /// Sees to an invalidation that could not reach the level; it returns when that is noted.
    pub(super) async fn invalidate_later(
        self: &Arc<Self>,
        slot: &Slot,
        scope: &Scope,
        mut generation: Generation,
    ) -> Generation {
        let waits = slot.begin_waiting();
        if waits {
            slot.begin_lag(scope);
        } else {
            self.empty_later(slot).await;
        }
        if slot.profile.shared {
            // Above what reads have brought up since this began; from here on they doubt it.
            generation = self.flow.next_generation();
            self.flow.fences.remove(scope, generation);
        }
        if !waits {
            return generation;
        }
        let note = self.note(slot.level, Reach::Scope(scope.clone()), generation).await;
        self.finish_invalidation(slot.level, scope.clone(), generation, note);
        generation
    }

    /// Goes on with what a process before this has noted, before anything is answered.
    pub(super) async fn resume(self: &Arc<Self>, notes: Vec<(u64, Waiting)>) {
        let mut needless = Vec::new();
        for (number, Waiting { level, reach, below }) in notes {
            let Some(slot) = self.slot(level) else {
                tracing::warn!(%level, "removals wait for a level that there is none of now: they stay noted");
                continue;
            };
            let note = Some(number);
            match reach {
                Reach::Key(key) if self.is_cleaned_already(slot, &key, below) => needless.push(number),
                Reach::Key(key) if slot.begin_waiting() => {
                    let hash = key.hash64();
                    let mut stripe = self.stripes.lock(hash);
                    stripe.enter(hash, below);
                    stripe.mutate(hash, below);
                    stripe.begin_lag(hash, level);
                    drop(stripe);
                    self.clean(InFlight { shared: self.clone(), hash }, level, key, below, note);
                }
                Reach::Scope(scope) if slot.begin_waiting() => {
                    slot.begin_lag(&scope);
                    self.flow.fences.remove(&scope, below);
                    self.finish_invalidation(level, scope, below, note);
                }
                Reach::Key(_) | Reach::Scope(_) | Reach::Level => {
                    self.empty_later(slot).await;
                    needless.push(number);
                }
            }
        }
        // Something else that is noted does their work.
        self.strike(&needless).await;
    }

    /// Whether another removal of the key waits for the level, which does this one's work too: what it removes in the
    /// end is whatever is there. Of a level of this process alone the newest generation must be noted as well.
    fn is_cleaned_already(&self, slot: &Slot, key: &Key, below: Generation) -> bool {
        let mut stripe = self.stripes.lock(key.hash64());
        let waits = slot.profile.shared && stripe.lags(key.hash64(), slot.level);
        if waits {
            stripe.mutate(key.hash64(), below);
        }
        waits
    }

    /// Tries a removal again until it works, or a later mutation of the key has reached the level; the flight keeps
    /// the older copy fenced for as long.
    fn clean(
        self: &Arc<Self>,
        flight: InFlight<Arc<Self>>,
        level: Level,
        key: Key,
        below: Generation,
        note: Note,
    ) {
        let hash = key.hash64();
        self.runtime.spawn(async move {
            let shared = flight.shared.clone();
            let again = || async {
                let turn = shared.stripes.lock(hash).turn(hash);
                let _turn = turn.lock().await;
                let Some(slot) = shared.slot(level) else { return Ok(()) };
                let mut generation = {
                    let stripe = shared.stripes.lock(hash);
                    if !stripe.lags(hash, level) {
                        return Ok(());
                    }
                    stripe.floor(hash).max(below)
                };
                shared
                    .remove_above(slot, &key, &mut generation, &mut false, slot.limits().write_timeout)
                    .await
                    .map(drop)
            };
            shared.wait_for(level, note, again).await;
            drop(flight);
        });
    }

    fn finish_invalidation(self: &Arc<Self>, level: Level, scope: Scope, generation: Generation, note: Note) {
        let unsettled = Invalidating::begin(self);
        self.runtime.spawn(async move {
            let shared = unsettled.0.clone();
            let again = || async {
                match shared.slot(level) {
                    Some(slot) => shared.invalidate_slot(slot, &scope, generation).await.map(drop),
                    None => Ok(()),
                }
            };
            shared.wait_for(level, note, again).await;
            if let Some(slot) = shared.slot(level) {
                slot.end_lag(&scope);
            }
            drop(unsettled);
        });
    }

    /// Too many removals wait for a level: nothing it holds is believed until it was emptied.
    async fn empty_later(self: &Arc<Self>, slot: &Slot) {
        let level = slot.level;
        if !slot.profile.shared {
            // Of a level of this process alone every entry is numbered by it.
            self.flow.fences.remove(&Scope::All, self.flow.next_generation());
        }
        slot.to_empty.fetch_add(1, Ordering::AcqRel);
        let mut emptying = slot.emptying.lock().await;
        if *emptying {
            return;
        }
        *emptying = true;
        slot.begin_lag(&Scope::All);
        slot.doubt_since(self.flow.next_generation());
        self.flow.counters.count(Count::Emptied);
        tracing::warn!(%level, "too many removals wait for the level: it is emptied when it is back");
        let unsettled = Invalidating::begin(self);
        let note = self.note(level, Reach::Level, self.flow.generation()).await;
        self.runtime.spawn(async move {
            let shared = unsettled.0.clone();
            let Some(slot) = shared.slot(level) else { return };
            loop {
                let asked = slot.to_empty.load(Ordering::Acquire);
                let again = || shared.empty(slot);
                let emptied = shared.until_it_works(again).await;
                let mut emptying = slot.emptying.lock().await;
                if emptied && slot.to_empty.load(Ordering::Acquire) != asked {
                    // Asked for again while the level may have done it already.
                    continue;
                }
                slot.end_lag(&Scope::All);
                *emptying = false;
                if emptied {
                    shared.strike(note.as_slice()).await;
                }
                return;
            }
        });
    }

    async fn empty(&self, slot: &Slot) -> Result<()> {
        let mut generation = self.flow.next_generation();
        let limit = slot.limits().write_timeout;
        if let Some(fences) = slot.tier.fences().filter(|_| slot.profile.shared) {
            generation = slot.call("fence", limit, fences.fence(&Scope::All, generation)).await?;
            self.flow.join(slot.tier.name(), generation)?;
        }
        slot.call("clear", limit, slot.tier.clear(None, generation)).await
    }

    /// Repeats a removal that waits for a level until it is done, or the cache is closed.
    async fn wait_for<F: Future<Output = Result<()>>>(
        &self,
        level: Level,
        note: Note,
        attempt: impl Fn() -> F,
    ) {
        let done = self.until_it_works(attempt).await;
        if let Some(slot) = self.slot(level) {
            slot.end_waiting();
        }
        if done {
            self.strike(note.as_slice()).await;
        }
    }

    /// Repeats `attempt`, with growing pauses, until it succeeds or the cache is closed or dropped. Whether it did.
    async fn until_it_works<F: Future<Output = Result<()>>>(&self, attempt: impl Fn() -> F) -> bool {
        let mut stopped = self.stopped.clone();
        let work = async {
            let mut pause = FIRST_PAUSE;
            while !self.closed.load(Ordering::Acquire) {
                tokio::time::sleep(pause).await;
                if attempt().await.is_ok() {
                    return true;
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            false
        };
        tokio::select! {
            done = work => done,
            _ = stopped.wait_for(|stopped| *stopped) => false,
        }
    }

    /// Notes a removal where it outlives the process. What cannot be noted is seen through all the same, as long as
    /// the process lives.
    async fn note(&self, level: Level, reach: Reach, below: Generation) -> Note {
        let (slot, journal) = self.journal()?;
        if slot.level == level {
            // What cannot take the removal cannot take the note of it either, and nobody waits twice for that.
            self.flow.counters.count(Count::Unnoted);
            return None;
        }
        let limit = slot.limits().write_timeout.min(slot.limits().read_timeout.max(Duration::from_secs(1)));
        let waiting = Waiting { level, reach, below };
        match slot.call("note", limit, journal.note(&waiting)).await {
            Ok(number) => Some(number),
            Err(error) => {
                self.flow.counters.count(Count::Unnoted);
                tracing::warn!(%level, %error, "a removal that waits is not in the journal: a kill would forget it");
                None
            }
        }
    }

    async fn strike(&self, notes: &[u64]) {
        let Some((slot, journal)) = self.journal().filter(|_| !notes.is_empty()) else { return };
        match slot.call("strike", slot.limits().write_timeout, journal.strike(notes)).await {
            // The next process makes the removal once more, which does no harm.
            Err(Error::Closed) | Ok(()) => {}
            Err(error) => tracing::warn!(%error, "a removal that was made stays in the journal"),
        }
    }

    fn journal(&self) -> Option<(&Slot, &dyn Journal)> {
        let slot = self.slot(self.journal?)?;
        Some((slot, slot.tier.journal()?))
    }
}
