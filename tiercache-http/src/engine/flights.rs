//! One request at a time asks the origin for what many want.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// How long one waits for another's fetch before it asks the origin itself.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many resources are remembered whose responses could not be shared.
const MOST_ALONE: usize = 8192;

#[derive(Debug, Default)]
pub(crate) struct Flights {
    running: Mutex<HashMap<Vec<u8>, watch::Receiver<()>>>,
    /// Hashes of what nobody waits for, since the last response could not be stored.
    alone: Mutex<HashSet<u64>>,
    hasher: RandomState,
}

/// Who asks.
#[derive(Debug)]
pub(crate) enum Turn {
    /// This one. Others wait until it is dropped.
    Lead(Lead),
    /// Another does.
    Follow(Follow),
    /// Everybody.
    Alone,
}

#[derive(Debug)]
pub(crate) struct Lead {
    flights: Arc<Flights>,
    name: Vec<u8>,
    _ended: watch::Sender<()>,
}

#[derive(Debug)]
pub(crate) struct Follow(watch::Receiver<()>);

impl Flights {
    /// Takes part in the fetch of that name.
    pub(crate) fn join(self: &Arc<Self>, name: &[u8]) -> Turn {
        if lock(&self.alone).contains(&self.hasher.hash_one(name)) {
            return Turn::Alone;
        }
        let mut running = lock(&self.running);
        if let Some(flight) = running.get(name) {
            return Turn::Follow(Follow(flight.clone()));
        }
        let (ended, flight) = watch::channel(());
        running.insert(name.to_vec(), flight);
        Turn::Lead(Lead { flights: self.clone(), name: name.to_vec(), _ended: ended })
    }

    /// Whether waiting for this one's response is worth it, as the last one showed.
    pub(crate) fn note(&self, name: &[u8], shared: bool) {
        let hash = self.hasher.hash_one(name);
        let mut alone = lock(&self.alone);
        if shared {
            alone.remove(&hash);
            return;
        }
        if alone.len() >= MOST_ALONE {
            // Forgetting only costs some a wait.
            alone.clear();
        }
        alone.insert(hash);
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        lock(&self.flights.running).remove(&self.name);
    }
}

impl Follow {
    /// Waits for the leader to end, in whatever way; `false` when that takes too long.
    pub(crate) async fn wait(mut self) -> bool {
        // Nothing is ever sent: the channel closes.
        tokio::time::timeout(PATIENCE, self.0.changed()).await.is_ok()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under these locks is one call that is made or not.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_leads_and_the_rest_wait_until_it_is_gone() {
        let flights = Arc::new(Flights::default());
        let Turn::Lead(lead) = flights.join(b"k") else { panic!("nobody else was there") };
        let Turn::Follow(follow) = flights.join(b"k") else { panic!("somebody leads") };
        assert!(matches!(flights.join(b"other"), Turn::Lead(_)));
        let waiting = tokio::spawn(follow.wait());
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(lead);
        assert!(waiting.await.unwrap());
        let Turn::Lead(_slow) = flights.join(b"k") else { panic!("nobody leads any more") };
        let Turn::Follow(follow) = flights.join(b"k") else { panic!("somebody leads") };
        assert!(!follow.wait().await, "nobody waits for ever");
    }

    #[tokio::test]
    async fn nobody_waits_for_what_cannot_be_shared() {
        let flights = Arc::new(Flights::default());
        flights.note(b"k", false);
        assert!(matches!(flights.join(b"k"), Turn::Alone));
        flights.note(b"k", true);
        assert!(matches!(flights.join(b"k"), Turn::Lead(_)));
    }
}
