//! What is remembered of keys, what is counted, and backends of one's own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tiercache_core::testing::{Fault, FaultTier, ManualClock, MemoryTier, Op, When};
use tiercache_core::tier::Resident;
use tiercache_core::tracking::Query;
use tiercache_core::{CacheManager, Level, Tags, Tracking};
use tiercache_tests::rig::{builder, disk, get, id, ram};
use tiercache_tracking::{MemoryTracking, SqliteConfig, SqliteTracking};

// 74
#[tokio::test]
async fn every_operation_goes_through_a_backend_of_ones_own() {
    let own = Arc::new(FaultTier::new(MemoryTier::persistent()));
    let cache = builder(&ManualClock::new()).dry(own.clone()).build().await.unwrap();
    let calls = || [Op::Get, Op::Put, Op::Remove, Op::Clear, Op::Usage].map(|op| own.calls(op));
    let went = async |before: [u64; 5], expected: [bool; 5], what: &str| {
        let after = calls();
        let went = [0, 1, 2, 3, 4].map(|at| after[at] > before[at]);
        assert!((0..5).all(|at| went[at] || !expected[at]), "{what}: {went:?}");
    };
    let before = calls();
    cache.set("k", "v").await.unwrap();
    went(before, [false, true, false, false, false], "set").await;
    let before = calls();
    assert_eq!(get(&cache, "k").await.unwrap(), "v");
    went(before, [true, false, false, false, false], "get").await;
    let before = calls();
    assert!(cache.contains("k").await.unwrap());
    went(before, [true, false, false, false, false], "exists").await;
    let before = calls();
    cache.delete("k").await.unwrap();
    went(before, [false, false, true, false, false], "delete").await;
    let before = calls();
    cache.clear().await.unwrap();
    went(before, [false, false, false, true, false], "clear").await;
    let before = calls();
    assert_eq!(cache.stats().await.unwrap().levels[0].usage.unwrap().entries, Some(0));
    went(before, [false, false, false, false, true], "stats").await;
    assert_eq!(get(&cache, "k").await, None);
}

// 79 (tracking that is down: the hazards)
#[tokio::test]
async fn a_level_that_is_down_hides_nothing_the_others_have_and_is_seen_in_the_statistics() {
    let clock = ManualClock::new();
    let (hot, down) = (ram(), Arc::new(FaultTier::new(MemoryTier::persistent())));
    let up = MemoryTier::persistent();
    let cache = builder(&clock).hot(hot.clone()).cold(down.clone()).dry(up.clone()).build().await.unwrap();
    cache.set("hot", "v").await.unwrap();
    cache.set("dry", "v").pin(Level::Dry).await.unwrap();
    for op in [Op::Get, Op::Put, Op::Remove, Op::Usage] {
        down.inject(op, When::Always, Fault::FailBefore);
    }
    for _ in 0..10 {
        assert_eq!(get(&cache, "hot").await.unwrap(), "v");
        assert_eq!(get(&cache, "dry").await.unwrap(), "v");
    }
    let stats = cache.stats().await.unwrap();
    let level = &stats.levels[1];
    assert!(level.breaker_open && level.breaker_opened == 1 && level.usage.is_none(), "{level:?}");
    assert_eq!(stats.totals.hits, [10, 0, 10]);
    assert_eq!(cache.delete("hot").await.unwrap().degraded[0].0, Level::Cold);
    assert_eq!(cache.stats().await.unwrap().degraded, 1);
}

