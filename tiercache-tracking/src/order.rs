//! Places of records in the order of their keys.

use std::ops::Bound;

use tiercache_core::Key;

use crate::records::Records;

/// The most places in a run.
const MOST: usize = 512;

/// Places in [`Records`], four bytes each, sorted by the keys that stand there: runs of up to [`MOST`], themselves in
/// order and none of them empty. A change moves what is in one run, and rarely the list of runs.
#[derive(Debug, Default)]
pub(crate) struct Order {
    runs: Vec<Run>,
    len: usize,
}

#[derive(Debug)]
struct Run {
    /// Above every key of the run before, and above none of this one. Of no meaning in the first run.
    bound: Key,
    places: Vec<u32>,
}

impl Order {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds the place of a key that is not there.
    pub(crate) fn insert(&mut self, place: u32, records: &Records) {
        self.len += 1;
        let key = records.key(place);
        if self.runs.is_empty() {
            self.runs = vec![Run { bound: key.clone(), places: vec![place] }];
            return;
        }
        let (mut run, mut at) = self.first_from(key, records);
        if self.runs[run].places.len() == MOST {
            if run + 1 == self.runs.len() && at == MOST {
                // Keys that only grow fill their runs.
                self.runs.push(Run { bound: key.clone(), places: vec![place] });
                return;
            }
            let places = self.runs[run].places.split_off(MOST / 2);
            self.runs.insert(run + 1, Run { bound: records.key(places[0]).clone(), places });
            if at > MOST / 2 {
                (run, at) = (run + 1, at - MOST / 2);
            }
        }
        self.runs[run].places.insert(at, place);
    }

    /// Removes a place whose key is still there.
    pub(crate) fn remove(&mut self, place: u32, records: &Records) {
        let (run, at) = self.first_from(records.key(place), records);
        let Some(Run { places, .. }) = self.runs.get_mut(run) else { return };
        if places.get(at) != Some(&place) {
            return;
        }
        self.len -= 1;
        places.remove(at);
        if places.len() > MOST / 8 {
            return;
        }
        if places.len() * 4 <= places.capacity() {
            places.shrink_to(places.len() * 2);
        }
        if places.is_empty() {
            self.runs.remove(run);
            return;
        }
        // Few are left: with few beside them they become one run, so that runs are few when keys are.
        for lower in [run, run.saturating_sub(1)] {
            if let [this, next, ..] = &mut self.runs[lower..]
                && this.places.len() + next.places.len() <= MOST / 2
            {
                this.places.append(&mut next.places);
                self.runs.remove(lower + 1);
                return;
            }
        }
    }

    /// The places from there on, in order.
    pub(crate) fn from<'a>(
        &'a self,
        from: Bound<&Key>,
        records: &Records,
    ) -> impl Iterator<Item = u32> + use<'a> {
        let (run, mut at) = match from {
            Bound::Unbounded => (0, 0),
            Bound::Included(key) | Bound::Excluded(key) => self.first_from(key, records),
        };
        let (first, rest) = match self.runs.get(run..) {
            Some([first, rest @ ..]) => (first.places.as_slice(), rest),
            _ => (&[][..], &[][..]),
        };
        if let Bound::Excluded(key) = from
            && first.get(at).is_some_and(|&place| records.key(place) == key)
        {
            at += 1;
        }
        first[at..].iter().chain(rest.iter().flat_map(|run| &run.places)).copied()
    }

    /// The run that `key` belongs to, and where the first key that is not below it stands there, or would.
    fn first_from(&self, key: &Key, records: &Records) -> (usize, usize) {
        let later = self.runs.get(1..).unwrap_or_default();
        let run = later.partition_point(|run| run.bound <= *key);
        let at = match self.runs.get(run) {
            Some(run) => run.places.partition_point(|&place| records.key(place) < key),
            None => 0,
        };
        (run, at)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tiercache_core::tracking::Record;
    use tiercache_core::{Generation, Level, Tags, Timestamp};

    use super::*;

    fn key(number: u64) -> Key {
        Key::new("", &number.to_be_bytes()).unwrap()
    }

    fn record(number: u64) -> Record {
        Record {
            key: key(number),
            generation: Generation::new(1),
            level: Level::Hot,
            size: 0,
            created: Timestamp::EPOCH,
            used: Timestamp::EPOCH,
            deadline: Timestamp::NEVER,
            hits: 0,
            tags: Tags::new(),
        }
    }

    /// The same changes to an order and to a set of the standard library, which is what it should be like.
    struct Pair {
        records: Records,
        order: Order,
        expected: BTreeSet<u64>,
    }

    impl Pair {
        fn toggle(&mut self, number: u64) {
            if self.expected.remove(&number) {
                let place = self.records.find(&key(number)).unwrap();
                self.order.remove(place, &self.records);
                self.records.remove(place);
            } else {
                self.expected.insert(number);
                let place = self.records.insert(record(number));
                self.order.insert(place, &self.records);
            }
        }

        fn from(&self, from: Bound<&Key>) -> Vec<u64> {
            let places = self.order.from(from, &self.records);
            places
                .map(|place| u64::from_be_bytes(self.records.key(place).bytes().try_into().unwrap()))
                .collect()
        }

        fn check(&self, at: u64) {
            assert_eq!(self.order.len(), self.expected.len());
            assert_eq!(self.from(Bound::Unbounded), Vec::from_iter(self.expected.iter().copied()));
            let key = key(at);
            let from: Vec<_> = self.expected.range(at..).copied().collect();
            assert_eq!(self.from(Bound::Included(&key)), from);
            let behind: Vec<_> = self.expected.range(at + 1..).copied().collect();
            assert_eq!(self.from(Bound::Excluded(&key)), behind);
            assert!(self.order.runs.iter().all(|run| (1..=MOST).contains(&run.places.len())));
        }
    }

    fn mix(number: u64) -> u64 {
        (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20
    }

    #[test]
    fn it_is_like_a_sorted_set_whatever_the_order_of_changes() {
        type Numbers = fn(u64) -> u64;
        let patterns: [Numbers; 4] =
            [|at| at, |at| 1_000_000 - at, |at| mix(at) % 3_000, |at| at / 2 * 2 + at % 2 * (mix(at) % 2)];
        for pattern in patterns {
            let mut pair =
                Pair { records: Records::default(), order: Order::default(), expected: BTreeSet::new() };
            for at in 0..20_000 {
                pair.toggle(pattern(at));
                if at % 997 == 0 {
                    pair.check(pattern(mix(at) % (at + 1)));
                }
            }
            let left: Vec<_> = pair.expected.iter().copied().collect();
            for (at, number) in left.into_iter().enumerate().filter(|(at, _)| at % 101 != 0) {
                pair.toggle(number);
                if at % 997 == 1 {
                    pair.check(number);
                }
            }
            pair.check(7);
            let runs = pair.order.runs.len();
            assert!(runs <= 8, "{runs} runs for {} keys", pair.order.len());
        }
    }

    #[test]
    fn keys_that_only_grow_fill_their_runs() {
        let mut pair =
            Pair { records: Records::default(), order: Order::default(), expected: BTreeSet::new() };
        (0..10 * MOST as u64).for_each(|number| pair.toggle(number));
        assert_eq!(pair.order.runs.len(), 10);
    }
}
