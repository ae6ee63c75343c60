//! Reading.
//!
//! `get`, in order:
//! 1. Hot answers a hit at once: no lock of ours, no allocation beyond the clone of the value.
//! 2. Else, under the key's stripe: hot once more, the other levels in RAM, the way down. What is found moves to
//!    the top (a level in RAM is exclusive) and is the answer.
//! 3. Still under the stripe, levels that know without I/O say whether they hold a copy. If none may, it is a miss.
//! 4. The read registers a flight and leaves the stripe. If another read of the key is under way, and no mutation
//!    began since it did, it waits for that one's answer instead.
//! 5. The lower levels are asked top down, the way down again after each, all within one deadline. The first
//!    copy that is alive and not below the flight's floor is the answer; it is read once.
//! 6. Under the stripe again: it is published to hot if no mutation of the key and no flush of the level it came
//!    from began meanwhile. The copy below stays (a level outside RAM is inclusive), so that sinking unchanged
//!    writes nothing.
//!
//! Dropping the future at any point leaves nothing but, at worst, a promotion that did not happen; those who
//! waited for it start over, one of them in its place.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::counters::Count;
use super::slot::Slot;
use super::stripes::{Reading, Stripe};
use super::{InFlight, Shared};
use crate::bugs::seeded;
use crate::tier::{Cause, Left, Look, Put, Scope, Spill, TryGet};
use crate::{Entry, Generation, Key, KeyRef, Level, Result, Timestamp};

/// What a read found, and where.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) entry: Entry,
    pub(super) level: Level,
    /// Whether it is only for those who accept a stale value.
    pub(super) stale: bool,
}

impl Found {
    /// What answers a `get`.
    pub(super) fn is_value(&self) -> bool {
        !self.stale && !self.entry.is_nothing()
    }
}

impl Shared {
    /// Step 1 of a read: what hot answers without a lock.
    #[inline]
    pub(super) fn hit(&self, key: KeyRef<'_>) -> Option<Bytes> {
        self.hit_with(key, self.coarse_look())
    }

    #[inline]
    pub(super) fn hit_with(&self, key: KeyRef<'_>, look: Look) -> Option<Bytes> {
        let resident = self.slots[0].as_ref()?.resident()?;
        let mut value = None;
        resident.hit_into(&key, &look, &mut value);
        // Few values are empty, and one that says there is none is.
        if value.as_ref()?.is_empty() && resident.peek(key).is_none_or(|resting| resting.entry.is_nothing()) {
            return None;
        }
        self.flow.counters.count(Count::Hit(Level::Hot));
        value
    }

    /// How the fast path judges an entry.
    #[inline]
    pub(super) fn coarse_look(&self) -> Look {
        Look {
            now: Timestamp::from_millis(self.flow.coarse.load(Ordering::Relaxed)),
            slack: crate::COARSE_SLACK_MILLIS,
            valid_from: if seeded("hit-ignores-fences") {
                Generation::ZERO
            } else {
                self.flow.fences.newest()
            },
        }
    }

    /// Steps 2 to 6: finds, promotes and counts. Allocates nothing for a future unless it has to wait.
    pub(super) async fn find(&self, key: KeyRef<'_>) -> Result<Option<Found>> {
        Ok(self.search(key).await?.filter(Found::is_value))
    }

    /// As `find`. When there is nothing better, what is stale, or says that there is no value.
    pub(super) async fn search(&self, key: KeyRef<'_>) -> Result<Option<Found>> {
        self.check_open()?;
        let found = match self.find_at_once(key) {
            AtOnce::Found(found) => Some(found),
            AtOnce::Nowhere(stale) => stale,
            AtOnce::Wait(wait) => match Box::pin(self.find_below(key, wait)).await {
                Some(found) if !found.stale => Some(found),
                below => {
                    let above = self.stale_above(&self.stripes.lock(key.hash64()), key, self.flow.now());
                    below.into_iter().chain(above).max_by_key(|found| found.entry.generation)
                }
            },
        };
        match found.as_ref().filter(|found| found.is_value()) {
            Some(found) => self.flow.counters.count(Count::Hit(found.level)),
            None => self.flow.counters.count(Count::Miss),
        }
        Ok(found)
    }

