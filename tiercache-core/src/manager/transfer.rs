//! Entries as they are, to be carried to another cache and put into one: deadlines, tags, stays and media types go
//! with them, generations do not. A generation orders the mutations of one cache; what comes from another is a
//! mutation of this one, made when it arrives.

use std::collections::VecDeque;

use super::Write;
use super::guard::caught;
use super::set::check_tags;
use super::slot::Slot;
use super::walk::Walk;
use super::write::{Begun, Written};
use super::{CacheManager, Keys, Shared};
use crate::bugs::seeded;
use crate::tracking::{Query, Record};
use crate::{AsKey, Entry, Error, Key, KeyRef, Level, Result};

/// How often an entry that some level has is looked for.
const LOOKS: u32 = 3;

/// What became of an entry that was put into a cache.
#[derive(Clone, Debug)]
pub enum Restored {
    /// It is kept.
    Stored(Written),
    /// The key has a live entry already, which stays.
    Present,
    /// Its deadline has passed.
    Expired,
}

/// What [`CacheManager::scan`] finds, one by one.
#[derive(Debug)]
pub struct Scan {
    manager: CacheManager,
    query: Query,
    walk: Walk,
    /// The levels that were, or are to be, listed.
    listed: Vec<Level>,
    rest: Rest,
    waiting: VecDeque<Record>,
}

/// What no level could list.
#[derive(Debug)]
enum Rest {
    NotYet,
    Tracking(Box<Keys>),
    Over,
}

impl CacheManager {
    /// The live entry of `key` with everything that travels with it, wherever it is. Not a use: nothing is promoted or
    /// counted.
    ///
    /// Unlike a read it does not fail open: a copy must not lack what a level did not give.
    ///
    /// # Errors
    /// As for [`CacheManager::get`], and what a level says that does not answer.
    pub async fn snapshot(&self, key: impl AsKey) -> Result<Option<Entry>> {
        let key = self.key(&key)?;
        let shared = &self.shared;
        for _ in 0..LOOKS {
            shared.check_open()?;
            if let Some(found) = shared.look(key).await.filter(|found| !found.stale) {
                return Ok(Some(found.entry));
            }
            if !shared.may_be_below(key).await? {
                return Ok(None);
            }
        }
        // A level has it, and did not say so in the time reads have, or is doubted.
        Err(Error::unavailable("the cache", "read", "a level that has the entry did not give it in time"))
    }

    /// Puts `entry` under `key` with the deadline, tags, stays, levels and media type it has. Its generation is left
    /// behind: this is a write, ordered like every other one when it is made.
    ///
    /// Unless it shall `replace` what is there, a key that has a live entry keeps that, as of two caches' clocks
    /// nobody can tell whose entry is newer.
    ///
    /// # Errors
    /// As for [`CacheManager::set`]. Dropping the future after it was first polled does not stop the write.
    pub async fn restore(&self, key: impl AsKey, entry: Entry, replace: bool) -> Result<Restored> {
        let key = self.key(&key)?.to_key();
        let shared = self.shared.clone();
        // What RAM takes pushes as much down at once. Many at a time would be more than the way down has room for, and
        // nothing of a copy may be lost there.
        let in_ram = shared.write != Write::Through
            && shared.top(entry.levels).is_some_and(|slot| slot.resident().is_some());
        let _alone = if in_ram { Some(self.shared.restoring.lock().await) } else { None };
        let restored =
            self.shared.owned(async move { shared.put_as_it_is(key, entry, replace).await }, "restore");
        let restored = restored.await??;
        while self.shared.flow.pending.is_crowded() && !self.shared.lower_slots().any(Slot::is_open) {
            self.shared.wait_for_room().await;
        }
        Ok(restored)
    }

    /// What fits `query`, in no order, for a whole copy: from the levels themselves where they can be listed, so that
    /// nothing depends on what tracking remembers, and from tracking what stands elsewhere. Of the default namespace's
    /// handle every namespace unless the query names one, as for [`CacheManager::keys`].
    ///
    /// What stays meanwhile is told, wherever it moves; a key that stands at several levels below RAM, or rises, may be told
    /// twice.
    /// The keys of levels in RAM are remembered until the scan is dropped.
    pub fn scan(&self, mut query: Query) -> Scan {
        if !self.namespace.is_empty() {
            query.namespace = Some(self.namespace.to_string());
        }
        // Only tracking remembers uses.
        let by_hits = query.min_hits.is_some() || query.max_hits.is_some();
        let wanted = |level: Level| query.level.is_none_or(|wanted| wanted == level);
        let can = |slot: &Slot| !by_hits && wanted(slot.level) && slot.tier.listing().is_some();
        let listed = self.shared.slots().filter(|slot| can(slot)).map(|slot| slot.level).collect();
        let mut walk = Walk::new(&self.shared, can);
        walk.rather_twice();
        Scan { manager: self.clone(), walk, query, listed, rest: Rest::NotYet, waiting: VecDeque::new() }
    }
}

