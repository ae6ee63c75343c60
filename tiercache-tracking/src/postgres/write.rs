//! Applying a batch.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use tiercache_core::tier::Scope;
use tiercache_core::tracking::{Event, Record, Totals, What};
use tiercache_core::{Generation, Key};

use super::read::{COLUMNS, record_of};
use super::schema::{id, tag, tag_hash};
use super::to_sql;

/// Rows of a statement.
const CHUNK: usize = 5_000;

/// What is said.
pub(super) struct Writer {
    lock: Arc<str>,
    store: Arc<str>,
    delete: Arc<str>,
    count: Arc<str>,
    reset: Arc<str>,
    tables: String,
}

impl Writer {
    pub(super) fn new(tables: &str) -> Self {
        const COUNTS: [&str; 6] = ["hot_hits", "cold_hits", "dry_hits", "misses", "sets", "deletes"];
        // Sums stop at the highest number instead of failing.
        let add = |(name, number): (&str, usize)| {
            format!("{name} = least(kept.{name}::numeric + ${number}, 9223372036854775807)::bigint")
        };
        let adds: Vec<_> = COUNTS.into_iter().zip(1..).map(add).collect();
        let counts = COUNTS.join(", ");
        let zeros = COUNTS.map(|name| format!("{name} = 0"));
        let columns = "id, namespace, key, generation, level, size, created, used, deadline, hits";
        let renewed: Vec<_> = columns
            .split(", ")
            .skip(1)
            .chain(["tag_hashes", "tags"])
            .map(|column| format!("{column} = excluded.{column}"))
            .collect();
        Self {
            lock: format!("SELECT {COLUMNS} FROM {tables}record WHERE id = ANY($1) ORDER BY id FOR UPDATE")
                .into(),
            store: format!(
                "INSERT INTO {tables}record AS kept ({columns}, tag_hashes, tags)
                SELECT {columns}, tag_hashes::bigint[], tags::bytea[]
                FROM unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::bigint[], $5::smallint[], $6::bigint[],
                    $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::text[], $12::text[])
                    AS changed ({columns}, tag_hashes, tags)
                ORDER BY id
                ON CONFLICT (id) DO UPDATE SET {} WHERE excluded.generation >= kept.generation",
                renewed.join(", ")
            )
            .into(),
            delete: format!("DELETE FROM {tables}record WHERE id = ANY($1)").into(),
            // The row may be gone, when somebody emptied the tables.
            count: format!(
                "INSERT INTO {tables}totals AS kept (id, {counts}) VALUES (1, $1, $2, $3, $4, $5, $6)
                ON CONFLICT (id) DO UPDATE SET {}",
                adds.join(", ")
            )
            .into(),
            reset: format!("UPDATE {tables}totals SET {} WHERE id = 1", zeros.join(", ")).into(),
            tables: tables.to_owned(),
        }
    }

    /// Applies a batch, all of it or nothing.
    pub(super) async fn record(
        &self,
        connection: &mut PgConnection,
        events: &[Event],
        limit: Duration,
    ) -> Result<(), sqlx::Error> {
        let mut transaction = connection.begin().await?;
        let mut counted = Totals::default();
        let mut rest = events;
        while let [first, behind @ ..] = rest {
            if self.is_wide(first) {
                self.apply_wide(&mut transaction, first, limit).await?;
                rest = behind;
                continue;
            }
            let run = rest.iter().take_while(|event| !self.is_wide(event)).count();
            self.apply(&mut transaction, &rest[..run], &mut counted).await?;
            rest = &rest[run..];
        }
        // Last, as every process has to: the row is locked from here to the end only.
        if !counted.is_zero() {
            let Totals { hits: [hot, cold, dry], misses, sets, deletes } = counted;
            let mut count = sqlx::query(AssertSqlSafe(self.count.clone()));
            for more in [hot, cold, dry, misses, sets, deletes] {
                count = count.bind(to_sql(more));
            }
            count.execute(&mut *transaction).await?;
        }
        transaction.commit().await
    }

    pub(super) async fn reset_totals(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        sqlx::query(AssertSqlSafe(self.reset.clone())).execute(connection).await.map(drop)
    }

    fn is_wide(&self, event: &Event) -> bool {
        matches!(event.what, What::Invalidated { .. } | What::Flushed { .. })
    }

    /// Applies events of single keys: 1 lock and read their rows, 2 apply, 3 write what changed. All in the order of
    /// the rows' ids, so that two processes never wait for each other.
    async fn apply(
        &self,
        connection: &mut PgConnection,
        events: &[Event],
        counted: &mut Totals,
    ) -> Result<(), sqlx::Error> {
        let mut rows = BTreeMap::new();
        for key in events.iter().filter_map(key_of) {
            let slot = Slot { key, kept: None, obsolete: false, changed: false };
            rows.entry(id(key.namespace(), key.bytes())).or_insert(slot);
        }
        let ids: Vec<_> = rows.keys().copied().collect();
        for ids in ids.chunks(CHUNK) {
            let found = sqlx::query(AssertSqlSafe(self.lock.clone()))
                .bind(slices(ids))
                .fetch_all(&mut *connection)
                .await?;
            for row in &found {
                let slot = <[u8; 16]>::try_from(row.try_get::<&[u8], _>(0)?).ok();
                if let Some(slot) = slot.and_then(|id| rows.get_mut(&id)) {
                    // What makes no sense, or is another key's, is overwritten.
                    slot.kept = record_of(row).filter(|record| record.key == *slot.key);
                    slot.obsolete = slot.kept.is_none();
                }
            }
        }
        for event in events {
            match (&event.what, key_of(event)) {
                (What::Counted(more), _) => counted.add(more),
                (_, Some(key)) => {
                    if let Some(slot) = rows.get_mut(&id(key.namespace(), key.bytes())) {
                        slot.apply(event);
                    }
                }
                _ => {}
            }
        }
        let gone: Vec<_> =
            rows.iter().filter(|(_, slot)| slot.changed && slot.obsolete).map(|(id, _)| *id).collect();
        for gone in gone.chunks(CHUNK) {
            let delete = sqlx::query(AssertSqlSafe(self.delete.clone())).bind(slices(gone));
            delete.execute(&mut *connection).await?;
        }
        let stored: Vec<_> = rows
            .iter()
            .filter(|(_, slot)| slot.changed)
            .filter_map(|(id, slot)| Some((id, slot.kept.as_ref()?)))
            .collect();
        for stored in stored.chunks(CHUNK) {
            self.store(connection, stored).await?;
        }
        Ok(())
    }

    async fn store(
        &self,
        connection: &mut PgConnection,
        records: &[(&[u8; 16], &Record)],
    ) -> Result<(), sqlx::Error> {
        fn column<'r, T>(records: &[(&'r [u8; 16], &'r Record)], of: impl Fn(&'r Record) -> T) -> Vec<T> {
            records.iter().map(|(_, record)| of(record)).collect()
        }
        let number = |of: fn(&Record) -> u64| column(records, move |record| to_sql(of(record)));
        let ids: Vec<&[u8]> = records.iter().map(|(id, _)| &id[..]).collect();
        let (hashes, tags): (Vec<_>, Vec<_>) = records.iter().map(|(_, record)| tag_arrays(record)).unzip();
        sqlx::query(AssertSqlSafe(self.store.clone()))
            .bind(ids)
            .bind(column(records, |record| record.key.namespace().as_bytes()))
            .bind(column(records, |record| record.key.bytes()))
            .bind(number(|record| record.generation.get()))
            .bind(column(records, |record| record.level.index() as i16))
            .bind(number(|record| record.size))
            .bind(number(|record| record.created.as_millis()))
            .bind(number(|record| record.used.as_millis()))
            .bind(number(|record| record.deadline.as_millis()))
            .bind(number(|record| record.hits))
            .bind(hashes)
            .bind(tags)
            .execute(connection)
            .await
            .map(drop)
    }

    /// Applies an event of many keys.
    async fn apply_wide(
        &self,
        connection: &mut PgConnection,
        event: &Event,
        limit: Duration,
    ) -> Result<(), sqlx::Error> {
        let (below, condition) = match &event.what {
            What::Invalidated { scope, generation } => {
                let condition = match scope {
                    Scope::All => "",
                    Scope::Namespace(_) => " AND namespace = $2",
                    Scope::Tag { .. } => " AND namespace = $2 AND tag_hashes @> $3 AND tags @> $4",
                };
                (generation, condition)
            }
            What::Flushed { namespace, generation, .. } => (
                generation,
                if namespace.is_some() { " AND level = $2 AND namespace = $3" } else { " AND level = $2" },
            ),
            _ => return Ok(()),
        };
        let millis = limit.as_millis();
        let longer = format!("SET LOCAL statement_timeout = {millis}; SET LOCAL lock_timeout = {millis}");
        sqlx::raw_sql(AssertSqlSafe(longer)).execute(&mut *connection).await?;
        let tables = &self.tables;
        let delete = format!(
            "DELETE FROM {tables}record WHERE id IN
                (SELECT id FROM {tables}record WHERE generation < $1{condition} ORDER BY id FOR UPDATE)"
        );
        let mut delete = sqlx::query(AssertSqlSafe(delete)).persistent(false).bind(to_sql(below.get()));
        match &event.what {
            What::Invalidated { scope: Scope::Namespace(namespace), .. } => {
                delete = delete.bind(namespace.as_bytes());
            }
            What::Invalidated { scope: Scope::Tag { namespace, name, value }, .. } => {
                let tag = tag(name, value);
                delete = delete.bind(namespace.as_bytes()).bind(vec![tag_hash(&tag)]).bind(vec![tag]);
            }
            What::Flushed { level, namespace, .. } => {
                delete = delete.bind(level.index() as i16);
                delete = namespace.iter().fold(delete, |delete, namespace| delete.bind(namespace.as_bytes()));
            }
            _ => {}
        }
        delete.execute(connection).await.map(drop)
    }
}

