use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::lease::{Claim, Holder, Lease, Table};
use crate::tier::{
    Cause, Counting, Dead, FenceLog, Hold, Journal, Left, Listed, ListedEntry, Listing, Permit, Profile, Put,
    Removal, Scope, Spill, Swept, Usage, Waiting,
};
use crate::{Entry, Error, Generation, Key, Leasing, Result, Tier, Timestamp};

/// The smallest tier that keeps the whole contract: a sorted map under a mutex, without a limit. It remembers
/// removals, and may stand in for a store that outlives the process, or for one that several processes share.
#[derive(Debug)]
pub struct MemoryTier {
    store: Arc<Mutex<Store>>,
    persistent: bool,
    shared: bool,
    last_generation: Generation,
    spill: OnceLock<Arc<dyn Spill>>,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Store {
    kept: BTreeMap<Key, Kept>,
    /// Up to which generation a key was removed.
    removed: BTreeMap<Key, Generation>,
    /// Likewise a namespace, or under `None` everything.
    cleared: BTreeMap<Option<String>, Generation>,
    fences: BTreeMap<Scope, Generation>,
    /// Counters and when they die.
    counters: BTreeMap<Key, (i64, Timestamp)>,
    leases: Table,
    last_generation: Generation,
    notes: BTreeMap<u64, Waiting>,
    noted: u64,
}

#[derive(Debug)]
struct Kept {
    entry: Entry,
    until: Timestamp,
}

impl MemoryTier {
    /// An empty tier that ends with the process.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::over(Arc::default(), false, false))
    }

    /// An empty tier that says it outlives the process; [`MemoryTier::reopen`] is the next process.
    pub fn persistent() -> Arc<Self> {
        Arc::new(Self::over(Arc::default(), true, false))
    }

    /// An empty tier that says other processes see it too; [`MemoryTier::reopen`] is another process.
    pub fn shared() -> Arc<Self> {
        Arc::new(Self::over(Arc::default(), true, true))
    }

    /// Another tier over what this one stored, whether this one was closed or not.
    pub fn reopen(&self) -> Arc<Self> {
        Arc::new(Self::over(self.store.clone(), self.persistent, self.shared))
    }

    fn over(store: Arc<Mutex<Store>>, persistent: bool, shared: bool) -> Self {
        let last_generation = store.lock().unwrap_or_else(PoisonError::into_inner).last_generation;
        let (spill, closed) = (OnceLock::new(), AtomicBool::new(false));
        Self { store, persistent, shared, last_generation, spill, closed }
    }

    fn open(&self) -> Result<MutexGuard<'_, Store>> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        Ok(self.store.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Store {
    /// Below which generation nothing of `key` may come any more.
    fn floor(&self, key: &Key) -> Generation {
        let namespace = Some(key.namespace().to_owned());
        let floors = [self.removed.get(key), self.cleared.get(&namespace), self.cleared.get(&None)];
        floors.into_iter().flatten().copied().max().unwrap_or_default()
    }

    fn note(&mut self, generation: Generation) {
        self.last_generation = self.last_generation.max(generation);
    }
}

#[async_trait]
impl Tier for MemoryTier {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn profile(&self) -> Profile {
        let Self { persistent, shared, last_generation, .. } = *self;
        Profile { persistent, shared, max_entry_bytes: None, last_generation }
    }

    fn attach(&self, spill: Arc<dyn Spill>) {
        // The first one counts.
        let _ = self.spill.set(spill);
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        Ok(self.open()?.kept.get(key).map(|kept| kept.entry.clone()))
    }

    async fn put(&self, key: &Key, entry: &Entry, hold: Hold, permit: &dyn Permit) -> Result<Put> {
        let mut store = self.open()?;
        let standing = store.kept.get(key).map(|kept| kept.entry.generation);
        if standing == Some(entry.generation) {
            return Ok(Put::Unchanged);
        }
        if standing > Some(entry.generation) || entry.generation < store.floor(key) || !permit.holds() {
            return Ok(Put::Superseded);
        }
        store.note(entry.generation);
        store.kept.insert(key.clone(), Kept { entry: entry.clone(), until: hold.until(entry) });
        Ok(Put::Stored)
    }

