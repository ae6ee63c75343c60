//! Writing many keys.

use std::sync::Arc;

use bytes::Bytes;

use super::MOST_TOGETHER;
use super::remove::Share;
use crate::manager::below::Writing;
use crate::manager::set::Draft;
use crate::manager::slot::Slot;
use crate::manager::write::{Begun, Setting, Unfinished, Written};
use crate::manager::{CacheManager, Shared, Write};
use crate::tier::{Put, PutItem};
use crate::{AsKey, Entry, Error, Key, Level, Levels, Result, Timestamp};

impl CacheManager {
    /// Keeps many values with the levels' defaults; the results are in the order of the pairs. Each pair is written
    /// on its own, as by [`CacheManager::set`]: one that fails fails no other, nobody sees all of them change at one
    /// moment, and of a key that is named twice the later pair comes last. Copies below are removed, and values written
    /// where they must be, in one call per level, a thousand pairs at a time.
    ///
    /// Dropping the future after it was first polled stops neither the writes of the thousand pairs it has begun nor
    /// begins others.
    pub async fn set_many<K: AsKey, V: Into<Bytes>>(
        &self,
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Vec<Result<Written>> {
        let mut results = Vec::new();
        let mut pairs = pairs.into_iter();
        loop {
            let chunk = pairs
                .by_ref()
                .take(MOST_TOGETHER)
                .map(|(key, value)| Ok((self.key(&key)?.to_key(), value.into())));
            let chunk: Vec<Result<(Key, Bytes)>> = chunk.collect();
            if chunk.is_empty() {
                return results;
            }
            results.extend(self.shared.write_many(chunk).await);
        }
    }
}

/// A write whose older copies below are fenced.
struct Fenced {
    /// Its place in the batch.
    at: usize,
    key: Key,
    entry: Entry,
    degraded: Vec<(Level, Error)>,
    /// Whether an invalidation covers it that came after it began.
    dead: bool,
    /// Why a level did not take it, and the most that one takes.
    refused: Option<Error>,
    limit: u64,
    _flight: Setting,
}

impl Fenced {
    fn written(self) -> (usize, Result<Written>) {
        let Self { at, entry, degraded, .. } = self;
        (at, Ok(Written { stored: true, generation: entry.generation, degraded }))
    }
}

impl Shared {
    async fn write_many(self: &Arc<Self>, pairs: Vec<Result<(Key, Bytes)>>) -> Vec<Result<Written>> {
        let mut results: Vec<Result<Written>> = Vec::with_capacity(pairs.len());
        let mut unfinished = Vec::new();
        for (at, pair) in pairs.into_iter().enumerate() {
            let begun = match (pair, self.check_open()) {
                (Ok((key, value)), Ok(())) => self.begin_write(key, Draft::new(value)),
                (Err(error), _) | (Ok(_), Err(error)) => Begun::Done(Err(error)),
            };
            results.push(match begun {
                Begun::Done(result) => result,
                Begun::Slow(waiting) => {
                    unfinished.push((at, waiting));
                    // Until it is told below.
                    Err(Error::Closed)
                }
            });
        }
        if !unfinished.is_empty() {
            let (shared, places) = (self.clone(), unfinished.iter().map(|(at, _)| *at).collect::<Vec<_>>());
            match self.owned(async move { shared.finish_writes(unfinished).await }, "a tier").await {
                Ok(finished) => finished.into_iter().for_each(|(at, result)| results[at] = result),
                Err(error) => places.into_iter().for_each(|at| results[at] = Err(error.clone())),
            }
        }
        if self.flow.pending.is_crowded() {
            self.wait_for_room().await;
        }
        results
    }

