//! Writing.
//!
//! `set`, in order, under the key's stripe:
//! 1. It takes a generation, and raises the floor of the operations in flight on the key.
//! 2. What is on its way down is withdrawn, so that no write below can commit after this.
//! 3. Copies below are fenced: levels that know without I/O that they hold none cost nothing, a local log gets a
//!    short record, anything else is waited for outside the stripe, in a task the manager owns.
//! 4. The value is published at the top level that takes it: the commit point for readers.
//! 5. Older copies in RAM go, and the way down once more: an eviction may have put the older value there
//!    meanwhile.
//!
//! Sets with a condition read first: see [`super::change`].

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use super::builder::Write;
use super::counters::Count;
use super::pending::Item;
use super::set::{Draft, OnlyIf, Set, Ttl};
use super::stripes::{Joined, Stripe};
use super::{CacheManager, InFlight, Shared};
use crate::bugs::seeded;
use crate::tier::Put;
use crate::tracking::Record;
use crate::{AsKey, Entry, Error, Generation, Key, Level, Result, Timestamp};

/// What a write did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Written {
    /// Whether the value was kept; `false` only for conditional writes whose condition did not hold.
    pub stored: bool,
    /// The write's generation.
    pub generation: Generation,
    /// Levels whose older copy could not be removed yet, and why. They are fenced in this process and cleaned in
    /// the background, as [`Removed::degraded`](crate::Removed::degraded) are.
    pub degraded: Vec<(Level, Error)>,
}

impl CacheManager {
    /// Keeps `value` under `key`. Awaited as it is, with the levels' defaults; options go in between:
    ///
    /// ```ignore
    /// cache.set("k", bytes).ttl(Duration::from_secs(60)).tag("type", "thumbnail").await?;
    /// ```
    ///
    /// What `Ok` means is the manager's [`Write`] mode. In every mode no older value of the key can be read once
    /// this has returned, not even after the process was killed; see [`Written::degraded`].
    ///
    /// # Errors
    /// - [`Error::TooLarge`] when no level takes it. What was there before is removed.
    /// - [`Error::Unavailable`] or [`Error::TimedOut`] when the level it must reach does not take it; the key is
    ///   then removed, since the level may or may not have it.
    /// - [`Error::InvalidKey`], [`Error::InvalidOption`], [`Error::Closed`]: nothing happened.
    ///
    /// Dropping the future after it was first polled does not stop the write.
    pub fn set(&self, key: impl AsKey, value: impl Into<Bytes>) -> Set<'_> {
        Set { manager: self, of: self.key(&key).map(|key| (key.to_key(), Draft::new(value.into()))) }
    }
}

pub(super) type Work = Pin<Box<dyn Future<Output = Result<Written>> + Send>>;

/// A write that is over, or what is left of it.
pub(super) enum Begun<Left = Work> {
    Done(Result<Written>),
    Slow(Left),
}

/// A write that has its generation and waits for a level: its flight is registered.
pub(super) struct Unfinished {
    pub(super) key: Key,
    pub(super) entry: Entry,
    /// Its place in a removal of the copies below, unless these are fenced.
    pub(super) removal: Option<Joined>,
    pub(super) flight: Setting,
}

/// The flight of a set that is not over, until it is dropped.
pub(super) struct Setting(InFlight<Arc<Shared>>);

impl Drop for Setting {
    fn drop(&mut self) {
        let InFlight { shared, hash } = &self.0;
        shared.stripes.lock(*hash).end_set(*hash);
    }
}

impl Unfinished {
    /// What is left of it.
    fn finish(self, made: Made) -> Work {
        Box::pin(async move {
            let Self { key, entry, removal, flight } = self;
            let result = flight.0.shared.clone().finish_write(key, entry, removal, made).await;
            drop(flight);
            result
        })
    }
}

/// What an entry that is written was made of.
#[derive(Clone, Debug)]
pub(super) enum Made {
    /// Of nothing that was read.
    Anew,
    /// Of what was read, its value left out. It is not made anew when another process came between: nothing is stored
    /// then.
    Of(Entry),
    /// By a load, of what was read at that generation, or was not there at zero. Likewise.
    Since(Generation),
    /// By a load, before which the levels that others write to were asked to remove what is older: whatever others did
    /// since has a higher generation.
    AfterAsking,
}

/// What step 3 came to.
pub(super) enum Lower {
    /// Neither the way down nor a level below has an older copy any more; whether one had.
    Fenced { held: bool },
    /// Some level must be waited for.
    Wait,
}

