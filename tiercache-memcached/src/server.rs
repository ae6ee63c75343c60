//! One server: the connections to it, and the record it keeps. Entries and the record are read and written over
//! connections of the level's own; the client's are for the rest.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_memcached::Error as ClientError;
use deadpool::managed::{self, Object, Pool, PoolError, QueueMode, TimeoutType, Timeouts};
use tiercache_core::tier::HighWater;
use tiercache_core::{Error, Generation, Key, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::MutexGuard;
use tokio::time::Instant;

use crate::MemcachedConfig;
use crate::alarms::Alarms;
use crate::own::{Own, OwnWrites};
use crate::record::Record;
use crate::wire::{self, Answer, Ask, Item, Wire};

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
    wires: Pool<wire::Dial>,
    /// For counters, leases and statistics.
    clients: Pool<client::Dial>,
    /// What was written over the wires.
    pub(crate) own: OwnWrites,
    /// Whether it makes room by dropping items.
    evicts: OnceLock<bool>,
    timeout: Duration,
    alarms: Alarms,
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
    /// Its bytes.
    raw: Arc<[u8]>,
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

mod client;

/// A record as it stands, and what a change of it depends on: its CAS, or that there is none.
pub(crate) type Stands = (Option<Record>, Option<u64>);

impl Server {
    pub(crate) fn new(
        address: String,
        config: &MemcachedConfig,
        record: String,
        servers: Arc<BTreeSet<String>>,
    ) -> Result<Self> {
        let wires = wire::Dial { address: address.clone(), timeout: config.timeout };
        let wires = pool(wires, config.connections, None, config)?;
        let clients = pool(client::Dial(address.clone()), config.connections, Some(config.timeout), config)?;
        let MemcachedConfig { timeout, connect_timeout, .. } = *config;
        Ok(Self {
            address,
            wires,
            clients,
            own: OwnWrites::default(),
            evicts: OnceLock::new(),
            timeout,
            alarms: Alarms::default(),
            connect_timeout,
            record,
            servers,
            known: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
        })
    }

    /// A connection of the level's own.
    pub(crate) async fn wire(&self, op: &'static str) -> Result<Object<wire::Dial>> {
        let free = Timeouts { wait: Some(Duration::ZERO), ..self.wires.timeouts() };
        let wire = match self.wires.timeout_get(&free).await {
            Err(PoolError::Timeout(TimeoutType::Wait)) => self.wires.get().await,
            wire => wire,
        };
        wire.map_err(|error| self.refused(op, error, |error| Error::unavailable(NAME, op, error)))
    }

    /// Sends commands over a connection, and returns the answer to each.
    pub(crate) async fn exchange(
        &self,
        op: &'static str,
        wire: &mut Wire,
        asks: &[Ask<'_>],
    ) -> Result<Vec<Answer>> {
        let answers = self.in_time(op, wire.exchange(asks)).await?;
        answers.map_err(|error| Error::unavailable(NAME, op, error))
    }

    /// The item of that name.
    pub(crate) async fn item(&self, op: &'static str, name: &str) -> Result<Option<Item>> {
        Ok(self.items(op, &[Ask::Value(name)]).await?.pop().flatten())
    }

    /// What stands at each name, in one round trip.
    pub(crate) async fn items(&self, op: &'static str, asks: &[Ask<'_>]) -> Result<Vec<Option<Item>>> {
        let asked = async || {
            let mut wire = self.wire(op).await?;
            self.exchange(op, &mut wire, asks).await
        };
        let answers = again!(self, asked())?;
        Ok(answers.into_iter().map(Answer::item).collect())
    }

    /// The most bytes of an item. How the server is set up is remembered; the client cannot ask for it.
    pub(crate) async fn item_size_max(&self) -> Result<u64> {
        let failed = |error: io::Error| Error::unavailable(NAME, "settings", error);
        let asked = async {
            match self.address.strip_prefix("unix://") {
                #[cfg(unix)]
                Some(path) => settings(tokio::net::UnixStream::connect(path).await?).await,
                #[cfg(not(unix))]
                Some(_) => Err(io::ErrorKind::Unsupported.into()),
                None => {
                    let place = self.address.trim_start_matches("tcp://");
                    settings(tokio::net::TcpStream::connect(place).await?).await
                }
            }
        };
        let limit = self.connect_timeout + self.timeout;
        let timed_out = Error::TimedOut { backend: NAME, op: "settings", after: limit };
        let settings = tokio::time::timeout(limit, asked).await.map_err(|_| timed_out)?.map_err(failed)?;
        let _ = self.evicts.set(settings.lines().any(|line| line == "STAT evictions on"));
        let size = settings.lines().find_map(|line| line.strip_prefix("STAT item_size_max "));
        let size = size.and_then(|size| size.trim().parse().ok());
        size.ok_or_else(|| Error::unavailable(NAME, "settings", "it does not tell its item_size_max"))
    }

    /// Whether it drops items to make room, so that a write may be tried before it is known what stands in its place: a
    /// server that has no room for a write removes what stood there, whatever the condition (memcached,
    /// `process_mset_command`), and where nothing else is ever dropped what is newer may not be lost so.
    pub(crate) fn drops_items(&self) -> bool {
        self.evicts.get() == Some(&true)
    }

    /// Remembers what was written, if it may be relied on.
    pub(crate) fn wrote(&self, key: &Key, era: u64, wire_era: Option<u64>, own: Own) {
        if wire_era == Some(era) && self.drops_items() {
            self.own.put(key, era, own);
        }
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
        let found = self.item(op, &self.record).await?;
        Ok((found.as_ref().and_then(|found| Record::decode(&found.value)), found.and_then(|found| found.cas)))
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
    pub(crate) fn confirms(&self, known: &Known, found: Option<&[u8]>, asked: Instant) -> bool {
        found == Some(&*known.raw) && self.confirm(&known.record, asked).is_some()
    }

    /// Notes which record was read over a connection, and tells whether it is still the one that is known.
    pub(crate) fn saw(&self, wire: &mut Wire, known: &Known, found: Option<Item>, asked: Instant) -> bool {
        let raw = found.as_ref().map(|found| &found.value[..]);
        if self.confirms(known, raw, asked) {
            wire.era = Some(known.record.era);
            return true;
        }
        wire.era = raw.and_then(Record::decode).map(|record| record.era);
        self.doubt();
        false
    }

    /// Closes idle connections, and forgets what was known: if the server was started again it knows nothing either.
    pub(crate) fn hang_up(&self) {
        let _ = self.wires.retain(|_, _| false);
        let _ = self.clients.retain(|_, _| false);
        self.doubt();
    }

    /// Asks for the record before it is relied on the next time.
    pub(crate) fn doubt(&self) {
        if let Some(known) = &mut *self.known.lock().unwrap_or_else(PoisonError::into_inner) {
            known.read = None;
        }
    }

    pub(crate) fn close(&self) {
        self.wires.close();
        self.clients.close();
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
        let raw = record.encode().into();
        let known = Known { record: Arc::new(record), raw, high, read: Some(read) };
        *last = Some(known.clone());
        known
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

    /// What a call of the client says, in time. A call that is given up closes its connection.
    async fn in_time<T>(&self, op: &'static str, call: impl Future<Output = T>) -> Result<T> {
        let timed_out = || Error::TimedOut { backend: NAME, op, after: self.timeout };
        self.alarms.limit(self.timeout, call).await.ok_or_else(timed_out)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

fn pool<M: managed::Manager>(
    dial: M,
    size: usize,
    recycle_timeout: Option<Duration>,
    config: &MemcachedConfig,
) -> Result<Pool<M>> {
    Pool::builder(dial)
        .max_size(size)
        .runtime(deadpool::Runtime::Tokio1)
        // Few connections that are busy rather than many that may have to be tried.
        .queue_mode(QueueMode::Lifo)
        .wait_timeout(Some(config.timeout))
        .create_timeout(Some(config.connect_timeout))
        .recycle_timeout(recycle_timeout)
        .build()
        .map_err(|error| Error::unavailable(NAME, "open", error))
}

/// Whether an error tells that a connection had died: the call may work on another.
pub(crate) fn hung_up(error: &Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};

    let Error::Unavailable { source, .. } = error else { return false };
    match (source.downcast_ref::<io::Error>(), source.downcast_ref::<ClientError>()) {
        (Some(error), _) => {
            matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
        }
        (_, Some(error)) => matches!(error, ClientError::Io(_) | ClientError::ConnectionClosed),
        _ => false,
    }
}

async fn settings(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<String> {
    const MOST: u64 = 64 << 10;
    stream.write_all(b"stats settings\r\nquit\r\n").await?;
    let mut said = String::new();
    stream.take(MOST).read_to_string(&mut said).await?;
    Ok(said)
}
