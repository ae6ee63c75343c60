//! The level as a whole, and reading of entries.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use tiercache_core::envelope::{Damage, HEADER_BYTES};
use tiercache_core::tier::{
    Counting, Dead, FenceLog, Hold, Permit, Profile, Put, PutItem, Removal, Spill, Swept, Usage,
};
use tiercache_core::{Codec, Entry, Error, Generation, Key, Leasing, Result, Tier, Timestamp};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::MemcachedConfig;
use crate::names::Names;
use crate::record::Record;
use crate::server::{Known, NAME, Server, Stands, TRIES};
use crate::wire::Item;
use crate::write::mark_of;

/// What an item takes beside its value: its header, its name and flags.
const ITEM_OVERHEAD: u64 = 512;
/// From so many bytes on compression and encryption are left to other threads.
const LARGE: usize = 64 << 10;

/// The level in memcached.
#[derive(Debug)]
pub struct MemcachedTier {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) servers: Vec<Server>,
    pub(crate) names: Names,
    codec: Codec,
    max_entry_bytes: u64,
    last_generation: Generation,
    /// Additions of this process to one counter take turns.
    pub(crate) adding: [tokio::sync::Mutex<()>; 64],
    damaged: AtomicU64,
    closed: AtomicBool,
}

impl MemcachedTier {
    /// Connects to the servers. `level` keeps the items of several levels on one server apart.
    ///
    /// # Errors
    /// [`Error::Config`] when the configuration cannot be used, [`Error::Unavailable`] when a server
    /// is away, [`Error::Refused`] when it cannot be used: both name the server.
    pub async fn open(config: MemcachedConfig, level: &str) -> Result<Self> {
        config.check()?;
        let addresses = config.addresses()?;
        let codec = config.codec()?;
        let names = Names::new(&config.prefix, level, codec.seals());
        let all: Arc<BTreeSet<String>> = Arc::new(addresses.iter().cloned().collect());
        let server = |address: String| Server::new(address, &config, names.record(), all.clone());
        let servers = addresses.into_iter().map(server).collect::<Result<Vec<_>>>()?;

        let mut item_size = u64::MAX;
        for server in &servers {
            let size = server.item_size_max().await.map_err(|error| refused(server, &error))?;
            item_size = item_size.min(size);
        }
        settle(&servers, &all).await?;
        let recorded = servers.iter().filter_map(Server::last).map(|known| known.record.generations).max();
        Ok(Self {
            shared: Arc::new(Shared {
                servers,
                names,
                codec,
                max_entry_bytes: item_size.saturating_sub(ITEM_OVERHEAD),
                last_generation: Generation::new(recorded.unwrap_or_default()),
                adding: std::array::from_fn(|_| tokio::sync::Mutex::default()),
                damaged: AtomicU64::new(0),
                closed: AtomicBool::new(false),
            }),
        })
    }

    pub(crate) fn servers(&self) -> &[Server] {
        &self.shared.servers
    }

    /// Does something at all servers that a caller who leaves does not stop half-way.
    pub(crate) async fn everywhere<T: Send + 'static>(
        &self,
        op: &'static str,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.shared.open()?;
        tokio::spawn(work).await.map_err(|error| Error::unavailable(NAME, op, error))?
    }
}

