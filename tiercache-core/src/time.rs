use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point in time: milliseconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The beginning of 1970.
    pub const EPOCH: Self = Self(0);
    /// Later than every other point; the deadline of an entry that has none.
    pub const NEVER: Self = Self(u64::MAX);

    /// The point that many milliseconds after the epoch; `u64::MAX` is [`Timestamp::NEVER`].
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Whether this is [`Timestamp::NEVER`].
    pub const fn is_never(self) -> bool {
        self.0 == u64::MAX
    }

    /// This point plus `by`, [`Timestamp::NEVER`] when that is out of range.
    pub fn after(self, by: Duration) -> Self {
        self.after_millis(u64::try_from(by.as_millis()).unwrap_or(u64::MAX))
    }

    /// This point plus that many milliseconds, saturating at [`Timestamp::NEVER`].
    pub const fn after_millis(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// This point less `by`; [`Timestamp::NEVER`] stays what it is.
    pub fn before(self, by: Duration) -> Self {
        let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        if self.is_never() { self } else { Self(self.0.saturating_sub(by)) }
    }

    /// How long after `earlier` this is; zero when it is not.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_never() { f.write_str("never") } else { write!(f, "{}ms", self.0) }
    }
}

/// Where the time comes from.
///
/// Within a process it never goes back, whatever the wall clock does; the wall clock is asked once, when the
/// clock is made, so that what is persisted means the same to the next process.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The exact time now.
    fn now(&self) -> Timestamp;

    /// The cell a ticker keeps near [`Clock::now`], for paths that cannot afford to ask. It is at most a few
    /// ticks (10 ms each) behind, so what is due within [`COARSE_SLACK_MILLIS`] must be decided by `now`.
    fn coarse(&self) -> Arc<AtomicU64>;
}

/// How far the coarse time may be behind before an answer that depends on it could be wrong. What is due sooner
/// is decided by [`Clock::now`].
pub const COARSE_SLACK_MILLIS: u64 = 1_000;

/// The coarse time of a clock that has no ticker: every decision by it goes to [`Clock::now`].
pub(crate) const NO_TICKER: u64 = u64::MAX - COARSE_SLACK_MILLIS;

/// The machine's clock: monotonic, anchored to the wall clock when it was made.
#[derive(Debug)]
pub struct SystemClock {
    started: Instant,
    anchor: u64,
    coarse: Arc<AtomicU64>,
}

impl SystemClock {
    /// A clock with a ticker thread that ends with its last handle.
    pub fn start() -> Arc<Self> {
        let anchor = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX / 2));
        let clock =
            Arc::new(Self { started: Instant::now(), anchor, coarse: Arc::new(AtomicU64::new(anchor)) });
        let ticked = Arc::downgrade(&clock);
        let ticker = std::thread::Builder::new().name("tiercache-clock".into()).spawn(move || {
            while let Some(clock) = ticked.upgrade() {
                clock.tick();
                drop(clock);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        if let Err(error) = ticker {
            // Without a ticker the coarse time would stand still and nothing would ever be seen to expire on
            // the fast path. A coarse time at the end of time sends every decision to the exact clock.
            tracing::warn!(%error, "no clock ticker, every hit asks the exact clock");
            clock.coarse.store(NO_TICKER, Ordering::Relaxed);
        }
        clock
    }

    fn tick(&self) {
        self.coarse.store(self.now().as_millis(), Ordering::Relaxed);
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX / 2);
        Timestamp(self.anchor.saturating_add(elapsed))
    }

    fn coarse(&self) -> Arc<AtomicU64> {
        self.coarse.clone()
    }
}
