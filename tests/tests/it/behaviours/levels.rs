//! Levels: where values are, sink to and rise from.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tiercache_core::testing::{Fault, FaultTier, ManualClock, MemoryTier, Op, Point, When};
use tiercache_core::tier::{Resident, Tier};
use tiercache_core::{CacheManager, Error, Level, Rules, Stats, Stay};
use tiercache_ram::{Policy, RamConfig, RamTier};
use tiercache_sqlite::{SqliteConfig, SqliteTier};
use tiercache_tests::doubles::RuntimeClock;
use tiercache_tests::rig::{Gated, builder, disk, entry, get, hold, id, level, ram, ram_for};

async fn stats(cache: &CacheManager) -> Stats {
    cache.stats().await.unwrap()
}

/// Hot, cold and dry in memory.
async fn three() -> (CacheManager, Arc<RamTier>, Arc<RamTier>) {
    let (hot, cold) = (ram(), ram());
    let levels = builder(&ManualClock::new()).hot(hot.clone()).cold(cold.clone());
    (levels.dry(MemoryTier::persistent()).build().await.unwrap(), hot, cold)
}

// 1
#[tokio::test]
async fn a_value_that_was_set_is_a_hot_hit() {
    let (cache, ..) = three().await;
    cache.set("k", "v").await.unwrap();
    assert_eq!(get(&cache, "k").await.unwrap(), "v");
    assert_eq!(stats(&cache).await.totals.hits, [1, 0, 0]);
}

// 2
#[tokio::test]
async fn a_cold_hit_makes_the_next_one_hot() {
    let (cache, hot, _) = three().await;
    cache.set("k", "v").await.unwrap();
    hot.drain();
    cache.settle().await.unwrap();
    for hits in [[0, 1, 0], [1, 1, 0]] {
        assert_eq!(get(&cache, "k").await.unwrap(), "v");
        assert_eq!(stats(&cache).await.totals.hits, hits);
    }
}

// 3
#[tokio::test]
async fn a_dry_hit_makes_the_next_one_hot() {
    let (cache, ..) = three().await;
    cache.set("k", "v").skip(Level::Hot).skip(Level::Cold).await.unwrap();
    assert_eq!(get(&cache, "k").await.unwrap(), "v");
    assert_eq!(stats(&cache).await.totals.hits, [0, 0, 1]);
    // It was set with those levels left out, which holds; one that sank there rises.
    let (cache, hot, cold) = three().await;
    cache.set("k", "v").await.unwrap();
    for above in [hot, cold] {
        above.drain();
        cache.settle().await.unwrap();
    }
    for hits in [[0, 0, 1], [1, 0, 1]] {
        assert_eq!(get(&cache, "k").await.unwrap(), "v");
        assert_eq!(stats(&cache).await.totals.hits, hits);
    }
}

// 4
#[tokio::test]
async fn a_miss_is_not_a_stored_nothing() {
    let (cache, ..) = three().await;
    assert_eq!(cache.get("k").await.unwrap(), None);
    assert_eq!(stats(&cache).await.totals.misses, 1);
    cache.set("empty", "").await.unwrap();
    assert_eq!(cache.get("empty").await.unwrap().unwrap(), "");
    let typed = cache.typed::<Option<u8>>();
    typed.set("null", None).unwrap().await.unwrap();
    assert_eq!(typed.get("null").await.unwrap().as_deref(), Some(&None));
    assert_eq!(typed.get("k").await.unwrap(), None);
    assert_eq!(stats(&cache).await.totals.misses, 2);
}

// 5
#[tokio::test]
async fn the_least_recently_used_makes_room_and_is_still_found() {
    let hot = ram_for(2, 6);
    let cache =
        builder(&ManualClock::new()).hot(hot.clone()).dry(MemoryTier::persistent()).build().await.unwrap();
    for key in ["a", "b", "c"] {
        cache.set(key, "12345").await.unwrap();
    }
    let held: Vec<_> =
        ["a", "b", "c"].into_iter().filter(|key| hot.peek(id(key).as_ref()).is_some()).collect();
    assert_eq!(held, ["b", "c"]);
    assert_eq!(get(&cache, "a").await.unwrap(), "12345");
}

