//! What `#[cached]` takes and what stands beside the function.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tiercache::{BlockingCache, CacheManager, Error, Level, LoadOptions, cached};
use tiercache_core::testing::{ManualClock, MemoryTier};
use tiercache_tests::rig::{builder, idle, ram};
use tokio::sync::Semaphore;

const SECOND: Duration = Duration::from_secs(1);

async fn in_ram() -> CacheManager {
    builder(&ManualClock::new()).hot(ram()).build().await.unwrap()
}

/// The runs since the last time.
fn runs(of: &AtomicUsize) -> usize {
    of.swap(0, SeqCst)
}

#[tokio::test]
async fn companions_pass_the_cache_by_fill_it_and_empty_it() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);

    #[cached(cache(cache), skip(factor), ttl = "1m", tags(kind = "length", word = word))]
    async fn length(cache: &CacheManager, factor: usize, word: &str) -> usize {
        RUNS.fetch_add(1, SeqCst);
        word.len() * factor
    }

    let cache = in_ram().await;
    assert_eq!((length(&cache, 1, "ab").await, length(&cache, 5, "ab").await), (2, 2));
    assert_eq!(runs(&RUNS), 1);
    assert_eq!(length::bypass(&cache, 5, "ab").await, 10);
    assert_eq!((runs(&RUNS), length(&cache, 1, "ab").await, runs(&RUNS)), (1, 2, 0));
    assert!(length::prime(&cache, "ab", 7).await.unwrap().stored);
    assert_eq!((length(&cache, 1, "ab").await, runs(&RUNS)), (7, 0));
    length::invalidate(&cache, "ab").await.unwrap();
    assert_eq!((length(&cache, 1, "ab").await, runs(&RUNS)), (2, 1));
    // Tags are there, whether it was computed or primed.
    for primed in [false, true] {
        if primed {
            length::prime(&cache, "ab", 7).await.unwrap();
        }
        cache.invalidate_tag("word", "other").await.unwrap();
        length(&cache, 1, "ab").await;
        assert_eq!(runs(&RUNS), 0);
        cache.invalidate_tag("word", "ab").await.unwrap();
        assert_eq!((length(&cache, 1, "ab").await, runs(&RUNS)), (2, 1), "{primed}");
    }
    length::invalidate_all(&cache).await.unwrap();
    length(&cache, 1, "ab").await;
    assert_eq!(runs(&RUNS), 1);
}

#[tokio::test]
async fn methods_and_generic_functions_are_told_apart_by_their_types() {
    #[derive(Clone, Serialize)]
    struct Shop<T> {
        tenant: u8,
        #[serde(skip)]
        cache: Option<CacheManager>,
        #[serde(skip)]
        runs: Arc<AtomicUsize>,
        of: T,
    }

    impl<T: Clone + fmt::Debug + Serialize + Send + Sync + 'static> Shop<T> {
        /// All of `self` that serialises counts.
        #[cached(cache = self.cache)]
        async fn item(&self, n: u32) -> String {
            self.runs.fetch_add(1, SeqCst);
            format!("{}{:?}{n}", self.tenant, self.of)
        }

        #[cached(cache = self.cache, key(self.tenant, n))]
        async fn shared(self: Arc<Self>, n: u32) -> Arc<str> {
            self.runs.fetch_add(1, SeqCst);
            format!("{} {n}", self.tenant).into()
        }

        #[cached(cache(cache), associated)]
        async fn alike(cache: &CacheManager, n: T) -> String {
            format!("{n:?}")
        }
    }

    let cache = in_ram().await;
    let count = Arc::new(AtomicUsize::new(0));
    let shop = |tenant| Shop { tenant, cache: Some(cache.clone()), runs: count.clone(), of: 'a' };
    let (one, two) = (shop(1), shop(2));
    for _ in 0..2 {
        assert_eq!((one.item(5).await, two.item(5).await), ("1'a'5".into(), "2'a'5".into()));
    }
    assert_eq!(runs(&count), 2);
    let other = Shop { tenant: 1, cache: Some(cache.clone()), runs: count.clone(), of: "a" };
    assert_eq!((other.item(5).await, runs(&count)), ("1\"a\"5".into(), 1));
    one.item_invalidate(5).await.unwrap();
    one.item_prime(5, "primed".into()).await.unwrap();
    assert_eq!((one.item(5).await, one.item_bypass(5).await), ("primed".into(), "1'a'5".into()));
    one.item_invalidate_all().await.unwrap();
    assert_eq!((one.item(5).await, other.item(5).await, runs(&count)), ("1'a'5".into(), "1\"a\"5".into(), 2));

    let (first, second) = (Arc::new(shop(1)).shared(5).await, Arc::new(shop(1)).shared(5).await);
    assert!(Arc::ptr_eq(&first, &second), "an `Arc` is handed on as it is");
    assert_eq!((&*first, runs(&count)), ("1 5", 1));
    assert_eq!((&*Arc::new(shop(2)).shared(5).await, runs(&count)), ("2 5", 1));

    assert_eq!(Shop::<char>::alike(&cache, '1').await, "'1'");
    assert_eq!(Shop::<&str>::alike(&cache, "1").await, "\"1\"");
    assert_eq!(cache.stats().await.unwrap().loads, 8);
}

