//! Stale rather than down.

use std::sync::Arc;
use std::time::Duration;

use tiercache_core::testing::{ManualClock, MemoryTier};
use tiercache_core::{CacheManager, Error, Level, LoadOptions};
use tiercache_tests::rig::{Gated, builder, get, idle, ram};

use super::{Origin, in_ram, origin_error};

const TTL: Duration = Duration::from_secs(10);
const WINDOW: Duration = Duration::from_secs(100);

fn options() -> LoadOptions {
    LoadOptions::new().ttl(TTL).stale_if_error(WINDOW)
}

async fn load(cache: &CacheManager, origin: &Arc<Origin>, options: &LoadOptions) -> (String, bool) {
    let served = cache.get_or_load("k", origin.load()).options(options).entry().await.unwrap();
    (String::from_utf8(served.value.to_vec()).unwrap(), served.is_stale())
}

fn told(value: &str, stale: bool) -> (String, bool) {
    (value.to_owned(), stale)
}

#[tokio::test(start_paused = true)]
async fn a_load_that_fails_is_answered_by_the_stale_value_within_its_window() {
    let (cache, clock) = in_ram(|builder| builder).await;
    let origin = Origin::new("v1");
    assert_eq!(load(&cache, &origin, &options()).await, told("v1", false));
    clock.advance(TTL);
    assert_eq!(get(&cache, "k").await, None, "a get accepts nothing stale");
    assert!(cache.read_stale("k").await.unwrap().unwrap().stale);
    origin.fails();
    assert_eq!(load(&cache, &origin, &options()).await, told("v1", true));
    assert_eq!(origin.loads(), 2);
    for _ in 0..5 {
        assert_eq!(load(&cache, &origin, &options()).await, told("v1", true));
    }
    assert_eq!(origin.loads(), 2, "failures back off");
    tokio::time::advance(Duration::from_secs(1)).await;
    load(&cache, &origin, &options()).await;
    assert_eq!(origin.loads(), 3, "once more after the pause");
    tokio::time::advance(Duration::from_secs(1)).await;
    load(&cache, &origin, &options()).await;
    assert_eq!(origin.loads(), 3, "and the next pause is longer");
    origin.says("v2");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(load(&cache, &origin, &options()).await, told("v2", false));
    clock.advance(TTL + WINDOW);
    origin.fails();
    let error = cache.get_or_load("k", origin.load()).options(&options()).await.unwrap_err();
    assert!(origin_error(&error).is_some(), "past its window there is no value: {error:?}");
    assert_eq!(cache.stats().await.unwrap().served_stale, 8);
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_answers_only_those_who_accept_one() {
    let (cache, clock) = in_ram(|builder| builder).await;
    let origin = Origin::new("v1");
    load(&cache, &origin, &options()).await;
    clock.advance(TTL);
    origin.fails();
    let error = cache.get_or_load("k", origin.load()).ttl(TTL).await.unwrap_err();
    assert!(origin_error(&error).is_some());
}

#[tokio::test(start_paused = true)]
async fn the_stale_value_is_found_below_ram_too() {
    let rig = Gated::new().await;
    let origin = Origin::new("v1");
    load(&rig.cache, &origin, &options()).await;
    rig.evict();
    rig.cache.settle().await.unwrap();
    rig.clock.advance(TTL);
    origin.fails();
    assert_eq!(load(&rig.cache, &origin, &options()).await, told("v1", true));
    let next = rig.next_process().await;
    assert_eq!(load(&next.cache, &origin, &options()).await, told("v1", true), "and by the next process");
    next.cache.delete("k").await.unwrap();
    assert!(next.cache.get_or_load("k", origin.load()).options(&options()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_was_invalidated_does_not_come_back_as_stale() {
    for what in ["delete", "tag", "clear", "expire"] {
        let (cache, clock) = in_ram(|builder| builder).await;
        let origin = Origin::new("v1");
        let options = options().tag("t", "1");
        load(&cache, &origin, &options).await;
        if what != "expire" {
            clock.advance(TTL);
        }
        match what {
            "delete" => drop(cache.delete("k").await.unwrap()),
            "tag" => drop(cache.invalidate_tag("t", "1").await.unwrap()),
            "clear" => drop(cache.clear().await.unwrap()),
            _ => cache.expire_tag("t", "1").await.unwrap(),
        }
        origin.fails();
        let served = cache.get_or_load("k", origin.load()).options(&options).entry().await;
        if what == "expire" {
            assert!(served.unwrap().is_stale(), "expired is not removed");
        } else {
            assert!(served.is_err(), "{what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_load_is_answered_by_the_stale_value_and_goes_on() {
    let (cache, clock) = in_ram(|builder| builder).await;
    let origin = Origin::new("v1");
    let options = options().soft_timeout(Duration::from_millis(50));
    load(&cache, &origin, &options).await;
    clock.advance(TTL);
    origin.says("v2");
    origin.hold();
    let begun = tokio::time::Instant::now();
    assert_eq!(load(&cache, &origin, &options).await, told("v1", true));
    assert_eq!(begun.elapsed(), Duration::from_millis(50));
    assert_eq!(load(&cache, &origin, &options).await, told("v1", true), "and joined, not begun again");
    assert_eq!(origin.loads(), 2);
    origin.release();
    idle().await;
    assert_eq!(load(&cache, &origin, &options).await, told("v2", false));
}

#[tokio::test(start_paused = true)]
async fn a_load_past_the_hard_timeout_is_an_error_and_still_kept_when_it_comes() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let origin = Origin::new("v1");
    origin.hold();
    let wait = Duration::from_secs(2);
    let error = cache.get_or_load("k", origin.load()).hard_timeout(wait).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { after, .. } if after == wait), "{error:?}");
    origin.release();
    idle().await;
    assert_eq!(get(&cache, "k").await.unwrap(), "v1");
    assert_eq!(origin.loads(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_load_past_its_limit_is_given_up() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let origin = Origin::new("v1");
    origin.hold();
    let error = cache.get_or_load("k", origin.load()).limit(Duration::from_secs(7)).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
    assert_eq!(cache.stats().await.unwrap().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn h38_errors_are_cached_only_when_asked_and_a_mutation_ends_that() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let origin = Origin::new("v1");
    origin.fails();
    let options = LoadOptions::new().error_ttl(Duration::from_secs(30));
    let fails =
        async || origin_error(&cache.get_or_load("k", origin.load()).options(&options).await.unwrap_err());
    assert!(fails().await.is_some());
    assert!(fails().await.is_some());
    assert_eq!(origin.loads(), 1, "the error was remembered");
    cache.invalidate_tag("any", "thing").await.unwrap();
    assert!(fails().await.is_some());
    assert_eq!(origin.loads(), 2, "and may be of what an invalidation ended");
    cache.delete("k").await.unwrap();
    assert!(fails().await.is_some());
    assert_eq!(origin.loads(), 3, "likewise a removal");
    tokio::time::advance(Duration::from_secs(30)).await;
    assert!(fails().await.is_some());
    assert_eq!(origin.loads(), 4);
}

#[tokio::test]
async fn what_expired_with_its_tag_stays_so_however_often_the_levels_are_swept() {
    let store = MemoryTier::persistent();
    let cache = builder(&ManualClock::new()).hot(ram()).dry(store).build().await.unwrap();
    cache.set("k", "v").tag("t", "1").await.unwrap();
    cache.set("below", "v").tag("t", "1").pin(Level::Dry).await.unwrap();
    cache.expire_tag("t", "1").await.unwrap();
    for round in 0..3 {
        cache.prune().await.unwrap();
        for key in ["k", "below"] {
            assert_eq!(get(&cache, key).await, None, "{key}, {round}");
            assert!(cache.read_stale(key).await.unwrap().unwrap().stale, "{key}, {round}");
        }
    }
    cache.set("k", "next").tag("t", "1").await.unwrap();
    assert_eq!(get(&cache, "k").await.unwrap(), "next");
}

#[tokio::test]
async fn who_comes_after_a_tag_expired_joins_no_load_from_before() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let origin = Origin::new("old");
    origin.hold();
    let call = |origin: &Arc<Origin>| {
        let (cache, load) = (cache.clone(), origin.load());
        tokio::spawn(async move { cache.get_or_load("k", load).tag("t", "1").await.unwrap() })
    };
    let before = call(&origin);
    origin.begun().await;
    cache.expire_tag("t", "1").await.unwrap();
    origin.says("new");
    let after = call(&origin);
    idle().await;
    origin.release();
    assert_eq!(before.await.unwrap(), "old");
    origin.begun().await;
    origin.release();
    assert_eq!(after.await.unwrap(), "new");
}
