//! What a history does: its alphabet, how an operation is drawn and how it is carried out.

use std::sync::Arc;
use std::time::Duration;

use tiercache_core::tracking::Query;
use tiercache_core::{
    CacheManager, Clock, Eager, Entry, Error, Generation, Level, LoadOptions, Restored, Retune, Timestamp,
    Written,
};

use super::judge::{Kind, Moment, Mutation};
use super::origin::{Origin, WINDOW};
use super::{BATCH, History, KEYS, Running, TERM};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Get(u8),
    Entry(u8),
    Contains(u8),
    Set {
        key: u8,
        value: u64,
        ttl: Option<u64>,
        tag: Option<u8>,
        only: Only,
        restored: Option<u64>,
    },
    /// Sets the value in place of one that was read before.
    Compare {
        key: u8,
        value: u64,
        with: u64,
        generation: u64,
    },
    Touch {
        key: u8,
        ttl: Option<u64>,
    },
    GetAndTouch {
        key: u8,
        ttl: u64,
    },
    Load {
        key: u8,
        value: u64,
        ttl: Option<u64>,
        tag: Option<u8>,
        stale: bool,
        refresh: bool,
        lease: bool,
    },
    /// Loads, and finds that there is nothing.
    LoadNothing(u8),
    /// Loads that are asked for one by one and made together.
    LoadMany {
        keys: [u8; BATCH],
        values: [u64; BATCH],
        ttl: Option<u64>,
        refresh: bool,
    },
    GetMany([u8; BATCH]),
    SetMany([(u8, u64); BATCH]),
    DeleteMany([u8; BATCH]),
    Delete(u8),
    Pop(u8),
    InvalidateTag(u8),
    ExpireTag(u8),
    Clear,
    Flush(Level),
    Settle,
    Prune,
    Add {
        key: u8,
        bit: u8,
        ttl: Option<u64>,
    },
    Counter(u8),
    RemoveCounter(u8),
    /// Lists all keys, from the levels: nothing tracks them.
    Keys,
    Purge,
    /// Sets two keys, or sets one and removes the other; or gives up at the end.
    Transact {
        keys: [u8; 2],
        values: [u64; 2],
        remove: bool,
        give_up: bool,
    },
    /// Hot gets another size.
    Resize(u64),
}

/// The condition of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Only {
    Always,
    Absent,
    Present,
}

