//! Middleware for actix-web 4.
//!
//! ```
//! use std::time::Duration;
//!
//! use actix_web::{App, web};
//! use tiercache_http::actix::Cache;
//! use tiercache_http::{HttpCache, RequestOptions};
//!
//! # fn app(cache: HttpCache) {
//! // Made once, outside of what makes an `App` for every worker: all of them share what is stored.
//! let layer = Cache::new(cache);
//! let minute = RequestOptions::new().ttl(Duration::from_secs(60)).tag("type", "page");
//! let app = App::new()
//!     .service(web::scope("/pages").wrap(layer.clone().options(minute)))
//!     .service(web::scope("/news").wrap(layer));
//! # let _ = app;
//! # }
//! ```

mod body;
mod convert;

use std::future::{Ready, poll_fn, ready};
use std::pin::{Pin, pin};
use std::rc::Rc;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Payload, Service, ServiceRequest, ServiceResponse, Transform, forward_ready};
use actix_web::error::ErrorInternalServerError;
use actix_web::{Error, HttpMessage, HttpRequest, HttpResponse, rt};
use http::{Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::{RecvError, TryRecvError};

use crate::relay::{self, Lost, Relay};
use crate::{Body, HttpCache, Outcome, RequestOptions};

/// The service's errors go their own way, past the engine.
type Job = relay::Job<Lost>;

/// Puts an [`HttpCache`] around an app, a scope, a resource or a route. The state is the cache's: all workers share it.
///
/// The wrapped service runs on its own worker. Its errors, and what it answers that is not from the cache, stay what they
/// are, extensions included; answers have their [`Outcome`] among the response's extensions. What a requester who leaves
/// has begun to be stored is stored all the same; a service that was only asked and has not answered is dropped with the
/// requester, as it is without the cache.
///
/// A background revalidation calls the service a second time with the same request, after its stale answer has left
/// the app. A middleware outside of this one that keeps a clone of the `HttpRequest` for longer makes that
/// revalidation panic, as it does actix-web's own routing; the stale answer and later requests are not harmed. An
/// `Err` of an inner middleware is passed on even where a stale answer would be allowed: only answers, such as handlers'
/// errors are, can be replaced.
#[derive(Clone)]
pub struct Cache {
    cache: HttpCache,
    options: Option<RequestOptions>,
}

impl Cache {
    /// A middleware over that cache.
    pub fn new(cache: HttpCache) -> Self {
        Self { cache, options: None }
    }

    /// What requests through this middleware have otherwise. A request that brings [`RequestOptions`] among its
    /// extensions has those instead.
    #[must_use]
    pub fn options(self, options: RequestOptions) -> Self {
        Self { options: Some(options), ..self }
    }
}

impl<S, B> Transform<S, ServiceRequest> for Cache
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse;
    type Error = Error;
    type Transform = CacheMiddleware<S>;
    type InitError = ();
    type Future = Ready<Result<Self::Transform, ()>>;

    fn new_transform(&self, service: S) -> Self::Future {
        ready(Ok(CacheMiddleware { layer: self.clone(), service: Rc::new(service) }))
    }
}

/// A service of one worker behind an [`HttpCache`].
pub struct CacheMiddleware<S> {
    layer: Cache,
    service: Rc<S>,
}

impl<S, B> Service<ServiceRequest> for CacheMiddleware<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<ServiceResponse, Error>>>>;

    forward_ready!(service);

    fn call(&self, request: ServiceRequest) -> Self::Future {
        let service = self.service.clone();
        let Some(mut asked) = convert::request(&request) else {
            return Box::pin(async move { Ok(service.call(request).await?.map_into_boxed_body()) });
        };
        let own = request.extensions().get::<RequestOptions>().cloned();
        if let Some(options) = own.or_else(|| self.layer.options.clone()) {
            asked.extensions_mut().insert(options);
        }
        Box::pin(answer(self.layer.cache.clone(), service, request, asked))
    }
}

