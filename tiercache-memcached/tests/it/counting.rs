//! Counters in memcached.

use std::sync::Arc;

use crate::common::{T0, get, key, open, put};
use tiercache_core::tier::Counting;
use tiercache_core::{Error, Generation, Key, Tier, Timestamp};
use tiercache_services::Memcached;

const NEVER: Timestamp = Timestamp::NEVER;

#[tokio::test]
async fn a_counter_begins_at_its_start_and_takes_either_sign() {
    let Some(server) = Memcached::own() else { return };
    let tier = open(&[server.address()]).await;
    let k = key("k");
    assert_eq!(tier.counter(&k, T0).await.unwrap(), None);
    for (delta, sum) in [(5, 105), (-200, -95), (1, -94), (94, 0), (0, 0), (1 << 40, 1 << 40)] {
        assert_eq!(tier.add(&k, delta, 100, NEVER, T0).await.unwrap(), sum);
        assert_eq!(tier.counter(&k, T0).await.unwrap(), Some(sum));
    }
    assert_eq!(get(&tier, "k").await, None, "a counter is no entry");
    put(&tier, "k", 1, "value").await;
    assert_eq!(tier.counter(&k, T0).await.unwrap(), Some(1 << 40), "and an entry no counter");
    assert!(tier.remove_counter(&k).await.unwrap());
    assert!(!tier.remove_counter(&k).await.unwrap());
    assert_eq!(tier.counter(&k, T0).await.unwrap(), None);
    assert!(get(&tier, "k").await.is_some());
}

#[tokio::test]
async fn a_sum_out_of_range_is_refused_and_nothing_is_added() {
    let Some(server) = Memcached::own() else { return };
    let tier = open(&[server.address()]).await;
    let k = key("k");
    for (edge, beyond) in [(i64::MAX, 1), (i64::MIN, -1), (i64::MAX, i64::MAX), (i64::MIN, i64::MIN)] {
        let refused = tier.add(&k, beyond, edge, NEVER, T0).await;
        assert!(matches!(refused, Err(Error::InvalidOption { .. })), "{refused:?}");
        assert_eq!(tier.counter(&k, T0).await.unwrap(), None);
        assert_eq!(tier.add(&k, 0, edge, NEVER, T0).await.unwrap(), edge);
        let refused = tier.add(&k, beyond, 0, NEVER, T0).await;
        assert!(matches!(refused, Err(Error::InvalidOption { .. })), "{refused:?}");
        assert_eq!(tier.counter(&k, T0).await.unwrap(), Some(edge));
        assert_eq!(tier.add(&k, -beyond.signum(), 0, NEVER, T0).await.unwrap(), edge - beyond.signum());
        tier.remove_counter(&k).await.unwrap();
    }
}

#[tokio::test]
async fn a_counter_keeps_its_deadline_and_begins_anew_after_it() {
    let Some(server) = Memcached::own() else { return };
    let tier = open(&[server.address()]).await;
    let (k, end) = (key("k"), T0.after_millis(1_500));
    assert_eq!(tier.add(&k, 1, 0, end, T0).await.unwrap(), 1);
    let last = T0.after_millis(1_499);
    assert_eq!(tier.add(&k, 1, 0, NEVER, last).await.unwrap(), 2, "one that lives keeps its deadline");
    assert_eq!(tier.counter(&k, last).await.unwrap(), Some(2));
    assert_eq!(tier.counter(&k, end).await.unwrap(), None);
    assert_eq!(tier.add(&k, 1, 10, NEVER, end).await.unwrap(), 11);
    assert_eq!(tier.counter(&k, end.after_millis(1 << 40)).await.unwrap(), Some(11));
}

#[tokio::test]
async fn clearing_a_namespace_drops_its_counters() {
    let Some(server) = Memcached::own() else { return };
    let (a, b) = (open(&[server.address()]).await, open(&[server.address()]).await);
    let [here, there] = ["here", "there"].map(|namespace| Key::new(namespace, b"k").unwrap());
    for key in [&here, &there] {
        a.add(key, 1, 0, NEVER, T0).await.unwrap();
    }
    b.clear(Some("here"), Generation::new(9)).await.unwrap();
    assert_eq!(a.counter(&here, T0).await.unwrap(), None, "the other process asks before it answers");
    assert_eq!(a.counter(&there, T0).await.unwrap(), Some(1));
    b.clear(None, Generation::new(10)).await.unwrap();
    assert_eq!(a.add(&there, 1, 0, NEVER, T0).await.unwrap(), 1);
    // A process that has counted less far clears as well.
    for namespace in [Some("there"), None, Some("there")] {
        a.clear(namespace, Generation::new(3)).await.unwrap();
        assert_eq!(b.counter(&there, T0).await.unwrap(), None, "{namespace:?}");
        assert_eq!(b.add(&there, 1, 0, NEVER, T0).await.unwrap(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_many_add_at_once_adds_up() {
    let Some(server) = Memcached::own() else { return };
    let processes = [Arc::new(open(&[server.address()]).await), Arc::new(open(&[server.address()]).await)];
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let tier = processes[task % 2].clone();
            tokio::spawn(async move {
                for _ in 0..50 {
                    tier.add(&key("k"), 1, 0, NEVER, T0).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(processes[0].counter(&key("k"), T0).await.unwrap(), Some(400));
}
