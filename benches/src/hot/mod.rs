//! `bench hot`: what a call costs that RAM answers.
//!
//! All contenders live in one process and take turns, round by round. With one thread the figure is the median of
//! the thread's CPU time per operation; with two it is the best wall time divided by the operations of both, since
//! no CPU time shows two threads waiting for each other.

mod contender;
mod ours;
#[cfg(feature = "peers")]
mod peers;
mod raw;

use std::sync::Barrier;
use std::time::Instant;

use bytes::Bytes;

use self::contender::{Contender, Run};
use crate::Options;
use crate::keys::{Random, Zipf, key};
use crate::measure::{Pass, Row, least, median};

const ROUNDS: usize = 21;
const VALUE_BYTES: usize = 256;
/// Keys of a `get_many`.
pub(crate) const MANY: usize = 100;

/// What there is to ask for, and how much room a contender has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Entries that must fit.
    pub(crate) entries: usize,
    /// Whether more than that are asked for.
    pub(crate) tight: bool,
}

struct KeySet {
    name: &'static str,
    keys: Vec<String>,
    room: Room,
    /// Operations of a pass.
    pass: usize,
    zipf: bool,
}

pub(crate) fn run(options: &Options) {
    if !cfg!(feature = "peers") {
        eprintln!("built without the feature `peers`: only raw engines stand beside tiercache");
    }
    let sets = [
        ("small", 1_000, 1_000, 65_536),
        ("1M", 1_000_000, 1_000_000, 100_000),
        ("zipf", 1_000_000, 100_000, 100_000),
    ];
    for (name, count, entries, pass) in sets {
        let room = Room { entries, tight: entries < count };
        let set = KeySet { name, keys: (0..count).map(key).collect(), room, pass, zipf: room.tight };
        if options.wants("keys", name) {
            measure(options, &set);
        }
    }
}

/// The cases, in the order they are measured; those that change what is held come last.
fn cases(set: &KeySet) -> &'static [&'static str] {
    match set.name {
        "zipf" => &["hit"],
        "1M" => &["hit", "get_many", "miss", "set"],
        _ => &["hit", "typed_hit", "get_many", "miss", "set", "promote"],
    }
}

fn measure(options: &Options, set: &KeySet) {
    let mut contenders = raw::all(set.room);
    contenders.extend(ours::all(set.room));
    #[cfg(feature = "peers")]
    contenders.extend(peers::all(set.room));
    contenders.retain(|contender| options.wants("contender", contender.name));
    fill(&contenders, set);
    for case in cases(set) {
        for threads in [1, 2] {
            if options.wants("case", case) && options.wants("threads", &threads.to_string()) {
                compare(options, set, &contenders, case, threads);
            }
        }
    }
}

/// Puts every key in, each with a value of its own; of more keys than fit, as often as they are asked for.
fn fill(contenders: &[Contender], set: &KeySet) {
    let all: Vec<&String> = set.keys.iter().collect();
    for contender in contenders {
        if set.zipf {
            let asked = asked(set, set.keys.len(), 1);
            (contender.through)(&asked);
        } else {
            (contender.fill)(&all);
        }
    }
}

/// A value that clones without allocating, wherever it goes.
pub(crate) fn value() -> Bytes {
    let value = Bytes::from(vec![7u8; VALUE_BYTES]);
    // The first clone makes the count that later ones raise.
    drop(value.clone());
    value
}

/// Keys in the order they are asked for.
fn asked(set: &KeySet, count: usize, seed: u64) -> Vec<&String> {
    let mut random = Random::new(seed);
    if set.zipf {
        let zipf = Zipf::new(set.keys.len(), 0.99);
        // Popular keys are not neighbours in memory.
        return (0..count)
            .map(|_| &set.keys[zipf.rank(&mut random).wrapping_mul(7919) % set.keys.len()])
            .collect();
    }
    (0..count).map(|_| &set.keys[random.below(set.keys.len())]).collect()
}

fn compare(options: &Options, set: &KeySet, contenders: &[Contender], case: &'static str, threads: usize) {
    let absent: Vec<String> =
        (0..set.keys.len().min(100_000)).map(|number| format!("absent:{number:017}")).collect();
    let mut entered: Vec<(&Contender, &Run, Vec<Pass>, Vec<f64>)> = contenders
        .iter()
        .filter_map(|contender| Some((contender, contender.run(case, set.zipf)?, Vec::new(), Vec::new())))
        .collect();
    if case == "promote" && threads > 1 {
        return;
    }
    for round in 0..ROUNDS {
        let orders: Vec<Vec<&String>> = (0..threads)
            .map(|thread| {
                let seed = (round * 2 + thread) as u64 + 1_000;
                match case {
                    "miss" => {
                        let mut random = Random::new(seed);
                        (0..set.pass).map(|_| &absent[random.below(absent.len())]).collect()
                    }
                    "promote" => set.keys.iter().take(set.pass).collect(),
                    _ => asked(set, set.pass, seed),
                }
            })
            .collect();
        let count = entered.len();
        for turn in 0..count {
            let (contender, run, passes, walls) = &mut entered[(turn + round) % count];
            if case == "promote" {
                (contender.sink)();
            } else if !set.zipf {
                // What the others pushed out of the processor's caches.
                run(&orders[0][..set.pass / 16]);
            }
            if threads == 1 {
                let pass = Pass::of(|| run(&orders[0]));
                walls.push(pass.wall_ns());
                passes.push(pass);
            } else {
                let (pass, wall) = together(run, &orders);
                walls.push(wall);
                passes.push(pass);
            }
        }
    }
    for (contender, _, passes, walls) in &entered {
        let allocs_per_op = median(passes.iter().map(Pass::allocations_each));
        let cpu = median(passes.iter().map(Pass::cpu_ns));
        let best = least(walls.iter().copied());
        let ns_per_op = if threads == 1 { cpu } else { best };
        let note = if threads == 1 { format!("best wall {best:.1}") } else { String::new() };
        Row {
            bench: "hot",
            case: case.to_string(),
            contender: contender.name.to_string(),
            threads,
            keys: set.name.to_string(),
            ns_per_op,
            allocs_per_op,
            note,
        }
        .print(options.json);
    }
}

/// Several threads at once: their passes added up, and the wall time per operation of all of them.
fn together(run: &Run, orders: &[Vec<&String>]) -> (Pass, f64) {
    let barrier = Barrier::new(orders.len());
    let spans: Vec<(Pass, Instant, Instant)> = std::thread::scope(|scope| {
        let threads: Vec<_> = orders
            .iter()
            .map(|order| {
                let barrier = &barrier;
                scope.spawn(move || {
                    run(&order[..order.len() / 16]);
                    barrier.wait();
                    let started = Instant::now();
                    let pass = Pass::of(|| run(order));
                    (pass, started, Instant::now())
                })
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let mut total = Pass::default();
    for (pass, ..) in &spans {
        total.operations += pass.operations;
        total.cpu += pass.cpu;
        total.allocations += pass.allocations;
    }
    let started = spans.iter().map(|span| span.1).min();
    let ended = spans.iter().map(|span| span.2).max();
    if let (Some(started), Some(ended)) = (started, ended) {
        total.wall = ended - started;
    }
    (total, total.wall_ns())
}
