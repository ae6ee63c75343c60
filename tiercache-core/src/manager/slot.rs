//! A tier at its level, behind a deadline per operation and a breaker.

use std::future::Future;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::guard::caught;
use super::journal::MOST_WAITING;
use crate::tier::{Index, Profile, Resident, Scope};
use crate::transaction::Transactions;
use crate::{Clock, Error, Generation, Level, Result, Tier, Timestamp};

/// How a level answers to trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest a read may wait for the level. Default: 100 ms for a shared tier, 1 s for one of this machine.
    pub read_timeout: Duration,
    /// The longest a write or removal may take. Default: 10 s.
    pub write_timeout: Duration,
}

impl Limits {
    /// The defaults for a tier of that profile.
    pub const fn of(profile: &Profile) -> Self {
        Self {
            read_timeout: Duration::from_millis(if profile.shared { 100 } else { 1_000 }),
            write_timeout: Duration::from_secs(10),
        }
    }
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) level: Level,
    pub(super) tier: Arc<dyn Tier>,
    pub(super) profile: Profile,
    /// Whether it is in this process's memory, which is known once and for all.
    pub(super) in_ram: bool,
    /// In nanoseconds: each is read alone, so a change needs no lock.
    read_timeout: AtomicU64,
    write_timeout: AtomicU64,
    /// Raised by a flush: what was read from the level before is not published after.
    pub(super) flushed: AtomicU64,
    /// Invalidations of many that have not reached it, once for each.
    lagging: RwLock<Arc<Vec<Scope>>>,
    /// Removals of any kind that wait for it.
    waiting: AtomicUsize,
    /// Whether it is to be emptied since too many did; held while that is noted.
    pub(super) emptying: tokio::sync::Mutex<bool>,
    /// How often that was asked for.
    pub(super) to_empty: AtomicU64,
    /// Above every generation that was read from it before it had to be emptied.
    doubted_since: AtomicU64,
    breaker: Breaker,
    clock: Arc<dyn Clock>,
}

impl Slot {
    pub(super) fn new(
        level: Level,
        tier: Arc<dyn Tier>,
        limits: Option<Limits>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let profile = tier.profile();
        let limits = limits.unwrap_or_else(|| Limits::of(&profile));
        Self {
            level,
            profile,
            in_ram: tier.resident().is_some(),
            read_timeout: AtomicU64::new(nanos(limits.read_timeout)),
            write_timeout: AtomicU64::new(nanos(limits.write_timeout)),
            flushed: AtomicU64::new(0),
            lagging: RwLock::default(),
            waiting: AtomicUsize::new(0),
            emptying: tokio::sync::Mutex::default(),
            to_empty: AtomicU64::new(0),
            doubted_since: AtomicU64::new(0),
            breaker: Breaker::default(),
            clock,
            tier,
        }
    }

    /// How the level answers to trouble now.
    pub(super) fn limits(&self) -> Limits {
        let read = |nanos: &AtomicU64| Duration::from_nanos(nanos.load(Ordering::Relaxed));
        Limits { read_timeout: read(&self.read_timeout), write_timeout: read(&self.write_timeout) }
    }

    /// From now on; calls that wait already wait as long as they were told to.
    pub(super) fn set_limits(&self, limits: Limits) {
        self.read_timeout.store(nanos(limits.read_timeout), Ordering::Relaxed);
        self.write_timeout.store(nanos(limits.write_timeout), Ordering::Relaxed);
    }

    pub(super) fn resident(&self) -> Option<&dyn Resident> {
        self.tier.resident()
    }

    pub(super) fn index(&self) -> Option<&dyn Index> {
        self.tier.index()
    }

    pub(super) fn transactions(&self) -> Option<&dyn Transactions> {
        self.tier.transactions()
    }

