//! What transactions and gets saw of each other, and whether it was as if each had happened at one moment.
//!
//! A transaction reads a key before it changes it. So what it saw tells what it replaced: of each key the values are in
//! an order that is known. One transaction comes before another if the other saw what it left, or replaced what it saw,
//! or began after it had ended. If these never lead in a circle there is an order of all of them (Adya, *Weak
//! Consistency*, MIT 1999; Kingsbury and Alvaro, *Elle*, VLDB 2020). Then:
//! - No value is replaced by two transactions.
//! - Nobody sees what a transaction did that was given up, or a part of one that was undone.
//! - In one process, once somebody has seen a transaction or it has ended, no get that begins then finds what it, or
//!   one before it, replaced.
//! - Among processes, gets of one process do not go back, and find what it has committed itself. Transactions of one may
//!   see what another decided before every shard has it: for gets that counts once the other is told that it has ended.

use std::collections::{HashMap, HashSet};

use crate::history::{Moment, NEVER, Spans};

/// A transaction that was committed, or, with nothing `left`, one that was given up.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// The process it was made by.
    pub process: u16,
    /// When it began.
    pub begun: Moment,
    /// When it ended.
    pub ended: Moment,
    /// The keys it read before it changed anything, with the numbers of their values.
    pub saw: Vec<(u16, Option<u64>)>,
    /// The keys it changed, and to what.
    pub left: Vec<(u16, Option<u64>)>,
}

/// A get outside transactions.
#[derive(Clone, Copy, Debug)]
pub struct Get {
    /// The key.
    pub key: u16,
    /// The process it was made in.
    pub process: u16,
    /// When it began.
    pub begun: Moment,
    /// When it ended.
    pub ended: Moment,
    /// The number of the value it found.
    pub value: Option<u64>,
}

/// Who changes the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Transactions of one process or several. The first one makes the keys, and nobody ever removes one.
    OfTransactions {
        /// How many processes there are.
        processes: u16,
    },
    /// Transactions and others, in one process.
    OfEverybody,
}

/// Judges what was seen.
///
/// # Errors
/// The first rule that is broken.
pub fn judge(transactions: &[Transaction], gets: &[Get], keys: Keys) -> Result<(), String> {
    let history = History::new(transactions, gets, keys)?;
    let order = history.order()?;
    match keys {
        Keys::OfTransactions { processes } => {
            history.missed_nothing()?;
            (0..processes).try_for_each(|process| history.never_back(process))?;
            if processes == 1 { history.all_of_it(&order) } else { Ok(()) }
        }
        Keys::OfEverybody => history.all_of_it(&order),
    }
}

/// A value of a key.
type Version = (u16, u64);

struct History<'a> {
    transactions: &'a [Transaction],
    gets: &'a [Get],
    /// Which transaction left a value.
    left: HashMap<Version, usize>,
    /// Which replaced it.
    replaced: HashMap<Version, usize>,
    /// How many values of the key came before, where only transactions change it.
    place: HashMap<Version, usize>,
    /// Which transactions come after each for what they saw and left.
    after: Vec<Vec<usize>>,
}

impl<'a> History<'a> {
    fn new(transactions: &'a [Transaction], gets: &'a [Get], keys: Keys) -> Result<Self, String> {
        let (mut left, mut replaced) = (HashMap::new(), HashMap::new());
        for (at, transaction) in transactions.iter().enumerate() {
            for &(key, value) in &transaction.left {
                if let Some(value) = value {
                    left.insert((key, value), at);
                }
                let saw = transaction.saw.iter().find(|(of, _)| *of == key);
                let Some(&(_, Some(before))) = saw else { continue };
                if let Some(first) = replaced.insert((key, before), at) {
                    return Err(format!(
                        "an update is lost: value {before} of key {key} was replaced by both {:?} and {transaction:?}",
                        transactions[first]
                    ));
                }
            }
        }
        let mut after = vec![Vec::new(); transactions.len()];
        for (at, transaction) in transactions.iter().enumerate() {
            for &(key, value) in &transaction.saw {
                let Some(value) = value else { continue };
                after[at].extend(replaced.get(&(key, value)).filter(|next| **next != at));
                if let Some(&before) = left.get(&(key, value)) {
                    after[before].push(at);
                }
            }
        }
        let mut history = Self { transactions, gets, left, replaced, place: HashMap::new(), after };
        if keys != Keys::OfEverybody {
            history.number()?;
        }
        Ok(history)
    }

