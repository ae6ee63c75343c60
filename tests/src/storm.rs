//! Many clients on few keys and tiny levels, on real threads: everything moves all the time.
//!
//! Each client draws what it does from a seed of its own and notes what it saw; [`crate::history`] judges all of it
//! afterwards. The threads run as they like, so a seed does not bring a failure back for sure: what is printed is
//! the history of the key.

pub(crate) mod transact;

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tiercache::disk::{DiskConfig, DiskTier};
use tiercache_core::testing::MemoryTier;
use tiercache_core::{
    CacheManager, Level, Limits, LoadOptions, Result, Rule, Rules, Stats, Stay, SystemClock, Tags, Tier,
    Write,
};
use tiercache_ram::{Policy, RamConfig, RamTier};
use tiercache_sqlite::{SqliteConfig, SqliteTier, Synchronous};

use crate::history::{Event, NEVER, Tally, What, Written, judge};
use crate::serial::{self, Get, Transaction};
use crate::values::{Random, name, number, value};

/// Entries of this tag leave RAM after some milliseconds.
const RESTLESS: u8 = 0;
const TAGS: u64 = 3;

/// A storm.
#[derive(Clone, Debug)]
pub struct Storm {
    /// Clients draw from this and their number.
    pub seed: u64,
    /// The engine of both levels in RAM.
    pub policy: Policy,
    /// What stands at the last level.
    pub dry: Dry,
    /// What a write promises.
    pub write: Write,
    /// How many keys there are.
    pub keys: u16,
    /// Operations of each client.
    pub operations: u32,
    /// What the clients do, the first half of them as tasks, the others on threads of their own.
    pub clients: Vec<Mix>,
    /// Whether every key has a value before it begins.
    pub filled: bool,
}

/// What stands at the last level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dry {
    /// A sorted map that outlives the manager.
    Memory,
    /// The local disk, with room for all.
    Disk,
    /// The local disk, with room for less than is written: it reclaims, and forgets.
    CrampedDisk,
    /// SQLite databases, which have transactions.
    Sqlite,
}

/// Operations, each as often as its weight says.
pub type Mix = &'static [(Act, u32)];

/// An operation of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// `get`.
    Get,
    /// `get_many` of four keys.
    GetMany,
    /// `entry`.
    Entry,
    /// `contains`.
    Contains,
    /// `set`.
    Set,
    /// `set` with some milliseconds to live.
    SetShort,
    /// `set` if there is none.
    Add,
    /// `replace`.
    Replace,
    /// `compare_and_set` with the generation that was read just before.
    CompareAndSet,
    /// `get_and_touch`.
    GetAndTouch,
    /// `touch`.
    Touch,
    /// `delete`.
    Delete,
    /// `pop`.
    Pop,
    /// `set_many` of four keys.
    SetMany,
    /// `delete_many` of four keys.
    DeleteMany,
    /// `get_or_load`.
    Load,
    /// `get_or_load_many` of four keys.
    LoadMany,
    /// A transaction over two keys; [`Dry::Sqlite`] has them.
    Transact,
    /// A get, set or delete whose future is dropped after some polls.
    Drop,
    /// `invalidate_tag`.
    InvalidateTag,
    /// `clear`.
    Clear,
    /// `flush` of one level.
    Flush,
    /// `prune`.
    Prune,
}

/// Only reads.
pub const READS: Mix = &[(Act::Get, 8), (Act::Entry, 3), (Act::GetMany, 1), (Act::Contains, 1)];

/// What a storm came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Of all clients.
    pub tally: Tally,
    /// Entries that went down.
    pub sunk: u64,
    /// Entries that came up.
    pub promoted: u64,
    /// Old values that were kept from being published.
    pub refused: u64,
}

