//! What waits for a shard's writer.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::ErrorCode;
use tiercache_core::Error;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::step::Step;
use crate::tier::NAME;

/// The most calls of one transaction.
pub(crate) const BATCH: usize = 256;

/// Why a call failed.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// The disk or the database is full.
    Full,
    /// Anything else.
    Other(Error),
}

impl Failure {
    pub(crate) fn of(op: &'static str, patience: Duration, error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Self::Other(Error::TimedOut { backend: NAME, op, after: patience })
            }
            _ => Self::Other(Error::unavailable(NAME, op, error)),
        }
    }

    pub(crate) fn into_error(self, op: &'static str) -> Error {
        match self {
            Self::Full => Error::unavailable(NAME, op, "the disk is full"),
            Self::Other(error) => error,
        }
    }
}

/// A call for the writer.
pub(crate) trait Job: Send {
    /// What it does, for errors.
    fn op(&self) -> &'static str;
    /// Whether it wants a transaction of its own.
    fn alone(&self) -> bool;
    /// Does it. May be called again when the transaction it was in was rolled back, unless it is alone.
    fn apply(&mut self, step: &mut Step<'_>) -> rusqlite::Result<()>;
    /// Tells the caller, after the commit or the failure.
    fn answer(self: Box<Self>, failure: Option<Failure>);
}

/// A call made of a closure, whose result goes to whoever waits for it.
pub(crate) struct Call<T, F> {
    pub(crate) op: &'static str,
    pub(crate) alone: bool,
    pub(crate) work: F,
    pub(crate) result: Option<T>,
    /// None when nobody waits.
    pub(crate) reply: Option<oneshot::Sender<Result<T, Failure>>>,
    /// The room it takes in the queue.
    pub(crate) room: Option<OwnedSemaphorePermit>,
}

impl<T: Send, F: FnMut(&mut Step<'_>) -> rusqlite::Result<T> + Send> Job for Call<T, F> {
    fn op(&self) -> &'static str {
        self.op
    }

    fn alone(&self) -> bool {
        self.alone
    }

    fn apply(&mut self, step: &mut Step<'_>) -> rusqlite::Result<()> {
        self.result = Some((self.work)(step)?);
        Ok(())
    }

    fn answer(self: Box<Self>, failure: Option<Failure>) {
        let Self { op, result, reply, room, work, .. } = *self;
        // What the call holds, such as the file of a value that was refused, goes before the caller is told.
        drop(work);
        drop(room);
        let outcome = match (failure, result) {
            (Some(failure), _) => Err(failure),
            (None, Some(result)) => Ok(result),
            (None, None) => Err(Failure::Other(Error::Panicked { what: op })),
        };
        match (reply, outcome) {
            // Who no longer listens has dropped the call; it happened all the same.
            (Some(reply), outcome) => drop(reply.send(outcome)),
            (None, Err(failure)) => {
                tracing::warn!(tier = NAME, error = %failure.into_error(op), op, "work in the background failed");
            }
            (None, Ok(_)) => {}
        }
    }
}

/// Calls in the order in which they came.
#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Box<dyn Job>>,
    closed: bool,
}

impl Queue {
    /// Adds a call; gives it back when the queue is closed.
    pub(crate) fn push(&self, job: Box<dyn Job>) -> Result<(), Box<dyn Job>> {
        let mut state = self.lock();
        if state.closed {
            return Err(job);
        }
        state.jobs.push_back(job);
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    /// What one transaction can do, after waiting for at most `patience`. None when it is closed and empty.
    pub(crate) fn take(&self, patience: Duration) -> Option<Vec<Box<dyn Job>>> {
        let state = self.lock();
        let idle = |state: &mut State| state.jobs.is_empty() && !state.closed;
        let (mut state, _) =
            self.filled.wait_timeout_while(state, patience, idle).unwrap_or_else(PoisonError::into_inner);
        if state.jobs.is_empty() && state.closed {
            return None;
        }
        let joint = state.jobs.iter().take(BATCH).take_while(|job| !job.alone()).count();
        let count = joint.max(1).min(state.jobs.len());
        Some(state.jobs.drain(..count).collect())
    }

    /// Takes no more calls; those there are will still be done.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("jobs", &self.lock().jobs.len()).finish_non_exhaustive()
    }
}
