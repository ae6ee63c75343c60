//! One load among all the processes that share a level: the lease of a key.
//!
//! A load that is to take one, in order:
//! 1. It asks the store of leases for the key's. Trouble there is no trouble here: it goes on without.
//! 2. With the lease it looks below once more: whoever had it before may have stored the value just now.
//! 3. It loads, and its own callers are answered.
//! 4. It stores the value at the topmost level that other processes see, whatever the mode of writing is.
//! 5. It gives the lease back.
//!
//! While another has the lease a load looks below and asks again, ever more seldom, until the value is there, the lease is
//! free, or its own term has passed since it began to ask; then it loads all the same. A refresh does not wait.
//!
//! The lease keeps loads from being made twice and nothing else: what a load may store is decided by its generation, as
//! if there were no lease. So it need not be renewed, and one that is lost does no harm.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::below::Writing;
use super::super::counters::Count;
use super::super::lessor::Lessor;
use super::super::{InFlight, Shared, Write};
use super::LoadOptions;
use super::turn::Leading;
use crate::bugs::seeded;
use crate::lease::{Claim, Holder};
use crate::tier::Put;
use crate::{Entry, Generation, Key, KeyRef, Levels, MAX_KEY_BYTES};

/// Pauses between two looks at what another process loads: doubled each time, less up to a quarter by chance.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// What keeps leases of loads apart from others of the same key.
const PURPOSE: &[u8] = b"load:";
/// How long the store of leases is left alone after it failed.
const REST: Duration = Duration::from_secs(1);

/// What came of asking for a lease.
pub(super) enum Contention {
    /// This process loads.
    Load(Option<Sharing>),
    /// Another process has loaded.
    Found(Entry),
    /// Another process refreshes.
    Left,
}

/// The duty of a load to let other processes have its value, and its lease if it has one. Dropped, it gives that back.
pub(super) struct Sharing {
    shared: Arc<Shared>,
    lease: Option<(Key, Holder)>,
}

impl Drop for Sharing {
    fn drop(&mut self) {
        let Some((name, holder)) = self.lease.take() else { return };
        let shared = self.shared.clone();
        // Nobody waits for it: what cannot be given back ends by itself.
        self.shared.runtime.spawn(async move {
            if let Err(error) = shared.release_lease(&name, holder).await {
                tracing::debug!(?name, %error, "the lease of a load was not given back, it ends by itself");
            }
        });
    }
}

impl Shared {
    /// Steps 1 and 2. `seen` is what was found that does not answer; `answers` says whether what is found does.
    pub(super) async fn contend(
        self: &Arc<Self>,
        leading: &Leading,
        options: &LoadOptions,
        seen: Option<Generation>,
        refreshing: bool,
        answers: impl Fn(&Entry) -> bool,
    ) -> Contention {
        let Some(term) = self.lease_term(options) else { return Contention::Load(None) };
        let (name, holder) = (load_lease_name(leading.key.as_ref()), Holder::new());
        let mut sharing = Sharing { shared: self.clone(), lease: None };
        let (begun, mut pause) = (Instant::now(), SHORTEST_PAUSE);
        loop {
            if self.loads.leases_rest(self.flow.now()) {
                self.flow.counters.count(Count::Unleased);
                return Contention::Load(Some(sharing));
            }
            // From here on it may be ours, whatever the store says.
            sharing.lease = Some((name.clone(), holder));
            let granted = match self.ask_for_lease(&name, holder, term).await {
                Ok(Claim::Granted(_)) => true,
                Ok(Claim::Taken { .. }) if seeded("lease-not-waited-for") => true,
                Ok(Claim::Taken { .. }) if refreshing => {
                    sharing.lease = None;
                    return Contention::Left;
                }
                Ok(Claim::Taken { left }) => {
                    sharing.lease = None;
                    let rest = term.saturating_sub(begun.elapsed());
                    if rest.is_zero() {
                        self.flow.counters.count(Count::Unleased);
                        return Contention::Load(Some(sharing));
                    }
                    let spread = pause.mul_f64(1.0 - 0.25 * self.loads.chance());
                    tokio::time::sleep(spread.min(rest).min(left.max(Duration::from_millis(1)))).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    false
                }
                Err(error) => {
                    tracing::debug!(key = ?leading.key, %error, "loading without a lease");
                    self.loads.rest_leases(self.flow.now().after(REST));
                    self.flow.counters.count(Count::Unleased);
                    return Contention::Load(Some(sharing));
                }
            };
            if let Some(entry) = self.look_below(leading, seen).await.filter(&answers) {
                self.flow.counters.count(Count::LoadedElsewhere);
                return Contention::Found(entry);
            }
            if granted {
                return Contention::Load(Some(sharing));
            }
        }
    }

    /// Step 4, in a flight that has been registered.
    pub(super) async fn share(self: &Arc<Self>, key: &Key, entry: &Entry, _flight: InFlight<Arc<Self>>) {
        for slot in self.shared_slots(entry.levels) {
            let writing = {
                let mut stripe = self.stripes.lock(key.hash64());
                if stripe.is_overtaken(key.hash64(), entry.generation) {
                    return;
                }
                // Whoever reads it meanwhile finds it where it was kept.
                Writing::begin(self.clone(), &mut stripe, key, entry, slot.level)
            };
            match self.write_below(slot, &writing, self.flow.now()).await {
                Ok(Put::TooLarge | Put::Full) => {}
                Ok(Put::Stored | Put::Unchanged | Put::Superseded) => return,
                Err(error) => tracing::debug!(?key, %error, "other processes do not see what was loaded"),
            }
        }
    }

    /// Whether the value of a load, once it is kept, must be stored once more for other processes to see it.
    pub(super) fn is_hidden(&self, levels: Levels) -> bool {
        self.write != Write::Through || self.durable(levels).is_none_or(|slot| !slot.profile.shared)
    }

    /// How long a lease such a load takes; `None` when it takes none.
    fn lease_term(&self, options: &LoadOptions) -> Option<Duration> {
        let term = options.lease.unwrap_or_else(|| self.loads.lease());
        let useful = !term.is_zero()
            && !matches!(self.lessor, Lessor::Process(_))
            && self.shared_slots(options.levels).next().is_some();
        useful.then_some(term)
    }

    /// The levels that other processes see and that may have such an entry, top down.
    fn shared_slots(&self, levels: Levels) -> impl Iterator<Item = &super::super::slot::Slot> {
        self.lower_slots().filter(move |slot| slot.profile.shared && levels.contains(slot.level))
    }

    /// What a level outside RAM has that is fresh and newer than what was seen. It comes up, as for a read.
    async fn look_below(&self, leading: &Leading, seen: Option<Generation>) -> Option<Entry> {
        let key = leading.key.as_ref();
        // The flight of the load holds the floor.
        let floor = self.stripes.lock(key.hash64()).floor(key.hash64());
        let (found, flushed) = self.read_below(key, floor).await?;
        if found.stale || seen.is_some_and(|seen| found.entry.generation <= seen) {
            return None;
        }
        Some(self.publish(key, found, flushed)?.entry)
    }
}

/// Of a key too long to be named with the purpose before it the beginning: two such keys may wait for each other, and
/// each finds its own.
fn load_lease_name(key: KeyRef<'_>) -> Key {
    let namespace = std::str::from_utf8(key.namespace()).unwrap_or_default();
    let most = MAX_KEY_BYTES - PURPOSE.len();
    let bytes = &key.bytes()[..key.bytes().len().min(most)];
    Key::new(namespace, &[PURPOSE, bytes].concat()).unwrap_or_else(|_| key.to_key())
}
