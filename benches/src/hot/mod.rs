//! `bench hot`: what a call costs that RAM answers.
//!
//! All contenders live in one process and take turns, round by round. With one thread the figure is the median of
//! the thread's CPU time per operation; with two it is the best wall time divided by the operations of both, since
//! no CPU time shows two threads waiting for each other.

mod contender;
mod ours;
#[cfg(feature = "peers")]
pub(crate) mod peers;
pub(crate) mod raw;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;

use self::contender::{Contender, Run};
use crate::Options;
use crate::keys::{Random, Zipf, key};
use crate::measure::{Pass, Row, least, median};

/// Rounds on few keys, and on a million.
const ROUNDS: [usize; 2] = [21, 7];
/// Parts of a pass that are timed by themselves.
const PIECES: usize = 16;
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
        if options.wants("keys", name) {
            let room = Room { entries, tight: entries < count };
            let keys = (0..count).map(key).collect();
            measure(options, &KeySet { name, keys, room, pass, zipf: room.tight });
        }
    }
}

/// The cases, in the order they are measured; those that change what is held come last.
fn cases(set: &KeySet) -> &'static [&'static str] {
    match set.name {
        "zipf" => &["hit"],
        "1M" => &["hit", "set"],
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
    let random = |seed: usize, of: &'_ [String]| -> Vec<usize> {
        let mut random = Random::new(seed as u64);
        (0..set.pass).map(|_| random.below(of.len())).collect()
    };
    let rounds = ROUNDS[usize::from(set.keys.len() > 100_000)];
    for round in 0..rounds {
        let orders: Vec<Vec<&String>> = (0..threads)
            .map(|thread| match (case, round * 2 + thread + 1_000) {
                ("miss", seed) => random(seed, &absent).into_iter().map(|at| &absent[at]).collect(),
                ("promote", _) => set.keys.iter().collect(),
                (_, seed) => asked(set, set.pass, seed as u64),
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
            let (pass, wall) = together(run, &orders);
            walls.push(wall);
            passes.push(pass);
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

/// One thread per order, all at once. Returns what they took together, and the least wall time per operation of any
/// sixteenth: short enough that neither thread was interrupted in it.
fn together(run: &Run, orders: &[Vec<&String>]) -> (Pass, f64) {
    if let [order] = orders {
        let mut total = Pass::default();
        let walls = pieces(order).map(|piece| {
            let pass = Pass::of(|| run(piece));
            total.add(&pass);
            pass.wall_ns()
        });
        let wall = least(walls);
        return (total, wall);
    }
    let line = StartLine::new(orders.len());
    let spans: Vec<Vec<(Pass, Instant, Instant)>> = std::thread::scope(|scope| {
        let run_order = |order: &Vec<&String>| -> Vec<_> {
            let span = |piece: &[&String]| {
                line.wait();
                let started = Instant::now();
                let pass = Pass::of(|| run(piece));
                (pass, started, Instant::now())
            };
            pieces(order).map(span).collect()
        };
        let threads: Vec<_> = orders.iter().map(|order| scope.spawn(move || run_order(order))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let mut total = Pass::default();
    spans.iter().flatten().for_each(|(pass, ..)| total.add(pass));
    let walls = (0..PIECES).filter_map(|piece| {
        let spans = || spans.iter().map(move |spans| &spans[piece]);
        let wall = spans().map(|span| span.2).max()? - spans().map(|span| span.1).min()?;
        let operations: u64 = spans().map(|span| span.0.operations).sum();
        Some(wall.as_nanos() as f64 / operations.max(1) as f64)
    });
    let wall = least(walls);
    (total, wall)
}

fn pieces<'a, 'k>(order: &'a [&'k String]) -> impl Iterator<Item = &'a [&'k String]> {
    order.chunks(order.len().div_ceil(PIECES).max(1))
}

/// Lets threads begin at the same moment, again and again. They spin: waking takes longer than what is measured.
struct StartLine {
    threads: usize,
    arrived: AtomicUsize,
}

impl StartLine {
    fn new(threads: usize) -> Self {
        Self { threads, arrived: AtomicUsize::new(0) }
    }

    fn wait(&self) {
        let mine = self.arrived.fetch_add(1, Ordering::AcqRel);
        let all = (mine / self.threads + 1) * self.threads;
        for spin in 1.. {
            if self.arrived.load(Ordering::Acquire) >= all {
                return;
            }
            // The other may wait for this processor.
            if spin % 4096 == 0 { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }
}