    /// Numbers the values of each key, where each but the first has one that it replaced.
    fn number(&mut self) -> Result<(), String> {
        for transaction in self.transactions {
            for &(key, value) in &transaction.saw {
                let Some(value) = value else {
                    return Err(format!("key {key} was missing in {transaction:?}"));
                };
                self.was_left(key, value, transaction)?;
            }
        }
        for get in self.gets {
            if let Some(value) = get.value {
                self.was_left(get.key, value, get)?;
            }
        }
        let begin = self.transactions.first().map(|first| first.left.clone()).unwrap_or_default();
        for (key, first) in begin {
            let (mut value, mut place) = (first, 0);
            while let Some(version) = value.map(|value| (key, value)) {
                if self.place.insert(version, place).is_some() {
                    return Err(format!("value {} of key {key} came twice", version.1));
                }
                let next = self.replaced.get(&version).map(|next| &self.transactions[*next]);
                value = next.and_then(|next| next.left.iter().find(|(of, _)| *of == key)?.1);
                place += 1;
            }
        }
        if let Some((key, value)) = self.left.keys().find(|version| !self.place.contains_key(version)) {
            return Err(format!("value {value} of key {key} replaced nothing that was ever there"));
        }
        Ok(())
    }

    fn was_left(&self, key: u16, value: u64, who: &dyn std::fmt::Debug) -> Result<(), String> {
        if self.left.contains_key(&(key, value)) {
            return Ok(());
        }
        Err(format!("value {value} of key {key}, which no transaction left, was seen by {who:?}"))
    }

    /// An order of all of them, or the circle in it.
    fn order(&self) -> Result<Vec<usize>, String> {
        let count = self.transactions.len();
        // Moments at which one ended: each comes after the one before it, and before what began since.
        let mut ends: Vec<(Moment, usize)> =
            self.transactions.iter().enumerate().map(|(at, transaction)| (transaction.ended, at)).collect();
        ends.retain(|(ended, _)| *ended != NEVER);
        ends.sort_unstable();
        let mut after: Vec<Vec<usize>> = self.after.clone();
        after.resize(count + ends.len(), Vec::new());
        for (rank, (_, at)) in ends.iter().enumerate() {
            after[*at].push(count + rank);
            if rank > 0 {
                after[count + rank - 1].push(count + rank);
            }
        }
        for (at, transaction) in self.transactions.iter().enumerate() {
            let past = ends.partition_point(|(ended, _)| *ended < transaction.begun);
            if past > 0 {
                after[count + past - 1].push(at);
            }
        }
        let mut waits_for = vec![0usize; after.len()];
        after.iter().flatten().for_each(|next| waits_for[*next] += 1);
        let mut ready: Vec<usize> = (0..after.len()).filter(|at| waits_for[*at] == 0).collect();
        let mut order = Vec::new();
        while let Some(at) = ready.pop() {
            order.push(at);
            for &next in &after[at] {
                waits_for[next] -= 1;
                if waits_for[next] == 0 {
                    ready.push(next);
                }
            }
        }
        if order.len() < after.len() {
            return Err(self.circle(&after, &waits_for));
        }
        order.retain(|at| *at < count);
        Ok(order)
    }

    /// One of those that lead to themselves.
    fn circle(&self, after: &[Vec<usize>], waits_for: &[usize]) -> String {
        let mut before = vec![None; after.len()];
        for (at, next) in after.iter().enumerate().filter(|(at, _)| waits_for[*at] > 0) {
            next.iter().for_each(|next| before[*next] = Some(at));
        }
        let mut at = (0..after.len()).find(|at| waits_for[*at] > 0);
        let mut passed = HashSet::new();
        // Each that waits has one before it that waits.
        while let Some(here) = at.filter(|here| passed.insert(*here)) {
            at = before[here];
        }
        let (begin, mut text) =
            (at, String::from("each of these comes before the one above it, in a circle:"));
        while let Some(here) = at {
            if let Some(transaction) = self.transactions.get(here) {
                text.push_str(&format!("\n  {transaction:?}"));
            }
            at = before[here].filter(|next| Some(*next) != begin);
        }
        text
    }

