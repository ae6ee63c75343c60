//! Tracking in PostgreSQL.
//!
//! A batch is one transaction: the rows of its keys are locked in one order, the events applied to them here, what
//! changed is written by one statement. Every call runs in a task of its own, so that a dropped future neither cuts a
//! statement short nor leaves an unread answer behind; batches of one process follow one another.

mod config;
mod lease;
mod pool;
mod read;
mod schema;
mod write;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::{ConnectOptions, Connection};
use tiercache_core::tracking::{Event, Query, Record, Totals, What};
use tiercache_core::{Error, Key, Leasing, Result, Tracking};
use tokio::sync::Mutex;
use tokio::time::timeout;

use self::lease::Leases;
use self::pool::{Lent, Pool};
use self::read::Reader;
use self::write::Writer;

pub use self::config::{PostgresConfig, Tls};

const NAME: &str = "postgres";
/// An invalidation of very many rows may take so many times as long as anything else.
const WIDE: u32 = 30;
/// Likewise making the tables, which waits for others that do.
const MIGRATING: u32 = 6;
/// How often a batch that the server gave up in favour of another is applied again.
const ATTEMPTS: usize = 4;
/// Calls that wait for a connection; more fail at once.
const WAITING: usize = 1_024;

/// Tracking in a PostgreSQL database that any number of processes share.
pub struct PostgresTracking {
    store: Arc<Store>,
    /// Held while a batch is written, so that batches are applied in order.
    writing: Arc<Mutex<()>>,
    timeout: Duration,
}

struct Store {
    place: String,
    config: PostgresConfig,
    pool: Pool,
    reader: Reader,
    writer: Writer,
    leases: Leases,
    skipped: AtomicU64,
}

impl PostgresTracking {
    /// Connects, and makes the tables when they are not there.
    ///
    /// # Errors
    /// [`Error::Config`] when the configuration cannot be used; [`Error::Refused`] when the server does not let us in
    /// or the tables are of a newer version; [`Error::Unavailable`] when it cannot be reached.
    pub async fn open(config: PostgresConfig) -> Result<Self> {
        config.check()?;
        let options = config.options()?;
        let place = match options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", options.get_host(), options.get_port()),
        };
        let late = |op, after| Error::TimedOut { backend: NAME, op, after };
        // By hand: the pool would only say that it had none.
        let connecting = timeout(config.connect_timeout, options.connect()).await;
        let mut connection = match connecting {
            Ok(connected) => connected.map_err(|error| opening(error, &place))?,
            Err(_) => {
                let late = late("connect", config.connect_timeout);
                return Err(Error::unavailable(NAME, "connect", At { place, source: late.into() }));
            }
        };
        let limit = config.timeout * MIGRATING;
        timeout(limit, schema::migrate(&mut connection, &config))
            .await
            .map_err(|_| late("migrate", limit))??;
        // What does not end well here ends when the process does.
        let _ = timeout(config.connect_timeout, connection.close()).await;
        let tables = schema::qualifier(&config);
        let store = Store {
            place,
            pool: pool::build(&config, options)?,
            config: config.clone(),
            reader: Reader::new(&tables),
            writer: Writer::new(&tables),
            leases: Leases::new(&tables),
            skipped: AtomicU64::new(0),
        };
        Ok(Self { store: Arc::new(store), writing: Arc::default(), timeout: config.timeout })
    }

    /// How many rows were skipped because they made no sense, each time they were met.
    pub fn skipped(&self) -> u64 {
        self.store.skipped.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for PostgresTracking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresTracking").field("place", &self.store.place).finish_non_exhaustive()
    }
}

#[async_trait]
impl Tracking for PostgresTracking {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn record(&self, events: &[Event]) -> Result<()> {
        self.store.check_open()?;
        if events.is_empty() {
            return Ok(());
        }
        let is_wide = |event: &Event| matches!(event.what, What::Invalidated { .. } | What::Flushed { .. });
        let limit = if events.iter().any(is_wide) { self.timeout * WIDE } else { self.timeout };
        let turn = self.writing.clone().lock_owned().await;
        let (store, events) = (self.store.clone(), events.to_vec());
        owned("record", limit, async move {
            let recorded = store.record(&events, limit).await;
            drop(turn);
            recorded
        })
        .await
    }

    async fn lookup(&self, key: &Key) -> Result<Option<Record>> {
        let (store, key) = (self.store.clone(), key.clone());
        owned("lookup", self.timeout, async move { store.lookup(&key).await }).await
    }

    async fn find(&self, query: &Query, after: Option<&Key>, limit: usize) -> Result<Vec<Record>> {
        let (store, query, after) = (self.store.clone(), query.clone(), after.cloned());
        owned("find", self.timeout, async move { store.find(&query, after.as_ref(), limit).await }).await
    }

    async fn totals(&self) -> Result<Totals> {
        let store = self.store.clone();
        owned("totals", self.timeout, async move { store.totals().await }).await
    }

    async fn reset_totals(&self) -> Result<()> {
        self.store.check_open()?;
        let turn = self.writing.clone().lock_owned().await;
        let store = self.store.clone();
        owned("reset totals", self.timeout, async move {
            let reset = store.reset_totals().await;
            drop(turn);
            reset
        })
        .await
    }

    async fn close(&self) -> Result<()> {
        // What is being written is written first; every call ends in time.
        let _turn = self.writing.lock().await;
        self.store.pool.close();
        Ok(())
    }

    fn leasing(&self) -> Option<&dyn Leasing> {
        Some(self)
    }
}

