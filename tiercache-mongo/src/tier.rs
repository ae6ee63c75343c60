//! The level: what the traits ask, put together from documents, files, state and counters.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{TryStreamExt, try_join};
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, Document, doc};
use mongodb::error::{ErrorKind, Result as DriverResult};
use mongodb::{Collection, Database};
use tiercache_core::envelope::{Damage, Header};
use tiercache_core::tier::{
    Call, Cause, Counting, Dead, FenceLog, HighWater, Hold, Left, Listed, ListedEntry, Listing, Permit,
    Profile, Put, Removal, Scope, Spill, Swept, Usage, side_by_side,
};
use tiercache_core::{Codec, Entry, Error, Generation, Key, Leasing, Result, Tier, Timestamp};

use crate::MongoConfig;
use crate::config::MAX_INLINE;
use crate::counters::{Added, Addition, Counters};
use crate::documents::{Body, Documents, Found, InFile, Written, expiry, generation, number};
use crate::ids;
use crate::large::Files;
use crate::leases::Leases;
use crate::link::{Link, NAME};
use crate::state::{Floor, State};

/// Envelopes of so many bytes are not made or taken apart on the runtime's threads.
const LONG: usize = 128 << 10;
/// How often it is asked whether there are more bytes than there should be.
const ROOM_EVERY: Duration = Duration::from_secs(10);
/// Entries removed for room in a sweep.
const EVICTED: i64 = 100;
/// Keys in one question, and files that are read at a time.
const QUESTIONS: usize = 256;
const FILES_AT_ONCE: usize = 8;
/// No upload goes on for longer.
const LONGEST_UPLOAD: Duration = Duration::from_secs(300);

/// A level in a MongoDB database.
pub struct MongoTier {
    store: Arc<Store>,
    codec: Codec,
    high: HighWater,
    inline_limit: usize,
    max_entry: u64,
    orphans_after: Duration,
    max_size: Option<u64>,
    sweeping: Mutex<Sweeping>,
    spill: OnceLock<Arc<dyn Spill>>,
}

/// How far sweeps have come.
#[derive(Clone, Copy, Debug)]
struct Sweeping {
    /// Where the search for orphans goes on.
    after: Option<ObjectId>,
    /// When the next round of it may begin.
    next: Timestamp,
    /// When to ask for room again.
    room: Timestamp,
}

struct Store {
    link: Link,
    documents: Documents,
    state: State,
    counters: Counters,
    leases: Leases,
    base: String,
}

impl MongoTier {
    /// Connects, and makes the indexes that are missing. The collections' names begin with the prefix and
    /// `level`, such as `tiercache.dry`: levels that stand on one database share nothing.
    ///
    /// # Errors
    /// [`Error::Config`] when the configuration cannot be used, [`Error::Refused`] when user or password are wrong
    /// or lack rights, [`Error::Unavailable`] when the server does not answer within twice `connect_timeout`.
    pub async fn open(config: MongoConfig, level: &str) -> Result<Self> {
        Self::connect(&config, level, false).await
    }

    /// Connects to the level; where it is only looked at, nothing is changed.
    pub(crate) async fn connect(config: &MongoConfig, level: &str, looks: bool) -> Result<Self> {
        config.check()?;
        let codec = config.codec()?;
        let link = Link::open(&config.server()).await?;
        let database = link.database();
        let base = format!("{}.{level}", config.prefix);
        let collection = |name: &str| -> Collection<Document> { database.collection(name) };
        let store = Arc::new(Store {
            documents: Documents::new(collection(&base), Files::new(database, &base)),
            state: State::new(collection(&format!("{base}.state"))),
            counters: Counters::new(collection(&format!("{base}.counters"))),
            leases: Leases::new(database, &base),
            link,
            base,
        });
        let (opening, bounded) = (store.clone(), config.max_size.is_some());
        let opened = store.link.run("open", async move {
            if looks {
                return opening.state.look().await;
            }
            opening.prepare().await?;
            if bounded {
                opening.documents.prepare_eviction().await?;
            }
            opening.state.open().await
        });
        if let Err(error) = opened.await {
            let error = store.link.blame(error);
            store.link.abandon();
            return Err(error);
        }
        Ok(Self {
            high: HighWater::new(store.state.recorded()),
            store,
            codec,
            inline_limit: config.inline_limit as usize,
            max_entry: config.max_entry_size,
            orphans_after: config.orphans_after,
            max_size: config.max_size,
            sweeping: Mutex::new(Sweeping { after: None, next: Timestamp::EPOCH, room: Timestamp::EPOCH }),
            spill: OnceLock::new(),
        })
    }

