use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tiercache_core::testing::ManualClock;
use tiercache_core::{Error, Key, Level, LoadOptions, Loaded};
use tiercache_tests::rig::{Gated, level};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::cache;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct User {
    name: String,
}

#[tokio::test]
async fn a_warm_up_loads_what_is_missing_and_says_what_came_of_each_key() {
    let rig = Gated::new().await;
    rig.cache.set("in-hot", "there").await.unwrap();
    rig.sunk("in-dry", "there").await;
    let loads = Arc::new(AtomicUsize::new(0));
    let counted = loads.clone();
    let loader = move |key: Key| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            match key.bytes() {
                b"nothing" => Ok(None),
                b"fails" => Err("no such table"),
                _ => Ok(Some(Bytes::from_static(b"loaded"))),
            }
        }
    };
    let mut told = Vec::new();
    let options = LoadOptions::new().ttl(Duration::from_secs(60)).negative_ttl(Duration::from_secs(5));
    let keys = ["in-hot", "in-dry", "new", "nothing", "fails", "", "also-new"];
    let warm = rig.cache.warm(keys, loader).options(&options).progress(|warmed| told.push(warmed.done()));
    let warmed = warm.await.unwrap();
    let counts = (warmed.loaded, warmed.present, warmed.nothing, warmed.failed);
    assert_eq!(counts, (2, 2, 1, 2), "{warmed:?}");
    assert_eq!(told, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(loads.load(Ordering::SeqCst), 4, "what is there is not loaded");
    assert!(warmed.failures.iter().any(|(key, error)| key == "fails" && matches!(error, Error::Load { .. })));
    assert!(
        warmed.failures.iter().any(|(key, error)| key.is_empty() && matches!(error, Error::InvalidKey(_)))
    );
    for key in ["in-hot", "in-dry", "new", "also-new"] {
        assert_eq!(level(&rig.cache, key).await, Some(Level::Hot), "{key}");
    }
    assert!(rig.in_hot("new").unwrap().entry.explicit_ttl);
}

#[tokio::test]
async fn no_more_loads_run_at_a_time_than_was_said() {
    let cache = cache(&ManualClock::new()).await;
    let gate = Arc::new(Semaphore::new(0));
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let loader = {
        let (gate, running, most) = (gate.clone(), running.clone(), most.clone());
        move |_: Key| {
            let (gate, running, most) = (gate.clone(), running.clone(), most.clone());
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                gate.acquire().await.unwrap().forget();
                running.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, Error>("v")
            }
        }
    };
    let keys: Vec<String> = (0..20).map(|number| format!("k{number}")).collect();
    let three = NonZeroUsize::new(3).unwrap();
    let warm = tokio::spawn({
        let cache = cache.clone();
        async move { cache.warm(keys, loader).concurrency(three).await }
    });
    while running.load(Ordering::SeqCst) < 3 {
        tokio::task::yield_now().await;
    }
    tiercache_tests::rig::idle().await;
    assert_eq!(running.load(Ordering::SeqCst), 3);
    gate.add_permits(20);
    assert_eq!(warm.await.unwrap().unwrap().loaded, 20);
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn keys_are_begun_at_the_rate_that_was_asked_for() {
    let cache = cache(&ManualClock::new()).await;
    let begun = Instant::now();
    let load = |_: Key| async { Ok::<_, Error>("v") };
    let keys = || (0..51).map(|number| format!("k{number}"));
    assert_eq!(cache.warm(keys(), load).rate(50.0).await.unwrap().loaded, 51);
    let took = begun.elapsed();
    assert!((Duration::from_millis(1_000)..Duration::from_millis(1_200)).contains(&took), "{took:?}");
    for rate in [0.0, -1.0, f64::NAN] {
        let refused = cache.warm(keys(), load).rate(rate).await;
        assert!(matches!(refused, Err(Error::InvalidOption { option: "rate", .. })), "{rate}: {refused:?}");
    }
}

#[tokio::test]
async fn a_typed_warm_up_leaves_decoded_values() {
    let cache = cache(&ManualClock::new()).await;
    let users = cache.typed::<User>();
    let load = |key: Key| async move {
        let name = key.display().to_string();
        Ok::<_, Error>(Loaded::new(User { name }).tag("kind", "user"))
    };
    assert_eq!(users.warm(["a", "b"], load).await.unwrap().loaded, 2);
    let (one, two) = (users.get("a").await.unwrap().unwrap(), users.get("a").await.unwrap().unwrap());
    assert!(one.name == "a" && Arc::ptr_eq(&one, &two));
    assert_eq!(cache.invalidate_tag("kind", "user").await.unwrap().degraded.len(), 0);
    assert!(users.get("b").await.unwrap().is_none());
}

#[tokio::test]
async fn a_dropped_warm_up_begins_no_further_load() {
    let cache = cache(&ManualClock::new()).await;
    let begun = Arc::new(AtomicUsize::new(0));
    let gate = Arc::new(Semaphore::new(0));
    let loader = {
        let (begun, gate) = (begun.clone(), gate.clone());
        move |_: Key| {
            begun.fetch_add(1, Ordering::SeqCst);
            let gate = gate.clone();
            async move {
                gate.acquire().await.unwrap().forget();
                Ok::<_, Error>("v")
            }
        }
    };
    let keys: Vec<String> = (0..9).map(|number| format!("k{number}")).collect();
    let two = NonZeroUsize::new(2).unwrap();
    let warm = tokio::spawn({
        let cache = cache.clone();
        async move { cache.warm(keys, loader).concurrency(two).await }
    });
    while begun.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    warm.abort();
    assert!(warm.await.unwrap_err().is_cancelled());
    gate.add_permits(9);
    while cache.stats().await.unwrap().in_flight > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(begun.load(Ordering::SeqCst), 2);
    assert!(cache.contains("k0").await.unwrap() && cache.contains("k1").await.unwrap());
    let closed = cache.close(Duration::from_secs(1)).await.unwrap();
    assert!(closed.failures.is_empty(), "{closed}");
    let refused = cache.warm(["k"], |_: Key| async { Ok::<_, Error>("v") }).await;
    assert!(matches!(refused, Err(Error::Closed)), "{refused:?}");
}
