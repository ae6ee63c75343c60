//! What looking at a directory from outside finds and repairs.

use std::os::unix::fs::FileExt;

use crate::common::*;
use tiercache_core::tier::{FenceLog, Scope};
use tiercache_core::{Error, Generation, Tier};
use tiercache_disk::{DiskTier, Report};

fn check(path: &std::path::Path, repair: bool) -> Report {
    let mut last = (0, 0);
    let report = DiskTier::check(&path.join("level"), repair, &mut |done, total| {
        assert!(done >= last.0 && done <= total);
        last = (done, total);
    });
    assert_eq!(last.0, last.1);
    report.unwrap()
}

async fn filled(path: &std::path::Path) {
    let tier = open(path);
    for n in 0..600u64 {
        put(&tier, &format!("key {}", n % 400), &filler(&format!("{n} "), 400), n + 1).await;
    }
    tier.remove(&key("key 399"), Generation::new(9_000)).await.unwrap();
    tier.fence(&Scope::Namespace("x".into()), Generation::new(9_001)).await.unwrap();
    tier.close().await.unwrap();
}

fn flip(path: &std::path::Path, at: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[tokio::test]
async fn a_whole_level_is_clean_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let report = check(dir.path(), false);
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.entries, report.superseded, report.removals, report.fences), (399, 201, 1, 1));
    assert_eq!(report.last_generation, Generation::new(9_001));
    assert_eq!(report.owner, None);
    assert_eq!(DiskTier::inspect(&dir.path().join("level")).unwrap(), report);
    assert_eq!(open(dir.path()).usage().await.unwrap().entries, Some(399));
}

#[tokio::test]
async fn a_damaged_record_is_found_and_repaired() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    for (n, file) in segments(dir.path()).iter().enumerate() {
        flip(file, 2_000 + n as u64 * 37);
    }
    let damaged = segments(dir.path()).len() as u64;
    let report = check(dir.path(), false);
    assert_eq!((report.damaged, report.is_clean()), (damaged, false));
    assert!(
        DiskTier::inspect(&dir.path().join("level")).unwrap().is_clean(),
        "only reading everything tells"
    );
    assert!(check(dir.path(), true).repaired);
    let after = check(dir.path(), false);
    assert!(after.is_clean(), "{after:?}");
    assert_eq!(after.entries + after.superseded, report.entries + report.superseded - damaged);
    let tier = open(dir.path());
    for n in 0..400 {
        value(&tier, &format!("key {n}")).await;
    }
    assert_eq!(tier.usage().await.unwrap().damaged, 0);
}

#[tokio::test]
async fn damaged_headers_and_footers_are_found_and_repaired() {
    for at in [0, 9, 17, 33, 50] {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path()).await;
        flip(&segments(dir.path())[0], at);
        let footer = segments(dir.path())[1].clone();
        flip(&footer, footer.metadata().unwrap().len() - 3);
        let report = check(dir.path(), false);
        assert_eq!((report.bad_footers, report.entries), (2, 399), "{report:?}");
        check(dir.path(), true);
        let after = check(dir.path(), false);
        assert!(after.is_clean() && after.entries == 399, "{after:?}");
    }
}

#[tokio::test]
async fn leftovers_are_found_and_removed_and_foreign_files_are_not() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let level = dir.path().join("level");
    for name in ["damaged.seg", "00000077.spare", "mine.txt"] {
        std::fs::write(level.join(name), b"x").unwrap();
    }
    assert_eq!(check(dir.path(), false).leftovers, 1);
    check(dir.path(), true);
    assert!(check(dir.path(), false).is_clean());
    assert!(!level.join("damaged.seg").exists() && !level.join("00000077.spare").exists());
    assert!(level.join("mine.txt").exists());
}

#[tokio::test]
async fn beside_its_owner_a_level_is_looked_at_but_not_repaired() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let tier = open(dir.path());
    let report = check(dir.path(), false);
    assert_eq!((report.owner, report.entries), (Some(std::process::id()), 399));
    assert!(report.is_clean());
    let level = dir.path().join("level");
    assert!(matches!(DiskTier::check(&level, true, &mut |_, _| {}), Err(Error::Refused(_))));
    for n in 0..3_000 {
        put(&tier, &format!("more {n}"), &filler("m", 500), 10_000).await;
        if n % 300 == 0 {
            assert!(check(dir.path(), false).is_clean());
        }
    }
}

#[tokio::test]
async fn after_a_kill_a_level_is_clean() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    for n in 0..3_000u64 {
        put(&tier, &format!("key {}", n % 400), &filler(&format!("{n} "), 400), n + 1).await;
    }
    kill(tier, dir.path());
    let report = check(dir.path(), false);
    assert!(report.is_clean() && report.entries > 300, "{report:?}");
}
