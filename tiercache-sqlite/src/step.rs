//! One write transaction: what the calls in it do to entries, marks, fences and counters.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};
use tiercache_core::tier::{Put, Removal, Scope};
use tiercache_core::transaction::Standing;
use tiercache_core::{Error, Generation, Key, Result, Tags, Timestamp};

use crate::fences::{Fences, Purge, columns};
use crate::shard::{Shard, lock};
use crate::tier::NAME;
use crate::values::{Image, NEVER, NewFile, generation, hash, number, sql, time};

/// How long the mark of a removal stays: longer than any write may be late.
pub(crate) const REMOVAL_MARK: u64 = 60_000;

const STANDING: &str =
    "SELECT id, generation, checksum, size, tags, file, used FROM entry WHERE namespace = ?1 AND key = ?2";

const PUT: &str = "
    INSERT INTO entry (namespace, key, generation, checksum, deadline, stay, until, used, size, length, tags, file, value)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
    ON CONFLICT (namespace, key) DO UPDATE SET generation = excluded.generation, checksum = excluded.checksum,
        deadline = excluded.deadline, stay = excluded.stay, until = excluded.until, used = excluded.used,
        size = excluded.size, length = excluded.length, tags = excluded.tags, file = excluded.file,
        value = excluded.value
    RETURNING id";

/// A transaction that is under way.
pub(crate) struct Step<'a> {
    pub(crate) shard: &'a Shard,
    pub(crate) connection: &'a Connection,
    pub(crate) now: i64,
    /// As the database has it.
    state: State,
    pub(crate) tally: Tally,
    /// What this transaction has fenced itself.
    fenced: Fences,
    /// Files whose rows are committed with this.
    fresh: Vec<Arc<NewFile>>,
    /// Files whose rows go with this.
    pub(crate) stale: Vec<String>,
    purges: Vec<Purge>,
    /// Whether a part could not be ended: nothing of this may be committed.
    pub(crate) torn: bool,
}

/// Where a part of a transaction began.
pub(crate) struct Part {
    tally: Tally,
    fresh: usize,
    stale: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    bytes: i64,
    fences: i64,
}

/// What the transaction changes in the shard's state.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Tally {
    generation: u64,
    entries: i64,
    bytes: i64,
    fences: i64,
    pub(crate) evicted: u64,
}

/// What is done once a transaction is committed.
pub(crate) struct Settled {
    fresh: Vec<Arc<NewFile>>,
    stale: Vec<String>,
    purges: Vec<Purge>,
    evicted: u64,
    version: i64,
}

/// A row that is there, without what it holds.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) id: i64,
    pub(crate) generation: Generation,
    pub(crate) checksum: i64,
    pub(crate) size: i64,
    pub(crate) tags: i64,
    pub(crate) file: Option<String>,
    pub(crate) used: i64,
}

impl Row {
    /// From the columns of that name, in the order of the fields.
    pub(crate) fn of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            generation: generation(row.get(1)?),
            checksum: row.get(2)?,
            size: row.get(3)?,
            tags: row.get(4)?,
            file: row.get(5)?,
            used: row.get(6)?,
        })
    }
}

impl<'a> Step<'a> {
    pub(crate) fn begin(shard: &'a Shard, connection: &'a Connection) -> rusqlite::Result<Self> {
        let state = connection
            .prepare_cached("SELECT bytes, fences FROM state WHERE id = 1")?
            .query_row((), |row| Ok(State { bytes: row.get(0)?, fences: row.get(1)? }))?;
        shard.catch_up(connection, state.fences)?;
        Ok(Self {
            shard,
            connection,
            now: sql(shard.common.clock.now().as_millis()),
            state,
            tally: Tally::default(),
            fenced: Fences::default(),
            fresh: Vec::new(),
            stale: Vec::new(),
            purges: Vec::new(),
            torn: false,
        })
    }

