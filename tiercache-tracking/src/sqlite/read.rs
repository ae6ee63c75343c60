//! Look-ups and pages. The file's content is not trusted: a row that makes no sense is left out and counted.

use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::types::Value;
use rusqlite::{Connection, Row, params, params_from_iter};
use tiercache_core::tracking::{Query, Record, Totals};
use tiercache_core::{Generation, Key, Level, Tags, Timestamp};

use super::to_sql;
use crate::span::Span;

/// Up to so many matches of one condition are fetched by its index and sorted; when there are more, walking in the
/// order of keys soon meets enough of them to fill a page.
const FEW: u32 = 10_000;

const COLUMNS: &str = "record.id, namespace, key, generation, level, size, created, used, deadline, hits";
const LOOKUP: &str = "
    SELECT id, namespace, key, generation, level, size, created, used, deadline, hits
    FROM record WHERE namespace = ?1 AND key = ?2";
const TAGS: &str = "SELECT name, value FROM tag WHERE record_id = ?1";
const TOTALS: &str = "SELECT hot_hits, cold_hits, dry_hits, misses, sets, deletes FROM totals WHERE id = 1";

/// Whether the tables are such that every statement can be made, and the totals are there.
pub(super) fn check(connection: &Connection) -> rusqlite::Result<()> {
    [LOOKUP, TAGS].iter().try_for_each(|sql| connection.prepare_cached(sql).map(drop))?;
    totals(connection).map(drop)
}

