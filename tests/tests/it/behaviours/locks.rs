//! Locks: one holder at a time, whatever becomes of it.

use std::sync::Arc;
use std::time::Duration;

use tiercache_core::testing::{Fault, FaultTier, GateTier, ManualClock, MemoryTier, Op, Point, When};
use tiercache_core::{CacheManager, Error, Tier};
use tiercache_tests::rig::{builder, idle, ram};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

async fn over(dry: Arc<dyn Tier>) -> CacheManager {
    builder(&ManualClock::new()).hot(ram()).dry(dry).build().await.unwrap()
}

// 58
#[tokio::test(start_paused = true)]
async fn a_lock_that_expired_is_reported_lost_and_its_next_holder_keeps_it() {
    let store = MemoryTier::shared();
    let gate = Arc::new(GateTier::new(store.clone()));
    let (a, b) = (over(gate.clone()).await, over(store.reopen()).await);
    let held = a.lock("n", SECOND).await.unwrap();
    assert!(!held.is_lost());
    // A's renewals do not get through any more.
    gate.close_gate(Point::Before(Op::Renew));
    let next = b.lock("n", SECOND).await.unwrap();
    assert!(held.is_lost());
    held.lost().await;
    assert!(next.token() > held.token());
    gate.open_gate(Point::Before(Op::Renew));
    assert!(!held.release().await.unwrap(), "lost");
    assert!(!next.is_lost());
    assert!(a.try_lock("n", SECOND).await.unwrap().is_none(), "B still has it");
    assert!(next.release().await.unwrap());
}

// 58
#[tokio::test(start_paused = true)]
async fn a_lock_whose_holder_died_becomes_free_when_it_expires() {
    let store = MemoryTier::shared();
    let gate = Arc::new(GateTier::new(store.clone()));
    let (dying, other) = (over(gate.clone()).await, over(store.reopen()).await);
    let held = dying.lock("n", 10 * SECOND).await.unwrap();
    // A process that is dead neither renews nor releases.
    gate.close_gate(Point::Before(Op::Renew));
    gate.close_gate(Point::Before(Op::Release));
    let token = held.token();
    drop(held);
    let began = Instant::now();
    assert!(other.try_lock("n", SECOND).await.unwrap().is_none());
    let next = other.lock("n", SECOND).await.unwrap();
    assert!(next.token() > token);
    assert!(began.elapsed() >= 9 * SECOND && began.elapsed() < 11 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_renewed_for_as_long_as_it_is_held() {
    let store = MemoryTier::shared();
    let (a, b) = (over(store.clone()).await, over(store.reopen()).await);
    let held = a.lock("n", SECOND).await.unwrap();
    let waiting = tokio::spawn({
        let b = b.clone();
        async move { b.lock("n", SECOND).await.unwrap().token() }
    });
    tokio::time::sleep(600 * SECOND).await;
    assert!(!held.is_lost() && !waiting.is_finished());
    let token = held.token();
    drop(held);
    assert!(waiting.await.unwrap() > token);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_for_a_moment_costs_no_lock_and_for_longer_every_lock() {
    let store = MemoryTier::shared();
    let faulty = Arc::new(FaultTier::new(store.clone()));
    let cache = over(faulty.clone()).await;
    let held = cache.lock("n", 9 * SECOND).await.unwrap();
    faulty.inject(Op::Renew, When::Nth(1), Fault::FailBefore);
    tokio::time::sleep(20 * SECOND).await;
    assert!(!held.is_lost(), "it was tried again");
    let since = Instant::now();
    faulty.inject(Op::Renew, When::Always, Fault::FailBefore);
    held.lost().await;
    assert!(since.elapsed() <= 9 * SECOND, "told by the time another may have it");
    faulty.heal();
    assert!(!held.release().await.unwrap_or(false));
}

#[tokio::test(start_paused = true)]
async fn tasks_of_one_process_take_turns_and_ask_the_store_one_at_a_time() {
    let faulty = Arc::new(FaultTier::new(MemoryTier::shared()));
    let cache = over(faulty.clone()).await;
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..50 {
        let (cache, order) = (cache.clone(), order.clone());
        tasks.spawn(async move {
            let guard = cache.lock("n", SECOND).await.unwrap();
            order.lock().unwrap().push((n, guard.token()));
            tokio::time::sleep(SECOND / 100).await;
            assert!(guard.release().await.unwrap());
        });
        idle().await;
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let order = order.lock().unwrap();
    assert!(order.windows(2).all(|pair| pair[0] < pair[1]), "in the order they came: {order:?}");
    assert_eq!(faulty.calls(Op::Acquire), 50);
}

#[tokio::test(start_paused = true)]
async fn waiting_has_a_limit_when_one_is_given() {
    let cache = over(MemoryTier::shared()).await;
    let held = cache.lock("n", SECOND).await.unwrap();
    let began = Instant::now();
    let told = cache.lock("n", SECOND).wait(5 * SECOND).await.unwrap_err();
    assert!(matches!(told, Error::TimedOut { op: "lock", .. }), "{told:?}");
    assert_eq!(began.elapsed(), 5 * SECOND);
    assert!(!held.is_lost());
    for odd in [Duration::ZERO, Duration::from_secs(90_000)] {
        assert!(matches!(cache.lock("m", odd).await, Err(Error::InvalidOption { option: "expiry", .. })));
    }
}

#[tokio::test(start_paused = true)]
async fn names_and_namespaces_are_locks_of_their_own() {
    let cache = over(MemoryTier::shared()).await;
    let tenant = cache.namespace("tenant").unwrap();
    let _held = [
        cache.try_lock("a", SECOND).await.unwrap().unwrap(),
        cache.try_lock("b", SECOND).await.unwrap().unwrap(),
        tenant.try_lock("a", SECOND).await.unwrap().unwrap(),
    ];
    assert!(tenant.try_lock("a", SECOND).await.unwrap().is_none());
    cache.clear().await.unwrap();
    assert!(cache.try_lock("a", SECOND).await.unwrap().is_none(), "a lock is no entry");
}

#[tokio::test(start_paused = true)]
async fn without_a_shared_store_locks_are_among_the_tasks_of_the_process() {
    let cache = builder(&ManualClock::new()).hot(ram()).build().await.unwrap();
    assert_eq!(cache.locks_in(), "process");
    let held = cache.lock("n", SECOND).await.unwrap();
    assert!(cache.try_lock("n", SECOND).await.unwrap().is_none());
    tokio::time::sleep(60 * SECOND).await;
    assert!(held.release().await.unwrap());
    assert!(cache.lock("n", SECOND).await.unwrap().token() > 0);
    assert_eq!(over(MemoryTier::shared()).await.locks_in(), "memory");
}

#[tokio::test(start_paused = true)]
async fn closing_the_cache_gives_its_locks_back() {
    let store = MemoryTier::shared();
    let (a, b) = (over(store.clone()).await, over(store.reopen()).await);
    let held = a.lock("n", 3_600 * SECOND).await.unwrap();
    a.close(5 * SECOND).await.unwrap();
    assert!(held.is_lost());
    let next = b.try_lock("n", SECOND).await.unwrap().unwrap();
    assert!(next.token() > held.token());
    assert!(!held.release().await.unwrap());
    assert!(matches!(a.lock("n", SECOND).await, Err(Error::Closed)));
}