#[derive(Debug)]
struct Converted(String);

impl From<Error> for Converted {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for Converted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[tokio::test]
async fn errors_are_not_kept_and_reach_those_who_waited_as_their_type_allows() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    static GATE: Semaphore = Semaphore::const_new(0);

    #[derive(Clone, Debug, PartialEq)]
    struct Cloned(usize);

    #[cached(cache(cache))]
    async fn cloned(cache: &CacheManager) -> Result<usize, Cloned> {
        let run = RUNS.fetch_add(1, SeqCst);
        GATE.acquire().await.unwrap().forget();
        if run == 0 { Err(Cloned(run)) } else { Ok(run) }
    }

    mod aliased {
        use super::*;

        pub(super) type Result = std::result::Result<usize, Converted>;
    }

    #[cached(cache(cache))]
    async fn converted(cache: &CacheManager) -> aliased::Result {
        let run = RUNS.fetch_add(1, SeqCst);
        GATE.acquire().await.unwrap().forget();
        Err(Converted(format!("run {run}")))
    }

    #[cached(cache(cache))]
    async fn plain(cache: &CacheManager) -> std::io::Result<usize> {
        RUNS.fetch_add(1, SeqCst);
        Ok(3)
    }

    let cache = in_ram().await;
    let twice = async |expected: u64| {
        while cache.stats().await.unwrap().loads_joined < expected {
            tokio::task::yield_now().await;
        }
        GATE.add_permits(1);
    };
    let (one, other, ()) = tokio::join!(cloned(&cache), cloned(&cache), twice(1));
    assert_eq!((one, other, runs(&RUNS)), (Err(Cloned(0)), Err(Cloned(0)), 1));
    RUNS.store(1, SeqCst);
    GATE.add_permits(1);
    assert_eq!((cloned(&cache).await, cloned(&cache).await, runs(&RUNS)), (Ok(1), Ok(1), 2));

    // The alias has no arguments: the macro goes by its name.
    let (one, other, ()) = tokio::join!(converted(&cache), converted(&cache), twice(1));
    let texts = [one.unwrap_err().0, other.unwrap_err().0];
    assert_eq!(texts, ["run 0", "the loader failed: run 0"]);
    assert_eq!(runs(&RUNS), 1);

    assert_eq!((plain(&cache).await.unwrap(), plain(&cache).await.unwrap(), runs(&RUNS)), (3, 3, 1));
}

