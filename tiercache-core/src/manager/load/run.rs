//! How a load runs, and how callers wait for it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use super::super::counters::Count;
use super::super::guard::caught;
use super::super::read::Found;
use super::super::set::Ttl;
use super::super::stripes::Stripe;
use super::super::write::{Begun, Made};
use super::super::{CacheManager, InFlight, Shared};
use super::{Answer, Eager, LoadContext, LoadOptions, Loadable, Loaded, Loader, Reason, Served, View};
use crate::bugs::seeded;
use crate::tier::{Dead, Look, Removal};
use crate::{COARSE_SLACK_MILLIS, Entry, Error, Generation, Key, Result, Timestamp};

/// Failures in a row that lengthen the pause.
const MOST_DOUBLED: u32 = 5;
/// A chance smaller than one in a hundred million is none: `-ln` of it.
const LEAST_CHANCE: f64 = 18.4;
/// How often a load asks again when other processes write the key meanwhile.
const MOST_OVERTAKEN: u32 = 3;

/// A load under way.
#[derive(Clone, Debug)]
pub(in crate::manager) struct Loading {
    pub(in crate::manager) key: Key,
    pub(in crate::manager) generation: Generation,
    outcome: watch::Receiver<Option<Outcome>>,
}

/// What came of a load: the entry, whether or not it was kept.
pub(super) type Outcome = Result<Entry>;

/// A load that failed.
#[derive(Clone, Debug)]
pub(in crate::manager) struct Failure {
    pub(in crate::manager) key: Key,
    generation: Generation,
    /// In a row.
    times: u32,
    /// Until then callers with a stale value have that.
    pause: Instant,
    /// Until then callers without one have the error.
    told: Instant,
    error: Error,
}

impl Failure {
    /// When it is of no use any more.
    pub(in crate::manager) fn until(&self) -> Instant {
        self.pause.max(self.told)
    }
}

/// What loads of a manager share.
#[derive(Debug)]
pub(in crate::manager) struct Loads {
    running: Arc<Semaphore>,
    refreshing: Arc<Semaphore>,
    stopped: watch::Receiver<bool>,
    /// The longest that a load took, in milliseconds: bounds how early a refresh by chance may come.
    longest: AtomicU64,
    chance: AtomicU64,
}

impl Loads {
    pub(in crate::manager) fn new(running: usize, refreshing: usize, stopped: watch::Receiver<bool>) -> Self {
        Self {
            running: Arc::new(Semaphore::new(running.min(Semaphore::MAX_PERMITS))),
            refreshing: Arc::new(Semaphore::new(refreshing.min(Semaphore::MAX_PERMITS))),
            stopped,
            longest: AtomicU64::new(0),
            chance: AtomicU64::new(0),
        }
    }

