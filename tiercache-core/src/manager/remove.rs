//! Removing.
//!
//! `delete`, in order, under the key's stripe:
//! 1. It takes a generation, and raises the floor of the operations in flight on the key: from here on nothing
//!    older is answered to new callers or published.
//! 2. What is on its way down is withdrawn; copies below are removed, without waiting where the level can, else
//!    outside the stripe in a task the manager owns, coldest first.
//! 3. What RAM holds goes, and the way down once more.
//!
//! `invalidate_tag` and `clear` raise one fence for everything in their scope, make it durable where copies outlive
//! the process, and return; bytes go later. A level that could not be reached is told of in the result, fenced in
//! this process, and tried again until it is clean: see [`super::journal`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::counters::Count;
use super::pending::Ticket;
use super::slot::Slot;
use super::stripes::{Joined, RemovalOutcome, Stripe};
use super::write::Lower;
use super::{CacheManager, InFlight, Shared};
use crate::bugs::seeded;
use crate::tier::{Removal, Scope};
use crate::tracking::Query;
use crate::{AsKey, Error, Generation, Key, Level, Result};

/// How often a mutation is made anew because other processes keep writing its key.
pub(super) const MOST_OVERTAKEN: u32 = 100;

/// What a removal did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Removed {
    /// Whether something was there to remove, as far as it is known without asking a remote level.
    pub found: bool,
    /// Levels that could not be reached, and why. What they hold is fenced in this process and removed in the
    /// background; where a level of this machine keeps a journal, by the next process if this one is killed before.
    /// Without one, a kill forgets it, and the next process may find there what was removed.
    pub degraded: Vec<(Level, Error)>,
}

impl CacheManager {
    /// Removes `key` from every level. When it returns, later gets see only what is set after it began. Removing
    /// what is not there succeeds.
    ///
    /// # Errors
    /// [`Error::InvalidKey`], [`Error::Closed`]. A level that cannot be reached is no error: see
    /// [`Removed::degraded`]. Dropping the future after it was first polled does not stop the removal.
    pub async fn delete(&self, key: impl AsKey) -> Result<Removed> {
        let key = self.key(&key)?.to_key();
        self.shared.check_open()?;
        self.shared.clone().remove_and_wait(key).await
    }

    /// Removes everything that carries the tag in this handle's namespace. The work is the same for one entry or
    /// a million: bytes go in the background.
    ///
    /// # Errors
    /// As for [`CacheManager::delete`].
    pub async fn invalidate_tag(&self, name: impl Into<String>, value: impl Into<String>) -> Result<Removed> {
        let scope = self.tag_scope(name.into(), value.into());
        self.shared.clone().invalidate_and_wait(scope).await
    }

    /// Makes everything that carries the tag expired: a miss to `get`, and kept for reads that accept a stale
    /// value, until its stay or deadline is over. Lasts as long as the process.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn expire_tag(&self, name: impl Into<String>, value: impl Into<String>) -> Result<()> {
        self.shared.check_open()?;
        let scope = self.tag_scope(name.into(), value.into());
        let generation = self.shared.flow.next_generation();
        self.shared.flow.fences.expire(&scope, generation);
        Ok(())
    }

    /// Removes everything in this handle's namespace; from the default namespace's handle, everything.
    ///
    /// # Errors
    /// As for [`CacheManager::delete`].
    pub async fn clear(&self) -> Result<Removed> {
        let scope =
            if self.namespace.is_empty() { Scope::All } else { Scope::Namespace(self.namespace.to_string()) };
        self.shared.clone().invalidate_and_wait(scope).await
    }

    /// Drops what one level holds of this handle's namespace (of the default one's handle: of all), and what is on
    /// its way out of it or into it. Copies at other levels stay; older ones do not come back.
    ///
    /// # Errors
    /// [`Error::Closed`]; [`Error::InvalidOption`] when there is no such level; what the level said.
    pub async fn flush(&self, level: Level) -> Result<()> {
        self.shared.check_open()?;
        if self.shared.slot(level).is_none() {
            let reason = format!("there is no {level} level in this cache");
            return Err(Error::InvalidOption { option: "level", reason });
        }
        let namespace = (!self.namespace.is_empty()).then(|| self.namespace.to_string());
        let shared = self.shared.clone();
        self.shared.owned(async move { shared.flush_level(level, namespace).await }, "flush").await?
    }

    fn tag_scope(&self, name: String, value: String) -> Scope {
        Scope::Tag { namespace: self.namespace.to_string(), name, value }
    }
}

