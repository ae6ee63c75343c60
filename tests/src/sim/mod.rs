//! A deterministic simulator of the whole manager, checked against a reference model.
//!
//! A history is a sequence of decisions drawn from a seed: which operation begins, which waiting step of the store
//! goes on or fails, when entries sink, when time passes, whose future is dropped, when the process dies and opens
//! its store again. Everything runs on one thread in paused time, so the same decisions are the same history. A
//! failing one is made smaller before it is printed.

#![allow(missing_docs, reason = "a test's own vocabulary")]

mod choices;
mod judge;
mod store;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tiercache_core::testing::ManualClock;
use tiercache_core::tier::Tier;
use tiercache_core::{CacheManager, Clock, Error, Key, LateTier, Level, Rules, Stay, Write};
use tiercache_ram::{Policy, RamConfig, RamTier};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

pub use self::choices::{Choices, shrink};
use self::judge::{ELSEWHERE, Judge, Kind, Moment, Mutation, Seen};
use self::store::{Fate, Gates, Life, Store};

const KEYS: u32 = 3;
const MOST_IN_FLIGHT: usize = 6;
/// Decisions of a history: some 50 to 80 operations with what happens between their steps.
pub const DECISIONS: usize = 700;

/// A history that broke a promise.
#[derive(Debug)]
pub struct Failure {
    /// Which promise.
    pub reason: String,
    /// What happened, step by step.
    pub log: String,
    /// The decisions, to replay it with.
    pub decisions: Vec<u32>,
}

/// What a history came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub operations: u64,
    pub reads: u64,
    pub hits: u64,
    pub crashes: u64,
    pub faults: u64,
    pub dropped: u64,
}

/// Runs the history of a seed; a failing one comes back as small as it could be made.
pub fn run_seed(seed: u64) -> Result<Tally, Box<Failure>> {
    run(Choices::seeded(seed, DECISIONS)).map_err(|failure| {
        let still_fails = |decisions: &[u32]| run(Choices::replayed(decisions.to_vec())).is_err();
        let smallest = shrink(failure.decisions.clone(), still_fails, 2_000);
        run(Choices::replayed(smallest)).err().unwrap_or(failure)
    })
}

/// Runs one history.
pub fn run(choices: Choices) -> Result<Tally, Box<Failure>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(async {
        let mut history = History::begin(choices).await;
        let result = history.play().await;
        let failure = |reason| {
            Box::new(Failure {
                reason,
                log: std::mem::take(&mut history.log),
                decisions: history.choices.drawn().to_vec(),
            })
        };
        result.map_err(failure).map(|()| history.tally)
    })
}

struct History {
    choices: Choices,
    setup: Setup,
    clock: Arc<ManualClock>,
    store: Arc<Store>,
    /// The store of the level of this machine, beside one that other processes use.
    beside: Arc<Store>,
    gates: Arc<Gates>,
    opened: Vec<Arc<Life>>,
    /// Whether no step of the store that other processes use succeeds.
    away: bool,
    lives: u32,
    manager: CacheManager,
    judge: Judge,
    running: BTreeMap<u64, Running>,
    done: mpsc::UnboundedSender<(u64, Outcome)>,
    ended: mpsc::UnboundedReceiver<(u64, Outcome)>,
    moment: Moment,
    values: u64,
    /// When something happened last that may lose a value; `Moment::MAX` when nobody can tell.
    lossy_at: Moment,
    log: String,
    tally: Tally,
}

#[derive(Clone, Copy, Debug)]
struct Setup {
    policy: Policy,
    hot_bytes: u64,
    cold: bool,
    store_is_local: bool,
    /// Whether other processes use the store.
    shared: bool,
    store_at: Level,
    /// Where a level of this machine stands too, which keeps the journal.
    beside: Option<Level>,
    /// Whether a process begins though the store is away.
    late: bool,
    write: Write,
    faults: bool,
}

