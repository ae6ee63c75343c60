//! Counters in this process's memory: a table of their own, since what a counter is must not depend on what else
//! needs room. They have a part of the level's bytes and no more; entries have what is left.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tiercache_core::tier::{Counting, Resident};
use tiercache_core::{Error, Key, Result, Timestamp};

use crate::RamTier;

/// Bytes of a counter beside its key's, about.
const OVERHEAD: u64 = 96;
/// The part of the level's bytes that counters may take, and the steps in which it is taken from entries.
const SHARE: u64 = 8;
const STEPS: u64 = 8;

/// The counters of a level.
#[derive(Debug, Default)]
pub(crate) struct Counters(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    counters: HashMap<Key, Counter>,
    bytes: u64,
    /// What entries do without, at least `bytes`.
    reserved: u64,
}

#[derive(Clone, Copy, Debug)]
struct Counter {
    sum: i64,
    deadline: Timestamp,
}

impl Counters {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.table().bytes
    }

    /// What is to be left to entries of so many bytes.
    pub(crate) fn leave(&self, capacity: u64) -> u64 {
        let mut table = self.table();
        table.reserved = table.wanted(capacity);
        capacity - table.reserved
    }

    /// Forgets those of the namespace, or all.
    pub(crate) fn clear(&self, namespace: Option<&str>) {
        self.table().retain(|key, _| namespace.is_some_and(|namespace| namespace != key.namespace()));
    }

    /// Forgets those that are dead.
    pub(crate) fn sweep(&self, now: Timestamp) {
        self.table().retain(|_, counter| now < counter.deadline);
    }
}

impl Table {
    fn wanted(&self, capacity: u64) -> u64 {
        let step = (capacity / SHARE / STEPS).max(1);
        (self.bytes.div_ceil(step) * step).min(capacity)
    }

    fn retain(&mut self, keep: impl Fn(&Key, &Counter) -> bool) {
        let bytes = &mut self.bytes;
        self.counters.retain(|key, counter| {
            let kept = keep(key, counter);
            if !kept {
                *bytes -= size(key);
            }
            kept
        });
    }

    fn living(&mut self, key: &Key, now: Timestamp) -> Option<&mut Counter> {
        self.counters.get_mut(key).filter(|counter| now < counter.deadline)
    }
}

fn size(key: &Key) -> u64 {
    OVERHEAD + key.encoded().len() as u64
}

fn sum(count: i64, delta: i64) -> Result<i64> {
    count.checked_add(delta).ok_or_else(|| Error::InvalidOption {
        option: "delta",
        reason: format!("{delta} leads out of the range of a counter that is at {count}"),
    })
}

#[async_trait]
impl Counting for RamTier {
    async fn add(
        &self,
        key: &Key,
        delta: i64,
        start: i64,
        deadline: Timestamp,
        now: Timestamp,
    ) -> Result<i64> {
        self.open()?;
        let capacity = self.capacity();
        let limit = capacity / SHARE;
        let mut table = self.counters.table();
        if let Some(counter) = table.living(key, now) {
            counter.sum = sum(counter.sum, delta)?;
            return Ok(counter.sum);
        }
        let sum = sum(start, delta)?;
        if !table.counters.contains_key(key) {
            if table.bytes + size(key) > limit {
                table.retain(|_, counter| now < counter.deadline);
            }
            if table.bytes + size(key) > limit {
                return Err(Error::Full { backend: "ram", op: "add a counter" });
            }
            table.bytes += size(key);
        }
        table.counters.insert(key.clone(), Counter { sum, deadline });
        let short = table.wanted(capacity) > table.reserved;
        drop(table);
        if short {
            self.resize(capacity);
        }
        Ok(sum)
    }

    async fn counter(&self, key: &Key, now: Timestamp) -> Result<Option<i64>> {
        self.open()?;
        Ok(self.counters.table().living(key, now).map(|counter| counter.sum))
    }

    async fn remove_counter(&self, key: &Key) -> Result<bool> {
        self.open()?;
        let mut table = self.counters.table();
        let removed = table.counters.remove(key).is_some();
        if removed {
            table.bytes -= size(key);
        }
        Ok(removed)
    }
}
