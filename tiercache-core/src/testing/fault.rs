use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::lease::{Claim, Holder, Lease};
use crate::testing::Op;
use crate::tier::{
    Call, Counting, Dead, FenceLog, Hold, Index, Journal, Late, Listed, Listing, Permit, Profile, Put,
    PutItem, Removal, Resident, Scope, Sizing, Spill, Swept, Usage, Waiting, side_by_side,
};
use crate::transaction::Transactions;
use crate::{Entry, Error, Generation, Key, Leasing, Result, Tier, Timestamp};

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails and nothing was done.
    FailBefore,
    /// It fails although it was done.
    FailAfter,
    /// It is done and answered that much later, by the runtime's clock. To hold a call until a test says so, put
    /// a [`GateTier`](crate::testing::GateTier) on top.
    Delay(Duration),
    /// It is never answered and not done.
    Hang,
    /// It is not done, and answered as if it had been: a put `Stored`, a get absent.
    Lose,
    /// It is done twice.
    Duplicate,
    /// The value is stored, or answered, with its bytes inverted. As [`Fault::Lose`] for a call without a value.
    Corrupt,
    /// A put finds no room. As [`Fault::FailBefore`] for other calls.
    Full,
}

/// Which calls a fault befalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Every one.
    Always,
    /// The n-th from now, the next one being the first.
    Nth(u64),
    /// On average one in so many, the same ones for the same seed.
    Random {
        /// Chooses which.
        seed: u64,
        /// How rarely.
        one_in: u64,
    },
}

/// A tier whose calls go wrong as told. A fault of a batch befalls it as a whole; those of single calls befall its
/// items, each of which counts as a call.
///
/// Without a fault it is the tier it stands on, but for [`Resident`] and [`Index`], which it shows only when asked.
#[derive(Debug)]
pub struct FaultTier {
    inner: Arc<dyn Tier>,
    transparent: bool,
    plans: Mutex<BTreeMap<Op, Plan>>,
}

#[derive(Debug, Default)]
struct Plan {
    calls: u64,
    faults: Vec<Planned>,
}

#[derive(Debug)]
struct Planned {
    when: When,
    fault: Fault,
    since: u64,
}

impl FaultTier {
    /// No fault yet. Callers get no [`Resident`] and no [`Index`], so that every call can go wrong.
    pub fn new(inner: Arc<dyn Tier>) -> Self {
        Self { inner, transparent: false, plans: Mutex::default() }
    }

    /// Like [`FaultTier::new`], but the tier's own [`Resident`] and [`Index`] are shown; their calls never go wrong.
    pub fn transparent(inner: Arc<dyn Tier>) -> Self {
        Self { transparent: true, ..Self::new(inner) }
    }

    /// Adds a fault; where several befall a call, the first added counts.
    pub fn inject(&self, op: Op, when: When, fault: Fault) {
        let mut plans = self.plans();
        let plan = plans.entry(op).or_default();
        plan.faults.push(Planned { when, fault, since: plan.calls });
    }

    /// Takes every fault away; calls that hang stay hanging.
    pub fn heal(&self) {
        self.plans().values_mut().for_each(|plan| plan.faults.clear());
    }

    /// How often `op` was called.
    pub fn calls(&self, op: Op) -> u64 {
        self.plans().get(&op).map_or(0, |plan| plan.calls)
    }

    fn plans(&self) -> MutexGuard<'_, BTreeMap<Op, Plan>> {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call and decides what befalls it.
    fn next(&self, op: Op) -> Option<Fault> {
        let mut plans = self.plans();
        let plan = plans.entry(op).or_default();
        plan.calls += 1;
        plan.faults.iter().find(|planned| planned.befalls(plan.calls)).map(|planned| planned.fault)
    }

    /// Makes `call` with what befalls it; `lost` is the answer when it is silently not made.
    async fn with_fault<T, F: Future<Output = Result<T>>>(
        &self,
        op: Op,
        fault: Option<Fault>,
        call: impl Fn() -> F,
        lost: T,
    ) -> Result<T> {
        match fault {
            None => call().await,
            Some(Fault::FailBefore | Fault::Full) => Err(injected(op)),
            Some(Fault::FailAfter) => {
                call().await?;
                Err(injected(op))
            }
            Some(Fault::Delay(by)) => {
                tokio::time::sleep(by).await;
                call().await
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Lose | Fault::Corrupt) => Ok(lost),
            Some(Fault::Duplicate) => {
                call().await?;
                call().await
            }
        }
    }

