//! Many clients on few counters, on real threads, with values of the same names coming and going around them; what was
//! seen is judged by [`crate::sums`].

use std::future::{Future, IntoFuture};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tiercache_core::testing::MemoryTier;
use tiercache_core::{CacheManager, Level, Limits, Result, SystemClock, Tier};
use tiercache_ram::{Policy, RamConfig, RamTier};
use tiercache_sqlite::SqliteTier;

use crate::history::NEVER;
use crate::storm::{Board, for_some_polls, run_all, sqlite_config};
use crate::sums::{Event, Tally, What, delta, judge, start, taken_apart};
use crate::values::{Random, name, number, value};

/// A storm over counters.
#[derive(Clone, Debug)]
pub struct Counting {
    /// Clients draw from this and their number.
    pub seed: u64,
    /// How many counters there are.
    pub counters: u16,
    /// How many of them are never removed nor cleared.
    pub lasting: u16,
    /// How many caches there are over what is opened, one of them for each client in turn.
    pub caches: u16,
    /// Clients, the first half of them as tasks, the others on threads of their own.
    pub clients: u16,
    /// Operations of each.
    pub operations: u32,
    /// Whether they are cleared, too; not where other processes learn of that a moment later.
    pub clears: bool,
    /// Whether counters are still there when all have closed the cache and it is opened anew.
    pub survive: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Add,
    /// With some milliseconds to live, if there is no counter.
    AddShort,
    /// The future is dropped after some polls.
    AddAndDrop,
    Read,
    Remove,
    RemoveAndDrop,
    Clear,
    /// Drops the counters of the level they are at.
    FlushHome,
    /// Values of the same names, and of others.
    Set,
    Get,
    Delete,
    InvalidateTag,
    ClearOthers,
    Prune,
}

const ACTS: &[(Act, u32)] = &[
    (Act::Add, 60),
    (Act::AddShort, 8),
    (Act::AddAndDrop, 8),
    (Act::Read, 30),
    (Act::Remove, 8),
    (Act::RemoveAndDrop, 1),
    (Act::Clear, 1),
    (Act::FlushHome, 1),
    (Act::Set, 30),
    (Act::Get, 10),
    (Act::Delete, 4),
    (Act::InvalidateTag, 1),
    (Act::ClearOthers, 1),
    (Act::Prune, 1),
];

/// What RAM holds: an eighth of it is for counters.
const HOT: u64 = 24 << 10;
/// The namespace of counters that are never removed.
const LASTING: &str = "lasting";
/// Names of values, the first of which are those of counters too.
const VALUES: u64 = 64;

impl Counting {
    /// Lets it rage over counters in RAM, above a level that values sink to.
    ///
    /// # Errors
    /// The promise that was broken.
    pub fn in_ram(&self) -> Result<Tally, String> {
        let below = MemoryTier::persistent();
        self.rage(|| over(below.clone(), Level::Hot))
    }

