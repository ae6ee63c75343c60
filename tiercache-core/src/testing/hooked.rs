//! A tier with something around its calls.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::lease::{Claim, Holder, Lease};
use crate::testing::Op;
use crate::tier::{
    Counting, Dead, FenceLog, Hold, Index, Journal, Late, Listed, Listing, Permit, Profile, Put, PutItem,
    Removal, Resident, Scope, Sizing, Spill, Swept, TryGet, Usage, Waiting,
};
use crate::transaction::Transactions;
use crate::{Entry, Error, Generation, Key, KeyRef, Leasing, Result, Tier, Timestamp};

/// What a [`Hooked`] tier does around the calls it passes on.
#[async_trait]
pub trait Hooks: Debug + Send + Sync + 'static {
    /// Before the tier under it sees the call.
    async fn before(&self, _op: Op) {}

    /// After the tier under it did it, before its caller knows.
    async fn after(&self, _op: Op) {}

    /// Whether the [`Index`] answers that it would have to wait.
    fn would_block(&self) -> bool {
        false
    }

    /// Whether the tier can be listed.
    fn lists(&self) -> bool {
        true
    }

    /// What the tier under it is given to spill into.
    fn attached(&self, spill: Arc<dyn Spill>) -> Arc<dyn Spill> {
        spill
    }
}

/// A tier with something around its calls. Nothing is around those of [`Transactions`], of [`Late`], and of a
/// [`Journal`] but its notes.
#[derive(Debug)]
pub struct Hooked<H> {
    inner: Arc<dyn Tier>,
    transparent: bool,
    /// What is around them.
    pub hooks: H,
}

impl<H: Hooks> Hooked<H> {
    /// Without the inner tier's [`Resident`] and [`Index`], so that every call is hooked.
    pub fn opaque(inner: Arc<dyn Tier>, hooks: H) -> Arc<Self> {
        Arc::new(Self::over(inner, false, hooks))
    }

    /// With them; of their calls only those that may block are hooked.
    pub fn showing(inner: Arc<dyn Tier>, hooks: H) -> Arc<Self> {
        Arc::new(Self::over(inner, true, hooks))
    }

    pub(super) fn over(inner: Arc<dyn Tier>, transparent: bool, hooks: H) -> Self {
        Self { inner, transparent, hooks }
    }