    /// What RAM and the way down have that is only stale. Under the stripe: what was removed or replaced is not there.
    pub(super) fn stale_above(&self, stripe: &Stripe, key: KeyRef<'_>, now: Timestamp) -> Option<Found> {
        let resting = self.slots().filter_map(|slot| Some((slot.level, slot.resident()?.peek(key)?.entry)));
        let way = self.flow.pending.get(key).map(|item| (item.to, item.entry));
        let floor = stripe.floor(key.hash64());
        let kept = |entry: &Entry| entry.generation >= floor && !self.flow.is_dead(key, entry, now);
        let (level, entry) = resting.chain(way).find(|(_, entry)| kept(entry))?;
        Some(Found { stale: !self.flow.is_alive(key, &entry, now), entry, level })
    }

    /// Steps 4 to 6, and the others once more when the read that was waited for came to nothing.
    async fn find_below(&self, key: KeyRef<'_>, mut wait: Wait) -> Option<Found> {
        loop {
            match wait {
                Wait::Join(reading) => {
                    if let Some(found) = self.join_read(key, reading).await {
                        return found;
                    }
                }
                Wait::Read { floor, answer } => {
                    let reading = Announced { shared: self, hash: key.hash64(), answer };
                    let found = self.read_below(key, floor).await;
                    return reading.end(key, found);
                }
            }
            match self.find_at_once(key) {
                AtOnce::Found(found) => return Some(found),
                AtOnce::Nowhere(stale) => return stale,
                AtOnce::Wait(next) => wait = next,
            }
        }
    }

    /// Waits for another's read; `None` when it came to nothing.
    pub(super) async fn join_read(&self, key: KeyRef<'_>, mut reading: Reading) -> Option<Option<Found>> {
        self.flow.counters.count(Count::Joined);
        // An error means that the reader was dropped half-way: somebody else must read.
        let answer = reading.wait_for(Option::is_some).await.ok()?;
        let found = answer.as_ref().and_then(|found| Option::clone(found));
        drop(answer);
        // No flight is told of an invalidation of many: the read may have begun before one that ended before this
        // call, whether it reached the level or not.
        let now = self.flow.now();
        let believed = |found: &Found| {
            let stands = match found.stale {
                false => self.flow.is_alive(key, &found.entry, now),
                true => !self.flow.is_dead(key, &found.entry, now),
            };
            stands
                && self
                    .slot(found.level)
                    .is_none_or(|slot| !Doubt::of(self, slot, key).touches(key, &found.entry))
        };
        found.as_ref().is_none_or(believed).then_some(found)
    }

