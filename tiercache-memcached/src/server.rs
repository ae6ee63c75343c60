//! One server: a pool of connections to it, and the record it keeps.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_memcached::{Client, Error as ClientError, ErrorKind, MetaProtocol, MetaValue, Status};
use deadpool::managed::{self, Metrics, Object, Pool, PoolError, RecycleError, RecycleResult, TimeoutType};
use tiercache_core::tier::HighWater;
use tiercache_core::{BoxError, Error, Generation, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::MutexGuard;
use tokio::time::Instant;

use crate::MemcachedConfig;
use crate::batch::by_name;
use crate::record::Record;
use crate::wire::{DialWire, Write};

pub(crate) const NAME: &str = "memcached";

/// How long a record is relied on without asking for it again.
const FRESH: Duration = Duration::from_secs(1);
/// A connection that nobody used for so long is asked whether it still works.
pub(crate) const IDLE: Duration = Duration::from_secs(1);
/// How often a change is tried that others keep overtaking.
pub(crate) const TRIES: usize = 200;

/// A server, and what is known of it.
pub(crate) struct Server {
    /// As it is dialled.
    pub(crate) address: String,
    pool: Pool<Dial>,
    /// For writes of many items at once.
    wires: Pool<DialWire>,
    timeout: Duration,
    connect_timeout: Duration,
    /// The name of the record's item.
    record: String,
    servers: Arc<BTreeSet<String>>,
    known: Mutex<Option<Known>>,
    /// Held while the record is read or changed.
    reading: tokio::sync::Mutex<()>,
}

/// A record as it was a moment ago.
#[derive(Clone)]
pub(crate) struct Known {
    pub(crate) record: Arc<Record>,
    /// How far the record of this era covers generations.
    high: Arc<HighWater>,
    /// When it was last asked for; `None` when it must be asked for before it is relied on.
    read: Option<Instant>,
}

impl Known {
    fn is_fresh(&self) -> bool {
        self.read.is_some_and(|read| read.elapsed() < FRESH)
    }
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    Stored,
    /// The item is no longer what the condition says.
    Changed,
    TooLarge,
    Full,
}

/// Reads once more if a connection had died, as all do when a server is started again.
macro_rules! again {
    ($server:expr, $asked:expr) => {
        match $asked.await {
            Err(error) if hung_up(&error) => {
                $server.hang_up();
                $asked.await
            }
            answer => answer,
        }
    };
}

/// A record as it stands, and what a change of it depends on: its CAS, or that there is none.
pub(crate) type Stands = (Option<Record>, Option<u64>);

impl Server {
    pub(crate) fn new(
        address: String,
        config: &MemcachedConfig,
        record: String,
        servers: Arc<BTreeSet<String>>,
    ) -> Result<Self> {
        let clients = pool(Dial(address.clone()), config.connections, config)?;
        let wires = pool(DialWire(address.clone()), config.connections.div_ceil(4), config)?;
        let MemcachedConfig { timeout, connect_timeout, .. } = *config;
        let (known, reading) = (Mutex::default(), tokio::sync::Mutex::default());
        Ok(Self { address, pool: clients, wires, timeout, connect_timeout, record, servers, known, reading })
    }

    /// The item of that name with what `wanted` asks for.
    pub(crate) async fn get(
        &self,
        op: &'static str,
        name: &str,
        wanted: &[&str],
    ) -> Result<Option<MetaValue>> {
        let asked = async || {
            let mut client = self.client(op).await?;
            self.answer(op, client.meta_get(name, false, None, Some(wanted))).await
        };
        again!(self, asked())
    }

    /// Those of two items that are there, in one round trip.
    pub(crate) async fn pair(
        &self,
        op: &'static str,
        names: [&str; 2],
        wanted: &[&str],
    ) -> Result<[Option<MetaValue>; 2]> {
        let asked = async || {
            let mut client = self.client(op).await?;
            self.answer(op, client.meta_get_multi(&names, Some(wanted))).await
        };
        let mut found = again!(self, asked())?;
        Ok(names.map(|name| {
            let at = found.iter().position(|item| item.key.as_deref() == Some(name.as_bytes()));
            at.map(|at| found.swap_remove(at))
        }))
    }

    /// Those of many items that are there, each in the place of its name, in one round trip.
    pub(crate) async fn get_many(
        &self,
        op: &'static str,
        names: &[String],
        wanted: &[&str],
    ) -> Result<Vec<Option<MetaValue>>> {
        let asked = async || {
            let mut client = self.client(op).await?;
            self.answer(op, client.meta_get_multi(names, Some(wanted))).await
        };
        Ok(by_name(names, again!(self, asked())?))
    }

    /// Makes many writes in one, each on its own condition.
    pub(crate) async fn set_many(&self, op: &'static str, writes: &[Write<'_>]) -> Result<Vec<Written>> {
        if writes.is_empty() {
            return Ok(Vec::new());
        }
        let wire = self.wires.get().await;
        let mut wire =
            wire.map_err(|error| self.refused(op, error, |error| Error::unavailable(NAME, op, error)))?;
        let written = self.in_time(op, wire.set_many(writes)).await?;
        written.map_err(|error| Error::unavailable(NAME, op, error))
    }

    /// Writes an item if it is still the one with that CAS; without a CAS, if there is none.
    pub(crate) async fn set(
        &self,
        op: &'static str,
        name: &str,
        value: &[u8],
        cas: Option<u64>,
        flags: [&str; 2],
    ) -> Result<Written> {
        self.set_seen(op, name, value, cas, flags).await.map(|(written, _)| written)
    }

    /// Likewise, with the CAS of what was written.
    pub(crate) async fn set_seen(
        &self,
        op: &'static str,
        name: &str,
        value: &[u8],
        cas: Option<u64>,
        [flags, expiry]: [&str; 2],
    ) -> Result<(Written, Option<u64>)> {
        let condition = cas.map_or_else(|| "ME".to_owned(), |cas| format!("C{cas}"));
        let mut client = self.client(op).await?;
        let meta = [condition.as_str(), flags, expiry, "c"];
        let written = match self.in_time(op, client.meta_set(name, value, false, None, Some(&meta))).await? {
            Ok(stored) => return Ok((Written::Stored, stored.and_then(|stored| stored.cas))),
            Err(ClientError::Protocol(Status::NotStored | Status::Exists | Status::NotFound)) => {
                Ok(Written::Changed)
            }
            Err(ClientError::Protocol(Status::Error(ErrorKind::Server(said))))
                if said.contains("too large") =>
            {
                Ok(Written::TooLarge)
            }
            Err(ClientError::Protocol(Status::Error(ErrorKind::Server(said))))
                if said.contains("out of memory") =>
            {
                Ok(Written::Full)
            }
            Err(error) => Err(lost(op, error)),
        };
        written.map(|written| (written, None))
    }

    /// Removes an item if it is still the one with that CAS; whether it did.
    pub(crate) async fn delete(&self, op: &'static str, name: &str, cas: u64) -> Result<bool> {
        let mut client = self.client(op).await?;
        match self.in_time(op, client.meta_delete(name, false, None, Some(&[&format!("C{cas}")]))).await? {
            Ok(_) => Ok(true),
            Err(ClientError::Protocol(Status::NotFound | Status::Exists)) => Ok(false),
            Err(error) => Err(lost(op, error)),
        }
    }

    /// Adds to a number if it is still the one with that CAS; `None` when it is not. The sum wraps around.
    pub(crate) async fn add(
        &self,
        op: &'static str,
        name: &str,
        delta: u64,
        cas: u64,
    ) -> Result<Option<MetaValue>> {
        let mut client = self.client(op).await?;
        let meta = [format!("C{cas}"), "v".to_owned()];
        let meta = meta.each_ref().map(String::as_str);
        match self.in_time(op, client.meta_increment(name, false, None, Some(delta), Some(&meta))).await? {
            Ok(sum) => Ok(sum),
            Err(ClientError::Protocol(Status::NotFound | Status::Exists | Status::NotStored)) => Ok(None),
            Err(error) => Err(lost(op, error)),
        }
    }

    /// Figures of the server's own statistics.
    pub(crate) async fn figures<const N: usize>(&self, names: [&str; N]) -> Result<[u64; N]> {
        let asked = async || {
            let mut client = self.client("stats").await?;
            self.answer("stats", client.stats()).await
        };
        let stats = again!(self, asked())?;
        Ok(names.map(|name| stats.get(name).and_then(|figure| figure.parse().ok()).unwrap_or_default()))
    }

    /// The most bytes of an item. The client cannot ask for settings.
    pub(crate) async fn item_size_max(&self) -> Result<u64> {
        let failed = |error: std::io::Error| Error::unavailable(NAME, "settings", error);
        let asked = async {
            match self.address.strip_prefix("unix://") {
                #[cfg(unix)]
                Some(path) => settings(tokio::net::UnixStream::connect(path).await?).await,
                #[cfg(not(unix))]
                Some(_) => Err(std::io::ErrorKind::Unsupported.into()),
                None => {
                    let place = self.address.trim_start_matches("tcp://");
                    settings(tokio::net::TcpStream::connect(place).await?).await
                }
            }
        };
        let limit = self.connect_timeout + self.timeout;
        let timed_out = Error::TimedOut { backend: NAME, op: "settings", after: limit };
        let settings = tokio::time::timeout(limit, asked).await.map_err(|_| timed_out)?.map_err(failed)?;
        let size = settings.lines().find_map(|line| line.strip_prefix("STAT item_size_max "));
        let size = size.and_then(|size| size.trim().parse().ok());
        size.ok_or_else(|| Error::unavailable(NAME, "settings", "it does not tell its item_size_max"))
    }

    /// What is known of the record, not older than a second.
    pub(crate) async fn known(&self, op: &'static str) -> Result<Known> {
        if let Some(known) = self.last().filter(Known::is_fresh) {
            return Ok(known);
        }
        let _one = self.turn(op).await?;
        match self.last().filter(Known::is_fresh) {
            Some(known) => Ok(known),
            None => self.reread(op, |_| ()).await,
        }
    }

    /// The record as it is now.
    pub(crate) async fn asked(&self, op: &'static str) -> Result<Known> {
        let asked = Instant::now();
        let (found, _) = self.stands(op).await?;
        if let Some(known) = found.and_then(|record| self.confirm(&record, asked)) {
            return Ok(known);
        }
        let _one = self.turn(op).await?;
        self.reread(op, |_| ()).await
    }

    /// Changes the record. What `change` does it may do several times.
    pub(crate) async fn update(&self, op: &'static str, change: impl Fn(&mut Record)) -> Result<Known> {
        let _one = self.turn(op).await?;
        self.reread(op, change).await
    }

    /// Returns when the record says that generations may go up to `generation`.
    pub(crate) async fn cover(&self, op: &'static str, known: &Known, generation: Generation) -> Result<()> {
        let raise = |wanted| async move {
            let known = self.update(op, |record| record.raise(wanted)).await?;
            Ok(Generation::new(known.record.generations))
        };
        known.high.cover(generation.min(Generation::MAX), raise).await
    }

    /// The record as it was when it was last read.
    pub(crate) fn last(&self) -> Option<Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The record, and what a change of it depends on. What is there and is no record counts as none.
    pub(crate) async fn stands(&self, op: &'static str) -> Result<Stands> {
        let found = self.get(op, &self.record, &["v", "c"]).await?;
        Ok((found.as_ref().and_then(read), found.and_then(|found| found.cas)))
    }

    /// Writes the record over what stands there; whether it still stood.
    pub(crate) async fn replace(&self, op: &'static str, record: Record, stood: Option<u64>) -> Result<bool> {
        let asked = Instant::now();
        let written = self.set(op, &self.record, &record.encode(), stood, ["F0", "T0"]).await?;
        match written {
            Written::Stored => {
                self.adopt(record, asked);
                Ok(true)
            }
            Written::Changed => Ok(false),
            Written::TooLarge | Written::Full => {
                Err(Error::unavailable(NAME, op, "the server has no room for the level's record"))
            }
        }
    }

    /// The name of the record's item.
    pub(crate) fn record_name(&self) -> &str {
        &self.record
    }

    /// Whether the record is still the one that is known, as it was read beside something else that was asked for then.
    pub(crate) fn confirms(&self, known: &Known, found: Option<&MetaValue>, asked: Instant) -> bool {
        let record = found.and_then(read).filter(|record| *record == *known.record);
        record.and_then(|record| self.confirm(&record, asked)).is_some()
    }

    /// Closes idle connections, and forgets what was known: if the server was started again it knows nothing either.
    fn hang_up(&self) {
        let _ = self.pool.retain(|_, _| false);
        let _ = self.wires.retain(|_, _| false);
        if let Some(known) = &mut *self.known.lock().unwrap_or_else(PoisonError::into_inner) {
            known.read = None;
        }
    }

    pub(crate) fn close(&self) {
        self.pool.close();
        self.wires.close();
    }

    /// Reads the record, changes it, and writes it if that made a difference. A record that is gone, or that somebody
    /// left who did not hear of a change, is written anew with another era: everything older is a miss.
    async fn reread(&self, op: &'static str, change: impl Fn(&mut Record)) -> Result<Known> {
        for _ in 0..TRIES {
            let asked = Instant::now();
            let (found, cas) = self.stands(op).await?;
            let own = self.last();
            let of_ours = |record: &Record| match &own {
                Some(own) if own.record.is_overruled_by(record) => {
                    Err(Error::unavailable(NAME, op, "another process divides the keys among other servers"))
                }
                Some(own) => Ok(!own.record.overrules(record)),
                None => Ok(true),
            };
            let kept = match found {
                Some(record) if of_ours(&record)? => Some(record),
                _ => None,
            };
            let mut record = kept.clone().unwrap_or_else(|| {
                tracing::warn!(server = self.address, "the record is lost, the level begins anew");
                let known = own.map(|own| Record::clone(&own.record));
                known.unwrap_or_else(|| Record::settled(None, &[], &self.servers)).reborn()
            });
            change(&mut record);
            if kept.as_ref() == Some(&record) {
                return Ok(self.adopt(record, asked));
            }
            if self.replace(op, record, cas).await?
                && let Some(known) = self.last()
            {
                return Ok(known);
            }
        }
        Err(Error::unavailable(NAME, op, "the record changes faster than it can be read"))
    }

    /// Waits for its turn at the record.
    async fn turn(&self, op: &'static str) -> Result<MutexGuard<'_, ()>> {
        self.in_time(op, self.reading.lock()).await
    }

    /// What is known, if that is what was read.
    fn confirm(&self, record: &Record, asked: Instant) -> Option<Known> {
        let mut last = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = last.as_mut().filter(|known| *known.record == *record)?;
        known.read = known.read.max(Some(asked));
        Some(known.clone())
    }

    fn adopt(&self, record: Record, read: Instant) -> Known {
        let mut last = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let high = match &*last {
            Some(known) if known.record.era == record.era => known.high.clone(),
            _ => Arc::new(HighWater::new(Generation::new(record.generations))),
        };
        let known = Known { record: Arc::new(record), high, read: Some(read) };
        *last = Some(known.clone());
        known
    }

    async fn client(&self, op: &'static str) -> Result<Object<Dial>> {
        self.pool.get().await.map_err(|error| self.refused(op, error, |error| lost(op, error)))
    }

    /// Why a pool gives out no connection.
    fn refused<E: fmt::Display>(
        &self,
        op: &'static str,
        error: PoolError<E>,
        backend: impl FnOnce(E) -> Error,
    ) -> Error {
        let timed_out = |after| Error::TimedOut { backend: NAME, op, after };
        match error {
            PoolError::Timeout(TimeoutType::Create) => timed_out(self.connect_timeout),
            PoolError::Timeout(_) => timed_out(self.timeout),
            PoolError::Closed => Error::Closed,
            PoolError::Backend(error) => backend(error),
            other => Error::unavailable(NAME, op, other.to_string()),
        }
    }

    /// What a reading call of the client says, in time.
    async fn answer<T>(
        &self,
        op: &'static str,
        call: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T> {
        self.in_time(op, call).await?.map_err(|error| lost(op, error))
    }

    /// What a call of the client says, in time. A call that is given up closes its connection.
    async fn in_time<T>(&self, op: &'static str, call: impl Future<Output = T>) -> Result<T> {
        let timed_out = Error::TimedOut { backend: NAME, op, after: self.timeout };
        tokio::time::timeout(self.timeout, call).await.map_err(|_| timed_out)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

fn pool<M: managed::Manager>(dial: M, size: usize, config: &MemcachedConfig) -> Result<Pool<M>> {
    Pool::builder(dial)
        .max_size(size)
        .runtime(deadpool::Runtime::Tokio1)
        .wait_timeout(Some(config.timeout))
        .create_timeout(Some(config.connect_timeout))
        .recycle_timeout(Some(config.timeout))
        .build()
        .map_err(|error| Error::unavailable(NAME, "open", error))
}

/// Whether an error tells that a connection had died: the call may work on another.
fn hung_up(error: &Error) -> bool {
    match error {
        Error::Unavailable { source, .. } => matches!(
            source.downcast_ref::<ClientError>(),
            Some(ClientError::Io(_) | ClientError::ConnectionClosed)
        ),
        _ => false,
    }
}

fn lost(op: &'static str, error: ClientError) -> Error {
    Error::unavailable(NAME, op, BoxError::from(error))
}

fn read(item: &MetaValue) -> Option<Record> {
    Record::decode(item.data.as_deref()?)
}

async fn settings(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<String> {
    const MOST: u64 = 64 << 10;
    stream.write_all(b"stats settings\r\nquit\r\n").await?;
    let mut said = String::new();
    stream.take(MOST).read_to_string(&mut said).await?;
    Ok(said)
}

/// Makes connections for a pool and says which of them may be used again.
struct Dial(String);

impl managed::Manager for Dial {
    type Type = Client;
    type Error = ClientError;

    async fn create(&self) -> Result<Client, ClientError> {
        Client::new(&self.0).await
    }

    async fn recycle(&self, client: &mut Client, metrics: &Metrics) -> RecycleResult<ClientError> {
        if client.is_closed() {
            return Err(RecycleError::message("a call was given up on it"));
        }
        if metrics.last_used() > IDLE {
            client.version().await?;
        }
        Ok(())
    }
}
