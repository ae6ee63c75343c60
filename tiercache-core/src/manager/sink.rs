//! The way down, and the sweeps: background work, owned by the manager.
//!
//! An entry that a level gives up is handed to the way down before the level stops answering for it. Then, for one
//! entry at a time per worker:
//! 1. Under the stripe: it is still the newest on its way, alive, and nobody writes it. A level in RAM takes it
//!    here and now; it leaves the way down in the same breath.
//! 2. For any other level a flight is registered and the entry marked as being written, with a permit that a
//!    mutation of the key withdraws.
//! 3. The level commits the write while the permit holds. If a mutation came meanwhile, the write is undone.
//! 4. Under the stripe: it leaves the way down. A level that refuses it is passed over; one that fails is tried
//!    again while the entry waits where every read finds it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Shared;
use super::below::Writing;
use super::counters::Count;
use super::flow::Chute;
use super::pending::Item;
use super::slot::Slot;
use crate::bugs::seeded;
use crate::tier::{Hold, Put, Swept};
use crate::{Error, Generation, Key, Level, Result};

/// Writers per level outside RAM.
const WRITERS: usize = 4;
/// How often tracking is told.
const TRACKING_EVERY: Duration = Duration::from_millis(200);

/// What an attempt to sink came to.
enum Attempt {
    /// It is off the way, or not ours.
    Over,
    /// The level failed; it waits for another attempt.
    Failed,
}

