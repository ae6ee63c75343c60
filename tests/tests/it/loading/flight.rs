//! One load at a time, whoever comes and goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tiercache_core::{Error, Level, LoadOptions, Loaded};
use tiercache_tests::rig::{get, idle};

use super::{Origin, in_ram, origin_error};

#[tokio::test]
async fn h23_a_hundred_thousand_callers_cause_one_load() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let origin = Origin::new("v");
    origin.hold();
    let callers: Vec<_> = (0..100_000)
        .map(|_| {
            let (cache, load) = (cache.clone(), origin.load());
            tokio::spawn(async move { cache.get_or_load("k", load).await.unwrap() })
        })
        .collect();
    origin.begun().await;
    idle().await;
    origin.release();
    for caller in callers {
        assert_eq!(caller.await.unwrap(), "v");
    }
    assert_eq!(origin.loads(), 1);
    let stats = cache.stats().await.unwrap();
    assert_eq!((stats.in_flight, stats.loads), (0, 1));
    assert!(stats.loads_joined > 0, "{stats:?}");
}

#[tokio::test]
async fn h28_a_caller_that_goes_leaves_its_load_to_the_others() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let origin = Origin::new("v");
    origin.hold();
    let (leader, joiner) = {
        let (one, other) = (cache.clone(), cache.clone());
        let (first, second) = (origin.load(), origin.load());
        let leader = tokio::spawn(async move { one.get_or_load("k", first).await });
        origin.begun().await;
        let joiner = tokio::spawn(async move { other.get_or_load("k", second).await });
        idle().await;
        (leader, joiner)
    };
    leader.abort();
    idle().await;
    origin.release();
    assert_eq!(joiner.await.unwrap().unwrap(), "v");
    assert_eq!(origin.loads(), 1);
    assert_eq!(get(&cache, "k").await.unwrap(), "v", "kept, though its first caller went");
}

#[tokio::test]
async fn a_failed_load_fails_all_who_waited_and_is_not_remembered() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let origin = Origin::new("v");
    origin.fails();
    origin.hold();
    let callers: Vec<_> = (0..10)
        .map(|_| {
            let (cache, load) = (cache.clone(), origin.load());
            tokio::spawn(async move { cache.get_or_load("k", load).await })
        })
        .collect();
    origin.begun().await;
    idle().await;
    origin.release();
    for caller in callers {
        let error = caller.await.unwrap().unwrap_err();
        assert_eq!(origin_error(&error).unwrap(), "the origin is down");
    }
    assert_eq!(origin.loads(), 1);
    origin.says("v");
    origin.release();
    assert_eq!(cache.get_or_load("k", origin.load()).await.unwrap(), "v", "errors are not cached");
    assert_eq!(cache.stats().await.unwrap().load_failures, 1);
}

#[tokio::test]
async fn behaviour_20_a_failed_load_is_taken_over_by_one_who_waited() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let origin = Origin::new("v");
    origin.fails();
    origin.hold();
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let (cache, load) = (cache.clone(), origin.load());
            tokio::spawn(async move { cache.get_or_load("k", load).take_over().await })
        })
        .collect();
    origin.begun().await;
    idle().await;
    origin.release();
    origin.begun().await;
    idle().await;
    assert_eq!(origin.loads(), 2, "one tries again, the others wait for it");
    origin.release();
    // The second has read its answer while the origin was down; the third finds it up.
    origin.begun().await;
    origin.says("v");
    origin.release();
    origin.begun().await;
    origin.release();
    let mut failed = 0;
    for caller in callers {
        match caller.await.unwrap() {
            Ok(value) => assert_eq!(value, "v"),
            Err(error) => {
                assert!(origin_error(&error).is_some(), "{error}");
                failed += 1;
            }
        }
    }
    assert_eq!((failed, origin.loads()), (3, 4), "each who failed had loaded itself");
}

#[tokio::test]
async fn h27_a_loader_that_panics_is_an_error_and_the_next_one_loads() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let panics = || async { if true { panic!("on purpose") } else { Ok::<_, Error>("v") } };
    let error = cache.get_or_load("k", panics).await.unwrap_err();
    assert!(matches!(error, Error::Panicked { what: "a loader" }), "{error:?}");
    let origin = Origin::new("v");
    assert_eq!(cache.get_or_load("k", origin.load()).await.unwrap(), "v");
    assert_eq!(cache.stats().await.unwrap().in_flight, 0);
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct User {
    name: String,
}

#[tokio::test]
async fn those_who_waited_share_the_loaded_value_itself() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let users = cache.typed::<User>();
    let load = || async { Ok::<_, Error>(User { name: "Ada".into() }) };
    let loaded = users.get_or_load("ada", load).await.unwrap();
    let hit = users.get_or_load("ada", load).await.unwrap();
    assert!(Arc::ptr_eq(&loaded, &hit), "neither encoded again nor decoded");
    assert!(Arc::ptr_eq(&loaded, &users.get("ada").await.unwrap().unwrap()));
}

