//! Levels that hang, fail or are overrun.

use std::sync::Arc;
use std::time::Duration;

use tiercache_core::testing::{Fault, FaultTier, GateTier, ManualClock, MemoryTier, Op, Point, When};
use tiercache_core::tier::{Resident, Tier};
use tiercache_core::{CacheManager, Level, Limits, Write};
use tiercache_ram::{Policy, RamConfig, RamTier};
use tiercache_tests::doubles::RuntimeClock;
use tiercache_tests::rig::{Gated, builder, get, id, idle, ram, ram_for};
use tokio::time::Instant;

const DEADLINE: Duration = Duration::from_millis(100);
const LIMITS: Limits = Limits { read_timeout: DEADLINE, write_timeout: Duration::from_secs(10) };

/// How long something took, by the runtime's clock.
async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let began = Instant::now();
    (work.await, began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn h22_a_lower_level_that_hangs_for_ten_minutes_of_writes_takes_no_more_than_the_bound() {
    const BOUND: u64 = 256 << 10;
    let store = MemoryTier::persistent();
    let dry = Arc::new(FaultTier::new(store.clone()));
    let hot = ram_for(50, 1_100);
    let cache = CacheManager::builder()
        .clock(RuntimeClock::start())
        .hot(hot.clone())
        .dry(dry.clone())
        .limits(Level::Dry, LIMITS)
        .pending_bytes(BOUND)
        .build()
        .await
        .unwrap();
    for op in [Op::Put, Op::Get, Op::Remove] {
        dry.inject(op, When::Always, Fault::Hang);
    }
    let began = Instant::now();
    let mut n = 0;
    while began.elapsed() < Duration::from_secs(600) {
        cache.set(format!("key {}", n % 5_000), vec![b'v'; 1_000]).await.unwrap();
        n += 1;
        let (_, waiting) = cache.stats().await.unwrap().pending;
        assert!(waiting <= BOUND, "{waiting} bytes wait after {:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let usage = hot.usage().await.unwrap();
    assert!(usage.bytes <= usage.capacity, "{usage:?}");
    let stats = cache.stats().await.unwrap();
    assert!(stats.overflowed > 1_000, "what is dropped is counted: {stats:?}");
    // It is back: the way down clears, and what waited is there.
    dry.heal();
    tokio::time::sleep(Duration::from_secs(30)).await;
    cache.set("last", "v").await.unwrap();
    hot.drain();
    cache.settle().await.unwrap();
    let stats = cache.stats().await.unwrap();
    assert_eq!((stats.pending, stats.in_flight), ((0, 0), 0));
    assert_eq!(store.get(&id("last")).await.unwrap().unwrap().value, "v");
}

#[tokio::test]
async fn h22_writing_the_same_keys_over_and_over_stays_within_the_limit_of_every_policy() {
    for policy in [Policy::Adaptive, Policy::Lru, Policy::TinyLfu] {
        let hot = Arc::new(RamTier::new(RamConfig { max_size: 1 << 20, policy }));
        let cache = builder(&ManualClock::new()).hot(hot.clone()).build().await.unwrap();
        for n in 0..60_000u32 {
            let size = 100 + n.wrapping_mul(2_654_435_761) as usize % 900;
            cache.set(format!("key {}", n % 3_000), vec![b'v'; size]).await.unwrap();
            if n % 5_000 == 0 {
                cache.prune().await.unwrap();
                let usage = hot.usage().await.unwrap();
                assert!(usage.bytes <= usage.capacity, "{policy:?} after {n}: {usage:?}");
            }
        }
    }
}

#[tokio::test]
async fn h23_a_thousand_gets_of_one_key_read_the_lower_level_once() {
    let rig = Gated::new().await;
    rig.sunk("k", "v").await;
    let counted = Point::Before(Op::Get);
    rig.gate.close_gate(counted);
    let readers: Vec<_> = (0..1_000).map(|_| rig.spawn_get("k")).collect();
    rig.gate.held(counted).await;
    idle().await;
    let stats = rig.cache.stats().await.unwrap();
    assert_eq!((stats.in_flight, stats.joined), (1, 999), "one reads, the others wait for it");
    rig.gate.open_gate(counted);
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap(), "v");
    }
    assert_eq!(rig.cache.stats().await.unwrap().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn h24_a_hung_level_costs_one_deadline_and_nothing_once_its_breaker_is_open() {
    let dry = Arc::new(FaultTier::new(MemoryTier::persistent()));
    let cache = builder(&ManualClock::new())
        .clock(RuntimeClock::start())
        .hot(ram())
        .dry(dry.clone())
        .limits(Level::Dry, LIMITS)
        .build()
        .await
        .unwrap();
    cache.set("below", "v").skip(Level::Hot).await.unwrap();
    cache.set("above", "v").await.unwrap();
    dry.inject(Op::Get, When::Always, Fault::Hang);
    for _ in 0..3 {
        let (found, took) = timed(get(&cache, "below")).await;
        assert_eq!((found, took), (None, DEADLINE), "slow is a miss, after one deadline");
        let (found, took) = timed(get(&cache, "above")).await;
        assert_eq!((found.as_deref(), took), (Some("v"), Duration::ZERO), "a hit above waits for nothing");
    }
    for _ in 0..1_000 {
        assert_eq!(timed(get(&cache, "below")).await, (None, Duration::ZERO), "the breaker is open");
    }
    let stats = cache.stats().await.unwrap();
    assert!(stats.levels[1].breaker_open && stats.levels[1].breaker_opened == 1);
    // However long it was away, it is used again within five seconds of its return.
    for away in [Duration::from_secs(2), Duration::from_secs(300)] {
        let end = Instant::now() + away;
        while Instant::now() < end {
            let (found, took) = timed(get(&cache, "below")).await;
            assert!(found.is_none() && took <= DEADLINE);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        dry.heal();
        let back = Instant::now();
        while get(&cache, "below").await.is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(back.elapsed() <= Duration::from_secs(5), "{:?}", back.elapsed());
        assert!(!cache.stats().await.unwrap().levels[1].breaker_open);
        cache.flush(Level::Hot).await.unwrap();
        dry.inject(Op::Get, When::Always, Fault::Hang);
    }
}

#[tokio::test(start_paused = true)]
async fn h24_two_hung_levels_cost_a_read_one_deadline_in_total() {
    let hung = || {
        let tier = FaultTier::new(MemoryTier::persistent());
        tier.inject(Op::Get, When::Always, Fault::Hang);
        Arc::new(tier)
    };
    let cache = builder(&ManualClock::new())
        .hot(ram())
        .cold(hung())
        .dry(hung())
        .limits(Level::Cold, LIMITS)
        .limits(Level::Dry, LIMITS)
        .build()
        .await
        .unwrap();
    assert_eq!(timed(get(&cache, "k")).await, (None, DEADLINE));
    let (there, took) = timed(cache.contains("k")).await;
    assert!(!there.unwrap() && took <= DEADLINE);
}

#[tokio::test(start_paused = true)]
async fn h24_a_write_over_a_hung_level_says_so_in_time_and_is_made_up_for() {
    let store = MemoryTier::persistent();
    let dry = Arc::new(FaultTier::new(store.clone()));
    let cache = CacheManager::builder()
        .clock(RuntimeClock::start())
        .hot(ram())
        .dry(dry.clone())
        .limits(Level::Dry, LIMITS)
        .build()
        .await
        .unwrap();
    cache.set("k", "old").skip(Level::Hot).await.unwrap();
    dry.inject(Op::Remove, When::Always, Fault::Hang);
    let (written, took) = timed(cache.set("k", "new").into_future()).await;
    assert_eq!(written.unwrap().degraded[0].0, Level::Dry);
    assert!(took <= Duration::from_secs(1), "{took:?}");
    let (removed, took) = timed(cache.delete("k")).await;
    assert_eq!(removed.unwrap().degraded[0].0, Level::Dry);
    assert!(took <= Duration::from_secs(1), "{took:?}");
    assert_eq!(get(&cache, "k").await, None, "fenced in this process");
    assert_eq!(store.get(&id("k")).await.unwrap().unwrap().value, "old", "and still there");
    dry.heal();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(store.get(&id("k")).await.unwrap(), None, "removed in the background");
    assert_eq!(cache.stats().await.unwrap().in_flight, 0);
}

#[tokio::test]
async fn h31_closing_with_a_full_queue_writes_all_of_it() {
    let rig = Gated::new().await;
    for n in 0..500 {
        rig.cache.set(format!("key {n}"), n.to_string()).await.unwrap();
        if n == 250 {
            rig.evict();
        }
    }
    assert_eq!(rig.cache.stats().await.unwrap().pending.0, 251);
    let report = rig.cache.close(Duration::from_secs(10)).await.unwrap();
    assert!(report.is_clean() && report.written == 500, "{report}");
    let next = rig.next_process().await;
    for n in 0..500 {
        assert_eq!(get(&next.cache, &format!("key {n}")).await.unwrap(), n.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn h31_closing_out_of_time_counts_exactly_what_it_lost() {
    for write in [Write::Back, Write::Behind] {
        let store = MemoryTier::persistent();
        let slow = Arc::new(FaultTier::new(store.clone()));
        slow.inject(Op::Put, When::Always, Fault::Delay(Duration::from_millis(100)));
        let cache = builder(&ManualClock::new()).hot(ram()).dry(slow).write(write).build().await.unwrap();
        for n in 0..100 {
            cache.set(format!("key {n}"), n.to_string()).await.unwrap();
        }
        let (report, took) = timed(cache.close(Duration::from_secs(3))).await;
        let report = report.unwrap();
        assert!(took <= Duration::from_secs(5), "{took:?}");
        let there = store.usage().await;
        assert!(there.is_err(), "the level was closed: {there:?}");
        let there = store.reopen().usage().await.unwrap().entries.unwrap();
        assert!((20..=31).contains(&there), "{write:?}: {there}");
        assert!(there - report.written <= 1, "one may have been written and not been told: {report}");
        assert_eq!(report.written + report.dropped(), 100, "{write:?}: {report}");
    }
}

#[tokio::test]
async fn h38_a_purge_reaches_every_level_and_what_is_on_its_way() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let tracking = tiercache_tracking::MemoryTracking::new(&Default::default());
    let (hot, cold) = (ram(), ram());
    let cache = builder(&clock)
        .hot(hot.clone())
        .cold(cold.clone())
        .dry(tiercache_tests::rig::disk(dir.path(), &clock).await)
        .tracking(Arc::new(tracking))
        .build()
        .await
        .unwrap();
    for level in ["dry", "cold", "way", "hot"] {
        for name in ["page", "other"] {
            cache.set(format!("{name}:{level}"), "poison").await.unwrap();
        }
        if level != "hot" {
            hot.drain();
        }
        if level == "dry" || level == "cold" {
            cache.settle().await.unwrap();
        }
        if level == "dry" {
            cold.drain();
            cache.settle().await.unwrap();
        }
    }
    assert_eq!(cache.purge("page:*").await.unwrap().keys, 4);
    for level in ["dry", "cold", "way", "hot"] {
        assert_eq!(get(&cache, &format!("page:{level}")).await, None, "{level}");
        assert_eq!(get(&cache, &format!("other:{level}")).await.unwrap(), "poison", "{level}");
    }
    drop(cache);
}

#[tokio::test]
async fn a_full_gate_of_readers_that_give_up_leaves_nothing_behind() {
    let gate = Arc::new(GateTier::new(MemoryTier::persistent()));
    let cache = builder(&ManualClock::new()).hot(ram()).dry(gate.clone()).build().await.unwrap();
    gate.close_gate(Point::Before(Op::Get));
    let readers: Vec<_> = (0..200)
        .map(|n| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.get(format!("key {}", n % 7)).await })
        })
        .collect();
    gate.held_by(Point::Before(Op::Get), 7).await;
    readers.iter().for_each(tokio::task::JoinHandle::abort);
    idle().await;
    assert_eq!(cache.stats().await.unwrap().in_flight, 0);
}
