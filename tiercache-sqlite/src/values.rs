//! What an entry is in the database, and the files of large values.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tiercache_core::envelope::{Damage, Header};
use tiercache_core::tier::Hold;
use tiercache_core::{Entry, Generation, Key, Timestamp};

use crate::place::{Dir, random_id};
use crate::shard::{Common, Shard};

/// Bytes a row takes beside its key and its envelope: the other columns and the indexes.
pub(crate) const OVERHEAD: u64 = 120;
/// Stands for a point in time that never comes.
pub(crate) const NEVER: i64 = i64::MAX;
/// Longest stay that is told from for ever: 146 million years. With a time added it stays in range.
const LONGEST_STAY: i64 = 1 << 62;

/// Numbers are kept as SQLite's, which are signed: what is beyond stays at the top.
pub(crate) fn sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(NEVER)
}

pub(crate) fn number(sql: i64) -> u64 {
    u64::try_from(sql).unwrap_or(0)
}

pub(crate) fn generation(sql: i64) -> Generation {
    Generation::new(number(sql))
}

pub(crate) fn time(sql: i64) -> Timestamp {
    if sql == NEVER { Timestamp::NEVER } else { Timestamp::from_millis(number(sql)) }
}

/// Tells keys apart well enough to spread them and to mark removals; never to answer by.
pub(crate) fn hash(key: &Key) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key.encoded())
}

/// Which of so many shards has the key. The same for every process: the directory depends on it.
pub(crate) fn shard_of(key: &Key, shards: u64) -> usize {
    ((hash(key) >> 32) % shards) as usize
}

/// An entry as it will stand in its row.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) generation: Generation,
    pub(crate) checksum: i64,
    pub(crate) deadline: i64,
    pub(crate) stay: i64,
    pub(crate) until: i64,
    pub(crate) used: i64,
    /// Bytes that count against the limit.
    pub(crate) size: u64,
    /// Bytes of the value.
    pub(crate) length: i64,
    pub(crate) tags: Vec<(String, String)>,
    /// The envelope; of an entry in a file, one without its value, so that listings need no files.
    pub(crate) value: Vec<u8>,
    pub(crate) file: Option<Arc<NewFile>>,
}

/// Why an entry was not made ready.
pub(crate) enum Unready {
    /// It takes a file, and nobody may block here.
    Blocks,
    TooLarge,
    Full,
    Failed(io::Error),
}

impl From<io::Error> for Unready {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Self::Full,
            _ => Self::Failed(error),
        }
    }
}

impl From<Damage> for Unready {
    fn from(damage: Damage) -> Self {
        match damage {
            Damage::TooLarge => Self::TooLarge,
            other => Self::Failed(io::Error::other(other)),
        }
    }
}

impl Image {
    /// The row of `entry`. What is large goes to a file, when it `may_block`.
    pub(crate) fn new(
        shard: &Shard,
        (key, entry, hold): (&Key, &Entry, Hold),
        may_block: bool,
    ) -> Result<Self, Unready> {
        let Common { codec, inline_max, .. } = &*shard.common;
        let share = shard.common.share();
        let mut value = Vec::new();
        codec.encode(key.as_ref(), entry, &mut value)?;
        let header = Header::parse(&value)?;
        let mut size = value.len() as u64 + key.encoded().len() as u64 + OVERHEAD;
        let mut file = None;
        if value.len().min(entry.value.len()) as u64 > *inline_max {
            if !may_block {
                return Err(Unready::Blocks);
            }
            let mut head = Vec::new();
            codec.encode(key.as_ref(), &Entry { value: Default::default(), ..entry.clone() }, &mut head)?;
            size += head.len() as u64;
            if size <= share {
                file = Some(Arc::new(shard.files.write(&value)?));
            }
            value = head;
        }
        if size > share {
            return Err(Unready::TooLarge);
        }
        let stay = sql(hold.stay.as_millis()).min(LONGEST_STAY);
        let deadline = if entry.deadline.is_never() { NEVER } else { sql(entry.deadline.as_millis()) };
        Ok(Self {
            generation: header.generation,
            // What tells two entries of one generation apart.
            checksum: header.identity() as i64,
            deadline,
            stay,
            until: deadline.min(sql(hold.now.as_millis()).saturating_add(stay)),
            used: sql(hold.now.as_millis()),
            size,
            length: sql(entry.value.len() as u64),
            tags: entry.tags().into_iter().flatten().map(|(name, of)| (name.clone(), of.clone())).collect(),
            value,
            file,
        })
    }
}

/// The folder of a shard's large values.
#[derive(Debug)]
pub(crate) struct Files {
    dir: Dir,
    durable: bool,
}

impl Files {
    pub(crate) fn open(dir: &Dir, shard: usize, create: bool, durable: bool) -> io::Result<Self> {
        Ok(Self { dir: dir.inner(&format!("files-{shard}"), create)?, durable })
    }

    /// Writes a file under a name of its own; it goes again unless it is kept.
    fn write(self: &Arc<Self>, bytes: &[u8]) -> io::Result<NewFile> {
        let name = random_id();
        let unfinished = format!("{name}.tmp");
        let written = || {
            let mut file = self.dir.create(&unfinished)?;
            file.write_all(bytes)?;
            if self.durable {
                file.sync_data()?;
            }
            self.dir.rename(&unfinished, &name)?;
            if self.durable { self.dir.sync() } else { Ok(()) }
        };
        written().inspect_err(|_| {
            self.remove(&unfinished);
            self.remove(&name);
        })?;
        Ok(NewFile { files: self.clone(), name, kept: AtomicBool::new(false) })
    }

    pub(crate) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        // Names come from the database, which may be anybody's work.
        if !is_ours(name) {
            return Err(ErrorKind::NotFound.into());
        }
        let mut file = self.dir.open_file(name, false)?;
        let mut bytes = Vec::with_capacity(usize::try_from(file.metadata()?.len()).unwrap_or(0).min(1 << 30));
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn remove(&self, name: &str) {
        if !is_ours(name.strip_suffix(".tmp").unwrap_or(name)) {
            return;
        }
        match self.dir.remove(name) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(tier = crate::tier::NAME, %error, "a file could not be removed, `check` finds it");
            }
            _ => {}
        }
    }

    /// Bytes of a file, and how long ago it was written.
    pub(crate) fn look(&self, name: &str) -> io::Result<(u64, std::time::Duration)> {
        let meta = self.dir.open_file(name, false)?.metadata()?;
        Ok((meta.len(), meta.modified()?.elapsed().unwrap_or_default()))
    }

    /// The files that are ours, those that were never finished too.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = self.dir.names()?;
        names.retain(|name| is_ours(name.strip_suffix(".tmp").unwrap_or(name)));
        Ok(names)
    }
}

fn is_ours(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A file that no row names yet. Dropped without being kept it is removed.
#[derive(Debug)]
pub(crate) struct NewFile {
    files: Arc<Files>,
    pub(crate) name: String,
    kept: AtomicBool,
}

impl NewFile {
    /// One that was written before, and stays.
    pub(crate) fn written(files: &Arc<Files>, name: String) -> Self {
        Self { files: files.clone(), name, kept: AtomicBool::new(true) }
    }

    /// A row names it now.
    pub(crate) fn keep(&self) {
        self.kept.store(true, Ordering::Release);
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.kept.load(Ordering::Acquire) {
            self.files.remove(&self.name);
        }
    }
}
