//! Looking at a directory from outside: what is in it, and whether all of it is whole.
//!
//! Works beside the processes that have the level open; a repair, too, goes through transactions like theirs. Files
//! are listed before rows are read, so that what is put meanwhile is not taken for something nobody needs.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};
use tiercache_core::{Error, Generation, Key, Result, SystemClock, envelope};

use crate::SqliteTier;
use crate::config::{SqliteConfig, Synchronous};
use crate::open::{Setup, Trouble, check_library, look_into};
use crate::place::{Dir, Membership};
use crate::room::key_of;
use crate::step::Row;
use crate::tier::NAME;
use crate::values::{Files, OVERHEAD, generation, number, sql};

/// How old a file that no row names must be while others have the level open: theirs may be about to be named.
const YOUNG: Duration = Duration::from_secs(60);
/// Rows read at a time.
const PAGE: i64 = 500;

/// What is in a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Whether a process has the level open now: the figures are then those of a moment.
    pub in_use: bool,
    /// Databases.
    pub shards: u64,
    /// Bytes of everything of the level's in the directory.
    pub file_bytes: u64,
    /// Entries, dead ones that were not dropped yet too.
    pub entries: u64,
    /// Bytes that count against the limit.
    pub bytes: u64,
    /// Entries in files of their own.
    pub files: u64,
    /// Removals remembered.
    pub removals: u64,
    /// Fences remembered.
    pub fences: u64,
    /// Counters.
    pub counters: u64,
    /// The highest generation met.
    pub last_generation: Generation,
    /// Databases that are damaged.
    pub broken: u64,
    /// Entries that are not whole.
    pub damaged: u64,
    /// Entries whose file is gone.
    pub dangling: u64,
    /// Files that no entry names.
    pub orphaned: u64,
    /// Entries whose size is noted wrongly.
    pub wrong_sizes: u64,
    /// Shards whose totals or tags do not fit their entries.
    pub drifted: u64,
    /// Databases that were set aside.
    pub leftovers: u64,
    /// Parts of transactions over several shards that are kept until they are known to be done: of a process that was
    /// killed, until somebody writes to the level or opens it.
    pub unfinished: u64,
    /// Whether what was found was repaired.
    pub repaired: bool,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        let Self { broken, damaged, dangling, orphaned, wrong_sizes, drifted, leftovers, .. } = self;
        broken + damaged + dangling + orphaned + wrong_sizes + drifted + leftovers == 0
    }
}

impl SqliteTier {
    /// Tells what is in a directory, from what each database has noted. Blocks.
    ///
    /// # Errors
    /// [`Error::Refused`] when it is not a directory of this user, [`Error::Unavailable`] when the disk fails.
    pub fn inspect(path: &Path) -> Result<Report> {
        Check::of(path, false)?.run(None)
    }

    /// Reads and verifies every entry, telling `progress` the bytes read and the bytes there are. With `repair` it drops
    /// what is not whole and what nobody needs, sets totals right, sees transactions through that a process left
    /// unfinished, and removes databases that are damaged, the latter only while no process has the level open. Blocks.
    ///
    /// # Errors
    /// As for [`SqliteTier::inspect`], and [`Error::Refused`] when a database is damaged and in use.
    pub fn check(path: &Path, repair: bool, progress: &mut dyn FnMut(u64, u64)) -> Result<Report> {
        let mut report = Check::of(path, repair)?.run(Some(progress))?;
        if repair && report.unfinished > 0 {
            see_through(path)?;
            report.repaired = Self::inspect(path)?.unfinished == 0;
        }
        Ok(report)
    }
}

/// Opens the level, which does what was decided, with room for all there is: what is too much is for others to say.
fn see_through(path: &Path) -> Result<()> {
    let (path, max_size) = (Some(path.to_owned()), i64::MAX as u64);
    let config = SqliteConfig { path, max_size, ..SqliteConfig::default() };
    SqliteTier::open_blocking(config, SystemClock::start())?.close_blocking()
}

struct Check {
    dir: Dir,
    repair: bool,
    /// Nobody else has the level open, and nobody can open it meanwhile.
    alone: bool,
    /// What this repair has set aside: counted as broken.
    aside: Vec<String>,
    /// Held for as long as the check takes.
    _members: Option<Membership>,
    report: Report,
}

