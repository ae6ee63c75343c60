//! Removals that wait for other levels, in a file of their own.
//!
//! Records are appended: notes and strikes, each with its length and a checksum before it. A note is an entry's
//! envelope, sealed where entries are. The file is emptied when
//! nothing is noted any more, and written anew when most of it was struck. It is read whole when the directory is
//! opened. A record that was cut short was never answered for. One that is damaged, or sealed with a key that is not
//! known any more, may have been any note: then every level that others name is to be emptied, or all levels below RAM
//! if there are none.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use tiercache_core::envelope::Damage;
use tiercache_core::tier::{Reach, Waiting};
use tiercache_core::{Codec, Entry, Generation, Key, Level, Timestamp};
use xxhash_rust::xxh3::xxh3_64;

use crate::dir::{Dir, JOURNAL, JOURNAL_ANEW};

/// `tcjr`, and the version of the form.
const MAGIC: [u8; 8] = *b"tcjr\0\0\0\x01";
/// Length of a record, the same inverted, and a checksum.
const HEAD: usize = 16;
const NOTE: u8 = 1;
const STRIKE: u8 = 2;
/// A key is the longest part of a note.
const MOST: usize = tiercache_core::MAX_KEY_BYTES + 4096;
/// The key of the envelope that a note is in.
const NAME: &[u8] = b"journal";
/// Records that are not worth writing the file anew for.
const SLACK: usize = 1024;

/// The notes of a directory, and the file they are in.
#[derive(Debug)]
pub(crate) struct Journal {
    codec: Codec,
    notes: BTreeMap<u64, Waiting>,
    next: u64,
    file: Option<File>,
    /// Where the next record goes.
    end: u64,
    records: usize,
}

impl Journal {
    /// Reads what the directory has, and writes it anew as a whole journal would be.
    pub(crate) fn open(dir: &Dir, codec: Codec) -> io::Result<Self> {
        let mut journal = Self::read(dir, codec)?;
        if journal.notes.is_empty() {
            remove(dir, JOURNAL)?;
        } else {
            journal.write_anew(dir, true)?;
        }
        Ok(journal)
    }

    /// Reads what the directory has, to be looked at.
    pub(crate) fn read(dir: &Dir, codec: Codec) -> io::Result<Self> {
        let found = Found::read(dir)?;
        let mut journal =
            Self { codec, notes: BTreeMap::new(), next: found.next, file: None, end: 0, records: 0 };
        journal.take(found);
        Ok(journal)
    }

    /// How many notes the directory has.
    pub(crate) fn count(dir: &Dir) -> io::Result<u64> {
        Ok(Found::read(dir)?.notes.len() as u64)
    }

    pub(crate) fn notes(&self) -> &BTreeMap<u64, Waiting> {
        &self.notes
    }

    /// Adds a note; it is in the file when this returns, and on the disk with `sync`.
    pub(crate) fn note(&mut self, dir: &Dir, waiting: Waiting, sync: bool) -> io::Result<u64> {
        let number = self.next + 1;
        let record = self.record_of(number, &waiting)?;
        self.append(dir, &record, sync)?;
        self.next = number;
        self.notes.insert(number, waiting);
        Ok(number)
    }