// 80
#[tokio::test]
async fn the_record_of_a_key_is_true_at_every_step() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let sqlite = SqliteConfig { path: dir.path().join("tracking").join("index.db") };
    let stores: [Arc<dyn Tracking>; 2] = [
        Arc::new(MemoryTracking::new(&Default::default())),
        Arc::new(SqliteTracking::open(sqlite).await.unwrap()),
    ];
    for (n, tracking) in stores.into_iter().enumerate() {
        let place = dir.path().join(n.to_string());
        std::fs::create_dir(&place).unwrap();
        let (hot, cold) = (ram(), ram());
        let cache = builder(&clock)
            .hot(hot.clone())
            .cold(cold.clone())
            .dry(disk(&place, &clock).await)
            .tracking(tracking.clone())
            .build()
            .await
            .unwrap();
        let began = tiercache_core::Clock::now(&*clock);
        let tags = Tags::from([("type".to_string(), "page".to_string())]);
        let is = async |level: Option<Level>, hits: u64, what: &str| {
            cache.prune().await.unwrap();
            cache.settle().await.unwrap();
            let record = tracking.lookup(&id("k")).await.unwrap();
            assert_eq!(record.as_ref().map(|record| record.level), level, "{n}: {what}");
            let Some(record) = record else { return };
            assert_eq!((record.hits, &record.tags, record.size), (hits, &tags, 5), "{n}: {what}");
            assert_eq!(record.deadline, began.after(Duration::from_secs(600)), "{n}: {what}");
        };
        cache.set("k", "value").ttl(Duration::from_secs(600)).tag("type", "page").await.unwrap();
        is(Some(Level::Hot), 0, "set").await;
        for _ in 0..3 {
            get(&cache, "k").await.unwrap();
        }
        is(Some(Level::Hot), 3, "three hits").await;
        assert_eq!(cache.entry("k").await.unwrap().unwrap().hits, 4);
        hot.drain();
        is(Some(Level::Cold), 4, "evicted").await;
        cold.drain();
        is(Some(Level::Dry), 4, "and again").await;
        get(&cache, "k").await.unwrap();
        is(Some(Level::Hot), 5, "promoted").await;
        for level in [Level::Dry, Level::Hot] {
            cache.flush(level).await.unwrap();
        }
        is(None, 0, "flushed").await;
        assert_eq!(cache.keys(Query::all()).page(10).await.unwrap(), []);
        assert_eq!(get(&cache, "k").await, None);
    }
}

/// A copy stays below what rose from there: when hot is flushed it is dry's again, and listed as such.
#[tokio::test]
async fn after_a_flush_of_hot_tracking_knows_what_dry_still_has() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let hot = ram();
    let tracking = Arc::new(MemoryTracking::new(&Default::default()));
    let dry = disk(dir.path(), &clock).await;
    let cache = builder(&clock).hot(hot.clone()).dry(dry).tracking(tracking).build().await.unwrap();
    cache.set("k", "v").await.unwrap();
    hot.drain();
    cache.settle().await.unwrap();
    assert_eq!(get(&cache, "k").await.unwrap(), "v");
    cache.flush(Level::Hot).await.unwrap();
    let listed = async || cache.keys(Query::all()).page(10).await.unwrap().len();
    assert_eq!(listed().await, 1, "dry has it");
    assert_eq!(get(&cache, "k").await.unwrap(), "v");
    assert_eq!(listed().await, 1, "and hot again");
    assert_eq!(cache.purge("*").await.unwrap().keys, 1);
    assert_eq!(get(&cache, "k").await, None, "what is there is purged");
}

// 81
#[tokio::test]
async fn a_hot_hit_does_not_wait_for_tracking_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let config = SqliteConfig { path: dir.path().join("tracking").join("index.db") };
    let tracking = SqliteTracking::open(config).await.unwrap();
    let cache = CacheManager::builder().hot(ram()).tracking(Arc::new(tracking)).build().await.unwrap();
    cache.set("k", vec![b'v'; 256]).await.unwrap();
    let mut took: Vec<Duration> = Vec::new();
    for _ in 0..1_000 {
        let began = Instant::now();
        cache.get("k").await.unwrap().unwrap();
        took.push(began.elapsed());
    }
    took.sort();
    assert!(took[500] < Duration::from_micros(2), "{:?}", took[500]);
    cache.settle().await.unwrap();
    assert_eq!(cache.entry("k").await.unwrap().unwrap().hits, 1_001);
}

// 85
#[tokio::test]
async fn what_a_caller_does_with_an_answer_changes_nothing() {
    let cache = builder(&ManualClock::new()).hot(ram()).build().await.unwrap();
    cache.set("k", "value").await.unwrap();
    let mut answer: Bytes = cache.get("k").await.unwrap().unwrap();
    answer.truncate(2);
    let mut copy = bytes::BytesMut::from(cache.get("k").await.unwrap().unwrap());
    copy.fill(b'x');
    if let Ok(mut own) = cache.get("k").await.unwrap().unwrap().try_into_mut() {
        own.fill(b'x');
    }
    let mut vec: Vec<u8> = cache.get("k").await.unwrap().unwrap().into();
    vec.fill(b'x');
    assert_eq!(get(&cache, "k").await.unwrap(), "value");

    let typed = cache.typed::<Vec<u8>>();
    typed.set("list", vec![1, 2, 3]).unwrap().await.unwrap();
    let mut list = typed.get("list").await.unwrap().unwrap();
    Arc::make_mut(&mut list).clear();
    assert_eq!(*typed.get("list").await.unwrap().unwrap(), [1, 2, 3]);
    // Nor does what the caller does with what it gave.
    let mut given = vec![1, 2, 3];
    cache.set("given", given.clone()).await.unwrap();
    given.clear();
    assert_eq!(cache.get("given").await.unwrap().unwrap(), [1, 2, 3].as_slice());
}
