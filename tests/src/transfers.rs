//! Many clients that move amounts between few accounts in transactions, on real threads, in one process or several over
//! one directory, while other keys come and go; what was seen is judged by [`crate::serial`].
//!
//! The number of a value has the balance in its low bits, so that the sum of all accounts can be checked wherever all are
//! read in one transaction.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tiercache_core::{CacheManager, Error, Level, Limits, Result, SystemClock, Transaction};
use tiercache_ram::{Policy, RamConfig, RamTier};
use tiercache_sqlite::{SqliteConfig, SqliteTier};

use crate::history::NEVER;
use crate::serial::{self, Get, Keys, judge};
use crate::storm::transact::{GIVEN_UP, read};
use crate::storm::{Board, at_rest, for_some_polls, numbered, run_all, sqlite_config};
use crate::values::{Random, name, value};

const ACCOUNTS: u16 = 6;
const BALANCE: u64 = 1_000;
const BALANCE_BITS: u32 = 16;
/// Keys beside the accounts.
const OTHERS: u64 = 24;

/// A storm of transfers.
#[derive(Clone, Debug)]
pub struct Transfers {
    /// Clients draw from this and their number.
    pub seed: u64,
    /// The engine of the level in RAM.
    pub policy: Policy,
    /// Databases the accounts are spread over.
    pub shards: u32,
    /// Caches over one directory, one of them for each client in turn.
    pub processes: u16,
    /// Clients, the first half of them as tasks, the others on threads of their own.
    pub clients: u16,
    /// Operations of each.
    pub operations: u32,
}

/// What it came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Transactions that were committed.
    pub committed: u64,
    /// Of those, the ones that nobody waited for.
    pub unheard: u64,
    /// Transactions that changed nothing, or were given up.
    pub others: u64,
    /// Gets outside transactions.
    pub gets: u64,
    /// Of those, the ones that found something.
    pub hits: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Transfer,
    /// Fails at its end.
    GiveUp,
    /// The future is dropped after some polls.
    TransferAndDrop,
    /// Reads all accounts.
    Audit,
    Get,
    /// Sets, removals and gets of other keys, so that accounts leave RAM.
    Others,
}

const ACTS: &[(Act, u32)] = &[
    (Act::Transfer, 10),
    (Act::GiveUp, 3),
    (Act::TransferAndDrop, 2),
    (Act::Audit, 2),
    (Act::Get, 40),
    (Act::Others, 30),
];

