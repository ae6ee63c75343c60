//! How long values live.

use std::sync::Arc;
use std::time::Duration;

use tiercache_core::testing::{ManualClock, MemoryTier};
use tiercache_core::tier::{Resident, Tier};
use tiercache_core::tracking::Query;
use tiercache_core::{CacheManager, Error, Level, Rule, Rules, Stay, Tags};
use tiercache_tests::rig::{builder, disk, get, level, ram};
use tiercache_tracking::MemoryTracking;

const SECOND: Duration = Duration::from_secs(1);

// 30
#[tokio::test]
async fn a_ttl_below_a_second_is_kept_to_the_millisecond() {
    let clock = ManualClock::new();
    let cache = builder(&clock).hot(ram()).build().await.unwrap();
    cache.set("k", "v").ttl(Duration::from_millis(500)).await.unwrap();
    clock.advance(Duration::from_millis(300));
    assert_eq!(get(&cache, "k").await.unwrap(), "v");
    clock.advance(Duration::from_millis(199));
    assert_eq!(get(&cache, "k").await.unwrap(), "v");
    clock.advance(Duration::from_millis(1));
    assert_eq!(get(&cache, "k").await, None);
}

// 31
#[tokio::test]
async fn a_keys_own_ttl_ends_it_at_every_level() {
    for sink in [0, 1, 2] {
        for rise in [false, true] {
            let clock = ManualClock::new();
            let (hot, cold, store) = (ram(), ram(), MemoryTier::persistent());
            let cache =
                builder(&clock).hot(hot.clone()).cold(cold.clone()).dry(store.clone()).build().await.unwrap();
            cache.set("k", "v").ttl(SECOND).await.unwrap();
            for tier in [&hot, &cold].into_iter().take(sink) {
                tier.drain();
                cache.settle().await.unwrap();
            }
            if rise {
                assert_eq!(get(&cache, "k").await.unwrap(), "v");
            }
            clock.advance(Duration::from_millis(1_200));
            assert_eq!(get(&cache, "k").await, None, "{sink} {rise}");
            cache.prune().await.unwrap();
            for level in cache.stats().await.unwrap().levels {
                assert_eq!(level.usage.unwrap().entries, Some(0), "{sink} {rise} {}", level.level);
            }
        }
    }
}

// 32 (a duration cannot be negative)
#[tokio::test]
async fn a_ttl_of_zero_is_refused_and_changes_nothing() {
    let cache = builder(&ManualClock::new()).hot(ram()).build().await.unwrap();
    cache.set("k", "before").await.unwrap();
    let refused = cache.set("k", "v").ttl(Duration::ZERO).await;
    assert!(matches!(refused, Err(Error::InvalidOption { option: "ttl", .. })), "{refused:?}");
    let refused = cache.touch("k", Duration::ZERO).await;
    assert!(matches!(refused, Err(Error::InvalidOption { option: "ttl", .. })), "{refused:?}");
    let refused = cache.set("k", "v").stay(Level::Hot, Stay::For(Duration::ZERO)).await;
    assert!(matches!(refused, Err(Error::InvalidOption { option: "stay", .. })), "{refused:?}");
    assert_eq!(get(&cache, "k").await.unwrap(), "before");
}

// 33
#[tokio::test]
async fn no_expiry_outlives_the_levels_default() {
    let clock = ManualClock::new();
    let rules = Rules { rules: Vec::new(), defaults: [Some(Stay::For(SECOND)); 3] };
    let cache = builder(&clock).rules(rules).hot(ram()).dry(MemoryTier::persistent()).build().await.unwrap();
    cache.set("default", "v").await.unwrap();
    cache.set("for ever", "v").never().await.unwrap();
    cache.set("its own", "v").ttl(SECOND * 600).await.unwrap();
    for _ in 0..10 {
        clock.advance(SECOND * 2);
        cache.prune().await.unwrap();
        cache.settle().await.unwrap();
    }
    assert_eq!(get(&cache, "default").await, None);
    assert_eq!(get(&cache, "for ever").await.unwrap(), "v");
    assert_eq!(get(&cache, "its own").await.unwrap(), "v");
    assert_eq!(cache.entry("for ever").await.unwrap().unwrap().time_left, None);
}