    pub(crate) fn link(&self) -> &Link {
        &self.store.link
    }

    pub(crate) fn leases(&self) -> Leases {
        self.store.leases.clone()
    }

    /// Returns when the store's record covers `generation`.
    async fn cover(&self, generation: Generation) -> Result<()> {
        let store = &self.store;
        self.high
            .cover(generation, async |to| {
                let raising = store.clone();
                let raised =
                    store.link.run("raise the record", async move { raising.state.raise(to).await }).await?;
                Ok(raised.1)
            })
            .await
    }

    /// The entry that was found, if it is one; else it is removed.
    async fn checked(&self, key: &Key, mut found: Found) -> Result<Option<Entry>> {
        let bytes = Bytes::from(std::mem::take(&mut found.bytes));
        let (codec, of) = (self.codec.clone(), key.clone());
        let long = bytes.len() >= LONG;
        let damage = match aside(long, move || codec.decode_for(of.as_ref(), &bytes)).await? {
            Ok(entry) if entry.generation == found.generation() => return Ok(Some(entry)),
            Ok(_) => Damage::Content,
            Err(damage) => damage,
        };
        tracing::warn!(tier = NAME, ?key, %damage, "an entry is damaged and is removed");
        self.store.documents.damaged.fetch_add(1, Ordering::Relaxed);
        let (store, name) = (self.store.clone(), ids::entry(key.as_ref()));
        self.store
            .detach("remove a damaged entry", async move { store.documents.discard(&name, &found).await });
        Ok(None)
    }

    async fn get_chunk(&self, keys: &[Key]) -> Vec<Result<Option<Entry>>> {
        self.store.look();
        let names: Vec<String> = keys.iter().map(|key| ids::entry(key.as_ref())).collect();
        let store = self.store.clone();
        let reading = async move { store.documents.read_many(&names).await };
        let found = match self.store.link.run("get", reading).await {
            Ok(found) => found,
            Err(error) => return vec![Err(error); keys.len()],
        };
        let answer = |(key, found)| -> Call<'_, _> { Box::pin(self.found_or_read(key, found)) };
        side_by_side(FILES_AT_ONCE, keys.iter().zip(found).map(answer).collect()).await
    }

    async fn found_or_read(
        &self,
        key: &Key,
        found: std::result::Result<Option<Found>, InFile>,
    ) -> Result<Option<Entry>> {
        match found {
            Ok(Some(found)) if !self.store.state.is_dead(key.namespace(), found.generation()) => {
                self.checked(key, found).await
            }
            Ok(_) => Ok(None),
            Err(InFile) => self.get(key).await,
        }
    }

