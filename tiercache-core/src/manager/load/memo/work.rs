//! A call of a function that a load runs, and that its caller takes back when the load is given up.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use tokio::sync::Notify;

use super::errors::{Errors, Failed};
use super::kind::Kind;
use super::{is_dropped, of_load};
use crate::Error;

/// What a call came to: its result, or what it panicked with.
type Ended<K, E> = Result<Result<<K as Kind>::Kept, E>, Box<dyn Any + Send>>;

enum State<K: Kind, F, E> {
    /// Not begun.
    Ready(Pin<Box<F>>),
    /// A load runs it.
    Running,
    /// The load that ran it was given up. No other load may go on with it: it began before.
    Left(Pin<Box<F>>),
    Ended(Ended<K, E>),
    /// The caller has it.
    Taken,
}

/// One call.
pub(super) struct Slot<K: Kind, F, E> {
    state: Mutex<State<K, F, E>>,
    changed: Notify,
    mark: fn(&E) -> Failed,
}

impl<K, F, E> Slot<K, F, E>
where
    K: Kind,
    F: Future<Output = Result<K::Out, E>>,
{
    pub(super) fn new(work: F, mark: fn(&E) -> Failed) -> Self {
        Self { state: Mutex::new(State::Ready(Box::pin(work))), changed: Notify::new(), mark }
    }

    /// As a load: runs it to its end, unless it was begun before.
    pub(super) async fn load(self: Arc<Self>) -> Result<K::Kept, Failed> {
        let work = {
            let mut state = self.lock();
            match std::mem::replace(&mut *state, State::Running) {
                State::Ready(work) => work,
                other => {
                    *state = other;
                    return Err(Failed::dropped());
                }
            }
        };
        let mut lent = Lent { slot: &self, work: Some(work) };
        let ended = lent.run().await;
        let told = match &ended {
            Ok(Ok(kept)) => Ok(kept.clone()),
            Ok(Err(error)) => Err((self.mark)(error)),
            Err(_) => Err(Failed::panicked()),
        };
        self.set(State::Ended(ended));
        told
    }

    /// As the caller whose load failed with `error`.
    pub(super) async fn finish(&self, errors: &Errors<E>, error: &Error) -> Result<K::Out, E> {
        loop {
            let changed = self.changed.notified();
            let work = {
                let mut state = self.lock();
                match std::mem::replace(&mut *state, State::Taken) {
                    State::Ended(Ok(result)) => return result.map(K::out),
                    State::Ended(Err(panic)) => resume_unwind(panic),
                    other => {
                        if of_load(error)
                            && !is_dropped(error)
                            && let Some(error) = (errors.back)(error)
                        {
                            *state = other;
                            return Err(error);
                        }
                        match other {
                            State::Ready(work) | State::Left(work) => Some(work),
                            other => {
                                *state = other;
                                None
                            }
                        }
                    }
                }
            };
            match work {
                Some(work) => return work.await,
                None => changed.await,
            }
        }
    }

    fn set(&self, state: State<K, F, E>) {
        *self.lock() = state;
        self.changed.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State<K, F, E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that goes back to its slot when the load is dropped before its end.
struct Lent<'a, K: Kind, F: Future<Output = Result<K::Out, E>>, E> {
    slot: &'a Slot<K, F, E>,
    work: Option<Pin<Box<F>>>,
}

impl<K: Kind, F: Future<Output = Result<K::Out, E>>, E> Lent<'_, K, F, E> {
    async fn run(&mut self) -> Ended<K, E> {
        let ended = poll_fn(|context| match &mut self.work {
            // Unwind safe: a call that panicked is dropped and not looked at again.
            Some(work) => match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
                Ok(poll) => poll.map(|result| Ok(result.map(K::keep))),
                Err(panic) => Poll::Ready(Err(panic)),
            },
            None => Poll::Pending,
        })
        .await;
        self.work = None;
        ended
    }
}

impl<K: Kind, F: Future<Output = Result<K::Out, E>>, E> Drop for Lent<'_, K, F, E> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            self.slot.set(State::Left(work));
        }
    }
}
