//! The reference model of counters: a set of additions.
//!
//! Every addition to a key adds a power of two that no other has, so that a sum says which additions are in it, and one
//! that was made twice shows.

use super::judge::Moment;

/// Additions to one key there can be in a history.
pub(super) const MOST: u8 = 61;

/// What may be, and must be, in a sum.
#[derive(Debug)]
struct Addition {
    key: u8,
    bit: u8,
    begun: Moment,
    /// When it ended; none while it has not, or nobody can tell.
    ended: Option<Moment>,
    made: Made,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
    Certainly,
    Perhaps,
    Never,
}

/// Something that ends counters.
#[derive(Debug)]
struct Drop {
    /// Of this key; none: of all.
    key: Option<u8>,
    begun: Moment,
    ended: Option<Moment>,
    certain: bool,
}

/// A sum that was answered.
#[derive(Clone, Copy, Debug)]
struct Seen {
    key: u8,
    sum: i64,
    begun: Moment,
    ended: Moment,
}

/// Everything that happened to counters.
#[derive(Debug, Default)]
pub(super) struct Counts {
    additions: Vec<Addition>,
    drops: Vec<Drop>,
    seen: Vec<Seen>,
}

impl Counts {
    /// Notes that an addition begins: the bit it adds.
    pub(super) fn add(&mut self, key: u8, begun: Moment) -> Option<u8> {
        let bit = u8::try_from(self.of_key(key).count()).ok().filter(|&bit| bit < MOST)?;
        self.additions.push(Addition { key, bit, begun, ended: None, made: Made::Perhaps });
        Some(bit)
    }

    /// Notes how it ended.
    pub(super) fn added(&mut self, key: u8, bit: u8, ended: Moment, made: Made) {
        let addition = self.additions.iter_mut().find(|addition| addition.key == key && addition.bit == bit);
        if let Some(addition) = addition {
            (addition.ended, addition.made) = (Some(ended), made);
        }
    }

    /// Notes that something drops counters from now on.
    pub(super) fn drops(&mut self, key: Option<u8>, begun: Moment) {
        self.drops.push(Drop { key, begun, ended: None, certain: false });
    }

    /// Notes when what had begun to drop them then was over.
    pub(super) fn dropped(&mut self, begun: Moment, ended: Moment, certain: bool) {
        if let Some(drop) = self.drops.iter_mut().find(|drop| drop.begun == begun) {
            (drop.ended, drop.certain) = (Some(ended), certain);
        }
    }

    /// Ends what nobody waits for: it has had the effect it will have, but for drops that a journal may have go on.
    pub(super) fn settle(&mut self, now: Moment, journalled: bool) {
        for addition in self.additions.iter_mut().filter(|addition| addition.ended.is_none()) {
            addition.ended = Some(now);
        }
        for drop in self.drops.iter_mut().filter(|drop| drop.ended.is_none() && !journalled) {
            drop.ended = Some(now);
        }
    }

    /// Whether a sum may have been answered; a counter that is not there has the sum 0.
    pub(super) fn judge(&mut self, key: u8, sum: i64, begun: Moment, ended: Moment) -> Result<(), String> {
        let seen = Seen { key, sum, begun, ended };
        let wrong = |why: String| Err(format!("counter {key} was {sum:#b}, {begun}..{ended}: {why}"));
        if !(0..1 << MOST).contains(&sum) {
            return wrong("no additions make that".into());
        }
        for bit in 0..MOST {
            let is_in = sum & (1 << bit) != 0;
            let Some(addition) = self.of_key(key).find(|addition| addition.bit == bit) else {
                if is_in {
                    return wrong(format!("addition {bit} was never begun"));
                }
                continue;
            };
            if is_in && (addition.begun > ended || addition.made == Made::Never) {
                return wrong(format!("addition {bit} was not made: {addition:?}"));
            }
            let over = addition.ended.is_some_and(|ended| ended < begun);
            let mut drops = self.drops.iter().filter(|drop| drop.key.is_none_or(|of| of == key));
            if !is_in && over && addition.made == Made::Certainly {
                let excused = drops
                    .clone()
                    .any(|drop| drop.begun < ended && drop.ended.is_none_or(|ended| ended > addition.begun));
                if !excused {
                    return wrong(format!("addition {bit} is lost: {addition:?}"));
                }
            }
            let outlived = drops.find(|drop| {
                let before = addition.ended.is_some_and(|ended| ended < drop.begun);
                before && drop.certain && drop.ended.is_some_and(|ended| ended < begun)
            });
            if let Some(drop) = outlived.filter(|_| is_in) {
                return wrong(format!("addition {bit} outlived {drop:?}: {addition:?}"));
            }
        }
        let ordered = |other: &&Seen| {
            let (first, last) = (other.begun.min(begun), other.ended.max(ended));
            let calm = !self.drops.iter().any(|drop| {
                drop.key.is_none_or(|of| of == key)
                    && drop.begun < last
                    && drop.ended.is_none_or(|ended| ended > first)
            });
            other.key == key && calm
        };
        for other in self.seen.iter().filter(ordered) {
            let both = other.sum & sum;
            if both != sum && both != other.sum {
                return wrong(format!("and {:#b} {}..{}", other.sum, other.begun, other.ended));
            }
            if other.ended < begun && both != other.sum {
                return wrong(format!("after {:#b} {}..{}", other.sum, other.begun, other.ended));
            }
        }
        self.seen.push(seen);
        Ok(())
    }

    fn of_key(&self, key: u8) -> impl Iterator<Item = &Addition> {
        self.additions.iter().filter(move |addition| addition.key == key)
    }
}