    /// The envelope of an entry, and that of it without its value; `None` when it is more than the tier takes.
    async fn encoded(&self, key: &Key, entry: &Entry) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        let (codec, of, whole, max) = (self.codec.clone(), key.clone(), entry.clone(), self.max_entry);
        let encode = move || {
            let (mut bytes, mut head) = (Vec::new(), Vec::new());
            codec.encode(of.as_ref(), &whole, &mut bytes)?;
            codec.encode(of.as_ref(), &Entry { value: Bytes::new(), ..whole }, &mut head)?;
            Ok((bytes, head))
        };
        match aside(entry.value.len() >= LONG, encode).await? {
            Ok((bytes, head)) if bytes.len() as u64 <= max && head.len() as u64 <= MAX_INLINE / 2 => {
                Ok(Some((bytes, head)))
            }
            Ok(_) | Err(Damage::TooLarge) => Ok(None),
            Err(damage) => Err(Error::Codec { what: "storable", reason: damage.to_string() }),
        }
    }

    /// Hands on and removes the oldest entries while there are more bytes than there should be. Returns whether
    /// there are still.
    async fn make_room(&self, max: u64) -> Result<bool> {
        let store = self.store.clone();
        let looking = async move {
            let used = store.bytes().await?.unwrap_or(0);
            Ok((used, if used > max { store.documents.oldest(EVICTED).await? } else { Vec::new() }))
        };
        let (mut used, oldest) = self.store.link.run("make room", looking).await?;
        for name in oldest {
            if used <= max {
                break;
            }
            let (store, read) = (self.store.clone(), name.clone());
            let reading = async move { store.documents.read(&read).await };
            let Some(mut found) = self.store.link.run("make room", reading).await? else { continue };
            let bytes = Bytes::from(std::mem::take(&mut found.bytes));
            used = used.saturating_sub(bytes.len() as u64);
            let codec = self.codec.clone();
            if let Ok((key, entry)) = aside(bytes.len() >= LONG, move || codec.decode(&bytes)).await?
                && let Some(spill) = self.spill.get()
                && !self.store.state.is_dead(key.namespace(), entry.generation)
            {
                spill.spill(key, entry, Left { cause: Cause::Evicted, uses: 0 });
            }
            let store = self.store.clone();
            let removing = async move { store.documents.discard(&name, &found).await };
            self.store.link.run("make room", removing).await?;
            self.store.documents.evicted.fetch_add(1, Ordering::Relaxed);
        }
        Ok(used > max)
    }

    /// Uploads an envelope; what is returned removes the file again unless it is kept.
    async fn upload(&self, name: &str, generation: Generation, bytes: Vec<u8>) -> Result<Upload> {
        let upload = Upload {
            store: self.store.clone(),
            id: ObjectId::new(),
            wanted: Arc::new(AtomicBool::new(true)),
            kept: false,
        };
        let (store, id, name, wanted) =
            (self.store.clone(), upload.id, name.to_owned(), upload.wanted.clone());
        let limit = LONGEST_UPLOAD.min(self.orphans_after / 2);
        let whole = self
            .store
            .link
            .within("upload", limit, async move {
                let files = store.documents.files();
                let whole = files.upload(id, &name, generation, bytes.into(), wanted.clone()).await?;
                if whole && !wanted.load(Ordering::Acquire) {
                    files.remove(&[id]).await?;
                }
                Ok(whole)
            })
            .await?;
        if whole { Ok(upload) } else { Err(Error::Closed) }
    }
}

