//! Events on their way to the tracking store: aggregated, batched, off every path that a caller waits on.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashbrown::HashTable;
use tokio::sync::Notify;

use super::counters::Counters;
use super::guard::caught;
use crate::tier::Scope;
use crate::tracking::{Event, Record, Totals, What};
use crate::{Error, Generation, Key, Level, Timestamp, Tracking};

const SHARDS: usize = 16;
/// Keys that wait in all shards together before the store is told ahead of time.
const HURRY_KEYS: usize = 8_192;
/// Distinct keys a shard holds while the store does not take any: beyond, the oldest placements are given up,
/// counted in [`Recorder::lost`].
const SHARD_KEYS: usize = 65_536;
/// The longest a caller waits for the store to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest a listing waits: for the store to be told what it does not know yet, and for each page.
const LISTING_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Recorder {
    tracking: Arc<dyn Tracking>,
    enabled: bool,
    /// What happened to each key since the store was told, added up as it happens.
    shards: [Mutex<Changes>; SHARDS],
    /// Events of no single key, applied after those of keys.
    wide: Mutex<Vec<Event>>,
    waiting: AtomicUsize,
    merged: AtomicU64,
    lost: AtomicU64,
    failures: AtomicU64,
    reported: Mutex<Totals>,
    /// One flush at a time, so that batches arrive in order.
    flushing: tokio::sync::Mutex<()>,
    pub(super) hurry: Notify,
}

impl Recorder {
    pub(super) fn new(tracking: Arc<dyn Tracking>) -> Self {
        Self {
            enabled: tracking.name() != crate::tracking::NoTracking.name(),
            tracking,
            shards: Default::default(),
            wide: Mutex::default(),
            waiting: AtomicUsize::new(0),
            merged: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            reported: Mutex::default(),
            flushing: tokio::sync::Mutex::default(),
            hurry: Notify::new(),
        }
    }

    pub(super) fn tracking(&self) -> &Arc<dyn Tracking> {
        &self.tracking
    }

    /// Whether there is a store to tell.
    pub(super) fn is_enabled(&self) -> bool {
        self.enabled
    }

    pub(super) fn stored(&self, at: Timestamp, record: impl FnOnce() -> Record) {
        if self.enabled {
            let record = record();
            let hash = record.key.hash64();
            self.push(hash, Event { at, what: What::Stored(record) });
        }
    }

    pub(super) fn moved(&self, at: Timestamp, key: &Key, generation: Generation, to: Option<Level>) {
        if self.enabled {
            let what = What::Moved { key: key.clone(), generation, to };
            self.push(key.hash64(), Event { at, what });
        }
    }

    pub(super) fn used(&self, at: Timestamp, key: impl FnOnce() -> Key, hits: u32) {
        if self.enabled && hits > 0 {
            let key = key();
            let hash = key.hash64();
            self.push(hash, Event { at, what: What::Used { key, hits: hits.into() } });
        }
    }

    pub(super) fn removed(&self, at: Timestamp, key: Key, generation: Generation) {
        if self.enabled {
            let hash = key.hash64();
            self.push(hash, Event { at, what: What::Removed { key, generation } });
        }
    }

    pub(super) fn invalidated(&self, at: Timestamp, scope: Scope, generation: Generation) {
        self.wide(Event { at, what: What::Invalidated { scope, generation } });
    }

    pub(super) fn flushed(
        &self,
        at: Timestamp,
        level: Level,
        namespace: Option<String>,
        generation: Generation,
    ) {
        self.wide(Event { at, what: What::Flushed { level, namespace, generation } });
    }

    /// Hit details that were added up before they were told.
    pub(super) fn merged(&self) -> u64 {
        self.merged.load(Ordering::Relaxed)
    }

