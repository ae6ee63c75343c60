//! The way from the engine, whose futures go anywhere, to what stays with the request: a service on its worker, the
//! rest of a client's middleware.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use tokio::sync::oneshot;

use crate::{Body, BoxError, Origin};

/// A request that the engine has.
pub(crate) struct Job<E> {
    pub(crate) request: Request<Body>,
    pub(crate) reply: Reply<E>,
}

/// Where the answer goes. Dropped without one, the asker is told.
pub(crate) struct Reply<E>(oneshot::Sender<Result<Response<Body>, E>>);

impl<E> Reply<E> {
    /// An asker who is gone needs no answer.
    pub(crate) fn send(self, answer: Result<Response<Body>, E>) {
        self.0.send(answer).ok();
    }
}

/// The origin of one request: the engine asks once, for that request or in the background after it.
pub(crate) struct Relay<E> {
    asks: Arc<Mutex<Option<oneshot::Sender<Job<E>>>>>,
    outlives_request: bool,
}

impl<E> Relay<E> {
    /// With the other end: what the engine asks for, or that nobody will ask any more.
    pub(crate) fn new(outlives_request: bool) -> (Self, oneshot::Receiver<Job<E>>) {
        let (asks, jobs) = oneshot::channel();
        (Self { asks: Arc::new(Mutex::new(Some(asks))), outlives_request }, jobs)
    }
}

impl<E> Clone for Relay<E> {
    fn clone(&self) -> Self {
        Self { asks: self.asks.clone(), outlives_request: self.outlives_request }
    }
}

impl<E: From<Lost> + Send + 'static> Origin for Relay<E> {
    type Error = E;

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, E> {
        let (reply, answer) = oneshot::channel();
        let asks = self.asks.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or(Lost)?;
        asks.send(Job { request, reply: Reply(reply) }).map_err(|_| Lost)?;
        answer.await.map_err(|_| Lost)?
    }

    fn outlives_request(&self) -> bool {
        self.outlives_request
    }
}

/// There is no answer: who would have answered is gone, or had an error that went another way.
#[derive(Debug)]
pub(crate) struct Lost;

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what is behind the cache did not answer")
    }
}

impl std::error::Error for Lost {}

/// A request's body. It stays where it is: the engine asks only whether there is one.
pub(crate) struct Elsewhere;

impl http_body::Body for Elsewhere {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(None)
    }
}
