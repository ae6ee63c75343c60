//! Bugs on purpose, to prove that the checks catch them.
//!
//! Each breaks one rule of the manager, or of a level that it relies on. They exist only in builds with `--cfg tiercache_bugs`, where one at a time
//! can be chosen; in every other build [`seeded`] is `false`, and nothing of them remains.

/// Whether the bug of that name was chosen.
#[cfg(not(tiercache_bugs))]
#[inline(always)]
pub(crate) const fn seeded(_bug: &str) -> bool {
    false
}

#[cfg(tiercache_bugs)]
pub use chosen::seeded;
#[cfg(tiercache_bugs)]
pub use chosen::{ALL, IN_STORMS, choose};

#[cfg(tiercache_bugs)]
mod chosen {
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Every bug that histories of the simulator show, and the rule it breaks.
    pub const ALL: [(&str, &str); 44] = [
        ("adds-again", "an addition is made once"),
        ("add-extends-life", "only set and touch change a deadline"),
        ("batch-behind-is-done", "of a batch each removal overtakes what is ahead of it"),
        ("batch-partly-is-whole", "of a batch what failed has not reached the level"),
        ("batch-without-floors", "of a batch each read is judged by its own floor"),
        ("behind-is-done", "another process that is ahead is overtaken"),
        ("deadline-unchecked", "the deadline is checked on every answer"),
        ("delete-skips-lower", "a removal reaches every level"),
        ("decides-on-old", "a condition is judged by what no mutation has replaced since"),
        ("failed-set-stays", "a write that failed leaves nothing behind"),
        ("derived-overtakes", "a touch carries no value past another process"),
        ("fences-forgotten-early", "a fence lives as long as what it guards"),
        ("fences-not-remembered", "an invalidation outlives the process where copies do"),
        ("fenced-is-done", "what is written after another process's invalidation is above it"),
        ("generations-restart", "generations go on where the last process ended"),
        ("hit-ignores-fences", "a hit is older than no invalidation"),
        ("join-detached-read", "a get joins no read that began before a mutation"),
        ("join-detached-load", "a caller joins no load that began before a mutation"),
        ("lease-not-waited-for", "a load waits while another process has the lease of its key"),
        ("listed-in-one-round", "what moves while RAM is listed is listed"),
        ("listed-where-it-arrives", "what moves while levels are listed is listed once"),
        ("load-outlives-fence", "a caller joins no load whose value an invalidation killed"),
        ("load-stored-unchecked", "what was loaded before a mutation is not stored after it"),
        ("load-unclaimed", "what was loaded before another process changed a key is not stored over that"),
        ("journal-forgotten", "a removal that waits for a level outlives the process"),
        ("killed-elsewhere-stays", "what another process has invalidated is not written again"),
        ("late-not-joined", "a level that is opened later tells first what it remembers"),
        ("no-floor", "a mutation raises the floor of operations in flight"),
        ("no-permit", "a write below commits only while its permit holds"),
        ("no-scope-fence", "an invalidation of many is seen by every read"),
        ("pending-kept-by-set", "a mutation withdraws what is on its way down"),
        ("pending-not-read", "the way down is part of every read"),
        ("popped-twice", "what another process has taken is not taken again"),
        ("promotion-extends-life", "moving never changes a deadline"),
        ("publish-unchecked", "what was read before a mutation is not published after it"),
        ("read-below-floor", "what is below the floor is not answered to those who came later"),
        ("removal-overtakes-write", "a removal waits for the writes that were sent before it"),
        ("restore-extends-life", "what comes from another cache keeps its deadline"),
        ("set-leaves-lower", "a set fences older copies below"),
        ("sink-below-floor", "what is being replaced does not begin to sink"),
        ("spill-drops", "an entry is at every moment in a tier or on its way"),
        ("stay-over-drops", "what stayed its time sinks and is not lost"),
        ("transaction-leaves-ram", "what a transaction wrote is newer than what RAM has"),
        ("transaction-trusts-ram", "a transaction reads nothing that another process has replaced"),
    ];

    /// Likewise those that only real levels on real threads show.
    pub const IN_STORMS: [(&str, &str); 2] = [
        ("counter-read-apart", "what is added to a counter and what it is added to are one step"),
        ("transaction-half-done", "what a transaction decided is done in every shard"),
    ];

    static CHOSEN: AtomicUsize = AtomicUsize::new(usize::MAX);

    /// Chooses the bug of that name for the whole process; any other name chooses none.
    pub fn choose(bug: &str) {
        let at = all().position(|(name, _)| *name == bug).unwrap_or(usize::MAX);
        CHOSEN.store(at, Ordering::SeqCst);
    }

    /// Whether the bug of that name was chosen.
    pub fn seeded(bug: &str) -> bool {
        let chosen = CHOSEN.load(Ordering::Relaxed);
        chosen != usize::MAX && all().nth(chosen).is_some_and(|(chosen, _)| *chosen == bug)
    }

    fn all() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        ALL.iter().chain(&IN_STORMS)
    }
}
