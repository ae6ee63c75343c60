use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use async_trait::async_trait;
use tiercache_core::tier::{
    Cause, Dead, FenceLog, Hold, Index, Journal, Left, Listed, ListedEntry, Listing, Permit, Profile, Put,
    Removal, Scope, Sizing, Spill, Swept, TryGet, Usage, Waiting,
};
use tiercache_core::{Clock, Entry, Error, Generation, Key, KeyRef, Result, Tier, Timestamp};

use crate::config::{DiskConfig, Flush};
use crate::dir::Dir;
use crate::index::{SHARDS, Slot, State, lock};
use crate::open::open;
use crate::segment::{HashFn, hash_key};
use crate::store::{Look, Store, unwritten};

/// The backend's name in YAML, logs and errors.
pub(crate) const NAME: &str = "local";

/// Slots a sweep looks at before it lets others go on.
const SWEEP: usize = 50_000;
/// Bytes of entries a sweep or a listing reads at a time.
const BATCH_BYTES: u64 = 4 << 20;

/// A level on the local disk.
///
/// Dropping it without [`close`](Tier::close) writes out what was accepted, which may block for some milliseconds.
pub struct DiskTier {
    store: Arc<Store>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl DiskTier {
    /// Opens the directory, making it when it is not there.
    ///
    /// # Errors
    /// [`Error::Refused`] when it belongs to another process or user or can be changed by others, [`Error::Config`]
    /// when the configuration cannot be used, [`Error::Unavailable`] when the disk fails.
    pub async fn open(config: DiskConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        tokio::task::spawn_blocking(move || Self::open_blocking(config, clock))
            .await
            .map_err(|_| Error::Panicked { what: "opening the disk level" })?
    }

    /// Likewise, where blocking is fine.
    ///
    /// # Errors
    /// As for [`DiskTier::open`].
    pub fn open_blocking(config: DiskConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        Self::open_with(config, clock, hash_key)
    }

    pub(crate) fn open_with(config: DiskConfig, clock: Arc<dyn Clock>, hasher: HashFn) -> Result<Self> {
        let store = Arc::new(open(config, clock, hasher)?);
        let tier = Self { store, threads: Arc::default() };
        // Owned by the tier: both end when it is closed or dropped.
        tier.spawn("tiercache-disk-w", |store| store.write_all())?;
        tier.spawn("tiercache-disk-r", |store| store.upkeep())?;
        Ok(tier)
    }

    /// Bytes that reclaim moved, and bytes that were put since the directory was opened.
    pub fn moved_and_put(&self) -> (u64, u64) {
        (self.store.moved.load(Ordering::Relaxed), self.store.accepted.load(Ordering::Relaxed))
    }

    #[cfg(test)]
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    fn spawn(&self, name: &str, run: fn(&Store)) -> Result<()> {
        let store = Arc::clone(&self.store);
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || run(&store))
            .map_err(|error| Error::unavailable(NAME, "open", error))?;
        lock(&self.threads).push(thread);
        Ok(())
    }

    /// Runs `work` where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> Result<T> {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || work(&store))
            .await
            .map_err(|_| Error::Panicked { what: "the disk level" })
    }
}

impl std::fmt::Debug for DiskTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskTier")
            .field("path", &self.store.dir.path)
            .field("index", &self.store.index)
            .finish_non_exhaustive()
    }
}

impl Drop for DiskTier {
    fn drop(&mut self) {
        shut(&self.store, &self.threads);
    }
}

/// Ends both threads after they wrote what was accepted, and releases the directory.
fn shut(store: &Store, threads: &Mutex<Vec<JoinHandle<()>>>) {
    store.closed.store(true, Ordering::Release);
    store.log.stop();
    for thread in std::mem::take(&mut *lock(threads)) {
        if thread.join().is_err() {
            tracing::error!("a thread of the disk level panicked");
        }
    }
    store.drop_spares();
    lock(&store.lock).take();
}

