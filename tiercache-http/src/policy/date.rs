//! HTTP dates (RFC 9110 §5.6.7), in seconds since 1970.

use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue};
use tiercache_core::Timestamp;

use super::fields;

const WEEKDAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// A date in any of the three forms. Case does not matter, nor which of the days of the week it names, since that says
/// nothing that the rest does not say; everything else does.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let text = canonical(text);
    let date = httpdate::parse_http_date(&text).ok().or_else(|| {
        let (named, rest) = text.split_at_checked(3)?;
        let others = WEEKDAYS.iter().filter(|_| WEEKDAYS.contains(&named) && rest.starts_with([' ', ',']));
        others.filter_map(|day| httpdate::parse_http_date(&format!("{day}{rest}")).ok()).next()
    })?;
    Some(date.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// The date in the only line of `name`.
pub(crate) fn field(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let mut lines = headers.get_all(name).iter();
    let line = fields::text(lines.next()?)?;
    lines.next().is_none().then(|| parse(line)).flatten()
}

/// As a field value.
pub(crate) fn value(time: Timestamp) -> HeaderValue {
    // The last second of the year 9999, beyond which there is no such date.
    let time = UNIX_EPOCH + Duration::from_millis(time.as_millis().min(253_402_300_799_000));
    HeaderValue::try_from(httpdate::fmt_http_date(time)).unwrap_or(HeaderValue::from_static(""))
}

/// With words as the grammar writes them: `Thu`, `Aug`, `GMT`.
fn canonical(text: &str) -> String {
    let mut word = 0;
    let upper = text.len().saturating_sub(3);
    let letters = text.char_indices().map(|(at, letter)| {
        word = if letter.is_ascii_alphabetic() { word + 1 } else { 0 };
        match word {
            0 => letter,
            1 => letter.to_ascii_uppercase(),
            _ if at >= upper => letter.to_ascii_uppercase(),
            _ => letter.to_ascii_lowercase(),
        }
    });
    letters.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_forms_in_any_case_and_nothing_else() {
        let expected = Some(2_544_400_878);
        for date in [
            "Thu, 18 Aug 2050 02:01:18 GMT",
            "Thursday, 18-Aug-50 02:01:18 GMT",
            "Thu Aug 18 02:01:18 2050",
            "Mon Aug 18 02:01:18 2050",
            "THU, 18 Aug 2050 02:01:18 GMT",
            "Thu, 18 AUG 2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 02:01:18 gMT",
        ] {
            assert_eq!(parse(date), expected, "{date}");
        }
        for date in [
            "0",
            "",
            "Thu, 18 Aug 2050 02:01:18 UTC",
            "Thu, 18 Aug 2050 02:01:18 AEST",
            "Thu, 18 Aug 50 02:01:18 GMT",
            "Thu 18 Aug 2050 02:01:18 GMT",
            "Thu, 18  Aug  2050 02:01:18 GMT",
            "Thu, 18-Aug-2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 02.01.18 GMT",
            "Thu, 18 Aug 2050 2:01:18 GMT",
        ] {
            assert_eq!(parse(date), None, "{date}");
        }
    }

    #[test]
    fn dates_far_away_are_dates() {
        assert_eq!(parse("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(parse("Sun, 21 Nov 2286 04:46:39 GMT"), Some(10_000_039_599));
        assert_eq!(value(Timestamp::from_millis(784_111_777_999)), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(value(Timestamp::NEVER), "Fri, 31 Dec 9999 23:59:59 GMT");
        assert_eq!(parse("Fri, 31 Dec 9999 23:59:59 GMT"), Some(253_402_300_799));
    }
}
