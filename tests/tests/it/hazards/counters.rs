//! H11: counters under faults, eviction and restart have the exact sum, or say "maybe".

use std::sync::Arc;
use std::time::Duration;

use tiercache_core::testing::{Fault, FaultTier, GateTier, ManualClock, MemoryTier, Op, Point, When};
use tiercache_core::{CacheManager, Error, Level};
use tiercache_tests::rig::{builder, idle, ram, ram_for};

async fn over(store: &Arc<MemoryTier>) -> (CacheManager, Arc<FaultTier>) {
    let faulty = Arc::new(FaultTier::new(store.clone()));
    (builder(&ManualClock::new()).hot(ram()).dry(faulty.clone()).build().await.unwrap(), faulty)
}

#[tokio::test]
async fn an_addition_that_may_have_been_made_says_so_and_is_not_made_again() {
    let store = MemoryTier::shared();
    let (cache, faulty) = over(&store).await;
    assert_eq!(cache.incr("n").await.unwrap(), 1);
    for (fault, made) in [(Fault::FailBefore, 0), (Fault::FailAfter, 1)] {
        let before = cache.counter("n").await.unwrap().unwrap();
        faulty.inject(Op::Add, When::Nth(1), fault);
        let told = cache.incr("n").await.unwrap_err();
        assert!(matches!(told, Error::Uncertain { op: "add", .. }), "{fault:?}: {told:?}");
        assert!(!told.is_retryable(), "a caller who repeats it may count twice");
        assert_eq!(cache.counter("n").await.unwrap(), Some(before + made), "{fault:?}");
    }
    assert_eq!(faulty.calls(Op::Add), 3, "each was asked for once");
}

#[tokio::test(start_paused = true)]
async fn an_addition_the_level_does_not_answer_may_have_been_made() {
    let store = MemoryTier::shared();
    let (cache, faulty) = over(&store).await;
    faulty.inject(Op::Add, When::Nth(1), Fault::Hang);
    let told = cache.incr("n").await.unwrap_err();
    assert!(matches!(told, Error::Uncertain { .. }), "{told:?}");
    assert_eq!(cache.counter("n").await.unwrap(), None);
}

#[tokio::test]
async fn what_the_breaker_kept_away_was_certainly_not_made() {
    let store = MemoryTier::shared();
    let (cache, faulty) = over(&store).await;
    faulty.inject(Op::Add, When::Always, Fault::FailBefore);
    for _ in 0..3 {
        assert!(matches!(cache.incr("n").await, Err(Error::Uncertain { .. })));
    }
    let calls = faulty.calls(Op::Add);
    let told = cache.incr("n").await.unwrap_err();
    assert!(matches!(told, Error::Unavailable { .. }), "{told:?}");
    assert_eq!(faulty.calls(Op::Add), calls, "it was not asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn additions_from_everywhere_make_the_exact_sum_after_restarts_and_evictions() {
    let store = MemoryTier::shared();
    let open = async || {
        let hot = ram_for(4, 20);
        builder(&ManualClock::new()).hot(hot).dry(store.reopen()).build().await.unwrap()
    };
    for restart in 1..=3 {
        let caches = [open().await, open().await];
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..8 {
            let cache = caches[task % 2].clone();
            tasks.spawn(async move {
                for n in 0..100 {
                    cache.incr("n").by(3).await.unwrap();
                    cache.decr("n").await.unwrap();
                    // Values come and go; counters are none.
                    cache.set(format!("{task} {n}"), "v").await.unwrap();
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        for cache in caches {
            assert_eq!(cache.counter("n").await.unwrap(), Some(restart * 1_600));
            cache.close(Duration::from_secs(5)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn counters_in_ram_are_not_evicted_and_have_a_bound() {
    let (clock, hot) = (ManualClock::new(), ram());
    let cache = builder(&clock).hot(hot.clone()).build().await.unwrap();
    assert_eq!(cache.counter_level().unwrap(), Level::Hot);
    cache.incr("kept").by(7).await.unwrap();
    for n in 0..1_000 {
        cache.set(format!("{n}"), vec![0; 64 << 10]).await.unwrap();
    }
    assert_eq!(cache.counter("kept").await.unwrap(), Some(7));
    let full = async {
        for n in 0..1_000_000 {
            if let Err(error) = cache.incr(format!("counter {n}")).ttl(Duration::from_secs(60)).await {
                return (n, error);
            }
        }
        panic!("there is no bound");
    };
    let (counters, error) = full.await;
    assert!(matches!(error, Error::Full { .. }) && counters > 1_000, "{counters} {error:?}");
    let usage = tiercache_core::Tier::usage(&*hot).await.unwrap();
    assert!(usage.bytes <= usage.capacity, "{usage:?}");
    assert_eq!(cache.counter("kept").await.unwrap(), Some(7));
    clock.advance(Duration::from_secs(61));
    assert_eq!(cache.incr("new").await.unwrap(), 1, "the dead made room");
}

#[tokio::test]
async fn a_counter_that_a_clearing_has_yet_to_reach_is_not_believed() {
    let store = MemoryTier::shared();
    let (cache, faulty) = over(&store).await;
    let other = cache.namespace("other").unwrap();
    cache.incr("n").by(5).await.unwrap();
    other.incr("n").by(5).await.unwrap();
    faulty.inject(Op::Clear, When::Always, Fault::FailBefore);
    assert!(!other.clear().await.unwrap().degraded.is_empty());
    for told in [other.incr("n").await.unwrap_err(), other.counter("n").await.unwrap_err()] {
        assert!(matches!(told, Error::Unavailable { .. }), "{told:?}");
    }
    assert_eq!(cache.incr("n").await.unwrap(), 6, "another namespace has nothing to do with it");
}

#[tokio::test]
async fn an_addition_under_way_when_its_caller_leaves_is_made() {
    let gate = Arc::new(GateTier::new(MemoryTier::shared()));
    let cache = builder(&ManualClock::new()).hot(ram()).dry(gate.clone()).build().await.unwrap();
    gate.close_gate(Point::Before(Op::Add));
    let caller = tokio::spawn({
        let cache = cache.clone();
        async move { cache.incr("n").await }
    });
    gate.held(Point::Before(Op::Add)).await;
    caller.abort();
    idle().await;
    gate.open_gate(Point::Before(Op::Add));
    idle().await;
    assert_eq!(cache.counter("n").await.unwrap(), Some(1));
}