impl Transfers {
    /// Lets it rage, then opens what it left behind, and judges all that was seen.
    ///
    /// # Errors
    /// The promise that was broken.
    pub fn rage(&self) -> Result<Tally, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let failed = |error: Error| error.to_string();
        let rage = || {
            let open = || runtime.block_on(self.open(folder.path())).map_err(failed);
            let caches: Vec<CacheManager> = (0..self.processes).map(|_| open()).collect::<Result<_, _>>()?;
            let shared = Arc::new(Shared { board: Board::new(), made: Mutex::default() });
            let mut first = Client::new(self, &caches, &shared, u16::MAX);
            runtime.block_on(first.make())?;
            let work = (0..self.clients).map(|who| {
                let (mut client, operations) = (Client::new(self, &caches, &shared, who), self.operations);
                async move { client.act(operations).await.map(|()| (client.gets, client.left_alone)) }
            });
            let (mut gets, mut left_alone) = (Vec::new(), Vec::new());
            for (seen, alone) in run_all(&runtime, work.collect())? {
                gets.extend(seen);
                left_alone.extend(alone);
            }
            let patience = Instant::now() + Duration::from_secs(20);
            while left_alone.iter().any(|work: &Noted| Arc::strong_count(work) > 1) {
                if Instant::now() > patience {
                    return Err("a transaction that nobody waits for is not carried out".into());
                }
                std::thread::yield_now();
            }
            for cache in &caches {
                let stats = runtime.block_on(at_rest(cache)).map_err(failed)?;
                if (stats.pending, stats.in_flight) != ((0, 0), 0) {
                    return Err(format!("something is left on its way or in flight: {stats:?}"));
                }
            }
            // What nobody waited for is over by now.
            let (rest, mut unheard) = (shared.board.moment(), 0);
            for made in shared.made().iter_mut().filter(|made| made.ended == NEVER) {
                (made.ended, unheard) = (rest, unheard + 1);
            }
            let mut last = Client::new(self, &caches, &shared, 0);
            runtime.block_on(last.read_all())?;
            for cache in &caches {
                runtime.block_on(cache.close(Duration::from_secs(20))).map_err(failed)?;
            }
            let mut anew = Client::new(self, &[open()?], &shared, 0);
            runtime.block_on(anew.read_all())?;
            runtime.block_on(anew.cache.close(Duration::from_secs(20))).map_err(failed)?;
            gets.extend(last.gets.into_iter().chain(anew.gets));
            let report = SqliteTier::check(&folder.path().join("dry"), false, &mut |_, _| {});
            let report = report.map_err(failed)?;
            if !report.is_clean() || report.unfinished > 0 {
                return Err(format!("the directory is not as it should be: {report:?}"));
            }
            let made = shared.made();
            judge(&made, &gets, Keys::OfTransactions { processes: self.processes })?;
            let committed = made.iter().filter(|made| !made.left.is_empty()).count() as u64;
            let hits = gets.iter().filter(|get| get.value.is_some()).count() as u64;
            let others = made.len() as u64 - committed;
            Ok(Tally { committed, unheard, others, gets: gets.len() as u64, hits })
        };
        rage().map_err(|broken| format!("{self:?}\n{broken}"))
    }

    async fn open(&self, folder: &Path) -> Result<CacheManager> {
        let clock = SystemClock::start();
        let config = SqliteConfig { shards: Some(self.shards), ..sqlite_config(folder) };
        let ram = RamConfig { max_size: 5 * (self.policy.overhead() + 300), policy: self.policy };
        // A machine that is busy is no reason to fail.
        let patient =
            Limits { read_timeout: Duration::from_secs(60), write_timeout: Duration::from_secs(60) };
        let builder = CacheManager::builder()
            .clock(clock.clone())
            .hot(Arc::new(RamTier::new(ram)))
            .dry(Arc::new(SqliteTier::open(config, clock).await?))
            .limits(Level::Dry, patient)
            .sweep_every(Duration::from_millis(5));
        builder.build().await
    }
}

/// What the clients share.
struct Shared {
    board: Board,
    /// Transactions whose work has ended, which is noted before they are committed.
    made: Mutex<Vec<serial::Transaction>>,
}

impl Shared {
    fn made(&self) -> std::sync::MutexGuard<'_, Vec<serial::Transaction>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a transaction is to do.
#[derive(Clone, Debug)]
struct Plan {
    keys: Vec<u16>,
    /// New numbers, without balances.
    numbers: Vec<u64>,
    amount: u64,
    /// Whether parts of it are savepoints, one of which is undone.
    parts: bool,
    gives_up: bool,
}

/// Where in the list of those that were made a transaction is; its work has this too until it has ended.
type Noted = Arc<Mutex<Option<usize>>>;

struct Client {
    cache: CacheManager,
    shared: Arc<Shared>,
    random: Random,
    process: u16,
    gets: Vec<Get>,
    /// Transactions that nobody waits for.
    left_alone: Vec<Noted>,
}

impl Client {
    fn new(storm: &Transfers, caches: &[CacheManager], shared: &Arc<Shared>, who: u16) -> Self {
        let process = who % caches.len() as u16;
        Self {
            cache: caches[usize::from(process)].clone(),
            shared: shared.clone(),
            random: Random::new(storm.seed.wrapping_mul(1_000_003) + u64::from(who)),
            process,
            gets: Vec::new(),
            left_alone: Vec::new(),
        }
    }

