use std::sync::Arc;
use std::time::Duration;

/// The result of everything in this workspace that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A client's own error, kept as the source of ours.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong, by outcome. A miss is not an error.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The backend did not do it, and may not have been reached at all.
    #[error("{backend} is unavailable ({op})")]
    Unavailable {
        /// The backend's name, such as `local`.
        backend: &'static str,
        /// What was asked of it.
        op: &'static str,
        /// The client's error.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The backend did not answer in time; it may still do what it was asked.
    #[error("{backend} did not answer within {after:?} ({op})")]
    TimedOut {
        /// The backend's name.
        backend: &'static str,
        /// What was asked of it.
        op: &'static str,
        /// How long it was given.
        after: Duration,
    },
    /// The backend was asked and did not say what it did: it did it once, or not at all.
    #[error("{backend} may have done it, or not ({op})")]
    Uncertain {
        /// The backend's name.
        backend: &'static str,
        /// What was asked of it.
        op: &'static str,
        /// What kept it from saying so.
        source: Arc<Error>,
    },
    /// The backend has no room for it and can make none.
    #[error("{backend} is full ({op})")]
    Full {
        /// The backend's name.
        backend: &'static str,
        /// What was asked of it.
        op: &'static str,
    },
    /// No level takes an entry of this size.
    #[error("an entry of {size} bytes fits no level (the largest takes {limit})")]
    TooLarge {
        /// Bytes of key, value and overhead.
        size: u64,
        /// The most the largest level takes.
        limit: u64,
    },
    /// The key or namespace is not one.
    #[error("invalid key: {0}")]
    InvalidKey(&'static str),
    /// An option has a value that cannot be meant.
    #[error("invalid option {option}: {reason}")]
    InvalidOption {
        /// Which option.
        option: &'static str,
        /// What is wrong with it and what is allowed.
        reason: String,
    },
    /// A loader failed, with its error as the source. All who waited for the load share it.
    #[error("the loader failed: {source}")]
    Load {
        /// The loader's error.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// A value could not be encoded or decoded as the type asked for.
    #[error("the value is not {what}: {reason}")]
    Codec {
        /// What it should have been.
        what: &'static str,
        /// The codec's words.
        reason: String,
    },
    /// The configuration cannot be used.
    #[error("{0}")]
    Config(String),
    /// The store belongs to another process, is foreign or unsafe to use; says what to do.
    #[error("{0}")]
    Refused(String),
    /// The power asked for is not one this backend has.
    #[error("{backend} cannot {op}")]
    Unsupported {
        /// The backend's name.
        backend: &'static str,
        /// What it cannot do.
        op: &'static str,
    },
    /// A blocking call was made where it would stop an async runtime.
    #[error("blocking call inside an async runtime: use the async method `{0}` instead")]
    WouldBlockRuntime(&'static str),
    /// The cache is closed.
    #[error("the cache is closed")]
    Closed,
    /// User code, or ours, panicked; the component lives on.
    #[error("{what} panicked")]
    Panicked {
        /// Which code.
        what: &'static str,
    },
}

impl Error {
    /// A backend's failure with its client's error as the source.
    pub fn unavailable(backend: &'static str, op: &'static str, source: impl Into<BoxError>) -> Self {
        Self::Unavailable { backend, op, source: Arc::from(source.into()) }
    }

    /// Whether the same call may succeed later without a change by the caller.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::TimedOut { .. })
    }
}
