//! Loading many keys ahead of their use.

use std::collections::VecDeque;
use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::run::obtain;
use super::value::{Of, Raw, View};
use super::{LoadContext, LoadOptions, Loadable, Served, Told};
use crate::manager::{CacheManager, TypedCache};
use crate::{AsKey, BoxError, Error, Key, Result};

/// Keys that are under way at a time, unless the caller says otherwise.
const AT_ONCE: usize = 16;
/// Failures that are told in full.
const TOLD: usize = 20;

/// What came of a warm-up, or has so far.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Warmed {
    /// Keys whose value was loaded.
    pub loaded: u64,
    /// Keys that had a value already. It is at the top level now.
    pub present: u64,
    /// Keys that have no value, as their loader, or what was remembered of it, says.
    pub nothing: u64,
    /// Keys whose load failed, or that are none.
    pub failed: u64,
    /// The first of those that failed, as text, and why.
    pub failures: Vec<(String, Error)>,
}

impl Warmed {
    /// Keys that are done.
    pub fn done(&self) -> u64 {
        self.loaded + self.present + self.nothing + self.failed
    }

    fn count(&mut self, name: impl FnOnce() -> String, outcome: Result<Came>) {
        match outcome {
            Ok(Came::Loaded) => self.loaded += 1,
            Ok(Came::Present) => self.present += 1,
            Ok(Came::Nothing) => self.nothing += 1,
            Err(error) => {
                self.failed += 1;
                if self.failures.len() < TOLD {
                    self.failures.push((name(), error));
                }
            }
        }
    }
}

/// What one key came to.
enum Came {
    Loaded,
    Present,
    Nothing,
}

/// Is told how far a warm-up has come.
type Progress<'a> = Box<dyn FnMut(&Warmed) + Send + 'a>;

/// A warm-up: options, then `.await`.
#[must_use = "nothing is loaded until it is awaited"]
pub struct Warm<'a, V, I, L> {
    manager: &'a CacheManager,
    keys: I,
    loader: L,
    options: LoadOptions,
    rate: Option<f64>,
    at_once: usize,
    progress: Option<Progress<'a>>,
    view: PhantomData<V>,
}

impl CacheManager {
    /// Loads what is missing of `keys`, so that those who come later find it in the top level: as many
    /// [`CacheManager::get_or_load`], some at a time. What is found at a lower level comes up.
    ///
    /// ```ignore
    /// let warmed = cache.warm(ids, |key| async move { fetch(&key).await }).rate(200.0).await?;
    /// ```
    ///
    /// A key whose load fails is counted and the others go on.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::InvalidOption`]; what was loaded by then is kept. Dropping the future begins no
    /// further load; those that began go on.
    pub fn warm<I, L, F, R, E>(&self, keys: I, loader: L) -> Warm<'_, Raw, I, L>
    where
        I: IntoIterator<Item: AsKey>,
        L: Fn(Key) -> F + Send + Sync + 'static,
        F: Future<Output = Result<R, E>> + Send + 'static,
        R: Loadable<Bytes>,
        E: Into<BoxError> + 'static,
    {
        Warm::new(self, keys, loader)
    }
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> TypedCache<T> {
    /// Loads what is missing of `keys`: see [`CacheManager::warm`]. Hits that follow decode nothing.
    ///
    /// # Errors
    /// As for [`CacheManager::warm`].
    pub fn warm<I, L, F, R, E>(&self, keys: I, loader: L) -> Warm<'_, Of<T>, I, L>
    where
        I: IntoIterator<Item: AsKey>,
        L: Fn(Key) -> F + Send + Sync + 'static,
        F: Future<Output = Result<R, E>> + Send + 'static,
        R: Loadable<T>,
        E: Into<BoxError> + 'static,
    {
        Warm::new(&self.manager, keys, loader)
    }
}

impl<'a, V, I, L> Warm<'a, V, I, L> {
    fn new(manager: &'a CacheManager, keys: I, loader: L) -> Self {
        Self {
            manager,
            keys,
            loader,
            options: LoadOptions::default(),
            rate: None,
            at_once: AT_ONCE,
            progress: None,
            view: PhantomData,
        }
    }

    /// How each load goes. Its soft time-out and eager refreshes have no meaning here.
    pub fn options(self, options: &LoadOptions) -> Self {
        Self { options: options.clone(), ..self }
    }

    /// The most keys that are begun in a second, evenly spread. Default: no limit.
    pub fn rate(self, keys_per_second: f64) -> Self {
        Self { rate: Some(keys_per_second), ..self }
    }

    /// The most keys that are under way at a time. Default: 16.
    pub fn concurrency(self, keys: NonZeroUsize) -> Self {
        Self { at_once: keys.get(), ..self }
    }

