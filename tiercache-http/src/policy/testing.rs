//! What the tests of policy share.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::Rules;
use crate::Profile;

pub(crate) fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let line = |(name, value): &(&str, &str)| {
        Some((HeaderName::try_from(*name).ok()?, HeaderValue::from_bytes(value.as_bytes()).ok()?))
    };
    lines.iter().filter_map(line).fold(HeaderMap::new(), |mut headers, (name, value)| {
        headers.append(name, value);
        headers
    })
}

pub(crate) fn rules(profile: Profile) -> Rules {
    Rules::new(profile, Duration::from_secs(86_400), [].into())
}