    /// What is left of writes that have to wait for a level.
    async fn finish_writes(
        self: Arc<Self>,
        writes: Vec<(usize, Unfinished)>,
    ) -> Vec<(usize, Result<Written>)> {
        let now = self.flow.now();
        let mut finished = Vec::with_capacity(writes.len());
        let mut unkept = Vec::new();
        for fenced in self.fence_lower_many(writes).await {
            if fenced.dead {
                self.forget_in_ram(&fenced.key, fenced.entry.generation);
                finished.push(fenced.written());
            } else if self.publish_late(&fenced.key, &fenced.entry, now) {
                finished.push(fenced.written());
            } else {
                unkept.push(fenced);
            }
        }
        // Every draft is for all levels.
        for slot in self.candidates(Levels::ALL) {
            if unkept.is_empty() {
                break;
            }
            let puts = self.put_below_many(slot, &unkept, now).await;
            let mut refused = Vec::new();
            for (mut fenced, put) in unkept.into_iter().zip(puts) {
                match put {
                    Ok(put @ (Put::Stored | Put::Unchanged | Put::Superseded)) => {
                        self.kept_below(slot, &fenced.key, &fenced.entry, put, now);
                        finished.push(fenced.written());
                        continue;
                    }
                    Ok(Put::TooLarge | Put::Full) => {
                        fenced.limit = fenced.limit.max(slot.profile.max_entry_bytes.unwrap_or_default());
                    }
                    Err(error) => fenced.refused = Some(error),
                }
                refused.push(fenced);
            }
            unkept = refused;
        }
        if !unkept.is_empty() {
            // As after a single write that failed: a level that did not answer may have it after all.
            let keys: Vec<Key> = unkept.iter().map(|fenced| fenced.key.clone()).collect();
            self.remove_now_many(&keys).await;
        }
        for Fenced { at, entry, refused, limit, .. } in unkept {
            let size = entry.value.len() as u64;
            finished.push((at, Err(refused.unwrap_or(Error::TooLarge { size, limit }))));
        }
        finished
    }

    /// Removes the copies below that are not fenced yet.
    async fn fence_lower_many(self: &Arc<Self>, writes: Vec<(usize, Unfinished)>) -> Vec<Fenced> {
        let (mut fenced, mut places, mut shares) = (Vec::with_capacity(writes.len()), Vec::new(), Vec::new());
        for (at, Unfinished { key, entry, removal, flight }) in writes {
            if let Some(joined) = removal {
                places.push(fenced.len());
                shares.push(Share { key: key.clone(), joined });
            }
            let (degraded, dead, refused) = (Vec::new(), false, None);
            fenced.push(Fenced { at, key, entry, degraded, dead, refused, limit: 0, _flight: flight });
        }
        for (place, outcome) in places.into_iter().zip(self.remove_lower_many(&shares).await) {
            let fenced = &mut fenced[place];
            // As after a single one: a generation that was raised since does not overtake an invalidation.
            fenced.dead = self.flow.fences.ends(fenced.key.as_ref(), &fenced.entry, outcome.generation);
            fenced.entry.generation = outcome.generation;
            fenced.degraded = outcome.degraded;
        }
        fenced
    }

    /// Writes to one level, each as [`Shared::put_below`] does.
    async fn put_below_many(
        self: &Arc<Self>,
        slot: &Slot,
        writes: &[Fenced],
        now: Timestamp,
    ) -> Vec<Result<Put>> {
        let begin = |fenced: &Fenced| self.begin_below(slot, &fenced.key, &fenced.entry);
        let writings: Vec<Option<Writing>> = writes.iter().map(begin).collect();
        let mut items = Vec::with_capacity(writings.len());
        for writing in writings.iter().flatten() {
            let (key, entry) = (writing.ticket.key(), writing.ticket.entry());
            let hold = self.flow.hold(slot.level, entry, self.is_last(slot.level, entry.levels), now);
            items.push(PutItem { key, entry, hold, permit: &*writing.ticket });
        }
        let limit = slot.limits().write_timeout;
        let mut answers = match items.len() {
            0 => Vec::new(),
            count => slot.call_many("put_many", limit, count, slot.tier.put_many(&items)).await,
        };
        if self.write == Write::Through
            && answers.iter().any(|put| matches!(put, Ok(Put::Stored | Put::Unchanged)))
        {
            // A level may keep what it took in a buffer of its own for a moment.
            if let Err(error) = slot.call("sync", limit, slot.tier.sync()).await {
                let unsynced = |put: &&mut Result<Put>| matches!(put, Ok(Put::Stored | Put::Unchanged));
                answers.iter_mut().filter(unsynced).for_each(|put| *put = Err(error.clone()));
            }
        }
        let mut answers = answers.into_iter();
        let ended = writings.into_iter().map(|writing| {
            let Some(writing) = writing else { return Ok(Put::Superseded) };
            let unanswered = || Err(Error::unavailable(slot.tier.name(), "put_many", "no answer"));
            let put = self.judge_write(slot, &writing.ticket, answers.next().unwrap_or_else(unanswered));
            self.end_below(writing.ticket.key(), writing.ticket.entry());
            put
        });
        ended.collect()
    }
}
