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
/// Events a shard holds before it is aggregated in place.
const SHARD_EVENTS: usize = 4_096;
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
    shards: [Mutex<Vec<Event>>; SHARDS],
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
            batch.events.append(&mut lock(shard));
        }
        self.waiting.fetch_sub(batch.events.len(), Ordering::Relaxed);
        let (events, merged) = aggregate(std::mem::take(&mut batch.events));
        self.merged.fetch_add(merged, Ordering::Relaxed);
        batch.events = events;
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
        shard.push(event);
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        if shard.len() >= SHARD_EVENTS && shard.len().is_power_of_two() {
            self.tighten(&mut shard);
        }
        drop(shard);
        if waiting.is_multiple_of(SHARD_EVENTS * 2) {
            self.hurry.notify_one();
        }
    }

    fn wide(&self, event: Event) {
        if self.enabled {
            lock(&self.wide).push(event);
        }
    }

    /// Aggregates a shard in place, and gives up its oldest when even that is too much.
    fn tighten(&self, shard: &mut Vec<Event>) {
        let before = shard.len();
        let (mut events, merged) = aggregate(std::mem::take(shard));
        self.merged.fetch_add(merged, Ordering::Relaxed);
        if events.len() > SHARD_KEYS {
            let excess = events.len() - SHARD_KEYS;
            let lost =
                events.drain(..excess).filter(|event| !matches!(event.what, What::Used { .. })).count();
            self.lost.fetch_add(lost as u64, Ordering::Relaxed);
        }
        self.waiting.fetch_sub(before - events.len(), Ordering::Relaxed);
        *shard = events;
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

/// What a run of events comes to for one key.
#[derive(Default)]
struct Change {
    first_at: Option<Timestamp>,
    last_at: Option<Timestamp>,
    removed: Option<Generation>,
    stored: Option<Record>,
    moved: Option<(Generation, Option<Level>)>,
    hits: u64,
}

/// One event of a kind per key at most, and how many hit details were added together.
fn aggregate(events: Vec<Event>) -> (Vec<Event>, u64) {
    // In the order the keys first occur in, found by their own hash.
    let mut changes: Vec<(Key, Change)> = Vec::new();
    let mut places: HashTable<usize> = HashTable::with_capacity(events.len());
    let mut merged = 0;
    for Event { at, what } in events {
        let (What::Stored(Record { key, .. })
        | What::Moved { key, .. }
        | What::Used { key, .. }
        | What::Removed { key, .. }) = &what
        else {
            continue;
        };
        let same = |&place: &usize| changes[place].0 == *key;
        let place = match places.find(key.hash64(), same) {
            Some(&place) => place,
            None => {
                let place = changes.len();
                places.insert_unique(key.hash64(), place, |&place| changes[place].0.hash64());
                changes.push((key.clone(), Change::default()));
                place
            }
        };
        let change = &mut changes[place].1;
        change.first_at.get_or_insert(at);
        change.last_at = Some(at);
        let newest = change
            .stored
            .as_ref()
            .map(|record| record.generation)
            .into_iter()
            .chain(change.removed)
            .max()
            .unwrap_or_default();
        match what {
            What::Stored(record) if record.generation > newest => {
                change.hits = 0;
                change.moved = change.moved.filter(|(generation, _)| *generation >= record.generation);
                change.stored = Some(record);
            }
            What::Removed { generation, .. } if generation > newest => {
                change.hits = 0;
                change.stored = None;
                change.moved = None;
                change.removed = Some(generation);
            }
            What::Moved { generation, to, .. } if generation >= newest => {
                change.moved = Some((generation, to));
            }
            What::Used { hits, .. } => {
                merged += u64::from(change.hits > 0);
                change.hits += hits;
            }
            _ => {}
        }
    }
    let mut events = Vec::with_capacity(changes.len());
    for (key, change) in changes {
        let (Some(first), Some(last)) = (change.first_at, change.last_at) else { continue };
        let mut tell = |at, what| events.push(Event { at, what });
        if let Some(generation) = change.removed {
            tell(first, What::Removed { key: key.clone(), generation });
        }
        if let Some(record) = change.stored {
            tell(first, What::Stored(record));
        }
        if change.hits > 0 {
            tell(last, What::Used { key: key.clone(), hits: change.hits });
        }
        if let Some((generation, to)) = change.moved {
            tell(last, What::Moved { key, generation, to });
        }
    }
    (events, merged)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