#[async_trait]
impl Tier for MemcachedTier {
    fn name(&self) -> &'static str {
        NAME
    }

    fn profile(&self) -> Profile {
        Profile {
            persistent: true,
            shared: true,
            max_entry_bytes: Some(self.shared.max_entry_bytes),
            last_generation: self.shared.last_generation,
        }
    }

    fn attach(&self, _: Arc<dyn Spill>) {
        // The server tells nobody what it drops.
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        let server = self.shared.server(key)?;
        self.shared.get(server, key).await
    }

    async fn put(&self, key: &Key, entry: &Entry, hold: Hold, permit: &dyn Permit) -> Result<Put> {
        let server = self.shared.server(key)?;
        let envelope = match self.shared.envelope(key, entry).await? {
            Ok(envelope) => envelope,
            Err(put) => return Ok(put),
        };
        self.shared.put(server, key, entry, &envelope, hold, permit).await
    }

    async fn remove(&self, key: &Key, below: Generation) -> Result<Removal> {
        let server = self.shared.server(key)?;
        self.shared.remove(server, key, below).await
    }

    async fn get_many(&self, keys: &[Key]) -> Vec<Result<Option<Entry>>> {
        self.shared.get_batch(keys).await
    }

    async fn put_many(&self, items: &[PutItem<'_>]) -> Vec<Result<Put>> {
        self.shared.put_batch(items).await
    }

    async fn remove_many(&self, items: &[(Key, Generation)]) -> Vec<Result<Removal>> {
        self.shared.remove_batch(items).await
    }

    async fn clear(&self, namespace: Option<&str>, below: Generation) -> Result<()> {
        let (shared, namespace) = (self.shared.clone(), namespace.map(str::to_owned));
        self.everywhere("clear", async move {
            for server in &shared.servers {
                server.update("clear", |record| record.clear(namespace.as_deref(), below)).await?;
            }
            Ok(())
        })
        .await
    }

    async fn usage(&self) -> Result<Usage> {
        self.shared.open()?;
        let mut usage = Usage { damaged: self.shared.damaged.load(Ordering::Relaxed), ..Usage::default() };
        let (mut bytes, mut capacity) = (0, 0);
        for server in &self.shared.servers {
            // Entries are not told: the server counts those of others too, and what is dead.
            let [held, limit, evicted] = server.figures(["bytes", "limit_maxbytes", "evictions"]).await?;
            bytes += held;
            capacity += limit;
            usage.evicted += evicted;
        }
        Ok(Usage { bytes: Some(bytes), capacity: Some(capacity), ..usage })
    }

    async fn sweep(&self, _: Timestamp, _: &dyn Dead) -> Result<Swept> {
        self.shared.open()?;
        Ok(Swept { complete: true, ..Swept::default() })
    }

    async fn sync(&self) -> Result<()> {
        self.shared.open()
    }

    async fn close(&self) -> Result<()> {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.servers.iter().for_each(Server::close);
        Ok(())
    }

    fn fences(&self) -> Option<&dyn FenceLog> {
        Some(self)
    }

    fn counting(&self) -> Option<&dyn Counting> {
        Some(self)
    }

    fn leasing(&self) -> Option<&dyn Leasing> {
        Some(self)
    }
}

impl Shared {
    pub(crate) fn open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    /// The server a key belongs to: each server and key have a score, the highest wins. Another server changes only
    /// what it wins itself.
    pub(crate) fn server(&self, key: &Key) -> Result<&Server> {
        self.open()?;
        if let [server] = &self.servers[..] {
            return Ok(server);
        }
        let score = |server: &&Server| xxh3_64_with_seed(key.encoded(), xxh3_64(server.address.as_bytes()));
        let server = self.servers.iter().max_by_key(score);
        server.ok_or_else(|| Error::Config("servers: there is none".to_owned()))
    }

    pub(crate) async fn get(&self, server: &Server, key: &Key) -> Result<Option<Entry>> {
        let known = server.known("get").await?;
        let name = self.names.entry(&known.record, key);
        let found = server.item("get", &name).await?;
        self.entry_of(server, &known, key, &name, found).await
    }