#[async_trait]
impl Tier for DiskTier {
    fn name(&self) -> &'static str {
        NAME
    }

    fn profile(&self) -> Profile {
        Profile {
            persistent: true,
            shared: false,
            max_entry_bytes: Some(self.store.log.max_record() as u64),
            last_generation: Generation::new(self.store.last_generation.load(Ordering::Relaxed)),
        }
    }

    fn attach(&self, spill: Arc<dyn Spill>) {
        if self.store.spill.set(spill).is_err() {
            tracing::error!("a disk level was attached twice");
        }
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        self.store.check_open()?;
        if let TryGet::Done(answer) = self.try_get(key.as_ref()) {
            return Ok(answer);
        }
        let key = key.clone();
        match self.blocking(move |store| store.look(key.as_ref(), true)).await? {
            Look::Hit(entry) => Ok(Some(entry)),
            Look::Miss | Look::WouldBlock => Ok(None),
        }
    }

    async fn put(&self, key: &Key, entry: &Entry, hold: Hold, permit: &dyn Permit) -> Result<Put> {
        self.store.put(key, entry, hold, permit).await
    }

    async fn remove(&self, key: &Key, below: Generation) -> Result<Removal> {
        match self.try_remove(key.as_ref(), below) {
            Some(done) => done?,
            None => self.store.remove(key.as_ref(), below).await?,
        }
        Ok(Removal::DONE)
    }

    /// What blocks is read on one other thread.
    async fn get_many(&self, keys: &[Key]) -> Vec<Result<Option<Entry>>> {
        if let Err(error) = self.store.check_open() {
            return vec![Err(error); keys.len()];
        }
        let mut answers = vec![Ok(None); keys.len()];
        let mut blocking = Vec::new();
        for (at, key) in keys.iter().enumerate() {
            match self.try_get(key.as_ref()) {
                TryGet::Done(answer) => answers[at] = Ok(answer),
                TryGet::WouldBlock => blocking.push((at, key.clone())),
            }
        }
        let places: Vec<usize> = blocking.iter().map(|(at, _)| *at).collect();
        if places.is_empty() {
            return answers;
        }
        let look = |store: &Store, key: &Key| match store.look(key.as_ref(), true) {
            Look::Hit(entry) => Some(entry),
            Look::Miss | Look::WouldBlock => None,
        };
        let read = move |store: &Store| blocking.iter().map(|(_, key)| look(store, key)).collect::<Vec<_>>();
        match self.blocking(read).await {
            Ok(found) => places.into_iter().zip(found).for_each(|(at, found)| answers[at] = Ok(found)),
            Err(error) => places.into_iter().for_each(|at| answers[at] = Err(error.clone())),
        }
        answers
    }

    async fn clear(&self, namespace: Option<&str>, below: Generation) -> Result<()> {
        let scope = namespace.map_or(Scope::All, |namespace| Scope::Namespace(namespace.to_owned()));
        self.store.fence(&scope, below).await
    }

    async fn usage(&self) -> Result<Usage> {
        let store = &self.store;
        store.check_open()?;
        Ok(Usage {
            entries: Some(store.index.entries()),
            bytes: Some(store.index.bytes()),
            capacity: Some(store.max_size.load(Ordering::Relaxed)),
            damaged: store.damaged.load(Ordering::Relaxed),
            evicted: store.evicted.load(Ordering::Relaxed),
        })
    }

    async fn sweep(&self, now: Timestamp, dead: &dyn Dead) -> Result<Swept> {
        self.store.check_open()?;
        let mut swept = Swept::default();
        let mut looked = 0;
        while looked < SWEEP && !swept.complete {
            let number = self.store.sweep_at.fetch_add(1, Ordering::Relaxed) % SHARDS;
            let (seen, due) = self.store.due(number, now);
            looked += seen.max(1);
            let (dead_now, over): (Vec<_>, Vec<_>) =
                due.into_iter().partition(|(_, slot)| slot.deadline <= now);
            for (hash, slot) in dead_now {
                swept.dropped += u64::from(self.store.index.shard(hash).give_up(hash, slot.place));
            }
            let mut over = over.into_iter().peekable();
            while over.peek().is_some() {
                let mut bytes = 0;
                let batch: Vec<_> = std::iter::from_fn(|| {
                    bytes += u64::from(over.peek()?.1.place.len);
                    if bytes <= BATCH_BYTES || bytes == u64::from(over.peek()?.1.place.len) {
                        over.next()
                    } else {
                        None
                    }
                })
                .collect();
                let read = move |store: &Store| -> Vec<_> {
                    let entry = |(hash, slot)| store.entry_at(hash, &slot).map(|entry| (hash, slot, entry));
                    batch.into_iter().filter_map(entry).collect()
                };
                for (hash, slot, (key, entry)) in self.blocking(read).await? {
                    if dead.is_dead(key.as_ref(), &entry) {
                        swept.dropped += u64::from(self.store.index.shard(hash).give_up(hash, slot.place));
                    } else {
                        // The manager counted the uses itself.
                        let left = Left { cause: Cause::StayOver, uses: 0 };
                        swept.spilled += u64::from(self.store.hand_over(hash, &slot, key, entry, left));
                    }
                }
            }
            swept.complete = number == SHARDS - 1;
        }
        Ok(swept)
    }

    async fn sync(&self) -> Result<()> {
        self.store.check_open()?;
        if let Some(ticket) = self.store.log.last_ticket()
            && !self.store.log.wait(&ticket).await
        {
            return Err(unwritten("sync"));
        }
        if self.store.flush == Flush::Never {
            return Ok(());
        }
        self.blocking(Store::sync_segments).await?.map_err(|error| Error::unavailable(NAME, "sync", error))
    }

    async fn close(&self) -> Result<()> {
        let (store, threads) = (Arc::clone(&self.store), Arc::clone(&self.threads));
        let work = move || {
            shut(&store, &threads);
            if store.flush == Flush::Never { Ok(()) } else { store.sync_segments() }
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| Error::Panicked { what: "closing the disk level" })?
            .map_err(|error| Error::unavailable(NAME, "close", error))
    }

    fn index(&self) -> Option<&dyn Index> {
        Some(self)
    }

    fn listing(&self) -> Option<&dyn Listing> {
        Some(self)
    }

    fn fences(&self) -> Option<&dyn FenceLog> {
        Some(self)
    }

    fn journal(&self) -> Option<&dyn Journal> {
        Some(self)
    }

    fn sizing(&self) -> Option<&dyn Sizing> {
        Some(self)
    }
}

