//! Fences of single keys: what a slow operation that began before a mutation must not do after it.
//!
//! Everything the manager decides about a key happens under the key's stripe. An operation that has to wait for a
//! tier in between registers a *flight* first; a mutation of the key raises the flight's floor. Whatever the
//! operation then holds from below the floor it may neither answer to callers that came later nor publish.
//! A flight is counted by the operations in it and lives exactly as long as they do.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use tokio::sync::watch;

use super::find::Found;
use super::load::{Failure, Loading};
use super::pending::Ticket;
use crate::bugs::seeded;
use crate::{Error, Generation, Key, Level};

const STRIPES: usize = 1024;
/// Failed loads remembered per stripe.
const MOST_FAILURES: usize = 16;

/// Aligned so that two stripes never share a cache line.
#[repr(align(64))]
#[derive(Debug, Default)]
struct Padded(Mutex<Stripe>);

/// The stripes of a manager.
#[derive(Debug)]
pub(super) struct Stripes(Box<[Padded]>);

/// The flights of the keys that share a stripe.
#[derive(Debug, Default)]
pub(super) struct Stripe {
    flights: Vec<Flight>,
    /// Loads that failed of late.
    failures: Vec<Failure>,
    /// How many mutations have begun, and loads and transactions ended.
    changes: u64,
}

#[derive(Debug)]
struct Flight {
    hash: u64,
    operations: u32,
    /// The newest generation when the first of its operations began.
    since: Generation,
    /// The newest mutation of the key that began since.
    floor: Generation,
    /// A read of the lower levels that later gets may join.
    reading: Option<Reading>,
    /// Writes to the lower levels under way.
    writing: Vec<Arc<Ticket>>,
    /// The newest generation of another process that a read came upon.
    met: Generation,
    /// Levels that a removal has not reached yet.
    lagging: Vec<Level>,
    /// Held while copies below are removed.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Whether they are being removed for mutations that wait for it.
    removing: bool,
    /// The removal that mutations which begin now will share, and the newest of them.
    removal: Option<(Arc<RemovalBatch>, Generation)>,
    /// Whether a transaction, which holds the turn, decides about the key.
    transacting: bool,
    /// Sets that have their generation and are not over.
    sets: u32,
    /// A load that others may join.
    loading: Option<Loading>,
}

/// Mutations of a key that share one removal of what is below.
#[derive(Debug, Default)]
pub(super) struct RemovalBatch {
    pub(super) outcome: OnceLock<RemovalOutcome>,
}

/// The place of a mutation, of that generation, in a removal that it shares.
#[derive(Debug, Default)]
pub(super) struct Joined {
    pub(super) generation: Generation,
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
    pub(super) batch: Arc<RemovalBatch>,
}

