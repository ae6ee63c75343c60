//! Loading many keys in one call.
//!
//! Each key goes through the steps of a single load: its own generation, flight and turn, so that batches that overlap
//! load no key twice. What this caller leads is loaded in one call of its loader; what others load is joined. Each
//! record is kept on its own, and what the loader leaves out is known not to exist.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::super::counters::Count;
use super::super::find::Found;
use super::super::guard::caught;
use super::super::write::Made;
use super::super::{CacheManager, Shared, TypedCache};
use super::loads::Leave;
use super::run::{Waited, wait};
use super::turn::{Claim, Leading, Outcome, Turn};
use super::value::sealed::{self, Home};
use super::{LoadOptions, Loadable, Of, Raw};
use crate::tier::{Call, side_by_side};
use crate::{AsKey, BoxError, Error, Generation, Key, KeyRef, Result, Timestamp};

/// Claims and writes of one batch side by side.
const AT_ONCE: usize = 16;

impl CacheManager {
    /// The values of many keys, in the order of the keys; those that are missing are loaded in one call of `loader`,
    /// which is told which they are and brings what there is of them. A key it leaves out has no value: `None`,
    /// remembered for [`LoadOptions::negative_ttl`]. Keys that others load at the moment are waited for, not
    /// loaded again. Values due for a refresh, or stale within their window, are refreshed in the background, all of
    /// this call in one. The loader may be called more than once, of other keys, when an invalidation came between.
    ///
    /// # Errors
    /// As for [`CacheManager::get_or_load`], when a key without a stale value has no answer but an error; one invalid key
    /// fails the call before anything is read.
    ///
    /// Dropping the future stops only the waiting: a load that began goes on.
    pub async fn get_or_load_many<K, L, F, R, E>(
        &self,
        keys: &[K],
        options: &LoadOptions,
        loader: L,
    ) -> Result<Vec<Option<Bytes>>>
    where
        K: AsKey + Clone + Eq + Hash + Send + Sync + 'static,
        L: Fn(Vec<K>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<HashMap<K, R>, E>> + Send + 'static,
        R: Loadable<Bytes>,
        E: Into<BoxError> + 'static,
    {
        obtain_many::<Raw, K, L, F, R, E>(self, keys, options, Arc::new(loader)).await
    }
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> TypedCache<T> {
    /// The values of many keys, in the order of the keys; those that are missing are loaded in one call: see
    /// [`CacheManager::get_or_load_many`].
    ///
    /// # Errors
    /// As for [`CacheManager::get_or_load_many`].
    pub async fn get_or_load_many<K, L, F, R, E>(
        &self,
        keys: &[K],
        options: &LoadOptions,
        loader: L,
    ) -> Result<Vec<Option<Arc<T>>>>
    where
        K: AsKey + Clone + Eq + Hash + Send + Sync + 'static,
        L: Fn(Vec<K>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<HashMap<K, R>, E>> + Send + 'static,
        R: Loadable<T>,
        E: Into<BoxError> + 'static,
    {
        obtain_many::<Of<T>, K, L, F, R, E>(&self.manager, keys, options, Arc::new(loader)).await
    }
}

/// A key that has no answer yet, and what is stale of it.
struct Wanted<S> {
    place: usize,
    stale: Option<(Generation, Option<S>)>,
}

async fn obtain_many<V, K, L, F, R, E>(
    cache: &CacheManager,
    names: &[K],
    options: &LoadOptions,
    loader: Arc<L>,
) -> Result<Vec<Option<V::Shared>>>
where
    V: super::View,
    K: AsKey + Clone + Eq + Hash + Send + Sync + 'static,
    L: Fn(Vec<K>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<HashMap<K, R>, E>> + Send + 'static,
    R: Loadable<V::Value>,
    E: Into<BoxError> + 'static,
{
    let keys = names.iter().map(|name| Ok(cache.key(name)?.to_key())).collect::<Result<Vec<Key>>>()?;
    // Of a key that is named twice the first place is the one that is worked on.
    let mut first: HashMap<&Key, usize> = HashMap::with_capacity(keys.len());
    let of: Vec<usize> = keys.iter().enumerate().map(|(at, key)| *first.entry(key).or_insert(at)).collect();
    let asked: Vec<usize> = (0..keys.len()).filter(|&at| of[at] == at).collect();
    let mut answers: Vec<Option<Option<V::Shared>>> = vec![None; keys.len()];
    let (told, mut telling) = mpsc::unbounded_channel();
    let deliver = move |place, answer| {
        // It is heard as long as this is run.
        let _ = told.send((place, answer));
    };
    let batch = Batch { names, keys: &keys, refresh_only: &[] };
    let mut work = pin!(obtain_each::<V, K, L, F, R, E>(cache, batch, asked, options, loader, &deliver));
    loop {
        tokio::select! {
            biased;
            // The first error is the answer to all.
            Some((place, answer)) = telling.recv() => answers[place] = Some(answer?),
            ended = &mut work => {
                ended?;
                break;
            }
        }
    }
    while let Ok((place, answer)) = telling.try_recv() {
        answers[place] = Some(answer?);
    }
    Ok(of.into_iter().map(|at| answers[at].clone().flatten()).collect())
}

/// Keys that are asked for together.
#[derive(Clone, Copy)]
pub(super) struct Batch<'a, K> {
    pub(super) names: &'a [K],
    pub(super) keys: &'a [Key],
    /// Those that nobody waits for: what is there of them is refreshed. Those beyond the end are waited for.
    pub(super) refresh_only: &'a [bool],
}

/// What is told of each key once.
type Deliver<'a, S> = &'a (dyn Fn(usize, Result<Option<S>>) + Send + Sync);

/// Answers the keys at the places `asked`, each as soon as it can be.
pub(super) async fn obtain_each<V, K, L, F, R, E>(
    cache: &CacheManager,
    batch: Batch<'_, K>,
    mut asked: Vec<usize>,
    options: &LoadOptions,
    loader: Arc<L>,
    deliver: Deliver<'_, V::Shared>,
) -> Result<()>
where
    V: super::View,
    K: AsKey + Clone + Eq + Hash + Send + Sync + 'static,
    L: Fn(Vec<K>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<HashMap<K, R>, E>> + Send + 'static,
    R: Loadable<V::Value>,
    E: Into<BoxError> + 'static,
{
    options.check()?;
    let (begun, since) = (Instant::now(), cache.shared.flow.now());
    let shared = &cache.shared;
    let Batch { names, keys, refresh_only } = batch;
    while !asked.is_empty() {
        let changes: Vec<u64> =
            asked.iter().map(|&at| shared.stripes.lock(keys[at].hash64()).changes()).collect();
        let refs: Vec<KeyRef<'_>> = asked.iter().map(|&at| keys[at].as_ref()).collect();
        let found = shared.search_many(&refs).await?;
        let (mut leads, mut refreshes, mut waits, mut again) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for ((place, changes), found) in asked.drain(..).zip(changes).zip(found) {
            let key = &keys[place];
            let now = shared.flow.now();
            let generation = found.as_ref().map(|found| found.entry.generation);
            let unwaited = refresh_only.get(place).copied().unwrap_or(false);
            let value = match &found {
                Some(found) => value::<V>(cache, key, found),
                None => Ok(None),
            };
            let value = match value {
                Ok(value) => value,
                Err(error) => {
                    deliver(place, Err(error));
                    continue;
                }
            };
            let mut stale = None;
            match (found, value) {
                (Some(found), Some(value)) if !found.stale => {
                    if unwaited || options.is_due(&shared.loads, &found.entry, now) {
                        refreshes.push((place, changes, generation));
                    }
                    deliver(place, Ok(value));
                    continue;
                }
                (Some(_), Some(value)) if !options.stale.is_zero() => {
                    stale = generation.map(|generation| (generation, value));
                }
                _ => {}
            }
            if unwaited {
                // It is gone by now, and nobody asks for it.
                deliver(place, Ok(None));
                continue;
            }
            if let Some((generation, value)) = &stale
                && options.soft == Some(Duration::ZERO)
            {
                shared.flow.counters.count(Count::ServedStale);
                deliver(place, Ok(value.clone()));
                refreshes.push((place, changes, Some(*generation)));
                continue;
            }
            let wanted = Wanted { place, stale };
            match shared.take_turn(key, changes, wanted.stale.is_some(), options.take_over) {
                Turn::Again => again.push(place),
                Turn::Failing(error) => match wanted.stale {
                    Some((_, value)) => {
                        shared.flow.counters.count(Count::ServedStale);
                        deliver(place, Ok(value));
                    }
                    None => deliver(place, Err(error)),
                },
                Turn::Join(outcome) => {
                    shared.flow.counters.count(Count::LoadJoined);
                    waits.push((wanted, outcome, false));
                }
                Turn::Lead(leading) => {
                    waits.push((
                        Wanted { place, stale: wanted.stale.clone() },
                        leading.outcome.subscribe(),
                        true,
                    ));
                    leads.push((
                        leading,
                        names[place].clone(),
                        wanted.stale.map(|(generation, _)| generation),
                    ));
                }
            }
        }
        if !leads.is_empty() {
            let work =
                lead_many::<V, K, L, F, R, E>(shared.clone(), leads, loader.clone(), options.clone(), None);
            shared.runtime.spawn(work);
        }
        refresh_many::<V, K, L, F, R, E>(shared, keys, names, refreshes, &loader, options);
        let waits: FuturesUnordered<_> = waits
            .into_iter()
            .map(async |(wanted, mut outcome, leads)| {
                let key = &keys[wanted.place];
                let waited =
                    await_one::<V>(cache, key, &wanted, &mut outcome, (begun, since), options, leads);
                match waited.await {
                    Ok(None) => return Some(wanted.place),
                    Ok(Some(answer)) => deliver(wanted.place, Ok(answer)),
                    Err(error) => deliver(wanted.place, Err(error)),
                }
                None
            })
            .collect();
        again.extend(waits.filter_map(std::future::ready).collect::<Vec<_>>().await);
        asked = again;
    }
    Ok(())
}

/// The answer of an entry; `None` when its bytes do not decode.
fn value<V: sealed::View>(
    cache: &CacheManager,
    key: &Key,
    found: &Found,
) -> Result<Option<Option<V::Shared>>> {
    match found.entry.is_nothing() {
        true => Ok(Some(None)),
        false => Ok(V::unpack(Home(&cache.shared), key.as_ref(), &found.entry)?.map(Some)),
    }
}

/// Waits for the load of one key; `None` when it came to nothing.
async fn await_one<V: sealed::View>(
    cache: &CacheManager,
    key: &Key,
    wanted: &Wanted<V::Shared>,
    outcome: &mut watch::Receiver<Option<Outcome>>,
    (begun, since): (Instant, Timestamp),
    options: &LoadOptions,
    leads: bool,
) -> Result<Option<Option<V::Shared>>> {
    let shared = &cache.shared;
    let entry = match (wait(outcome, begun, options, wanted.stale.is_some()).await, &wanted.stale) {
        (Waited::Ended(Ok(entry)), _) => entry,
        (Waited::Ended(Err(_)) | Waited::Late(_), Some((_, value))) => {
            shared.flow.counters.count(Count::ServedStale);
            return Ok(Some(value.clone()));
        }
        (Waited::Ended(Err(_)), None) if !leads && options.take_over => return Ok(None),
        (Waited::Ended(Err(error)) | Waited::Late(error), None) => return Err(error),
        (Waited::Lost, _) if leads => return Err(Error::Closed),
        (Waited::Lost, _) => return Ok(None),
    };
    if !leads && !shared.may_join(key, &entry, since) {
        return Ok(None);
    }
    match entry.is_nothing() {
        true => Ok(Some(None)),
        false => Ok(V::unpack(Home(&cache.shared), key.as_ref(), &entry)?.map(Some)),
    }
}

/// Refreshes in the background, in one call, what nobody refreshes already.
fn refresh_many<V, K, L, F, R, E>(
    shared: &Arc<Shared>,
    keys: &[Key],
    names: &[K],
    due: Vec<(usize, u64, Option<Generation>)>,
    loader: &Arc<L>,
    options: &LoadOptions,
) where
    V: super::View,
    K: AsKey + Clone + Eq + Hash + Send + Sync + 'static,
    L: Fn(Vec<K>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<HashMap<K, R>, E>> + Send + 'static,
    R: Loadable<V::Value>,
    E: Into<BoxError> + 'static,
{
    if due.is_empty() {
        return;
    }
    let Some(permit) = shared.loads.refresh() else {
        shared.flow.counters.add(Count::RefreshSkipped, due.len() as u64);
        return;
    };
    let leads: Vec<_> = due
        .into_iter()
        .filter_map(|(place, changes, seen)| match shared.take_turn(&keys[place], changes, true, false) {
            Turn::Lead(leading) => Some((leading, names[place].clone(), seen)),
            _ => None,
        })
        .collect();
    if !leads.is_empty() {
        let work = lead_many::<V, K, L, F, R, E>(
            shared.clone(),
            leads,
            loader.clone(),
            options.clone(),
            Some(permit),
        );
        shared.runtime.spawn(work);
    }
}

/// Loads what the caller leads, in one call.
async fn lead_many<V, K, L, F, R, E>(
    shared: Arc<Shared>,
    leads: Vec<(Leading, K, Option<Generation>)>,
    loader: Arc<L>,
    options: LoadOptions,
    refreshing: Option<Leave>,
) where
    V: super::View,
    K: AsKey + Clone + Eq + Hash + Send + Sync + 'static,
    L: Fn(Vec<K>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<HashMap<K, R>, E>> + Send + 'static,
    R: Loadable<V::Value>,
    E: Into<BoxError> + 'static,
{
    let count = if refreshing.is_some() { Count::Refreshed } else { Count::Loaded };
    shared.flow.counters.add(count, leads.len() as u64);
    let mut stopped = shared.loads.stopped();
    let work = async {
        let permit = shared.loads.permit().await;
        let claims = leads.into_iter().map(|(mut leading, name, seen)| -> Call<'_, _> {
            let shared = shared.clone();
            Box::pin(async move {
                let claim = shared.claim(&mut leading, seen).await;
                (leading, name, claim)
            })
        });
        let mut claimed: Vec<(Leading, K, Made)> = Vec::new();
        for (leading, name, claim) in side_by_side(AT_ONCE, claims.collect()).await {
            match claim {
                Claim::Made(made) => claimed.push((leading, name, made)),
                Claim::Found(entry) => shared.end_load(leading, Ok(entry), &options),
            }
        }
        let started = Instant::now();
        let wanted: Vec<K> = claimed.iter().map(|(_, name, _)| name.clone()).collect();
        let loaded = match (permit, wanted.is_empty()) {
            (_, true) => Ok(HashMap::new()),
            (Err(error), _) => Err(error),
            (Ok(_), _) => {
                let loading = caught("a loader", async {
                    loader(wanted).await.map_err(|error| Error::Load { source: Arc::from(error.into()) })
                });
                shared.loads.within(options.limit, loading).await
            }
        };
        let cost = shared.loads.took(started);
        let mut loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                claimed
                    .into_iter()
                    .for_each(|(leading, ..)| shared.end_load(leading, Err(error.clone()), &options));
                return;
            }
        };
        let keeps = claimed.into_iter().map(|(leading, name, made)| -> Call<'_, ()> {
            let brought = loaded.remove(&name).map(Loadable::loaded);
            let (shared, options) = (&shared, &options);
            Box::pin(async move {
                let brought = brought.unwrap_or_else(|| super::Loaded::new(None));
                let entry = options.entry::<V>(brought, leading.generation, cost, shared);
                let outcome = match entry {
                    Ok((entry, keep)) => {
                        if keep {
                            shared.keep(&leading, entry.clone(), made).await;
                        }
                        Ok(entry)
                    }
                    Err(error) => Err(error),
                };
                shared.end_load(leading, outcome, options);
            })
        });
        side_by_side(AT_ONCE, keeps.collect()).await;
    };
    tokio::select! {
        () = work => {}
        // Those who wait find that whoever loaded is gone, and then that the cache is closed.
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
    drop(refreshing);
}