    /// Lets it rage over counters in SQLite databases.
    ///
    /// # Errors
    /// The promise that was broken.
    pub fn in_sqlite(&self) -> Result<Tally, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let open = async |folder: &Path| {
            let tier = SqliteTier::open(sqlite_config(folder), SystemClock::start()).await?;
            over(Arc::new(tier), Level::Dry).await
        };
        self.rage(|| open(folder.path()))
    }

    /// Lets it rage over caches that `open` opens over one store, and judges all that was seen.
    ///
    /// # Errors
    /// The promise that was broken.
    pub fn rage<F>(&self, open: impl Fn() -> F) -> Result<Tally, String>
    where
        F: Future<Output = Result<CacheManager>>,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let failed = |error: tiercache_core::Error| error.to_string();
        let rage = || {
            let board = Arc::new(Board::new());
            let caches: Vec<_> =
                (0..self.caches).map(|_| runtime.block_on(open())).collect::<Result<_>>().map_err(failed)?;
            let work = (0..self.clients).map(|who| {
                let cache = &caches[usize::from(who) % caches.len()];
                let (client, operations) = (Client::new(self, cache, &board, who), self.operations);
                async move {
                    let mut client = client?;
                    client.act(operations).await.map(|()| client.events)
                }
            });
            let mut events: Vec<Event> = run_all(&runtime, work.collect())?.into_iter().flatten().collect();
            runtime.block_on(self.all_made(&caches[0], &events)).map_err(failed)?;
            let mut last = Client::new(self, &caches[0], &board, u16::MAX)?;
            runtime.block_on(last.read_all())?;
            for cache in &caches {
                runtime.block_on(cache.close(Duration::from_secs(20))).map_err(failed)?;
            }
            events.append(&mut last.events);
            if self.survive {
                let anew = runtime.block_on(open()).map_err(failed)?;
                let mut last = Client::new(self, &anew, &board, u16::MAX)?;
                runtime.block_on(last.read_all())?;
                runtime.block_on(anew.close(Duration::from_secs(20))).map_err(failed)?;
                events.append(&mut last.events);
            }
            judge(&events, self.lasting)
        };
        rage().map_err(|broken| format!("{self:?}\n{broken}"))
    }

    /// Waits for additions that nobody waited for, some seconds at most: those that are lost are the judge's.
    async fn all_made(&self, cache: &CacheManager, events: &[Event]) -> Result<()> {
        let (patience, lasting) = (Instant::now() + Duration::from_secs(10), cache.namespace(LASTING)?);
        for counter in 0..self.lasting {
            let additions =
                |event: &&Event| event.counter == Some(counter) && matches!(event.what, What::Add { .. });
            let additions = events.iter().filter(additions).count() as u64;
            while additions > 0
                && lasting.counter(name(counter)).await?.is_none_or(|sum| taken_apart(sum).place < additions)
                && Instant::now() < patience
            {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }
}

/// A cache with a small level in RAM above `dry`, and counters at `home`.
///
/// # Errors
/// As for building one.
pub async fn over(dry: Arc<dyn Tier>, home: Level) -> Result<CacheManager> {
    let hot = RamTier::new(RamConfig { max_size: HOT, policy: Policy::Adaptive });
    // A machine that is busy is no reason to fail.
    let patient = Limits { read_timeout: Duration::from_secs(60), write_timeout: Duration::from_secs(60) };
    let builder = CacheManager::builder().clock(SystemClock::start()).hot(Arc::new(hot)).dry(dry);
    let builder = builder.limits(Level::Dry, patient).counters(home);
    builder.sweep_every(Duration::from_millis(5)).build().await
}

struct Client {
    /// Where counters are never removed, and where they are.
    lasting: CacheManager,
    passing: CacheManager,
    /// Where values are cleared.
    others: CacheManager,
    home: Level,
    board: Arc<Board>,
    random: Random,
    who: u16,
    counters: u16,
    lasting_below: u16,
    clears: bool,
    events: Vec<Event>,
}

impl Client {
    fn new(storm: &Counting, cache: &CacheManager, board: &Arc<Board>, who: u16) -> Result<Self, String> {
        let failed = |error: tiercache_core::Error| error.to_string();
        let namespace = |name| cache.namespace(name).map_err(failed);
        Ok(Self {
            lasting: namespace(LASTING)?,
            passing: namespace("passing")?,
            others: namespace("others")?,
            home: cache.counter_level().map_err(failed)?,
            board: board.clone(),
            random: Random::new(storm.seed.wrapping_mul(1_000_003) + u64::from(who)),
            who,
            counters: storm.counters,
            lasting_below: storm.lasting,
            clears: storm.clears,
            events: Vec::new(),
        })
    }

    async fn act(&mut self, operations: u32) -> Result<(), String> {
        for _ in 0..operations {
            let (act, counter) = (self.random.pick(ACTS), self.random.below(self.counters.into()) as u16);
            self.one(act, counter).await.map_err(|error| format!("{act:?}: {error}"))?;
            // A task that never waits would keep a worker to itself.
            tokio::task::consume_budget().await;
        }
        Ok(())
    }

    async fn one(&mut self, act: Act, counter: u16) -> Result<(), String> {
        let passing =
            self.random.below(u64::from(self.counters - self.lasting_below)) as u16 + self.lasting_below;
        match act {
            Act::Add => self.add(counter, None, None).await,
            Act::AddShort => {
                let ttl = Duration::from_millis(1 + self.random.below(20));
                self.add(passing, Some(ttl), None).await
            }
            Act::AddAndDrop => {
                let polls = 1 + self.random.below(4) as u32;
                self.add(counter, None, Some(polls)).await
            }
            Act::Read => self.read(counter).await,
            Act::Remove | Act::RemoveAndDrop => self.remove(passing, act == Act::RemoveAndDrop).await,
            Act::Clear | Act::FlushHome if !self.clears => Ok(()),
            Act::Clear | Act::FlushHome => self.clear(act).await,
            _ => self.values(act).await.map_err(|error| error.to_string()),
        }
    }

    async fn add(&mut self, counter: u16, ttl: Option<Duration>, polls: Option<u32>) -> Result<(), String> {
        let number = self.board.values.fetch_add(1, Ordering::Relaxed);
        let amount = self.random.below(100) as i64 - 40;
        let cache = self.of(counter);
        let (clock, begun) = (self.board.clock(), self.board.moment());
        // Where the sum of both is below nothing it is taken away, which must come to the same.
        let delta = delta(amount);
        let addition = if delta < 0 {
            cache.decr(name(counter)).by(-delta)
        } else {
            cache.incr(name(counter)).by(delta)
        };
        let addition = addition.start(start(number));
        let addition = if let Some(ttl) = ttl { addition.ttl(ttl) } else { addition };
        let sum = match polls {
            Some(polls) => {
                for_some_polls(addition.into_future(), polls).await;
                None
            }
            None => Some(taken_apart(addition.await.map_err(|error| error.to_string())?)),
        };
        let ttl = ttl.map(|ttl| ttl.as_micros() as u64);
        let ended = if sum.is_some() { self.board.moment() } else { NEVER };
        self.note(Some(counter), (begun, ended), clock, What::Add { number, amount, ttl, sum });
        Ok(())
    }

    async fn read(&mut self, counter: u16) -> Result<(), String> {
        let (clock, begun) = (self.board.clock(), self.board.moment());
        let found = self.of(counter).counter(name(counter)).await.map_err(|error| error.to_string())?;
        let ended = self.board.moment();
        self.note(Some(counter), (begun, ended), clock, What::Read(found.map(taken_apart)));
        Ok(())
    }

    async fn read_all(&mut self) -> Result<(), String> {
        for counter in 0..self.counters {
            self.read(counter).await?;
        }
        Ok(())
    }

    async fn remove(&mut self, counter: u16, and_drop: bool) -> Result<(), String> {
        let polls = 1 + self.random.below(4) as u32;
        let (clock, begun) = (self.board.clock(), self.board.moment());
        let removal = self.passing.remove_counter(name(counter));
        let (ended, found) = if and_drop {
            for_some_polls(removal, polls).await;
            (NEVER, None)
        } else {
            let found = removal.await.map_err(|error| error.to_string())?;
            (self.board.moment(), Some(found))
        };
        self.note(Some(counter), (begun, ended), clock, What::Remove(found));
        Ok(())
    }

    async fn clear(&mut self, act: Act) -> Result<(), String> {
        let (clock, begun) = (self.board.clock(), self.board.moment());
        if act == Act::Clear {
            let cleared = self.passing.clear().await.map_err(|error| error.to_string())?;
            if !cleared.degraded.is_empty() {
                return Err(format!("it did not reach every level: {cleared:?}"));
            }
        } else {
            self.passing.flush(self.home).await.map_err(|error| error.to_string())?;
        }
        let ended = self.board.moment();
        self.note(None, (begun, ended), clock, What::Clear);
        Ok(())
    }

    /// What must leave counters alone.
    async fn values(&mut self, act: Act) -> Result<(), tiercache_core::Error> {
        let key = self.random.below(VALUES) as u16;
        let new = self.board.values.fetch_add(1, Ordering::Relaxed);
        let cache = [&self.lasting, &self.passing, &self.others][self.random.below(3) as usize];
        match act {
            Act::Set => drop(cache.set(name(key), value(key, new)).tag("t", "1").await?),
            Act::Get => {
                if let Some(found) = cache.get(name(key)).await? {
                    number(key, &found).map_err(tiercache_core::Error::Refused)?;
                }
            }
            Act::Delete => drop(cache.delete(name(key)).await?),
            Act::InvalidateTag => drop(cache.invalidate_tag("t", "1").await?),
            Act::ClearOthers => drop(self.others.clear().await?),
            _ => drop(cache.prune().await?),
        }
        Ok(())
    }

    fn of(&self, counter: u16) -> &CacheManager {
        if counter < self.lasting_below { &self.lasting } else { &self.passing }
    }

    fn note(&mut self, counter: Option<u16>, (begun, ended): (u64, u64), clock: u64, what: What) {
        // What nobody waited for may have come at any time since.
        let clock = (clock, if ended == NEVER { u64::MAX } else { self.board.clock() });
        self.events.push(Event { counter, who: self.who, begun, ended, clock, what });
    }
}