    async fn get_with(&self, key: &Key, fault: Option<Fault>) -> Result<Option<Entry>> {
        match fault {
            Some(Fault::Corrupt) => Ok(self.inner.get(key).await?.map(inverted)),
            fault => self.with_fault(Op::Get, fault, || self.inner.get(key), None).await,
        }
    }

    async fn put_with(&self, item: &PutItem<'_>, fault: Option<Fault>) -> Result<Put> {
        let PutItem { key, entry, hold, permit } = *item;
        match fault {
            Some(Fault::Full) => Ok(Put::Full),
            Some(Fault::Corrupt) => self.inner.put(key, &inverted(entry.clone()), hold, permit).await,
            fault => {
                let put = || self.inner.put(key, entry, hold, permit);
                self.with_fault(Op::Put, fault, put, Put::Stored).await
            }
        }
    }

    async fn remove_with(&self, item: &(Key, Generation), fault: Option<Fault>) -> Result<Removal> {
        self.with_fault(Op::Remove, fault, || self.inner.remove(&item.0, item.1), Removal::DONE).await
    }

    /// Counts the calls of a batch and decides what befalls each; `None` when nothing befalls any.
    fn next_of(&self, op: Op, count: usize) -> Option<Vec<Option<Fault>>> {
        let faults: Vec<_> = (0..count).map(|_| self.next(op)).collect();
        faults.iter().any(Option::is_some).then_some(faults)
    }

    /// Makes a batch with what befalls it as a whole.
    async fn batch<T: Clone, F: Future<Output = Vec<Result<T>>>>(
        &self,
        op: Op,
        fault: Fault,
        count: usize,
        call: impl Fn() -> F,
        lost: T,
    ) -> Vec<Result<T>> {
        let said =
            self.with_fault(op, Some(fault), || async { Ok(call().await) }, vec![Ok(lost); count]).await;
        said.unwrap_or_else(|error| vec![Err(error); count])
    }

    async fn befallen<T, F: Future<Output = Result<T>>>(
        &self,
        op: Op,
        call: impl Fn() -> F,
        lost: T,
    ) -> Result<T> {
        self.with_fault(op, self.next(op), call, lost).await
    }
}

impl Planned {
    fn befalls(&self, call: u64) -> bool {
        match self.when {
            When::Always => true,
            When::Nth(nth) => call - self.since == nth,
            When::Random { seed, one_in } => {
                let chosen = xxhash_rust::xxh3::xxh3_64_with_seed(&call.to_le_bytes(), seed);
                chosen.is_multiple_of(one_in.max(1))
            }
        }
    }
}

fn injected(op: Op) -> Error {
    Error::unavailable("fault", op.name(), "an injected fault")
}

