//! Changing what is there: `touch`, `pop` and sets with a condition.
//!
//! They read first: they register a flight before they look, and begin anew when its floor shows a mutation by the time
//! they hold the stripe again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedMutexGuard;

use super::counters::Count;
use super::find::Doubt;
use super::set::Ttl;
use super::stripes::RemovalOutcome;
use super::write::{Begun, Lower, Made, Written};
use super::{CacheManager, InFlight, Shared};
use crate::bugs::seeded;
use crate::{AsKey, Entry, Error, Generation, Key, Level, Result, Timestamp};

/// What [`CacheManager::touch`] did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Touched {
    /// Whether there was an entry to give a new time to live.
    pub found: bool,
    /// As [`Written::degraded`]: there the entry still has its old deadline, which is not answered by.
    pub degraded: Vec<(Level, Error)>,
}

/// What [`CacheManager::pop`] took out.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Popped {
    /// The value there was.
    pub value: Option<bytes::Bytes>,
    /// As [`Removed::degraded`](crate::Removed::degraded).
    pub degraded: Vec<(Level, Error)>,
}

impl CacheManager {
    /// Gives the entry of `key` a new time to live from now; `None` for one without a deadline. Tells whether there
    /// was such an entry.
    ///
    /// At a level that other processes use, a touch that meets another process's mutation of the key may leave the key
    /// without a value.
    ///
    /// # Errors
    /// As for [`CacheManager::set`].
    pub async fn touch(&self, key: impl AsKey, ttl: impl Into<Option<Duration>>) -> Result<Touched> {
        let key = self.key(&key)?.to_key();
        let ttl = Ttl::given(ttl.into())?;
        let shared = self.shared.clone();
        let touched = async move {
            let touched = shared.replace(&key, |found, now| {
                let mut entry = found?;
                ttl.apply(&mut entry, now);
                Some(entry)
            });
            let written = touched.await?;
            let found = written.is_some();
            Ok(Touched { found, degraded: written.map(|written| written.degraded).unwrap_or_default() })
        };
        self.shared.owned(touched, "touch").await?
    }

    /// Removes `key` and returns the value it had, as one step: of two calls at once one gets it. So it is between processes
    /// that use one level, if that remembers removals, which all but `s3` do, for a minute at least: what another process
    /// took earlier than that may be taken again from this one's RAM, within its stay there. A `pop` that meets another
    /// process's mutation of the key may leave the key without a value.
    ///
    /// # Errors
    /// As for [`CacheManager::delete`].
    pub async fn pop(&self, key: impl AsKey) -> Result<Popped> {
        let key = self.key(&key)?.to_key();
        let shared = self.shared.clone();
        self.shared.owned(async move { shared.pop(&key).await }, "pop").await?
    }
}

impl Shared {
    /// Reads the entry of `key` and writes what `change` makes of it, as one step: begins anew when a mutation
    /// came between. `None` from `change` leaves everything as it is.
    pub(super) async fn replace(
        self: &Arc<Self>,
        key: &Key,
        mut change: impl FnMut(Option<Entry>, Timestamp) -> Option<Entry>,
    ) -> Result<Option<Written>> {
        let hash = key.hash64();
        loop {
            self.check_open()?;
            let Changing { before, flight, turn } = self.enter_to_change(key).await;
            let found = self.look(key.as_ref()).await;
            let begun = {
                let mut stripe = self.stripes.lock(hash);
                let passed = stripe.floor(hash) != before && !seeded("decides-on-old");
                if passed || stripe.is_transacting(hash) {
                    continue;
                }
                let now = self.flow.now();
                // Alive when it was looked at, and perhaps not any more; or its level has yet to see a removal.
                let found = found.filter(|found| {
                    let doubt = Doubt::under(&stripe, self.slot(found.level), key.as_ref());
                    !doubt.touches(key.as_ref(), &found.entry)
                });
                let found = found.map(|found| found.entry);
                let found = found.filter(|entry| self.flow.is_alive(key.as_ref(), entry, now));
                // Below the floor it is being replaced by a mutation that has not published yet. That one
                // comes first in order, so what it replaces must not be carried past it.
                let found = found.filter(|entry| entry.generation >= before);
                let told =
                    |found: &Entry| Entry { value: Bytes::new(), extras: found.extras.clone(), ..*found };
                let made = found.as_ref().map_or(Made::Anew, |found| Made::Of(told(found)));
                let Some(mut entry) = change(found, now) else { return Ok(None) };
                entry.generation = self.flow.next_generation();
                self.write_locked(&mut stripe, key.clone(), entry, now, made)
            };
            drop((turn, flight));
            let written = match begun {
                Begun::Done(result) => result?,
                Begun::Slow(work) => work.await?,
            };
            if written.stored {
                return Ok(Some(written));
            }
        }
    }

