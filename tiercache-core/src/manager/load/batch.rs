//! Loads of single keys, and refreshes, gathered into one call (as Facebook's DataLoader does).
//!
//! 1. What RAM has is the answer at once. When it is due, its key is put into the batch that gathers, as one that nobody
//!    waits for.
//! 2. Else the caller waits in the batch that gathers. The first in it starts the window.
//! 3. When the window is over, or the batch is full, a task of the cache's takes it: the levels outside RAM are asked
//!    once for all of its keys, and what is missing is loaded in one call, as for many keys. The next key begins
//!    another batch.
//! 4. Each caller has the answer for its key as soon as there is one.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::super::counters::Count;
use super::super::find::{Announced, AtOnce, Found, Wait};
use super::super::{CacheManager, TypedCache};
use super::many::{Batch, obtain_each};
use super::value::sealed::{self, Home};
use super::{LoadOptions, Loadable, Loaded, Of, Raw, View};
use crate::{AsKey, BoxError, Error, Key, Result};

const DEFAULT_WINDOW: Duration = Duration::from_millis(1);
const DEFAULT_MOST: usize = 1_000;

/// Loads single keys together: what is asked for within a window becomes one call of the loader.
///
/// Cheap to clone; clones gather together. It keeps its cache alive.
pub struct BatchLoader<V: View, K> {
    cache: CacheManager,
    gathering: Arc<Gathering<V, K>>,
    window: Duration,
    most: usize,
}

type Values<V, K> = HashMap<K, Loaded<Option<<V as sealed::View>::Value>>>;
type Loading<V, K> = Pin<Box<dyn Future<Output = Result<Values<V, K>, BoxError>> + Send>>;
type Load<V, K> = dyn Fn(Vec<K>) -> Loading<V, K> + Send + Sync;
type Asker<V> = oneshot::Sender<Result<Option<<V as sealed::View>::Shared>>>;

/// What the clones of one share.
struct Gathering<V: View, K> {
    options: LoadOptions,
    loader: Box<Load<V, K>>,
    waiting: Mutex<Waiting<V, K>>,
}

/// The batch that gathers.
struct Waiting<V: View, K> {
    /// In the order in which they were asked for.
    keys: Vec<Wanted<V, K>>,
    /// Where a key is.
    places: HashMap<K, usize>,
    /// Which batch it is.
    number: u64,
}

/// A key, and those who wait for it: nobody, when it is to be refreshed.
struct Wanted<V: View, K> {
    name: K,
    key: Key,
    askers: Vec<Asker<V>>,
}

