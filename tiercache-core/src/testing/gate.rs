use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::lease::{Claim, Holder, Lease};
use crate::testing::Op;
use crate::tier::{
    Counting, Dead, FenceLog, Hold, Index, Journal, Late, Listed, Listing, Permit, Profile, Put, PutItem,
    Removal, Resident, Scope, Sizing, Spill, Swept, Usage, Waiting,
};
use crate::transaction::Transactions;
use crate::{Entry, Error, Generation, Key, Leasing, Result, Tier, Timestamp};

/// A place where a call can be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Point {
    /// Before the tier under the gate sees the call.
    Before(Op),
    /// After the tier under the gate did it, before its caller knows.
    After(Op),
}

/// A tier that holds calls at closed points until they are opened: the other side of a race runs meanwhile.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use std::sync::Arc;
/// use tiercache_core::testing::{GateTier, MemoryTier, Op, Point};
/// use tiercache_core::{Key, Tier};
/// let gate = Arc::new(GateTier::new(MemoryTier::new()));
/// let key = Key::new("", b"k").unwrap();
/// gate.close_gate(Point::After(Op::Get));
/// let reader = tokio::spawn({ let (gate, key) = (gate.clone(), key.clone()); async move { gate.get(&key).await } });
/// gate.held(Point::After(Op::Get)).await; // the reader has its answer and does not know it yet
/// gate.open_gate(Point::After(Op::Get));
/// assert!(reader.await.unwrap().unwrap().is_none());
/// # });
/// ```
#[derive(Debug)]
pub struct GateTier {
    inner: Arc<dyn Tier>,
    transparent: bool,
    gates: watch::Sender<Gates>,
}

#[derive(Debug, Default)]
struct Gates {
    closed: BTreeSet<Point>,
    held: BTreeMap<Point, usize>,
}

impl GateTier {
    /// All gates open. Callers get no [`Resident`] and no [`Index`], so that every call takes the gated way.
    pub fn new(inner: Arc<dyn Tier>) -> Self {
        Self { inner, transparent: false, gates: watch::Sender::default() }
    }

    /// Like [`GateTier::new`], but the tier's own [`Resident`] and [`Index`] are shown; their calls are not held.
    pub fn transparent(inner: Arc<dyn Tier>) -> Self {
        Self { transparent: true, ..Self::new(inner) }
    }

    /// From now on calls are held at `point`.
    pub fn close_gate(&self, point: Point) {
        self.gates.send_modify(|gates| {
            gates.closed.insert(point);
        });
    }

    /// Lets go what is held at `point` and whatever comes.
    pub fn open_gate(&self, point: Point) {
        self.gates.send_modify(|gates| {
            gates.closed.remove(&point);
        });
    }

    /// Waits until a call is held at `point`.
    pub async fn held(&self, point: Point) {
        self.held_by(point, 1).await;
    }

    /// Waits until that many calls are held at `point`.
    pub async fn held_by(&self, point: Point, calls: usize) {
        let held = |gates: &Gates| gates.held.get(&point).is_some_and(|&held| held >= calls);
        // The sender lives as long as `self`.
        let _ = self.gates.subscribe().wait_for(held).await;
    }

    async fn pass(&self, point: Point) {
        if !self.gates.borrow().closed.contains(&point) {
            return;
        }
        let _held = Held::at(point, &self.gates);
        let _ = self.gates.subscribe().wait_for(|gates| !gates.closed.contains(&point)).await;
    }

    async fn around<T>(&self, op: Op, call: impl Future<Output = T>) -> T {
        self.pass(Point::Before(op)).await;
        let answer = call.await;
        self.pass(Point::After(op)).await;
        answer
    }
}

/// A call that is held, counted as long as somebody waits for it.
struct Held<'a> {
    point: Point,
    gates: &'a watch::Sender<Gates>,
}

impl<'a> Held<'a> {
    fn at(point: Point, gates: &'a watch::Sender<Gates>) -> Self {
        gates.send_modify(|gates| *gates.held.entry(point).or_default() += 1);
        Self { point, gates }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.gates.send_modify(|gates| {
            if let Some(held) = gates.held.get_mut(&self.point) {
                *held -= 1;
            }
        });
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Tier for GateTier {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn profile(&self) -> Profile {
        self.inner.profile()
    }

    fn attach(&self, spill: Arc<dyn Spill>) {
        self.inner.attach(spill);
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
        self.inner.index().filter(|_| self.transparent)
    }

    fn listing(&self) -> Option<&dyn Listing> {
        self.inner.listing().map(|_| self as &dyn Listing)
    }

    fn fences(&self) -> Option<&dyn FenceLog> {
        self.inner.fences().map(|_| self as &dyn FenceLog)
    }

    fn journal(&self) -> Option<&dyn Journal> {
        self.inner.journal().map(|_| self as &dyn Journal)
    }

    /// Nothing befalls the opening.
    fn late(&self) -> Option<&dyn Late> {
        self.inner.late()
    }

    fn counting(&self) -> Option<&dyn Counting> {
        self.inner.counting().map(|_| self as &dyn Counting)
    }

    fn leasing(&self) -> Option<&dyn Leasing> {
        self.inner.leasing().map(|_| self as &dyn Leasing)
    }

    /// As they are: nothing befalls transactions.
    fn transactions(&self) -> Option<&dyn Transactions> {
        self.inner.transactions()
    }

    fn sizing(&self) -> Option<&dyn Sizing> {
        self.inner.sizing()
    }
}

#[async_trait]
impl Listing for GateTier {
    async fn list(&self, namespace: Option<&str>, after: Option<Vec<u8>>, limit: usize) -> Result<Listed> {
        match self.inner.listing() {
            Some(listing) => self.around(Op::List, listing.list(namespace, after, limit)).await,
            None => Ok(Listed::default()),
        }
    }
}

#[async_trait]
impl FenceLog for GateTier {
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
impl Counting for GateTier {
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
impl Leasing for GateTier {
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
impl Journal for GateTier {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemoryTier, tier};

    #[tokio::test]
    async fn an_open_gate_keeps_the_contract() {
        tier::suite(async || Arc::new(GateTier::new(MemoryTier::new())) as Arc<dyn Tier>).await;
    }

    #[tokio::test]
    async fn a_call_is_held_until_the_gate_opens() {
        let gate = Arc::new(GateTier::new(MemoryTier::new()));
        let key = Key::new("", b"k").unwrap();
        gate.close_gate(Point::Before(Op::Remove));
        let call = tokio::spawn({
            let (gate, key) = (gate.clone(), key.clone());
            async move { gate.remove(&key, Generation::MAX).await }
        });
        gate.held(Point::Before(Op::Remove)).await;
        assert!(!call.is_finished());
        assert!(gate.get(&key).await.unwrap().is_none(), "other calls pass");
        gate.open_gate(Point::Before(Op::Remove));
        call.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_dropped_call_is_no_longer_held() {
        let gate = GateTier::new(MemoryTier::new());
        gate.close_gate(Point::Before(Op::Sync));
        tokio::select! {
            biased;
            _ = gate.sync() => panic!("the gate is closed"),
            () = gate.held(Point::Before(Op::Sync)) => {}
        }
        assert_eq!(gate.gates.borrow().held[&Point::Before(Op::Sync)], 0);
    }
}
