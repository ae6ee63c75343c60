//! Listings without tracking, of caches whose entries move.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tiercache::transfer::Migrate;
use tiercache_core::testing::{Fault, FaultTier, ManualClock, MemoryTier, Op, Point, When};
use tiercache_core::tier::{Always, Resident};
use tiercache_core::tracking::{Query, Record};
use tiercache_core::{CacheManager, Error, Generation, Level, Tier};
use tiercache_ram::{Policy, RamConfig, RamTier};
use tiercache_tests::rig::{Gated, builder, entry, get, hold, id, ram};

const POLICIES: [Policy; 4] = [Policy::Adaptive, Policy::Lru, Policy::TinyLfu, Policy::Fifo];
const KEYS: u64 = 300;

async fn listed(cache: &CacheManager, query: Query) -> Vec<Record> {
    cache.keys(query).page(usize::MAX).await.unwrap()
}

fn names(records: &[Record]) -> Vec<String> {
    let mut names: Vec<_> = records.iter().map(|record| record.key.display().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn ram_alone_is_listed_and_purged() {
    for policy in POLICIES {
        let clock = ManualClock::new();
        let hot = Arc::new(RamTier::new(RamConfig { max_size: 1 << 20, policy }));
        let cache = builder(&clock).hot(hot).build().await.unwrap();
        cache.set("user:1", "12345").tag("type", "user").await.unwrap();
        cache.set("user:2", "v").await.unwrap();
        cache.set("dies", "v").ttl(Duration::from_secs(10)).await.unwrap();
        cache.set("tagged", "v").tag("type", "page").await.unwrap();
        let tenant = cache.namespace("tenant").unwrap();
        tenant.set("user:1", "v").await.unwrap();
        let all = listed(&cache, Query::all()).await;
        assert_eq!(names(&all), ["dies", "tagged", "user:1", "user:1", "user:2"], "{policy:?}");
        let prefix = Query { prefix: b"user:1".into(), ..Query::default() };
        let records = listed(&cache, Query { namespace: Some(String::new()), ..prefix }).await;
        let [record] = &records[..] else { panic!("{policy:?}: {records:?}") };
        assert_eq!((record.level, record.size, &record.tags["type"][..]), (Level::Hot, 5, "user"));
        assert_eq!(listed(&tenant, Query::all()).await.len(), 1, "{policy:?}");
        clock.advance(Duration::from_secs(10));
        cache.invalidate_tag("type", "page").await.unwrap();
        let left = listed(&cache, Query::all()).await;
        assert_eq!(
            names(&left),
            ["user:1", "user:1", "user:2"],
            "{policy:?}: neither what is dead nor past its time"
        );
        assert_eq!(cache.purge("user:*").await.unwrap().keys, 3);
        assert!(listed(&cache, Query::all()).await.is_empty(), "{policy:?}");
    }
}

#[tokio::test]
async fn more_than_a_page_of_ram_is_listed_once() {
    for policy in POLICIES {
        let hot = Arc::new(RamTier::new(RamConfig { max_size: 256 << 20, policy }));
        let cache =
            builder(&ManualClock::new()).hot(hot).dry(MemoryTier::persistent()).build().await.unwrap();
        for number in 0..150_000 {
            cache.set(format!("{number:06}"), "v").await.unwrap();
        }
        let names = names(&listed(&cache, Query::all()).await);
        assert_eq!(names.len(), 150_000, "{policy:?}");
        assert!(names.iter().enumerate().all(|(number, name)| *name == format!("{number:06}")), "{policy:?}");
    }
}

/// In RAM, waiting on the way down, being written, and below, with copies.
#[tokio::test]
async fn what_is_on_its_way_down_is_listed_and_exported_without_tracking() {
    let rig = Gated::new().await;
    rig.sunk("below", "v").await;
    rig.sunk("risen", "v").await;
    assert_eq!(get(&rig.cache, "risen").await.unwrap(), "v");
    rig.gate.close_gate(Point::Before(Op::Put));
    for key in ["on its way", "waits"] {
        rig.cache.set(key, "v").await.unwrap();
        rig.evict();
    }
    let worker = rig.spawn_settle();
    rig.gate.held(Point::Before(Op::Put)).await;
    rig.cache.set("in RAM", "v").await.unwrap();
    let all = ["below", "in RAM", "on its way", "risen", "waits"];
    assert_eq!(names(&listed(&rig.cache, Query::all()).await), all);
    let to = builder(&rig.clock).hot(ram()).build().await.unwrap();
    let report = Migrate::new(&rig.cache, &to).run().await.unwrap();
    assert_eq!((report.read, report.stored), (5, 5), "{report:?}");
    assert_eq!(names(&listed(&to, Query::all()).await), all);
    rig.gate.open_gate(Point::Before(Op::Put));
    worker.await.unwrap();
    assert_eq!(names(&listed(&rig.cache, Query::all()).await), all);
}

/// Below, more keys than the page that is asked for at a time.
async fn two_pages() -> Gated {
    let rig = Gated::new().await;
    for number in 0..KEYS {
        let key = id(&format!("key {number:03}"));
        rig.store.put(&key, &entry("v", 1), hold(), &Always).await.unwrap();
    }
    rig
}

/// The last key rises, and the level below gives up its copy.
async fn rise(rig: &Gated) -> String {
    let key = format!("key {:03}", KEYS - 1);
    assert_eq!(get(&rig.cache, &key).await.unwrap(), "v");
    rig.store.remove(&id(&key), Generation::new(2)).await.unwrap();
    key
}

#[tokio::test]
async fn what_rises_before_it_is_met_below_is_purged() {
    let rig = two_pages().await;
    rig.gate.close_gate(Point::Before(Op::Remove));
    let cache = rig.cache.clone();
    let purge = tokio::spawn(async move { cache.purge("*").await.unwrap() });
    rig.gate.held(Point::Before(Op::Remove)).await;
    let key = rise(&rig).await;
    rig.gate.open_gate(Point::Before(Op::Remove));
    assert_eq!(purge.await.unwrap().keys, KEYS);
    assert_eq!(get(&rig.cache, &key).await, None);
}

#[tokio::test]
async fn what_rises_before_it_is_met_below_is_carried_over() {
    let rig = two_pages().await;
    let mut scan = rig.cache.scan(Query::all());
    let mut found = vec![scan.next().await.unwrap().unwrap()];
    let key = rise(&rig).await;
    while let Some(record) = scan.next().await.unwrap() {
        found.push(record);
    }
    assert!(names(&found).contains(&key));
    assert_eq!(found.len() as u64, KEYS);
}

#[tokio::test]
async fn a_purge_tells_which_levels_lag() {
    let dry = Arc::new(FaultTier::new(MemoryTier::persistent()));
    let cache = builder(&ManualClock::new()).hot(ram()).dry(dry.clone()).build().await.unwrap();
    for key in ["user:1", "user:2", "page:1"] {
        cache.set(key, "v").await.unwrap();
    }
    dry.inject(Op::Remove, When::Always, Fault::FailBefore);
    let purged = cache.purge("user:*").await.unwrap();
    assert!(matches!(&purged.degraded[..], [(Level::Dry, Error::Unavailable { .. })]), "{purged:?}");
    assert_eq!(purged.keys, 2);
    dry.heal();
    assert!(cache.purge("page:*").await.unwrap().degraded.is_empty());
}

/// Caches of one, two and three levels of which RAM is the top; the last has room for all.
async fn caches(policy: Policy) -> Vec<(CacheManager, Arc<RamTier>)> {
    let ram = |entries| {
        let max_size = entries * (policy.overhead() + 20);
        Arc::new(RamTier::new(RamConfig { max_size, policy }))
    };
    let mut caches = Vec::new();
    for (cold, dry) in [(Some(2_000), false), (None, true), (Some(100), true)] {
        let hot = ram(120);
        let mut builder = builder(&ManualClock::new()).hot(hot.clone());
        if let Some(entries) = cold {
            builder = builder.cold(ram(entries));
        }
        if dry {
            builder = builder.dry(MemoryTier::persistent());
        }
        caches.push((builder.build().await.unwrap(), hot));
    }
    caches
}

/// Something that moves entries, and never changes those that stay.
struct Churn {
    cache: CacheManager,
    hot: Arc<RamTier>,
    random: u64,
    comes: u64,
}

impl Churn {
    async fn begin(cache: &CacheManager, hot: &Arc<RamTier>, seed: u64) -> Self {
        let mut churn = Self { cache: cache.clone(), hot: hot.clone(), random: seed, comes: 0 };
        for number in 0..KEYS {
            cache.set(format!("stays {number}"), "v").await.unwrap();
            churn.step().await;
        }
        churn
    }

    fn next(&mut self, below: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    async fn step(&mut self) {
        match self.next(100) {
            0..60 => {
                let key = format!("stays {}", self.next(KEYS));
                self.cache.get(&key).await.unwrap();
            }
            60..68 => {
                self.comes += 1;
                self.cache.set(format!("comes {}", self.comes), "v").await.unwrap();
            }
            68..80 => self.cache.settle().await.unwrap(),
            80..82 => self.hot.drain(),
            _ => {}
        }
    }
}

#[tokio::test]
async fn what_stays_is_listed_once_wherever_it_moves() {
    for policy in POLICIES {
        for seed in 0..60 {
            for (levels, (cache, hot)) in caches(policy).await.into_iter().enumerate() {
                let mut churn = Churn::begin(&cache, &hot, seed).await;
                let mut told = BTreeMap::<String, u32>::new();
                let mut keys = cache.keys(Query::all());
                while let Some(record) = keys.next().await.unwrap() {
                    *told.entry(record.key.display().into_owned()).or_default() += 1;
                    churn.step().await;
                }
                for number in 0..KEYS {
                    let times = told.get(&format!("stays {number}"));
                    assert_eq!(times, Some(&1), "stays {number}: {policy:?}, seed {seed}, levels {levels}");
                }
                let twice = told.iter().find(|&(_, &times)| times > 1);
                assert_eq!(twice, None, "{policy:?}, seed {seed}, levels {levels}");
            }
        }
    }
}

#[tokio::test]
async fn a_purge_leaves_nothing_behind_that_moves() {
    for policy in POLICIES {
        for seed in 100..130 {
            for (levels, (cache, hot)) in caches(policy).await.into_iter().enumerate() {
                let mut churn = Churn::begin(&cache, &hot, seed).await;
                let moving = async {
                    for _ in 0..1_000 {
                        churn.step().await;
                        tokio::task::yield_now().await;
                    }
                };
                let purge = async {
                    let mut purged = 0;
                    let mut keys = cache.keys(Query { prefix: b"stays".into(), ..Query::default() });
                    while let Some(record) = keys.next().await.unwrap() {
                        tokio::task::yield_now().await;
                        purged += u64::from(cache.delete(&record.key).await.unwrap().found);
                    }
                    purged
                };
                let (purged, ()) = tokio::join!(purge, moving);
                assert_eq!(purged, KEYS, "{policy:?}, seed {seed}, levels {levels}");
            }
        }
    }
}
