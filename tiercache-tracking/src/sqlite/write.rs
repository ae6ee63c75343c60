//! Applying a batch: one transaction, statements prepared once.

use rusqlite::{CachedStatement, Connection, OptionalExtension, TransactionBehavior, params};
use tiercache_core::tier::Scope;
use tiercache_core::tracking::{Event, Record, Totals, What};
use tiercache_core::{Generation, Key};

use super::to_sql;

// What stands below as `+ min(…)` stops at the highest number: SQLite would go on in floating point, which the
// tables refuse. A number that is negative only by damage counts as zero.
const STORE: &str = "
    INSERT INTO record (namespace, key, generation, level, size, created, used, deadline, hits)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
    ON CONFLICT (namespace, key) DO UPDATE SET
        generation = excluded.generation, level = excluded.level, size = excluded.size,
        created = excluded.created, used = excluded.used, deadline = excluded.deadline, hits = excluded.hits
    WHERE excluded.generation >= record.generation
    RETURNING id";
const UNTAG: &str = "DELETE FROM tag WHERE record_id = ?1";
const TAG: &str = "INSERT INTO tag (record_id, name, value) VALUES (?1, ?2, ?3)";
const MOVE: &str = "UPDATE record SET level = ?4 WHERE namespace = ?1 AND key = ?2 AND generation <= ?3";
const USE: &str = "
    UPDATE record SET used = max(used, ?3), hits = max(hits, 0) + min(?4, 9223372036854775807 - max(hits, 0))
    WHERE namespace = ?1 AND key = ?2";
const REMOVE: &str = "DELETE FROM record WHERE namespace = ?1 AND key = ?2 AND generation <= ?3";
const REMOVE_ALL: &str = "DELETE FROM record WHERE generation < ?1";
const REMOVE_NAMESPACE: &str = "DELETE FROM record WHERE namespace = ?1 AND generation < ?2";
const REMOVE_TAGGED: &str = "
    DELETE FROM record WHERE namespace = ?1 AND generation < ?4
        AND id IN (SELECT record_id FROM tag WHERE name = ?2 AND value = ?3)";
const FLUSH: &str = "DELETE FROM record WHERE level = ?1 AND generation < ?2";
const FLUSH_NAMESPACE: &str = "DELETE FROM record WHERE level = ?1 AND generation < ?2 AND namespace = ?3";
const COUNT: &str = "
    UPDATE totals SET
        hot_hits = max(hot_hits, 0) + min(?1, 9223372036854775807 - max(hot_hits, 0)),
        cold_hits = max(cold_hits, 0) + min(?2, 9223372036854775807 - max(cold_hits, 0)),
        dry_hits = max(dry_hits, 0) + min(?3, 9223372036854775807 - max(dry_hits, 0)),
        misses = max(misses, 0) + min(?4, 9223372036854775807 - max(misses, 0)),
        sets = max(sets, 0) + min(?5, 9223372036854775807 - max(sets, 0)),
        deletes = max(deletes, 0) + min(?6, 9223372036854775807 - max(deletes, 0))";
const RESET: &str = "
    UPDATE totals SET hot_hits = 0, cold_hits = 0, dry_hits = 0, misses = 0, sets = 0, deletes = 0";
const MARK_UNCLEAN: &str = "UPDATE meta SET value = 0 WHERE name = 'clean' AND value <> 0";

const ALL: [&str; 14] = [
    STORE,
    UNTAG,
    TAG,
    MOVE,
    USE,
    REMOVE,
    REMOVE_ALL,
    REMOVE_NAMESPACE,
    REMOVE_TAGGED,
    FLUSH,
    FLUSH_NAMESPACE,
    COUNT,
    RESET,
    MARK_UNCLEAN,
];

/// Whether the tables are such that every statement can be made.
pub(super) fn check(connection: &Connection) -> rusqlite::Result<()> {
    ALL.iter().try_for_each(|sql| connection.prepare_cached(sql).map(drop))
}

/// Applies a batch, all of it or nothing.
pub(super) fn record(connection: &mut Connection, events: &[Event]) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut batch = Batch::new(&transaction)?;
    events.iter().try_for_each(|event| batch.apply(event))?;
    batch.finish()?;
    transaction.commit()
}