    /// Fails when SQLite has rolled the transaction back by itself, or a part of it could not be undone.
    pub(crate) fn check_whole(&self) -> rusqlite::Result<()> {
        if self.torn || self.connection.is_autocommit() {
            let aborted = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT);
            return Err(rusqlite::Error::SqliteFailure(aborted, None));
        }
        Ok(())
    }

    /// The last statements before the commit.
    pub(crate) fn finish(mut self) -> rusqlite::Result<Settled> {
        self.check_whole()?;
        self.make_room()?;
        let Tally { generation, entries, bytes, fences, evicted } = self.tally;
        if self.tally != Tally::default() {
            self.connection
                .prepare_cached(
                    "UPDATE state SET generation = max(generation, ?1), entries = entries + ?2,
                     bytes = bytes + ?3, fences = fences + ?4 WHERE id = 1",
                )?
                .execute((sql(generation), entries, bytes, fences))?;
        }
        let version = self.state.fences + fences;
        Ok(Settled { fresh: self.fresh, stale: self.stale, purges: self.purges, evicted, version })
    }

    /// Bytes of the shard's entries as they will be.
    pub(crate) fn bytes(&self) -> u64 {
        number(self.state.bytes.saturating_add(self.tally.bytes))
    }

    pub(crate) fn standing(&self, key: &Key) -> rusqlite::Result<Option<Row>> {
        self.connection
            .prepare_cached(STANDING)?
            .query_row((key.namespace(), key.bytes()), Row::of)
            .optional()
    }

    /// Keeps the entry unless it is older than what is there, or dead.
    pub(crate) fn put(&mut self, key: &Key, image: &Image) -> rusqlite::Result<Put> {
        let standing = self.standing(key)?;
        if let Some(row) = &standing {
            if row.generation == image.generation {
                // It came down again unchanged: its stay begins anew.
                self.shard.touch(row.id, image.used);
                return Ok(if row.checksum == image.checksum { Put::Unchanged } else { Put::Superseded });
            }
            if row.generation > image.generation {
                return Ok(Put::Superseded);
            }
        }
        let tags = image.tags.iter().cloned().collect();
        if self.mark(key)? > image.generation || self.covers(key, image.generation, Some(&tags)) {
            return Ok(Put::Superseded);
        }
        let size = sql(image.size);
        let id: i64 = self.connection.prepare_cached(PUT)?.query_row(
            params![
                key.namespace(),
                key.bytes(),
                sql(image.generation.get()),
                image.checksum,
                image.deadline,
                image.stay,
                image.until,
                image.used,
                size,
                image.length,
                sql(image.tags.len() as u64),
                image.file.as_ref().map(|file| &file.name),
                image.value,
            ],
            |row| row.get(0),
        )?;
        match standing {
            Some(row) => {
                self.drop_tags(&row)?;
                self.tally.bytes -= row.size;
                self.stale.extend(row.file);
            }
            None => self.tally.entries += 1,
        }
        for (name, value) in &image.tags {
            self.connection
                .prepare_cached("INSERT INTO tag (entry, name, value) VALUES (?1, ?2, ?3)")?
                .execute((id, name, value))?;
        }
        self.tally.bytes += size;
        self.note(image.generation);
        self.fresh.extend(image.file.clone());
        Ok(Put::Stored)
    }

    /// Forgets what is below the generation and marks the key, unless another process or an invalidation is ahead.
    pub(crate) fn remove(&mut self, key: &Key, below: Generation) -> rusqlite::Result<Removal> {
        let standing = self.standing(key)?;
        let newest = standing.as_ref().map_or(Generation::ZERO, |row| row.generation).max(self.mark(key)?);
        if newest >= below {
            return Ok(Removal::Behind(newest));
        }
        // What is written next would be dead by a fence that this mutation does not know of.
        let fenced = self.shard.fences().highest(key.namespace()).max(self.fenced.highest(key.namespace()));
        if fenced > below {
            return Ok(Removal::Fenced(fenced));
        }
        if let Some(row) = standing {
            self.drop_row(&row)?;
        }
        self.leave_mark(hash(key), below)?;
        self.note(below);
        Ok(Removal::Done { over: newest })
    }

    /// How far processes have counted that have written to the key.
    pub(crate) fn counted(&self, key: &Key) -> rusqlite::Result<Standing> {
        let standing = self.standing(key)?.map_or(Generation::ZERO, |row| row.generation);
        let newest = standing.max(self.mark(key)?);
        let fenced = self.shard.fences().highest(key.namespace()).max(self.fenced.highest(key.namespace()));
        Ok(Standing { newest, above: newest.max(fenced) })
    }

    /// Makes dead what is in the scope and below the generation: for the whole cache, or at this level alone.
    /// The rows go in the background.
    pub(crate) fn fence(&mut self, scope: &Scope, below: Generation, cleared: bool) -> rusqlite::Result<()> {
        self.write_fence(scope, below, cleared)?;
        self.purges.push(Purge::new(scope.clone(), below));
        Ok(())
    }

    /// Likewise with the rows, in this transaction. Returns how many those were.
    pub(crate) fn evict(&mut self, scope: &Scope, below: Generation) -> rusqlite::Result<u64> {
        self.write_fence(scope, below, false)?;
        let mut purge = Purge::new(scope.clone(), below);
        let mut gone = 0;
        loop {
            let (some, done) = self.purge(&mut purge)?;
            gone += some;
            if done {
                return Ok(gone);
            }
        }
    }

    fn write_fence(&mut self, scope: &Scope, below: Generation, cleared: bool) -> rusqlite::Result<()> {
        let (kind, namespace, name, value) = columns(scope);
        self.tally.fences += 1;
        let version = self.state.fences + self.tally.fences;
        self.connection
            .prepare_cached(
                "INSERT INTO fence (kind, namespace, name, value, cleared, generation, written, swept, version)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, ?8)
                 ON CONFLICT DO UPDATE SET generation = max(generation, excluded.generation),
                 written = excluded.written, swept = 0, version = excluded.version",
            )?
            .execute(params![kind, namespace, name, value, cleared, sql(below.get()), self.now, version])?;
        if cleared {
            match scope {
                Scope::All => self.connection.execute("DELETE FROM counter", ())?,
                Scope::Namespace(namespace) => {
                    self.connection.execute("DELETE FROM counter WHERE namespace = ?1", [namespace])?
                }
                Scope::Tag { .. } => 0,
            };
        }
        self.note(below);
        self.fenced.add(scope.clone(), below, cleared, self.now);
        Ok(())
    }

    /// Adds to a counter, making it when it is absent or dead.
    pub(crate) fn add(
        &mut self,
        key: &Key,
        (delta, start): (i64, i64),
        deadline: Timestamp,
        now: Timestamp,
    ) -> rusqlite::Result<Result<i64>> {
        let standing = counter(self.connection, key, now)?;
        let (count, dies) = standing
            .unwrap_or_else(|| (start, if deadline.is_never() { NEVER } else { sql(deadline.as_millis()) }));
        let Some(sum) = count.checked_add(delta) else {
            let reason = format!("{count} + {delta} is out of range");
            return Ok(Err(Error::InvalidOption { option: "delta", reason }));
        };
        self.connection
            .prepare_cached(
                "INSERT INTO counter (namespace, key, count, deadline) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET count = excluded.count, deadline = excluded.deadline",
            )?
            .execute(params![key.namespace(), key.bytes(), sum, dies])?;
        Ok(Ok(sum))
    }

    pub(crate) fn remove_counter(&mut self, key: &Key, now: Timestamp) -> rusqlite::Result<bool> {
        let lived = counter(self.connection, key, now)?.is_some();
        self.connection
            .prepare_cached("DELETE FROM counter WHERE namespace = ?1 AND key = ?2")?
            .execute((key.namespace(), key.bytes()))?;
        Ok(lived)
    }

    /// Whether what has that generation and those tags is dead by a fence.
    pub(crate) fn covers(&self, key: &Key, generation: Generation, tags: Option<&Tags>) -> bool {
        self.shard.fences().cover_tagged(key, generation, tags)
            || self.fenced.cover_tagged(key, generation, tags)
    }

    /// Deletes a row with all that belongs to it.
    pub(crate) fn drop_row(&mut self, row: &Row) -> rusqlite::Result<()> {
        let deleted = self.connection.prepare_cached("DELETE FROM entry WHERE id = ?1")?.execute([row.id])?;
        if deleted == 0 {
            return Ok(());
        }
        self.drop_tags(row)?;
        self.tally.entries -= 1;
        self.tally.bytes -= row.size;
        self.stale.extend(row.file.clone());
        Ok(())
    }

    /// Deletes a row that leaves of itself. What was written a moment ago leaves a mark, so that an older write that
    /// is late does not take its place.
    pub(crate) fn forget(&mut self, key: &Key, row: &Row) -> rusqlite::Result<()> {
        if self.now.saturating_sub(row.used) < sql(REMOVAL_MARK) {
            self.leave_mark(hash(key), row.generation)?;
        }
        self.drop_row(row)
    }

    /// Runs `part`; when it refuses, everything it did is undone.
    pub(crate) fn nested<T>(
        &mut self,
        part: impl FnOnce(&mut Self) -> Result<T>,
    ) -> rusqlite::Result<Result<T>> {
        let begun = self.begin_part()?;
        let done = part(self);
        self.end_part(&begun, done.is_err())?;
        Ok(done)
    }

    /// Begins what can be undone alone.
    pub(crate) fn begin_part(&mut self) -> rusqlite::Result<Part> {
        let begun = self.connection.execute_batch("SAVEPOINT part");
        self.torn |= begun.is_err();
        begun.map(|()| Part { tally: self.tally, fresh: self.fresh.len(), stale: self.stale.len() })
    }

    /// Ends the part begun last.
    pub(crate) fn end_part(&mut self, begun: &Part, undo: bool) -> rusqlite::Result<()> {
        let end = if undo { "ROLLBACK TO part; RELEASE part" } else { "RELEASE part" };
        let ended = self.connection.execute_batch(end);
        self.torn |= ended.is_err();
        if undo {
            self.tally = begun.tally;
            self.fresh.truncate(begun.fresh);
            self.stale.truncate(begun.stale);
        }
        ended
    }

    fn drop_tags(&mut self, row: &Row) -> rusqlite::Result<()> {
        if row.tags > 0 {
            self.connection.prepare_cached("DELETE FROM tag WHERE entry = ?1")?.execute([row.id])?;
        }
        Ok(())
    }

    /// The generation below which a removal refuses writes of the key.
    fn mark(&self, key: &Key) -> rusqlite::Result<Generation> {
        let mark = self
            .connection
            .prepare_cached("SELECT generation FROM mark WHERE hash = ?1 AND expires > ?2")?
            .query_row((hash(key) as i64, self.now), |row| row.get(0))
            .optional()?;
        Ok(generation(mark.unwrap_or(0)))
    }

    fn leave_mark(&self, hash: u64, below: Generation) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "INSERT INTO mark (hash, generation, expires) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET generation = max(generation, excluded.generation),
                 expires = max(expires, excluded.expires)",
            )?
            .execute((hash as i64, sql(below.get()), self.now.saturating_add(sql(REMOVAL_MARK))))
            .map(drop)
    }

    fn note(&mut self, generation: Generation) {
        self.tally.generation = self.tally.generation.max(generation.get());
    }
}

