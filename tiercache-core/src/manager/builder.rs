use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use tokio::sync::watch;

use super::flow::Flow;
use super::lessor::Lessor;
use super::load::Loads;
use super::lock::Locks;
use super::slot::{Limits, Slot};
use super::stripes::Stripes;
use super::{CacheManager, Origin, Running, Shared, journal};
use crate::bugs::seeded;
use crate::tracking::NoTracking;
use crate::{Clock, Error, Generation, Level, Result, Rules, SystemClock, Tier, Tracking};

/// What `Ok` of a `set` means. Removals are never written behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Write {
    /// The value is in RAM. An older copy below cannot come back, not even after the process was killed; the new
    /// value may be lost by that.
    #[default]
    Back,
    /// As `Back`, and a copy is queued for the level that outlives the process. A crash loses what is queued: at
    /// most the bytes the way down is bounded to.
    Behind,
    /// The level that outlives the process has the value.
    Through,
}

/// Puts a cache together.
#[derive(Debug, Default)]
pub struct Builder {
    tiers: [Option<Arc<dyn Tier>>; 3],
    limits: [Option<Limits>; 3],
    tracking: Option<Arc<dyn Tracking>>,
    rules: Rules,
    clock: Option<Arc<dyn Clock>>,
    write: Write,
    counters: Option<Level>,
    pending_bytes: Option<u64>,
    sweep_every: Option<Duration>,
    max_loads: Option<usize>,
    max_refreshes: Option<usize>,
    origin: Option<Origin>,
    manual: bool,
}

impl Builder {
    /// The tier at the hot level.
    pub fn hot(self, tier: Arc<dyn Tier>) -> Self {
        self.level(Level::Hot, tier)
    }

    /// The tier at the cold level.
    pub fn cold(self, tier: Arc<dyn Tier>) -> Self {
        self.level(Level::Cold, tier)
    }

    /// The tier at the dry level.
    pub fn dry(self, tier: Arc<dyn Tier>) -> Self {
        self.level(Level::Dry, tier)
    }

    /// The tier at `level`.
    pub fn level(mut self, level: Level, tier: Arc<dyn Tier>) -> Self {
        self.tiers[level.index()] = Some(tier);
        self
    }

    /// The deadlines of `level`, instead of its tier's defaults.
    pub fn limits(mut self, level: Level, limits: Limits) -> Self {
        self.limits[level.index()] = Some(limits);
        self
    }

    /// Where placement and use of keys are remembered. Default: nowhere.
    pub fn tracking(mut self, tracking: Arc<dyn Tracking>) -> Self {
        self.tracking = Some(tracking);
        self
    }

    /// How long entries stay at which level.
    pub fn rules(mut self, rules: Rules) -> Self {
        self.rules = rules;
        self
    }

    /// What `Ok` of a `set` means. Default: [`Write::Back`].
    pub fn write(mut self, write: Write) -> Self {
        self.write = write;
        self
    }

    /// The level that has the counters. Default: the lowest that counts, which is the one that lasts longest and that
    /// most processes share.
    pub fn counters(mut self, level: Level) -> Self {
        self.counters = Some(level);
        self
    }

    /// The most bytes on their way down. At half of it writers wait, a second at most; beyond it the oldest is
    /// dropped and counted. Default: 64 MiB.
    pub fn pending_bytes(mut self, bytes: u64) -> Self {
        self.pending_bytes = Some(bytes);
        self
    }

    /// How often levels are swept for what is dead or has stayed its time. Default: every second.
    pub fn sweep_every(mut self, every: Duration) -> Self {
        self.sweep_every = Some(every);
        self
    }

    /// The most loads that run at once; further ones wait their turn. Default: 1000.
    pub fn max_loads(mut self, loads: usize) -> Self {
        self.max_loads = Some(loads);
        self
    }

    /// The most values refreshed in the background at once; beyond it they are left as they are, and counted.
    /// Default: 64.
    pub fn max_refreshes(mut self, refreshes: usize) -> Self {
        self.max_refreshes = Some(refreshes);
        self
    }

