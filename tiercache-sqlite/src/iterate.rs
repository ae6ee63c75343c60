//! Pages of entries, and iterations that see one moment.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rusqlite::Connection;
use rusqlite::types::Value;
use tiercache_core::tier::ListedEntry;
use tiercache_core::{Codec, Error, Key, Result};

use crate::SqliteTier;
use crate::fences::Fences;
use crate::room::key_of;
use crate::shard::{Shard, lock};
use crate::tier::NAME;
use crate::values::{number, sql};

/// Bytes of rows after which a page ends early.
const HEAVY: u64 = 16 << 20;

/// What is looked for. Each condition has an index; the default is everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// In that namespace.
    pub namespace: Option<String>,
    /// Whose key begins so.
    pub prefix: Vec<u8>,
    /// Which carries a tag of that name and value.
    pub tag: Option<(String, String)>,
}

/// Entries as they were when the iteration began, whatever is put and removed meanwhile; it holds up nobody. The
/// log that SQLite keeps grows until it ends.
///
/// Shards are pinned one after the other when it begins: changes made in that moment may be in or not.
#[derive(Debug)]
pub struct Iteration {
    pinned: Vec<(Arc<Shard>, Arc<Mutex<Connection>>)>,
    filter: Filter,
    at: usize,
    after: After,
}

impl SqliteTier {
    /// Begins an iteration over what matches.
    ///
    /// # Errors
    /// [`Error::Closed`], and [`Error::Unavailable`] when a database cannot be read.
    pub async fn iterate(&self, filter: Filter) -> Result<Iteration> {
        self.check_open()?;
        let shards = self.shards.clone();
        let pin = move || -> rusqlite::Result<_> {
            let pinned = shards.into_iter().map(|shard| {
                let connection = shard.reader()?;
                connection.execute_batch("BEGIN")?;
                connection.query_row("SELECT 1 FROM state WHERE id = 1", (), |_| Ok(()))?;
                Ok((shard, Arc::new(Mutex::new(connection))))
            });
            pinned.collect()
        };
        let pinned = blocking(pin).await?;
        Ok(Iteration { pinned, filter, at: 0, after: After::default() })
    }
}

impl Iteration {
    /// The next entries, without their values: at most `limit`, none after the last. A call that is dropped has
    /// taken nothing.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when a database cannot be read.
    pub async fn next(&mut self, limit: usize) -> Result<Vec<ListedEntry>> {
        while let Some((shard, connection)) = self.pinned.get(self.at).cloned() {
            let (filter, after) = (self.filter.clone(), self.after.clone());
            let found =
                blocking(move || page(&shard, &lock(&connection), &filter, &after, limit.max(1))).await?;
            match found.next {
                Some(next) => self.after = next,
                None => (self.at, self.after) = (self.at + 1, After::default()),
            }
            if !found.entries.is_empty() {
                return Ok(found.entries);
            }
        }
        Ok(Vec::new())
    }
}

