//! What the tests of the configuration share.

#[cfg(feature = "s3")]
pub(crate) mod s3;

use tiercache::{Config, Registry};

pub(crate) fn registry() -> Registry {
    Registry::builtin()
}

pub(crate) fn variables(name: &str) -> Option<String> {
    match name {
        "WORD" => Some("a: b".into()),
        "HOURS" => Some("4".into()),
        "HOME" => Some("/home/me".into()),
        "SECRET" => Some("hunter2".into()),
        _ => None,
    }
}

pub(crate) fn read(text: &str) -> Result<Config, tiercache::ConfigError> {
    Config::read("tier.yaml", text, &registry(), &variables)
}

pub(crate) fn problems(text: &str) -> String {
    match read(text) {
        Ok(_) => format!("no problem in {text:?}"),
        Err(error) => error.to_string(),
    }
}