impl Store {
    fn check_open(&self) -> Result<()> {
        if self.pool.is_closed() { Err(Error::Closed) } else { Ok(()) }
    }

    async fn lend(&self, op: &'static str) -> Result<Lent> {
        self.check_open()?;
        if self.pool.status().waiting >= WAITING {
            return Err(Error::unavailable(NAME, op, "too many calls wait for a connection"));
        }
        Lent::of(&self.pool, op).await
    }

    async fn record(&self, events: &[Event], limit: Duration) -> Result<()> {
        let mut attempt = 1;
        loop {
            let mut lent = self.lend("record").await?;
            match self.writer.record(lent.connection()?, events, limit).await {
                Ok(()) => {
                    lent.give_back();
                    return Ok(());
                }
                Err(error) if attempt < ATTEMPTS && is_conflict(&error) => {
                    tracing::debug!(%error, attempt, "a batch met another one and is applied again");
                    attempt += 1;
                }
                Err(error) if attempt < ATTEMPTS && is_gone(&error) => {
                    self.make_tables().await?;
                    attempt += 1;
                }
                Err(error) => return Err(failed("record")(error)),
            }
        }
    }

    async fn lookup(&self, key: &Key) -> Result<Option<Record>> {
        let mut lent = self.lend("lookup").await?;
        let found = match self.reader.lookup(lent.connection()?, key).await {
            Ok(found) => found,
            Err(error) => return Err(self.failed("lookup", error).await),
        };
        lent.give_back();
        Ok(found.and_then(|found| {
            if found.is_none() {
                self.note_skipped(1);
            }
            found
        }))
    }

    async fn find(&self, query: &Query, after: Option<&Key>, limit: usize) -> Result<Vec<Record>> {
        let mut lent = self.lend("find").await?;
        let (page, senseless) = match self.reader.find(lent.connection()?, query, after, limit).await {
            Ok(found) => found,
            Err(error) => return Err(self.failed("find", error).await),
        };
        lent.give_back();
        self.note_skipped(senseless);
        Ok(page)
    }

    async fn totals(&self) -> Result<Totals> {
        let mut lent = self.lend("totals").await?;
        let totals = match self.reader.totals(lent.connection()?).await {
            Ok(totals) => totals,
            Err(error) => return Err(self.failed("totals", error).await),
        };
        lent.give_back();
        Ok(totals)
    }

    async fn reset_totals(&self) -> Result<()> {
        let mut lent = self.lend("reset totals").await?;
        self.writer.reset_totals(lent.connection()?).await.map_err(failed("reset totals"))?;
        lent.give_back();
        Ok(())
    }

    /// What a question failed with. Should the tables be gone, they are there for the next one.
    async fn failed(&self, op: &'static str, error: sqlx::Error) -> Error {
        if is_gone(&error)
            && let Err(error) = self.make_tables().await
        {
            return error;
        }
        failed(op)(error)
    }

    /// Makes the tables that somebody has dropped.
    async fn make_tables(&self) -> Result<()> {
        tracing::warn!(place = self.place, "the tracking tables are gone and are made anew");
        let mut lent = self.lend("migrate").await?;
        schema::migrate(lent.connection()?, &self.config).await?;
        lent.give_back();
        Ok(())
    }

    fn note_skipped(&self, rows: u64) {
        if rows > 0 {
            self.skipped.fetch_add(rows, Ordering::Relaxed);
            tracing::warn!(rows, "rows of the tracking tables make no sense and were skipped");
        }
    }
}

/// Runs `work` to its end, or its limit, whatever becomes of the caller.
async fn owned<T: Send + 'static>(
    op: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match tokio::spawn(timeout(limit, work)).await {
        Ok(Ok(done)) => done,
        Ok(Err(_)) => Err(Error::TimedOut { backend: NAME, op, after: limit }),
        Err(error) if error.is_panic() => Err(Error::Panicked { what: "postgres tracking" }),
        Err(error) => Err(Error::unavailable(NAME, op, error)),
    }
}

fn failed(op: &'static str) -> impl Fn(sqlx::Error) -> Error {
    move |error| {
        let missing = |code: &str| ["42501", "3F000"].contains(&code);
        match error.as_database_error().map(|error| (error.code(), error.message())) {
            Some((Some(code), message)) if missing(&code) => Error::Refused(format!(
                "{NAME}: {message} ({op}): grant it, or name another schema in tracking.schema"
            )),
            _ => Error::unavailable(NAME, op, error),
        }
    }
}

/// Why nothing could be opened, with the place and what to change.
fn opening(error: sqlx::Error, place: &str) -> Error {
    let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
    let told = |change: &str| {
        let message = error.as_database_error().map_or_else(String::new, |error| error.message().to_owned());
        Error::Refused(format!("{NAME} at {place}: {message}: set {change}"))
    };
    match code.as_str() {
        "28P01" | "28000" => told("tracking.user and tracking.password, or the url"),
        "3D000" => told("tracking.database, or the url"),
        _ => Error::unavailable(NAME, "connect", At { place: place.to_owned(), source: error.into() }),
    }
}

/// Whether the server gave the transaction up so that another could go on.
fn is_conflict(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == "40P01" || code == "40001")
}

/// Whether there is no such table, or no such schema.
fn is_gone(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == "42P01" || code == "3F000")
}

/// Where it happened.
#[derive(Debug, thiserror::Error)]
#[error("tracking at {place}: {source}")]
struct At {
    place: String,
    source: tiercache_core::BoxError,
}

/// Numbers are kept as PostgreSQL's, which are signed: what is beyond stays at the top.
fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