#[async_trait]
impl Tier for MongoTier {
    fn name(&self) -> &'static str {
        NAME
    }

    fn profile(&self) -> Profile {
        Profile {
            persistent: true,
            shared: true,
            max_entry_bytes: Some(self.max_entry),
            last_generation: self.store.state.recorded(),
        }
    }

    fn attach(&self, spill: Arc<dyn Spill>) {
        let _ = self.spill.set(spill);
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        self.store.look();
        let (store, name) = (self.store.clone(), ids::entry(key.as_ref()));
        let found = self.store.link.run("get", async move { store.documents.read(&name).await }).await?;
        let found = found.filter(|found| !self.store.state.is_dead(key.namespace(), found.generation()));
        match found {
            Some(found) => self.checked(key, found).await,
            None => Ok(None),
        }
    }

    async fn put(&self, key: &Key, entry: &Entry, hold: Hold, permit: &dyn Permit) -> Result<Put> {
        self.store.link.check_open()?;
        self.store.look();
        if entry.value.len() as u64 > self.max_entry {
            return Ok(Put::TooLarge);
        }
        let Some((bytes, head)) = self.encoded(key, entry).await? else { return Ok(Put::TooLarge) };
        if self.store.state.is_dead(key.namespace(), entry.generation) {
            return Ok(Put::Superseded);
        }
        self.cover(entry.generation).await?;
        let name = ids::entry(key.as_ref());
        let sum = identity(&bytes);
        let inline = bytes.len() < self.inline_limit && bytes.len() + head.len() < MAX_INLINE as usize;
        let (body, upload) = if inline {
            (Body::Inline(bytes), None)
        } else if permit.holds() {
            let upload = self.upload(&name, entry.generation, bytes).await?;
            (Body::File(upload.id), Some(upload))
        } else {
            return Ok(Put::Superseded);
        };
        let written = Written {
            name,
            generation: entry.generation,
            sum,
            size: entry.value.len() as u64,
            head,
            body,
            until: expiry(hold.until(entry), hold.now, Duration::ZERO),
        };
        if !permit.holds() {
            return Ok(Put::Superseded);
        }
        let store = self.store.clone();
        self.store
            .link
            .run("put", async move {
                let result = store.documents.write(&written).await;
                // After an error the document may point to the file or not: a sweep finds out.
                if let (Ok((Put::Stored, _)) | Err(_), Some(upload)) = (&result, upload) {
                    upload.keep();
                }
                let (put, old) = result?;
                store.remove_old(old);
                Ok(put)
            })
            .await
    }

    async fn remove(&self, key: &Key, below: Generation) -> Result<Removal> {
        self.store.link.check_open()?;
        self.store.look();
        self.cover(below).await?;
        let (store, name) = (self.store.clone(), ids::entry(key.as_ref()));
        self.store
            .link
            .run("remove", async move {
                let (removal, old) = store.documents.remove(&name, below).await?;
                store.remove_old(old);
                Ok(removal)
            })
            .await
    }

    /// What is in documents by one question, what is in files side by side. Writes have no request of many: each is
    /// conditional.
    async fn get_many(&self, keys: &[Key]) -> Vec<Result<Option<Entry>>> {
        let mut answers = Vec::with_capacity(keys.len());
        for keys in keys.chunks(QUESTIONS) {
            answers.extend(self.get_chunk(keys).await);
        }
        answers
    }

    async fn clear(&self, namespace: Option<&str>, below: Generation) -> Result<()> {
        self.store.link.check_open()?;
        self.cover(below).await?;
        let (store, floor) = (self.store.clone(), Floor::of(namespace, below));
        self.store
            .link
            .run("clear", async move {
                store.state.lay(&floor).await?;
                store.counters.clear(names(&floor)).await?;
                store.finish(&floor).await
            })
            .await
    }

    async fn usage(&self) -> Result<Usage> {
        let store = self.store.clone();
        let counting = async move { try_join!(store.documents.count(), store.bytes()) };
        let (entries, bytes) = self.store.link.run("usage", counting).await?;
        let [damaged, evicted] = [&self.store.documents.damaged, &self.store.documents.evicted]
            .map(|count| count.load(Ordering::Relaxed));
        Ok(Usage { entries: Some(entries), bytes, capacity: self.max_size, damaged, evicted })
    }

    /// The server removes what has expired. What is left to do is to finish clearings that were cut, to remove files
    /// that nothing points to, which are what is counted as dropped, and to make room where there is a bound.
    async fn sweep(&self, now: Timestamp, _: &dyn Dead) -> Result<Swept> {
        self.store.link.check_open()?;
        let mut sweeping = *self.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
        let mut swept = Swept { dropped: 0, spilled: 0, complete: true };
        if now >= sweeping.next {
            let until = now.as_millis().saturating_sub(self.orphans_after.as_millis() as u64) / 1_000;
            let until = ObjectId::from_parts(u32::try_from(until).unwrap_or(u32::MAX), [0; 5], [0; 3]);
            let (store, after) = (self.store.clone(), sweeping.after);
            let collecting = async move {
                if after.is_none()
                    && let Some(floor) = store.state.unfinished().await?
                {
                    store.finish(&floor).await?;
                }
                store.documents.files().collect(store.documents.entries(), after, until).await
            };
            (swept.dropped, sweeping.after) = self.store.link.run("sweep", collecting).await?;
            swept.complete = sweeping.after.is_none();
            sweeping.next = if swept.complete { now.after(self.orphans_after / 4) } else { Timestamp::EPOCH };
        }
        if let Some(max) = self.max_size.filter(|_| now >= sweeping.room) {
            let more = self.make_room(max).await?;
            swept.complete &= !more;
            sweeping.room = if more { Timestamp::EPOCH } else { now.after(ROOM_EVERY) };
        }
        *self.sweeping.lock().unwrap_or_else(PoisonError::into_inner) = sweeping;
        Ok(swept)
    }

    async fn sync(&self) -> Result<()> {
        self.store.link.check_open()
    }

    async fn close(&self) -> Result<()> {
        self.store.link.close().await;
        Ok(())
    }

    fn listing(&self) -> Option<&dyn Listing> {
        Some(self)
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

#[async_trait]
impl Listing for MongoTier {
    async fn list(&self, namespace: Option<&str>, after: Option<Vec<u8>>, limit: usize) -> Result<Listed> {
        let mut range = Document::new();
        if let Some(namespace) = namespace {
            let start = ids::of_namespace(namespace.as_bytes());
            range.extend(doc! { "$gte": &start, "$lt": ids::behind(start.clone()) });
        }
        if let Some(after) = after {
            let after = String::from_utf8(after).map_err(|_| Error::InvalidOption {
                option: "after",
                reason: "is not where a page ended".to_owned(),
            })?;
            range.insert("$gt", after);
        }
        let mut entries = doc! { "removed": { "$exists": false } };
        if !range.is_empty() {
            entries.insert("_id", range);
        }
        // The driver takes 0 for no limit.
        let limit = limit.clamp(1, 10_000);
        let store = self.store.clone();
        let found: Vec<Document> = self
            .store
            .link
            .run("list", async move {
                let found = store.documents.entries().find(entries).projection(listed_fields());
                found.sort(doc! { "_id": 1 }).limit(limit as i64).await?.try_collect().await
            })
            .await?;
        let last = found.last().filter(|_| found.len() == limit).and_then(|last| last.get_str("_id").ok());
        let next = last.map(|last| last.as_bytes().to_vec());
        Ok(Listed { entries: found.into_iter().filter_map(|found| self.listed(found)).collect(), next })
    }
}

impl MongoTier {
    /// The entries of these keys, as a listing would show them.
    pub(crate) async fn find(&self, keys: &[Key]) -> Result<Vec<Option<ListedEntry>>> {
        let mut entries = HashMap::with_capacity(keys.len());
        for keys in keys.chunks(QUESTIONS) {
            let names: Vec<String> = keys.iter().map(|key| ids::entry(key.as_ref())).collect();
            let store = self.store.clone();
            let finding = async move {
                store.state.look().await?;
                let named = doc! { "_id": { "$in": names }, "removed": { "$exists": false } };
                store.documents.entries().find(named).projection(listed_fields()).await?.try_collect().await
            };
            let found: Vec<Document> = self.store.link.run("look", finding).await?;
            let listed = found.into_iter().filter_map(|found| self.listed(found));
            entries.extend(listed.map(|listed| (listed.key.clone(), listed)));
        }
        Ok(keys.iter().map(|key| entries.get(key).cloned()).collect())
    }

    /// Reads anew what is remembered of invalidations of many.
    pub(crate) async fn look_at_fences(&self) -> Result<Vec<(Scope, Generation)>> {
        let store = self.store.clone();
        self.store.link.run("look", async move { store.state.look().await }).await?;
        Ok(self.remembered())
    }

    fn listed(&self, mut found: Document) -> Option<ListedEntry> {
        let generation = generation(number(&found, "rank")?);
        let size = u64::try_from(number(&found, "size")?).ok()?;
        let Some(Bson::Binary(head)) = found.remove("head") else { return None };
        let (key, entry) = self.codec.decode(&head.bytes.into()).ok()?;
        let alive = entry.generation == generation && !self.store.state.is_dead(key.namespace(), generation);
        alive.then_some(ListedEntry { key, entry, size })
    }
}

#[async_trait]
impl FenceLog for MongoTier {
    async fn fence(&self, scope: &Scope, generation: Generation) -> Result<Generation> {
        let store = self.store.clone();
        let raising = async move { store.state.raise(generation).await };
        let (before, _) = self.store.link.run("fence", raising).await?;
        // Other processes may have put entries up to what the record said.
        let raised = generation.max(Generation::new(before.get() + 1)).min(Generation::MAX);
        self.cover(raised).await?;
        let (store, scope) = (self.store.clone(), scope.clone());
        self.store.link.run("fence", async move { store.state.fence(&scope, raised).await }).await?;
        Ok(raised)
    }

    fn remembered(&self) -> Vec<(Scope, Generation)> {
        self.store.state.remembered()
    }
}

#[async_trait]
impl Counting for MongoTier {
    async fn add(
        &self,
        key: &Key,
        delta: i64,
        start: i64,
        deadline: Timestamp,
        now: Timestamp,
    ) -> Result<i64> {
        let (store, name) = (self.store.clone(), ids::entry(key.as_ref()));
        let addition = Addition { delta, start, deadline, now };
        let added =
            self.store.link.run("add", async move { store.counters.add(&name, &addition).await }).await?;
        match added {
            Added::Sum(sum) => Ok(sum),
            Added::OutOfRange => Err(Error::InvalidOption {
                option: "delta",
                reason: format!("the sum with {delta} would leave the range of 64 bits"),
            }),
        }
    }

    async fn counter(&self, key: &Key, now: Timestamp) -> Result<Option<i64>> {
        let (store, name) = (self.store.clone(), ids::entry(key.as_ref()));
        self.store.link.run("counter", async move { store.counters.get(&name, now).await }).await
    }

    async fn remove_counter(&self, key: &Key) -> Result<bool> {
        let (store, name) = (self.store.clone(), ids::entry(key.as_ref()));
        self.store.link.run("remove counter", async move { store.counters.remove(&name).await }).await
    }
}

impl fmt::Debug for MongoTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MongoTier").field("collection", &self.store.base).finish_non_exhaustive()
    }
}

