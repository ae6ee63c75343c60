//! Proves that the simulator catches every seeded bug. `cargo xtask bugs` builds it with `--cfg tiercache_bugs`.

#[cfg(not(tiercache_bugs))]
fn main() {
    eprintln!("there are no bugs in this build: run `cargo xtask bugs`");
    std::process::exit(2);
}

#[cfg(tiercache_bugs)]
fn main() {
    use tiercache_core::bugs;
    use tiercache_tests::sim;

    /// Histories a bug may take to be caught.
    const MOST: u64 = 20_000;

    let only = std::env::args().nth(1);
    bugs::choose("none");
    let healthy = (1..=500).find_map(|seed| sim::run_seed(seed).err());
    if let Some(failure) = healthy {
        eprintln!("a history fails without any bug: {}", failure.reason);
        std::process::exit(1);
    }
    let mut missed = 0;
    let chosen = bugs::ALL.iter().filter(|(bug, _)| only.as_deref().is_none_or(|only| only == *bug));
    for (bug, rule) in chosen {
        bugs::choose(bug);
        let caught = (1..=MOST)
            .find_map(|seed| Some((seed, sim::run(sim::Choices::seeded(seed, sim::DECISIONS)).err()?)));
        match caught {
            Some((seed, failure)) => {
                println!("caught  {bug:24} by history {seed:6}: {rule}");
                println!("        {}", failure.reason);
            }
            None => {
                println!("MISSED  {bug:24} in {MOST} histories: {rule}");
                missed += 1;
            }
        }
    }
    println!("{} bugs, {missed} missed", bugs::ALL.len());
    std::process::exit(i32::from(missed > 0));
}
