//! What the level does when its server fails. Each case: no panic, no wrong value, no wait beyond the timeouts, and all is well afterwards.

use std::time::{Duration, Instant};

use crate::common::{HOLD, T0, config, entry, get, hear, key, open, put, remove};
use tiercache_core::tier::{Always, Counting, Put};
use tiercache_core::{Error, Generation, Result, Tier, Timestamp};
use tiercache_memcached::{MemcachedConfig, MemcachedTier};
use tiercache_services::{Fault, Memcached, Proxy};

/// More than a call may take with the timeouts of these tests: a connection that is tried, one that is made, its answer.
const BUDGET: Duration = Duration::from_millis(1_600);

async fn in_time<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    let start = Instant::now();
    let answer = call.await;
    assert!(start.elapsed() < BUDGET, "{:?}", start.elapsed());
    answer
}

/// Every call fails as one that may work later, and in time.
async fn is_down(tier: &MemcachedTier) {
    let (k, generation) = (key("k"), Generation::new(1_000_000));
    let errors = [
        in_time(tier.get(&k)).await.map(drop),
        in_time(tier.put(&k, &entry(1_000_000, "lost"), HOLD, &Always)).await.map(drop),
        in_time(tier.remove(&k, generation)).await.map(drop),
        in_time(tier.clear(Some("other"), generation)).await,
        in_time(tier.usage()).await.map(drop),
        in_time(tier.add(&k, 1, 0, Timestamp::NEVER, T0)).await.map(drop),
    ];
    for error in errors {
        let error = error.expect_err("the server is down");
        assert!(error.is_retryable(), "{error}");
    }
}

async fn is_well(tier: &MemcachedTier, generation: u64) {
    assert_eq!(put(tier, "well", generation, "and").await, Put::Stored);
    assert_eq!(get(tier, "well").await, Some(entry(generation, "and")));
    assert!(remove(tier, "well", generation + 1).await.is_done());
    assert_eq!(get(tier, "well").await, None);
}

#[tokio::test]
async fn a_server_that_was_killed_comes_back_empty() {
    let Some(server) = Memcached::own() else { return };
    let tier = open(&[server.address()]).await;
    put(&tier, "k", 1, "value").await;
    server.kill();
    is_down(&tier).await;
    server.restart();
    assert_eq!(get(&tier, "k").await, None);
    is_well(&tier, 2_000_000).await;
}

#[tokio::test]
async fn a_server_that_stands_still_costs_the_timeout_and_confuses_nothing() {
    let Some(server) = Memcached::own() else { return };
    let tier = open(&[server.address()]).await;
    put(&tier, "k", 1, "value").await;
    put(&tier, "other", 1, "other").await;
    server.pause();
    let errors = [
        in_time(tier.get(&key("k"))).await.unwrap_err(),
        in_time(tier.put(&key("k"), &entry(2, "late"), HOLD, &Always)).await.unwrap_err(),
        in_time(tier.remove(&key("other"), Generation::new(1))).await.unwrap_err(),
    ];
    assert!(errors.iter().all(|error| matches!(error, Error::TimedOut { .. })), "{errors:?}");
    server.resume();
    assert_eq!(get(&tier, "other").await, Some(entry(1, "other")), "its own answer, not an earlier one");
    let found = get(&tier, "k").await.unwrap();
    assert!(found == entry(1, "value") || found == entry(2, "late"));
    is_well(&tier, 3).await;
}

#[tokio::test]
async fn refused_and_reset_connections_are_errors_until_they_work() {
    let Some(server) = Memcached::own() else { return };
    let proxy = Proxy::to(server.address());
    let tier = open(&[&proxy.address()]).await;
    put(&tier, "k", 1, "value").await;
    for fault in [Fault::Refuse, Fault::Reset, Fault::CutAfter(1), Fault::CutRequestAfter(4)] {
        proxy.set(fault);
        assert!(in_time(tier.get(&key("k"))).await.is_err(), "{fault:?}");
        proxy.set(Fault::Pass);
        assert_eq!(get(&tier, "k").await, Some(entry(1, "value")), "{fault:?}");
    }
    for (generation, fault) in
        (10..).step_by(10).zip([Fault::Reset, Fault::CutAfter(30), Fault::CutRequestAfter(90)])
    {
        put(&tier, "k", generation, "before").await;
        proxy.set(fault);
        let cut = in_time(tier.put(&key("k"), &entry(generation + 1, "after"), HOLD, &Always)).await;
        proxy.set(Fault::Pass);
        let found = get(&tier, "k").await.unwrap();
        let (before, after) = (entry(generation, "before"), entry(generation + 1, "after"));
        assert!(found == after || (found == before && cut.is_err()), "{fault:?}: {cut:?}, {found:?}");
        let removed = tier.remove(&key("k"), Generation::new(generation + 2)).await.unwrap();
        assert!(removed.is_done());
        assert_eq!(get(&tier, "k").await, None);
    }
    is_well(&tier, 100).await;
}

