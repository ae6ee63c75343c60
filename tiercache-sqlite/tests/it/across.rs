//! Transactions over several shards.

use std::path::Path;
use std::time::Duration;

use crate::common::*;
use tiercache_core::testing::ManualClock;
use tiercache_core::tier::Put;
use tiercache_core::{Error, Key, Tier};
use tiercache_sqlite::{SqliteConfig, SqliteTier};

/// A key of each of the four shards.
fn keys(tier: &SqliteTier) -> Vec<Key> {
    let of = |shard| (0..).map(|n| key(&format!("k{n}"))).find(|key| tier.shard_of(key) == shard).unwrap();
    (0..4).map(of).collect()
}

async fn values(tier: &SqliteTier) -> Vec<Option<Vec<u8>>> {
    let mut found = Vec::new();
    for key in keys(tier) {
        found.push(tier.get(&key).await.unwrap().map(|entry| entry.value.to_vec()));
    }
    found
}

fn small(path: &Path) -> SqliteConfig {
    SqliteConfig { inline_max: 1 << 10, busy_timeout: Duration::from_millis(100), ..config(path) }
}

async fn with_old(path: &Path) -> SqliteTier {
    let tier = open_with(small(path), ManualClock::new());
    for key in keys(&tier) {
        assert_eq!(
            tier.put(&key, &entry(1, "old"), HOLD, &tiercache_core::tier::Always).await.unwrap(),
            Put::Stored
        );
    }
    tier
}

fn old() -> Vec<Option<Vec<u8>>> {
    vec![Some(b"old".to_vec()); 4]
}

#[tokio::test]
async fn all_of_it_is_there_when_it_returns() {
    let dir = tempfile::tempdir().unwrap();
    let tier = with_old(dir.path()).await;
    let beside = open_with(small(dir.path()), ManualClock::new());
    for round in 0..3 {
        let (over, generation) = (keys(&tier), 10 * (round + 1));
        let named = over.clone();
        let work = move |work: &mut tiercache_sqlite::Transaction<'_, '_>| {
            assert!(work.get(&over[0])?.is_some());
            work.put(&over[0], &entry(generation, "first"), HOLD)?;
            work.put(&over[2], &entry(generation, vec![3; 9_000]), HOLD)?;
            assert_eq!(work.get(&over[2])?.unwrap().value.len(), 9_000);
            assert!(work.remove(&over[3], g(generation))?.is_done());
            Ok(7)
        };
        let done = match round {
            0 => tier.transaction_over(&named, work).await,
            1 => tier.transaction_over_all(work).await,
            // Another process has its turn with the same shards.
            _ => beside.transaction_over(&named, work).await,
        };
        assert_eq!(done.unwrap(), 7);
        let new = vec![Some(b"first".to_vec()), Some(b"old".to_vec()), Some(vec![3; 9_000]), None];
        assert_eq!(values(&tier).await, new);
        assert_eq!(values(&beside).await, new);
    }
    tier.close().await.unwrap();
    beside.close().await.unwrap();
    drop((tier, beside));
    assert_eq!(files(dir.path()).len(), 1);
    let report = check(dir.path(), false);
    assert!(report.is_clean() && report.unfinished == 0, "struck at the end: {report:?}");
}

#[tokio::test]
async fn what_fails_or_panics_was_never_there_in_any_shard() {
    let dir = tempfile::tempdir().unwrap();
    let tier = with_old(dir.path()).await;
    for panics in [false, true] {
        let over = keys(&tier);
        let failed = tier.transaction_over_all(move |work| {
            for key in &over {
                assert_eq!(work.put(key, &entry(5, vec![5; 5_000]), HOLD)?, Put::Stored);
            }
            assert!(!panics, "on purpose");
            Err::<(), _>(Error::Unsupported { backend: "sqlite", op: "go on" })
        });
        match failed.await.unwrap_err() {
            Error::Panicked { .. } => assert!(panics),
            Error::Unsupported { .. } => assert!(!panics),
            other => panic!("{other}"),
        }
        assert_eq!(values(&tier).await, old());
    }
    assert_eq!(files(dir.path()).len(), 0);
    assert!(check(dir.path(), false).is_clean());
}

#[tokio::test]
async fn a_part_that_fails_is_undone_in_every_shard() {
    let dir = tempfile::tempdir().unwrap();
    let tier = with_old(dir.path()).await;
    let over = keys(&tier);
    let done = tier.transaction_over_all(move |work| {
        work.put(&over[1], &entry(2, "outer"), HOLD)?;
        let failed = work.nested(|work| {
            work.put(&over[1], &entry(3, "inner"), HOLD)?;
            work.put(&over[2], &entry(3, vec![9; 5_000]), HOLD)?;
            work.nested(|work| work.remove(&over[3], g(3)))?;
            Err::<(), _>(Error::Unsupported { backend: "sqlite", op: "go on" })
        });
        assert!(failed.is_err());
        assert_eq!(work.get(&over[1])?.unwrap().value, "outer");
        work.nested(|work| work.put(&over[3], &entry(4, "kept"), HOLD))
    });
    assert_eq!(done.await.unwrap(), Put::Stored);
    let [first, second, third, fourth] = values(&tier).await.try_into().unwrap();
    assert_eq!((first.unwrap(), second.unwrap()), (b"old".to_vec(), b"outer".to_vec()));
    assert_eq!((third.unwrap(), fourth.unwrap()), (b"old".to_vec(), b"kept".to_vec()));
    assert_eq!(files(dir.path()).len(), 0);
}

#[tokio::test]
async fn a_shard_that_another_holds_fails_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let tier = with_old(dir.path()).await;
    let held = database(dir.path(), 2);
    held.execute_batch("BEGIN IMMEDIATE").unwrap();
    let over = keys(&tier);
    let set = |over: Vec<Key>| {
        move |work: &mut tiercache_sqlite::Transaction<'_, '_>| {
            over.iter().try_for_each(|key| work.put(key, &entry(2, "new"), HOLD).map(drop))
        }
    };
    let failed = tier.transaction_over(&over, set(over.clone())).await;
    assert!(matches!(failed, Err(Error::TimedOut { .. })), "{failed:?}");
    assert_eq!(values(&tier).await, old());
    held.execute_batch("ROLLBACK").unwrap();
    tier.transaction_over(&over, set(over.clone())).await.unwrap();
    assert_eq!(values(&tier).await, vec![Some(b"new".to_vec()); 4]);
    tier.close().await.unwrap();
    assert!(matches!(tier.transaction_over_all(|_| Ok(())).await, Err(Error::Closed)));
}

#[tokio::test]
async fn it_refuses_keys_it_is_not_over_and_none_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let tier = with_old(dir.path()).await;
    let over = keys(&tier);
    let other = over[3].clone();
    let refused = tier.transaction_over(&over[..2], move |work| work.get(&other)).await.unwrap_err();
    assert!(matches!(refused, Error::InvalidOption { option: "key", .. }), "{refused}");
    let refused = tier.transaction_over(&[], |_| Ok(())).await.unwrap_err();
    assert!(matches!(refused, Error::InvalidOption { option: "keys", .. }), "{refused}");
}