    async fn around<T>(&self, op: Op, call: impl Future<Output = T>) -> T {
        self.hooks.before(op).await;
        let answer = call.await;
        self.hooks.after(op).await;
        answer
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<H: Hooks> Tier for Hooked<H> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn profile(&self) -> Profile {
        self.inner.profile()
    }

    fn attach(&self, spill: Arc<dyn Spill>) {
        self.inner.attach(self.hooks.attached(spill));
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        self.around(Op::Get, self.inner.get(key)).await
    }

    async fn put(&self, key: &Key, entry: &Entry, hold: Hold, permit: &dyn Permit) -> Result<Put> {
        self.around(Op::Put, self.inner.put(key, entry, hold, permit)).await
    }

    async fn remove(&self, key: &Key, below: Generation) -> Result<Removal> {
        self.around(Op::Remove, self.inner.remove(key, below)).await
    }

    async fn get_many(&self, keys: &[Key]) -> Vec<Result<Option<Entry>>> {
        self.around(Op::GetMany, self.inner.get_many(keys)).await
    }

    async fn put_many(&self, items: &[PutItem<'_>]) -> Vec<Result<Put>> {
        self.around(Op::PutMany, self.inner.put_many(items)).await
    }

    async fn remove_many(&self, items: &[(Key, Generation)]) -> Vec<Result<Removal>> {
        self.around(Op::RemoveMany, self.inner.remove_many(items)).await
    }

    async fn clear(&self, namespace: Option<&str>, below: Generation) -> Result<()> {
        self.around(Op::Clear, self.inner.clear(namespace, below)).await
    }

    async fn usage(&self) -> Result<Usage> {
        self.around(Op::Usage, self.inner.usage()).await
    }

    async fn sweep(&self, now: Timestamp, dead: &dyn Dead) -> Result<Swept> {
        self.around(Op::Sweep, self.inner.sweep(now, dead)).await
    }

    async fn sync(&self) -> Result<()> {
        self.around(Op::Sync, self.inner.sync()).await
    }

    async fn close(&self) -> Result<()> {
        self.around(Op::Close, self.inner.close()).await
    }

    fn resident(&self) -> Option<&dyn Resident> {
        self.inner.resident().filter(|_| self.transparent)
    }

    fn index(&self) -> Option<&dyn Index> {
        self.inner.index().filter(|_| self.transparent).map(|_| self as &dyn Index)
    }

    fn listing(&self) -> Option<&dyn Listing> {
        self.inner.listing().filter(|_| self.hooks.lists()).map(|_| self as &dyn Listing)
    }

    fn fences(&self) -> Option<&dyn FenceLog> {
        self.inner.fences().map(|_| self as &dyn FenceLog)
    }

    fn journal(&self) -> Option<&dyn Journal> {
        self.inner.journal().map(|_| self as &dyn Journal)
    }

    fn late(&self) -> Option<&dyn Late> {
        self.inner.late()
    }

    fn counting(&self) -> Option<&dyn Counting> {
        self.inner.counting().map(|_| self as &dyn Counting)
    }

    fn leasing(&self) -> Option<&dyn Leasing> {
        self.inner.leasing().map(|_| self as &dyn Leasing)
    }

    fn transactions(&self) -> Option<&dyn Transactions> {
        self.inner.transactions()
    }

    fn sizing(&self) -> Option<&dyn Sizing> {
        self.inner.sizing()
    }
}

impl<H: Hooks> Index for Hooked<H> {
    fn holds(&self, key: KeyRef<'_>) -> Option<Generation> {
        self.inner.index()?.holds(key)
    }

    fn try_get(&self, key: KeyRef<'_>) -> TryGet {
        match self.inner.index() {
            Some(index) if !self.hooks.would_block() => index.try_get(key),
            _ => TryGet::WouldBlock,
        }
    }

    fn try_remove(&self, key: KeyRef<'_>, below: Generation) -> Option<Result<()>> {
        self.inner.index().filter(|_| !self.hooks.would_block())?.try_remove(key, below)
    }
}

#[async_trait]
impl<H: Hooks> Listing for Hooked<H> {
    async fn list(&self, namespace: Option<&str>, after: Option<Vec<u8>>, limit: usize) -> Result<Listed> {
        match self.inner.listing() {
            Some(listing) => self.around(Op::List, listing.list(namespace, after, limit)).await,
            None => Ok(Listed::default()),
        }
    }
}

#[async_trait]
impl<H: Hooks> FenceLog for Hooked<H> {
    async fn fence(&self, scope: &Scope, generation: Generation) -> Result<Generation> {
        match self.inner.fences() {
            Some(fences) => self.around(Op::Fence, fences.fence(scope, generation)).await,
            None => Ok(generation),
        }
    }

    fn remembered(&self) -> Vec<(Scope, Generation)> {
        self.inner.fences().map(FenceLog::remembered).unwrap_or_default()
    }

    fn kills(&self, key: &Key, entry: &Entry) -> bool {
        self.inner.fences().is_some_and(|fences| fences.kills(key, entry))
    }
}

#[async_trait]
impl<H: Hooks> Counting for Hooked<H> {
    async fn add(
        &self,
        key: &Key,
        delta: i64,
        start: i64,
        deadline: Timestamp,
        now: Timestamp,
    ) -> Result<i64> {
        match self.inner.counting() {
            Some(inner) => self.around(Op::Add, inner.add(key, delta, start, deadline, now)).await,
            None => Err(Error::Unsupported { backend: self.inner.name(), op: "count" }),
        }
    }

    async fn counter(&self, key: &Key, now: Timestamp) -> Result<Option<i64>> {
        match self.inner.counting() {
            Some(inner) => self.around(Op::Counter, inner.counter(key, now)).await,
            None => Ok(None),
        }
    }

    async fn remove_counter(&self, key: &Key) -> Result<bool> {
        match self.inner.counting() {
            Some(inner) => self.around(Op::RemoveCounter, inner.remove_counter(key)).await,
            None => Ok(false),
        }
    }
}

#[async_trait]
impl<H: Hooks> Leasing for Hooked<H> {
    async fn acquire(&self, name: &Key, holder: Holder, term: Duration) -> Result<Claim> {
        match self.inner.leasing() {
            Some(inner) => self.around(Op::Acquire, inner.acquire(name, holder, term)).await,
            None => Ok(Claim::Taken { left: term }),
        }
    }

    async fn renew(&self, name: &Key, holder: Holder, term: Duration) -> Result<Option<Lease>> {
        match self.inner.leasing() {
            Some(inner) => self.around(Op::Renew, inner.renew(name, holder, term)).await,
            None => Ok(None),
        }
    }

    async fn release(&self, name: &Key, holder: Holder) -> Result<bool> {
        match self.inner.leasing() {
            Some(inner) => self.around(Op::Release, inner.release(name, holder)).await,
            None => Ok(false),
        }
    }
}

#[async_trait]
impl<H: Hooks> Journal for Hooked<H> {
    async fn note(&self, waiting: &Waiting) -> Result<u64> {
        match self.inner.journal() {
            Some(inner) => self.around(Op::Note, inner.note(waiting)).await,
            None => Ok(0),
        }
    }

    async fn strike(&self, notes: &[u64]) -> Result<()> {
        match self.inner.journal() {
            Some(inner) => inner.strike(notes).await,
            None => Ok(()),
        }
    }

    async fn notes(&self) -> Result<Vec<(u64, Waiting)>> {
        match self.inner.journal() {
            Some(inner) => inner.notes().await,
            None => Ok(Vec::new()),
        }
    }
}
