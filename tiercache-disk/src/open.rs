//! Opening: from the files of a directory to the index.
//!
//! 1. The directory is judged and locked; spare files of the last process go.
//! 2. Segments are taken from the newest back to the oldest. Where one is missing or cannot be read, everything older
//!    is dropped: what was lost may have been a removal of it.
//! 3. A sealed segment is known by its footer. Any other is read: after `kill -9` that is the last one.
//! 4. Of several records of a hash the highest generation counts, of equal ones the later.
//! 5. The last segment is appended to again.

use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use tiercache_core::tier::Scope;
use tiercache_core::{Clock, Error, Generation, Result, Timestamp};

use crate::config::DiskConfig;
use crate::dir::{DAMAGED, Dir, Name, segment_name, spare_name};
use crate::fences::Fences;
use crate::footer::{self, Footer};
use crate::index::{Index, Names, OTHER, Place, SHARDS, Slot, State};
use crate::journal::Journal;
use crate::log::{Log, Segment, Spare};
use crate::segment::{Codec, HashFn, Header, Kind, Row, SEGMENT_HEADER, footer_sum};
use crate::store::Store;
use crate::tier::NAME;

/// A last segment with less room than this is not gone on with.
const WORTH: usize = 4 << 10;

pub(crate) fn open(config: DiskConfig, clock: Arc<dyn Clock>, hasher: HashFn) -> Result<Store> {
    let segment_size = config.segment()?;
    let entries = config.codec()?;
    let dir = Dir::open(&config.directory()?, true)?;
    let lock = dir.lock()?;
    let failed = |error: io::Error| Error::unavailable(NAME, "open", error);
    let now = clock.now();

    let names = dir.names().map_err(failed)?;
    for name in names.iter().filter(|name| Name::of(name) == Name::Spare) {
        dir.remove(name).map_err(failed)?;
    }
    let journal = Journal::open(&dir, entries.clone()).map_err(failed)?;
    let mut found = read_dir(&dir, &names, hasher, config.max_size, true).map_err(failed)?;
    let codec = found.codec;
    let index = Index::new();
    let mut fences = Fences::default();
    index.reserve(found.segments.iter().map(|segment| segment.rows.len()).sum());
    for loaded in &found.segments {
        loaded.rows.iter().for_each(|row| remember(&index, loaded.seq, row, now));
        loaded.fences.iter().for_each(|(scope, below)| fences.add(scope, *below, loaded.seq));
    }
    bury(&index, &fences, &codec, now.max(found.latest));

    let mut allotted: u64 = found.segments.iter().map(|segment| u64::from(segment.capacity)).sum();
    let last = found.segments.pop();
    let opened = |loaded: &Loaded, sealed: bool| Segment {
        written: loaded.end.into(),
        recovered: loaded.end,
        sealed: AtomicBool::new(sealed),
        holed: AtomicBool::new(loaded.damaged > 0 || !loaded.by_footer),
        ..Segment::new(&codec, loaded.seq, Arc::clone(&loaded.file), loaded.capacity)
    };
    let older: Vec<_> = found.segments.iter().map(|loaded| Arc::new(opened(loaded, true))).collect();
    let mut footer = Footer::new();
    last.iter().flat_map(|last| &last.rows).for_each(|row| footer.push(row, &codec.names));
    let goes_on = |last: &Loaded| {
        let least = last.end as usize + footer.len() + WORTH;
        last.capacity == segment_size && least < last.capacity as usize
    };
    let log = match last {
        Some(last) if goes_on(&last) => {
            let segment = opened(&last, false);
            segment.holed.store(false, Ordering::Relaxed);
            // Open again, before anything is written over its footer.
            let header = Header { footer: None, ..header_of(&codec, &last, now) };
            last.file.write_all_at(&header.encode(), 0).map_err(failed)?;
            Log::new(Arc::new(segment), last.end, footer, segment_size)
        }
        last => {
            let seq = last.as_ref().map_or(1, |last| last.seq.wrapping_add(1));
            let name = spare_name(seq);
            let file = Arc::new(dir.create(&name).map_err(failed)?);
            allotted += u64::from(segment_size);
            let active = Segment::begin(&codec, seq, Spare { name, file }, segment_size, now);
            let log = Log::new(Arc::new(active), SEGMENT_HEADER as u32, Footer::new(), segment_size);
            if let Some(last) = &last {
                log.segments.insert(Arc::new(opened(last, true)));
            }
            log
        }
    };
    older.into_iter().for_each(|segment| log.segments.insert(segment));
    Ok(Store {
        dir,
        lock: Mutex::new(Some(lock)),
        codec,
        index,
        log,
        fences: RwLock::new(fences),
        journal: Mutex::new(journal),
        stays: Default::default(),
        opened: now,
        coarse: clock.coarse(),
        clock,
        flush: config.flush,
        entries,
        max_size: AtomicU64::new(config.max_size),
        allotted: AtomicU64::new(allotted),
        spill: Default::default(),
        closed: Default::default(),
        damaged: AtomicU64::new(found.damaged),
        evicted: Default::default(),
        last_generation: AtomicU64::new(found.last_generation.get()),
        sweep_at: Default::default(),
        reclaiming: Mutex::default(),
        moved: Default::default(),
        accepted: Default::default(),
    })
}

