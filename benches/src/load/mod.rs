//! `bench load`: what loading through the cache costs, beside the same without it, and beside other caches.
//!
//! `get_hit`, `get_or_load_hit` and `macro_hit` are hot hits; `miss` is a load that brings its value at once, so all of it
//! is overhead; `herd` is the time from the first of ten thousand tasks on one key to the last answer, where the loader
//! takes [`LOADER`]: a second one would double it.

mod memo;
#[cfg(feature = "peers")]
mod peers;

use std::hint::black_box;
use std::pin::Pin;
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

/// What is done many times: its name, whose it is, and a pass of it.
type Case<'a> = (&'static str, &'static str, Box<dyn Fn() -> Pass + 'a>);
/// Who is asked by a herd: makes a cache, and a call of it that counts the loads.
type Herd = (&'static str, Box<dyn Fn() -> Call>);
type Call = Box<dyn Fn(&Arc<AtomicU64>) -> Pin<Box<dyn Future<Output = ()> + Send>>>;

/// What every contender is measured with.
struct Given<'a> {
    runtime: &'a Runtime,
    keys: &'a [String],
    value: &'a Bytes,
    fresh: &'a AtomicU64,
}

impl Given<'_> {
    /// Keys that nobody had.
    fn absent(&self) -> Vec<String> {
        let absent = || format!("absent:{:017}", self.fresh.fetch_add(1, Ordering::Relaxed));
        (0..MISSES).map(|_| absent()).collect()
    }

    fn hits(&self, call: impl AsyncFn(&String)) -> Pass {
        passes(self.runtime, self.keys, PASS, call)
    }

    fn misses(&self, call: impl AsyncFn(&String)) -> Pass {
        passes(self.runtime, &self.absent(), MISSES, call)
    }
}

pub(crate) fn run(options: &Options) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let cache = runtime.block_on(small());
    let keys: Vec<String> = (0..KEYS).map(key).collect();
    let (value, fresh) = (crate::hot::value(), AtomicU64::new(0));
    let given = Given { runtime: &runtime, keys: &keys, value: &value, fresh: &fresh };
    let mut cases = ours(&given, &cache);
    #[cfg(feature = "peers")]
    cases.extend(peers::cases(&given));
    cases.extend(memo::cases(&runtime, &cache));
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
    rows.sort_by_key(|row| cases.iter().position(|(case, ..)| *case == row.case));
    let herds = [our_herd()].into_iter();
    #[cfg(feature = "peers")]
    let herds = herds.chain(peers::herds());
    for (contender, make) in herds.filter(|(contender, _)| wanted("herd", contender)) {
        let (worst, loads) = herd(&make);
        let times = worst.as_secs_f64() / LOADER.as_secs_f64();
        let note = format!("{times:.2} x the loader's {LOADER:?}, {loads} load");
        rows.push(row("herd", contender, worst.as_nanos() as f64, f64::NAN, note));
    }
    rows.iter().for_each(|row| row.print(options.json));
}

async fn small() -> CacheManager {
    let hot = Arc::new(RamTier::new(RamConfig { max_size: 256 << 20, policy: Policy::Adaptive }));
    CacheManager::builder().hot(hot).build().await.expect("a level in RAM needs nothing")
}

fn ours<'a>(given: &'a Given<'a>, cache: &'a CacheManager) -> Vec<Case<'a>> {
    given.runtime.block_on(async {
        for key in given.keys {
            cache.set(key, given.value.clone()).await.expect("room");
        }
    });
    let get = move || {
        given.hits(async |key| {
            black_box(&cache.get(key).await);
        })
    };
    let load = move || {
        given.hits(async |key| {
            black_box(&cache.get_or_load(key, || async { Ok::<_, Error>("never") }).await);
        })
    };
    let miss = move || {
        given.misses(async |key| {
            let value = given.value.clone();
            black_box(&cache.get_or_load(key, move || async move { Ok::<_, Error>(value) }).await);
        })
    };
    vec![
        ("get_hit", "tiercache", Box::new(get)),
        ("get_or_load_hit", "tiercache", Box::new(load)),
        ("miss", "tiercache", Box::new(miss)),
    ]
}

fn our_herd() -> Herd {
    let make = || -> Call {
        let runtime = tokio::runtime::Handle::current();
        let cache = tokio::task::block_in_place(|| runtime.block_on(small()));
        Box::new(move |loads| {
            let (cache, loads) = (cache.clone(), loads.clone());
            Box::pin(async move {
                let load = move || async move {
                    slow(&loads).await;
                    Ok::<_, Error>("value")
                };
                black_box(&cache.get_or_load("one", load).await);
            })
        })
    };
    ("tiercache", Box::new(make))
}

/// The loader of the herd.
async fn slow(loads: &AtomicU64) {
    loads.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(LOADER).await;
}

fn row(case: &str, contender: &str, ns_per_op: f64, allocs_per_op: f64, note: String) -> Row {
    let (case, contender, keys) = (case.to_string(), contender.to_string(), "small".to_string());
    Row { bench: "load", case, contender, threads: 1, keys, ns_per_op, allocs_per_op, note }
}

fn passes<K>(runtime: &Runtime, keys: &[K], count: usize, call: impl AsyncFn(&K)) -> Pass {
    runtime.block_on(async {
        let begun = Pass::begin();
        for key in keys.iter().cycle().take(count) {
            call(key).await;
        }
        begun.end(count)
    })
}

/// The longest of some herds, and the most loads one caused.
fn herd(make: &dyn Fn() -> Call) -> (Duration, u64) {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let mut worst = Duration::ZERO;
    let mut most = 0;
    for _ in 0..5 {
        let loads = Arc::new(AtomicU64::new(0));
        let took = runtime.block_on(async {
            let call = make();
            let begun = Instant::now();
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..HERD {
                tasks.spawn(call(&loads));
            }
            while tasks.join_next().await.is_some() {}
            begun.elapsed()
        });
        worst = worst.max(took);
        most = most.max(loads.load(Ordering::Relaxed));
    }
    (worst, most)
}