#[tokio::test]
async fn none_is_kept_only_with_a_time_for_it() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);

    #[cached(cache(cache))]
    async fn forgotten(cache: &CacheManager, n: u32) -> Option<u32> {
        RUNS.fetch_add(1, SeqCst);
        (n > 1).then_some(n)
    }

    #[cached(cache(cache), negative_ttl = "30s")]
    async fn kept(cache: &CacheManager, n: u32) -> Result<Option<Bytes>, fmt::Error> {
        RUNS.fetch_add(1, SeqCst);
        Ok((n > 1).then(|| n.to_string().into()))
    }

    let clock = ManualClock::new();
    let cache = builder(&clock).hot(ram()).build().await.unwrap();
    assert_eq!((forgotten(&cache, 2).await, forgotten(&cache, 2).await, runs(&RUNS)), (Some(2), Some(2), 1));
    assert_eq!((forgotten(&cache, 1).await, forgotten(&cache, 1).await, runs(&RUNS)), (None, None, 2));
    let two = Ok(Some(Bytes::from("2")));
    assert_eq!((kept(&cache, 2).await, kept(&cache, 2).await, runs(&RUNS)), (two.clone(), two, 1));
    assert_eq!((kept(&cache, 1).await, kept(&cache, 1).await, runs(&RUNS)), (Ok(None), Ok(None), 1));
    clock.advance(31 * SECOND);
    assert_eq!((kept(&cache, 1).await, runs(&RUNS)), (Ok(None), 1));
    kept::prime(&cache, 1, "primed".into()).await.unwrap();
    assert_eq!((kept(&cache, 1).await, runs(&RUNS)), (Ok(Some("primed".into())), 0));
}

#[tokio::test]
async fn a_key_of_ones_own_is_the_key_in_the_namespace_that_was_chosen() {
    #[cached(cache(cache), key = format!("user:{id}"), namespace = "users", ttl = SECOND)]
    async fn user(cache: &CacheManager, id: u32, verbose: bool) -> Bytes {
        format!("{id} {verbose}").into()
    }

    let clock = ManualClock::new();
    let cache = builder(&clock).hot(ram()).build().await.unwrap();
    assert_eq!(
        (user(&cache, 7, true).await, user(&cache, 7, false).await),
        ("7 true".into(), "7 true".into())
    );
    let users = cache.namespace("users").unwrap();
    assert_eq!(users.get("user:7").await.unwrap(), Some("7 true".into()));
    assert_eq!(cache.get("user:7").await.unwrap(), None);
    users.delete("user:7").await.unwrap();
    assert_eq!(user(&cache, 7, false).await, "7 false");
    user::invalidate(&cache, 7).await.unwrap();
    assert_eq!(users.get("user:7").await.unwrap(), None);
    user::prime(&cache, 7, "p".into()).await.unwrap();
    assert_eq!(user(&cache, 7, false).await, "p");
    clock.advance(2 * SECOND);
    assert_eq!(user(&cache, 7, false).await, "7 false");
}

#[tokio::test]
async fn a_call_may_ask_for_a_new_value() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);

    #[cached(cache(cache), skip(anew), refresh = anew)]
    async fn count(cache: &CacheManager, anew: bool) -> usize {
        RUNS.fetch_add(1, SeqCst)
    }

    let cache = in_ram().await;
    let answers = [count(&cache, false).await, count(&cache, false).await, count(&cache, true).await];
    assert_eq!(answers, [0, 0, 1]);
    assert_eq!(count(&cache, false).await, 1);
}

#[tokio::test]
async fn a_stale_value_is_answered_while_the_next_is_computed() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    static GATE: Semaphore = Semaphore::const_new(1);

    #[cached(cache(cache), ttl = "10s", stale_while_revalidate = "1m")]
    async fn fresh(cache: &CacheManager, n: u32) -> usize {
        GATE.acquire().await.unwrap().forget();
        RUNS.fetch_add(1, SeqCst)
    }

    #[cached(cache(cache), ttl = "10s", stale_if_error = "1m")]
    async fn flaky(cache: &CacheManager) -> Result<usize, fmt::Error> {
        let run = RUNS.fetch_add(1, SeqCst);
        if run == 0 { Ok(run) } else { Err(fmt::Error) }
    }

    let clock = ManualClock::new();
    let cache = builder(&clock).hot(ram()).build().await.unwrap();
    assert_eq!(fresh(&cache, 1).await, 0);
    clock.advance(11 * SECOND);
    assert_eq!((fresh(&cache, 1).await, fresh(&cache, 1).await), (0, 0));
    GATE.add_permits(1);
    idle().await;
    assert_eq!((fresh(&cache, 1).await, runs(&RUNS)), (1, 2));
    clock.advance(80 * SECOND);
    GATE.add_permits(1);
    assert_eq!((fresh(&cache, 1).await, runs(&RUNS)), (0, 1));

    assert_eq!(flaky(&cache).await, Ok(0));
    clock.advance(11 * SECOND);
    assert_eq!((flaky(&cache).await, runs(&RUNS)), (Ok(0), 2));
    clock.advance(80 * SECOND);
    RUNS.store(1, SeqCst);
    assert_eq!(flaky(&cache).await, Err(fmt::Error));
}