impl Shared {
    async fn remove_and_wait(self: Arc<Self>, key: Key) -> Result<Removed> {
        match self.remove_at_once(&key) {
            Ok(removed) => Ok(removed),
            Err(flight) => {
                let shared = self.clone();
                let work = async move {
                    let outcome = shared.remove_lower_too(&key, &flight.1).await;
                    drop(flight);
                    Removed { found: true, degraded: outcome.degraded }
                };
                self.owned(work, "a tier").await
            }
        }
    }

    /// Removes `key` here and now, whatever is being written below.
    pub(super) async fn remove_now(self: &Arc<Self>, key: &Key) {
        if let Err(flight) = self.remove_at_once(key) {
            self.remove_lower_too(key, &flight.1).await;
        }
    }

    /// What is left of a removal; tracking has been told of it.
    pub(super) async fn remove_lower_too(self: &Arc<Self>, key: &Key, joined: &Joined) -> RemovalOutcome {
        let outcome = self.remove_lower(key, joined).await;
        if outcome.generation > joined.generation {
            self.flow.recorder.removed(self.flow.now(), key.clone(), outcome.generation);
        }
        outcome
    }

    /// The whole removal if nothing has to be waited for, else the flight to hold while it is.
    pub(super) fn remove_at_once(
        self: &Arc<Self>,
        key: &Key,
    ) -> Result<Removed, (InFlight<Arc<Self>>, Joined)> {
        let hash = key.hash64();
        let mut stripe = self.stripes.lock(hash);
        let generation = self.flow.next_generation();
        stripe.mutate(hash, generation);
        let lower = match self.fence_lower(key, generation) {
            Lower::Wait if seeded("delete-skips-lower") => Lower::Fenced { held: true },
            lower => lower,
        };
        let found = self.forget_in_ram(key, generation);
        self.flow.counters.count(Count::Delete);
        self.flow.recorder.removed(self.flow.now(), key.clone(), generation);
        match lower {
            Lower::Fenced { held } => Ok(Removed { found: found | held, degraded: Vec::new() }),
            Lower::Wait => {
                stripe.enter(hash, generation);
                stripe.mutate(hash, generation);
                let joined = stripe.join_removal(hash, generation);
                Err((InFlight { shared: self.clone(), hash }, joined))
            }
        }
    }

    /// Removes copies below the mutation from every level that must be waited for, coldest first. The caller
    /// holds a flight. The outcome has the mutation's generation, which is a higher one when another process was
    /// ahead, and the levels that failed, which are cleaned in the background.
    ///
    /// Of one key one removal runs at a time; mutations that begin meanwhile share the next. So whatever a level
    /// has at or above the generation asked for is another process's.
    pub(super) async fn remove_lower(self: &Arc<Self>, key: &Key, joined: &Joined) -> RemovalOutcome {
        let _turn = joined.turn.lock().await;
        self.remove_in_turn(key, joined).await
    }

    /// Likewise, when the caller has the turn.
    pub(super) async fn remove_in_turn(self: &Arc<Self>, key: &Key, joined: &Joined) -> RemovalOutcome {
        if joined.batch.outcome.get().is_none() {
            let outcome = self.remove_batch(key).await;
            joined.batch.outcome.get_or_init(|| outcome);
        }
        joined.outcome()
    }

    /// Begins the removal for all that wait for one, by whoever has the turn: the newest generation of those, and the
    /// one to remove below.
    pub(super) fn begin_removal(&self, key: &Key) -> (Generation, Generation, Removing<'_>) {
        let hash = key.hash64();
        let mut stripe = self.stripes.lock(hash);
        let newest = stripe.begin_removal(hash);
        // What another process's made it take by now is above what was sent. Where nobody else writes, it was a later
        // mutation of this process that needed not wait: that one stays.
        let others = self.lower_slots().any(|slot| slot.index().is_none());
        let passed = others && stripe.floor(hash) > newest && !seeded("no-floor");
        let generation = if passed { self.raise(&mut stripe, key) } else { newest };
        (newest, generation, Removing { shared: self, hash })
    }

