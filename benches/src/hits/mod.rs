//! `bench hits`: how much of what is possible each policy finds again.
//!
//! Every trace is read through each policy at 2, 10 and 30 % of its distinct keys; what is missed is set.
//! `hot+cold` is two levels under a manager, a fifth and four fifths of the same room, as a configuration file makes
//! them: adaptive over first in, first out; in `hot+cold-adaptive` cold is adaptive too. `optimum` is Belady's: it knows
//! the future and drops what is asked for last.

mod optimum;
mod trace;

use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use tiercache_core::tier::{Hold, Look, Resident};
use tiercache_core::{CacheManager, Entry, Generation, Key, Stay, Timestamp};
use tiercache_ram::{Policy, RamConfig, RamTier};

use self::trace::Trace;
use crate::Options;

/// The least room in entries.
const LEAST: usize = 64;
const SHARES: [f64; 3] = [0.02, 0.1, 0.3];

pub(crate) fn run(options: &Options) {
    let mut of_optimum: Vec<(&str, Vec<f64>)> = Vec::new();
    for trace in trace::all(&options.files) {
        for share in SHARES {
            let room = ((trace.distinct as f64 * share) as usize).max(LEAST);
            let best = optimum::hit_ratio(&trace.keys, room);
            print(options, &trace, room, "optimum", best);
            for (name, found) in policies(options, &trace, room) {
                print(options, &trace, room, name, found);
                if best > 0.0 {
                    match of_optimum.iter_mut().find(|(known, _)| *known == name) {
                        Some((_, shares)) => shares.push(found / best),
                        None => of_optimum.push((name, vec![found / best])),
                    }
                }
            }
        }
    }
    if !options.json {
        for (name, shares) in of_optimum {
            let mean = shares.iter().sum::<f64>() / shares.len() as f64;
            println!("{name:<12} {:5.1} % of the optimum on average, {} cases", mean * 100.0, shares.len());
        }
    }
}

fn policies(options: &Options, trace: &Trace, room: usize) -> Vec<(&'static str, f64)> {
    let single = [
        ("adaptive", Policy::Adaptive),
        ("lru", Policy::Lru),
        ("tinylfu", Policy::TinyLfu),
        ("fifo", Policy::Fifo),
    ];
    let mut found: Vec<(&str, f64)> = single
        .into_iter()
        .filter(|(name, _)| options.wants("contender", name))
        .map(|(name, policy)| (name, one_level(trace, room, policy)))
        .collect();
    for (name, cold) in [("hot+cold", Policy::Fifo), ("hot+cold-adaptive", Policy::Adaptive)] {
        if options.wants("contender", name) {
            found.push((name, two_levels(trace, room, cold)));
        }
    }
    found
}

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// What every key stands for: together with what a level counts of an entry, about a kilobyte.
static VALUE: [u8; 800] = [7; 800];

fn value() -> Bytes {
    Bytes::from_static(&VALUE)
}

/// Bytes that hold that many of a trace's entries.
fn bytes(policy: Policy, room: usize) -> u64 {
    room as u64 * (policy.overhead() + (1 + trace::KEY_BYTES + value().len()) as u64)
}

fn one_level(trace: &Trace, room: usize, policy: Policy) -> f64 {
    let tier = RamTier::new(RamConfig { max_size: bytes(policy, room), policy });
    let look = Look { now: NOW, slack: 0, valid_from: Generation::ZERO };
    let hold = Hold { now: NOW, stay: Stay::Forever };
    let mut hits = 0;
    for (at, number) in trace.keys.iter().enumerate() {
        let key = Key::new("", &trace::bytes(*number)).expect("a short key");
        if tier.hit(key.as_ref(), look).is_some() {
            hits += 1;
        } else {
            tier.insert(key, Entry::new(value(), Generation::new(at as u64 + 1), NOW), hold);
        }
    }
    f64::from(hits) / trace.keys.len().max(1) as f64
}

fn two_levels(trace: &Trace, room: usize, below: Policy) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let level = |part: usize, policy: Policy| {
            Arc::new(RamTier::new(RamConfig { max_size: bytes(policy, part), policy }))
        };
        let hot = (room / 5).max(1);
        let (hot, cold) = (level(hot, Policy::Adaptive), level(room - hot, below));
        let cache = CacheManager::builder().hot(hot).cold(cold).build().await;
        let cache = cache.expect("levels in RAM need nothing");
        let mut hits = 0;
        for (at, number) in trace.keys.iter().enumerate() {
            let key = trace::bytes(*number);
            if cache.get(&key).await.is_ok_and(|found| found.is_some()) {
                hits += 1;
            } else {
                cache.set(key, value()).await.expect("it fits");
            }
            // What is on its way down counts as held: it must not grow beyond a few entries.
            if at % 8 == 0 {
                tokio::task::yield_now().await;
            }
        }
        f64::from(hits) / trace.keys.len().max(1) as f64
    })
}

fn print(options: &Options, trace: &Trace, room: usize, name: &str, found: f64) {
    if options.json {
        let line = json!({
            "bench": "hits", "case": trace.name, "contender": name, "threads": 1, "keys": trace.distinct.to_string(),
            "room": room, "hit_ratio": (found * 10_000.0).round() / 10_000.0,
        });
        println!("{line}");
    } else {
        println!(
            "{:<28} {:>9} asked, {:>8} keys, room {:>8}  {:<12} {:6.2} %",
            trace.name,
            trace.keys.len(),
            trace.distinct,
            room,
            name,
            found * 100.0
        );
    }
}