impl Shared {
    /// Starts everything that runs on its own until `stop` says so.
    pub(super) fn start(self: &Arc<Self>, stop: &watch::Receiver<bool>) {
        for slot in self.slots() {
            let workers = if slot.resident().is_some() { 1 } else { WRITERS };
            for _ in 0..workers {
                let (shared, level) = (self.clone(), slot.level);
                self.run(stop, async move { shared.sink_for_ever(level).await });
            }
        }
        let shared = self.clone();
        self.run(stop, async move {
            let mut period = shared.sweep_every.subscribe();
            loop {
                let mut every = tokio::time::interval(*period.borrow_and_update());
                every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                while !period.has_changed().unwrap_or(false) {
                    tokio::select! {
                        _ = period.changed() => break,
                        _ = every.tick() => {
                            shared.sweep().await;
                        }
                    }
                }
            }
        });
        if self.flow.recorder.is_enabled() {
            let shared = self.clone();
            self.run(stop, async move {
                let recorder = &shared.flow.recorder;
                loop {
                    let _ = tokio::time::timeout(TRACKING_EVERY, recorder.hurry.notified()).await;
                    // A store that fails has said so in the log; what it did not take is kept.
                    if recorder.flush(shared.flow.now(), &shared.flow.counters).await.is_err() {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            });
        }
    }

    pub(super) fn run(&self, stop: &watch::Receiver<bool>, work: impl Future<Output = ()> + Send + 'static) {
        let mut stop = stop.clone();
        self.runtime.spawn(async move {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => {}
                () = work => {}
            }
        });
    }

    /// The way down from `level`, which its tier spills into.
    pub(super) fn chute(&self, level: Level) -> Chute {
        let below = self.slots().filter(|slot| slot.level > level);
        Chute {
            flow: self.flow.clone(),
            from: level,
            below: below.map(|slot| (slot.level, slot.tier.clone())).collect(),
        }
    }

    async fn sink_for_ever(self: Arc<Self>, to: Level) {
        let mut failures = 0u32;
        loop {
            let Some((key, generation)) = self.flow.pending.next(to) else {
                self.flow.pending.work(to).await;
                continue;
            };
            self.flow.pending.hand_on(to);
            match self.sink(&key, generation, to).await {
                Attempt::Over => failures = 0,
                Attempt::Failed => {
                    self.flow.pending.requeue(key, generation, to);
                    failures = (failures + 1).min(6);
                    tokio::time::sleep(Duration::from_millis(25 << failures)).await;
                }
            }
            // Levels that answer at once would keep this task running for ever otherwise.
            tokio::task::consume_budget().await;
        }
    }

    /// Sinks one entry that waits to go to `to`.
    async fn sink(self: &Arc<Self>, key: &Key, generation: Generation, to: Level) -> Attempt {
        let Some(slot) = self.slot(to) else { return Attempt::Over };
        let hash = key.hash64();
        let (item, writing) = {
            let mut stripe = self.stripes.lock(hash);
            let Some(item) = self.flow.pending.get(key.as_ref()) else { return Attempt::Over };
            if item.entry.generation != generation || item.writing || item.to != to {
                return Attempt::Over;
            }
            let now = self.flow.now();
            // Below the floor it is being replaced by a mutation that has looked for copies below already.
            let replaced = stripe.floor(hash) > generation && !seeded("sink-below-floor");
            if replaced || self.flow.is_dead(key.as_ref(), &item.entry, now) {
                self.leave(key, &item, None);
                return Attempt::Over;
            }
            if let Some(resident) = slot.resident() {
                match resident.insert(key.clone(), item.entry.clone(), self.hold_below(slot, &item)) {
                    Put::Stored | Put::Unchanged => self.leave(key, &item, Some(to)),
                    Put::Superseded => self.leave(key, &item, None),
                    Put::TooLarge | Put::Full => self.pass_over(key, &item, to),
                }
                return Attempt::Over;
            }
            if slot.index().and_then(|index| index.holds(key.as_ref())) == Some(generation) {
                self.leave(key, &item, Some(to));
                return Attempt::Over;
            }
            self.flow.pending.mark(key.as_ref(), generation, to, true);
            let writing = Writing::begin(self.clone(), &mut stripe, key, &item.entry, to);
            (item, writing)
        };
        let result = self.write_below(slot, &writing, self.flow.now()).await;
        let stripe = self.stripes.lock(hash);
        self.flow.pending.mark(key.as_ref(), generation, to, false);
        let attempt = match result {
            Ok(Put::Stored | Put::Unchanged) => {
                self.leave(key, &item, Some(to));
                Attempt::Over
            }
            Ok(Put::Superseded) => {
                self.leave(key, &item, None);
                Attempt::Over
            }
            Ok(Put::TooLarge | Put::Full) => {
                self.pass_over(key, &item, to);
                Attempt::Over
            }
            Err(_) => Attempt::Failed,
        };
        drop(stripe);
        drop(writing);
        attempt
    }

    fn hold_below(&self, slot: &Slot, item: &Item) -> Hold {
        let last = self.is_last(slot.level, item.entry.levels);
        self.flow.hold(slot.level, &item.entry, last, self.flow.now())
    }

    /// Takes an entry off the way: it has arrived at `at`, or is nowhere.
    fn leave(&self, key: &Key, item: &Item, at: Option<Level>) {
        let in_ram = at.and_then(|level| self.slot(level)).is_some_and(|slot| slot.resident().is_some());
        let taken = if in_ram {
            self.flow.pending.take_unless_returned(key.as_ref(), item)
        } else {
            self.flow.pending.take(key.as_ref(), item.entry.generation)
        };
        if taken.is_none() {
            return;
        }
        self.flow.counters.count(if at.is_some() { Count::Sunk } else { Count::Faded });
        // A copy that went down while the entry stays above does not move it.
        let stays_above = self.slot(item.from).and_then(Slot::resident).is_some_and(|resident| {
            resident.peek(key.as_ref()).is_some_and(|there| there.entry.generation == item.entry.generation)
        });
        if !stays_above {
            self.flow.recorder.moved(self.flow.now(), key, item.entry.generation, at);
        }
    }

    /// Sends an entry on to the level below one that does not take it.
    fn pass_over(&self, key: &Key, item: &Item, refused: Level) {
        let next = self
            .slots()
            .find(|slot| slot.level > refused && item.entry.levels.contains(slot.level))
            .map(|slot| slot.level);
        match next {
            Some(next) => {
                self.flow.pending.mark(key.as_ref(), item.entry.generation, next, false);
                self.flow.pending.requeue(key.clone(), item.entry.generation, next);
            }
            None => self.leave(key, item, None),
        }
    }

    /// One round of sweeping at every level, and of forgetting fences that nothing can be hit by any more.
    /// What each level's did, `None` where it failed.
    pub(super) async fn sweep(&self) -> [Option<Swept>; 3] {
        let flow = &self.flow;
        let began = flow.generation();
        let mut swept = [None; 3];
        for slot in self.slots().filter(|slot| !slot.is_away()) {
            let now = flow.now();
            let sweep = slot.tier.sweep(now, &*flow.fences);
            match slot.call("sweep", slot.limits().write_timeout.max(Duration::from_secs(60)), sweep).await {
                Ok(done) => swept[slot.level.index()] = Some(done),
                // The cache was closed since the sweep began: there is nothing to tell anybody.
                Err(Error::Closed) => {}
                Err(error) => tracing::warn!(level = %slot.level, %error, "sweep failed"),
            }
        }
        let whole = |level: Level| swept[level.index()].is_some_and(|swept: Swept| swept.complete);
        let complete = self.slots().all(|slot| slot.resident().is_none() || whole(slot.level));
        if complete && flow.fences.len() > 0 {
            self.forget_fences(began);
        }
        swept
    }

    /// Forgets fences from before `began`, when RAM was swept since, as far as no operation in flight, nothing on
    /// the way and no durable level may still hold what they killed.
    fn forget_fences(&self, began: Generation) {
        let mut below = began;
        if seeded("fences-forgotten-early") {
            return self.flow.fences.forget(below, &|_| false);
        }
        self.flow.pending.each(|_, item| below = below.min(item.entry.generation));
        if let Some(oldest) = self.stripes.oldest_flight() {
            below = below.min(oldest);
        }
        if self.invalidating.load(std::sync::atomic::Ordering::Acquire) > 0 {
            return;
        }
        let mut remembered = HashSet::new();
        for slot in self.lower_slots() {
            match slot.tier.fences() {
                Some(fences) => remembered.extend(fences.remembered().into_iter().map(|(scope, _)| scope)),
                // It cannot tell, so whatever it may hold stays fenced.
                None => return,
            }
        }
        self.flow.fences.forget(below, &|scope| remembered.contains(scope));
    }

    /// Sinks what waits, here and now, until nothing does or what is left cannot be sunk.
    pub(super) async fn settle(self: &Arc<Self>) {
        loop {
            let mut progress = false;
            for level in Level::ALL {
                let mut attempts = self.flow.pending.len() + 1;
                while attempts > 0
                    && let Some((key, generation)) = self.flow.pending.next(level)
                {
                    attempts -= 1;
                    match self.sink(&key, generation, level).await {
                        Attempt::Over => progress = true,
                        Attempt::Failed => self.flow.pending.requeue(key, generation, level),
                    }
                }
            }
            if !progress {
                return;
            }
        }
    }
}

/// What [`CacheManager::prune_within`](super::CacheManager::prune_within) did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pruned {
    /// Entries that were dead.
    pub dropped: u64,
    /// Entries that had stayed their time and began to sink.
    pub sinking: u64,
    /// Whether every level was looked at as a whole.
    pub complete: bool,
}

