//! Entries on their way down. They are part of every read until the tier below has them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;
use tokio::sync::{Notify, watch};

use super::fences::Fences;
use crate::bugs::seeded;
use crate::tier::{Dead, Permit};
use crate::{Entry, Generation, Key, KeyRef, Level};

const SHARDS: usize = 16;
/// What an entry costs beside its value and key: the map's and the queue's share.
const OVERHEAD: u64 = 192;

type Waiting = HashMap<Key, Item, foldhash::fast::FixedState>;

/// The way down: a map that reads look into, and a queue per level for those who write.
#[derive(Debug)]
pub(super) struct Pending {
    shards: [Mutex<Waiting>; SHARDS],
    lanes: [Lane; 3],
    items: AtomicUsize,
    bytes: AtomicU64,
    limit: AtomicU64,
    /// Told when something left.
    pub(super) room: Notify,
}

#[derive(Debug, Default)]
struct Lane {
    queue: Mutex<VecDeque<(Key, Generation)>>,
    work: Notify,
}

/// An entry on its way.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) entry: Entry,
    /// The level it left; for an entry that stays there too, the level that keeps it.
    pub(super) from: Level,
    /// The level it goes to.
    pub(super) to: Level,
    /// Whether somebody writes it below.
    pub(super) writing: bool,
    /// How often it was handed over while it was on its way already. A level in RAM that it was just moved to may
    /// give it up again before it is taken off the way, which then must not happen.
    pub(super) returned: u32,
}

impl Item {
    /// An entry that begins its way.
    pub(super) fn new(entry: Entry, from: Level, to: Level) -> Self {
        Self { entry, from, to, writing: false, returned: 0 }
    }
}

/// The permit of a write on the way down.
#[derive(Debug)]
pub(super) struct Ticket {
    key: Key,
    entry: Entry,
    to: Level,
    superseded_by: AtomicU64,
    finished: watch::Sender<bool>,
    fences: Arc<Fences>,
}

impl Ticket {
    pub(super) fn new(key: Key, entry: Entry, to: Level, fences: Arc<Fences>) -> Arc<Self> {
        let finished = watch::Sender::new(false);
        Arc::new(Self { key, entry, to, superseded_by: AtomicU64::new(0), finished, fences })
    }

    /// The key that is written.
    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// What is written.
    pub(super) fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The level it is written to.
    pub(super) fn to(&self) -> Level {
        self.to
    }

    /// The generation of what is written.
    pub(super) fn generation(&self) -> Generation {
        self.entry.generation
    }

    /// Notes that the write is over, whatever came of it.
    pub(super) fn finish(&self) {
        self.finished.send_replace(true);
    }

    /// Waits until the write is over.
    pub(super) async fn finished(&self) {
        // The sender is ours: it does not go away while we wait.
        let _ = self.finished.subscribe().wait_for(|finished| *finished).await;
    }

    /// Withdraws it on behalf of the mutation of that generation.
    pub(super) fn withdraw(&self, by: Generation) {
        self.superseded_by.fetch_max(by.get(), Ordering::AcqRel);
    }

    /// The mutation that withdrew it.
    pub(super) fn superseded_by(&self) -> Option<Generation> {
        match self.superseded_by.load(Ordering::Acquire) {
            0 => None,
            by => Some(Generation::new(by)),
        }
    }
}

impl Permit for Ticket {
    fn holds(&self) -> bool {
        seeded("no-permit")
            || self.superseded_by().is_none() && !self.fences.is_dead(self.key.as_ref(), &self.entry)
    }
}

