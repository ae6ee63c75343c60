//! Functions whose results are kept.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tiercache::{BlockingCache, CacheManager, cached};
use tiercache_core::testing::ManualClock;
use tiercache_core::tier::Resident;
use tiercache_tests::rig::{builder, disk, idle, ram, ram_for};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

async fn in_ram() -> CacheManager {
    builder(&ManualClock::new()).hot(ram()).build().await.unwrap()
}

/// As many callers as that wait for another's load.
async fn joined(cache: &CacheManager, callers: u64) {
    while cache.stats().await.unwrap().loads_joined < callers {
        tokio::task::yield_now().await;
    }
}

/// An error that cannot be handed to anybody else.
#[derive(Debug, PartialEq)]
struct Alone(usize);

// 20
#[tokio::test]
async fn of_16_tasks_that_call_it_at_once_one_runs_the_function_and_all_have_its_result() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    static GATE: Semaphore = Semaphore::const_new(0);

    #[cached(cache(cache))]
    async fn slow(cache: &CacheManager, n: u32) -> u32 {
        RUNS.fetch_add(1, SeqCst);
        GATE.acquire().await.unwrap().forget();
        n * 2
    }

    let cache = in_ram().await;
    let mut callers = JoinSet::new();
    for _ in 0..16 {
        let cache = cache.clone();
        callers.spawn(async move { slow(&cache, 21).await });
    }
    joined(&cache, 15).await;
    GATE.add_permits(1);
    assert_eq!(callers.join_all().await, [42; 16]);
    assert_eq!(RUNS.load(SeqCst), 1);
    assert_eq!(cache.stats().await.unwrap().in_flight, 0);
}

// 20
#[tokio::test]
async fn when_the_function_fails_one_who_waited_tries_again_and_the_others_wait_for_that_one() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    static GATE: Semaphore = Semaphore::const_new(0);

    #[cached(cache(cache))]
    async fn slow(cache: &CacheManager, n: u32) -> Result<u32, Alone> {
        let run = RUNS.fetch_add(1, SeqCst);
        GATE.acquire().await.unwrap().forget();
        if run == 0 { Err(Alone(run)) } else { Ok(n * 2) }
    }

    let cache = in_ram().await;
    let mut callers = JoinSet::new();
    for _ in 0..16 {
        let cache = cache.clone();
        callers.spawn(async move { slow(&cache, 21).await });
    }
    joined(&cache, 15).await;
    GATE.add_permits(2);
    let answers = callers.join_all().await;
    assert_eq!(answers.iter().filter(|answer| **answer == Ok(42)).count(), 15);
    assert!(answers.contains(&Err(Alone(0))));
    assert_eq!(RUNS.load(SeqCst), 2);
}

// 20
#[test]
fn of_16_threads_that_call_it_at_once_one_runs_the_function_and_all_have_its_result() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);

    /// Ends when 15 others wait for it.
    #[cached(cache(cache))]
    fn slow(cache: &BlockingCache, n: u32) -> u32 {
        RUNS.fetch_add(1, SeqCst);
        while cache.stats().unwrap().loads_joined < 15 {
            std::thread::yield_now();
        }
        n * 2
    }

    let cache = BlockingCache::build(builder(&ManualClock::new()).hot(ram())).unwrap();
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..16).map(|_| scope.spawn(|| slow(&cache, 21))).collect();
        callers.into_iter().for_each(|caller| assert_eq!(caller.join().unwrap(), 42));
    });
    assert_eq!(RUNS.load(SeqCst), 1);
}