struct Running {
    what: Operation,
    task: AbortHandle,
    begun: Moment,
    clock: u64,
    mutation: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Get(u8),
    Entry(u8),
    Contains(u8),
    Set { key: u8, value: u64, ttl: Option<u64>, tag: Option<u8>, add: bool },
    Touch { key: u8, ttl: Option<u64> },
    Delete(u8),
    Pop(u8),
    InvalidateTag(u8),
    Clear,
    Flush(Level),
    Settle,
    Prune,
}

#[derive(Debug)]
enum Outcome {
    Value(Option<u64>, Option<u64>),
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
    Failed(#[expect(dead_code, reason = "printed in the log")] String),
}

impl History {
    async fn begin(mut choices: Choices) -> Self {
        let store_is_local = !choices.once_in(2);
        let shared = !store_is_local && choices.once_in(2);
        let store_at = [Level::Dry, Level::Dry, Level::Cold][choices.below(3) as usize];
        let other = if store_at == Level::Dry { Level::Cold } else { Level::Dry };
        let setup = Setup {
            policy: [Policy::Adaptive, Policy::Lru, Policy::TinyLfu][choices.below(3) as usize],
            hot_bytes: [200, 400, 800, 100_000][choices.below(4) as usize],
            cold: choices.once_in(2),
            store_is_local,
            shared,
            store_at,
            beside: (shared && choices.once_in(2)).then_some(other),
            late: shared && choices.once_in(2),
            write: [Write::Back, Write::Back, Write::Behind, Write::Through][choices.below(4) as usize],
            faults: choices.once_in(2),
        };
        let (clock, gates) = (ManualClock::new(), Arc::<Gates>::default());
        let (store, beside) = (Arc::<Store>::default(), Arc::<Store>::default());
        let (opened, manager) = open(setup, &clock, [&store, &beside], &gates).await;
        let (done, ended) = mpsc::unbounded_channel();
        let mut log = String::new();
        let _ = writeln!(log, "{setup:?}");
        Self {
            choices,
            setup,
            clock,
            store,
            beside,
            gates,
            opened,
            away: false,
            lives: 0,
            manager,
            judge: Judge::new(setup.beside.is_some()),
            running: BTreeMap::new(),
            done,
            ended,
            moment: 0,
            values: 0,
            lossy_at: 0,
            log,
            tally: Tally::default(),
        }
    }

    async fn play(&mut self) -> Result<(), String> {
        while !self.choices.is_spent() {
            match self.choices.below(20) {
                0..=8 if self.running.len() < MOST_IN_FLIGHT => {
                    let operation = self.operation();
                    self.start(operation);
                }
                9..=14 if self.gates.waiting() > 0 => self.release(),
                15 => {
                    let seconds = [1, 3, 20][self.choices.below(3) as usize];
                    self.note(format!("{seconds} s pass"));
                    self.clock.advance(Duration::from_secs(seconds));
                }
                16 if self.may_be_away() && self.choices.once_in(2) => {
                    self.be_away(!self.away);
                    self.note(format!("the store is {}", if self.away { "away" } else { "back" }));
                }
                16 => {
                    let at_once = self.choices.once_in(2);
                    self.gates.answer_at_once(at_once);
                }
                17 if self.choices.once_in(4) => self.drop_one(),
                18 if self.choices.once_in(if self.away { 2 } else { 6 }) => self.crash().await?,
                17 | 18 if self.setup.shared => self.elsewhere(),
                19 => {
                    let operation =
                        if self.choices.once_in(3) { Operation::Prune } else { Operation::Settle };
                    self.start(operation);
                }
                _ if self.gates.waiting() > 0 => self.release(),
                _ => {}
            }
            self.quiesce().await?;
        }
        self.finish().await
    }

    fn may_be_away(&self) -> bool {
        self.setup.faults && (self.setup.beside.is_some() || self.setup.late)
    }

    fn be_away(&mut self, away: bool) {
        self.away = away;
        self.gates.away.store(away && self.setup.late, Ordering::Relaxed);
    }