    /// In one process: whoever has seen a part, or is told that it has ended, sees the rest.
    fn all_of_it(&self, order: &[usize]) -> Result<(), String> {
        let mut known: Vec<Moment> = self.transactions.iter().map(|transaction| transaction.ended).collect();
        for get in self.gets {
            if let Some(&at) = get.value.and_then(|value| self.left.get(&(get.key, value))) {
                known[at] = get.ended.min(known[at]);
            }
        }
        for &at in order.iter().rev() {
            let later = self.after[at].iter().map(|next| known[*next]).min().unwrap_or(NEVER);
            known[at] = later.min(known[at]);
        }
        for get in self.gets {
            let Some(value) = get.value else { continue };
            if let Some(&at) = self.left.get(&(get.key, value))
                && self.transactions[at].begun > get.ended
            {
                return Err(format!("{get:?} came before {:?}", self.transactions[at]));
            }
            if let Some(&at) = self.replaced.get(&(get.key, value))
                && known[at] < get.begun
            {
                return Err(format!(
                    "{get:?} found what had been replaced by {:?}, which somebody had seen at {}",
                    self.transactions[at], known[at]
                ));
            }
        }
        Ok(())
    }

    /// Gets of one process do not go back behind what it has read, or committed.
    fn never_back(&self, process: u16) -> Result<(), String> {
        let mut newest: HashMap<u16, Vec<(Moment, usize)>> = HashMap::new();
        let own = self.transactions.iter().filter(|transaction| transaction.process == process);
        for transaction in own {
            for &(key, value) in transaction.saw.iter().chain(&transaction.left) {
                let Some(value) = value else { continue };
                if let Some(place) = self.place.get(&(key, value)) {
                    let made = self.left.get(&(key, value)).map_or(0, |at| self.transactions[*at].ended);
                    newest.entry(key).or_default().push((made.max(transaction.ended), *place));
                }
            }
        }
        let gets = || self.gets.iter().filter(move |get| get.process == process);
        for get in gets() {
            if let Some(place) = get.value.and_then(|value| self.place.get(&(get.key, value))) {
                newest.entry(get.key).or_default().push((get.ended, *place));
            }
        }
        for seen in newest.values_mut() {
            seen.sort_unstable();
            let mut highest = 0;
            for (_, place) in seen {
                highest = highest.max(*place);
                *place = highest;
            }
        }
        for get in gets() {
            let (Some(value), Some(seen)) = (get.value, newest.get(&get.key)) else { continue };
            let past = seen.partition_point(|(ended, _)| *ended < get.begun);
            if past > 0 && self.place.get(&(get.key, value)).is_some_and(|place| *place < seen[past - 1].1) {
                return Err(format!(
                    "{get:?} went back to place {:?} behind place {} of the key's values, seen at {}",
                    self.place.get(&(get.key, value)),
                    seen[past - 1].1,
                    seen[past - 1].0
                ));
            }
        }
        Ok(())
    }

