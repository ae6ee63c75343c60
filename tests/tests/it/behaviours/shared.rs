//! Two processes on one level: one invalidates a tag, or takes a value, and the other changes what it has read before.

use std::path::Path;
use std::sync::Arc;

use tiercache_core::testing::ManualClock;
use tiercache_core::{CacheManager, Write};
use tiercache_sqlite::{SqliteConfig, SqliteTier};
use tiercache_tests::rig::{builder, get, ram};

async fn process(path: &Path, clock: &Arc<ManualClock>, write: Write) -> CacheManager {
    let config = SqliteConfig { path: Some(path.join("level")), ..SqliteConfig::default() };
    let level = Arc::new(SqliteTier::open(config, clock.clone()).await.unwrap());
    builder(clock).hot(ram()).dry(level).write(write).build().await.unwrap()
}

/// Two processes; the second has counted far beyond the first.
async fn processes(path: &Path, write: Write) -> (CacheManager, CacheManager) {
    let clock = ManualClock::new();
    let (here, there) = (process(path, &clock, write).await, process(path, &clock, write).await);
    for number in 0..100 {
        there.set(format!("other {number}"), "v").await.unwrap();
    }
    (here, there)
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Touch,
    Replace,
    CompareAndSet,
}

/// Whether the change was made.
async fn change(cache: &CacheManager, change: Change) -> bool {
    match change {
        Change::Touch => cache.touch("k", None).await.unwrap().found,
        Change::Replace => cache.replace("k", "new").tag("t", "2").await.unwrap().stored,
        Change::CompareAndSet => {
            let found = cache.entry("k").await.unwrap().unwrap();
            cache.compare_and_set("k", found.generation, "new").tag("t", "2").await.unwrap().stored
        }
    }
}

const CHANGES: [Change; 3] = [Change::Touch, Change::Replace, Change::CompareAndSet];

#[tokio::test]
async fn an_invalidation_of_another_tag_takes_nothing_from_what_is_changed() {
    for made in CHANGES {
        let folder = tempfile::tempdir().unwrap();
        let (here, there) = processes(folder.path(), Write::Back).await;
        here.set("k", "v").tag("t", "1").await.unwrap();
        there.invalidate_tag("t", "2").await.unwrap();
        assert!(change(&here, made).await, "{made:?}");
        let expected = if matches!(made, Change::Touch) { "v" } else { "new" };
        assert_eq!(get(&here, "k").await.unwrap(), expected, "{made:?}");
        here.close(std::time::Duration::from_secs(5)).await.unwrap();
        assert_eq!(get(&there, "k").await.unwrap(), expected, "{made:?}: above the invalidation");
    }
}

#[tokio::test]
async fn what_another_process_has_invalidated_is_not_changed() {
    for made in CHANGES {
        let folder = tempfile::tempdir().unwrap();
        let (here, there) = processes(folder.path(), Write::Back).await;
        here.set("k", "v").tag("t", "1").await.unwrap();
        there.invalidate_tag("t", "1").await.unwrap();
        assert!(!change(&here, made).await, "{made:?}");
        assert_eq!(get(&here, "k").await, None, "{made:?}");
        here.close(std::time::Duration::from_secs(5)).await.unwrap();
        assert_eq!(get(&there, "k").await, None, "{made:?}");
    }
}

#[tokio::test]
async fn a_transaction_does_not_see_what_another_process_has_invalidated() {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = processes(folder.path(), Write::Back).await;
    here.set("k", "v").tag("t", "1").await.unwrap();
    here.set("other", "v").tag("t", "2").await.unwrap();
    there.invalidate_tag("t", "1").await.unwrap();
    let saw = here.transaction(&["k", "other"], |tx| Ok((tx.get("k")?, tx.get("other")?))).await.unwrap();
    assert_eq!(saw, (None, Some("v".into())));
    assert_eq!(get(&here, "k").await, None, "nor does a get after it");
    assert_eq!(get(&here, "other").await.unwrap(), "v");
}

#[tokio::test]
async fn what_another_process_has_taken_is_not_taken_again() {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = processes(folder.path(), Write::Through).await;
    here.set("k", "v").await.unwrap();
    for cache in [&here, &there] {
        assert_eq!(get(cache, "k").await.unwrap(), "v", "both have it in RAM");
    }
    let taken = there.pop("k").await.unwrap();
    assert_eq!(taken.value.as_deref(), Some(&b"v"[..]));
    let again = here.pop("k").await.unwrap();
    assert_eq!((again.value, again.degraded.len()), (None, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_processes_that_take_a_value_at_once_one_gets_it() {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = processes(folder.path(), Write::Through).await;
    for round in 0..100 {
        here.set("k", format!("{round}")).await.unwrap();
        if round % 2 == 0 {
            get(&there, "k").await.unwrap();
        }
        let barrier = Arc::new(tokio::sync::Barrier::new(4));
        let takers = [&here, &here, &there, &there].map(|cache| {
            let (cache, barrier) = (cache.clone(), barrier.clone());
            tokio::spawn(async move {
                barrier.wait().await;
                cache.pop("k").await.unwrap().value
            })
        });
        let mut taken = Vec::new();
        for taker in takers {
            taken.extend(taker.await.unwrap());
        }
        assert_eq!(taken, [format!("{round}")], "of four one got it");
    }
}
