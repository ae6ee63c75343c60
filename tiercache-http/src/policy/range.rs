//! Parts of representations (RFC 9110 §14).

use std::ops::Range;

use http::{HeaderMap, header};

use super::fields::text;

/// What a `Range` asks of a representation of known length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Everything: no range, one that is not understood, or several of which the whole is the simplest answer.
    Whole,
    /// These bytes.
    Part(Range<u64>),
    /// Bytes that there are not.
    Unsatisfiable,
}

/// What the request's `Range` means for `length` bytes.
pub(crate) fn asked(request: &HeaderMap, length: u64) -> Asked {
    let mut lines = request.get_all(header::RANGE).iter();
    let Some(value) = lines.next().and_then(text).filter(|_| lines.next().is_none()) else {
        return Asked::Whole;
    };
    let Some(Spec { first, last }) = Spec::of(value) else { return Asked::Whole };
    let part = match (first, last) {
        (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(length),
        (Some(first), None) => first..length,
        (None, Some(suffix)) => length.saturating_sub(suffix)..length,
        _ => return Asked::Whole,
    };
    if part.start >= part.end { Asked::Unsatisfiable } else { Asked::Part(part) }
}

/// `bytes=first-last`, one only.
struct Spec {
    first: Option<u64>,
    last: Option<u64>,
}

impl Spec {
    fn of(value: &str) -> Option<Self> {
        let (unit, set) = value.split_once('=')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (first, last) = set.trim_matches([' ', '\t']).split_once('-')?;
        let number = |text: &str| match text {
            "" => Some(None),
            _ if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok().map(Some),
            _ => None,
        };
        let spec = Self { first: number(first)?, last: number(last)? };
        (spec.first.is_some() || spec.last.is_some()).then_some(spec)
    }
}

/// The part that a 206 has, and the length of the whole, if it is one part of known length.
pub(crate) fn content_range(headers: &HeaderMap) -> Option<(Range<u64>, u64)> {
    let mut lines = headers.get_all(header::CONTENT_RANGE).iter();
    let value = text(lines.next()?)?;
    if lines.next().is_some() {
        return None;
    }
    let (unit, rest) = value.split_once(' ')?;
    let (part, length) = rest.split_once('/')?;
    let (first, last) = part.split_once('-')?;
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok())?;
    let (first, last, length) = (number(first)?, number(last)?, number(length)?);
    let valid = unit.eq_ignore_ascii_case("bytes") && first <= last && last < length;
    valid.then(|| (first..last + 1, length))
}

/// As `Content-Range` says it.
pub(crate) fn value(part: &Range<u64>, length: u64) -> http::HeaderValue {
    let text = format!("bytes {}-{}/{length}", part.start, part.end.saturating_sub(1));
    http::HeaderValue::try_from(text).unwrap_or(http::HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::super::testing::headers;
    use super::*;

    #[test]
    fn one_range_is_a_part_anything_else_is_the_whole() {
        for (value, expected) in [
            ("bytes=0-1", Asked::Part(0..2)),
            ("bytes=1-", Asked::Part(1..10)),
            ("bytes=-1", Asked::Part(9..10)),
            ("bytes=-100", Asked::Part(0..10)),
            ("bytes=5-100", Asked::Part(5..10)),
            ("Bytes=5-18446744073709551615", Asked::Part(5..10)),
            ("bytes=10-", Asked::Unsatisfiable),
            ("bytes=-0", Asked::Unsatisfiable),
            ("bytes=3-1", Asked::Whole),
            ("bytes=0-1,3-4", Asked::Whole),
            ("bytes=-", Asked::Whole),
            ("bytes=a-b", Asked::Whole),
            ("bytes=+1-2", Asked::Whole),
            ("bytes=99999999999999999999-", Asked::Whole),
            ("lines=0-1", Asked::Whole),
        ] {
            assert_eq!(asked(&headers(&[("range", value)]), 10), expected, "{value}");
        }
        assert_eq!(asked(&headers(&[("range", "bytes=0-1"), ("range", "bytes=0-1")]), 10), Asked::Whole);
        assert_eq!(asked(&headers(&[("range", "bytes=0-0")]), 0), Asked::Unsatisfiable);
    }

    #[test]
    fn content_ranges_are_possible_or_nothing() {
        for (text, expected) in [
            ("bytes 0-4/10", Some((0..5, 10))),
            ("bytes 4-9/10", Some((4..10, 10))),
            ("bytes 4-10/10", None),
            ("bytes 5-4/10", None),
            ("bytes 0-4/*", None),
            ("bytes */10", None),
            ("lines 0-4/10", None),
            ("nonsense", None),
        ] {
            assert_eq!(content_range(&headers(&[("content-range", text)])), expected, "{text}");
        }
        assert_eq!(value(&(4..10), 10), "bytes 4-9/10");
    }
}
