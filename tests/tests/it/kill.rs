//! `kill -9`, again and again: never an older value, never a removed one, and what was promised to last is there.
//!
//! `TIERCACHE_KILLS` says how often (200), `TIERCACHE_SEED` where the seeds begin.

use std::path::Path;

use tiercache_tests::kill::Ordeal;

const KILLS_PER_FOLDER: u32 = 10;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn no_kill_brings_back_what_was_replaced_or_removed() {
    let (kills, seed) = (number("TIERCACHE_KILLS", 200) as u32, number("TIERCACHE_SEED", 1));
    let (mut done, mut interrupted, mut starts, mut reads, mut hits) = (0, 0, 0, 0, 0);
    for folder in 0.. {
        if done >= kills {
            break;
        }
        let ordeal = Ordeal {
            seed: seed + folder as u64,
            write: ["back", "behind", "through"][folder % 3],
            policy: ["adaptive", "lru", "tinylfu"][folder / 3 % 3],
            roomy: folder / 3 % 2 == 0,
            kills: KILLS_PER_FOLDER.min(kills - done),
        };
        let place = tempfile::tempdir().expect("a folder");
        let outcome = ordeal.run(Path::new(env!("CARGO_BIN_EXE_victim")), &place.path().join("dry"));
        let outcome =
            outcome.unwrap_or_else(|broken| panic!("{broken}\nthe folder stays: {}", place.keep().display()));
        done += ordeal.kills;
        interrupted += outcome.interrupted;
        starts += outcome.starts;
        reads += outcome.tally.reads;
        hits += outcome.tally.hits;
    }
    println!(
        "{kills} kills from seed {seed}, {starts} of them at the start: {interrupted} operations interrupted, \
         {reads} reads, {hits} hits, no promise broken"
    );
    if kills >= 100 {
        assert!(interrupted > u64::from(kills), "hardly anything was under way: {interrupted}");
        assert!(hits * 5 > reads, "hardly anything is ever found: {hits} of {reads}");
    }
}
