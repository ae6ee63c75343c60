//! A server or a network that fails: no wrong value, no endless wait, and use within seconds of its return.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::{T0, config, entry, key, open, put, value, within};
use tiercache_core::tier::{Counting, Put};
use tiercache_core::tracking::{Event, Query, Totals, What};
use tiercache_core::{Address, Error, Level, Tier, Timestamp, Tracking};
use tiercache_redis::{RedisConfig, RedisTier, RedisTracking, RedisTrackingConfig};
use tiercache_services::{Fault, Proxy, Redis};

/// A server that is back is used by then.
const BACK: Duration = Duration::from_secs(5);

fn through(proxy: &Proxy) -> RedisConfig {
    RedisConfig {
        connect_timeout: Duration::from_millis(300),
        response_timeout: Duration::from_millis(300),
        ..config(&format!("redis://{}", proxy.address()))
    }
}

async fn opened(proxy: &Proxy) -> Arc<RedisTier> {
    Arc::new(RedisTier::open(through(proxy), Level::Cold).await.expect("opens"))
}

/// Every call ends in time, whatever it says, and no value is one that was not put.
async fn holds(tier: &dyn Tier, round: u64) {
    let started = Instant::now();
    let _ = put(tier, "k", round, &format!("value {round}")).await;
    if let Ok(Some(found)) = tier.get(&key("k")).await {
        assert_eq!(found.value, format!("value {}", found.generation.get()).into_bytes());
    }
    if let Ok(Some(found)) = tier.get(&key("standing")).await {
        assert_eq!(found, entry(1, "standing"));
    }
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
}

async fn works_again(tier: &dyn Tier, round: u64) {
    within(BACK, "the way back", async || {
        let stored = put(tier, "k", round, &format!("value {round}")).await;
        matches!(stored, Ok(Put::Stored | Put::Unchanged))
    })
    .await;
    assert_eq!(value(tier, "k").await, Some(format!("value {round}")));
}

#[tokio::test]
async fn every_fault_of_the_network_passes() {
    let Some(server) = Redis::own() else { return };
    let proxy = Proxy::to(server.address());
    let tier = opened(&proxy).await;
    put(&*tier, "standing", 1, "standing").await.unwrap();
    let mut round = 1;
    for fault in [
        Fault::Refuse,
        Fault::Hang,
        Fault::Reset,
        Fault::OneByte,
        Fault::Delay(Duration::from_millis(500)),
        Fault::CutAfter(0),
        Fault::CutAfter(3),
        Fault::CutAfter(70),
        Fault::CutRequestAfter(10),
        Fault::CutRequestAfter(150),
    ] {
        proxy.set(fault);
        for _ in 0..3 {
            round += 1;
            holds(&*tier, round).await;
        }
        proxy.set(Fault::Pass);
        round += 1;
        works_again(&*tier, round).await;
    }
}

#[tokio::test]
async fn a_bit_that_turns_in_an_answer_makes_no_wrong_value() {
    let Some(server) = Redis::own() else { return };
    let proxy = Proxy::to(server.address());
    let tier = opened(&proxy).await;
    put(&*tier, "standing", 1, "standing").await.unwrap();
    let mut round = 1;
    for at in 0..150 {
        proxy.set(Fault::Corrupt(at));
        round += 1;
        holds(&*tier, round).await;
    }
    proxy.set(Fault::Pass);
    works_again(&*tier, round + 1).await;
}

#[tokio::test]
async fn a_slow_answer_is_no_failure() {
    let Some(server) = Redis::own() else { return };
    let proxy = Proxy::to(server.address());
    let slow = RedisConfig { response_timeout: Duration::from_secs(2), ..through(&proxy) };
    let tier = RedisTier::open(slow, Level::Cold).await.unwrap();
    put(&tier, "k", 1, "value").await.unwrap();
    for fault in [Fault::Delay(Duration::from_millis(500)), Fault::OneByte] {
        proxy.set(fault);
        assert_eq!(value(&tier, "k").await.as_deref(), Some("value"), "{fault:?}");
    }
}

#[tokio::test]
async fn a_server_that_dies_and_returns_empty_is_used_and_answers_nothing_old() {
    let Some(server) = Redis::own() else { return };
    let tier = open(&server.url()).await;
    put(&*tier, "k", 5, "value").await.unwrap();
    server.kill();
    let started = Instant::now();
    assert!(matches!(tier.get(&key("k")).await, Err(Error::Unavailable { .. })));
    assert!(put(&*tier, "k", 6, "next").await.is_err());
    assert!(started.elapsed() < Duration::from_millis(500), "a closed port is known at once");
    server.restart();
    within(BACK, "the way back", async || tier.get(&key("k")).await.is_ok()).await;
    assert_eq!(value(&*tier, "k").await, None);
    assert_eq!(put(&*tier, "k", 7, "value").await.unwrap(), Put::Stored);
    assert_eq!(value(&*tier, "k").await.as_deref(), Some("value"));
}

#[tokio::test]
async fn a_server_that_restarts_between_two_calls_is_not_noticed_as_an_error() {
    let Some(server) = Redis::own() else { return };
    let tier = open(&server.url()).await;
    put(&*tier, "k", 5, "value").await.unwrap();
    server.restart();
    // The loss of the connection is told, and it is made anew, without a call.
    within(BACK, "the way back", async || tier.get(&key("k")).await.is_ok()).await;
}

