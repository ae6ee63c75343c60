//! Writes that depend on what is there.

use std::sync::Arc;
use std::time::Duration;

use tiercache_core::testing::{ManualClock, Op, Point};
use tiercache_core::{Generation, Level};
use tiercache_tests::rig::{Gated, builder, get, idle, ram};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn add_keeps_what_is_there_and_replace_wants_something() {
    let gated = Gated::new().await;
    let cache = &gated.cache;
    assert!(!cache.replace("k", "0").await.unwrap().stored);
    assert_eq!(get(cache, "k").await, None);
    assert!(cache.add("k", "1").await.unwrap().stored);
    assert!(!cache.add("k", "2").await.unwrap().stored);
    for below in [false, true] {
        if below {
            gated.evict();
            cache.settle().await.unwrap();
        }
        assert!(!cache.add("k", "2").await.unwrap().stored, "{below}");
        assert!(cache.replace("k", "3").ttl(MINUTE).tag("t", "1").await.unwrap().stored, "{below}");
        assert_eq!(get(cache, "k").await.unwrap(), "3");
    }
    gated.clock.advance(MINUTE);
    assert!(!cache.replace("k", "4").await.unwrap().stored, "it is dead");
    assert!(cache.add("k", "5").tag("t", "1").await.unwrap().stored);
    cache.invalidate_tag("t", "1").await.unwrap();
    assert!(!cache.replace("k", "6").await.unwrap().stored, "it was invalidated");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_know_a_generation_one_gets_its_value_in() {
    let cache = builder(&ManualClock::new()).hot(ram()).build().await.unwrap();
    cache.set("n", "0").await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let cache = cache.clone();
        tasks.spawn(async move {
            for _ in 0..50 {
                loop {
                    let found = cache.read("n").await.unwrap().unwrap();
                    let n: u64 = std::str::from_utf8(&found.value).unwrap().parse().unwrap();
                    let next = (n + 1).to_string();
                    if cache.compare_and_set("n", found.generation, next).await.unwrap().stored {
                        break;
                    }
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(get(&cache, "n").await.unwrap(), "800");
}

#[tokio::test]
async fn a_generation_is_known_from_reading_and_from_writing_and_moving_does_not_change_it() {
    let gated = Gated::new().await;
    let cache = &gated.cache;
    let written = cache.set("k", "1").await.unwrap();
    gated.evict();
    cache.settle().await.unwrap();
    let found = cache.entry("k").await.unwrap().unwrap();
    assert_eq!((found.generation, found.level), (written.generation, Level::Dry));
    assert!(!cache.compare_and_set("k", Generation::new(0), "x").await.unwrap().stored);
    let changed = cache.compare_and_set("k", found.generation, "2").await.unwrap();
    assert!(changed.stored && changed.generation > found.generation);
    assert!(!cache.compare_and_set("k", found.generation, "3").await.unwrap().stored);
    cache.delete("k").await.unwrap();
    assert!(!cache.compare_and_set("k", changed.generation, "4").await.unwrap().stored);
    assert_eq!(get(cache, "k").await, None);
}

#[tokio::test]
async fn a_decision_is_not_taken_on_what_a_removal_under_way_hides() {
    let gated = Arc::new(Gated::new().await);
    gated.sunk("k", "old").await;
    let generation = gated.in_dry("k").await.unwrap().generation;
    gated.gate.close_gate(Point::Before(Op::Remove));
    let removal = tokio::spawn({
        let cache = gated.cache.clone();
        async move { cache.delete("k").await.unwrap() }
    });
    gated.gate.held(Point::Before(Op::Remove)).await;
    let spawn = |what: &'static str| {
        let cache = gated.cache.clone();
        tokio::spawn(async move {
            match what {
                "replace" => cache.replace("k", what).await.unwrap().stored,
                "compare" => cache.compare_and_set("k", generation, what).await.unwrap().stored,
                _ => cache.get_and_touch("k", MINUTE).await.unwrap().is_some(),
            }
        })
    };
    let waiting = ["replace", "compare", "touch"].map(spawn);
    idle().await;
    assert!(waiting.iter().all(|task| !task.is_finished()), "they wait for the removal");
    gated.gate.open_gate(Point::Before(Op::Remove));
    removal.await.unwrap();
    for task in waiting {
        assert!(!task.await.unwrap(), "what the removal removed was not there any more");
    }
    assert_eq!(get(&gated.cache, "k").await, None);
}

#[tokio::test]
async fn a_compare_and_set_that_a_set_overtakes_does_not_undo_it() {
    let gated = Arc::new(Gated::new().await);
    gated.sunk("k", "old").await;
    let generation = gated.in_dry("k").await.unwrap().generation;
    gated.gate.close_gate(Point::After(Op::Get));
    let compared = tokio::spawn({
        let cache = gated.cache.clone();
        async move { cache.compare_and_set("k", generation, "compared").await.unwrap().stored }
    });
    gated.gate.held(Point::After(Op::Get)).await;
    gated.cache.set("k", "set").await.unwrap();
    gated.gate.open_gate(Point::After(Op::Get));
    assert!(!compared.await.unwrap());
    assert_eq!(get(&gated.cache, "k").await.unwrap(), "set");
}

#[tokio::test]
async fn what_is_read_and_touched_is_one_and_the_same() {
    let gated = Gated::new().await;
    let cache = &gated.cache;
    assert_eq!(cache.get_and_touch("k", MINUTE).await.unwrap(), None);
    cache.set("k", "v").ttl(MINUTE).tag("t", "1").await.unwrap();
    for _ in 0..5 {
        gated.clock.advance(MINUTE / 2);
        let found = cache.get_and_touch("k", MINUTE).await.unwrap().unwrap();
        assert_eq!((&found.value[..], found.time_left), (&b"v"[..], Some(MINUTE)));
        assert_eq!(found.tags["t"], "1");
    }
    let found = cache.get_and_touch("k", None).await.unwrap().unwrap();
    assert_eq!(found.time_left, None);
    assert!(
        cache.compare_and_set("k", found.generation, "w").await.unwrap().stored,
        "it told the new generation"
    );
    assert!(cache.get_and_touch("k", Duration::ZERO).await.is_err());
}

#[tokio::test]
async fn typed_values_have_the_same_conditions() {
    let cache = builder(&ManualClock::new()).hot(ram()).build().await.unwrap();
    let counts = cache.typed::<Vec<u32>>();
    assert!(counts.add("k", vec![1]).unwrap().await.unwrap().stored);
    assert!(!counts.add("k", vec![2]).unwrap().await.unwrap().stored);
    assert!(counts.replace("k", vec![3]).unwrap().await.unwrap().stored);
    let (value, generation) = counts.versioned("k").await.unwrap().unwrap();
    assert_eq!(*value, [3]);
    assert!(counts.compare_and_set("k", generation, vec![3, 4]).unwrap().await.unwrap().stored);
    assert!(!counts.compare_and_set("k", generation, vec![5]).unwrap().await.unwrap().stored);
    assert_eq!(*counts.get_and_touch("k", MINUTE).await.unwrap().unwrap(), [3, 4]);
    assert_eq!(*counts.pop("k").await.unwrap().unwrap(), [3, 4]);
    assert_eq!(counts.pop("k").await.unwrap(), None);
}

#[tokio::test]
async fn what_another_process_has_set_is_neither_undone_nor_touched() {
    for write in [tiercache_core::Write::Back, tiercache_core::Write::Through] {
        let store = tiercache_core::testing::MemoryTier::shared();
        let open = async |store| {
            builder(&ManualClock::new()).hot(ram()).dry(store).write(write).build().await.unwrap()
        };
        let (here, there) = (open(store.clone()).await, open(store.reopen()).await);
        let mut generation = here.set("k", "1").await.unwrap().generation;
        for round in 0..5 {
            // Whichever counts faster.
            let other = if round % 2 == 0 { &there } else { &here };
            for n in 0..round * 7 {
                other.set(format!("other {n}"), "v").await.unwrap();
            }
            there.set("k", "theirs").await.unwrap();
            assert_eq!(get(&here, "k").await.unwrap(), "1", "it has not been told yet");
            let done = match round % 3 {
                0 => here.compare_and_set("k", generation, "mine").await.unwrap().stored,
                1 => here.touch("k", MINUTE).await.unwrap().found,
                _ => here.replace("k", "mine").await.unwrap().stored,
            };
            if write == tiercache_core::Write::Back {
                assert!(!done, "round {round}");
                assert_eq!(get(&here, "k").await, None);
                assert_eq!(get(&there, "k").await.unwrap(), "theirs");
            } else {
                assert!(!done || round % 3 > 0, "round {round}");
            }
            generation = here.set("k", "1").await.unwrap().generation;
        }
        assert!(here.compare_and_set("k", generation, "2").await.unwrap().stored, "nobody came between");
    }
}

#[tokio::test]
async fn of_processes_that_know_a_generation_of_a_shared_level_one_gets_its_value_in() {
    let store = tiercache_core::testing::MemoryTier::shared();
    let open = async |store| {
        let write = tiercache_core::Write::Through;
        builder(&ManualClock::new()).dry(store).write(write).build().await.unwrap()
    };
    let caches = [open(store.clone()).await, open(store.reopen()).await, open(store.reopen()).await];
    for round in 0..50 {
        let key = format!("{round}");
        caches[round % 3].set(&key, "0").await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for (n, cache) in caches.iter().cloned().enumerate() {
            let key = key.clone();
            let generation = cache.read(&key).await.unwrap().unwrap().generation;
            tasks.spawn(async move {
                cache.compare_and_set(&key, generation, n.to_string()).await.unwrap().stored
            });
        }
        let stored = tasks.join_all().await.into_iter().filter(|&stored| stored).count();
        assert!(stored <= 1, "{stored} got their value in");
        assert_eq!(stored, 1, "the first to reach the level does");
    }
}
