//! One load among several processes that share a level.

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use tiercache_core::testing::{Fault, FaultTier, GateTier, Hooked, ManualClock, MemoryTier, Op, Point, When};
use tiercache_core::{CacheManager, Eager, Error, Level, LoadOptions, Tier, Write};
use tiercache_tests::doubles::{RuntimeClock, Yielding, poll_at_most};
use tiercache_tests::rig::{builder, get, id, idle, ram};
use tokio::time::Instant;

use super::{Origin, origin_error};

const TERM: Duration = Duration::from_secs(10);

async fn over(dry: Arc<dyn Tier>) -> CacheManager {
    builder(&ManualClock::new()).hot(ram()).dry(dry).build().await.unwrap()
}

/// A process whose clock goes with the runtime's.
async fn going(dry: Arc<dyn Tier>) -> CacheManager {
    let rules = tiercache_core::Rules::default();
    let builder = CacheManager::builder().clock(RuntimeClock::start()).rules(rules).manual();
    builder.hot(ram()).dry(dry).build().await.unwrap()
}

fn options() -> LoadOptions {
    LoadOptions::new().lease(TERM)
}

fn spawn(
    cache: &CacheManager,
    origin: &Arc<Origin>,
    options: LoadOptions,
) -> tokio::task::JoinHandle<Result<String, Error>> {
    let (cache, load) = (cache.clone(), origin.load());
    tokio::spawn(async move {
        let loaded = cache.get_or_load("k", load).options(&options).await;
        loaded.map(|value| String::from_utf8(value.to_vec()).unwrap())
    })
}

#[tokio::test(start_paused = true)]
async fn of_three_processes_one_loads_and_the_others_have_its_value() {
    let store = MemoryTier::shared();
    let processes = [over(store.clone()).await, over(store.reopen()).await, over(store.reopen()).await];
    let origin = Origin::new("v");
    origin.hold();
    let mut callers: Vec<_> = Vec::new();
    for process in &processes {
        callers.extend((0..5).map(|_| spawn(process, &origin, options())));
    }
    origin.begun().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(origin.loads(), 1, "the others wait");
    origin.release();
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap(), "v");
    }
    assert_eq!(origin.loads(), 1);
    idle().await;
    let mut elsewhere = 0;
    for process in &processes {
        let stats = process.stats().await.unwrap();
        assert_eq!((stats.in_flight, stats.loads_unleased), (0, 0));
        elsewhere += stats.loads_elsewhere;
        assert_eq!(get(process, "k").await.unwrap(), "v");
    }
    assert_eq!(elsewhere, 2);
}