    async fn remove(&self, key: &Key, below: Generation) -> Result<Removal> {
        let mut store = self.open()?;
        store.note(below);
        let standing = store.kept.get(key).map(|kept| kept.entry.generation);
        let newest = standing.max(store.removed.get(key).copied());
        if let Some(newest) = newest.filter(|&newest| self.shared && newest >= below) {
            return Ok(Removal::Behind(newest));
        }
        let removed = store.removed.entry(key.clone()).or_default();
        *removed = below.max(*removed);
        if standing < Some(below) {
            store.kept.remove(key);
        }
        Ok(Removal::Done { over: newest.filter(|_| self.shared).unwrap_or_default() })
    }

    async fn clear(&self, namespace: Option<&str>, below: Generation) -> Result<()> {
        let mut store = self.open()?;
        store.note(below);
        let cleared = store.cleared.entry(namespace.map(str::to_owned)).or_default();
        *cleared = below.max(*cleared);
        let stays = |key: &Key| namespace.is_some_and(|namespace| namespace != key.namespace());
        store.kept.retain(|key, kept| kept.entry.generation >= below || stays(key));
        store.counters.retain(|key, _| stays(key));
        Ok(())
    }

    async fn usage(&self) -> Result<Usage> {
        let store = self.open()?;
        let bytes = store.kept.iter().map(|(key, kept)| key.encoded().len() + kept.entry.value.len());
        Ok(Usage {
            entries: Some(store.kept.len() as u64),
            bytes: Some(bytes.sum::<usize>() as u64),
            ..Usage::default()
        })
    }

    async fn sweep(&self, now: Timestamp, dead: &dyn Dead) -> Result<Swept> {
        let mut store = self.open()?;
        let mut swept = Swept { complete: true, ..Swept::default() };
        store.kept.retain(|key, Kept { entry, until }| {
            if !entry.is_live(now) || dead.is_dead(key.as_ref(), entry) {
                swept.dropped += 1;
                return false;
            }
            if now < *until {
                return true;
            }
            if let Some(spill) = self.spill.get() {
                spill.spill(key.clone(), entry.clone(), Left { cause: Cause::StayOver, uses: 0 });
            }
            swept.spilled += 1;
            false
        });
        Ok(swept)
    }

    async fn sync(&self) -> Result<()> {
        self.open().map(drop)
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
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

    /// Of a tier that outlives the process and is this one's alone.
    fn journal(&self) -> Option<&dyn Journal> {
        (self.persistent && !self.shared).then_some(self as &dyn Journal)
    }
}

#[async_trait]
impl Listing for MemoryTier {
    async fn list(&self, namespace: Option<&str>, after: Option<Vec<u8>>, limit: usize) -> Result<Listed> {
        let store = self.open()?;
        // Where a page ended: the encoding of its last key, which begins with the namespace's length.
        let after = after.as_deref().and_then(decode);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut kept = store
            .kept
            .range((from, Bound::Unbounded))
            .filter(|(key, _)| namespace.is_none_or(|namespace| namespace == key.namespace()));
        let entries: Vec<ListedEntry> = kept.by_ref().take(limit.max(1)).map(listed).collect();
        let last = entries.last().map(|listed| listed.key.encoded().to_vec());
        Ok(Listed { next: kept.next().and(last), entries })
    }
}

fn listed((key, kept): (&Key, &Kept)) -> ListedEntry {
    let mut entry = kept.entry.clone();
    let size = std::mem::take(&mut entry.value).len() as u64;
    ListedEntry { key: key.clone(), entry, size }
}

fn decode(encoded: &[u8]) -> Option<Key> {
    let (&length, rest) = encoded.split_first()?;
    let (namespace, bytes) = rest.split_at_checked(usize::from(length))?;
    Key::new(std::str::from_utf8(namespace).ok()?, bytes).ok()
}

#[async_trait]
impl FenceLog for MemoryTier {
    async fn fence(&self, scope: &Scope, generation: Generation) -> Result<Generation> {
        let mut store = self.open()?;
        let ahead = Generation::new(store.last_generation.get() + 1);
        let generation = if self.shared { generation.max(ahead) } else { generation };
        store.note(generation);
        let fence = store.fences.entry(scope.clone()).or_default();
        *fence = generation.max(*fence);
        Ok(generation)
    }