impl Store {
    async fn prepare(&self) -> DriverResult<()> {
        try_join!(
            self.documents.prepare(),
            self.state.prepare(),
            self.counters.prepare(),
            self.leases.prepare()
        )
        .map(drop)
    }

    /// Bytes of documents and files; `None` when the server does not tell.
    async fn bytes(&self) -> DriverResult<Option<u64>> {
        let [documents, chunks] = [self.documents.entries(), self.documents.files().chunks()];
        let size = |collection: &str| size(self.link.database(), collection.to_owned());
        let (small, large) = try_join!(size(documents.name()), size(chunks.name()))?;
        Ok(small.zip(large).map(|(small, large)| small.saturating_add(large)))
    }

    /// Looks at what all processes must agree on, if it is time to; nobody waits for it.
    fn look(self: &Arc<Self>) {
        if self.link.check_open().is_ok() && self.state.is_due() {
            let store = self.clone();
            self.detach("look at the state", async move {
                if store.state.refresh().await? {
                    tracing::warn!(
                        tier = NAME,
                        collection = store.base,
                        "the store was wiped: its indexes are made anew"
                    );
                    store.prepare().await?;
                }
                Ok(())
            });
        }
    }

    /// Removes what a clearing killed. The files of large entries are removed after, or by a sweep.
    async fn finish(self: &Arc<Self>, floor: &Floor) -> DriverResult<()> {
        self.documents.clear(&names(floor), floor.below).await?;
        self.state.done(floor).await?;
        let (store, floor) = (self.clone(), floor.clone());
        self.detach("remove cleared files", async move {
            store.documents.files().clear(floor.names().as_ref(), floor.below).await
        });
        Ok(())
    }

