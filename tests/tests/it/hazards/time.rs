//! Lives that get longer or shorter than they were asked to be.

use std::time::Duration;

use tiercache_core::testing::ManualClock;
use tiercache_core::tier::Resident;
use tiercache_core::{Clock, Error, Level, SystemClock, Tier, Timestamp};
use tiercache_tests::rig::{builder, disk, get, ram, ram_for};

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn h12_a_thousand_promotions_and_demotions_leave_the_deadline_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let (hot, cold) = (ram(), ram());
    let cache = builder(&clock)
        .hot(hot.clone())
        .cold(cold.clone())
        .dry(disk(dir.path(), &clock).await)
        .build()
        .await
        .unwrap();
    cache.set("k", "v").ttl(HOUR).await.unwrap();
    for cycle in 1..=1_000 {
        hot.drain();
        cache.settle().await.unwrap();
        if cycle % 2 == 0 {
            cold.drain();
            cache.settle().await.unwrap();
        }
        clock.advance(Duration::from_millis(3_500));
        let entry = cache.entry("k").await.unwrap().unwrap();
        assert_eq!(entry.level, if cycle % 2 == 0 { Level::Dry } else { Level::Cold });
        assert_eq!(entry.time_left, Some(HOUR - Duration::from_millis(3_500) * cycle));
        assert_eq!(entry.age, Duration::from_millis(3_500) * cycle);
    }
    clock.advance(Duration::from_millis(99_999));
    assert!(cache.contains("k").await.unwrap());
    clock.advance(Duration::from_millis(1));
    assert_eq!(get(&cache, "k").await, None);
}

#[tokio::test]
async fn h13_every_length_of_life_is_kept_to_the_millisecond_at_every_level_and_over_a_restart() {
    const DAY: u64 = 24 * 3_600_000;
    for millis in [1, 999, 1_000, 30 * DAY - 1_000, 30 * DAY, 30 * DAY + 1_000, 3_650 * DAY, u64::MAX] {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::new();
        let start = clock.now();
        for level in ["hot", "dry", "next process"] {
            let hot = ram();
            let cache =
                builder(&clock).hot(hot.clone()).dry(disk(dir.path(), &clock).await).build().await.unwrap();
            clock.set(start);
            if level != "next process" {
                cache.set("k", "v").ttl(Duration::from_millis(millis)).await.unwrap();
            }
            if level == "dry" {
                hot.drain();
                cache.settle().await.unwrap();
            }
            clock.set(start.after_millis(millis.min(100_000 * DAY) - 1));
            assert!(cache.contains("k").await.unwrap(), "{millis} ms at {level}");
            assert_eq!(get(&cache, "k").await.as_deref(), Some("v"), "{millis} ms at {level}");
            clock.set(start.after_millis(millis.min(100_000 * DAY)));
            let lives_on = millis == u64::MAX;
            assert_eq!(get(&cache, "k").await.is_some(), lives_on, "{millis} ms at {level}");
            assert_eq!(cache.contains("k").await.unwrap(), lives_on, "{millis} ms at {level}");
            clock.set(start);
            if level == "dry" {
                // It was removed when it was met dead; the next process is to find one that is not.
                cache.set("k", "v").ttl(Duration::from_millis(millis)).await.unwrap();
            }
            cache.close(Duration::from_secs(5)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn h13_zero_is_refused_and_less_than_a_millisecond_counts_as_one() {
    let clock = ManualClock::new();
    let cache = builder(&clock).hot(ram()).build().await.unwrap();
    let refused = cache.set("k", "v").ttl(Duration::ZERO).await;
    assert!(matches!(refused, Err(Error::InvalidOption { option: "ttl", .. })), "{refused:?}");
    cache.set("k", "v").ttl(Duration::from_nanos(1)).await.unwrap();
    assert!(cache.contains("k").await.unwrap());
    clock.advance(Duration::from_millis(1));
    assert!(!cache.contains("k").await.unwrap());
}

#[tokio::test]
async fn h14_a_clock_that_jumps_or_stops_neither_panics_nor_lengthens_a_life() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let start = clock.now();
    let hot = ram_for(10, 100);
    let cache = builder(&clock).hot(hot.clone()).dry(disk(dir.path(), &clock).await).build().await.unwrap();
    let everything = async |what: &str| {
        for n in 0..40 {
            cache.set(format!("{what} {n}"), "v").ttl(HOUR).tag("t", what).await.unwrap();
            cache.get(format!("{what} {}", n / 2)).await.unwrap();
        }
        let entry = cache.entry(format!("{what} 1")).await.unwrap().unwrap();
        assert!(entry.time_left.unwrap() <= HOUR, "{what}: {entry:?}");
        assert!(cache.touch(format!("{what} 2"), HOUR).await.unwrap().found, "{what}");
        cache.prune().await.unwrap();
        cache.settle().await.unwrap();
        cache.invalidate_tag("t", what).await.unwrap();
        assert_eq!(get(&cache, &format!("{what} 3")).await, None, "{what}");
        cache.stats().await.unwrap();
    };
    cache.set("k", "v").ttl(HOUR).await.unwrap();
    everything("before").await;
    clock.set(Timestamp::from_millis(start.as_millis() - HOUR.as_millis() as u64));
    everything("an hour back").await;
    let entry = cache.entry("k").await.unwrap().unwrap();
    assert_eq!(entry.age, Duration::ZERO, "not negative, and not centuries");
    clock.set(start);
    assert_eq!(cache.entry("k").await.unwrap().unwrap().time_left, Some(HOUR));
    everything("standing still").await;
    clock.set(start.after(HOUR * 24));
    everything("a day on").await;
    assert_eq!(get(&cache, "k").await, None);
    clock.set(Timestamp::EPOCH);
    everything("the beginning of time").await;
    clock.set(Timestamp::from_millis(u64::MAX - 10_000_000));
    everything("the end of time").await;
}

#[tokio::test]
async fn h14_after_a_restart_under_an_earlier_clock_nothing_lives_longer_than_it_was_given() {
    for back in [Duration::from_secs(60), HOUR, HOUR * 24 * 365] {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::new();
        let start = clock.now();
        let cache = builder(&clock).hot(ram()).dry(disk(dir.path(), &clock).await).build().await.unwrap();
        cache.set("k", "v").ttl(HOUR).await.unwrap();
        cache.close(Duration::from_secs(5)).await.unwrap();
        clock.set(Timestamp::from_millis(start.as_millis() - back.as_millis() as u64));
        let cache = builder(&clock).hot(ram()).dry(disk(dir.path(), &clock).await).build().await.unwrap();
        if let Some(entry) = cache.entry("k").await.unwrap() {
            assert!(entry.time_left.unwrap() <= HOUR, "{back:?}: {entry:?}");
        }
        clock.advance(HOUR);
        assert_eq!(get(&cache, "k").await, None, "{back:?}");
        // Generations do not come from the clock: what is set now is newer than what was set then.
        cache.set("k", "later").await.unwrap();
        cache.close(Duration::from_secs(5)).await.unwrap();
        let tier = disk(dir.path(), &clock).await;
        assert_eq!(tier.get(&tiercache_tests::rig::id("k")).await.unwrap().unwrap().value, "later");
    }
}

#[test]
fn h14_the_machines_clock_never_goes_back() {
    let clock = SystemClock::start();
    let mut last = clock.now();
    for _ in 0..100_000 {
        let now = clock.now();
        assert!(now >= last);
        last = now;
    }
}