fn header_of(codec: &Codec, loaded: &Loaded, now: Timestamp) -> Header {
    Header {
        seed: codec.seed,
        seq: loaded.seq,
        capacity: loaded.capacity,
        prefix: codec.prefix,
        written: now,
        footer: None,
    }
}

/// Puts a row into the index if it counts.
pub(crate) fn remember(index: &Index, segment: u32, row: &Row, now: Timestamp) {
    let state = match row.kind {
        Kind::Entry if row.namespace == OTHER => return,
        Kind::Entry => State::Live,
        Kind::Removal => State::Removed,
        Kind::Fence => return,
    };
    let mut shard = index.shard(row.hash);
    let newer = |slot: &Slot| {
        (slot.generation, slot.place.segment, slot.place.offset) > (row.generation, segment, row.offset)
    };
    if shard.get(row.hash).as_ref().is_some_and(newer) {
        return;
    }
    let slot = Slot {
        state,
        place: Place { segment, offset: row.offset, len: row.len },
        generation: row.generation,
        deadline: row.deadline,
        since: now,
        stay: 0,
        namespace: row.namespace,
        uses: 0,
    };
    shard.set(row.hash, &slot);
}

/// Drops what fences reach and gives up what is dead at `now`. Only now, as it may be what outranks an older record.
pub(crate) fn bury(index: &Index, fences: &Fences, codec: &Codec, now: Timestamp) {
    let list = fences.list();
    let all = list.iter().filter(|(scope, _)| *scope == Scope::All).map(|(_, below)| *below).max();
    let spaces: std::collections::HashMap<u16, Generation> = list
        .iter()
        .filter_map(|(scope, below)| match scope {
            Scope::Namespace(namespace) => Some((codec.names.id(namespace), *below)),
            _ => None,
        })
        .collect();
    for number in 0..SHARDS {
        let mut dead = Vec::new();
        index.retain(number, |hash, slot| {
            if slot.state != State::Live {
                return true;
            }
            if slot.deadline <= now {
                dead.push((hash, slot.place));
            }
            !(all.is_some_and(|below| slot.generation < below)
                || spaces.get(&slot.namespace).is_some_and(|below| slot.generation < *below))
        });
        for (hash, place) in dead {
            index.shard(hash).give_up(hash, place);
        }
    }
}

/// What a directory holds, oldest segment first.
pub(crate) struct Found {
    pub(crate) codec: Codec,
    pub(crate) segments: Vec<Loaded>,
    pub(crate) last_generation: Generation,
    /// Records that were damaged where a segment had to be read.
    pub(crate) damaged: u64,
    /// The latest time anything was written.
    pub(crate) latest: Timestamp,
    /// Segments that cannot be read or are out of order, and those older than them.
    pub(crate) lost: Vec<u32>,
}

/// What a segment holds.
pub(crate) struct Loaded {
    pub(crate) seq: u32,
    pub(crate) file: Arc<File>,
    pub(crate) capacity: u32,
    pub(crate) rows: Vec<Row>,
    pub(crate) fences: Vec<(Scope, Generation)>,
    /// Where the records end.
    pub(crate) end: u32,
    pub(crate) damaged: u64,
    /// Whether its footer told; else it was read.
    pub(crate) by_footer: bool,
    /// Whether its header was whole, and said that it was sealed.
    pub(crate) header: Option<bool>,
}

impl Loaded {
    /// Whether it has a name and nothing else: no file yet, or one with the header of another segment.
    fn is_unbegun(&self, header: Option<Header>) -> bool {
        self.rows.is_empty() && self.header.is_none() && (header.is_some() || self.capacity == 0)
    }
}