    /// Placements given up because the store took none for too long.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Batches the store did not take; they are tried again.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Tells the store everything that waits. What it does not take waits on.
    pub(super) async fn flush(&self, at: Timestamp, counters: &Counters) -> crate::Result<()> {
        if !self.enabled {
            return Ok(());
        }
        let _one_at_a_time = self.flushing.lock().await;
        let mut batch = Batch { recorder: self, events: Vec::new(), totals: Totals::default(), taken: false };
        for shard in &self.shards {
            let changes = lock(shard).take();
            self.waiting.fetch_sub(changes.len(), Ordering::Relaxed);
            changes.into_iter().for_each(|(key, change)| change.tell(key, &mut batch.events));
        }
        batch.events.append(&mut lock(&self.wide));
        batch.totals = self.unreported(counters);
        if !batch.totals.is_zero() {
            batch.events.push(Event { at, what: What::Counted(batch.totals) });
        }
        if batch.events.is_empty() {
            return Ok(());
        }
        let told = caught(self.tracking.name(), self.tracking.record(&batch.events)).await;
        match &told {
            Ok(()) => batch.taken = true,
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(tracking = self.tracking.name(), %error, "tracking did not take a batch");
            }
        }
        told
    }

    /// Sets the totals to zero, here and in the store.
    pub(super) async fn reset(&self, at: Timestamp, counters: &Counters) -> crate::Result<()> {
        self.flush(at, counters).await?;
        *lock(&self.reported) = counters.totals();
        if self.enabled { self.ask("reset totals", self.tracking.reset_totals()).await } else { Ok(()) }
    }

    /// [`Recorder::flush`] for those who want to know the latest, and not at any price.
    pub(super) async fn catch_up(&self, at: Timestamp, counters: &Counters) {
        // What it does not take it has counted as a failure; what takes too long goes on waiting.
        let _ = tokio::time::timeout(PATIENCE, self.flush(at, counters)).await;
    }

    /// What the store answers, within a time that a caller can be made to wait.
    pub(super) async fn ask<T>(
        &self,
        op: &'static str,
        question: impl Future<Output = crate::Result<T>>,
    ) -> crate::Result<T> {
        self.within(PATIENCE, op, question).await
    }

    /// Likewise, for a listing, which is nothing without the answer.
    pub(super) async fn list<T>(
        &self,
        op: &'static str,
        question: impl Future<Output = crate::Result<T>>,
    ) -> crate::Result<T> {
        self.within(LISTING_PATIENCE, op, question).await
    }

    async fn within<T>(
        &self,
        limit: Duration,
        op: &'static str,
        question: impl Future<Output = crate::Result<T>>,
    ) -> crate::Result<T> {
        let backend = self.tracking.name();
        let late = Error::TimedOut { backend, op, after: limit };
        tokio::time::timeout(limit, caught(backend, question)).await.unwrap_or(Err(late))
    }

    /// What was counted and not yet told.
    pub(super) fn unreported(&self, counters: &Counters) -> Totals {
        let totals = counters.totals();
        let reported = lock(&self.reported);
        let mut since = totals;
        for (since, reported) in since.hits.iter_mut().zip(reported.hits) {
            *since = since.saturating_sub(reported);
        }
        since.misses = since.misses.saturating_sub(reported.misses);
        since.sets = since.sets.saturating_sub(reported.sets);
        since.deletes = since.deletes.saturating_sub(reported.deletes);
        since
    }

    fn push(&self, hash: u64, event: Event) {
        let mut shard = lock(&self.shards[(hash >> 32) as usize % SHARDS]);
        let added = shard.add(event);
        if added.merged {
            self.merged.fetch_add(1, Ordering::Relaxed);
        }
        if !added.new_key {
            return;
        }
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        if shard.len() > SHARD_KEYS {
            self.give_up(&mut shard);
        }
        drop(shard);
        if waiting.is_multiple_of(HURRY_KEYS) {
            self.hurry.notify_one();
        }
    }

    fn wide(&self, event: Event) {
        if self.enabled {
            lock(&self.wide).push(event);
        }
    }

    /// Gives up the oldest quarter of a shard, which is then within its bound for a while.
    fn give_up(&self, shard: &mut Changes) {
        let changes = shard.take();
        let excess = changes.len() / 4;
        let mut lost = 0;
        for (at, (key, change)) in changes.into_iter().enumerate() {
            if at < excess {
                lost += change.placements();
            } else {
                shard.push(key, change);
            }
        }
        self.lost.fetch_add(lost, Ordering::Relaxed);
        self.waiting.fetch_sub(excess, Ordering::Relaxed);
    }
}

/// Events taken out to be told; put back when they were not, whether the store failed or the flush was dropped.
struct Batch<'a> {
    recorder: &'a Recorder,
    events: Vec<Event>,
    totals: Totals,
    taken: bool,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if self.taken {
            lock(&self.recorder.reported).add(&self.totals);
            return;
        }
        for event in self.events.drain(..) {
            let hash = match &event.what {
                What::Stored(record) => record.key.hash64(),
                What::Moved { key, .. } | What::Used { key, .. } | What::Removed { key, .. } => key.hash64(),
                What::Invalidated { .. } | What::Flushed { .. } => {
                    lock(&self.recorder.wide).push(event);
                    continue;
                }
                // Counted anew at the next flush.
                What::Counted(_) => continue,
            };
            self.recorder.push(hash, event);
        }
    }
}

