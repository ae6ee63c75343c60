//! Field values as lists, and fields that belong to one connection.

use http::{HeaderMap, HeaderName, header};

/// Fields of one connection (RFC 9110 §7.6.1), never stored.
const CONNECTION_FIELDS: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-authentication-info"),
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The members of a list (RFC 9110 §5.6.1): split at commas outside quoted strings, trimmed, empty ones left out.
pub(crate) fn list(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        loop {
            let text = rest?;
            let (member, after) = match comma(text) {
                Some(at) => (&text[..at], Some(&text[at + 1..])),
                None => (text, None),
            };
            rest = after;
            let member = member.trim_matches([' ', '\t']);
            if !member.is_empty() {
                return Some(member);
            }
        }
    })
}

fn comma(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    text.bytes().position(|byte| {
        let found = byte == b',' && !quoted;
        if escaped {
            escaped = false;
        } else if quoted && byte == b'\\' {
            escaped = true;
        } else if byte == b'"' {
            quoted = !quoted;
        }
        found
    })
}

/// The members of all lines of `name`. A line that is not text has none.
pub(crate) fn members<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(text).flat_map(list)
}

/// A value as text: what is beyond ASCII may be UTF-8.
pub(crate) fn text(value: &http::HeaderValue) -> Option<&str> {
    std::str::from_utf8(value.as_bytes()).ok()
}

/// `1*DIGIT`, at most 2³¹ (RFC 9111 §1.2.2).
pub(crate) fn seconds(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX).min(1 << 31))
}

/// `Age`: the first member, if it is a number (RFC 9111 §5.1).
pub(crate) fn age(headers: &HeaderMap) -> Option<u64> {
    seconds(members(headers, &header::AGE).next()?)
}

/// Removes the fields of the connection and those that `Connection` names.
pub(crate) fn without_connection(mut headers: HeaderMap) -> HeaderMap {
    let named: Vec<HeaderName> =
        members(&headers, &header::CONNECTION).filter_map(|name| HeaderName::try_from(name).ok()).collect();
    for name in named.iter().chain(&CONNECTION_FIELDS) {
        headers.remove(name);
    }
    headers
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn lists_split_outside_quotes_only() {
        for (value, expected) in [
            ("a, b", &["a", "b"][..]),
            (" a ,, b\t,", &["a", "b"]),
            (r#"x="a, b", c"#, &[r#"x="a, b""#, "c"]),
            (r#"x="a\", b", c"#, &[r#"x="a\", b""#, "c"]),
            (r#"x="open, b"#, &[r#"x="open, b"#]),
            ("", &[]),
        ] {
            assert_eq!(list(value).collect::<Vec<_>>(), expected, "{value}");
        }
    }

    #[test]
    fn ages_are_whole_numbers_and_the_first_counts() {
        for (lines, expected) in [
            (&["30"][..], Some(30)),
            (&["2147483649"], Some(1 << 31)),
            (&["99999999999999999999999"], Some(1 << 31)),
            (&["7200, 0"], Some(7200)),
            (&["0", "7200"], Some(0)),
            (&["-7200"], None),
            (&["7200.0"], None),
            (&["abc"], None),
            (&["7200;foo=bar"], None),
        ] {
            let mut headers = HeaderMap::new();
            lines.iter().for_each(|line| {
                headers.append(header::AGE, HeaderValue::from_static(line));
            });
            assert_eq!(age(&headers), expected, "{lines:?}");
        }
    }

    #[test]
    fn what_belongs_to_a_connection_goes() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("connection", "a, b"), ("a", "1"), ("b", "2"), ("c", "3"), ("te", "trailers")]
        {
            headers.append(name, HeaderValue::from_static(value));
        }
        let headers = without_connection(headers);
        assert_eq!(headers.len(), 1);
        assert_eq!(headers["c"], "3");
    }
}