    fn remembered(&self) -> Vec<(Scope, Generation)> {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.fences.iter().map(|(scope, &generation)| (scope.clone(), generation)).collect()
    }
}

#[async_trait]
impl Counting for MemoryTier {
    async fn add(
        &self,
        key: &Key,
        delta: i64,
        start: i64,
        deadline: Timestamp,
        now: Timestamp,
    ) -> Result<i64> {
        let mut store = self.open()?;
        let standing = store.counters.get(key).copied().filter(|&(_, deadline)| now < deadline);
        let (count, deadline) = standing.unwrap_or((start, deadline));
        let sum = count.checked_add(delta).ok_or_else(|| Error::InvalidOption {
            option: "delta",
            reason: format!("{count} + {delta} is out of range"),
        })?;
        store.counters.insert(key.clone(), (sum, deadline));
        Ok(sum)
    }

    async fn counter(&self, key: &Key, now: Timestamp) -> Result<Option<i64>> {
        let standing = self.open()?.counters.get(key).copied();
        Ok(standing.filter(|&(_, deadline)| now < deadline).map(|(count, _)| count))
    }

    async fn remove_counter(&self, key: &Key) -> Result<bool> {
        Ok(self.open()?.counters.remove(key).is_some())
    }
}

#[async_trait]
impl Leasing for MemoryTier {
    async fn acquire(&self, name: &Key, holder: Holder, term: Duration) -> Result<Claim> {
        self.open()?.leases.acquire(name, holder, term)
    }

    async fn renew(&self, name: &Key, holder: Holder, term: Duration) -> Result<Option<Lease>> {
        self.open()?.leases.renew(name, holder, term)
    }

    async fn release(&self, name: &Key, holder: Holder) -> Result<bool> {
        Ok(self.open()?.leases.release(name, holder))
    }
}

#[async_trait]
impl Journal for MemoryTier {
    async fn note(&self, waiting: &Waiting) -> Result<u64> {
        let mut store = self.open()?;
        store.noted += 1;
        let number = store.noted;
        store.notes.insert(number, waiting.clone());
        Ok(number)
    }

    async fn strike(&self, notes: &[u64]) -> Result<()> {
        let mut store = self.open()?;
        store.notes.retain(|number, _| !notes.contains(number));
        Ok(())
    }

    async fn notes(&self) -> Result<Vec<(u64, Waiting)>> {
        Ok(self.open()?.notes.iter().map(|(number, waiting)| (*number, waiting.clone())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{lease, tier};

    #[tokio::test]
    async fn keeps_the_contract() {
        tier::suite(async || MemoryTier::new() as Arc<dyn Tier>).await;
    }

    #[tokio::test]
    async fn keeps_it_across_processes() {
        let opened = Mutex::new(Vec::<Arc<MemoryTier>>::new());
        let open = async |place: usize| {
            let mut opened = opened.lock().unwrap();
            if place == opened.len() {
                opened.push(MemoryTier::persistent());
            }
            opened[place].reopen() as Arc<dyn Tier>
        };
        tier::persistent_suite(open).await;
    }

    #[tokio::test(start_paused = true)]
    async fn it_gives_out_leases() {
        let stores = Mutex::new(Vec::new());
        lease::suite(Duration::from_millis(200), async |place| {
            let mut stores = stores.lock().unwrap();
            if place == stores.len() {
                stores.push(MemoryTier::shared());
            }
            stores[place].reopen() as Arc<dyn Leasing>
        })
        .await;
    }
}