// 43, 70
#[tokio::test]
async fn equal_calls_share_a_result_and_different_ones_never_do() {
    #[derive(Clone, Serialize)]
    struct Options {
        b: u32,
    }

    #[cached(cache(cache), name = "f")]
    async fn two(cache: &CacheManager, a: String, b: String) -> String {
        format!("{a}+{b}")
    }

    #[cached(cache(cache), name = "f")]
    async fn one(cache: &CacheManager, a: &str, options: Options) -> String {
        format!("{a} {}", options.b)
    }

    #[cached(cache(cache), name = "f")]
    async fn any<T: Serialize + fmt::Debug + Clone + Send + Sync + 'static>(
        cache: &CacheManager,
        values: T,
    ) -> String {
        format!("{values:?}")
    }

    #[cached(cache(cache), name = "f")]
    async fn map(cache: &CacheManager, values: HashMap<String, u32>) -> usize {
        values.values().map(|value| *value as usize).sum()
    }

    let cache = &in_ram().await;
    let mut loads = 0;
    let mut fresh = async |expected: bool| {
        loads += u64::from(expected);
        assert_eq!(cache.stats().await.unwrap().loads, loads);
    };
    let text = |text: &str| text.to_owned();
    assert_eq!(two(cache, text("ab"), text("c")).await, "ab+c");
    fresh(true).await;
    // Built differently, and the same.
    assert_eq!(two(cache, ['a', 'b'].iter().collect(), text("xc").split_off(1)).await, "ab+c");
    fresh(false).await;
    assert_eq!(two(cache, text("a"), text("bc")).await, "a+bc");
    fresh(true).await;
    assert_eq!(one(cache, "a", Options { b: 2 }).await, "a 2");
    fresh(true).await;
    assert_eq!(one(cache, "a", Options { b: 3 }).await, "a 3");
    fresh(true).await;
    assert_eq!(any(cache, 1).await, "1");
    fresh(true).await;
    assert_eq!(any(cache, text("1")).await, "\"1\"");
    fresh(true).await;
    assert_eq!(any(cache, vec![1, 2]).await, "[1, 2]");
    fresh(true).await;
    assert_eq!(any(cache, [1, 2]).await, "[1, 2]");
    fresh(true).await;
    assert_eq!(any(cache, vec![vec![1], vec![2]]).await, "[[1], [2]]");
    fresh(true).await;
    assert_eq!(any(cache, BTreeMap::from([("a", 1)])).await, "{\"a\": 1}");
    fresh(true).await;
    assert_eq!(any(cache, ("a", 1)).await, "(\"a\", 1)");
    fresh(true).await;
    let filled = |order: &mut dyn Iterator<Item = u32>| order.map(|n| (format!("key {n}"), n)).collect();
    assert_eq!(map(cache, filled(&mut (0..100))).await, 4950);
    fresh(true).await;
    assert_eq!(map(cache, filled(&mut (0..100).rev())).await, 4950);
    fresh(false).await;
}

// 62, 71
#[tokio::test]
async fn a_result_is_there_after_a_restart_and_gone_when_the_code_is_of_another_version() {
    /// What the second release of a program calls by the same name.
    mod second {
        use super::*;

        #[cached(cache(cache), name = "price", version = 2)]
        pub(super) async fn numbered(cache: &CacheManager, item: &str) -> usize {
            item.len() * 2
        }

        #[cached(cache(cache), name = "cost", version = code)]
        pub(super) async fn hashed(cache: &CacheManager, item: &str) -> usize {
            item.len() + 2
        }
    }

    #[cached(cache(cache), name = "price", version = 1)]
    async fn numbered(cache: &CacheManager, item: &str) -> usize {
        item.len()
    }

    #[cached(cache(cache), name = "cost", version = code)]
    async fn hashed(cache: &CacheManager, item: &str) -> usize {
        item.len() + 1
    }

    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let open = async || builder(&clock).hot(ram()).dry(disk(dir.path(), &clock).await).build().await.unwrap();
    let cache = open().await;
    assert_eq!((numbered(&cache, "abc").await, hashed(&cache, "abc").await), (3, 4));
    cache.close(Duration::from_secs(5)).await.unwrap();

    let cache = open().await;
    assert_eq!((numbered(&cache, "abc").await, hashed(&cache, "abc").await), (3, 4));
    assert_eq!(cache.stats().await.unwrap().loads, 0);
    assert_eq!((second::numbered(&cache, "abc").await, second::hashed(&cache, "abc").await), (6, 5));
    assert_eq!(cache.stats().await.unwrap().loads, 2);
    // The first version's are still there for whoever goes back to it.
    assert_eq!((numbered(&cache, "abc").await, hashed(&cache, "abc").await), (3, 4));
    assert_eq!(cache.stats().await.unwrap().loads, 2);
}