    fn operation(&mut self) -> Operation {
        let key = self.choices.below(KEYS) as u8;
        match self.choices.below(24) {
            0..=5 => Operation::Get(key),
            6..=7 => Operation::Entry(key),
            8 => Operation::Contains(key),
            9..=15 => {
                self.values += 1;
                let ttl = [None, None, None, Some(2), Some(10)][self.choices.below(5) as usize];
                let tag = [None, None, Some(0), Some(1)][self.choices.below(4) as usize];
                let add = self.choices.once_in(8);
                Operation::Set { key, value: self.values, ttl, tag, add }
            }
            16 => Operation::Touch { key, ttl: [None, Some(5)][self.choices.below(2) as usize] },
            17..=19 => Operation::Delete(key),
            20 => Operation::Pop(key),
            21 => Operation::InvalidateTag(self.choices.below(2) as u8),
            22 => {
                let levels = self.levels();
                Operation::Flush(levels[self.choices.below(levels.len() as u32) as usize])
            }
            _ => Operation::Clear,
        }
    }

    fn levels(&self) -> Vec<Level> {
        let mut levels = vec![Level::Hot];
        let stores = [Some(self.setup.store_at), self.setup.beside];
        if stores.contains(&Some(Level::Cold)) || self.setup.cold {
            levels.push(Level::Cold);
        }
        if stores.contains(&Some(Level::Dry)) {
            levels.push(Level::Dry);
        }
        levels
    }

    /// Another process sets or removes a key, whole and at once. This process may go on with what it has in RAM, but
    /// whatever it does to the key afterwards comes after.
    fn elsewhere(&mut self) {
        let key = self.choices.below(KEYS) as u8;
        let ahead = [0, 50, 1_000][self.choices.below(3) as usize];
        let name = Key::new("", format!("key-{key}").as_bytes()).expect("a key");
        self.moment += 1;
        if self.choices.once_in(4) {
            self.note(format!("{}: another process removes {key}", self.moment));
            self.store.remove_elsewhere(&name, ahead);
            self.lossy_at = self.lossy_at.max(self.moment);
        } else {
            self.values += 1;
            self.note(format!("{}: another process sets {key} to {}", self.moment, self.values));
            self.store.set_elsewhere(&name, &self.values.to_string(), self.clock.now(), ahead);
            self.judge.begin(Mutation {
                key,
                kind: Kind::Write(self.values),
                tag: None,
                deadline: u64::MAX,
                begun: self.moment,
                ended: Some(self.moment),
                certain: false,
                failed: false,
                degraded: false,
                life: ELSEWHERE,
            });
        }
        self.moment += 1;
    }

    /// Begins an operation as a task of its own.
    fn start(&mut self, what: Operation) {
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
            Operation::Touch { key, .. } => vec![mutate(key, Kind::Touch, None, u64::MAX)],
            Operation::Delete(key) | Operation::Pop(key) => {
                vec![mutate(key, Kind::Remove(None), None, u64::MAX)]
            }
            Operation::InvalidateTag(tag) => everywhere(Kind::Remove(Some(tag))),
            Operation::Clear => everywhere(Kind::Remove(None)),
            _ => Vec::new(),
        };
        let mutation = mutations.into_iter().map(|mutation| self.judge.begin(mutation)).collect();
        let (manager, done) = (self.manager.clone(), self.done.clone());
        let task = tokio::spawn(async move {
            let outcome = perform(&manager, what).await;
            // The history may be over.
            let _ = done.send((number, outcome));
        });
        let running = Running { what, task: task.abort_handle(), begun: number, clock, mutation };
        self.running.insert(number, running);
    }

    /// Lets a waiting step go on, or fail.
    fn release(&mut self) {
        let which = self.choices.below(self.gates.waiting() as u32) as usize;
        let mut fate = Fate::Go;
        if self.away && self.gates.step(which).starts_with("before store") {
            fate = Fate::Fail;
            self.lossy_at = Moment::MAX;
        } else if self.setup.faults && self.choices.once_in(8) {
            fate = if self.choices.once_in(3) { Fate::Hang } else { Fate::Fail };
            self.tally.faults += 1;
            self.lossy_at = Moment::MAX;
        }
        let step = self.gates.release(which, fate);
        self.note(format!("   {step}: {fate:?}"));
    }

