//! What a transaction over several shards leaves in one of them until the others have their part of it.
//!
//! A shard that may lack a part has a file `shard-N.redo`, made under its write lock before the transaction is decided.
//! Whoever takes that lock next, in any process, and finds the file reads what the shards before it have committed, does
//! what is not done yet, and removes the file when there was nothing. So nothing is ever written to a shard, nor read in
//! a transaction, before what was decided earlier. The rows go once every shard concerned has noted that it is done.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};
use tiercache_core::tier::Put;
use tiercache_core::{Generation, Key};

use crate::open::is_damage;
use crate::room::key_of;
use crate::shard::{Shard, lock};
use crate::step::Step;
use crate::tier::NAME;
use crate::values::{Image, NewFile, generation, number, sql};

/// One change of a transaction.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Put(Key, Arc<Image>),
    Remove(Key, Generation),
}

const WRITE: &str = "
    INSERT INTO redo (number, shard, identity, place, namespace, key, generation, checksum, deadline, stay, until, used,
        size, length, tags, file, value)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)";

const READ: &str = "
    SELECT number, generation, checksum, deadline, stay, until, used, namespace, key, size, length, tags, file, value
    FROM redo WHERE shard = ?1 AND identity = ?2 AND number > ?3 ORDER BY number, place";

impl Step<'_> {
    /// Keeps what another shard is to do.
    pub(crate) fn write_redo(&self, number: i64, of: &Step<'_>, changes: &[Change]) -> rusqlite::Result<()> {
        let (shard, identity) = (sql(of.shard.number as u64), identity(of.connection)?);
        let mut write = self.connection.prepare_cached(WRITE)?;
        for (place, change) in changes.iter().enumerate() {
            let place = sql(place as u64);
            match change {
                Change::Put(key, image) => write.execute(params![
                    number,
                    shard,
                    identity,
                    place,
                    key.namespace(),
                    key.bytes(),
                    sql(image.generation.get()),
                    image.checksum,
                    image.deadline,
                    image.stay,
                    image.until,
                    image.used,
                    sql(image.size),
                    image.length,
                    write_tags(&image.tags),
                    image.file.as_ref().map(|file| &file.name),
                    image.value,
                ])?,
                Change::Remove(key, below) => write.execute(params![
                    number,
                    shard,
                    identity,
                    place,
                    key.namespace(),
                    key.bytes(),
                    sql(below.get()),
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    None::<Vec<u8>>,
                    None::<String>,
                    None::<Vec<u8>>,
                ])?,
            };
        }
        Ok(())
    }

    /// The last number this shard keeps something under.
    pub(crate) fn last_redo(&self) -> rusqlite::Result<i64> {
        self.connection.query_row("SELECT coalesce(max(number), 0) FROM redo", (), |row| row.get(0))
    }

    /// The last of another shard's numbers that is done here.
    pub(crate) fn done_of(&self, origin: usize) -> rusqlite::Result<i64> {
        done_of(self.connection, origin)
    }

    /// Notes that everything up to that number of another shard's is done.
    pub(crate) fn note_done_of(&self, origin: usize, number: i64) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "INSERT INTO done (origin, number) VALUES (?1, ?2)
                 ON CONFLICT DO UPDATE SET number = max(number, excluded.number)",
            )?
            .execute((sql(origin as u64), number))
            .map(drop)
    }

    /// Does what was decided before and is not done here yet. The first thing in a transaction.
    pub(crate) fn see_through(&mut self) -> rusqlite::Result<()> {
        let shard = self.shard;
        if !shard.common.dir.is_owed(shard.number) {
            return Ok(());
        }
        let (mut nothing, own) = (true, identity(self.connection)?);
        for origin in 0..shard.number {
            let done = self.done_of(origin)?;
            let found = match beside(shard, origin, |connection| read(connection, (shard, own), done)) {
                Ok(found) => found,
                Err(error) if is_damage(&error) => {
                    // It is set aside when the level is opened next, with what it keeps.
                    tracing::error!(tier = NAME, shard = origin, %error, "what it owes to others cannot be read");
                    shard.common.dir.suspect(origin);
                    nothing = false;
                    continue;
                }
                Err(error) => return Err(error),
            };
            for (number, change) in found {
                nothing = false;
                change.map_or(Ok(()), |change| self.redo(&change))?;
                self.note_done_of(origin, number)?;
            }
        }
        if nothing {
            // Whoever makes it again has the lock that is held here.
            shard.common.dir.forget_owed(shard.number);
        }
        Ok(())
    }

    fn redo(&mut self, change: &Change) -> rusqlite::Result<()> {
        match change {
            Change::Put(key, image) => {
                if self.put(key, image)? == Put::Superseded {
                    self.stale.extend(image.file.iter().map(|file| file.name.clone()));
                }
            }
            Change::Remove(key, below) => drop(self.remove(key, *below)?),
        }
        Ok(())
    }

    /// Drops what this shard keeps for others and they have done.
    pub(crate) fn strike_redo(&mut self) -> rusqlite::Result<()> {
        let mut kept = self.connection.prepare_cached("SELECT DISTINCT shard FROM redo")?;
        let kept: Vec<i64> = kept.query_map((), |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        for other in kept {
            let origin = self.shard.number;
            let (identity, done) = beside(self.shard, number(other) as usize, |connection| {
                Ok((identity(connection)?, done_of(connection, origin)?))
            })?;
            // A database that was made anew has lost more than this, and must not have old values.
            self.connection
                .prepare_cached("DELETE FROM redo WHERE shard = ?1 AND (number <= ?2 OR identity <> ?3)")?
                .execute((other, done, identity))?;
        }
        Ok(())
    }
}