impl super::CacheManager {
    /// Sweeps every level now instead of when it is due: what is dead goes, what has stayed its time sinks.
    /// Returns how many entries were dropped and how many began to sink. Goes on until every level was looked at as a
    /// whole, ten minutes at most: [`prune_within`](Self::prune_within).
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed).
    pub async fn prune(&self) -> Result<(u64, u64)> {
        let pruned = self.prune_within(Duration::from_secs(600), |_| ()).await?;
        Ok((pruned.dropped, pruned.sinking))
    }

    /// [`prune`](Self::prune) for as long as `limit`, and a little longer: a level is not interrupted while it sweeps.
    /// `progress` is told after every round what was done so far.
    ///
    /// A level that sweeps a part at a time is asked until it has come to its end twice, since it may have gone on in
    /// the middle; one that fails is not asked again. Dropping the future stops between two rounds or within one, and
    /// leaves what was done as it is.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed), also when the cache is closed meanwhile.
    pub async fn prune_within(&self, limit: Duration, mut progress: impl FnMut(&Pruned)) -> Result<Pruned> {
        let shared = &self.shared;
        let began = tokio::time::Instant::now();
        let mut pruned = Pruned::default();
        // How often each level has come to its end; and those that failed.
        let (mut ends, mut failed) = ([0; 3], [false; 3]);
        loop {
            shared.check_open()?;
            let swept = shared.sweep().await;
            for slot in shared.slots() {
                let at = slot.level.index();
                match swept[at] {
                    Some(Swept { dropped, spilled, complete }) => {
                        pruned.dropped += dropped;
                        pruned.sinking += spilled;
                        ends[at] += u32::from(complete);
                    }
                    None => failed[at] = true,
                }
            }
            let done = |level: Level| failed[level.index()] || ends[level.index()] >= 2;
            let over = shared.slots().all(|slot| done(slot.level));
            pruned.complete = over && !failed.contains(&true);
            progress(&pruned);
            if over || began.elapsed() >= limit {
                return Ok(pruned);
            }
            // Levels that answer at once would keep this task running for long otherwise.
            tokio::task::consume_budget().await;
        }
    }

    /// Waits until everything on its way down has arrived, as far as it can, to stay if the process is killed, and
    /// tracking was told of all that happened before the call.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed), or what the tracking store said.
    pub async fn settle(&self) -> Result<()> {
        self.shared.check_open()?;
        self.shared.settle().await;
        while !self.shared.flow.pending.is_empty() {
            // Workers hold the rest. One that fails again and again is not waited for.
            let left = self.shared.flow.pending.room.notified();
            if self.shared.flow.pending.is_empty() || self.shared.lower_slots().any(Slot::is_open) {
                break;
            }
            let _ = tokio::time::timeout(Duration::from_millis(50), left).await;
            self.shared.settle().await;
        }
        for slot in self.shared.lower_slots().filter(|slot| slot.profile.persistent) {
            // Trouble is logged, and what it leaves behind is as if it had not arrived.
            let _ = slot.call("sync", slot.limits().write_timeout, slot.tier.sync()).await;
        }
        self.shared.flow.recorder.flush(self.shared.flow.now(), &self.shared.flow.counters).await
    }
}
