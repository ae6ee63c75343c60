//! Proves that the simulator, or a storm, catches every seeded bug. `cargo xtask bugs` builds it with `--cfg tiercache_bugs`.

#[cfg(not(tiercache_bugs))]
fn main() {
    eprintln!("there are no bugs in this build: run `cargo xtask bugs`");
    std::process::exit(2);
}

#[cfg(tiercache_bugs)]
fn main() {
    use tiercache_core::bugs;
    use tiercache_tests::sim;

    /// Histories a bug may take to be caught. The rarest takes 13,000 to 100,000, by where the hashes of a process put its keys.
    const MOST: u64 = 1_000_000;
    /// Storms of each kind.
    const MOST_STORMS: u64 = 10;

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
    for (bug, rule) in
        bugs::IN_STORMS.iter().filter(|(bug, _)| only.as_deref().is_none_or(|only| only == *bug))
    {
        bugs::choose("none");
        if let Err(broken) = storms(1) {
            eprintln!("a storm fails without any bug: {broken}");
            std::process::exit(1);
        }
        bugs::choose(bug);
        match (1..=MOST_STORMS).find_map(|seed| Some((seed, storms(seed).err()?))) {
            Some((seed, broken)) => {
                println!("caught  {bug:24} by storm {seed:8}: {rule}");
                // Its second line, after what the storm was.
                println!("        {}", broken.lines().nth(1).unwrap_or(&broken));
            }
            None => {
                println!("MISSED  {bug:24} in {MOST_STORMS} storms: {rule}");
                missed += 1;
            }
        }
    }
    println!("{} bugs, {missed} missed", bugs::ALL.len() + bugs::IN_STORMS.len());
    std::process::exit(i32::from(missed > 0));
}

/// One of counters, and one of transfers in one process and in several.
#[cfg(tiercache_bugs)]
fn storms(seed: u64) -> Result<(), String> {
    use tiercache_ram::Policy;
    use tiercache_tests::counting::Counting;
    use tiercache_tests::transfers::Transfers;

    let counting = Counting {
        seed,
        counters: 8,
        lasting: 4,
        caches: 2,
        clients: 4,
        operations: 500,
        clears: true,
        survive: true,
    };
    counting.in_sqlite()?;
    let transfers =
        Transfers { seed, policy: Policy::Lru, shards: 3, processes: 1, clients: 4, operations: 200 };
    transfers.rage()?;
    Transfers { processes: 2, ..transfers }.rage().map(drop)
}