impl Storm {
    /// Lets it rage, then opens what it left behind, and judges all that was seen.
    ///
    /// # Errors
    /// The promise that was broken, and the history of the key.
    pub fn rage(&self) -> Result<Weather, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let rage = || {
            let memory = MemoryTier::persistent();
            let failed = |error: tiercache_core::Error| error.to_string();
            let cache = runtime.block_on(self.open(folder.path(), &memory)).map_err(failed)?;
            let board = Arc::new(Board::new());
            let mut events = runtime.block_on(self.fill(&cache, &board))?;
            let mut transactions = Vec::new();
            for (seen, made) in self.run(&runtime, &cache, &board)? {
                events.extend(seen);
                transactions.extend(made);
            }
            let mut last = Client::new(self, &cache, &board, u16::MAX);
            runtime.block_on(last.read_all())?;
            let stats = runtime.block_on(at_rest(&cache)).map_err(failed)?;
            if (stats.pending, stats.in_flight) != ((0, 0), 0) {
                return Err(format!(
                    "something is left on its way or in flight after all has ended: {stats:?}"
                ));
            }
            let report = runtime.block_on(cache.close(Duration::from_secs(20))).map_err(failed)?;
            if !report.is_clean() && self.dry != Dry::CrampedDisk {
                return Err(format!("not all was kept by an orderly end: {report}"));
            }
            last.cache = runtime.block_on(self.open(folder.path(), &memory.reopen())).map_err(failed)?;
            runtime.block_on(last.read_all())?;
            runtime.block_on(last.cache.close(Duration::from_secs(20))).map_err(failed)?;
            events.append(&mut last.events);
            events.append(&mut board.asked.lock().unwrap_or_else(PoisonError::into_inner));
            let tally = judge(&events, self.dry != Dry::CrampedDisk)?;
            serial::judge(&transactions, &gets(&events), serial::Keys::OfEverybody)?;
            Ok(Weather { tally, sunk: stats.sunk, promoted: stats.promoted, refused: stats.refused })
        };
        rage().map_err(|broken| format!("{self:?}\n{broken}"))
    }

    async fn open(&self, folder: &Path, memory: &Arc<MemoryTier>) -> Result<CacheManager> {
        let room = |entries| entries * (self.policy.overhead() + 120);
        let ram = |entries| {
            let config = RamConfig { max_size: room(entries), policy: self.policy };
            Arc::new(RamTier::new(config)) as Arc<dyn Tier>
        };
        let disk = |max_size| DiskConfig {
            path: Some(folder.join("dry")),
            max_size,
            segment_size: Some(64 << 10),
            ..DiskConfig::default()
        };
        let clock = SystemClock::start();
        let dry: Arc<dyn Tier> = match self.dry {
            Dry::Memory => memory.clone(),
            Dry::Disk => Arc::new(DiskTier::open(disk(1 << 30), clock.clone()).await?),
            Dry::CrampedDisk => Arc::new(DiskTier::open(disk(192 << 10), clock.clone()).await?),
            Dry::Sqlite => Arc::new(SqliteTier::open(sqlite_config(folder), clock.clone()).await?),
        };
        let milliseconds = |number| Some(Stay::For(Duration::from_millis(number)));
        let restless = Rule {
            tags: Tags::from([("t".to_owned(), RESTLESS.to_string())]),
            stays: [milliseconds(2), milliseconds(5), None],
        };
        // A machine that is busy is no reason to miss anything.
        let patient =
            Limits { read_timeout: Duration::from_secs(60), write_timeout: Duration::from_secs(60) };
        let builder = CacheManager::builder()
            .clock(clock)
            .hot(ram(4))
            .cold(ram(7))
            .dry(dry)
            .limits(Level::Dry, patient)
            .rules(Rules { rules: vec![restless], defaults: [None; 3] })
            .write(self.write)
            .sweep_every(Duration::from_millis(2));
        builder.build().await
    }

    async fn fill(&self, cache: &CacheManager, board: &Arc<Board>) -> Result<Vec<Event>, String> {
        let mut client = Client::new(self, cache, board, u16::MAX - 1);
        for key in (0..self.keys).filter(|_| self.filled) {
            client.set(key, Act::Set).await?;
        }
        Ok(client.events)
    }

    fn run(
        &self,
        runtime: &tokio::runtime::Runtime,
        cache: &CacheManager,
        board: &Arc<Board>,
    ) -> Result<Vec<Done>, String> {
        let clients = (0u16..).zip(&self.clients).map(|(number, mix)| {
            let mut client = Client::new(self, cache, board, number);
            let (operations, mix) = (self.operations, *mix);
            async move { client.act(operations, mix).await.map(|()| (client.events, client.transactions)) }
        });
        run_all(runtime, clients.collect())
    }
}

