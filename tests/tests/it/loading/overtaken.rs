//! A load that began before a mutation comes to its end after it.

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tiercache_core::testing::{GateTier, ManualClock, MemoryTier, Op, Point};
use tiercache_core::tier::{Always, Resident, Tier};
use tiercache_core::{CacheManager, Eager, Entry, Generation, Level};
use tiercache_disk::{DiskConfig, DiskTier, Flush};
use tiercache_tests::rig::{Gated, builder, disk_config, get, hold, id, idle, ram};
use tokio::task::JoinHandle;

use super::{Origin, in_ram};

fn spawn(cache: &CacheManager, origin: &Arc<Origin>) -> JoinHandle<Bytes> {
    let (cache, load) = (cache.clone(), origin.load());
    tokio::spawn(async move { cache.get_or_load("k", load).tag("t", "1").await.unwrap() })
}

#[tokio::test]
async fn h2_what_was_loaded_before_an_invalidation_is_not_kept_and_not_joined() {
    for what in ["delete", "tag", "clear", "namespace"] {
        let (cache, _clock) = in_ram(|builder| builder).await;
        let cache = if what == "namespace" { cache.namespace("ns").unwrap() } else { cache };
        let origin = Origin::new("old");
        origin.hold();
        let before = spawn(&cache, &origin);
        origin.begun().await;
        origin.says("new");
        match what {
            "delete" => drop(cache.delete("k").await.unwrap()),
            "tag" => drop(cache.invalidate_tag("t", "1").await.unwrap()),
            _ => drop(cache.clear().await.unwrap()),
        }
        let after = spawn(&cache, &origin);
        idle().await;
        if what == "delete" {
            assert_eq!(origin.loads(), 2, "a load of its own");
        }
        origin.release();
        origin.release();
        assert_eq!(before.await.unwrap(), "old", "{what}: its own caller may have it");
        assert_eq!(after.await.unwrap(), "new", "{what}");
        assert_eq!(origin.loads(), 2, "{what}");
        assert_eq!(get(&cache, "k").await.unwrap(), "new", "{what}");
        assert_eq!(cache.stats().await.unwrap().in_flight, 0, "{what}");
    }
}

#[tokio::test]
async fn h2_what_was_loaded_before_a_set_does_not_replace_it() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let origin = Origin::new("old");
    origin.hold();
    let before = spawn(&cache, &origin);
    origin.begun().await;
    cache.set("k", "set").await.unwrap();
    origin.release();
    assert_eq!(before.await.unwrap(), "old");
    assert_eq!(get(&cache, "k").await.unwrap(), "set");
}

#[tokio::test]
async fn a_loaded_value_replaces_the_older_copy_below_for_good() {
    let rig = Gated::new().await;
    rig.cache.set("k", "old").ttl(Duration::from_secs(5)).await.unwrap();
    rig.evict();
    rig.cache.settle().await.unwrap();
    rig.clock.advance(Duration::from_secs(5));
    let origin = Origin::new("new");
    assert_eq!(rig.cache.get_or_load("k", origin.load()).await.unwrap(), "new");
    let next = rig.next_process().await;
    assert_eq!(
        get(&next.cache, "k").await,
        None,
        "written back: the new value died with its process, the old one too"
    );
}

/// Two processes over one store; the first is far ahead in generations of the second.
struct Processes {
    here: CacheManager,
    there: CacheManager,
    store: Arc<MemoryTier>,
}

impl Processes {
    async fn new() -> Self {
        let store = MemoryTier::shared();
        let clock = ManualClock::new();
        let process = |tier: Arc<MemoryTier>| builder(&clock).hot(ram()).dry(tier).build();
        let here = process(store.clone()).await.unwrap();
        let there = process(store.reopen()).await.unwrap();
        for number in 0..100 {
            here.set(format!("other {number}"), "v").await.unwrap();
        }
        Self { here, there, store }
    }