impl Shared {
    /// The whole write if nothing has to be waited for, else what is left of it.
    pub(super) fn write_at_once(self: &Arc<Self>, key: Key, draft: Draft) -> Begun {
        match self.begin_write(key, draft) {
            Begun::Done(result) => Begun::Done(result),
            Begun::Slow(unfinished) => Begun::Slow(unfinished.finish(Made::Anew)),
        }
    }

    /// Likewise; what is left can be finished together with others.
    pub(super) fn begin_write(self: &Arc<Self>, mut key: Key, draft: Draft) -> Begun<Unfinished> {
        // Only a deadline needs the exact time; a stay may begin a few milliseconds early.
        let exact = !matches!(draft.ttl, Ttl::Unset);
        let now = if exact { self.flow.now() } else { self.flow.recently() };
        let mut entry = draft.entry(now);
        if self.top(entry.levels).is_none() {
            let reason = "no configured level is left for it".into();
            return Begun::Done(Err(Error::InvalidOption { option: "levels", reason }));
        }
        let hash = key.hash64();
        let mut stripe = self.stripes.lock(hash);
        let generation = self.flow.next_generation();
        entry.generation = generation;
        stripe.mutate(hash, generation);
        let fenced = matches!(self.fence_lower(&key, generation), Lower::Fenced { .. });
        if fenced && self.write == Write::Back {
            (key, entry) = match self.publish_newest(key, entry, now) {
                Ok(()) => return Begun::Done(Ok(Written { stored: true, generation, degraded: Vec::new() })),
                Err(refused) => refused,
            };
        }
        Begun::Slow(self.unfinished(&mut stripe, key, entry, fenced))
    }

    /// Steps 4 and 5 for an entry that got its generation under the stripe it is published under. What most entries cost
    /// is made here: no handle of theirs is cloned that is not kept.
    fn publish_newest(
        &self,
        key: Key,
        entry: Entry,
        now: Timestamp,
    ) -> std::result::Result<(), (Key, Entry)> {
        let Some(top) = self.top(entry.levels) else { return Err((key, entry)) };
        let Some(resident) = top.resident() else { return Err((key, entry)) };
        let hold = self.flow.hold(top.level, &entry, self.is_last(top.level, entry.levels), now);
        let size = entry.value.len();
        let told = Entry { value: Bytes::new(), extras: entry.extras.clone(), ..entry };
        if let Err(entry) = resident.insert_newest(&key, entry, hold) {
            return match self.publish_in_ram(&key, &entry, now) {
                Some(level) => {
                    self.published(key, &entry, entry.value.len(), level, now);
                    Ok(())
                }
                None => Err((key, entry)),
            };
        }
        self.forget_in_ram_but(Some(top.level), &key, told.generation);
        self.published(key, &told, size, top.level, now);
        Ok(())
    }

    /// Notes that a level has a new entry.
    fn published(&self, key: Key, entry: &Entry, size: usize, level: Level, now: Timestamp) {
        self.flow.counters.count(Count::Set);
        self.flow.recorder.stored(now, || Record { size: size as u64, ..Record::of(key, entry, level) });
    }

    /// Steps 1 to 5 for an entry that has its generation.
    pub(super) fn write_locked(
        self: &Arc<Self>,
        stripe: &mut Stripe,
        key: Key,
        entry: Entry,
        now: Timestamp,
        made: Made,
    ) -> Begun {
        match self.begin_locked(stripe, key, entry, now, &made) {
            Begun::Done(result) => Begun::Done(result),
            Begun::Slow(unfinished) => Begun::Slow(unfinished.finish(made)),
        }
    }

    fn begin_locked(
        self: &Arc<Self>,
        stripe: &mut Stripe,
        key: Key,
        entry: Entry,
        now: Timestamp,
        made: &Made,
    ) -> Begun<Unfinished> {
        let (hash, generation) = (key.hash64(), entry.generation);
        stripe.mutate(hash, generation);
        let asked = matches!(made, Made::AfterAsking);
        let fenced = matches!(self.fence_lower_but(&key, generation, asked), Lower::Fenced { .. });
        if fenced
            && self.write == Write::Back
            && let Some(level) = self.publish_in_ram(&key, &entry, now)
        {
            self.published(key, &entry, entry.value.len(), level, now);
            return Begun::Done(Ok(Written { stored: true, generation, degraded: Vec::new() }));
        }
        Begun::Slow(self.unfinished(stripe, key, entry, fenced))
    }

