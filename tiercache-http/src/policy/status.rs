//! `Cache-Status` (RFC 9211).

use http::{HeaderName, HeaderValue};

/// The field.
pub(crate) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Why a request went to the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forward {
    Bypass,
    Method,
    UriMiss,
    VaryMiss,
    Request,
    Stale,
}

/// What the cache did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) hit: bool,
    pub(crate) forward: Option<Forward>,
    pub(crate) forward_status: Option<u16>,
    pub(crate) stored: bool,
    pub(crate) collapsed: bool,
    /// Milliseconds of freshness left.
    pub(crate) ttl: Option<i64>,
}

impl Told {
    /// As a member of the field, of the cache of that [`identifier`].
    pub(crate) fn value(&self, identifier: &str) -> Option<HeaderValue> {
        use std::fmt::Write;

        let mut text = String::with_capacity(identifier.len() + 40);
        text.push_str(identifier);
        if self.hit {
            text.push_str("; hit");
        }
        let mut add = |parameter: std::fmt::Arguments<'_>| text.write_fmt(parameter);
        let written = (|| {
            if let Some(forward) = self.forward {
                add(format_args!("; fwd={}", forward.as_str()))?;
            }
            if let Some(status) = self.forward_status {
                add(format_args!("; fwd-status={status}"))?;
            }
            if let Some(ttl) = self.ttl {
                add(format_args!("; ttl={}", ttl.div_euclid(1000)))?;
            }
            if self.stored {
                add(format_args!("; stored"))?;
            }
            if self.collapsed {
                add(format_args!("; collapsed"))?;
            }
            Ok::<_, std::fmt::Error>(())
        })();
        written.ok().and_then(|()| HeaderValue::try_from(text).ok())
    }
}

impl Forward {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Request => "request",
            Self::Stale => "stale",
        }
    }
}

/// A token where the name is one, else a string (RFC 9651 §3.3.3).
pub(crate) fn identifier(name: &str) -> String {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte);
    if name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '*')
        && name.bytes().all(is_token)
    {
        return name.to_owned();
    }
    let visible = name.chars().filter(|letter| (' '..='~').contains(letter));
    let quoted =
        visible.flat_map(|letter| matches!(letter, '"' | '\\').then_some('\\').into_iter().chain([letter]));
    format!("\"{}\"", quoted.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_written_as_the_rfc_shows_them() {
        let hit = Told { hit: true, ttl: Some(376_900), ..Told::default() };
        assert_eq!(hit.value("ExampleCache").unwrap(), "ExampleCache; hit; ttl=376");
        let stale = Told { hit: true, ttl: Some(-412_000), ..Told::default() };
        assert_eq!(stale.value("ExampleCache").unwrap(), "ExampleCache; hit; ttl=-412");
        let miss = Told { forward: Some(Forward::UriMiss), stored: true, collapsed: true, ..Told::default() };
        assert_eq!(miss.value(&identifier("a b\"")).unwrap(), "\"a b\\\"\"; fwd=uri-miss; stored; collapsed");
        let validated =
            Told { hit: true, forward: Some(Forward::Stale), forward_status: Some(304), ..Told::default() };
        assert_eq!(validated.value("c").unwrap(), "c; hit; fwd=stale; fwd-status=304");
    }
}