    /// Keys that are always there are missed while a transaction changes them at most.
    fn missed_nothing(&self) -> Result<(), String> {
        let mut changes: HashMap<u16, Vec<(Moment, Moment)>> = HashMap::new();
        for transaction in self.transactions {
            for (key, _) in &transaction.left {
                changes.entry(*key).or_default().push((transaction.begun, transaction.ended));
            }
        }
        let changes: HashMap<u16, Spans> =
            changes.into_iter().map(|(key, spans)| (key, Spans::new(spans.into_iter()))).collect();
        let calm = |get: &&Get| {
            get.value.is_none()
                && changes.get(&get.key).is_none_or(|spans| !spans.any_across(get.begun, get.ended))
        };
        match self.gets.iter().find(calm) {
            Some(get) => Err(format!("{get:?} missed a key that is always there")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: Keys = Keys::OfTransactions { processes: 1 };

    fn transaction(begun: Moment, ended: Moment, saw: &[(u16, u64)], left: &[(u16, u64)]) -> Transaction {
        let some = |values: &[(u16, u64)]| values.iter().map(|(key, value)| (*key, Some(*value))).collect();
        Transaction { process: 0, begun, ended, saw: some(saw), left: some(left) }
    }

    /// Makes keys 0 and 1 with values 1 and 2.
    fn first() -> Transaction {
        transaction(1, 2, &[], &[(0, 1), (1, 2)])
    }

    fn get(begun: Moment, ended: Moment, key: u16, value: impl Into<Option<u64>>) -> Get {
        Get { key, process: 0, begun, ended, value: value.into() }
    }

    #[test]
    fn what_has_an_order_is_found_right() {
        let made = [
            first(),
            transaction(3, 9, &[(0, 1), (1, 2)], &[(0, 3), (1, 4)]),
            transaction(4, 8, &[(0, 1), (1, 2)], &[]),
            transaction(5, 12, &[(0, 3)], &[(0, 5)]),
        ];
        let gets =
            [get(4, 5, 1, 2), get(6, 7, 1, None), get(6, 8, 1, 4), get(10, 11, 0, 5), get(13, 14, 1, 4)];
        judge(&made, &gets, ALONE).unwrap();
        judge(&made, &gets, Keys::OfEverybody).unwrap();
    }

    #[test]
    fn a_lost_update_is_found_out() {
        let made =
            [first(), transaction(3, 9, &[(0, 1)], &[(0, 3)]), transaction(4, 8, &[(0, 1)], &[(0, 4)])];
        assert!(judge(&made, &[], ALONE).unwrap_err().contains("lost"));
        assert!(judge(&made, &[], Keys::OfEverybody).unwrap_err().contains("lost"));
    }

    #[test]
    fn a_transaction_that_sees_half_of_another_is_found_out() {
        let change = transaction(3, 9, &[(0, 1), (1, 2)], &[(0, 3), (1, 4)]);
        let torn = transaction(4, 8, &[(0, 3), (1, 2)], &[]);
        let told = judge(&[first(), change.clone(), torn.clone()], &[], ALONE).unwrap_err();
        assert!(told.contains("circle") && told.matches("Transaction").count() == 2, "{told}");
        assert!(judge(&[first(), change.clone(), torn], &[], Keys::OfEverybody).is_err());
        // Two that each changed what the other had read.
        let skew = [
            first(),
            transaction(3, 9, &[(0, 1), (1, 2)], &[(0, 3)]),
            transaction(4, 8, &[(0, 1), (1, 2)], &[(1, 4)]),
        ];
        assert!(judge(&skew, &[], ALONE).unwrap_err().contains("circle"));
        let forgotten = [first(), change, transaction(10, 11, &[(0, 1)], &[])];
        assert!(judge(&forgotten, &[], ALONE).unwrap_err().contains("circle"), "it had ended before");
    }

    #[test]
    fn a_get_that_sees_the_other_half_of_what_was_seen_is_found_out() {
        let made = [first(), transaction(3, 20, &[(0, 1), (1, 2)], &[(0, 3), (1, 4)])];
        for keys in [ALONE, Keys::OfEverybody] {
            judge(&made, &[get(4, 7, 0, 3), get(5, 6, 1, 2)], keys).unwrap();
            assert!(judge(&made, &[get(4, 5, 0, 3), get(6, 7, 1, 2)], keys).is_err());
            assert!(judge(&made, &[get(21, 22, 1, 2)], keys).is_err());
            // One that built on it has seen it too.
            let more = [&made[..], &[transaction(4, 8, &[(0, 3)], &[(0, 5)])]].concat();
            assert!(judge(&more, &[get(9, 10, 1, 2)], keys).is_err());
        }
    }

    #[test]
    fn what_was_given_up_or_is_missing_is_found_out() {
        let made = [first(), transaction(3, 9, &[(0, 1)], &[(0, 3)])];
        assert!(judge(&made, &[get(4, 5, 0, 7)], ALONE).unwrap_err().contains("no transaction left"));
        let seen = [&made[..], &[transaction(4, 8, &[(1, 7)], &[])]].concat();
        assert!(judge(&seen, &[], ALONE).unwrap_err().contains("no transaction left"));
        assert!(judge(&made, &[get(10, 11, 0, None)], ALONE).unwrap_err().contains("missed"));
        judge(&made, &[get(4, 5, 0, None)], ALONE).unwrap();
    }

    #[test]
    fn among_processes_gets_of_each_do_not_go_back() {
        let made = [first(), transaction(3, 9, &[(0, 1)], &[(0, 3)])];
        let of = |process, get: Get| Get { process, ..get };
        let keys = Keys::OfTransactions { processes: 2 };
        judge(&made, &[of(1, get(10, 11, 0, 1)), of(0, get(10, 11, 0, 3))], keys).unwrap();
        assert!(judge(&made, &[of(0, get(10, 11, 0, 1))], keys).is_err(), "its own");
        assert!(judge(&made, &[of(1, get(10, 11, 0, 3)), of(1, get(12, 13, 0, 1))], keys).is_err());
    }
}