impl Settled {
    /// Files that are named by what was decided stay, whatever becomes of this.
    pub(crate) fn keep_files(&self) {
        self.fresh.iter().for_each(|file| file.keep());
    }

    /// After the commit: files that were named before are nobody's now.
    pub(crate) fn settle(self, shard: &Shard, connection: &Connection) {
        if let Err(error) = shard.catch_up(connection, self.version) {
            // Whoever reads next tries again.
            tracing::debug!(tier = NAME, shard = shard.number, %error, "fences not read");
        }
        self.keep_files();
        self.stale.iter().for_each(|name| shard.files.remove(name));
        if !self.purges.is_empty() {
            lock(&shard.purges).extend(self.purges);
        }
        if self.evicted > 0 {
            shard.common.evicted.fetch_add(self.evicted, std::sync::atomic::Ordering::Relaxed);
            tracing::trace!(tier = NAME, shard = shard.number, evicted = self.evicted, "made room");
        }
    }
}

/// A counter that lives, and when it dies.
pub(crate) fn counter(
    connection: &Connection,
    key: &Key,
    now: Timestamp,
) -> rusqlite::Result<Option<(i64, i64)>> {
    let found = connection
        .prepare_cached("SELECT count, deadline FROM counter WHERE namespace = ?1 AND key = ?2")?
        .query_row((key.namespace(), key.bytes()), |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    Ok(found.filter(|&(_, deadline)| now < time(deadline)))
}
