//! Many keys in one call: each as if it were alone, and one call for each level.

use std::sync::Arc;

use tiercache_core::testing::{Fault, FaultTier, ManualClock, MemoryTier, Op, Point, When};
use tiercache_core::tier::{Always, Resident, Tier};
use tiercache_core::{AsKey, CacheManager, Error, Generation, Level, Write};
use tiercache_ram::RamTier;
use tiercache_tests::rig::{Gated, builder, entry, get, hold, id, idle, ram, text};

/// Hot in RAM over a shared level and one that outlives the process, both counting their calls.
struct Counted {
    cache: CacheManager,
    hot: Arc<RamTier>,
    cold: Arc<FaultTier>,
    dry: Arc<FaultTier>,
    below: [Arc<MemoryTier>; 2],
}

impl Counted {
    async fn new(write: Write) -> Self {
        let (hot, below) = (ram(), [MemoryTier::shared(), MemoryTier::persistent()]);
        let [cold, dry] = below.each_ref().map(|store| Arc::new(FaultTier::new(store.clone())));
        let levels = builder(&ManualClock::new()).hot(hot.clone()).cold(cold.clone()).dry(dry.clone());
        Self { cache: levels.write(write).build().await.unwrap(), hot, cold, dry, below }
    }

    fn calls(&self, op: Op) -> [u64; 2] {
        [self.cold.calls(op), self.dry.calls(op)]
    }

    async fn below(&self, key: &str) -> [bool; 2] {
        let [cold, dry] = &self.below;
        [cold.get(&id(key)).await.unwrap().is_some(), dry.get(&id(key)).await.unwrap().is_some()]
    }
}

fn keys(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("key {number}")).collect()
}

fn pairs(keys: &[String]) -> Vec<(String, String)> {
    keys.iter().map(|key| (key.clone(), format!("value of {key}"))).collect()
}

async fn texts<K: AsKey>(cache: &CacheManager, keys: &[K]) -> Vec<Option<String>> {
    cache.get_many(keys).await.unwrap().into_iter().map(|value| value.map(text)).collect()
}

#[tokio::test]
async fn a_batch_asks_each_level_once_for_all_that_is_still_missing() {
    let Counted { cache, hot, cold, dry, below } = &Counted::new(Write::Back).await;
    let keys = keys(90);
    for (number, key) in keys.iter().enumerate() {
        let store = match number % 3 {
            0 => continue,
            level => &below[level - 1],
        };
        store.put(&id(key), &entry(key, 1), hold(), &Always).await.unwrap();
    }
    let expected: Vec<Option<String>> =
        keys.iter().enumerate().map(|(number, key)| (number % 3 > 0).then(|| key.clone())).collect();
    assert_eq!(texts(cache, &keys).await, expected);
    assert_eq!([cold.calls(Op::GetMany), dry.calls(Op::GetMany)], [1, 1]);
    // Items count as calls: the last level was asked only for what the one above did not have.
    assert_eq!([cold.calls(Op::Get), dry.calls(Op::Get)], [90, 60]);
    let totals = cache.stats().await.unwrap().totals;
    assert_eq!((totals.hits, totals.misses), ([0, 30, 30], 30));
    assert!(hot.peek(id("key 1").as_ref()).is_some(), "what was found has risen");
    assert_eq!(texts(cache, &keys).await, expected);
    assert_eq!(cache.stats().await.unwrap().totals.hits, [60, 30, 30]);
    assert_eq!([cold.calls(Op::Get), dry.calls(Op::Get)], [120, 90], "hot was asked for the rest");
}

