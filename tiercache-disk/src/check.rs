//! Looking at a directory without opening the level: what is in it, and whether all of it is whole.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use tiercache_core::{Clock, Error, Generation, Result, SystemClock};

use crate::dir::{Dir, Name, segment_name};
use crate::fences::Fences;
use crate::footer::Footer;
use crate::index::Index;
use crate::journal::Journal;
use crate::log::Segment;
use crate::open::{Found, Loaded, bury, read_dir, remember};
use crate::segment::{Kind, Row, hash_key};
use crate::store::write_footer;
use crate::tier::{DiskTier, NAME};

/// What is in a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The process that has the level open now: the figures are then those of a moment, and what it has not
    /// written yet is not in them.
    pub owner: Option<u32>,
    /// Segments in use.
    pub segments: u64,
    /// Bytes of their files, those of spare ones too.
    pub file_bytes: u64,
    /// Entries that would be answered.
    pub entries: u64,
    /// Bytes of their records.
    pub bytes: u64,
    /// Entries that are dead or were replaced or removed, whose room was not reclaimed yet.
    pub superseded: u64,
    /// Removals remembered.
    pub removals: u64,
    /// Fences remembered.
    pub fences: u64,
    /// Removals noted that wait for other levels.
    pub waiting: u64,
    /// The highest generation met.
    pub last_generation: Generation,
    /// Records that are not whole.
    pub damaged: u64,
    /// Footers and headers that are not whole, or do not say what is in their segment.
    pub bad_footers: u64,
    /// Segments that cannot be read or follow a missing one, and those older.
    pub lost: u64,
    /// Files of ours that nobody needs any more.
    pub leftovers: u64,
    /// Whether what was found was repaired.
    pub repaired: bool,
}

impl Report {
    /// Whether nothing is wrong. A tail that `kill -9` cut off is not: it was never answered for as written.
    pub fn is_clean(&self) -> bool {
        self.damaged + self.bad_footers + self.lost + self.leftovers == 0
    }
}

impl DiskTier {
    /// Tells what is in a directory, from what opening would read. Blocks; works beside the process that has it open.
    ///
    /// # Errors
    /// [`Error::Refused`] when it is not a directory of this user, [`Error::Unavailable`] when the disk fails.
    pub fn inspect(path: &Path) -> Result<Report> {
        look(path, false, None)
    }

    /// Reads and verifies every record, telling `progress` the bytes read and the bytes there are. With `repair` it
    /// drops what is damaged, writes footers anew and removes leftovers; no process may then have the level open.
    /// Blocks.
    ///
    /// # Errors
    /// As for [`DiskTier::inspect`], and [`Error::Refused`] when another process stands in the way of a repair.
    pub fn check(path: &Path, repair: bool, progress: &mut dyn FnMut(u64, u64)) -> Result<Report> {
        look(path, repair, Some(progress))
    }
}

