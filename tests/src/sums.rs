//! What happened to counters, as their users saw it, and whether counters may have answered so.
//!
//! Sums tell where they come from. Every addition has a number, and is told to begin, where there is no counter, at that
//! number in the high bits: so a sum names the life of the counter it belongs to. Every addition also adds one to the
//! low bits: so it names its place in that life. What lies between are the amounts. Then, for each counter:
//! - Of a life every place is taken by one addition, in an order that fits when they ran, and the amounts add up.
//! - What was read is the sum at some moment of the read.
//! - A life ends for a reason: a removal, a clearing, its deadline. Each of these ends it for good.
//! - Where none of these ever happens, every addition is in the last sum, those that nobody waited for too.

use std::collections::{BTreeMap, HashMap};

use crate::history::{Moment, NEVER, Spans};

/// Deadlines are whole milliseconds, of clocks that began at different moments.
const SLACK: u64 = 3_000;
const PLACE_BITS: u32 = 20;
const NET_BITS: u32 = 20;
/// Events that are told of what is wrong.
const MOST_TOLD: usize = 60;

/// The sum of a counter, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// The number of the addition that began the counter.
    pub life: u64,
    /// All amounts together.
    pub net: i64,
    /// How many additions there were.
    pub place: u64,
}

/// What the addition of that number begins with where there is no counter.
pub const fn start(number: u64) -> i64 {
    (number as i64) << (PLACE_BITS + NET_BITS)
}

/// What is added for an amount.
pub const fn delta(amount: i64) -> i64 {
    (amount << PLACE_BITS) + 1
}

/// Takes a sum apart.
pub const fn taken_apart(sum: i64) -> Sum {
    let place = (sum & ((1 << PLACE_BITS) - 1)) as u64;
    let rest = sum >> PLACE_BITS;
    // The amounts may come to less than nothing.
    let life = (rest + (1 << (NET_BITS - 1))) >> NET_BITS;
    Sum { life: life as u64, net: rest - (life << NET_BITS), place }
}

/// One operation on a counter.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// The counter; `None` for all that can be cleared.
    pub counter: Option<u16>,
    /// Who did it.
    pub who: u16,
    /// When it began.
    pub begun: Moment,
    /// When it ended.
    pub ended: Moment,
    /// The times of both, in microseconds.
    pub clock: (u64, u64),
    /// What it was and what came of it.
    pub what: What,
}

/// What an operation was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// An addition; `sum` is what it was told, if somebody waited for it.
    Add {
        /// No two have the same.
        number: u64,
        /// What it adds.
        amount: i64,
        /// Microseconds a counter lives that begins with it.
        ttl: Option<u64>,
        /// The sum after it.
        sum: Option<Sum>,
    },
    /// A read.
    Read(Option<Sum>),
    /// A removal; whether there was one, if somebody waited for it.
    Remove(Option<bool>),
    /// Counters were cleared, or those of their level dropped.
    Clear,
}

/// What a history came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Additions.
    pub additions: u64,
    /// Of those, the ones that nobody waited for.
    pub unheard: u64,
    /// Reads.
    pub reads: u64,
    /// Counters that began.
    pub lives: u64,
    /// Of those, the ones that had a deadline.
    pub mortal: u64,
}

/// Judges every counter's history. `lasting` of them, the first ones, are never removed nor cleared.
///
/// # Errors
/// The first rule that is broken.
pub fn judge(events: &[Event], lasting: u16) -> Result<Tally, String> {
    let mut counters: BTreeMap<u16, Vec<&Event>> = BTreeMap::new();
    for event in events {
        if let Some(counter) = event.counter {
            counters.entry(counter).or_default().push(event);
        }
    }
    let clears: Vec<&Event> = events.iter().filter(|event| event.counter.is_none()).collect();
    let mut tally = Tally::default();
    for (counter, mut mine) in counters {
        let lasts = counter < lasting;
        if !lasts {
            mine.extend(&clears);
        }
        mine.sort_by_key(|event| event.begun);
        let judged = Judge::new(&mine).and_then(|judge| judge.judge(lasts));
        let one = judged.map_err(|broken| format!("counter {counter}: {}", broken.tell(&mine)))?;
        tally.additions += one.additions;
        tally.unheard += one.unheard;
        tally.reads += one.reads;
        tally.lives += one.lives;
        tally.mortal += one.mortal;
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
    fn at(what: String, event: &Event) -> Self {
        Self { what, from: event.begun, to: event.ended }
    }

    fn over(what: String) -> Self {
        Self { what, from: 0, to: NEVER }
    }

    fn tell(mut self, events: &[&Event]) -> String {
        let around = events.iter().filter(|event| event.begun <= self.to && event.ended >= self.from);
        for event in around.take(MOST_TOLD) {
            self.what.push_str(&format!("\n  {event:?}"));
        }
        self.what
    }
}

/// A sum that somebody saw, or made.
#[derive(Clone, Copy)]
struct Seen<'a> {
    event: &'a Event,
    sum: Sum,
    /// The amount of the addition that made it; none for a read.
    made: Option<i64>,
}