#[derive(Debug)]
pub(super) enum Outcome {
    Value(Option<u64>, Option<u64>),
    Served {
        value: u64,
        stale: bool,
    },
    Values(Vec<Option<u64>>),
    /// Of each whether it was stored and whether a level lagged, unless it failed.
    WroteEach(Vec<Option<(bool, bool)>>),
    /// Of each whether a level lagged.
    RemovedEach(Vec<bool>),
    Wrote {
        stored: bool,
        degraded: bool,
    },
    Removed {
        degraded: bool,
    },
    Popped {
        value: Option<u64>,
        degraded: bool,
    },
    Touched {
        #[expect(dead_code, reason = "printed in the log")]
        found: bool,
        degraded: bool,
    },
    Nothing,
    Sum(Option<i64>),
    Keys(Vec<u8>),
    Purged {
        degraded: bool,
    },
    Transacted([Option<u64>; 2]),
    GaveUp,
    /// What failed may have happened.
    Uncertain,
    Failed(#[expect(dead_code, reason = "printed in the log")] String),
}

impl History {
    /// Begins an operation as a task of its own.
    pub(super) fn start(&mut self, what: Operation) {
        self.moment += 1;
        self.tally.operations += 1;
        let (number, clock) = (self.moment, self.clock.now().as_millis());
        self.note(format!("{number}: {what:?} begins"));
        let until = |ttl: Option<u64>| ttl.map_or(u64::MAX, |ttl| clock + ttl * 1_000);
        let mutate = |key, kind, tag, deadline| Mutation {
            key,
            kind,
            tag,
            deadline,
            stale: 0,
            begun: number,
            ended: None,
            certain: false,
            failed: false,
            degraded: false,
            life: self.lives,
        };
        let everywhere = |kind| (0..KEYS as u8).map(|key| mutate(key, kind, None, u64::MAX)).collect();
        let mutations: Vec<Mutation> = match what {
            Operation::Set { key, value, ttl, tag, .. } => {
                vec![mutate(key, Kind::Write(value), tag, until(ttl))]
            }
            // Its deadline counts from when it takes effect: until it ends, nobody knows which.
            Operation::Touch { key, .. } | Operation::GetAndTouch { key, .. } => {
                vec![mutate(key, Kind::Touch, None, u64::MAX)]
            }
            Operation::Compare { key, value, .. } => {
                vec![mutate(key, Kind::Write(value), None, u64::MAX)]
            }
            Operation::Delete(key) | Operation::Pop(key) => {
                vec![mutate(key, Kind::Remove(None), None, u64::MAX)]
            }
            Operation::DeleteMany(keys) => {
                keys.map(|key| mutate(key, Kind::Remove(None), None, u64::MAX)).into()
            }
            Operation::SetMany(pairs) => {
                let begin = |(at, &(key, value)): (usize, &(u8, u64))| {
                    let begun = number + at as u64;
                    let mutation = Mutation { begun, ..mutate(key, Kind::Write(value), None, u64::MAX) };
                    // Of a key that is named twice the later value comes last, from the beginning on.
                    let replaced = pairs[at + 1..].iter().any(|(later, _)| *later == key);
                    Mutation { ended: replaced.then_some(begun), ..mutation }
                };
                self.moment += BATCH as u64;
                pairs.iter().enumerate().map(begin).collect()
            }
            Operation::Transact { keys: [a, b], values, remove, .. } => {
                let other = if remove { Kind::Remove(None) } else { Kind::Write(values[1]) };
                vec![mutate(a, Kind::Write(values[0]), None, u64::MAX), mutate(b, other, None, u64::MAX)]
            }
            Operation::InvalidateTag(tag) => everywhere(Kind::Remove(Some(tag))),
            Operation::ExpireTag(tag) => everywhere(Kind::Expire(tag)),
            Operation::Clear | Operation::Purge => everywhere(Kind::Remove(None)),
            _ => Vec::new(),
        };
        match what {
            Operation::Clear => self.counts.drops(None, number),
            Operation::Flush(level) if level == self.counts_at() => self.counts.drops(None, number),
            Operation::RemoveCounter(key) => self.counts.drops(Some(key), number),
            // One that begins with this dies some time.
            Operation::Add { key, ttl: Some(_), .. } => {
                self.counts.drops(Some(key), number);
                self.counts.dropped(number, Moment::MAX, false);
            }
            _ => {}
        }
        if let Operation::Load { value, lease: true, .. } = what {
            self.leased.insert(value, number);
        }
        let mutation = mutations.into_iter().map(|mutation| self.judge.begin(mutation)).collect();
        let (manager, done) = (self.manager.clone(), self.done.clone());
        let origin = self.origin.clone();
        let task = tokio::spawn(async move {
            let outcome = perform(&manager, &origin, what).await;
            // The history may be over.
            let _ = done.send((number, outcome));
        });
        let running = Running { what, task: task.abort_handle(), begun: number, clock, mutation };
        self.running.insert(number, running);
    }