    fn remove_old(self: &Arc<Self>, old: Option<ObjectId>) {
        if let Some(old) = old {
            let store = self.clone();
            self.detach(
                "remove an old revision",
                async move { store.documents.files().remove(&[old]).await },
            );
        }
    }

    /// Does what nobody waits for. It counts as a call, and ends as calls end.
    fn detach(
        self: &Arc<Self>,
        op: &'static str,
        work: impl Future<Output = DriverResult<()>> + Send + 'static,
    ) {
        let store = self.clone();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            if let Err(error) = store.link.run(op, work).await {
                tracing::debug!(tier = NAME, collection = store.base, op, %error, "left to a later sweep");
            }
        });
    }
}

/// A file that no document points to yet. Dropped, it is removed.
struct Upload {
    store: Arc<Store>,
    id: ObjectId,
    wanted: Arc<AtomicBool>,
    kept: bool,
}

impl Upload {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.kept {
            self.wanted.store(false, Ordering::Release);
            self.store.remove_old(Some(self.id));
        }
    }
}

/// The fields that a listing takes.
fn listed_fields() -> Document {
    doc! { "rank": 1, "head": 1, "size": 1 }
}

/// The names a clearing reaches, as a filter.
fn names(floor: &Floor) -> Document {
    floor.names().map(|names| doc! { "_id": names }).unwrap_or_default()
}

/// Does `work` where it stops nobody if it takes long.
async fn aside<T: Send + 'static>(long: bool, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    if !long {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Panicked { what: "an envelope's codec" })
}

/// What two envelopes of one entry have in common, sealed or not.
fn identity(envelope: &[u8]) -> i64 {
    Header::parse(envelope).map_or(0, |header| header.identity().cast_signed())
}

/// Bytes of a collection's documents; `None` when the server does not tell.
async fn size(database: &Database, collection: String) -> DriverResult<Option<u64>> {
    match database.run_command(doc! { "collStats": collection }).await {
        Ok(stats) => Ok(number(&stats, "size").and_then(|size| u64::try_from(size).ok())),
        Err(error) if matches!(*error.kind, ErrorKind::Command(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
