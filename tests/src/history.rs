//! What happened to a cache, as its users saw it, and whether a cache may have answered so.
//!
//! Every operation has a moment when it began and one when it ended, drawn from one counter. Then, whatever ran
//! beside whatever, for each key:
//! - A read may not find a value if another write, or a removal, lies wholly between that value's write and the read.
//! - Reads do not go back: not to a value that was written before one that was read already, by generation or by
//!   time.
//! - What was gone stays gone until it is written again.
//! - A value is not read after its deadline, and popped once.
//! - Where nothing can be lost, what was written and not removed is found.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

/// A point of a history.
pub type Moment = u64;

/// The end of what has not ended as far as anybody can tell.
pub const NEVER: Moment = Moment::MAX;

/// One operation on a key.
#[derive(Clone, Debug)]
pub struct Event {
    /// The key; `None` for all of them.
    pub key: Option<u16>,
    /// Who did it.
    pub who: u16,
    /// The process it happened in, for those that are killed.
    pub life: u32,
    /// When it began.
    pub begun: Moment,
    /// When it ended.
    pub ended: Moment,
    /// What it was and what came of it.
    pub what: What,
}

/// What an operation was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A value was written.
    Write(Written),
    /// What carries the tag, or whatever there is, was removed.
    Remove {
        /// Only what carries it.
        tag: Option<u8>,
        /// It took effect for sure.
        certain: bool,
    },
    /// A read, and what it found.
    Read {
        /// The number of the value.
        value: Option<u64>,
        /// The time when it began.
        clock: u64,
    },
    /// What a load answered. It may not be kept, when something came between: others need not see it after that.
    Answer {
        /// The number of the value.
        value: u64,
        /// The time when it began.
        clock: u64,
    },
    /// A read that removes what it finds.
    Pop {
        /// The number of the value.
        value: Option<u64>,
        /// The time when it began.
        clock: u64,
    },
    /// Whatever stood there may live longer than it would have, or, if it is written anew, be lost by a kill.
    Touch {
        /// What a kill cannot take away, it still cannot.
        durable: bool,
    },
    /// Some copies were dropped: perhaps the last ones.
    Flush,
}

/// A write and what it promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The number of the value; no two writes have the same.
    pub value: u64,
    /// The order it was given, if it told.
    pub generation: Option<u64>,
    /// It took effect for sure.
    pub certain: bool,
    /// The tag the value carries.
    pub tag: Option<u8>,
    /// The time after which it is dead.
    pub deadline: Option<u64>,
    /// A kill cannot take it away.
    pub durable: bool,
}

/// What a history came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Reads.
    pub reads: u64,
    /// Reads that found something.
    pub hits: u64,
    /// Writes and removals.
    pub mutations: u64,
}

/// Judges every key's history. `lossless` says that nothing can be lost but by a removal, a deadline or a kill.
///
/// # Errors
/// The first rule that is broken, with what happened to the key around it.
pub fn judge(events: &[Event], lossless: bool) -> Result<Tally, String> {
    let keys: HashSet<u16> = events.iter().filter_map(|event| event.key).collect();
    let mut tally = Tally::default();
    for key in keys {
        let mine: Vec<&Event> = events.iter().filter(|event| event.key.is_none_or(|of| of == key)).collect();
        let judged = Judge::new(&mine, lossless).judge();
        let one = judged.map_err(|broken| broken.tell(key, &mine))?;
        tally.reads += one.reads;
        tally.hits += one.hits;
        tally.mutations += one.mutations;
    }
    Ok(tally)
}

/// A rule that was broken, and the moments it is about.
struct Broken {
    what: String,
    from: Moment,
    to: Moment,
}