    /// Steps 2 to 4, under the stripe.
    pub(super) fn find_at_once(&self, key: KeyRef<'_>) -> AtOnce {
        let flow = &self.flow;
        let now = flow.now();
        let hash = key.hash64();
        let mut stripe = self.stripes.lock(hash);
        for slot in self.slots() {
            let Some(resident) = slot.resident() else { continue };
            let Some(resting) = resident.peek(key) else { continue };
            let entry = &resting.entry;
            if flow.is_dead(key, entry, now) {
                resident.take(key, entry.generation);
                continue;
            }
            if !flow.is_alive(key, entry, now) {
                continue;
            }
            if resting.until <= now {
                // Its stay is over, as the sweep would have found: it goes down, and comes up from there.
                if let Some(resting) = resident.take(key, entry.generation)
                    && !seeded("stay-over-drops")
                {
                    let left = Left { cause: Cause::StayOver, uses: resting.uses };
                    self.chute(slot.level).spill(key.to_key(), resting.entry, left);
                }
                continue;
            }
            if self.top(entry.levels).is_some_and(|top| top.level == slot.level) {
                resident.revalidate(key, entry.generation, flow.fences.newest());
                // The engine's own hit marks the use and renews the stay.
                let look = Look { now, slack: 0, valid_from: Generation::ZERO };
                resident.hit(key, look);
                return AtOnce::Found(Found { entry: resting.entry, level: slot.level, stale: false });
            }
            // Exclusive: out of here, in at the top.
            if let Some(resting) = resident.take(key, entry.generation) {
                let key = key.to_key();
                flow.recorder.used(now, || key.clone(), resting.uses + 1);
                let found = Found { entry: resting.entry, level: slot.level, stale: false };
                if !self.promote(key.clone(), &found.entry, now) {
                    let hold = flow.hold(
                        slot.level,
                        &found.entry,
                        self.is_last(slot.level, found.entry.levels),
                        now,
                    );
                    resident.insert(key, found.entry.clone(), hold);
                }
                return AtOnce::Found(found);
            }
        }
        if let Some(item) = flow.pending.get(key) {
            if flow.is_alive(key, &item.entry, now) {
                flow.recorder.used(now, || key.to_key(), 1);
                // A write that has begun may end; one that has not is not needed any more.
                if self.promote(key.to_key(), &item.entry, now) && !item.writing {
                    flow.pending.take_unless_returned(key, &item);
                }
                return AtOnce::Found(Found { level: item.to, entry: item.entry, stale: false });
            }
            if flow.is_dead(key, &item.entry, now) {
                flow.pending.discard(key, Generation::new(item.entry.generation.get() + 1));
            }
        }
        if !self.lower_slots().any(|slot| slot.index().is_none_or(|index| index.holds(key).is_some())) {
            return AtOnce::Nowhere(self.stale_above(&stripe, key, now));
        }
        if let Some(reading) = stripe.reading(hash) {
            return AtOnce::Wait(Wait::Join(reading));
        }
        let floor = stripe.enter(hash, flow.generation());
        let (answer, reading) = watch::channel(None);
        stripe.announce(hash, reading);
        AtOnce::Wait(Wait::Read { floor, answer })
    }

    /// Step 5. What is stale only when nothing is alive. Also tells the flushes the level had seen when it was asked.
    pub(super) async fn read_below(&self, key: KeyRef<'_>, floor: Generation) -> Option<(Found, u64)> {
        let mut stale = None;
        let mut budget = Budget::default();
        let mut owned: Option<Key> = None;
        for slot in self.lower_slots() {
            let flushed = slot.flushed.load(Ordering::Acquire);
            let doubt = Doubt::of(self, slot, key);
            let entry = match slot.index().map(|index| index.try_get(key)) {
                Some(TryGet::Done(entry)) => entry,
                Some(TryGet::WouldBlock) | None => {
                    let key = owned.get_or_insert_with(|| key.to_key());
                    self.read_slot(slot, key, &mut budget).await
                }
            };
            match self.believe(slot, key, floor, entry, &doubt) {
                Some(found) if !found.stale => return Some((found, flushed)),
                Some(found) => stale = stale.or(Some((found, flushed))),
                None => {}
            }
            if let Some(found) = self.find_passing(key) {
                return Some(found);
            }
        }
        stale
    }

    /// What a level answered, if a reader that began above that floor may believe it.
    pub(super) fn believe(
        &self,
        slot: &Slot,
        key: KeyRef<'_>,
        floor: Generation,
        entry: Option<Entry>,
        doubt: &Doubt,
    ) -> Option<Found> {
        let entry = entry?;
        let now = self.flow.now();
        let believed = (entry.generation >= floor || seeded("read-below-floor"))
            && !self.flow.is_dead(key, &entry, now)
            && !doubt.touches(key, &entry);
        if !believed {
            return None;
        }
        if slot.profile.shared {
            self.stripes.lock(key.hash64()).meet(key.hash64(), entry.generation);
        }
        let stale = !self.flow.is_alive(key, &entry, now);
        Some(Found { entry, level: slot.level, stale })
    }

