//! Tracking compared with what the levels hold, while nobody has the cache open.
//!
//! 1. Tracking's records, page by page: does the level that each names hold the key at that generation? A repair tells
//!    tracking where the entry stands, or that it stands nowhere.
//! 2. The entries of each level from the top, page by page: does tracking know them? A repair records them.
//!
//! Everything is told to tracking with the generation that was met, so that what is newer stays as it is.

pub(crate) mod contents;

use std::sync::Arc;

use tiercache_core::tier::{Call, ListedEntry, side_by_side};
use tiercache_core::tracking::{Event, NoTracking, Query, Record, What};
use tiercache_core::{Clock, Generation, Key, Level, Result, SystemClock, Timestamp, Tracking};

pub(crate) use self::contents::Look;
use self::contents::{Held, Nothing};
use crate::Config;

/// Records and entries in memory at a time.
const PAGE: usize = 256;
/// Look-ups under way at a time.
const AT_ONCE: usize = 16;

/// How far tracking and the levels agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drift {
    /// Records that name a level that was compared.
    pub records: u64,
    /// Entries of the levels that were compared.
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
    /// Compares tracking with the levels of the backends `local` and `sqlite` that nobody has open, and with those in RAM,
    /// which hold nothing then; but not with those that are `unwell`. With `repair` records that name a level which
    /// does not hold the key are corrected or removed, and entries that tracking does not know are recorded; without,
    /// nothing changes. `progress` is told what was found so far.
    ///
    /// None when there is no tracking that outlives a process.
    ///
    /// # Errors
    /// What tracking or a level said, and with `repair` [`Error::Refused`](tiercache_core::Error::Refused) when a
    /// process has a level of the backend `local` open. Dropping the future leaves what was repaired by then.
    pub async fn drift(
        mut self,
        repair: bool,
        unwell: &[Level],
        mut progress: impl FnMut(&Drift) + Send,
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
        let mut in_use = false;
        for level in Level::ALL.into_iter().filter(|level| !unwell.contains(level)) {
            let Some(look) = self.levels[level.index()].as_mut().and_then(|prepared| prepared.look.take())
            else {
                continue;
            };
            let contents = blocking(move || look(repair)).await?;
            match contents.as_ref().and_then(|contents| contents.used_by()) {
                Some(who) => {
                    in_use = true;
                    drift.not_compared.push((level, format!("{who} has it open, and entries come and go")));
                }
                None => held[level.index()] = Some(contents.unwrap_or_else(|| Arc::new(Nothing))),
            }
        }
        // Records of a server may be another machine's, of its own RAM and disks.
        let alone = tracking_backend == "sqlite" && !in_use && held.iter().any(Option::is_some);
        for level in Level::ALL {
            let backend = backends[level.index()].as_str();
            if alone && ["ram", "none"].contains(&backend) {
                held[level.index()] = Some(Arc::new(Nothing));
            } else if held[level.index()].is_none()
                && backend != "none"
                && drift.not_compared.iter().all(|(named, _)| *named != level)
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
        let tracking = self.tracking_to_compare(repair, &tracking_backend, &mut drift).await?;
        let mut compare = Compare {
            tracking,
            held,
            judge_records: tracking_backend == "sqlite",
            repair,
            now: SystemClock::start().now(),
            drift,
        };
        let compared = compare.run(&mut progress).await;
        let closed = compare.tracking.close().await;
        compared.and(closed)?;
        let mut drift = compare.drift;
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
        backend => format!("what `{backend}` holds cannot be listed from outside"),
    }
}

struct Compare {
    tracking: Arc<dyn Tracking>,
    /// What each level holds, if that is known.
    held: [Option<Held>; 3],
    /// Whether a record of what no level holds must be wrong.
    judge_records: bool,
    repair: bool,
    now: Timestamp,
    drift: Drift,
}

/// What a record is, seen from the levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Nobody can say.
    Unknown,
    /// Where it says, or there is something newer.
    Right,
    /// At another level.
    Elsewhere(Level),
    /// Nowhere that is known.
    Nowhere,
}

