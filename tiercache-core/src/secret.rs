//! Text that must not be seen.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// What stands for a secret wherever one would be shown.
pub const HIDDEN: &str = "(hidden)";

/// Text that is never shown: not by `Debug`, not when serialised, not in an error.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text itself; the name is meant to be found when code is read.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}

/// The address of a service, such as `redis://user:password@host/0`: shown without user and password.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Address(String);

impl Address {
    /// The whole text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Address {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_credentials(&self.0))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `text` without the user and password of an address it may hold.
pub fn without_credentials(text: &str) -> String {
    let Some(scheme) = text.find("://").map(|at| at + 3) else {
        // No address, but perhaps meant for one.
        let text = hide_keyword(text);
        return match text.rfind('@') {
            Some(at) => format!("{HIDDEN}{}", &text[at..]),
            None => text,
        };
    };
    let authority = text[scheme..].find(['/', '?', '#']).map_or(text.len(), |end| scheme + end);
    // A password may hold an unescaped slash; the last at sign before the path is still the likelier end.
    match text[scheme..authority].rfind('@').or_else(|| text[scheme..].rfind('@')) {
        Some(at) => hide_keyword(&format!("{}{HIDDEN}{}", &text[..scheme], &text[scheme + at..])),
        None => hide_keyword(text),
    }
}

/// `text` without the value of a `password=…` it may hold, as in a PostgreSQL connection string.
fn hide_keyword(text: &str) -> String {
    let Some(start) = text.to_ascii_lowercase().find("password=").map(|at| at + "password=".len()) else {
        return text.to_owned();
    };
    format!("{}{HIDDEN}", &text[..start])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let secret = Secret::from("hunter2".to_owned());
        assert_eq!(format!("{secret:?}"), HIDDEN);
        assert_eq!(rmp_serde::to_vec(&secret).expect("encodes"), rmp_serde::to_vec(HIDDEN).expect("encodes"));
        assert_eq!(secret.reveal(), "hunter2");
    }

    #[test]
    fn addresses_are_shown_without_credentials() {
        for (text, shown) in [
            ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
            ("redis://:hunter2@host/0", "redis://(hidden)@host/0"),
            ("mongodb://u:hun/ter2@host/db", "mongodb://(hidden)@host/db"),
            ("host=db password=hunter2", "host=db password=(hidden)"),
            ("postgres://db/x?password=hunter2", "postgres://db/x?password=(hidden)"),
            ("./cache/dry", "./cache/dry"),
            ("redis//u:hunter2@host", "(hidden)@host"),
            ("host=db password=hunt@er2", "host=db password=(hidden)"),
        ] {
            assert_eq!(without_credentials(text), shown);
            assert_eq!(format!("{:?}", Address::from(text)), shown);
        }
    }
}