pub(super) fn lookup(
    connection: &Connection,
    key: &Key,
    skipped: &AtomicU64,
) -> rusqlite::Result<Option<Record>> {
    let mut statement = connection.prepare_cached(LOOKUP)?;
    let mut rows = statement.query(params![key.namespace(), key.bytes()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let record = match record_of(row) {
        None => None,
        // The open row keeps the tags to the same state of the database.
        Some(record) => tagged(connection, row.get(0)?, record)?,
    };
    note_skipped(u64::from(record.is_none()), skipped);
    Ok(record)
}

pub(super) fn find(
    connection: &Connection,
    query: &Query,
    after: Option<&Key>,
    limit: usize,
    skipped: &AtomicU64,
) -> rusqlite::Result<Vec<Record>> {
    let mut page = Vec::new();
    let Some(span) = Span::of(query, after).filter(|_| limit > 0) else { return Ok(page) };
    let Some(select) = Select::plan(connection, query, &span)? else { return Ok(page) };
    // The statement sees to the tags; they are read for what matches otherwise.
    let rest = Query { tags: Tags::new(), ..query.clone() };
    let mut senseless = 0;
    let mut statement = connection.prepare_cached(&select.sql)?;
    let mut rows = statement.query(params_from_iter(select.values))?;
    while let Some(row) = rows.next()? {
        match record_of(row) {
            Some(record) if !rest.matches(&record) => {}
            Some(record) => match tagged(connection, row.get(0)?, record)? {
                Some(record) => page.push(record),
                None => senseless += 1,
            },
            None => senseless += 1,
        }
        if page.len() >= limit {
            break;
        }
    }
    note_skipped(senseless, skipped);
    Ok(page)
}

pub(super) fn totals(connection: &Connection) -> rusqlite::Result<Totals> {
    connection.prepare_cached(TOTALS)?.query_row((), |row| {
        let count = |column| row.get::<_, i64>(column).map(|count| u64::try_from(count).unwrap_or(0));
        Ok(Totals {
            hits: [count(0)?, count(1)?, count(2)?],
            misses: count(3)?,
            sets: count(4)?,
            deletes: count(5)?,
        })
    })
}

/// A condition an index knows.
struct Indexed {
    /// Which index.
    index: &'static str,
    /// The table it is of.
    table: &'static str,
    sql: &'static str,
    values: Vec<Value>,
}

/// A statement that yields, in the order of keys, what may match; tags are decided.
#[derive(Default)]
struct Select {
    sql: String,
    values: Vec<Value>,
}

impl Select {
    /// The statement of a query; `None` when it finds nothing.
    fn plan(connection: &Connection, query: &Query, span: &Span<'_>) -> rusqlite::Result<Option<Self>> {
        let conditions = indexed(query);
        let mut rarest: Option<(u32, &Indexed)> = None;
        for condition in &conditions {
            let count = condition.count(connection)?;
            if count == 0 {
                return Ok(None);
            }
            if count <= FEW && rarest.is_none_or(|(least, _)| count < least) {
                rarest = Some((count, condition));
            }
        }
        let rarest = rarest.map(|(_, condition)| condition);
        let source = match rarest {
            None => "record INDEXED BY record_key".to_owned(),
            Some(Indexed { table: "tag", index, .. }) => {
                format!("tag INDEXED BY {index} CROSS JOIN record ON record.id = tag.record_id")
            }
            Some(Indexed { index, .. }) => format!("record INDEXED BY {index}"),
        };
        let mut select =
            Self { sql: format!("SELECT {COLUMNS} FROM {source} WHERE TRUE"), values: Vec::new() };
        for condition in &conditions {
            let chosen = rarest.is_some_and(|rarest| std::ptr::eq(rarest, condition));
            let sql = match condition.table {
                "tag" if !chosen => format!(
                    " AND EXISTS (SELECT 1 FROM tag WHERE tag.record_id = record.id AND {})",
                    condition.sql
                ),
                // The plus keeps the planner from an index we decided against.
                _ if !chosen => format!(" AND +{}", condition.sql),
                _ => format!(" AND {}", condition.sql),
            };
            select.add(&sql, condition.values.iter().cloned());
        }
        select.add_span(span);
        select.sql.push_str(" ORDER BY namespace, key");
        Ok(Some(select))
    }

    fn add_span(&mut self, span: &Span<'_>) {
        let (from, comparison) = match &span.from {
            Bound::Unbounded => (None, ""),
            Bound::Included(key) => (Some(key), ">="),
            Bound::Excluded(key) => (Some(key), ">"),
        };
        let bytes = |bytes: &[u8]| Value::Blob(bytes.to_vec());
        match (span.namespace, from) {
            (Some(namespace), from) => {
                self.add(" AND namespace = ?", [Value::Text(namespace.to_owned())]);
                if let Some(key) = from {
                    self.add(&format!(" AND key {comparison} ?"), [bytes(key.bytes())]);
                }
            }
            (None, Some(key)) => {
                let values = [Value::Text(key.namespace().to_owned()), bytes(key.bytes())];
                self.add(&format!(" AND (namespace, key) {comparison} (?, ?)"), values);
            }
            (None, None) => {}
        }
        if span.namespace.is_none() && !span.prefix.is_empty() {
            self.add(" AND key >= ?", [bytes(span.prefix)]);
        }
        if let Some(end) = behind(span.prefix) {
            self.add(" AND key < ?", [Value::Blob(end)]);
        }
    }

    fn add(&mut self, sql: &str, values: impl IntoIterator<Item = Value>) {
        self.sql.push_str(sql);
        self.values.extend(values);
    }
}

impl Indexed {
    /// How many rows fit the condition alone, counted as far as one more than [`FEW`].
    fn count(&self, connection: &Connection) -> rusqlite::Result<u32> {
        let Self { index, table, sql, values } = self;
        let sql = format!("SELECT 1 FROM {table} INDEXED BY {index} WHERE {sql} LIMIT {}", FEW + 1);
        let sql = format!("SELECT count(*) FROM ({sql})");
        connection.prepare_cached(&sql)?.query_row(params_from_iter(values), |row| row.get(0))
    }
}

/// The conditions of a query that have an index.
fn indexed(query: &Query) -> Vec<Indexed> {
    let mut conditions = Vec::new();
    let mut range = |index, sql, from: Option<u64>, to: Option<u64>| {
        if from.is_some() || to.is_some() {
            let values =
                [from.unwrap_or(0), to.unwrap_or(u64::MAX)].map(|bound| Value::Integer(to_sql(bound)));
            conditions.push(Indexed { index, table: "record", sql, values: values.into() });
        }
    };
    let millis = |time: Option<Timestamp>| time.map(Timestamp::as_millis);
    range(
        "record_created",
        "created BETWEEN ? AND ?",
        millis(query.created_from),
        millis(query.created_before),
    );
    range("record_size", "size BETWEEN ? AND ?", query.min_size, query.max_size);
    range("record_hits", "hits BETWEEN ? AND ?", query.min_hits, query.max_hits);
    if let Some(level) = query.level {
        let values = vec![Value::Integer(level.index() as i64)];
        conditions.push(Indexed { index: "record_level", table: "record", sql: "level = ?", values });
    }
    for (name, value) in &query.tags {
        conditions.push(Indexed {
            index: "tag_value",
            table: "tag",
            sql: "tag.name = ? AND tag.value = ?",
            values: [name, value].map(|text| Value::Text(text.clone())).into(),
        });
    }
    conditions
}

/// The first key behind all that begin with `prefix`, if there is one.
fn behind(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// The record of a row, without its tags; `None` when it makes no sense.
fn record_of(row: &Row<'_>) -> Option<Record> {
    let number = |column| u64::try_from(row.get_ref(column).ok()?.as_i64().ok()?).ok();
    let time = |column| {
        // The highest number stands for a time without end.
        number(column)
            .map(|millis| Timestamp::from_millis(if millis == i64::MAX as u64 { u64::MAX } else { millis }))
    };
    let namespace = row.get_ref(1).ok()?.as_str().ok()?;
    Some(Record {
        key: Key::new(namespace, row.get_ref(2).ok()?.as_blob().ok()?).ok()?,
        generation: Generation::new(number(3)?),
        level: *Level::ALL.get(usize::try_from(number(4)?).ok()?)?,
        size: number(5)?,
        created: time(6)?,
        used: time(7)?,
        deadline: time(8)?,
        hits: number(9)?,
        tags: Tags::new(),
    })
}

/// The record with its tags; `None` when these make no sense.
fn tagged(connection: &Connection, id: i64, mut record: Record) -> rusqlite::Result<Option<Record>> {
    let mut statement = connection.prepare_cached(TAGS)?;
    let mut rows = statement.query([id])?;
    while let Some(row) = rows.next()? {
        let text = |column| row.get_ref(column).ok()?.as_str().ok().map(str::to_owned);
        let (Some(name), Some(value)) = (text(0), text(1)) else { return Ok(None) };
        record.tags.insert(name, value);
    }
    Ok(Some(record))
}

fn note_skipped(rows: u64, skipped: &AtomicU64) {
    if rows > 0 {
        skipped.fetch_add(rows, Ordering::Relaxed);
        tracing::warn!(rows, "rows of the tracking database make no sense and were skipped");
    }
}
