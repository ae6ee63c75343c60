//! Going through what the levels hold while it moves between them.

use std::collections::{HashSet, VecDeque};

use super::Shared;
use super::find::Doubt;
use super::guard::caught;
use super::slot::Slot;
use crate::bugs::seeded;
use crate::tier::ListedEntry;
use crate::tracking::{Query, Record};
use crate::{Entry, Error, Key, Level, Result};

/// Entries asked for at a time of a level that has to be waited for.
const PAGE: usize = 256;
/// Likewise of one in RAM: each page is a walk over all of it.
const PAGE_IN_RAM: usize = 1 << 16;

/// The most further rounds over RAM, under however many writes.
const ROUNDS: u32 = 8;

/// A walk over levels, page by page. What stays in the cache is met, wherever it moves:
/// 1. Between levels in RAM, and out of the way down into them, entries move up and down, and are nowhere else then. So
///    there are rounds over those and the way until one of them meets nothing new: in that one nobody waited.
/// 2. What was met there is remembered, and not told again where its copies are or where it arrives.
/// 3. Below, what rises leaves its copy, and what sinks does so from above: the levels are listed from above, and between
///    any two of them what is on its way.
#[derive(Debug)]
pub(super) struct Walk {
    steps: VecDeque<Step>,
    /// Where the first of them goes on.
    after: Option<Vec<u8>>,
    met: HashSet<Key>,
    in_ram: Vec<Level>,
    /// Further rounds over RAM there may be, and how many keys had been met before this one.
    rounds: u32,
    known: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Way,
    Level(Level),
    /// The end of a round over RAM.
    Round,
}

impl Walk {
    /// A walk over those levels that `wanted` picks; over nothing when it picks none.
    pub(super) fn new(shared: &Shared, wanted: impl Fn(&Slot) -> bool) -> Self {
        let slots: Vec<&Slot> = shared.slots().filter(|slot| wanted(slot)).collect();
        let in_ram = slots.iter().filter(|slot| slot.in_ram).map(|slot| slot.level).collect();
        let nothing_moves = shared.slots().count() < 2;
        let mut walk = Self {
            steps: VecDeque::new(),
            after: None,
            met: HashSet::new(),
            in_ram,
            rounds: if nothing_moves || seeded("listed-in-one-round") { 0 } else { ROUNDS },
            known: 0,
        };
        if !walk.in_ram.is_empty() {
            walk.begin_round();
        }
        for slot in slots.iter().filter(|slot| !slot.in_ram) {
            walk.steps.extend([Step::Way, Step::Level(slot.level)]);
        }
        walk
    }

    /// Ends with further rounds over RAM: what rose while the levels below were listed, and is not there any more, was
    /// perhaps never met. What was met there before it rose may be told again.
    pub(super) fn rather_twice(&mut self) {
        if !self.in_ram.is_empty() {
            let round: Vec<Step> = self.round().collect();
            self.steps.extend(round);
        }
    }

    fn begin_round(&mut self) {
        let round: Vec<Step> = self.round().collect();
        round.into_iter().rev().for_each(|step| self.steps.push_front(step));
    }

    /// The way, the levels in RAM from below, and the way again.
    fn round(&self) -> impl Iterator<Item = Step> + '_ {
        let levels = self.in_ram.iter().rev().map(|&level| Step::Level(level));
        [Step::Way].into_iter().chain(levels).chain([Step::Way, Step::Round])
    }

    /// Goes round again if there was something new: whoever was told of it took time, in which entries moved.
    fn end_round(&mut self) {
        if self.met.len() > self.known && self.rounds > 0 {
            self.rounds -= 1;
            self.known = self.met.len();
            self.begin_round();
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether `key` was met in RAM or on its way down.
    pub(super) fn has_met(&self, key: &Key) -> bool {
        self.met.contains(key) && !seeded("listed-where-it-arrives")
    }

    /// What fits `query` of the next page. Dropped or failed, it has not moved.
    pub(super) async fn turn_page(&mut self, shared: &Shared, query: &Query) -> Result<Vec<Record>> {
        let Some(&step) = self.steps.front() else { return Ok(Vec::new()) };
        let (mut records, next) = match step {
            Step::Way => (self.way(shared, query), None),
            Step::Level(level) => self.level(shared, level, query).await?,
            Step::Round => (Vec::new(), None),
        };
        records.retain(|record| query.matches(record));
        self.after = next;
        if self.after.is_none() {
            self.steps.pop_front();
            if step == Step::Round {
                self.end_round();
            }
        }
        Ok(records)
    }

    fn way(&mut self, shared: &Shared, query: &Query) -> Vec<Record> {
        let mut way = Vec::new();
        shared.flow.pending.each(|key, item| {
            if is_within(query, key) && !shared.flow.fences.hides(key.as_ref(), &item.entry) {
                way.push(Record::of(key.clone(), &item.entry, item.to));
            }
        });
        way.retain(|record| self.meet(query, record));
        way.sort_by(|one, other| one.key.cmp(&other.key));
        way
    }

    async fn level(
        &mut self,
        shared: &Shared,
        level: Level,
        query: &Query,
    ) -> Result<(Vec<Record>, Option<Vec<u8>>)> {
        let Some(slot) = shared.slot(level) else { return Ok((Vec::new(), None)) };
        let Some(listing) = slot.tier.listing() else {
            let op = "list keys without a tracking store";
            return Err(Error::Unsupported { backend: slot.tier.name(), op });
        };
        let list = |limit| {
            caught(slot.tier.name(), listing.list(query.namespace.as_deref(), self.after.clone(), limit))
        };
        let page = if slot.in_ram {
            list(PAGE_IN_RAM).await?
        } else {
            slot.call("list", slot.limits().write_timeout, list(PAGE)).await?
        };
        // What a mutation is about to replace, or could not reach there, is told as little as it is answered.
        let is_old = |key: &Key, entry: &Entry| {
            let stripe = shared.stripes.lock(key.hash64());
            entry.generation < stripe.floor(key.hash64())
                || Doubt::under(&stripe, Some(slot), key.as_ref()).touches(key.as_ref(), entry)
        };
        let record = |listed: ListedEntry| {
            let ListedEntry { key, entry, size } = listed;
            let hidden = shared.flow.fences.hides(key.as_ref(), &entry) || is_old(&key, &entry);
            (!hidden).then(|| Record { size, ..Record::of(key, &entry, level) })
        };
        let mut records: Vec<Record> = page.entries.into_iter().filter_map(record).collect();
        if slot.in_ram {
            records.retain(|record| self.meet(query, record));
        } else {
            records.retain(|record| !self.has_met(&record.key) && shared.may_be_there(record));
        }
        Ok((records, page.next))
    }

    /// Remembers what is alive; whether it was not known yet.
    fn meet(&mut self, query: &Query, record: &Record) -> bool {
        let alive = query.live_at.is_none_or(|at| at < record.deadline);
        alive && self.met.insert(record.key.clone())
    }
}

fn is_within(query: &Query, key: &Key) -> bool {
    query.namespace.as_deref().is_none_or(|namespace| namespace == key.namespace())
}
