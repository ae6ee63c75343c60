//! A level that other processes write to is away, the process is killed, the next one begins, the level is back: what
//! was removed meanwhile stays removed.

use std::sync::Arc;
use std::time::Duration;

use tiercache_core::testing::{Fault, FaultTier, ManualClock, MemoryTier, Op, When};
use tiercache_core::tier::{Always, Hold, Journal, Put, Reach};
use tiercache_core::{CacheManager, Entry, Generation, Key, Level, Stay, Tier, Timestamp};
use tiercache_tests::doubles::RuntimeClock;
use tiercache_tests::rig::{disk, get, killed, ram};

/// Between two processes: what the store that both use has, whatever reaches it.
struct Away {
    store: Arc<MemoryTier>,
    link: Arc<FaultTier>,
}

impl Away {
    fn new() -> Self {
        let store = MemoryTier::shared();
        Self { link: link(&store), store }
    }

    /// The level as the next process has it.
    fn next(self) -> Self {
        Self { link: link(&self.store), store: self.store }
    }

    fn go(&self) {
        for op in [Op::Get, Op::Put, Op::Remove, Op::Clear, Op::Fence] {
            self.link.inject(op, When::Always, Fault::FailBefore);
        }
    }

    async fn has(&self, key: &str) -> bool {
        self.store.get(&id(key)).await.unwrap().is_some()
    }

    /// Another process puts something there.
    async fn put(&self, key: &str, generation: u64) {
        let mut entry = Entry::new("old", Generation::new(generation), Timestamp::from_millis(1));
        entry.extras_mut().tags.insert("t".into(), "1".into());
        let hold = Hold { now: entry.created, stay: Stay::Forever };
        assert_eq!(self.store.put(&id(key), &entry, hold, &Always).await.unwrap(), Put::Stored);
    }
}

fn link(store: &Arc<MemoryTier>) -> Arc<FaultTier> {
    Arc::new(FaultTier::new(store.reopen()))
}

fn id(key: &str) -> Key {
    Key::new("", key.as_bytes()).unwrap()
}

async fn process(away: &Away, local: Arc<dyn Tier>) -> CacheManager {
    let clock = RuntimeClock::start();
    CacheManager::builder()
        .clock(clock)
        .hot(ram())
        .cold(away.link.clone())
        .dry(local)
        .manual()
        .build()
        .await
        .unwrap()
}

async fn noted(local: &MemoryTier) -> Vec<Reach> {
    local.notes().await.unwrap().into_iter().map(|(_, waiting)| waiting.reach).collect()
}

