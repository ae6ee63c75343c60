//! A level that outlives the process, in which every step waits for the simulator's leave.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use tiercache_core::tier::{
    Dead, FenceLog, Hold, Index, Journal, Permit, Profile, Put, Removal, Scope, Spill, Swept, Tier, TryGet,
    Usage, Waiting,
};
use tiercache_core::{Entry, Error, Generation, Key, KeyRef, Result, Timestamp};
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
}

/// What outlives the process.
#[derive(Debug, Default)]
pub(super) struct Store(Mutex<Contents>);

#[derive(Debug, Default)]
struct Contents {
    entries: BTreeMap<Key, Entry>,
    removed: BTreeMap<Key, Generation>,
    fences: BTreeMap<Scope, Generation>,
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

    async fn pass(&self, step: String) -> Fate {
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
        let what = format!("{}: {what}", self.name);
        match self.gates.pass(format!("before {what}")).await {
            Fate::Go => {}
            Fate::Fail => return Err(failed()),
            Fate::Hang => std::future::pending().await,
        }
        let answer = effect(&mut *self.alive()?);
        match self.gates.pass(format!("after {what}")).await {
            Fate::Go => Ok(answer),
            Fate::Fail => Err(failed()),
            Fate::Hang => std::future::pending().await,
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

    fn put(&mut self, key: &Key, entry: &Entry) -> Put {
        let kept = self.entries.get(key).map(|entry| entry.generation);
        if kept == Some(entry.generation) {
            return Put::Unchanged;
        }
        // A removal below a generation spares that generation itself: a set fences, and then puts.
        if self.newest(key).is_some_and(|newest| newest > entry.generation) {
            return Put::Superseded;
        }
        self.last = self.last.max(entry.generation);
        self.entries.insert(key.clone(), entry.clone());
        Put::Stored
    }
}

impl Store {
    /// Another process sets `key`; its generations are at least `ahead`.
    pub(super) fn set_elsewhere(&self, key: &Key, value: &str, now: Timestamp, ahead: u64) {
        let mut contents = lock(&self.0);
        let generation = contents.overtake(key, ahead);
        contents.put(key, &Entry::new(value.to_owned(), generation, now));
    }

    /// Another process removes `key`.
    pub(super) fn remove_elsewhere(&self, key: &Key, ahead: u64) {
        lock(&self.0).overtake(key, ahead);
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
        self.step(what, |contents| match contents.newest(key) {
            Some(newest) if self.shared && newest >= below => Removal::Behind(newest),
            newest => {
                contents.remove(key, below, self.local || self.shared);
                Removal::Done { over: newest.filter(|_| self.shared).unwrap_or_default() }
            }
        })
        .await
    }

    async fn clear(&self, namespace: Option<&str>, below: Generation) -> Result<()> {
        self.step("clear".to_string(), |contents| {
            contents.last = contents.last.max(below);
            contents.entries.retain(|key, entry| {
                entry.generation >= below || namespace.is_some_and(|namespace| namespace != key.namespace())
            });
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

    fn fences(&self) -> Option<&dyn FenceLog> {
        Some(self)
    }

    fn journal(&self) -> Option<&dyn Journal> {
        if self.local { Some(self) } else { None }
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