impl Compare {
    async fn run(&mut self, progress: &mut (impl FnMut(&Drift) + Send)) -> Result<()> {
        let mut after: Option<Key> = None;
        while self.judge_records {
            let page = self.tracking.find(&Query::all(), after.as_ref(), PAGE).await?;
            let is_last = page.len() < PAGE;
            after = page.last().map(|record| record.key.clone());
            self.judge(page).await?;
            progress(&self.drift);
            if is_last {
                break;
            }
        }
        for level in Level::ALL {
            let Some(contents) = self.held[level.index()].clone() else { continue };
            let mut after = None;
            loop {
                let listed = contents.clone();
                let page = blocking(move || listed.list(after.as_deref(), PAGE)).await?;
                self.look_up(level, page.entries).await?;
                progress(&self.drift);
                match page.next {
                    Some(next) => after = Some(next),
                    None => break,
                }
            }
        }
        Ok(())
    }

    /// Whether the levels hold what these records say.
    async fn judge(&mut self, records: Vec<Record>) -> Result<()> {
        let held = self.held.clone();
        let judged = blocking(move || {
            let judged = records.into_iter().map(|record| Ok((standing(&held, &record)?, record)));
            judged.collect::<Result<Vec<_>>>()
        });
        let mut events = Vec::new();
        for (standing, record) in judged.await? {
            let to = match standing {
                Standing::Unknown => continue,
                Standing::Right => {
                    self.drift.records += 1;
                    continue;
                }
                Standing::Elsewhere(level) => Some(level),
                Standing::Nowhere => None,
            };
            self.drift.records += 1;
            match to.is_none() && record.deadline <= self.now {
                true => self.drift.expired += 1,
                false => self.drift.stale += 1,
            }
            let Record { key, generation, .. } = record;
            events.push(Event { at: self.now, what: What::Moved { key, generation, to } });
        }
        self.tell(events).await
    }

    /// Whether tracking knows these entries of a level.
    async fn look_up(&mut self, level: Level, listed: Vec<ListedEntry>) -> Result<()> {
        let tracking = &self.tracking;
        let calls = listed.iter().map(|listed| -> Call<'_, _> { Box::pin(tracking.lookup(&listed.key)) });
        let known = side_by_side(AT_ONCE, calls.collect()).await.into_iter().collect::<Result<Vec<_>>>()?;
        self.drift.entries += listed.len() as u64;
        let (held, now) = (self.held.clone(), self.now);
        let (repair, judge_records) = (self.repair, self.judge_records);
        let unknown = blocking(move || {
            let mut unknown = Vec::new();
            for (ListedEntry { key, entry, size }, record) in listed.into_iter().zip(known) {
                let is_known = match record {
                    _ if !entry.is_live(now) || entry.is_nothing() => true,
                    Some(record) if record.generation > entry.generation && judge_records => {
                        // Of something that is gone, or this is an old copy below it.
                        !matches!(standing(&held, &record)?, Standing::Nowhere)
                    }
                    Some(record) => record.generation >= entry.generation,
                    // Without a repair the copy above was not recorded.
                    None => !repair && stands_above(&held, level, &key, entry.generation)?,
                };
                if !is_known {
                    unknown.push(Record { size, ..Record::of(key, &entry, level) });
                }
            }
            Ok(unknown)
        });
        let unknown = unknown.await?;
        self.drift.untracked += unknown.len() as u64;
        let events = unknown.into_iter().map(|record| Event { at: self.now, what: What::Stored(record) });
        self.tell(events.collect()).await
    }

    async fn tell(&self, events: Vec<Event>) -> Result<()> {
        if self.repair && !events.is_empty() { self.tracking.record(&events).await } else { Ok(()) }
    }
}

fn standing(held: &[Option<Held>; 3], record: &Record) -> Result<Standing> {
    let Some(contents) = &held[record.level.index()] else { return Ok(Standing::Unknown) };
    if contents.generation(&record.key, record.generation)?.is_some_and(|there| there >= record.generation) {
        return Ok(Standing::Right);
    }
    for level in Level::ALL {
        if let Some(contents) = &held[level.index()]
            && contents.generation(&record.key, record.generation)? == Some(record.generation)
        {
            return Ok(Standing::Elsewhere(level));
        }
    }
    Ok(Standing::Nowhere)
}

fn stands_above(held: &[Option<Held>; 3], level: Level, key: &Key, generation: Generation) -> Result<bool> {
    for contents in held[..level.index()].iter().flatten() {
        if contents.generation(key, generation)?.is_some_and(|there| there >= generation) {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let panicked = tiercache_core::Error::Panicked { what: "comparing tracking with a level" };
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(panicked))
}
