//! `bench memory`: what an entry takes in RAM. Each figure comes from a process of its own, since memory that was once
//! asked for is not given back.

use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use tiercache_core::CacheManager;
use tiercache_ram::{Policy, RamConfig, RamTier};
use tiercache_tracking::MemoryTracking;

use crate::Options;
#[cfg(feature = "peers")]
use crate::hot::peers::foyer_in_ram;
use crate::hot::raw::{Moka, moka_lru, quick_cache};
use crate::keys::key;

const ENTRIES: usize = 1_000_000;
/// The variable that tells a process which figure it is for.
const TASK: &str = "TIERCACHE_BENCH_MEMORY";
const KEY_BYTES: usize = 24;
/// Sets after which tracking is told.
const TOLD_EVERY: usize = 4_000;

/// Those measured, and how the process that measures one fills it.
const CONTENDERS: &[(&str, Fill)] = &[
    ("tiercache", |size| ours(Policy::Adaptive, true, size)),
    ("tiercache-untracked", |size| ours(Policy::Adaptive, false, size)),
    ("tiercache-moka-untracked", |size| ours(Policy::Lru, false, size)),
    ("quick_cache", |size| {
        let build = |bytes| quick_cache(bytes, ENTRIES);
        peer(size, build, |cache, key, value| cache.insert(key, value), |cache| cache.len())
    }),
    ("moka", |size| {
        let entries = |cache: &Moka| {
            cache.run_pending_tasks();
            cache.entry_count() as usize
        };
        peer(size, moka_lru, |cache, key, value| cache.insert(key, value), entries)
    }),
    #[cfg(feature = "peers")]
    ("foyer-memory", |size| {
        let insert = |cache: &foyer::Cache<_, _>, key, value| drop(cache.insert(key, value));
        // It counts bytes alone.
        peer(size, foyer_in_ram, insert, |cache| cache.usage() / (KEY_BYTES + size))
    }),
];

/// Fills a cache with values of that size.
type Fill = fn(usize) -> Filled;

/// Entries held, and bytes that the process grew by and that the cache may take.
struct Filled {
    entries: u64,
    grown: u64,
    limit: u64,
}

pub(crate) fn run(options: &Options) {
    if let Ok(task) = std::env::var(TASK) {
        return one(&task);
    }
    for (contender, _) in CONTENDERS {
        for size in [256, 1024] {
            if !options.wants("contender", contender) {
                continue;
            }
            let Some((entries, bytes, limit)) = ask(&format!("{contender} {size}")) else {
                eprintln!("{contender}: the process that measures it failed");
                continue;
            };
            let each = bytes / entries;
            let over = each - (KEY_BYTES + size) as f64;
            if options.json {
                let line = json!({
                    "bench": "memory", "case": size.to_string(), "contender": contender, "threads": 1, "keys": "1M",
                    "bytes_per_entry": each.round(), "overhead_bytes": over.round(),
                    "rss_per_limit": (bytes / limit * 1000.0).round() / 1000.0,
                });
                println!("{line}");
            } else {
                println!(
                    "{size:>5} B  {contender:<24} {entries:>9} entries  {each:>7.0} B an entry, {over:>5.0} over key and value; RSS {:.3} of the limit",
                    bytes / limit
                );
            }
        }
    }
}

/// Entries held, bytes the process grew by, and the limit, as another process finds them.
fn ask(task: &str) -> Option<(f64, f64, f64)> {
    let itself = std::env::current_exe().ok()?;
    let answer = Command::new(itself).arg("memory").env(TASK, task).output().ok()?;
    let answer = String::from_utf8(answer.stdout).ok()?;
    let numbers: Vec<f64> = answer.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    let [entries, bytes, limit] = numbers[..] else { return None };
    Some((entries, bytes, limit))
}

fn one(task: &str) {
    let Some((contender, size)) = task.split_once(' ') else { return };
    let Some((_, fill)) = CONTENDERS.iter().find(|(name, _)| *name == contender) else { return };
    let Filled { entries, grown, limit } = fill(size.parse().unwrap_or_default());
    println!("{entries} {grown} {limit}");
}

/// Sets twice as many entries as fit, through the manager, so that the level is as full as it gets.
fn ours(policy: Policy, tracked: bool, size: usize) -> Filled {
    let limit = ENTRIES as u64 * (policy.overhead() + (1 + KEY_BYTES + size) as u64);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime of one worker");
    runtime.block_on(async {
        let before = resident();
        let mut builder =
            CacheManager::builder().hot(Arc::new(RamTier::new(RamConfig { max_size: limit, policy })));
        if tracked {
            builder = builder.tracking(Arc::new(MemoryTracking::default()));
        }
        let cache = builder.build().await.expect("a level in RAM needs nothing");
        for number in 0..2 * ENTRIES {
            let set = cache.set(key(number), Bytes::from(vec![7u8; size]));
            set.await.expect("it fits");
            // What waits to be told is no part of an entry, and how much that is depends on what else the machine does.
            if number % TOLD_EVERY == 0 {
                drop(cache.settle().await);
            }
        }
        // Tracking in memory takes everything.
        drop(cache.settle().await);
        let grown = resident().saturating_sub(before);
        let stats = cache.stats().await.expect("the cache is open");
        let entries = stats.levels.iter().filter_map(|level| level.usage?.entries).sum::<u64>();
        Filled { entries, grown, limit }
    })
}

/// Likewise, a peer's cache, which counts the bytes of keys and values and nothing else.
fn peer<C>(
    size: usize,
    build: impl Fn(u64) -> C,
    insert: impl Fn(&C, String, Bytes),
    entries: impl Fn(&C) -> usize,
) -> Filled {
    let limit = (ENTRIES * (KEY_BYTES + size)) as u64;
    let before = resident();
    let cache = build(limit);
    for number in 0..2 * ENTRIES {
        insert(&cache, key(number), Bytes::from(vec![7u8; size]));
    }
    let entries = entries(&cache) as u64;
    Filled { entries, grown: resident().saturating_sub(before), limit }
}

/// Bytes of this process in RAM.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}
