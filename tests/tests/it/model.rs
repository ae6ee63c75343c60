//! Generated histories against the reference model.

use std::sync::atomic::{AtomicU64, Ordering};

use tiercache_tests::sim;

/// How many histories: `TIERCACHE_HISTORIES`, or what the test command is to run. `TIERCACHE_SEED` is the first.
fn histories() -> (u64, u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    (number("TIERCACHE_SEED").unwrap_or(1), number("TIERCACHE_HISTORIES").unwrap_or(100_000))
}

#[test]
fn no_history_breaks_a_promise() {
    let (first, count) = histories();
    let next = AtomicU64::new(first);
    let (operations, hits) = (AtomicU64::new(0), AtomicU64::new(0));
    let run = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= first + count {
            return;
        }
        match sim::run_seed(seed) {
            Ok(tally) => {
                operations.fetch_add(tally.operations, Ordering::Relaxed);
                hits.fetch_add(tally.hits, Ordering::Relaxed);
            }
            Err(failure) => {
                next.store(first + count, Ordering::Relaxed);
                panic!(
                    "seed {seed}: {}\n{}\ndecisions: {:?}",
                    failure.reason, failure.log, failure.decisions
                );
            }
        }
    };
    std::thread::scope(|scope| {
        let second = scope.spawn(run);
        run();
        if let Err(panic) = second.join() {
            std::panic::resume_unwind(panic);
        }
    });
    let (operations, hits) = (operations.into_inner(), hits.into_inner());
    println!("{count} histories from seed {first}: {operations} operations, {hits} hits, no promise broken");
    if count < 1_000 {
        return;
    }
    assert!(operations >= 50 * count, "histories are too short to mean much: {operations} operations");
    assert!(hits * 20 > operations, "hardly anything is ever found: {hits} hits of {operations} operations");
}