async fn answer<S, B>(
    cache: HttpCache,
    service: Rc<S>,
    mut request: ServiceRequest,
    asked: Request<Body>,
) -> Result<ServiceResponse, Error>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    let is_head = asked.method() == Method::HEAD;
    let (origin, mut jobs) = Relay::<Lost>::new(true);
    let mut handled = pin!(async move { cache.handle(asked, &origin).await });
    let job = tokio::select! {
        biased;
        handled = &mut handled => {
            let (request, _) = request.into_parts();
            let response = handled.map_err(ErrorInternalServerError)?;
            // Who has asked, or still may, is a revalidation in the background.
            let held = match jobs.try_recv() {
                Ok(job) => Some(refresh(service, request.clone(), ready(Ok(job)))),
                Err(TryRecvError::Empty) => Some(refresh(service, request.clone(), jobs)),
                Err(TryRecvError::Closed) => None,
            };
            return Ok(ServiceResponse::new(request, assemble(None, response, is_head, held)));
        }
        job = &mut jobs => job.map_err(ErrorInternalServerError)?,
    };
    let Job { request: asked, reply } = job;
    convert::apply(&mut request, &asked);
    let (request, came) = service.call(request).await?.into_parts();
    let (head, body) = came.into_parts();
    let size = body.size();
    let Some(response) = convert::response(&head, size, is_head) else {
        return Ok(ServiceResponse::new(request, head.set_body(body.boxed())));
    };
    let body = if is_head { Body::empty() } else { body::inward(body) };
    reply.send(Ok(response.map(|()| body)));
    let response = handled.await.map_err(ErrorInternalServerError)?;
    Ok(ServiceResponse::new(request, assemble(Some((head, size)), response, is_head, None)))
}

/// Asks the service once more, after the answer to `request` has left the app: it is the only one until then that may
/// have it. What is returned is dropped at that moment.
fn refresh<S, B>(
    service: Rc<S>,
    request: HttpRequest,
    job: impl Future<Output = Result<Job, RecvError>> + 'static,
) -> oneshot::Sender<()>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    let (left, has_left) = oneshot::channel();
    rt::spawn(async move {
        // Nothing is ever sent: it ends with the sender.
        has_left.await.ok();
        // Whoever asked may be gone with its runtime.
        let Ok(Job { request: asked, reply }) = job.await else { return };
        let mut request = ServiceRequest::from_parts(request, Payload::None);
        convert::apply(&mut request, &asked);
        let answered = match poll_fn(|context| service.poll_ready(context)).await {
            Ok(()) => service.call(request).await,
            Err(error) => Err(error),
        };
        match answered {
            Ok(response) => {
                let (head, body) = response.into_parts().1.into_parts();
                if let Some(response) = convert::response(&head, body.size(), false) {
                    reply.send(Ok(response.map(|()| body::inward(body))));
                }
            }
            Err(error) => tracing::debug!(%error, "what is stale is not revalidated"),
        }
    });
    left
}

/// The response as actix-web has it. What the service answered keeps all that the cache did not change.
fn assemble(
    came: Option<(HttpResponse<()>, BodySize)>,
    response: Response<Body>,
    is_head: bool,
    held: Option<oneshot::Sender<()>>,
) -> HttpResponse<BoxBody> {
    let (parts, body) = response.into_parts();
    let passed = parts.extensions.get::<convert::FromService>().is_some();
    let (mut response, was) = match came.filter(|_| passed) {
        Some((head, size)) => (head, Some(size)),
        None => (HttpResponse::new(actix_web::http::StatusCode::OK).drop_body(), None),
    };
    let exact = match (is_head, parts.headers.get(header::CONTENT_LENGTH)) {
        (true, Some(length)) => length.to_str().ok().and_then(|length| length.parse().ok()),
        (true, None) => None,
        (false, _) => body.size_hint().exact(),
    };
    let size = match (was, exact) {
        (Some(BodySize::None), _) => BodySize::None,
        (Some(size), _) if is_head => size,
        _ if parts.status == StatusCode::NOT_MODIFIED => BodySize::None,
        (_, Some(exact)) => BodySize::Sized(exact),
        (_, None) if is_head => BodySize::None,
        (_, None) => BodySize::Stream,
    };
    convert::head(&mut response, parts.status, &parts.headers);
    if matches!(size, BodySize::Sized(_)) {
        // Written from the size, which middleware outside of this one may change.
        response.headers_mut().remove(actix_web::http::header::CONTENT_LENGTH);
    }
    if let Some(outcome) = parts.extensions.get::<Outcome>() {
        response.extensions_mut().insert(*outcome);
    }
    response.set_body(BoxBody::new(body::Outward::new(body, size, held)))
}
