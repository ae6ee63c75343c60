use std::future::Future;

use http::{Request, Response, Uri};

use crate::Body;

/// What answers requests that the cache does not: a service, a server behind a client.
///
/// Its futures may run in a task of the cache's, beyond the life of the request that caused them: a background
/// revalidation does, unless [`outlives_request`](Self::outlives_request) denies it.
pub trait Origin: Clone + Send + Sync + 'static {
    /// Why there is no answer. The caller of [`HttpCache::handle`](crate::HttpCache::handle) gets it unchanged.
    type Error: Send + 'static;

    /// Answers `request`. Sent once: repeating a request is the origin's own decision.
    fn send(
        &self,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Body>, Self::Error>> + Send;

    /// Whether it can be asked when the request that caused it is over, as a background revalidation does. Where it
    /// cannot, what is stale is revalidated before it answers, within `stale-while-revalidate` too. Default: yes.
    fn outlives_request(&self) -> bool {
        true
    }
}

/// Among the extensions of an origin's response: it is not stored, whatever it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoNotStore;

/// Among the extensions of an origin's response: the origin followed redirects, and this is whose response it is.
///
/// Such a response is not stored: what the redirects themselves allowed is not known any more. After an unsafe method
/// both URIs are invalidated, whatever the last status is, since the first answer was a redirect and so no error. A 304
/// that another URI sends to validators of the cache's must not be passed on with this: it tells nothing about what is
/// stored, and the request is to be sent once more without them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirected(pub Uri);
