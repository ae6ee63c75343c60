//! The orderly end.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::CacheManager;
use super::counters::Count;
use super::guard::caught;
use crate::{Error, Level, Result};

/// What became of everything when the cache was closed.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CloseReport {
    /// Per level, what RAM held there when the end began.
    pub levels: Vec<LevelReport>,
    /// Entries that reached the level that outlives the process.
    pub written: u64,
    /// Entries that were there already, dead, or superseded.
    pub settled: u64,
    /// Entries lost because time ran out before they were written.
    pub out_of_time: u64,
    /// Entries lost because no level outlives the process.
    pub nowhere_to_go: u64,
    /// Entries lost because no level that outlives the process took them.
    pub refused: u64,
    /// Parts that failed to close, by name.
    pub failures: Vec<(&'static str, Error)>,
}

/// What one level in RAM held.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LevelReport {
    /// Which level.
    pub level: Level,
    /// Entries.
    pub entries: u64,
    /// Bytes.
    pub bytes: u64,
}

impl CloseReport {
    /// Entries that were lost.
    pub fn dropped(&self) -> u64 {
        self.out_of_time + self.nowhere_to_go + self.refused
    }

    /// Whether nothing was lost and everything closed.
    pub fn is_clean(&self) -> bool {
        self.dropped() == 0 && self.failures.is_empty()
    }
}

impl fmt::Display for CloseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} written, {} already settled, {} dropped", self.written, self.settled, self.dropped())?;
        for (count, why) in [
            (self.out_of_time, "out of time"),
            (self.nowhere_to_go, "no level outlives the process"),
            (self.refused, "no level took them"),
        ] {
            if count > 0 {
                write!(f, " ({count}: {why})")?;
            }
        }
        for (part, error) in &self.failures {
            write!(f, "; {part}: {error}")?;
        }
        Ok(())
    }
}

impl CacheManager {
    /// Ends the cache: sinks what RAM holds into the level that outlives the process, drains every queue, tells
    /// tracking, closes the tiers top down, all within `deadline`, and says what became of it. Calls that come
    /// later, or are made meanwhile, fail with [`Error::Closed`].
    ///
    /// # Errors
    /// [`Error::Closed`] when it was closed already. Dropping the future after it was first polled does not stop
    /// the closing.
    pub async fn close(&self, deadline: Duration) -> Result<CloseReport> {
        if self.shared.closed.swap(true, Ordering::AcqRel) {
            return Err(Error::Closed);
        }
        let manager = self.clone();
        self.shared.owned(async move { manager.finish(deadline).await }, "close").await
    }

    async fn finish(self, deadline: Duration) -> CloseReport {
        let (shared, flow) = (&self.shared, &self.shared.flow);
        let mut report = CloseReport::default();
        let end = tokio::time::Instant::now() + deadline;
        let before = (flow.counters.sum(Count::Sunk), flow.counters.sum(Count::Faded));
        shared.locks.end(deadline).await;
        flow.closing.store(true, Ordering::Release);
        for slot in shared.slots() {
            let Some(resident) = slot.resident() else { continue };
            if let Ok(usage) = slot.tier.usage().await {
                report.levels.push(LevelReport {
                    level: slot.level,
                    entries: usage.entries.unwrap_or_default(),
                    bytes: usage.bytes.unwrap_or_default(),
                });
            }
            resident.drain();
        }
        if shared.durable(crate::Levels::ALL).is_none() {
            report.nowhere_to_go =
                report.levels.iter().map(|level| level.entries).sum::<u64>() + flow.pending.len() as u64;
        } else {
            // What already waited for a level in RAM goes on from there to the one that lasts.
            let _ = tokio::time::timeout_at(end, async {
                loop {
                    shared.settle().await;
                    for slot in shared.slots() {
                        if let Some(resident) = slot.resident() {
                            resident.drain();
                        }
                    }
                    if flow.pending.is_empty() {
                        return;
                    }
                    let left = flow.pending.room.notified();
                    let _ = tokio::time::timeout(Duration::from_millis(20), left).await;
                }
            })
            .await;
            report.out_of_time = flow.pending.len() as u64;
        }
        report.written = flow.counters.sum(Count::Sunk) - before.0;
        report.settled = flow.counters.sum(Count::Faded) - before.1;
        // Flushing and releasing is given a moment even when sinking took all the time there was.
        let end = end.max(tokio::time::Instant::now() + Duration::from_secs(1));
        let mut close =
            |part: &'static str, result: Result<Result<()>, tokio::time::error::Elapsed>| match result {
                Ok(Ok(())) => {}
                Ok(Err(error)) => report.failures.push((part, error)),
                Err(_) => report
                    .failures
                    .push((part, Error::TimedOut { backend: part, op: "close", after: deadline })),
            };
        let told = tokio::time::timeout_at(end, flow.recorder.flush(flow.now(), &flow.counters)).await;
        close("tracking", told);
        for slot in shared.slots() {
            let name = slot.tier.name();
            close(name, tokio::time::timeout_at(end, caught(name, slot.tier.close())).await);
        }
        close(
            "tracking",
            tokio::time::timeout_at(end, caught("tracking", flow.recorder.tracking().close())).await,
        );
        self._running.0.send_replace(true);
        report
    }
}
