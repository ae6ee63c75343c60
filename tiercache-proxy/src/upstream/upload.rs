use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tiercache_http::Body;
use tokio::time::Instant;

use crate::error::BodyFault;
use crate::limits::Limits;
use crate::patience::Patience;

/// A request's body on its way to the origin: no longer than allowed, and without long pauses.
pub(super) struct Upload {
    inner: Body,
    left: u64,
    patience: Patience,
    moved: Moved,
}

/// When a body last moved.
#[derive(Clone)]
pub(super) struct Moved {
    began: Instant,
    after: Arc<AtomicU64>,
}

impl Moved {
    pub(super) fn at(&self) -> Instant {
        self.began + Duration::from_millis(self.after.load(Ordering::Relaxed))
    }

    fn now(&self) {
        let after = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.after.store(after, Ordering::Relaxed);
    }
}

impl Upload {
    pub(super) fn new(inner: Body, limits: &Limits) -> (Self, Moved) {
        let moved = Moved { began: Instant::now(), after: Arc::default() };
        let upload = Self {
            inner,
            left: limits.body_bytes,
            patience: Patience::new(limits.body_pause),
            moved: moved.clone(),
        };
        (upload, moved)
    }

    pub(super) fn empty() -> Self {
        let limits = Limits::default();
        Self::new(Body::empty(), &limits).0
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        loop {
            let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) else {
                ready!(self.patience.poll_end(context));
                return Poll::Ready(Some(Err(BodyFault::Stalled)));
            };
            self.moved.now();
            self.patience.came();
            let Some(frame) = frame else { return Poll::Ready(None) };
            let Ok(frame) = frame else { return Poll::Ready(Some(Err(BodyFault::Broken))) };
            // Trailers end here: the fields that announce them did.
            let Some(data) = frame.data_ref() else { continue };
            let bytes = data.len() as u64;
            if bytes > self.left {
                return Poll::Ready(Some(Err(BodyFault::TooLarge)));
            }
            self.left -= bytes;
            return Poll::Ready(Some(Ok(frame)));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
