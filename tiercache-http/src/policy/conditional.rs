//! Validators: requests that ask whether something changed (RFC 9110 §13, RFC 9111 §4.3).

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::date;
use super::fields::{list, text};

/// Fields that make a request conditional, or partial.
const CONDITIONS: [http::HeaderName; 5] = [
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_RANGE,
    header::IF_MATCH,
    header::IF_UNMODIFIED_SINCE,
];

/// Whether the stored response's validators say that the requester has it already.
pub(crate) fn is_not_modified(request: &HeaderMap, status: u16, stored: &HeaderMap) -> bool {
    if !StatusCode::from_u16(status).is_ok_and(|status| status.is_success()) {
        return false;
    }
    if request.contains_key(header::IF_NONE_MATCH) {
        let Some(etag) = stored.get(header::ETAG).and_then(text) else {
            return wanted(request).any(|tag| tag == "*");
        };
        // Weak comparison (RFC 9110 §13.1.2).
        return wanted(request).any(|tag| tag == "*" || opaque(tag) == opaque(etag));
    }
    let since = date::field(request, &header::IF_MODIFIED_SINCE);
    since.zip(date::field(stored, &header::LAST_MODIFIED)).is_some_and(|(since, changed)| changed <= since)
}

fn wanted(request: &HeaderMap) -> impl Iterator<Item = &str> {
    request.get_all(header::IF_NONE_MATCH).iter().filter_map(text).flat_map(list)
}

/// An entity tag without its weakness.
fn opaque(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

/// The strong entity tag (RFC 9110 §8.8.3), which means the same bytes.
pub(crate) fn strong_etag(headers: &HeaderMap) -> Option<&HeaderValue> {
    let etag = headers.get(header::ETAG)?;
    let bytes = etag.as_bytes();
    (bytes.len() >= 2 && bytes.starts_with(b"\"") && bytes.ends_with(b"\"")).then_some(etag)
}

/// Whether it can be asked for whether these changed.
pub(crate) fn has_validator(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ETAG) || headers.contains_key(header::LAST_MODIFIED)
}

/// Makes a request ask for the response whatever its sender has.
pub(crate) fn unconditional(request: &mut HeaderMap) {
    CONDITIONS.iter().for_each(|name| {
        request.remove(name);
    });
}

/// Makes a request ask whether what is stored changed. Its own conditions are answered from what comes of that.
pub(crate) fn validate(request: &mut HeaderMap, stored: &HeaderMap) {
    unconditional(request);
    if let Some(etag) = stored.get(header::ETAG) {
        request.insert(header::IF_NONE_MATCH, etag.clone());
    }
    if let Some(changed) = stored.get(header::LAST_MODIFIED) {
        request.insert(header::IF_MODIFIED_SINCE, changed.clone());
    }
}

/// What the response to a HEAD says about what a GET stored (RFC 9111 §4.3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compared {
    /// It is that still.
    Same,
    /// It is something else by now.
    Other,
    /// Nothing.
    Unknown,
}

/// Compares validators and length, as far as both have them.
pub(crate) fn compare(head: &HeaderMap, stored: &HeaderMap, length: u64) -> Compared {
    let validators = [header::ETAG, header::LAST_MODIFIED];
    let both = || validators.iter().filter_map(|name| head.get(name).zip(stored.get(name)));
    let announced = head.get(header::CONTENT_LENGTH).and_then(text).and_then(|text| text.parse::<u64>().ok());
    if both().any(|(new, old)| new != old) || announced.is_some_and(|announced| announced != length) {
        Compared::Other
    } else if both().next().is_some() {
        Compared::Same
    } else {
        Compared::Unknown
    }
}

/// The headers of a 304 from what is stored (RFC 9110 §15.4.5): all but those about the content that is not sent.
pub(crate) fn not_modified_headers(mut headers: HeaderMap) -> HeaderMap {
    for name in
        [header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::CONTENT_TYPE, header::CONTENT_RANGE]
    {
        headers.remove(name);
    }
    headers
}

/// Whether `If-Range` lets a part of what is stored answer (RFC 9110 §13.1.5).
pub(crate) fn if_range_holds(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let Some(condition) = request.get(header::IF_RANGE) else { return true };
    let Some(value) = text(condition) else { return false };
    if value.starts_with('"') {
        return strong_etag(stored).is_some_and(|etag| etag == condition);
    }
    // A date is strong only when it was a minute old or more when the response was made (RFC 9110 §8.8.2.2).
    let changed = date::field(stored, &header::LAST_MODIFIED);
    let made = date::field(stored, &header::DATE);
    let strong = changed.zip(made).is_some_and(|(changed, made)| made >= changed + 60);
    strong && date::parse(value).is_some_and(|date| Some(date) == changed)
}

