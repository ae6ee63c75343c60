use super::CacheManager;
use super::counters::Count;
use crate::tier::Usage;
use crate::tracking::Totals;
use crate::{Level, Result};

/// What a cache holds and has done.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Hits per level, misses, sets and deletes: since tracking began to count where it persists, else since the
    /// cache was built; and in both cases since the last reset.
    pub totals: Totals,
    /// The levels there are.
    pub levels: Vec<LevelStats>,
    /// Entries on their way down, and their bytes.
    pub pending: (u64, u64),
    /// Operations waiting for a level.
    pub in_flight: u64,
    /// Entries that came up.
    pub promoted: u64,
    /// Entries that went down a level.
    pub sunk: u64,
    /// Entries that left the last level, or were dead on the way.
    pub faded: u64,
    /// Entries dropped because the way down was full.
    pub overflowed: u64,
    /// Old values that were about to be published and were not.
    pub refused: u64,
    /// Stored bytes that did not decode as the type asked for: misses.
    pub undecodable: u64,
    /// Gets that joined another's read.
    pub joined: u64,
    /// Removals that could not reach a level at first.
    pub degraded: u64,
    /// Times a level could not be reached for so many removals that it is emptied when it is back.
    pub emptied: u64,
    /// Loads that somebody waited for.
    pub loads: u64,
    /// Callers that joined another's load.
    pub loads_joined: u64,
    /// Loads that failed.
    pub load_failures: u64,
    /// Values refreshed in the background.
    pub refreshes: u64,
    /// Refreshes that were due while as many ran as may at once.
    pub refreshes_skipped: u64,
    /// Answers that were stale.
    pub served_stale: u64,
    /// Removals that wait for a level and would be forgotten if the process were killed, since the level that keeps
    /// the journal did not take them.
    pub unnoted: u64,
    /// Invalidations remembered, and how many were merged into coarser ones.
    pub fences: (u64, u64),
    /// Batches the tracking store did not take at first.
    pub tracking_failures: u64,
    /// Hit details added up before they were told.
    pub tracking_merged: u64,
    /// Placements the tracking store will never be told.
    pub tracking_lost: u64,
}

/// What a level holds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LevelStats {
    /// Which level.
    pub level: Level,
    /// Its tier's name.
    pub backend: &'static str,
    /// What it holds; `None` when it did not say.
    pub usage: Option<Usage>,
    /// Whether its breaker keeps calls away now.
    pub breaker_open: bool,
    /// How often the breaker opened.
    pub breaker_opened: u64,
}

impl CacheManager {
    /// What the cache holds and has done, all namespaces together.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed). A level or a tracking store that does not answer is left out.
    pub async fn stats(&self) -> Result<Stats> {
        self.shared.check_open()?;
        let (shared, flow) = (&self.shared, &self.shared.flow);
        let counters = &flow.counters;
        let recorder = &flow.recorder;
        let mut totals = recorder.unreported(counters);
        if recorder.is_enabled() {
            match recorder.ask("totals", recorder.tracking().totals()).await {
                Ok(remembered) => totals.add(&remembered),
                Err(error) => tracing::warn!(%error, "tracking did not tell its totals"),
            }
        }
        let mut levels = Vec::new();
        for slot in shared.slots() {
            let usage = slot.call("usage", slot.limits().read_timeout, slot.tier.usage()).await;
            levels.push(LevelStats {
                level: slot.level,
                backend: slot.tier.name(),
                usage: usage.ok(),
                breaker_open: slot.is_open(),
                breaker_opened: slot.opened(),
            });
        }
        Ok(Stats {
            totals,
            levels,
            pending: (flow.pending.len() as u64, flow.pending.bytes()),
            in_flight: shared.stripes.in_flight() as u64,
            promoted: counters.sum(Count::Promoted),
            sunk: counters.sum(Count::Sunk),
            faded: counters.sum(Count::Faded),
            overflowed: counters.sum(Count::Overflowed),
            refused: counters.sum(Count::Refused),
            undecodable: counters.sum(Count::Undecodable),
            joined: counters.sum(Count::Joined),
            degraded: counters.sum(Count::Degraded),
            emptied: counters.sum(Count::Emptied),
            loads: counters.sum(Count::Loaded),
            loads_joined: counters.sum(Count::LoadJoined),
            load_failures: counters.sum(Count::LoadFailed),
            refreshes: counters.sum(Count::Refreshed),
            refreshes_skipped: counters.sum(Count::RefreshSkipped),
            served_stale: counters.sum(Count::ServedStale),
            unnoted: counters.sum(Count::Unnoted),
            fences: (flow.fences.len() as u64, flow.fences.merged()),
            tracking_failures: recorder.failures(),
            tracking_merged: recorder.merged(),
            tracking_lost: recorder.lost(),
        })
    }

    /// [`Stats::unnoted`], without a question to any level.
    #[cfg(any(test, feature = "testing"))]
    pub fn unnoted(&self) -> u64 {
        self.shared.flow.counters.sum(Count::Unnoted)
    }

    /// Sets hits, misses, sets and deletes to zero, in the tracking store too.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed), or what the tracking store said.
    pub async fn reset_stats(&self) -> Result<()> {
        self.shared.check_open()?;
        let flow = &self.shared.flow;
        flow.recorder.reset(flow.now(), &flow.counters).await
    }
}
