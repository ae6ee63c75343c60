//! Tracking compared with what the levels hold, without opening the cache.
//!
//! 1. Tracking's records, page by page: does the level that each names hold the key at that generation? A repair tells
//!    tracking where the entry stands, or that it stands nowhere.
//! 2. The entries of each level from the top, page by page: does tracking know them? A repair records them.
//!
//! Levels of this machine are left alone while a process has them open. Those of servers are shared: others write there
//! meanwhile, and tell tracking of it later. So each difference is looked at again after a while, and one that is gone, or
//! another, is none. Everything is told to tracking with the generation that was met, so that what is newer stays as it
//! is. What a removal has yet to reach at a level counts as gone there: whoever opens the cache next removes it.

mod compare;
pub(crate) mod contents;
pub(crate) mod dead;

use std::sync::Arc;

use tiercache_core::tracking::NoTracking;
use tiercache_core::{Error, Level, Result, SystemClock, Tracking};

use self::compare::Compare;
pub(crate) use self::contents::Look;
use self::contents::{Held, Nothing, blocking};
use self::dead::Dead;
use crate::Config;

/// How far tracking and the levels agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drift {
    /// Records that name a level that was compared.
    pub records: u64,
    /// Entries of the levels that were compared, without those that are dead.
    pub entries: u64,
    /// Records whose level does not hold the key, or not that generation.
    pub stale: u64,
    /// Entries that tracking does not know.
    pub untracked: u64,
    /// Records of what is dead and nowhere any more, which is nothing wrong.
    pub expired: u64,
    /// Why tracking's database is of no use, if it is not. A repair sets it aside and makes it anew.
    pub damaged: Option<String>,
    /// The levels that were compared.
    pub compared: Vec<Level>,
    /// Those that were not, and why.
    pub not_compared: Vec<(Level, String)>,
    /// Those that could not be looked at, or not to the end: file, section and what the store said. What was counted of
    /// them until then is in the counts.
    pub failed: Vec<(Level, String)>,
    /// Whether what was found was repaired.
    pub repaired: bool,
}

impl Drift {
    /// Whether nothing is wrong, as far as it was compared.
    pub fn is_clean(&self) -> bool {
        self.stale + self.untracked == 0 && self.damaged.is_none()
    }
}