#[tokio::test]
async fn a_server_that_stands_still_costs_one_timeout_and_goes_on_where_it_was() {
    let Some(server) = Redis::own() else { return };
    let config = RedisConfig { response_timeout: Duration::from_millis(300), ..config(&server.url()) };
    let tier = RedisTier::open(config, Level::Cold).await.unwrap();
    put(&tier, "k", 5, "value").await.unwrap();
    server.pause();
    let started = Instant::now();
    let error = tier.get(&key("k")).await.expect_err("nothing answers");
    assert!(matches!(error, Error::TimedOut { backend: "redis", .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(1));
    server.resume();
    within(BACK, "the way back", async || tier.get(&key("k")).await.is_ok()).await;
    assert_eq!(value(&tier, "k").await.as_deref(), Some("value"));
}

#[tokio::test]
async fn calls_that_are_dropped_while_the_server_stands_still_leave_nothing_to_the_next() {
    let Some(server) = Redis::own() else { return };
    let config = RedisConfig { response_timeout: Duration::from_millis(300), ..config(&server.url()) };
    let tier = RedisTier::open(config, Level::Cold).await.unwrap();
    for number in 0..20 {
        put(&tier, &number.to_string(), number + 1, &format!("value {number}")).await.unwrap();
    }
    server.pause();
    for number in 0..20 {
        let name = number.to_string();
        let _ = tokio::time::timeout(Duration::from_millis(30), value_or_error(&tier, &name)).await;
    }
    server.resume();
    within(BACK, "the way back", async || tier.get(&key("0")).await.is_ok()).await;
    for number in (0..20).rev() {
        assert_eq!(value(&tier, &number.to_string()).await, Some(format!("value {number}")));
    }
}

async fn value_or_error(tier: &dyn Tier, name: &str) {
    if let Ok(Some(found)) = tier.get(&key(name)).await {
        assert_eq!(found.value, format!("value {name}").into_bytes());
    }
}

#[tokio::test]
async fn opening_a_dead_server_names_it_and_its_section_in_time() {
    let Some(server) = Redis::own() else { return };
    let proxy = Proxy::to(server.address());
    let started = Instant::now();
    for (fault, needle) in [(Fault::Refuse, "efused"), (Fault::Hang, "timed out")] {
        proxy.set(fault);
        let error = RedisTier::open(through(&proxy), Level::Dry).await.expect_err("nobody is there");
        let Error::Unavailable { source, .. } = &error else { panic!("{error}") };
        let told = source.to_string();
        assert!(
            told.contains(&proxy.address()) && told.contains("dry_cache") && told.contains(needle),
            "{told}"
        );
    }
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn an_addition_is_never_made_twice_whatever_the_network_does() {
    let Some(server) = Redis::own() else { return };
    let proxy = Proxy::to(server.address());
    let tier = opened(&proxy).await;
    let (mut sure, mut maybe) = (0, 0);
    for fault in
        [Fault::CutAfter(2), Fault::Reset, Fault::CutAfter(0), Fault::CutRequestAfter(90), Fault::Hang]
    {
        proxy.set(fault);
        for _ in 0..3 {
            match tier.add(&key("n"), 1, 0, Timestamp::NEVER, T0).await {
                Ok(_) => sure += 1,
                Err(Error::Unavailable { .. } | Error::TimedOut { .. }) => maybe += 1,
                Err(error) => panic!("{error}"),
            }
        }
        proxy.set(Fault::Pass);
        within(BACK, "the way back", async || tier.counter(&key("n"), T0).await.is_ok()).await;
    }
    let sum = tier.counter(&key("n"), T0).await.unwrap().unwrap_or(0);
    assert!((sure..=sure + maybe).contains(&sum), "{sure} sure, {maybe} maybe, {sum} counted");
}

#[tokio::test]
async fn tracking_applies_each_batch_whole_or_not_and_comes_back() {
    let Some(server) = Redis::own() else { return };
    let proxy = Proxy::to(server.address());
    let config = RedisTrackingConfig {
        url: Some(Address::from(format!("redis://{}", proxy.address()).as_str())),
        connect_timeout: Duration::from_millis(300),
        response_timeout: Duration::from_millis(300),
        ..RedisTrackingConfig::default()
    };
    let tracking = RedisTracking::open(config).await.unwrap();
    let count =
        |sets| Event { at: T0, what: What::Counted(Totals { sets, deletes: sets, ..Totals::default() }) };
    let (mut sure, mut maybe) = (0, 0);
    for fault in [Fault::Reset, Fault::CutAfter(1), Fault::CutRequestAfter(100), Fault::Hang, Fault::Refuse] {
        proxy.set(fault);
        let started = Instant::now();
        match tracking.record(&[count(1), count(1)]).await {
            Ok(()) => sure += 2,
            Err(_) => maybe += 2,
        }
        let _ = tracking.find(&Query::all(), None, 10).await;
        assert!(started.elapsed() < Duration::from_secs(2), "{fault:?}");
        proxy.set(Fault::Pass);
        within(BACK, "the way back", async || tracking.totals().await.is_ok()).await;
    }
    let totals = tracking.totals().await.unwrap();
    assert!(
        totals.sets == totals.deletes && totals.sets % 2 == 0 && (sure..=sure + maybe).contains(&totals.sets)
    );
}
