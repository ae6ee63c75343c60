//! What counters count.

use std::time::Duration;

use tiercache::{Config, Registry};
use tiercache_core::testing::{ManualClock, MemoryTier};
use tiercache_core::{CacheManager, Error, Level};
use tiercache_tests::rig::{builder, disk, get, ram};

async fn sqlite(folder: &std::path::Path) -> CacheManager {
    let file = folder.join("tier.yaml");
    let dry = folder.join("dry").display().to_string();
    let text = format!(
        "hot_cache: {{ backend: ram, max_size: 1MB }}\n\
         dry_cache: {{ backend: sqlite, path: {dry}, max_size: 64MB }}\ntracking: {{ backend: none }}\n"
    );
    std::fs::write(&file, text).unwrap();
    Config::load(file, &Registry::builtin()).unwrap().open().await.unwrap()
}

// 57
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_caches_over_one_directory_count_to_four_thousand_and_keep_the_life() {
    let folder = tempfile::tempdir().unwrap();
    let first = sqlite(folder.path()).await;
    assert_eq!(first.counter_level().unwrap(), Level::Dry);
    let quick = Duration::from_millis(300);
    assert_eq!(first.incr("short").by(0).ttl(quick).await.unwrap(), 0);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let cache = sqlite(folder.path()).await;
        tasks.spawn(async move {
            for _ in 0..1_000 {
                cache.incr("n").ttl(Duration::from_secs(3_600)).await.unwrap();
            }
            cache.close(Duration::from_secs(10)).await.unwrap();
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(first.counter("n").await.unwrap(), Some(4_000));
    // Additions do not make a counter live longer than it was to.
    let born = tokio::time::Instant::now();
    while first.counter("short").await.unwrap().is_some() {
        first.incr("short").ttl(Duration::from_secs(3_600)).await.unwrap();
        if first.counter("short").await.unwrap() == Some(1) {
            first.remove_counter("short").await.unwrap();
        }
        assert!(born.elapsed() < Duration::from_secs(30), "it never dies");
    }
}

#[tokio::test]
async fn a_counter_begins_dies_and_begins_anew() {
    let clock = ManualClock::new();
    let cache = builder(&clock).hot(ram()).build().await.unwrap();
    assert_eq!(cache.counter("n").await.unwrap(), None);
    assert_eq!(cache.incr("n").await.unwrap(), 1);
    assert_eq!(cache.incr("n").by(9).await.unwrap(), 10);
    assert_eq!(cache.decr("n").by(12).await.unwrap(), -2);
    let minute = Duration::from_secs(60);
    assert_eq!(cache.decr("quota").start(100).ttl(minute).await.unwrap(), 99);
    clock.advance(minute / 2);
    assert_eq!(cache.decr("quota").start(100).ttl(minute).await.unwrap(), 98);
    clock.advance(minute / 2);
    assert_eq!(cache.counter("quota").await.unwrap(), None, "its life was not begun anew");
    assert_eq!(cache.decr("quota").start(100).ttl(minute).await.unwrap(), 99);
    assert!(cache.remove_counter("n").await.unwrap() && !cache.remove_counter("n").await.unwrap());
    assert_eq!(cache.incr("n").await.unwrap(), 1);
}

#[tokio::test]
async fn counters_and_values_do_not_know_each_other() {
    let cache = builder(&ManualClock::new()).hot(ram()).build().await.unwrap();
    cache.set("k", "v").await.unwrap();
    cache.incr("k").await.unwrap();
    assert_eq!(get(&cache, "k").await.unwrap(), "v");
    cache.delete("k").await.unwrap();
    assert_eq!(cache.counter("k").await.unwrap(), Some(1));
    let tenant = cache.namespace("tenant").unwrap();
    assert_eq!(tenant.counter("k").await.unwrap(), None);
    tenant.incr("k").by(2).await.unwrap();
    tenant.clear().await.unwrap();
    assert_eq!((tenant.counter("k").await.unwrap(), cache.counter("k").await.unwrap()), (None, Some(1)));
    cache.clear().await.unwrap();
    assert_eq!(cache.counter("k").await.unwrap(), None);
}

#[tokio::test]
async fn a_sum_out_of_range_adds_nothing() {
    let cache = builder(&ManualClock::new()).hot(ram()).build().await.unwrap();
    cache.incr("n").by(i64::MAX).await.unwrap();
    for told in [cache.incr("n").await.unwrap_err(), cache.decr("m").by(i64::MIN).await.unwrap_err()] {
        assert!(matches!(told, Error::InvalidOption { .. }), "{told:?}");
    }
    assert_eq!(cache.counter("n").await.unwrap(), Some(i64::MAX));
    assert_eq!(cache.counter("m").await.unwrap(), None);
    assert!(cache.incr("n").ttl(Duration::ZERO).await.is_err());
}

#[tokio::test]
async fn the_lowest_level_that_counts_has_the_counters_or_the_one_that_was_chosen() {
    let clock = ManualClock::new();
    let folder = tempfile::tempdir().unwrap();
    let store = MemoryTier::shared();
    let cache = builder(&clock).hot(ram()).cold(store.clone()).dry(disk(folder.path(), &clock).await);
    let cache = cache.build().await.unwrap();
    assert_eq!(cache.counter_level().unwrap(), Level::Cold, "the disk does not count");
    cache.incr("n").await.unwrap();
    let chosen = builder(&clock).hot(ram()).cold(store.reopen()).counters(Level::Hot).build().await.unwrap();
    assert_eq!((chosen.counter_level().unwrap(), chosen.counter("n").await.unwrap()), (Level::Hot, None));

    let folder = tempfile::tempdir().unwrap();
    let disk = disk(folder.path(), &clock).await;
    let none = builder(&clock).dry(disk.clone()).build().await.unwrap();
    let told = none.incr("n").await.unwrap_err();
    assert!(matches!(told, Error::Unsupported { .. }), "{told:?}");
    assert_eq!(told.to_string(), "this cache cannot count: none of its levels does");
    let told = builder(&clock).hot(ram()).dry(disk).counters(Level::Dry).build().await.unwrap_err();
    assert!(told.to_string().contains("`counters: dry`"), "{told}");
}

#[test]
fn counters_are_there_for_threads_without_a_runtime() {
    let cache = tiercache_core::BlockingCache::build(CacheManager::builder().hot(ram())).unwrap();
    assert_eq!(cache.incr("n", 3).unwrap(), 3);
    assert_eq!(cache.incr_with("n", |addition| addition.by(-1)).unwrap(), 2);
    assert_eq!(cache.counter("n").unwrap(), Some(2));
    assert!(cache.remove_counter("n").unwrap());
    let held = cache.lock("n", Duration::from_secs(60)).unwrap();
    assert!(cache.try_lock("n", Duration::from_secs(60)).unwrap().is_none());
    drop(held);
    drop(cache.lock("n", Duration::from_secs(60)).unwrap());
    assert!(matches!(cache.transaction(&["k"], |_| Ok(())), Err(Error::Unsupported { .. })));
    assert_eq!(cache.get_and_touch("k", None).unwrap(), None);
}
