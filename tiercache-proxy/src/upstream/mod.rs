//! The origin as the cache asks it: over connections that are used again.
//!
//! In steps: 1. A request takes one of the places at the origin, and waits for one as long as for a connection. 2. A connection that
//! is idle is taken, the last used first; one that the origin has closed meanwhile is passed over. 3. If it turns out closed
//! after all, a request that never left is sent on a new connection, and one that may have left only if its method is safe
//! and it has no body; once. 4. The connection is kept when the response has been read to its end.

mod download;
mod pool;
mod upload;

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tiercache_http::{Body, Origin};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};

use self::download::Download;
use self::pool::{Pool, Sender};
use self::upload::{Moved, Upload};
use crate::access::Counters;
use crate::error::UpstreamError;
use crate::fields::{add_via, forward_target, strip_connection};
use crate::limits::Limits;
use crate::target::Target;

/// The origin. Cheap to clone: every clone has the same connections.
#[derive(Clone)]
pub struct Upstream(Arc<Shared>);

struct Shared {
    target: Target,
    limits: Limits,
    pool: Arc<Pool>,
    places: Arc<Semaphore>,
    counters: Arc<Counters>,
}

impl Upstream {
    /// Connects to nothing yet.
    pub(crate) fn new(target: Target, limits: Limits, counters: Arc<Counters>) -> Self {
        let pool = Arc::new(Pool::new(limits.idle_connections, limits.keep_alive));
        let places = Arc::new(Semaphore::new(limits.upstream.clamp(1, Semaphore::MAX_PERMITS)));
        Self(Arc::new(Shared { target, limits, pool, places, counters }))
    }

    /// Where it is.
    pub fn target(&self) -> &Target {
        &self.0.target
    }

    /// Closes connections that have been idle for long.
    pub(crate) fn sweep(&self) {
        self.0.pool.sweep();
    }
}

impl Origin for Upstream {
    type Error = UpstreamError;

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, UpstreamError> {
        let Shared { limits, counters, .. } = &*self.0;
        counters.upstream_requests.add(1);
        let sent = async {
            let place = timeout(limits.connect, self.0.places.clone().acquire_owned()).await;
            let Ok(Ok(place)) = place else { return Err(UpstreamError::Busy) };
            self.0.exchange(request, place).await
        };
        let sent = sent.await;
        if let Err(error) = &sent {
            counters.upstream_failures.add(1);
            tracing::debug!(%error, "the origin gave no response");
        }
        sent
    }
}

impl Shared {
    async fn exchange(
        &self,
        request: Request<Body>,
        place: OwnedSemaphorePermit,
    ) -> Result<Response<Body>, UpstreamError> {
        let (mut request, moved) = self.prepare(request)?;
        if let Some(sender) = self.pool.take() {
            let repeatable = request.method().is_safe() && request.body().is_end_stream();
            let again = repeatable.then(|| copy(&request));
            match self.ask(sender, request, &moved).await {
                Ok((sender, response)) => return self.received(sender, response, place),
                Err(Failed { unsent: Some(unsent), .. }) => request = *unsent,
                Err(Failed { error: UpstreamError::Broken(error), .. }) => match again {
                    Some(again) => request = again,
                    None => return Err(UpstreamError::Broken(error)),
                },
                Err(Failed { error, .. }) => return Err(error),
            }
            self.counters.upstream_retries.add(1);
        }
        let sender = match timeout(self.limits.connect, self.connect()).await {
            Ok(connected) => connected?,
            Err(_) => return Err(UpstreamError::ConnectTimeout),
        };
        let (sender, response) = self.ask(sender, request, &moved).await.map_err(|failed| failed.error)?;
        self.received(sender, response, place)
    }

    /// What goes over the wire: the path alone, the host beside it.
    fn prepare(&self, request: Request<Body>) -> Result<(Request<Upload>, Moved), UpstreamError> {
        let (mut head, body) = request.into_parts();
        if let Some(authority) = head.uri.authority() {
            let host = HeaderValue::from_str(authority.as_str());
            head.headers.insert(HOST, host.map_err(|_| malformed("the request's host"))?);
        }
        if let Some(host) = head.headers.get(HOST).cloned() {
            forward_target(&mut head.headers, &host);
        }
        if let Some(target) = head.uri.path_and_query() {
            head.uri = Uri::from(target.clone());
        }
        head.version = Version::HTTP_11;
        head.headers.remove(TRANSFER_ENCODING);
        // Nothing of the connection it came by concerns the next.
        head.extensions.clear();
        let (body, moved) = Upload::new(body, &self.limits);
        Ok((Request::from_parts(head, body), moved))
    }