#[tokio::test]
async fn a_thousand_keys_are_one_call_and_more_are_several() {
    let rig = Counted::new(Write::Back).await;
    let keys = keys(2_500);
    let written = rig.cache.set_many(pairs(&keys)).await;
    assert!(written.iter().all(|written| written.as_ref().unwrap().degraded.is_empty()));
    assert_eq!(rig.calls(Op::RemoveMany), [3, 3]);
    rig.hot.discard(id("key 7").as_ref(), Generation::MAX);
    rig.hot.discard(id("key 2007").as_ref(), Generation::MAX);
    let found = texts(&rig.cache, &keys).await;
    assert_eq!(found.iter().filter(|found| found.is_none()).count(), 2);
    assert_eq!(rig.calls(Op::GetMany), [1, 1], "what hot has is not asked for below");
    assert_eq!(rig.cache.delete_many(&keys).await.unwrap().len(), 2_500);
    assert_eq!(rig.calls(Op::RemoveMany), [6, 6]);
    assert_eq!(rig.cache.stats().await.unwrap().in_flight, 0);
}

#[tokio::test]
async fn writes_and_removals_share_one_round_trip_for_each_level() {
    for write in [Write::Back, Write::Behind, Write::Through] {
        let rig = Counted::new(write).await;
        let keys = keys(40);
        for written in rig.cache.set_many(pairs(&keys)).await {
            assert!(written.unwrap().stored, "{write:?}");
        }
        assert_eq!(rig.calls(Op::RemoveMany), [1, 1], "{write:?}");
        let through = u64::from(write == Write::Through);
        assert_eq!(rig.calls(Op::PutMany), [0, through], "{write:?}");
        assert_eq!(rig.calls(Op::Sync), [0, through], "{write:?}");
        assert_eq!(rig.below("key 3").await[1], write == Write::Through, "{write:?}");
        assert_eq!(texts(&rig.cache, &keys).await[39].as_deref(), Some("value of key 39"), "{write:?}");
        for removed in rig.cache.delete_many(&keys).await.unwrap() {
            assert!(removed.found && removed.degraded.is_empty(), "{write:?}");
        }
        assert_eq!(rig.calls(Op::RemoveMany), [2, 2], "{write:?}");
        rig.cache.settle().await.unwrap();
        assert_eq!(texts(&rig.cache, &keys).await, vec![None; 40], "{write:?}");
        assert_eq!(rig.below("key 3").await, [false, false], "{write:?}");
    }
}

#[tokio::test]
async fn of_a_batch_what_fails_fails_alone() {
    let rig = Counted::new(Write::Through).await;
    let keys = keys(3);
    rig.dry.inject(Op::Put, When::Nth(2), Fault::FailBefore);
    let written = rig.cache.set_many(pairs(&keys)).await;
    let failed: Vec<bool> = written.iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, true, false]);
    assert!(matches!(written[1], Err(Error::Unavailable { .. })));
    assert_eq!(get(&rig.cache, "key 1").await, None, "the level may have it, so the key went");
    assert_eq!(rig.below("key 2").await, [false, true]);

    rig.hot.drain();
    rig.cache.settle().await.unwrap();
    rig.dry.inject(Op::Get, When::Nth(1), Fault::FailBefore);
    rig.cold.inject(Op::Get, When::Always, Fault::Lose);
    let found = texts(&rig.cache, &["key 0", "key 2"]).await;
    assert_eq!(found[1].as_deref(), Some("value of key 2"));

    rig.dry.heal();
    rig.dry.inject(Op::Remove, When::Nth(3), Fault::FailBefore);
    let removed = rig.cache.delete_many(&keys).await.unwrap();
    let lag: Vec<Vec<Level>> =
        removed.iter().map(|removed| removed.degraded.iter().map(|(level, _)| *level).collect()).collect();
    assert_eq!(lag, [vec![], vec![], vec![Level::Dry]]);
    assert_eq!(rig.below("key 2").await, [false, true], "the level still has it");
    assert_eq!(texts(&rig.cache, &keys).await, [None, None, None], "and nobody sees it");
}