    /// The removal for all that wait for one.
    async fn remove_batch(self: &Arc<Self>, key: &Key) -> RemovalOutcome {
        let (newest, mut generation, _removing) = self.begin_removal(key);
        let mut overtaken = generation != newest;
        let (mut over, mut degraded) = (Generation::ZERO, Vec::new());
        // With which generation each level was asked. One that was asked before another process turned out to be ahead
        // may have got what a read brought up from there.
        let mut asked = [Generation::ZERO; 3];
        while let Some(slot) = self.lower_slots().rev().find(|slot| asked[slot.level.index()] < generation) {
            let asked = &mut asked[slot.level.index()];
            if slot.index().is_some_and(|index| index.holds(key.as_ref()).is_none()) {
                *asked = generation;
                continue;
            }
            let limit = slot.removal_timeout();
            match self.remove_above(slot, key, &mut generation, &mut overtaken, limit).await {
                Ok(found) => {
                    // Asked again, it has the mark of what it was asked before.
                    if found > *asked {
                        over = found.max(over);
                    }
                    *asked = generation;
                }
                Err(error) => {
                    self.flow.counters.count(Count::Degraded);
                    tracing::warn!(level = %slot.level, ?key, %error, "could not remove, fenced until it can");
                    let (raised, met) = self.clean_later(slot, key, generation).await;
                    overtaken |= met;
                    generation = raised;
                    *asked = Generation::MAX;
                    degraded.push((slot.level, error));
                }
            }
        }
        RemovalOutcome { newest, generation, over, overtaken, degraded }
    }

    /// Removes from one level, and takes a higher generation as often as another process is ahead, which is noted in
    /// `overtaken`, or an invalidation. Returns what stood there, as [`Removal::Done`] tells.
    pub(super) async fn remove_above(
        &self,
        slot: &Slot,
        key: &Key,
        generation: &mut Generation,
        overtaken: &mut bool,
        limit: Duration,
    ) -> Result<Generation> {
        for _ in 0..MOST_OVERTAKEN {
            match self.remove_at(slot, key, *generation, limit).await? {
                Removal::Behind(found) if !seeded("behind-is-done") => {
                    self.flow.join(slot.tier.name(), found)?;
                    *generation = self.raise(&mut self.stripes.lock(key.hash64()), key);
                    *overtaken = true;
                }
                Removal::Fenced(fence) if !seeded("fenced-is-done") => {
                    self.flow.join(slot.tier.name(), fence)?;
                    *generation = self.raise(&mut self.stripes.lock(key.hash64()), key);
                }
                Removal::Done { over: found } | Removal::Behind(found) | Removal::Fenced(found) => {
                    self.stripes.lock(key.hash64()).end_lag(key.hash64(), slot.level);
                    return Ok(found);
                }
            }
        }
        Err(Error::unavailable(slot.tier.name(), "remove", "other processes write the key all the time"))
    }

    /// A mutation under way gets a new generation.
    pub(super) fn raise(&self, stripe: &mut Stripe, key: &Key) -> Generation {
        let raised = self.flow.next_generation();
        stripe.mutate(key.hash64(), raised);
        // A read that began before may have brought up what another process put there.
        self.forget_in_ram(key, raised);
        raised
    }

    /// Removes from one level, after the writes that were sent to it before.
    pub(super) async fn remove_at(
        &self,
        slot: &Slot,
        key: &Key,
        below: Generation,
        limit: Duration,
    ) -> Result<Removal> {
        let writes = self.stripes.lock(key.hash64()).writes_before(key.hash64(), below);
        let removal = async {
            writes_to(slot, &writes).await;
            slot.tier.remove(key, below).await
        };
        slot.call("remove", limit, removal).await
    }

    async fn invalidate_and_wait(self: Arc<Self>, scope: Scope) -> Result<Removed> {
        self.check_open()?;
        let shared = self.clone();
        self.owned(async move { shared.invalidate(scope).await }, "invalidate").await
    }

