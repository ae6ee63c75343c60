//! Look-ups and pages. What is in the tables is not trusted: a row that makes no sense is left out and counted.

use std::ops::Bound;
use std::sync::Arc;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Postgres, QueryBuilder, Row};
use tiercache_core::tracking::{Query, Record, Totals};
use tiercache_core::{Generation, Key, Level, Tags, Timestamp};

use super::schema::{HEAD, id, tag, tag_hash, untag};
use super::to_sql;
use crate::span::Span;

/// Rows that are fetched at a time.
const CHUNK: usize = 5_000;

/// The columns of [`record_of`].
pub(super) const COLUMNS: &str =
    "id, namespace, key, generation, level, size, created, used, deadline, hits, tags";

/// What is asked.
pub(super) struct Reader {
    lookup: Arc<str>,
    find: Arc<str>,
    totals: Arc<str>,
}

/// A row's record, or `None` when it makes no sense.
pub(super) type Found = Option<Record>;

impl Reader {
    pub(super) fn new(tables: &str) -> Self {
        Self {
            lookup: format!("SELECT {COLUMNS} FROM {tables}record WHERE id = $1").into(),
            find: format!("SELECT {COLUMNS} FROM {tables}record WHERE true").into(),
            totals: format!(
                "SELECT hot_hits, cold_hits, dry_hits, misses, sets, deletes FROM {tables}totals WHERE id = 1"
            )
            .into(),
        }
    }

    pub(super) async fn lookup(
        &self,
        connection: &mut PgConnection,
        key: &Key,
    ) -> Result<Option<Found>, sqlx::Error> {
        let id = id(key.namespace(), key.bytes());
        let row =
            sqlx::query(AssertSqlSafe(self.lookup.clone())).bind(&id[..]).fetch_optional(connection).await?;
        // Another key of the same hash is no record of this one.
        let other = |found: &Found| found.as_ref().is_some_and(|record| record.key != *key);
        Ok(row.map(|row| record_of(&row)).filter(|found| !other(found)))
    }