#[tokio::test]
async fn a_key_named_twice_is_answered_twice_and_keeps_its_later_value() {
    for write in [Write::Back, Write::Behind, Write::Through] {
        let rig = Counted::new(write).await;
        for round in 0..2 {
            let pairs = ["k", "other", "k", "k"].map(|key| (key, format!("{key} {round}")));
            let mut pairs = Vec::from(pairs);
            pairs[3].1 = format!("last {round}");
            for written in rig.cache.set_many(pairs).await {
                assert!(written.unwrap().stored, "{write:?}");
            }
            let (last, other) = (Some(format!("last {round}")), Some(format!("other {round}")));
            for _ in 0..2 {
                let found = texts(&rig.cache, &["k", "k", "other", "nothing", "nothing", "k"]).await;
                let expected = [last.clone(), last.clone(), other.clone(), None, None, last.clone()];
                assert_eq!(found, expected, "{write:?}");
                rig.hot.drain();
                rig.cache.settle().await.unwrap();
            }
        }
        let removed = rig.cache.delete_many(&["k", "k", "other", "k"]).await.unwrap();
        assert_eq!(removed.len(), 4);
        assert_eq!(texts(&rig.cache, &["k", "other"]).await, [None, None], "{write:?}");
        assert_eq!(rig.below("k").await, [false, false], "{write:?}");
        assert_eq!(rig.cache.stats().await.unwrap().in_flight, 0, "{write:?}");
    }
}

