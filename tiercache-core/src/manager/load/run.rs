//! How a load runs, and how callers wait for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::super::counters::Count;
use super::super::find::Found;
use super::super::guard::caught;
use super::super::{CacheManager, Shared};
use super::lease::Contention;
use super::loads::Leave;
use super::turn::{Claim, Leading, Outcome, Turn};
use super::value::sealed::Home;
use super::{Answer, LoadContext, LoadOptions, Loadable, Loader, Reason, Served, View};
use crate::{Entry, Error, Generation, Key, KeyRef, Result, Timestamp};

/// Steps 2 to 6, for one caller.
pub(super) async fn obtain<V, L>(
    cache: &CacheManager,
    key: Key,
    loader: L,
    options: LoadOptions,
) -> Result<Served<Answer<V, L>>>
where
    V: View,
    L: Loader<V::Shared, Value: Loadable<V::Value>>,
{
    options.check()?;
    let shared = &cache.shared;
    let (begun, since) = (Instant::now(), shared.flow.now());
    let mut loader = Some(loader);
    loop {
        let changes = shared.stripes.lock(key.hash64()).changes();
        let present = shared.search(key.as_ref()).await?;
        let passed = present.as_ref().map(|found| found.entry.generation);
        let present = match present {
            Some(found) => Present::<V, L::Value>::of(cache, &key, found)?,
            None => None,
        };
        let now = shared.flow.now();
        let stale = match present {
            Some(present) if !present.found.stale => {
                if options.is_due(&shared.loads, &present.found.entry, now)
                    && let Some(loader) = loader.take()
                {
                    refresh::<V, L>(shared, &key, loader, options, &present, changes);
                }
                return Ok(present.served(now));
            }
            stale => stale.filter(|_| !options.stale.is_zero()),
        };
        let turn = shared.take_turn(&key, changes, stale.is_some(), options.take_over);
        let (mut outcome, leads) = match (turn, stale.as_ref()) {
            (Turn::Again, _) => continue,
            (Turn::Failing(_), Some(stale)) => return Ok(shared.serve_stale(stale, now)),
            (Turn::Failing(error), None) => return Err(error),
            (Turn::Join(outcome), _) => {
                shared.flow.counters.count(Count::LoadJoined);
                (outcome, false)
            }
            (Turn::Lead(leading), stale) => {
                // A caller leads once: it has the answer of its own load whatever that is.
                let Some(loader) = loader.take() else { return Err(Error::Closed) };
                let outcome = leading.outcome.subscribe();
                let mut permit = None;
                if let Some(stale) = stale
                    && options.soft == Some(Duration::ZERO)
                {
                    permit = shared.loads.refresh();
                    if permit.is_none() {
                        shared.flow.counters.count(Count::RefreshSkipped);
                        return Ok(shared.serve_stale(stale, now));
                    }
                }
                let context = LoadContext {
                    key: key.clone(),
                    reason: if stale.is_some() { Reason::Stale } else { Reason::Missing },
                    present: stale.and_then(|stale| stale.context(now)),
                };
                let seen = Before { made_of: stale.and(passed), passed };
                let work = lead::<V, L>(leading, loader, context, options.clone(), seen, permit);
                shared.runtime.spawn(work);
                (outcome, true)
            }
        };
        let waited = wait(&mut outcome, begun, &options, stale.is_some()).await;
        let entry = match (waited, stale.as_ref()) {
            (Waited::Ended(Ok(entry)), _) => entry,
            (Waited::Ended(Err(_)) | Waited::Late(_), Some(stale)) => {
                return Ok(shared.serve_stale(stale, now));
            }
            (Waited::Ended(Err(_)), None) if !leads && options.take_over && loader.is_some() => continue,
            (Waited::Ended(Err(error)) | Waited::Late(error), None) => return Err(error),
            // A refresh that was left to another process, or the cache ends.
            (Waited::Lost, Some(stale)) if leads => return Ok(shared.serve_stale(stale, now)),
            (Waited::Lost, None) if leads => return Err(Error::Closed),
            (Waited::Lost, _) => continue,
        };
        if !leads && !shared.may_join(&key, &entry, since) {
            continue;
        }
        let value = match entry.is_nothing() {
            true => None,
            false => V::unpack(Home(&cache.shared), key.as_ref(), &entry)?,
        };
        match L::Value::answer(value) {
            Some(value) => {
                let age = shared.flow.now().since(entry.created);
                return Ok(Served { value, level: None, age, stale: false });
            }
            // Another's loader said that there is nothing, and this one's never does.
            None if loader.is_some() => continue,
            None => return Err(Error::Codec { what: "decodable", reason: "as it was loaded".into() }),
        }
    }
}

/// What is there.
struct Present<V: View, R: Loadable<V::Value>> {
    found: Found,
    value: Option<V::Shared>,
    answer: R::Answer<V::Shared>,
}

impl<V: View, R: Loadable<V::Value>> Present<V, R> {
    /// If it answers a caller whose loader brings an `R`.
    fn of(cache: &CacheManager, key: &Key, found: Found) -> Result<Option<Self>> {
        let value = if found.entry.is_nothing() {
            None
        } else {
            match V::unpack(Home(&cache.shared), key.as_ref(), &found.entry)? {
                Some(value) => Some(value),
                None => return Ok(None),
            }
        };
        Ok(R::answer(value.clone()).map(|answer| Self { found, value, answer }))
    }

    fn served(&self, now: Timestamp) -> Served<R::Answer<V::Shared>> {
        Served {
            value: self.answer.clone(),
            level: Some(self.found.level),
            age: now.since(self.found.entry.created),
            stale: self.found.stale,
        }
    }