    /// Registers the flight of a write that has to wait for a level.
    fn unfinished(self: &Arc<Self>, stripe: &mut Stripe, key: Key, entry: Entry, fenced: bool) -> Unfinished {
        let (hash, generation) = (key.hash64(), entry.generation);
        stripe.enter(hash, generation);
        // The floor must hold for this flight too, which the mutation above may have come before.
        stripe.mutate(hash, generation);
        let removal = (!fenced).then(|| stripe.join_removal(hash, generation));
        stripe.begin_set(hash);
        let flight = Setting(InFlight { shared: self.clone(), hash });
        Unfinished { key, entry, removal, flight }
    }

    /// Step 3, as far as it goes without waiting.
    pub(super) fn fence_lower(&self, key: &Key, below: Generation) -> Lower {
        self.fence_lower_but(key, below, false)
    }

    /// Likewise, where levels that cannot tell what they hold have been asked to remove what is older already.
    fn fence_lower_but(&self, key: &Key, below: Generation, asked: bool) -> Lower {
        // Withdrawn first: a write below that has not committed by now will not, so what the index does not
        // hold after this it will not come to hold.
        let mut held = self.flow.pending.discard(key.as_ref(), below).is_some();
        if seeded("set-leaves-lower") {
            return Lower::Fenced { held };
        }
        for slot in self.lower_slots().rev() {
            let Some(index) = slot.index() else {
                if asked {
                    continue;
                }
                return Lower::Wait;
            };
            if index.holds(key.as_ref()).is_none() {
                continue;
            }
            held = true;
            match index.try_remove(key.as_ref(), below) {
                Some(Ok(())) => {}
                Some(Err(_)) | None => return Lower::Wait,
            }
        }
        Lower::Fenced { held }
    }

    /// Steps 4 and 5. The level that took it, if one in RAM did.
    pub(super) fn publish_in_ram(&self, key: &Key, entry: &Entry, now: Timestamp) -> Option<Level> {
        let mut taken = None;
        for slot in self.slots().filter(|slot| entry.levels.contains(slot.level)) {
            let resident = slot.resident()?;
            let hold = self.flow.hold(slot.level, entry, self.is_last(slot.level, entry.levels), now);
            match resident.insert(key.clone(), entry.clone(), hold) {
                Put::Stored | Put::Unchanged | Put::Superseded => {
                    taken = Some(slot.level);
                    break;
                }
                Put::TooLarge | Put::Full => {}
            }
        }
        // The level that took it has nothing older of the key.
        self.forget_in_ram_but(taken, key, entry.generation);
        taken
    }

    /// Removes what RAM and the way down hold of `key` from before the mutation; returns whether they did.
    pub(super) fn forget_in_ram(&self, key: &Key, below: Generation) -> bool {
        self.forget_in_ram_but(None, key, below)
    }

    fn forget_in_ram_but(&self, spared: Option<Level>, key: &Key, below: Generation) -> bool {
        let mut held = false;
        // Coldest first: what leaves a level meanwhile goes down, ahead of us, and the way down comes last.
        for slot in self.slots().rev().filter(|slot| Some(slot.level) != spared) {
            if let Some(resident) = slot.resident() {
                held |= resident.discard(key.as_ref(), below).is_some();
            }
        }
        held | self.flow.pending.discard(key.as_ref(), below).is_some()
    }