impl Joined {
    /// What the shared removal came to for this mutation, once it has. The newest of those that shared it comes last,
    /// and the others are as if they had come just before.
    pub(super) fn outcome(&self) -> RemovalOutcome {
        let outcome = self.batch.outcome.get().cloned().unwrap_or_default();
        match outcome.newest == self.generation {
            true => outcome,
            false => RemovalOutcome { generation: self.generation, overtaken: false, ..outcome },
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(super) struct RemovalOutcome {
    /// The newest mutation's generation as it was, and as it is now.
    pub(super) newest: Generation,
    pub(super) generation: Generation,
    /// The newest that stood at a level other processes write to.
    pub(super) over: Generation,
    /// Whether another process was ahead.
    pub(super) overtaken: bool,
    /// Levels that failed.
    pub(super) degraded: Vec<(Level, Error)>,
}

/// The outcome of a read that others wait for; `None` while it runs.
pub(super) type Reading = watch::Receiver<Option<Arc<Option<Found>>>>;

impl Stripes {
    pub(super) fn new() -> Self {
        Self((0..STRIPES).map(|_| Padded::default()).collect())
    }

    /// Locks the stripe of keys with that hash. Nothing is awaited, and no other stripe is locked, under it.
    pub(super) fn lock(&self, hash: u64) -> MutexGuard<'_, Stripe> {
        // The upper bits: engines shard by the lower ones.
        let stripe = &self.0[(hash >> 48) as usize % STRIPES].0;
        // A panic under the lock leaves at worst a flight that is never left: fences too much, serves nothing old.
        stripe.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The oldest begin of any flight now.
    pub(super) fn oldest_flight(&self) -> Option<Generation> {
        self.0
            .iter()
            .filter_map(|stripe| {
                let stripe = stripe.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                stripe.flights.iter().map(|flight| flight.since).min()
            })
            .min()
    }

    /// Every write under way that a mutation of that generation comes after.
    pub(super) fn writes_before(&self, generation: Generation) -> Vec<Arc<Ticket>> {
        let mut writes = Vec::new();
        for stripe in &self.0 {
            let stripe = stripe.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let writing = stripe.flights.iter().flat_map(|flight| &flight.writing);
            writes.extend(writing.filter(|ticket| ticket.generation() < generation).cloned());
        }
        writes
    }

    /// How many operations are in flight.
    pub(super) fn in_flight(&self) -> usize {
        let count = |stripe: &Padded| {
            let stripe = stripe.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            stripe.flights.iter().map(|flight| flight.operations as usize).sum::<usize>()
        };
        self.0.iter().map(count).sum()
    }
}

impl Stripe {
    /// Registers an operation; `now` is the newest generation. Returns the floor it begins above.
    pub(super) fn enter(&mut self, hash: u64, now: Generation) -> Generation {
        if let Some(flight) = self.flight(hash) {
            flight.operations += 1;
            return flight.floor;
        }
        self.flights.push(Flight {
            hash,
            operations: 1,
            since: now,
            floor: Generation::ZERO,
            reading: None,
            writing: Vec::new(),
            met: Generation::ZERO,
            lagging: Vec::new(),
            turn: Arc::default(),
            removing: false,
            removal: None,
            transacting: false,
            sets: 0,
            loading: None,
        });
        Generation::ZERO
    }

    /// Ends an operation.
    pub(super) fn leave(&mut self, hash: u64) {
        let Some(at) = self.flights.iter().position(|flight| flight.hash == hash) else { return };
        self.flights[at].operations -= 1;
        if self.flights[at].operations == 0 {
            self.flights.swap_remove(at);
        }
    }

    /// Tells the operations in flight that a mutation of that generation has begun. Reads under way answer
    /// those who wait for them already, and nobody else; writes under way lose their permits.
    pub(super) fn mutate(&mut self, hash: u64, generation: Generation) {
        if seeded("no-floor") {
            return;
        }
        self.changes += 1;
        if !self.failures.is_empty() {
            self.failures.retain(|failure| failure.key.hash64() != hash);
        }
        if let Some(flight) = self.flight(hash) {
            flight.floor = flight.floor.max(generation);
            if !seeded("join-detached-load") {
                // Not for the mutation that stores what it brought.
                flight.loading.take_if(|loading| loading.generation < generation);
            }
            flight.writing.iter().for_each(|ticket| ticket.withdraw(generation));
            if !seeded("join-detached-read") {
                flight.reading = None;
            }
        }
    }

    /// Likewise that another process's mutation was met: what is older must not be published, nor answered to those who
    /// come later.
    pub(super) fn yield_to(&mut self, hash: u64, generation: Generation) {
        if let Some(flight) = self.flight(hash) {
            flight.floor = flight.floor.max(generation);
            flight.loading.take_if(|loading| loading.generation < generation);
            let older = flight.writing.iter().filter(|ticket| ticket.generation() < generation);
            older.for_each(|ticket| ticket.withdraw(generation));
            flight.reading = None;
        }
    }

    /// The load of a key that callers may join.
    pub(super) fn loading(&self, key: &Key) -> Option<&Loading> {
        let hash = key.hash64();
        let flight = self.flights.iter().find(|flight| flight.hash == hash)?;
        flight.loading.as_ref().filter(|loading| loading.key == *key)
    }

    /// How many mutations have begun, and sets, loads and transactions ended: another number than before says that what
    /// a caller missed may be there now.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Announces a load, or that it has another generation; the flight must have been entered. Of two keys with one
    /// hash only one is joined.
    pub(super) fn begin_loading(&mut self, loading: Loading) {
        if let Some(flight) = self.flight(loading.key.hash64())
            && flight.loading.as_ref().is_none_or(|standing| standing.key == loading.key)
        {
            flight.loading = Some(loading);
        }
    }

    /// Ends a load.
    pub(super) fn end_loading(&mut self, key: &Key, generation: Generation) {
        self.changes += 1;
        if let Some(flight) = self.flight(key.hash64()) {
            flight.loading.take_if(|loading| loading.key == *key && loading.generation == generation);
        }
    }

    /// The last failure to load a key, if nothing came since.
    pub(super) fn failure(&self, key: &Key) -> Option<&Failure> {
        self.failures.iter().find(|failure| failure.key == *key)
    }

    /// Notes a failure to load, instead of the one before. Few are remembered: those that last longest.
    pub(super) fn fail(&mut self, failure: Failure) {
        self.forget_failure(&failure.key);
        if self.failures.len() >= MOST_FAILURES {
            let next = self.failures.iter().enumerate().min_by_key(|(_, failure)| failure.until());
            if let Some((at, _)) = next {
                self.failures.swap_remove(at);
            }
        }
        self.failures.push(failure);
    }

    /// Forgets it.
    pub(super) fn forget_failure(&mut self, key: &Key) {
        self.failures.retain(|failure| failure.key != *key);
    }

    /// Keeps gets from joining a read that began before something was published.
    pub(super) fn detach(&mut self, hash: u64) {
        if let Some(flight) = self.flight(hash) {
            flight.reading = None;
        }
    }

    /// The floor of the key: what is below it is old.
    pub(super) fn floor(&self, hash: u64) -> Generation {
        self.flights.iter().find(|flight| flight.hash == hash).map_or(Generation::ZERO, |flight| flight.floor)
    }

    /// The read under way that a get may join.
    pub(super) fn reading(&self, hash: u64) -> Option<Reading> {
        self.flights.iter().find(|flight| flight.hash == hash)?.reading.clone()
    }

    /// Announces a read that others may join; the flight must have been entered.
    pub(super) fn announce(&mut self, hash: u64, reading: Reading) {
        if let Some(flight) = self.flight(hash) {
            flight.reading = Some(reading);
        }
    }

    /// Notes a generation that was found at a level that other processes write to. Above the floor it is not this
    /// process's.
    pub(super) fn meet(&mut self, hash: u64, generation: Generation) {
        if let Some(flight) = self.flight(hash).filter(|flight| generation > flight.floor) {
            flight.met = generation.max(flight.met);
        }
    }

    /// Whether another process's mutation was read that is not below this one.
    pub(super) fn has_met(&self, hash: u64, generation: Generation) -> bool {
        self.flights.iter().any(|flight| flight.hash == hash && flight.met >= generation)
    }

    /// Whether a mutation is not the newest any more: one of this process has begun since, or one of another was
    /// read, which must have come after this fenced what there was.
    pub(super) fn is_overtaken(&self, hash: u64, generation: Generation) -> bool {
        self.flights.iter().any(|flight| flight.hash == hash && flight.floor.max(flight.met) > generation)
    }

    /// Notes that a removal has not reached a level; the flight must have been entered.
    pub(super) fn begin_lag(&mut self, hash: u64, level: Level) {
        if let Some(flight) = self.flight(hash).filter(|flight| !flight.lagging.contains(&level)) {
            flight.lagging.push(level);
        }
    }

    /// Notes that it, or a later mutation of the key, has.
    pub(super) fn end_lag(&mut self, hash: u64, level: Level) {
        if let Some(flight) = self.flight(hash) {
            flight.lagging.retain(|&lagging| lagging != level);
        }
    }

    /// Whether a removal has not reached the level.
    pub(super) fn lags(&self, hash: u64, level: Level) -> bool {
        self.flights.iter().any(|flight| flight.hash == hash && flight.lagging.contains(&level))
    }

    /// What is to be locked while copies below are removed; the flight must have been entered.
    pub(super) fn turn(&mut self, hash: u64) -> Arc<tokio::sync::Mutex<()>> {
        self.flight(hash).map(|flight| flight.turn.clone()).unwrap_or_default()
    }

    /// Adds a mutation to those that share the next removal, which one of them makes once it has the turn; the
    /// flight must have been entered.
    pub(super) fn join_removal(&mut self, hash: u64, generation: Generation) -> Joined {
        let Some(flight) = self.flight(hash) else { return Joined { generation, ..Joined::default() } };
        let (batch, newest) = flight.removal.get_or_insert_with(Default::default);
        *newest = generation.max(*newest);
        Joined { generation, turn: flight.turn.clone(), batch: batch.clone() }
    }

    /// What to see through before the key is read to be changed: a removal that waits or is under way, or a
    /// transaction. What is found now may be from before it.
    pub(super) fn unsettled(&self, hash: u64) -> Option<Joined> {
        let flight = self.flights.iter().find(|flight| flight.hash == hash)?;
        let batch = match &flight.removal {
            Some((batch, _)) => batch.clone(),
            // Nothing but the turn is left to wait for.
            None if flight.removing || flight.transacting => {
                Arc::new(RemovalBatch { outcome: OnceLock::from(RemovalOutcome::default()) })
            }
            None => return None,
        };
        Some(Joined { generation: Generation::ZERO, turn: flight.turn.clone(), batch })
    }

    /// Gives the key to a transaction, by whoever has the turn, unless there is a removal to be made first. Until it
    /// ends nothing is made of what was read: it would take the place of what the transaction commits.
    pub(super) fn begin_transaction(&mut self, hash: u64) -> Option<Joined> {
        let unsettled = self.unsettled(hash);
        if let Some(flight) = self.flight(hash).filter(|_| unsettled.is_none()) {
            flight.transacting = true;
        }
        unsettled
    }

    /// Ends it. Nobody joins a read or a load any more that began before.
    pub(super) fn end_transaction(&mut self, hash: u64) {
        self.changes += 1;
        if let Some(flight) = self.flight(hash) {
            (flight.transacting, flight.reading, flight.loading) = (false, None, None);
        }
    }

    /// Registers a set that has its generation and is not over; the flight must have been entered.
    pub(super) fn begin_set(&mut self, hash: u64) {
        if let Some(flight) = self.flight(hash) {
            flight.sets += 1;
        }
    }

    /// Ends it.
    pub(super) fn end_set(&mut self, hash: u64) {
        self.changes += 1;
        if let Some(flight) = self.flight(hash) {
            flight.sets -= 1;
        }
    }

    /// Whether a set or a transaction is under way, of which nothing may be there yet.
    pub(super) fn is_being_set(&self, hash: u64) -> bool {
        self.flights.iter().any(|flight| flight.hash == hash && (flight.sets > 0 || flight.transacting))
    }

    /// Whether a transaction decides about the key.
    pub(super) fn is_transacting(&self, hash: u64) -> bool {
        self.flights.iter().any(|flight| flight.hash == hash && flight.transacting)
    }

    /// Begins the removal: mutations from here on share another. Returns the newest that shares this.
    pub(super) fn begin_removal(&mut self, hash: u64) -> Generation {
        let Some(flight) = self.flight(hash) else { return Generation::ZERO };
        flight.removing = true;
        flight.removal.take().map_or(Generation::ZERO, |(_, newest)| newest)
    }

    /// Ends it.
    pub(super) fn end_removal(&mut self, hash: u64) {
        if let Some(flight) = self.flight(hash) {
            flight.removing = false;
        }
    }

    /// Registers a write to a lower level; the flight must have been entered.
    pub(super) fn begin_write(&mut self, hash: u64, ticket: Arc<Ticket>) {
        if let Some(flight) = self.flight(hash) {
            flight.writing.push(ticket);
        }
    }

    /// Ends a write.
    pub(super) fn end_write(&mut self, hash: u64, ticket: &Arc<Ticket>) {
        if let Some(flight) = self.flight(hash) {
            flight.writing.retain(|writing| !Arc::ptr_eq(writing, ticket));
        }
        ticket.finish();
    }

    /// The writes under way that a mutation of that generation comes after.
    pub(super) fn writes_before(&self, hash: u64, generation: Generation) -> Vec<Arc<Ticket>> {
        let flight = self.flights.iter().find(|flight| flight.hash == hash);
        let writing = flight.map(|flight| flight.writing.as_slice()).unwrap_or_default();
        writing.iter().filter(|ticket| ticket.generation() < generation).cloned().collect()
    }

    /// Whether a write to `level` is under way that a mutation of that generation comes after.
    pub(super) fn is_written_before(&self, hash: u64, level: Level, generation: Generation) -> bool {
        let flight = self.flights.iter().find(|flight| flight.hash == hash);
        let mut writing = flight.map(|flight| flight.writing.as_slice()).unwrap_or_default().iter();
        writing.any(|ticket| ticket.to() == level && ticket.generation() < generation)
    }

    /// Takes the announcement back.
    pub(super) fn conclude(&mut self, hash: u64, reading: &Reading) {
        if let Some(flight) = self.flight(hash)
            && flight.reading.as_ref().is_some_and(|announced| announced.same_channel(reading))
        {
            flight.reading = None;
        }
    }

    fn flight(&mut self, hash: u64) -> Option<&mut Flight> {
        self.flights.iter_mut().find(|flight| flight.hash == hash)
    }
}