impl Config {
    /// Compares tracking with what the levels hold, but not with those that are `unwell`:
    ///
    /// - with levels of the backends `local` and `sqlite` that nobody has open, and then with those in RAM, which hold
    ///   nothing;
    /// - with levels of the backends `redis`, `s3` and `mongodb`, whether or not other processes use them: a difference
    ///   counts when it is the same a second later. One whose store does not answer is in [`Drift::failed`], and the
    ///   others are compared all the same.
    ///
    /// With `repair` records that name a level which does not hold the key are corrected or removed, and entries that
    /// tracking does not know are recorded; without, no level and no record changes. `progress` is told what was found
    /// so far.
    ///
    /// None when there is no tracking that outlives a process.
    ///
    /// # Errors
    /// What tracking or a level of this machine said, and with `repair`
    /// [`Error::Refused`] when a process has a level of the backend `local` open.
    /// Dropping the future leaves what was repaired by then.
    pub async fn drift(
        mut self,
        repair: bool,
        unwell: &[Level],
        progress: impl FnMut(&Drift) + Send,
    ) -> Result<Option<Drift>> {
        let backend =
            |section: &str| self.effective[section]["backend"].as_str().unwrap_or_default().to_owned();
        let tracking_backend = backend("tracking");
        let backends = crate::config::LEVEL_SECTIONS.map(backend);
        if ["none", "memory"].contains(&tracking_backend.as_str()) {
            return Ok(None);
        }
        let mut drift = Drift::default();
        let mut held: [Option<Held>; 3] = [None, None, None];
        let mut away: Vec<(Level, Error)> = Vec::new();
        let (mut in_use, mut owned) = (false, false);
        let mut dead = Dead::default();
        for level in Level::ALL.into_iter().filter(|level| !unwell.contains(level)) {
            let look = self.levels[level.index()].as_mut().and_then(|prepared| prepared.look.take());
            let contents = match look {
                None => continue,
                Some(Look::Here(look)) => {
                    let contents = blocking(move || look(repair)).await?;
                    contents.unwrap_or_else(|| Arc::new(Nothing { shared: false }))
                }
                Some(Look::Afar(look)) => match look().await {
                    Ok(contents) => contents.unwrap_or_else(|| Arc::new(Nothing { shared: true })),
                    Err(error) => {
                        away.push((level, error));
                        continue;
                    }
                },
            };
            dead.add_waiting(contents.waiting().await?);
            if let Some(who) = contents.used_by() {
                in_use = true;
                drift.not_compared.push((level, format!("{who} has it open, and entries come and go")));
                continue;
            }
            owned |= !contents.is_shared();
            held[level.index()] = Some(contents);
        }
        // Records of a server may be another machine's, of its own RAM and disks.
        let own_records = tracking_backend == "sqlite";
        let alone = own_records && !in_use && owned;
        for level in Level::ALL {
            let backend = backends[level.index()].as_str();
            if alone && ["ram", "none"].contains(&backend) {
                held[level.index()] = Some(Arc::new(Nothing { shared: false }));
            } else if held[level.index()].is_none()
                && backend != "none"
                && drift.not_compared.iter().all(|(named, _)| *named != level)
                && away.iter().all(|(named, _)| *named != level)
            {
                drift
                    .not_compared
                    .push((level, why_not(backend, unwell.contains(&level), &tracking_backend)));
            }
        }
        drift.not_compared.sort();
        drift.compared = Level::ALL
            .into_iter()
            .filter(|level| held[level.index()].is_some() && backends[level.index()] != "none")
            .collect();
        let file = self.file().to_owned();
        let tracking = self.tracking_to_compare(repair, &tracking_backend, &mut drift).await?;
        let judged = held
            .each_ref()
            .map(|held| held.as_ref().is_some_and(|contents| own_records || contents.is_shared()));
        let opened: Vec<Held> = held.iter().flatten().cloned().collect();
        let clock = SystemClock::start();
        let mut compare = Compare { file, tracking, held, judged, repair, clock, drift, dead, progress };
        away.iter().for_each(|(level, error)| compare.give_up(*level, error));
        let compared = compare.run().await;
        let closed = compare.tracking.close().await;
        for contents in opened {
            if let Err(error) = contents.close().await {
                tracing::debug!(%error, "a level that was looked at did not close");
            }
        }
        compared.and(closed)?;
        let mut drift = compare.drift;
        drift.failed.sort();
        drift.repaired = repair && !drift.is_clean();
        Ok(Some(drift))
    }

    /// Tracking to repair, or to be looked at as it is.
    async fn tracking_to_compare(
        self,
        repair: bool,
        backend: &str,
        drift: &mut Drift,
    ) -> Result<Arc<dyn Tracking>> {
        let nothing = Arc::new(NoTracking);
        #[cfg(feature = "sqlite")]
        if backend == "sqlite" {
            use tiercache_tracking::{Look, SqliteConfig, SqliteTracking};
            let path = self.effective["tracking"]["path"].as_str().unwrap_or_default().into();
            match SqliteTracking::look(SqliteConfig { path }).await? {
                Look::Sound(tracking) if !repair => return Ok(Arc::new(tracking)),
                Look::Sound(tracking) => tracking.close().await?,
                Look::Absent => {}
                Look::Damaged(reason) => drift.damaged = Some(reason),
            }
            if !repair {
                return Ok(nothing);
            }
        }
        let _ = (repair, backend, drift);
        Ok(self.open_tracking().await?.unwrap_or(nothing))
    }
}

fn why_not(backend: &str, unwell: bool, tracking: &str) -> String {
    match backend {
        _ if unwell => "it is not well itself".to_owned(),
        "ram" if tracking != "sqlite" => {
            format!("what is in RAM may be another process's that shares the tracking in `{tracking}`")
        }
        "ram" => "what is in RAM is known to the process that has the cache open alone".to_owned(),
        "memcached" => "memcached cannot list what it holds".to_owned(),
        backend => format!("what `{backend}` holds cannot be listed from outside"),
    }
}
