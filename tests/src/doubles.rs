//! Doubles for tests of single promises, beside those of `tiercache_core::testing`.

#![allow(missing_docs, reason = "a test's own vocabulary")]

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use tiercache_core::testing::{Hooks, Op};
use tiercache_core::{Clock, Timestamp};

/// Lets others run before and after every call.
#[derive(Debug)]
pub struct Yielding;

#[async_trait]
impl Hooks for Yielding {
    async fn before(&self, _op: Op) {
        tokio::task::yield_now().await;
    }

    async fn after(&self, _op: Op) {
        tokio::task::yield_now().await;
    }
}

/// A clock that goes with the runtime's, paused or not.
#[derive(Debug)]
pub struct RuntimeClock {
    started: tokio::time::Instant,
    coarse: Arc<AtomicU64>,
}

impl RuntimeClock {
    /// Begins at a fixed time in 2024.
    pub fn start() -> Arc<Self> {
        // Nothing ticks here: with the coarse time at its end, whatever has a deadline asks for the exact one.
        let coarse = Arc::new(AtomicU64::new(u64::MAX - tiercache_core::COARSE_SLACK_MILLIS));
        Arc::new(Self { started: tokio::time::Instant::now(), coarse })
    }
}

impl Clock for RuntimeClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_700_000_000_000).after(self.started.elapsed())
    }

    fn coarse(&self) -> Arc<AtomicU64> {
        self.coarse.clone()
    }
}

/// A manual clock that runs something right after it was asked for the time: between reading and acting on it.
pub struct TrapClock {
    time: Arc<AtomicU64>,
    trap: Mutex<Option<Trap>>,
}

type Trap = Box<dyn FnOnce() + Send>;

impl TrapClock {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { time: Arc::new(AtomicU64::new(1_700_000_000_000)), trap: Mutex::default() })
    }

    pub fn advance(&self, by: Duration) {
        self.time.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
    }

    /// Runs `trap` the next time somebody asks.
    pub fn set_trap(&self, trap: impl FnOnce() + Send + 'static) {
        *self.trap.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(trap));
    }
}

impl Clock for TrapClock {
    fn now(&self) -> Timestamp {
        let now = Timestamp::from_millis(self.time.load(Ordering::Relaxed));
        let trap = self.trap.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(trap) = trap {
            trap();
        }
        now
    }

    fn coarse(&self) -> Arc<AtomicU64> {
        self.time.clone()
    }
}

impl std::fmt::Debug for TrapClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrapClock").field("time", &self.time).finish_non_exhaustive()
    }
}

/// Polls `future` that many times at most and drops it then. `None`: it was dropped.
pub async fn poll_at_most<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => {
            left -= 1;
            if left == 0 { Poll::Ready(None) } else { Poll::Pending }
        }
    })
    .await
}
