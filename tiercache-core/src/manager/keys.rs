//! Listing keys.

use std::collections::{HashSet, VecDeque};

use super::CacheManager;
use crate::tracking::{Query, Record};
use crate::{Entry, Error, Generation, Key, Result};

const PAGE: usize = 256;

/// A listing, page by page.
#[derive(Debug)]
pub struct Keys {
    manager: CacheManager,
    query: Query,
    source: Source,
    waiting: VecDeque<Record>,
    /// What was told from the way down, and is not told again where it arrived.
    told: HashSet<Key>,
    /// Nothing is told before this key was met.
    after: Option<Key>,
}

#[derive(Debug)]
enum Source {
    /// The tracking store, from behind that key.
    Tracking(Option<Key>),
    /// What is on its way down, then the tiers.
    Way,
    /// The tiers themselves: the levels still to list, and where the first of them goes on.
    Tiers(VecDeque<crate::Level>, Option<Vec<u8>>),
    Over,
}

impl CacheManager {
    /// The keys of this handle's namespace (of the default one's handle: of every namespace unless the query names
    /// one) that fit `query`, with what is known of them. Asks the tracking store; without one, the tiers that
    /// can be listed.
    ///
    /// Keys set or removed meanwhile may or may not be seen; one that stays is seen exactly once. With a tracking
    /// store they come in ascending order of namespace and key.
    pub fn keys(&self, mut query: Query) -> Keys {
        if !self.namespace.is_empty() {
            query.namespace = Some(self.namespace.to_string());
        }
        let source =
            if self.shared.flow.recorder.is_enabled() { Source::Tracking(None) } else { Source::Way };
        Keys {
            manager: self.clone(),
            query,
            source,
            waiting: VecDeque::new(),
            told: HashSet::new(),
            after: None,
        }
    }

    /// Removes every key that matches the glob (`*`, `?`, `[a-z]`, `\` to quote) and returns how many there were.
    ///
    /// # Errors
    /// As for [`Keys::next`] and [`CacheManager::delete`].
    pub async fn purge(&self, glob: &str) -> Result<u64> {
        self.purge_where(Query { glob: Some(glob.to_string()), ..Query::default() }).await
    }

    /// Removes every key that fits `query` and returns how many there were.
    ///
    /// # Errors
    /// As for [`Keys::next`] and [`CacheManager::delete`].
    pub async fn purge_where(&self, query: Query) -> Result<u64> {
        let mut keys = self.keys(query);
        let mut purged = 0;
        while let Some(record) = keys.next().await? {
            let within = self.namespace(record.key.namespace())?;
            purged += u64::from(within.delete(&record.key).await?.found);
        }
        Ok(purged)
    }
}

impl Keys {
    /// Goes on behind `key`, with which an earlier listing of the same query ended. Without a tracking store the
    /// key must still be there for that.
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
    /// [`Error::Closed`], [`Error::Unsupported`] when there is neither tracking nor a tier that can be listed,
    /// [`Error::TimedOut`] when the tracking store takes longer than 5 s, or what the store said; the listing may be
    /// continued after a retryable error.
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
            Source::Way => {
                let mut way = Vec::new();
                flow.pending.each(|key, item| way.push(Record::of(key.clone(), &item.entry, item.to)));
                way.retain(|record| query.matches(record) && shared.may_be_there(record));
                way.sort_by(|one, other| one.key.cmp(&other.key));
                self.told.extend(way.iter().map(|record| record.key.clone()));
                self.waiting.extend(way);
                self.source = Source::Tiers(shared.slots().map(|slot| slot.level).collect(), None);
            }
            Source::Tiers(levels, after) => {
                let Some(slot) = levels.front().and_then(|level| shared.slot(*level)) else {
                    self.source = Source::Over;
                    return Ok(());
                };
                let Some(listing) = slot.tier.listing() else {
                    return Err(Error::Unsupported {
                        backend: slot.tier.name(),
                        op: "list keys without a tracking store",
                    });
                };
                let list = listing.list(query.namespace.as_deref(), after.take(), PAGE);
                let page = slot.call("list", slot.limits().write_timeout, list).await?;
                for listed in page.entries {
                    let above = shared
                        .slots()
                        .take_while(|upper| upper.level < slot.level)
                        .filter_map(|upper| upper.resident())
                        .any(|resident| resident.peek(listed.key.as_ref()).is_some());
                    let mut record = Record::of(listed.key.clone(), &listed.entry, slot.level);
                    record.size = listed.size;
                    if !above
                        && !self.told.contains(&record.key)
                        && query.matches(&record)
                        && shared.may_be_there(&record)
                    {
                        self.waiting.push_back(record);
                    }
                }
                match page.next {
                    Some(next) => *after = Some(next),
                    None => {
                        levels.pop_front();
                    }
                }
            }
            Source::Over => {}
        }
        Ok(())
    }
}

impl super::Shared {
    /// Whether what tracking says may be true, as far as it can be told without waiting for a level.
    fn may_be_there(&self, record: &Record) -> bool {
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