    /// Notes that an invalidation has not reached the tier.
    pub(super) fn begin_lag(&self, scope: &Scope) {
        let mut lagging = self.lagging.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut lagging).push(scope.clone());
    }

    /// Notes that it has.
    pub(super) fn end_lag(&self, scope: &Scope) {
        let mut lagging = self.lagging.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = lagging.iter().position(|lagging| lagging == scope) {
            Arc::make_mut(&mut lagging).swap_remove(at);
        }
    }

    /// The invalidations that have not reached it.
    pub(super) fn lagging(&self) -> Arc<Vec<Scope>> {
        self.lagging.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How long a removal may take that somebody waits for.
    pub(super) fn removal_timeout(&self) -> Duration {
        let Limits { read_timeout, write_timeout } = self.limits();
        write_timeout.min(read_timeout.max(Duration::from_secs(1)))
    }

    /// Notes that one more removal waits for the tier; `false` when that would be too many.
    pub(super) fn begin_waiting(&self) -> bool {
        let more = |waiting| (waiting < MOST_WAITING).then_some(waiting + 1);
        self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// Notes that one does not any more.
    pub(super) fn end_waiting(&self) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
    }

    /// Notes that nothing it holds is believed from that generation on.
    pub(super) fn doubt_since(&self, generation: Generation) {
        self.doubted_since.store(generation.get(), Ordering::Release);
    }

    /// Since which generation nothing it holds is believed, if it is to be emptied.
    pub(super) fn doubted_since(&self) -> Generation {
        Generation::new(self.doubted_since.load(Ordering::Acquire))
    }

    /// Whether its store was away when the cache began, and has not been opened since.
    pub(super) fn is_away(&self) -> bool {
        self.tier.late().is_some_and(|late| !late.is_open())
    }

    /// Whether calls are kept away now, by the breaker or since there is nothing to call.
    pub(super) fn is_open(&self) -> bool {
        self.breaker.is_open(self.clock.now()) || self.is_away()
    }

    /// How often the breaker opened.
    pub(super) fn opened(&self) -> u64 {
        u64::from(self.breaker.opened.load(Ordering::Relaxed))
    }

    /// Runs an operation of the tier within `limit`, unless the breaker is open. A tier that panics has failed.
    pub(super) async fn call<T>(
        &self,
        op: &'static str,
        limit: Duration,
        operation: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let backend = self.tier.name();
        if self.is_away() {
            return Err(Error::unavailable(backend, op, "it has not been opened yet"));
        }
        if !self.breaker.admit(self.clock.now()) {
            return Err(Error::unavailable(backend, op, "the breaker is open"));
        }
        // A caller that is dropped here has learnt nothing: the probe, if this was one, goes to the next.
        let probe = Probe(&self.breaker);
        let result = match tokio::time::timeout(limit, caught(backend, operation)).await {
            Ok(result) => result,
            Err(_) => Err(Error::TimedOut { backend, op, after: limit }),
        };
        drop(probe);
        match &result {
            Err(error) if error.is_retryable() || matches!(error, Error::Panicked { .. }) => {
                if self.breaker.failed(self.clock.now()) {
                    tracing::warn!(backend, level = %self.level, op, %error, "breaker opened");
                } else {
                    tracing::debug!(backend, level = %self.level, op, %error, "tier failed");
                }
            }
            _ => {
                if self.breaker.succeeded() {
                    tracing::info!(backend, level = %self.level, "breaker closed");
                }
            }
        }
        result
    }
}

impl Slot {
    /// [`Slot::call`] for a batch of so many items: an answer for each. It failed if every item did.
    pub(super) async fn call_many<T>(
        &self,
        op: &'static str,
        limit: Duration,
        count: usize,
        batch: impl Future<Output = Vec<Result<T>>>,
    ) -> Vec<Result<T>> {
        let operation = async {
            let mut answers = batch.await;
            if answers.len() != count {
                let said = format!("{} answers to {count} questions", answers.len());
                return Err(Error::unavailable(self.tier.name(), op, said));
            }
            match answers.pop() {
                Some(Err(error)) if answers.iter().all(Result::is_err) => Err(error),
                last => {
                    answers.extend(last);
                    Ok(answers)
                }
            }
        };
        let answers = self.call(op, limit, operation).await;
        answers.unwrap_or_else(|error| (0..count).map(|_| Err(error.clone())).collect())
    }
}