/// What a client did.
type Done = (Vec<Event>, Vec<Transaction>);

/// Runs the first half of the clients as tasks and the others on threads of their own.
pub(crate) fn run_all<T: Send + 'static>(
    runtime: &tokio::runtime::Runtime,
    clients: Vec<impl Future<Output = Result<T, String>> + Send + 'static>,
) -> Result<Vec<T>, String> {
    let (mut tasks, mut threads) = (Vec::new(), Vec::new());
    let half = clients.len() / 2;
    for (number, work) in clients.into_iter().enumerate() {
        if number < half {
            tasks.push(runtime.spawn(work));
        } else {
            let handle = runtime.handle().clone();
            threads.push(std::thread::spawn(move || handle.block_on(work)));
        }
    }
    let mut done = Vec::new();
    for task in tasks {
        done.push(runtime.block_on(task).map_err(|error| error.to_string())??);
    }
    for thread in threads {
        done.push(thread.join().map_err(|_| "a client panicked".to_owned())??);
    }
    Ok(done)
}

/// A level that is written quickly, with some values in files of their own.
pub(crate) fn sqlite_config(folder: &Path) -> SqliteConfig {
    SqliteConfig {
        path: Some(folder.join("dry")),
        max_size: 64 << 20,
        inline_max: 1 << 10,
        // What is forced to the disk is about power cuts.
        synchronous: Synchronous::Off,
        // A machine that is busy is no reason to fail.
        busy_timeout: Duration::from_secs(60),
        ..SqliteConfig::default()
    }
}

/// What was read, to be judged beside transactions.
fn gets(events: &[Event]) -> Vec<Get> {
    let get = |event: &Event| match (event.what, event.key) {
        (What::Read { value, .. } | What::Pop { value, .. }, Some(key)) => {
            Some(Get { key, process: 0, begun: event.begun, ended: event.ended, value })
        }
        _ => None,
    };
    events.iter().filter_map(get).collect()
}

/// What the clients share.
#[derive(Debug)]
pub(crate) struct Board {
    moments: AtomicU64,
    pub(crate) values: AtomicU64,
    began: Instant,
    /// What the origin was asked for.
    asked: Mutex<Vec<Event>>,
}

impl Board {
    pub(crate) fn new() -> Self {
        let (moments, values) = (AtomicU64::new(1), AtomicU64::new(1));
        Self { moments, values, began: Instant::now(), asked: Mutex::default() }
    }

    /// What the origin has for `key` when it is asked. Once it is kept, it is as if it had been written in that moment.
    fn loaded(&self, key: u16, who: u16) -> Bytes {
        let new = self.values.fetch_add(1, Ordering::Relaxed);
        let (generation, certain, tag, deadline, durable) = (None, false, None, None, false);
        let what = What::Write(Written { value: new, generation, certain, tag, deadline, durable });
        let moment = self.moment();
        let asked = Event { key: Some(key), who, life: 0, begun: moment, ended: moment, what };
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
        value(key, new)
    }

    pub(crate) fn moment(&self) -> u64 {
        self.moments.fetch_add(1, Ordering::SeqCst)
    }

    /// Microseconds.
    pub(crate) fn clock(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }
}

struct Client {
    cache: CacheManager,
    board: Arc<Board>,
    random: Random,
    who: u16,
    keys: u16,
    events: Vec<Event>,
    transactions: Vec<Transaction>,
}

