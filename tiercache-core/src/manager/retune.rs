//! Changing a cache while it is used.
//!
//! 1. Everything that is wrong with the change is found before anything is done: it happens whole or not at all.
//! 2. Rules, time-outs and the manager's own limits are exchanged in one step each. What is set or sinks from then on
//!    goes by them; an entry at rest keeps the stay it came with until it moves.
//! 3. Sizes change last. A level in RAM shrinks in steps that the way down can take, so that what no longer fits sinks
//!    instead of being dropped.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use super::load::Defaults;
use super::slot::{Limits, Slot};
use super::{CacheManager, Shared};
use crate::{Error, Level, Result, Rules};

/// What a cache was made from, for whoever made it: see [`Builder::origin`](super::Builder::origin).
pub type Origin = Arc<dyn Any + Send + Sync>;

/// What is to be different. What is not given stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Retune {
    rules: Option<Rules>,
    limits: [Option<(Option<Duration>, Option<Duration>)>; 3],
    capacities: [Option<u64>; 3],
    pending_bytes: Option<u64>,
    sweep_every: Option<Duration>,
    loading: Defaults,
    origin: Option<Origin>,
}

impl Retune {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long entries stay at which level.
    #[must_use]
    pub fn rules(mut self, rules: Rules) -> Self {
        self.rules = Some(rules);
        self
    }

    /// How long reads, and writes, may wait for `level`; `None` for the defaults of its tier.
    #[must_use]
    pub fn timeouts(mut self, level: Level, read: Option<Duration>, write: Option<Duration>) -> Self {
        self.limits[level.index()] = Some((read, write));
        self
    }

    /// The most bytes at `level`.
    #[must_use]
    pub fn capacity(mut self, level: Level, bytes: u64) -> Self {
        self.capacities[level.index()] = Some(bytes);
        self
    }

    /// The most bytes on their way down.
    #[must_use]
    pub fn pending_bytes(mut self, bytes: u64) -> Self {
        self.pending_bytes = Some(bytes);
        self
    }

    /// How often levels are swept.
    #[must_use]
    pub fn sweep_every(mut self, every: Duration) -> Self {
        self.sweep_every = Some(every);
        self
    }

    /// The most loads that run at once. Those that run already go on.
    #[must_use]
    pub fn max_loads(mut self, loads: usize) -> Self {
        self.loading.max_loads = Some(loads);
        self
    }

    /// The most values refreshed in the background at once.
    #[must_use]
    pub fn max_refreshes(mut self, refreshes: usize) -> Self {
        self.loading.max_refreshes = Some(refreshes);
        self
    }

    /// The term of the lease that loads take unless they say otherwise; `None` for no lease.
    #[must_use]
    pub fn load_lease(mut self, term: Option<Duration>) -> Self {
        self.loading.lease = Some(term);
        self
    }

    /// By how much of it the time to live of a loaded value is shortened at most, unless the load says otherwise.
    #[must_use]
    pub fn load_jitter(mut self, share: f32) -> Self {
        self.loading.jitter = Some(share);
        self
    }

    /// What the cache is from now on made from.
    #[must_use]
    pub fn origin(mut self, origin: Origin) -> Self {
        self.origin = Some(origin);
        self
    }
}

impl CacheManager {
    /// Changes sizes, rules, time-outs and limits while the cache is used. `plan` gets what the cache was made from and
    /// says what is to be different; of several calls one runs at a time.
    ///
    /// # Errors
    /// [`Error::Config`] when a level that is to change its size is not there or cannot, or not to that size, when a limit
    /// or default of loading is out of its range, or what `plan` says; [`Error::Closed`]. Nothing has changed then. Dropping the future after it was first polled does
    /// not stop the change.
    pub async fn retune(
        &self,
        plan: impl FnOnce(Option<&Origin>) -> Result<Retune> + Send + 'static,
    ) -> Result<()> {
        let shared = self.shared.clone();
        self.shared.owned(async move { shared.retune(plan).await }, "retune").await?
    }

    /// Whether `level` could have that size. Nothing changes.
    ///
    /// # Errors
    /// [`Error::Config`], beginning with `max_size: `, or that there is no such level.
    pub fn check_capacity(&self, level: Level, bytes: u64) -> Result<()> {
        self.shared.check_capacity(level, bytes)
    }

    /// Whether the tier at `level` can change its size while it is used.
    pub fn is_sizable(&self, level: Level) -> bool {
        self.shared.slot(level).is_some_and(|slot| slot.resident().is_some() || slot.tier.sizing().is_some())
    }
}

impl Shared {
    async fn retune(
        self: Arc<Self>,
        plan: impl FnOnce(Option<&Origin>) -> Result<Retune> + Send + 'static,
    ) -> Result<()> {
        let mut origin = self.origin.lock().await;
        self.check_open()?;
        let change = plan(origin.as_ref())?;
        change.loading.check()?;
        for level in Level::ALL {
            if let Some(bytes) = change.capacities[level.index()] {
                self.check_capacity(level, bytes)?;
            }
        }
        if let Some(rules) = change.rules {
            self.flow.set_rules(rules);
        }
        for slot in self.slots() {
            if let Some((read, write)) = change.limits[slot.level.index()] {
                let defaults = Limits::of(&slot.profile);
                slot.set_limits(Limits {
                    read_timeout: read.unwrap_or(defaults.read_timeout),
                    write_timeout: write.unwrap_or(defaults.write_timeout),
                });
            }
        }
        if let Some(bytes) = change.pending_bytes {
            self.flow.pending.set_limit(bytes);
        }
        if let Some(every) = change.sweep_every {
            self.sweep_every.send_replace(every);
        }
        self.loads.change(&change.loading);
        if change.origin.is_some() {
            *origin = change.origin;
        }
        // Lowest first: what a level above gives up finds the new room below.
        for slot in self.slots().rev() {
            if let Some(bytes) = change.capacities[slot.level.index()] {
                self.resize(slot, bytes).await;
            }
        }
        Ok(())
    }

    fn check_capacity(&self, level: Level, bytes: u64) -> Result<()> {
        let slot = self.slot(level).ok_or_else(|| Error::Config(format!("there is no {level} level")))?;
        match (slot.resident(), slot.tier.sizing()) {
            (Some(_), _) if bytes == 0 => Err(Error::Config("max_size: 0 is below the least, 1 byte".into())),
            (Some(_), _) => Ok(()),
            (None, Some(sizing)) => sizing.check(bytes),
            (None, None) => Err(Error::Config(format!(
                "max_size: {} cannot change its size while it is used",
                slot.tier.name()
            ))),
        }
    }

    async fn resize(&self, slot: &Slot, bytes: u64) {
        let Some(resident) = slot.resident() else {
            if let Some(sizing) = slot.tier.sizing() {
                sizing.resize(bytes);
            }
            return;
        };
        let held = slot.tier.usage().await.ok().and_then(|usage| usage.bytes).unwrap_or(bytes);
        let step = (self.flow.pending.limit() / 4).max(1);
        let mut next = held;
        while next > bytes {
            next = next.saturating_sub(step).max(bytes);
            resident.resize(next);
            if self.flow.pending.is_crowded() {
                self.wait_for_room().await;
            }
        }
        resident.resize(bytes);
    }
}
