use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use super::hooked::{Hooked, Hooks};
use crate::Tier;
use crate::testing::Op;

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
pub type GateTier = Hooked<Gates>;

/// The gates of a [`GateTier`].
#[derive(Debug, Default)]
pub struct Gates(watch::Sender<State>);

#[derive(Debug, Default)]
struct State {
    closed: BTreeSet<Point>,
    held: BTreeMap<Point, usize>,
}

impl GateTier {
    /// All gates open. Callers get no [`Resident`](crate::tier::Resident) and no [`Index`](crate::tier::Index), so
    /// that every call takes the gated way.
    pub fn new(inner: Arc<dyn Tier>) -> Self {
        Self::over(inner, false, Gates::default())
    }

    /// Like [`GateTier::new`], but the tier's own are shown; their calls are not held.
    pub fn transparent(inner: Arc<dyn Tier>) -> Self {
        Self::over(inner, true, Gates::default())
    }

    /// From now on calls are held at `point`.
    pub fn close_gate(&self, point: Point) {
        self.hooks.0.send_modify(|gates| {
            gates.closed.insert(point);
        });
    }

    /// Lets go what is held at `point` and whatever comes.
    pub fn open_gate(&self, point: Point) {
        self.hooks.0.send_modify(|gates| {
            gates.closed.remove(&point);
        });
    }

    /// Waits until a call is held at `point`.
    pub async fn held(&self, point: Point) {
        self.held_by(point, 1).await;
    }

    /// Waits until that many calls are held at `point`.
    pub async fn held_by(&self, point: Point, calls: usize) {
        let held = |gates: &State| gates.held.get(&point).is_some_and(|&held| held >= calls);
        // The sender lives as long as `self`.
        let _ = self.hooks.0.subscribe().wait_for(held).await;
    }
}

impl Gates {
    async fn pass(&self, point: Point) {
        if !self.0.borrow().closed.contains(&point) {
            return;
        }
        let _held = Held::at(point, &self.0);
        let _ = self.0.subscribe().wait_for(|gates| !gates.closed.contains(&point)).await;
    }
}

#[async_trait]
impl Hooks for Gates {
    async fn before(&self, op: Op) {
        self.pass(Point::Before(op)).await;
    }

    async fn after(&self, op: Op) {
        self.pass(Point::After(op)).await;
    }
}

/// A call that is held, counted as long as somebody waits for it.
struct Held<'a> {
    point: Point,
    gates: &'a watch::Sender<State>,
}

impl<'a> Held<'a> {
    fn at(point: Point, gates: &'a watch::Sender<State>) -> Self {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemoryTier, tier};
    use crate::{Generation, Key};

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
        assert_eq!(gate.hooks.0.borrow().held[&Point::Before(Op::Sync)], 0);
    }
}