/// Five hundred years are long enough to wait.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Opens after three failures in a row or a second of nothing else, lets one call through when its time is over, and
/// closes when that works.
#[derive(Debug, Default)]
struct Breaker {
    failures: AtomicU32,
    /// When the first of them was.
    failing_since: AtomicU64,
    opened: AtomicU32,
    /// When the next probe may go; 0 when closed.
    open_until: AtomicU64,
    probing: AtomicU32,
}

const FAILURES_TO_OPEN: u32 = 3;
const FAILING_TO_OPEN_MILLIS: u64 = 1_000;
const FIRST_PAUSE_MILLIS: u64 = 100;
/// A tier that is back is used again within 5 s.
const LONGEST_PAUSE_MILLIS: u64 = 4_000;

impl Breaker {
    fn is_open(&self, now: Timestamp) -> bool {
        now.as_millis() < self.open_until.load(Ordering::Relaxed)
    }

    fn admit(&self, now: Timestamp) -> bool {
        if self.open_until.load(Ordering::Relaxed) == 0 {
            return true;
        }
        !self.is_open(now) && self.probing.swap(1, Ordering::AcqRel) == 0
    }

    /// Returns whether this opened it.
    fn failed(&self, now: Timestamp) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures == 1 {
            self.failing_since.store(now.as_millis(), Ordering::Relaxed);
        }
        let failing = now.as_millis().saturating_sub(self.failing_since.load(Ordering::Relaxed));
        if failures < FAILURES_TO_OPEN && failing < FAILING_TO_OPEN_MILLIS {
            return false;
        }
        let doublings = failures.saturating_sub(FAILURES_TO_OPEN).min(8);
        let pause = (FIRST_PAUSE_MILLIS << doublings).min(LONGEST_PAUSE_MILLIS);
        // Jitter from the time itself: enough to keep processes apart, and no source of randomness to inject.
        let jitter = now.as_millis().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56;
        let until = now.after_millis(pause - pause * jitter / 1024).as_millis();
        let opened = self.open_until.swap(until, Ordering::Relaxed) == 0;
        if opened {
            self.opened.fetch_add(1, Ordering::Relaxed);
        }
        opened
    }

    /// Returns whether this closed it.
    fn succeeded(&self) -> bool {
        self.failures.store(0, Ordering::Relaxed);
        self.open_until.swap(0, Ordering::Relaxed) != 0
    }
}

struct Probe<'a>(&'a Breaker);

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        self.0.probing.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breaker_opens_after_three_failures_and_lets_one_probe_through() {
        let breaker = Breaker::default();
        let start = Timestamp::from_millis(1_000_000);
        assert!(!breaker.failed(start) && !breaker.failed(start));
        assert!(breaker.admit(start), "two failures leave it closed");
        assert!(breaker.failed(start));
        assert!(breaker.is_open(start) && !breaker.admit(start));
        let later = start.after_millis(FIRST_PAUSE_MILLIS);
        assert!(breaker.admit(later), "the first probe goes through");
        assert!(!breaker.admit(later), "the second waits for the first");
        drop(Probe(&breaker));
        assert!(breaker.admit(later), "a dropped probe frees the place");
        assert!(breaker.succeeded(), "success closes it");
        assert!(breaker.admit(later) && breaker.admit(later));
    }

    #[test]
    fn breaker_opens_after_a_second_of_failures_however_few() {
        let breaker = Breaker::default();
        let start = Timestamp::from_millis(1_000_000);
        assert!(!breaker.failed(start));
        assert!(breaker.failed(start.after_millis(FAILING_TO_OPEN_MILLIS)));
        assert!(breaker.succeeded() && !breaker.failed(start.after_millis(60_000)), "a success begins anew");
    }

    #[test]
    fn breaker_is_asked_again_within_five_seconds_however_long_the_tier_was_away() {
        let breaker = Breaker::default();
        let mut now = Timestamp::from_millis(5);
        for _ in 0..100 {
            breaker.failed(now);
            now = now.after_millis(LONGEST_PAUSE_MILLIS);
            assert!(breaker.admit(now));
            drop(Probe(&breaker));
        }
    }
}
