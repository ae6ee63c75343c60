use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tiercache_http::BoxError;

use super::pool::Lease;
use crate::patience::Patience;

/// A response's body on its way from the origin, which may not pause for long. Read to its end, it gives back the
/// connection; dropped before, it closes it. Trailers are left out: they may be (RFC 9110 §6.5.1), and nothing stores them.
pub(super) struct Download {
    inner: Incoming,
    lease: Option<Lease>,
    patience: Patience,
}

/// The origin stopped within a response.
#[derive(Debug, thiserror::Error)]
#[error("the origin paused for too long within a response")]
struct Paused;

impl Download {
    pub(super) fn new(inner: Incoming, lease: Lease, pause: Duration) -> Self {
        let mut download = Self { inner, lease: Some(lease), patience: Patience::new(pause) };
        download.settle();
        download
    }

    fn settle(&mut self) {
        if self.inner.is_end_stream()
            && let Some(lease) = self.lease.take()
        {
            lease.give_back();
        }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) else {
                ready!(self.patience.poll_end(context));
                self.lease = None;
                return Poll::Ready(Some(Err(Paused.into())));
            };
            self.patience.came();
            match frame {
                Some(Ok(frame)) if frame.is_trailers() => {}
                Some(Ok(frame)) => {
                    self.settle();
                    return Poll::Ready(Some(Ok(frame)));
                }
                Some(Err(error)) => {
                    self.lease = None;
                    return Poll::Ready(Some(Err(error.into())));
                }
                None => {
                    if let Some(lease) = self.lease.take() {
                        lease.give_back();
                    }
                    return Poll::Ready(None);
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
