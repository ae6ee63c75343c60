use std::future::Future;

use http::{Request, Response};

use crate::Body;

/// What answers requests that the cache does not: a service, a server behind a client.
///
/// Its futures may run in a task of the cache's, beyond the life of the request that caused them: a background
/// revalidation does.
pub trait Origin: Clone + Send + Sync + 'static {
    /// Why there is no answer. The caller of [`HttpCache::handle`](crate::HttpCache::handle) gets it unchanged.
    type Error: Send + 'static;

    /// Answers `request`. Sent once: repeating a request is the origin's own decision.
    fn send(
        &self,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Body>, Self::Error>> + Send;
}
