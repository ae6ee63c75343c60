//! A level that outlives the process, in which every step waits for the simulator's leave.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tiercache_core::lease::{Claim, Holder, Lease, LocalLeases};
use tiercache_core::tier::{
    Counting, Dead, FenceLog, Hold, Index, Journal, Listed, ListedEntry, Listing, Permit, Profile, Put,
    PutItem, Removal, Scope, Spill, Swept, Tier, TryGet, Usage, Waiting, side_by_side,
};
use tiercache_core::transaction::{Standing, Transacting, Transactions, Work};
use tiercache_core::{Entry, Error, Generation, Key, KeyRef, Leasing, Result, Timestamp};
use tokio::sync::oneshot;

/// How the simulator lets a step go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// As it should.
    Go,
    /// It fails: nothing happened if it had not happened yet, else it did.
    Fail,
    /// It answers nothing until it is given up on.
    Hang,
    /// Of a batch some items fail: every other one before anything happened, or those in between after it did. A step
    /// of a single operation goes as it should.
    Part,
}

/// What outlives the process.
#[derive(Debug, Default)]
pub(super) struct Store(Mutex<Contents>, LocalLeases);

#[derive(Clone, Debug, Default)]
struct Contents {
    entries: BTreeMap<Key, Entry>,
    removed: BTreeMap<Key, Generation>,
    fences: BTreeMap<Scope, Generation>,
    /// Those of other processes, which this store keeps itself.
    theirs: BTreeMap<Scope, Generation>,
    /// Counters and when they die.
    counters: BTreeMap<Key, (i64, Timestamp)>,
    last: Generation,
    notes: BTreeMap<u64, Waiting>,
    noted: u64,
}

/// Where steps wait.
#[derive(Debug, Default)]
pub(super) struct Gates {
    waiting: Mutex<Vec<(String, oneshot::Sender<Fate>)>>,
    /// Answers of the paths that do not wait, decided ahead.
    at_once: AtomicBool,
    /// Whether the store that other processes use cannot be opened.
    pub away: AtomicBool,
}

impl Gates {
    /// How many steps wait.
    pub(super) fn waiting(&self) -> usize {
        lock(&self.waiting).len()
    }

    /// What a step that waits is called.
    pub(super) fn step(&self, which: usize) -> String {
        lock(&self.waiting)[which].0.clone()
    }

    /// Lets one go.
    pub(super) fn release(&self, which: usize, fate: Fate) -> String {
        let (step, gate) = lock(&self.waiting).remove(which);
        // Nobody may be behind the gate any more: its operation was given up.
        let _ = gate.send(fate);
        step
    }

    /// Whether paths that need not wait answer, or say that they would have to.
    pub(super) fn answer_at_once(&self, at_once: bool) {
        self.at_once.store(at_once, Ordering::Relaxed);
    }

    pub(super) async fn pass(&self, step: String) -> Fate {
        let (open, gate) = oneshot::channel();
        lock(&self.waiting).push((step, open));
        gate.await.unwrap_or(Fate::Fail)
    }
}

/// The store as one process sees it.
#[derive(Debug)]
pub(super) struct Life {
    pub name: &'static str,
    pub store: Arc<Store>,
    pub gates: Arc<Gates>,
    /// The process is dead: nothing it still does has an effect.
    pub dead: AtomicBool,
    /// Knows what it holds, asks permits where it commits, remembers removals: like a local log. Otherwise like
    /// a remote store that knows only what is put and compares generations with what is there.
    pub local: bool,
    /// A batch is one step, not one for each item.
    pub batches: bool,
    /// Other processes use it too: it remembers removals, and tells who is behind.
    pub shared: bool,
}