    /// Called after each key, in the task that awaits the warm-up.
    pub fn progress(self, progress: impl FnMut(&Warmed) + Send + 'a) -> Self {
        Self { progress: Some(Box::new(progress)), ..self }
    }
}

impl<'a, V, I, L, F, R, E> IntoFuture for Warm<'a, V, I, L>
where
    V: View,
    I: IntoIterator<Item: AsKey>,
    L: Fn(Key) -> F + Send + Sync + 'static,
    F: Future<Output = Result<R, E>> + Send + 'static,
    R: Loadable<V::Value>,
    E: Into<BoxError> + 'static,
{
    type Output = Result<Warmed>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Warmed>> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { manager, keys, loader, options, rate, at_once, progress, view: _ } = self;
        // Taken now: the keys need not outlive this call, nor be fit to be sent to another thread.
        let keys: VecDeque<_> = keys
            .into_iter()
            .map(|key| match manager.key(&key) {
                Ok(key) => Ok(key.to_key()),
                Err(error) => Err((String::from_utf8_lossy(key.key_bytes()).into_owned(), error)),
            })
            .collect();
        Box::pin(run::<V, L, F, R, E>(manager, keys, Arc::new(loader), options, rate, at_once, progress))
    }
}

async fn run<V, L, F, R, E>(
    manager: &CacheManager,
    mut keys: VecDeque<Result<Key, (String, Error)>>,
    loader: Arc<L>,
    options: LoadOptions,
    rate: Option<f64>,
    at_once: usize,
    mut progress: Option<Progress<'_>>,
) -> Result<Warmed>
where
    V: View,
    L: Fn(Key) -> F + Send + Sync + 'static,
    F: Future<Output = Result<R, E>> + Send + 'static,
    R: Loadable<V::Value>,
    E: Into<BoxError> + 'static,
{
    options.check()?;
    let apart = match rate {
        None => Duration::ZERO,
        Some(rate) => Duration::try_from_secs_f64(1.0 / rate).map_err(|_| Error::InvalidOption {
            option: "rate",
            reason: "keys per second are a number above 0".into(),
        })?,
    };
    let options = LoadOptions { soft: None, eager: super::Eager::Off, ..options };
    let mut warmed = Warmed::default();
    let mut running = JoinSet::new();
    // Dropped with the future, the set ends its tasks: they only wait for loads, which the manager owns.
    let mut next = Instant::now();
    loop {
        manager.shared.check_open()?;
        let begin = !keys.is_empty() && running.len() < at_once;
        if !begin && running.is_empty() {
            return Ok(warmed);
        }
        tokio::select! {
            biased;
            Some(ended) = running.join_next() => {
                let (key, outcome): (Key, Result<Came>) = match ended {
                    Ok(ended) => ended,
                    // The runtime ends, and the cache with it.
                    Err(_) => return Err(Error::Closed),
                };
                warmed.count(|| key.display().to_string(), outcome);
            }
            () = tokio::time::sleep_until(next), if begin => {
                next = Instant::now().max(next) + apart;
                match keys.pop_front() {
                    Some(Ok(key)) => {
                        let (cache, loader, options) = (manager.clone(), loader.clone(), options.clone());
                        let work = async move {
                            let outcome = one::<V, L, F, R, E>(&cache, key.clone(), loader, options).await;
                            (key, outcome)
                        };
                        running.spawn_on(work, &manager.shared.runtime);
                        continue;
                    }
                    Some(Err((name, error))) => warmed.count(|| name, Err(error)),
                    None => continue,
                }
            }
        }
        if let Some(progress) = &mut progress {
            progress(&warmed);
        }
    }
}

async fn one<V, L, F, R, E>(
    manager: &CacheManager,
    key: Key,
    loader: Arc<L>,
    options: LoadOptions,
) -> Result<Came>
where
    V: View,
    L: Fn(Key) -> F + Send + Sync + 'static,
    F: Future<Output = Result<R, E>> + Send + 'static,
    R: Loadable<V::Value>,
    E: Into<BoxError> + 'static,
{
    // Whatever the loader brings, "there is none" is an answer here.
    let load =
        |context: LoadContext<V::Shared>| async move { loader(context.key).await.map(Loadable::loaded) };
    let served: Served<Option<V::Shared>> = obtain::<V, _>(manager, key, Told(load), options).await?;
    if served.is_stale() {
        return Err(Error::Load {
            source: Arc::from(BoxError::from("what is there is stale, and its load failed")),
        });
    }
    Ok(match (served.value, served.level) {
        (None, _) => Came::Nothing,
        (Some(_), Some(_)) => Came::Present,
        (Some(_), None) => Came::Loaded,
    })
}