/// A key, and what is known of it while a batch is applied.
struct Slot<'e> {
    key: &'e Key,
    kept: Option<Record>,
    /// Whether the row there was must go, whatever takes its place.
    obsolete: bool,
    changed: bool,
}

impl Slot<'_> {
    fn apply(&mut self, event: &Event) {
        let known_to =
            |generation: Generation| self.kept.as_ref().is_some_and(|kept| kept.generation <= generation);
        match &event.what {
            What::Stored(record) if self.kept.is_none() || known_to(record.generation) => {
                self.kept = Some(record.clone());
            }
            What::Moved { generation, to: None, .. } | What::Removed { generation, .. }
                if known_to(*generation) =>
            {
                (self.kept, self.obsolete) = (None, true);
            }
            What::Moved { generation, to: Some(level), .. } if known_to(*generation) => {
                self.kept.iter_mut().for_each(|kept| kept.level = *level);
            }
            What::Used { hits, .. } => {
                let Some(kept) = &mut self.kept else { return };
                kept.hits = kept.hits.saturating_add(*hits);
                kept.used = kept.used.max(event.at);
            }
            _ => return,
        }
        self.changed = true;
    }
}

/// The key an event is of, if it is of one.
fn key_of(event: &Event) -> Option<&Key> {
    match &event.what {
        What::Stored(record) => Some(&record.key),
        What::Moved { key, .. } | What::Used { key, .. } | What::Removed { key, .. } => Some(key),
        What::Invalidated { .. } | What::Flushed { .. } | What::Counted(_) => None,
    }
}

fn slices(ids: &[[u8; 16]]) -> Vec<&[u8]> {
    ids.iter().map(|id| &id[..]).collect()
}

/// The tags' hashes and the tags, each as the text of an array: arrays of arrays cannot differ in length.
fn tag_arrays(record: &Record) -> (String, String) {
    let (mut hashes, mut tags) = (String::from("{"), String::from("{"));
    for (name, value) in &record.tags {
        let tag = tag(name, value);
        let comma = if hashes.len() > 1 { "," } else { "" };
        // Writing to a string cannot fail.
        let _ = write!(hashes, "{comma}{}", tag_hash(&tag));
        let _ = write!(tags, "{comma}\"\\\\x");
        tag.iter().for_each(|byte| {
            let _ = write!(tags, "{byte:02x}");
        });
        tags.push('"');
    }
    hashes.push('}');
    tags.push('}');
    (hashes, tags)
}