impl Life {
    fn alive(&self) -> Result<MutexGuard<'_, Contents>> {
        if self.dead.load(Ordering::Relaxed) { Err(Error::Closed) } else { Ok(lock(&self.store.0)) }
    }

    /// One operation: waits, has its effect, waits, answers.
    async fn step<T>(&self, what: String, effect: impl FnOnce(&mut Contents) -> T) -> Result<T> {
        let failed = || Error::unavailable(self.name, "step", "told to fail");
        // A transaction is waited for as long as it takes: one that hangs would be one that nobody sees the end of.
        let hangs = what != "transaction";
        let what = format!("{}: {what}", self.name);
        match self.gates.pass(format!("before {what}")).await {
            Fate::Go | Fate::Part => {}
            Fate::Fail => return Err(failed()),
            Fate::Hang if !hangs => return Err(failed()),
            Fate::Hang => std::future::pending().await,
        }
        let answer = effect(&mut *self.alive()?);
        match self.gates.pass(format!("after {what}")).await {
            Fate::Go | Fate::Part => Ok(answer),
            Fate::Fail => Err(failed()),
            Fate::Hang if !hangs => Err(failed()),
            Fate::Hang => std::future::pending().await,
        }
    }

    /// A step about a lease.
    async fn lease<T>(&self, what: String, effect: impl Future<Output = Result<T>>) -> Result<T> {
        let failed = || Error::unavailable("store", "step", "told to fail");
        match self.gates.pass(format!("before {what}")).await {
            Fate::Go | Fate::Part => {}
            Fate::Fail => return Err(failed()),
            Fate::Hang => std::future::pending().await,
        }
        drop(self.alive()?);
        let answer = effect.await;
        match self.gates.pass(format!("after {what}")).await {
            Fate::Go | Fate::Part => answer,
            Fate::Fail => Err(failed()),
            Fate::Hang => std::future::pending().await,
        }
    }

    /// A batch: waits, has its effects, waits, answers.
    async fn steps<T>(
        &self,
        what: String,
        count: usize,
        mut effect: impl FnMut(&mut Contents, usize) -> T,
    ) -> Vec<Result<T>> {
        let failed = || Error::unavailable("store", "step", "told to fail");
        let all = || (0..count).map(|_| Err(failed())).collect();
        let before = self.gates.pass(format!("before {what}")).await;
        match before {
            Fate::Go | Fate::Part => {}
            Fate::Fail => return all(),
            Fate::Hang => std::future::pending().await,
        }
        let mut answers: Vec<Result<T>> = match self.alive() {
            Ok(mut contents) => {
                let fails = |at: usize| before == Fate::Part && at % 2 == 1;
                let mut one = |at| if fails(at) { Err(failed()) } else { Ok(effect(&mut contents, at)) };
                (0..count).map(&mut one).collect()
            }
            Err(_) => return all(),
        };
        match self.gates.pass(format!("after {what}")).await {
            Fate::Go => answers,
            Fate::Part => {
                answers.iter_mut().step_by(2).for_each(|answer| *answer = Err(failed()));
                answers
            }
            Fate::Fail => all(),
            Fate::Hang => std::future::pending().await,
        }
    }
}

/// What a removal does to one key.
fn removed(life: &Life, contents: &mut Contents, key: &Key, below: Generation) -> Removal {
    match contents.newest(key) {
        Some(newest) if life.shared && newest >= below => Removal::Behind(newest),
        _ if life.shared && contents.fenced() > below => Removal::Fenced(contents.fenced()),
        newest => {
            contents.remove(key, below, life.local || life.shared);
            Removal::Done { over: newest.filter(|_| life.shared).unwrap_or_default() }
        }
    }
}

impl Contents {
    /// What another process has done, as one step: it took a generation above what it met at the key.
    fn overtake(&mut self, key: &Key, ahead: u64) -> Generation {
        let met = self.newest(key).map_or(0, Generation::get);
        let generation = Generation::new(met.max(ahead) + 1);
        self.remove(key, generation, true);
        generation
    }

    fn kills(&self, key: &Key, entry: &Entry) -> bool {
        kills(&self.fences, key, entry) || kills(&self.theirs, key, entry)
    }

    /// The newest fence.
    fn fenced(&self) -> Generation {
        self.fences.values().chain(self.theirs.values()).max().copied().unwrap_or_default()
    }

    /// The generation of the entry or the removal of a key.
    fn newest(&self, key: &Key) -> Option<Generation> {
        let kept = self.entries.get(key).map(|entry| entry.generation);
        kept.max(self.removed.get(key).copied())
    }

    fn remove(&mut self, key: &Key, below: Generation, remember: bool) {
        self.last = self.last.max(below);
        if self.entries.get(key).is_some_and(|entry| entry.generation < below) {
            self.entries.remove(key);
        }
        if remember {
            let removed = self.removed.entry(key.clone()).or_default();
            *removed = (*removed).max(below);
        }
    }

    fn add(&mut self, key: &Key, delta: i64, deadline: Timestamp, now: Timestamp) -> i64 {
        let living = self.counters.get(key).copied().filter(|&(_, deadline)| now < deadline);
        let (sum, deadline) = living.unwrap_or((0, deadline));
        self.counters.insert(key.clone(), (sum + delta, deadline));
        sum + delta
    }

