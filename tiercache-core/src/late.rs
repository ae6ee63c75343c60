//! Stores that may be away when the cache begins: they are opened when they are there.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use crate::lease::{Claim, Holder, Lease};
use crate::tier::{
    Counting, Dead, FenceLog, Hold, Late, Listed, Listing, Opened, Permit, Profile, Put, PutItem, Removal,
    Scope, Sizing, Spill, Swept, Usage,
};
use crate::tracking::{Event, Query, Record, Totals};
use crate::transaction::Transactions;
use crate::{Entry, Error, Generation, Key, Leasing, Result, Tier, Timestamp, Tracking};

type Opening<T> = Pin<Box<dyn Future<Output = Result<Arc<T>>> + Send>>;
type Open<T> = Box<dyn Fn() -> Opening<T> + Send + Sync>;

/// A tier over a store that other processes use, and that may be away when the cache begins: until it was opened it is
/// as if its breaker were open. The manager opens it.
pub struct LateTier {
    name: &'static str,
    open: Open<dyn Tier>,
    spill: OnceLock<Arc<dyn Spill>>,
    /// Opened, and not let answer yet.
    opened: Mutex<Option<Arc<dyn Tier>>>,
    inner: OnceLock<Arc<dyn Tier>>,
}

impl LateTier {
    /// One that `open` opens, called once for every attempt. `name` is the backend's, for logs and errors.
    pub fn new<F: Future<Output = Result<Arc<dyn Tier>>> + Send + 'static>(
        name: &'static str,
        open: impl Fn() -> F + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            open: Box::new(move || Box::pin(open())),
            spill: OnceLock::new(),
            opened: Mutex::default(),
            inner: OnceLock::new(),
        })
    }

    fn inner(&self, op: &'static str) -> Result<&dyn Tier> {
        let inner = self.inner.get().map(|inner| &**inner);
        inner.ok_or_else(|| Error::unavailable(self.name, op, "it has not been opened yet"))
    }

    /// Whether it may have a power: not known before it was opened, and it must not be looked for elsewhere meanwhile.
    fn may(&self, has: impl Fn(&dyn Tier) -> bool) -> bool {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.inner.get().or(opened.as_ref()).is_none_or(|tier| has(&**tier))
    }
}

impl fmt::Debug for LateTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LateTier").field("name", &self.name).field("inner", &self.inner.get()).finish()
    }
}

#[async_trait]
impl Late for LateTier {
    fn is_open(&self) -> bool {
        self.inner.get().is_some()
    }

    async fn open(&self) -> Result<Opened> {
        let tier = (self.open)().await?;
        let Profile { persistent, shared, last_generation, .. } = tier.profile();
        let Some(fences) = tier.fences().filter(|_| {
            persistent
                && shared
                && tier.resident().is_none()
                && tier.index().is_none()
                && tier.journal().is_none()
        }) else {
            let why = "only a store that other processes use over the network can be waited for";
            return Err(Error::Config(format!("{}: {why}", self.name)));
        };
        let opened = Opened { last_generation, fences: fences.remembered() };
        if let Some(spill) = self.spill.get() {
            tier.attach(spill.clone());
        }
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(tier);
        Ok(opened)
    }

    fn admit(&self) {
        if let Some(tier) = self.opened.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // Only the first is ever admitted.
            let _ = self.inner.set(tier);
        }
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Tier for LateTier {
    fn name(&self) -> &'static str {
        self.name
    }

    fn profile(&self) -> Profile {
        match self.inner.get() {
            Some(inner) => inner.profile(),
            // What every tier that can be waited for says.
            None => Profile {
                persistent: true,
                shared: true,
                max_entry_bytes: None,
                last_generation: Generation::ZERO,
            },
        }
    }

