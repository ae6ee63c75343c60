use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::{Clock, Timestamp};

/// A clock that stands still until it is told to move; its coarse time is always exact.
#[derive(Debug)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// A clock that begins at a fixed time in 2024.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Arc::new(AtomicU64::new(1_700_000_000_000))))
    }

    /// Moves on by that much.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX / 4), Ordering::Relaxed);
    }

    /// Jumps to that time, back as well as forth.
    pub fn set(&self, to: Timestamp) {
        self.0.store(to.as_millis(), Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::Relaxed))
    }

    fn coarse(&self) -> Arc<AtomicU64> {
        self.0.clone()
    }
}