    fn put(&mut self, key: &Key, entry: &Entry) -> Put {
        let kept = self.entries.get(key).map(|entry| entry.generation);
        if kept == Some(entry.generation) {
            return Put::Unchanged;
        }
        // A removal below a generation spares that generation itself: a set fences, and then puts.
        let newer = self.newest(key).is_some_and(|newest| newest > entry.generation);
        if newer || kills(&self.theirs, key, entry) {
            return Put::Superseded;
        }
        self.last = self.last.max(entry.generation);
        self.entries.insert(key.clone(), entry.clone());
        Put::Stored
    }
}

fn kills(fences: &BTreeMap<Scope, Generation>, key: &Key, entry: &Entry) -> bool {
    fences.iter().any(|(scope, fence)| entry.generation < *fence && scope.covers(key.as_ref(), entry))
}

impl Store {
    /// Another process invalidates what is in the scope, above all that any process has put.
    pub(super) fn invalidate_elsewhere(&self, scope: Scope, ahead: u64) {
        let mut contents = lock(&self.0);
        let generation = Generation::new(contents.last.get().max(ahead) + 1);
        contents.last = generation;
        contents.entries.retain(|key, entry| !scope.covers(key.as_ref(), entry));
        contents.theirs.insert(scope, generation);
    }

    /// Another process sets `key`; its generations are at least `ahead`.
    pub(super) fn set_elsewhere(&self, key: &Key, value: &str, now: Timestamp, ahead: u64) {
        let mut contents = lock(&self.0);
        let generation = contents.overtake(key, ahead);
        contents.put(key, &Entry::new(value.to_owned(), generation, now));
    }

    /// What stands under `key`.
    pub(super) fn value(&self, key: &Key) -> Option<Bytes> {
        lock(&self.0).entries.get(key).map(|entry| entry.value.clone())
    }

    /// Another process takes the lease of a name, if nobody has it.
    pub(super) async fn lease_elsewhere(&self, name: &Key, holder: Holder, term: Duration) -> bool {
        matches!(self.1.acquire(name, holder, term).await, Ok(Claim::Granted(_)))
    }

    /// It gives it back.
    pub(super) async fn release_elsewhere(&self, name: &Key, holder: Holder) {
        let held = self.1.release(name, holder).await;
        assert!(held.is_ok(), "leases in memory are always there");
    }

    /// Another process adds to a counter.
    pub(super) fn add_elsewhere(&self, key: &Key, delta: i64, now: Timestamp) -> i64 {
        lock(&self.0).add(key, delta, Timestamp::NEVER, now)
    }

    /// Another process takes out what stands under `key`.
    pub(super) fn pop_elsewhere(&self, key: &Key, ahead: u64) -> Option<Bytes> {
        let mut contents = lock(&self.0);
        let taken = contents.entries.get(key).map(|entry| entry.value.clone());
        contents.overtake(key, ahead);
        taken
    }
}