    async fn connect(&self) -> Result<Sender, UpstreamError> {
        let mut last = UpstreamError::Connect(io::ErrorKind::NotFound.into());
        for address in self.target.addresses().await? {
            match TcpStream::connect(address).await {
                Ok(stream) => return self.shake(stream).await,
                Err(error) => last = UpstreamError::Connect(error),
            }
        }
        Err(last)
    }

    async fn shake(&self, stream: TcpStream) -> Result<Sender, UpstreamError> {
        // Requests are written whole: waiting to fill a packet would only delay them.
        stream.set_nodelay(true).map_err(UpstreamError::Connect)?;
        self.counters.upstream_connections.add(1);
        let mut builder = http1::Builder::new();
        builder.max_buf_size(self.limits.buffer()).max_headers(self.limits.fields);
        let (sender, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(UpstreamError::of)?;
        // It ends with its sender and the response that is read from it.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the origin ended");
            }
        });
        Ok(sender)
    }

    async fn ask(
        &self,
        mut sender: Sender,
        request: Request<Upload>,
        moved: &Moved,
    ) -> Result<(Sender, Response<Incoming>), Failed> {
        let answered = sender.try_send_request(request);
        tokio::select! {
            answered = answered => match answered {
                Ok(response) => Ok((sender, response)),
                Err(mut failed) => {
                    let unsent = failed.take_message().map(Box::new);
                    Err(Failed { error: UpstreamError::of(failed.into_error()), unsent })
                }
            },
            () = silence(self.limits.first_byte, moved) => Err(UpstreamError::Silent.into()),
        }
    }

    fn received(
        &self,
        sender: Sender,
        response: Response<Incoming>,
        place: OwnedSemaphorePermit,
    ) -> Result<Response<Body>, UpstreamError> {
        let (mut head, body) = response.into_parts();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(malformed("it changes to a protocol that nobody asked for"));
        }
        tidy(&mut head.headers)?;
        let version = head.version;
        add_via(&mut head.headers, version);
        head.extensions.clear();
        head.version = Version::HTTP_11;
        let lease = self.pool.lease(sender, place);
        let body = Download::new(body, lease, self.limits.body_pause);
        Ok(Response::from_parts(head, Body::wrap(body)))
    }
}

/// Leaves one statement of a body's length, and none that hyper does not go by.
fn tidy(fields: &mut HeaderMap) -> Result<(), UpstreamError> {
    let mut codings = fields.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return Err(malformed("a transfer coding other than chunked"));
        }
        fields.remove(CONTENT_LENGTH);
    }
    let mut lengths = fields.get_all(CONTENT_LENGTH).iter();
    if let (Some(length), more) = (lengths.next(), lengths.next().is_some())
        && (more || length.as_bytes().contains(&b','))
    {
        // Hyper has found them equal.
        let first = length.to_str().unwrap_or_default().split(',').next().unwrap_or_default().trim();
        let first = HeaderValue::from_str(first).map_err(|_| malformed("its length"))?;
        fields.insert(CONTENT_LENGTH, first);
    }
    strip_connection(fields);
    Ok(())
}

fn malformed(what: &str) -> UpstreamError {
    UpstreamError::Malformed(what.to_owned())
}

/// A request that got no response.
struct Failed {
    error: UpstreamError,
    /// The request, if nothing of it was written.
    unsent: Option<Box<Request<Upload>>>,
}

impl From<UpstreamError> for Failed {
    fn from(error: UpstreamError) -> Self {
        Self { error, unsent: None }
    }
}

/// The same request once more; it has no body.
fn copy(request: &Request<Upload>) -> Request<Upload> {
    let mut copy = Request::new(Upload::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// Ends when the origin has had the whole request for so long. While its body is on the way, that has a limit of its own.
async fn silence(limit: Duration, moved: &Moved) {
    let Some(mut deadline) = Instant::now().checked_add(limit) else { return pending().await };
    loop {
        sleep_until(deadline).await;
        match moved.at().checked_add(limit) {
            Some(later) if later > deadline => deadline = later,
            _ => return,
        }
    }
}