impl Scan {
    /// The next record, `None` after the last.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Unsupported`] when a level that holds something can neither be listed nor is known
    /// to tracking, or what the store said; the scan may be continued after a retryable error.
    pub async fn next(&mut self) -> Result<Option<Record>> {
        loop {
            if let Some(record) = self.waiting.pop_front() {
                return Ok(Some(record));
            }
            let manager = self.manager.clone();
            let shared = &*manager.shared;
            shared.check_open()?;
            if !self.walk.is_over() {
                let mut query = self.query.clone();
                query.live_at.get_or_insert(shared.flow.now());
                self.waiting.extend(self.walk.turn_page(shared, &query).await?);
                continue;
            }
            match &mut self.rest {
                Rest::NotYet => self.rest = self.elsewhere(shared).await?,
                Rest::Tracking(keys) => match keys.next().await? {
                    Some(record) if self.was_listed(shared, &record) => {}
                    Some(record) => return Ok(Some(record)),
                    None => self.rest = Rest::Over,
                },
                Rest::Over => return Ok(None),
            }
        }
    }

    /// Where to learn of what stands at levels that are not listed.
    async fn elsewhere(&self, shared: &Shared) -> Result<Rest> {
        let wanted = |level| self.query.level.is_none_or(|wanted| wanted == level);
        let mut unlisted =
            shared.slots().filter(|slot| wanted(slot.level) && !self.listed.contains(&slot.level)).peekable();
        if unlisted.peek().is_none() {
            return Ok(Rest::Over);
        }
        if shared.flow.recorder.is_enabled() {
            return Ok(Rest::Tracking(Box::new(self.manager.keys(self.query.clone()))));
        }
        for slot in unlisted {
            let usage = caught(slot.tier.name(), slot.tier.usage()).await?;
            if usage.entries != Some(0) {
                let op = "list what it holds without a tracking store";
                return Err(Error::Unsupported { backend: slot.tier.name(), op });
            }
        }
        // Else the walk has looked there.
        if self.listed.is_empty() && !shared.flow.pending.is_empty() {
            return Err(Error::Unsupported {
                backend: "the way down",
                op: "be listed without a tracking store",
            });
        }
        Ok(Rest::Over)
    }

    /// Whether a level that was listed has it, as far as it can be told without asking.
    fn was_listed(&self, shared: &Shared, record: &Record) -> bool {
        let in_ram = || shared.slot(record.level).is_some_and(|slot| slot.in_ram);
        // What rose into RAM behind the walk was not met.
        self.walk.has_met(&record.key)
            || self.listed.contains(&record.level) && !in_ram()
            || self
                .listed
                .iter()
                .filter_map(|level| shared.slot(*level)?.index())
                .any(|index| index.holds(record.key.as_ref()).is_some_and(|generation| generation.get() > 0))
    }
}

impl Shared {
    /// Whether a level that has to be waited for has a live entry of `key`, given as much time as a write has.
    async fn may_be_below(&self, key: KeyRef<'_>) -> Result<bool> {
        let key = key.to_key();
        for slot in self.lower_slots() {
            if slot.index().is_some_and(|index| index.holds(key.as_ref()).is_none()) {
                continue;
            }
            let entry = slot.call("get", slot.limits().write_timeout, slot.tier.get(&key)).await?;
            let alive = |entry: Entry| {
                self.flow.is_alive(key.as_ref(), &entry, self.flow.now()) && !entry.is_nothing()
            };
            if entry.is_some_and(alive) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn put_as_it_is(
        self: std::sync::Arc<Self>,
        key: Key,
        entry: Entry,
        replace: bool,
    ) -> Result<Restored> {
        self.check_open()?;
        if self.top(entry.levels).is_none() {
            let reason = "no configured level is left for it".into();
            return Err(Error::InvalidOption { option: "levels", reason });
        }
        if let Some(tags) = entry.tags() {
            check_tags(tags)?;
        }
        if !entry.is_live(self.flow.now()) {
            return Ok(Restored::Expired);
        }
        let mut entry = entry;
        if seeded("restore-extends-life") {
            entry.deadline = entry.deadline.after_millis(60_000);
        }
        if !replace {
            let written = self.replace(&key, |found, _| found.is_none().then(|| entry.clone()));
            return Ok(written.await?.map_or(Restored::Present, Restored::Stored));
        }
        let begun = {
            let mut stripe = self.stripes.lock(key.hash64());
            entry.generation = self.flow.next_generation();
            self.write_locked(&mut stripe, key, entry, self.flow.now(), super::write::Made::Anew)
        };
        match begun {
            Begun::Done(written) => written,
            Begun::Slow(work) => work.await,
        }
        .map(Restored::Stored)
    }
}
