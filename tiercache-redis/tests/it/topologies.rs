//! Clusters and sentinels.

use std::time::Duration;

use crate::common::{HOLD, T0, entry, key, of, put, value, within};
use tiercache_core::tier::{Always, Counting, Dead, FenceLog, Listing, Put, Removal, Scope};
use tiercache_core::tracking::{Event, Query, Record, What};
use tiercache_core::{Entry, Key, KeyRef, Level, Tags, Tier, Timestamp, Tracking};
use tiercache_redis::{RedisConfig, RedisTier, RedisTracking, RedisTrackingConfig};
use tiercache_services::{RedisCluster, RedisSentinel};

struct Nothing;

impl Dead for Nothing {
    fn is_dead(&self, _: KeyRef<'_>, _: &Entry) -> bool {
        false
    }
}

async fn clustered(cluster: &RedisCluster) -> RedisTier {
    let config = RedisConfig { nodes: cluster.urls(), ..RedisConfig::default() };
    RedisTier::open(config, Level::Dry).await.expect("opens")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_keeps_everything_a_level_promises() {
    let Some(cluster) = RedisCluster::start() else { return };
    let (a, b) = (clustered(&cluster).await, clustered(&cluster).await);
    for number in 0..60 {
        assert_eq!(put(&a, &number.to_string(), number + 1, "value").await.unwrap(), Put::Stored);
    }
    for number in 0..60 {
        assert_eq!(value(&b, &number.to_string()).await.as_deref(), Some("value"));
        assert_eq!(put(&b, &number.to_string(), number, "older").await.unwrap(), Put::Superseded);
    }
    let mut listed = Vec::new();
    let mut after = None;
    loop {
        let page = a.list(None, after, 7).await.unwrap();
        listed.extend(page.entries.into_iter().map(|listed| listed.key));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    listed.sort();
    listed.dedup();
    assert_eq!(listed.len(), 60);
    assert_eq!(a.remove(&key("7"), of(8)).await.unwrap(), Removal::Behind(of(8)));
    assert!(a.remove(&key("7"), of(9)).await.unwrap().is_done());
    assert_eq!(value(&b, "7").await, None);
    let fenced = a.fence(&Scope::Namespace(String::new()), of(100)).await.unwrap();
    a.clear(Some(""), fenced).await.unwrap();
    assert_eq!(value(&a, "8").await, None);
    within(Duration::from_millis(1_500), "b sees it", async || value(&b, "8").await.is_none()).await;
    a.sweep(T0, &Nothing).await.unwrap();
    for round in 1..=20 {
        for name in ["x", "y", "z"] {
            let tier = if round % 2 == 0 { &a } else { &b };
            assert_eq!(tier.add(&key(name), 1, 0, Timestamp::NEVER, T0).await.unwrap(), round);
        }
    }
    assert!(a.remove_counter(&key("x")).await.unwrap());
    for node in cluster.nodes() {
        node.restart();
    }
    within(Duration::from_secs(10), "the cluster is back", async || {
        put(&a, "next", 1 << 30, "value").await.is_ok_and(|put| put == Put::Stored)
    })
    .await;
    assert_eq!(value(&a, "next").await.as_deref(), Some("value"));
    within(Duration::from_secs(5), "b follows", async || {
        b.get(&key("next")).await.is_ok_and(|found| found.is_some())
    })
    .await;
}

#[tokio::test]
async fn tracking_in_a_cluster_is_in_one_place() {
    let Some(cluster) = RedisCluster::start() else { return };
    let config = RedisTrackingConfig { nodes: cluster.urls(), ..RedisTrackingConfig::default() };
    let tracking = RedisTracking::open(config).await.expect("opens");
    let events: Vec<Event> =
        (0..20).map(|number| Event { at: T0, what: What::Stored(record(number)) }).collect();
    tracking.record(&events).await.unwrap();
    let query = Query { tags: Tags::from([("parity".into(), "1".into())]), ..Query::all() };
    assert_eq!(tracking.find(&query, None, 100).await.unwrap().len(), 10);
    let query = Query { prefix: b"01".to_vec(), ..Query::all() };
    assert_eq!(tracking.find(&query, None, 100).await.unwrap().len(), 10);
    assert_eq!(tracking.lookup(&record(3).key).await.unwrap(), Some(record(3)));
}

fn record(number: u64) -> Record {
    Record {
        key: Key::new(["", "a"][number as usize % 2], format!("{number:03}").as_bytes()).expect("a key"),
        generation: of(number),
        level: Level::Hot,
        size: 1,
        created: T0,
        used: T0,
        deadline: Timestamp::NEVER,
        hits: 0,
        tags: Tags::from([("parity".into(), (number % 2).to_string())]),
    }
}

#[tokio::test]
async fn a_sentinel_shows_the_way_to_the_next_master() {
    let Some(watched) = RedisSentinel::start() else { return };
    let config = RedisConfig {
        sentinels: vec![watched.url()],
        master: RedisSentinel::MASTER.to_owned(),
        ..RedisConfig::default()
    };
    let tier = RedisTier::open(config, Level::Cold).await.expect("opens");
    assert_eq!(tier.put(&key("k"), &entry(1, "value"), HOLD, &Always).await.unwrap(), Put::Stored);
    assert_eq!(value(&tier, "k").await.as_deref(), Some("value"));
    watched.fail_over();
    within(Duration::from_secs(5), "the new master", async || {
        put(&tier, "k", 2, "next").await.is_ok_and(|put| put == Put::Stored)
    })
    .await;
    assert_eq!(value(&tier, "k").await.as_deref(), Some("next"));
}

#[tokio::test]
async fn a_master_that_stands_still_is_left_for_the_next() {
    let Some(watched) = RedisSentinel::start() else { return };
    let config = RedisConfig {
        sentinels: vec![watched.url()],
        master: RedisSentinel::MASTER.to_owned(),
        response_timeout: Duration::from_millis(300),
        ..RedisConfig::default()
    };
    let tier = RedisTier::open(config, Level::Cold).await.expect("opens");
    put(&tier, "k", 1, "value").await.unwrap();
    let old = watched.master();
    old.pause();
    within(Duration::from_secs(10), "the new master", async || {
        // Dropped before the answer could time out, as the manager does with reads.
        let get = tokio::time::timeout(Duration::from_millis(100), tier.get(&key("k"))).await;
        matches!(get, Ok(Ok(_))) && put(&tier, "k", 2, "next").await.is_ok()
    })
    .await;
    old.resume();
    assert_eq!(value(&tier, "k").await.as_deref(), Some("next"));
}
