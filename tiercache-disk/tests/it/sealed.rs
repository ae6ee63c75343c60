//! A level whose entries are encrypted.

use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::common::*;
use tiercache_core::testing::{ManualClock, tier};
use tiercache_core::tier::{FenceLog, Index, Put, Scope};
use tiercache_core::{EncryptionConfig, Error, Generation, OldKey, Packing, Secret, Tier};
use tiercache_disk::{DiskConfig, DiskTier, Report};

const NEW: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const OLD: &str = "//////////////////////////////////////////8=";

fn secret(key: &str) -> Option<Secret> {
    Some(Secret::from(key.to_owned()))
}

fn keyed(key: &str, old: &[&str]) -> EncryptionConfig {
    let old_key = |key: &&str| OldKey { key: secret(key), ..OldKey::default() };
    let old_keys = old.iter().map(old_key).collect();
    EncryptionConfig { key: secret(key), old_keys, ..EncryptionConfig::default() }
}

fn sealed(path: &Path, encryption: EncryptionConfig) -> DiskTier {
    open_at(DiskConfig { encryption: Some(encryption), ..config(path) }, &ManualClock::new())
}

fn check(path: &Path, repair: bool) -> Report {
    DiskTier::check(&path.join("level"), repair, &mut |_, _| {}).unwrap()
}

fn on_disk(path: &Path, what: &[u8]) -> bool {
    let holds = |file| std::fs::read(file).unwrap().windows(what.len()).any(|part| part == what);
    segments(path).into_iter().any(holds)
}

#[tokio::test]
async fn sealed_it_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let open = |name: String| {
        let config = DiskConfig {
            path: Some(dir.path().join(name)),
            max_size: 8 << 20,
            encryption: Some(keyed(NEW, &[])),
            ..DiskConfig::default()
        };
        std::sync::Arc::new(DiskTier::open_blocking(config, ManualClock::new()).unwrap())
            as std::sync::Arc<dyn Tier>
    };
    let fresh = || next.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string();
    tier::suite(async || open(fresh())).await;
    tier::persistent_suite(async |place| open(format!("kept {place}"))).await;
}

#[tokio::test]
async fn keys_and_values_do_not_stand_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let tier = sealed(dir.path(), keyed(NEW, &[]));
    put(&tier, "the key of it", "the value of it", 1).await;
    assert_eq!(value(&tier, "the key of it").await.unwrap(), "the value of it");
    tier.close().await.unwrap();
    assert!(!on_disk(dir.path(), b"the key") && !on_disk(dir.path(), b"the value"));
    let plain = tempfile::tempdir().unwrap();
    let tier = open(plain.path());
    put(&tier, "the key of it", "the value of it", 1).await;
    tier.close().await.unwrap();
    assert!(on_disk(plain.path(), b"the key") && on_disk(plain.path(), b"the value"));
}

#[tokio::test]
async fn reclaim_moves_and_hands_over_sealed_entries_and_large_ones_are_sealed_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let config = DiskConfig {
        max_size: 4 << 20,
        segment_size: Some(512 << 10),
        compression: Packing::None,
        encryption: Some(keyed(NEW, &[])),
        ..config(dir.path())
    };
    let tier = open_at(config, &ManualClock::new());
    let basket = std::sync::Arc::new(Basket::default());
    tier.attach(basket.clone());
    for n in 0..100u64 {
        put(&tier, &format!("key {n}"), &filler(&format!("{n} "), 100_000), n + 1).await;
        assert_eq!(value(&tier, "key 0").await.unwrap(), filler("0 ", 100_000), "{n}");
    }
    let left = basket.0.lock().unwrap();
    assert!(left.len() > 50);
    for (key, entry, _) in left.iter() {
        let n = entry.generation.get() - 1;
        assert_eq!(key.bytes(), format!("key {n}").as_bytes());
        assert_eq!(entry.value, filler(&format!("{n} "), 100_000));
    }
}