/// Reads what is in the segments; `own` says that the directory is ours to change.
pub(crate) fn read_dir(
    dir: &Dir,
    names: &[String],
    hasher: HashFn,
    max_size: u64,
    own: bool,
) -> io::Result<Found> {
    let mut seqs: Vec<u32> = names
        .iter()
        .filter_map(|name| match Name::of(name) {
            Name::Segment(seq) => Some(seq),
            _ => None,
        })
        .collect();
    seqs.sort_unstable_by(|a, b| b.cmp(a));
    let mut files = Vec::new();
    let mut seed = None;
    for &seq in &seqs {
        let file = dir.open_file(&segment_name(seq), own).map(Arc::new);
        let header = file.as_ref().ok().and_then(|file| {
            let mut bytes = [0; SEGMENT_HEADER];
            file.read_exact_at(&mut bytes, 0).ok()?;
            Header::decode(&bytes)
        });
        seed = seed.or(header.map(|header| header.seed));
        files.push((seq, file, header));
    }
    let seed = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
    let codec = Codec::new(seed, hasher, Arc::new(Names::default()));
    let mut found = Found {
        codec,
        segments: Vec::new(),
        last_generation: Generation::ZERO,
        damaged: 0,
        latest: Timestamp::EPOCH,
        lost: Vec::new(),
    };
    let mut size = 0;
    let mut broken = None;
    for (seq, file, header) in files {
        let gap = found.segments.last().is_some_and(|newer: &Loaded| newer.seq != seq + 1);
        if gap && broken.is_none() {
            broken = Some("a segment is missing");
        }
        if broken.is_none() {
            // The first one is the newest: it may have got its name and not yet its header.
            let loaded =
                file.and_then(|file| load(&found.codec, seq, file, header, found.segments.is_empty()));
            match loaded {
                // A kill between its name and its header: nothing was ever in it. Kept, it would stand between
                // others with the header of the segment its file was before.
                Ok(loaded) if found.segments.is_empty() && loaded.is_unbegun(header) => {
                    if own {
                        dir.remove(&segment_name(seq))?;
                    }
                    continue;
                }
                Ok(loaded) => {
                    size += u64::from(loaded.capacity);
                    if size <= max_size {
                        found.latest =
                            found.latest.max(header.map_or(Timestamp::EPOCH, |header| header.written));
                        found.damaged += loaded.damaged;
                        let rows = loaded.rows.iter().map(|row| row.generation).max();
                        found.last_generation = found.last_generation.max(rows.unwrap_or_default());
                        found.segments.push(loaded);
                        continue;
                    }
                    broken = Some("the level was made smaller");
                }
                Err(error) => {
                    tracing::warn!(%error, segment = seq, path = %dir.path.display(), "segment set aside");
                    broken = Some("a segment cannot be read");
                    if own {
                        dir.rename(&segment_name(seq), DAMAGED)?;
                    }
                    found.lost.push(seq);
                    continue;
                }
            }
        }
        let why = broken.unwrap_or_default();
        tracing::warn!(segment = seq, why, "segment dropped");
        if own {
            dir.remove(&segment_name(seq))?;
        }
        found.lost.push(seq);
    }
    found.segments.reverse();
    Ok(found)
}

/// Reads one segment.
pub(crate) fn load(
    codec: &Codec,
    seq: u32,
    file: Arc<File>,
    header: Option<Header>,
    newest: bool,
) -> io::Result<Loaded> {
    if let Some(header) = header
        && (header.seed, header.seq) != (codec.seed, seq)
        // A file that is being used again may have its new name and its old header.
        && !(newest && header.seed == codec.seed)
    {
        return Err(io::Error::other("it belongs to another directory or place"));
    }
    let header = header.filter(|header| header.seq == seq);
    let length = file.metadata()?.len();
    let capacity = header.map_or_else(|| u32::try_from(length).unwrap_or(u32::MAX), |header| header.capacity);
    let mut loaded = Loaded {
        seq,
        file,
        capacity,
        rows: Vec::new(),
        fences: Vec::new(),
        end: SEGMENT_HEADER as u32,
        damaged: 0,
        by_footer: false,
        header: header.map(|header| header.footer.is_some()),
    };
    if let Some((at, len, sum)) = header.and_then(|header| header.footer)
        && by_footer(codec, &mut loaded, at, len, sum, length).is_some()
    {
        return Ok(loaded);
    }
    let mut bytes = vec![0; usize::try_from(length.min(capacity.into())).unwrap_or(0)];
    loaded.file.read_exact_at(&mut bytes, 0)?;
    let scan = codec.scan(seq, &bytes);
    if scan.rows.is_empty() && header.is_none() && !newest && length > 0 {
        return Err(io::Error::other("neither its header nor any record is whole"));
    }
    if scan.damaged > 0 {
        tracing::warn!(segment = seq, damaged = scan.damaged, "damaged records in a segment");
    }
    let (rows, fences) = (scan.rows, scan.fences);
    Ok(Loaded { rows, fences, end: scan.end, damaged: scan.damaged, ..loaded })
}

/// Fills `loaded` from its footer, if that is whole.
fn by_footer(codec: &Codec, loaded: &mut Loaded, at: u32, len: u32, sum: u64, length: u64) -> Option<()> {
    let whole = u64::from(at) + u64::from(len) <= length && at as usize >= SEGMENT_HEADER;
    whole.then_some(())?;
    let mut bytes = vec![0; len as usize];
    loaded.file.read_exact_at(&mut bytes, at.into()).ok()?;
    (footer_sum(&bytes) == sum).then_some(())?;
    let rows = footer::rows(&bytes, &codec.names)?;
    rows.last().is_none_or(|row| row.offset + row.len <= at).then_some(())?;
    let salt = codec.salt(loaded.seq);
    let mut fences = Vec::new();
    for row in rows.iter().filter(|row| row.kind == Kind::Fence) {
        let mut record = vec![0; row.len as usize];
        loaded.file.read_exact_at(&mut record, row.offset.into()).ok()?;
        let (_, scope) = codec.record(salt, &record, 0, &mut Vec::new())?;
        fences.push((scope?, row.generation));
    }
    (loaded.rows, loaded.fences, loaded.end, loaded.by_footer) = (rows, fences, at, true);
    Some(())
}
