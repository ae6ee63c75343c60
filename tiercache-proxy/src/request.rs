//! What is let in, and as what.

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderName, HeaderValue, IF_MODIFIED_SINCE,
    IF_RANGE, IF_UNMODIFIED_SINCE, MAX_FORWARDS, RANGE, TRANSFER_ENCODING,
};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, StatusCode, Uri, Version};

use crate::answer::Refusal;
use crate::fields;
use crate::limits::Limits;

/// Fields that have one value: of two, an origin may believe the one that the cache did not.
const SINGLE: [HeaderName; 9] = [
    AUTHORIZATION,
    CONTENT_TYPE,
    EXPECT,
    HOST,
    IF_MODIFIED_SINCE,
    IF_RANGE,
    IF_UNMODIFIED_SINCE,
    MAX_FORWARDS,
    RANGE,
];

/// What requests are judged by.
pub(crate) struct Gate<'a> {
    pub(crate) limits: &'a Limits,
    /// The host of a request that names none, which only HTTP/1.0 may.
    pub(crate) origin: &'a Authority,
    /// Whether who connects may say where a request came from.
    pub(crate) trusted: bool,
    /// The address of who connects.
    pub(crate) client: &'a HeaderValue,
}

impl Gate<'_> {
    /// Checks a request's head and makes of it what the cache and the origin are to see: an absolute address, no field of
    /// the connection, and ours of where it came from.
    pub(crate) fn admit(&self, head: &mut Parts) -> Result<(), Refusal> {
        if matches!(head.method, Method::CONNECT | Method::TRACE) {
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "neither tunnels nor traces"));
        }
        if head.headers.len() > self.limits.fields {
            return Err(Refusal::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too many header fields"));
        }
        if head.uri.path_and_query().map_or(0, |target| target.as_str().len()) > self.limits.target_bytes {
            return Err(Refusal::new(StatusCode::URI_TOO_LONG, "the request's address is too long"));
        }
        let doubled = head.headers.len() > head.headers.keys_len();
        if doubled && SINGLE.iter().any(|name| head.headers.get_all(name).iter().nth(1).is_some()) {
            return Err(Refusal::bad("a header field that has one value is given twice"));
        }
        self.check_body(head)?;
        let host = self.host(head)?;
        let target = head.uri.path_and_query().cloned();
        let target = match (target, &head.method) {
            // What comes before the path of `OPTIONS *` in an absolute address is the whole of it.
            (Some(target), method) if target.as_str() == "*" && *method != Method::OPTIONS => {
                return Err(Refusal::bad("`*` is for OPTIONS"));
            }
            (Some(target), _) => target,
            (None, _) => PathAndQuery::from_static("/"),
        };
        if !target.as_str().starts_with(['/', '*']) {
            return Err(Refusal::bad("the request's address does not begin with a slash"));
        }
        self.rewrite(head, &host)?;
        if target.as_str() == "*" {
            // Of the whole server, and so of no resource that could be cached: the host is enough.
            head.uri = Uri::from(target);
        } else {
            let mut absolute = http::uri::Parts::default();
            absolute.scheme = Some(Scheme::HTTP);
            absolute.authority = Some(host);
            absolute.path_and_query = Some(target);
            head.uri =
                Uri::from_parts(absolute).map_err(|_| Refusal::bad("the request's address is malformed"))?;
        }
        Ok(())
    }

    /// The framing was read by hyper, which refuses what contradicts itself; what is left is what we would pass on wrongly.
    fn check_body(&self, head: &Parts) -> Result<(), Refusal> {
        let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
        if let Some(coding) = codings.next()
            && (codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        {
            return Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, "a transfer coding other than chunked"));
        }
        let length =
            head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > self.limits.body_bytes) {
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "the request's body is too large"));
        }
        match head.headers.get(EXPECT) {
            Some(expected) if !expected.as_bytes().eq_ignore_ascii_case(b"100-continue") => {
                Err(Refusal::new(StatusCode::EXPECTATION_FAILED, "an expectation other than 100-continue"))
            }
            _ => Ok(()),
        }
    }

    /// The one host a request is for.
    fn host(&self, head: &Parts) -> Result<Authority, Refusal> {
        let named = match head.headers.get(HOST) {
            Some(host) => Some(authority(host.as_bytes())?),
            None => None,
        };
        if head.version == Version::HTTP_2 {
            let pseudo =
                head.uri.authority().map(|given| authority(given.as_str().as_bytes())).transpose()?;
            return match (pseudo, named) {
                (Some(pseudo), Some(named)) if pseudo != named => Err(Refusal::bad("two different hosts")),
                (Some(host), _) | (None, Some(host)) => Ok(host),
                (None, None) => Err(Refusal::bad("no host")),
            };
        }
        if head.uri.scheme().is_some() || head.uri.authority().is_some() {
            return Err(Refusal::bad("an absolute address is for proxies of clients, which this is not"));
        }
        match named {
            Some(host) => Ok(host),
            None if head.version == Version::HTTP_10 => Ok(self.origin.clone()),
            None => Err(Refusal::bad("no host")),
        }
    }

    fn rewrite(&self, head: &mut Parts, host: &Authority) -> Result<(), Refusal> {
        fields::strip_connection(&mut head.headers);
        fields::strip_claims(&mut head.headers, &head.method, self.trusted);
        fields::forward(&mut head.headers, self.client, self.trusted);
        fields::add_via(&mut head.headers, head.version);
        if head.version == Version::HTTP_2 {
            fields::join_cookies(&mut head.headers);
        }
        // We take the body on our own account: hyper answers 100 when it is asked for the first of it.
        head.headers.remove(EXPECT);
        if head.headers.get(HOST).is_none_or(|named| named != host.as_str()) {
            let host = HeaderValue::from_str(host.as_str());
            head.headers.insert(HOST, host.map_err(|_| Refusal::bad("the host is malformed"))?);
        }
        head.version = Version::HTTP_11;
        Ok(())
    }
}

