//! What the proxy counts, and a line for every request.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::{Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use tiercache_http::{Body, BoxError, Outcome};

/// The name under which `tracing` knows the access log. Its lines are of the level INFO.
pub(crate) const ACCESS: &str = "tiercache::access";

/// A number that goes up.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn subtract(&self, fewer: u64) {
        self.0.fetch_sub(fewer, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a proxy has counted since it began.
#[derive(Debug, Default)]
pub struct Counters {
    requests: Count,
    active: Count,
    pub(crate) refused: Count,
    hits: Count,
    stale: Count,
    revalidated: Count,
    misses: Count,
    bypassed: Count,
    server_errors: Count,
    broken_off: Count,
    bytes: Count,
    pub(crate) connections: Count,
    pub(crate) upstream_requests: Count,
    pub(crate) upstream_connections: Count,
    pub(crate) upstream_retries: Count,
    pub(crate) upstream_failures: Count,
}

impl Counters {
    /// Every number with its name and what it counts. Those whose name ends in `active` go down as well.
    pub fn all(&self) -> [(&'static str, &'static str, u64); 16] {
        [
            ("requests", "Requests of clients.", self.requests.now()),
            ("requests_active", "Requests under way.", self.active.now()),
            ("refused", "Requests that went no further than the proxy.", self.refused.now()),
            ("hits", "Answered from what is stored, and fresh.", self.hits.now()),
            ("stale", "Answered from what is stored, though stale.", self.stale.now()),
            (
                "revalidated",
                "Answered from what is stored, once the origin confirmed it.",
                self.revalidated.now(),
            ),
            ("misses", "Answered by the origin, since nothing stored could be used.", self.misses.now()),
            ("bypassed", "Answered by the origin without the cache.", self.bypassed.now()),
            ("server_errors", "Answers of 500 and above.", self.server_errors.now()),
            ("broken_off", "Answers that did not come to their end.", self.broken_off.now()),
            ("response_bytes", "Bytes of answers' bodies.", self.bytes.now()),
            ("connections", "Connections of clients.", self.connections.now()),
            ("upstream_requests", "Requests to the origin.", self.upstream_requests.now()),
            ("upstream_connections", "Connections to the origin.", self.upstream_connections.now()),
            (
                "upstream_retries",
                "Requests sent again, since the origin had closed the connection.",
                self.upstream_retries.now(),
            ),
            (
                "upstream_failures",
                "Requests to which the origin gave no response.",
                self.upstream_failures.now(),
            ),
        ]
    }
}

/// What the log has of a request, if somebody reads it.
struct Line {
    began: Instant,
    method: String,
    /// Without the query, which may have secrets in it.
    path: String,
}

/// A request that is being answered.
pub(crate) struct Visit {
    counters: Arc<Counters>,
    line: Option<Line>,
    status: StatusCode,
    outcome: Option<Outcome>,
    bytes: u64,
    ended: bool,
    failed: bool,
}

impl Visit {
    pub(crate) fn begin(counters: &Arc<Counters>, head: &Parts) -> Self {
        counters.requests.add(1);
        counters.active.add(1);
        let line = tracing::enabled!(target: ACCESS, tracing::Level::INFO).then(|| Line {
            began: Instant::now(),
            method: head.method.to_string(),
            path: head.uri.path().escape_debug().to_string(),
        });
        Self {
            counters: counters.clone(),
            line,
            // What is seen of a client that went before there was an answer.
            status: StatusCode::from_u16(499).unwrap_or_default(),
            outcome: None,
            bytes: 0,
            ended: false,
            failed: false,
        }
    }

    /// Follows the answer to its end.
    pub(crate) fn follow(mut self, response: Response<Body>) -> Response<Followed> {
        self.status = response.status();
        self.outcome = response.extensions().get().copied();
        let counters = &self.counters;
        match self.outcome {
            Some(Outcome::Hit) => counters.hits.add(1),
            Some(Outcome::Stale) => counters.stale.add(1),
            Some(Outcome::Revalidated) => counters.revalidated.add(1),
            Some(Outcome::Miss) => counters.misses.add(1),
            Some(_) => counters.bypassed.add(1),
            None => {}
        }
        if self.status.is_server_error() {
            counters.server_errors.add(1);
        }
        response.map(|body| Followed { body, visit: self })
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.counters.active.subtract(1);
        self.counters.bytes.add(self.bytes);
        if !self.ended {
            self.counters.broken_off.add(1);
        }
        let Some(Line { began, method, path }) = &self.line else { return };
        tracing::info!(
            target: ACCESS,
            method,
            path,
            status = self.status.as_u16(),
            bytes = self.bytes,
            micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
            cache = self.outcome.map_or("none", Outcome::as_str),
            whole = self.ended,
        );
    }
}

/// The body of an answer that is followed.
pub(crate) struct Followed {
    body: Body,
    visit: Visit,
}

impl http_body::Body for Followed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.visit.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                self.visit.ended = self.body.is_end_stream();
            }
            Poll::Ready(None) => self.visit.ended = true,
            Poll::Ready(Some(Err(error))) => {
                self.visit.failed = true;
                tracing::debug!(%error, "an answer broke off");
            }
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        // Nobody reads a body that is empty to begin with.
        self.visit.ended |= self.body.is_end_stream() && !self.visit.failed;
    }
}
