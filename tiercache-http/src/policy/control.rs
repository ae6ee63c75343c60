//! `Cache-Control` of requests and responses (RFC 9111 §5.2), and `CDN-Cache-Control` (RFC 9213).

use http::{HeaderMap, HeaderName, header};
use sfv::{BareItem, Dictionary, ListEntry, Parser};

use super::fields::{list, members, seconds, text};

/// The targeted field that we are a target of.
pub(crate) const TARGETED: HeaderName = HeaderName::from_static("cdn-cache-control");

/// What a response says to a shared cache, or to a private one: that hears nothing of `s-maxage`, `proxy-revalidate` and
/// targeted fields (RFC 9111 §5.2.2; RFC 9213 §3), and what is `private` is meant for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResponseControl {
    pub(crate) no_store: bool,
    pub(crate) no_cache: bool,
    pub(crate) private: bool,
    pub(crate) public: bool,
    pub(crate) must_revalidate: bool,
    pub(crate) proxy_revalidate: bool,
    pub(crate) must_understand: bool,
    pub(crate) immutable: bool,
    /// Seconds; what is no number counts as none of them left.
    pub(crate) max_age: Option<u64>,
    pub(crate) s_maxage: Option<u64>,
    pub(crate) stale_while_revalidate: Option<u64>,
    pub(crate) stale_if_error: Option<u64>,
    /// Fields that `no-cache` and, to a shared cache, `private` name: the rest may be stored without them.
    pub(crate) without: Vec<HeaderName>,
    /// Whether `private` names fields.
    pub(crate) private_fields: bool,
    /// Whether this is of a targeted field, which puts `Cache-Control` and `Expires` aside.
    pub(crate) targeted: bool,
}

/// What a request says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestControl {
    pub(crate) no_store: bool,
    pub(crate) no_cache: bool,
    pub(crate) only_if_cached: bool,
    pub(crate) max_age: Option<u64>,
    pub(crate) min_fresh: Option<u64>,
    /// However stale when it has no number.
    pub(crate) max_stale: Option<u64>,
    pub(crate) stale_if_error: Option<u64>,
}

impl ResponseControl {
    /// The targeted field if there is a valid one, else `Cache-Control`.
    pub(crate) fn of(headers: &HeaderMap, shared: bool) -> Self {
        if shared
            && headers.contains_key(&TARGETED)
            && let Some(targeted) = Self::targeted(headers)
        {
            return targeted;
        }
        let mut control = Self::default();
        for member in members(headers, &header::CACHE_CONTROL) {
            let (name, value) = directive(member);
            control.apply(&name.to_ascii_lowercase(), value, shared);
        }
        control
    }

    fn apply(&mut self, name: &str, value: Option<Argument<'_>>, shared: bool) {
        // Of several, the shortest; RFC 9111 §4.2.1 lets a cache take any of them for stale.
        let shorter = |old: Option<u64>| {
            let new = value.as_ref().and_then(|value| seconds(value.text())).unwrap_or(0);
            Some(old.map_or(new, |old| old.min(new)))
        };
        match name {
            "no-store" => self.no_store = true,
            "no-cache" => match named(value) {
                Some(fields) => self.without.extend(fields),
                None => self.no_cache = true,
            },
            "s-maxage" | "proxy-revalidate" if !shared => {}
            "private" if !shared => self.public |= named(value).is_none(),
            "private" => match named(value) {
                Some(fields) => {
                    self.private_fields = true;
                    self.without.extend(fields);
                }
                None => self.private = true,
            },
            "public" => self.public = true,
            "must-revalidate" => self.must_revalidate = true,
            "proxy-revalidate" => self.proxy_revalidate = true,
            "must-understand" => self.must_understand = true,
            "immutable" => self.immutable = true,
            "max-age" => self.max_age = shorter(self.max_age),
            "s-maxage" => self.s_maxage = shorter(self.s_maxage),
            "stale-while-revalidate" => self.stale_while_revalidate = shorter(self.stale_while_revalidate),
            "stale-if-error" => self.stale_if_error = shorter(self.stale_if_error),
            _ => {}
        }
    }