fn inverted(mut entry: Entry) -> Entry {
    entry.value = Bytes::from_iter(entry.value.iter().map(|byte| !byte));
    entry
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Tier for FaultTier {
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
        self.get_with(key, self.next(Op::Get)).await
    }

    async fn put(&self, key: &Key, entry: &Entry, hold: Hold, permit: &dyn Permit) -> Result<Put> {
        self.put_with(&PutItem { key, entry, hold, permit }, self.next(Op::Put)).await
    }

    async fn remove(&self, key: &Key, below: Generation) -> Result<Removal> {
        self.remove_with(&(key.clone(), below), self.next(Op::Remove)).await
    }

    async fn get_many(&self, keys: &[Key]) -> Vec<Result<Option<Entry>>> {
        if let Some(fault) = self.next(Op::GetMany) {
            return self.batch(Op::GetMany, fault, keys.len(), || self.inner.get_many(keys), None).await;
        }
        let Some(faults) = self.next_of(Op::Get, keys.len()) else { return self.inner.get_many(keys).await };
        let get = |(key, fault)| -> Call<'_, _> { Box::pin(self.get_with(key, fault)) };
        side_by_side(keys.len(), keys.iter().zip(faults).map(get).collect()).await
    }

    async fn put_many(&self, items: &[PutItem<'_>]) -> Vec<Result<Put>> {
        if let Some(fault) = self.next(Op::PutMany) {
            let put = || self.inner.put_many(items);
            return self.batch(Op::PutMany, fault, items.len(), put, Put::Stored).await;
        }
        let Some(faults) = self.next_of(Op::Put, items.len()) else {
            return self.inner.put_many(items).await;
        };
        let put = |(item, fault)| -> Call<'_, _> { Box::pin(self.put_with(item, fault)) };
        side_by_side(items.len(), items.iter().zip(faults).map(put).collect()).await
    }

    async fn remove_many(&self, items: &[(Key, Generation)]) -> Vec<Result<Removal>> {
        if let Some(fault) = self.next(Op::RemoveMany) {
            let remove = || self.inner.remove_many(items);
            return self.batch(Op::RemoveMany, fault, items.len(), remove, Removal::DONE).await;
        }
        let Some(faults) = self.next_of(Op::Remove, items.len()) else {
            return self.inner.remove_many(items).await;
        };
        let remove = |(item, fault)| -> Call<'_, _> { Box::pin(self.remove_with(item, fault)) };
        side_by_side(items.len(), items.iter().zip(faults).map(remove).collect()).await
    }

    async fn clear(&self, namespace: Option<&str>, below: Generation) -> Result<()> {
        self.befallen(Op::Clear, || self.inner.clear(namespace, below), ()).await
    }

    async fn usage(&self) -> Result<Usage> {
        self.befallen(Op::Usage, || self.inner.usage(), Usage::default()).await
    }

    async fn sweep(&self, now: Timestamp, dead: &dyn Dead) -> Result<Swept> {
        self.befallen(Op::Sweep, || self.inner.sweep(now, dead), Swept::default()).await
    }

    async fn sync(&self) -> Result<()> {
        self.befallen(Op::Sync, || self.inner.sync(), ()).await
    }

    async fn close(&self) -> Result<()> {
        self.befallen(Op::Close, || self.inner.close(), ()).await
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
impl Listing for FaultTier {
    async fn list(&self, namespace: Option<&str>, after: Option<Vec<u8>>, limit: usize) -> Result<Listed> {
        match self.inner.listing() {
            Some(inner) => {
                let list = || inner.list(namespace, after.clone(), limit);
                self.befallen(Op::List, list, Listed::default()).await
            }
            None => Ok(Listed::default()),
        }
    }
}

#[async_trait]
impl FenceLog for FaultTier {
    async fn fence(&self, scope: &Scope, generation: Generation) -> Result<Generation> {
        match self.inner.fences() {
            Some(inner) => self.befallen(Op::Fence, || inner.fence(scope, generation), generation).await,
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
impl Counting for FaultTier {
    async fn add(
        &self,
        key: &Key,
        delta: i64,
        start: i64,
        deadline: Timestamp,
        now: Timestamp,
    ) -> Result<i64> {
        match self.inner.counting() {
            Some(inner) => {
                self.befallen(
                    Op::Add,
                    || inner.add(key, delta, start, deadline, now),
                    start.saturating_add(delta),
                )
                .await
            }
            None => Err(Error::Unsupported { backend: self.inner.name(), op: "count" }),
        }
    }

    async fn counter(&self, key: &Key, now: Timestamp) -> Result<Option<i64>> {
        match self.inner.counting() {
            Some(inner) => self.befallen(Op::Counter, || inner.counter(key, now), None).await,
            None => Ok(None),
        }
    }

    async fn remove_counter(&self, key: &Key) -> Result<bool> {
        match self.inner.counting() {
            Some(inner) => self.befallen(Op::RemoveCounter, || inner.remove_counter(key), false).await,
            None => Ok(false),
        }
    }
}

#[async_trait]
impl Leasing for FaultTier {
    async fn acquire(&self, name: &Key, holder: Holder, term: Duration) -> Result<Claim> {
        match self.inner.leasing() {
            Some(inner) => {
                self.befallen(Op::Acquire, || inner.acquire(name, holder, term), Claim::Taken { left: term })
                    .await
            }
            None => Ok(Claim::Taken { left: term }),
        }
    }

    async fn renew(&self, name: &Key, holder: Holder, term: Duration) -> Result<Option<Lease>> {
        match self.inner.leasing() {
            Some(inner) => self.befallen(Op::Renew, || inner.renew(name, holder, term), None).await,
            None => Ok(None),
        }
    }

    async fn release(&self, name: &Key, holder: Holder) -> Result<bool> {
        match self.inner.leasing() {
            Some(inner) => self.befallen(Op::Release, || inner.release(name, holder), false).await,
            None => Ok(false),
        }
    }
}

#[async_trait]
impl Journal for FaultTier {
    async fn note(&self, waiting: &Waiting) -> Result<u64> {
        match self.inner.journal() {
            Some(inner) => self.befallen(Op::Note, || inner.note(waiting), 0).await,
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
    use crate::Stay;
    use crate::testing::{MemoryTier, tier};
    use crate::tier::Always;

    #[tokio::test]
    async fn without_a_fault_it_keeps_the_contract() {
        tier::suite(async || Arc::new(FaultTier::new(MemoryTier::new())) as Arc<dyn Tier>).await;
    }

    async fn put(tier: &FaultTier, generation: u64) -> Result<Put> {
        let entry = Entry::new("value", Generation::new(generation), tier::T0);
        let hold = Hold { now: tier::T0, stay: Stay::Forever };
        tier.put(&key(), &entry, hold, &Always).await
    }

    fn key() -> Key {
        Key::new("", b"k").unwrap()
    }

    #[tokio::test]
    async fn each_fault_befalls_the_call_it_was_meant_for() {
        let tier = FaultTier::new(MemoryTier::new());
        let kept = async || tier.inner.get(&key()).await.unwrap().map(|entry| entry.generation.get());
        let faults = [
            (Fault::FailBefore, None),
            (Fault::FailAfter, Some(2)),
            (Fault::Lose, Some(2)),
            (Fault::Duplicate, Some(4)),
            (Fault::Full, Some(4)),
            (Fault::Corrupt, Some(6)),
        ];
        for (generation, (fault, stands)) in (1..).zip(faults) {
            tier.inject(Op::Put, When::Nth(1), fault);
            let answer = put(&tier, generation).await;
            assert_eq!(answer.is_err(), matches!(fault, Fault::FailBefore | Fault::FailAfter), "{fault:?}");
            assert_eq!(kept().await, stands, "{fault:?}");
        }
        assert_ne!(tier.get(&key()).await.unwrap().unwrap().value, "value", "it was stored inverted");
        tier.inject(Op::Get, When::Always, Fault::Corrupt);
        assert_eq!(tier.get(&key()).await.unwrap().unwrap().value, "value", "and inverted back");
        tier.heal();
        assert_eq!(put(&tier, 7).await.unwrap(), Put::Stored);
        assert_eq!((tier.calls(Op::Put), tier.calls(Op::Get), tier.calls(Op::Remove)), (7, 2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_call_takes_its_time_and_a_hanging_one_never_ends() {
        let tier = FaultTier::new(MemoryTier::new());
        tier.inject(Op::Get, When::Nth(1), Fault::Delay(Duration::from_secs(60)));
        tier.inject(Op::Get, When::Nth(2), Fault::Hang);
        let started = tokio::time::Instant::now();
        tier.get(&key()).await.unwrap();
        assert_eq!(started.elapsed(), Duration::from_secs(60));
        tokio::time::timeout(Duration::from_secs(86_400), tier.get(&key())).await.unwrap_err();
    }

    #[tokio::test]
    async fn the_same_seed_chooses_the_same_calls() {
        let failed = async |seed| {
            let tier = FaultTier::new(MemoryTier::new());
            tier.inject(Op::Get, When::Random { seed, one_in: 4 }, Fault::FailBefore);
            let mut failed = Vec::new();
            for call in 0..400 {
                if tier.get(&key()).await.is_err() {
                    failed.push(call);
                }
            }
            failed
        };
        let first = failed(1).await;
        assert!((60..140).contains(&first.len()), "{}", first.len());
        assert_eq!(first, failed(1).await);
        assert_ne!(first, failed(2).await);
    }
}
