//! The comparison itself: what disagrees is told to tracking, or counted at least.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tiercache_core::tier::{Call, ListedEntry, side_by_side};
use tiercache_core::tracking::{Event, Query, Record, What};
use tiercache_core::{Clock, Error, Generation, Key, Level, Result, Tracking};

use super::Drift;
use super::contents::Held;
use super::dead::Dead;
use crate::config::{LEVEL_SECTIONS, blame};

/// Records and entries in memory at a time.
const PAGE: usize = 256;
/// Look-ups under way at a time.
const AT_ONCE: usize = 16;
/// Differences that wait for a second look.
const MOST_DOUBTS: usize = 8_192;
/// How long after the first the second look is: a cache that is open tells tracking five times a second what it did.
const SETTLED: Duration = Duration::from_secs(1);

pub(super) struct Compare<F> {
    /// What the configuration is called.
    pub(super) file: String,
    pub(super) tracking: Arc<dyn Tracking>,
    /// What each level holds, if that is known.
    pub(super) held: [Option<Held>; 3],
    /// Whether a record that names the level must be wrong when no level holds the entry.
    pub(super) judged: [bool; 3],
    pub(super) repair: bool,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) drift: Drift,
    pub(super) dead: Dead,
    pub(super) progress: F,
}

/// What a record is, seen from the levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Nobody can say.
    Unknown,
    /// Where it says, or there is something newer.
    Right,
    /// At another level.
    Elsewhere(Level),
    /// Nowhere that is known.
    Nowhere,
}

impl<F: FnMut(&Drift) + Send> Compare<F> {
    pub(super) async fn run(&mut self) -> Result<()> {
        self.learn_fences().await;
        if self.judged.contains(&true) {
            self.judge_all().await?;
        }
        for level in Level::ALL {
            self.look_up_all(level).await?;
        }
        Ok(())
    }

    /// A level that does not answer is compared no further.
    pub(super) fn give_up(&mut self, level: Level, error: &Error) {
        self.held[level.index()] = None;
        self.judged[level.index()] = false;
        self.drift.compared.retain(|compared| *compared != level);
        self.drift.failed.push((level, blame(&self.file, LEVEL_SECTIONS[level.index()], error)));
    }

    /// Whether the levels hold what tracking's records say.
    async fn judge_all(&mut self) -> Result<()> {
        let (mut doubts, mut after) = (Vec::new(), None::<Key>);
        loop {
            let mut page = self.tracking.find(&Query::all(), after.as_ref(), PAGE).await?;
            let is_last = page.len() < PAGE;
            after = page.last().map(|record| record.key.clone());
            page.retain(|record| self.judged[record.level.index()]);
            let judged = self.judge(page).await;
            self.drift.records += judged.len() as u64;
            if self.is_settled() {
                self.correct(judged).await?;
            } else {
                let doubtful = judged.into_iter().filter(|(_, standing)| *standing != Standing::Right);
                doubts.extend(doubtful.map(|(record, _)| record));
                if doubts.len() >= MOST_DOUBTS {
                    self.judge_again(std::mem::take(&mut doubts)).await?;
                }
            }
            (self.progress)(&self.drift);
            if is_last {
                return self.judge_again(doubts).await;
            }
        }
    }

