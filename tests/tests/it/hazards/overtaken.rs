//! Something that was read or begun before a mutation comes to its end after it.

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tiercache_core::testing::{
    Fault, FaultTier, GateTier, Hooked, Hooks, ManualClock, MemoryTier, Op, Point, When,
};
use tiercache_core::tier::{Always, Put, Resident};
use tiercache_core::{CacheManager, Error, Level, Stay, Tier, Write};
use tiercache_disk::DiskTier;
use tiercache_tests::doubles::{RuntimeClock, poll_at_most};
use tiercache_tests::rig::{Gated, builder, disk_config, entry, get, hold, id, idle, ram};
use tokio::sync::Notify;

const READ: Point = Point::After(Op::Get);

#[tokio::test]
async fn h1_a_read_that_was_overtaken_by_a_set_is_not_published() {
    for evicted in [false, true] {
        let rig = Gated::new().await;
        rig.sunk("k", "old").await;
        rig.gate.close_gate(READ);
        let reader = rig.spawn_get("k");
        rig.gate.held(READ).await;
        rig.cache.set("k", "new").await.unwrap();
        if evicted {
            // Hot is empty again: "insert if absent" would let the old value in.
            rig.evict();
            rig.cache.settle().await.unwrap();
        }
        rig.gate.open_gate(READ);
        reader.await.unwrap();
        assert!(rig.in_hot("k").is_none_or(|resting| resting.entry.value == "new"));
        assert_eq!(get(&rig.cache, "k").await.unwrap(), "new");
        assert_eq!(rig.cache.stats().await.unwrap().in_flight, 0);
    }
}

#[tokio::test]
async fn h1_a_read_that_was_overtaken_by_a_delete_does_not_stand_in_the_way_of_an_insert_if_absent() {
    let rig = Gated::new().await;
    rig.sunk("k", "old").await;
    rig.gate.close_gate(READ);
    let reader = rig.spawn_get("k");
    rig.gate.held(READ).await;
    rig.cache.delete("k").await.unwrap();
    let adding = tokio::spawn({
        let cache = rig.cache.clone();
        async move { cache.set("k", "new").only_if_absent().await.unwrap() }
    });
    rig.gate.held_by(READ, 2).await;
    rig.gate.open_gate(READ);
    assert!(adding.await.unwrap().stored);
    reader.await.unwrap();
    assert_eq!(get(&rig.cache, "k").await.unwrap(), "new");
}

/// A level that would have to wait until it has been asked to remove something. Who has read from it by then has used up
/// its turn, and lets others go before it waits for anything, free or not.
#[derive(Debug, Default)]
struct Tiring {
    asked: AtomicU32,
    removing: Notify,
}

#[async_trait]
impl Hooks for Tiring {
    async fn after(&self, op: Op) {
        while op == Op::Get && tokio::task::coop::has_budget_remaining() {
            tokio::task::consume_budget().await;
        }
    }

    fn would_block(&self) -> bool {
        // To read what is there, and to remove it; then no more.
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        if asked == 1 {
            self.removing.notify_one();
        }
        asked < 2
    }
}

#[tokio::test]
async fn h1_a_comparison_that_waits_to_remove_the_old_value_leaves_one_that_was_set_meanwhile() {
    let (folder, hot) = (tempfile::tempdir().unwrap(), ram());
    let clock = ManualClock::new();
    let disk = DiskTier::open(disk_config(folder.path()), clock.clone()).await.unwrap();
    let dry = Hooked::showing(Arc::new(disk), Tiring::default());
    let cache = builder(&clock).hot(hot.clone()).dry(dry.clone()).build().await.unwrap();
    let old = cache.set("k", "old").await.unwrap().generation;
    hot.drain();
    cache.settle().await.unwrap();
    let setting = tokio::spawn({
        let (cache, dry) = (cache.clone(), dry.clone());
        async move {
            dry.hooks.removing.notified().await;
            let set = poll_at_most(cache.set("k", "later").into_future(), 1).await;
            set.expect("it need not wait").unwrap();
        }
    });
    let compared = cache.compare_and_set("k", old, "compared").await.unwrap();
    setting.await.unwrap();
    assert!(compared.stored, "just before the other");
    assert_eq!(get(&cache, "k").await.unwrap(), "later");
}

#[tokio::test]
async fn h2_a_get_after_a_delete_does_not_join_the_read_that_began_before_it() {
    let rig = Gated::new().await;
    rig.sunk("k", "old").await;
    rig.gate.close_gate(READ);
    let before = rig.spawn_get("k");
    rig.gate.held(READ).await;
    rig.cache.delete("k").await.unwrap();
    let after = rig.spawn_get("k");
    rig.gate.held_by(READ, 2).await;
    rig.gate.open_gate(READ);
    before.await.unwrap();
    assert_eq!(after.await.unwrap(), None);
    assert_eq!(rig.in_hot("k"), None);
    assert_eq!(get(&rig.cache, "k").await, None);
}