impl Pending {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            shards: Default::default(),
            lanes: Default::default(),
            items: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            limit: AtomicU64::new(limit),
            room: Notify::new(),
        }
    }

    /// Puts an entry on the way. Returns what had to be dropped for want of room, oldest first.
    pub(super) fn push(&self, key: Key, item: Item, bounded: bool) -> Vec<(Key, Item)> {
        let (generation, to) = (item.entry.generation, item.to);
        {
            let mut shard = self.shard(key.hash64());
            match shard.get_mut(&key) {
                Some(waiting) if waiting.entry.generation > generation => return Vec::new(),
                Some(waiting) if waiting.entry.generation == generation => {
                    waiting.returned += 1;
                    if waiting.writing || waiting.to >= to {
                        return Vec::new();
                    }
                    (waiting.from, waiting.to) = (item.from, to);
                    drop(shard);
                    self.requeue(key, generation, to);
                    return Vec::new();
                }
                _ => {}
            }
            // Counted before it can be found, so that nobody finds the map empty while it is in it.
            self.items.fetch_add(1, Ordering::Release);
            self.bytes.fetch_add(cost(&key, &item.entry), Ordering::Relaxed);
            if let Some(older) = shard.insert(key.clone(), item) {
                self.left(&key, &older);
            }
        }
        self.requeue(key, generation, to);
        if bounded && self.bytes.load(Ordering::Relaxed) > self.limit() {
            self.overflow(to)
        } else {
            Vec::new()
        }
    }

    /// Whether nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.items.load(Ordering::Acquire) == 0
    }

    pub(super) fn len(&self) -> usize {
        self.items.load(Ordering::Acquire)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The most bytes on their way.
    pub(super) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Changes it; what is on its way now stays there.
    pub(super) fn set_limit(&self, bytes: u64) {
        self.limit.store(bytes, Ordering::Relaxed);
    }

    /// Whether writers should wait for those who write below.
    pub(super) fn is_crowded(&self) -> bool {
        self.bytes() > self.limit() / 2
    }

    /// The entry of `key` on its way.
    pub(super) fn get(&self, key: KeyRef<'_>) -> Option<Item> {
        if self.is_empty() || seeded("pending-not-read") {
            return None;
        }
        self.shard(key.hash64()).get(&key).cloned()
    }

    /// Takes the entry off the way if it is older than the mutation `below`.
    pub(super) fn discard(&self, key: KeyRef<'_>, below: Generation) -> Option<Item> {
        if self.is_empty() || seeded("pending-kept-by-set") {
            return None;
        }
        let mut shard = self.shard(key.hash64());
        if shard.get(&key)?.entry.generation >= below {
            return None;
        }
        let (key, item) = shard.remove_entry(&key)?;
        self.left(&key, &item);
        Some(item)
    }

    /// Takes the entry off the way if it has that generation: it has arrived at a level that keeps it.
    pub(super) fn take(&self, key: KeyRef<'_>, generation: Generation) -> Option<Item> {
        self.take_if(key, |waiting| waiting.entry.generation == generation)
    }

    /// Takes the entry off the way after a level in RAM took it, unless it came back from there.
    pub(super) fn take_unless_returned(&self, key: KeyRef<'_>, moved: &Item) -> Option<Item> {
        self.take_if(key, |waiting| {
            waiting.entry.generation == moved.entry.generation && waiting.returned == moved.returned
        })
    }

    fn take_if(&self, key: KeyRef<'_>, condition: impl FnOnce(&Item) -> bool) -> Option<Item> {
        if self.is_empty() {
            return None;
        }
        let mut shard = self.shard(key.hash64());
        if !condition(shard.get(&key)?) {
            return None;
        }
        let (key, item) = shard.remove_entry(&key)?;
        self.left(&key, &item);
        Some(item)
    }

    /// Takes off the way every entry `choose` picks, on behalf of the mutation `by`.
    pub(super) fn discard_where(
        &self,
        by: Generation,
        choose: impl Fn(&Key, &Item) -> bool,
    ) -> Vec<(Key, Item)> {
        let mut gone = Vec::new();
        for shard in &self.shards {
            let mut shard = lock(shard);
            gone.extend(shard.extract_if(|key, item| item.entry.generation < by && choose(key, item)));
        }
        for (key, item) in &gone {
            self.left(key, item);
        }
        gone
    }

    /// Marks the entry as being written and changes where it goes.
    pub(super) fn mark(&self, key: KeyRef<'_>, generation: Generation, to: Level, writing: bool) {
        let mut shard = self.shard(key.hash64());
        if let Some(item) = shard.get_mut(&key).filter(|item| item.entry.generation == generation) {
            item.to = to;
            item.writing = writing;
        }
    }

    /// Queues an entry that is still on its way once more.
    pub(super) fn requeue(&self, key: Key, generation: Generation, to: Level) {
        let lane = &self.lanes[to.index()];
        let crowded = {
            let mut queue = lock(&lane.queue);
            queue.push_back((key, generation));
            queue.len() > 2 * self.len() + 1024
        };
        lane.work.notify_one();
        // What was taken off the way leaves its place in the queue behind; many such places are swept out.
        if crowded {
            let queued = std::mem::take(&mut *lock(&lane.queue));
            let still_waits = |(key, generation): &(Key, Generation)| {
                self.shard(key.hash64()).get(key).is_some_and(|item| item.entry.generation == *generation)
            };
            let mut waiting: VecDeque<_> = queued.into_iter().filter(still_waits).collect();
            let mut queue = lock(&lane.queue);
            waiting.append(&mut queue);
            *queue = waiting;
        }
    }

    /// The next entry that waits to go to `to`, if any.
    pub(super) fn next(&self, to: Level) -> Option<(Key, Generation)> {
        lock(&self.lanes[to.index()].queue).pop_front()
    }

    /// Waits until something may have been queued for `to`.
    pub(super) async fn work(&self, to: Level) {
        self.lanes[to.index()].work.notified().await;
    }

    /// Wakes another of those who write to `to`: there is more than one can do.
    pub(super) fn hand_on(&self, to: Level) {
        if !lock(&self.lanes[to.index()].queue).is_empty() {
            self.lanes[to.index()].work.notify_one();
        }
    }

    /// Calls `see` with every entry on its way.
    pub(super) fn each(&self, mut see: impl FnMut(&Key, &Item)) {
        for shard in &self.shards {
            lock(shard).iter().for_each(|(key, item)| see(key, item));
        }
    }

    /// Drops the oldest of a lane until there is room. What is being written stays.
    fn overflow(&self, to: Level) -> Vec<(Key, Item)> {
        let mut dropped = Vec::new();
        let mut kept = Vec::new();
        while self.bytes.load(Ordering::Relaxed) > self.limit() {
            let Some((key, generation)) = self.next(to) else { break };
            let mut shard = self.shard(key.hash64());
            match shard.get(&key) {
                Some(item) if item.entry.generation != generation => {}
                Some(item) if item.writing => kept.push((key, generation)),
                Some(_) => {
                    if let Some((key, item)) = shard.remove_entry(&key) {
                        self.left(&key, &item);
                        dropped.push((key, item));
                    }
                }
                None => {}
            }
        }
        lock(&self.lanes[to.index()].queue).extend(kept);
        dropped
    }

    fn left(&self, key: &Key, item: &Item) {
        self.bytes.fetch_sub(cost(key, &item.entry), Ordering::Relaxed);
        self.items.fetch_sub(1, Ordering::Release);
        self.room.notify_waiters();
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Waiting> {
        lock(&self.shards[(hash >> 40) as usize % SHARDS])
    }
}

fn cost(key: &Key, entry: &Entry) -> u64 {
    OVERHEAD + (key.encoded().len() + entry.value.len()) as u64
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