    /// The accounts, all at once.
    async fn make(&mut self) -> Result<(), String> {
        let (keys, board) = ((0..ACCOUNTS).collect::<Vec<_>>(), &self.shared.board);
        let left: Vec<(u16, u64)> = keys.iter().map(|key| (*key, self.number() | BALANCE)).collect();
        let begun = board.moment();
        let (named, values) = (names(&keys), left.clone());
        let made = self.cache.transaction(&named, move |tx| {
            values.iter().try_for_each(|(key, number)| tx.set(name(*key), value(*key, *number)))
        });
        made.await.map_err(|error| error.to_string())?;
        let (ended, process) = (board.moment(), self.process);
        let left = left.into_iter().map(|(key, number)| (key, Some(number))).collect();
        self.shared.made().push(serial::Transaction { process, begun, ended, saw: Vec::new(), left });
        Ok(())
    }

    async fn act(&mut self, operations: u32) -> Result<(), String> {
        for _ in 0..operations {
            let act = self.random.pick(ACTS);
            let done = match act {
                Act::Transfer | Act::GiveUp => self.transfer(act == Act::GiveUp, None).await,
                Act::TransferAndDrop => {
                    let polls = 1 + self.random.below(3) as u32;
                    self.transfer(false, Some(polls)).await
                }
                Act::Audit => self.audit().await,
                Act::Get => {
                    let key = self.random.below(ACCOUNTS.into()) as u16;
                    self.get(key).await
                }
                Act::Others => self.others().await,
            };
            done.map_err(|error| format!("{act:?}: {error}"))?;
            // A task that never waits would keep a worker to itself.
            tokio::task::consume_budget().await;
        }
        Ok(())
    }

    async fn transfer(&mut self, gives_up: bool, polls: Option<u32>) -> Result<()> {
        let first = self.random.below(ACCOUNTS.into()) as u16;
        let step = 1 + self.random.below(2) as u16;
        let count = 2 + self.random.below(2) as u16;
        let keys: Vec<u16> = (0..count).map(|at| (first + at * step) % ACCOUNTS).collect();
        let numbers = (0..=count).map(|_| self.number()).collect();
        let (amount, parts) = (self.random.below(40), self.random.once_in(2));
        let plan = Plan { keys: keys.clone(), numbers, amount, parts, gives_up };
        let (shared, process, begun) = (self.shared.clone(), self.process, self.shared.board.moment());
        let at = Noted::default();
        let noted = at.clone();
        let work = move |tx: &mut Transaction<'_>| {
            let (saw, left) = plan.carry_out(tx)?;
            let left = if plan.gives_up { Vec::new() } else { left };
            let mut made = shared.made();
            *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(made.len());
            made.push(serial::Transaction { process, begun, ended: NEVER, saw, left });
            if plan.gives_up { Err(Error::Refused(GIVEN_UP.into())) } else { Ok(()) }
        };
        let named = names(&keys);
        let transaction = self.cache.transaction(&named, work);
        if let Some(polls) = polls {
            for_some_polls(transaction, polls).await;
            self.left_alone.push(at);
            return Ok(());
        }
        match transaction.await {
            Ok(()) => {}
            Err(Error::Refused(why)) if gives_up && why == GIVEN_UP => {}
            Err(error) => return Err(error),
        }
        let ended = self.shared.board.moment();
        let at = *at.lock().unwrap_or_else(PoisonError::into_inner);
        match at.and_then(|at| self.shared.made().get_mut(at).map(|made| made.ended = ended)) {
            Some(()) => Ok(()),
            None => Err(Error::Refused("it ended without its work".into())),
        }
    }

    async fn audit(&mut self) -> Result<()> {
        let keys: Vec<u16> = (0..ACCOUNTS).collect();
        let begun = self.shared.board.moment();
        let (named, all) = (names(&keys), keys);
        let saw = self.cache.transaction(&named, move |tx| {
            all.iter().map(|key| Ok((*key, read(tx, *key)?))).collect::<Result<Vec<_>>>()
        });
        let saw = saw.await?;
        let (ended, process) = (self.shared.board.moment(), self.process);
        let sum: u64 = saw.iter().filter_map(|(_, number)| number.map(balance)).sum();
        if sum != u64::from(ACCOUNTS) * BALANCE {
            return Err(Error::Refused(format!("all accounts have {sum} together: {saw:?}")));
        }
        self.shared.made().push(serial::Transaction { process, begun, ended, saw, left: Vec::new() });
        Ok(())
    }