    pub(super) fn operation(&mut self) -> Operation {
        let key = self.choices.below(KEYS) as u8;
        match self.choices.below(42) {
            24 => Operation::GetMany(self.batch()),
            25 | 26 => {
                let keys = self.batch();
                Operation::SetMany(keys.map(|key| {
                    self.values += 1;
                    (key, self.values)
                }))
            }
            27 => Operation::DeleteMany(self.batch()),
            33..=34 if self.setup.shared => {
                self.values += 2;
                let values = [self.values - 1, self.values];
                let keys = [key, (key + 1) % KEYS as u8];
                let (remove, give_up) = (self.choices.once_in(3), self.choices.once_in(4));
                Operation::Transact { keys, values, remove, give_up }
            }
            33..=34 => Operation::Get(key),
            35..=36 => {
                let ttl = [None, None, None, Some(5)][self.choices.below(4) as usize];
                match self.counts.add(key, self.moment + 1) {
                    Some(bit) => Operation::Add { key, bit, ttl },
                    None => Operation::Counter(key),
                }
            }
            37 => Operation::Counter(key),
            38 if self.choices.once_in(3) => Operation::RemoveCounter(key),
            38 => Operation::Counter(key),
            0..=5 => Operation::Get(key),
            6..=7 => Operation::Entry(key),
            8 => Operation::Contains(key),
            9..=15 => {
                self.values += 1;
                let ttl = [None, None, None, Some(2), Some(10)][self.choices.below(5) as usize];
                let tag = [None, None, Some(0), Some(1)][self.choices.below(4) as usize];
                let value = self.values;
                match (self.choices.below(10), self.known.get(&key)) {
                    (0, _) => Operation::Set { key, value, ttl, tag, only: Only::Absent, restored: None },
                    (1, _) => Operation::Set { key, value, ttl, tag, only: Only::Present, restored: None },
                    (2 | 3, Some(&(with, generation))) => Operation::Compare { key, value, with, generation },
                    _ => {
                        // As it came from elsewhere, with the deadline it had there.
                        let deadline =
                            || ttl.map_or(u64::MAX, |ttl| self.clock.now().as_millis() + ttl * 1_000);
                        let restored = self.choices.once_in(6).then(deadline);
                        Operation::Set { key, value, ttl, tag, only: Only::Always, restored }
                    }
                }
            }
            16 if self.choices.once_in(3) => Operation::GetAndTouch { key, ttl: 5 },
            16 => Operation::Touch { key, ttl: [None, Some(5)][self.choices.below(2) as usize] },
            17..=19 => Operation::Delete(key),
            20 => Operation::Pop(key),
            28..=32 => {
                self.values += 1;
                let ttl = [None, Some(2), Some(10)][self.choices.below(3) as usize];
                let tag = [None, None, Some(0), Some(1)][self.choices.below(4) as usize];
                let (stale, refresh) = (self.choices.once_in(2), self.choices.once_in(3));
                if self.choices.once_in(4) {
                    let keys = self.batch();
                    let values = std::array::from_fn(|at| self.values + at as u64);
                    self.values += BATCH as u64 - 1;
                    return Operation::LoadMany { keys, values, ttl, refresh };
                }
                if self.choices.once_in(6) {
                    return Operation::LoadNothing(key);
                }
                let lease = self.setup.shared && self.choices.once_in(2);
                Operation::Load { key, value: self.values, ttl, tag, stale, refresh, lease }
            }
            21 if self.choices.once_in(3) => Operation::ExpireTag(self.choices.below(2) as u8),
            21 => Operation::InvalidateTag(self.choices.below(2) as u8),
            22 => {
                let levels = self.levels();
                Operation::Flush(levels[self.choices.below(levels.len() as u32) as usize])
            }
            23 => Operation::Keys,
            41 => Operation::Purge,
            39 => Operation::Resize([200, 400, 800, 100_000][self.choices.below(4) as usize]),
            _ => Operation::Clear,
        }
    }