pub(super) fn reset_totals(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute(MARK_UNCLEAN, ())?;
    transaction.execute(RESET, ())?;
    transaction.commit()
}

struct Batch<'t> {
    connection: &'t Connection,
    store: CachedStatement<'t>,
    untag: CachedStatement<'t>,
    tag: CachedStatement<'t>,
    relocate: CachedStatement<'t>,
    reuse: CachedStatement<'t>,
    remove: CachedStatement<'t>,
    counted: Totals,
}

impl<'t> Batch<'t> {
    fn new(connection: &'t Connection) -> rusqlite::Result<Self> {
        connection.prepare_cached(MARK_UNCLEAN)?.execute(())?;
        Ok(Self {
            connection,
            store: connection.prepare_cached(STORE)?,
            untag: connection.prepare_cached(UNTAG)?,
            tag: connection.prepare_cached(TAG)?,
            relocate: connection.prepare_cached(MOVE)?,
            reuse: connection.prepare_cached(USE)?,
            remove: connection.prepare_cached(REMOVE)?,
            counted: Totals::default(),
        })
    }

    fn apply(&mut self, event: &Event) -> rusqlite::Result<()> {
        match &event.what {
            What::Stored(record) => self.store(record),
            What::Moved { key, generation, to: Some(level) } => {
                let (generation, level) = (to_sql(generation.get()), level.index());
                self.relocate
                    .execute(params![key.namespace(), key.bytes(), generation, level as i64])
                    .map(drop)
            }
            What::Moved { key, generation, to: None } | What::Removed { key, generation } => {
                self.remove(key, *generation)
            }
            What::Used { key, hits } => {
                let (at, hits) = (to_sql(event.at.as_millis()), to_sql(*hits));
                self.reuse.execute(params![key.namespace(), key.bytes(), at, hits]).map(drop)
            }
            What::Invalidated { scope, generation } => self.invalidate(scope, *generation),
            What::Flushed { level, namespace, generation } => {
                let (level, below) = (level.index() as i64, to_sql(generation.get()));
                match namespace {
                    None => self.run(FLUSH, params![level, below]),
                    Some(namespace) => self.run(FLUSH_NAMESPACE, params![level, below, namespace]),
                }
            }
            What::Counted(more) => {
                self.counted.add(more);
                Ok(())
            }
        }
    }

    fn store(&mut self, record: &Record) -> rusqlite::Result<()> {
        let stored = params![
            record.key.namespace(),
            record.key.bytes(),
            to_sql(record.generation.get()),
            record.level.index() as i64,
            to_sql(record.size),
            to_sql(record.created.as_millis()),
            to_sql(record.used.as_millis()),
            to_sql(record.deadline.as_millis()),
            to_sql(record.hits),
        ];
        let id: Option<i64> = self.store.query_row(stored, |row| row.get(0)).optional()?;
        let Some(id) = id else { return Ok(()) };
        self.untag.execute([id])?;
        for (name, value) in &record.tags {
            self.tag.execute(params![id, name, value])?;
        }
        Ok(())
    }

    fn remove(&mut self, key: &Key, generation: Generation) -> rusqlite::Result<()> {
        self.remove.execute(params![key.namespace(), key.bytes(), to_sql(generation.get())]).map(drop)
    }

    fn invalidate(&mut self, scope: &Scope, generation: Generation) -> rusqlite::Result<()> {
        let below = to_sql(generation.get());
        match scope {
            Scope::All => self.run(REMOVE_ALL, params![below]),
            Scope::Namespace(namespace) => self.run(REMOVE_NAMESPACE, params![namespace, below]),
            Scope::Tag { namespace, name, value } => {
                self.run(REMOVE_TAGGED, params![namespace, name, value, below])
            }
        }
    }

    fn run(&self, sql: &str, params: impl rusqlite::Params) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute(params).map(drop)
    }

    fn finish(self) -> rusqlite::Result<()> {
        if self.counted.is_zero() {
            return Ok(());
        }
        let Totals { hits: [hot, cold, dry], misses, sets, deletes } = self.counted;
        self.run(COUNT, [hot, cold, dry, misses, sets, deletes].map(to_sql))
    }
}
