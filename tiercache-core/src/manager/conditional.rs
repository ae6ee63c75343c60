//! Writes that depend on what is there, decided under the key's stripe on what no mutation under way replaces or hides
//! (see [`write`](super::write)).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::find::Found;
use super::set::{OnlyIf, Ttl};
use super::{CacheManager, EntryInfo, Set, Shared, TypedCache};
use crate::{AsKey, Entry, Generation, Key, Level, Result};

impl CacheManager {
    /// Keeps `value` only if the key has no live entry; [`Written::stored`](super::Written::stored) tells. Of several at
    /// once one does. Options go in between, as for [`CacheManager::set`].
    ///
    /// Processes that share a level decide each by itself, on what it has and what the level has: of two that add at
    /// once both may find nothing. A [lock](CacheManager::lock) is one at a time across processes.
    ///
    /// # Errors
    /// As for [`CacheManager::set`].
    pub fn add(&self, key: impl AsKey, value: impl Into<Bytes>) -> Set<'_> {
        self.set(key, value).only_if_absent()
    }

    /// Keeps `value` only if the key has a live entry, whose place it takes: its time to live and tags are those given
    /// here.
    ///
    /// # Errors
    /// As for [`CacheManager::set`].
    pub fn replace(&self, key: impl AsKey, value: impl Into<Bytes>) -> Set<'_> {
        self.set(key, value).only_if_present()
    }

    /// Keeps `value` only if the key still has the entry of that generation, as [`EntryInfo::generation`] or
    /// [`Written::generation`](super::Written::generation) told it; for what is read, changed and written back without
    /// a lock:
    ///
    /// ```ignore
    /// while let Some(found) = cache.entry("k").await? {
    ///     if cache.compare_and_set("k", found.generation, changed(found.value)).await?.stored { break }
    /// }
    /// ```
    ///
    /// A generation means something to the process that read it, as long as that lives: another one may count to the
    /// same number. Within a process exactly one of those that know a generation gets its value in, and nothing that was set
    /// meanwhile is lost. Across processes the level they share tells, for a minute at least, that another was there:
    /// then nothing is stored, and the key may be left without a value.
    ///
    /// # Errors
    /// As for [`CacheManager::set`].
    pub fn compare_and_set(
        &self,
        key: impl AsKey,
        generation: Generation,
        value: impl Into<Bytes>,
    ) -> Set<'_> {
        self.set(key, value).only_if_generation(generation)
    }

    /// The entry of `key`, with a new time to live from now (`None`: without a deadline), as one step: nobody sees it
    /// expire in between, and what is returned is what was touched.
    ///
    /// # Errors
    /// As for [`CacheManager::touch`].
    pub async fn get_and_touch(
        &self,
        key: impl AsKey,
        ttl: impl Into<Option<Duration>>,
    ) -> Result<Option<EntryInfo>> {
        let key = self.key(&key)?.to_key();
        let ttl = Ttl::given(ttl.into())?;
        let shared = self.shared.clone();
        let touched = async move { shared.get_and_touch(&key, ttl).await };
        let Some(entry) = self.shared.owned(touched, "touch").await?? else { return Ok(None) };
        let level = self.shared.top(entry.levels).map_or(Level::Hot, |top| top.level);
        Ok(Some(EntryInfo::new(Found { entry, level, stale: false }, 0, self.shared.flow.now())))
    }
}

impl Shared {
    async fn get_and_touch(self: &Arc<Self>, key: &Key, ttl: Ttl) -> Result<Option<Entry>> {
        let mut touched: Option<Entry> = None;
        let written = self.replace(key, |found, now| {
            touched = found.map(|mut entry| {
                ttl.apply(&mut entry, now);
                entry
            });
            touched.clone()
        });
        let Some(written) = written.await? else { return Ok(None) };
        Ok(touched.map(|mut entry| {
            entry.generation = written.generation;
            entry
        }))
    }
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> TypedCache<T> {
    /// See [`CacheManager::add`].
    ///
    /// # Errors
    /// As for [`TypedCache::set`].
    pub fn add(&self, key: impl AsKey, value: impl Into<Arc<T>>) -> Result<Set<'_>> {
        Ok(self.set(key, value)?.only_if_absent())
    }

    /// See [`CacheManager::replace`].
    ///
    /// # Errors
    /// As for [`TypedCache::set`].
    pub fn replace(&self, key: impl AsKey, value: impl Into<Arc<T>>) -> Result<Set<'_>> {
        Ok(self.set(key, value)?.only_if_present())
    }

    /// See [`CacheManager::compare_and_set`]; [`TypedCache::versioned`] tells the generation.
    ///
    /// # Errors
    /// As for [`TypedCache::set`].
    pub fn compare_and_set(
        &self,
        key: impl AsKey,
        generation: Generation,
        value: impl Into<Arc<T>>,
    ) -> Result<Set<'_>> {
        Ok(self.set(key, value)?.only_if_generation(generation))
    }

    /// The value of `key` and its generation. A use like [`TypedCache::get`].
    ///
    /// # Errors
    /// As for [`TypedCache::get`].
    pub async fn versioned(&self, key: impl AsKey) -> Result<Option<(Arc<T>, Generation)>> {
        let manager = self.bytes();
        let key = manager.key(&key)?;
        let Some(found) = manager.shared.find(key).await? else { return Ok(None) };
        let generation = found.entry.generation;
        Ok(manager.shared.decoded(key, &found.entry)?.map(|value| (value, generation)))
    }

    /// See [`CacheManager::get_and_touch`].
    ///
    /// # Errors
    /// As for [`TypedCache::get`] and [`CacheManager::touch`].
    pub async fn get_and_touch(
        &self,
        key: impl AsKey,
        ttl: impl Into<Option<Duration>>,
    ) -> Result<Option<Arc<T>>> {
        let manager = self.bytes();
        let (shared, key, ttl) =
            (manager.shared.clone(), manager.key(&key)?.to_key(), Ttl::given(ttl.into())?);
        let touched = {
            let key = key.clone();
            async move { shared.get_and_touch(&key, ttl).await }
        };
        match manager.shared.owned(touched, "touch").await?? {
            Some(entry) => manager.shared.decoded(key.as_ref(), &entry),
            None => Ok(None),
        }
    }

    /// See [`CacheManager::pop`]: the value there was. Bytes that do not decode are gone, and a miss.
    ///
    /// # Errors
    /// As for [`CacheManager::pop`] and [`TypedCache::get`].
    pub async fn pop(&self, key: impl AsKey) -> Result<Option<Arc<T>>> {
        let popped = self.bytes().pop(&key).await?;
        let Some(value) = popped.value else { return Ok(None) };
        Ok(super::typed::decode::<T>(&value)?.map(Arc::new))
    }
}

impl OnlyIf {
    /// Whether the condition holds of what is there.
    pub(super) fn holds(self, found: Option<&Entry>) -> bool {
        match self {
            Self::Absent => found.is_none(),
            Self::Present => found.is_some(),
            Self::Generation(generation) => found.is_some_and(|entry| entry.generation == generation),
        }
    }
}