    /// What a level gave up while it was asked is on its way past us.
    pub(super) fn find_passing(&self, key: KeyRef<'_>) -> Option<(Found, u64)> {
        let item = self.flow.pending.get(key)?;
        if !self.flow.is_alive(key, &item.entry, self.flow.now()) {
            return None;
        }
        let flushed = self.slot(item.to).map_or(0, |slot| slot.flushed.load(Ordering::Acquire));
        Some((Found { entry: item.entry, level: item.to, stale: false }, flushed))
    }

    /// Asks one level within what is left of the request's time. Trouble is a miss.
    pub(super) async fn read_slot(&self, slot: &Slot, key: &Key, budget: &mut Budget) -> Option<Entry> {
        let limit = budget.left(slot.limits().read_timeout);
        if limit.is_zero() {
            return None;
        }
        let started = tokio::time::Instant::now();
        let answer = slot.call("get", limit, slot.tier.get(key)).await;
        budget.spend(started.elapsed());
        self.note_read(slot, key, answer)
    }

    /// The answer to a read; trouble is a miss.
    pub(super) fn note_read(&self, slot: &Slot, key: &Key, answer: Result<Option<Entry>>) -> Option<Entry> {
        let answer = answer.and_then(|entry| {
            // What a mutation of this process takes from now on must be above what it may have seen.
            entry.as_ref().map_or(Ok(()), |entry| self.flow.join(slot.tier.name(), entry.generation))?;
            Ok(entry)
        });
        answer.unwrap_or_else(|error| {
            tracing::debug!(level = %slot.level, ?key, %error, "read failed, taken as a miss");
            None
        })
    }

    /// Step 6: puts what was read below into hot, unless it became old meanwhile. What is stale stays where it is, and
    /// is no answer once it was replaced or removed.
    pub(super) fn publish(&self, key: KeyRef<'_>, found: Found, flushed: u64) -> Option<Found> {
        let flow = &self.flow;
        let now = flow.now();
        flow.recorder.used(now, || key.to_key(), 1);
        let stripe = self.stripes.lock(key.hash64());
        let entry = &found.entry;
        let doubt = Doubt::under(&stripe, self.slot(found.level), key);
        let current = (entry.generation >= stripe.floor(key.hash64()) || seeded("publish-unchecked"))
            && !flow.is_dead(key, entry, now)
            && !doubt.touches(key, entry);
        if found.stale {
            return current.then_some(found);
        }
        let current = current
            && flow.is_alive(key, entry, now)
            && self.slot(found.level).is_some_and(|slot| slot.flushed.load(Ordering::Acquire) == flushed);
        if self.slot(found.level).is_some_and(|slot| slot.profile.shared) {
            // Another process may have written it after what this one still has.
            self.forget_in_ram(&key.to_key(), entry.generation);
        }
        if current {
            self.promote(key.to_key(), entry, now);
        } else {
            flow.counters.count(Count::Refused);
        }
        Some(found)
    }

    /// Inserts at the top level that may have the entry, under the key's stripe. Whether it is there now.
    pub(super) fn promote(&self, key: Key, entry: &Entry, now: Timestamp) -> bool {
        let Some(top) = self.top(entry.levels) else { return false };
        let Some(resident) = top.resident() else { return false };
        let hold = self.flow.hold(top.level, entry, self.is_last(top.level, entry.levels), now);
        let mut entry = entry.clone();
        if seeded("promotion-extends-life") {
            entry.deadline = entry.deadline.after_millis(60_000);
        }
        let generation = entry.generation;
        let put = resident.insert(key.clone(), entry, hold);
        if put == Put::Stored {
            self.flow.counters.count(Count::Promoted);
            self.flow.recorder.moved(now, &key, generation, Some(top.level));
        }
        matches!(put, Put::Stored | Put::Unchanged)
    }

    /// The top level that may have such an entry.
    pub(super) fn top(&self, levels: crate::Levels) -> Option<&Slot> {
        self.slots().find(|slot| levels.contains(slot.level))
    }