/// What events came to, by key, in the order the keys first occurred in.
#[derive(Debug, Default)]
struct Changes {
    changes: Vec<(Key, Change)>,
    /// Where each is, found by the key's own hash.
    places: HashTable<u32>,
}

/// What adding an event came to.
struct Added {
    new_key: bool,
    /// Whether hits were added to hits.
    merged: bool,
}

impl Changes {
    fn len(&self) -> usize {
        self.changes.len()
    }

    /// Adds an event of a key; others are nothing to it.
    fn add(&mut self, Event { at, what }: Event) -> Added {
        let (What::Stored(Record { key, .. })
        | What::Moved { key, .. }
        | What::Used { key, .. }
        | What::Removed { key, .. }) = &what
        else {
            return Added { new_key: false, merged: false };
        };
        let changes = &mut self.changes;
        if let Some(&place) = self.places.find(key.hash64(), |&place| changes[place as usize].0 == *key) {
            let merged = changes[place as usize].1.add(at, what);
            return Added { new_key: false, merged };
        }
        let (key, mut change) = (key.clone(), Change::new(at));
        change.add(at, what);
        self.push(key, change);
        Added { new_key: true, merged: false }
    }

    /// Adds what became of a key that is not there.
    fn push(&mut self, key: Key, change: Change) {
        let changes = &mut self.changes;
        // A shard is bounded far below this.
        let place = changes.len() as u32;
        self.places.insert_unique(key.hash64(), place, |&place| changes[place as usize].0.hash64());
        changes.push((key, change));
    }

    /// Takes everything out. Room is kept for as much again, as long as that is little.
    fn take(&mut self) -> Vec<(Key, Change)> {
        const KEPT: usize = 1_024;
        self.places.clear();
        if self.places.capacity() > 2 * KEPT {
            self.places = HashTable::new();
        }
        let room = Vec::with_capacity(self.changes.len().min(KEPT));
        std::mem::replace(&mut self.changes, room)
    }
}

/// What a run of events comes to for one key.
#[derive(Debug)]
struct Change {
    first_at: Timestamp,
    last_at: Timestamp,
    removed: Option<Generation>,
    stored: Option<Record>,
    moved: Option<(Generation, Option<Level>)>,
    hits: u64,
}

impl Change {
    fn new(at: Timestamp) -> Self {
        Self { first_at: at, last_at: at, removed: None, stored: None, moved: None, hits: 0 }
    }

    /// Adds an event; returns whether hits were added to hits.
    fn add(&mut self, at: Timestamp, what: What) -> bool {
        self.last_at = at;
        let stored = self.stored.as_ref().map(|record| record.generation);
        let newest = stored.max(self.removed).unwrap_or_default();
        match what {
            What::Stored(record) if record.generation > newest => {
                self.hits = 0;
                self.moved = self.moved.filter(|(generation, _)| *generation >= record.generation);
                self.stored = Some(record);
            }
            What::Removed { generation, .. } if generation > newest => {
                self.hits = 0;
                self.stored = None;
                self.moved = None;
                self.removed = Some(generation);
            }
            What::Moved { generation, to, .. } if generation >= newest => {
                self.moved = Some((generation, to));
            }
            What::Used { hits, .. } => {
                let merged = self.hits > 0;
                self.hits += hits;
                return merged;
            }
            _ => {}
        }
        false
    }

    /// How many events say where the entry is, or that it is not.
    fn placements(&self) -> u64 {
        u64::from(self.removed.is_some()) + u64::from(self.stored.is_some()) + u64::from(self.moved.is_some())
    }

    /// One event of a kind at most.
    fn tell(self, key: Key, events: &mut Vec<Event>) {
        let mut tell = |at, what| events.push(Event { at, what });
        if let Some(generation) = self.removed {
            tell(self.first_at, What::Removed { key: key.clone(), generation });
        }
        if let Some(record) = self.stored {
            tell(self.first_at, What::Stored(record));
        }
        if self.hits > 0 {
            tell(self.last_at, What::Used { key: key.clone(), hits: self.hits });
        }
        if let Some((generation, to)) = self.moved {
            tell(self.last_at, What::Moved { key, generation, to });
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