#[tokio::test]
async fn a_function_that_borrows_runs_in_place_and_another_caller_takes_over_when_the_first_is_dropped() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    static GATE: Semaphore = Semaphore::const_new(0);

    /// Neither `Clone` nor `Send`.
    struct Connection(std::cell::Cell<usize>);

    #[cached(cache(cache), skip(connection), in_place)]
    async fn rows(
        cache: &CacheManager,
        connection: &mut Connection,
        table: &str,
    ) -> Result<usize, fmt::Error> {
        RUNS.fetch_add(1, SeqCst);
        connection.0.set(connection.0.get() + 1);
        GATE.acquire().await.unwrap().forget();
        Ok(table.len())
    }

    let cache = in_ram().await;
    let (mut first, mut second) = (Connection(0.into()), Connection(0.into()));
    let mut dropped = Box::pin(rows(&cache, &mut first, "abc"));
    let mut waits = Box::pin(rows(&cache, &mut second, "abc"));
    tokio::select! {
        biased;
        _ = &mut dropped => panic!("the gate is closed"),
        () = idle() => {}
    }
    tokio::select! {
        biased;
        _ = &mut waits => panic!("the gate is closed"),
        () = idle() => {}
    }
    assert_eq!(RUNS.load(SeqCst), 1);
    drop(dropped);
    GATE.add_permits(1);
    assert_eq!(waits.await, Ok(3));
    assert_eq!((first.0.get(), second.0.get()), (1, 1));
    assert_eq!((rows(&cache, &mut first, "abc").await, RUNS.load(SeqCst)), (Ok(3), 2));
    assert_eq!(cache.stats().await.unwrap().in_flight, 0);
}

#[tokio::test]
async fn a_dropped_caller_stops_only_waiting() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    static GATE: Semaphore = Semaphore::const_new(0);

    #[cached(cache(cache))]
    async fn slow(cache: &CacheManager) -> usize {
        GATE.acquire().await.unwrap().forget();
        RUNS.fetch_add(1, SeqCst)
    }

    let cache = in_ram().await;
    tokio::select! {
        biased;
        _ = slow(&cache) => panic!("the gate is closed"),
        () = idle() => {}
    }
    GATE.add_permits(1);
    idle().await;
    assert_eq!((slow(&cache).await, RUNS.load(SeqCst)), (0, 1));
}