    /// The live entry of `key` wherever it is, without a use, a promotion or a count.
    pub(super) async fn look(&self, key: KeyRef<'_>) -> Option<Found> {
        let flow = &self.flow;
        let floor = {
            let now = flow.now();
            let mut stripe = self.stripes.lock(key.hash64());
            for slot in self.slots() {
                if let Some(resting) = slot.resident().and_then(|resident| resident.peek(key))
                    && flow.is_alive(key, &resting.entry, now)
                {
                    return Some(Found { entry: resting.entry, level: slot.level, stale: false })
                        .filter(Found::is_value);
                }
            }
            if let Some(item) = flow.pending.get(key)
                && flow.is_alive(key, &item.entry, now)
            {
                return Some(Found { entry: item.entry, level: item.to, stale: false })
                    .filter(Found::is_value);
            }
            stripe.enter(key.hash64(), flow.generation())
        };
        let _flight = InFlight { shared: self, hash: key.hash64() };
        Some(self.read_below(key, floor).await?.0).filter(Found::is_value)
    }
}

/// Removals that have not reached a level that other processes write to: what is found there may be from before them,
/// since nobody can tell when another process wrote it.
#[derive(Default)]
pub(super) struct Doubt {
    /// Whether a removal of the key lags. Not even the newest generation is above doubt then: another process may
    /// have counted to the same number.
    key: bool,
    scopes: Arc<Vec<Scope>>,
}

impl Doubt {
    pub(super) fn of(shared: &Shared, slot: &Slot, key: KeyRef<'_>) -> Self {
        if !slot.profile.shared {
            return Self::default();
        }
        Self::under(&shared.stripes.lock(key.hash64()), Some(slot), key)
    }

    pub(super) fn under(stripe: &Stripe, slot: Option<&Slot>, key: KeyRef<'_>) -> Self {
        let Some(slot) = slot.filter(|slot| slot.profile.shared) else { return Self::default() };
        Self { key: stripe.lags(key.hash64(), slot.level), scopes: slot.lagging() }
    }

    pub(super) fn touches(&self, key: KeyRef<'_>, entry: &Entry) -> bool {
        self.key || self.scopes.iter().any(|scope| scope.covers(key, entry))
    }
}

/// What could be decided without waiting.
pub(super) enum AtOnce {
    Found(Found),
    /// At most what is only stale.
    Nowhere(Option<Found>),
    Wait(Wait),
}

/// What to wait for.
pub(super) enum Wait {
    /// Another's read.
    Join(Reading),
    /// Levels that have to be asked, in a flight that has been registered.
    Read { floor: Generation, answer: watch::Sender<Option<Arc<Option<Found>>>> },
}

/// A read that others may join, until it is dropped: with its answer sent, or without one.
pub(super) struct Announced<'a> {
    pub(super) shared: &'a Shared,
    pub(super) hash: u64,
    pub(super) answer: watch::Sender<Option<Arc<Option<Found>>>>,
}

impl Announced<'_> {
    /// Step 6: publishes what was found below, if anything, and tells those who wait.
    pub(super) fn end(self, key: KeyRef<'_>, found: Option<(Found, u64)>) -> Option<Found> {
        let found = found.and_then(|(found, flushed)| self.shared.publish(key, found, flushed));
        self.answer.send_replace(Some(Arc::new(found.clone())));
        found
    }
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        let mut stripe = self.shared.stripes.lock(self.hash);
        stripe.conclude(self.hash, &self.answer.subscribe());
        stripe.leave(self.hash);
    }
}

/// The time one request may wait for tiers in total: the longest of the deadlines of those it asked.
#[derive(Default)]
pub(super) struct Budget {
    granted: Duration,
    spent: Duration,
}

impl Budget {
    pub(super) fn left(&mut self, timeout: Duration) -> Duration {
        self.granted = self.granted.max(timeout);
        self.granted.saturating_sub(self.spent).min(timeout)
    }

    pub(super) fn spend(&mut self, time: Duration) {
        self.spent += time;
    }
}
