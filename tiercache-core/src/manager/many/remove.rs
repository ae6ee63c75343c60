//! Removing many keys.

use std::sync::Arc;

use super::{AT_ONCE, MOST_TOGETHER};
use crate::bugs::seeded;
use crate::manager::counters::Count;
use crate::manager::remove::{MOST_OVERTAKEN, Removed, Removing};
use crate::manager::slot::Slot;
use crate::manager::stripes::{Joined, RemovalOutcome};
use crate::manager::{CacheManager, InFlight, Shared};
use crate::tier::{Call, Removal, side_by_side};
use crate::{AsKey, Error, Generation, Key, Level, Result};

impl CacheManager {
    /// [`CacheManager::delete`] of many keys; the results are in the order of the keys. Each key is removed on its own:
    /// a level that fails for one is in that one's [`Removed::degraded`] alone. Each lower level is asked in
    /// one call, a thousand keys at a time. A key named twice is removed twice.
    ///
    /// Dropping the future after it was first polled stops neither the removal of the thousand keys it has begun nor
    /// begins another.
    ///
    /// # Errors
    /// As for [`CacheManager::delete`]; an invalid key fails the call before anything is removed.
    pub async fn delete_many<K: AsKey>(&self, keys: &[K]) -> Result<Vec<Removed>> {
        let keys = keys.iter().map(|key| Ok(self.key(key)?.to_key())).collect::<Result<Vec<_>>>()?;
        self.shared.check_open()?;
        let mut removed = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(MOST_TOGETHER) {
            let mut begun = self.shared.begin_removals(chunk);
            if !begun.waiting.is_empty() {
                let shared = self.shared.clone();
                begun =
                    self.shared.owned(async move { shared.finish_removals(begun).await }, "a tier").await?;
            }
            removed.append(&mut begun.removed);
        }
        Ok(removed)
    }
}

/// Removals of which some have to wait for a level.
#[derive(Default)]
struct Begun {
    removed: Vec<Removed>,
    waiting: Vec<(usize, Share, InFlight<Arc<Shared>>)>,
}

/// The place of a key's mutation in a removal of its copies below.
pub(super) struct Share {
    pub(super) key: Key,
    pub(super) joined: Joined,
}

/// The removal of a key's copies below, for all mutations that wait for one.
struct Ours<'a> {
    share: &'a Share,
    newest: Generation,
    generation: Generation,
    over: Generation,
    overtaken: bool,
    /// With which generation each level was asked: see [`Shared::remove_batch`].
    asked: [Generation; 3],
    degraded: Vec<(Level, Error)>,
    _removing: Removing<'a>,
}

impl Shared {
    /// Removes the keys here and now, whatever is being written below.
    pub(super) async fn remove_now_many(self: &Arc<Self>, keys: &[Key]) {
        self.finish_removals(self.begin_removals(keys)).await;
    }

    fn begin_removals(self: &Arc<Self>, keys: &[Key]) -> Begun {
        let mut begun = Begun::default();
        for (at, key) in keys.iter().enumerate() {
            match self.remove_at_once(key) {
                Ok(removed) => begun.removed.push(removed),
                Err((flight, joined)) => {
                    begun.removed.push(Removed { found: true, degraded: Vec::new() });
                    begun.waiting.push((at, Share { key: key.clone(), joined }, flight));
                }
            }
        }
        begun
    }

    async fn finish_removals(self: &Arc<Self>, mut begun: Begun) -> Begun {
        let (places, flights): (Vec<_>, Vec<_>) =
            begun.waiting.drain(..).map(|(at, share, flight)| ((at, share), flight)).unzip();
        let (places, shares): (Vec<usize>, Vec<Share>) = places.into_iter().unzip();
        let outcomes = self.remove_lower_many(&shares).await;
        for ((at, share), outcome) in places.into_iter().zip(&shares).zip(outcomes) {
            if outcome.generation > share.joined.generation {
                self.flow.recorder.removed(self.flow.now(), share.key.clone(), outcome.generation);
            }
            begun.removed[at].degraded = outcome.degraded;
        }
        drop(flights);
        begun
    }

    /// As [`Shared::remove_lower`] for each: what each key's mutation came to.
    pub(super) async fn remove_lower_many(self: &Arc<Self>, shares: &[Share]) -> Vec<RemovalOutcome> {
        let (mut ours, mut others) = (Vec::new(), Vec::new());
        for share in shares {
            match share.joined.turn.clone().try_lock_owned() {
                Ok(turn) => ours.push((share, turn)),
                // A removal of the key is under way, perhaps in this very batch.
                Err(_) => others.push(share),
            }
        }
        let together = async {
            let waiting = ours.iter().map(|(share, _)| *share);
            let undone = waiting.filter(|share| share.joined.batch.outcome.get().is_none());
            self.remove_together(undone.collect()).await;
            // Whoever waits for the turn finds the outcome.
            drop(ours);
        };
        let alone = others.into_iter().map(|share| self.remove_alone(share)).collect();
        tokio::join!(together, side_by_side(AT_ONCE, alone));
        shares.iter().map(|share| share.joined.outcome()).collect()
    }

    fn remove_alone<'a>(self: &'a Arc<Self>, share: &'a Share) -> Call<'a, ()> {
        Box::pin(async move {
            self.remove_lower(&share.key, &share.joined).await;
        })
    }

