use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use hyper::client::conn::http1;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::upload::Upload;

pub(super) type Sender = http1::SendRequest<Upload>;

/// Connections that wait for their next request, the longest idle in front.
pub(super) struct Pool {
    idle: Mutex<VecDeque<(Sender, Instant)>>,
    most: usize,
    keep: Duration,
}

impl Pool {
    pub(super) fn new(most: usize, keep: Duration) -> Self {
        Self { idle: Mutex::default(), most, keep }
    }

    /// The connection that was used last, if it is still open and quiet.
    pub(super) fn take(&self) -> Option<Sender> {
        let mut idle = self.idle();
        self.prune(&mut idle);
        // The last that came back may not have been told yet that its response is over.
        let place = idle.iter().rposition(|(sender, _)| sender.is_ready())?;
        idle.remove(place).map(|(sender, _)| sender)
    }

    /// Holds a connection, and its place at the origin, for a response that is being read.
    pub(super) fn lease(self: &Arc<Self>, sender: Sender, place: OwnedSemaphorePermit) -> Lease {
        Lease { sender, pool: Arc::downgrade(self), _place: place }
    }

    pub(super) fn sweep(&self) {
        self.prune(&mut self.idle());
    }

    fn put(&self, sender: Sender) {
        if sender.is_closed() || self.most == 0 {
            return;
        }
        let mut idle = self.idle();
        idle.push_back((sender, Instant::now()));
        self.prune(&mut idle);
    }

    fn prune(&self, idle: &mut VecDeque<(Sender, Instant)>) {
        idle.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < self.keep);
        while idle.len() > self.most {
            idle.pop_front();
        }
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<(Sender, Instant)>> {
        // Whoever panicked left a list of whole connections.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection in use. Dropped, it is closed; given back, it is used again.
pub(super) struct Lease {
    sender: Sender,
    pool: Weak<Pool>,
    _place: OwnedSemaphorePermit,
}

impl Lease {
    pub(super) fn give_back(self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.put(self.sender);
        }
    }
}