/// Until what waits was tried again, however long it had to pause.
async fn try_again() {
    tokio::time::sleep(Duration::from_secs(10)).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_removed_while_a_level_was_away_stays_removed_though_the_process_is_killed() {
    for what in ["delete", "set", "pop", "invalidate", "clear", "namespace"] {
        for generation in [1, 1_000_000] {
            let (away, local) = (Away::new(), MemoryTier::persistent());
            let namespace = if what == "namespace" { "ns" } else { "" };
            away.put("k", generation).await;
            let cache = process(&away, local.reopen()).await;
            if what == "pop" {
                assert!(cache.get("k").await.unwrap().is_some());
            }
            away.go();
            let degraded = match what {
                "delete" => cache.delete("k").await.unwrap().degraded,
                "set" => cache.set("k", "new").await.unwrap().degraded,
                "pop" => cache.pop("k").await.unwrap().degraded,
                "invalidate" => cache.invalidate_tag("t", "1").await.unwrap().degraded,
                "clear" => cache.clear().await.unwrap().degraded,
                _ => cache.namespace("ns").unwrap().clear().await.unwrap().degraded,
            };
            assert_eq!(degraded.iter().map(|(level, _)| *level).collect::<Vec<_>>(), [Level::Cold], "{what}");
            assert_eq!(noted(&local).await.len(), 1, "{what}");
            assert_eq!(cache.stats().await.unwrap().unnoted, 0);
            drop(cache);

            away.link.heal();
            let next = process(&away, local.reopen()).await;
            let removed = namespace.is_empty();
            assert_eq!(get(&next, "k").await.is_none(), removed, "{what} of generation {generation}");
            assert_eq!(next.contains("k").await.unwrap(), !removed, "{what}");
            try_again().await;
            if what != "invalidate" {
                assert_eq!(away.has("k").await, !removed, "{what}: the level has done it");
            }
            assert_eq!(noted(&local).await, [], "{what}: what is done is not noted any more");
            let one_more = process(&away, local.reopen()).await;
            assert_eq!(get(&one_more, "k").await.is_none(), removed, "{what}");
            next.set("k", "newer").await.unwrap();
            assert_eq!(get(&next, "k").await.as_deref(), Some("newer"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_level_that_stays_away_is_doubted_by_every_process_to_come_and_an_orderly_end_forgets_nothing() {
    let (mut away, local) = (Away::new(), MemoryTier::persistent());
    away.put("k", 5).await;
    away.go();
    let cache = process(&away, local.reopen()).await;
    cache.delete("k").await.unwrap();
    cache.close(Duration::from_secs(1)).await.unwrap();
    for _ in 0..3 {
        away = away.next();
        away.go();
        let next = process(&away, local.reopen()).await;
        try_again().await;
        assert_eq!(get(&next, "k").await, None);
        assert_eq!(noted(&local).await, [Reach::Key(id("k"))]);
        assert_eq!(next.stats().await.unwrap().in_flight, 1, "it is seen through once");
        next.close(Duration::from_secs(1)).await.unwrap();
    }
    away = away.next();
    let last = process(&away, local.reopen()).await;
    assert_eq!(get(&last, "k").await, None, "nothing is answered before the removal was made");
    try_again().await;
    assert!(!away.has("k").await);
    assert_eq!(noted(&local).await, []);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_written_again_and_again_is_noted_once() {
    let (away, local) = (Away::new(), MemoryTier::persistent());
    away.go();
    let cache = process(&away, local.reopen()).await;
    for round in 0..20 {
        cache.set("k", format!("{round}")).await.unwrap();
        assert_eq!(get(&cache, "k").await.as_deref(), Some(format!("{round}").as_str()));
    }
    assert_eq!(noted(&local).await, [Reach::Key(id("k"))]);
    away.link.heal();
    try_again().await;
    assert_eq!(get(&cache, "k").await.as_deref(), Some("19"));
    assert_eq!(noted(&local).await, []);
    assert_eq!(cache.stats().await.unwrap().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn too_many_removals_are_noted_as_one_that_empties_the_level() {
    let (away, local) = (Away::new(), MemoryTier::persistent());
    away.put("another", 3).await;
    away.go();
    let cache = process(&away, local.reopen()).await;
    for key in 0..10_003 {
        cache.delete(format!("{key}")).await.unwrap();
    }
    let notes = noted(&local).await;
    assert_eq!((notes.len(), notes.last()), (10_001, Some(&Reach::Level)));
    assert_eq!(cache.stats().await.unwrap().emptied, 1);
    drop(cache);

    away.link.heal();
    let next = process(&away, local.reopen()).await;
    assert_eq!(get(&next, "another").await, None, "nothing the level holds is believed");
    try_again().await;
    assert!(!away.has("another").await);
    assert_eq!(noted(&local).await, []);
    away.put("another", 1 << 40).await;
    assert_eq!(get(&next, "another").await.as_deref(), Some("old"), "and then all of it is again");
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_fails_is_counted_and_the_removal_is_seen_through_all_the_same() {
    let (away, store) = (Away::new(), MemoryTier::persistent());
    let local = Arc::new(FaultTier::new(store.clone()));
    away.put("k", 5).await;
    away.go();
    let cache = process(&away, local.clone()).await;
    for (fault, unnoted) in [(Fault::FailBefore, 1), (Fault::Hang, 2)] {
        local.heal();
        local.inject(Op::Note, When::Always, fault);
        let key = if unnoted == 1 { "k" } else { "another" };
        assert_eq!(cache.delete(key).await.unwrap().degraded.len(), 1, "{fault:?}");
        assert_eq!(cache.stats().await.unwrap().unnoted, unnoted, "{fault:?}");
    }
    away.link.heal();
    assert_eq!(get(&cache, "k").await, None);
    try_again().await;
    assert!(!away.has("k").await);
}

#[tokio::test]
async fn the_journal_of_a_disk_level_is_there_after_a_kill() {
    let (away, place, clock) = (Away::new(), tempfile::tempdir().unwrap(), ManualClock::new());
    away.put("k", 7).await;
    away.put("tagged", 8).await;
    away.go();
    let cache = process(&away, disk(place.path(), &clock).await).await;
    assert_eq!(cache.delete("k").await.unwrap().degraded.len(), 1);
    assert_eq!(cache.invalidate_tag("t", "1").await.unwrap().degraded.len(), 1);
    let after = killed(place.path());
    let report = tiercache_disk::DiskTier::inspect(&after.path().join("level")).unwrap();
    assert_eq!(report.waiting, 2);
    drop(cache);

    away.link.heal();
    let local = disk(after.path(), &clock).await;
    assert_eq!(local.notes().await.unwrap().len(), 2);
    let next = process(&away, local.clone()).await;
    for key in ["k", "tagged"] {
        assert_eq!(get(&next, key).await, None, "{key}");
    }
}