/// Whether the shard keeps anything for others.
pub(crate) fn keeps_any(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT EXISTS (SELECT 1 FROM redo)", (), |row| row.get(0))
}

/// Tells a database from one that was made in its place.
fn identity(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("SELECT identity FROM state WHERE id = 1")?.query_row((), |row| row.get(0))
}

fn done_of(connection: &Connection, origin: usize) -> rusqlite::Result<i64> {
    let done = connection
        .prepare_cached("SELECT number FROM done WHERE origin = ?1")?
        .query_row([sql(origin as u64)], |row| row.get(0))
        .optional()?;
    Ok(done.unwrap_or(0))
}

/// Reads another shard's database, as it was last committed.
fn beside<T>(
    shard: &Shard,
    other: usize,
    read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let mut beside = lock(&shard.beside);
    let connection = match beside.remove(&other) {
        Some(connection) => connection,
        None => shard.reader_of(other)?,
    };
    // One that failed is opened anew.
    let answer = read(&connection)?;
    beside.insert(other, connection);
    Ok(answer)
}

/// Connections to other shards, by number.
pub(crate) type Beside = BTreeMap<usize, Connection>;

/// The changes that are not done yet, in order; None in the place of one that makes no sense.
fn read(
    connection: &Connection,
    (shard, identity): (&Shard, i64),
    done: i64,
) -> rusqlite::Result<Vec<(i64, Option<Change>)>> {
    let mut statement = connection.prepare_cached(READ)?;
    let mut rows = statement.query((sql(shard.number as u64), identity, done))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push((row.get(0)?, change(row, shard)?));
    }
    Ok(found)
}

fn change(row: &rusqlite::Row<'_>, shard: &Shard) -> rusqlite::Result<Option<Change>> {
    let generation = generation(row.get(1)?);
    let Ok(key) = key_of(row, 7) else {
        tracing::error!(tier = NAME, shard = shard.number, "the key of an entry to be written is damaged");
        return Ok(None);
    };
    let Some(value) = row.get(13)? else { return Ok(Some(Change::Remove(key, generation))) };
    let Some(tags) = read_tags(&row.get::<_, Vec<u8>>(11)?) else {
        // A tag must not miss it: it is better gone.
        tracing::error!(tier = NAME, shard = shard.number, "the tags of an entry to be written are damaged");
        return Ok(Some(Change::Remove(key, generation)));
    };
    let image = Image {
        generation,
        checksum: row.get(2)?,
        deadline: row.get(3)?,
        stay: row.get(4)?,
        until: row.get(5)?,
        used: row.get(6)?,
        size: number(row.get(9)?),
        length: row.get(10)?,
        tags,
        value,
        file: row.get::<_, Option<String>>(12)?.map(|name| Arc::new(NewFile::written(&shard.files, name))),
    };
    Ok(Some(Change::Put(key, Arc::new(image))))
}

/// Each text after its length in four bytes.
fn write_tags(tags: &[(String, String)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for text in tags.iter().flat_map(|(name, value)| [name, value]) {
        bytes.extend((text.len() as u32).to_be_bytes());
        bytes.extend(text.as_bytes());
    }
    bytes
}

fn read_tags(mut bytes: &[u8]) -> Option<Vec<(String, String)>> {
    let mut text = || {
        let (length, rest) = bytes.split_first_chunk()?;
        let (text, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        bytes = rest;
        Some(std::str::from_utf8(text).ok()?.to_owned())
    };
    let mut tags = Vec::new();
    while let Some(name) = text() {
        tags.push((name, text()?));
    }
    bytes.is_empty().then_some(tags)
}
