//! Making room, and what else the writer does beside calls.

use rusqlite::Connection;
use tiercache_core::tier::{Cause, Left, Scope};
use tiercache_core::{Entry, Key};

use crate::fences::Purge;
use crate::read::{Stored, decode};
use crate::step::{Row, Step};
use crate::values::{number, sql, time};

/// Rows looked at by one step of a purge.
pub(crate) const PURGED: usize = 500;
/// Rows given up in one transaction: more than its calls can have brought, so that the limit holds.
const EVICTED: usize = 4_096;
/// Rows looked for at a time.
const OLDEST: usize = 32;
/// How long fences are kept after nothing is left of what they hit.
const FENCES_KEPT: i64 = 24 * 3_600_000;
/// The most of them, per shard.
const MAX_FENCES: i64 = 100_000;

const COLUMNS: &str = "id, generation, checksum, size, tags, file, used, namespace, key, deadline";

impl Step<'_> {
    /// Gives up what was used longest ago until the shard is within its share.
    pub(crate) fn make_room(&mut self) -> rusqlite::Result<()> {
        let share = self.shard.common.share();
        if self.bytes() <= share {
            return Ok(());
        }
        // What was read a moment ago must not count as old.
        self.write_touched()?;
        let mut left = EVICTED;
        while self.bytes() > share && left > 0 {
            let oldest =
                self.rows(&format!("SELECT {COLUMNS} FROM entry ORDER BY used LIMIT {OLDEST}"), ())?;
            if oldest.is_empty() {
                // The count of bytes has drifted: `check` puts it right.
                return Ok(());
            }
            for (row, key, deadline) in oldest {
                if self.bytes() <= share {
                    break;
                }
                self.hand_over(&row, &key, deadline)?;
                self.forget(&key, &row)?;
                self.tally.evicted += 1;
                left = left.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// Gives the entry to the level's way down, if it lives.
    fn hand_over(&mut self, row: &Row, key: &Key, deadline: i64) -> rusqlite::Result<()> {
        let shard = self.shard;
        let Some(spill) = shard.common.spill.get() else { return Ok(()) };
        if time(deadline) <= time(self.now) {
            return Ok(());
        }
        let value = self
            .connection
            .prepare_cached("SELECT value FROM entry WHERE id = ?1")?
            .query_row([row.id], |row| row.get(0))?;
        let stored = Stored { row: row.clone(), value };
        if let Ok(entry) = decode(shard, key, stored)
            && !self.covers(key, entry.generation, entry.tags())
        {
            // The manager counted the uses itself.
            spill.spill(key.clone(), entry, Left { cause: Cause::Evicted, uses: 0 });
        }
        Ok(())
    }

    /// Drops or hands over rows that were found due, as far as nothing became of them meanwhile. Returns how many
    /// were dropped and handed over.
    pub(crate) fn take_due(&mut self, due: &[Due]) -> rusqlite::Result<(u64, u64)> {
        self.write_touched()?;
        let (mut dropped, mut spilled) = (0, 0);
        for due in due {
            let same = self
                .connection
                .prepare_cached("SELECT 1 FROM entry WHERE id = ?1 AND generation = ?2 AND until = ?3")?
                .exists((due.row.id, sql(due.row.generation.get()), due.until))?;
            if !same {
                continue;
            }
            match &due.entry {
                Some(entry) => {
                    if let Some(spill) = self.shard.common.spill.get() {
                        spill.spill(due.key.clone(), entry.clone(), Left { cause: Cause::StayOver, uses: 0 });
                    }
                    spilled += 1;
                }
                None => dropped += 1,
            }
            self.forget(&due.key, &due.row)?;
        }
        Ok((dropped, spilled))
    }

    /// Writes down when entries were last read.
    pub(crate) fn write_touched(&mut self) -> rusqlite::Result<()> {
        let touched = self.shard.take_touched();
        if touched.is_empty() {
            return Ok(());
        }
        let mut statement = self.connection.prepare_cached(
            "UPDATE entry SET used = ?2, until = min(deadline, ?2 + stay) WHERE id = ?1 AND used < ?2",
        )?;
        for (row, now) in touched {
            statement.execute((row, now))?;
        }
        Ok(())
    }

    /// Drops marks, counters and fences that have had their time.
    pub(crate) fn tidy(&mut self) -> rusqlite::Result<()> {
        let now = self.now;
        self.connection.execute("DELETE FROM mark WHERE expires <= ?1", [now])?;
        self.connection.execute("DELETE FROM counter WHERE deadline <= ?1", [now])?;
        let oldest = now.saturating_sub(FENCES_KEPT);
        self.connection.execute("DELETE FROM fence WHERE swept = 1 AND written < ?1", [oldest])?;
        let fences: i64 = self.connection.query_row("SELECT count(*) FROM fence", (), |row| row.get(0))?;
        if fences > MAX_FENCES {
            self.connection.execute(
                "DELETE FROM fence WHERE swept = 1 AND generation <= (
                     SELECT generation FROM fence WHERE swept = 1 ORDER BY generation LIMIT 1 OFFSET ?1)",
                [fences - MAX_FENCES],
            )?;
        }
        Ok(())
    }

    /// Deletes some of what a fence has made dead. Returns how many rows went, and whether none is left.
    pub(crate) fn purge(&mut self, purge: &mut Purge) -> rusqlite::Result<(u64, bool)> {
        let below = sql(purge.below.get());
        let limit = sql(PURGED as u64);
        let found = match &purge.scope {
            Scope::All => self.rows(
                &format!("SELECT {COLUMNS} FROM entry WHERE id > ?1 ORDER BY id LIMIT ?2"),
                (purge.row, limit),
            )?,
            Scope::Namespace(namespace) => self.rows(
                &format!(
                    "SELECT {COLUMNS} FROM entry WHERE namespace = ?1 AND key > ?2 ORDER BY key LIMIT ?3"
                ),
                (namespace, &purge.key, limit),
            )?,
            Scope::Tag { namespace, name, value } => self.rows(
                &format!(
                    "SELECT {COLUMNS} FROM entry WHERE namespace = ?1 AND generation < ?4 AND id IN
                     (SELECT entry FROM tag WHERE name = ?2 AND value = ?3) LIMIT ?5"
                ),
                (namespace, name, value, below, limit),
            )?,
        };
        let done = found.len() < PURGED;
        if let Some((row, key, _)) = found.last() {
            purge.row = row.id;
            purge.key = key.bytes().to_vec();
        }
        let mut gone = 0;
        for (row, _, _) in found.iter().filter(|(row, ..)| row.generation < purge.below) {
            self.drop_row(row)?;
            gone += 1;
        }
        if done {
            purge.note_done(self.connection)?;
        }
        Ok((gone, done))
    }

    /// Rows with their key and deadline.
    fn rows(&mut self, sql: &str, values: impl rusqlite::Params) -> rusqlite::Result<Vec<(Row, Key, i64)>> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query(values)?;
        let (mut found, mut senseless) = (Vec::new(), Vec::new());
        while let Some(row) = rows.next()? {
            match key_of(row, 7) {
                Ok(key) => found.push((Row::of(row)?, key, row.get(9)?)),
                // Nobody can ask for it.
                Err(_) => senseless.push(Row::of(row)?),
            }
        }
        senseless.iter().try_for_each(|row| self.drop_row(row))?;
        Ok(found)
    }
}