#[tokio::test]
async fn an_invalid_key_fails_reads_and_removals_as_a_whole_and_a_write_alone() {
    let rig = Counted::new(Write::Back).await;
    let written = rig.cache.set_many([("a", "1"), ("", "2"), ("b", "3")]).await;
    let failed: Vec<bool> = written.iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, true, false]);
    assert!(matches!(rig.cache.get_many(&["a", ""]).await, Err(Error::InvalidKey(_))));
    assert!(matches!(rig.cache.delete_many(&["a", ""]).await, Err(Error::InvalidKey(_))));
    assert_eq!(texts(&rig.cache, &["a", "b"]).await, [Some("1".into()), Some("3".into())]);
    assert!(rig.cache.set_many(Vec::<(&str, &str)>::new()).await.is_empty());
    assert!(rig.cache.get_many::<&str>(&[]).await.unwrap().is_empty());
    assert!(rig.cache.delete_many::<&str>(&[]).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_get_joins_a_batch_and_a_batch_a_get() {
    let rig = Gated::new().await;
    for key in ["a", "b", "c"] {
        rig.sunk(key, key).await;
    }
    let batch = |keys: [&'static str; 3]| {
        let cache = rig.cache.clone();
        tokio::spawn(async move { texts(&cache, &keys).await })
    };
    let all = ["a", "b", "c"].map(|key| Some(key.to_owned()));
    rig.gate.close_gate(Point::Before(Op::GetMany));
    let many = batch(["a", "b", "c"]);
    rig.gate.held(Point::Before(Op::GetMany)).await;
    rig.gate.close_gate(Point::Before(Op::Get));
    let one = rig.spawn_get("b");
    idle().await;
    assert!(!one.is_finished());
    rig.gate.open_gate(Point::Before(Op::GetMany));
    assert_eq!(one.await.unwrap().unwrap(), "b", "by the batch: its own question would still be held");
    assert_eq!(many.await.unwrap(), all);
    assert_eq!(rig.cache.stats().await.unwrap().joined, 1);

    rig.evict();
    rig.cache.settle().await.unwrap();
    let one = rig.spawn_get("b");
    rig.gate.held(Point::Before(Op::Get)).await;
    let many = batch(["a", "b", "c"]);
    idle().await;
    assert!(rig.in_hot("a").is_some() && rig.in_hot("c").is_some(), "the others are there already");
    assert!(!many.is_finished());
    rig.gate.open_gate(Point::Before(Op::Get));
    assert_eq!(many.await.unwrap(), all);
    assert_eq!(one.await.unwrap().unwrap(), "b");
    let stats = rig.cache.stats().await.unwrap();
    assert_eq!((stats.joined, stats.in_flight), (2, 0));
}

#[tokio::test]
async fn who_joined_a_batch_that_was_dropped_reads_on() {
    let rig = Gated::new().await;
    for key in ["a", "b"] {
        rig.sunk(key, key).await;
    }
    rig.gate.close_gate(Point::Before(Op::GetMany));
    let many = tokio::spawn({
        let cache = rig.cache.clone();
        async move { texts(&cache, &["a", "b"]).await }
    });
    rig.gate.held(Point::Before(Op::GetMany)).await;
    let one = rig.spawn_get("b");
    idle().await;
    many.abort();
    assert_eq!(one.await.unwrap().unwrap(), "b");
    assert_eq!(rig.cache.stats().await.unwrap().in_flight, 0);
}

#[tokio::test]
async fn h1_of_a_batch_what_was_overtaken_is_not_published() {
    let rig = Gated::new().await;
    for key in ["set", "deleted", "untouched"] {
        rig.sunk(key, "old").await;
    }
    let read = Point::After(Op::GetMany);
    rig.gate.close_gate(read);
    let many = tokio::spawn({
        let cache = rig.cache.clone();
        async move { texts(&cache, &["set", "deleted", "untouched"]).await }
    });
    rig.gate.held(read).await;
    rig.cache.set("set", "new").await.unwrap();
    rig.cache.delete("deleted").await.unwrap();
    rig.evict();
    rig.cache.settle().await.unwrap();
    rig.gate.open_gate(read);
    assert_eq!(many.await.unwrap()[2].as_deref(), Some("old"));
    assert!(rig.in_hot("set").is_none_or(|resting| resting.entry.value == "new"));
    assert_eq!(rig.in_hot("deleted"), None);
    assert!(rig.in_hot("untouched").is_some());
    assert_eq!(texts(&rig.cache, &["set", "deleted"]).await, [Some("new".into()), None]);
}

#[tokio::test]
async fn of_a_batch_each_key_comes_after_what_another_process_did_to_it() {
    let rig = Counted::new(Write::Through).await;
    let other = rig.below[0].reopen();
    other.put(&id("b"), &entry("another's", 1_000), hold(), &Always).await.unwrap();
    let removed = rig.cache.delete_many(&["a", "b", "c"]).await.unwrap();
    assert!(removed.iter().all(|removed| removed.degraded.is_empty()));
    assert_eq!(rig.below("b").await, [false, false]);
    other.put(&id("b"), &entry("another's", 5_000), hold(), &Always).await.unwrap();
    for written in rig.cache.set_many([("a", "1"), ("b", "2"), ("c", "3")]).await {
        assert!(written.unwrap().stored);
    }
    let found = texts(&rig.cache, &["a", "b", "c"]).await;
    assert_eq!(found, ["1", "2", "3"].map(|value| Some(value.to_owned())));
    assert!(!rig.below("b").await[0]);
}

#[tokio::test]
async fn a_key_that_is_being_written_below_holds_up_no_other() {
    let rig = Gated::new().await;
    for key in ["b", "c"] {
        rig.sunk(key, "old").await;
    }
    rig.cache.set("a", "old").await.unwrap();
    rig.evict();
    rig.gate.close_gate(Point::After(Op::Put));
    let sinking = rig.spawn_settle();
    rig.gate.held(Point::After(Op::Put)).await;
    rig.gate.close_gate(Point::After(Op::RemoveMany));
    let deleting = tokio::spawn({
        let cache = rig.cache.clone();
        async move { cache.delete_many(&["a", "b", "c"]).await.unwrap() }
    });
    rig.gate.held(Point::After(Op::RemoveMany)).await;
    assert!(rig.in_dry("b").await.is_none() && rig.in_dry("c").await.is_none());
    assert!(!deleting.is_finished(), "of the one that is being written the end is waited for");
    rig.gate.open_gate(Point::After(Op::RemoveMany));
    rig.gate.open_gate(Point::After(Op::Put));
    sinking.await.unwrap();
    assert!(deleting.await.unwrap().iter().all(|removed| removed.degraded.is_empty()));
    assert_eq!(texts(&rig.cache, &["a", "b", "c"]).await, [None, None, None]);
    assert!(rig.in_dry("a").await.is_none());
}