impl Check {
    fn of(path: &Path, repair: bool) -> Result<Self> {
        check_library()?;
        let dir = Dir::open(path, false)?;
        let mut check =
            Self { dir, repair, alone: false, aside: Vec::new(), _members: None, report: Report::default() };
        if check.dir.shards()?.is_none() {
            return Ok(check);
        }
        let opening = check.dir.begin_opening()?;
        let members = check.dir.join()?;
        check.alone = members.is_alone();
        check.report.in_use = !check.alone;
        if !(repair && check.alone) {
            members.share()?;
        }
        check._members = Some(members);
        drop(opening);
        Ok(check)
    }

    fn run(mut self, mut progress: Option<&mut dyn FnMut(u64, u64)>) -> Result<Report> {
        let shards = self.dir.shards()?.unwrap_or(0);
        self.report.shards = u64::from(shards);
        let mut opened = Vec::new();
        for shard in 0..shards as usize {
            let files = match Files::open(&self.dir, shard, false, false) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                files => Some(files.map_err(failed)?),
            };
            // First of all, see above.
            let names = files.as_ref().map_or(Ok(Vec::new()), Files::names).map_err(failed)?;
            opened.push((self.database(shard, progress.is_some())?, files, names));
        }
        // Before entries are read: what is done meanwhile is then found there.
        let mut owed = HashSet::new();
        for (connection, ..) in &opened {
            if let Some(connection) = connection {
                owed.extend(self.owed(connection).map_err(unreadable)?);
            }
        }
        let (mut done, mut total) = (0u64, 0u64);
        for (connection, ..) in &opened {
            if let Some(connection) = connection {
                total += self.count(connection).map_err(unreadable)?;
            }
        }
        for (connection, files, names) in opened {
            let mut named = HashSet::new();
            if let (Some(connection), Some(progress)) = (&connection, progress.as_deref_mut()) {
                let mut advance = |bytes: u64| {
                    done = (done + bytes).min(total);
                    progress(done, total);
                };
                named = self.verify(connection, files.as_ref(), &mut advance).map_err(unreadable)?;
                self.tally(connection).map_err(unreadable)?;
            }
            let Some(files) = files else { continue };
            for name in names {
                let Ok((bytes, age)) = files.look(&name) else { continue };
                self.report.file_bytes += bytes;
                if progress.is_some()
                    && !named.contains(&name)
                    && !owed.contains(&name)
                    && (self.alone || age >= YOUNG)
                {
                    self.report.orphaned += 1;
                    if self.repair {
                        files.remove(&name);
                    }
                }
            }
        }
        if let Some(progress) = progress {
            progress(total, total);
        }
        self.leftovers().map_err(failed)?;
        self.report.repaired = self.repair && !self.report.is_clean();
        Ok(self.report)
    }

    /// The database of a shard, if there is one that can be read.
    fn database(&mut self, shard: usize, thoroughly: bool) -> Result<Option<Connection>> {
        let path = self.dir.database(shard);
        // One that was never finished has nothing in it.
        if path.metadata().map_or(true, |meta| meta.len() == 0) {
            return Ok(None);
        }
        let setup = Setup { patience: Duration::from_secs(5), synchronous: Synchronous::Normal };
        let reason = match look_into(&path, setup) {
            Ok(connection) => {
                if !thoroughly {
                    return Ok(Some(connection));
                }
                let verdict = |connection: &Connection| -> rusqlite::Result<String> {
                    connection.query_row("PRAGMA integrity_check(1)", (), |row| row.get(0))
                };
                let mut found = verdict(&connection).unwrap_or_else(|error| error.to_string());
                if found != "ok" && self.repair && connection.execute_batch("REINDEX").is_ok() {
                    // An index that misses rows is made anew from them.
                    self.report.broken += 1;
                    found = verdict(&connection).unwrap_or_else(|error| error.to_string());
                    if found == "ok" {
                        return Ok(Some(connection));
                    }
                    self.report.broken -= 1;
                }
                if found == "ok" {
                    return Ok(Some(connection));
                }
                found
            }
            Err(Trouble::Damage(reason)) => reason,
            Err(Trouble::Other(error)) => return Err(error),
        };
        self.report.broken += 1;
        tracing::warn!(tier = NAME, path = %path.display(), %reason, "damaged database");
        if self.repair {
            if !self.alone {
                let why = "is damaged, and a process has it open: stop that first";
                return Err(Error::Refused(format!("{} {why}", path.display())));
            }
            // Made anew when the level is opened next.
            let aside = self.dir.set_aside(shard).map_err(failed)?;
            tracing::warn!(tier = NAME, %aside, "damaged database set aside, to be removed");
            self.dir.clear_suspicion(shard);
            self.aside.push(aside);
        }
        Ok(None)
    }

    /// Adds what the shard has noted; returns the bytes of its entries.
    fn count(&mut self, connection: &Connection) -> rusqlite::Result<u64> {
        let one = |text: &str| connection.query_row(text, (), |row| row.get::<_, i64>(0)).map(number);
        let bytes = one("SELECT bytes FROM state WHERE id = 1")?;
        let report = &mut self.report;
        report.bytes += bytes;
        report.entries += one("SELECT entries FROM state WHERE id = 1")?;
        report.removals += one("SELECT count(*) FROM mark")?;
        report.fences += one("SELECT count(*) FROM fence")?;
        report.counters += one("SELECT count(*) FROM counter")?;
        let newest = generation(sql(one("SELECT generation FROM state WHERE id = 1")?));
        report.last_generation = report.last_generation.max(newest);
        Ok(bytes)
    }

    /// Counts what the shard keeps for others. Returns the files that names.
    fn owed(&mut self, connection: &Connection) -> rusqlite::Result<Vec<String>> {
        let count = "SELECT count(*) FROM (SELECT DISTINCT shard, number FROM redo)";
        self.report.unfinished += connection.query_row(count, (), |row| row.get(0)).map(number)?;
        let mut files = connection.prepare("SELECT file FROM redo WHERE file IS NOT NULL")?;
        files.query_map((), |row| row.get(0))?.collect()
    }

    /// Reads every entry. Returns the files they name.
    fn verify(
        &mut self,
        connection: &Connection,
        files: Option<&Files>,
        advance: &mut dyn FnMut(u64),
    ) -> rusqlite::Result<HashSet<String>> {
        let mut named = HashSet::new();
        let mut after = i64::MIN;
        loop {
            let page = rows(connection, "id > ?1", after)?;
            let Some(last) = page.last() else { return Ok(named) };
            after = last.row.id;
            for found in page {
                advance(number(found.row.size));
                self.report.files += u64::from(found.row.file.is_some());
                let mut wrong = found.judge(files);
                if wrong.is_some() {
                    // It may have been replaced while it was read.
                    wrong = match rows(connection, "id = ?1", found.row.id)?.first() {
                        Some(now) => now.judge(files),
                        None => None,
                    };
                }
                let gone = matches!(wrong, Some(Wrong::Damaged | Wrong::Dangling));
                if !gone {
                    named.extend(found.row.file.clone());
                }
                let Some(wrong) = wrong else { continue };
                match wrong {
                    Wrong::Damaged => self.report.damaged += 1,
                    Wrong::Dangling => self.report.dangling += 1,
                    Wrong::Size(_) => self.report.wrong_sizes += 1,
                }
                if self.repair {
                    found.repair(connection, &wrong)?;
                    // The file of what is dropped is nobody's now.
                    if let (true, Some(files), Some(name)) = (gone, files, &found.row.file) {
                        files.remove(name);
                    }
                }
            }
        }
    }

    /// Whether totals and tags fit the entries.
    fn tally(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let fits: bool = connection.query_row(
            "SELECT entries = (SELECT count(*) FROM entry)
                AND bytes = (SELECT coalesce(sum(size), 0) FROM entry)
                AND NOT EXISTS (SELECT 1 FROM tag WHERE entry NOT IN (SELECT id FROM entry))
             FROM state WHERE id = 1",
            (),
            |row| row.get(0),
        )?;
        if fits {
            return Ok(());
        }
        self.report.drifted += 1;
        if self.repair {
            correct(connection)?;
        }
        Ok(())
    }

    /// Databases that were set aside; what else is in the directory is somebody else's.
    fn leftovers(&mut self) -> io::Result<()> {
        for name in self.dir.names()? {
            let Some(rest) = name.strip_prefix("shard-") else { continue };
            let bytes = self.dir.open_file(&name, false).and_then(|file| file.metadata());
            self.report.file_bytes += bytes.map_or(0, |meta| meta.len());
            let Some((_, aside)) = rest.split_once(".db.damaged-") else { continue };
            let counted = aside.contains('-') || self.aside.contains(&name);
            self.report.leftovers += u64::from(!counted);
            if self.repair {
                self.dir.remove(&name)?;
            }
        }
        Ok(())
    }
}