// 34
#[tokio::test]
async fn the_first_rule_that_names_the_level_counts_and_the_keys_own_stay_before_it() {
    let tags = |value: &str| Tags::from([("type".to_string(), value.to_string())]);
    let stay = |seconds| Some(Stay::For(SECOND * seconds));
    let rules = Rules {
        rules: vec![
            Rule { tags: tags("a"), stays: [None, stay(50), None] },
            Rule { tags: tags("a"), stays: [stay(1), None, None] },
            Rule { tags: tags("b"), stays: [Some(Stay::Forever), None, None] },
        ],
        defaults: [stay(4), None, None],
    };
    let hot = |given, tags: Option<&Tags>| rules.stay(Level::Hot, given, tags);
    assert_eq!(hot(None, Some(&tags("a"))), Stay::For(SECOND));
    assert_eq!(hot(None, Some(&tags("b"))), Stay::Forever);
    assert_eq!(hot(None, Some(&tags("c"))), Stay::For(SECOND * 4));
    assert_eq!(hot(None, None), Stay::For(SECOND * 4));
    assert_eq!(hot(stay(7), Some(&tags("a"))), Stay::For(SECOND * 7));

    // And in the cache: who has left hot after so many seconds.
    let clock = ManualClock::new();
    let cache = builder(&clock).rules(rules).hot(ram()).cold(ram()).build().await.unwrap();
    let leaves = [("a", 1), ("c", 4), ("own", 7), ("b", u64::MAX)];
    for (key, _) in leaves {
        let set = cache.set(key, "v").tag("type", if key == "own" { "a" } else { key });
        let set = if key == "own" { set.stay(Level::Hot, Stay::For(SECOND * 7)) } else { set };
        set.await.unwrap();
    }
    for second in 1..10 {
        clock.advance(SECOND);
        cache.prune().await.unwrap();
        cache.settle().await.unwrap();
        let usage = cache.stats().await.unwrap().levels[0].usage.unwrap();
        let still = leaves.iter().filter(|(_, leaves)| *leaves > second).count();
        assert_eq!(usage.entries, Some(still as u64), "after {second} s");
    }
}

// 35
#[tokio::test]
async fn what_stayed_its_time_in_dry_is_gone_and_cleaned_up() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let rules = Rules { rules: Vec::new(), defaults: [None, None, Some(Stay::For(SECOND * 10))] };
    let dry = disk(dir.path(), &clock).await;
    let hot = ram();
    let cache = builder(&clock).rules(rules).hot(hot.clone()).dry(dry.clone()).build().await.unwrap();
    for n in 0..20 {
        cache.set(format!("key {n}"), "v").await.unwrap();
    }
    hot.drain();
    cache.settle().await.unwrap();
    clock.advance(SECOND * 9);
    cache.prune().await.unwrap();
    assert_eq!(dry.usage().await.unwrap().entries, Some(20));
    clock.advance(SECOND);
    // A sweep may do a part at a time.
    for _ in 0..4 {
        cache.prune().await.unwrap();
    }
    cache.settle().await.unwrap();
    let usage = dry.usage().await.unwrap();
    assert_eq!((usage.entries, usage.bytes), (Some(0), Some(0)));
    assert_eq!(get(&cache, "key 1").await, None);
}

// 36
#[tokio::test]
async fn an_expired_entry_that_nobody_swept_counts_as_absent_for_every_operation() {
    for sunk in [false, true] {
        let clock = ManualClock::new();
        let hot = ram();
        let cache: CacheManager = builder(&clock)
            .hot(hot.clone())
            .dry(MemoryTier::persistent())
            .tracking(Arc::new(MemoryTracking::new(&Default::default())))
            .build()
            .await
            .unwrap();
        let keys = ["contains", "entry", "get", "touch", "add", "pop", "typed"];
        for key in keys {
            cache.set(key, "v").ttl(SECOND).tag("t", "1").await.unwrap();
        }
        if sunk {
            hot.drain();
            cache.settle().await.unwrap();
        }
        clock.advance(SECOND);
        assert!(!cache.contains("contains").await.unwrap());
        assert_eq!(level(&cache, "entry").await, None);
        assert_eq!(get(&cache, "get").await, None);
        assert_eq!(cache.get_many(&["get", "entry"]).await.unwrap(), [None, None]);
        assert!(!cache.touch("touch", SECOND * 60).await.unwrap().found);
        assert!(cache.pop("pop").await.unwrap().value.is_none());
        assert!(cache.typed::<String>().get("typed").await.unwrap().is_none());
        assert_eq!(cache.keys(Query::all()).page(100).await.unwrap(), []);
        assert_eq!(cache.purge("*").await.unwrap().keys, 0);
        assert!(cache.set("add", "new").only_if_absent().await.unwrap().stored);
        assert_eq!(get(&cache, "add").await.unwrap(), "new");
        assert_eq!(cache.keys(Query::all()).page(100).await.unwrap().len(), 1);
        // What the levels hold is counted as held until it is swept.
        cache.prune().await.unwrap();
        let held: u64 =
            cache.stats().await.unwrap().levels.iter().filter_map(|level| level.usage?.entries).sum();
        assert_eq!(held, 1, "sunk: {sunk}");
    }
}