    /// Drops the future of a running operation.
    fn drop_one(&mut self) {
        let Some(which) = self.pick_running() else { return };
        let Some(running) = self.running.remove(&which) else { return };
        running.task.abort();
        if matches!(running.what, Operation::Flush(_)) {
            self.lossy_at = Moment::MAX;
        }
        self.tally.dropped += 1;
        self.note(format!("{which}: dropped"));
    }

    fn pick_running(&mut self) -> Option<u64> {
        let at = self.choices.below(self.running.len().max(1) as u32) as usize;
        self.running.keys().nth(at).copied()
    }

    /// The process dies as it is, and another opens the store.
    async fn crash(&mut self) -> Result<(), String> {
        self.note("the process dies".to_string());
        self.tally.crashes += 1;
        self.lossy_at = Moment::MAX;
        self.opened.iter().for_each(|life| life.dead.store(true, Ordering::Relaxed));
        for running in std::mem::take(&mut self.running).into_values() {
            running.task.abort();
        }
        while self.gates.waiting() > 0 {
            self.gates.release(0, Fate::Fail);
        }
        self.quiesce().await?;
        self.moment += 1;
        self.judge.settle(self.moment);
        self.lives += 1;
        let away = self.away && self.choices.once_in(2);
        self.be_away(away);
        (self.opened, self.manager) =
            open(self.setup, &self.clock, [&self.store, &self.beside], &self.gates).await;
        Ok(())
    }

    /// Runs everything that can go on, and judges what ended.
    async fn quiesce(&mut self) -> Result<(), String> {
        // In paused time this wakes when nothing else can run.
        tokio::time::sleep(Duration::from_millis(1)).await;
        while let Ok((number, outcome)) = self.ended.try_recv() {
            let Some(running) = self.running.remove(&number) else { continue };
            self.moment += 1;
            self.note(format!("{number}: {outcome:?} at {}", self.moment));
            self.judge_outcome(running, outcome)?;
        }
        Ok(())
    }