    /// What RAM here holds goes down, as at the end of the process.
    async fn end(&self) {
        self.here.close(Duration::from_secs(5)).await.unwrap();
    }
}

#[tokio::test]
async fn what_was_loaded_before_another_process_changed_the_key_is_not_stored_over_that() {
    for removed in [false, true] {
        let processes = Processes::new().await;
        let origin = Origin::new("old");
        origin.hold();
        let before = spawn(&processes.here, &origin);
        origin.begun().await;
        if removed {
            processes.there.delete("k").await.unwrap();
        } else {
            processes.there.set("k", "theirs").skip(Level::Hot).await.unwrap();
        }
        origin.release();
        assert_eq!(before.await.unwrap(), "old");
        processes.end().await;
        let stored = processes.store.reopen().get(&id("k")).await.unwrap();
        let value = stored.map(|entry| entry.value);
        assert_eq!(value.as_deref(), (!removed).then_some(b"theirs".as_slice()), "removed: {removed}");
    }
}

#[tokio::test]
async fn a_refresh_is_not_stored_over_what_another_process_wrote_meanwhile() {
    let processes = Processes::new().await;
    let origin = Origin::new("old");
    let load = || {
        let load = processes.here.get_or_load("k", origin.load());
        load.ttl(Duration::from_secs(10)).eager(Eager::After(0.0)).pin(Level::Dry).into_future()
    };
    load().await.unwrap();
    origin.begun().await;
    let stored = processes.store.get(&id("k")).await.unwrap().expect("stored by the first load");
    origin.hold();
    assert_eq!(load().await.unwrap(), "old", "and a refresh begins");
    origin.begun().await;
    // The other process counts from where it met the key, far below what this one has come to.
    let theirs = Generation::new(stored.generation.get() + 1);
    assert!(processes.store.remove(&id("k"), theirs).await.unwrap().is_done());
    let made = Entry::new("theirs", theirs, stored.created);
    processes.store.put(&id("k"), &made, hold(), &Always).await.unwrap();
    origin.release();
    idle().await;
    let stored = processes.store.get(&id("k")).await.unwrap();
    assert!(
        stored.is_none_or(|entry| entry.value == "theirs"),
        "what they wrote or nothing, but nothing older"
    );
}

#[tokio::test]
async fn a_load_asks_no_level_that_has_the_value_of_another_process_by_then() {
    let processes = Processes::new().await;
    let origin = Origin::new("v");
    processes.there.set("k", "theirs").skip(Level::Hot).await.unwrap();
    assert_eq!(processes.here.get_or_load("k", origin.load()).await.unwrap(), "theirs");
    assert_eq!(origin.loads(), 0);
}

/// A load finds that another process is ahead of it and begins anew, after this process has set the key.
#[tokio::test]
async fn a_load_that_begins_anew_takes_nothing_from_what_this_process_set_meanwhile() {
    for sunk in [false, true] {
        let (clock, store) = (ManualClock::new(), MemoryTier::shared());
        let (gate, hot) = (Arc::new(GateTier::new(store.clone())), ram());
        let here = builder(&clock).hot(hot.clone()).dry(gate.clone()).build().await.unwrap();
        let there = builder(&clock).hot(ram()).dry(store.reopen()).build().await.unwrap();
        for number in 0..100 {
            there.set(format!("other {number}"), "v").await.unwrap();
        }
        let origin = Origin::new("loaded");
        gate.close_gate(Point::Before(Op::Remove));
        let loading = spawn(&here, &origin);
        gate.held(Point::Before(Op::Remove)).await;
        // Nothing was there when the load looked; by the time it claims the key there is a mark, far ahead.
        there.delete("k").await.unwrap();
        gate.close_gate(Point::After(Op::Get));
        gate.open_gate(Point::Before(Op::Remove));
        gate.held(Point::After(Op::Get)).await;
        assert_eq!(origin.loads(), 0);
        // It has looked once more and found nothing, which it does not know yet.
        here.set("k", "set").await.unwrap();
        if sunk {
            hot.drain();
            here.settle().await.unwrap();
            assert_eq!(store.get(&id("k")).await.unwrap().unwrap().value, "set");
        }
        gate.open_gate(Point::After(Op::Get));
        // What is in RAM it finds there, and need not load.
        assert_eq!(loading.await.unwrap(), if sunk { "loaded" } else { "set" });
        idle().await;
        assert_eq!(get(&here, "k").await.unwrap(), "set", "sunk: {sunk}");
        here.close(Duration::from_secs(5)).await.unwrap();
        assert_eq!(store.reopen().get(&id("k")).await.unwrap().unwrap().value, "set", "sunk: {sunk}");
    }
}

