//! `bench load`: what loading through the cache costs, beside the same without it.
//!
//! `get_hit` and `get_or_load_hit` are hot hits; `miss` is a load that
//! brings its value at once, so all of it is overhead; `herd` is the time from the first of ten thousand tasks on one
//! key to the last answer, where the loader takes [`LOADER`]: a second one would double it.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tiercache_core::{CacheManager, Error};
use tiercache_ram::{Policy, RamConfig, RamTier};
use tokio::runtime::{Builder, Runtime};

use crate::Options;
use crate::keys::key;
use crate::measure::{Pass, Row, median};

const ROUNDS: usize = 21;
const KEYS: usize = 1_000;
const PASS: usize = 65_536;
const MISSES: usize = 4_096;
const HERD: usize = 10_000;
/// What the loader of the herd takes.
const LOADER: Duration = Duration::from_millis(100);

pub(crate) fn run(options: &Options) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let cache = runtime.block_on(async {
        let hot = Arc::new(RamTier::new(RamConfig { max_size: 256 << 20, policy: Policy::Adaptive }));
        CacheManager::builder().hot(hot).build().await.expect("a level in RAM needs nothing")
    });
    let moka: moka::sync::Cache<String, Bytes, foldhash::fast::RandomState> =
        moka::sync::Cache::builder().max_capacity(1 << 20).build_with_hasher(Default::default());
    let keys: Vec<String> = (0..KEYS).map(key).collect();
    let value = crate::hot::value();
    runtime.block_on(async {
        for key in &keys {
            cache.set(key, value.clone()).await.expect("room");
            moka.insert(key.clone(), value.clone());
        }
    });
    let fresh = AtomicU64::new(0);
    let absent = || format!("absent:{:017}", fresh.fetch_add(1, Ordering::Relaxed));
    type Case<'a> = (&'static str, &'static str, Box<dyn Fn() -> Pass + 'a>);
    let cases: Vec<Case<'_>> = vec![
        (
            "get_hit",
            "tiercache",
            Box::new(|| {
                hits(&runtime, &keys, async |key| {
                    black_box(&cache.get(key).await);
                })
            }),
        ),
        (
            "get_hit",
            "moka",
            Box::new(|| {
                hits(&runtime, &keys, async |key| {
                    black_box(&moka.get(key));
                })
            }),
        ),
        (
            "get_or_load_hit",
            "tiercache",
            Box::new(|| {
                hits(&runtime, &keys, async |key| {
                    black_box(&cache.get_or_load(key, || async { Ok::<_, Error>("never") }).await);
                })
            }),
        ),
        (
            "get_or_load_hit",
            "moka",
            Box::new(|| {
                hits(&runtime, &keys, async |key| {
                    black_box(&moka.get_with_by_ref(key, Bytes::new));
                })
            }),
        ),
        (
            "miss",
            "tiercache",
            Box::new(|| {
                let names: Vec<String> = (0..MISSES).map(|_| absent()).collect();
                hits(&runtime, &names, async |key| {
                    let value = value.clone();
                    black_box(&cache.get_or_load(key, move || async move { Ok::<_, Error>(value) }).await);
                })
            }),
        ),
        (
            "miss",
            "moka",
            Box::new(|| {
                let names: Vec<String> = (0..MISSES).map(|_| absent()).collect();
                hits(&runtime, &names, async |key| {
                    black_box(&moka.get_with_by_ref(key, || value.clone()));
                })
            }),
        ),
    ];
    let wanted =
        |case: &str, contender: &str| options.wants("case", case) && options.wants("contender", contender);
    let mut passes: Vec<Vec<Pass>> = vec![Vec::new(); cases.len()];
    for _ in 0..ROUNDS {
        for ((case, contender, run), passes) in cases.iter().zip(&mut passes) {
            if wanted(case, contender) {
                passes.push(run());
            }
        }
    }
    let mut rows: Vec<Row> = Vec::new();
    for ((case, contender, _), passes) in cases.iter().zip(&passes).filter(|(_, passes)| !passes.is_empty()) {
        let ns = median(passes.iter().map(Pass::cpu_ns));
        rows.push(row(case, contender, ns, median(passes.iter().map(Pass::allocations_each)), String::new()));
    }
    if wanted("herd", "tiercache") {
        let (worst, loads) = herd();
        let note = format!(
            "{:.2} x the loader's {LOADER:?}, {loads} load",
            worst.as_secs_f64() / LOADER.as_secs_f64()
        );
        rows.push(row("herd", "tiercache", worst.as_nanos() as f64, f64::NAN, note));
    }
    rows.iter().for_each(|row| row.print(options.json));
}

fn row(case: &str, contender: &str, ns_per_op: f64, allocs_per_op: f64, note: String) -> Row {
    let (case, contender, keys) = (case.to_string(), contender.to_string(), "small".to_string());
    Row { bench: "load", case, contender, threads: 1, keys, ns_per_op, allocs_per_op, note }
}

fn hits(runtime: &Runtime, keys: &[String], call: impl AsyncFn(&String)) -> Pass {
    let count = if keys.len() == KEYS { PASS } else { keys.len() };
    runtime.block_on(async {
        let begun = Pass::begin();
        for key in keys.iter().cycle().take(count) {
            call(key).await;
        }
        begun.end(count)
    })
}

/// The longest of some herds, and the most loads one caused.
fn herd() -> (Duration, u64) {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let mut worst = Duration::ZERO;
    let mut most = 0;
    for _ in 0..5 {
        let cache = runtime.block_on(async {
            let hot = Arc::new(RamTier::new(RamConfig { max_size: 1 << 20, policy: Policy::Adaptive }));
            CacheManager::builder().hot(hot).build().await.expect("a level in RAM needs nothing")
        });
        let loads = Arc::new(AtomicU64::new(0));
        let took = runtime.block_on(async {
            let begun = Instant::now();
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..HERD {
                let (cache, loads) = (cache.clone(), loads.clone());
                tasks.spawn(async move {
                    let load = move || async move {
                        loads.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(LOADER).await;
                        Ok::<_, Error>("value")
                    };
                    black_box(&cache.get_or_load("one", load).await);
                });
            }
            while tasks.join_next().await.is_some() {}
            begun.elapsed()
        });
        worst = worst.max(took);
        most = most.max(loads.load(Ordering::Relaxed));
    }
    (worst, most)
}
