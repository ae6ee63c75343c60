//! Foreign code that panics has failed, and nothing with it.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use crate::{Error, Result};

/// What `work` says; a panic in it is an error.
pub(super) async fn caught<T>(what: &'static str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut work = pin!(work);
    // Unwind safe: a future that panicked is dropped and not looked at again.
    poll_fn(|context| {
        catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)))
            .unwrap_or(Poll::Ready(Err(Error::Panicked { what })))
    })
    .await
}

/// Likewise for what does not wait.
pub(super) fn caught_now<T>(what: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(Error::Panicked { what }))
}