    /// Raises the fence in this process, then durably, then returns; what it killed is swept out later.
    async fn invalidate(self: Arc<Self>, scope: Scope) -> Removed {
        let flow = &self.flow;
        // Before the generation is taken, so that a sweep that began after it knows of this.
        let _unsettled = Invalidating::begin(&self);
        let mut generation = flow.next_generation();
        flow.fences.remove(&scope, generation);
        let mut degraded = Vec::new();
        // As for a key: a level that was asked before the generation was raised is asked again.
        let mut asked = [Generation::ZERO; 3];
        while let Some(slot) = self.lower_slots().rev().find(|slot| asked[slot.level.index()] < generation) {
            let asked = &mut asked[slot.level.index()];
            match self.invalidate_slot(slot, &scope, generation).await {
                Ok(raised) => {
                    generation = raised;
                    *asked = raised;
                }
                Err(error) => {
                    flow.counters.count(Count::Degraded);
                    tracing::warn!(level = %slot.level, ?scope, %error, "could not invalidate, fenced until it can");
                    degraded.push((slot.level, error));
                    generation = self.invalidate_later(slot, &scope, generation).await;
                    *asked = Generation::MAX;
                }
            }
        }
        flow.recorder.invalidated(flow.now(), scope.clone(), generation);
        let covered =
            |key: &Key, entry: &crate::Entry| crate::tier::Dead::is_dead(&*flow.fences, key.as_ref(), entry);
        flow.pending.discard_where(generation, |key, item| covered(key, &item.entry));
        // Whole namespaces go at once, where that costs no scan of what stays.
        let namespace = match &scope {
            Scope::All => Some(None),
            Scope::Namespace(name) => Some(Some(name.as_str())),
            Scope::Tag { .. } => None,
        };
        if let Some(namespace) = namespace {
            for slot in self.slots().filter(|slot| slot.resident().is_some()) {
                if let Err(error) = slot.tier.clear(namespace, generation).await {
                    tracing::warn!(level = %slot.level, %error, "could not clear, fenced");
                }
            }
        }
        Removed { found: true, degraded }
    }

    /// Makes the invalidation outlive this process at one level; returns its generation, raised when other processes
    /// are ahead.
    pub(super) async fn invalidate_slot(
        &self,
        slot: &Slot,
        scope: &Scope,
        mut generation: Generation,
    ) -> Result<Generation> {
        let limit = slot.limits().write_timeout;
        if slot.tier.fences().is_none() {
            let writes = self.stripes.writes_before(generation);
            let waited = async {
                writes_to(slot, &writes).await;
                Ok(())
            };
            slot.call("wait for writes", limit, waited).await?;
        }
        match (scope, slot.tier.fences()) {
            (_, Some(fences)) => {
                let raised = slot.call("fence", limit, fences.fence(scope, generation)).await?;
                if raised > generation {
                    // Above what this process has made meanwhile, too: it may have been made of what dies here.
                    self.flow.join(slot.tier.name(), raised)?;
                    let above = self.flow.next_generation();
                    self.flow.fences.remove(scope, above);
                    generation = slot.call("fence", limit, fences.fence(scope, above)).await?;
                    self.flow.join(slot.tier.name(), generation)?;
                    self.flow.fences.remove(scope, generation);
                }
                match scope {
                    Scope::All => slot.call("clear", limit, slot.tier.clear(None, generation)).await?,
                    Scope::Namespace(name) => {
                        slot.call("clear", limit, slot.tier.clear(Some(name), generation)).await?;
                    }
                    Scope::Tag { .. } => {}
                }
            }
            (Scope::All, None) => slot.call("clear", limit, slot.tier.clear(None, generation)).await?,
            (Scope::Namespace(name), None) => {
                slot.call("clear", limit, slot.tier.clear(Some(name), generation)).await?;
            }
            (Scope::Tag { namespace, name, value }, None) => {
                let Some(listing) = slot.tier.listing() else {
                    return Err(Error::Unsupported { backend: slot.tier.name(), op: "find entries by tag" });
                };
                let mut after = None;
                loop {
                    let page =
                        slot.call("list", limit, listing.list(Some(namespace), after.take(), 1_000)).await?;
                    for listed in page.entries {
                        let tagged = listed.entry.tags().and_then(|tags| tags.get(name)) == Some(value);
                        if tagged && listed.entry.generation < generation {
                            slot.call("remove", limit, slot.tier.remove(&listed.key, generation)).await?;
                        }
                    }
                    match page.next {
                        Some(next) => after = Some(next),
                        None => break,
                    }
                }
            }
        }
        Ok(generation)
    }

