//! Header fields that a proxy takes out, puts in, or does not believe.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, VIA,
};
use http::{Method, Version};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What `Connection` cannot take out: without them a message is another one, or bound for somewhere else. Whatever else it
/// names is gone before the cache looks, so that the cache and the origin judge the same request.
const END_TO_END: [HeaderName; 3] = [HOST, CONTENT_LENGTH, VIA];

/// Takes out what belongs to the connection it came by, and what its `Connection` names.
pub(crate) fn strip_connection(fields: &mut HeaderMap) {
    if fields.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = fields
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .filter(|name| !END_TO_END.contains(name))
            .collect();
        for name in named {
            fields.remove(name);
        }
    }
    remove_where(fields, is_of_connection);
}

/// Fields of one connection alone (RFC 9110 §7.6.1), and what older proxies send as such: `Proxy-Connection` and the like.
/// `Proxy-Status` is for everybody (RFC 9209).
fn is_of_connection(name: &str) -> bool {
    match name {
        "connection" | "keep-alive" | "te" | "trailer" | "transfer-encoding" | "upgrade" => true,
        _ => name.starts_with("proxy-") && name != "proxy-status",
    }
}

/// Takes out what a client may not say about itself or about what it asks for: where it comes from is ours to tell, and a
/// field that makes an origin answer for another path, host or method would poison what the cache keeps under this one.
/// Names are compared as CGI does it, where `_` and `-` are the same.
pub(crate) fn strip_claims(fields: &mut HeaderMap, method: &Method, trusted: bool) {
    let safe = method.is_safe();
    remove_where(fields, |name| {
        // Most names are none of these, and are not looked at any closer.
        if !name.starts_with(['f', 'x']) {
            return false;
        }
        let plain = name.replace('_', "-");
        let forwarded = plain == "forwarded" || plain.starts_with("x-forwarded-") || plain == "x-real-ip";
        match plain.as_str() {
            "x-original-url" | "x-rewrite-url" | "x-original-host" | "x-host" => true,
            "x-http-method-override" | "x-http-method" | "x-method-override" => safe,
            // With `_` it is no field that anybody in front of us set.
            _ => forwarded && (!trusted || plain != name),
        }
    });
}

/// Who asks, as [`forward`] says it; made once for a connection.
pub(crate) fn address(client: IpAddr) -> HeaderValue {
    // Digits, dots and colons are a value; the other is RFC 7239's for what cannot be told.
    let address = HeaderValue::try_from(client.to_canonical().to_string());
    address.unwrap_or(HeaderValue::from_static("unknown"))
}

/// Says who asks: the address alone, or behind those that whom we trust has named.
pub(crate) fn forward(fields: &mut HeaderMap, client: &HeaderValue, trusted: bool) {
    debug_assert!(trusted || !fields.contains_key(FORWARDED), "a claim was left in");
    let mut before = fields.get_all(X_FORWARDED_FOR).iter().peekable();
    if !trusted || before.peek().is_none() {
        fields.insert(X_FORWARDED_FOR, client.clone());
        return;
    }
    let chain: Vec<&[u8]> = before.chain([client]).map(HeaderValue::as_bytes).collect();
    if let Ok(chain) = HeaderValue::from_bytes(&chain.join(&b", "[..])) {
        fields.insert(X_FORWARDED_FOR, chain);
    }
}

/// Tells the origin for what host and by which scheme was asked, unless whom we trust has told. The cache does not see it:
/// it follows from the address, and would only be in the key twice.
pub(crate) fn forward_target(fields: &mut HeaderMap, host: &HeaderValue) {
    fields.entry(X_FORWARDED_HOST).or_insert_with(|| host.clone());
    fields.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
}

/// Says that the message came through here, by the version it came with.
pub(crate) fn add_via(fields: &mut HeaderMap, version: Version) {
    let via = match version {
        Version::HTTP_10 => "1.0 tiercache",
        Version::HTTP_2 => "2.0 tiercache",
        _ => "1.1 tiercache",
    };
    fields.append(VIA, HeaderValue::from_static(via));
}

/// HTTP/2 may send `Cookie` in pieces; HTTP/1.1 knows one (RFC 9113 §8.2.3).
pub(crate) fn join_cookies(fields: &mut HeaderMap) {
    let mut cookies = fields.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (cookies.next(), cookies.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for more in std::iter::once(second).chain(cookies) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(more.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        fields.insert(COOKIE, joined);
    }
}

fn remove_where(fields: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    let names: Vec<HeaderName> = fields.keys().filter(|name| unwanted(name.as_str())).cloned().collect();
    for name in names {
        fields.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for (name, value) in pairs {
            fields.append(name.parse::<HeaderName>().expect("a name"), value.parse().expect("a value"));
        }
        fields
    }

    fn names(fields: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = fields.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn fields_of_the_connection_go_and_those_it_names_too() {
        let mut given = fields(&[
            ("connection", "close, X-Mine"),
            ("connection", "Keep-Alive, x-more, host, content-length"),
            ("keep-alive", "timeout=5"),
            ("x-mine", "1"),
            ("x-more", "2"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("proxy-authorization", "Basic x"),
            ("proxy-foo", "x"),
            ("proxy-status", "a"),
            ("host", "a"),
            ("content-length", "5"),
            ("x-kept", "3"),
        ]);
        strip_connection(&mut given);
        assert_eq!(names(&given), ["content-length", "host", "proxy-status", "x-kept"]);
    }

    #[test]
    fn what_a_client_claims_about_itself_is_replaced() {
        let claims = [
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-host", "evil.example"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-port", "1"),
            ("x_forwarded_host", "evil.example"),
            ("x-forwarded_scheme", "https"),
            ("forwarded", "for=1.2.3.4"),
            ("x-real-ip", "1.2.3.4"),
            ("x-original-url", "/admin"),
            ("x-rewrite-url", "/admin"),
            ("x-http-method-override", "DELETE"),
        ];
        let client = address("::ffff:192.0.2.1".parse().expect("an address"));
        let host = HeaderValue::from_static("a.example");
        let mut given = fields(&claims);
        strip_claims(&mut given, &Method::GET, false);
        forward(&mut given, &client, false);
        assert_eq!(names(&given), ["x-forwarded-for"]);
        forward_target(&mut given, &host);
        assert_eq!(names(&given), ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"]);
        assert_eq!(given["x-forwarded-for"], "192.0.2.1");
        assert_eq!(given["x-forwarded-host"], "a.example");
        assert_eq!(given["x-forwarded-proto"], "http");

        let mut given = fields(&claims);
        strip_claims(&mut given, &Method::POST, true);
        forward(&mut given, &client, true);
        forward_target(&mut given, &host);
        assert_eq!(given["x-forwarded-for"], "1.2.3.4, 192.0.2.1");
        assert_eq!(given["x-forwarded-host"], "evil.example");
        assert_eq!(given["x-forwarded-proto"], "https");
        assert_eq!(given["x-http-method-override"], "DELETE");
        for gone in ["x_forwarded_host", "x-forwarded_scheme", "x-original-url"] {
            assert!(!given.contains_key(gone), "{gone}");
        }
    }

    #[test]
    fn cookies_in_pieces_become_one() {
        let mut given = fields(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]);
        join_cookies(&mut given);
        assert_eq!(given.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
    }
}