/// A row as it was read; nothing of it is trusted.
struct Found {
    row: Row,
    key: Option<Key>,
    value: Vec<u8>,
}

enum Wrong {
    Damaged,
    Dangling,
    /// What it should be.
    Size(i64),
}

impl Found {
    fn judge(&self, files: Option<&Files>) -> Option<Wrong> {
        let Some(key) = &self.key else { return Some(Wrong::Damaged) };
        let is_whole = |bytes: &[u8]| {
            envelope::verify(bytes).is_ok_and(|header| header.generation == self.row.generation)
        };
        let mut size = self.value.len() as u64 + key.encoded().len() as u64 + OVERHEAD;
        if !is_whole(&self.value) {
            return Some(Wrong::Damaged);
        }
        if let Some(name) = &self.row.file {
            match files.map(|files| files.read(name)) {
                Some(Ok(bytes)) if is_whole(&bytes) => size += bytes.len() as u64,
                Some(Ok(_)) => return Some(Wrong::Damaged),
                Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => return Some(Wrong::Damaged),
                _ => return Some(Wrong::Dangling),
            }
        }
        (sql(size) != self.row.size).then_some(Wrong::Size(sql(size)))
    }

    /// Drops the row or sets it right, unless it was replaced meanwhile; totals follow.
    fn repair(&self, connection: &Connection, wrong: &Wrong) -> rusqlite::Result<()> {
        let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
        let same = (self.row.id, sql(self.row.generation.get()), &self.row.file);
        let (entries, bytes) = match wrong {
            Wrong::Size(size) => {
                let set = "UPDATE entry SET size = ?4 WHERE id = ?1 AND generation = ?2 AND file IS ?3";
                let set = transaction.execute(set, (same.0, same.1, same.2, size))?;
                (0, if set > 0 { size - self.row.size } else { 0 })
            }
            Wrong::Damaged | Wrong::Dangling => {
                let gone = transaction
                    .execute("DELETE FROM entry WHERE id = ?1 AND generation = ?2 AND file IS ?3", same)?;
                if gone > 0 {
                    transaction.execute("DELETE FROM tag WHERE entry = ?1", [self.row.id])?;
                }
                if gone > 0 { (-1, -self.row.size) } else { (0, 0) }
            }
        };
        transaction.execute(
            "UPDATE state SET entries = entries + ?1, bytes = bytes + ?2 WHERE id = 1",
            (entries, bytes),
        )?;
        transaction.commit()
    }
}