    async fn flush_level(self: Arc<Self>, level: Level, namespace: Option<String>) -> Result<()> {
        let flow = &self.flow;
        let Some(slot) = self.slot(level) else { return Ok(()) };
        let generation = flow.next_generation();
        slot.flushed.fetch_max(generation.get(), Ordering::AcqRel);
        let within = |key: &Key| namespace.as_deref().is_none_or(|namespace| namespace == key.namespace());
        let mut writes = self.stripes.writes_before(generation);
        writes.retain(|ticket| ticket.to() == level && within(ticket.key()));
        writes.iter().for_each(|ticket| ticket.withdraw(generation));
        let clearing = async {
            writes_to(slot, &writes).await;
            slot.tier.clear(namespace.as_deref(), generation).await
        };
        let result = slot.call("clear", slot.limits().write_timeout, clearing).await;
        // Last, like everywhere: what the level gave up before it was cleared is on its way by now.
        flow.pending
            .discard_where(generation, |key, item| within(key) && (item.from == level || item.to == level));
        self.tell_what_remains(level, namespace.as_deref()).await;
        flow.recorder.flushed(flow.now(), level, namespace, generation);
        result
    }

    /// Tells tracking of copies that a flush of `level` leaves at lower levels, which know what they hold: they stand
    /// there from now on. Of what is left the flush makes an end.
    async fn tell_what_remains(&self, level: Level, namespace: Option<&str>) {
        let recorder = &self.flow.recorder;
        if !recorder.is_enabled() || !self.lower_slots().any(|slot| slot.level > level) {
            return;
        }
        recorder.catch_up(self.flow.now(), &self.flow.counters).await;
        let query =
            Query { level: Some(level), namespace: namespace.map(str::to_string), ..Query::default() };
        let mut after: Option<Key> = None;
        loop {
            let page = recorder.tracking().find(&query, after.as_ref(), 1_000);
            // A store that does not answer is told less, and lists less until the keys are used again.
            let Ok(page) = recorder.ask("find", page).await else { return };
            for record in &page {
                let holds = |slot: &&Slot| {
                    let index = slot.index();
                    let held = index.and_then(|index| index.holds(record.key.as_ref()));
                    slot.level > level && held == Some(record.generation)
                };
                if let Some(slot) = self.lower_slots().find(holds) {
                    recorder.moved(self.flow.now(), &record.key, record.generation, Some(slot.level));
                }
            }
            match page.last() {
                Some(last) if page.len() == 1_000 => after = Some(last.key.clone()),
                _ => return,
            }
        }
    }
}

/// A removal under way, until it is over or dropped.
pub(super) struct Removing<'a> {
    shared: &'a Shared,
    hash: u64,
}

impl Drop for Removing<'_> {
    fn drop(&mut self) {
        self.shared.stripes.lock(self.hash).end_removal(self.hash);
    }
}

/// An invalidation that some level has not made durable, until it is dropped.
pub(super) struct Invalidating(pub(super) Arc<Shared>);

impl Invalidating {
    pub(super) fn begin(shared: &Arc<Shared>) -> Self {
        shared.invalidating.fetch_add(1, Ordering::AcqRel);
        Self(shared.clone())
    }
}

impl Drop for Invalidating {
    fn drop(&mut self) {
        self.0.invalidating.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Waits for the end of those writes that go to `slot`, unless it commits none without a permit: a write that was
/// sent may arrive after a removal that was sent later.
async fn writes_to(slot: &Slot, writes: &[Arc<Ticket>]) {
    if slot.index().is_some() || seeded("removal-overtakes-write") {
        return;
    }
    for ticket in writes.iter().filter(|ticket| ticket.to() == slot.level) {
        ticket.finished().await;
    }
}
