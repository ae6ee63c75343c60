//! The calls that read: how they find what they answer with is [`super::find`].

use std::time::Duration;

use bytes::Bytes;

use super::find::Found;
use super::{CacheManager, Shared};
use crate::{AsKey, Generation, KeyRef, Level, Result, Tags, Timestamp};

/// An entry with everything known about it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EntryInfo {
    /// The value.
    pub value: Bytes,
    /// The level that answered.
    pub level: Level,
    /// Which mutation made it; higher is newer.
    pub generation: Generation,
    /// How long ago it was set.
    pub age: Duration,
    /// How long it has to live; `None` when it has no deadline.
    pub time_left: Option<Duration>,
    /// Its tags.
    pub tags: Tags,
    /// Its media type, if one was given.
    pub content_type: Option<String>,
    /// The caller's own fields.
    pub user: std::collections::BTreeMap<String, String>,
    /// Hits since it was set, this one included, as far as tracking remembers them.
    pub hits: u64,
    /// Whether it is past its time to live, or its tag expired, and only kept for reads that accept that.
    pub stale: bool,
}

impl CacheManager {
    /// The value of `key`, or `None`.
    ///
    /// It is that of the latest completed `set` (or of one that overlaps this call), never an older one. A level
    /// that is down, slow, full or damaged is as if it held nothing.
    ///
    /// # Errors
    /// [`Error::InvalidKey`](crate::Error::InvalidKey) for an empty or overlong key,
    /// [`Error::Closed`](crate::Error::Closed) after `close`.
    pub async fn get(&self, key: impl AsKey) -> Result<Option<Bytes>> {
        let hash = {
            let key = self.key(&key)?;
            if let Some(value) = self.shared.hit(key) {
                return Ok(Some(value));
            }
            key.hash64()
        };
        Ok(self.shared.find(self.hashed(hash, &key)).await?.map(|found| found.entry.value))
    }

    /// The entry of `key` with its level, age, time left and tags. A use like `get`, and as fast: tracking is not
    /// asked, so [`EntryInfo::hits`] counts only what RAM has and no sweep has collected.
    ///
    /// # Errors
    /// As for [`CacheManager::get`].
    pub async fn read(&self, key: impl AsKey) -> Result<Option<EntryInfo>> {
        let key = self.key(&key)?;
        let Some(found) = self.shared.find(key).await? else { return Ok(None) };
        let hits = self.shared.uncollected(key, found.entry.generation);
        Ok(Some(EntryInfo::new(found, hits, self.shared.flow.now())))
    }

    /// The entry of `key` with its level, age, time left, tags and hits. A use like `get`; asks tracking for the
    /// hits, and waits for it a second at most.
    ///
    /// # Errors
    /// As for [`CacheManager::get`].
    pub async fn entry(&self, key: impl AsKey) -> Result<Option<EntryInfo>> {
        let key = self.key(&key)?;
        let shared = &self.shared;
        let Some(found) = shared.find(key).await? else { return Ok(None) };
        let generation = found.entry.generation;
        let recorder = &shared.flow.recorder;
        let mut hits = shared.uncollected(key, generation);
        if recorder.is_enabled() {
            let owned = key.to_key();
            loop {
                let before = shared.uncollected(key, generation);
                // Tracking may lag and may fail; then the hits it has not been told of yet are all there is.
                recorder.catch_up(shared.flow.now(), &shared.flow.counters).await;
                let record = recorder.ask("lookup", recorder.tracking().lookup(&owned)).await;
                let told = match &record {
                    Ok(Some(record)) if record.generation == generation => record.hits,
                    _ => 0,
                };
                let waiting = shared.uncollected(key, generation);
                hits = hits.max(told + waiting);
                // Fewer than before: a sweep has collected them meanwhile, and tracking is about to be told.
                if waiting >= before || record.is_err() {
                    break;
                }
            }
        }
        Ok(Some(EntryInfo::new(found, hits, shared.flow.now())))
    }

    /// The entry of `key` as [`CacheManager::read`] answers it, or one that is stale, marked so: past its time to live
    /// and within the window it was stored with, or under a tag that expired. Never one that was replaced or removed.
    ///
    /// # Errors
    /// As for [`CacheManager::get`].
    pub async fn read_stale(&self, key: impl AsKey) -> Result<Option<EntryInfo>> {
        let key = self.key(&key)?;
        let found = self.shared.search(key).await?.filter(|found| !found.entry.is_nothing());
        let Some(found) = found else { return Ok(None) };
        let hits = self.shared.uncollected(key, found.entry.generation);
        Ok(Some(EntryInfo::new(found, hits, self.shared.flow.now())))
    }

    /// Whether `get` would find the key. Not a use: nothing is counted, promoted or renewed.
    ///
    /// # Errors
    /// As for [`CacheManager::get`].
    pub async fn contains(&self, key: impl AsKey) -> Result<bool> {
        let key = self.key(&key)?;
        self.shared.check_open()?;
        Ok(self.shared.look(key).await.is_some())
    }
}

impl EntryInfo {
    pub(super) fn new(found: Found, hits: u64, now: Timestamp) -> Self {
        let Found { entry, level, stale } = found;
        let extras = entry.extras.as_deref();
        Self {
            level,
            generation: entry.generation,
            age: now.since(entry.created),
            time_left: (!entry.deadline.is_never()).then(|| entry.fresh_until().since(now)),
            tags: extras.map(|extras| extras.tags.clone()).unwrap_or_default(),
            content_type: extras.and_then(|extras| extras.content_type.clone()),
            user: extras.map(|extras| extras.user.clone()).unwrap_or_default(),
            hits,
            stale,
            value: entry.value,
        }
    }
}

impl Shared {
    /// Uses of an entry that RAM has counted and no sweep has collected yet.
    fn uncollected(&self, key: KeyRef<'_>, generation: Generation) -> u64 {
        let resting = self.slots().filter_map(|slot| slot.resident()?.peek(key));
        let same = resting.filter(|resting| resting.entry.generation == generation);
        same.map(|resting| u64::from(resting.uses)).sum()
    }
}