#[async_trait]
impl Tier for Life {
    fn name(&self) -> &'static str {
        self.name
    }

    fn profile(&self) -> Profile {
        Profile {
            persistent: true,
            shared: self.shared,
            max_entry_bytes: None,
            last_generation: lock(&self.store.0).last,
        }
    }

    fn attach(&self, _spill: Arc<dyn Spill>) {}

    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        self.step(format!("get {key:?}"), |contents| contents.entries.get(key).cloned()).await
    }

    async fn put(&self, key: &Key, entry: &Entry, _hold: Hold, permit: &dyn Permit) -> Result<Put> {
        if !self.local && !permit.holds() {
            return Ok(Put::Superseded);
        }
        let what = format!("put {key:?} {}", entry.generation.get());
        self.step(what, |contents| {
            if self.local && !permit.holds() { Put::Superseded } else { contents.put(key, entry) }
        })
        .await
    }

    async fn remove(&self, key: &Key, below: Generation) -> Result<Removal> {
        let what = format!("remove {key:?} below {}", below.get());
        self.step(what, |contents| removed(self, contents, key, below)).await
    }

    async fn get_many(&self, keys: &[Key]) -> Vec<Result<Option<Entry>>> {
        if !self.batches {
            return side_by_side(keys.len(), keys.iter().map(|key| self.get(key)).collect()).await;
        }
        let what = format!("get {keys:?}");
        self.steps(what, keys.len(), |contents, at| contents.entries.get(&keys[at]).cloned()).await
    }

    async fn put_many(&self, items: &[PutItem<'_>]) -> Vec<Result<Put>> {
        if !self.batches {
            let put = items.iter().map(|item| self.put(item.key, item.entry, item.hold, item.permit));
            return side_by_side(items.len(), put.collect()).await;
        }
        let sent: Vec<bool> = items.iter().map(|item| self.local || item.permit.holds()).collect();
        let what = format!("put {:?}", items.iter().map(|item| item.key).collect::<Vec<_>>());
        self.steps(what, items.len(), |contents, at| {
            let holds = if self.local { items[at].permit.holds() } else { sent[at] };
            if holds { contents.put(items[at].key, items[at].entry) } else { Put::Superseded }
        })
        .await
    }

    async fn remove_many(&self, items: &[(Key, Generation)]) -> Vec<Result<Removal>> {
        if !self.batches {
            let remove = items.iter().map(|(key, below)| self.remove(key, *below));
            return side_by_side(items.len(), remove.collect()).await;
        }
        let what = format!("remove {items:?}");
        self.steps(what, items.len(), |contents, at| removed(self, contents, &items[at].0, items[at].1)).await
    }

    async fn clear(&self, namespace: Option<&str>, below: Generation) -> Result<()> {
        self.step("clear".to_string(), |contents| {
            contents.last = contents.last.max(below);
            let stays = |key: &Key| namespace.is_some_and(|namespace| namespace != key.namespace());
            contents.entries.retain(|key, entry| entry.generation >= below || stays(key));
            contents.counters.retain(|key, _| stays(key));
        })
        .await
    }

    async fn usage(&self) -> Result<Usage> {
        Ok(Usage { entries: Some(self.alive()?.entries.len() as u64), ..Usage::default() })
    }

    async fn sweep(&self, now: Timestamp, dead: &dyn Dead) -> Result<Swept> {
        let mut contents = self.alive()?;
        let before = contents.entries.len();
        contents.entries.retain(|key, entry| entry.is_live(now) && !dead.is_dead(key.as_ref(), entry));
        Ok(Swept { dropped: (before - contents.entries.len()) as u64, spilled: 0, complete: true })
    }

    async fn sync(&self) -> Result<()> {
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }

    fn index(&self) -> Option<&dyn Index> {
        if self.local { Some(self) } else { None }
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
        if self.shared { Some(self) } else { None }
    }

    fn journal(&self) -> Option<&dyn Journal> {
        if self.local { Some(self) } else { None }
    }

    fn transactions(&self) -> Option<&dyn Transactions> {
        if self.shared { Some(self) } else { None }
    }
}

#[async_trait]
impl Leasing for Life {
    async fn acquire(&self, name: &Key, holder: Holder, term: Duration) -> Result<Claim> {
        self.lease(format!("lease {name:?}"), self.store.1.acquire(name, holder, term)).await
    }

    async fn renew(&self, name: &Key, holder: Holder, term: Duration) -> Result<Option<Lease>> {
        self.lease(format!("renew {name:?}"), self.store.1.renew(name, holder, term)).await
    }

    async fn release(&self, name: &Key, holder: Holder) -> Result<bool> {
        self.lease(format!("release {name:?}"), self.store.1.release(name, holder)).await
    }
}

#[async_trait]
impl Transactions for Life {
    async fn transact(&self, _keys: &[Key], work: Work) -> Result<()> {
        let whole = |contents: &mut Contents| {
            let mut copy = contents.clone();
            work(&mut copy)?;
            *contents = copy;
            Ok(())
        };
        self.step("transaction".to_string(), whole).await?
    }
}

/// A copy, which takes the place of what it was made of when all went well.
impl Transacting for Contents {
    fn get(&mut self, key: &Key) -> Result<Option<Entry>> {
        Ok(self.entries.get(key).cloned())
    }

    fn put(&mut self, key: &Key, entry: &Entry, _hold: Hold) -> Result<Put> {
        Ok(Contents::put(self, key, entry))
    }

    fn remove(&mut self, key: &Key, below: Generation) -> Result<Removal> {
        let over = self.newest(key).unwrap_or_default();
        if over >= below {
            return Ok(Removal::Behind(over));
        }
        if self.fenced() > below {
            return Ok(Removal::Fenced(self.fenced()));
        }
        Contents::remove(self, key, below, true);
        Ok(Removal::Done { over })
    }

    fn standing(&mut self, key: &Key) -> Result<Standing> {
        let newest = self.newest(key).unwrap_or_default();
        Ok(Standing { newest, above: newest.max(self.fenced()) })
    }

    fn kills(&mut self, key: &Key, entry: &Entry) -> Result<bool> {
        Ok(Contents::kills(self, key, entry))
    }

    fn nested(&mut self, part: &mut dyn FnMut(&mut dyn Transacting) -> Result<()>) -> Result<()> {
        let before = self.clone();
        let done = part(self);
        if done.is_err() {
            *self = before;
        }
        done
    }
}