impl Client {
    fn new(storm: &Storm, cache: &CacheManager, board: &Arc<Board>, who: u16) -> Self {
        Self {
            cache: cache.clone(),
            board: board.clone(),
            random: Random::new(storm.seed.wrapping_mul(1_000_003) + u64::from(who)),
            who,
            keys: storm.keys,
            events: Vec::new(),
            transactions: Vec::new(),
        }
    }

    async fn act(&mut self, operations: u32, mix: Mix) -> Result<(), String> {
        for _ in 0..operations {
            let (act, key) = (self.random.pick(mix), self.key());
            match act {
                Act::Get | Act::Entry => self.read(key, act == Act::Entry).await?,
                Act::GetMany => self.read_many(key).await?,
                Act::Contains => drop(self.cache.contains(name(key)).await.map_err(failed(act))?),
                Act::Set | Act::SetShort | Act::Add | Act::Replace | Act::CompareAndSet => {
                    self.set(key, act).await?;
                }
                Act::SetMany => self.set_many(key).await?,
                Act::DeleteMany => self.delete_many(key).await?,
                Act::Load => self.load(key).await?,
                Act::LoadMany => self.load_many(key).await?,
                Act::Pop => self.pop(key).await?,
                Act::Transact => self.transact(key).await?,
                Act::Drop => self.begin_and_drop(key).await,
                Act::Prune => drop(self.cache.prune().await.map_err(failed(act))?),
                Act::GetAndTouch
                | Act::Touch
                | Act::Delete
                | Act::InvalidateTag
                | Act::Clear
                | Act::Flush => {
                    self.change(key, act).await?;
                }
            }
            // A task that never waits would keep a worker to itself.
            tokio::task::consume_budget().await;
        }
        Ok(())
    }

    async fn read_all(&mut self) -> Result<(), String> {
        for key in 0..self.keys {
            self.read(key, false).await?;
        }
        Ok(())
    }

    async fn read(&mut self, key: u16, entry: bool) -> Result<(), String> {
        let (clock, begun) = (self.board.clock(), self.board.moment());
        let found = if entry {
            self.cache.entry(name(key)).await.map(|found| found.map(|entry| entry.value))
        } else {
            self.cache.get(name(key)).await
        };
        let ended = self.board.moment();
        let value = numbered(key, found.map_err(failed(Act::Get))?)?;
        self.note(Some(key), begun, ended, What::Read { value, clock });
        Ok(())
    }

    async fn read_many(&mut self, key: u16) -> Result<(), String> {
        let keys = self.four(key);
        let names: Vec<String> = keys.iter().map(|key| name(*key)).collect();
        let (clock, begun) = (self.board.clock(), self.board.moment());
        let found = self.cache.get_many(&names).await.map_err(failed(Act::GetMany))?;
        let ended = self.board.moment();
        for (key, found) in keys.into_iter().zip(found) {
            let value = numbered(key, found)?;
            self.note(Some(key), begun, ended, What::Read { value, clock });
        }
        Ok(())
    }

    async fn set(&mut self, key: u16, act: Act) -> Result<(), String> {
        let new = self.board.values.fetch_add(1, Ordering::Relaxed);
        let tag = self.random.once_in(2).then(|| self.tag());
        let life = Duration::from_millis(1 + self.random.below(8));
        let mut begun = self.board.moment();
        let mut set = match act {
            Act::Replace => self.cache.replace(name(key), value(key, new)),
            Act::CompareAndSet => {
                let Some(read) = self.cache.read(name(key)).await.map_err(failed(act))? else {
                    return Ok(());
                };
                begun = self.board.moment();
                self.cache.compare_and_set(name(key), read.generation, value(key, new))
            }
            _ => self.cache.set(name(key), value(key, new)),
        };
        if let Some(tag) = tag {
            set = set.tag("t", tag.to_string());
        }
        set = match act {
            Act::SetShort => set.ttl(life),
            Act::Add => set.only_if_absent(),
            _ => set,
        };
        let done = set.await.map_err(failed(act))?;
        // Deadlines are whole milliseconds.
        let deadline = self.board.clock() + life.as_micros() as u64 + 1_000;
        let ended = self.board.moment();
        if done.stored {
            let written = Written {
                value: new,
                generation: Some(done.generation.get()),
                certain: done.degraded.is_empty(),
                tag,
                deadline: (act == Act::SetShort).then_some(deadline),
                durable: false,
            };
            self.note(Some(key), begun, ended, What::Write(written));
        }
        Ok(())
    }