    /// A dictionary of structured fields; `None` for one that is empty, does not parse, or has a directive of the wrong
    /// type: then it is ignored as a whole (RFC 9213 §2.1).
    fn targeted(headers: &HeaderMap) -> Option<Self> {
        let lines: Option<Vec<&str>> = headers.get_all(&TARGETED).iter().map(text).collect();
        let joined = lines?.join(", ");
        let dictionary: Dictionary = Parser::new(&joined).parse().ok()?;
        if dictionary.is_empty() {
            return None;
        }
        let mut control = Self { targeted: true, ..Self::default() };
        for (key, entry) in &dictionary {
            let ListEntry::Item(item) = entry else { return None };
            let number = match &item.bare_item {
                BareItem::Integer(number) => {
                    u64::try_from(i64::from(*number)).ok().map(|number| number.min(1 << 31))
                }
                _ => None,
            };
            let (is_true, is_text) = (
                matches!(item.bare_item, BareItem::Boolean(true)),
                matches!(item.bare_item, BareItem::String(_)),
            );
            match key.as_str() {
                "max-age" => control.max_age = Some(number?),
                "s-maxage" => control.s_maxage = Some(number?),
                "stale-while-revalidate" => control.stale_while_revalidate = Some(number?),
                "stale-if-error" => control.stale_if_error = Some(number?),
                // With fields named: as strict as without.
                "no-cache" if is_true || is_text => control.no_cache = true,
                "private" if is_true || is_text => control.private = true,
                name @ ("no-store" | "public" | "must-revalidate" | "proxy-revalidate"
                | "must-understand" | "immutable")
                    if is_true =>
                {
                    control.apply(name, None, true);
                }
                "no-cache" | "private" | "no-store" | "public" | "must-revalidate" | "proxy-revalidate"
                | "must-understand" | "immutable" => return None,
                _ => {}
            }
        }
        Some(control)
    }
}

impl RequestControl {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut control = Self::default();
        for member in members(headers, &header::CACHE_CONTROL) {
            let (name, value) = directive(member);
            let number = value.as_ref().and_then(|value| seconds(value.text()));
            match name.to_ascii_lowercase().as_str() {
                "no-store" => control.no_store = true,
                "no-cache" => control.no_cache = true,
                "only-if-cached" => control.only_if_cached = true,
                "max-age" => control.max_age = control.max_age.into_iter().chain(number).min(),
                "min-fresh" => control.min_fresh = control.min_fresh.into_iter().chain(number).max(),
                "max-stale" if value.is_none() => control.max_stale = Some(u64::MAX),
                "max-stale" => control.max_stale = number,
                "stale-if-error" => control.stale_if_error = number,
                _ => {}
            }
        }
        control
    }
}

/// The argument of a directive.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Argument<'a> {
    Token(&'a str),
    Quoted(String),
}

impl Argument<'_> {
    fn text(&self) -> &str {
        match self {
            Self::Token(text) => text,
            Self::Quoted(text) => text,
        }
    }
}

/// Name and argument. White space around `=` makes another name, or another value, of them.
fn directive(member: &str) -> (&str, Option<Argument<'_>>) {
    let Some((name, value)) = member.split_once('=') else { return (member, None) };
    let Some(quoted) = value.strip_prefix('"') else { return (name, Some(Argument::Token(value))) };
    let mut text = String::new();
    let mut letters = quoted.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => break,
            '\\' => text.extend(letters.next()),
            letter => text.push(letter),
        }
    }
    (name, Some(Argument::Quoted(text)))
}