    /// Takes notes away.
    pub(crate) fn strike(&mut self, dir: &Dir, numbers: &[u64], sync: bool) -> io::Result<()> {
        let known: Vec<u64> =
            numbers.iter().copied().filter(|number| self.notes.remove(number).is_some()).collect();
        if known.is_empty() {
            return Ok(());
        }
        if self.notes.is_empty() {
            // Should it fail, what comes next writes the file anew.
            let emptied = self.file.take().map_or(Ok(()), |file| file.set_len(0));
            (self.end, self.records) = (0, 0);
            return emptied.and_then(|()| remove(dir, JOURNAL));
        }
        if self.records > 2 * self.notes.len() + SLACK {
            return self.write_anew(dir, sync);
        }
        let records: Vec<u8> = known.into_iter().flat_map(|number| record(STRIKE, number, &[])).collect();
        self.append(dir, &records, sync)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), File::sync_data)
    }

    fn append(&mut self, dir: &Dir, records: &[u8], sync: bool) -> io::Result<()> {
        if self.file.is_none() {
            self.write_anew(dir, sync)?;
        }
        let Some(file) = &self.file else { return Ok(()) };
        let written =
            file.write_all_at(records, self.end).and_then(|()| if sync { file.sync_data() } else { Ok(()) });
        if written.is_err() {
            // Half a record must not stand before whole ones.
            self.file = None;
            return written;
        }
        self.end += records.len() as u64;
        self.records += 1;
        Ok(())
    }

    /// Puts a file in place that has the notes and nothing else.
    fn write_anew(&mut self, dir: &Dir, sync: bool) -> io::Result<()> {
        self.file = None;
        remove(dir, JOURNAL_ANEW)?;
        let mut bytes = MAGIC.to_vec();
        for (number, waiting) in &self.notes {
            bytes.extend(self.record_of(*number, waiting)?);
        }
        let file = dir.create(JOURNAL_ANEW)?;
        file.write_all_at(&bytes, 0)?;
        if sync {
            file.sync_data()?;
        }
        dir.rename(JOURNAL_ANEW, JOURNAL)?;
        if sync {
            dir.sync()?;
        }
        (self.end, self.records) = (bytes.len() as u64, self.notes.len());
        self.file = Some(file);
        Ok(())
    }

    fn record_of(&self, number: u64, waiting: &Waiting) -> io::Result<Vec<u8>> {
        let entry = Entry::new(waiting.encode(), waiting.below, Timestamp::EPOCH);
        let mut envelope = Vec::new();
        let key = Key::new("", NAME).map_err(io::Error::other)?;
        self.codec.encode(key.as_ref(), &entry, &mut envelope).map_err(io::Error::other)?;
        Ok(record(NOTE, number, &envelope))
    }

    fn waiting(&self, envelope: Vec<u8>) -> Result<Waiting, Damage> {
        let (key, entry) = self.codec.decode(&envelope.into())?;
        let waiting = Waiting::decode(&entry.value).filter(|_| key.bytes() == NAME);
        waiting.ok_or(Damage::OtherKey)
    }

    /// Takes over what was found.
    fn take(&mut self, found: Found) {
        let mut damaged = found.damaged;
        for (number, envelope) in found.notes {
            match self.waiting(envelope) {
                Ok(waiting) => drop(self.notes.insert(number, waiting)),
                Err(damage) => {
                    tracing::error!(number, %damage, "a note of the journal cannot be read");
                    damaged = true;
                }
            }
        }
        if !damaged {
            return;
        }
        tracing::error!("the journal is damaged: the levels that removals wait for are emptied");
        let mut named: Vec<Level> = self.notes.values().map(|waiting| waiting.level).collect();
        if named.is_empty() {
            named = vec![Level::Cold, Level::Dry];
        }
        named.sort_unstable();
        named.dedup();
        for level in named {
            self.next += 1;
            let waiting = Waiting { level, reach: Reach::Level, below: Generation::ZERO };
            self.notes.insert(self.next, waiting);
        }
    }
}

/// What is in the file.
#[derive(Debug, Default)]
struct Found {
    /// The envelopes of notes that were not struck.
    notes: BTreeMap<u64, Vec<u8>>,
    next: u64,
    damaged: bool,
}

impl Found {
    fn read(dir: &Dir) -> io::Result<Self> {
        let mut file = match dir.open_file(JOURNAL, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            opened => opened?,
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Self::parse(&bytes))
    }

    fn parse(bytes: &[u8]) -> Self {
        let damaged = !bytes.starts_with(&MAGIC) && !MAGIC.starts_with(bytes);
        let mut found = Self { damaged, ..Self::default() };
        let mut rest = bytes.get(MAGIC.len()..).unwrap_or_default();
        // What a power cut leaves behind the last whole record is cut short, or nothing but zeros.
        while rest.iter().any(|&byte| byte != 0) {
            let Some((head, behind)) = rest.split_first_chunk::<HEAD>() else { break };
            let number = |from: usize| {
                head[from..from + 4].iter().rev().fold(0, |sum, &byte| sum << 8 | u32::from(byte))
            };
            let length = number(0);
            // Of a record that was cut short, what is there is right.
            if length != !number(4) || length as usize > MOST {
                found.damaged = true;
                break;
            }
            let Some((body, behind)) = behind.split_at_checked(length as usize) else { break };
            rest = behind;
            found.damaged |= xxh3_64(body).to_le_bytes() != head[8..] || found.apply(body).is_none();
        }
        found
    }

