use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// How long something may be waited for. Time in which nobody waits does not count.
pub(crate) struct Patience {
    limit: Duration,
    waiting: bool,
    end: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, waiting: false, end: None }
    }

    /// Called when it has come.
    pub(crate) fn came(&mut self) {
        self.waiting = false;
    }

    /// Called when it has not come yet; ready when it was waited for long enough.
    pub(crate) fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
        let end = self.end.get_or_insert_with(|| Box::pin(sleep(limit)));
        if !self.waiting {
            self.waiting = true;
            end.as_mut().reset(Instant::now() + limit);
        }
        end.as_mut().poll(context)
    }
}
