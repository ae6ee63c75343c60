//! Middleware for clients of [reqwest], by [reqwest-middleware](reqwest_middleware).
//!
//! ```no_run
//! use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
//! use tiercache_core::CacheManager;
//! use tiercache_http::client::Cache;
//!
//! # async fn client(manager: CacheManager) -> Result<(), reqwest_middleware::Error> {
//! let client = ClientBuilder::new(reqwest::Client::new()).with(Cache::new(manager)).build();
//! let page = client.get("http://example.com/").send().await?; // asks
//! let page = client.get("http://example.com/").send().await?; // does not, if the page may be kept
//! # let _ = page;
//! # Ok(())
//! # }
//! ```

mod convert;

use std::pin::pin;

use async_trait::async_trait;
use http::{Extensions, StatusCode};
use reqwest::{Request, Response};
use reqwest_middleware::{ClientWithMiddleware, Error, Middleware, Next, Result};
use tiercache_core::CacheManager;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::relay::{self, Lost, Relay};
use crate::{Body, HttpCache, RequestOptions};

type Job = relay::Job<Error>;

/// Puts an [`HttpCache`] into a client. The state is the cache's: every client it is part of shares it.
///
/// What the rest of the client answers stays what it is: errors unchanged, responses with their URL, version and
/// extensions. Responses have their [`Outcome`](crate::Outcome) among the extensions; one from the cache has the URL
/// that was asked for. Bodies stream, and request bodies are not touched. A requester who leaves drops its request, and
/// another that waits for the same asks instead; a body that has begun to be stored is stored all the same.
///
/// # What it does not see
/// reqwest adds cookies of a cookie store, default headers and `Accept-Encoding` below all middleware, and follows
/// redirects there.
///
/// - A response that varies by `Cookie` or `Authorization` is not stored when the request has no such field here, since
///   it may have got one below; see [`sends_as_given`](Self::sends_as_given). Clients with different cookie stores or
///   default credentials must not have one cache, or need [an identity](RequestOptions::identity) each.
/// - What came after redirects is not stored: whether they may be kept is not known any more. An unsafe request
///   invalidates what it was sent to and where it ended. A client with [`redirect::Policy::none`](reqwest::redirect::Policy::none)
///   has redirects answered from the cache like any other response.
/// - A timeout is reqwest's, from when it is asked. Waiting for another's fetch of the same takes up to 5 s before.
#[derive(Clone)]
pub struct Cache {
    cache: HttpCache,
    options: Option<RequestOptions>,
    background: Option<ClientWithMiddleware>,
    sends_as_given: bool,
}

impl Cache {
    /// The private cache of a client, over `manager`, with the defaults of [`Builder`](crate::Builder) otherwise.
    ///
    /// # Panics
    /// Never: the name of the namespace is short enough.
    pub fn new(manager: CacheManager) -> Self {
        Self::over(
            HttpCache::builder(manager).private().build().expect("a name of four bytes is short enough"),
        )
    }

    /// Over that cache. It is shared, and keeps nothing that is of one user, unless it was built as
    /// [private](crate::Builder::private).
    pub fn over(cache: HttpCache) -> Self {
        Self { cache, options: None, background: None, sends_as_given: false }
    }

    /// What requests of this client have otherwise. A request that brings [`RequestOptions`] with it
    /// ([`with_extension`](reqwest_middleware::RequestBuilder::with_extension)) has those instead.
    #[must_use]
    pub fn options(self, options: RequestOptions) -> Self {
        Self { options: Some(options), ..self }
    }

    /// Who asks in the background: middleware cannot send when its request is over. With it what is stale answers at
    /// once within `stale-while-revalidate`, and is revalidated by `client`, which must not have this middleware.
    /// Without it, it is revalidated first.
    #[must_use]
    pub fn background(self, client: ClientWithMiddleware) -> Self {
        Self { background: Some(client), ..self }
    }

    /// Promises that the client adds no cookies and no credentials to requests: it has no cookie store and no such
    /// default headers. Then responses that vary by them are stored.
    #[must_use]
    pub fn sends_as_given(self) -> Self {
        Self { sends_as_given: true, ..self }
    }

    /// The cache, to purge.
    pub fn cache(&self) -> &HttpCache {
        &self.cache
    }
}

#[async_trait]
impl Middleware for Cache {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<Response> {
        let own = extensions.get::<RequestOptions>().or(self.options.as_ref());
        let Some(asked) = convert::request(&request, own) else { return next.run(request, extensions).await };
        let url = request.url().clone();
        let (origin, mut jobs) = Relay::new(self.background.is_some());
        let mut handled = pin!(async move { self.cache.handle(asked, &origin).await });
        let job = tokio::select! {
            biased;
            handled = &mut handled => {
                let response = convert::outward(handled?, url);
                if let Some(client) = &self.background {
                    refresh(Below::Other(client.clone()), self.sends_as_given, request, extensions, jobs);
                }
                return Ok(response);
            }
            job = &mut jobs => job.map_err(|_| Lost)?,
        };
        let Job { request: asked, reply } = job;
        reply.send(Below::Rest(next).ask(request, asked, extensions, self.sends_as_given).await);
        Ok(convert::outward(handled.await?, url))
    }
}

/// Asks once more for a stale answer that was given, if somebody wants that.
fn refresh(
    client: Below<'static>,
    sends_as_given: bool,
    request: Request,
    extensions: &Extensions,
    mut jobs: oneshot::Receiver<Job>,
) {
    let came = jobs.try_recv();
    if matches!(came, Err(TryRecvError::Closed)) {
        return;
    }
    let mut extensions = extensions.clone();
    tokio::spawn(async move {
        let job = match came {
            Ok(job) => Ok(job),
            Err(_) => jobs.await,
        };
        let Ok(Job { request: asked, reply }) = job else { return };
        reply.send(client.ask(request, asked, &mut extensions, sends_as_given).await);
    });
}

/// What is below the cache.
enum Below<'a> {
    Rest(Next<'a>),
    Other(ClientWithMiddleware),
}

impl Below<'_> {
    /// Sends `request` as the engine has it.
    async fn ask(
        &self,
        mut request: Request,
        asked: http::Request<Body>,
        extensions: &mut Extensions,
        sends_as_given: bool,
    ) -> Result<http::Response<Body>> {
        let plain = if request.headers() == asked.headers() { None } else { request.try_clone() };
        convert::apply(&mut request, asked);
        let sent = convert::Sent::of(&request, sends_as_given);
        let response = self.run(request, extensions).await?;
        // A redirect led to something that has the validator of what is stored, and is something else.
        if let Some(plain) = plain.filter(|_| response.status() == StatusCode::NOT_MODIFIED)
            && sent.redirected(&response).is_some()
        {
            return Ok(sent.inward(self.run(plain, extensions).await?));
        }
        Ok(sent.inward(response))
    }

    async fn run(&self, request: Request, extensions: &mut Extensions) -> Result<Response> {
        match self {
            Self::Rest(next) => next.clone().run(request, extensions).await,
            Self::Other(client) => client.execute_with_extensions(request, extensions).await,
        }
    }
}

impl From<Lost> for Error {
    fn from(lost: Lost) -> Self {
        Self::middleware(lost)
    }
}
