//! What takes a bad hash function or a look inside to show.

use std::sync::Arc;

use tiercache_core::testing::ManualClock;
use tiercache_core::tier::{Always, Hold, Index, Put};
use tiercache_core::{Clock, Entry, Generation, Key, KeyRef, Stay, Tier};

use crate::{DiskConfig, DiskTier};

fn config(path: &std::path::Path) -> DiskConfig {
    DiskConfig {
        path: Some(path.to_owned()),
        max_size: 1 << 20,
        segment_size: Some(64 << 10),
        ..DiskConfig::default()
    }
}

fn constant(_: KeyRef<'_>, _: u64) -> u64 {
    0x12_3456_789A
}

fn few(key: KeyRef<'_>, _: u64) -> u64 {
    u64::from(key.bytes()[0] % 4) << 36 | u64::from(key.bytes()[0] % 3)
}

async fn put(tier: &DiskTier, key: &Key, value: &str, generation: u64) -> Put {
    let clock = ManualClock::new();
    let entry = Entry::new(value.to_owned(), Generation::new(generation), clock.now());
    tier.put(key, &entry, Hold { now: clock.now(), stay: Stay::Forever }, &Always).await.unwrap()
}

#[tokio::test]
async fn keys_with_one_hash_never_get_each_others_value() {
    for hasher in [constant, few] {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let clock: Arc<dyn Clock> = ManualClock::new();
            DiskTier::open_with(config(dir.path()), clock, hasher).unwrap()
        };
        let keys: Vec<_> = (0..40u8).map(|n| Key::new("", &[n, n]).unwrap()).collect();
        let look = async |tier: &DiskTier| {
            for key in &keys {
                if let Some(found) = tier.get(key).await.unwrap() {
                    assert!(found.value.starts_with(format!("{key:?} ").as_bytes()));
                }
            }
        };
        let tier = open();
        for generation in 1..400u64 {
            let key = &keys[generation as usize * 7 % keys.len()];
            match generation % 5 {
                0 => assert!(tier.remove(key, Generation::new(generation)).await.unwrap().is_done()),
                _ => assert_eq!(
                    put(&tier, key, &format!("{key:?} {generation}"), generation).await,
                    Put::Stored
                ),
            }
            if generation % 5 == 0 {
                // Another key's removal may be in the way, an own older value never is.
                assert!(tier.get(key).await.unwrap().is_none());
                assert!(tier.holds(key.as_ref()).is_none());
            }
            look(&tier).await;
        }
        drop(tier);
        look(&open()).await;
    }
}

#[tokio::test]
async fn counters_agree_with_the_index_after_churn_and_restart() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let clock: Arc<dyn Clock> = ManualClock::new();
        DiskTier::open_with(config(dir.path()), clock, crate::segment::hash_key).unwrap()
    };
    let tier = open();
    for n in 1..6_000u64 {
        let key = Key::new("", format!("{}", n * 31 % 900).as_bytes()).unwrap();
        if n % 7 == 0 {
            tier.remove(&key, Generation::new(n)).await.unwrap();
        } else {
            put(&tier, &key, &"v".repeat(n as usize % 2_000), n).await;
        }
    }
    let counted = |tier: &DiskTier| (tier.store().index.entries(), tier.store().index.bytes());
    // Closed, so that no reclaim is at work between the two looks.
    tier.close().await.unwrap();
    let before = counted(&tier);
    assert_eq!(before, tier.store().index.recount());
    drop(tier);
    let tier = open();
    let after = counted(&tier);
    assert_eq!(after, tier.store().index.recount());
    // A reclaim that the end cut short had begun to give entries up, and these are back.
    assert!(after.0 >= before.0 && after.1 >= before.1, "{after:?} after {before:?}");
}

#[tokio::test]
async fn a_future_dropped_at_any_poll_leaves_nothing_behind() {
    use std::future::Future;
    use std::task::{Context, Waker};

    let dir = tempfile::tempdir().unwrap();
    let config = DiskConfig { flush: crate::Flush::Each, ..config(dir.path()) };
    let tier = DiskTier::open_with(config, ManualClock::new(), crate::segment::hash_key).unwrap();
    let clock = ManualClock::new();
    let hold = Hold { now: clock.now(), stay: Stay::Forever };
    for polls in 0..4 {
        for n in 0..200u64 {
            let key = Key::new("", format!("{}", n % 50).as_bytes()).unwrap();
            let generation = Generation::new(polls * 1_000 + n + 1);
            let entry = Entry::new(vec![n as u8; 2_000], generation, clock.now());
            let mut future: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = match n % 4 {
                0 => Box::pin(async { assert!(tier.remove(&key, generation).await.unwrap().is_done()) }),
                1 => Box::pin(async { tier.sync().await.unwrap() }),
                _ => Box::pin(async {
                    tier.put(&key, &entry, hold, &Always).await.unwrap();
                }),
            };
            for _ in 0..polls {
                if future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                    break;
                }
            }
        }
    }
    tier.sync().await.unwrap();
    assert_eq!(tier.store().log.pending(), 0);
    let (entries, bytes) = tier.store().index.recount();
    assert_eq!((entries, bytes), (tier.store().index.entries(), tier.store().index.bytes()));
    for n in 0..50u8 {
        let key = Key::new("", format!("{n}").as_bytes()).unwrap();
        if let Some(found) = tier.get(&key).await.unwrap() {
            assert!(found.value.len() == 2_000 && found.value.iter().all(|byte| *byte == found.value[0]));
            assert_eq!(found.value[0] % 50, n);
        }
    }
}

#[tokio::test]
async fn what_was_packed_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    for packing in [crate::Packing::Lz4, crate::Packing::Zstd] {
        let config = DiskConfig { compression: packing, ..config(dir.path()) };
        let opened = DiskTier::open_with(config, ManualClock::new(), crate::segment::hash_key);
        let compiled_in = match packing {
            crate::Packing::Lz4 => cfg!(feature = "lz4"),
            _ => cfg!(feature = "zstd"),
        };
        let tier = match opened {
            Ok(tier) => tier,
            // Another crate of the same build may have brought in what this one's features have not.
            Err(error) => {
                assert!(!compiled_in && error.to_string().contains("feature"), "{error}");
                continue;
            }
        };
        let key = Key::new("", format!("{packing:?}").as_bytes()).unwrap();
        // More than a segment takes, as long as it is not packed.
        assert_eq!(put(&tier, &key, &"text ".repeat(40_000), 1).await, Put::Stored);
        assert_eq!(tier.get(&key).await.unwrap().unwrap().value.len(), 200_000);
        assert!(tier.usage().await.unwrap().bytes.unwrap() < 20_000);
    }
}