#[tokio::test]
async fn a_panic_reaches_the_caller_whose_call_it_was_and_the_next_call_works() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);

    #[cached(cache(cache))]
    async fn first_panics(cache: &CacheManager) -> usize {
        let run = RUNS.fetch_add(1, SeqCst);
        assert!(run > 0, "the first run");
        run
    }

    let cache = in_ram().await;
    let task = tokio::spawn({
        let cache = cache.clone();
        async move { first_panics(&cache).await }
    });
    let panic = task.await.unwrap_err().into_panic();
    assert_eq!(*panic.downcast::<&str>().unwrap(), "the first run");
    assert_eq!((first_panics(&cache).await, first_panics(&cache).await, RUNS.load(SeqCst)), (1, 1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_the_cache_gives_up_goes_on_where_its_caller_waits() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);

    #[cached(cache(cache), limit = "10s")]
    async fn slow(cache: &CacheManager) -> usize {
        tokio::time::sleep(60 * SECOND).await;
        RUNS.fetch_add(1, SeqCst)
    }

    #[cached(cache(cache), hard_timeout = "10s")]
    async fn impatient(cache: &CacheManager) -> Result<usize, Error> {
        tokio::time::sleep(60 * SECOND).await;
        Ok(RUNS.fetch_add(1, SeqCst))
    }

    let cache = in_ram().await;
    let begun = tokio::time::Instant::now();
    assert_eq!((slow(&cache).await, RUNS.load(SeqCst)), (0, 1));
    assert_eq!(begun.elapsed().as_secs(), 60);
    assert!(matches!(impatient(&cache).await, Err(Error::TimedOut { .. })));
    assert_eq!(begun.elapsed().as_secs(), 70);
    tokio::time::sleep(55 * SECOND).await;
    assert_eq!((impatient(&cache).await.unwrap(), RUNS.load(SeqCst)), (1, 2));

    // Nor does a call fail when the cache is closed while it runs, or before.
    let task = tokio::spawn({
        let cache = cache.clone();
        async move {
            slow::invalidate(&cache).await.unwrap();
            slow(&cache).await
        }
    });
    tokio::time::sleep(SECOND).await;
    cache.close(SECOND).await.unwrap();
    assert_eq!(task.await.unwrap(), 2);
    assert_eq!((slow(&cache).await, slow(&cache).await), (3, 4));
    assert!(matches!(slow::invalidate(&cache).await, Err(Error::Closed)));
}

#[tokio::test]
async fn without_a_cache_the_function_runs_every_time() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    static LATER: OnceLock<CacheManager> = OnceLock::new();

    #[cached]
    async fn by_default(n: u32) -> usize {
        RUNS.fetch_add(1, SeqCst)
    }

    #[cached(cache = LATER)]
    async fn later(n: u32) -> usize {
        RUNS.fetch_add(1, SeqCst)
    }

    assert_eq!((by_default(1).await, by_default(1).await, later(1).await, later(1).await), (0, 1, 2, 3));
    let message = by_default::invalidate(1).await.unwrap_err().to_string();
    assert!(message.contains("tiercache::set_default"), "{message}");
    let cache = in_ram().await;
    LATER.set(cache.clone()).unwrap();
    tiercache::set_default(cache.clone()).unwrap();
    assert!(matches!(tiercache::set_default(cache), Err(Error::Refused(_))));
    assert_eq!((by_default(1).await, by_default(1).await, later(1).await, later(1).await), (4, 4, 5, 5));
}

#[test]
fn functions_that_are_not_async_use_the_cache_without_a_runtime() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);

    #[cached(cache(cache))]
    fn fibonacci(cache: &BlockingCache, n: u64) -> u64 {
        RUNS.fetch_add(1, SeqCst);
        if n < 2 { n } else { fibonacci(cache, n - 1) + fibonacci(cache, n - 2) }
    }

    #[cached(cache(cache), ttl = "10s", stale_while_revalidate = "1m")]
    fn nested(cache: &BlockingCache, n: u64) -> Result<u64, fmt::Error> {
        RUNS.fetch_add(1, SeqCst);
        Ok(fibonacci(cache, n))
    }

    #[cached(cache(cache))]
    fn panics(cache: &BlockingCache) -> u64 {
        panic!("as it does")
    }

    let cache = BlockingCache::build(builder(&ManualClock::new()).hot(ram())).unwrap();
    assert_eq!((fibonacci(&cache, 80), runs(&RUNS)), (23_416_728_348_467_685, 81));
    assert_eq!(
        (nested(&cache, 81), nested(&cache, 81), runs(&RUNS)),
        (Ok(37_889_062_373_143_906), Ok(37_889_062_373_143_906), 2)
    );
    fibonacci::prime(&cache, 80, 5).unwrap();
    assert_eq!((fibonacci(&cache, 80), fibonacci::bypass(&cache, 1), runs(&RUNS)), (5, 1, 1));
    fibonacci::invalidate(&cache, 80).unwrap();
    assert_eq!((fibonacci(&cache, 80), runs(&RUNS)), (23_416_728_348_467_685, 1));
    fibonacci::invalidate_all(&cache).unwrap();
    assert_eq!((fibonacci(&cache, 80), runs(&RUNS)), (23_416_728_348_467_685, 81));
    let panic = catch_unwind(AssertUnwindSafe(|| panics(&cache))).unwrap_err();
    assert_eq!(*panic.downcast::<&str>().unwrap(), "as it does");
    // The load hears of it a moment later.
    while cache.stats().unwrap().in_flight > 0 {
        std::thread::yield_now();
    }

    // Inside a runtime nothing waits: hot answers, and what it does not have is computed.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        assert_eq!((fibonacci(&cache, 80), runs(&RUNS)), (23_416_728_348_467_685, 0));
        assert_eq!((fibonacci(&cache, 81), runs(&RUNS)), (37_889_062_373_143_906, 1));
        assert!(matches!(fibonacci::invalidate(&cache, 80), Err(Error::WouldBlockRuntime(_))));
    });
}

