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
mod operations;
mod origin;
mod others;
mod store;
mod verdicts;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tiercache_core::lease::Holder;
use tiercache_core::testing::ManualClock;
use tiercache_core::tier::Tier;
use tiercache_core::{CacheManager, Clock, Error, LateTier, Level, Rules, Stay, Write};
use tiercache_ram::{Policy, RamConfig, RamTier};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

pub use self::choices::{Choices, shrink};
use self::counts::Counts;
use self::judge::{ELSEWHERE, Judge, Kind, Moment, Mutation};
use self::operations::{Operation, Outcome};
use self::origin::Origin;
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
    /// The values that they took out.
    taken: BTreeSet<u64>,
    /// When they invalidated a tag.
    killed: Vec<(u8, Moment)>,
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
            taken: BTreeSet::new(),
            killed: Vec::new(),
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
