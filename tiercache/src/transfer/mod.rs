//! Carrying entries from one cache to another: through a file, directly, or out of another system's folder.
//!
//! What is carried keeps its deadline, tags, stays, levels, media type and the caller's own fields. Generations are left
//! behind, since they order the writes of one cache; what arrives is a write of the cache it arrives at. Counters are
//! not carried.
//!
//! ```no_run
//! use tiercache::prelude::*;
//! use tiercache::tracking::Query;
//! use tiercache::transfer::{Export, Import};
//!
//! # async fn run(cache: CacheManager, other: CacheManager) -> Result<(), tiercache::transfer::TransferError> {
//! let thumbnails = Query { prefix: b"thumb:".to_vec(), ..Query::all() };
//! Export::of(&cache).query(thumbnails).to_file("thumbs.tcx".as_ref(), false).await?;
//! let report = Import::into(&other).from_file("thumbs.tcx".as_ref()).await?;
//! assert_eq!(report.read, report.stored + report.skipped() + report.failed);
//! # Ok(())
//! # }
//! ```

mod carry;
mod export;
#[cfg(feature = "sqlite")]
mod foreign;
pub mod format;
mod import;
mod migrate;
#[cfg(feature = "sqlite")]
mod python;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

pub use self::export::{Export, Exported};
#[cfg(feature = "sqlite")]
pub use self::foreign::{Foreign, ForeignKind};
pub use self::import::Import;
pub use self::migrate::Migrate;
use tiercache_core::Error;

/// Failures and the like that are told in full; the rest is counted.
const TOLD: usize = 20;

/// What a transfer came to, or has so far.
///
/// `read` is always the sum of what became of it: [`Report::stored`], [`Report::skipped`], [`Report::failed`] and all of
/// [`Report::unreadable`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Entries that were met.
    pub read: u64,
    /// Entries that the cache keeps now.
    pub stored: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// Entries left out since their key has a live one already.
    pub present: u64,
    /// Entries left out since their deadline has passed.
    pub expired: u64,
    /// Entries left out since they were removed while the transfer ran.
    pub gone: u64,
    /// Entries that the one cache did not give or the other did not take.
    pub failed: u64,
    /// What cannot be read, by reason.
    pub unreadable: BTreeMap<&'static str, u64>,
    /// Bytes of a file that were stepped over to find the next entry.
    pub skipped_bytes: u64,
    /// Entries that the end of the file counts and that were not met; `None` when nothing is missing, or when there is
    /// no end.
    pub missing: Option<u64>,
    /// Whether the file ends before its end.
    pub truncated: bool,
    /// The first of those that failed or were unreadable, as text, and why.
    pub failures: Vec<(String, String)>,
}

impl Report {
    /// Entries that were left out on purpose.
    pub fn skipped(&self) -> u64 {
        self.present + self.expired + self.gone
    }

    /// Whether everything that was met arrived or was left out on purpose.
    pub fn is_complete(&self) -> bool {
        self.failed == 0
            && self.unreadable.is_empty()
            && self.skipped_bytes == 0
            && self.missing.is_none()
            && !self.truncated
    }

    fn fail(&mut self, name: impl FnOnce() -> String, why: impl ToString) {
        self.failed += 1;
        self.tell(name, why);
    }

    fn cannot_read(&mut self, name: impl FnOnce() -> String, reason: &'static str) {
        *self.unreadable.entry(reason).or_default() += 1;
        self.tell(name, reason);
    }

    fn tell(&mut self, name: impl FnOnce() -> String, why: impl ToString) {
        if self.failures.len() < TOLD {
            self.failures.push((name(), why.to_string()));
        }
    }
}

/// What ended a transfer before its time. What was stored by then stays.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// A cache said so.
    #[error(transparent)]
    Cache(#[from] Error),
    /// A file or stream said so.
    #[error("{path}: {source}")]
    Io {
        /// The file, or what the stream is.
        path: String,
        /// What it said.
        source: io::Error,
    },
    /// The file is there, and shall not be overwritten.
    #[error("{} is there already", .0.display())]
    Exists(PathBuf),
    /// The stream is not what an export writes, or of a later version.
    #[error("{path}: {found}")]
    Foreign {
        /// The file, or what the stream is.
        path: String,
        /// What it begins with, and what is wanted.
        found: String,
    },
    /// The stream is not what was written.
    #[error("{path}: damaged at offset {offset}: {found}; {stored} entries before it are stored")]
    Damaged {
        /// The file, or what the stream is.
        path: String,
        /// Bytes before the damage.
        offset: u64,
        /// What is wrong there.
        found: String,
        /// What was kept by then.
        stored: u64,
    },
    /// The two caches are one.
    #[error("both configurations name the same {0}: nothing can be carried")]
    SamePlace(String),
}

impl TransferError {
    fn io(path: impl ToString) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_string();
        move |source| Self::Io { path, source }
    }
}
