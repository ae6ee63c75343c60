//! Answers of the proxy's own.

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Response, StatusCode};
use tiercache_http::Body;

use crate::error::UpstreamError;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// Why a request goes no further than the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) why: &'static str,
}

impl Refusal {
    pub(crate) const fn new(status: StatusCode, why: &'static str) -> Self {
        Self { status, why }
    }

    pub(crate) const fn bad(why: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, why)
    }

    pub(crate) fn response(self) -> Response<Body> {
        let mut response = plain(self.status, format!("{}\n", self.why), "http_request_error");
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            let methods = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
            response.headers_mut().insert(ALLOW, methods);
        }
        response
    }
}

/// What a client is told when the origin is not reached. It names no address.
pub(crate) fn failed(error: &UpstreamError) -> Response<Body> {
    let text = match error {
        UpstreamError::Request(fault) => format!("{fault}\n"),
        _ if error.status() == StatusCode::GATEWAY_TIMEOUT => {
            "the origin does not answer in time\n".to_owned()
        }
        UpstreamError::Busy => "the origin is busy\n".to_owned(),
        _ => "the origin cannot be reached\n".to_owned(),
    };
    plain(error.status(), text, error.token())
}

fn plain(status: StatusCode, text: String, error: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert(CACHE_STATUS, value(&format!("tiercache; detail={error}")));
    fields.insert(PROXY_STATUS, value(&format!("tiercache; error={error}")));
    response
}

/// Made of letters and punctuation here.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("tiercache"))
}