impl Broken {
    fn tell(&self, key: u16, events: &[&Event]) -> String {
        let mut around: Vec<_> =
            events.iter().filter(|event| event.begun <= self.to && event.ended >= self.from).collect();
        around.sort_by_key(|event| event.begun);
        let mut text = format!("key {key}: {}\n", self.what);
        let left_out = around.len().saturating_sub(80);
        if left_out > 0 {
            around.drain(40..40 + left_out);
        }
        for (at, event) in around.into_iter().enumerate() {
            if left_out > 0 && at == 40 {
                let _ = writeln!(text, "  … {left_out} more");
            }
            let ended = if event.ended == NEVER { "?".into() } else { event.ended.to_string() };
            let Event { who, life, begun, what, .. } = event;
            let _ = writeln!(text, "  {begun}..{ended} by {who} in life {life}: {what:?}");
        }
        text
    }
}

type Span = (Moment, Moment);

/// Intervals, to be asked whether one of them lies in, or reaches over, others.
pub(crate) struct Spans {
    by_begin: Vec<Span>,
    /// The earliest end of this one and all that begin later.
    earliest_end: Vec<Moment>,
    /// The latest end of this one and all that begin earlier.
    latest_end: Vec<Moment>,
}

impl Spans {
    pub(crate) fn new(spans: impl Iterator<Item = Span>) -> Self {
        let mut by_begin: Vec<_> = spans.collect();
        by_begin.sort_unstable();
        let mut earliest_end: Vec<_> = by_begin.iter().map(|span| span.1).collect();
        let mut latest_end = earliest_end.clone();
        for at in (1..by_begin.len()).rev() {
            earliest_end[at - 1] = earliest_end[at - 1].min(earliest_end[at]);
        }
        for at in 1..by_begin.len() {
            latest_end[at] = latest_end[at].max(latest_end[at - 1]);
        }
        Self { by_begin, earliest_end, latest_end }
    }

    /// Whether one of them begins after `from` and ends before `to`.
    pub(crate) fn any_within(&self, from: Moment, to: Moment) -> bool {
        let first = self.by_begin.partition_point(|span| span.0 <= from);
        self.earliest_end.get(first).is_some_and(|end| *end < to)
    }

    /// Whether one of them has a moment in common with what lies between the two.
    pub(crate) fn any_across(&self, from: Moment, to: Moment) -> bool {
        let past = self.by_begin.partition_point(|span| span.0 < to);
        past > 0 && self.latest_end[past - 1] > from
    }
}