#[tokio::test]
async fn a_delay_is_waited_for_or_given_up() {
    let Some(server) = Memcached::own() else { return };
    let proxy = Proxy::to(server.address());
    let tier = open(&[&proxy.address()]).await;
    put(&tier, "k", 1, "value").await;
    proxy.set(Fault::Delay(Duration::from_millis(50)));
    assert_eq!(get(&tier, "k").await, Some(entry(1, "value")));
    proxy.set(Fault::Delay(Duration::from_millis(500)));
    let late = in_time(tier.get(&key("k"))).await;
    assert!(matches!(late, Err(Error::TimedOut { .. })), "{late:?}");
    proxy.set(Fault::Pass);
    is_well(&tier, 2).await;
}

#[tokio::test]
async fn one_byte_at_a_time_changes_nothing() {
    let Some(server) = Memcached::own() else { return };
    let proxy = Proxy::to(server.address());
    let tier = open(&[&proxy.address()]).await;
    proxy.set(Fault::OneByte);
    let long = entry(1, (0..9_000_u32).map(|at| at as u8).collect::<Vec<u8>>());
    assert_eq!(tier.put(&key("k"), &long, HOLD, &Always).await.unwrap(), Put::Stored);
    assert_eq!(get(&tier, "k").await, Some(long));
    assert_eq!(tier.add(&key("n"), 5, 0, Timestamp::NEVER, T0).await.unwrap(), 5);
    is_well(&tier, 2).await;
}

#[tokio::test]
async fn a_bit_that_is_turned_on_the_way_never_makes_a_wrong_value() {
    let Some(server) = Memcached::own() else { return };
    let proxy = Proxy::to(server.address());
    let config = MemcachedConfig { timeout: Duration::from_millis(60), ..config(&[&proxy.address()]) };
    let tier = MemcachedTier::open(config, "cold").await.unwrap();
    for at in 0..70 {
        let generation = 1_000 + at as u64;
        proxy.set(Fault::Pass);
        put(&tier, "k", generation, "value").await;
        proxy.set(Fault::Corrupt(at));
        for _ in 0..2 {
            match in_time(tier.get(&key("k"))).await {
                Ok(found) => {
                    assert!(found.is_none_or(|found| found == entry(generation, "value")), "byte {at}")
                }
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
        }
    }
    proxy.set(Fault::Pass);
    is_well(&tier, 10_000).await;
}

#[tokio::test]
async fn a_call_that_is_dropped_half_way_leaves_no_answer_behind() {
    let Some(server) = Memcached::own() else { return };
    let proxy = Proxy::to(server.address());
    let config = MemcachedConfig { connections: 1, ..config(&[&proxy.address()]) };
    let tier = MemcachedTier::open(config, "cold").await.unwrap();
    put(&tier, "a", 1, "a").await;
    put(&tier, "b", 1, "b").await;
    for round in 0..5 {
        let connections = proxy.connections();
        proxy.set(Fault::Delay(Duration::from_millis(30)));
        let dropped = tokio::time::timeout(Duration::from_millis(10), tier.get(&key("a"))).await;
        assert!(dropped.is_err());
        proxy.set(Fault::Pass);
        assert_eq!(get(&tier, "b").await, Some(entry(1, "b")));
        assert!(proxy.connections() > connections, "round {round}: the connection was used again");
    }
}

#[tokio::test]
async fn a_full_server_says_so() {
    let Some(server) = Memcached::start_with(&["-m", "2", "-M"]) else { return };
    let tier = open(&[server.address()]).await;
    let mut full = false;
    for number in 0..200 {
        let entry = entry(1, vec![7; 30_000]);
        match tier.put(&key(&number.to_string()), &entry, HOLD, &Always).await.unwrap() {
            Put::Stored => assert_eq!(get(&tier, &number.to_string()).await, Some(entry)),
            answer => {
                assert_eq!(answer, Put::Full);
                full = true;
                break;
            }
        }
    }
    assert!(full);
}

#[tokio::test]
async fn a_server_that_drops_silently_never_answers_with_what_was_replaced() {
    let Some(server) = Memcached::start_with(&["-m", "2"]) else { return };
    let tier = open(&[server.address()]).await;
    let mut misses = 0;
    for round in 1..=3 {
        for number in 0..150 {
            let stored = entry(round, [vec![round as u8; 30_000], vec![number as u8]].concat());
            let put = tier.put(&key(&number.to_string()), &stored, HOLD, &Always).await.unwrap();
            assert!(matches!(put, Put::Stored | Put::Full), "{put:?}");
        }
        for number in 0..150_u8 {
            let Some(found) = get(&tier, &number.to_string()).await else {
                misses += 1;
                continue;
            };
            assert_eq!((found.generation.get(), found.value.last()), (round, Some(&number)));
        }
    }
    assert!(misses > 0, "it had to drop some");
    assert!(tier.usage().await.unwrap().evicted > 0);
}

#[tokio::test]
async fn a_wiped_server_is_begun_anew() {
    let Some(server) = Memcached::own() else { return };
    let (a, b) = (open(&[server.address()]).await, open(&[server.address()]).await);
    put(&a, "k", 70_000, "value").await;
    server.wipe();
    assert_eq!(get(&a, "k").await, None);
    hear(&a, 70_001).await;
    hear(&b, 70_002).await;
    is_well(&a, 70_003).await;
    put(&a, "k", 70_010, "new").await;
    assert_eq!(get(&b, "k").await, Some(entry(70_010, "new")));
}