impl CacheManager {
    /// Loads single keys together, for code that asks for one at a time, such as the resolvers of a query: the loads
    /// asked for within [`BatchLoader::window`] become one call of `loader`, as do refreshes. The loader is told which
    /// keys are missing and brings what there is of them, as for [`CacheManager::get_or_load_many`].
    ///
    /// ```ignore
    /// let users = cache.batch_loader(options, |ids: Vec<u64>| async move { db.find_all(ids).await });
    /// let one: Option<Bytes> = users.get(42).await?;
    /// ```
    pub fn batch_loader<K, L, F, R, E>(&self, options: LoadOptions, loader: L) -> BatchLoader<Raw, K>
    where
        K: AsKey + Clone + Eq + Hash + Send + Sync + 'static,
        L: Fn(Vec<K>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<HashMap<K, R>, E>> + Send + 'static,
        R: Loadable<Bytes>,
        E: Into<BoxError> + 'static,
    {
        BatchLoader::new(self, options, loader)
    }
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> TypedCache<T> {
    /// Loads single keys together: see [`CacheManager::batch_loader`].
    pub fn batch_loader<K, L, F, R, E>(&self, options: LoadOptions, loader: L) -> BatchLoader<Of<T>, K>
    where
        K: AsKey + Clone + Eq + Hash + Send + Sync + 'static,
        L: Fn(Vec<K>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<HashMap<K, R>, E>> + Send + 'static,
        R: Loadable<T>,
        E: Into<BoxError> + 'static,
    {
        BatchLoader::new(&self.manager, options, loader)
    }
}

impl<V, K> BatchLoader<V, K>
where
    V: View,
    K: AsKey + Clone + Eq + Hash + Send + Sync + 'static,
{
    fn new<L, F, R, E>(cache: &CacheManager, options: LoadOptions, loader: L) -> Self
    where
        L: Fn(Vec<K>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<HashMap<K, R>, E>> + Send + 'static,
        R: Loadable<V::Value>,
        E: Into<BoxError> + 'static,
    {
        let loader = move |keys| -> Loading<V, K> {
            let loading = loader(keys);
            Box::pin(async move {
                let loaded = loading.await.map_err(Into::into)?;
                Ok(loaded.into_iter().map(|(key, value)| (key, value.loaded())).collect())
            })
        };
        let waiting = Mutex::new(Waiting { keys: Vec::new(), places: HashMap::new(), number: 0 });
        let gathering = Arc::new(Gathering { options, loader: Box::new(loader), waiting });
        Self { cache: cache.clone(), gathering, window: DEFAULT_WINDOW, most: DEFAULT_MOST }
    }

    /// How long a batch gathers keys, from its first on. With zero it takes what is asked for before the runtime comes
    /// to it. Default: 1 ms.
    #[must_use]
    pub fn window(self, window: Duration) -> Self {
        Self { window, ..self }
    }

    /// The most keys of one call; with so many a batch gathers no longer. Default: 1000.
    #[must_use]
    pub fn max_batch(self, keys: NonZeroUsize) -> Self {
        Self { most: keys.get(), ..self }
    }

    /// The value of `key`; when there is none, what the loader brings. `None` for a key that it leaves out, remembered
    /// for [`LoadOptions::negative_ttl`].
    ///
    /// What RAM has is answered at once; other levels are asked when the window is over, once for all keys of the batch.
    /// Time-outs of the options count from then.
    ///
    /// # Errors
    /// As for [`CacheManager::get_or_load`](super::super::CacheManager::get_or_load), of this key alone: what befalls the
    /// others of its batch is theirs, unless the call of the loader fails as a whole.
    ///
    /// Dropping the future stops only the waiting.
    pub async fn get(&self, key: K) -> Result<Option<V::Shared>> {
        let shared = &self.cache.shared;
        let options = &self.gathering.options;
        options.check()?;
        let waiting = {
            let named = self.cache.key(&key)?;
            if let Some(look) = options.look(shared)
                && let Some(value) = V::hit(&self.cache, named, look)
            {
                return Ok(Some(value));
            }
            shared.check_open()?;
            let found = match shared.find_at_once(named) {
                AtOnce::Found(found) => Some(found),
                AtOnce::Nowhere(_) | AtOnce::Wait(Wait::Join(_)) => None,
                AtOnce::Wait(Wait::Read { answer, .. }) => {
                    // The batch reads. Whoever has joined meanwhile reads for itself.
                    drop(Announced { shared, hash: named.hash64(), answer });
                    None
                }
            };
            let named = named.to_key();
            if let Some(found) = found
                && let Some(answer) = self.unpack(&named, &found)?
            {
                if answer.is_some() {
                    shared.flow.counters.count(Count::Hit(found.level));
                } else {
                    shared.flow.counters.count(Count::Miss);
                }
                if options.is_due(&shared.loads, &found.entry, shared.flow.now()) {
                    self.gather(key, named, None);
                }
                return Ok(answer);
            }
            let (asker, waiting) = oneshot::channel();
            self.gather(key, named, Some(asker));
            waiting
        };
        // Nobody answers when the cache ends.
        waiting.await.unwrap_or(Err(Error::Closed))
    }

    /// What an entry answers; `None` when its bytes do not decode.
    fn unpack(&self, key: &Key, found: &Found) -> Result<Option<Option<V::Shared>>> {
        match found.entry.is_nothing() {
            true => Ok(Some(None)),
            false => Ok(V::unpack(Home(&self.cache.shared), key.as_ref(), &found.entry)?.map(Some)),
        }
    }

    /// Steps 2 and 3.
    fn gather(&self, name: K, key: Key, asker: Option<Asker<V>>) {
        let mut waiting = self.gathering.waiting();
        let first = waiting.keys.is_empty();
        waiting.add(name, key, asker);
        let runtime = &self.cache.shared.runtime;
        if waiting.keys.len() >= self.most {
            let batch = waiting.take();
            drop(waiting);
            runtime.spawn(run(self.cache.clone(), self.gathering.clone(), batch));
        } else if first {
            let number = waiting.number;
            drop(waiting);
            let (cache, gathering, window) = (self.cache.clone(), self.gathering.clone(), self.window);
            runtime.spawn(async move {
                if !window.is_zero() {
                    tokio::time::sleep(window).await;
                }
                let batch = {
                    let mut waiting = gathering.waiting();
                    if waiting.number != number {
                        return;
                    }
                    waiting.take()
                };
                run(cache, gathering, batch).await;
            });
        }
    }
}

impl<V: View, K> Gathering<V, K> {
    fn waiting(&self) -> MutexGuard<'_, Waiting<V, K>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<V: View, K: Clone + Eq + Hash> Waiting<V, K> {
    fn add(&mut self, name: K, key: Key, asker: Option<Asker<V>>) {
        let next = self.keys.len();
        let place = *self.places.entry(name.clone()).or_insert(next);
        if place == next {
            self.keys.push(Wanted { name, key, askers: Vec::new() });
        }
        self.keys[place].askers.extend(asker);
    }

    fn take(&mut self) -> Vec<Wanted<V, K>> {
        self.number += 1;
        self.places.clear();
        std::mem::take(&mut self.keys)
    }
}

/// Steps 3 and 4. What was begun goes on as it would without those who wait.
async fn run<V, K>(cache: CacheManager, gathering: Arc<Gathering<V, K>>, batch: Vec<Wanted<V, K>>)
where
    V: View,
    K: AsKey + Clone + Eq + Hash + Send + Sync + 'static,
{
    let (mut names, mut keys, mut askers) = (Vec::new(), Vec::new(), Vec::new());
    for wanted in batch {
        names.push(wanted.name);
        keys.push(wanted.key);
        askers.push(wanted.askers);
    }
    let refresh_only: Vec<bool> = askers.iter().map(Vec::is_empty).collect();
    let askers = Mutex::new(askers);
    let deliver = |place: usize, answer: Result<Option<V::Shared>>| {
        let waiting = std::mem::take(&mut askers.lock().unwrap_or_else(PoisonError::into_inner)[place]);
        for asker in waiting {
            // Who has gone is not told.
            let _ = asker.send(answer.clone());
        }
    };
    let batch = Batch { names: &names, keys: &keys, refresh_only: &refresh_only };
    let loader = {
        let gathering = gathering.clone();
        Arc::new(move |keys| (gathering.loader)(keys))
    };
    let asked = (0..names.len()).collect();
    let all = obtain_each::<V, _, _, _, _, _>(&cache, batch, asked, &gathering.options, loader, &deliver);
    if let Err(error) = all.await {
        (0..names.len()).for_each(|place| deliver(place, Err(error.clone())));
    }
}

impl<V: View, K> Clone for BatchLoader<V, K> {
    fn clone(&self) -> Self {
        let (cache, gathering) = (self.cache.clone(), self.gathering.clone());
        Self { cache, gathering, window: self.window, most: self.most }
    }
}

impl<V: View, K> fmt::Debug for BatchLoader<V, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = self.gathering.waiting().keys.len();
        f.debug_struct("BatchLoader")
            .field("window", &self.window)
            .field("max_batch", &self.most)
            .field("waiting", &waiting)
            .finish_non_exhaustive()
    }
}
