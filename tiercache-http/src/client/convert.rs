//! Requests and responses across the border to reqwest's types.

use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Uri, header};
use http_body::{Body as _, Frame, SizeHint};
use reqwest::{Request, Response, ResponseBuilderExt, Url};

use crate::policy::fields;
use crate::relay::Elsewhere;
use crate::{Body, BoxError, DoNotStore, Redirected, RequestOptions};

/// The URL that a response came from.
#[derive(Clone)]
struct Came(Url);

/// The request as the engine has it, without its body; `None` if its URL is none that http knows.
pub(super) fn request(request: &Request, options: Option<&RequestOptions>) -> Option<http::Request<Body>> {
    let has_body = request.body().is_some_and(|body| !body.is_end_stream());
    let mut asked = http::Request::new(if has_body { Body::wrap(Elsewhere) } else { Body::empty() });
    *asked.method_mut() = request.method().clone();
    *asked.uri_mut() = uri(request.url())?;
    *asked.version_mut() = request.version();
    *asked.headers_mut() = request.headers().clone();
    let mut options = options.cloned();
    for host in request.headers().get_all(header::HOST) {
        // It is sent in place of the URL's, and may name another server behind the same address.
        let host = host.as_bytes().escape_ascii();
        options = Some(options.unwrap_or_default().key_part(format!("host {host}")));
    }
    if let Some(options) = options {
        asked.extensions_mut().insert(options);
    }
    Some(asked)
}

/// Makes `request` the one that the engine asks. Its body, timeout and URL are its own.
pub(super) fn apply(request: &mut Request, asked: http::Request<Body>) {
    let (parts, _) = asked.into_parts();
    *request.method_mut() = parts.method;
    *request.headers_mut() = parts.headers;
}

/// What is to be known of a request when its response has come.
pub(super) struct Sent {
    uri: Option<Uri>,
    /// Which of `Cookie` and `Authorization` may have been added to it.
    unseen: Vec<http::HeaderName>,
}

impl Sent {
    pub(super) fn of(request: &Request, as_given: bool) -> Self {
        let unseen = [header::COOKIE, header::AUTHORIZATION];
        let unseen = unseen.into_iter().filter(|name| !as_given && !request.headers().contains_key(name));
        Self { uri: uri(request.url()), unseen: unseen.collect() }
    }

    /// Where a response came from, if that is not where the request was sent to.
    pub(super) fn redirected(&self, response: &Response) -> Option<Uri> {
        let last = uri(response.url());
        if last == self.uri { None } else { Some(last.unwrap_or_default()) }
    }

    /// The response as the engine has it.
    pub(super) fn inward(&self, response: Response) -> http::Response<Body> {
        let (came, redirected) = (Came(response.url().clone()), self.redirected(&response));
        let mut response = http::Response::from(response).map(Body::wrap);
        let varies = self.varies_by_unseen(response.headers());
        let extensions = response.extensions_mut();
        extensions.insert(came);
        if let Some(last) = redirected {
            extensions.insert(Redirected(last));
        }
        if varies {
            extensions.insert(DoNotStore);
        }
        response
    }

    fn varies_by_unseen(&self, response: &HeaderMap) -> bool {
        let mut varying = fields::members(response, &header::VARY);
        varying.any(|name| self.unseen.iter().any(|unseen| name.eq_ignore_ascii_case(unseen.as_str())))
    }
}

/// The response as reqwest has it. `asked` is the URL of what is from the cache.
pub(super) fn outward(mut response: http::Response<Body>, mut asked: Url) -> Response {
    let url = match response.extensions_mut().remove::<Came>() {
        Some(Came(url)) => url,
        None => {
            // As in responses of reqwest's own.
            asked.set_fragment(None);
            asked
        }
    };
    // There is no other way to give a response its URL than by a builder's extensions.
    if let Ok(with_url) = http::response::Builder::new().url(url).body(()) {
        response.extensions_mut().extend(with_url.into_parts().0.extensions);
    }
    let response = response.map(|body| match body.whole() {
        Some(bytes) => reqwest::Body::from(bytes),
        None => reqwest::Body::wrap(Outward(Mutex::new(body))),
    });
    response.into()
}

/// Without what is for the client only.
fn uri(url: &Url) -> Option<Uri> {
    let text = url.as_str();
    text.split('#').next().unwrap_or(text).parse().ok()
}

/// A body of the engine's. reqwest's must be `Sync`: who has it for himself needs no lock.
struct Outward(Mutex<Body>);

impl Outward {
    fn body(&self) -> MutexGuard<'_, Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl http_body::Body for Outward {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(self.0.get_mut().unwrap_or_else(PoisonError::into_inner)).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body().size_hint()
    }
}