/// Reads `host[:port]`; names are the same in either case.
fn authority(given: &[u8]) -> Result<Authority, Refusal> {
    const MALFORMED: Refusal = Refusal::bad("the host is malformed");
    let given = std::str::from_utf8(given).map_err(|_| MALFORMED)?;
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(&byte);
    if given.is_empty() || given.len() > 255 || !given.bytes().all(fine) {
        return Err(MALFORMED);
    }
    let given = Bytes::from(given.to_ascii_lowercase());
    let parsed = Authority::from_maybe_shared(given).map_err(|_| MALFORMED)?;
    let (host, port) = (parsed.host(), parsed.port_u16());
    if host.is_empty() || parsed.as_str().len() > host.len() && port.is_none() {
        return Err(MALFORMED);
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn admit(request: http::request::Builder) -> Result<Parts, StatusCode> {
        let limits = Limits { fields: 20, target_bytes: 100, body_bytes: 10, ..Limits::default() };
        let origin = Authority::from_static("origin:8000");
        let client = HeaderValue::from_static("192.0.2.1");
        let (mut head, ()) = request.body(()).expect("a request").into_parts();
        let gate = Gate { limits: &limits, origin: &origin, trusted: false, client: &client };
        gate.admit(&mut head).map(|()| head).map_err(|refusal| refusal.status)
    }

    fn get(target: &str) -> http::request::Builder {
        Request::get(target).header("host", "a.example")
    }

    #[test]
    fn a_request_gets_an_absolute_address_of_its_host() {
        let head = admit(get("/x?y=1")).expect("it is let in");
        assert_eq!(head.uri, "http://a.example/x?y=1");
        assert_eq!(head.headers["via"], "1.1 tiercache");
        let head = admit(Request::get("/").header("host", "A.Example:81")).expect("it is let in");
        assert_eq!(
            (head.uri.to_string().as_str(), &head.headers["host"]),
            ("http://a.example:81/", &"a.example:81".parse::<HeaderValue>().expect("a value"))
        );
        let head = admit(Request::get("/").version(Version::HTTP_10)).expect("it is let in");
        assert_eq!(head.uri, "http://origin:8000/");
        let head = admit(Request::get("http://b.example/x").version(Version::HTTP_2)).expect("it is let in");
        assert_eq!((head.uri.to_string().as_str(), head.version), ("http://b.example/x", Version::HTTP_11));
        assert_eq!(head.headers["host"], "b.example");
        let head = admit(Request::options("*").header("host", "a")).expect("it is let in");
        assert_eq!(head.uri, "*");
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let long = format!("/{}", "x".repeat(100));
        let many = (0..21).fold(get("/"), |request, number| request.header(format!("x-{number}"), "v"));
        for (request, status) in [
            (Request::get("/"), 400),
            (get("http://a.example/"), 400),
            (get("/").header("host", "a.example"), 400),
            (get("/").header("range", "bytes=0-1").header("range", "bytes=0-2"), 400),
            (get("/").header("authorization", "a").header("authorization", "b"), 400),
            (Request::get("/").header("host", ""), 400),
            (Request::get("/").header("host", "a b"), 400),
            (Request::get("/").header("host", "u@a"), 400),
            (Request::get("/").header("host", "a/b"), 400),
            (Request::get("/").header("host", "a:b"), 400),
            (Request::get("/").header("host", "a:"), 400),
            (Request::get("/").header("host", "a:99999"), 400),
            (Request::get("/").header("host", "a, b"), 400),
            (get("http://b.example/").version(Version::HTTP_2), 400),
            (Request::get("/").version(Version::HTTP_2), 400),
            (get("*"), 400),
            (Request::builder().method("TRACE").uri("/").header("host", "a"), 405),
            (Request::builder().method("CONNECT").uri("a:80").header("host", "a"), 405),
            (get(&long), 414),
            (many, 431),
            (get("/").header("content-length", "11"), 413),
            (get("/").header("transfer-encoding", "gzip, chunked"), 501),
            (get("/").header("expect", "tea"), 417),
        ] {
            let shown = format!("{request:?}");
            assert_eq!(admit(request).err().map(|status| status.as_u16()), Some(status), "{shown}");
        }
        assert!(
            admit(get("/").header("transfer-encoding", "Chunked").header("expect", "100-Continue")).is_ok()
        );
    }
}
