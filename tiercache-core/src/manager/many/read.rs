//! Reading many keys.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::MOST_TOGETHER;
use crate::bugs::seeded;
use crate::manager::counters::Count;
use crate::manager::find::{Announced, AtOnce, Budget, Doubt, Found, Wait};
use crate::manager::slot::Slot;
use crate::manager::{CacheManager, Shared};
use crate::tier::TryGet;
use crate::{AsKey, Entry, Generation, Key, KeyRef, Result};

impl CacheManager {
    /// The values of many keys, in the order of the keys: each as [`CacheManager::get`] would find it, not all of one
    /// moment. What is not in RAM is asked of each lower level in one call, a thousand keys at a time, within one
    /// deadline for these; reads of the same keys that are under way are joined.
    ///
    /// A key named twice is answered twice. A key that a level fails to read is as if that level did not hold it; the
    /// others are answered all the same.
    ///
    /// Dropping the future leaves nothing but, at worst, promotions that did not happen.
    ///
    /// # Errors
    /// As for [`CacheManager::get`]; one invalid key fails the call before anything is read.
    pub async fn get_many<K: AsKey>(&self, keys: &[K]) -> Result<Vec<Option<Bytes>>> {
        let keys = keys.iter().map(|key| self.key(key)).collect::<Result<Vec<_>>>()?;
        let mut values: Vec<Option<Bytes>> = keys.iter().map(|key| self.shared.hit(*key)).collect();
        let missing: Vec<usize> = (0..keys.len()).filter(|&at| values[at].is_none()).collect();
        for chunk in missing.chunks(MOST_TOGETHER) {
            if let [at] = chunk {
                values[*at] = self.shared.find(keys[*at]).await?.map(|found| found.entry.value);
                continue;
            }
            let wanted: Vec<KeyRef<'_>> = chunk.iter().map(|&at| keys[at]).collect();
            let found = Box::pin(self.shared.find_many(&wanted)).await?;
            for (&at, found) in chunk.iter().zip(found) {
                values[at] = found.map(|found| found.entry.value);
            }
        }
        Ok(values)
    }
}

/// A key that has to be asked for below, in a flight that has been registered.
struct Reader<'a> {
    /// Its place in the batch.
    at: usize,
    key: KeyRef<'a>,
    floor: Generation,
    announced: Announced<'a>,
    /// What a level had that is only stale, and the flushes it had seen.
    stale: Option<(Found, u64)>,
}

impl Shared {
    /// What a `get` of each would find; promoted and counted.
    async fn find_many(&self, keys: &[KeyRef<'_>]) -> Result<Vec<Option<Found>>> {
        let found = self.search_many(keys).await?;
        Ok(found.into_iter().map(|found| found.filter(Found::is_value)).collect())
    }

    /// As [`Shared::search`] for each.
    pub(in crate::manager) async fn search_many(&self, keys: &[KeyRef<'_>]) -> Result<Vec<Option<Found>>> {
        self.check_open()?;
        let mut found: Vec<Option<Found>> = vec![None; keys.len()];
        let mut budget = Budget::default();
        let mut asked: Vec<usize> = (0..keys.len()).collect();
        while !asked.is_empty() {
            let (mut readers, mut joined) = (Vec::new(), Vec::new());
            for at in asked.drain(..) {
                let key = keys[at];
                match self.find_at_once(key) {
                    AtOnce::Found(there) => found[at] = Some(there),
                    AtOnce::Nowhere(stale) => found[at] = stale,
                    // Perhaps this very batch's, of a key that is named twice: waited for only when that is over.
                    AtOnce::Wait(Wait::Join(reading)) => joined.push((at, reading)),
                    AtOnce::Wait(Wait::Read { floor, answer }) => {
                        let announced = Announced { shared: self, hash: key.hash64(), answer };
                        let floor = if seeded("batch-without-floors") { Generation::ZERO } else { floor };
                        readers.push(Reader { at, key, floor, announced, stale: None });
                    }
                }
            }
            self.read_below_many(readers, &mut budget, &mut found).await;
            for (at, reading) in joined {
                match self.join_read(keys[at], reading).await {
                    Some(there) => found[at] = there,
                    None => asked.push(at),
                }
            }
        }
        for (found, key) in found.iter_mut().zip(keys) {
            if found.as_ref().is_none_or(|found| found.stale) {
                let above = self.stale_above(&self.stripes.lock(key.hash64()), *key, self.flow.now());
                *found = found.take().into_iter().chain(above).max_by_key(|found| found.entry.generation);
            }
            let level = found.as_ref().filter(|found| found.is_value()).map(|found| found.level);
            self.flow.counters.count(level.map_or(Count::Miss, Count::Hit));
        }
        Ok(found)
    }

    /// Asks level after level for what is still missing, and publishes what each has.
    async fn read_below_many(
        &self,
        mut readers: Vec<Reader<'_>>,
        budget: &mut Budget,
        found: &mut [Option<Found>],
    ) {
        for slot in self.lower_slots() {
            if readers.is_empty() {
                return;
            }
            let flushed = slot.flushed.load(Ordering::Acquire);
            let doubts: Vec<Doubt> = readers.iter().map(|reader| Doubt::of(self, slot, reader.key)).collect();
            let answers = self.read_slot_many(slot, &readers, budget).await;
            let mut missing = Vec::new();
            for ((mut reader, answer), doubt) in readers.into_iter().zip(answers).zip(doubts) {
                let mut believed = self.believe(slot, reader.key, reader.floor, answer, &doubt);
                if let Some(stale) = believed.take_if(|found| found.stale) {
                    reader.stale.get_or_insert((stale, flushed));
                }
                match believed.map(|found| (found, flushed)).or_else(|| self.find_passing(reader.key)) {
                    Some(there) => found[reader.at] = reader.announced.end(reader.key, Some(there)),
                    None => missing.push(reader),
                }
            }
            readers = missing;
        }
        for reader in readers {
            found[reader.at] = reader.announced.end(reader.key, reader.stale);
        }
    }

    /// Asks one level, within what is left of the request's time. Trouble is a miss.
    async fn read_slot_many(
        &self,
        slot: &Slot,
        readers: &[Reader<'_>],
        budget: &mut Budget,
    ) -> Vec<Option<Entry>> {
        let mut answers: Vec<Option<Entry>> = vec![None; readers.len()];
        let mut asked = Vec::new();
        for (at, reader) in readers.iter().enumerate() {
            match slot.index().map(|index| index.try_get(reader.key)) {
                Some(TryGet::Done(entry)) => answers[at] = entry,
                Some(TryGet::WouldBlock) | None => asked.push(at),
            }
        }
        let keys: Vec<Key> = asked.iter().map(|&at| readers[at].key.to_key()).collect();
        if let ([at], [key]) = (&asked[..], &keys[..]) {
            answers[*at] = self.read_slot(slot, key, budget).await;
            return answers;
        }
        let limit = budget.left(slot.limits().read_timeout);
        if keys.is_empty() || limit.is_zero() {
            return answers;
        }
        let started = tokio::time::Instant::now();
        let said = slot.call_many("get_many", limit, keys.len(), slot.tier.get_many(&keys)).await;
        budget.spend(started.elapsed());
        for (number, said) in said.into_iter().enumerate() {
            // The answer is the one that was asked for in its place, not the one that is missing there.
            answers[asked[number]] = self.note_read(slot, &keys[number], said);
        }
        answers
    }
}