    fn context(&self, now: Timestamp) -> Option<(V::Shared, Duration)> {
        Some((self.value.clone()?, now.since(self.found.entry.created)))
    }
}

pub(super) enum Waited {
    Ended(Outcome),
    /// The caller's patience ended first.
    Late(Error),
    /// Whoever ran it is gone.
    Lost,
}

pub(super) async fn wait(
    outcome: &mut watch::Receiver<Option<Outcome>>,
    begun: Instant,
    options: &LoadOptions,
    has_stale: bool,
) -> Waited {
    let soft = options.soft.filter(|_| has_stale);
    let patience = soft.into_iter().chain(options.hard).min();
    let ended = outcome.wait_for(Option::is_some);
    let ended = match patience {
        None => ended.await,
        Some(patience) => match tokio::time::timeout_at(begun + patience, ended).await {
            Ok(ended) => ended,
            Err(_) => {
                return Waited::Late(Error::TimedOut { backend: "the loader", op: "load", after: patience });
            }
        },
    };
    match ended.as_deref() {
        Ok(Some(outcome)) => Waited::Ended(outcome.clone()),
        Ok(None) | Err(_) => Waited::Lost,
    }
}

/// Begins a refresh ahead of time, unless one is under way, failed of late, or there are too many.
fn refresh<V, L>(
    shared: &Arc<Shared>,
    key: &Key,
    loader: L,
    options: LoadOptions,
    present: &Present<V, L::Value>,
    changes: u64,
) where
    V: View,
    L: Loader<V::Shared, Value: Loadable<V::Value>>,
{
    let Turn::Lead(leading) = shared.take_turn(key, changes, true, false) else { return };
    let Some(permit) = shared.loads.refresh() else {
        shared.flow.counters.count(Count::RefreshSkipped);
        return;
    };
    let context = LoadContext {
        key: key.clone(),
        reason: Reason::Refresh,
        present: present.context(shared.flow.now()),
    };
    let seen = Some(present.found.entry.generation);
    let seen = Before { made_of: seen, passed: seen };
    shared.runtime.spawn(lead::<V, L>(leading, loader, context, options, seen, Some(permit)));
}

/// What a load found before it began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before {
    /// The generation of the stale value it replaces.
    made_of: Option<Generation>,
    /// Of whatever did not answer.
    passed: Option<Generation>,
}

/// A load, from step 4 on.
async fn lead<V, L>(
    mut leading: Leading,
    loader: L,
    context: LoadContext<V::Shared>,
    options: LoadOptions,
    seen: Before,
    refreshing: Option<Leave>,
) where
    V: View,
    L: Loader<V::Shared, Value: Loadable<V::Value>>,
{
    let shared = leading.flight.shared.clone();
    let mut stopped = shared.loads.stopped();
    // Both last until other processes can have the value.
    let (mut permit, mut sharing) = (None, None);
    let work = async {
        permit = Some(shared.loads.permit().await?);
        let answers = |entry: &Entry| answers::<V, L::Value>(&shared, entry, context.key.as_ref());
        match shared.contend(&leading, &options, seen.passed, refreshing.is_some(), answers).await {
            Contention::Load(duty) => sharing = duty,
            Contention::Found(entry) => return Ok(Some((entry, None))),
            Contention::Left => return Ok(None),
        }
        shared.flow.counters.count(if refreshing.is_some() { Count::Refreshed } else { Count::Loaded });
        let made = match shared.claim(&mut leading, seen.made_of).await {
            Claim::Made(made) => made,
            Claim::Found(entry) => return Ok(Some((entry, None))),
        };
        let started = Instant::now();
        let loading = caught("a loader", async {
            loader.load(context).await.map_err(|error| Error::Load { source: Arc::from(error.into()) })
        });
        let loaded = shared.loads.within(options.limit, loading).await?.loaded();
        let cost = shared.loads.took(started);
        let (entry, keep) = options.entry::<V>(loaded, leading.generation, cost, &shared)?;
        let kept = if keep { shared.keep(&leading, entry.clone(), made).await } else { None };
        Ok(Some((entry, kept)))
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        _ = stopped.wait_for(|stopped| *stopped) => Err(Error::Closed),
    };
    let (outcome, kept) = match outcome {
        Ok(Some((entry, kept))) => (Ok(entry), kept),
        Ok(None) => return shared.leave_refresh(leading),
        Err(error) => (Err(error), None),
    };
    let hidden = match (&outcome, kept) {
        (Ok(entry), Some(generation)) if sharing.is_some() && shared.is_hidden(entry.levels) => {
            let flight = shared.enter(leading.flight.hash, generation);
            Some((leading.key.clone(), Entry { generation, ..entry.clone() }, flight))
        }
        _ => None,
    };
    shared.end_load(leading, outcome, &options);
    if let Some((key, entry, flight)) = hidden {
        tokio::select! {
            () = shared.share(&key, &entry, flight) => {}
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
    }
    drop((sharing, permit, refreshing));
}

/// Whether an entry answers a caller whose loader brings an `R`.
fn answers<V: View, R: Loadable<V::Value>>(shared: &Shared, entry: &Entry, key: KeyRef<'_>) -> bool {
    let value = match entry.is_nothing() {
        true => Some(None),
        false => V::unpack(Home(shared), key, entry).ok().flatten().map(Some),
    };
    value.is_some_and(|value| R::answer(value).is_some())
}

impl Shared {
    fn serve_stale<V: View, R: Loadable<V::Value>>(
        &self,
        stale: &Present<V, R>,
        now: Timestamp,
    ) -> Served<R::Answer<V::Shared>> {
        self.flow.counters.count(Count::ServedStale);
        stale.served(now)
    }
}
