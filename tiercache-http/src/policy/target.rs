//! What a request is about: the primary key, and what an unsafe request makes invalid (RFC 9111 §4.4).

use std::borrow::Cow;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, Method, Uri, header};

use super::fields::{members, text};

/// Scheme, authority, path and query: the URI that responses are stored under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(crate) scheme: Cow<'static, str>,
    pub(crate) authority: String,
    pub(crate) path: String,
}

impl Target {
    /// Of a request; `None` when it cannot be told, as with two `Host` fields.
    pub(crate) fn of_request(uri: &Uri, headers: &HeaderMap, scheme: &str) -> Option<Self> {
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = hosts.next().map(text);
        if hosts.next().is_some() {
            return None;
        }
        let authority = match (uri.authority(), host) {
            (Some(authority), _) => authority.as_str(),
            (None, Some(host)) => host?,
            (None, None) => "",
        };
        Self::new(uri.scheme_str().unwrap_or(scheme), authority, uri.path_and_query())
    }

    /// Of a URI, complete or with the defaults of a cache.
    pub(crate) fn of_uri(uri: &Uri, scheme: &str) -> Option<Self> {
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        Self::new(uri.scheme_str().unwrap_or(scheme), authority, uri.path_and_query())
    }

    fn new(scheme: &str, authority: &str, path: Option<&PathAndQuery>) -> Option<Self> {
        let (scheme, default) = match scheme {
            _ if scheme.eq_ignore_ascii_case("http") => ("http".into(), ":80"),
            _ if scheme.eq_ignore_ascii_case("https") => ("https".into(), ":443"),
            other => (other.to_ascii_lowercase().into(), ""),
        };
        let mut authority = authority.to_ascii_lowercase();
        // No key speaks of users, and none has room for what ends it.
        if authority.bytes().any(|byte| byte == b'@' || byte <= b' ' || byte == b'/' || byte == 0x7f) {
            return None;
        }
        if !default.is_empty() && authority.ends_with(default) {
            authority.truncate(authority.len() - default.len());
        }
        let path = path.map_or("/", |path| path.as_str());
        let path = if path.is_empty() { "/" } else { path };
        Some(Self { scheme, authority, path: path.to_owned() })
    }

    /// What a reference in a response to this target means (RFC 3986 §5.2), when it is of the same origin.
    pub(crate) fn same_origin(&self, reference: &str) -> Option<Self> {
        let reference = reference.split('#').next().unwrap_or_default();
        let resolved = if reference.contains("://") {
            reference.parse::<Uri>().ok()?
        } else if let Some(rest) = reference.strip_prefix("//") {
            format!("{}://{rest}", self.scheme).parse().ok()?
        } else {
            let base = self.path.split('?').next().unwrap_or("/");
            let path = match reference {
                "" => self.path.clone(),
                _ if reference.starts_with('/') => without_dots(reference),
                _ if reference.starts_with('?') => format!("{base}{reference}"),
                _ => {
                    let folder = base.rfind('/').map_or("/", |at| &base[..=at]);
                    without_dots(&format!("{folder}{reference}"))
                }
            };
            return Some(Self { path, ..self.clone() });
        };
        let target = Self::of_uri(&resolved, &self.scheme)?;
        (target.scheme == self.scheme && target.authority == self.authority).then_some(target)
    }

    /// The targets that a response to an unsafe request makes invalid besides its own.
    pub(crate) fn named_by<'a>(&'a self, response: &'a HeaderMap) -> impl Iterator<Item = Self> + 'a {
        [header::LOCATION, header::CONTENT_LOCATION]
            .into_iter()
            .filter_map(|name| self.same_origin(text(response.get(name)?)?))
    }
}

/// Whether a request may change what it is about. Methods that nobody knows may; CONNECT is about nothing that is stored.
pub(crate) fn is_unsafe(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::CONNECT)
}

/// Fields that frameworks and proxies take for parts of the target. What a response to one of them says is not for
/// requests without it.
const ELSEWHERE: [HeaderName; 10] = [
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-prefix"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-scheme"),
    HeaderName::from_static("x-forwarded-server"),
    HeaderName::from_static("x-host"),
    HeaderName::from_static("x-original-host"),
    HeaderName::from_static("x-original-url"),
    HeaderName::from_static("x-rewrite-url"),
];

/// Fields by which a request says that its method is another one.
const METHODS: [HeaderName; 3] = [
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-method-override"),
];

/// What a request says about its target besides the target, as parts of the key.
pub(crate) fn named_elsewhere(headers: &HeaderMap) -> Vec<String> {
    let mut parts = Vec::new();
    if has_any(headers, &ELSEWHERE) {
        for name in &ELSEWHERE {
            for value in headers.get_all(name) {
                parts.push(part(name.as_str(), value.as_bytes()));
            }
        }
    }
    // RFC 7239: who it is for is no matter of the target.
    let forwarded = members(headers, &header::FORWARDED).flat_map(|member| member.split(';'));
    for (name, value) in forwarded.filter_map(|pair| pair.trim().split_once('=')) {
        if ["host", "proto"].iter().any(|known| name.eq_ignore_ascii_case(known)) {
            parts.push(part("forwarded", format!("{}={value}", name.to_ascii_lowercase()).as_bytes()));
        }
    }
    parts
}