impl Seen<'_> {
    /// Reads of a sum come after the addition that made it.
    fn order(&self) -> u64 {
        2 * self.sum.place + u64::from(self.made.is_none())
    }
}

/// The life of a counter.
struct Life<'a> {
    number: u64,
    birth: &'a Event,
    ttl: Option<u64>,
    /// By their order.
    seen: Vec<Seen<'a>>,
    /// It had begun by then.
    first: Moment,
    /// It had not ended by then.
    last: Moment,
}

struct Judge<'a> {
    events: &'a [&'a Event],
    /// In the order in which they were certainly there.
    lives: Vec<Life<'a>>,
    /// Amounts of additions that nobody waited for.
    unheard: Vec<i64>,
    /// What may have ended a life.
    ends: Spans,
}

impl<'a> Judge<'a> {
    fn new(events: &'a [&'a Event]) -> Result<Self, Broken> {
        let mut births: HashMap<u64, (&Event, Option<u64>)> = HashMap::new();
        let (mut seen, mut unheard): (BTreeMap<u64, Vec<Seen<'_>>>, _) = (BTreeMap::new(), Vec::new());
        for event in events {
            let (sum, made) = match event.what {
                What::Add { number, amount, ttl, sum } => {
                    births.insert(number, (event, ttl));
                    if sum.is_none() {
                        unheard.push(amount);
                    }
                    (sum, Some(amount))
                }
                What::Read(sum) => (sum, None),
                What::Remove(_) | What::Clear => (None, None),
            };
            if let Some(sum) = sum {
                seen.entry(sum.life).or_default().push(Seen { event, sum, made });
            }
        }
        let mut lives = Vec::new();
        for (number, mut seen) in seen {
            let Some(&(birth, ttl)) = births.get(&number) else {
                let what = format!("no addition made the sum {:?} of {:?}", seen[0].sum, seen[0].event);
                return Err(Broken::at(what, seen[0].event));
            };
            seen.sort_by_key(Seen::order);
            let first = seen.iter().map(|seen| seen.event.ended).min().unwrap_or(NEVER).min(birth.ended);
            let last = seen.iter().map(|seen| seen.event.begun).max().unwrap_or(0).max(birth.begun);
            lives.push(Life { number, birth, ttl, seen, first, last });
        }
        lives.sort_by_key(|life| life.first);
        let may_end = |event: &&&Event| matches!(event.what, What::Clear | What::Remove(None | Some(true)));
        let ends = Spans::new(events.iter().filter(may_end).map(|event| (event.begun, event.ended)));
        Ok(Self { events, lives, unheard, ends })
    }

    fn judge(&self, lasts: bool) -> Result<Tally, Broken> {
        let mut unheard = self.unheard.clone();
        for life in &self.lives {
            life.is_in_order()?;
            life.adds_up(&mut unheard)?;
            life.kept_its_deadline()?;
        }
        self.one_life_at_a_time()?;
        self.ends_have_a_reason()?;
        if lasts {
            self.nothing_is_lost()?;
        }
        let count =
            |what: fn(&What) -> bool| self.events.iter().filter(|event| what(&event.what)).count() as u64;
        Ok(Tally {
            additions: count(|what| matches!(what, What::Add { .. })),
            unheard: self.unheard.len() as u64,
            reads: count(|what| matches!(what, What::Read(_))),
            lives: self.lives.len() as u64,
            mortal: self.lives.iter().filter(|life| life.ttl.is_some()).count() as u64,
        })
    }

    /// What was certainly there before and after another life, or a removal, was there all the while.
    fn one_life_at_a_time(&self) -> Result<(), Broken> {
        for (at, life) in self.lives.iter().enumerate() {
            let later = self.lives[at + 1..].iter().take_while(|later| later.first < life.last);
            for later in later {
                if later.last > life.first {
                    let what = format!("{} and {} were there at once", life.tell(), later.tell());
                    return Err(Broken { what, from: life.birth.begun, to: life.last.max(later.last) });
                }
            }
        }
        for event in
            self.events.iter().filter(|event| matches!(event.what, What::Clear | What::Remove(Some(_))))
        {
            let mut before = self.lives.iter().take_while(|life| life.first < event.begun);
            if let Some(life) = before.find(|life| life.last > event.ended) {
                let what = format!("{} outlived {event:?}", life.tell());
                return Err(Broken { what, from: life.birth.begun, to: life.last });
            }
        }
        Ok(())
    }

    fn ends_have_a_reason(&self) -> Result<(), Broken> {
        // One that a single slow read has seen was there at some moment of it: by their middles, what has to come first does.
        let mut lives: Vec<&Life> = self.lives.iter().collect();
        lives.sort_by_key(|life| life.first.saturating_add(life.last));
        for pair in lives.windows(2) {
            let (life, next) = (pair[0], pair[1]);
            if !self.ends.any_across(life.last, next.first) && !life.may_be_dead(next.birth) {
                let what = format!("{} ended for no reason before {}", life.tell(), next.tell());
                return Err(Broken { what, from: life.birth.begun, to: next.first });
            }
        }
        let ends = |event: &&&Event| matches!(event.what, What::Clear | What::Remove(None | Some(true)));
        let reasons = self.events.iter().filter(ends).count()
            + self.lives.iter().filter(|life| life.ttl.is_some()).count();
        if self.lives.len() > reasons + 1 {
            let what = format!("it began {} times and was ended {reasons} times at most", self.lives.len());
            return Err(Broken::over(what));
        }
        let removed = self.events.iter().filter(|event| event.what == What::Remove(Some(true))).count();
        if removed > self.lives.len() + self.unheard.len() {
            let what = format!("it was removed {removed} times and began {} times", self.lives.len());
            return Err(Broken::over(what));
        }
        for event in self.events {
            if !matches!(event.what, What::Read(None) | What::Remove(Some(false))) {
                continue;
            }
            for life in self.lives.iter().take_while(|life| life.first < event.begun) {
                if !self.ends.any_across(life.birth.begun, event.ended) && !life.may_be_dead(event) {
                    let what = format!("{event:?} missed {}", life.tell());
                    return Err(Broken { what, from: life.birth.begun, to: event.ended });
                }
            }
        }
        Ok(())
    }

    /// Every addition is in the last sum.
    fn nothing_is_lost(&self) -> Result<(), Broken> {
        let [life] = &self.lives[..] else {
            return Err(Broken::over(format!("it began {} times and was never ended", self.lives.len())));
        };
        let amounts = self.events.iter().filter_map(|event| match event.what {
            What::Add { amount, .. } => Some(amount),
            _ => None,
        });
        let (count, net) = amounts.fold((0, 0), |(count, net), amount| (count + 1, net + amount));
        match life.seen.last() {
            Some(last) if (last.sum.place, last.sum.net) == (count, net) => Ok(()),
            last => {
                let end = last.map(|last| last.sum);
                Err(Broken::over(format!("{count} additions of {net} came to {end:?} in the end")))
            }
        }
    }
}