    /// Removes copies of keys whose turns the caller holds, coldest first, each level in one call.
    async fn remove_together(self: &Arc<Self>, shares: Vec<&Share>) {
        let mut ours: Vec<Ours<'_>> = Vec::with_capacity(shares.len());
        for share in shares {
            let (newest, generation, _removing) = self.begin_removal(&share.key);
            ours.push(Ours {
                share,
                newest,
                generation,
                over: Generation::ZERO,
                overtaken: generation != newest,
                asked: [Generation::ZERO; 3],
                degraded: Vec::new(),
                _removing,
            });
        }
        let unasked = |ours: &Ours<'_>, slot: &Slot| ours.asked[slot.level.index()] < ours.generation;
        while let Some(slot) =
            self.lower_slots().rev().find(|slot| ours.iter().any(|ours| unasked(ours, slot)))
        {
            let mut todo = Vec::new();
            for (at, ours) in ours.iter_mut().enumerate().filter(|(_, ours)| unasked(ours, slot)) {
                match slot.index().is_some_and(|index| index.holds(ours.share.key.as_ref()).is_none()) {
                    true => ours.asked[slot.level.index()] = ours.generation,
                    false => todo.push(at),
                }
            }
            let failed = self.remove_above_many(slot, &mut ours, todo).await;
            if let Some((_, error)) = failed.first() {
                tracing::warn!(level = %slot.level, keys = failed.len(), %error, "could not remove, fenced until it can");
            }
            let waiting = failed.iter().map(|&(at, _)| -> Call<'_, (Generation, bool)> {
                let Ours { share, generation, .. } = &ours[at];
                Box::pin(self.clean_later(slot, &share.key, *generation))
            });
            let waiting = side_by_side(AT_ONCE, waiting.collect()).await;
            for ((at, error), (raised, met)) in failed.into_iter().zip(waiting) {
                let ours = &mut ours[at];
                self.flow.counters.count(Count::Degraded);
                ours.overtaken |= met;
                ours.generation = raised;
                ours.asked[slot.level.index()] = Generation::MAX;
                ours.degraded.push((slot.level, error));
            }
        }
        for Ours { share, newest, generation, over, overtaken, degraded, _removing, .. } in ours {
            drop(_removing);
            let outcome = || RemovalOutcome { newest, generation, over, overtaken, degraded };
            share.joined.batch.outcome.get_or_init(outcome);
        }
    }

    /// Removes from one level those in `todo`, taking higher generations as often as another process is ahead. Returns
    /// those that failed.
    async fn remove_above_many(
        &self,
        slot: &Slot,
        ours: &mut [Ours<'_>],
        mut todo: Vec<usize>,
    ) -> Vec<(usize, Error)> {
        let mut failed = Vec::new();
        for _ in 0..MOST_OVERTAKEN {
            if todo.is_empty() {
                return failed;
            }
            let mut again = Vec::new();
            for (at, answer) in self.remove_once(slot, ours, &todo).await {
                let Ours { share, generation, over, overtaken, asked, .. } = &mut ours[at];
                let asked = &mut asked[slot.level.index()];
                let (key, hash) = (&share.key, share.key.hash64());
                let ahead = match answer {
                    Ok(Removal::Behind(found)) if !seeded("batch-behind-is-done") => {
                        *overtaken = true;
                        Some(found)
                    }
                    Ok(Removal::Fenced(fence)) => Some(fence),
                    _ => None,
                };
                if let Some(ahead) = ahead {
                    match self.flow.join(slot.tier.name(), ahead) {
                        Ok(()) => {
                            *generation = self.raise(&mut self.stripes.lock(hash), key);
                            again.push(at);
                        }
                        Err(error) => failed.push((at, error)),
                    }
                    continue;
                }
                match answer {
                    Ok(Removal::Done { over: found } | Removal::Behind(found) | Removal::Fenced(found)) => {
                        // Asked again, it has the mark of what it was asked before.
                        if found > *asked {
                            *over = found.max(*over);
                        }
                        *asked = *generation;
                        self.stripes.lock(hash).end_lag(hash, slot.level);
                    }
                    Err(_) if seeded("batch-partly-is-whole") => *asked = *generation,
                    Err(error) => failed.push((at, error)),
                }
            }
            todo = again;
        }
        let busy =
            || Error::unavailable(slot.tier.name(), "remove", "other processes write the key all the time");
        failed.extend(todo.into_iter().map(|at| (at, busy())));
        failed
    }

    /// Asks a level once: in one call, but for keys that a write is under way to, which wait for its end.
    async fn remove_once(
        &self,
        slot: &Slot,
        ours: &[Ours<'_>],
        todo: &[usize],
    ) -> Vec<(usize, Result<Removal>)> {
        let limit = slot.removal_timeout();
        let written = |at: &usize| {
            let Ours { share, generation, .. } = &ours[*at];
            let hash = share.key.hash64();
            slot.index().is_none() && self.stripes.lock(hash).is_written_before(hash, slot.level, *generation)
        };
        let (mut alone, mut together): (Vec<usize>, Vec<usize>) = todo.iter().copied().partition(written);
        if together.len() == 1 {
            alone.append(&mut together);
        }
        let single = |at: usize| -> Call<'_, (usize, Result<Removal>)> {
            let Ours { share, generation, .. } = &ours[at];
            Box::pin(async move { (at, self.remove_at(slot, &share.key, *generation, limit).await) })
        };
        let alone = side_by_side(AT_ONCE, alone.into_iter().map(single).collect());
        let batch = async {
            let items = together.iter().map(|&at| (ours[at].share.key.clone(), ours[at].generation));
            let items: Vec<(Key, Generation)> = items.collect();
            if items.is_empty() {
                return Vec::new();
            }
            slot.call_many("remove_many", limit, items.len(), slot.tier.remove_many(&items)).await
        };
        let (mut answers, batch) = tokio::join!(alone, batch);
        answers.extend(together.iter().copied().zip(batch));
        answers
    }
}
