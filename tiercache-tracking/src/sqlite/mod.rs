//! Tracking in an SQLite file.
//!
//! One connection writes, a transaction per batch; one answers look-ups and one lists, so that neither waits for the
//! other. Each is lent to one blocking task at a time. A future dropped while it waits for its connection has
//! done nothing; one dropped later leaves its task to finish.

mod place;
mod read;
mod schema;
mod write;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use tiercache_core::tracking::{Event, Query, Record, Totals};
use tiercache_core::{Error, Key, Result, Tracking};
use tokio::sync::Mutex;

const NAME: &str = "sqlite";

/// How a [`SqliteTracking`] is opened.
///
/// ```yaml
/// tracking: { backend: sqlite, path: ./cache/index.db }
/// ```
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SqliteConfig {
    /// The database's file, made with its folder when it is not there. No default: caches that do not share
    /// their tiers must not share it.
    ///
    /// ```yaml
    /// path: ./cache/index.db
    /// ```
    pub path: PathBuf,
}

/// Tracking in an SQLite file: records and totals survive a restart, and several processes may share it.
#[derive(Debug)]
pub struct SqliteTracking {
    writes: Lane,
    lookups: Lane,
    listings: Lane,
    skipped: Arc<AtomicU64>,
    /// Whether nothing may be written.
    looks: bool,
}

/// What [`SqliteTracking::look`] finds.
#[derive(Debug)]
pub enum Look {
    /// No database.
    Absent,
    /// One that is of no use, and why: opening it would set it aside.
    Damaged(String),
    /// One that can be read.
    Sound(SqliteTracking),
}

impl SqliteTracking {
    /// Opens the database, making it when it is not there. One that is damaged is set aside and made anew.
    ///
    /// # Errors
    /// [`Error::Refused`] when the file is not safe to use or not ours; [`Error::Unavailable`] when the system
    /// does not let us.
    pub async fn open(config: SqliteConfig) -> Result<Self> {
        let [writes, lookups, listings] = blocking(move || {
            let opened = schema::open(&config.path)?;
            Ok([opened.writer, opened.lookups, opened.listings].map(Lane::new))
        })
        .await?;
        Ok(Self { writes, lookups, listings, skipped: Arc::default(), looks: false })
    }

    /// Looks at what a database remembers. Nothing is made, mended or set aside, and what is recorded fails.
    ///
    /// # Errors
    /// [`Error::Refused`] when the file is not safe to use or not ours; [`Error::Unavailable`] when the system
    /// does not let us.
    pub async fn look(config: SqliteConfig) -> Result<Look> {
        let opened = blocking(move || schema::look(&config.path)).await?;
        Ok(match opened {
            None => Look::Absent,
            Some(Err(reason)) => Look::Damaged(reason),
            Some(Ok(opened)) => {
                let [writes, lookups, listings] =
                    [opened.writer, opened.lookups, opened.listings].map(Lane::new);
                Look::Sound(Self { writes, lookups, listings, skipped: Arc::default(), looks: true })
            }
        })
    }

    /// How many rows were skipped because they made no sense, each time they were met.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Tracking for SqliteTracking {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn record(&self, events: &[Event]) -> Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        let events = events.to_vec();
        self.writes.run("record", move |connection| write::record(connection, &events)).await
    }

    async fn lookup(&self, key: &Key) -> Result<Option<Record>> {
        let (key, skipped) = (key.clone(), self.skipped.clone());
        self.lookups.run("lookup", move |connection| read::lookup(connection, &key, &skipped)).await
    }

    async fn find(&self, query: &Query, after: Option<&Key>, limit: usize) -> Result<Vec<Record>> {
        let (query, after, skipped) = (query.clone(), after.cloned(), self.skipped.clone());
        self.listings
            .run("find", move |connection| read::find(connection, &query, after.as_ref(), limit, &skipped))
            .await
    }

    async fn totals(&self) -> Result<Totals> {
        self.lookups.run("totals", |connection| read::totals(connection)).await
    }

    async fn reset_totals(&self) -> Result<()> {
        self.writes.run("reset totals", write::reset_totals).await
    }

    async fn close(&self) -> Result<()> {
        // Readers first: the connection that closes last brings the log home.
        for lane in [&self.listings, &self.lookups] {
            lane.close(|_| Ok(())).await?;
        }
        let last = if self.looks { |_: &mut Connection| Ok(()) } else { schema::mark_clean };
        self.writes.close(last).await
    }
}

impl Drop for SqliteTracking {
    fn drop(&mut self) {
        // Closing does I/O, and the last handle may be dropped on a runtime's thread.
        let idle = [&self.listings, &self.lookups, &self.writes].map(Lane::take);
        if idle.iter().any(Option::is_some)
            && let Err(error) =
                std::thread::Builder::new().name("tiercache-sqlite".into()).spawn(|| drop(idle))
        {
            tracing::debug!(%error, "connections closed in place");
        }
    }
}

/// A connection that serves one call at a time. None once it is closed.
#[derive(Debug)]
struct Lane(Arc<Mutex<Option<Connection>>>);

impl Lane {
    fn new(connection: Connection) -> Self {
        Self(Arc::new(Mutex::new(Some(connection))))
    }

    async fn run<T: Send + 'static>(
        &self,
        op: &'static str,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut lent = self.0.clone().lock_owned().await;
        blocking(move || {
            let connection = lent.as_mut().ok_or(Error::Closed)?;
            work(connection).map_err(|error| Error::unavailable(NAME, op, error))
        })
        .await
    }

    async fn close(
        &self,
        last: impl FnOnce(&mut Connection) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<()> {
        let mut lent = self.0.clone().lock_owned().await;
        blocking(move || {
            let Some(mut connection) = lent.take() else { return Ok(()) };
            last(&mut connection)
                .and_then(|()| connection.close().map_err(|(_, error)| error))
                .map_err(|error| Error::unavailable(NAME, "close", error))
        })
        .await
    }

    /// The connection, unless a call is under way: then it ends with that call.
    fn take(&self) -> Option<Connection> {
        self.0.try_lock().ok()?.take()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| match error.is_panic() {
        true => Err(Error::Panicked { what: "sqlite tracking" }),
        false => Err(Error::unavailable(NAME, "start work", error)),
    })
}

/// Numbers are kept as SQLite's, which are signed: what is beyond stays at the top.
fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_its_path_alone() {
        let read = |text| serde_json::from_str::<SqliteConfig>(text);
        assert_eq!(read(r#"{"path": "./index.db"}"#).unwrap().path, PathBuf::from("./index.db"));
        assert!(read("{}").unwrap_err().to_string().contains("path"));
        assert!(read(r#"{"path": "x", "file": "y"}"#).unwrap_err().to_string().contains("file"));
    }
}
