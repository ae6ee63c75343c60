//! What the loads of a manager share: how many may run, and what they do unless they are told otherwise.

use std::future::Future;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;

use crate::lease::LONGEST_TERM;
use crate::{Error, Result, Timestamp};

/// What loads of a manager share.
#[derive(Debug)]
pub(in crate::manager) struct Loads {
    running: Arc<Limit>,
    refreshing: Arc<Limit>,
    stopped: watch::Receiver<bool>,
    /// The longest that a load took, in milliseconds: bounds how early a refresh by chance may come.
    longest: AtomicU64,
    chance: AtomicU64,
    /// The term of leases unless a load says, in milliseconds; 0 for none.
    lease: AtomicU64,
    /// Until when the store of leases is left alone, since it failed.
    lease_rest: AtomicU64,
    /// By how much lives are shortened unless a load says, as bits.
    jitter: AtomicU32,
}

/// What of that was given.
#[derive(Clone, Debug, Default)]
pub(in crate::manager) struct Defaults {
    pub(in crate::manager) max_loads: Option<usize>,
    pub(in crate::manager) max_refreshes: Option<usize>,
    pub(in crate::manager) lease: Option<Option<Duration>>,
    pub(in crate::manager) jitter: Option<f32>,
}

impl Defaults {
    /// # Errors
    /// [`Error::Config`] for what is out of its range.
    pub(in crate::manager) fn check(&self) -> Result<()> {
        let refuse = |message: String| Err(Error::Config(message));
        if self.max_loads == Some(0) {
            return refuse("max_loads: at least one load must be allowed to run".into());
        }
        if let Some(Some(term)) = self.lease
            && (term.is_zero() || term > LONGEST_TERM)
        {
            return refuse(format!("lease: a time above 0, {LONGEST_TERM:?} at most, not {term:?}"));
        }
        if let Some(share) = self.jitter
            && !(0.0..=1.0).contains(&share)
        {
            return refuse(format!("jitter: a share is between 0 and 1, not {share}"));
        }
        Ok(())
    }
}

impl Loads {
    pub(in crate::manager) fn new(given: &Defaults, stopped: watch::Receiver<bool>) -> Self {
        let loads = Self {
            running: Limit::new(0),
            refreshing: Limit::new(0),
            stopped,
            longest: AtomicU64::new(0),
            chance: AtomicU64::new(0),
            lease: AtomicU64::new(0),
            lease_rest: AtomicU64::new(0),
            jitter: AtomicU32::new(0),
        };
        loads.change(given);
        loads
    }

    /// Changes what is given, for loads that begin from now on.
    pub(in crate::manager) fn change(&self, given: &Defaults) {
        if let Some(loads) = given.max_loads {
            self.running.set(loads);
        }
        if let Some(refreshes) = given.max_refreshes {
            self.refreshing.set(refreshes);
        }
        if let Some(term) = given.lease {
            // At most a day, and more than nothing is at least a millisecond.
            let millis = term.map_or(0, |term| (term.as_millis() as u64).max(1));
            self.lease.store(millis, Ordering::Relaxed);
        }
        if let Some(share) = given.jitter {
            self.jitter.store(share.to_bits(), Ordering::Relaxed);
        }
    }

    /// The term of leases; zero for none.
    pub(super) fn lease(&self) -> Duration {
        Duration::from_millis(self.lease.load(Ordering::Relaxed))
    }

    pub(super) fn jitter(&self) -> f32 {
        f32::from_bits(self.jitter.load(Ordering::Relaxed))
    }

    /// Leaves the store of leases alone until then.
    pub(super) fn rest_leases(&self, until: Timestamp) {
        self.lease_rest.store(until.as_millis(), Ordering::Relaxed);
    }

    pub(super) fn leases_rest(&self, now: Timestamp) -> bool {
        now.as_millis() < self.lease_rest.load(Ordering::Relaxed)
    }

    /// Above 0, up to 1. Not for secrets: it only keeps things from happening all at once.
    pub(super) fn chance(&self) -> f64 {
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

    /// Leave to refresh in the background, if not too many do.
    pub(super) fn refresh(&self) -> Option<Leave> {
        self.refreshing.try_take()
    }

    /// Leave to load.
    pub(super) async fn permit(&self) -> Result<Leave> {
        self.running.take().await.ok_or(Error::Closed)
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

    /// The longest that a load took, in milliseconds.
    pub(super) fn longest(&self) -> u64 {
        self.longest.load(Ordering::Relaxed)
    }
}

/// How many of something there may be at once, which may change meanwhile.
#[derive(Debug)]
struct Limit {
    places: Semaphore,
    /// How many there may be, and how many places of those that are taken are one too many.
    state: Mutex<(usize, usize)>,
}

impl Limit {
    fn new(most: usize) -> Arc<Self> {
        let most = most.min(Semaphore::MAX_PERMITS);
        Arc::new(Self { places: Semaphore::new(most), state: Mutex::new((most, 0)) })
    }

    fn set(&self, most: usize) {
        let most = most.min(Semaphore::MAX_PERMITS);
        let mut state = self.state();
        let (standing, owed) = *state;
        *state = match most.checked_sub(standing) {
            Some(more) => {
                let paid = more.min(owed);
                self.places.add_permits(more - paid);
                (most, owed - paid)
            }
            None => {
                let fewer = standing - most;
                (most, owed + fewer - self.places.forget_permits(fewer))
            }
        };
    }

    async fn take(self: &Arc<Self>) -> Option<Leave> {
        self.places.acquire().await.ok().map(SemaphorePermit::forget)?;
        Some(Leave(self.clone()))
    }

    fn try_take(self: &Arc<Self>) -> Option<Leave> {
        self.places.try_acquire().ok().map(SemaphorePermit::forget)?;
        Some(Leave(self.clone()))
    }

    fn state(&self) -> MutexGuard<'_, (usize, usize)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place, given back when this is dropped.
#[derive(Debug)]
pub(super) struct Leave(Arc<Limit>);

impl Drop for Leave {
    fn drop(&mut self) {
        let mut state = self.0.state();
        match &mut state.1 {
            0 => self.0.places.add_permits(1),
            owed => *owed -= 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_limit_changes_under_those_who_have_a_place() {
        let limit = Limit::new(3);
        let mut taken: Vec<Leave> = (0..3).map(|_| limit.try_take().unwrap()).collect();
        limit.set(1);
        taken.pop();
        taken.pop();
        assert!(limit.try_take().is_none(), "the last one fills it");
        limit.set(2);
        let more = limit.try_take().unwrap();
        assert!(limit.try_take().is_none());
        drop((taken, more));
        let again = (limit.try_take().unwrap(), limit.try_take().unwrap());
        assert!(limit.try_take().is_none());
        drop(again);
        limit.set(5);
        limit.set(0);
        assert!(limit.try_take().is_none());
        limit.set(usize::MAX);
        assert!(limit.take().await.is_some());
    }
}
