//! Writes to the levels outside RAM.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::builder::Write;
use super::counters::Count;
use super::pending::{Item, Ticket};
use super::slot::Slot;
use super::stripes::Stripe;
use crate::tier::{Permit, Put};
use crate::tracking::Record;
use crate::{Entry, Key, Level, Levels, Result, Timestamp};

/// The longest a writer waits for the way down to clear before it goes on and the oldest there is dropped.
const CROWDED_WAIT: Duration = Duration::from_secs(1);

impl Shared {
    /// The levels outside RAM to be tried in turn for an entry that must reach one.
    pub(super) fn candidates(&self, levels: Levels) -> Vec<&Slot> {
        match (self.write, self.durable(levels)) {
            (Write::Through, Some(slot)) => vec![slot],
            _ => self.lower_slots().filter(|slot| levels.contains(slot.level)).collect(),
        }
    }

    /// What follows when a level outside RAM has an entry that was set, or a newer one.
    pub(super) fn kept_below(&self, slot: &Slot, key: &Key, entry: &Entry, put: Put, now: Timestamp) {
        self.flow.counters.count(Count::Set);
        let stripe = self.stripes.lock(key.hash64());
        // What another process has put there since may have been read already.
        if put == Put::Superseded || stripe.is_overtaken(key.hash64(), entry.generation) {
            return;
        }
        self.flow.recorder.stored(now, || Record::of(key.clone(), entry, slot.level));
        if self.write == Write::Through
            && let Some(level) = self.publish_in_ram(key, entry, now)
        {
            self.flow.recorder.moved(now, key, entry.generation, Some(level));
        }
    }

    /// Writes to a level outside RAM, visible to reads and to later mutations while it lasts.
    pub(super) async fn put_below(
        self: &Arc<Self>,
        slot: &Slot,
        key: &Key,
        entry: &Entry,
        now: Timestamp,
    ) -> Result<Put> {
        let Some(writing) = self.begin_below(slot, key, entry) else { return Ok(Put::Superseded) };
        let result = self.write_below(slot, &writing, now).await;
        self.end_below(key, entry);
        result
    }

    /// Begins such a write, unless a later mutation has begun.
    pub(super) fn begin_below(self: &Arc<Self>, slot: &Slot, key: &Key, entry: &Entry) -> Option<Writing> {
        let mut stripe = self.stripes.lock(key.hash64());
        // From here on reads may find it, so nothing older may be found before it; and if a later mutation has
        // begun, what this one replaces must be gone all the same when it returns.
        self.forget_in_ram(key, entry.generation);
        if stripe.is_overtaken(key.hash64(), entry.generation) {
            return None;
        }
        let item = Item { writing: true, ..Item::new(entry.clone(), slot.level, slot.level) };
        self.flow.pending.push(key.clone(), item, false);
        stripe.detach(key.hash64());
        Some(Writing::begin(self.clone(), &mut stripe, key, entry, slot.level))
    }

    /// Ends it.
    pub(super) fn end_below(&self, key: &Key, entry: &Entry) {
        let _stripe = self.stripes.lock(key.hash64());
        self.flow.pending.take(key.as_ref(), entry.generation);
    }

    /// The write itself. A tier that was not told in time may have committed what a mutation has overtaken: that
    /// one waits for the end of this, and removes it.
    pub(super) async fn write_below(&self, slot: &Slot, writing: &Writing, now: Timestamp) -> Result<Put> {
        let (ticket, key, entry) = (&*writing.ticket, writing.ticket.key(), writing.ticket.entry());
        let hold = self.flow.hold(slot.level, entry, self.is_last(slot.level, entry.levels), now);
        let result =
            slot.call("put", slot.limits().write_timeout, slot.tier.put(key, entry, hold, ticket)).await;
        self.judge_write(slot, ticket, result)
    }

    /// What became of a write that a level has answered.
    pub(super) fn judge_write(&self, slot: &Slot, ticket: &Ticket, result: Result<Put>) -> Result<Put> {
        let key = ticket.key();
        let mut stripe = self.stripes.lock(key.hash64());
        if ticket.holds() {
            if matches!(result, Ok(Put::Stored)) {
                // Whatever an earlier removal was to reach there, this replaced it.
                stripe.end_lag(key.hash64(), slot.level);
            }
            return result;
        }
        self.flow.counters.count(Count::Refused);
        Ok(Put::Superseded)
    }

    /// The lowest level that outlives the process and may have such an entry.
    pub(super) fn durable(&self, levels: Levels) -> Option<&Slot> {
        self.slots().rev().find(|slot| slot.profile.persistent && levels.contains(slot.level))
    }

    /// Holds a writer back while the way down is crowded, for a bounded time.
    pub(super) async fn wait_for_room(&self) {
        let room = async {
            loop {
                let left = self.flow.pending.room.notified();
                if !self.flow.pending.is_crowded() {
                    return;
                }
                left.await;
            }
        };
        // A way down that is stuck is no reason to wait: then the oldest on it is dropped instead.
        if !self.lower_slots().any(Slot::is_open) {
            let _ = tokio::time::timeout(CROWDED_WAIT, room).await;
        }
    }
}

/// A write to a lower level under way: known to the key's stripe until it is over or dropped.
pub(super) struct Writing {
    shared: Arc<Shared>,
    pub(super) ticket: Arc<Ticket>,
}

impl Writing {
    /// Registers it, under the stripe.
    pub(super) fn begin(
        shared: Arc<Shared>,
        stripe: &mut Stripe,
        key: &Key,
        entry: &Entry,
        to: Level,
    ) -> Self {
        let ticket = Ticket::new(key.clone(), entry.clone(), to, shared.flow.fences.clone());
        stripe.enter(key.hash64(), shared.flow.generation());
        stripe.begin_write(key.hash64(), ticket.clone());
        Self { shared, ticket }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let key = self.ticket.key();
        let pending = &self.shared.flow.pending;
        let mut stripe = self.shared.stripes.lock(key.hash64());
        // Dropped half-way, by the end of its worker: the entry waits for another.
        if let Some(item) = pending.get(key.as_ref())
            && item.entry.generation == self.ticket.generation()
            && item.writing
        {
            pending.mark(key.as_ref(), item.entry.generation, item.to, false);
            pending.requeue(key.clone(), item.entry.generation, item.to);
        }
        stripe.end_write(key.hash64(), &self.ticket);
        stripe.leave(key.hash64());
    }
}