#[tokio::test]
async fn h3_a_get_between_the_levels_of_a_delete_misses_and_nothing_climbs_back() {
    for (level, point) in [
        (Level::Dry, Point::Before(Op::Remove)),
        (Level::Dry, Point::After(Op::Remove)),
        (Level::Cold, Point::Before(Op::Remove)),
        (Level::Cold, Point::After(Op::Remove)),
    ] {
        let (below, dry_store) = (MemoryTier::persistent(), MemoryTier::persistent());
        for tier in [&below, &dry_store] {
            tier.put(&id("k"), &entry("old", 1), hold(), &Always).await.unwrap();
        }
        let hot = ram();
        let cold = Arc::new(GateTier::new(below.reopen()));
        let dry = Arc::new(GateTier::new(dry_store.reopen()));
        let cache = builder(&ManualClock::new())
            .hot(hot.clone())
            .cold(cold.clone())
            .dry(dry.clone())
            .build()
            .await
            .unwrap();
        let gate = if level == Level::Dry { &dry } else { &cold };
        gate.close_gate(point);
        let deleting = tokio::spawn({
            let cache = cache.clone();
            async move { cache.delete("k").await.unwrap() }
        });
        gate.held(point).await;
        assert_eq!(get(&cache, "k").await, None, "{level} {point:?}");
        assert!(!cache.contains("k").await.unwrap(), "{level} {point:?}");
        gate.open_gate(point);
        assert!(deleting.await.unwrap().degraded.is_empty());
        assert_eq!(hot.peek(id("k").as_ref()), None, "{level} {point:?}");
        assert_eq!(get(&cache, "k").await, None, "{level} {point:?}");
        for tier in [&below, &dry_store] {
            assert_eq!(tier.get(&id("k")).await.unwrap(), None, "{level} {point:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn h4_a_demotion_that_ends_after_a_delete_brings_nothing_back() {
    for point in [Point::Before(Op::Put), Point::After(Op::Put)] {
        for released_first in [true, false] {
            let rig = Gated::new().await;
            rig.cache.set("k", "deleted").await.unwrap();
            rig.evict();
            rig.gate.close_gate(point);
            let worker = rig.spawn_settle();
            rig.gate.held(point).await;
            let deleting = tokio::spawn({
                let cache = rig.cache.clone();
                async move { cache.delete("k").await.unwrap() }
            });
            if released_first {
                idle().await;
                rig.gate.open_gate(point);
                assert!(deleting.await.unwrap().degraded.is_empty(), "{point:?}");
            } else {
                // The write is not over in time: the result says which level lags, and the fence holds.
                let removed = deleting.await.unwrap();
                assert_eq!(removed.degraded.len(), 1, "{point:?}");
                assert_eq!(removed.degraded[0].0, Level::Dry, "{point:?}");
                assert_eq!(get(&rig.cache, "k").await, None, "{point:?}");
                rig.gate.open_gate(point);
            }
            worker.await.unwrap();
            rig.cache.settle().await.unwrap();
            assert_eq!(get(&rig.cache, "k").await, None, "{point:?}");
            if !released_first {
                // The removal that lagged is made up for in the background.
                tokio::time::sleep(Duration::from_secs(10)).await;
            }
            assert_eq!(get(&rig.next_process().await.cache, "k").await, None, "{point:?}");
            assert_eq!(rig.cache.stats().await.unwrap().in_flight, 0, "{point:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn h5_writes_that_reach_dry_out_of_order_never_set_it_back() {
    for seed in 0..10 {
        let store = MemoryTier::persistent();
        let slow = Arc::new(FaultTier::new(store.clone()));
        for (one_in, millis) in [(2, 30), (3, 7), (5, 400)] {
            let when = When::Random { seed: seed * 10 + one_in, one_in };
            slow.inject(Op::Put, when, Fault::Delay(Duration::from_millis(millis)));
        }
        let cache = CacheManager::builder()
            .clock(RuntimeClock::start())
            .hot(ram())
            .dry(slow)
            .write(Write::Behind)
            .build()
            .await
            .unwrap();
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let cache = cache.clone();
                tokio::spawn(async move {
                    for n in 0..50 {
                        cache.set("k", format!("{writer} {n}")).await.unwrap();
                        tokio::time::sleep(Duration::from_millis(n * 7 % 11)).await;
                    }
                })
            })
            .collect();
        let mut newest = None;
        while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
            let seen = store.get(&id("k")).await.unwrap().map(|entry| entry.generation);
            assert!(seen.is_none() || seen >= newest, "seed {seed}: {seen:?} after {newest:?}");
            newest = newest.max(seen);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let last = get(&cache, "k").await.unwrap();
        cache.settle().await.unwrap();
        assert_eq!(store.get(&id("k")).await.unwrap().unwrap().value, last, "seed {seed}");
    }
}

#[tokio::test]
async fn h6_a_new_value_too_large_for_every_level_does_not_leave_the_old_one() {
    let hot = tiercache_tests::rig::ram_for(10, 100);
    let store = MemoryTier::persistent();
    let limited = Arc::new(FaultTier::new(store.clone()));
    let cache = builder(&ManualClock::new()).hot(hot.clone()).dry(limited.clone()).build().await.unwrap();
    cache.set("k", "old").await.unwrap();
    hot.drain();
    cache.settle().await.unwrap();
    limited.inject(Op::Put, When::Always, Fault::Full);
    let refused = cache.set("k", vec![b'n'; 1 << 20]).await;
    assert!(matches!(refused, Err(Error::TooLarge { .. })), "{refused:?}");
    assert_eq!(get(&cache, "k").await, None);
    assert_eq!(store.get(&id("k")).await.unwrap(), None);
}

#[tokio::test]
async fn h6_a_new_value_that_does_not_sink_does_not_leave_the_old_one_below() {
    // Kept to hot, refused below, or dropped because the way down was full: gone, but never the old one.
    for way in ["pinned", "refused", "crowded"] {
        let store = MemoryTier::persistent();
        let dry = Arc::new(FaultTier::new(store.clone()));
        let hot = ram();
        let cache = builder(&ManualClock::new())
            .hot(hot.clone())
            .dry(dry.clone())
            .pending_bytes(10_000)
            .build()
            .await
            .unwrap();
        cache.set("k", "old").await.unwrap();
        hot.drain();
        cache.settle().await.unwrap();
        match way {
            "pinned" => drop(cache.set("k", "new").pin(Level::Hot).await.unwrap()),
            "refused" => {
                cache.set("k", "new").await.unwrap();
                dry.inject(Op::Put, When::Always, Fault::Full);
            }
            _ => drop(cache.set("k", vec![b'n'; 20_000]).await.unwrap()),
        }
        hot.drain();
        cache.settle().await.unwrap();
        assert_eq!(get(&cache, "k").await, None, "{way}");
        assert_eq!(store.get(&id("k")).await.unwrap(), None, "{way}");
        assert_eq!(cache.stats().await.unwrap().overflowed, u64::from(way == "crowded"), "{way}");
    }
}

#[tokio::test]
async fn h8_a_get_that_saw_an_entry_expire_does_not_remove_the_one_that_was_set_meanwhile() {
    use std::future::{Future, IntoFuture};
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    let clock = tiercache_tests::doubles::TrapClock::new();
    let cache = CacheManager::builder().clock(clock.clone()).hot(ram()).manual().build().await.unwrap();
    for dead in [true, false] {
        // Dead by its deadline, or only past its stay.
        let set = cache.set("k", "old");
        let set = if dead {
            set.ttl(Duration::from_secs(1))
        } else {
            set.stay(Level::Hot, Stay::For(Duration::from_secs(1)))
        };
        set.await.unwrap();
        clock.advance(Duration::from_secs(2));
        let other = cache.clone();
        clock.set_trap(move || {
            let set = pin!(other.set("k", "new").into_future());
            let done = set.poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(done, Poll::Ready(Ok(_))));
        });
        assert_eq!(get(&cache, "k").await.unwrap(), "new");
        assert_eq!(get(&cache, "k").await.unwrap(), "new");
    }
}

#[tokio::test]
async fn h8_two_sweeps_and_a_set_among_them_give_up_each_entry_once_and_no_fresh_one() {
    // A sweep pauses every so many entries, so that sets and another sweep come between.
    const ENTRIES: usize = 1_000;
    let clock = ManualClock::new();
    let hot = ram();
    let cache = builder(&clock).hot(hot.clone()).dry(MemoryTier::persistent()).build().await.unwrap();
    for n in 0..ENTRIES {
        let set = cache.set(format!("k{n}"), "old");
        set.stay(Level::Hot, Stay::For(Duration::from_secs(1))).await.unwrap();
    }
    clock.advance(Duration::from_secs(2));
    let sweeps = [0, 1].map(|_| {
        let cache = cache.clone();
        tokio::spawn(async move { cache.prune().await.unwrap() })
    });
    tokio::task::yield_now().await;
    for n in (0..ENTRIES).step_by(3) {
        cache.set(format!("k{n}"), "new").await.unwrap();
    }
    let mut spilled = 0;
    for sweep in sweeps {
        spilled += sweep.await.unwrap().1;
    }
    assert!((2 * ENTRIES as u64 / 3..=ENTRIES as u64).contains(&spilled), "{spilled}");
    for n in 0..ENTRIES {
        let fresh = n % 3 == 0;
        assert_eq!(hot.peek(id(&format!("k{n}")).as_ref()).is_some(), fresh, "k{n}");
        assert_eq!(get(&cache, &format!("k{n}")).await.unwrap(), if fresh { "new" } else { "old" });
    }
}

#[tokio::test]
async fn h20_a_set_that_a_tag_purge_overtook_is_not_visible_after_it() {
    for point in [Point::Before(Op::Put), Point::After(Op::Put)] {
        let rig = Gated::with(|builder| builder.write(Write::Through)).await;
        rig.gate.close_gate(point);
        let setting = tokio::spawn({
            let cache = rig.cache.clone();
            async move { cache.set("k", "v").tag("t", "1").await }
        });
        rig.gate.held(point).await;
        rig.cache.invalidate_tag("t", "1").await.unwrap();
        assert_eq!(get(&rig.cache, "k").await, None, "{point:?}");
        rig.gate.open_gate(point);
        setting.await.unwrap().unwrap();
        assert_eq!(get(&rig.cache, "k").await, None, "{point:?}");
        assert_eq!(get(&rig.next_process().await.cache, "k").await, None, "{point:?}");
        rig.cache.set("k", "fresh").tag("t", "1").await.unwrap();
        assert_eq!(get(&rig.cache, "k").await.unwrap(), "fresh", "{point:?}");
    }
}

#[tokio::test]
async fn h20_neither_a_promotion_nor_a_demotion_carries_an_entry_past_a_tag_purge() {
    let rig = Gated::new().await;
    for point in [READ, Point::Before(Op::Put), Point::After(Op::Put)] {
        rig.cache.set("k", "v").tag("t", "1").await.unwrap();
        rig.evict();
        let held = if point == READ {
            rig.cache.settle().await.unwrap();
            rig.gate.close_gate(point);
            let cache = rig.cache.clone();
            tokio::spawn(async move { drop(cache.get("k").await) })
        } else {
            rig.gate.close_gate(point);
            rig.spawn_settle()
        };
        rig.gate.held(point).await;
        rig.cache.invalidate_tag("t", "1").await.unwrap();
        rig.gate.open_gate(point);
        held.await.unwrap();
        assert_eq!(rig.in_hot("k"), None, "{point:?}");
        assert_eq!(get(&rig.cache, "k").await, None, "{point:?}");
        assert_eq!(get(&rig.next_process().await.cache, "k").await, None, "{point:?}");
    }
}

#[tokio::test]
async fn h39_a_scan_ten_times_larger_than_hot_writes_nothing_below() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let disk = tiercache_tests::rig::disk(dir.path(), &clock).await;
    let hot = tiercache_tests::rig::ram_for(20, 300);
    let cache = builder(&clock).hot(hot.clone()).dry(disk.clone()).build().await.unwrap();
    let key = |n| format!("key {n:03}");
    for n in 0..200 {
        cache.set(key(n), vec![b'v'; 250]).await.unwrap();
    }
    hot.drain();
    cache.settle().await.unwrap();
    let (_, written) = disk.moved_and_put();
    for _ in 0..3 {
        for n in 0..200 {
            assert!(cache.get(key(n)).await.unwrap().is_some());
        }
        cache.settle().await.unwrap();
    }
    assert_eq!(disk.moved_and_put().1, written);
    let stats = cache.stats().await.unwrap();
    assert!(stats.promoted >= 600 && stats.sunk >= 500, "{stats:?}");
}

#[tokio::test]
async fn h39_a_level_without_an_index_is_asked_and_keeps_what_it_has() {
    let rig = Gated::new().await;
    rig.sunk("k", "v").await;
    let generation = rig.in_dry("k").await.unwrap().generation;
    for _ in 0..10 {
        assert_eq!(get(&rig.cache, "k").await.unwrap(), "v");
        rig.evict();
        rig.cache.settle().await.unwrap();
        assert_eq!(rig.in_dry("k").await.unwrap().generation, generation);
    }
    let again = rig.store.put(&id("k"), &entry("v", generation.get()), hold(), &Always).await.unwrap();
    assert_eq!(again, Put::Unchanged);
}