impl Life<'_> {
    fn tell(&self) -> String {
        format!("the life {} (there from {} to {} at least)", self.number, self.first, self.last)
    }

    /// Each place has one addition, and no sum is seen before an earlier one's operation began.
    fn is_in_order(&self) -> Result<(), Broken> {
        let additions: Vec<&Seen<'_>> = self.seen.iter().filter(|seen| seen.made.is_some()).collect();
        if let Some(pair) = additions.windows(2).find(|pair| pair[0].sum.place == pair[1].sum.place) {
            let what = format!("{:?} and {:?} made the same sum", pair[0].event, pair[1].event);
            return Err(Broken::at(what, pair[0].event));
        }
        for seen in &additions {
            let begins = matches!(seen.event.what, What::Add { number, .. } if number == self.number);
            if begins != (seen.sum.place == 1) {
                let what = format!("{:?} has the wrong place in {}", seen.event, self.tell());
                return Err(Broken::at(what, seen.event));
            }
        }
        let mut earliest_end: Option<&Seen<'_>> = None;
        for seen in self.seen.iter().rev() {
            if let Some(later) = earliest_end.filter(|later| later.event.ended < seen.event.begun)
                && later.order() > seen.order()
            {
                let what = format!("{:?} comes after {:?}", seen.event, later.event);
                return Err(Broken { what, from: later.event.begun, to: seen.event.ended });
            }
            if earliest_end.is_none_or(|later| seen.event.ended < later.event.ended) {
                earliest_end = Some(seen);
            }
        }
        if self.first < self.birth.begun {
            return Err(Broken::at(format!("{} was seen before its birth", self.tell()), self.birth));
        }
        Ok(())
    }

    /// Each sum is the one before it and what was added, some of it by additions that nobody waited for.
    fn adds_up(&self, unheard: &mut Vec<i64>) -> Result<(), Broken> {
        let mut before = Sum { life: self.number, net: 0, place: 0 };
        for seen in &self.seen {
            let (own, amount) = seen.made.map_or((0, 0), |amount| (1, amount));
            let wrong = |why: &str| {
                let what = format!("{:?} made or saw {:?} after {before:?}: {why}", seen.event, seen.sum);
                Err(Broken::at(what, seen.event))
            };
            let Some(others) = seen.sum.place.checked_sub(before.place + own) else {
                return wrong("it is behind");
            };
            let missing = seen.sum.net - before.net - amount;
            match others {
                0 if missing != 0 => return wrong("amounts do not add up"),
                0 => {}
                1 => match unheard.iter().position(|amount| *amount == missing) {
                    Some(at) => drop(unheard.swap_remove(at)),
                    None => return wrong("nobody added that"),
                },
                // Which ones is not known.
                others if others as usize > unheard.len() => return wrong("too many additions"),
                _ => {}
            }
            before = seen.sum;
        }
        Ok(())
    }

    fn kept_its_deadline(&self) -> Result<(), Broken> {
        let Some(ttl) = self.ttl else { return Ok(()) };
        let dead = self.birth.clock.1.saturating_add(ttl + SLACK);
        match self.seen.iter().find(|seen| seen.event.clock.0 > dead) {
            Some(seen) => {
                let what = format!("{:?} saw {} after its deadline", seen.event, self.tell());
                Err(Broken { what, from: self.birth.begun, to: seen.event.ended })
            }
            None => Ok(()),
        }
    }

    /// Whether its deadline may have passed when that ended.
    fn may_be_dead(&self, event: &Event) -> bool {
        self.ttl.is_some_and(|ttl| event.clock.1.saturating_add(SLACK) >= self.birth.clock.0 + ttl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(begun: Moment, ended: Moment, what: What) -> Event {
        Event { counter: Some(0), who: 0, begun, ended, clock: (begun * 1_000, ended * 1_000), what }
    }

    fn sum(life: u64, place: u64, net: i64) -> Sum {
        Sum { life, net, place }
    }

    fn add(begun: Moment, ended: Moment, number: u64, amount: i64, sum: impl Into<Option<Sum>>) -> Event {
        event(begun, ended, What::Add { number, amount, ttl: None, sum: sum.into() })
    }

    fn read(begun: Moment, ended: Moment, sum: impl Into<Option<Sum>>) -> Event {
        event(begun, ended, What::Read(sum.into()))
    }

    fn removal(begun: Moment, ended: Moment, found: bool) -> Event {
        event(begun, ended, What::Remove(Some(found)))
    }

    #[test]
    fn a_sum_comes_apart_as_it_was_made() {
        let mut total = start(7);
        for (place, (amount, net)) in [(-5, -5), (3, -2), (40, 38), (-100, -62)].into_iter().enumerate() {
            total += delta(amount);
            assert_eq!(taken_apart(total), sum(7, place as u64 + 1, net));
        }
    }

    #[test]
    fn what_one_counter_may_have_answered_is_found_right() {
        let calm = [
            read(1, 2, None),
            add(3, 6, 1, 5, sum(1, 1, 5)),
            add(4, 8, 2, -7, sum(1, 2, -2)),
            read(5, 7, sum(1, 1, 5)),
            add(9, 20, 3, 4, None),
            read(10, 11, sum(1, 3, 2)),
            read(21, 22, sum(1, 3, 2)),
        ];
        let tally = judge(&calm, 1).unwrap();
        assert_eq!((tally.additions, tally.unheard, tally.lives), (3, 1, 1));
        let anew = [
            add(1, 2, 1, 5, sum(1, 1, 5)),
            removal(3, 6, true),
            add(4, 5, 2, 1, sum(2, 1, 1)),
            read(7, 8, sum(2, 1, 1)),
            removal(9, 10, true),
            read(11, 12, None),
        ];
        judge(&anew, 0).unwrap();
        // Removed as soon as it was there, before whoever made it was told.
        judge(&[add(1, 4, 1, 5, sum(1, 1, 5)), removal(2, 3, true), read(5, 6, None)], 0).unwrap();
    }

    #[test]
    fn an_update_that_is_lost_or_made_twice_is_found_out() {
        let first = add(1, 2, 1, 5, sum(1, 1, 5));
        let lost = [first, add(3, 6, 2, 1, sum(1, 2, 6)), add(4, 7, 3, 1, sum(1, 2, 6))];
        assert!(judge(&lost, 0).unwrap_err().contains("the same sum"));
        let twice = [first, add(3, 4, 2, 1, sum(1, 3, 7))];
        assert!(judge(&twice, 0).unwrap_err().contains("nobody added that"));
        let forgotten = [first, add(3, 9, 2, 1, None), read(10, 11, sum(1, 1, 5))];
        assert!(judge(&forgotten, 1).unwrap_err().contains("in the end"));
        let wrong = [first, add(3, 4, 2, 1, sum(1, 2, 7))];
        assert!(judge(&wrong, 0).unwrap_err().contains("do not add up"));
    }

    #[test]
    fn reads_outside_of_what_additions_allow_are_found_out() {
        let additions = [add(1, 2, 1, 5, sum(1, 1, 5)), add(5, 6, 2, 5, sum(1, 2, 10))];
        for (wrong, why) in [
            (read(7, 8, sum(1, 1, 5)), "comes after"),
            (read(3, 4, sum(1, 2, 10)), "comes after"),
            (read(3, 4, None), "missed"),
            (read(3, 4, sum(9, 1, 5)), "no addition made"),
        ] {
            let told = judge(&[&additions[..], &[wrong]].concat(), 0).unwrap_err();
            assert!(told.contains(why), "{wrong:?}: {told}");
        }
    }

    #[test]
    fn lives_that_outlast_a_removal_or_end_without_one_are_found_out() {
        let first = add(1, 2, 1, 5, sum(1, 1, 5));
        let outlived = [first, removal(3, 4, true), read(5, 6, sum(1, 1, 5))];
        assert!(judge(&outlived, 0).unwrap_err().contains("outlived"));
        let evicted = [first, add(3, 4, 2, 5, sum(2, 1, 5))];
        assert!(judge(&evicted, 0).unwrap_err().contains("for no reason"));
        let missed = [first, removal(3, 4, false)];
        assert!(judge(&missed, 0).is_err());
        let both = [first, removal(3, 8, true), add(4, 5, 2, 5, sum(2, 1, 5)), read(6, 7, sum(1, 1, 5))];
        assert!(judge(&both, 0).unwrap_err().contains("at once"));
    }

    #[test]
    fn deadlines_are_kept() {
        let mut first = add(1, 2, 1, 5, sum(1, 1, 5));
        if let What::Add { ttl, .. } = &mut first.what {
            *ttl = Some(10_000);
        }
        judge(&[first, read(11, 12, sum(1, 1, 5)), read(20, 21, None)], 0).unwrap();
        judge(&[first, add(20, 21, 2, 5, sum(2, 1, 5))], 0).unwrap();
        assert!(judge(&[first, read(16, 17, sum(1, 1, 5))], 0).unwrap_err().contains("deadline"));
        assert!(judge(&[first, read(4, 5, None)], 0).unwrap_err().contains("missed"));
    }
}