// 72
#[tokio::test]
async fn all_results_of_a_function_are_forgotten_at_once_and_memory_is_bounded() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);

    #[cached(cache(cache))]
    async fn square(cache: &CacheManager, n: u64) -> u64 {
        RUNS.fetch_add(1, SeqCst);
        n * n
    }

    #[cached(cache(cache))]
    async fn other(cache: &CacheManager, n: u64) -> u64 {
        RUNS.fetch_add(1, SeqCst);
        n
    }

    let clock = ManualClock::new();
    let cache = builder(&clock).hot(ram_for(10, 400)).build().await.unwrap();
    let held = async || cache.stats().await.unwrap().levels[0].usage.unwrap().entries.unwrap();
    for n in 0..50_000 {
        assert_eq!(square(&cache, n).await, n * n);
        if n % 5_000 == 4_999 {
            assert!((1..=10).contains(&held().await));
        }
    }
    assert_eq!(other(&cache, 7).await, 7);
    assert_eq!(RUNS.load(SeqCst), 50_001);
    square(&cache, 49_999).await;
    assert_eq!(RUNS.load(SeqCst), 50_001);

    // The best of some: what takes the processor away in between is not the cache.
    let mut took = Duration::MAX;
    for _ in 0..20 {
        let begun = Instant::now();
        square::invalidate_all(&cache).await.unwrap();
        took = took.min(begun.elapsed());
    }
    assert!(took < Duration::from_millis(10), "{took:?}");
    // One fence, whatever it covers.
    assert_eq!(cache.stats().await.unwrap().fences, (1, 0));
    square(&cache, 49_999).await;
    assert_eq!(RUNS.load(SeqCst), 50_002);
    other(&cache, 7).await;
    assert_eq!(RUNS.load(SeqCst), 50_002);
}

// 73
#[tokio::test]
async fn a_stored_value_that_the_validator_rejects_is_computed_and_stored_anew() {
    static NEWEST: AtomicUsize = AtomicUsize::new(1);
    static RUNS: AtomicUsize = AtomicUsize::new(0);

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Page {
        schema: usize,
    }

    impl Page {
        fn is_current(&self) -> bool {
            self.schema == NEWEST.load(SeqCst)
        }
    }

    #[cached(cache(cache), validate = Page::is_current)]
    async fn page(cache: &CacheManager, n: u32) -> Page {
        RUNS.fetch_add(1, SeqCst);
        Page { schema: NEWEST.load(SeqCst) }
    }

    let hot = ram();
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let cache = builder(&clock).hot(hot.clone()).dry(disk(dir.path(), &clock).await).build().await.unwrap();
    for from_below in [false, true] {
        NEWEST.store(1, SeqCst);
        page::invalidate_all(&cache).await.unwrap();
        RUNS.store(0, SeqCst);
        for _ in 0..2 {
            assert_eq!(page(&cache, 1).await, Page { schema: 1 });
        }
        assert_eq!(RUNS.load(SeqCst), 1);
        if from_below {
            hot.drain();
            cache.settle().await.unwrap();
        }
        NEWEST.store(2, SeqCst);
        for _ in 0..2 {
            assert_eq!(page(&cache, 1).await, Page { schema: 2 }, "{from_below}");
        }
        assert_eq!(RUNS.load(SeqCst), 2, "{from_below}");
    }
    // One that rejects its own is not asked for ever.
    #[cached(cache(cache), validate = |_| false)]
    async fn never(cache: &CacheManager) -> usize {
        RUNS.fetch_add(1, SeqCst)
    }
    assert_eq!((never(&cache).await, never(&cache).await), (2, 3));
}

// H2
#[tokio::test]
async fn a_call_that_began_before_an_invalidation_is_not_kept() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    static GATE: Semaphore = Semaphore::const_new(0);

    #[cached(cache(cache))]
    async fn slow(cache: &CacheManager, n: u32) -> usize {
        let run = RUNS.fetch_add(1, SeqCst);
        GATE.acquire().await.unwrap().forget();
        run
    }

    let cache = Arc::new(in_ram().await);
    for all in [false, true] {
        RUNS.store(0, SeqCst);
        let first = tokio::spawn({
            let cache = cache.clone();
            async move { slow(&cache, 1).await }
        });
        idle().await;
        assert_eq!(RUNS.load(SeqCst), 1);
        match all {
            false => slow::invalidate(&cache, 1).await.unwrap(),
            true => slow::invalidate_all(&cache).await.unwrap(),
        };
        GATE.add_permits(1);
        assert_eq!(first.await.unwrap(), 0);
        GATE.add_permits(1);
        assert_eq!((slow(&cache, 1).await, slow(&cache, 1).await), (1, 1), "{all}");
        slow::invalidate_all(&cache).await.unwrap();
    }
}
