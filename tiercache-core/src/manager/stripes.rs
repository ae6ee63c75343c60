//! Fences of single keys: what a slow operation that began before a mutation must not do after it.
//!
//! Everything the manager decides about a key happens under the key's stripe. An operation that has to wait for a
//! tier in between registers a *flight* first; a mutation of the key raises the flight's floor. Whatever the
//! operation then holds from below the floor it may neither answer to callers that came later nor publish.
//! A flight is counted by the operations in it and lives exactly as long as they do.

use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;

use super::pending::Ticket;
use super::read::Found;
use crate::Generation;
use crate::bugs::seeded;

const STRIPES: usize = 1024;

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
        if let Some(flight) = self.flight(hash) {
            flight.floor = flight.floor.max(generation);
            flight.writing.iter().for_each(|ticket| ticket.withdraw(generation));
            if !seeded("join-detached-read") {
                flight.reading = None;
            }
        }
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