/// A load has found nothing while a set waited for a level, and learns of that after the set has ended.
#[tokio::test]
async fn a_load_begins_on_nothing_that_a_set_has_replaced_since() {
    let (clock, store) = (ManualClock::new(), MemoryTier::shared());
    let gate = Arc::new(GateTier::new(store.clone()));
    let cache = builder(&clock).hot(ram()).dry(gate.clone()).build().await.unwrap();
    gate.close_gate(Point::Before(Op::Remove));
    let there = cache.clone();
    let setting = tokio::spawn(async move { there.set("k", "set").await });
    gate.held(Point::Before(Op::Remove)).await;
    gate.close_gate(Point::After(Op::Get));
    let origin = Origin::new("loaded");
    let loading = spawn(&cache, &origin);
    gate.held(Point::After(Op::Get)).await;
    gate.open_gate(Point::Before(Op::Remove));
    setting.await.unwrap().unwrap();
    gate.open_gate(Point::After(Op::Get));
    assert_eq!(loading.await.unwrap(), "set");
    assert_eq!(origin.loads(), 0);
    assert_eq!(get(&cache, "k").await.unwrap(), "set");
}

/// A level of this machine has a copy to be removed, for which the shared level, too, is asked again when the value is
/// kept: by then another process is ahead.
#[tokio::test]
async fn what_was_loaded_does_not_stand_over_another_process_when_a_level_of_this_machine_is_waited_for() {
    for removed in [false, true] {
        let (clock, store) = (ManualClock::new(), MemoryTier::shared());
        let folder = tempfile::tempdir().unwrap();
        // A removal is waited for whenever there is something to remove.
        let config = DiskConfig { flush: Flush::Each, ..disk_config(folder.path()) };
        let local = Arc::new(DiskTier::open(config, clock.clone()).await.unwrap());
        let (hot, dry) = (ram(), store.clone());
        let here = builder(&clock).hot(hot).cold(local.clone()).dry(dry).build().await.unwrap();
        let there = builder(&clock).hot(ram()).dry(store.reopen()).build().await.unwrap();
        here.set("k", "dead").ttl(Duration::from_secs(5)).pin(Level::Cold).await.unwrap();
        clock.advance(Duration::from_secs(5));
        let origin = Origin::new("old");
        origin.hold();
        let loading = spawn(&here, &origin);
        origin.begun().await;
        assert!(local.index().unwrap().holds(id("k").as_ref()).is_some(), "a copy that answers nobody");
        if removed {
            there.delete("k").await.unwrap();
        } else {
            there.set("k", "theirs").skip(Level::Hot).await.unwrap();
        }
        origin.release();
        assert_eq!(loading.await.unwrap(), "old", "whoever waited has it");
        idle().await;
        let found = get(&here, "k").await;
        assert!(found.is_none() || (!removed && found.as_deref() == Some("theirs")), "{found:?}");
        here.close(Duration::from_secs(5)).await.unwrap();
        let stored = store.reopen().get(&id("k")).await.unwrap().map(|entry| entry.value);
        assert!(stored.is_none() || (!removed && stored.as_deref() == Some(b"theirs")), "{stored:?}");
    }
}