/// Segments keep the size they have; as many as no longer fit go, oldest first, when the next one is needed.
impl Sizing for DiskTier {
    fn check(&self, capacity: u64) -> Result<()> {
        let segment_size = Some(u64::from(self.store.log.segment_size));
        DiskConfig { max_size: capacity, segment_size, ..DiskConfig::default() }.segment().map(drop)
    }

    fn resize(&self, capacity: u64) {
        self.store.max_size.store(capacity, Ordering::Relaxed);
    }
}

#[async_trait]
impl Index for DiskTier {
    fn holds(&self, key: KeyRef<'_>) -> Option<Generation> {
        self.store.holds(key)
    }

    fn try_get(&self, key: KeyRef<'_>) -> TryGet {
        if self.store.check_open().is_err() {
            // `get` says so.
            return TryGet::WouldBlock;
        }
        match self.store.look(key, false) {
            Look::Hit(entry) => TryGet::Done(Some(entry)),
            Look::Miss => TryGet::Done(None),
            Look::WouldBlock => TryGet::WouldBlock,
        }
    }

    fn try_remove(&self, key: KeyRef<'_>, below: Generation) -> Option<Result<()>> {
        self.store.try_remove(key, below)
    }
}

#[async_trait]
impl Listing for DiskTier {
    async fn list(&self, namespace: Option<&str>, after: Option<Vec<u8>>, limit: usize) -> Result<Listed> {
        self.store.check_open()?;
        let namespace = namespace.map(str::to_owned);
        let after = after.map(|cursor| cursor.iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte)));
        self.blocking(move |store| store.list(namespace.as_deref(), after, limit)).await
    }
}

#[async_trait]
impl FenceLog for DiskTier {
    async fn fence(&self, scope: &Scope, generation: Generation) -> Result<Generation> {
        self.store.fence(scope, generation).await?;
        Ok(generation)
    }

    fn remembered(&self) -> Vec<(Scope, Generation)> {
        self.store.read_fences().list()
    }
}

#[async_trait]
impl Journal for DiskTier {
    async fn note(&self, waiting: &Waiting) -> Result<u64> {
        let waiting = waiting.clone();
        self.journal("note", move |journal, dir, sync| journal.note(dir, waiting, sync)).await
    }

    async fn strike(&self, notes: &[u64]) -> Result<()> {
        let notes = notes.to_vec();
        self.journal("strike", move |journal, dir, sync| journal.strike(dir, &notes, sync)).await
    }