    fn apply(&mut self, body: &[u8]) -> Option<()> {
        let (kind, rest) = body.split_first()?;
        let (number, rest) = rest.split_first_chunk()?;
        let number = u64::from_le_bytes(*number);
        match *kind {
            NOTE => {
                self.next = self.next.max(number);
                self.notes.insert(number, rest.to_vec());
            }
            STRIKE if rest.is_empty() => drop(self.notes.remove(&number)),
            _ => return None,
        }
        Some(())
    }
}

fn record(kind: u8, number: u64, rest: &[u8]) -> Vec<u8> {
    let body = [&[kind], number.to_le_bytes().as_slice(), rest].concat();
    // A note is hardly longer than a key.
    let length = body.len() as u32;
    let head = [length.to_le_bytes(), (!length).to_le_bytes()].concat();
    [&head, xxh3_64(&body).to_le_bytes().as_slice(), &body].concat()
}

fn remove(dir: &Dir, name: &str) -> io::Result<()> {
    match dir.remove(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tiercache_core::Key;

    fn waiting(level: Level, key: &str) -> Waiting {
        let reach = Reach::Key(Key::new("ns", key.as_bytes()).unwrap());
        Waiting { level, reach, below: Generation::new(7) }
    }

    fn dir() -> (tempfile::TempDir, Dir) {
        let folder = tempfile::tempdir().unwrap();
        let dir = Dir::open(&folder.path().join("level"), true).unwrap();
        (folder, dir)
    }

    fn open(dir: &Dir) -> Journal {
        Journal::open(dir, Codec::default()).unwrap()
    }

    fn parse(bytes: &[u8]) -> Journal {
        let (_folder, dir) = dir();
        let mut journal = open(&dir);
        journal.take(Found::parse(bytes));
        journal
    }

    fn bytes(dir: &Dir) -> Vec<u8> {
        let mut bytes = Vec::new();
        dir.open_file(JOURNAL, false).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_journal_cut_anywhere_has_the_notes_before_the_cut() {
        let (_folder, dir) = dir();
        let mut journal = open(&dir);
        let mut ends = vec![0, MAGIC.len()];
        for name in ["a", "b", "c"] {
            journal.note(&dir, waiting(Level::Dry, name), false).unwrap();
            ends.push(bytes(&dir).len());
        }
        let whole = bytes(&dir);
        for cut in 0..whole.len() {
            let read = parse(&whole[..cut]);
            let notes = ends.iter().filter(|end| **end <= cut).count().saturating_sub(2);
            assert_eq!(read.notes.len(), notes, "cut at {cut}");
            assert!(read.notes.values().all(|waiting| waiting.reach != Reach::Level));
            let padded = [&whole[..ends[notes + 1]], &[0; 100]].concat();
            assert_eq!(parse(&padded).notes, read.notes, "zeros behind {notes} notes");
        }
    }

    #[test]
    fn a_flipped_byte_in_a_note_empties_the_levels_that_are_named() {
        let (_folder, dir) = dir();
        let mut journal = open(&dir);
        for name in ["a", "b", "c"] {
            journal.note(&dir, waiting(Level::Dry, name), false).unwrap();
        }
        let whole = bytes(&dir);
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x41;
            let read = parse(&flipped);
            let emptied = |level| {
                read.notes.values().any(|waiting| waiting.level == level && waiting.reach == Reach::Level)
            };
            let lost = 3 > read.notes.values().filter(|waiting| waiting.reach != Reach::Level).count();
            assert!(!lost || emptied(Level::Dry), "byte {at}");
        }
    }

    #[test]
    fn a_journal_of_which_nothing_is_left_leaves_no_file_and_one_of_little_is_small() {
        let (_folder, dir) = dir();
        let mut journal = open(&dir);
        let kept = journal.note(&dir, waiting(Level::Cold, "kept"), false).unwrap();
        for round in 0..4 * SLACK {
            let number = journal.note(&dir, waiting(Level::Dry, &round.to_string()), false).unwrap();
            journal.strike(&dir, &[number], false).unwrap();
        }
        assert!(bytes(&dir).len() < 200 * SLACK, "{} bytes for one note", bytes(&dir).len());
        assert_eq!(open(&dir).notes, journal.notes);
        let mut journal = open(&dir);
        journal.strike(&dir, &[kept], false).unwrap();
        assert!(!dir.names().unwrap().iter().any(|name| name == JOURNAL));
        let again = journal.note(&dir, waiting(Level::Cold, "again"), true).unwrap();
        assert!(again > kept);
        assert_eq!(open(&dir).notes, journal.notes);
    }
}