// 6
#[tokio::test(start_paused = true)]
async fn an_evicted_key_is_readable_while_a_slow_level_writes_it() {
    let slow = FaultTier::new(MemoryTier::persistent());
    slow.inject(Op::Put, When::Always, Fault::Delay(Duration::from_millis(50)));
    let hot = ram();
    let levels = CacheManager::builder().clock(RuntimeClock::start()).hot(hot.clone());
    let cache = levels.dry(Arc::new(slow)).build().await.unwrap();
    for n in 0..50 {
        cache.set("k", n.to_string()).await.unwrap();
        hot.drain();
        for _ in 0..12 {
            assert_eq!(get(&cache, "k").await.unwrap(), n.to_string());
            hot.drain();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

// 7
#[tokio::test]
async fn what_hot_has_no_room_for_is_found_in_cold() {
    let (hot, cold) = (ram_for(10, 103), ram());
    let cache =
        builder(&ManualClock::new()).hot(hot).cold(cold).dry(MemoryTier::persistent()).build().await.unwrap();
    for n in 0..100 {
        cache.set(format!("k{n:02}"), [b'v'; 100].to_vec()).await.unwrap();
    }
    cache.settle().await.unwrap();
    let stats = stats(&cache).await;
    let cold = stats.levels[1].usage.unwrap();
    assert!(cold.entries == Some(90) && cold.bytes.unwrap() >= 9_000, "{cold:?}");
    assert_eq!(level(&cache, "k00").await, Some(Level::Cold));
}

// 8
#[tokio::test]
async fn what_stayed_its_time_in_hot_is_answered_from_below() {
    let clock = ManualClock::new();
    let rules = Rules { rules: Vec::new(), defaults: [Some(Stay::For(Duration::from_secs(1))), None, None] };
    for swept in [false, true] {
        let (hot, cold) = (ram(), ram());
        let levels = builder(&clock).rules(rules.clone()).hot(hot.clone()).cold(cold);
        let cache = levels.build().await.unwrap();
        cache.set("k", "v").await.unwrap();
        clock.advance(Duration::from_millis(1_100));
        if swept {
            assert_eq!(cache.prune().await.unwrap(), (0, 1));
            cache.settle().await.unwrap();
            assert_eq!(hot.peek(id("k").as_ref()), None);
        }
        assert_eq!(level(&cache, "k").await, Some(Level::Cold));
        assert_eq!(level(&cache, "k").await, Some(Level::Hot), "it rose again");
    }
}

// 9
#[tokio::test]
async fn a_hit_renews_the_stay() {
    let clock = ManualClock::new();
    let rules = Rules { rules: Vec::new(), defaults: [Some(Stay::For(Duration::from_secs(1))), None, None] };
    let cache = builder(&clock).rules(rules).hot(ram()).cold(ram()).build().await.unwrap();
    cache.set("k", "v").await.unwrap();
    for hits in 1..=5 {
        clock.advance(Duration::from_millis(400));
        cache.prune().await.unwrap();
        assert_eq!(get(&cache, "k").await.unwrap(), "v");
        assert_eq!(stats(&cache).await.totals.hits, [hits, 0, 0]);
    }
}

// 10
#[tokio::test]
async fn an_overwritten_value_does_not_come_back_from_below() {
    let rig = Gated::new().await;
    rig.sunk("k", "old").await;
    rig.cache.set("k", "new").await.unwrap();
    rig.cache.flush(Level::Hot).await.unwrap();
    assert_ne!(get(&rig.cache, "k").await.as_deref(), Some("old"));
}

// 11 and 12
#[tokio::test]
async fn a_slow_dry_read_that_a_mutation_overtook_changes_nothing_later() {
    for deleted in [false, true] {
        let rig = Gated::new().await;
        rig.sunk("k", "old").await;
        rig.gate.close_gate(Point::Before(Op::Get));
        let reader = rig.spawn_get("k");
        rig.gate.held(Point::Before(Op::Get)).await;
        if deleted {
            rig.cache.delete("k").await.unwrap();
        } else {
            rig.cache.set("k", "new").await.unwrap();
        }
        rig.gate.open_gate(Point::Before(Op::Get));
        reader.await.unwrap();
        for _ in 0..3 {
            assert_eq!(get(&rig.cache, "k").await.as_deref(), (!deleted).then_some("new"));
            rig.evict();
            rig.cache.settle().await.unwrap();
        }
    }
}

// 13
#[tokio::test]
async fn a_delete_reaches_what_waits_to_sink() {
    let rig = Gated::new().await;
    rig.cache.set("k", "v").await.unwrap();
    rig.evict();
    assert!(rig.cache.delete("k").await.unwrap().found);
    assert_eq!(get(&rig.cache, "k").await, None);
    rig.cache.settle().await.unwrap();
    assert_eq!((get(&rig.cache, "k").await, rig.in_dry("k").await), (None, None));
}

// 14
#[tokio::test]
async fn a_flush_reaches_what_waits_to_sink() {
    for level in [Level::Hot, Level::Dry] {
        for held in [false, true] {
            let rig = Gated::new().await;
            for n in 0..10 {
                rig.cache.set(format!("k{n}"), "v").await.unwrap();
            }
            rig.evict();
            let point = Point::Before(Op::Put);
            if held {
                rig.gate.close_gate(point);
            }
            let worker = held.then(|| rig.spawn_settle());
            if held {
                rig.gate.held(point).await;
            }
            let flushing = tokio::spawn({
                let cache = rig.cache.clone();
                async move { cache.flush(level).await.unwrap() }
            });
            tiercache_tests::rig::idle().await;
            rig.gate.open_gate(point);
            flushing.await.unwrap();
            if let Some(worker) = worker {
                worker.await.unwrap();
            }
            rig.cache.settle().await.unwrap();
            let mut found = 0;
            for n in 0..10 {
                found += usize::from(get(&rig.cache, &format!("k{n}")).await.is_some());
            }
            // The one that was being written when hot was flushed is dry's by then.
            let most = usize::from(held && level == Level::Hot);
            assert!(found <= most, "{level} {held}: {found} are back");
        }
    }
}

// 15
#[tokio::test]
async fn overwriting_with_a_larger_value_sinks_nothing_old() {
    let store = MemoryTier::persistent();
    let hot = ram_for(3, 101);
    let cache = builder(&ManualClock::new()).hot(hot.clone()).dry(store.clone()).build().await.unwrap();
    for key in ["k", "a", "b"] {
        cache.set(key, [b'o'; 100].to_vec()).await.unwrap();
    }
    // The least recently used is overwritten by what needs the room of others.
    cache.set("k", [b'n'; 400].to_vec()).await.unwrap();
    cache.settle().await.unwrap();
    assert!(store.get(&id("k")).await.unwrap().is_none_or(|entry| entry.value.len() == 400));
    assert_eq!(cache.get("k").await.unwrap().unwrap().len(), 400);
    let usage = hot.usage().await.unwrap();
    let held = ["k", "a", "b"].map(|key| hot.peek(id(key).as_ref()));
    let bytes = held.iter().flatten().map(|held| Policy::Lru.overhead() + 2 + held.entry.value.len() as u64);
    assert_eq!(usage.bytes, Some(bytes.sum()));
}

// 16
#[tokio::test]
async fn sizes_add_up_and_stay_within_the_limit_whatever_happens() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    for policy in [Policy::Adaptive, Policy::Lru] {
        let hot = Arc::new(RamTier::new(RamConfig { max_size: 40_000, policy }));
        let cold = Arc::new(RamTier::new(RamConfig { max_size: 60_000, policy }));
        let place = dir.path().join(format!("{policy:?}"));
        std::fs::create_dir(&place).unwrap();
        let dry = disk(&place, &clock).await;
        let cache =
            builder(&clock).hot(hot.clone()).cold(cold.clone()).dry(dry.clone()).build().await.unwrap();
        let mut random = 7u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        for step in 0..10_000 {
            let key = format!("key {:03}", next(300));
            match next(100) {
                0..45 => drop(cache.set(&key, vec![b'v'; next(900) as usize]).await.unwrap()),
                45..85 => drop(cache.get(&key).await.unwrap()),
                85..97 => drop(cache.delete(&key).await.unwrap()),
                97..99 => cache.settle().await.unwrap(),
                _ => cache.flush(Level::ALL[next(3) as usize]).await.unwrap(),
            }
            for tier in [&hot as &Arc<RamTier>, &cold] {
                let usage = tier.usage().await.unwrap();
                assert!(usage.bytes <= usage.capacity, "{policy:?} {step}: {usage:?}");
            }
            let usage = dry.usage().await.unwrap();
            assert!(usage.bytes <= usage.capacity, "{policy:?} {step}: {usage:?}");
        }
        cache.settle().await.unwrap();
        for tier in [&hot, &cold] {
            let held = (0..300).filter_map(|n| tier.peek(id(&format!("key {n:03}")).as_ref()));
            let bytes = held.map(|held| policy.overhead() + 8 + held.entry.value.len() as u64);
            assert_eq!(tier.usage().await.unwrap().bytes, Some(bytes.sum()), "{policy:?}");
        }
        let mut listed = 0;
        for n in 0..300 {
            listed += u64::from(dry.get(&id(&format!("key {n:03}"))).await.unwrap().is_some());
        }
        assert_eq!(dry.usage().await.unwrap().entries, Some(listed), "{policy:?}");
    }
}

// 17
#[tokio::test]
async fn a_value_larger_than_hot_pushes_nothing_out_and_goes_below_or_is_refused() {
    let hot = ram_for(5, 101);
    let cache =
        builder(&ManualClock::new()).hot(hot.clone()).dry(MemoryTier::persistent()).build().await.unwrap();
    for key in ["a", "b", "c"] {
        cache.set(key, [b'v'; 100].to_vec()).await.unwrap();
    }
    cache.set("large", vec![b'l'; 1 << 20]).await.unwrap();
    for key in ["a", "b", "c"] {
        assert!(hot.peek(id(key).as_ref()).is_some(), "{key}");
    }
    let large = cache.entry("large").await.unwrap().unwrap();
    assert_eq!((large.level, large.value.len()), (Level::Dry, 1 << 20));
    let alone = builder(&ManualClock::new()).hot(ram_for(5, 101)).build().await.unwrap();
    let refused = alone.set("large", vec![b'l'; 1 << 20]).await;
    assert!(matches!(refused, Err(Error::TooLarge { .. })), "{refused:?}");
}

// 18
#[tokio::test]
async fn a_structured_value_counts_with_all_that_is_in_it() {
    #[derive(Serialize, Deserialize)]
    struct Page {
        title: String,
        picture: Vec<u8>,
    }
    let hot = ram();
    let cache = builder(&ManualClock::new()).hot(hot.clone()).build().await.unwrap();
    let page = Page { title: "a page".into(), picture: vec![1; 1 << 20] };
    cache.typed::<Page>().set("page", page).unwrap().await.unwrap();
    assert!(hot.usage().await.unwrap().bytes.unwrap() >= 1 << 20);
}

// 19
#[tokio::test]
async fn fifty_gets_of_one_dry_key_read_dry_once() {
    let store = MemoryTier::persistent();
    store.put(&id("k"), &entry("v", 1), hold(), &tiercache_core::tier::Always).await.unwrap();
    let counted = Arc::new(FaultTier::new(store));
    let cache = builder(&ManualClock::new()).hot(ram()).dry(counted.clone()).build().await.unwrap();
    let gets: Vec<_> = (0..50)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { get(&cache, "k").await })
        })
        .collect();
    for found in gets {
        assert_eq!(found.await.unwrap().unwrap(), "v");
    }
    assert_eq!(counted.calls(Op::Get), 1);
}