    async fn set_many(&mut self, key: u16) -> Result<(), String> {
        let keys = self.four(key);
        let news = keys.map(|_| self.board.values.fetch_add(1, Ordering::Relaxed));
        let pairs = keys.into_iter().zip(news).map(|(key, new)| (name(key), value(key, new)));
        let begun = self.board.moment();
        let done = self.cache.set_many(pairs).await;
        let ended = self.board.moment();
        for ((key, new), done) in keys.into_iter().zip(news).zip(done) {
            let done = done.map_err(failed(Act::SetMany))?;
            let (generation, certain) = (Some(done.generation.get()), done.degraded.is_empty());
            let written =
                Written { value: new, generation, certain, tag: None, deadline: None, durable: false };
            self.note(Some(key), begun, ended, What::Write(written));
        }
        Ok(())
    }

    async fn delete_many(&mut self, key: u16) -> Result<(), String> {
        let keys = self.four(key);
        let begun = self.board.moment();
        let removed = self.cache.delete_many(&keys.map(name)).await.map_err(failed(Act::DeleteMany))?;
        let ended = self.board.moment();
        for (key, removed) in keys.into_iter().zip(removed) {
            let what = What::Remove { tag: None, certain: removed.degraded.is_empty() };
            self.note(Some(key), begun, ended, what);
        }
        Ok(())
    }

    async fn load(&mut self, key: u16) -> Result<(), String> {
        let (board, who) = (self.board.clone(), self.who);
        let (clock, begun) = (self.board.clock(), self.board.moment());
        let loaded = self.cache.get_or_load(name(key), move || async move {
            // Somebody may change the key while the origin answers.
            let new = board.loaded(key, who);
            tokio::task::yield_now().await;
            Ok::<_, Infallible>(new)
        });
        let found = loaded.await.map_err(failed(Act::Load))?;
        let ended = self.board.moment();
        let value = number(key, &found)?;
        self.note(Some(key), begun, ended, What::Answer { value, clock });
        Ok(())
    }

    async fn load_many(&mut self, key: u16) -> Result<(), String> {
        let keys = self.four(key);
        let (board, who) = (self.board.clone(), self.who);
        let (clock, begun) = (self.board.clock(), self.board.moment());
        let loader = move |names: Vec<String>| {
            let wanted = keys.into_iter().filter(|key| names.contains(&name(*key)));
            let found: HashMap<_, _> = wanted.map(|key| (name(key), board.loaded(key, who))).collect();
            async move {
                tokio::task::yield_now().await;
                Ok::<_, Infallible>(found)
            }
        };
        let found = self.cache.get_or_load_many(&keys.map(name), &LoadOptions::new(), loader).await;
        let ended = self.board.moment();
        for (key, found) in keys.into_iter().zip(found.map_err(failed(Act::LoadMany))?) {
            let value = numbered(key, found)?.ok_or("what was loaded is told to be missing")?;
            self.note(Some(key), begun, ended, What::Answer { value, clock });
        }
        Ok(())
    }

    async fn pop(&mut self, key: u16) -> Result<(), String> {
        let (clock, begun) = (self.board.clock(), self.board.moment());
        let popped = self.cache.pop(name(key)).await.map_err(failed(Act::Pop))?;
        let ended = self.board.moment();
        let value = numbered(key, popped.value)?;
        self.note(Some(key), begun, ended, What::Pop { value, clock });
        Ok(())
    }