#[tokio::test]
async fn a_loader_decides_about_its_value() {
    let (cache, clock) = in_ram(|builder| builder).await;
    let load = || async {
        let loaded = Loaded::new(Bytes::from("v")).ttl(Duration::from_secs(5));
        Ok::<_, Error>(loaded.tag("t", "1").tag("u", "2").content_type("text/plain"))
    };
    let value = cache.get_or_load("k", load).ttl(Duration::from_secs(500)).tag("v", "3").await.unwrap();
    assert_eq!(value, "v");
    let entry = cache.entry("k").await.unwrap().unwrap();
    assert_eq!(entry.time_left, Some(Duration::from_secs(5)));
    assert_eq!(entry.tags.keys().collect::<Vec<_>>(), ["t", "u", "v"]);
    assert_eq!(entry.content_type.as_deref(), Some("text/plain"));
    clock.advance(Duration::from_secs(5));
    assert_eq!(get(&cache, "k").await, None);

    let unkept = || async { Ok::<_, Error>(Loaded::new(Bytes::from("v")).do_not_store()) };
    assert_eq!(cache.get_or_load("unkept", unkept).await.unwrap(), "v");
    assert_eq!(get(&cache, "unkept").await, None);
}

#[tokio::test]
async fn nothing_is_remembered_as_nothing_and_not_as_a_miss() {
    let (cache, clock) = in_ram(|builder| builder).await;
    let calls = Arc::new(AtomicUsize::new(0));
    let absent = || {
        let calls = calls.clone();
        move || async move {
            calls.fetch_add(1, Ordering::Relaxed);
            Ok::<Option<Bytes>, Error>(None)
        }
    };
    let negative = LoadOptions::new().negative_ttl(Duration::from_secs(10));
    for _ in 0..3 {
        assert_eq!(cache.get_or_load("k", absent()).options(&negative).await.unwrap(), None);
    }
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    assert_eq!(get(&cache, "k").await, None);
    assert!(!cache.contains("k").await.unwrap());
    assert!(cache.set("k", "added").only_if_absent().await.unwrap().stored);
    assert_eq!(get(&cache, "k").await.unwrap(), "added");

    cache.get_or_load("other", absent()).options(&negative).await.unwrap();
    clock.advance(Duration::from_secs(10));
    cache.get_or_load("other", absent()).options(&negative).await.unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 3, "its time was over");
    let origin = Origin::new("v");
    assert_eq!(cache.get_or_load("other", origin.load()).await.unwrap(), "v", "who wants a value loads");

    cache.get_or_load("forgotten", absent()).await.unwrap();
    cache.get_or_load("forgotten", absent()).await.unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 5, "remembered only when asked");
    cache.set("empty", "").await.unwrap();
    assert_eq!(get(&cache, "empty").await.unwrap(), "", "an empty value is a value");
}

#[tokio::test]
async fn loads_wait_their_turn_beyond_the_most_at_once() {
    let (cache, _clock) = in_ram(|builder| builder.max_loads(2)).await;
    let origin = Origin::new("v");
    origin.hold();
    let callers: Vec<_> = (0..5)
        .map(|number| {
            let (cache, load) = (cache.clone(), origin.load());
            tokio::spawn(async move { cache.get_or_load(format!("k{number}"), load).await.unwrap() })
        })
        .collect();
    idle().await;
    assert_eq!(origin.loads(), 2);
    origin.release();
    idle().await;
    assert_eq!(origin.loads(), 3);
    (0..4).for_each(|_| origin.release());
    for caller in callers {
        assert_eq!(caller.await.unwrap(), "v");
    }
}

#[tokio::test]
async fn the_end_of_the_cache_ends_its_loads() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let origin = Origin::new("v");
    origin.hold();
    let caller = tokio::spawn({
        let (cache, load) = (cache.clone(), origin.load());
        async move { cache.get_or_load("k", load).await }
    });
    origin.begun().await;
    cache.close(Duration::from_secs(1)).await.unwrap();
    assert!(matches!(caller.await.unwrap(), Err(Error::Closed)));
    let late = cache.get_or_load("k", origin.load()).await;
    assert!(matches!(late, Err(Error::Closed)));
}

#[tokio::test]
async fn where_an_answer_came_from_is_told() {
    let (cache, clock) = in_ram(|builder| builder).await;
    let origin = Origin::new("v");
    let loaded = cache.get_or_load("k", origin.load()).entry().await.unwrap();
    assert_eq!((loaded.level, loaded.is_stale()), (None, false));
    clock.advance(Duration::from_secs(3));
    let hit = cache.get_or_load("k", origin.load()).entry().await.unwrap();
    assert_eq!((hit.level, hit.age), (Some(Level::Hot), Duration::from_secs(3)));
}

#[tokio::test]
async fn impossible_options_are_refused_before_anything_is_loaded() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let origin = Origin::new("v");
    let zero = cache.get_or_load("k", origin.load()).ttl(Duration::ZERO).await.unwrap_err();
    assert!(matches!(zero, Error::InvalidOption { option: "ttl", .. }), "{zero:?}");
    let share = cache.get_or_load("k", origin.load()).jitter(1.5).await.unwrap_err();
    assert!(matches!(share, Error::InvalidOption { option: "jitter", .. }), "{share:?}");
    let tag = cache.get_or_load("k", origin.load()).tag("", "x").await.unwrap_err();
    assert!(matches!(tag, Error::InvalidOption { option: "tag", .. }), "{tag:?}");
    assert_eq!(origin.loads(), 1, "only a tag is looked at when there is something to carry it");
}
