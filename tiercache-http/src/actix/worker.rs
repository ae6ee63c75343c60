//! The way from the engine, whose futures go anywhere, to a service that stays on its worker.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use http::{Request, Response};
use tokio::sync::oneshot;

use crate::{Body, Origin};

/// A request for the service.
pub(super) struct Job {
    pub(super) request: Request<Body>,
    pub(super) reply: Reply,
}

/// Where the answer goes. Dropped without one, the asker is told.
pub(super) struct Reply(oneshot::Sender<Response<Body>>);

impl Reply {
    /// An asker who is gone needs no answer.
    pub(super) fn send(self, response: Response<Body>) {
        self.0.send(response).ok();
    }
}

/// The service as an origin, for one request: the engine asks once, for that request or in the background after it.
#[derive(Clone)]
pub(super) struct Worker(Arc<Mutex<Option<oneshot::Sender<Job>>>>);

impl Worker {
    /// With the other end: what the engine asks for, or that nobody will ask any more.
    pub(super) fn new() -> (Self, oneshot::Receiver<Job>) {
        let (asks, jobs) = oneshot::channel();
        (Self(Arc::new(Mutex::new(Some(asks)))), jobs)
    }
}

impl Origin for Worker {
    type Error = Lost;

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, Lost> {
        let (reply, answer) = oneshot::channel();
        let asks = self.0.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or(Lost)?;
        asks.send(Job { request, reply: Reply(reply) }).map_err(|_| Lost)?;
        answer.await.map_err(|_| Lost)
    }
}

/// There is no answer: the service had an error, which its worker has, or its worker is gone.
#[derive(Debug)]
pub(super) struct Lost;

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the service behind the cache did not answer")
    }
}