    async fn change(&mut self, key: u16, act: Act) -> Result<(), String> {
        let (tag, level) = (self.tag(), Level::ALL[self.random.below(3) as usize]);
        let begun = self.board.moment();
        let certain = |removed: tiercache_core::Removed| removed.degraded.is_empty();
        let (key, what) = match act {
            Act::Delete => {
                let certain = self.cache.delete(name(key)).await.map(certain);
                (Some(key), certain.map(|certain| What::Remove { tag: None, certain }))
            }
            Act::InvalidateTag => {
                let certain = self.cache.invalidate_tag("t", tag.to_string()).await.map(certain);
                (None, certain.map(|certain| What::Remove { tag: Some(tag), certain }))
            }
            Act::Clear => {
                let certain = self.cache.clear().await.map(certain);
                (None, certain.map(|certain| What::Remove { tag: None, certain }))
            }
            Act::Flush => (None, self.cache.flush(level).await.map(|()| What::Flush)),
            _ => {
                let touched = match act {
                    Act::Touch => self.cache.touch(name(key), None).await.map(drop),
                    _ => self.cache.get_and_touch(name(key), None).await.map(drop),
                };
                (Some(key), touched.map(|()| What::Touch { durable: true }))
            }
        };
        let what = what.map_err(failed(act))?;
        let ended = self.board.moment();
        self.note(key, begun, ended, what);
        Ok(())
    }

    /// Nobody learns what became of it.
    async fn begin_and_drop(&mut self, key: u16) {
        let polls = self.random.below(4) as u32;
        let kind = self.random.below(3);
        let new = self.board.values.fetch_add(1, Ordering::Relaxed);
        let begun = self.board.moment();
        let what = match kind {
            0 => {
                for_some_polls(self.cache.get(name(key)), polls).await;
                return;
            }
            1 => {
                for_some_polls(self.cache.delete(name(key)), polls).await;
                What::Remove { tag: None, certain: false }
            }
            _ => {
                for_some_polls(self.cache.set(name(key), value(key, new)).into_future(), polls).await;
                let (generation, certain, tag, deadline, durable) = (None, false, None, None, false);
                What::Write(Written { value: new, generation, certain, tag, deadline, durable })
            }
        };
        self.note(Some(key), begun, NEVER, what);
    }

    fn note(&mut self, key: Option<u16>, begun: u64, ended: u64, what: What) {
        self.events.push(Event { key, who: self.who, life: 0, begun, ended, what });
    }

    fn four(&self, key: u16) -> [u16; 4] {
        std::array::from_fn(|at| (key + at as u16) % self.keys)
    }

    fn key(&mut self) -> u16 {
        self.random.below(self.keys.into()) as u16
    }

    fn tag(&mut self) -> u8 {
        self.random.below(TAGS) as u8
    }
}

/// The statistics once nothing is on its way or in flight any more, or after some seconds of waiting for that.
pub(crate) async fn at_rest(cache: &CacheManager) -> Result<Stats> {
    let patience = Instant::now() + Duration::from_secs(10);
    loop {
        cache.settle().await?;
        let stats = cache.stats().await?;
        if (stats.pending, stats.in_flight) == ((0, 0), 0) || Instant::now() > patience {
            return Ok(stats);
        }
        tokio::task::yield_now().await;
    }
}

/// The number of what was found, if something was.
pub(crate) fn numbered(key: u16, found: Option<Bytes>) -> Result<Option<u64>, String> {
    found.map(|value| number(key, &value)).transpose()
}

fn failed(act: Act) -> impl Fn(tiercache_core::Error) -> String {
    move |error| format!("{act:?}: {error}")
}

pub(crate) async fn for_some_polls<F: Future>(future: F, polls: u32) {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(|context| {
        if left == 0 || future.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        left -= 1;
        if left == 0 { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