    /// The second look at records: what is wrong is wrong as it was.
    async fn judge_again(&mut self, records: Vec<Record>) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        self.settle().await;
        for page in records.chunks(PAGE) {
            let again = self.records_of(page.iter().map(|record| &record.key)).await?;
            let same = page.iter().zip(again).filter_map(|(before, record)| {
                record.filter(|now| (now.generation, now.level) == (before.generation, before.level))
            });
            let judged = self.judge(same.collect()).await;
            self.correct(judged).await?;
            (self.progress)(&self.drift);
        }
        Ok(())
    }

    /// Whether tracking knows what a level holds.
    async fn look_up_all(&mut self, level: Level) -> Result<()> {
        let (mut doubts, mut after) = (Vec::new(), None);
        // Gone as soon as the level was given up.
        while let Some(contents) = self.held[level.index()].clone() {
            let page = match contents.list(after, PAGE).await {
                Ok(page) => page,
                Err(error) => {
                    self.give_up(level, &error);
                    break;
                }
            };
            let alive = self.alive(level, page.entries);
            self.drift.entries += alive.len() as u64;
            let unknown = self.unknown(level, alive).await?;
            if self.is_settled() {
                self.take_in(level, unknown).await?;
            } else {
                doubts.extend(unknown);
                if doubts.len() >= MOST_DOUBTS {
                    self.look_up_again(level, std::mem::take(&mut doubts)).await?;
                }
            }
            (self.progress)(&self.drift);
            after = page.next;
            if after.is_none() {
                return self.look_up_again(level, doubts).await;
            }
        }
        Ok(())
    }

    /// The second look at entries: what is unknown still stands there as it did.
    async fn look_up_again(&mut self, level: Level, mut listed: Vec<ListedEntry>) -> Result<()> {
        if listed.is_empty() {
            return Ok(());
        }
        self.settle().await;
        let mut seen = HashSet::new();
        listed.retain(|listed| seen.insert(listed.key.clone()));
        for page in listed.chunks(PAGE) {
            let alive = self.alive(level, page.to_vec());
            let unknown = self.unknown(level, alive).await?;
            let wanted: Vec<_> =
                unknown.iter().map(|listed| (listed.key.clone(), listed.entry.generation)).collect();
            let Some(there) = self.generations(level, &wanted).await else { return Ok(()) };
            let still = unknown
                .into_iter()
                .zip(there)
                .filter_map(|(listed, there)| (there == Some(listed.entry.generation)).then_some(listed));
            let still = still.collect();
            self.take_in(level, still).await?;
            (self.progress)(&self.drift);
        }
        Ok(())
    }

    /// Whether nobody writes to a level meanwhile.
    fn is_settled(&self) -> bool {
        !self.held.iter().flatten().any(|contents| contents.is_shared())
    }

    /// Waits until what was under way at the first look is over.
    async fn settle(&mut self) {
        tokio::time::sleep(SETTLED).await;
        self.learn_fences().await;
    }

    async fn learn_fences(&mut self) {
        for level in Level::ALL {
            let Some(contents) = self.held[level.index()].clone() else { continue };
            match contents.fences().await {
                Ok(fences) => self.dead.add(fences),
                Err(error) => self.give_up(level, &error),
            }
        }
    }

    fn alive(&self, level: Level, listed: Vec<ListedEntry>) -> Vec<ListedEntry> {
        let (now, dead) = (self.clock.now(), self.dead.at(level));
        let alive =
            |listed: &ListedEntry| listed.entry.is_live(now) && !dead.kills(&listed.key, &listed.entry);
        listed.into_iter().filter(alive).collect()
    }

    /// What the levels say of records, as far as they can say anything.
    async fn judge(&mut self, records: Vec<Record>) -> Vec<(Record, Standing)> {
        let standings = self.standings(&records).await;
        records.into_iter().zip(standings).filter(|(_, standing)| *standing != Standing::Unknown).collect()
    }

    /// Counts records that are wrong, and tells tracking what is right.
    async fn correct(&mut self, judged: Vec<(Record, Standing)>) -> Result<()> {
        let now = self.clock.now();
        let mut events = Vec::new();
        for (record, standing) in judged {
            let to = match standing {
                Standing::Unknown | Standing::Right => continue,
                Standing::Elsewhere(level) => Some(level),
                Standing::Nowhere => None,
            };
            match to.is_none() && record.deadline <= now {
                true => self.drift.expired += 1,
                false => self.drift.stale += 1,
            }
            let Record { key, generation, .. } = record;
            events.push(Event { at: now, what: What::Moved { key, generation, to } });
        }
        self.tell(events).await
    }

    /// Counts entries that tracking does not know, and has it know them.
    async fn take_in(&mut self, level: Level, unknown: Vec<ListedEntry>) -> Result<()> {
        self.drift.untracked += unknown.len() as u64;
        let at = self.clock.now();
        let stored = unknown.into_iter().map(|ListedEntry { key, entry, size }| {
            let record = Record { size, ..Record::of(key, &entry, level) };
            Event { at, what: What::Stored(record) }
        });
        self.tell(stored.collect()).await
    }

    async fn tell(&self, events: Vec<Event>) -> Result<()> {
        if self.repair && !events.is_empty() { self.tracking.record(&events).await } else { Ok(()) }
    }

    async fn records_of(&self, keys: impl Iterator<Item = &Key>) -> Result<Vec<Option<Record>>> {
        let tracking = &self.tracking;
        let calls = keys.map(|key| -> Call<'_, _> { Box::pin(tracking.lookup(key)) });
        side_by_side(AT_ONCE, calls.collect()).await.into_iter().collect()
    }

    /// Those entries of a level that tracking does not know.
    async fn unknown(&mut self, level: Level, listed: Vec<ListedEntry>) -> Result<Vec<ListedEntry>> {
        let records = self.records_of(listed.iter().map(|listed| &listed.key)).await?;
        let (mut unknown, mut newer) = (Vec::new(), Vec::new());
        let (mut absent, mut below) = (Vec::new(), Vec::new());
        for (listed, record) in
            listed.into_iter().zip(records).filter(|(listed, _)| !listed.entry.is_nothing())
        {
            match record {
                None => absent.push(listed),
                Some(record) if record.generation < listed.entry.generation => unknown.push(listed),
                Some(record) if record.generation > listed.entry.generation => {
                    if self.judged[record.level.index()] {
                        below.push(listed);
                        newer.push(record);
                    }
                }
                Some(_) => {}
            }
        }
        // A newer record is of something that is gone, or this is an old copy below it.
        let standings = self.standings(&newer).await;
        let gone = below.into_iter().zip(standings);
        unknown.extend(gone.filter(|(_, standing)| *standing == Standing::Nowhere).map(|(listed, _)| listed));
        if !self.repair {
            self.leave_out_copies(level, &mut absent).await;
        }
        unknown.extend(absent);
        Ok(unknown)
    }

    /// Leaves out what stands above, too: without a repair tracking was not told of it there.
    async fn leave_out_copies(&mut self, level: Level, listed: &mut Vec<ListedEntry>) {
        for above in Level::ALL.into_iter().filter(|above| *above < level) {
            let wanted: Vec<_> =
                listed.iter().map(|listed| (listed.key.clone(), listed.entry.generation)).collect();
            let Some(there) = self.generations(above, &wanted).await else { continue };
            let mut there = there.into_iter();
            listed
                .retain(|listed| there.next().flatten().is_none_or(|there| there < listed.entry.generation));
        }
    }

    async fn standings(&mut self, records: &[Record]) -> Vec<Standing> {
        let mut standings = vec![Standing::Unknown; records.len()];
        for level in Level::ALL {
            let named = |(at, record): (usize, &Record)| (record.level == level).then_some(at);
            let at: Vec<usize> = records.iter().enumerate().filter_map(named).collect();
            for (at, there) in self.ask(level, records, at).await {
                let right = there.is_some_and(|there| there >= records[at].generation);
                standings[at] = if right { Standing::Right } else { Standing::Nowhere };
            }
        }
        for level in Level::ALL {
            let elsewhere = |at: &usize| standings[*at] == Standing::Nowhere && records[*at].level != level;
            let at: Vec<usize> = (0..records.len()).filter(elsewhere).collect();
            for (at, there) in self.ask(level, records, at).await {
                if there == Some(records[at].generation) {
                    standings[at] = Standing::Elsewhere(level);
                }
            }
        }
        if !self.drift.failed.is_empty() {
            // It may be there.
            standings
                .iter_mut()
                .filter(|it| **it == Standing::Nowhere)
                .for_each(|it| *it = Standing::Unknown);
        }
        standings
    }

    /// What a level holds of some records; nothing when that cannot be said.
    async fn ask(
        &mut self,
        level: Level,
        records: &[Record],
        at: Vec<usize>,
    ) -> Vec<(usize, Option<Generation>)> {
        let wanted: Vec<_> = at.iter().map(|&at| (records[at].key.clone(), records[at].generation)).collect();
        let there = self.generations(level, &wanted).await.unwrap_or_default();
        at.into_iter().zip(there).collect()
    }

    /// The generations a level holds of keys; None when that cannot be said.
    async fn generations(
        &mut self,
        level: Level,
        wanted: &[(Key, Generation)],
    ) -> Option<Vec<Option<Generation>>> {
        let contents = self.held[level.index()].clone()?;
        if wanted.is_empty() {
            return Some(Vec::new());
        }
        let dead = self.dead.at(level);
        match contents.generations(wanted, &dead).await {
            Ok(there) => {
                let there = wanted.iter().zip(there);
                Some(there.map(|((key, _), there)| there.filter(|there| !dead.awaits(key, *there))).collect())
            }
            Err(error) => {
                self.give_up(level, &error);
                None
            }
        }
    }
}
