//! Transactions over several shards. SQLite commits each of its files for itself, so one of them decides.
//!
//! 1. In the order of the shards' numbers: their turn in this process, `BEGIN IMMEDIATE`, and what was decided before.
//! 2. The work, over all of them. Whatever fails up to here, all are rolled back.
//! 3. Into the first shard that was changed goes what the others are to do, and each of those notes that it is done.
//! 4. A file is made for each of the others, which says that it may be owed something.
//! 5. The first shard commits: the commit point.
//! 6. The others commit. Where that does not come about, since the process is killed or the disk is full, whoever writes
//!    to the shard next does it before anything else (see `redo.rs`), at the latest the next second's round of any
//!    process that has the level open, or its opening.
//! 7. The first shard's writer strikes what the others have done.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tiercache_core::{Error, Result};

use crate::redo::Change;
use crate::shard::Shard;
use crate::step::{Settled, Step};
use crate::tier::NAME;
use crate::transaction::OP;
use crate::turns::Turn;
use crate::writer::transact_in_turn;

/// A connection to each shard, made when it is needed first.
pub(crate) type Writers = BTreeMap<usize, Connection>;

/// Runs `work` over the shards, which are in order. Blocks.
pub(crate) fn run<T>(
    shards: &[Arc<Shard>],
    writers: &mut Writers,
    work: impl FnOnce(&mut [Step<'_>], &mut Vec<(usize, Change)>) -> Result<T>,
) -> Result<T> {
    let whole = || {
        let mut under_way = Begun::over(shards, writers)?;
        let mut changes = Vec::new();
        let done = work(&mut under_way.steps, &mut changes)?;
        under_way.decide(&changes)?.complete()?;
        Ok(done)
    };
    catch_unwind(AssertUnwindSafe(whole)).unwrap_or(Err(Error::Panicked { what: "work in a transaction" }))
}

/// Up to the commit point. Dropped before, nothing happened.
struct Begun<'a> {
    steps: Vec<Step<'a>>,
    transactions: Vec<Transaction<'a>>,
    turns: Vec<Turn<'a>>,
}

/// After it. Dropped before it is complete, whoever writes next completes it.
struct Decided<'a> {
    origin: &'a Shard,
    rest: Vec<(&'a Shard, &'a Connection, Transaction<'a>, Settled)>,
    _turns: Vec<Turn<'a>>,
}

impl<'a> Begun<'a> {
    fn over(shards: &'a [Arc<Shard>], writers: &'a mut Writers) -> Result<Self> {
        for shard in shards {
            if let Entry::Vacant(place) = writers.entry(shard.number) {
                place.insert(shard.writer().map_err(|error| failed(shard, error))?);
            }
        }
        let mut begun = Self { steps: Vec::new(), transactions: Vec::new(), turns: Vec::new() };
        for shard in shards {
            let Some(connection) = writers.get(&shard.number) else { continue };
            begun.turns.push(shard.turns.take_ahead());
            begun.begin(shard, connection).map_err(|error| failed(shard, error))?;
        }
        Ok(begun)
    }

    fn begin(&mut self, shard: &'a Shard, connection: &'a Connection) -> rusqlite::Result<()> {
        self.transactions.push(Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?);
        let mut step = Step::begin(shard, connection)?;
        step.see_through()?;
        self.steps.push(step);
        Ok(())
    }

    fn decide(self, changes: &[(usize, Change)]) -> Result<Decided<'a>> {
        // Before a redo is written where no transaction is any more.
        for step in &self.steps {
            step.check_whole().map_err(|error| failed(step.shard, error))?;
        }
        let changed = |step: &Step<'_>| changes.iter().any(|(shard, _)| *shard == step.shard.number);
        let first = self.steps.iter().position(changed).unwrap_or(0);
        let origin = self.steps[first].shard;
        let others: Vec<&Step<'_>> = self.steps[first + 1..].iter().filter(|step| changed(step)).collect();
        #[cfg(tiercache_bugs)]
        let others = if half_done() { Vec::new() } else { others };
        let noted = || -> rusqlite::Result<()> {
            // Above everything that any of them has done of this shard's, even if that was made anew since.
            let mut number = self.steps[first].last_redo()?;
            for other in &others {
                number = number.max(other.done_of(origin.number)?);
            }
            for other in &others {
                let to_do = changes.iter().filter(|(shard, _)| *shard == other.shard.number);
                let to_do: Vec<Change> = to_do.map(|(_, change)| change.clone()).collect();
                self.steps[first].write_redo(number + 1, other, &to_do)?;
                other.note_done_of(origin.number, number + 1)?;
            }
            Ok(())
        };
        noted().map_err(|error| failed(origin, error))?;
        for other in &others {
            let noted = other.shard.common.dir.owe(other.shard.number);
            noted.map_err(|error| Error::unavailable(NAME, OP, error))?;
        }
        drop(others);
        let mut rest = Vec::new();
        let mut decides = None;
        for (step, transaction) in self.steps.into_iter().zip(self.transactions) {
            let (shard, connection) = (step.shard, step.connection);
            let settled = step.finish().map_err(|error| failed(shard, error))?;
            if shard.number == origin.number {
                decides = Some((connection, transaction, settled));
                continue;
            }
            // A disk that is full says so here, as long as nothing is decided.
            connection.cache_flush().map_err(|error| failed(shard, error))?;
            rest.push((shard, connection, transaction, settled));
        }
        if let Some((connection, transaction, settled)) = decides {
            transaction.commit().map_err(|error| failed(origin, error))?;
            settled.settle(origin, connection);
        }
        rest.iter().for_each(|(.., settled)| settled.keep_files());
        Ok(Decided { origin, rest, _turns: self.turns })
    }
}

