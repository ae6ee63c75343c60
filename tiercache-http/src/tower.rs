//! The layer for tower services, axum's routers among them.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use crate::{Body, BoxError, HttpCache, Origin, RequestOptions};

/// Puts an [`HttpCache`] around services. The state is the cache's: every service it makes shares it.
#[derive(Clone)]
pub struct CacheLayer {
    cache: HttpCache,
    options: Option<RequestOptions>,
}

impl CacheLayer {
    /// A layer over that cache.
    pub fn new(cache: HttpCache) -> Self {
        Self { cache, options: None }
    }

    /// What requests through this layer have otherwise, for one route or one router. A request that brings
    /// [`RequestOptions`] among its extensions has those instead.
    ///
    /// ```ignore
    /// let minute = RequestOptions::new().ttl(Duration::from_secs(60)).tag("type", "page");
    /// let app = Router::new().route("/pages/{name}", get(page).layer(CacheLayer::new(cache).options(minute)));
    /// ```
    #[must_use]
    pub fn options(self, options: RequestOptions) -> Self {
        Self { options: Some(options), ..self }
    }
}

impl<S> Layer<S> for CacheLayer {
    type Service = CacheService<S>;

    fn layer(&self, inner: S) -> CacheService<S> {
        CacheService { layer: self.clone(), inner }
    }
}

/// A service behind an [`HttpCache`].
#[derive(Clone)]
pub struct CacheService<S> {
    layer: CacheLayer,
    inner: S,
}

/// The future of a [`CacheService`].
pub type CacheFuture<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S, Q, R> Service<Request<Q>> for CacheService<S>
where
    S: Service<Request<Body>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    Q: http_body::Body + Send + 'static,
    Q::Error: Into<BoxError>,
    R: http_body::Body + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = CacheFuture<S::Error>;

    /// Always ready: what is stored needs no service. The service's own readiness is waited for when it is asked.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let CacheLayer { cache, options } = self.layer.clone();
        let inner = Shared(Arc::new(Mutex::new(self.inner.clone())));
        let mut request = request.map(Body::wrap);
        if let Some(options) = options {
            request.extensions_mut().get_or_insert(options);
        }
        Box::pin(async move { cache.handle(request, &inner).await })
    }
}

/// A service as an origin. Services need not be `Sync`: the lock is held only to clone one.
struct Shared<S>(Arc<Mutex<S>>);

impl<S> Clone for Shared<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S, R> Origin for Shared<S>
where
    S: Service<Request<Body>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    R: http_body::Body + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Error = S::Error;

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, S::Error> {
        // A clone that panicked left its service as it was.
        let mut service = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        poll_fn(|context| service.poll_ready(context)).await?;
        Ok(service.call(request).await?.map(Body::wrap))
    }
}
