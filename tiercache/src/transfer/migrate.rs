//! From one cache to another.

use tiercache_core::tracking::Query;
use tiercache_core::{CacheManager, Level};

use super::carry::{Fetching, Read, Storing, told};
use super::{Report, TransferError};
use crate::Config;

/// Carries what one cache holds into another: options, then [`run`](Self::run).
///
/// It can be interrupted by anything and run again: what arrived is counted as present and not read again. Nothing is
/// removed from where it came from.
#[must_use = "nothing is carried yet"]
pub struct Migrate<'a> {
    from: &'a CacheManager,
    to: &'a CacheManager,
    query: Query,
    replace: bool,
    progress: Box<dyn FnMut(&Report) + Send + 'a>,
}

impl<'a> Migrate<'a> {
    /// Everything, each entry into its namespace.
    pub fn new(from: &'a CacheManager, to: &'a CacheManager) -> Self {
        Self { from, to, query: Query::all(), replace: false, progress: Box::new(|_| ()) }
    }

    /// Only what fits.
    pub fn query(self, query: Query) -> Self {
        Self { query, ..self }
    }

    /// Whether an entry replaces the live one its key has there. Default: no.
    pub fn replace(self, replace: bool) -> Self {
        Self { replace, ..self }
    }

    /// Called after each entry.
    pub fn progress(self, progress: impl FnMut(&Report) + Send + 'a) -> Self {
        Self { progress: Box::new(progress), ..self }
    }

    /// Carries it, in bounded memory. When it returns, what arrived is as safe as the other cache makes it:
    /// [`CacheManager::close`] brings it to the disk.
    ///
    /// # Errors
    /// What the listing of the one cache said, or [`Error::Closed`](tiercache_core::Error::Closed). Entries that were
    /// not given or not taken are counted instead.
    pub async fn run(self) -> Result<Report, TransferError> {
        let Self { from, to, query, replace, mut progress } = self;
        let mut report = Report::default();
        let mut reading = Fetching::new(from, query);
        if !replace {
            reading = reading.missing_at(to);
        }
        let mut storing = Storing::new(to, replace);
        while let Some(read) = reading.next().await? {
            report.read += 1;
            match read {
                Read::Present => report.present += 1,
                Read::Fetched((key, Ok(Some(entry)))) => storing.put(key, entry, &mut report).await?,
                Read::Fetched((_, Ok(None))) => report.gone += 1,
                Read::Fetched((key, Err(error))) => report.fail(|| key.display().to_string(), told(&error)),
            }
            progress(&report);
        }
        storing.finish(&mut report).await?;
        progress(&report);
        Ok(report)
    }

    /// Whether two configurations can be told apart: one store cannot be carried into itself.
    ///
    /// # Errors
    /// [`TransferError::SamePlace`].
    pub fn check(from: &Config, to: &Config) -> Result<(), TransferError> {
        let (from, to) = (from.to_json(), to.to_json());
        let place = |config: &serde_json::Value, level: Level| -> Option<Vec<(String, serde_json::Value)>> {
            let section = config[format!("{level}_cache")].as_object()?;
            let backend = section.get("backend")?.as_str()?;
            if ["ram", "none"].contains(&backend) {
                return None;
            }
            // What says how it is used does not say where it is.
            let how = ["ttl", "read_timeout", "write_timeout", "max_size"];
            let keys = section.iter().filter(|(key, _)| !how.contains(&key.as_str()));
            Some(keys.map(|(key, value)| (key.clone(), value.clone())).collect())
        };
        for one in Level::ALL {
            for other in Level::ALL {
                // Shared stores keep levels apart.
                let (Some(here), Some(there)) = (place(&from, one), place(&to, other)) else { continue };
                let path = |place: &[(String, serde_json::Value)]| {
                    let path = place.iter().find(|(key, _)| key == "path")?.1.as_str()?.to_owned();
                    std::path::absolute(path).ok()
                };
                let same = match (path(&here), path(&there)) {
                    (Some(here), Some(there)) => here == there,
                    (None, None) => one == other && here == there,
                    _ => false,
                };
                if same {
                    return Err(TransferError::SamePlace(format!("store: {one}_cache and {other}_cache")));
                }
            }
        }
        Ok(())
    }
}
