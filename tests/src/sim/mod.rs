//! A deterministic simulator of the whole manager, checked against a reference model.
//!
//! A history is a sequence of decisions drawn from a seed: which operation begins, which waiting step of the store
//! goes on or fails, when entries sink, when time passes, whose future is dropped, when the process dies and opens
//! its store again. Everything runs on one thread in paused time, so the same decisions are the same history. A
//! failing one is made smaller before it is printed.

#![allow(missing_docs, reason = "a test's own vocabulary")]

mod choices;
mod counts;
mod judge;
mod origin;
mod store;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tiercache_core::lease::Holder;
use tiercache_core::testing::ManualClock;
use tiercache_core::tier::Tier;
use tiercache_core::{
    CacheManager, Clock, Eager, Entry, Error, Generation, Key, LateTier, Level, LoadOptions, Restored,
    Retune, Rules, Stay, Timestamp, Write, Written,
};
use tiercache_ram::{Policy, RamConfig, RamTier};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

pub use self::choices::{Choices, shrink};
use self::counts::{Counts, Made};
use self::judge::{ELSEWHERE, Judge, Kind, Moment, Mutation, Seen};
use self::origin::{Asked, Origin, WINDOW};
use self::store::{Fate, Gates, Life, Store};

const KEYS: u32 = 3;
/// Keys of a batch, any of which may be named twice.
const BATCH: usize = 3;
const MOST_IN_FLIGHT: usize = 6;
/// How long a lease is for. Histories take some hundred milliseconds of the runtime's time.
const TERM: Duration = Duration::from_millis(60);
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
    origin: Arc<Origin>,
    /// When other processes changed a key.
    elsewhere: Vec<(u8, Moment)>,
    /// The leases other processes have.
    held: BTreeMap<u8, Held>,
    /// Loads that are to have a lease, and when they were asked for.
    leased: BTreeMap<u64, Moment>,
    /// The mutation of a loaded value, and the seconds it lives.
    loads: BTreeMap<u64, (usize, Option<u64>)>,
    opened: Vec<Arc<Life>>,
    /// Whether no step of the store that other processes use succeeds.
    away: bool,
    lives: u32,
    manager: CacheManager,
    judge: Judge,
    counts: Counts,
    /// What was last read of each key, and its generation.
    known: BTreeMap<u8, (u64, u64)>,
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
    /// Whether the store takes a batch in one step.
    batches: bool,
    /// Whether counters stand in RAM, and not in the store.
    counts_in_ram: bool,
}

