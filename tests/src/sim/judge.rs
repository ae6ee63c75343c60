//! The reference model: what a register that may become absent may answer. It knows nothing of tiers.

use std::collections::BTreeMap;

/// A moment of a history: operations begin and end at different ones.
pub(super) type Moment = u64;

/// The process of what other processes do.
pub(super) const ELSEWHERE: u32 = u32::MAX;

/// What an operation does to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Writes a value, unique in the history.
    Write(u64),
    /// Gives whatever is there a new deadline.
    Touch,
    /// Removes the value, if it carries that tag where one is named.
    Remove(Option<u8>),
    /// Makes values that carry the tag stale, for its own process.
    Expire(u8),
}

/// An operation that changes a key, or may have.
#[derive(Clone, Debug)]
pub(super) struct Mutation {
    pub key: u8,
    pub kind: Kind,
    /// The tag the written value carries.
    pub tag: Option<u8>,
    /// The time after which the written or touched value is dead.
    pub deadline: u64,
    /// How much longer it may be answered as stale.
    pub stale: u64,
    pub begun: Moment,
    /// When it ended; none while it has not, or nobody can tell.
    pub ended: Option<Moment>,
    /// Whether it certainly took effect: it returned `Ok`.
    pub certain: bool,
    /// Whether it returned an error.
    pub failed: bool,
    /// Whether a level lagged: then it binds only this process.
    pub degraded: bool,
    /// The process it ran in.
    pub life: u32,
}

/// Everything that happened to the keys.
#[derive(Clone, Debug, Default)]
pub(super) struct Judge {
    mutations: Vec<Mutation>,
    /// Per key and process: the generations seen, and when.
    seen: BTreeMap<(u8, u32), Vec<(Moment, u64)>>,
    popped: BTreeMap<u64, usize>,
    /// Whether a level of this machine stands beside one that other processes use: what a read brought up from
    /// there does not take the place of what a write has put here meanwhile.
    beside: bool,
}

/// A read that found a value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub key: u8,
    pub value: u64,
    /// The entry's generation, if the read told.
    pub generation: Option<u64>,
    pub begun: Moment,
    pub ended: Moment,
    /// The time when the read began.
    pub clock: u64,
    /// Whether it was told to be stale.
    pub stale: bool,
    pub life: u32,
}

impl Judge {
    pub(super) fn new(beside: bool) -> Self {
        Self { beside, ..Self::default() }
    }

    /// Notes that a mutation begins; returns its number.
    pub(super) fn begin(&mut self, mutation: Mutation) -> usize {
        self.mutations.push(mutation);
        self.mutations.len() - 1
    }

    /// The mutation of that number.
    pub(super) fn mutation(&mut self, number: usize) -> &mut Mutation {
        &mut self.mutations[number]
    }

    /// The mutation that wrote a value.
    pub(super) fn written(&self, value: u64) -> Option<&Mutation> {
        self.mutations.iter().find(|mutation| mutation.kind == Kind::Write(value))
    }

    /// Ends whatever nobody waits for: all of it has had the effect it will have.
    pub(super) fn settle(&mut self, now: Moment) {
        for mutation in self.mutations.iter_mut().filter(|mutation| mutation.ended.is_none()) {
            mutation.ended = Some(now);
        }
    }