    /// What is left of a write that has to wait for a level. The caller holds the flight.
    async fn finish_write(
        self: Arc<Self>,
        key: Key,
        mut entry: Entry,
        removal: Option<Joined>,
        made: Made,
    ) -> Result<Written> {
        let mut generation = entry.generation;
        let mut degraded = Vec::new();
        if let Some(joined) = removal {
            let outcome = self.remove_lower(&key, &joined).await;
            let changed = match &made {
                Made::Anew => false,
                Made::Of(read) => self.is_changed_below(&key, &outcome, read),
                Made::Since(read) => {
                    outcome.overtaken || outcome.over > *read || self.is_killed_below(&key, &entry)
                }
                Made::AfterAsking => outcome.overtaken || self.is_killed_below(&key, &entry),
            };
            (generation, degraded) = (outcome.generation, outcome.degraded);
            if changed && !seeded("derived-overtakes") {
                // What it was made of must not be what the next attempt is made of.
                self.forget_in_ram(&key, generation);
                return Ok(Written { stored: false, generation, degraded });
            }
            // An invalidation that came after this began made an end of it, and is not overtaken by a generation that was
            // raised since.
            if self.flow.fences.ends(key.as_ref(), &entry, generation) {
                self.forget_in_ram(&key, generation);
                return Ok(Written { stored: true, generation, degraded });
            }
            entry.generation = generation;
        }
        let now = self.flow.now();
        if self.publish_late(&key, &entry, now) {
            return Ok(Written { stored: true, generation, degraded });
        }
        let mut refused = None;
        let mut limit = 0;
        for slot in self.candidates(entry.levels) {
            let mut put = self.put_below(slot, &key, &entry, now).await;
            if self.write == Write::Through && matches!(put, Ok(Put::Stored | Put::Unchanged)) {
                // A level may keep what it took in a buffer of its own for a moment.
                let synced = slot.call("sync", slot.limits().write_timeout, slot.tier.sync()).await;
                put = synced.and(put);
            }
            match put {
                Ok(put @ (Put::Stored | Put::Unchanged | Put::Superseded)) => {
                    self.kept_below(slot, &key, &entry, put, now);
                    return Ok(Written { stored: true, generation, degraded });
                }
                Ok(Put::TooLarge | Put::Full) => {
                    limit = limit.max(slot.profile.max_entry_bytes.unwrap_or_default());
                }
                Err(error) => refused = Some(error),
            }
        }
        // Nobody keeps it. What was there before is not what the caller means any more, and a level that did not
        // answer may have it after all: the key goes.
        if !seeded("failed-set-stays") {
            self.remove_now(&key).await;
        }
        Err(refused.unwrap_or(Error::TooLarge { size: entry.value.len() as u64, limit }))
    }

    /// Whether an invalidation by any process, that a level other processes use knows of, reaches the entry.
    pub(super) fn is_killed_below(&self, key: &Key, entry: &Entry) -> bool {
        let mut shared = self.lower_slots().filter(|slot| slot.profile.shared);
        !seeded("killed-elsewhere-stays")
            && shared.any(|slot| slot.tier.fences().is_some_and(|fences| fences.kills(key, entry)))
    }

    /// Steps 4 and 5 of a write that had to wait. Whether it is over: a level in RAM took it, or a later mutation
    /// has begun.
    pub(super) fn publish_late(&self, key: &Key, entry: &Entry, now: Timestamp) -> bool {
        if self.write == Write::Through {
            return false;
        }
        let hash = key.hash64();
        let mut stripe = self.stripes.lock(hash);
        stripe.detach(hash);
        if stripe.is_overtaken(hash, entry.generation) {
            // It is as if this had come just before that. What this one replaces must not be there any more when it
            // returns.
            self.forget_in_ram(key, entry.generation);
            return true;
        }
        let Some(level) = self.publish_in_ram(key, entry, now) else { return false };
        self.published(key.clone(), entry, entry.value.len(), level, now);
        if self.write == Write::Behind
            && let Some(slot) = self.durable(entry.levels)
        {
            let item = Item::new(entry.clone(), level, slot.level);
            for (key, item) in self.flow.pending.push(key.clone(), item, true) {
                self.flow.counters.count(Count::Overflowed);
                tracing::debug!(?key, generation = item.entry.generation.get(), "copy dropped, no room");
            }
        }
        true
    }

    /// A write in a task of its own from the start: one with a condition, or one that must reach a lower level.
    pub(super) fn write_slowly(self: Arc<Self>, key: Key, draft: Draft) -> Work {
        Box::pin(async move {
            if self.top(draft.levels).is_none() {
                let reason = "no configured level is left for it".into();
                return Err(Error::InvalidOption { option: "levels", reason });
            }
            if let Some(only_if) = draft.only_if {
                let fresh = draft.entry(self.flow.now());
                let written = self.replace(&key, |found, now| match (only_if, found) {
                    (OnlyIf::Absent, Some(mut found)) if seeded("add-extends-life") => {
                        found.deadline = now.after_millis(3_600_000);
                        Some(found)
                    }
                    (only_if, found) => only_if.holds(found.as_ref()).then(|| fresh.clone()),
                });
                return Ok(written.await?.unwrap_or(Written {
                    stored: false,
                    generation: self.flow.generation(),
                    degraded: Vec::new(),
                }));
            }
            match self.write_at_once(key, draft) {
                Begun::Done(result) => result,
                Begun::Slow(work) => work.await,
            }
        })
    }
}