fn rows(connection: &Connection, which: &str, id: i64) -> rusqlite::Result<Vec<Found>> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT id, generation, checksum, size, tags, file, used, namespace, key, value FROM entry
         WHERE {which} ORDER BY id LIMIT {PAGE}"
    ))?;
    let rows = statement.query_map([id], |row| {
        Ok(Found { row: Row::of(row)?, key: key_of(row, 7).ok(), value: row.get(9)? })
    })?;
    rows.collect()
}

/// Makes totals and tags what the entries say.
fn correct(connection: &Connection) -> rusqlite::Result<()> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    transaction.execute("DELETE FROM tag WHERE entry NOT IN (SELECT id FROM entry)", ())?;
    transaction.execute(
        "UPDATE state SET entries = (SELECT count(*) FROM entry),
         bytes = (SELECT coalesce(sum(size), 0) FROM entry) WHERE id = 1",
        (),
    )?;
    let newest: Option<i64> = transaction
        .query_row("SELECT max(generation) FROM entry", (), |row| row.get(0))
        .optional()?
        .flatten();
    transaction
        .execute("UPDATE state SET generation = max(generation, ?1) WHERE id = 1", [newest.unwrap_or(0)])?;
    transaction.commit()
}

fn failed(error: io::Error) -> Error {
    Error::unavailable(NAME, "check", error)
}

fn unreadable(error: rusqlite::Error) -> Error {
    Error::unavailable(NAME, "check", error)
}