    fn judge_outcome(&mut self, running: Running, outcome: Outcome) -> Result<(), String> {
        let now = self.moment;
        let seen = |key, value, generation, life| Seen {
            key,
            value,
            generation,
            begun: running.begun,
            ended: now,
            clock: running.clock,
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
        match (running.what, outcome) {
            (Operation::Get(key) | Operation::Entry(key), Outcome::Value(value, generation)) => {
                self.tally.reads += 1;
                if let Some(value) = value {
                    self.tally.hits += 1;
                    self.judge.judge(seen(key, value, generation, self.lives))?;
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
            (Operation::Set { .. }, Outcome::Failed(_)) => {
                end(true, true);
                running.mutation.iter().for_each(|number| self.judge.mutation(*number).failed = true);
            }
            // It may have had any part of its effect, and will have no more.
            (_, Outcome::Failed(_)) => end(false, true),
            (what, outcome) => return Err(format!("{what:?} ended with {outcome:?}")),
        }
        Ok(())
    }

    /// Lets everything end, and looks at what is left.
    async fn finish(&mut self) -> Result<(), String> {
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
        for key in 0..KEYS as u8 {
            let (manager, gates) = (self.manager.clone(), self.gates.clone());
            let mut last = tokio::spawn(async move { perform(&manager, Operation::Get(key)).await });
            let last = loop {
                tokio::select! {
                    biased;
                    outcome = &mut last => break outcome,
                    () = tokio::time::sleep(Duration::from_millis(1)) => {}
                }
                while gates.waiting() > 0 {
                    gates.release(0, Fate::Go);
                }
            };
            let value = match last {
                Ok(Outcome::Value(value, _)) => value,
                outcome => return Err(format!("the last get of {key} ended with {outcome:?}")),
            };
            self.note(format!("the last get of {key}: {value:?}"));
            let (begun, clock) = (self.moment, self.clock.now().as_millis());
            self.moment += 1;
            if let Some(value) = value {
                let seen =
                    Seen { key, value, generation: None, begun, ended: self.moment, clock, life: self.lives };
                self.judge.judge(seen)?;
            } else if let Some(value) = self.judge.last_value(key, clock, self.lossy_at) {
                return Err(format!("value {value} of key {key} is lost, though nothing could lose it"));
            }
        }
        Ok(())
    }

    fn note(&mut self, line: String) {
        self.log.push_str(&line);
        self.log.push('\n');
    }
}

/// A process opens the store.
async fn open(
    setup: Setup,
    clock: &Arc<ManualClock>,
    [store, beside]: [&Arc<Store>; 2],
    gates: &Arc<Gates>,
) -> (Vec<Arc<Life>>, CacheManager) {
    let life = |name, store: &Arc<Store>, local, shared| {
        let (store, gates) = (store.clone(), gates.clone());
        Arc::new(Life { name, store, gates, dead: false.into(), local, shared })
    };
    let mut opened = vec![life("store", store, setup.store_is_local, setup.shared)];
    let store: Arc<dyn Tier> = match opened[0].clone() {
        store if setup.late => LateTier::new("store", move || {
            let away = store.gates.away.load(Ordering::Relaxed);
            let error = || Error::unavailable("store", "open", "it is away");
            std::future::ready(if away { Err(error()) } else { Ok(store.clone() as Arc<dyn Tier>) })
        }),
        store => store,
    };
    let ram =
        |max_size| Arc::new(RamTier::new(RamConfig { max_size, policy: setup.policy })) as Arc<dyn Tier>;
    let stay = |seconds| Some(Stay::For(Duration::from_secs(seconds)));
    let mut builder = CacheManager::builder()
        .clock(clock.clone())
        .rules(Rules { rules: Vec::new(), defaults: [stay(8), stay(30), Some(Stay::Forever)] })
        .write(setup.write)
        .level(setup.store_at, store)
        .hot(ram(setup.hot_bytes))
        .manual();
    if setup.cold && setup.store_at == Level::Dry {
        builder = builder.cold(ram(setup.hot_bytes * 2));
    }
    if let Some(level) = setup.beside {
        opened.push(life("beside", beside, true, false));
        builder = builder.level(level, opened[1].clone());
    }
    (opened, builder.build().await.expect("a manager"))
}

async fn perform(manager: &CacheManager, what: Operation) -> Outcome {
    let name = |key: u8| format!("key-{key}");
    let outcome = match what {
        Operation::Get(key) => {
            manager.get(name(key)).await.map(|value| Outcome::Value(value.map(|value| number(&value)), None))
        }
        Operation::Entry(key) => manager.entry(name(key)).await.map(|entry| {
            let generation = entry.as_ref().map(|entry| entry.generation.get());
            Outcome::Value(entry.map(|entry| number(&entry.value)), generation)
        }),
        Operation::Contains(key) => manager.contains(name(key)).await.map(|_| Outcome::Nothing),
        Operation::Set { key, value, ttl, tag, add } => {
            let mut set = manager.set(name(key), format!("{value}"));
            if let Some(ttl) = ttl {
                set = set.ttl(Duration::from_secs(ttl));
            }
            if let Some(tag) = tag {
                set = set.tag("t", tag.to_string());
            }
            if add {
                set = set.only_if_absent();
            }
            set.await.map(|written| Outcome::Wrote {
                stored: written.stored,
                degraded: !written.degraded.is_empty(),
            })
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
        Operation::Clear => {
            manager.clear().await.map(|removed| Outcome::Removed { degraded: !removed.degraded.is_empty() })
        }
        Operation::Flush(level) => manager.flush(level).await.map(|()| Outcome::Nothing),
        Operation::Settle => manager.settle().await.map(|()| Outcome::Nothing),
        Operation::Prune => manager.prune().await.map(|_| Outcome::Nothing),
    };
    outcome.unwrap_or_else(|error| Outcome::Failed(error.to_string()))
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX)
}