/// The fields that a directive names; `None` when it covers everything. What names no field covers everything too.
fn named(value: Option<Argument<'_>>) -> Option<Vec<HeaderName>> {
    let value = value?;
    let names: Vec<_> = list(value.text()).filter_map(|name| HeaderName::try_from(name).ok()).collect();
    (!names.is_empty()).then_some(names)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn control(lines: &[(&'static str, &'static str)]) -> ResponseControl {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        ResponseControl::of(&headers, true)
    }

    #[test]
    fn max_age_is_read_to_the_letter() {
        for (value, expected) in [
            ("max-age=3600", Some(3600)),
            ("foobar, max-age=3600", Some(3600)),
            ("MaX-aGe=3600", Some(3600)),
            ("max-age=003600", Some(3600)),
            ("max-age=\"3600\"", Some(3600)),
            ("max-age=99999999999", Some(1 << 31)),
            ("extension=\"max-age=3600\", max-age=1", Some(1)),
            ("max-age=1, extension=\"max-age=3600\"", Some(1)),
            ("max-age=1800, max-age=1", Some(1)),
            ("max-age='3600'", Some(0)),
            ("max-age=-3600", Some(0)),
            ("max-age=3600.0", Some(0)),
            ("max-age=3600a", Some(0)),
            ("max-age", Some(0)),
            ("max-age =3600", None),
            ("max-age= 3600", Some(0)),
            ("nothing-to-see-here", None),
        ] {
            assert_eq!(control(&[("cache-control", value)]).max_age, expected, "{value}");
        }
    }

    #[test]
    fn named_fields_are_left_out_and_the_rest_is_kept() {
        let both = control(&[("cache-control", "no-cache=\"a, b\""), ("cache-control", "max-age=3600")]);
        assert_eq!(both.without, ["a", "b"]);
        assert!(!both.no_cache);
        assert!(control(&[("cache-control", "private=\"\"")]).private, "no field named is every field");
        assert!(control(&[("cache-control", "No-CaChE")]).no_cache);
    }

    #[test]
    fn a_targeted_field_stands_for_cache_control() {
        let targeted = |value| control(&[("cache-control", "no-store"), ("cdn-cache-control", value)]);
        assert_eq!(targeted("max-age=10000").max_age, Some(10_000));
        assert!(!targeted("max-age=10000").no_store);
        assert_eq!(targeted("foobar, max-age=3600").max_age, Some(3600));
        assert_eq!(targeted("max-age=99999999999").max_age, Some(1 << 31));
        for invalid in [
            "max-age=10000, &&&&&",
            "max-age=\"10000\"",
            "MaX-aGe=3600",
            "max-age =100",
            "max-age= 100",
            "",
            "no-store=1",
        ] {
            assert!(targeted(invalid).no_store, "{invalid}: ignored");
            assert!(!targeted(invalid).targeted, "{invalid}");
        }
    }

    #[test]
    fn a_private_cache_does_not_hear_what_is_said_to_shared_ones() {
        let lines = [
            ("cache-control", "s-maxage=1, proxy-revalidate, max-age=3600, private=\"a\", no-cache=\"b\""),
            ("cdn-cache-control", "no-store"),
        ];
        let lines = super::super::testing::headers(&lines);
        let own = ResponseControl::of(&lines, false);
        let expected = ResponseControl {
            max_age: Some(3600),
            without: vec![HeaderName::from_static("b")],
            ..ResponseControl::default()
        };
        assert_eq!(own, expected);
        assert!(ResponseControl::of(&lines, true).no_store);
        let private = super::super::testing::headers(&[("cache-control", "private")]);
        let own = ResponseControl::of(&private, false);
        assert!(own.public && !own.private, "RFC 9111 §3: it says that a private cache may store it");
    }

    #[test]
    fn requests_say_what_they_accept() {
        let mut headers = HeaderMap::new();
        headers
            .append("cache-control", HeaderValue::from_static("max-stale, min-fresh=3, nothing-to-see-here"));
        headers.append("cache-control", HeaderValue::from_static("max-age=x, only-if-cached"));
        let control = RequestControl::of(&headers);
        assert_eq!((control.max_stale, control.min_fresh, control.max_age), (Some(u64::MAX), Some(3), None));
        assert!(control.only_if_cached && !control.no_cache && !control.no_store);
    }
}
