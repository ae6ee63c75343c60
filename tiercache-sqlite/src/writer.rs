//! The thread that writes to a shard.
//!
//! A batch, in order: 1. `BEGIN IMMEDIATE`, and what was decided before for this shard is done; 2. every call that
//! waits, in the order of arrival; 3. room is made for what they brought; 4. the shard's totals; 5. `COMMIT`, the commit
//! point of all of them; 6. files that were replaced go, and the callers are told. When a call fails, all are rolled back
//! and each is tried alone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tiercache_core::Error;

use crate::queue::{Failure, Job};
use crate::shard::{Shard, lock};
use crate::step::Step;
use crate::tier::NAME;

/// How often uses are written down.
const TOUCH: Duration = Duration::from_secs(1);
/// How often what has had its time is dropped.
const TIDY: Duration = Duration::from_secs(10);

/// Writes until the queue is closed and empty.
pub(crate) fn run(shard: &Shard, connection: Connection) {
    let (mut touched, mut tidied) = (Instant::now(), Instant::now());
    let identity = shard.common.dir.identity(shard.number);
    // A level that was given less room than it has begins to shrink.
    alone(shard, &connection, "make room", |_| Ok(()));
    let mut resume = Instant::now();
    loop {
        let purging = Instant::now() >= resume && !lock(&shard.purges).is_empty();
        let Some(batch) = shard.queue.take(if purging { Duration::ZERO } else { TOUCH }) else { break };
        if !batch.is_empty() {
            commit(shard, &connection, batch);
        }
        if purging && !purge(shard, &connection) {
            resume = Instant::now() + TOUCH;
        }
        if touched.elapsed() >= TOUCH {
            touched = Instant::now();
            write_touched(shard, &connection);
            if shard.common.dir.is_owed(shard.number) {
                alone(shard, &connection, "see a transaction through", |_| Ok(()));
            }
            if shard.common.dir.identity(shard.number) != identity
                && !shard.common.lost.swap(true, Ordering::AcqRel)
            {
                tracing::error!(tier = NAME, path = %shard.common.dir.path.display(), "the directory was removed or replaced");
            }
        }
        if tidied.elapsed() >= TIDY {
            tidied = Instant::now();
            alone(shard, &connection, "tidy", |step| step.tidy());
            alone(shard, &connection, "strike", |step| step.strike_redo());
        }
    }
    write_touched(shard, &connection);
    lock(&shard.beside).clear();
    if let Err((_, error)) = connection.close() {
        tracing::warn!(tier = NAME, shard = shard.number, %error, "the database was not closed in order");
    }
}

fn commit(shard: &Shard, connection: &Connection, mut batch: Vec<Box<dyn Job>>) {
    match attempt(shard, connection, &mut batch) {
        Ok(()) => batch.into_iter().for_each(|job| job.answer(None)),
        // Trying each alone would only wait for each: the database is held by another process.
        Err(failure @ Failure::Other(Error::TimedOut { .. })) => {
            batch.into_iter().for_each(|job| job.answer(Some(failure.clone())));
        }
        Err(failure) if batch.len() == 1 && !matches!(failure, Failure::Full) => {
            batch.into_iter().for_each(|job| job.answer(Some(failure.clone())));
        }
        Err(failure) => {
            let full = matches!(failure, Failure::Full);
            if full {
                // Bringing the log home may give back the room it takes.
                let _ = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()));
            }
            for mut job in batch {
                let outcome = if job.alone() && full {
                    Err(failure.clone())
                } else {
                    attempt(shard, connection, std::slice::from_mut(&mut job))
                };
                job.answer(outcome.err());
            }
        }
    }
}

/// All of the calls in one transaction, or none.
fn attempt(shard: &Shard, connection: &Connection, jobs: &mut [Box<dyn Job>]) -> Result<(), Failure> {
    let op = jobs.first().map_or("write", |job| job.op());
    transact(shard, connection, op, |step| jobs.iter_mut().try_for_each(|job| job.apply(step)))
}

fn transact(
    shard: &Shard,
    connection: &Connection,
    op: &'static str,
    work: impl FnOnce(&mut Step<'_>) -> rusqlite::Result<()>,
) -> Result<(), Failure> {
    let _turn = shard.turns.take();
    transact_in_turn(shard, connection, op, work)
}

/// Likewise for who has the turn.
pub(crate) fn transact_in_turn(
    shard: &Shard,
    connection: &Connection,
    op: &'static str,
    work: impl FnOnce(&mut Step<'_>) -> rusqlite::Result<()>,
) -> Result<(), Failure> {
    let whole = || -> rusqlite::Result<()> {
        let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
        let mut step = Step::begin(shard, &transaction)?;
        step.see_through()?;
        work(&mut step)?;
        let settled = step.finish()?;
        transaction.commit()?;
        settled.settle(shard, connection);
        Ok(())
    };
    match catch_unwind(AssertUnwindSafe(whole)) {
        Ok(outcome) => outcome.map_err(|error| shard.failed(op, error)),
        Err(_) => Err(Failure::Other(Error::Panicked { what: "work in a transaction" })),
    }
}

/// Work of the writer's own; when it fails it is done some other time.
fn alone(
    shard: &Shard,
    connection: &Connection,
    op: &'static str,
    work: impl FnOnce(&mut Step<'_>) -> rusqlite::Result<()>,
) -> bool {
    match transact(shard, connection, op, work) {
        Ok(()) => true,
        Err(failure) => {
            let error = failure.into_error(op);
            tracing::debug!(tier = NAME, shard = shard.number, %error, op, "put off");
            false
        }
    }
}

fn write_touched(shard: &Shard, connection: &Connection) {
    if shard.has_touched() {
        alone(shard, connection, "note uses", |step| step.write_touched());
    }
}

/// One step of the oldest purge. Whether it could be done.
fn purge(shard: &Shard, connection: &Connection) -> bool {
    let Some(mut purge) = lock(&shard.purges).first().cloned() else { return true };
    let mut ended = false;
    let done = alone(shard, connection, "purge", |step| {
        (_, ended) = step.purge(&mut purge)?;
        Ok(())
    });
    let mut purges = lock(&shard.purges);
    match purges.first_mut() {
        Some(first) if done && !ended => *first = purge,
        Some(_) if done => drop(purges.remove(0)),
        _ => {}
    }
    done
}
