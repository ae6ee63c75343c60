//! What every part of a manager shares that is not a tier, and the way down that tiers spill into.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;

use super::counters::{Count, Counters};
use super::fences::Fences;
use super::pending::{Item, Pending};
use super::recorder::Recorder;
use crate::bugs::seeded;
use crate::tier::{Dead, Hold, Left, Spill};
use crate::time::NO_TICKER;
use crate::{Clock, Entry, Generation, Key, KeyRef, Level, Rules, Tier, Timestamp};

/// Half of what an envelope can say: at a million mutations a second, four years.
const MOST_JOINED: u64 = 1 << 47;

/// State without tiers. Tiers hold it through their spill, so it must not hold them.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) clock: Arc<dyn Clock>,
    /// The clock's coarse time, at hand without a call.
    pub(super) coarse: Arc<AtomicU64>,
    rules: ArcSwap<Rules>,
    /// What the rules come to for an entry without tags and options, which most are, by [`Level::index`].
    plain_stays: [AtomicU64; 3],
    pub(super) fences: Arc<Fences>,
    pub(super) pending: Pending,
    pub(super) counters: Counters,
    pub(super) recorder: Recorder,
    /// Set while closing: from then on everything sinks straight to the level that outlives the process.
    pub(super) closing: AtomicBool,
    sequence: AtomicU64,
}

impl Flow {
    pub(super) fn new(
        clock: Arc<dyn Clock>,
        rules: Rules,
        tracking: Arc<dyn crate::Tracking>,
        pending_bytes: u64,
        last: Generation,
    ) -> Self {
        Self {
            coarse: clock.coarse(),
            clock,
            plain_stays: Level::ALL.map(|level| AtomicU64::new(rules.stay(level, None, None).as_millis())),
            rules: ArcSwap::from_pointee(rules),
            fences: Arc::default(),
            pending: Pending::new(pending_bytes),
            counters: Counters::default(),
            recorder: Recorder::new(tracking),
            closing: AtomicBool::new(false),
            sequence: AtomicU64::new(last.get()),
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The time some milliseconds ago, never later than now, without asking the clock.
    pub(super) fn recently(&self) -> Timestamp {
        let coarse = self.coarse.load(Ordering::Relaxed);
        // A clock without a ticker says so by a time that nothing is alive at.
        if coarse < NO_TICKER { Timestamp::from_millis(coarse) } else { self.now() }
    }

    /// A new generation, higher than every one before.
    pub(super) fn next_generation(&self) -> Generation {
        Generation::new(self.sequence.fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// Goes on above a generation that another process has given out.
    ///
    /// # Errors
    /// Whoever says a number that no process can have counted to is broken, and must not wear ours out.
    pub(super) fn join(&self, backend: &'static str, seen: Generation) -> crate::Result<()> {
        if seen.get() > MOST_JOINED {
            let reason = format!("generation {} is beyond any that was given out", seen.get());
            return Err(crate::Error::unavailable(backend, "compare generations", reason));
        }
        self.sequence.fetch_max(seen.get(), Ordering::AcqRel);
        Ok(())
    }

    /// The newest generation given out.
    pub(super) fn generation(&self) -> Generation {
        Generation::new(self.sequence.load(Ordering::Acquire))
    }

    /// How long `entry` is held at `level`, which is the `last` one it can reach or not.
    pub(super) fn hold(&self, level: Level, entry: &Entry, last: bool, now: Timestamp) -> Hold {
        // A time to live that was asked for is kept: the last level's stay does not cut it short.
        let stay = if last && entry.explicit_ttl {
            crate::Stay::Forever
        } else if entry.extras.is_none() {
            crate::Stay::from_millis(self.plain_stays[level.index()].load(Ordering::Relaxed))
        } else {
            self.rules.load().stay(level, entry.stay(level), entry.tags())
        };
        Hold { now, stay }
    }

    /// Exchanges the rules: who decides about an entry sees the old ones or the new ones.
    pub(super) fn set_rules(&self, rules: Rules) {
        for (level, stay) in Level::ALL.into_iter().zip(&self.plain_stays) {
            stay.store(rules.stay(level, None, None).as_millis(), Ordering::Relaxed);
        }
        self.rules.store(Arc::new(rules));
    }

    /// Whether a `get` may answer with it.
    pub(super) fn is_alive(&self, key: KeyRef<'_>, entry: &Entry, now: Timestamp) -> bool {
        (entry.is_fresh(now) || seeded("deadline-unchecked")) && !self.fences.hides(key, entry)
    }

    /// Whether nobody may ever answer with it.
    pub(super) fn is_dead(&self, key: KeyRef<'_>, entry: &Entry, now: Timestamp) -> bool {
        (!entry.is_live(now) && !seeded("deadline-unchecked")) || self.fences.is_dead(key, entry)
    }
}

/// The way down from one level.
#[derive(Debug)]
pub(super) struct Chute {
    pub(super) flow: Arc<Flow>,
    pub(super) from: Level,
    /// The levels below, top down.
    pub(super) below: Vec<(Level, Arc<dyn Tier>)>,
}

impl Chute {
    /// The level `entry` sinks to next.
    fn next(&self, entry: &Entry) -> Option<&(Level, Arc<dyn Tier>)> {
        let closing = self.flow.closing.load(Ordering::Acquire);
        let mut open = self.below.iter().filter(|(level, _)| entry.levels.contains(*level));
        if closing { open.find(|(_, tier)| tier.profile().persistent) } else { open.next() }
    }
}

impl Spill for Chute {
    fn spill(&self, key: Key, entry: Entry, left: Left) {
        let flow = &self.flow;
        let now = flow.now();
        flow.recorder.used(now, || key.clone(), left.uses);
        if flow.is_dead(key.as_ref(), &entry, now) {
            flow.recorder.moved(now, &key, entry.generation, None);
            return;
        }
        let Some((to, tier)) = self.next(&entry) else {
            flow.counters.count(Count::Faded);
            flow.recorder.moved(now, &key, entry.generation, None);
            return;
        };
        // What came up unchanged is still there: it need not go down again.
        if tier.index().and_then(|index| index.holds(key.as_ref())) == Some(entry.generation) {
            flow.counters.count(Count::Sunk);
            flow.recorder.moved(now, &key, entry.generation, Some(*to));
            return;
        }
        if seeded("spill-drops") && entry.generation.get().is_multiple_of(7) {
            return;
        }
        let bounded = !flow.closing.load(Ordering::Acquire);
        let item = Item::new(entry, self.from, *to);
        for (key, item) in flow.pending.push(key, item, bounded) {
            flow.counters.count(Count::Overflowed);
            flow.recorder.moved(now, &key, item.entry.generation, None);
        }
    }

    fn used(&self, key: KeyRef<'_>, uses: u32) {
        self.flow.recorder.used(self.flow.now(), || key.to_key(), uses);
    }
}