fn look(path: &Path, repair: bool, mut progress: Option<&mut dyn FnMut(u64, u64)>) -> Result<Report> {
    let failed = |error: std::io::Error| Error::unavailable(NAME, "check", error);
    let dir = Dir::open(path, false)?;
    let _lock = if repair { Some(dir.lock()?) } else { None };
    let mut report = Report { owner: if repair { None } else { dir.owner() }, ..Report::default() };
    let names = dir.names().map_err(failed)?;
    for name in &names {
        let kind = Name::of(name);
        if matches!(kind, Name::Segment(_) | Name::Spare | Name::Damaged) {
            report.file_bytes +=
                dir.open_file(name, false).and_then(|file| file.metadata()).map_or(0, |meta| meta.len());
        }
        report.leftovers += u64::from(kind == Name::Damaged);
    }
    let now = SystemClock::start().now();
    let found = read_dir(&dir, &names, hash_key, u64::MAX, repair).map_err(failed)?;
    if repair {
        // Listed anew: reading has set aside what is no segment.
        for name in dir.names().map_err(failed)? {
            if matches!(Name::of(&name), Name::Spare | Name::Damaged) {
                dir.remove(&name).map_err(failed)?;
            }
        }
    }
    count(&found, &mut report, now);
    report.waiting = Journal::count(&dir).map_err(failed)?;
    // With a process at work, what was missing was reclaimed meanwhile.
    report.lost = if report.owner.is_none() { found.lost.len() as u64 } else { 0 };

    let total: u64 = found.segments.iter().map(|segment| u64::from(segment.end)).sum();
    let mut done = 0;
    for (at, loaded) in found.segments.iter().enumerate() {
        let newest = at + 1 == found.segments.len();
        let mut rows = None;
        if let Some(progress) = progress.as_deref_mut() {
            rows = Some(verify(&found, loaded, newest, &mut report));
            done += u64::from(loaded.end);
            progress(done, total);
        }
        let unlisted = !loaded.by_footer && loaded.header != Some(false) && !newest;
        report.bad_footers += u64::from(unlisted);
        if let Some((rows, whole)) = rows
            && repair
            && (!whole || unlisted || loaded.damaged > 0)
        {
            seal_again(&found, loaded, &rows, now).map_err(failed)?;
        }
    }
    report.repaired = repair && !report.is_clean();
    if report.owner.is_some() {
        // What is being reclaimed or written while it is looked at is not damaged.
        let names = dir.names().map_err(failed)?;
        let gone = |loaded: &&Loaded| !names.contains(&segment_name(loaded.seq));
        if found.segments.iter().any(|loaded| gone(&loaded)) {
            (report.damaged, report.bad_footers) = (0, 0);
        }
    }
    Ok(report)
}

fn count(found: &Found, report: &mut Report, now: tiercache_core::Timestamp) {
    let index = Index::new();
    let mut fences = Fences::default();
    let mut entries = 0;
    for loaded in &found.segments {
        for row in &loaded.rows {
            entries += u64::from(row.kind == Kind::Entry);
            report.removals += u64::from(row.kind == Kind::Removal);
            remember(&index, loaded.seq, row, now);
        }
        loaded.fences.iter().for_each(|(scope, below)| fences.add(scope, *below, loaded.seq));
    }
    bury(&index, &fences, &found.codec, now.max(found.latest));
    report.segments = found.segments.len() as u64;
    report.entries = index.entries();
    report.bytes = index.bytes();
    report.superseded = entries - index.entries();
    report.fences = fences.list().len() as u64;
    report.last_generation = found.last_generation;
}

/// Reads a segment's records, and says which are whole and whether these are the ones its footer tells of.
fn verify(found: &Found, loaded: &Loaded, newest: bool, report: &mut Report) -> (Vec<Row>, bool) {
    let mut bytes = vec![0; loaded.end as usize];
    if loaded.file.read_exact_at(&mut bytes, 0).is_err() {
        report.damaged += loaded.rows.len() as u64;
        return (Vec::new(), false);
    }
    let scan = found.codec.scan(loaded.seq, &bytes);
    let missing = |some: &[Row], other: &[Row]| {
        let other: std::collections::HashSet<_> = other.iter().map(|row| (row.offset, row.hash)).collect();
        some.iter().filter(|row| !other.contains(&(row.offset, row.hash))).count() as u64
    };
    let damaged = if loaded.by_footer { missing(&loaded.rows, &scan.rows) } else { loaded.damaged };
    let unlisted = missing(&scan.rows, &loaded.rows);
    if !(newest && report.owner.is_some()) {
        report.damaged += damaged;
        report.bad_footers += u64::from(unlisted > 0);
    }
    (scan.rows, damaged + unlisted == 0)
}

/// Writes a footer of the rows that are whole.
fn seal_again(
    found: &Found,
    loaded: &Loaded,
    rows: &[Row],
    now: tiercache_core::Timestamp,
) -> std::io::Result<()> {
    let mut footer = Footer::new();
    rows.iter().for_each(|row| footer.push(row, &found.codec.names));
    let segment = Segment::new(&found.codec, loaded.seq, Arc::clone(&loaded.file), loaded.capacity);
    write_footer(&found.codec, &segment, loaded.end, &footer.encode(), now)?;
    loaded.file.sync_data()
}
