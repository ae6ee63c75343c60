use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::testing::Op;
use crate::tier::{
    Counting, Dead, FenceLog, Hold, Index, Journal, Late, Listed, Listing, Permit, Profile, Put, Removal,
    Resident, Scope, Spill, Swept, Usage, Waiting,
};
use crate::{Entry, Error, Generation, Key, Result, Tier, Timestamp};

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

/// A tier whose calls go wrong as told.
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
        match self.next(Op::Get) {
            Some(Fault::Corrupt) => Ok(self.inner.get(key).await?.map(inverted)),
            fault => self.with_fault(Op::Get, fault, || self.inner.get(key), None).await,
        }
    }

    async fn put(&self, key: &Key, entry: &Entry, hold: Hold, permit: &dyn Permit) -> Result<Put> {
        let put = || self.inner.put(key, entry, hold, permit);
        match self.next(Op::Put) {
            Some(Fault::Full) => Ok(Put::Full),
            Some(Fault::Corrupt) => self.inner.put(key, &inverted(entry.clone()), hold, permit).await,
            fault => self.with_fault(Op::Put, fault, put, Put::Stored).await,
        }
    }

    async fn remove(&self, key: &Key, below: Generation) -> Result<Removal> {
        self.befallen(Op::Remove, || self.inner.remove(key, below), Removal::DONE).await
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

    /// As they are: nothing befalls counters.
    fn counting(&self) -> Option<&dyn Counting> {
        self.inner.counting()
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
