//! A level whose values are encrypted.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::*;
use tiercache_core::testing::{ManualClock, tier};
use tiercache_core::{EncryptionConfig, Secret, Tier};
use tiercache_sqlite::{SqliteConfig, SqliteTier};

fn sealed(path: &Path) -> SqliteConfig {
    let key = Some(Secret::from("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".to_owned()));
    let encryption = Some(EncryptionConfig { key, ..EncryptionConfig::default() });
    SqliteConfig { path: Some(path.to_owned()), max_size: 8 << 20, encryption, ..SqliteConfig::default() }
}

#[tokio::test]
async fn sealed_it_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let next = AtomicUsize::new(0);
    let open = |name: String| -> Arc<dyn Tier> {
        Arc::new(SqliteTier::open_blocking(sealed(&dir.path().join(name)), ManualClock::new()).unwrap())
    };
    tier::suite(async || open(next.fetch_add(1, Ordering::Relaxed).to_string())).await;
    tier::persistent_suite(async |place| open(format!("kept {place}"))).await;
}

#[tokio::test]
async fn no_value_can_be_read_from_the_disk_and_a_check_needs_no_key() {
    let dir = tempfile::tempdir().unwrap();
    let level = dir.path().join("level");
    let tier = open_with(SqliteConfig { inline_max: 1_000, ..sealed(&level) }, ManualClock::new());
    put(&tier, "small", &entry(1, "a sentinel value")).await;
    put(&tier, "large", &entry(1, "a sentinel value ".repeat(100))).await;
    assert_eq!(get(&tier, "large").await.unwrap().value, "a sentinel value ".repeat(100));
    tier.close().await.unwrap();
    drop(tier);
    let stored =
        std::fs::read_dir(&level).unwrap().map(|entry| entry.unwrap().path()).chain(files(dir.path()));
    let mut looked = 0;
    for path in stored.filter(|path| path.is_file()) {
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(8).any(|part| part == b"sentinel"), "{}", path.display());
        looked += 1;
    }
    assert!(looked >= 6);
    let report = check(dir.path(), false);
    assert!(report.is_clean() && report.entries == 2, "{report:?}");
}