/// An entry whose time at the level is over, as a sweep found it.
pub(crate) struct Due {
    pub(crate) row: Row,
    pub(crate) key: Key,
    pub(crate) until: i64,
    /// What is to be handed over; None when it is dead.
    pub(crate) entry: Option<Entry>,
}

/// Up to `limit` rows whose time is over, with those that live read whole.
pub(crate) fn due(
    shard: &crate::shard::Shard,
    connection: &Connection,
    now: i64,
    (limit, bytes): (usize, u64),
) -> rusqlite::Result<Vec<Due>> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS}, until, value FROM entry
         WHERE until <= ?1 AND until < 4611686018427387904 ORDER BY until LIMIT ?2"
    ))?;
    let mut rows = statement.query((now, sql(limit as u64)))?;
    let (mut found, mut read) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let Ok(key) = key_of(row, 7) else { continue };
        let deadline: i64 = row.get(9)?;
        let (until, until_row) = (row.get(10)?, Row::of(row)?);
        let entry = if time(deadline) <= time(now) {
            None
        } else {
            read += number(until_row.size);
            decode(shard, &key, Stored { row: until_row.clone(), value: row.get(11)? }).ok()
        };
        found.push(Due { row: until_row, key, until, entry });
        if read > bytes {
            break;
        }
    }
    Ok(found)
}

/// The key in that column and the one after. One that is none is nobody's: the row is as good as absent.
pub(crate) fn key_of(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Key> {
    let namespace: String = row.get(column)?;
    let bytes: Vec<u8> = row.get(column + 1)?;
    Key::new(&namespace, &bytes).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, Box::new(error))
    })
}