/// A field as a part of the key, each byte as the letter of that number, so that no two values are the same.
pub(crate) fn part(name: &str, value: &[u8]) -> String {
    let value: String = value.iter().map(|byte| char::from(*byte)).collect();
    format!("header\0{name}\0{value}")
}

/// Whether a request says that its method is another one.
pub(crate) fn overrides_method(headers: &HeaderMap) -> bool {
    has_any(headers, &METHODS)
}

/// Whether one of `names` is there. All of them begin with `x-`, and few fields of a request do.
fn has_any(headers: &HeaderMap, names: &[HeaderName]) -> bool {
    headers.keys().any(|name| name.as_str().starts_with("x-") && names.contains(name))
}

/// RFC 3986 §5.2.4, of the path before a query.
fn without_dots(reference: &str) -> String {
    let (path, query) = match reference.find('?') {
        Some(at) => reference.split_at(at),
        None => (reference, ""),
    };
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/').skip(1) {
        match segment {
            "." | ".." => {}
            _ => {
                segments.push(segment);
                continue;
            }
        }
        if segment == ".." {
            segments.pop();
        }
    }
    if path.ends_with("/.") || path.ends_with("/..") {
        segments.push("");
    }
    format!("/{}{query}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::headers;
    use super::*;

    fn target(uri: &str) -> Option<Target> {
        Target::of_uri(&uri.parse().unwrap(), "http")
    }

    #[test]
    fn hosts_are_the_same_in_any_case_and_with_the_default_port_paths_are_not() {
        assert_eq!(target("http://Example.com:80/A"), target("http://example.com/A"));
        assert_eq!(target("https://example.com:443"), target("https://example.com/"));
        for (one, other) in [
            ("http://a/x", "https://a/x"),
            ("http://a/x", "http://b/x"),
            ("http://a/x", "http://a:8080/x"),
            ("http://a/x", "http://a/X"),
            ("http://a/x", "http://a/x?"),
            ("http://a/x?a=1&b=2", "http://a/x?b=2&a=1"),
            ("http://a/x", "http://a/x/"),
            ("http://a/x/y", "http://a/x%2fy"),
            ("http://a/x", "http://a/x;.css"),
            ("http://a/x", "http://a/x%00.css"),
        ] {
            assert_ne!(target(one), target(other), "{one} {other}");
        }
    }

    #[test]
    fn a_request_with_two_hosts_or_an_odd_one_is_about_nothing() {
        let of = |lines: &[(&str, &str)]| Target::of_request(&"/x".parse().unwrap(), &headers(lines), "http");
        assert_eq!(of(&[("host", "a")]), target("http://a/x"));
        assert_eq!(of(&[("host", "a"), ("host", "b")]), None);
        assert_eq!(of(&[("host", "a/b")]), None);
        assert_eq!(of(&[("host", "u@a")]), None);
        let complete = Target::of_request(&"http://a/x".parse().unwrap(), &headers(&[("host", "b")]), "http");
        assert_eq!(complete, target("http://a/x"), "the target's own authority counts (RFC 9112 §3.2.2)");
    }

    #[test]
    fn references_are_followed_within_the_origin() {
        let base = target("http://a/b/c?d").unwrap();
        for (reference, expected) in [
            ("", Some("/b/c?d")),
            ("x", Some("/b/x")),
            ("./x?y", Some("/b/x?y")),
            ("../x", Some("/x")),
            ("../../..", Some("/")),
            ("/x/./y/../z", Some("/x/z")),
            ("?q", Some("/b/c?q")),
            ("x#y", Some("/b/x")),
            ("http://A:80/z", Some("/z")),
            ("//a/z", Some("/z")),
            ("http://b/z", None),
            ("https://a/z", None),
        ] {
            let found = base.same_origin(reference);
            assert_eq!(found.as_ref().map(|found| found.path.as_str()), expected, "{reference}");
        }
    }

    #[test]
    fn what_is_said_of_the_target_elsewhere_is_part_of_the_key() {
        let named = |lines: &[(&str, &str)]| named_elsewhere(&headers(lines));
        assert!(named(&[("x-forwarded-for", "10.0.0.1"), ("forwarded", "for=10.0.0.1;by=x")]).is_empty());
        let evil = named(&[("x-forwarded-host", "evil")]);
        assert_eq!(evil.len(), 1);
        assert_ne!(evil, named(&[("x-forwarded-host", "good")]));
        assert_ne!(evil, named(&[("x-host", "evil")]));
        assert_ne!(evil, named(&[("x-forwarded-host", "evil"), ("x-forwarded-host", "evil")]));
        assert_eq!(named(&[("forwarded", "for=1;HOST=evil, for=2;proto=http")]).len(), 2);
    }

    #[test]
    fn unknown_methods_are_unsafe() {
        for method in ["POST", "PUT", "DELETE", "PATCH", "M-SEARCH", "get"] {
            assert!(is_unsafe(&method.parse().unwrap()), "{method}");
        }
        for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::CONNECT] {
            assert!(!is_unsafe(&method), "{method}");
        }
    }
}