    pub(super) fn batch(&mut self) -> [u8; BATCH] {
        std::array::from_fn(|_| self.choices.below(KEYS) as u8)
    }
}

pub(super) async fn perform(manager: &CacheManager, origin: &Arc<Origin>, what: Operation) -> Outcome {
    let name = |key: u8| format!("key-{key}");
    let outcome = match what {
        Operation::Get(key) => {
            manager.get(name(key)).await.map(|value| Outcome::Value(value.map(|value| number(&value)), None))
        }
        Operation::Entry(key) => manager.entry(name(key)).await.map(|entry| {
            let generation = entry.as_ref().map(|entry| entry.generation.get());
            Outcome::Value(entry.map(|entry| number(&entry.value)), generation)
        }),
        Operation::GetMany(keys) => manager.get_many(&keys.map(name)).await.map(|values| {
            Outcome::Values(values.into_iter().map(|value| value.map(|value| number(&value))).collect())
        }),
        Operation::SetMany(pairs) => {
            let written = manager.set_many(pairs.map(|(key, value)| (name(key), format!("{value}")))).await;
            let each = |written: Result<Written, Error>| {
                written.ok().map(|written| (written.stored, !written.degraded.is_empty()))
            };
            Ok(Outcome::WroteEach(written.into_iter().map(each).collect()))
        }
        Operation::DeleteMany(keys) => manager.delete_many(&keys.map(name)).await.map(|removed| {
            Outcome::RemovedEach(removed.iter().map(|removed| !removed.degraded.is_empty()).collect())
        }),
        Operation::Contains(key) => manager.contains(name(key)).await.map(|_| Outcome::Nothing),
        Operation::Set { key, value, tag, only, restored: Some(deadline), .. } => {
            let mut entry = Entry::new(format!("{value}"), Generation::ZERO, Timestamp::EPOCH);
            entry.deadline = Timestamp::from_millis(deadline);
            entry.explicit_ttl = !entry.deadline.is_never();
            if let Some(tag) = tag {
                entry.extras_mut().tags.insert("t".into(), tag.to_string());
            }
            manager.restore(name(key), entry, only != Only::Absent).await.map(|restored| match restored {
                Restored::Stored(written) => {
                    Outcome::Wrote { stored: written.stored, degraded: !written.degraded.is_empty() }
                }
                Restored::Present | Restored::Expired => Outcome::Wrote { stored: false, degraded: false },
            })
        }
        Operation::Compare { key, value, generation, .. } => manager
            .compare_and_set(name(key), Generation::new(generation), format!("{value}"))
            .await
            .map(|written| Outcome::Wrote { stored: written.stored, degraded: !written.degraded.is_empty() }),
        Operation::GetAndTouch { key, ttl } => manager
            .get_and_touch(name(key), Duration::from_secs(ttl))
            .await
            .map(|entry| Outcome::Value(entry.map(|entry| number(&entry.value)), None)),
        Operation::Set { key, value, ttl, tag, only, restored: None } => {
            let mut set = manager.set(name(key), format!("{value}"));
            if let Some(ttl) = ttl {
                set = set.ttl(Duration::from_secs(ttl));
            }
            if let Some(tag) = tag {
                set = set.tag("t", tag.to_string());
            }
            set = match only {
                Only::Always => set,
                Only::Absent => set.only_if_absent(),
                Only::Present => set.only_if_present(),
            };
            set.await.map(|written| Outcome::Wrote {
                stored: written.stored,
                degraded: !written.degraded.is_empty(),
            })
        }
        Operation::Load { key, value, ttl, tag, stale, refresh, lease } => {
            let mut options = LoadOptions::new().limit(Duration::from_secs(20));
            if let Some(ttl) = ttl {
                options = options.ttl(Duration::from_secs(ttl));
            }
            if let Some(tag) = tag {
                options = options.tag("t", tag.to_string());
            }
            options = match (stale, refresh) {
                (true, true) => options.stale_while_revalidate(WINDOW),
                (true, false) => options.stale_if_error(WINDOW),
                (false, true) => options.eager(Eager::After(0.5)),
                (false, false) => options,
            };
            if lease {
                options = options.lease(TERM);
            }
            let loader = origin.loader(key, value, ttl, tag, if stale { WINDOW } else { Duration::ZERO });
            let served = manager.get_or_load(name(key), loader).options(&options).entry().await;
            served.map(|served| Outcome::Served { value: number(&served.value), stale: served.is_stale() })
        }
        Operation::LoadNothing(key) => {
            let load = manager.get_or_load(name(key), origin.loader_of_nothing(key));
            let load = load.limit(Duration::from_secs(20)).negative_ttl(Duration::from_secs(5));
            load.await.map(|found| Outcome::Value(found.map(|value| number(&value)), None))
        }
        Operation::LoadMany { keys, values, ttl, refresh } => {
            let mut options = LoadOptions::new().limit(Duration::from_secs(20));
            if let Some(ttl) = ttl {
                options = options.ttl(Duration::from_secs(ttl));
            }
            if refresh {
                options = options.eager(Eager::After(0.5));
            }
            let named = keys.iter().zip(values).map(|(&key, value)| (name(key), (key, value)));
            let loader = origin.loader_of_many(named.collect(), ttl);
            let batch = manager.batch_loader(options, loader).window(Duration::ZERO);
            let [a, b, c] = keys.map(|key| batch.get(name(key)));
            let answers: [_; BATCH] = tokio::join!(a, b, c).into();
            // What fails for one says nothing of the others.
            let value = |answer: Result<Option<bytes::Bytes>, Error>| {
                answer.ok().flatten().map(|value| number(&value))
            };
            Ok(Outcome::Values(answers.map(value).into()))
        }
        Operation::Touch { key, ttl } => manager
            .touch(name(key), ttl.map(Duration::from_secs))
            .await
            .map(|touched| Outcome::Touched { found: touched.found, degraded: !touched.degraded.is_empty() }),
        Operation::Delete(key) => manager
            .delete(name(key))
            .await
            .map(|removed| Outcome::Removed { degraded: !removed.degraded.is_empty() }),
        Operation::Pop(key) => manager.pop(name(key)).await.map(|popped| Outcome::Popped {
            value: popped.value.map(|value| number(&value)),
            degraded: !popped.degraded.is_empty(),
        }),
        Operation::InvalidateTag(tag) => manager
            .invalidate_tag("t", tag.to_string())
            .await
            .map(|removed| Outcome::Removed { degraded: !removed.degraded.is_empty() }),
        Operation::ExpireTag(tag) => {
            manager.expire_tag("t", tag.to_string()).await.map(|()| Outcome::Nothing)
        }
        Operation::Clear => {
            manager.clear().await.map(|removed| Outcome::Removed { degraded: !removed.degraded.is_empty() })
        }
        Operation::Keys => {
            let (mut keys, mut listed) = (manager.keys(Query::all()), Vec::new());
            loop {
                match keys.next().await {
                    Ok(Some(record)) => {
                        let key = record.key.bytes()[4] - b'0';
                        listed.push(key);
                        // Whoever is told takes its time.
                        origin.gates.pass(format!("told of {key}")).await;
                    }
                    Ok(None) => break Ok(Outcome::Keys(listed)),
                    Err(error) => break Err(error),
                }
            }
        }
        Operation::Purge => {
            manager.purge("*").await.map(|purged| Outcome::Purged { degraded: !purged.degraded.is_empty() })
        }
        Operation::Flush(level) => manager.flush(level).await.map(|()| Outcome::Nothing),
        Operation::Add { key, bit, ttl } => {
            let mut addition = manager.incr(name(key)).by(1 << bit);
            if let Some(ttl) = ttl {
                addition = addition.ttl(Duration::from_secs(ttl));
            }
            addition.await.map(|sum| Outcome::Sum(Some(sum)))
        }
        Operation::Counter(key) => manager.counter(name(key)).await.map(Outcome::Sum),
        Operation::RemoveCounter(key) => manager.remove_counter(name(key)).await.map(|_| Outcome::Nothing),
        Operation::Transact { keys, values, remove, give_up } => {
            let names = keys.map(name);
            let named = names.clone();
            let transaction = manager.transaction(&named, move |tx| {
                let saw =
                    [tx.get(&names[0])?, tx.get(&names[1])?].map(|value| value.map(|value| number(&value)));
                tx.set(&names[0], values[0].to_string())?;
                if remove {
                    tx.delete(&names[1])?;
                } else {
                    tx.set(&names[1], values[1].to_string())?;
                }
                if give_up { Err(Error::InvalidKey("given up")) } else { Ok(saw) }
            });
            transaction.await.map(Outcome::Transacted)
        }
        Operation::Settle => manager.settle().await.map(|()| Outcome::Nothing),
        Operation::Resize(bytes) => {
            let retune = move |_: Option<&_>| Ok(Retune::new().capacity(Level::Hot, bytes));
            manager.retune(retune).await.map(|()| Outcome::Nothing)
        }
        Operation::Prune => manager.prune().await.map(|_| Outcome::Nothing),
    };
    outcome.unwrap_or_else(|error| match error {
        Error::Uncertain { .. } => Outcome::Uncertain,
        Error::InvalidKey("given up") => Outcome::GaveUp,
        error => Outcome::Failed(error.to_string()),
    })
}

pub(super) fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX)
}