    /// The entry that was found under the name of a key, if it is one that lives.
    pub(crate) async fn entry_of(
        &self,
        server: &Server,
        known: &Known,
        key: &Key,
        name: &str,
        found: Option<Item>,
    ) -> Result<Option<Entry>> {
        let Some(found) = found else { return Ok(None) };
        let bytes = Bytes::from(found.value);
        if mark_of(&bytes).is_some() {
            return Ok(None);
        }
        match self.decode(key, bytes).await? {
            Ok(entry) => Ok(Some(entry).filter(|entry| !known.record.kills(key.namespace(), entry))),
            Err(damage) => {
                self.damaged.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(server = server.address, ?key, %damage, "damaged");
                // What is sealed under another key may be another process's.
                if let Some(cas) = found.cas.filter(|_| damage != Damage::UnknownKey) {
                    server.delete("get", name, cas).await?;
                }
                Ok(None)
            }
        }
    }

    /// The envelope of an entry, or what a put of it comes to without.
    pub(crate) async fn envelope(&self, key: &Key, entry: &Entry) -> Result<Result<Vec<u8>, Put>> {
        self.open()?;
        // The encoded key has one byte more, the length of the namespace.
        let plain = (HEADER_BYTES + key.encoded().len() - 1 + entry.value.len()) as u64;
        if plain > self.max_entry_bytes {
            // What it would be once it is packed is not known before.
            return Ok(Err(Put::TooLarge));
        }
        match self.encode(key, entry).await? {
            Ok(envelope) if envelope.len() as u64 <= self.max_entry_bytes => Ok(Ok(envelope)),
            Ok(_) | Err(Damage::TooLarge) => Ok(Err(Put::TooLarge)),
            Err(damage) => Err(Error::unavailable(NAME, "put", damage)),
        }
    }

    /// The envelope of an entry; made where it may take its time if it is large.
    async fn encode(&self, key: &Key, entry: &Entry) -> Result<Result<Vec<u8>, Damage>> {
        let encode = |codec: &Codec, key: &Key, entry: &Entry| {
            let mut envelope = Vec::new();
            codec.encode(key.as_ref(), entry, &mut envelope).map(|_| envelope)
        };
        if !self.codec.is_costly() || entry.value.len() < LARGE {
            return Ok(encode(&self.codec, key, entry));
        }
        let (codec, key, entry) = (self.codec.clone(), key.clone(), entry.clone());
        elsewhere(move || encode(&codec, &key, &entry)).await
    }

    async fn decode(&self, key: &Key, bytes: Bytes) -> Result<Result<Entry, Damage>> {
        if !self.codec.is_costly() || bytes.len() < LARGE {
            return Ok(self.codec.decode_for(key.as_ref(), &bytes));
        }
        let (codec, key) = (self.codec.clone(), key.clone());
        elsewhere(move || codec.decode_for(key.as_ref(), &bytes)).await
    }
}

/// Runs what takes its time where it holds up nobody.
async fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Panicked { what: "the codec" })
}

/// Makes the records of all servers agree on which servers there are.
async fn settle(servers: &[Server], all: &BTreeSet<String>) -> Result<()> {
    for _ in 0..TRIES {
        let mut found: Vec<Stands> = Vec::new();
        for server in servers {
            found.push(server.stands("open").await.map_err(|error| refused(server, &error))?);
        }
        let records: Vec<Option<&Record>> = found.iter().map(|(record, _)| record.as_ref()).collect();
        let mut settled = true;
        for (server, (own, cas)) in servers.iter().zip(&found) {
            let record = Record::settled(own.as_ref(), &records, all);
            // Written even when it is the same: it is used.
            let written = server.replace("open", record, *cas).await;
            settled &= written.map_err(|error| refused(server, &error))?;
        }
        if settled {
            return Ok(());
        }
    }
    Err(Error::unavailable(NAME, "open", "other processes keep changing the servers"))
}

/// A server's failure with its name: the level has several, and a file several levels.
fn refused(server: &Server, error: &Error) -> Error {
    let source = std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"));
    let address = server.address.trim_start_matches("tcp://");
    let told = format!("memcached at {address} cannot be used: {error}{source}");
    // One that is away may be back; one that answers and refuses is the owner's to put right.
    match error.is_retryable() {
        true => Error::unavailable(NAME, "open", told),
        false => Error::Refused(told),
    }
}