    /// Whether a read may have found what it found.
    pub(super) fn judge(&mut self, seen: Seen) -> Result<(), String> {
        let Seen { key, value, begun, ended, clock, life, .. } = seen;
        let written =
            self.written(value).ok_or_else(|| format!("value {value} of key {key} was never written"))?;
        if written.key != key {
            return Err(format!("key {key} answered with value {value} of key {}", written.key));
        }
        if written.begun > ended {
            return Err(format!("value {value} was read before it was written"));
        }
        if written.failed && written.life == life && written.ended.is_some_and(|ended| ended < begun) {
            return Err(format!("value {value} of key {key} was read though its write had failed"));
        }
        let later = || self.mutations.iter().filter(|other| other.key == key && other.begun > written.begun);
        // A touch that began before the write may still have found what was written.
        let touches = self.mutations.iter().filter(|other| {
            let overlaps = other.ended.is_none_or(|ended| ended > written.begun);
            other.key == key && other.kind == Kind::Touch && overlaps
        });
        let deadline = touches.map(|touch| touch.deadline).fold(written.deadline, u64::max);
        if clock >= if seen.stale { deadline.saturating_add(written.stale) } else { deadline } {
            return Err(format!("value {value} was read at {clock}, after its deadline {deadline}"));
        }
        for other in later().filter(|other| other.certain && (other.life == life || !other.degraded)) {
            let supersedes = match other.kind {
                Kind::Write(_) => true,
                Kind::Touch => false,
                Kind::Remove(tag) => tag.is_none() || tag == written.tag,
                // A touch that found the value before writes it once more.
                Kind::Expire(tag) => {
                    let spared = seen.stale || self.touched_since(key, other.begun);
                    written.tag == Some(tag) && other.life == life && !spared
                }
            };
            let after_write = written.ended.is_some_and(|ended| ended < other.begun);
            let before_read = other.ended.is_some_and(|ended| ended < begun);
            if supersedes && after_write && before_read {
                return Err(format!(
                    "old value {value} of key {key}, written {}..{:?}, read {begun}..{ended}, after {:?} {}..{:?}",
                    written.begun, written.ended, other.kind, other.begun, other.ended,
                ));
            }
        }
        // Whoever has seen a part of a transaction must see the rest.
        let (begun_with, elsewhere) = (written.begun, written.life == ELSEWHERE);
        // What a process that died had not fenced everywhere, nor noted, stands beside what it was to replace.
        let whole = written.life == life || (written.certain && !written.degraded);
        let parts = || self.mutations.iter().filter(|part| part.begun == begun_with);
        if parts().count() > 1 {
            for part in
                self.mutations.iter_mut().filter(|part| part.begun == begun_with && part.ended.is_none())
            {
                (part.ended, part.certain) = (Some(ended), true);
            }
        }
        if let Some(generation) = seen.generation {
            // A new process numbers on from what outlived the one before it.
            let before = self.seen.entry((key, life)).or_default();
            for &(when, newer) in before.iter() {
                if when < begun && newer > generation {
                    return Err(format!(
                        "reads of key {key} went back from generation {newer} to {generation} (value {value})"
                    ));
                }
            }
            if !self.beside || (!elsewhere && whole) {
                before.push((ended, generation));
            }
        }
        Ok(())
    }

    /// Whether a key was touched after that, whatever became of it: then its value was written once more.
    pub(super) fn touched_since(&self, key: u8, since: Moment) -> bool {
        let touched = |other: &Mutation| other.key == key && other.kind == Kind::Touch;
        self.mutations.iter().any(|other| touched(other) && other.ended.is_none_or(|ended| ended > since))
    }

    /// Whether there may have been some value.
    pub(super) fn some(&self, seen: Seen) -> Result<(), String> {
        let others = self.mutations.iter().filter(|other| other.key == seen.key);
        let others: Vec<u64> = others
            .filter_map(|other| match other.kind {
                Kind::Write(value) if value != seen.value => Some(value),
                _ => None,
            })
            .collect();
        // On a copy: what may have been seen has not been.
        if others.into_iter().any(|value| self.clone().judge(Seen { value, ..seen }).is_ok()) {
            return Ok(());
        }
        Err(format!("key {} had no value that could be replaced {}..{}", seen.key, seen.begun, seen.ended))
    }

    /// Whether a value may be taken out: once.
    pub(super) fn pop(&mut self, value: u64) -> Result<(), String> {
        let times = self.popped.entry(value).or_default();
        *times += 1;
        if *times > 1 { Err(format!("value {value} was popped twice")) } else { Ok(()) }
    }

    /// The value that must be there in the end, if nothing may have taken it away: that of the last mutation of
    /// the key, when all others and whatever may lose values ended before it began.
    pub(super) fn last_value(&self, key: u8, clock: u64, lossy_at: Moment) -> Option<u64> {
        self.last_value_but(key, clock, lossy_at, Moment::MAX)
    }

    /// Likewise, as if what began at that moment had not begun.
    pub(super) fn last_value_but(&self, key: u8, clock: u64, lossy_at: Moment, but: Moment) -> Option<u64> {
        let of_key = || self.mutations.iter().filter(move |other| other.key == key && other.begun != but);
        let last = of_key().max_by_key(|mutation| mutation.begun)?;
        let alone = of_key()
            .all(|other| other.begun == last.begun || other.ended.is_some_and(|ended| ended < last.begun));
        match last.kind {
            Kind::Write(value)
                if last.certain
                    && !last.failed
                    && alone
                    && last.begun > lossy_at
                    && clock < last.deadline =>
            {
                Some(value)
            }
            _ => None,
        }
    }
}
