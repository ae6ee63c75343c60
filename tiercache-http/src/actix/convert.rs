//! Heads across the border: actix-web's types are of http 0.2.

use actix_web::HttpResponse;
use actix_web::body::BodySize;
use actix_web::dev::{Payload, ServiceRequest};
use actix_web::http as old;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body::Body as _;

use crate::Body;
use crate::relay::Elsewhere;

/// Marks what the service answered.
#[derive(Clone)]
pub(super) struct FromService;

/// The request as the engine has it; `None` if http 1 has no such request.
pub(super) fn request(request: &ServiceRequest) -> Option<Request<Body>> {
    let body = if has_body(request) { Body::wrap(Elsewhere) } else { Body::empty() };
    let mut asked = Request::new(body);
    *asked.method_mut() = method(request.method())?;
    *asked.uri_mut() = uri(request.uri())?;
    *asked.version_mut() = match request.version() {
        old::Version::HTTP_10 => Version::HTTP_10,
        old::Version::HTTP_2 => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    *asked.headers_mut() = headers(request.headers())?;
    Some(asked)
}

/// In HTTP/1.1 there is a payload only where there is a body. In HTTP/2 there always is one: what a read does not
/// announce is taken for nothing, and not given to the service either.
fn has_body(request: &ServiceRequest) -> bool {
    let reads = matches!(
        *request.method(),
        old::Method::GET | old::Method::HEAD | old::Method::OPTIONS | old::Method::TRACE
    );
    match request.parts().1 {
        Payload::None => false,
        _ if request.version() < old::Version::HTTP_2 || !reads => true,
        _ => request.headers().get(old::header::CONTENT_LENGTH).is_some_and(|length| length != "0"),
    }
}

/// Makes `request` the one that the engine asks. What is the same is not touched.
pub(super) fn apply(request: &mut ServiceRequest, asked: &Request<Body>) {
    if request.method().as_str() != asked.method().as_str()
        && let Ok(method) = old::Method::from_bytes(asked.method().as_str().as_bytes())
    {
        request.head_mut().method = method;
    }
    if headers(request.headers()).as_ref() != Some(asked.headers()) {
        *request.headers_mut() = old_headers(asked.headers());
    }
    if asked.body().is_end_stream() {
        request.set_payload(Payload::None);
    }
}

/// What the service answered, as the engine has it; `None` if http 1 has no such response.
pub(super) fn response(answer: &HttpResponse<()>, size: BodySize, is_head: bool) -> Option<Response<()>> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(answer.status().as_u16()).ok()?;
    *response.headers_mut() = headers(answer.headers())?;
    if let BodySize::Sized(length) = size
        && (is_head || length > 0)
        && !matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    {
        // As actix-web will write it.
        response.headers_mut().entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    response.extensions_mut().insert(FromService);
    Some(response)
}

/// Gives a response that status and these fields.
pub(super) fn head(response: &mut HttpResponse<()>, status: StatusCode, headers: &HeaderMap) {
    if response.status().as_u16() != status.as_u16()
        && let Ok(status) = old::StatusCode::from_u16(status.as_u16())
    {
        *response.status_mut() = status;
    }
    *response.headers_mut() = old_headers(headers);
}

fn method(method: &old::Method) -> Option<Method> {
    match *method {
        old::Method::GET => Some(Method::GET),
        _ => Method::from_bytes(method.as_str().as_bytes()).ok(),
    }
}

fn uri(uri: &old::Uri) -> Option<Uri> {
    match (uri.scheme(), uri.authority(), uri.path_and_query()) {
        (None, None, Some(path)) => Uri::try_from(path.as_str()).ok(),
        _ => uri.to_string().parse().ok(),
    }
}

fn headers(headers: &old::header::HeaderMap) -> Option<HeaderMap> {
    let mut new = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_str().as_bytes()).ok()?;
        new.try_append(name, HeaderValue::from_bytes(value.as_bytes()).ok()?).ok()?;
    }
    Some(new)
}

/// What http 1 has, http 0.2 has too.
fn old_headers(headers: &HeaderMap) -> old::header::HeaderMap {
    let mut map = old::header::HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let name = old::header::HeaderName::from_bytes(name.as_str().as_bytes());
        if let (Ok(name), Ok(value)) = (name, old::header::HeaderValue::from_bytes(value.as_bytes())) {
            map.append(name, value);
        }
    }
    map
}
