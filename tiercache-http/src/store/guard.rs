//! What keeps a response that was asked for before an invalidation from being stored after it.
//!
//! A fetch is registered under its key from its begin to its end. An invalidation marks the fetches of its key and then
//! removes, a store looks whether it was marked and then publishes; each of the two does both under the lock of the
//! key's stripe.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Mutex as AsyncMutex;
use tokio::sync::MutexGuard as AsyncMutexGuard;

const STRIPES: usize = 64;

#[derive(Debug)]
pub(crate) struct Guards {
    hasher: RandomState,
    stripes: Vec<AsyncMutex<()>>,
    fetches: Arc<Fetches>,
}

type Fetches = Mutex<HashMap<Vec<u8>, Fetching>>;

/// The fetches of one key that have begun and not ended.
#[derive(Debug, Default)]
struct Fetching {
    fetches: usize,
    /// How often the key was invalidated since the first of them began.
    invalidated: u64,
}

/// A fetch that began. Registered until it is dropped.
#[derive(Debug)]
pub(crate) struct Epoch {
    fetches: Arc<Fetches>,
    key: Vec<u8>,
    invalidated: u64,
}

impl Guards {
    pub(crate) fn new() -> Self {
        let stripes = (0..STRIPES).map(|_| AsyncMutex::default()).collect();
        Self { hasher: RandomState::new(), stripes, fetches: Arc::default() }
    }

    /// A fetch of the key begins.
    pub(crate) fn begin(&self, key: &[u8]) -> Epoch {
        let mut fetches = lock(&self.fetches);
        let fetching = fetches.entry(key.to_vec()).or_default();
        fetching.fetches += 1;
        Epoch { fetches: self.fetches.clone(), key: key.to_vec(), invalidated: fetching.invalidated }
    }

    /// To publish under what was fetched: `None` when the key was invalidated since.
    pub(crate) async fn publish(&self, begun: &Epoch) -> Option<AsyncMutexGuard<'_, ()>> {
        let guard = self.stripe(&begun.key).lock().await;
        begun.stands().then_some(guard)
    }

    /// To invalidate under.
    pub(crate) async fn invalidate(&self, key: &[u8]) -> AsyncMutexGuard<'_, ()> {
        // Marked before anything is waited for: should the caller stop waiting, what is in flight is void already.
        if let Some(fetching) = lock(&self.fetches).get_mut(key) {
            fetching.invalidated += 1;
        }
        self.stripe(key).lock().await
    }

    fn stripe(&self, key: &[u8]) -> &AsyncMutex<()> {
        &self.stripes[self.hasher.hash_one(key) as usize % STRIPES]
    }
}

impl Epoch {
    /// As if the fetch had begun behind one invalidation that there was.
    pub(crate) fn past_one(mut self) -> Self {
        self.invalidated += 1;
        self
    }

    fn stands(&self) -> bool {
        lock(&self.fetches).get(&self.key).is_some_and(|fetching| fetching.invalidated == self.invalidated)
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        let mut fetches = lock(&self.fetches);
        if let Some(fetching) = fetches.get_mut(&self.key) {
            fetching.fetches -= 1;
            if fetching.fetches == 0 {
                fetches.remove(&self.key);
            }
        }
    }
}

fn lock(fetches: &Fetches) -> MutexGuard<'_, HashMap<Vec<u8>, Fetching>> {
    // Nothing panics while it is held.
    fetches.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_began_before_an_invalidation_is_not_published_after_it() {
        let guards = Guards::new();
        let (before, other) = (guards.begin(b"k"), guards.begin(b"other"));
        assert!(guards.publish(&before).await.is_some());
        drop(guards.invalidate(b"k").await);
        assert!(guards.publish(&before).await.is_none());
        assert!(guards.publish(&other).await.is_some());
        let after = guards.begin(b"k");
        assert!(guards.publish(&after).await.is_some());
        assert!(guards.publish(&before.past_one()).await.is_some());
    }

    #[tokio::test]
    async fn nothing_is_remembered_of_fetches_that_ended() {
        let guards = Guards::new();
        let (one, other) = (guards.begin(b"k"), guards.begin(b"k"));
        drop(one);
        drop(guards.invalidate(b"k").await);
        assert!(guards.publish(&other).await.is_none());
        drop(other);
        drop(guards.invalidate(b"k").await);
        assert!(lock(&guards.fetches).is_empty());
    }
}
