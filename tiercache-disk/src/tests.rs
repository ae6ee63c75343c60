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
                0 => tier.remove(key, Generation::new(generation)).await.unwrap(),
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