    /// Where the time comes from. Default: the machine's clock.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// What the cache is made from, for whoever makes it: [`CacheManager::retune`] hands it back.
    pub fn origin(mut self, origin: Origin) -> Self {
        self.origin = Some(origin);
        self
    }

    /// Nothing runs on its own: sinking, sweeping and tracking happen in [`CacheManager::settle`] and
    /// [`CacheManager::prune`] only. For tests that decide the order of everything.
    #[cfg(any(test, feature = "testing"))]
    pub fn manual(mut self) -> Self {
        self.manual = true;
        self
    }

    /// Builds the cache. Its background work runs on the runtime this is called in.
    ///
    /// # Errors
    /// [`Error::Config`] when there is no level at all, when `through` or `behind` has no level that outlives the
    /// process to write to, when the level chosen for counters does not count, or when called outside a tokio runtime.
    /// What the level that keeps the journal of removals said when it could not be read.
    pub async fn build(self) -> Result<CacheManager> {
        let config = |message: &str| Error::Config(message.to_string());
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| {
            config("a cache is built inside a tokio runtime; without one, use `BlockingCache`")
        })?;
        let clock = self.clock.unwrap_or_else(|| SystemClock::start());
        let mut limits = self.limits;
        let slots = Level::ALL.map(|level| {
            let tier = self.tiers[level.index()].clone()?;
            Some(Slot::new(level, tier, limits[level.index()].take(), clock.clone()))
        });
        let present = || slots.iter().flatten();
        if present().next().is_none() {
            return Err(config("a cache has at least one level"));
        }
        if self.write != Write::Back && !present().any(|slot| slot.profile.persistent) {
            return Err(config(
                "`write: behind` and `write: through` need a level that outlives the process",
            ));
        }
        if let Some(level) = self.counters
            && !present().any(|slot| slot.level == level && slot.tier.counting().is_some())
        {
            return Err(config(&format!("`counters: {level}` needs a backend at that level that counts")));
        }
        let journal = journal::keeper(present());
        let notes = match present().find(|slot| Some(slot.level) == journal) {
            Some(slot) => journal::notes(slot).await?,
            None => Vec::new(),
        };
        let known = present().map(|slot| slot.profile.last_generation);
        let last =
            known.chain(notes.iter().map(|(_, waiting)| waiting.below)).max().unwrap_or(Generation::ZERO);
        let fences: Vec<_> =
            present().filter_map(|slot| slot.tier.fences()).flat_map(|fences| fences.remembered()).collect();
        let flow = Arc::new(Flow::new(
            clock,
            self.rules,
            self.tracking.unwrap_or_else(|| Arc::new(NoTracking)),
            self.pending_bytes.unwrap_or(64 << 20),
            if seeded("generations-restart") { Generation::ZERO } else { last },
        ));
        for (scope, generation) in fences.into_iter().filter(|_| !seeded("fences-not-remembered")) {
            flow.fences.remove(&scope, generation);
        }
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::new(Shared {
            lessor: Lessor::of(&slots, &**flow.recorder.tracking()),
            locks: Locks::new(),
            flow,
            slots,
            stripes: Stripes::new(),
            loads: Loads::new(
                self.max_loads.unwrap_or(1_000),
                self.max_refreshes.unwrap_or(64),
                stopped.clone(),
            ),
            write: self.write,
            counters: self.counters,
            sweep_every: watch::Sender::new(self.sweep_every.unwrap_or(Duration::from_secs(1))),
            restoring: tokio::sync::Mutex::default(),
            origin: tokio::sync::Mutex::new(self.origin),
            closed: AtomicBool::new(false),
            invalidating: AtomicUsize::new(0),
            journal,
            stopped: stopped.clone(),
            runtime,
        });
        for slot in shared.slots() {
            slot.tier.attach(Arc::new(shared.chute(slot.level)));
        }
        shared.resume(notes).await;
        if !self.manual {
            shared.start(&stopped);
        }
        Ok(CacheManager { shared, namespace: "".into(), _running: Arc::new(Running(stop)) })
    }
}