impl Decided<'_> {
    fn complete(self) -> Result<()> {
        #[cfg(tiercache_bugs)]
        if half_done() {
            return Ok(());
        }
        let mut outcome = Ok(());
        for (shard, connection, transaction, settled) in self.rest {
            match transaction.commit() {
                Ok(()) => settled.settle(shard, connection),
                Err(error) => {
                    tracing::warn!(tier = NAME, shard = shard.number, %error, "a part of a transaction is tried again");
                    // Bringing the log home may give back the room it takes.
                    let _ = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()));
                    if let Err(failure) = transact_in_turn(shard, connection, OP, |_| Ok(())) {
                        let why = failure.into_error(OP);
                        let told =
                            format!("it is committed, but shard {} has its part later: {why}", shard.number);
                        outcome = Err(Error::unavailable(NAME, OP, told));
                    }
                }
            }
        }
        if outcome.is_ok() {
            self.origin.later("strike", |step| step.strike_redo());
        }
        outcome
    }
}

#[cfg(tiercache_bugs)]
fn half_done() -> bool {
    tiercache_core::bugs::seeded("transaction-half-done")
}

fn failed(shard: &Shard, error: rusqlite::Error) -> Error {
    shard.failed(OP, error).into_error(OP)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tiercache_core::testing::ManualClock;
    use tiercache_core::tier::{Always, Hold, Put};
    use tiercache_core::{Entry, Generation, Key, Stay, Tier, Timestamp};

    use super::*;
    use crate::values::shard_of;
    use crate::{SqliteConfig, SqliteTier};

    const T0: Timestamp = Timestamp::from_millis(1_700_000_000_000);
    const HOLD: Hold = Hold { now: T0, stay: Stay::Forever };

    fn open(path: &Path, clock: &Arc<ManualClock>) -> SqliteTier {
        let path = Some(path.join("level"));
        let config =
            SqliteConfig { path, max_size: 64 << 20, inline_max: 1 << 10, ..SqliteConfig::default() };
        SqliteTier::open_blocking(config, clock.clone()).unwrap()
    }

    fn entry(generation: u64, value: impl Into<Vec<u8>>) -> Entry {
        let mut entry = Entry::new(value.into(), Generation::new(generation), T0);
        entry.extras_mut().tags.insert("of".into(), "it".into());
        entry
    }

    /// The n-th key of a shard.
    fn in_shard(shard: usize, n: usize) -> Key {
        let keys = (0..).map(|n| Key::new("", format!("k{n}").as_bytes()).unwrap());
        keys.filter(|key| shard_of(key, 4) == shard).nth(n).unwrap()
    }

    async fn value(tier: &SqliteTier, key: &Key) -> Option<Vec<u8>> {
        tier.get(key).await.unwrap().map(|entry| entry.value.to_vec())
    }

    async fn put(tier: &SqliteTier, key: &Key, entry: &Entry) -> Put {
        tier.put(key, entry, HOLD, &Always).await.unwrap()
    }

    fn report(path: &Path) -> crate::Report {
        SqliteTier::check(&path.join("level"), false, &mut |_, _| {}).unwrap()
    }

    /// Old values in shards 1, 2 and 3, and a transaction that sets the first, sets the second to a large one and
    /// removes the third.
    async fn decide<'a>(tier: &'a SqliteTier, writers: &'a mut Writers) -> Decided<'a> {
        decide_after(tier, writers, "").await
    }

    /// Likewise after a statement on the third shard.
    async fn decide_after<'a>(tier: &'a SqliteTier, writers: &'a mut Writers, sql: &str) -> Decided<'a> {
        for shard in 1..4 {
            put(tier, &in_shard(shard, 0), &entry(1, "old")).await;
        }
        let mut begun = Begun::over(&tier.shards, writers).unwrap();
        let mut changes = Vec::new();
        let mut transaction = crate::Transaction::new(&mut begun.steps, &mut changes, 4);
        assert_eq!(transaction.put(&in_shard(1, 0), &entry(2, "new"), HOLD).unwrap(), Put::Stored);
        assert_eq!(transaction.put(&in_shard(2, 0), &entry(2, [7; 5_000]), HOLD).unwrap(), Put::Stored);
        assert!(transaction.remove(&in_shard(3, 0), Generation::new(2)).unwrap().is_done());
        begun.steps[2].connection.execute_batch(sql).unwrap();
        begun.decide(&changes).unwrap()
    }

    async fn assert_new(tier: &SqliteTier) {
        assert_eq!(value(tier, &in_shard(1, 0)).await.unwrap(), b"new");
        assert_eq!(value(tier, &in_shard(2, 0)).await.unwrap(), [7; 5_000]);
        assert_eq!(value(tier, &in_shard(3, 0)).await, None);
    }

    #[tokio::test]
    async fn what_was_decided_is_done_by_whoever_writes_next() {
        let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
        let (one, other) = (open(folder.path(), &clock), open(folder.path(), &clock));
        let mut writers = Writers::new();
        // Killed between the first commit and the second.
        drop(decide(&one, &mut writers).await);
        assert_eq!(put(&other, &in_shard(2, 0), &entry(1, "late")).await, Put::Superseded);
        assert_eq!(put(&other, &in_shard(3, 0), &entry(1, "late")).await, Put::Superseded);
        assert_new(&other).await;
        assert_new(&one).await;
        assert_eq!(other.evict_tag("", "of", "it").await.unwrap(), 2, "its tags came with it");
    }

    #[tokio::test]
    async fn a_transaction_reads_nothing_of_before_what_was_decided() {
        let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
        let tier = open(folder.path(), &clock);
        let mut writers = Writers::new();
        drop(decide(&tier, &mut writers).await);
        let (over, second) = (in_shard(2, 0), in_shard(2, 0));
        let read = tier.transaction(&over, move |work| Ok(work.get(&second)?.unwrap().value.len()));
        assert_eq!(read.await.unwrap(), 5_000);
        let third = in_shard(3, 0);
        assert_eq!(tier.transaction_over_all(move |work| work.get(&third)).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_was_decided_is_done_when_the_level_is_opened() {
        let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
        let tier = open(folder.path(), &clock);
        let mut writers = Writers::new();
        drop(decide(&tier, &mut writers).await);
        // As after a power cut, which takes the files that tell of it.
        (1..4).for_each(|shard| tier.common.dir.forget_owed(shard));
        tier.close().await.unwrap();
        drop((tier, writers));
        let left = report(folder.path());
        assert!(left.is_clean() && left.unfinished == 2, "its file is no orphan: {left:?}");
        let tier = open(folder.path(), &clock);
        assert_new(&tier).await;
        tier.close().await.unwrap();
        drop(tier);
        let left = report(folder.path());
        assert!(left.is_clean() && left.unfinished == 0, "{left:?}");
    }

    #[tokio::test]
    async fn what_was_decided_is_done_by_a_repair() {
        for in_use in [false, true] {
            let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
            let tier = open(folder.path(), &clock);
            let mut writers = Writers::new();
            drop(decide(&tier, &mut writers).await);
            // Or else the writers of this process would do it within a second.
            (1..4).for_each(|shard| tier.common.dir.forget_owed(shard));
            if !in_use {
                tier.close().await.unwrap();
                drop(writers);
            }
            let repair =
                |repair| SqliteTier::check(&folder.path().join("level"), repair, &mut |_, _| {}).unwrap();
            let found = repair(false);
            assert!(found.is_clean() && found.unfinished == 2 && !found.repaired, "{found:?}");
            let repaired = repair(true);
            assert!(repaired.is_clean() && repaired.unfinished == 2 && repaired.repaired, "{repaired:?}");
            let left = repair(false);
            assert!(left.is_clean() && left.unfinished == 0 && left.in_use == in_use, "{left:?}");
            let tier = if in_use { tier } else { open(folder.path(), &clock) };
            assert_new(&tier).await;
        }
    }

    #[tokio::test]
    async fn what_is_done_is_not_done_again() {
        let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
        let tier = open(folder.path(), &clock);
        let mut writers = Writers::new();
        drop(decide(&tier, &mut writers).await);
        let second = in_shard(2, 0);
        assert!(tier.remove(&second, Generation::new(3)).await.unwrap().is_done());
        // The mark of the removal is gone, the rows of the first shard are not.
        clock.advance(std::time::Duration::from_secs(120));
        assert!(report(folder.path()).unfinished > 0);
        tier.common.dir.owe(2).unwrap();
        put(&tier, &in_shard(2, 1), &entry(4, "other")).await;
        assert_eq!(value(&tier, &second).await, None);
        put(&tier, &in_shard(2, 1), &entry(5, "other")).await;
        assert!(!tier.common.dir.is_owed(2), "nothing is left");
    }

    #[tokio::test]
    async fn a_database_made_anew_is_owed_nothing() {
        let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
        let tier = open(folder.path(), &clock);
        let mut writers = Writers::new();
        drop(decide(&tier, &mut writers).await);
        let database = Connection::open(tier.common.dir.database(2)).unwrap();
        database.execute("UPDATE state SET identity = identity + 1", ()).unwrap();
        put(&tier, &in_shard(2, 1), &entry(4, "other")).await;
        assert_eq!(value(&tier, &in_shard(2, 0)).await.unwrap(), b"old");
    }

    #[tokio::test]
    async fn a_later_commit_that_fails_is_told_and_made_up_for() {
        for lasting in [false, true] {
            let (folder, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
            let tier = open(folder.path(), &clock);
            let mut writers = Writers::new();
            let writer = tier.shards[2].writer().unwrap();
            // What breaks a promise that is looked at when it commits fails there.
            let promise = "
                PRAGMA foreign_keys = ON;
                CREATE TEMP TABLE good (id INTEGER PRIMARY KEY);
                CREATE TEMP TABLE bad (id INTEGER REFERENCES good (id) DEFERRABLE INITIALLY DEFERRED);";
            writer.execute_batch(promise).unwrap();
            let breaks = "INSERT INTO bad VALUES (1);";
            let always = format!("CREATE TEMP TRIGGER t AFTER UPDATE ON main.entry BEGIN {breaks} END;");
            if lasting {
                writer.execute_batch(&always).unwrap();
            }
            writers.insert(2, writer);
            let told = decide_after(&tier, &mut writers, breaks).await.complete();
            match lasting {
                true => {
                    let told = std::error::Error::source(&told.unwrap_err()).unwrap().to_string();
                    assert!(told.contains("it is committed, but shard 2"), "{told}");
                    put(&tier, &in_shard(2, 1), &entry(4, "other")).await;
                }
                false => told.unwrap(),
            }
            assert_new(&tier).await;
        }
    }
}