struct Judge<'a> {
    events: &'a [&'a Event],
    lossless: bool,
    /// Where the write of a value is.
    writes: HashMap<u64, (&'a Event, Written)>,
    /// Those that took effect and have no deadline, by their end.
    kept: Vec<(&'a Event, Written)>,
    /// Per tag: what replaces or removes a value that carries it.
    ends: HashMap<Option<u8>, Spans>,
    /// What any value may be missing for.
    excuses: Spans,
    /// Per tag: the removals of what carries it, and the writes that do.
    tagged: Vec<(Spans, Spans)>,
    /// Writes that a kill can take away.
    fragile: Spans,
    /// During these a read may miss what is being written anew.
    writing: Spans,
    touches: Spans,
    /// When a value that was loaded was first answered: it is kept by then, if it is at all.
    answered: HashMap<u64, Moment>,
}

impl<'a> Judge<'a> {
    fn new(events: &'a [&'a Event], lossless: bool) -> Self {
        let mut writes = HashMap::new();
        let mut tags = HashSet::from([None]);
        for event in events {
            if let What::Write(written) = event.what {
                writes.insert(written.value, (*event, written));
                tags.insert(written.tag);
            }
        }
        let mut answered = HashMap::new();
        for event in events {
            if let What::Answer { value, .. } = event.what {
                let first = answered.entry(value).or_insert(event.ended);
                *first = event.ended.min(*first);
            }
        }
        let lasts = |written: &Written| written.certain && written.deadline.is_none();
        let mut kept: Vec<_> = writes.values().filter(|(_, written)| lasts(written)).copied().collect();
        kept.sort_by_key(|(write, _)| write.ended);
        let spans = |choose: &dyn Fn(&What) -> bool| {
            Spans::new(
                events.iter().filter(|event| choose(&event.what)).map(|event| (event.begun, event.ended)),
            )
        };
        let hits = |of: Option<u8>, tag: Option<u8>| of.is_none() || of == tag;
        let ends = |tag| {
            spans(&|what| match *what {
                What::Write(written) => written.certain,
                What::Remove { tag: of, certain } => certain && hits(of, tag),
                What::Pop { value, .. } => value.is_some(),
                What::Read { .. } | What::Answer { .. } | What::Touch { .. } | What::Flush => false,
            })
        };
        let excuses = spans(&|what| match *what {
            What::Write(written) => !written.certain || written.deadline.is_some(),
            What::Remove { tag, .. } => tag.is_none(),
            What::Pop { .. } | What::Flush => true,
            What::Touch { durable } => !durable,
            What::Read { .. } | What::Answer { .. } => false,
        });
        let tagged = |tag| {
            let removals = spans(&|what| matches!(what, What::Remove { tag: of, .. } if *of == Some(tag)));
            (removals, spans(&|what| matches!(what, What::Write(written) if written.tag == Some(tag))))
        };
        let writing = |what: &What| {
            matches!(
                what,
                What::Write(_) | What::Remove { certain: false, .. } | What::Touch { .. } | What::Flush
            )
        };
        Self {
            events,
            lossless,
            writes,
            kept,
            ends: tags.iter().map(|tag| (*tag, ends(*tag))).collect(),
            excuses,
            tagged: tags.iter().flatten().map(|tag| tagged(*tag)).collect(),
            fragile: spans(&|what| matches!(what, What::Write(written) if !written.durable)),
            writing: spans(&writing),
            touches: spans(&|what| matches!(what, What::Touch { .. })),
            answered,
        }
    }

    fn judge(&self) -> Result<Tally, Broken> {
        let found = |event: &&&'a Event| match event.what {
            What::Read { value, clock } | What::Pop { value, clock } => Some((**event, value, clock)),
            What::Answer { value, clock } => Some((**event, Some(value), clock)),
            _ => None,
        };
        let mut reads: Vec<_> = self.events.iter().filter_map(|event| found(&event)).collect();
        reads.sort_by_key(|(read, ..)| read.begun);
        let hits = reads.iter().filter(|(_, value, _)| value.is_some()).count() as u64;
        for (read, value, clock) in &reads {
            match value {
                Some(value) => self.may_be_found(read, *value, *clock)?,
                None if self.lossless => self.may_be_missed(read)?,
                None => {}
            }
        }
        let (answers, reads): (Vec<_>, Vec<_>) =
            reads.into_iter().partition(|(event, ..)| matches!(event.what, What::Answer { .. }));
        self.never_back(&reads)?;
        let mut popped = HashSet::new();
        for event in self.events {
            if let What::Pop { value: Some(value), .. } = event.what
                && !popped.insert(value)
            {
                return Err(self.broken(format!("value {value} was popped twice"), event, event.begun));
            }
        }
        let reads = (reads.len() + answers.len()) as u64;
        Ok(Tally { reads, hits, mutations: self.events.len() as u64 - reads })
    }

    fn may_be_found(&self, read: &Event, value: u64, clock: u64) -> Result<(), Broken> {
        let Some((write, written)) = self.writes.get(&value) else {
            return Err(self.broken(format!("value {value} was never written"), read, read.begun));
        };
        if write.begun > read.ended {
            let what = format!("value {value} was read before it was written");
            return Err(self.broken(what, write, read.begun));
        }
        if self.ends[&written.tag].any_within(write.ended, read.begun) {
            let what = format!(
                "value {value}, written {}..{}, was read {}..{} after it was replaced or removed",
                write.begun, write.ended, read.begun, read.ended
            );
            return Err(self.broken(what, read, write.begun));
        }
        if written.deadline.is_some_and(|deadline| clock >= deadline)
            && !self.touches.any_across(write.begun, read.ended)
        {
            let what =
                format!("value {value} was read at {clock}, after its deadline {:?}", written.deadline);
            return Err(self.broken(what, read, write.begun));
        }
        Ok(())
    }

    /// A miss needs a reason.
    fn may_be_missed(&self, read: &Event) -> Result<(), Broken> {
        let past = self.kept.partition_point(|(write, _)| write.ended < read.begun);
        let mut kept = self.kept[..past].iter().rev();
        let found = kept.find(|(write, written)| written.durable || write.life == read.life);
        let Some((write, written)) = found else { return Ok(()) };
        // A removal by tag explains it if this value, or one that was written beside it or since, carries the tag.
        let removed = |(removals, writes): &(Spans, Spans)| {
            removals.any_across(write.begun, read.ended) && writes.any_across(write.begun, read.ended)
        };
        // So does a later write that a kill could take away, and did.
        let life_began = self.events.iter().filter(|event| event.life == read.life).map(|event| event.begun);
        let life_began = life_began.min().unwrap_or(read.begun);
        if self.excuses.any_across(write.begun, read.ended)
            || self.fragile.any_across(write.begun, life_began)
            || self.tagged.iter().any(removed)
            || self.writing.any_across(read.begun, read.ended)
        {
            return Ok(());
        }
        let what = format!("value {} was missed {}..{}", written.value, read.begun, read.ended);
        Err(self.broken(what, read, write.begun))
    }

    /// What one read found, or did not find, no later one may be behind of. The reads are sorted by their begin.
    fn never_back(&self, reads: &[(&Event, Option<u64>, u64)]) -> Result<(), Broken> {
        let mut by_end: Vec<_> = reads.iter().collect();
        by_end.sort_by_key(|(read, ..)| read.ended);
        let mut ended = by_end.into_iter().peekable();
        // Of the reads that have ended: the newest value by time and by order, and the latest begin of a miss.
        let mut newest: Option<(Moment, u64)> = None;
        let mut highest: Option<((u32, u64), u64)> = None;
        let mut gone: Option<Moment> = None;
        for (read, value, _) in reads {
            while let Some((before, value, _)) = ended.next_if(|(before, ..)| before.ended < read.begun) {
                match value.and_then(|value| self.writes.get(&value)) {
                    Some((write, written)) => {
                        newest = newest.max(Some((write.begun, written.value)));
                        let order = written.generation.map(|generation| (write.life, generation));
                        highest = highest.max(order.map(|order| (order, written.value)));
                    }
                    None if self.writing.any_across(before.begun, before.ended) => {}
                    None => gone = gone.max(Some(before.begun)),
                }
            }
            let Some((write, written)) = value.and_then(|value| self.writes.get(&value)) else { continue };
            let order = written.generation.map(|generation| (write.life, generation));
            let kept = self.answered.get(&written.value).map_or(write.ended, |first| write.ended.max(*first));
            let back = match (newest, highest, gone) {
                (Some((begun, newer)), ..) if begun > write.ended => Some(format!("from value {newer}")),
                (_, Some((highest, newer)), _) if order.is_some_and(|order| order < highest) => {
                    Some(format!("from value {newer} of generation {}", highest.1))
                }
                (.., Some(gone)) if gone > kept => Some(format!("from a miss at {gone}")),
                _ => None,
            };
            if let Some(from) = back {
                let what = format!("reads went back {from} to value {} {:?}", written.value, order);
                return Err(self.broken(what, read, write.begun));
            }
        }
        Ok(())
    }

    fn broken(&self, what: String, event: &Event, from: Moment) -> Broken {
        Broken { what, from: from.min(event.begun), to: event.ended }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(begun: Moment, ended: Moment, what: What) -> Event {
        Event { key: Some(1), who: 0, life: 0, begun, ended, what }
    }

    fn write(begun: Moment, ended: Moment, value: u64) -> Event {
        let generation = Some(value);
        let (certain, tag, deadline, durable) = (true, None, None, false);
        let written = Written { value, generation, certain, tag, deadline, durable };
        event(begun, ended, What::Write(written))
    }

    fn read(begun: Moment, ended: Moment, value: impl Into<Option<u64>>) -> Event {
        event(begun, ended, What::Read { value: value.into(), clock: begun })
    }

    const GONE: What = What::Remove { tag: None, certain: true };

    #[test]
    fn what_overlaps_may_come_in_either_order() {
        let history = [
            write(1, 4, 1),
            write(2, 8, 2),
            read(3, 5, 1),
            read(6, 7, 2),
            event(7, 12, GONE),
            read(9, 10, 2),
        ];
        judge(&history, true).unwrap();
        judge(
            &[write(1, 2, 1), event(3, 4, GONE), read(5, 6, None), write(7, 9, 2), read(8, 10, None)],
            true,
        )
        .unwrap();
    }

    #[test]
    fn an_old_value_is_found_out() {
        assert!(judge(&[write(1, 2, 1), write(3, 4, 2), read(5, 6, 1)], false).is_err());
        assert!(judge(&[write(1, 2, 1), event(3, 4, GONE), read(5, 6, 1)], false).is_err());
        assert!(judge(&[write(3, 4, 1), read(1, 2, 1)], false).is_err());
        assert!(judge(&[read(1, 2, 1)], false).is_err());
        judge(&[write(1, 2, 1), write(3, 6, 2), read(5, 7, 1)], false).unwrap();
    }

    #[test]
    fn a_tag_removes_what_carries_it() {
        let removed = event(3, 4, What::Remove { tag: Some(7), certain: true });
        judge(&[write(1, 2, 1), removed.clone(), read(5, 6, 1)], true).unwrap();
        let mut tagged = write(1, 2, 1);
        if let What::Write(written) = &mut tagged.what {
            written.tag = Some(7);
        }
        assert!(judge(&[tagged.clone(), removed.clone(), read(5, 6, 1)], true).is_err());
        judge(&[tagged, removed, read(5, 6, None)], true).unwrap();
    }

    #[test]
    fn reads_that_go_back_are_found_out() {
        // Both writes run all the while, so only the reads' own order tells.
        let writes = [write(1, 20, 1), write(2, 21, 2)];
        let backwards = [read(3, 4, 2), read(5, 6, 1)];
        assert!(judge(&[&writes[..], &backwards].concat(), false).is_err());
        let onwards = [read(3, 4, 1), read(5, 6, 2)];
        judge(&[&writes[..], &onwards].concat(), false).unwrap();
        // A removal that has not ended yet has been seen.
        let undone = [write(1, 2, 1), event(3, 20, GONE), read(4, 5, None), read(6, 7, 1)];
        assert!(judge(&undone, false).is_err());
    }

    #[test]
    fn a_loss_is_found_out_where_nothing_can_be_lost() {
        assert!(judge(&[write(1, 2, 1), read(3, 4, None)], true).is_err());
        judge(&[write(1, 2, 1), read(3, 4, None)], false).unwrap();
        judge(&[write(1, 2, 1), event(3, 4, What::Flush), read(5, 6, None)], true).unwrap();
        let mut later = read(3, 4, None);
        later.life = 1;
        judge(&[write(1, 2, 1), later], true).unwrap();
    }

    #[test]
    fn deadlines_and_pops_are_judged() {
        let mut short = write(1, 2, 1);
        if let What::Write(written) = &mut short.what {
            written.deadline = Some(10);
        }
        judge(&[short.clone(), read(9, 10, 1)], true).unwrap();
        assert!(judge(&[short.clone(), read(11, 12, 1)], true).is_err());
        judge(&[short, read(11, 12, None)], true).unwrap();
        let pop = |begun| event(begun, begun + 1, What::Pop { value: Some(1), clock: begun });
        judge(&[write(1, 2, 1), pop(3)], true).unwrap();
        assert!(judge(&[write(1, 9, 1), pop(3), pop(5)], true).is_err());
    }
}