    /// A page, and how many rows on the way to it made no sense.
    pub(super) async fn find(
        &self,
        connection: &mut PgConnection,
        query: &Query,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<(Vec<Record>, u64), sqlx::Error> {
        let (mut page, mut senseless) = (Vec::new(), 0);
        let Some(span) = Span::of(query, after) else { return Ok((page, 0)) };
        let mut part = Part::first(&span);
        while page.len() < limit {
            let count = CHUNK.min(limit - page.len());
            let mut select = self.select(query, &span, &part);
            select.push(" ORDER BY namespace, substring(key, 1, 1000), key LIMIT ").push_bind(count as i64);
            // Not kept: one that is planned anew knows how rare it is what is asked for.
            let rows = select.build().persistent(false).fetch_all(&mut *connection).await?;
            for row in &rows {
                match record_of(row) {
                    // The statement goes by one or the other glob more than matches.
                    Some(record) if query.matches(&record) => page.push(record),
                    Some(_) => {}
                    None => senseless += 1,
                }
            }
            part = match (rows.last(), part) {
                (Some(last), _) if rows.len() == count => {
                    Part::Within { namespace: last.try_get(1)?, from: Some((" > ", last.try_get(2)?)) }
                }
                (_, Part::Within { namespace, .. }) if span.namespace.is_none() => Part::Behind(namespace),
                _ => break,
            };
        }
        Ok((page, senseless))
    }

    fn select(&self, query: &Query, span: &Span<'_>, part: &Part) -> QueryBuilder<Postgres> {
        let mut select = QueryBuilder::new(&*self.find);
        match part {
            Part::All => {}
            Part::Behind(namespace) => {
                select.push(" AND namespace > ").push_bind(namespace.clone());
            }
            Part::Within { namespace, from } => {
                select.push(" AND namespace = ").push_bind(namespace.clone());
                if let Some((comparison, key)) = from {
                    select.push(" AND (substring(key, 1, 1000), key)").push(comparison).push("(");
                    select.push_bind(head(key).to_vec()).push(", ").push_bind(key.clone()).push(")");
                }
            }
        }
        if !span.prefix.is_empty() {
            if span.namespace.is_none() {
                select.push(" AND substring(key, 1, 1000) >= ").push_bind(head(span.prefix).to_vec());
                select.push(" AND key >= ").push_bind(span.prefix.to_vec());
            }
            if let Some(end) = behind(head(span.prefix)) {
                select.push(" AND substring(key, 1, 1000) < ").push_bind(end);
            }
            if let Some(end) = behind(span.prefix) {
                select.push(" AND key < ").push_bind(end);
            }
        }
        if let Some(glob) = query.glob.as_deref().filter(|glob| glob.as_bytes() != span.prefix) {
            select.push(" AND key LIKE ").push_bind(like(glob));
        }
        if let Some(level) = query.level {
            select.push(" AND level = ").push_bind(level.index() as i16);
        }
        if !query.tags.is_empty() {
            let tags: Vec<_> = query.tags.iter().map(|(name, value)| tag(name, value)).collect();
            let hashes: Vec<_> = tags.iter().map(|tag| tag_hash(tag)).collect();
            select.push(" AND tag_hashes @> ").push_bind(hashes).push(" AND tags @> ").push_bind(tags);
        }
        let millis = |time: Option<Timestamp>| time.map(Timestamp::as_millis);
        for (condition, bound) in [
            (" AND created >= ", millis(query.created_from)),
            (" AND created < ", millis(query.created_before)),
            (" AND size >= ", query.min_size),
            (" AND size <= ", query.max_size),
            (" AND hits >= ", query.min_hits),
            (" AND hits <= ", query.max_hits),
            (" AND deadline > ", millis(query.live_at)),
        ] {
            if let Some(bound) = bound {
                select.push(condition).push_bind(to_sql(bound));
            }
        }
        select
    }

    pub(super) async fn totals(&self, connection: &mut PgConnection) -> Result<Totals, sqlx::Error> {
        let row = sqlx::query(AssertSqlSafe(self.totals.clone())).fetch_optional(connection).await?;
        let Some(row) = row else { return Ok(Totals::default()) };
        let count =
            |column: usize| row.try_get::<i64, _>(column).map(|count| u64::try_from(count).unwrap_or(0));
        Ok(Totals {
            hits: [count(0)?, count(1)?, count(2)?],
            misses: count(3)?,
            sets: count(4)?,
            deletes: count(5)?,
        })
    }
}

/// What a statement looks through. A listing of all namespaces goes through one after the other: the server does not
/// see that an index has what is behind a key of a namespace, and all of those after it.
enum Part {
    All,
    /// One namespace, from a key on.
    Within {
        namespace: Vec<u8>,
        from: Option<(&'static str, Vec<u8>)>,
    },
    /// Every namespace after one.
    Behind(Vec<u8>),
}

impl Part {
    fn first(span: &Span<'_>) -> Self {
        let (from, key) = match &span.from {
            Bound::Excluded(key) => (Some((" > ", key.bytes().to_vec())), Some(key)),
            Bound::Included(key) => (Some((" >= ", key.bytes().to_vec())), Some(key)),
            Bound::Unbounded => (None, None),
        };
        match span.namespace.or(key.map(Key::namespace)) {
            Some(namespace) => Self::Within { namespace: namespace.as_bytes().to_vec(), from },
            None => Self::All,
        }
    }
}

/// The record of a row; `None` when it makes no sense.
pub(super) fn record_of(row: &PgRow) -> Option<Record> {
    let number = |column: usize| u64::try_from(row.try_get::<i64, _>(column).ok()?).ok();
    let time = |column| {
        // The highest number stands for a time without end.
        number(column)
            .map(|millis| Timestamp::from_millis(if millis == i64::MAX as u64 { u64::MAX } else { millis }))
    };
    let namespace = std::str::from_utf8(row.try_get(1).ok()?).ok()?;
    let level = usize::try_from(row.try_get::<i16, _>(4).ok()?).ok()?;
    let tags = row.try_get::<Vec<Vec<u8>>, _>(10).ok()?;
    Some(Record {
        key: Key::new(namespace, row.try_get::<&[u8], _>(2).ok()?).ok()?,
        generation: Generation::new(number(3)?),
        level: *Level::ALL.get(level)?,
        size: number(5)?,
        created: time(6)?,
        used: time(7)?,
        deadline: time(8)?,
        hits: number(9)?,
        tags: tags.iter().map(|tag| untag(tag)).collect::<Option<Tags>>()?,
    })
}

fn head(key: &[u8]) -> &[u8] {
    &key[..key.len().min(HEAD)]
}

/// The first key behind all that begin with `prefix`, if there is one.
fn behind(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// A pattern of `LIKE` for all that matches `glob`, and more where it has sets.
fn like(glob: &str) -> Vec<u8> {
    let mut pattern = Vec::new();
    let mut rest = glob.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = behind;
        match first {
            // What a set may mean depends on the brackets behind it.
            b'[' => {
                pattern.push(b'%');
                break;
            }
            b'*' => pattern.push(b'%'),
            b'?' => pattern.push(b'_'),
            b'\\' if !rest.is_empty() => {
                pattern.extend_from_slice(&[b'\\', rest[0]]);
                rest = &rest[1..];
            }
            plain @ (b'%' | b'_' | b'\\') => pattern.extend_from_slice(&[b'\\', *plain]),
            plain => pattern.push(*plain),
        }
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_become_patterns_that_find_no_less() {
        for (glob, pattern) in
            [("a*b?c", &b"a%b_c"[..]), ("100%_\\*\\", b"100\\%\\_\\*\\\\"), ("a[bc]d*", b"a%"), ("[", b"%")]
        {
            assert_eq!(like(glob), pattern, "{glob}");
        }
    }

    #[test]
    fn what_is_behind_a_prefix() {
        assert_eq!(behind(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(behind(&[1, 0xff]), Some(vec![2]));
        assert_eq!(behind(&[0xff]), None);
        assert_eq!(behind(b""), None);
    }
}