    fn attach(&self, spill: Arc<dyn Spill>) {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tier) = self.inner.get().or(opened.as_ref()) {
            tier.attach(spill.clone());
        }
        // The first one counts.
        let _ = self.spill.set(spill);
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        self.inner("get")?.get(key).await
    }

    async fn put(&self, key: &Key, entry: &Entry, hold: Hold, permit: &dyn Permit) -> Result<Put> {
        self.inner("put")?.put(key, entry, hold, permit).await
    }

    async fn remove(&self, key: &Key, below: Generation) -> Result<Removal> {
        self.inner("remove")?.remove(key, below).await
    }

    async fn get_many(&self, keys: &[Key]) -> Vec<Result<Option<Entry>>> {
        match self.inner("get_many") {
            Ok(inner) => inner.get_many(keys).await,
            Err(error) => keys.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    async fn put_many(&self, items: &[PutItem<'_>]) -> Vec<Result<Put>> {
        match self.inner("put_many") {
            Ok(inner) => inner.put_many(items).await,
            Err(error) => items.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    async fn remove_many(&self, items: &[(Key, Generation)]) -> Vec<Result<Removal>> {
        match self.inner("remove_many") {
            Ok(inner) => inner.remove_many(items).await,
            Err(error) => items.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    async fn clear(&self, namespace: Option<&str>, below: Generation) -> Result<()> {
        self.inner("clear")?.clear(namespace, below).await
    }

    async fn usage(&self) -> Result<Usage> {
        self.inner("usage")?.usage().await
    }

    async fn sweep(&self, now: Timestamp, dead: &dyn Dead) -> Result<Swept> {
        self.inner("sweep")?.sweep(now, dead).await
    }

    async fn sync(&self) -> Result<()> {
        self.inner("sync")?.sync().await
    }

    async fn close(&self) -> Result<()> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner).take();
        match self.inner.get().or(opened.as_ref()) {
            Some(tier) => tier.close().await,
            None => Ok(()),
        }
    }

    fn resident(&self) -> Option<&dyn crate::tier::Resident> {
        None
    }

    fn index(&self) -> Option<&dyn crate::tier::Index> {
        None
    }

    fn listing(&self) -> Option<&dyn Listing> {
        self.may(|tier| tier.listing().is_some()).then_some(self)
    }

    fn fences(&self) -> Option<&dyn FenceLog> {
        Some(self)
    }

    fn journal(&self) -> Option<&dyn crate::tier::Journal> {
        None
    }

    fn counting(&self) -> Option<&dyn Counting> {
        self.may(|tier| tier.counting().is_some()).then_some(self)
    }

    fn leasing(&self) -> Option<&dyn Leasing> {
        self.may(|tier| tier.leasing().is_some()).then_some(self)
    }

    fn transactions(&self) -> Option<&dyn Transactions> {
        self.inner.get().and_then(|inner| inner.transactions())
    }

    fn sizing(&self) -> Option<&dyn Sizing> {
        self.inner.get().and_then(|inner| inner.sizing())
    }

    fn late(&self) -> Option<&dyn Late> {
        Some(self)
    }
}

#[async_trait]
impl Listing for LateTier {
    async fn list(&self, namespace: Option<&str>, after: Option<Vec<u8>>, limit: usize) -> Result<Listed> {
        let listing = self.inner("list")?.listing();
        let listing = listing.ok_or(Error::Unsupported { backend: self.name, op: "list entries" })?;
        listing.list(namespace, after, limit).await
    }
}

#[async_trait]
impl FenceLog for LateTier {
    async fn fence(&self, scope: &Scope, generation: Generation) -> Result<Generation> {
        let fences = self.inner("fence")?.fences();
        fences.ok_or(Error::Unsupported { backend: self.name, op: "fence" })?.fence(scope, generation).await
    }

    fn remembered(&self) -> Vec<(Scope, Generation)> {
        let fences = self.inner.get().and_then(|inner| inner.fences());
        fences.map(FenceLog::remembered).unwrap_or_default()
    }

    fn kills(&self, key: &Key, entry: &Entry) -> bool {
        self.inner.get().and_then(|inner| inner.fences()).is_some_and(|fences| fences.kills(key, entry))
    }
}

#[async_trait]
impl Counting for LateTier {
    async fn add(
        &self,
        key: &Key,
        delta: i64,
        start: i64,
        deadline: Timestamp,
        now: Timestamp,
    ) -> Result<i64> {
        let counting = self.inner("add")?.counting();
        let counting = counting.ok_or(Error::Unsupported { backend: self.name, op: "count" })?;
        counting.add(key, delta, start, deadline, now).await
    }

    async fn counter(&self, key: &Key, now: Timestamp) -> Result<Option<i64>> {
        let counting = self.inner("counter")?.counting();
        counting.ok_or(Error::Unsupported { backend: self.name, op: "count" })?.counter(key, now).await
    }

    async fn remove_counter(&self, key: &Key) -> Result<bool> {
        let counting = self.inner("remove counter")?.counting();
        counting.ok_or(Error::Unsupported { backend: self.name, op: "count" })?.remove_counter(key).await
    }
}

/// Leases over what `$inner` opens, by the name of the operation.
macro_rules! leasing_over {
    ($late:ty, |$self:ident, $op:ident| $inner:expr) => {
        #[async_trait]
        impl Leasing for $late {
            async fn acquire(&self, name: &Key, holder: Holder, term: Duration) -> Result<Claim> {
                let ($self, $op) = (self, "acquire a lease");
                leasing(self.name, $inner.leasing())?.acquire(name, holder, term).await
            }

            async fn renew(&self, name: &Key, holder: Holder, term: Duration) -> Result<Option<Lease>> {
                let ($self, $op) = (self, "renew a lease");
                leasing(self.name, $inner.leasing())?.renew(name, holder, term).await
            }

            async fn release(&self, name: &Key, holder: Holder) -> Result<bool> {
                let ($self, $op) = (self, "release a lease");
                leasing(self.name, $inner.leasing())?.release(name, holder).await
            }
        }
    };
}

leasing_over!(LateTier, |late, op| late.inner(op)?);
leasing_over!(LateTracking, |late, op| late.inner(op).await?);

fn leasing<'a>(backend: &'static str, leasing: Option<&'a dyn Leasing>) -> Result<&'a dyn Leasing> {
    leasing.ok_or(Error::Unsupported { backend, op: "keep leases" })
}

/// The pause after the first attempt to open; it doubles up to [`LONGEST_PAUSE`], so that a store is used within 5 s
/// of its return.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long an attempt may take at first; twice as long after every one that took longer.
const FIRST_LIMIT: Duration = Duration::from_millis(2_500);
const LONGEST_LIMIT: Duration = Duration::from_secs(30);

/// How often, and for how long, it is tried to open a store that is away.
#[derive(Debug)]
pub(crate) struct Patience {
    pause: Duration,
    limit: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { pause: FIRST_PAUSE, limit: FIRST_LIMIT }
    }
}

impl Patience {
    /// One attempt.
    pub(crate) async fn attempt<T>(
        &mut self,
        backend: &'static str,
        opening: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let limit = self.limit;
        match tokio::time::timeout(limit, opening).await {
            Ok(opened) => opened,
            Err(_) => {
                self.limit = (limit * 2).min(LONGEST_LIMIT);
                Err(Error::TimedOut { backend, op: "open", after: limit })
            }
        }
    }

    /// How long to wait until the next. `moment`, in milliseconds, keeps processes apart.
    pub(crate) fn pause(&mut self, moment: u64) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        let jitter = moment.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56;
        pause - pause * (jitter as u32) / 1024
    }
}

/// Tracking in a store that may be away when the cache begins. Events wait for it meanwhile, as for one that fails.
pub struct LateTracking {
    name: &'static str,
    open: Open<dyn Tracking>,
    inner: OnceLock<Arc<dyn Tracking>>,
    /// When to try again; held during an attempt.
    next: tokio::sync::Mutex<(Patience, Option<tokio::time::Instant>)>,
}

impl LateTracking {
    /// One that `open` opens, called once for every attempt; the first is made here.
    ///
    /// # Errors
    /// What `open` said, if trying again cannot help: see [`Error::is_retryable`].
    pub async fn begin<F: Future<Output = Result<Arc<dyn Tracking>>> + Send + 'static>(
        name: &'static str,
        open: impl Fn() -> F + Send + Sync + 'static,
    ) -> Result<Arc<Self>> {
        let late = Arc::new(Self {
            name,
            open: Box::new(move || Box::pin(open())),
            inner: OnceLock::new(),
            next: tokio::sync::Mutex::default(),
        });
        match late.inner("open").await {
            Err(error) if error.is_retryable() => {
                tracing::warn!(tracking = name, %error, "tracking is away: it is opened when it is back");
            }
            opened => drop(opened?),
        }
        Ok(late)
    }

    /// The store, if it is open or can be opened now.
    async fn inner(&self, op: &'static str) -> Result<&dyn Tracking> {
        if let Some(inner) = self.inner.get() {
            return Ok(&**inner);
        }
        let mut next = self.next.lock().await;
        if self.inner.get().is_none() {
            let (patience, at) = &mut *next;
            if at.is_some_and(|at| tokio::time::Instant::now() < at) {
                return Err(Error::unavailable(self.name, op, "it has not been opened yet"));
            }
            match patience.attempt(self.name, (self.open)()).await {
                Ok(tracking) => {
                    // Nobody else tries meanwhile.
                    let _ = self.inner.set(tracking);
                    tracing::info!(tracking = self.name, "opened");
                }
                Err(error) => {
                    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                    let pause = patience.pause(now.as_millis() as u64);
                    *at = Some(tokio::time::Instant::now() + pause);
                    return Err(error);
                }
            }
        }
        let inner = self.inner.get().map(|inner| &**inner);
        inner.ok_or_else(|| Error::unavailable(self.name, op, "it has not been opened yet"))
    }
}

impl fmt::Debug for LateTracking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LateTracking").field("name", &self.name).field("inner", &self.inner.get()).finish()
    }
}

#[async_trait]
impl Tracking for LateTracking {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn record(&self, events: &[Event]) -> Result<()> {
        self.inner("record").await?.record(events).await
    }

    async fn lookup(&self, key: &Key) -> Result<Option<Record>> {
        self.inner("lookup").await?.lookup(key).await
    }

    async fn find(&self, query: &Query, after: Option<&Key>, limit: usize) -> Result<Vec<Record>> {
        self.inner("find").await?.find(query, after, limit).await
    }

    async fn totals(&self) -> Result<Totals> {
        self.inner("totals").await?.totals().await
    }

    async fn reset_totals(&self) -> Result<()> {
        self.inner("reset totals").await?.reset_totals().await
    }

    async fn close(&self) -> Result<()> {
        match self.inner.get() {
            Some(inner) => inner.close().await,
            None => Ok(()),
        }
    }

    fn leasing(&self) -> Option<&dyn Leasing> {
        match self.inner.get() {
            Some(inner) => inner.leasing().map(|_| self as &dyn Leasing),
            None => Some(self),
        }
    }
}
