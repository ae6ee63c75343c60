use std::fmt;
use std::process::ExitCode;

use crate::say::say;
use serde_json::json;
use tiercache::transfer::TransferError;
use tiercache::{ConfigError, Error};

/// What a command came to, when it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Exit code 0.
    Done,
    /// Exit code 1: the key is not there, or what was checked is not well.
    FallsShort,
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    code: u8,
}

pub(crate) type Result<T = Outcome> = std::result::Result<T, Failure>;

impl Failure {
    /// Exit code 2: the command, or the configuration, cannot be meant like that.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), code: 2 }
    }

    /// Exit code 3: a backend or the service did not do it.
    pub(crate) fn backend(message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), code: 3 }
    }

    /// What went wrong.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Tells it and returns the exit code.
    pub(crate) fn told(self, json: bool) -> ExitCode {
        if json && crate::say::broken().is_none() {
            say!("{}", json!({ "error": self.message }));
        } else {
            eprintln!(
                "{}",
                self.message.lines().map(|line| format!("error: {line}")).collect::<Vec<_>>().join("\n")
            );
        }
        ExitCode::from(self.code)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        let message = format!("{error}{cause}");
        match error {
            Error::Config(_) | Error::InvalidKey(_) | Error::InvalidOption { .. } => Self::usage(message),
            _ => Self::backend(message),
        }
    }
}

impl From<TransferError> for Failure {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::Cache(error) => error.into(),
            TransferError::Exists(_) => Self::usage(format!("{error}, --force replaces it")),
            TransferError::Foreign { .. } | TransferError::SamePlace(_) => Self::usage(error),
            TransferError::Damaged { .. } => Self::backend(format!("{error}; --skip-damaged steps over it")),
            other => Self::backend(other),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::backend(error)
    }
}
