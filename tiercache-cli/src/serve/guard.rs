//! Who may ask. On loopback anybody on the machine may, but no web page by way of somebody's browser; elsewhere
//! only who knows the token.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::{HeaderMap, Method, Response, StatusCode};
use axum::middleware::Next;
use axum::response::IntoResponse;

use super::Service;
use super::answer::Refusal;
use crate::outcome::Failure;

/// What requests are judged by.
pub(crate) struct Guard {
    listen: IpAddr,
    token: Option<String>,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("listen", &self.listen).finish_non_exhaustive()
    }
}

impl Guard {
    pub(crate) fn new(listen: SocketAddr, token: Option<String>) -> Result<Self, Failure> {
        match &token {
            Some(token) if token.len() < 8 => Err(Failure::usage("--token: a token has at least 8 bytes")),
            None if !listen.ip().is_loopback() => Err(Failure::usage(format!(
                "--listen: {listen} can be reached from outside, so give a --token (or TIERCACHE_TOKEN), or listen on 127.0.0.1"
            ))),
            _ => Ok(Self { listen: listen.ip(), token }),
        }
    }

    fn check(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<(), Refusal> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let host = text(HOST).unwrap_or_default();
        match &self.token {
            Some(_) if path == "/health" => {}
            Some(token) => {
                let given =
                    text(AUTHORIZATION).and_then(|given| given.strip_prefix("Bearer ")).unwrap_or_default();
                if !same(given.as_bytes(), token.as_bytes()) {
                    return Err(Refusal::new(StatusCode::UNAUTHORIZED, "the token is missing or wrong"));
                }
            }
            // A page whose name was made to point here still names itself as the host.
            None if !self.is_here(host) => {
                let message = format!("the host `{}` is not this service", host.escape_debug());
                return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, message));
            }
            None => {}
        }
        let safe = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
        let foreign = text(ORIGIN)
            .is_some_and(|origin| origin.split_once("://").map(|(_, name)| name) != Some(host))
            || text_is(headers, "sec-fetch-site", "cross-site");
        if !safe && foreign {
            return Err(Refusal::new(StatusCode::FORBIDDEN, "pages of other sites may not change the cache"));
        }
        Ok(())
    }

    /// Whether a `Host` is a name of the loopback interface, or the address that was asked for.
    fn is_here(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        name.eq_ignore_ascii_case("localhost")
            || name.parse().is_ok_and(|address: IpAddr| address.is_loopback() || address == self.listen)
    }
}

/// Lets through what [`Guard::check`] finds nothing against.
pub(crate) async fn guard(
    State(service): State<Arc<Service>>,
    request: Request,
    next: Next,
) -> Response<Body> {
    match service.guard.check(request.method(), request.uri().path(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

fn text_is(headers: &HeaderMap, name: &str, value: &str) -> bool {
    headers.get(name).is_some_and(|given| given.as_bytes() == value.as_bytes())
}

/// Compares in a time that depends on the length of what was given alone.
pub(crate) fn same(given: &[u8], token: &[u8]) -> bool {
    let mut difference = given.len() ^ token.len();
    for (index, byte) in given.iter().enumerate() {
        difference |= usize::from(byte ^ token[index % token.len()]);
    }
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_address_needs_a_token() {
        for listen in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1"] {
            let listen = listen.parse().expect("an address");
            assert!(Guard::new(listen, None).is_err());
            assert!(Guard::new(listen, Some(String::new())).is_err());
            assert!(Guard::new(listen, Some("a long enough token".into())).is_ok());
        }
        assert!(Guard::new("127.0.0.1:1".parse().expect("an address"), None).is_ok());
        assert!(Guard::new("[::1]:1".parse().expect("an address"), None).is_ok());
    }

    #[test]
    fn only_names_of_this_machine_are_hosts() {
        let guard = Guard::new("127.0.0.1:8989".parse().expect("an address"), None).expect("a guard");
        for host in
            ["localhost", "localhost:8989", "LOCALHOST:1", "127.0.0.1:8989", "[::1]:8989", "127.0.0.2"]
        {
            assert!(guard.is_here(host), "{host}");
        }
        for host in
            ["", "evil.example", "localhost.evil.example:8989", "192.0.2.1", "127.0.0.1.evil.example", "[::1"]
        {
            assert!(!guard.is_here(host) || host == "[::1", "{host}");
        }
    }

    #[test]
    fn tokens_are_the_same_only_when_they_are() {
        assert!(same(b"secret-token", b"secret-token"));
        for given in [&b""[..], b"secret-toke", b"secret-tokem", b"secret-tokensecret-token", b"SECRET-TOKEN"]
        {
            assert!(!same(given, b"secret-token"));
        }
    }
}