#[test]
fn a_blocking_loader_runs_once_and_may_use_the_cache() {
    let clock = ManualClock::new();
    let cache = BlockingCache::build(builder(&clock).hot(ram())).unwrap();
    let load = |cache: &BlockingCache| {
        let inner = cache.clone();
        cache.get_or_load("outer", move || {
            let part = inner.get_or_load("part", || Ok::<_, Error>("part"))?;
            inner.set("seen", part.clone())?;
            Ok::<_, Error>([&part[..], b" and more"].concat())
        })
    };
    assert_eq!(load(&cache).unwrap(), "part and more");
    assert_eq!(cache.get("seen").unwrap(), Some("part".into()));
    cache.delete("part").unwrap();
    assert_eq!(load(&cache).unwrap(), "part and more");
    assert_eq!(cache.get("part").unwrap(), None);

    let options = LoadOptions::new().ttl(10 * SECOND).stale_if_error(60 * SECOND);
    let with = |fails: bool| {
        cache.get_or_load_with("k", &options, move |context| match fails {
            true => Err("it is down"),
            false => Ok(format!("after {:?}", context.present.map(|(value, _)| value))),
        })
    };
    assert_eq!(with(false).unwrap().value, "after None");
    let hit = with(true).unwrap();
    assert_eq!((hit.level, hit.is_stale()), (Some(Level::Hot), false));
    clock.advance(11 * SECOND);
    assert!(with(true).unwrap().is_stale());
    cache.delete("k").unwrap();
    let error = with(true).unwrap_err();
    assert!(matches!(&error, Error::Load { source } if source.to_string() == "it is down"), "{error}");
    let panics = cache.get_or_load("p", || -> Result<&str, Error> { panic!("as it does") });
    assert!(matches!(panics, Err(Error::Panicked { .. })));

    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let inside = runtime.block_on(async { cache.get_or_load("k", || Ok::<_, Error>("v")) });
    assert!(matches!(inside, Err(Error::WouldBlockRuntime("get_or_load"))));
}

#[tokio::test(start_paused = true)]
async fn of_two_processes_one_computes() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    static GATE: Semaphore = Semaphore::const_new(0);

    #[cached(cache(cache), name = "slow", lease = "10s", ttl = "1m")]
    async fn slow(cache: &CacheManager, number: u64) -> u64 {
        RUNS.fetch_add(1, SeqCst);
        GATE.acquire().await.unwrap().forget();
        number * 2
    }

    let store = MemoryTier::shared();
    let over = async |dry| builder(&ManualClock::new()).hot(ram()).dry(dry).build().await.unwrap();
    let (a, b) = (over(store.clone()).await, over(store.reopen()).await);
    let calls: Vec<_> = [&a, &b, &a, &b]
        .map(|cache| {
            let cache = cache.clone();
            tokio::spawn(async move { slow(&cache, 21).await })
        })
        .into();
    idle().await;
    GATE.add_permits(1);
    for call in calls {
        assert_eq!(call.await.unwrap(), 42);
    }
    assert_eq!(runs(&RUNS), 1);
}
