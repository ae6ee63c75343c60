//! What RFC 9111 and its family say, as functions of headers and times: no I/O, no framework.

pub(crate) mod conditional;
pub(crate) mod control;
pub(crate) mod date;
pub(crate) mod fields;
pub(crate) mod fresh;
pub(crate) mod range;
pub(crate) mod status;
pub(crate) mod storable;
pub(crate) mod target;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod update;
pub(crate) mod vary;

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use crate::Profile;

/// What the rules leave to the cache, decided for one request.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// Whether what is stored answers more than one user (RFC 9111 §1).
    pub(crate) shared: bool,
    /// Only what says that it may be stored, and nothing that could be somebody else's.
    pub(crate) cautious: bool,
    /// Whether lifetimes may be guessed.
    pub(crate) heuristics: bool,
    /// Whether what is stale answers when the origin fails and nothing was said about that.
    pub(crate) stale_on_error: bool,
    /// The lifetime, whatever responses say.
    pub(crate) ttl: Option<Duration>,
    /// How long what is stale is kept.
    pub(crate) keep_stale: Duration,
    /// Lifetimes of statuses whose responses say nothing.
    pub(crate) negative: Arc<[(StatusCode, Duration)]>,
    /// Whether what is stored is for one principal.
    pub(crate) identified: bool,
}

impl Rules {
    pub(crate) fn new(
        profile: Profile,
        keep_stale: Duration,
        negative: Arc<[(StatusCode, Duration)]>,
    ) -> Self {
        let by_the_letter = profile == Profile::Rfc9111;
        Self {
            shared: true,
            cautious: !by_the_letter,
            heuristics: by_the_letter,
            stale_on_error: by_the_letter,
            ttl: None,
            keep_stale,
            negative,
            identified: false,
        }
    }
}
