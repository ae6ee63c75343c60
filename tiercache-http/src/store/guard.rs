//! What keeps a response that was asked for before an invalidation from being stored after it.
//!
//! An invalidation counts up the epoch of its key's stripe and then removes, a store compares the epoch with that of
//! when it began and then publishes; each of the two does both under the stripe's lock.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Mutex, MutexGuard};

const LOCKS: usize = 64;
const EPOCHS: usize = 4096;

#[derive(Debug)]
pub(crate) struct Guards {
    hasher: RandomState,
    locks: Vec<Mutex<()>>,
    epochs: Vec<AtomicU64>,
}

/// When something began, as far as invalidations of its key go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch(u64);

impl Epoch {
    /// That after one invalidation.
    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Guards {
    pub(crate) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            locks: (0..LOCKS).map(|_| Mutex::default()).collect(),
            epochs: (0..EPOCHS).map(|_| AtomicU64::default()).collect(),
        }
    }

    /// The key's epoch now.
    pub(crate) fn epoch(&self, key: &[u8]) -> Epoch {
        Epoch(self.epochs[self.slot(key) % EPOCHS].load(Ordering::Acquire))
    }

    /// To publish under: `None` when the key was invalidated since.
    pub(crate) async fn publish(&self, key: &[u8], begun: Epoch) -> Option<MutexGuard<'_, ()>> {
        let guard = self.locks[self.slot(key) % LOCKS].lock().await;
        (self.epoch(key) == begun).then_some(guard)
    }

    /// To invalidate under.
    pub(crate) async fn invalidate(&self, key: &[u8]) -> MutexGuard<'_, ()> {
        // Counted before anything is waited for: should the caller stop waiting, what is in flight is void already.
        self.epochs[self.slot(key) % EPOCHS].fetch_add(1, Ordering::AcqRel);
        self.locks[self.slot(key) % LOCKS].lock().await
    }

    fn slot(&self, key: &[u8]) -> usize {
        self.hasher.hash_one(key) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_began_before_an_invalidation_is_not_published_after_it() {
        let guards = Guards::new();
        let before = guards.epoch(b"k");
        assert!(guards.publish(b"k", before).await.is_some());
        drop(guards.invalidate(b"k").await);
        assert!(guards.publish(b"k", before).await.is_none());
        assert!(guards.publish(b"k", guards.epoch(b"k")).await.is_some());
    }
}
