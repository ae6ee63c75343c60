//! Which requests a response is for: `Vary` (RFC 9111 §4.1).

use http::{HeaderMap, HeaderName, header};
use sha2::{Digest, Sha256};

use super::fields::{list, members, text};

/// The fields that a response varies by, and what the request it answered had in them.
pub(crate) type Selecting = Vec<(String, Option<Vec<u8>>)>;

/// Whether it is for its own request only. A name that is none is as good as any.
pub(crate) fn is_star(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::VARY);
    lines.iter().any(|line| text(line).is_none())
        || members(headers, &header::VARY).any(|name| name == "*" || HeaderName::try_from(name).is_err())
}

/// What a response with these headers was selected by.
pub(crate) fn selecting(request: &HeaderMap, response: &HeaderMap) -> Selecting {
    let mut names: Vec<HeaderName> =
        members(response, &header::VARY).filter_map(|name| HeaderName::try_from(name).ok()).collect();
    names.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
    names.dedup();
    names.into_iter().map(|name| (name.as_str().to_owned(), normal(request, &name))).collect()
}

/// Whether a request has in all of these fields what that request had.
pub(crate) fn matches(selecting: &Selecting, request: &HeaderMap) -> bool {
    selecting.iter().all(|(name, value)| {
        HeaderName::try_from(name.as_str()).is_ok_and(|name| normal(request, &name) == *value)
    })
}

/// A field's value without differences that mean nothing: lines joined, white space around members dropped, and case
/// where a field has none. Of credentials a digest, to the byte.
fn normal(request: &HeaderMap, name: &HeaderName) -> Option<Vec<u8>> {
    let lines: Vec<_> = request.get_all(name).iter().collect();
    if lines.is_empty() {
        return None;
    }
    let exact = [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION].contains(name);
    let texts: Option<Vec<&str>> = lines.iter().map(|line| text(line)).collect();
    let Some(texts) = texts.filter(|_| !exact) else {
        // The lines' number and lengths are part of it, so that no two sets of lines are the same.
        let joined = lines.iter().fold(Vec::new(), |mut joined, line| {
            joined.extend((line.len() as u64).to_be_bytes());
            joined.extend(line.as_bytes());
            joined
        });
        // No store keeps credentials.
        return Some(if exact { Sha256::digest(joined).to_vec() } else { joined });
    };
    let joined = texts.into_iter().flat_map(list).collect::<Vec<_>>().join(",");
    let caseless = [header::ACCEPT_LANGUAGE, header::ACCEPT_ENCODING, header::ACCEPT_CHARSET].contains(name);
    Some(if caseless { joined.to_ascii_lowercase() } else { joined }.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::testing::headers;
    use super::*;

    #[test]
    fn a_star_anywhere_is_a_star() {
        for value in ["*", "*, *", ", *", "*, Foo", "Foo, *", "no name"] {
            assert!(is_star(&headers(&[("vary", value)])), "{value}");
        }
        assert!(is_star(&headers(&[("vary", ""), ("vary", "*")])));
        assert!(!is_star(&headers(&[("vary", "Foo, Bar")])));
        assert!(!is_star(&headers(&[])));
    }

    #[test]
    fn requests_match_when_every_selecting_field_is_the_same() {
        let response = headers(&[("vary", "Foo, Bar")]);
        let first = headers(&[("foo", "1"), ("bar", "abc"), ("other", "2")]);
        let selecting = selecting(&first, &response);
        for (request, expected) in [
            (&[("foo", "1"), ("bar", "abc")][..], true),
            (&[("foo", "1"), ("bar", "abc"), ("other", "3")], true),
            (&[("foo", "2"), ("bar", "abc")], false),
            (&[("foo", "1")], false),
            (&[], false),
        ] {
            assert_eq!(matches(&selecting, &headers(request)), expected, "{request:?}");
        }
    }

    #[test]
    fn absent_is_not_empty_and_splitting_lines_means_nothing() {
        let response = headers(&[("vary", "foo")]);
        let pair = |one: &[(&str, &str)], other: &[(&str, &str)]| {
            matches(&selecting(&headers(one), &response), &headers(other))
        };
        assert!(!pair(&[], &[("foo", "")]));
        assert!(!pair(&[], &[("foo", "1")]));
        assert!(pair(&[], &[("bar", "1")]));
        assert!(pair(&[("foo", "1, 2")], &[("foo", "1"), ("foo", "2")]));
        assert!(pair(&[("foo", "1,2")], &[("foo", " 1, 2 ")]));
        assert!(!pair(&[("foo", "\"1,2\"")], &[("foo", "\"1, 2\"")]));
    }

    #[test]
    fn credentials_are_compared_to_the_byte() {
        let response = headers(&[("vary", "cookie, accept-language")]);
        let pair = |one: &[(&str, &str)], other: &[(&str, &str)]| {
            matches(&selecting(&headers(one), &response), &headers(other))
        };
        let kept = selecting(&headers(&[("cookie", "secret")]), &response);
        assert!(kept.iter().flat_map(|(_, value)| value).all(|value| !value.ends_with(b"secret")));
        assert!(!pair(&[("cookie", "a=1,2")], &[("cookie", "a=1, 2")]));
        assert!(!pair(&[("cookie", "a=1, b=2")], &[("cookie", "a=1"), ("cookie", "b=2")]));
        assert!(pair(&[("accept-language", "en, de")], &[("accept-language", " eN ,  De")]));
    }
}