#[async_trait]
impl Counting for Life {
    async fn add(
        &self,
        key: &Key,
        delta: i64,
        _start: i64,
        deadline: Timestamp,
        now: Timestamp,
    ) -> Result<i64> {
        self.step(format!("add {delta} to {key:?}"), |contents| contents.add(key, delta, deadline, now)).await
    }

    async fn counter(&self, key: &Key, now: Timestamp) -> Result<Option<i64>> {
        self.step(format!("counter {key:?}"), |contents| {
            let living = contents.counters.get(key).filter(|&&(_, deadline)| now < deadline);
            living.map(|&(sum, _)| sum)
        })
        .await
    }

    async fn remove_counter(&self, key: &Key) -> Result<bool> {
        self.step(format!("remove counter {key:?}"), |contents| contents.counters.remove(key).is_some()).await
    }
}

#[async_trait]
impl Index for Life {
    fn holds(&self, key: KeyRef<'_>) -> Option<Generation> {
        lock(&self.store.0).entries.get(&key.to_key()).map(|entry| entry.generation)
    }

    fn try_get(&self, key: KeyRef<'_>) -> TryGet {
        if !self.gates.at_once.load(Ordering::Relaxed) {
            return TryGet::WouldBlock;
        }
        TryGet::Done(self.alive().ok().and_then(|contents| contents.entries.get(&key.to_key()).cloned()))
    }

    fn try_remove(&self, key: KeyRef<'_>, below: Generation) -> Option<Result<()>> {
        if !self.gates.at_once.load(Ordering::Relaxed) {
            return None;
        }
        Some(self.alive().map(|mut contents| contents.remove(&key.to_key(), below, true)))
    }
}

/// Entries of a page: whatever is asked for, a listing takes several.
const PAGE: usize = 2;

/// By the encoding of the keys, which is where a page ends, too.
#[async_trait]
impl Listing for Life {
    async fn list(&self, namespace: Option<&str>, after: Option<Vec<u8>>, limit: usize) -> Result<Listed> {
        self.step("list".to_string(), |contents| {
            let wanted = |key: &&Key| {
                namespace.is_none_or(|namespace| namespace == key.namespace())
                    && after.as_deref().is_none_or(|after| key.encoded() > after)
            };
            let mut keys: Vec<&Key> = contents.entries.keys().filter(wanted).collect();
            keys.sort_by_key(|key| key.encoded());
            let page = &keys[..keys.len().min(limit).min(PAGE)];
            let listed = |key: &&Key| {
                let entry = &contents.entries[*key];
                let (key, size) = ((*key).clone(), entry.value.len() as u64);
                ListedEntry { key, entry: Entry { value: Bytes::new(), ..entry.clone() }, size }
            };
            let next = page.last().filter(|_| page.len() < keys.len()).map(|last| last.encoded().to_vec());
            Listed { entries: page.iter().map(listed).collect(), next }
        })
        .await
    }
}

#[async_trait]
impl FenceLog for Life {
    async fn fence(&self, scope: &Scope, generation: Generation) -> Result<Generation> {
        self.step(format!("fence {scope:?}"), |contents| {
            let ahead = Generation::new(contents.last.get() + 1);
            let generation = if self.shared { generation.max(ahead) } else { generation };
            contents.last = contents.last.max(generation);
            let fence = contents.fences.entry(scope.clone()).or_default();
            *fence = (*fence).max(generation);
            generation
        })
        .await
    }

    fn remembered(&self) -> Vec<(Scope, Generation)> {
        lock(&self.store.0).fences.iter().map(|(scope, generation)| (scope.clone(), *generation)).collect()
    }

    fn kills(&self, key: &Key, entry: &Entry) -> bool {
        lock(&self.store.0).kills(key, entry)
    }
}

#[async_trait]
impl Journal for Life {
    async fn note(&self, waiting: &Waiting) -> Result<u64> {
        self.step(format!("note {waiting:?}"), |contents| {
            contents.noted += 1;
            contents.notes.insert(contents.noted, waiting.clone());
            contents.noted
        })
        .await
    }

    async fn strike(&self, notes: &[u64]) -> Result<()> {
        let strike = |contents: &mut Contents| contents.notes.retain(|number, _| !notes.contains(number));
        self.step(format!("strike {notes:?}"), strike).await
    }

    async fn notes(&self) -> Result<Vec<(u64, Waiting)>> {
        Ok(self.alive()?.notes.iter().map(|(number, waiting)| (*number, waiting.clone())).collect())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