    /// Registers an operation that reads a key to change it, once what has to be seen through before is over.
    pub(super) async fn enter_to_change<'a>(self: &'a Arc<Self>, key: &Key) -> Changing<'a> {
        let hash = key.hash64();
        let (mut before, mut unsettled) = {
            let mut stripe = self.stripes.lock(hash);
            (stripe.enter(hash, self.flow.generation()), stripe.unsettled(hash))
        };
        let flight = InFlight { shared: &**self, hash };
        let mut turn = None;
        while let Some(joined) = unsettled {
            if turn.is_none() {
                turn = Some(joined.turn.clone().lock_owned().await);
            }
            self.remove_in_turn(key, &joined).await;
            let stripe = self.stripes.lock(hash);
            (before, unsettled) = (stripe.floor(hash), stripe.unsettled(hash));
        }
        Changing { before, turn, flight }
    }

    async fn pop(self: &Arc<Self>, key: &Key) -> Result<Popped> {
        let hash = key.hash64();
        loop {
            self.check_open()?;
            let Changing { before, flight, turn } = self.enter_to_change(key).await;
            let Some(found) = self.look(key.as_ref()).await else { return Ok(Popped::default()) };
            if found.entry.generation < before {
                // Being replaced or removed by a mutation that comes first in order.
                return Ok(Popped::default());
            }
            let removal = {
                let mut stripe = self.stripes.lock(hash);
                if stripe.floor(hash) != before || stripe.is_transacting(hash) {
                    continue;
                }
                // Claimed: whoever looks at the floor from here on knows that the value is taken.
                let generation = self.flow.next_generation();
                stripe.mutate(hash, generation);
                let lower = self.fence_lower(key, generation);
                self.forget_in_ram(key, generation);
                self.flow.recorder.removed(self.flow.now(), key.clone(), generation);
                matches!(lower, Lower::Wait).then(|| stripe.join_removal(hash, generation))
            };
            drop(turn);
            self.flow.counters.count(Count::Delete);
            let mut degraded = Vec::new();
            if let Some(joined) = removal {
                let outcome = self.remove_lower_too(key, &joined).await;
                if self.is_changed_below(key, &outcome, &found.entry) && !seeded("popped-twice") {
                    // Another process has taken it, or replaced it.
                    self.forget_in_ram(key, outcome.generation);
                    continue;
                }
                degraded = outcome.degraded;
            }
            drop(flight);
            return Ok(Popped { value: Some(found.entry.value), degraded });
        }
    }

    /// Whether another process came between when a removal overtook what stood below, after `read` was read.
    pub(super) fn is_changed_below(&self, key: &Key, outcome: &RemovalOutcome, read: &Entry) -> bool {
        outcome.overtaken || outcome.over > read.generation || self.is_killed_below(key, read)
    }
}

/// An operation that reads a key to change it.
pub(super) struct Changing<'a> {
    /// The floor it began above.
    pub(super) before: Generation,
    /// The turn, if it had to wait: kept until it has decided, or it might wait for one transaction after another.
    pub(super) turn: Option<OwnedMutexGuard<()>>,
    pub(super) flight: InFlight<&'a Shared>,
}
