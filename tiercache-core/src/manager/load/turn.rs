//! Whose load it is, and what becomes of it: its turn, what it may store on, what it leaves behind.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::super::counters::Count;
use super::super::stripes::Stripe;
use super::super::write::{Begun, Made};
use super::super::{InFlight, Shared};
use super::LoadOptions;
use crate::bugs::seeded;
use crate::tier::Removal;
use crate::{Entry, Error, Generation, Key, Result, Timestamp};

/// Failures in a row that lengthen the pause.
const MOST_DOUBLED: u32 = 5;
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

/// Who loads.
pub(super) enum Turn {
    /// Another does.
    Join(watch::Receiver<Option<Outcome>>),
    /// This caller does.
    Lead(Leading),
    /// Something has come since the caller looked.
    Again,
    /// Nobody, for a while.
    Failing(Error),
}

/// A load from its begin to its end, however it ends.
pub(super) struct Leading {
    pub(super) flight: InFlight<Arc<Shared>>,
    pub(super) key: Key,
    pub(super) generation: Generation,
    pub(super) outcome: watch::Sender<Option<Outcome>>,
    /// Whether it began beside a set or a transaction, whose value it might replace: what it brings is not kept.
    beside: bool,
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
        changes: u64,
        has_stale: bool,
        take_over: bool,
    ) -> Turn {
        let hash = key.hash64();
        let mut stripe = self.stripes.lock(hash);
        if let Some(loading) = stripe.loading(key) {
            return Turn::Join(loading.outcome.clone());
        }
        if stripe.changes() != changes {
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
        let (generation, beside) = (self.flow.next_generation(), stripe.is_being_set(hash));
        stripe.enter(hash, generation);
        let (outcome, receiver) = watch::channel(None);
        stripe.begin_loading(Loading { key: key.clone(), generation, outcome: receiver });
        let flight = InFlight { shared: self.clone(), hash };
        Turn::Lead(Leading { flight, key: key.clone(), generation, outcome, beside, ended: false })
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
            return Claim::Made(Made::Since(seen));
        }
        let unmarked = || self.lower_slots().filter(|slot| slot.index().is_none());
        if leading.beside || !unmarked().any(|slot| slot.profile.shared) {
            return Claim::Made(Made::Since(Generation::ZERO));
        }
        if seeded("load-unclaimed") {
            return Claim::Made(Made::AfterAsking);
        }
        'again: for _ in 0..MOST_OVERTAKEN {
            for slot in unmarked() {
                let removal = slot.tier.remove(&leading.key, leading.generation);
                match slot.call("remove", slot.limits().read_timeout, removal).await {
                    Ok(Removal::Done { .. }) => {}
                    Ok(Removal::Behind(ahead) | Removal::Fenced(ahead)) => {
                        if let Err(error) = self.flow.join(slot.tier.name(), ahead) {
                            tracing::warn!(level = %slot.level, %error, "cannot load ahead of it");
                            return Claim::Made(Made::Since(Generation::ZERO));
                        }
                        if let Ok(Some(found)) = self.search(leading.key.as_ref()).await
                            && !found.stale
                        {
                            return Claim::Found(found.entry);
                        }
                        if !self.renew(leading) {
                            return Claim::Made(Made::Since(Generation::ZERO));
                        }
                        continue 'again;
                    }
                    // What stands there is not known: it may be kept only if nothing does when it is written.
                    Err(_) => return Claim::Made(Made::Since(Generation::ZERO)),
                }
            }
            return Claim::Made(Made::AfterAsking);
        }
        Claim::Made(Made::Since(Generation::ZERO))
    }

    /// The load begins anew, as far as anybody can tell; not after a mutation of this process, which stands above it and
    /// must not be removed by it.
    fn renew(&self, leading: &mut Leading) -> bool {
        let mut stripe = self.stripes.lock(leading.flight.hash);
        let hash = leading.flight.hash;
        if stripe.is_overtaken(hash, leading.generation) || stripe.is_transacting(hash) {
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

    /// Step 5. The generation it was kept with.
    pub(super) async fn keep(
        self: &Arc<Self>,
        leading: &Leading,
        entry: Entry,
        made: Made,
    ) -> Option<Generation> {
        let (key, generation, now) = (&leading.key, leading.generation, self.flow.now());
        let begun = {
            let mut stripe = self.stripes.lock(leading.flight.hash);
            let hash = leading.flight.hash;
            let overtaken = stripe.is_overtaken(hash, generation) && !seeded("load-stored-unchecked");
            let beside = leading.beside || stripe.is_transacting(hash);
            if overtaken
                || beside
                || self.flow.is_dead(key.as_ref(), &entry, now)
                || self.top(entry.levels).is_none()
            {
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
    pub(super) fn leave_refresh(&self, leading: Leading) {
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
    pub(super) fn enter(self: &Arc<Self>, hash: u64, generation: Generation) -> InFlight<Arc<Self>> {
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
}