    async fn get(&mut self, key: u16) -> Result<()> {
        let begun = self.shared.board.moment();
        let found = self.cache.get(name(key)).await?;
        let ended = self.shared.board.moment();
        let value = numbered(key, found).map_err(Error::Refused)?;
        self.gets.push(Get { key, process: self.process, begun, ended, value });
        Ok(())
    }

    async fn read_all(&mut self) -> Result<(), String> {
        let read = async {
            for key in 0..ACCOUNTS {
                self.get(key).await?;
            }
            self.audit().await
        };
        read.await.map_err(|error| error.to_string())
    }

    async fn others(&mut self) -> Result<()> {
        let key = ACCOUNTS + self.random.below(OTHERS) as u16;
        match self.random.below(8) {
            0 => drop(self.cache.delete(name(key)).await?),
            1 | 2 => drop(numbered(key, self.cache.get(name(key)).await?).map_err(Error::Refused)?),
            3 => drop(self.cache.prune().await?),
            _ => drop(self.cache.set(name(key), value(key, self.number())).await?),
        }
        Ok(())
    }

    fn number(&self) -> u64 {
        self.shared.board.values.fetch_add(1, Ordering::Relaxed) << BALANCE_BITS
    }
}

/// Keys with the numbers of their values.
type Values = Vec<(u16, Option<u64>)>;

impl Plan {
    /// Moves the amount from the first account to the second, and on from there. What it saw and what it left.
    fn carry_out(&self, tx: &mut Transaction<'_>) -> Result<(Values, Values)> {
        let saw = self.keys.iter().map(|key| Ok((*key, read(tx, *key)?))).collect::<Result<Values>>()?;
        let missing = || Error::Refused(format!("an account is missing: {saw:?}"));
        let mut balances = Vec::new();
        for (_, number) in &saw {
            balances.push(balance(number.ok_or_else(missing)?));
        }
        let amount = self.amount.min(balances[0]);
        balances[0] -= amount;
        if let Some(last) = balances.last_mut() {
            *last += amount;
        }
        let left: Vec<(u16, u64)> = self
            .keys
            .iter()
            .zip(&self.numbers)
            .zip(&balances)
            .map(|((key, new), has)| (*key, new | has))
            .collect();
        let set = |tx: &mut Transaction<'_>, (key, number): (u16, u64)| tx.set(name(key), value(key, number));
        if !self.parts {
            left.iter().try_for_each(|change| set(tx, *change))?;
        } else {
            set(tx, left[0])?;
            let stray = self.numbers[self.keys.len()];
            let undone: Result<()> = tx.nested(|tx| {
                tx.nested(|tx| set(tx, (self.keys[0], stray)))?;
                set(tx, (self.keys[1], stray))?;
                tx.delete(name(self.keys[0]))?;
                Err(Error::Refused(GIVEN_UP.into()))
            });
            let now = [read(tx, self.keys[0])?, read(tx, self.keys[1])?];
            if undone.is_ok() || now != [Some(left[0].1), saw[1].1] {
                return Err(Error::Refused(format!("{saw:?} was {now:?} after a part that was undone")));
            }
            tx.nested(|tx| left[1..].iter().try_for_each(|change| set(tx, *change)))?;
        }
        Ok((saw, left.into_iter().map(|(key, number)| (key, Some(number))).collect()))
    }
}

fn balance(number: u64) -> u64 {
    number & ((1 << BALANCE_BITS) - 1)
}

fn names(keys: &[u16]) -> Vec<String> {
    keys.iter().map(|key| name(*key)).collect()
}