#[cfg(test)]
mod tests {
    use super::super::testing::headers;
    use super::*;

    #[test]
    fn entity_tags_are_compared_weakly_and_first() {
        let stored = headers(&[("etag", "\"a\""), ("last-modified", "Tue, 14 Nov 2023 20:13:20 GMT")]);
        let weak = headers(&[("etag", "W/\"a\"")]);
        for (request, stored, expected) in [
            (&[("if-none-match", "\"a\"")][..], &stored, true),
            (&[("if-none-match", "\"x\", \"a\", \"y\"")], &stored, true),
            (&[("if-none-match", "\"x\""), ("if-none-match", "\"a\"")], &stored, true),
            (&[("if-none-match", "W/\"a\"")], &stored, true),
            (&[("if-none-match", "\"a\"")], &weak, true),
            (&[("if-none-match", "*")], &stored, true),
            (&[("if-none-match", "\"b\"")], &stored, false),
            (&[("if-none-match", "a")], &stored, false),
            (
                &[("if-none-match", "\"a\""), ("if-modified-since", "Tue, 14 Nov 2000 20:13:20 GMT")],
                &stored,
                true,
            ),
            (
                &[("if-none-match", "\"b\""), ("if-modified-since", "Tue, 14 Nov 2023 20:13:20 GMT")],
                &stored,
                false,
            ),
            (&[("if-modified-since", "Tue, 14 Nov 2023 20:13:20 GMT")], &stored, true),
            (&[("if-modified-since", "Tuesday, 14-Nov-23 20:13:20 GMT")], &stored, true),
            (&[("if-modified-since", "Tue, 14 Nov 2023 20:13:19 GMT")], &stored, false),
            (&[("if-modified-since", "0")], &stored, false),
            (&[("if-modified-since", "Tue, 14 Nov 2023 20:13:20 GMT")], &weak, false),
            (&[], &stored, false),
        ] {
            assert_eq!(is_not_modified(&headers(request), 200, stored), expected, "{request:?}");
        }
        assert!(!is_not_modified(&headers(&[("if-none-match", "*")]), 404, &stored));
    }

    #[test]
    fn a_revalidation_asks_about_what_is_stored_not_about_what_the_requester_has() {
        let mut request = headers(&[("if-none-match", "\"mine\""), ("if-range", "\"mine\""), ("abc", "1")]);
        validate(&mut request, &headers(&[("etag", "W/\"a\"")]));
        assert_eq!(request, headers(&[("abc", "1"), ("if-none-match", "W/\"a\"")]));
    }

    #[test]
    fn a_head_tells_whether_what_is_stored_is_what_there_is() {
        let stored = headers(&[("etag", "\"a\""), ("last-modified", "Tue, 14 Nov 2023 20:13:20 GMT")]);
        for (head, expected) in [
            (&[("etag", "\"a\"")][..], Compared::Same),
            (&[("etag", "\"a\""), ("content-length", "10")], Compared::Same),
            (&[("etag", "\"a\""), ("content-length", "9")], Compared::Other),
            (&[("etag", "\"b\"")], Compared::Other),
            (&[("etag", "\"a\""), ("last-modified", "Tue, 14 Nov 2023 20:13:21 GMT")], Compared::Other),
            (&[("content-length", "10")], Compared::Unknown),
            (&[], Compared::Unknown),
        ] {
            assert_eq!(compare(&headers(head), &stored, 10), expected, "{head:?}");
        }
    }

    #[test]
    fn parts_need_a_strong_validator() {
        let stored = headers(&[
            ("etag", "\"a\""),
            ("last-modified", "Tue, 14 Nov 2023 20:13:20 GMT"),
            ("date", "Tue, 14 Nov 2023 20:14:20 GMT"),
        ]);
        let recent = headers(&[
            ("etag", "W/\"a\""),
            ("last-modified", "Tue, 14 Nov 2023 20:13:20 GMT"),
            ("date", "Tue, 14 Nov 2023 20:14:19 GMT"),
        ]);
        for (condition, of_stored, of_recent) in [
            ("\"a\"", true, false),
            ("W/\"a\"", false, false),
            ("\"b\"", false, false),
            ("Tue, 14 Nov 2023 20:13:20 GMT", true, false),
            ("Tue, 14 Nov 2023 20:13:21 GMT", false, false),
        ] {
            let request = headers(&[("if-range", condition)]);
            assert_eq!(if_range_holds(&request, &stored), of_stored, "{condition}");
            assert_eq!(if_range_holds(&request, &recent), of_recent, "{condition}");
        }
        assert!(if_range_holds(&headers(&[]), &recent));
    }
}
