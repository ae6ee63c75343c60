use std::error::Error;
use std::io;
use std::net::IpAddr;

use http::StatusCode;

/// Why the origin gave no response.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// Its name leads nowhere.
    #[error("the origin's name does not resolve: {0}")]
    Resolve(#[source] io::Error),
    /// Its name leads to a private address, which was not allowed.
    #[error("the origin's name resolves to the private address {0}, which is not allowed")]
    Prohibited(IpAddr),
    /// No connection could be made.
    #[error("no connection to the origin: {0}")]
    Connect(#[source] io::Error),
    /// Resolving its name or connecting took too long.
    #[error("no connection to the origin in time")]
    ConnectTimeout,
    /// As many requests as may be are under way there.
    #[error("too many requests are under way at the origin")]
    Busy,
    /// It has the request and does not answer.
    #[error("the origin does not answer in time")]
    Silent,
    /// The connection ended before the response began.
    #[error("the origin closed the connection before it answered")]
    Broken(#[source] hyper::Error),
    /// What it answered is not HTTP, or not such as may be passed on.
    #[error("the origin's response is malformed: {0}")]
    Malformed(String),
    /// The client's body failed on the way there.
    #[error("{0}")]
    Request(BodyFault),
}

/// What was wrong with a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyFault {
    /// It has more bytes than are allowed.
    #[error("the request's body is too large")]
    TooLarge,
    /// It paused for too long.
    #[error("the request's body does not come")]
    Stalled,
    /// It ended early.
    #[error("the request's body broke off")]
    Broken,
}

impl UpstreamError {
    /// Reads what hyper says of a request that got no response.
    pub(crate) fn of(error: hyper::Error) -> Self {
        let mut cause: Option<&(dyn Error + 'static)> = error.source();
        while let Some(inner) = cause {
            if let Some(fault) = inner.downcast_ref::<BodyFault>() {
                return Self::Request(*fault);
            }
            cause = inner.source();
        }
        if error.is_user() {
            Self::Request(BodyFault::Broken)
        } else if error.is_parse() {
            Self::Malformed(error.to_string())
        } else {
            Self::Broken(error)
        }
    }

    /// What the client is answered.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::ConnectTimeout | Self::Silent => StatusCode::GATEWAY_TIMEOUT,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Request(BodyFault::TooLarge) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Request(BodyFault::Stalled) => StatusCode::REQUEST_TIMEOUT,
            Self::Request(BodyFault::Broken) => StatusCode::BAD_REQUEST,
            _ => StatusCode::BAD_GATEWAY,
        }
    }

    /// Its name in `Proxy-Status` (RFC 9209).
    pub fn token(&self) -> &'static str {
        match self {
            Self::Resolve(_) => "dns_error",
            Self::Prohibited(_) => "destination_ip_prohibited",
            Self::Connect(_) => "connection_refused",
            Self::ConnectTimeout => "connection_timeout",
            Self::Busy => "connection_limit_reached",
            Self::Silent => "http_response_timeout",
            Self::Broken(_) => "connection_terminated",
            Self::Malformed(_) => "http_protocol_error",
            Self::Request(_) => "http_request_error",
        }
    }
}