/// The lease of a key that another process has.
#[derive(Clone, Copy, Debug)]
struct Held {
    holder: Holder,
    since: Moment,
    until: Instant,
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
enum Only {
    Always,
    Absent,
    Present,
}

#[derive(Debug)]
enum Outcome {
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
    Transacted([Option<u64>; 2]),
    GaveUp,
    /// What failed may have happened.
    Uncertain,
    Failed(#[expect(dead_code, reason = "printed in the log")] String),
}

impl History {
    async fn begin(mut choices: Choices) -> Self {
        let store_is_local = !choices.once_in(2);
        let shared = !store_is_local && choices.once_in(2);
        let store_at = [Level::Dry, Level::Dry, Level::Cold][choices.below(3) as usize];
        let other = if store_at == Level::Dry { Level::Cold } else { Level::Dry };
        let setup = Setup {
            policy: [Policy::Adaptive, Policy::Lru, Policy::TinyLfu, Policy::Fifo][choices.below(4) as usize],
            hot_bytes: [200, 400, 800, 100_000][choices.below(4) as usize],
            cold: choices.once_in(2),
            store_is_local,
            shared,
            store_at,
            beside: (shared && choices.once_in(2)).then_some(other),
            late: shared && choices.once_in(2),
            write: [Write::Back, Write::Back, Write::Behind, Write::Through][choices.below(4) as usize],
            faults: choices.once_in(2),
            batches: !choices.once_in(4),
            counts_in_ram: choices.once_in(3),
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
            origin: Arc::new(Origin::new(gates.clone())),
            elsewhere: Vec::new(),
            held: BTreeMap::new(),
            leased: BTreeMap::new(),
            loads: BTreeMap::new(),
            beside,
            gates,
            opened,
            away: false,
            lives: 0,
            manager,
            judge: Judge::new(setup.beside.is_some()),
            counts: Counts::default(),
            known: BTreeMap::new(),
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
                17 | 18 if self.setup.shared => self.elsewhere().await?,
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
        match self.choices.below(40) {
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
            39 => Operation::Resize([200, 400, 800, 100_000][self.choices.below(4) as usize]),
            _ => Operation::Clear,
        }
    }

    fn batch(&mut self) -> [u8; BATCH] {
        std::array::from_fn(|_| self.choices.below(KEYS) as u8)
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
    async fn elsewhere(&mut self) -> Result<(), String> {
        let key = self.choices.below(KEYS) as u8;
        if self.choices.once_in(3) {
            self.lease_elsewhere(key).await;
            return Ok(());
        }
        let ahead = [0, 50, 1_000][self.choices.below(3) as usize];
        let name = Key::new("", format!("key-{key}").as_bytes()).expect("a key");
        self.moment += 1;
        if !self.setup.counts_in_ram && self.choices.once_in(4) {
            if let Some(bit) = self.counts.add(key, self.moment) {
                self.note(format!("{}: another process adds {bit} to {key}", self.moment));
                let sum = self.store.add_elsewhere(&name, 1 << bit, self.clock.now());
                self.counts.added(key, bit, self.moment + 1, Made::Certainly);
                self.counts.judge(key, sum, self.moment, self.moment + 1)?;
            }
        } else if self.choices.once_in(4) {
            self.elsewhere.push((key, self.moment));
            self.note(format!("{}: another process removes {key}", self.moment));
            self.store.remove_elsewhere(&name, ahead);
            self.lossy_at = self.lossy_at.max(self.moment);
        } else {
            self.values += 1;
            self.elsewhere.push((key, self.moment));
            self.note(format!("{}: another process sets {key} to {}", self.moment, self.values));
            self.store.set_elsewhere(&name, &self.values.to_string(), self.clock.now(), ahead);
            self.judge.begin(Mutation {
                key,
                kind: Kind::Write(self.values),
                tag: None,
                deadline: u64::MAX,
                stale: 0,
                begun: self.moment,
                ended: Some(self.moment),
                certain: false,
                failed: false,
                degraded: false,
                life: ELSEWHERE,
            });
        }
        self.moment += 1;
        Ok(())
    }

    /// Another process takes the lease of a key as its loads do, or gives it back.
    async fn lease_elsewhere(&mut self, key: u8) {
        let name = Key::new("", format!("load:key-{key}").as_bytes()).expect("a key");
        self.moment += 1;
        if let Some(held) = self.held.remove(&key) {
            self.note(format!("{}: another process gives the lease of {key} back", self.moment));
            self.store.release_elsewhere(&name, held.holder).await;
            return;
        }
        let (holder, until) = (Holder::new(), Instant::now() + TERM);
        if self.store.lease_elsewhere(&name, holder, TERM).await {
            self.note(format!("{}: another process takes the lease of {key}", self.moment));
            self.held.insert(key, Held { holder, since: self.moment, until });
        }
    }

    /// A load that was asked for while another process had the lease of its key waits for the lease or its end. A store
    /// that does not answer in time gives no leases.
    async fn judge_lease(&self, loaded: &Asked) -> Result<(), String> {
        let Some(asked) = self.leased.get(&loaded.value) else { return Ok(()) };
        let waits = |held: &&Held| held.since < *asked && Instant::now() < held.until;
        let Some(held) = self.held.get(&loaded.key).filter(waits).filter(|_| !self.setup.faults) else {
            return Ok(());
        };
        let stats = self.manager.stats().await.map_err(|error| error.to_string())?;
        if stats.loads_unleased > 0 {
            return Ok(());
        }
        Err(format!("{loaded:?}, asked for at {asked}, did not wait for {held:?}"))
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
            Operation::Clear => everywhere(Kind::Remove(None)),
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

    fn counts_at(&self) -> Level {
        if self.setup.counts_in_ram { Level::Hot } else { self.setup.store_at }
    }

    /// Lets a waiting step go on, or fail.
    fn release(&mut self) {
        let which = self.choices.below(self.gates.waiting() as u32) as usize;
        let mut fate = Fate::Go;
        if self.away && self.gates.step(which).starts_with("before store") {
            fate = Fate::Fail;
            self.lossy_at = Moment::MAX;
        } else if self.setup.faults && self.choices.once_in(8) {
            fate = [Fate::Hang, Fate::Fail, Fate::Fail, Fate::Part][self.choices.below(4) as usize];
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
        // What a process that is dead still loads nobody waits for.
        self.leased.clear();
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
        self.counts.settle(self.moment, self.setup.beside.is_some());
        if self.setup.counts_in_ram {
            self.moment += 1;
            self.counts.drops(None, self.moment);
            self.counts.dropped(self.moment, self.moment + 1, true);
            self.moment += 2;
        }
        self.lives += 1;
        // Another process counts on from what the store has seen.
        self.known.clear();
        let away = self.away && self.choices.once_in(2);
        self.be_away(away);
        (self.opened, self.manager) =
            open(self.setup, &self.clock, [&self.store, &self.beside], &self.gates).await;
        Ok(())
    }

    /// Runs everything that can go on, and judges what ended.
    async fn quiesce(&mut self) -> Result<(), String> {
        // A moment of their own, for loads that begin now: nothing else begins with them.
        self.moment += 1;
        self.origin.at(self.moment, self.clock.now().as_millis());
        // In paused time this wakes when nothing else can run.
        tokio::time::sleep(Duration::from_millis(1)).await;
        for loaded in self.origin.begun() {
            self.note(format!("   {loaded:?}"));
            self.judge_lease(&loaded).await?;
            // It is as if it had been written, whole, when the origin was asked.
            let number = self.judge.begin(Mutation {
                key: loaded.key,
                // That there is nothing is as if it had been removed.
                kind: if loaded.value == 0 { Kind::Remove(None) } else { Kind::Write(loaded.value) },
                tag: loaded.tag,
                // It lives from when it is brought.
                deadline: u64::MAX,
                stale: loaded.stale,
                begun: loaded.asked,
                ended: Some(loaded.asked),
                certain: false,
                failed: false,
                degraded: false,
                life: ELSEWHERE,
            });
            self.loads.insert(loaded.value, (number, loaded.ttl));
        }
        for (value, clock) in self.origin.brought() {
            if let Some(&(number, Some(ttl))) = self.loads.get(&value) {
                self.judge.mutation(number).deadline = clock + ttl * 1_000;
            }
        }
        self.judge_store()?;
        while let Ok((number, outcome)) = self.ended.try_recv() {
            let Some(running) = self.running.remove(&number) else { continue };
            self.moment += 1;
            self.note(format!("{number}: {outcome:?} at {}", self.moment));
            self.judge_outcome(running, outcome)?;
        }
        Ok(())
    }

    /// Nothing that was loaded before another process changed a key stands where that process would find it.
    /// A level that fails when it is asked to remove what is older is not known to have nothing newer.
    fn judge_store(&self) -> Result<(), String> {
        if self.setup.faults {
            return Ok(());
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

    fn judge_outcome(&mut self, running: Running, outcome: Outcome) -> Result<(), String> {
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
    async fn last(&mut self, what: Operation) -> Outcome {
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

    fn note(&mut self, line: String) {
        self.log.push_str(&line);
        self.log.push('\n');
    }
}

/// Ends all that an operation began.
fn end_all(judge: &mut Judge, running: &Running, now: Moment, certain: bool) {
    for number in &running.mutation {
        let mutation = judge.mutation(*number);
        (mutation.ended, mutation.certain) = (Some(now), certain);
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
        Arc::new(Life { name, store, gates, dead: false.into(), local, batches: setup.batches, shared })
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
        .counters(if setup.counts_in_ram { Level::Hot } else { setup.store_at })
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

async fn perform(manager: &CacheManager, origin: &Arc<Origin>, what: Operation) -> Outcome {
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

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX)
}