#[tokio::test]
async fn after_a_kill_entries_removals_and_fences_are_found_whatever_the_key_is_now() {
    for by_kill in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let tier = sealed(dir.path(), keyed(OLD, &[]));
        for n in 0..500u64 {
            put(&tier, &format!("key {}", n % 400), &filler(&format!("{n} "), 400), n + 1).await;
        }
        tier.remove(&key("key 399"), Generation::new(9_000)).await.unwrap();
        tier.fence(&Scope::Namespace("x".into()), Generation::new(9_001)).await.unwrap();
        tier.sync().await.unwrap();
        if by_kill {
            kill(tier, dir.path());
        } else {
            tier.close().await.unwrap();
        }
        let report = check(dir.path(), false);
        assert!(report.is_clean(), "{report:?}");
        assert_eq!((report.entries, report.removals, report.fences), (399, 1, 1));

        let tier = sealed(dir.path(), keyed(NEW, &[]));
        assert_eq!(tier.usage().await.unwrap().entries, Some(399));
        assert_eq!(tier.holds(key("key 7").as_ref()), Some(Generation::new(408)));
        assert_eq!(value(&tier, "key 7").await, None);
        assert_eq!(tier.usage().await.unwrap().damaged, 1);
        assert_eq!(put(&tier, "key 8", "older", 3).await, Put::Superseded);
        assert_eq!(put(&tier, "key 399", "older", 8_999).await, Put::Superseded);
        tier.close().await.unwrap();
        assert!(check(dir.path(), true).is_clean());

        let tier = sealed(dir.path(), keyed(NEW, &[OLD]));
        for n in [9u64, 99, 398] {
            let newest = if n < 100 { n + 400 } else { n };
            assert_eq!(value(&tier, &format!("key {n}")).await.unwrap(), filler(&format!("{newest} "), 400));
        }
        assert_eq!(value(&tier, "key 399").await, None);
    }
}

#[tokio::test]
async fn plain_entries_of_before_are_misses_unless_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    put(&tier, "a", "1", 1).await;
    put(&tier, "b", "1", 1).await;
    tier.close().await.unwrap();
    let tier = sealed(dir.path(), EncryptionConfig { require: false, ..keyed(NEW, &[]) });
    assert_eq!(value(&tier, "a").await.unwrap(), "1");
    tier.close().await.unwrap();
    let tier = sealed(dir.path(), keyed(NEW, &[]));
    assert_eq!(value(&tier, "b").await, None);
    assert_eq!(put(&tier, "b", "2", 2).await, Put::Stored);
    assert_eq!(value(&tier, "b").await.unwrap(), "2");
    tier.close().await.unwrap();
    let tier = open(dir.path());
    assert_eq!(value(&tier, "b").await, None, "nor are sealed ones read without the key");
}

#[tokio::test]
async fn any_flipped_byte_is_a_miss() {
    let dir = tempfile::tempdir().unwrap();
    let tier = sealed(dir.path(), keyed(NEW, &[]));
    put(&tier, "a", "value", 1).await;
    tier.close().await.unwrap();
    let file = segments(dir.path()).remove(0);
    let whole = std::fs::read(&file).unwrap();
    let len = usize::try_from(check(dir.path(), false).bytes).unwrap();
    for at in 64..64 + len {
        let handle = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
        handle.write_all_at(&whole, 0).unwrap();
        handle.write_all_at(&[whole[at] ^ 0x10], at as u64).unwrap();
        let tier = sealed(dir.path(), keyed(NEW, &[]));
        assert_eq!(value(&tier, "a").await, None, "{at}");
        drop(tier);
    }
}

#[test]
fn a_key_that_is_none_is_refused_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let config = DiskConfig { encryption: Some(keyed("hunter2", &[])), ..config(dir.path()) };
    assert!(config.check().is_err());
    match DiskTier::open_blocking(config, ManualClock::new()) {
        Err(Error::Config(message)) => assert_eq!(message, "encryption.key: it is not 32 bytes in base64"),
        other => panic!("{other:?}"),
    }
    assert!(!dir.path().join("level").exists());
}