// 67
#[tokio::test]
async fn more_than_memory_holds_is_found_again_in_one_call_and_cleared_to_the_last_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("level");
    let config = SqliteConfig { path: Some(path.clone()), ..SqliteConfig::default() };
    let clock = ManualClock::new();
    let dry = Arc::new(SqliteTier::open(config, clock.clone()).await.unwrap());
    let hot = Arc::new(RamTier::new(RamConfig { max_size: 1 << 20, policy: Policy::Adaptive }));
    let cache = builder(&clock).hot(hot).dry(dry).build().await.unwrap();
    let keys: Vec<String> = (0..50).map(|number| format!("key {number}")).collect();
    let value = |key: &String| key.repeat(100_000 / key.len());
    for written in cache.set_many(keys.iter().map(|key| (key, value(key)))).await {
        assert!(written.unwrap().stored);
    }
    cache.settle().await.unwrap();
    for (key, found) in keys.iter().zip(cache.get_many(&keys).await.unwrap()) {
        assert_eq!(found.unwrap(), value(key), "{key}");
    }
    let files = || {
        let shards = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
        let shards = shards.filter(|path| path.is_dir());
        shards.map(|shard| std::fs::read_dir(shard).unwrap().count()).sum::<usize>()
    };
    assert!(files() > 30, "large values are files: {}", files());
    cache.clear().await.unwrap();
    for _ in 0..100 {
        cache.prune().await.unwrap();
        cache.settle().await.unwrap();
        if files() == 0 {
            break;
        }
        tokio::task::spawn_blocking(std::thread::yield_now).await.unwrap();
    }
    assert_eq!(cache.get_many(&keys).await.unwrap(), vec![None; 50]);
    assert!(cache.close(Duration::from_secs(10)).await.unwrap().is_clean());
    assert_eq!(files(), 0, "no file is left");
}

// 68
#[tokio::test]
async fn what_sank_rose_and_sank_again_is_found() {
    let hot = ram_for(1, 6);
    let dry = Arc::new(FaultTier::new(MemoryTier::persistent()));
    let cache = builder(&ManualClock::new()).hot(hot.clone()).dry(dry.clone()).build().await.unwrap();
    for written in cache.set_many([("a", "12345"), ("b", "12345"), ("c", "12345")]).await {
        assert!(written.unwrap().stored);
    }
    for _ in 0..3 {
        cache.settle().await.unwrap();
        let found = cache.get_many(&["a", "b", "c"]).await.unwrap();
        assert!(found.iter().all(|found| found.as_deref() == Some(b"12345")), "{found:?}");
    }
    for key in ["a", "b", "c", "a"] {
        assert_eq!(get(&cache, key).await.unwrap(), "12345", "{key}");
    }
}