#[tokio::test]
async fn in_every_mode_of_writing_the_shared_level_has_what_was_loaded() {
    for write in [Write::Back, Write::Behind, Write::Through] {
        let store = MemoryTier::shared();
        let cache =
            builder(&ManualClock::new()).hot(ram()).dry(store.clone()).write(write).build().await.unwrap();
        let origin = Origin::new("v");
        assert_eq!(spawn(&cache, &origin, options()).await.unwrap().unwrap(), "v");
        idle().await;
        assert_eq!(store.get(&id("k")).await.unwrap().unwrap().value, "v", "{write:?}");
        let entry = cache.entry("k").await.unwrap().unwrap();
        assert_eq!(entry.level, Level::Hot, "a copy went down");
        cache.settle().await.unwrap();
        assert_eq!(cache.stats().await.unwrap().pending, (0, 0));
        cache.delete("k").await.unwrap();
        assert!(store.get(&id("k")).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn who_gets_the_lease_looks_below_before_it_loads() {
    let store = MemoryTier::shared();
    let gate = Arc::new(GateTier::new(store.clone()));
    let (late, early) = (over(gate.clone()).await, over(store.reopen()).await);
    let origin = Origin::new("v");
    gate.close_gate(Point::Before(Op::Acquire));
    let caller = spawn(&late, &origin, options());
    gate.held(Point::Before(Op::Acquire)).await;
    // It has found nothing, and before it has the lease another process is done.
    assert_eq!(spawn(&early, &origin, options()).await.unwrap().unwrap(), "v");
    idle().await;
    gate.open_gate(Point::Before(Op::Acquire));
    assert_eq!(caller.await.unwrap().unwrap(), "v");
    assert_eq!(origin.loads(), 1);
    assert_eq!(late.stats().await.unwrap().loads_elsewhere, 1);
}

#[tokio::test(start_paused = true)]
async fn when_the_holder_dies_another_loads_after_its_term() {
    let store = MemoryTier::shared();
    let (dying, other) = (over(store.clone()).await, over(store.reopen()).await);
    let (never, origin) = (Origin::new("never"), Origin::new("v"));
    never.hold();
    let began = Instant::now();
    let doomed = spawn(&dying, &never, options());
    never.begun().await;
    // Dead: it neither stores nor gives the lease back.
    store.close().await.unwrap();
    let caller = spawn(&other, &origin, options());
    assert_eq!(caller.await.unwrap().unwrap(), "v");
    let waited = began.elapsed();
    assert!(waited >= TERM && waited < TERM + Duration::from_secs(1), "{waited:?}");
    doomed.abort();
}

#[tokio::test(start_paused = true)]
async fn when_the_holders_load_fails_the_next_loads_at_once() {
    let store = MemoryTier::shared();
    let (a, b) = (over(store.clone()).await, over(store.reopen()).await);
    let (bad, good) = (Origin::new("never"), Origin::new("v"));
    bad.fails();
    bad.hold();
    let failing = spawn(&a, &bad, options());
    bad.begun().await;
    let began = Instant::now();
    let next = spawn(&b, &good, options());
    idle().await;
    bad.release();
    assert_eq!(origin_error(&failing.await.unwrap().unwrap_err()).unwrap(), "the origin is down");
    assert_eq!(next.await.unwrap().unwrap(), "v");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_store_of_leases_that_is_down_leaves_each_process_to_itself() {
    let store = MemoryTier::shared();
    let faulty = Arc::new(FaultTier::new(store.clone()));
    let cache = over(faulty.clone()).await;
    faulty.inject(Op::Acquire, When::Always, Fault::FailBefore);
    let origin = Origin::new("v");
    let callers: Vec<_> = (0..10).map(|_| spawn(&cache, &origin, options())).collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap(), "v");
    }
    assert_eq!(origin.loads(), 1, "one at a time in this process");
    let stats = cache.stats().await.unwrap();
    assert_eq!((stats.loads, stats.loads_unleased, stats.load_failures), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_store_of_leases_that_hangs_costs_a_second_once() {
    let store = MemoryTier::shared();
    let gate = Arc::new(GateTier::new(store.clone()));
    let cache = over(gate.clone()).await;
    gate.close_gate(Point::Before(Op::Acquire));
    let origin = Origin::new("v");
    let began = Instant::now();
    for key in ["a", "b", "c", "d"] {
        cache.get_or_load(key, origin.load()).options(&options()).await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_millis(1_500), "{:?}", began.elapsed());
    assert_eq!((origin.loads(), cache.stats().await.unwrap().loads_unleased), (4, 4));
}

#[tokio::test(start_paused = true)]
async fn a_caller_waits_no_longer_than_its_hard_time_out_and_the_others_go_on() {
    let store = MemoryTier::shared();
    let (a, b) = (over(store.clone()).await, over(store.reopen()).await);
    let origin = Origin::new("v");
    origin.hold();
    let holder = spawn(&a, &origin, options());
    origin.begun().await;
    let hasty = spawn(&b, &origin, options().hard_timeout(Duration::from_millis(300)));
    let patient = spawn(&b, &origin, options());
    let began = Instant::now();
    let error = hasty.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::TimedOut { op: "load", .. }), "{error:?}");
    assert!(began.elapsed() < Duration::from_millis(400));
    origin.release();
    assert_eq!(holder.await.unwrap().unwrap(), "v");
    assert_eq!(patient.await.unwrap().unwrap(), "v");
    assert_eq!(origin.loads(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_invalidation_elsewhere_keeps_a_leased_load_from_being_stored() {
    let store = MemoryTier::shared();
    let (a, b) = (over(store.clone()).await, over(store.reopen()).await);
    let (old, new) = (Origin::new("old"), Origin::new("new"));
    old.hold();
    let loading = spawn(&a, &old, options());
    old.begun().await;
    b.set("k", "set").await.unwrap();
    old.release();
    assert_eq!(loading.await.unwrap().unwrap(), "old", "whoever waited has it");
    idle().await;
    assert!(store.get(&id("k")).await.unwrap().is_none_or(|entry| entry.value != "old"));
    b.delete("k").await.unwrap();
    assert_eq!(spawn(&b, &new, options()).await.unwrap().unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn a_delete_while_the_copy_for_the_others_is_written_leaves_none() {
    let store = MemoryTier::shared();
    for point in [Point::Before(Op::Put), Point::After(Op::Put)] {
        let gate = Arc::new(GateTier::new(store.reopen()));
        let cache = over(gate.clone()).await;
        let origin = Origin::new("v");
        gate.close_gate(point);
        assert_eq!(spawn(&cache, &origin, options()).await.unwrap().unwrap(), "v", "nobody waits for it");
        gate.held(point).await;
        let removing = tokio::spawn({
            let cache = cache.clone();
            async move { cache.delete("k").await.unwrap() }
        });
        idle().await;
        gate.open_gate(point);
        assert!(removing.await.unwrap().degraded.is_empty());
        idle().await;
        assert!(store.get(&id("k")).await.unwrap().is_none(), "{point:?}");
        assert_eq!(get(&cache, "k").await, None);
        assert_eq!(cache.stats().await.unwrap().in_flight, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_another_process_makes_is_left_to_it_and_its_value_is_taken_over() {
    let store = MemoryTier::shared();
    let (a, b) = (going(store.clone()).await, going(store.reopen()).await);
    let origin = Origin::new("1");
    let options = options().ttl(Duration::from_secs(100)).eager(Eager::After(0.5));
    for process in [&a, &b] {
        assert_eq!(spawn(process, &origin, options.clone()).await.unwrap().unwrap(), "1");
        idle().await;
    }
    assert_eq!(origin.loads(), 1);
    tokio::time::advance(Duration::from_secs(60)).await;
    origin.begun().await;
    origin.says("2");
    origin.hold();
    assert_eq!(spawn(&a, &origin, options.clone()).await.unwrap().unwrap(), "1");
    origin.begun().await;
    for _ in 0..5 {
        assert_eq!(spawn(&b, &origin, options.clone()).await.unwrap().unwrap(), "1", "nobody waits");
        idle().await;
    }
    assert_eq!(origin.loads(), 2, "one refreshes");
    assert_eq!(b.stats().await.unwrap().refreshes, 0);
    origin.release();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(get(&a, "k").await.unwrap(), "2");
    // Due still: it has the lease now, and finds that there is nothing left to do.
    assert_eq!(spawn(&b, &origin, options.clone()).await.unwrap().unwrap(), "1");
    idle().await;
    assert_eq!(get(&b, "k").await.unwrap(), "2");
    assert_eq!((origin.loads(), b.stats().await.unwrap().loads_elsewhere), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_stale_answers_at_once_while_another_process_loads() {
    let store = MemoryTier::shared();
    let (a, b) = (going(store.clone()).await, going(store.reopen()).await);
    let origin = Origin::new("1");
    let options = options().ttl(Duration::from_secs(10)).stale_while_revalidate(Duration::from_secs(1_000));
    for process in [&a, &b] {
        assert_eq!(spawn(process, &origin, options.clone()).await.unwrap().unwrap(), "1");
        idle().await;
    }
    origin.begun().await;
    tokio::time::advance(Duration::from_secs(20)).await;
    origin.says("2");
    origin.hold();
    assert_eq!(spawn(&a, &origin, options.clone()).await.unwrap().unwrap(), "1");
    origin.begun().await;
    let began = Instant::now();
    for _ in 0..3 {
        assert_eq!(spawn(&b, &origin, options.clone()).await.unwrap().unwrap(), "1");
        idle().await;
    }
    assert!(began.elapsed() < Duration::from_millis(10));
    assert_eq!(origin.loads(), 2);
    origin.release();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(get(&b, "k").await.unwrap(), "2", "below it is fresh");
}

#[tokio::test]
async fn without_a_shared_level_or_a_lease_each_process_loads() {
    let origin = Origin::new("v");
    let local = over(MemoryTier::persistent()).await;
    assert_eq!(spawn(&local, &origin, options()).await.unwrap().unwrap(), "v");
    let store = MemoryTier::shared();
    let gate = Arc::new(GateTier::new(store.clone()));
    gate.close_gate(Point::Before(Op::Acquire));
    let plain = over(gate.clone()).await;
    assert_eq!(spawn(&plain, &origin, LoadOptions::new()).await.unwrap().unwrap(), "v");
    // What other processes never see needs no lease of theirs.
    let pinned = options().pin(Level::Hot);
    let loaded = plain.get_or_load("hot", origin.load()).options(&pinned).await;
    assert_eq!(loaded.unwrap(), "v");
    let clock = ManualClock::new();
    let by_default = builder(&clock).hot(ram()).dry(gate.clone()).load_lease(TERM).build().await.unwrap();
    let without = LoadOptions::new().no_lease();
    let loaded = by_default.get_or_load("plain", origin.load()).options(&without).await;
    assert_eq!(loaded.unwrap(), "v");
    let waits = tokio::spawn({
        let (cache, load) = (by_default.clone(), origin.load());
        async move { cache.get_or_load("leased", load).await.unwrap() }
    });
    gate.held(Point::Before(Op::Acquire)).await;
    gate.open_gate(Point::Before(Op::Acquire));
    assert_eq!(waits.await.unwrap(), "v");
    for process in [&local, &plain, &by_default] {
        assert_eq!(process.stats().await.unwrap().loads_unleased, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_closes_while_it_waits_for_a_lease_ends_its_callers() {
    let store = MemoryTier::shared();
    let (a, b) = (over(store.clone()).await, over(store.reopen()).await);
    let origin = Origin::new("v");
    origin.hold();
    let holder = spawn(&a, &origin, options());
    origin.begun().await;
    let waiting = spawn(&b, &origin, options());
    idle().await;
    b.close(Duration::from_secs(1)).await.unwrap();
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Closed), "{error:?}");
    origin.release();
    assert_eq!(holder.await.unwrap().unwrap(), "v");
    assert_eq!(origin.loads(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_dropped_at_any_poll_leaves_no_lease_behind() {
    for polls in 1.. {
        let store = MemoryTier::shared();
        let slow = Hooked::opaque(store.clone(), Yielding);
        let (cache, other) = (over(slow).await, over(store.reopen()).await);
        let origin = Origin::new("v");
        let load = cache.get_or_load("k", origin.load()).lease(TERM);
        let done = poll_at_most(load.into_future(), polls).await;
        idle().await;
        let began = Instant::now();
        assert_eq!(spawn(&other, &origin, options()).await.unwrap().unwrap(), "v");
        assert!(began.elapsed() < Duration::from_secs(1), "{polls}: {:?}", began.elapsed());
        assert_eq!(origin.loads(), 1, "{polls}: what was begun goes on");
        for cache in [&cache, &other] {
            assert_eq!(cache.stats().await.unwrap().in_flight, 0, "{polls}");
        }
        if done.is_some() {
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_terms_and_shares_says_which() {
    let cache = over(MemoryTier::shared()).await;
    let origin = Origin::new("v");
    let error = cache.get_or_load("k", origin.load()).lease(Duration::ZERO).await.unwrap_err();
    assert!(matches!(error, Error::InvalidOption { option: "lease", .. }), "{error:?}");
    for (refused, says) in [
        (builder(&ManualClock::new()).hot(ram()).load_lease(Duration::from_secs(90_000)), "lease"),
        (builder(&ManualClock::new()).hot(ram()).load_jitter(1.5), "jitter"),
        (builder(&ManualClock::new()).hot(ram()).max_loads(0), "max_loads"),
    ] {
        let error = refused.build().await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
