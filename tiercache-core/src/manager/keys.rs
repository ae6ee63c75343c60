//! Listing keys.

use std::collections::VecDeque;

use super::CacheManager;
use super::walk::Walk;
use crate::tracking::{Query, Record};
use crate::{Entry, Error, Generation, Key, Level, Result};

const PAGE: usize = 256;

/// A listing, page by page.
#[derive(Debug)]
pub struct Keys {
    manager: CacheManager,
    query: Query,
    source: Source,
    waiting: VecDeque<Record>,
    /// Nothing is told before this key was met.
    after: Option<Key>,
}

#[derive(Debug)]
enum Source {
    /// The tracking store, from behind that key.
    Tracking(Option<Key>),
    /// The tiers themselves, and what is on its way between them.
    Tiers(Walk),
    Over,
}

/// What a purge did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Purged {
    /// How many keys there were to remove.
    pub keys: u64,
    /// Levels that did not remove one of them yet, with the first reason each: as
    /// [`Removed::degraded`](crate::Removed::degraded).
    pub degraded: Vec<(Level, Error)>,
}

impl CacheManager {
    /// The keys of this handle's namespace (of the default one's handle: of every namespace unless the query names
    /// one) that fit `query`, with what is known of them. Asks the tracking store; without one, the levels themselves
    /// and what is on its way between them.
    ///
    /// Keys set or removed meanwhile may or may not be seen; one that stays is seen exactly once, wherever it moves. With
    /// a tracking store they come in ascending order of namespace and key. Without one they come in no order, every
    /// level must be one that can be listed (in RAM, or any store but memcached), the listing remembers the keys of the
    /// levels in RAM until it is dropped, and a key that two levels below RAM have, or that sinks from the one to
    /// the other, may be seen twice; one that rises to RAM while a level below is listed, and whose copy that level gives up
    /// before the listing comes to it, is not seen.
    pub fn keys(&self, mut query: Query) -> Keys {
        if !self.namespace.is_empty() {
            query.namespace = Some(self.namespace.to_string());
        }
        let source = if self.shared.flow.recorder.is_enabled() {
            Source::Tracking(None)
        } else {
            Source::Tiers(Walk::new(&self.shared, |_| true))
        };
        Keys { manager: self.clone(), query, source, waiting: VecDeque::new(), after: None }
    }

    /// Removes every key that matches the glob (`*`, `?`, `[a-z]`, `\` to quote). What is set meanwhile may be removed or
    /// stay; what was there before and stays is removed, wherever it moves.
    ///
    /// # Errors
    /// As for [`Keys::next`] and [`CacheManager::delete`].
    pub async fn purge(&self, glob: &str) -> Result<Purged> {
        self.purge_where(Query { glob: Some(glob.to_string()), ..Query::default() }).await
    }

    /// Removes every key that fits `query`, as [`CacheManager::purge`] does.
    ///
    /// # Errors
    /// As for [`Keys::next`] and [`CacheManager::delete`].
    pub async fn purge_where(&self, query: Query) -> Result<Purged> {
        let mut keys = self.keys(query);
        if let Source::Tiers(walk) = &mut keys.source {
            walk.rather_twice();
        }
        let mut purged = Purged::default();
        while let Some(record) = keys.next().await? {
            let within = self.namespace(record.key.namespace())?;
            let removed = within.delete(&record.key).await?;
            purged.keys += u64::from(removed.found);
            for (level, error) in removed.degraded {
                if purged.degraded.iter().all(|(known, _)| *known != level) {
                    purged.degraded.push((level, error));
                }
            }
        }
        Ok(purged)
    }
}

impl Keys {
    /// Goes on behind `key`, with which an earlier listing of the same query ended. Without a tracking store the
    /// key must still be where it was for that, and what has moved since may be seen again, or not.
    pub fn after(mut self, key: Key) -> Self {
        match &mut self.source {
            Source::Tracking(after) => *after = Some(key),
            _ => self.after = Some(key),
        }
        self
    }

    /// The next key, `None` after the last.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed), [`Error::Unsupported`](crate::Error::Unsupported) when there is no tracking
    /// and a level cannot be listed, [`Error::TimedOut`](crate::Error::TimedOut) when the tracking store takes longer
    /// than 5 s, or what the store said; the listing may be continued after a retryable error.
    pub async fn next(&mut self) -> Result<Option<Record>> {
        loop {
            if let Some(record) = self.waiting.pop_front() {
                match &self.after {
                    Some(key) if record.key == *key => self.after = None,
                    Some(_) => {}
                    None => return Ok(Some(record)),
                }
                continue;
            }
            if matches!(self.source, Source::Over) {
                return Ok(None);
            }
            self.turn_page().await?;
        }
    }

    /// Up to `limit` further keys; fewer only at the end.
    ///
    /// # Errors
    /// As for [`Keys::next`].
    pub async fn page(&mut self, limit: usize) -> Result<Vec<Record>> {
        let mut page = Vec::new();
        while page.len() < limit
            && let Some(record) = self.next().await?
        {
            page.push(record);
        }
        Ok(page)
    }

    async fn turn_page(&mut self) -> Result<()> {
        let shared = self.manager.shared.clone();
        shared.check_open()?;
        let flow = &shared.flow;
        let mut query = self.query.clone();
        query.live_at.get_or_insert(flow.now());
        match &mut self.source {
            Source::Tracking(after) => {
                let recorder = &flow.recorder;
                if after.is_none() {
                    recorder.list("record", recorder.flush(flow.now(), &flow.counters)).await?;
                }
                let page =
                    recorder.list("find", recorder.tracking().find(&query, after.as_ref(), PAGE)).await?;
                let last = page.last().map(|record| record.key.clone());
                let is_last = page.len() < PAGE;
                // Tracking may lag: what an invalidation killed, or is nowhere any more, is not told.
                self.waiting.extend(page.into_iter().filter(|record| shared.may_be_there(record)));
                self.source = if is_last { Source::Over } else { Source::Tracking(last) };
            }
            Source::Tiers(walk) => {
                self.waiting.extend(walk.turn_page(&shared, &query).await?);
                if walk.is_over() {
                    self.source = Source::Over;
                }
            }
            Source::Over => {}
        }
        Ok(())
    }
}

impl super::Shared {
    /// Whether what tracking, or a level that was waited for, says may be true, as far as it can be told without waiting for a level.
    pub(super) fn may_be_there(&self, record: &Record) -> bool {
        let key = record.key.as_ref();
        let mut entry = Entry::new("", record.generation, record.created);
        if !record.tags.is_empty() {
            entry.extras_mut().tags = record.tags.clone();
        }
        if self.flow.fences.hides(key, &entry) {
            return false;
        }
        let holds = |generation: Generation| generation >= record.generation;
        self.flow.pending.get(key).is_some_and(|item| holds(item.entry.generation))
            || self.slots().any(|slot| match (slot.resident(), slot.index()) {
                (Some(resident), _) => {
                    resident.peek(key).is_some_and(|resting| holds(resting.entry.generation))
                }
                (None, Some(index)) => index.holds(key).is_some_and(holds),
                (None, None) => true,
            })
    }
}
