use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use http::Uri;
use http::uri::{Authority, Scheme};
use tokio::net::lookup_host;

use crate::address::is_public;
use crate::error::UpstreamError;

/// The origin a proxy stands in front of: `http://HOST[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    authority: Authority,
    host: String,
    port: u16,
    private: bool,
}

/// Why a text names no origin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not an origin: {why}; allowed: http://HOST[:PORT]")]
pub struct InvalidTarget {
    given: String,
    why: &'static str,
}

impl Target {
    /// Also takes a name that resolves to private addresses: loopback, RFC 1918, link-local and the like.
    ///
    /// An address given as such, and `localhost`, are taken in any case: whoever wrote them means them. Any other name
    /// is refused while it resolves to private addresses alone, so that who controls its DNS cannot point the proxy
    /// into the network it stands in.
    #[must_use]
    pub fn allow_private(mut self, allowed: bool) -> Self {
        self.private |= allowed;
        self
    }

    /// Host and port as they were given.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The addresses that may be connected to now.
    ///
    /// # Errors
    /// [`UpstreamError::Resolve`], [`UpstreamError::Prohibited`].
    pub async fn addresses(&self) -> Result<Vec<SocketAddr>, UpstreamError> {
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, self.port)]);
        }
        let found = lookup_host((self.host.as_str(), self.port)).await.map_err(UpstreamError::Resolve)?;
        self.allowed(found.collect())
    }

    /// Those of a name's addresses that may be connected to.
    fn allowed(&self, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, UpstreamError> {
        let first = *found.first().ok_or_else(|| UpstreamError::Resolve(io::ErrorKind::NotFound.into()))?;
        let allowed: Vec<_> =
            found.into_iter().filter(|address| self.private || is_public(address.ip())).collect();
        if allowed.is_empty() { Err(UpstreamError::Prohibited(first.ip())) } else { Ok(allowed) }
    }
}

impl FromStr for Target {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        let invalid = |why| InvalidTarget { given: shown(text), why };
        let uri: Uri = text.parse().map_err(|_| invalid("it is not a URL"))?;
        match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => {}
            Some(scheme) if *scheme == Scheme::HTTPS => {
                return Err(invalid("TLS to the origin is not supported"));
            }
            _ => return Err(invalid("its scheme is not http")),
        }
        let authority = uri.authority().ok_or_else(|| invalid("it has no host"))?;
        if uri.path() != "/" || uri.query().is_some() {
            return Err(invalid("it has a path or a query, and requests keep theirs"));
        }
        if authority.as_str().contains('@') {
            return Err(invalid("it has user information"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let named = authority.as_str().len() > authority.host().len();
        let port = if named { authority.port_u16().unwrap_or_default() } else { 80 };
        if host.is_empty() || port == 0 {
            return Err(invalid("its host or its port is none"));
        }
        let private = host.eq_ignore_ascii_case("localhost");
        Ok(Self { authority: authority.clone(), host, port, private })
    }
}

/// The text without what stands before an `@`, which may be a password.
fn shown(text: &str) -> String {
    let hidden = text.rsplit_once('@').map(|(before, rest)| {
        let scheme = before.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
        format!("{scheme}***@{rest}")
    });
    hidden.as_deref().unwrap_or(text).escape_debug().to_string()
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_host_and_perhaps_a_port() {
        for (given, host, port) in [
            ("http://127.0.0.1:8000", "127.0.0.1", 8000),
            ("http://example.com", "example.com", 80),
            ("http://example.com/", "example.com", 80),
            ("http://[::1]:81", "::1", 81),
        ] {
            let target: Target = given.parse().expect("an origin");
            assert_eq!((target.host.as_str(), target.port), (host, port), "{given}");
        }
        for given in [
            "",
            "example.com",
            "https://example.com",
            "ftp://example.com",
            "http://",
            "http://a/b",
            "http://a?b",
            "http://u:p@a",
            "http://a:0",
            "http://a:99999",
            "/a",
        ] {
            assert!(given.parse::<Target>().is_err(), "{given}");
        }
        let said =
            "http://user:password@a".parse::<Target>().expect_err("it has user information").to_string();
        assert!(said.starts_with("`http://***@a` is not an origin"), "{said}");
    }

    #[tokio::test]
    async fn an_address_that_is_written_out_is_meant() {
        let target: Target = "http://127.0.0.1:8000".parse().expect("an origin");
        let addresses = target.addresses().await.expect("it is taken");
        assert_eq!(addresses, ["127.0.0.1:8000".parse().expect("an address")]);
        let target: Target = "http://localhost:8000".parse().expect("an origin");
        assert!(!target.addresses().await.expect("it is taken").is_empty());
    }

    #[test]
    fn a_name_that_leads_inside_is_refused_unless_that_is_allowed() {
        let target: Target = "http://origin.example".parse().expect("an origin");
        let addresses = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().expect("an address")).collect()
        };
        let inside = addresses(&["10.0.0.1:80", "[::1]:80"]);
        let refused = target.allowed(inside.clone());
        assert!(
            matches!(refused, Err(UpstreamError::Prohibited(address)) if address.to_string() == "10.0.0.1")
        );
        let both = addresses(&["169.254.169.254:80", "1.1.1.1:80"]);
        assert_eq!(target.allowed(both).expect("one is public"), addresses(&["1.1.1.1:80"]));
        assert!(matches!(target.allowed(Vec::new()), Err(UpstreamError::Resolve(_))));
        assert_eq!(target.allow_private(true).allowed(inside.clone()).expect("they are allowed"), inside);
    }
}