    async fn notes(&self) -> Result<Vec<(u64, Waiting)>> {
        let all = |journal: &mut crate::journal::Journal, _: &Dir, _| {
            Ok(journal.notes().iter().map(|(number, waiting)| (*number, waiting.clone())).collect())
        };
        self.journal("list notes", all).await
    }
}

impl DiskTier {
    /// Does `work` on the journal, whether or not anybody waits for it to the end.
    async fn journal<T: Send + 'static>(
        &self,
        op: &'static str,
        work: impl FnOnce(&mut crate::journal::Journal, &Dir, bool) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let work = move |store: &Store| {
            let mut journal = lock(&store.journal);
            store.check_open()?;
            work(&mut journal, &store.dir, store.flush == Flush::Each)
                .map_err(|error| Error::unavailable(NAME, op, error))
        };
        self.blocking(work).await?
    }
}

impl Store {
    /// How many slots a shard has, and those that are dead or past their stay.
    fn due(&self, number: usize, now: Timestamp) -> (usize, Vec<(u64, Slot)>) {
        let mut seen = 0;
        let due = self.index.collect(number, |slot| {
            seen += 1;
            slot.state == State::Live
                && (slot.deadline <= now || slot.since.after_millis(self.stays.millis(slot.stay)) <= now)
        });
        (seen, due)
    }

    /// The entry behind a slot, as long as it is there.
    pub(crate) fn entry_at(&self, hash: u64, slot: &Slot) -> Option<(Key, Entry)> {
        let segment = self.log.segments.get(slot.place.segment)?;
        let damage = match self.read(&segment, slot.place, true) {
            Ok(mut bytes) => {
                self.codec.unseal(segment.salt, &mut bytes);
                match self.entries.decode(&bytes.into()) {
                    Ok((key, entry)) => return Some((key, self.rewound(entry, &segment, slot.place))),
                    Err(damage) => damage.to_string(),
                }
            }
            Err(error) => error.to_string(),
        };
        self.damaged(hash, slot.place, &damage);
        None
    }

    /// Spills what is still behind `slot` and stops answering for it, in one step. Whether it did.
    pub(crate) fn hand_over(&self, hash: u64, slot: &Slot, key: Key, entry: Entry, left: Left) -> bool {
        let mut shard = self.index.shard(hash);
        match shard.get(hash) {
            // Used meanwhile: a stay begins anew, but room must be made all the same.
            Some(now) if left.cause == Cause::StayOver && now.since != slot.since => return false,
            Some(now) if now.state == State::Live && now.place == slot.place => {}
            _ => return false,
        }
        if let Some(spill) = self.spill.get() {
            spill.spill(key, entry, left);
        }
        shard.give_up(hash, slot.place)
    }

    fn list(&self, namespace: Option<&str>, after: Option<u64>, limit: usize) -> Listed {
        // In the order of hashes, which no move changes.
        let wanted = match namespace.map(|namespace| self.codec.names.known(namespace)) {
            Some(None) => return Listed::default(),
            wanted => wanted.flatten(),
        };
        let first = after.map_or(0, |hash| hash + 1);
        let mut listed = Listed::default();
        let mut bytes = 0;
        for number in (first >> 32) as usize..SHARDS {
            let mut slots = self.index.collect(number, |slot| {
                slot.state == State::Live && wanted.is_none_or(|wanted| slot.namespace == wanted)
            });
            slots.sort_unstable_by_key(|(hash, _)| *hash);
            for (hash, slot) in slots.into_iter().filter(|(hash, _)| *hash >= first) {
                if let Some((key, mut entry)) = self.listed(hash, slot) {
                    let size = entry.value.len() as u64;
                    entry.value = Default::default();
                    listed.entries.push(ListedEntry { key, entry, size });
                    bytes += size;
                }
                if listed.entries.len() >= limit.max(1) || bytes >= BATCH_BYTES * 16 {
                    listed.next = Some(hash.to_be_bytes()[3..].to_vec());
                    return listed;
                }
            }
        }
        listed
    }

    /// The entry behind a slot; looked for again when reclaim moved it meanwhile.
    fn listed(&self, hash: u64, mut slot: Slot) -> Option<(Key, Entry)> {
        loop {
            if let Some(found) = self.entry_at(hash, &slot) {
                return Some(found);
            }
            let now = self.index.shard(hash).get(hash)?;
            if now.state != State::Live || now.place == slot.place {
                return None;
            }
            slot = now;
        }
    }
}
