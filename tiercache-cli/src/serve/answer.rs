//! Answers that are not values.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::http::{HeaderName, Response, StatusCode};
use axum::response::IntoResponse;
use serde_json::{Value, json};
use tiercache::{Error, Level};

/// Whether something was there: of an answer to a removal, and with 404, where other 404s are of paths there are none of.
pub(crate) const FOUND: &str = "tiercache-found";
/// Of an answer to a removal of many: how many there were.
pub(crate) const REMOVED: &str = "tiercache-removed";
/// The levels that could not be reached and still hold what was removed; they are fenced.
pub(crate) const DEGRADED: HeaderName = HeaderName::from_static("tiercache-degraded");

/// Why a request is not answered with what it asked for.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    message: String,
}

pub(crate) type Answer = Result<Response<Body>, Refusal>;

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::InvalidKey(_) | Error::InvalidOption { .. } => StatusCode::BAD_REQUEST,
            Error::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Error::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
            Error::Unsupported { .. } => StatusCode::NOT_IMPLEMENTED,
            Error::Unavailable { .. } | Error::Full { .. } | Error::Closed => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response<Body> {
        let mut response = json_response(self.status, &json!({ "error": self.message }));
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert("www-authenticate", HeaderValue::from_static("Bearer"));
        }
        response
    }
}

pub(crate) fn json_response(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// 404, since `what` is not there.
pub(crate) fn absent(what: &str) -> Response<Body> {
    let why = json!({ "error": format!("the {what} is not there") });
    let mut response = json_response(StatusCode::NOT_FOUND, &why);
    response.headers_mut().insert(FOUND, HeaderValue::from_static("false"));
    response
}

/// 204, naming the levels that lag.
pub(crate) fn done(degraded: &[(Level, Error)]) -> Response<Body> {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let lagging: Vec<&str> = degraded.iter().map(|(level, _)| level.name()).collect();
    if let (false, Ok(lagging)) = (lagging.is_empty(), HeaderValue::from_str(&lagging.join(", "))) {
        response.headers_mut().insert(DEGRADED, lagging);
    }
    response
}
