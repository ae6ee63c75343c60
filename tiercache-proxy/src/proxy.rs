use std::sync::Arc;

use http::header::{ALLOW, MAX_FORWARDS};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tiercache_http::{Body, HttpCache};

use crate::access::{Counters, Followed, Visit};
use crate::answer::failed;
use crate::limits::Limits;
use crate::request::Gate;
use crate::target::Target;
use crate::upstream::Upstream;

/// A caching reverse proxy. Cheap to clone: every clone is the same proxy.
#[derive(Clone)]
pub struct Proxy(Arc<Inner>);

struct Inner {
    cache: HttpCache,
    upstream: Upstream,
    limits: Limits,
    trusted: bool,
    counters: Arc<Counters>,
}

impl Proxy {
    /// A proxy in front of `origin` that keeps responses in `cache`. It connects to nothing yet.
    pub fn new(cache: HttpCache, origin: Target, limits: Limits) -> Self {
        let counters = Arc::<Counters>::default();
        let upstream = Upstream::new(origin, limits, counters.clone());
        Self(Arc::new(Inner { cache, upstream, limits, trusted: false, counters }))
    }

    /// Believes what clients say in `X-Forwarded-*` and `Forwarded`, and adds to `X-Forwarded-For`: for a proxy that only
    /// another proxy can reach. Default: no, they are replaced.
    #[must_use]
    pub fn trust_forwarded(self, trusted: bool) -> Self {
        let Inner { cache, upstream, limits, counters, .. } = &*self.0;
        let (cache, upstream, counters) = (cache.clone(), upstream.clone(), counters.clone());
        Self(Arc::new(Inner { cache, upstream, limits: *limits, trusted, counters }))
    }

    /// The cache.
    pub fn cache(&self) -> &HttpCache {
        &self.0.cache
    }

    /// What was counted so far.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    pub(crate) fn count_connection(&self) {
        self.0.counters.connections.add(1);
    }

    /// Closes connections to the origin that nobody needed for long.
    pub(crate) fn sweep(&self) {
        self.0.upstream.sweep();
    }

    pub(crate) async fn answer(
        &self,
        client: &HeaderValue,
        request: Request<Incoming>,
    ) -> Response<Followed> {
        let (mut head, body) = request.into_parts();
        let visit = Visit::begin(&self.0.counters, &head);
        let gate = Gate {
            limits: &self.0.limits,
            origin: self.0.upstream.target().authority(),
            trusted: self.0.trusted,
            client,
        };
        let response = match gate.admit(&mut head) {
            Err(refusal) => {
                self.0.counters.refused.add(1);
                refusal.response()
            }
            Ok(()) if last_hop(&mut head) => options(),
            Ok(()) => {
                let request = Request::from_parts(head, Body::wrap(body));
                match self.0.cache.handle(request, &self.0.upstream).await {
                    Ok(response) => response,
                    Err(error) => failed(&error),
                }
            }
        };
        visit.follow(response)
    }
}

/// Whether the request may be forwarded no further (RFC 9110 §7.6.2).
fn last_hop(head: &mut Parts) -> bool {
    if head.method != Method::OPTIONS {
        return false;
    }
    let hops = head.headers.get(MAX_FORWARDS).and_then(|hops| hops.to_str().ok()?.parse::<u32>().ok());
    match hops {
        Some(0) => true,
        Some(hops) => {
            head.headers.insert(MAX_FORWARDS, HeaderValue::from(hops - 1));
            false
        }
        None => false,
    }
}

fn options() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let methods = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
    response.headers_mut().insert(ALLOW, methods);
    response
}
