//! How a load runs, and how callers wait for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::super::counters::Count;
use super::super::guard::caught;
use super::super::read::Found;
use super::super::set::Ttl;
use super::super::stripes::Stripe;
use super::super::write::{Begun, Made};
use super::super::{CacheManager, InFlight, Shared};
use super::lease::Contention;
use super::loads::{Leave, Loads};
use super::value::sealed::Home;
use super::{Answer, Eager, LoadContext, LoadOptions, Loadable, Loaded, Loader, Reason, Served, View};
use crate::bugs::seeded;
use crate::tier::{Look, Removal};
use crate::{COARSE_SLACK_MILLIS, Entry, Error, Generation, Key, KeyRef, Result, Timestamp};

/// Failures in a row that lengthen the pause.
const MOST_DOUBLED: u32 = 5;
/// A chance smaller than one in a hundred million is none: `-ln` of it.
const LEAST_CHANCE: f64 = 18.4;
/// How long a refresh that another process makes is not tried.
const LEFT_ALONE: Duration = Duration::from_millis(250);
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
                let longest = shared.loads.longest();
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
                let jitter = self.jitter.unwrap_or_else(|| shared.loads.jitter());
                let shorter = ttl.mul_f64(1.0 - f64::from(jitter) * chance);
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
    pub(super) key: Key,
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

/// What a load may store on.
pub(super) enum Claim {
    Made(Made),
    /// Another process has set the key meanwhile.
    Found(Entry),
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
        let killed = self.flow.fences.hides(key.as_ref(), entry) && !seeded("load-outlives-fence");
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
    /// The generation it was kept with.
    pub(super) async fn keep(
        self: &Arc<Self>,
        leading: &Leading,
        entry: Entry,
        made: Made,
    ) -> Option<Generation> {
        let (key, generation, now) = (&leading.key, leading.generation, self.flow.now());
        let begun = {
            let mut stripe = self.stripes.lock(leading.flight.hash);
            let overtaken =
                stripe.is_overtaken(leading.flight.hash, generation) && !seeded("load-stored-unchecked");
            if overtaken || self.flow.is_dead(key.as_ref(), &entry, now) || self.top(entry.levels).is_none() {
                self.flow.counters.count(Count::Refused);
                return None;
            }
            self.write_locked(&mut stripe, key.clone(), entry, now, made)
        };
        let written = match begun {
            Begun::Done(written) => written,
            Begun::Slow(work) => work.await,
        };
        // Whoever waits for the value has it all the same.
        match written {
            Ok(written) if written.stored => {
                self.wait_for_room().await;
                return Some(written.generation);
            }
            Ok(_) => self.flow.counters.count(Count::Refused),
            Err(error) => tracing::debug!(?key, %error, "what was loaded could not be kept"),
        }
        None
    }

    /// Step 6.
    pub(super) fn end_load(&self, leading: Leading, outcome: Outcome, options: &LoadOptions) {
        if let Err(error) = &outcome {
            self.flow.counters.count(Count::LoadFailed);
            tracing::debug!(key = ?leading.key, %error, "load failed");
        }
        leading.end(outcome, |stripe, leading, error| self.note_failure(stripe, leading, error, options));
    }

    /// Ends a refresh that another process makes. Those who joined it look again, and who has a value has that for a
    /// while.
    fn leave_refresh(&self, leading: Leading) {
        self.flow.counters.count(Count::RefreshSkipped);
        let mut stripe = self.stripes.lock(leading.flight.hash);
        let overtaken = stripe.is_overtaken(leading.flight.hash, leading.generation);
        if !overtaken && stripe.failure(&leading.key).is_none() {
            let (key, generation, now) = (leading.key.clone(), leading.generation, Instant::now());
            let error = Error::unavailable("the loader", "load", "another process refreshes it");
            stripe.fail(Failure { key, generation, times: 0, pause: now + LEFT_ALONE, told: now, error });
        }
        drop(stripe);
        drop(leading);
    }

    /// Registers one more operation of a flight.
    fn enter(self: &Arc<Self>, hash: u64, generation: Generation) -> InFlight<Arc<Self>> {
        self.stripes.lock(hash).enter(hash, generation);
        InFlight { shared: self.clone(), hash }
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