    /// Above 0, up to 1. Not for secrets: it only keeps things from happening all at once.
    fn chance(&self) -> f64 {
        // SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014).
        let mut mixed = self
            .chance
            .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)
            .wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        ((mixed >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}

impl LoadOptions {
    /// How hot judges a hit; `None` when it may not answer alone.
    pub(super) fn look(&self, shared: &Shared) -> Option<Look> {
        if self.invalid.is_some() {
            return None;
        }
        let mut look = shared.coarse_look();
        let early = match (self.eager, self.ttl) {
            (Eager::Off, _) => 0,
            (Eager::After(share), Ttl::For(ttl)) => {
                (ttl.as_millis() as f64 * f64::from(1.0 - share)).ceil() as u64
            }
            // The loader alone knows how long it lives.
            (Eager::After(_), _) => return None,
            (Eager::Probably(factor), _) => {
                let longest = shared.loads.longest.load(Ordering::Relaxed);
                (longest as f64 * f64::from(factor) * LEAST_CHANCE).ceil() as u64
            }
        };
        look.slack = early.max(COARSE_SLACK_MILLIS);
        Some(look)
    }

    /// Whether a hit on `entry` is to refresh it.
    pub(super) fn is_due(&self, loads: &Loads, entry: &Entry, now: Timestamp) -> bool {
        let end = entry.fresh_until();
        if end.is_never() {
            return false;
        }
        match self.eager {
            Eager::Off => false,
            Eager::After(share) => {
                let life = end.since(entry.created).mul_f32(share);
                entry.created.after(life) <= now
            }
            Eager::Probably(factor) => {
                let cost = entry.extras.as_ref().map_or(Duration::ZERO, |extras| extras.cost);
                let early = cost.as_millis() as f64 * f64::from(factor) * -loads.chance().ln();
                end.since(now).as_millis() as f64 <= early
            }
        }
    }

    /// The entry of what was loaded, and whether it is to be kept.
    pub(super) fn entry<V: View>(
        &self,
        loaded: Loaded<Option<V::Value>>,
        generation: Generation,
        cost: Duration,
        shared: &Shared,
    ) -> Result<(Entry, bool)> {
        let (now, chance) = (shared.flow.now(), shared.loads.chance());
        let Loaded { value, store, ttl, tags, content_type } = loaded;
        let nothing = value.is_none();
        let (bytes, decoded) = match value {
            Some(value) => V::pack(value)?,
            None => Default::default(),
        };
        let mut entry = Entry::new(bytes, generation, now);
        entry.levels = self.levels;
        let negative = self.nothing.map(Ttl::For);
        let ttl = ttl.or(if nothing { negative } else { Some(self.ttl) });
        let stale = if nothing { Duration::ZERO } else { self.stale };
        let cost = if matches!(self.eager, Eager::Probably(_)) { cost } else { Duration::ZERO };
        let is_plain = self.tags.is_empty() && tags.is_empty() && content_type.is_none() && decoded.is_none();
        if !is_plain || nothing || !stale.is_zero() || !cost.is_zero() {
            let extras = entry.extras_mut();
            extras.tags = self.tags.clone();
            extras.tags.extend(tags);
            super::super::set::check_tags(&extras.tags)?;
            extras.content_type = content_type;
            (extras.nothing, extras.stale, extras.cost) = (nothing, stale, cost);
            if let Some(decoded) = decoded {
                // Fresh extras: nobody set the cell before.
                let _ = extras.decoded.set(decoded);
            }
        }
        let keep = store && ttl.is_some();
        match ttl.unwrap_or(Ttl::Unset) {
            Ttl::For(ttl) => {
                let shorter = ttl.mul_f64(1.0 - f64::from(self.jitter) * chance);
                Ttl::For(shorter.max(Duration::from_millis(1))).apply(&mut entry, now);
            }
            other => other.apply(&mut entry, now),
        }
        Ok((entry, keep))
    }
}

/// Who loads.
pub(super) enum Turn {
    /// Another does.
    Join(watch::Receiver<Option<Outcome>>),
    /// This caller does.
    Lead(Leading),
    /// A load has ended since the caller looked.
    Again,
    /// Nobody, for a while.
    Failing(Error),
}

/// A load from its begin to its end, however it ends.
pub(super) struct Leading {
    flight: InFlight<Arc<Shared>>,
    key: Key,
    pub(super) generation: Generation,
    pub(super) outcome: watch::Sender<Option<Outcome>>,
    ended: bool,
}

impl Leading {
    /// Ends the load: nobody joins it any more, and those who did have its outcome.
    fn end(mut self, outcome: Outcome, failed: impl FnOnce(&mut Stripe, &Self, &Error)) {
        {
            let mut stripe = self.flight.shared.stripes.lock(self.flight.hash);
            match &outcome {
                Ok(_) => stripe.forget_failure(&self.key),
                Err(error) => failed(&mut stripe, &self, error),
            }
            stripe.end_loading(&self.key, self.generation);
        }
        self.ended = true;
        self.outcome.send_replace(Some(outcome));
    }
}

impl Drop for Leading {
    fn drop(&mut self) {
        if !self.ended {
            self.flight.shared.stripes.lock(self.flight.hash).end_loading(&self.key, self.generation);
        }
    }
}

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
        let ended = shared.stripes.lock(key.hash64()).loads_ended();
        let present = shared.search(key.as_ref()).await?;
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
                    refresh::<V, L>(shared, &key, loader, options, &present);
                }
                return Ok(present.served(now));
            }
            stale => stale.filter(|_| !options.stale.is_zero()),
        };
        let turn = shared.take_turn(&key, ended, stale.is_some(), options.take_over);
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
                let seen = stale.map(|stale| stale.found.entry.generation);
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
            (Waited::Lost, _) if leads => return Err(Error::Closed),
            (Waited::Lost, _) => continue,
        };
        if !leads && !shared.may_join(&key, &entry, since) {
            continue;
        }
        let value = match entry.is_nothing() {
            true => None,
            false => V::unpack(cache, key.as_ref(), &entry)?,
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
            match V::unpack(cache, key.as_ref(), &found.entry)? {
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
) where
    V: View,
    L: Loader<V::Shared, Value: Loadable<V::Value>>,
{
    let ended = shared.stripes.lock(key.hash64()).loads_ended();
    let Turn::Lead(leading) = shared.take_turn(key, ended, true, false) else { return };
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
    shared.runtime.spawn(lead::<V, L>(leading, loader, context, options, seen, Some(permit)));
}

/// A load, from step 4 on.
async fn lead<V, L>(
    mut leading: Leading,
    loader: L,
    context: LoadContext<V::Shared>,
    options: LoadOptions,
    seen: Option<Generation>,
    refreshing: Option<OwnedSemaphorePermit>,
) where
    V: View,
    L: Loader<V::Shared, Value: Loadable<V::Value>>,
{
    let shared = leading.flight.shared.clone();
    shared.flow.counters.count(if refreshing.is_some() { Count::Refreshed } else { Count::Loaded });
    let mut stopped = shared.loads.stopped();
    let work = async {
        let _permit = shared.loads.permit().await?;
        let made = match shared.claim(&mut leading, seen).await {
            Claim::Made(made) => made,
            Claim::Found(entry) => return Ok(entry),
        };
        let started = Instant::now();
        let loading = caught("a loader", async {
            loader.load(context).await.map_err(|error| Error::Load { source: Arc::from(error.into()) })
        });
        let loaded = shared.loads.within(options.limit, loading).await?.loaded();
        let cost = shared.loads.took(started);
        let (entry, keep) = options.entry::<V>(loaded, leading.generation, cost, &shared)?;
        if keep {
            shared.keep(&leading, entry.clone(), made).await;
        }
        Ok(entry)
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        _ = stopped.wait_for(|stopped| *stopped) => Err(Error::Closed),
    };
    shared.end_load(leading, outcome, &options);
}

/// What a load may store on.
pub(super) enum Claim {
    Made(Made),
    /// Another process has set the key meanwhile.
    Found(Entry),
}

impl Loads {
    /// Leave to refresh in the background, if not too many do.
    pub(super) fn refresh(&self) -> Option<OwnedSemaphorePermit> {
        self.refreshing.clone().try_acquire_owned().ok()
    }

    /// Leave to load.
    pub(super) async fn permit(&self) -> Result<OwnedSemaphorePermit> {
        self.running.clone().acquire_owned().await.map_err(|_| Error::Closed)
    }

    /// Becomes true when the cache ends.
    pub(super) fn stopped(&self) -> watch::Receiver<bool> {
        self.stopped.clone()
    }

    /// What `loading` says within that time.
    pub(super) async fn within<T>(
        &self,
        limit: Duration,
        loading: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let late = |_| Error::TimedOut { backend: "the loader", op: "load", after: limit };
        tokio::time::timeout(limit, loading).await.map_err(late)?
    }

    /// Notes how long a load took.
    pub(super) fn took(&self, started: Instant) -> Duration {
        let cost = started.elapsed();
        self.longest.fetch_max(u64::try_from(cost.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        cost
    }
}

impl Shared {
    /// Step 3.
    pub(super) fn take_turn(
        self: &Arc<Self>,
        key: &Key,
        ended: u64,
        has_stale: bool,
        take_over: bool,
    ) -> Turn {
        let hash = key.hash64();
        let mut stripe = self.stripes.lock(hash);
        if let Some(loading) = stripe.loading(key) {
            return Turn::Join(loading.outcome.clone());
        }
        if stripe.loads_ended() != ended {
            return Turn::Again;
        }
        if let Some(failure) = stripe.failure(key) {
            let now = Instant::now();
            let pauses = if has_stale { now < failure.pause } else { now < failure.told && !take_over };
            // Whatever was invalidated since, the error may be of what was before.
            if failure.generation >= self.flow.fences.newest() && pauses {
                return Turn::Failing(failure.error.clone());
            }
        }
        let generation = self.flow.next_generation();
        stripe.enter(hash, generation);
        let (outcome, receiver) = watch::channel(None);
        stripe.begin_loading(Loading { key: key.clone(), generation, outcome: receiver });
        let flight = InFlight { shared: self.clone(), hash };
        Turn::Lead(Leading { flight, key: key.clone(), generation, outcome, ended: false })
    }

    /// Whether what another's load brought answers a call that began then. An invalidation of many that began after
    /// the load may have ended before the call began; and what takes long to store may be over before.
    pub(super) fn may_join(&self, key: &Key, entry: &Entry, since: Timestamp) -> bool {
        let killed = self.flow.fences.is_dead(key.as_ref(), entry) && !seeded("load-outlives-fence");
        !killed && entry.is_fresh(since)
    }

    /// Step 4: makes sure that what other processes do to the key from now on is newer than the load.
    pub(super) async fn claim(self: &Arc<Self>, leading: &mut Leading, seen: Option<Generation>) -> Claim {
        if let Some(seen) = seen {
            return Claim::Made(Made::Of(seen));
        }
        let unmarked = || self.lower_slots().filter(|slot| slot.index().is_none());
        if !unmarked().any(|slot| slot.profile.shared) {
            return Claim::Made(Made::Of(Generation::ZERO));
        }
        if seeded("load-unclaimed") {
            return Claim::Made(Made::AfterAsking);
        }
        'again: for _ in 0..MOST_OVERTAKEN {
            for slot in unmarked() {
                let removal = slot.tier.remove(&leading.key, leading.generation);
                match slot.call("remove", slot.limits().read_timeout, removal).await {
                    Ok(Removal::Done { .. }) => {}
                    Ok(Removal::Behind(ahead)) => {
                        if let Err(error) = self.flow.join(slot.tier.name(), ahead) {
                            tracing::warn!(level = %slot.level, %error, "cannot load ahead of it");
                            return Claim::Made(Made::Of(Generation::ZERO));
                        }
                        if let Ok(Some(found)) = self.search(leading.key.as_ref()).await
                            && !found.stale
                        {
                            return Claim::Found(found.entry);
                        }
                        if !self.renew(leading) {
                            return Claim::Made(Made::Of(Generation::ZERO));
                        }
                        continue 'again;
                    }
                    // What stands there is not known: it may be kept only if nothing does when it is written.
                    Err(_) => return Claim::Made(Made::Of(Generation::ZERO)),
                }
            }
            return Claim::Made(Made::AfterAsking);
        }
        Claim::Made(Made::Of(Generation::ZERO))
    }

    /// The load begins anew, as far as anybody can tell; not after a mutation of this process, which stands above it and
    /// must not be removed by it.
    fn renew(&self, leading: &mut Leading) -> bool {
        let mut stripe = self.stripes.lock(leading.flight.hash);
        if stripe.is_overtaken(leading.flight.hash, leading.generation) {
            return false;
        }
        let joined = stripe.loading(&leading.key).map(|loading| loading.outcome.clone());
        stripe.end_loading(&leading.key, leading.generation);
        leading.generation = self.flow.next_generation();
        if let Some(outcome) = joined {
            let (key, generation) = (leading.key.clone(), leading.generation);
            stripe.begin_loading(Loading { key, generation, outcome });
        }
        true
    }

    /// Step 5.
    pub(super) async fn keep(self: &Arc<Self>, leading: &Leading, entry: Entry, made: Made) {
        let (key, generation, now) = (&leading.key, leading.generation, self.flow.now());
        let begun = {
            let mut stripe = self.stripes.lock(leading.flight.hash);
            let overtaken =
                stripe.is_overtaken(leading.flight.hash, generation) && !seeded("load-stored-unchecked");
            if overtaken || self.flow.is_dead(key.as_ref(), &entry, now) || self.top(entry.levels).is_none() {
                self.flow.counters.count(Count::Refused);
                return;
            }
            self.write_locked(&mut stripe, key.clone(), entry, now, made)
        };
        let written = match begun {
            Begun::Done(written) => written,
            Begun::Slow(work) => work.await,
        };
        // Whoever waits for the value has it all the same.
        match written {
            Ok(written) if written.stored => self.wait_for_room().await,
            Ok(_) => self.flow.counters.count(Count::Refused),
            Err(error) => tracing::debug!(?key, %error, "what was loaded could not be kept"),
        }
    }

    /// Step 6.
    pub(super) fn end_load(&self, leading: Leading, outcome: Outcome, options: &LoadOptions) {
        if let Err(error) = &outcome {
            self.flow.counters.count(Count::LoadFailed);
            tracing::debug!(key = ?leading.key, %error, "load failed");
        }
        leading.end(outcome, |stripe, leading, error| self.note_failure(stripe, leading, error, options));
    }

    fn note_failure(&self, stripe: &mut Stripe, leading: &Leading, error: &Error, options: &LoadOptions) {
        if stripe.is_overtaken(leading.flight.hash, leading.generation) {
            return;
        }
        let times = stripe.failure(&leading.key).map_or(0, |failure| failure.times);
        let now = Instant::now();
        let pause = options.back_off * (1 << times.min(MOST_DOUBLED));
        let failure = Failure {
            key: leading.key.clone(),
            generation: leading.generation,
            times: times + 1,
            pause: now + pause.mul_f64(1.0 - 0.25 * self.loads.chance()),
            told: now + options.errors.unwrap_or_default(),
            error: error.clone(),
        };
        stripe.fail(failure);
    }

    fn serve_stale<V: View, R: Loadable<V::Value>>(
        &self,
        stale: &Present<V, R>,
        now: Timestamp,
    ) -> Served<R::Answer<V::Shared>> {
        self.flow.counters.count(Count::ServedStale);
        stale.served(now)
    }
}
