//! What came of an operation, held against the model.

use std::time::Duration;

use tiercache_core::{Clock, Key};

use super::counts::Made;
use super::judge::{Judge, Moment, Seen};
use super::operations::{Only, Operation, Outcome, number, perform};
use super::store::Fate;
use super::{History, KEYS, Running};

impl History {
    /// Lets everything end, and looks at what is left.
    pub(super) async fn finish(&mut self) -> Result<(), String> {
        self.note("the end".to_string());
        self.be_away(false);
        self.gates.answer_at_once(true);
        for round in 0.. {
            while self.gates.waiting() > 0 {
                self.gates.release(0, Fate::Go);
                self.quiesce().await?;
            }
            if self.running.is_empty() && round > 0 {
                break;
            }
            if round > 50 {
                return Err(format!("operations never end: {:?}", self.running.keys()));
            }
            // Long enough for whatever hangs to be given up, and for a breaker to let a probe through.
            tokio::time::sleep(Duration::from_secs(30)).await;
            self.clock.advance(Duration::from_secs(5));
            self.quiesce().await?;
        }
        for round in 0.. {
            self.start(Operation::Settle);
            self.quiesce().await?;
            for _ in 0..20 {
                while self.gates.waiting() > 0 {
                    self.gates.release(0, Fate::Go);
                }
                // Two steps must fit in the deadline of an operation.
                tokio::time::sleep(Duration::from_secs(3)).await;
                self.quiesce().await?;
                if self.gates.waiting() == 0 && self.running.is_empty() {
                    break;
                }
            }
            if !self.running.is_empty() {
                return Err("settling never ends".to_string());
            }
            self.clock.advance(Duration::from_secs(5));
            let stats = self.manager.stats().await.map_err(|error| error.to_string())?;
            if stats.in_flight == 0 && stats.pending.0 == 0 {
                break;
            }
            if round > 20 {
                return Err(format!(
                    "{} in flight, {:?} on the way in the end",
                    stats.in_flight, stats.pending
                ));
            }
        }
        self.moment += 1;
        self.judge.settle(self.moment);
        self.counts.settle(self.moment, false);
        for key in 0..KEYS as u8 {
            let value = match self.last(Operation::Get(key)).await {
                Outcome::Value(value, _) => value,
                outcome => return Err(format!("the last get of {key} ended with {outcome:?}")),
            };
            // A clearing that the store has not seen yet is tried again until it has.
            let mut sum = self.last(Operation::Counter(key)).await;
            for _ in 0..10 {
                if matches!(sum, Outcome::Sum(_)) {
                    break;
                }
                self.clock.advance(Duration::from_secs(5));
                for _ in 0..100 {
                    while self.gates.waiting() > 0 {
                        self.gates.release(0, Fate::Go);
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                sum = self.last(Operation::Counter(key)).await;
            }
            let Outcome::Sum(sum) = sum else {
                return Err(format!("the last look at counter {key} ended with {sum:?}"));
            };
            let sum = sum.unwrap_or(0);
            self.note(format!("counter {key} in the end: {sum:#b}"));
            self.counts.judge(key, sum, self.moment + 1, self.moment + 2)?;
            self.moment += 2;
            self.note(format!("the last get of {key}: {value:?}"));
            let (begun, clock) = (self.moment, self.clock.now().as_millis());
            self.moment += 1;
            if let Some(value) = value {
                let seen = Seen {
                    key,
                    value,
                    generation: None,
                    begun,
                    ended: self.moment,
                    clock,
                    stale: false,
                    life: self.lives,
                };
                self.judge.judge(seen)?;
            } else if let Some(value) = self.judge.last_value(key, clock, self.lossy_at) {
                return Err(format!("value {value} of key {key} is lost, though nothing could lose it"));
            }
        }
        Ok(())
    }

    /// An operation that nothing keeps from its end.
    pub(super) async fn last(&mut self, what: Operation) -> Outcome {
        let manager = self.manager.clone();
        let origin = self.origin.clone();
        let mut last = tokio::spawn(async move { perform(&manager, &origin, what).await });
        loop {
            tokio::select! {
                biased;
                outcome = &mut last => return outcome.unwrap_or_else(|error| Outcome::Failed(error.to_string())),
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
            }
            while self.gates.waiting() > 0 {
                self.gates.release(0, Fate::Go);
            }
        }
    }

    /// Nothing that was loaded before another process changed a key, or was set or loaded before it invalidated a tag,
    /// stands where that process would find it. A level that fails when it is asked to remove what is older is not known to have nothing newer.
    pub(super) fn judge_store(&self) -> Result<(), String> {
        if self.setup.faults {
            return Ok(());
        }
        for key in 0..KEYS as u8 {
            let name = Key::new("", format!("key-{key}").as_bytes()).expect("a key");
            let Some(value) = self.store.value(&name).map(|value| number(&value)) else { continue };
            if let Some((tag, killed)) = self.killed_after(value, Moment::MAX) {
                return Err(format!(
                    "value {value} of key {key} stands, though its tag {tag} went at {killed}"
                ));
            }
        }
        for &(key, changed) in &self.elsewhere {
            let name = Key::new("", format!("key-{key}").as_bytes()).expect("a key");
            let Some(value) = self.store.value(&name) else { continue };
            let before = |asked: &Moment| *asked < changed && !self.judge.touched_since(key, *asked);
            if self.origin.asked(number(&value)).as_ref().is_some_and(before) {
                let value = number(&value);
                return Err(format!(
                    "value {value} of key {key}, loaded before {changed}, stands over what came then"
                ));
            }
        }
        Ok(())
    }

    /// The invalidation by another process, before that moment, of what was written or loaded before it.
    fn killed_after(&self, value: u64, until: Moment) -> Option<(u8, Moment)> {
        let written = self.judge.written(value)?;
        let loaded = self.origin.asked(value);
        let before = |killed| {
            loaded.is_some_and(|asked| asked < killed) || written.ended.is_some_and(|ended| ended < killed)
        };
        let mut kills = self.killed.iter().filter(|(tag, _)| written.tag == Some(*tag));
        kills.find(|&&(_, killed)| killed < until && before(killed)).copied()
    }

    /// A listing tells keys that may have had a value, and all that had one from its beginning to its end. Once, but
    /// for what sank from one level below RAM to the other.
    fn judge_keys(&self, listing: &Running, now: Moment, listed: &[u8]) -> Result<(), String> {
        for key in 0..KEYS as u8 {
            let times = listed.iter().filter(|told| **told == key).count();
            if times > 1 && self.setup.beside.is_none() {
                return Err(format!("key {key} was listed {times} times"));
            }
            let seen = Seen {
                key,
                value: 0,
                generation: None,
                begun: listing.begun,
                ended: now,
                clock: listing.clock,
                stale: false,
                life: self.lives,
            };
            if times > 0 {
                self.judge.some(seen)?;
                continue;
            }
            if let Some(value) = self.stood_throughout(listing, key) {
                return Err(format!("key {key} was not listed, though it had value {value} all the time"));
            }
        }
        Ok(())
    }

    /// The value that a key had from the beginning of an operation to now, but for what that did.
    fn stood_throughout(&self, during: &Running, key: u8) -> Option<u64> {
        let flushing = self.running.values().any(|running| matches!(running.what, Operation::Flush(_)));
        let clock = self.clock.now().as_millis();
        let value = self.judge.last_value_but(key, clock, self.lossy_at, during.begun);
        value.filter(|_| !flushing).filter(|value| {
            let written = self.judge.written(*value);
            written.is_some_and(|written| written.ended.is_some_and(|ended| ended < during.begun))
        })
    }

    pub(super) fn judge_outcome(&mut self, running: Running, outcome: Outcome) -> Result<(), String> {
        let now = self.moment;
        let seen = |key, value, generation, life| Seen {
            key,
            value,
            generation,
            begun: running.begun,
            ended: now,
            clock: running.clock,
            stale: false,
            life,
        };
        // What was noted binds the processes to come as well.
        let journalled = self.setup.beside.is_some() && self.manager.unnoted() == 0;
        let mut end = |certain: bool, degraded: bool| {
            let degraded = degraded && !journalled;
            for number in &running.mutation {
                let mutation = self.judge.mutation(*number);
                (mutation.ended, mutation.certain, mutation.degraded) = (Some(now), certain, degraded);
            }
        };
        match (running.what, &outcome) {
            (Operation::Clear, Outcome::Removed { degraded: false })
            | (Operation::Flush(_), Outcome::Nothing) => {
                self.counts.dropped(running.begun, now, true);
            }
            (Operation::RemoveCounter(_), Outcome::Nothing) => self.counts.dropped(running.begun, now, true),
            (Operation::RemoveCounter(_), Outcome::Failed(_) | Outcome::Uncertain) => {
                self.counts.dropped(running.begun, now, false);
            }
            _ => {}
        }
        match (running.what, outcome) {
            (Operation::Transact { keys, .. }, Outcome::Transacted(saw)) => {
                for (key, value) in keys.into_iter().zip(saw) {
                    if let Some(value) = value {
                        self.judge.judge(seen(key, value, None, self.lives))?;
                        if let Some((tag, killed)) = self.killed_after(value, running.begun) {
                            return Err(format!(
                                "a transaction saw value {value} of key {key}, whose tag {tag} went at {killed}"
                            ));
                        }
                    }
                }
                end_all(&mut self.judge, &running, now, true);
            }
            (Operation::Transact { .. }, Outcome::GaveUp | Outcome::Failed(_)) => {
                end_all(&mut self.judge, &running, now, false);
                running.mutation.iter().for_each(|number| self.judge.mutation(*number).failed = true);
            }
            (Operation::Add { key, bit, .. }, Outcome::Sum(sum)) => {
                let sum = sum.filter(|sum| sum & (1 << bit) != 0);
                let sum = sum.ok_or_else(|| format!("addition {bit} to {key} is not in its own sum"))?;
                self.counts.added(key, bit, now, Made::Certainly);
                self.counts.judge(key, sum, running.begun, now)?;
            }
            (Operation::Add { key, bit, .. }, Outcome::Uncertain) => {
                self.counts.added(key, bit, now, Made::Perhaps);
            }
            (Operation::Add { key, bit, .. }, Outcome::Failed(_)) => {
                self.counts.added(key, bit, now, Made::Never);
            }
            (Operation::Counter(key), Outcome::Sum(sum)) => {
                self.counts.judge(key, sum.unwrap_or(0), running.begun, now)?;
            }
            (
                Operation::Get(key) | Operation::Entry(key) | Operation::LoadNothing(key),
                Outcome::Value(value, generation),
            ) => {
                self.tally.reads += 1;
                if let Some(value) = value {
                    self.tally.hits += 1;
                    self.judge.judge(seen(key, value, generation, self.lives))?;
                    if let Some(generation) = generation {
                        self.known.insert(key, (value, generation));
                    }
                }
            }
            (Operation::Compare { key, with, .. }, Outcome::Wrote { stored: true, degraded }) => {
                end(true, degraded);
                // What it took the place of was there.
                self.judge.judge(seen(key, with, None, self.lives))?;
                if !degraded {
                    self.judge.pop(with)?;
                }
            }
            (
                Operation::Set { key, value, only: Only::Present, .. },
                Outcome::Wrote { stored: true, degraded },
            ) => {
                end(true, degraded);
                self.judge.some(seen(key, value, None, self.lives))?;
            }
            (Operation::GetAndTouch { key, ttl }, Outcome::Value(value, _)) => {
                end(true, false);
                let deadline = self.clock.now().as_millis() + ttl * 1_000;
                running.mutation.iter().for_each(|number| self.judge.mutation(*number).deadline = deadline);
                if let Some(value) = value {
                    self.judge.judge(seen(key, value, None, self.lives))?;
                }
            }
            (Operation::Load { key, .. }, Outcome::Served { value, stale }) => {
                self.tally.reads += 1;
                self.judge.judge(Seen { stale, ..seen(key, value, None, self.lives) })?;
            }
            (Operation::GetMany(keys) | Operation::LoadMany { keys, .. }, Outcome::Values(values)) => {
                for (key, value) in keys.into_iter().zip(values) {
                    self.tally.reads += 1;
                    if let Some(value) = value {
                        self.tally.hits += 1;
                        self.judge.judge(seen(key, value, None, self.lives))?;
                    }
                }
            }
            (Operation::Keys, Outcome::Keys(listed)) => self.judge_keys(&running, now, &listed)?,
            (Operation::Purge, Outcome::Purged { degraded }) => {
                let stood = (0..KEYS as u8).map(|key| self.stood_throughout(&running, key).is_some());
                for (number, stood) in running.mutation.iter().zip(stood.collect::<Vec<_>>()) {
                    let mutation = self.judge.mutation(*number);
                    (mutation.ended, mutation.certain, mutation.degraded) =
                        (Some(now), stood, degraded && !journalled);
                }
            }
            (Operation::SetMany(_), Outcome::WroteEach(written)) => {
                for (number, written) in running.mutation.iter().zip(written) {
                    let mutation = self.judge.mutation(*number);
                    mutation.failed = written.is_none();
                    if mutation.ended.is_none() {
                        let (stored, degraded) = written.unwrap_or((true, true));
                        (mutation.ended, mutation.certain, mutation.degraded) = (Some(now), stored, degraded);
                    }
                }
            }
            (Operation::DeleteMany(_), Outcome::RemovedEach(degraded)) => {
                for (number, degraded) in running.mutation.iter().zip(degraded) {
                    let mutation = self.judge.mutation(*number);
                    (mutation.ended, mutation.certain, mutation.degraded) = (Some(now), true, degraded);
                }
            }
            (_, Outcome::Wrote { stored, degraded }) => end(stored, degraded),
            (_, Outcome::Removed { degraded }) => end(true, degraded),
            (Operation::Pop(key), Outcome::Popped { value, degraded }) => {
                end(value.is_some(), degraded);
                if let Some(value) = value {
                    // Taken out for good only if every level was reached.
                    if !degraded {
                        self.judge.pop(value)?;
                        if self.taken.contains(&value) {
                            return Err(format!(
                                "value {value} was popped, and another process had taken it"
                            ));
                        }
                    }
                    self.judge.judge(seen(key, value, None, self.lives))?;
                }
            }
            (Operation::Touch { ttl: Some(ttl), .. }, Outcome::Touched { degraded, .. }) => {
                end(true, degraded);
                let deadline = self.clock.now().as_millis() + ttl * 1_000;
                running.mutation.iter().for_each(|number| self.judge.mutation(*number).deadline = deadline);
            }
            (Operation::Flush(_), Outcome::Nothing) => self.lossy_at = self.lossy_at.max(now),
            (_, Outcome::Touched { degraded, .. }) => end(true, degraded),
            (_, Outcome::Nothing) => end(true, false),
            // Nobody has the value, or nobody knows: either way what was there before is gone for this process.
            (Operation::Set { .. } | Operation::Compare { .. }, Outcome::Failed(_)) => {
                end(true, true);
                running.mutation.iter().for_each(|number| self.judge.mutation(*number).failed = true);
            }
            // It may have had any part of its effect, and will have no more.
            (_, Outcome::Failed(_) | Outcome::Uncertain) => end(false, true),
            (what, outcome) => return Err(format!("{what:?} ended with {outcome:?}")),
        }
        Ok(())
    }
}

/// Ends all that an operation began.
pub(super) fn end_all(judge: &mut Judge, running: &Running, now: Moment, certain: bool) {
    for number in &running.mutation {
        let mutation = judge.mutation(*number);
        (mutation.ended, mutation.certain) = (Some(now), certain);
    }
}