impl Drop for Iteration {
    fn drop(&mut self) {
        // Closing does I/O, and this may be a runtime's thread.
        let pinned = std::mem::take(&mut self.pinned);
        let close = std::thread::Builder::new().name("tiercache-sq-end".into()).spawn(|| drop(pinned));
        if let Err(error) = close {
            tracing::debug!(tier = NAME, %error, "connections closed in place");
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> rusqlite::Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Error::Panicked { what: "an iteration" })?
        .map_err(|error| Error::unavailable(NAME, "iterate", error))
}

/// Where a page ended.
#[derive(Clone, Debug, Default)]
pub(crate) enum After {
    #[default]
    Beginning,
    Key(Key),
    /// By a tag, entries come in the order of their rows.
    Row(i64),
}

/// Some entries of a shard.
pub(crate) struct Page {
    pub(crate) entries: Vec<ListedEntry>,
    /// Where the next begins, if there may be one.
    pub(crate) next: Option<After>,
    /// Whether it was ended for its bytes.
    pub(crate) heavy: bool,
}

/// At most `limit` rows that match, as far as they are whole and alive.
pub(crate) fn page(
    shard: &Shard,
    connection: &Connection,
    filter: &Filter,
    after: &After,
    limit: usize,
) -> rusqlite::Result<Page> {
    let version = connection
        .prepare_cached("SELECT fences FROM state WHERE id = 1")?
        .query_row((), |row| row.get(0))?;
    shard.catch_up(connection, version)?;
    rows(connection, &shard.common.codec, &shard.fences(), filter, after, limit)
}

/// Likewise, judged by these fences.
pub(crate) fn rows(
    connection: &Connection,
    codec: &Codec,
    fences: &Fences,
    filter: &Filter,
    after: &After,
    limit: usize,
) -> rusqlite::Result<Page> {
    let (text, values) = select(filter, after, limit);
    let mut statement = connection.prepare_cached(&text)?;
    let mut rows = statement.query(rusqlite::params_from_iter(values))?;
    let mut page = Page { entries: Vec::new(), next: None, heavy: false };
    let (mut seen, mut bytes) = (0, 0);
    while let Some(row) = rows.next()? {
        seen += 1;
        let Ok(key) = key_of(row, 1) else { continue };
        bytes += row.get_ref(4)?.as_blob().map_or(0, |value| value.len() as u64);
        page.next = Some(match filter.tag {
            Some(_) => After::Row(row.get(0)?),
            None => After::Key(key.clone()),
        });
        let value = Bytes::from(row.get::<_, Vec<u8>>(4)?);
        // What is damaged is removed where it is asked for.
        if let Ok(mut entry) = codec.decode_for(key.as_ref(), &value)
            && key.bytes().starts_with(&filter.prefix)
            && !fences.cover(&key, &entry)
        {
            entry.value = Bytes::new();
            page.entries.push(ListedEntry { key, entry, size: number(row.get(3)?) });
        }
        if bytes >= HEAVY && seen < limit {
            page.heavy = true;
            return Ok(page);
        }
    }
    if seen < limit {
        page.next = None;
    }
    Ok(page)
}

fn select(filter: &Filter, after: &After, limit: usize) -> (String, Vec<Value>) {
    let mut text = "SELECT entry.id, namespace, key, length, entry.value FROM ".to_owned();
    let mut values = Vec::new();
    let mut conditions = Vec::new();
    let mut given = |value: Value| {
        values.push(value);
        format!("?{}", values.len())
    };
    match &filter.tag {
        Some((name, value)) => {
            text.push_str("tag CROSS JOIN entry ON entry.id = tag.entry");
            conditions.push(format!("tag.name = {}", given(name.clone().into())));
            conditions.push(format!("tag.value = {}", given(value.clone().into())));
        }
        None => text.push_str("entry"),
    }
    if let Some(namespace) = &filter.namespace {
        conditions.push(format!("namespace = {}", given(namespace.clone().into())));
    }
    if !filter.prefix.is_empty() {
        conditions.push(format!("key >= {}", given(filter.prefix.clone().into())));
        if let Some(end) = end_of(&filter.prefix) {
            conditions.push(format!("key < {}", given(end.into())));
        }
    }
    match after {
        After::Beginning => {}
        After::Row(row) => conditions.push(format!("tag.entry > {}", given((*row).into()))),
        After::Key(key) if filter.namespace.is_some() => {
            conditions.push(format!("key > {}", given(key.bytes().to_vec().into())));
        }
        After::Key(key) => {
            let (namespace, key) =
                (given(key.namespace().to_owned().into()), given(key.bytes().to_vec().into()));
            conditions.push(format!("(namespace, key) > ({namespace}, {key})"));
        }
    }
    if !conditions.is_empty() {
        text = format!("{text} WHERE {}", conditions.join(" AND "));
    }
    let order = if filter.tag.is_some() { "tag.entry" } else { "namespace, key" };
    let limit = given(sql(limit as u64).into());
    (format!("{text} ORDER BY {order} LIMIT {limit}"), values)
}

/// The first key after all that begin with `prefix`.
fn end_of(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte < u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}
