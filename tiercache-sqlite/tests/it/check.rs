//! What looking at a directory from outside finds and repairs, and what becomes of damage.

use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::common::*;
use tiercache_core::testing::ManualClock;
use tiercache_core::tier::{FenceLog, Put, Scope};
use tiercache_core::{Error, Tier};
use tiercache_sqlite::{SqliteConfig, SqliteTier};

fn opened(path: &Path) -> SqliteTier {
    open_with(SqliteConfig { inline_max: 1_000, ..config(path) }, ManualClock::new())
}

async fn filled(path: &Path) {
    let tier = opened(path);
    for n in 0..100u64 {
        let size = if n % 4 == 0 { 3_000 } else { 100 };
        put(&tier, &format!("k{n}"), &entry(n + 1, vec![n as u8; size])).await;
    }
    remove(&tier, "k99", 9_000).await;
    tier.fence(&Scope::Namespace("x".into()), g(9_001)).await.unwrap();
    tier.close().await.unwrap();
}

/// In whichever shard that does something.
fn somewhere(path: &Path, sql: &str) -> usize {
    (0..4).map(|shard| database(path, shard).execute(sql, ()).unwrap()).sum()
}

#[tokio::test]
async fn a_whole_level_is_clean_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let report = check(dir.path(), false);
    assert!(report.is_clean() && !report.in_use, "{report:?}");
    assert_eq!((report.shards, report.entries, report.files, report.removals), (4, 99, 25, 1));
    assert_eq!((report.fences, report.last_generation), (4, g(9_001)), "a fence stands in every shard");
    let inspected = SqliteTier::inspect(&dir.path().join("level")).unwrap();
    assert_eq!((inspected.entries, inspected.bytes), (99, report.bytes));
    assert_eq!(opened(dir.path()).usage().await.unwrap().bytes, Some(report.bytes));
    let empty = tempfile::tempdir().unwrap();
    assert!(SqliteTier::inspect(empty.path()).unwrap().is_clean(), "nothing is not wrong");
}

#[tokio::test]
async fn orphans_dangling_rows_wrong_sizes_and_drifted_totals_are_counted_and_put_right() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let large = files(dir.path());
    std::fs::remove_file(&large[0]).unwrap();
    std::fs::remove_file(&large[1]).unwrap();
    for name in ["0123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcde0.tmp"] {
        std::fs::write(dir.path().join("level/files-2").join(name), b"left behind").unwrap();
    }
    assert_eq!(somewhere(dir.path(), "UPDATE entry SET size = size + 7 WHERE key = CAST('k1' AS BLOB)"), 1);
    database(dir.path(), 3)
        .execute("UPDATE state SET bytes = bytes + 1000, entries = entries - 1", ())
        .unwrap();
    database(dir.path(), 0).execute("INSERT INTO tag VALUES (123456, 'of', 'nobody')", ()).unwrap();

    let found = check(dir.path(), false);
    assert_eq!((found.orphaned, found.dangling, found.wrong_sizes, found.damaged), (2, 2, 1, 0), "{found:?}");
    assert!((2..=3).contains(&found.drifted), "{found:?}");
    assert!(!found.is_clean() && !found.repaired);
    let repaired = check(dir.path(), true);
    assert!(repaired.repaired);
    let after = check(dir.path(), false);
    assert!(after.is_clean(), "{after:?}");
    assert_eq!((after.entries, after.files), (97, 23));
    let usage = opened(dir.path()).usage().await.unwrap();
    assert_eq!((usage.entries, usage.bytes), (Some(97), Some(after.bytes)));
}

#[tokio::test]
async fn a_changed_byte_is_a_miss_and_healed_in_rows_and_files() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let flipped = "UPDATE entry SET value = CAST(substr(value, 1, 60) || x'ff' || substr(value, 62) AS BLOB)
                   WHERE key = CAST('k1' AS BLOB)";
    assert_eq!(somewhere(dir.path(), flipped), 1);
    let file = std::fs::OpenOptions::new().write(true).open(&files(dir.path())[3]).unwrap();
    file.write_all_at(b"!", 900).unwrap();
    std::fs::OpenOptions::new().write(true).open(&files(dir.path())[4]).unwrap().set_len(70).unwrap();
    assert_eq!(check(dir.path(), false).damaged, 3);

    let tier = opened(dir.path());
    let mut missing = 0;
    for n in 0..99u64 {
        match get(&tier, &format!("k{n}")).await {
            Some(entry) => assert!(entry.value.iter().all(|&byte| byte == n as u8)),
            None => missing += 1,
        }
    }
    assert_eq!((missing, tier.usage().await.unwrap().damaged), (3, 3));
    tier.close().await.unwrap();
    drop(tier);
    let healed = check(dir.path(), false);
    assert!(healed.is_clean() && healed.entries == 96, "{healed:?}");
}

#[tokio::test]
async fn swapped_values_are_never_another_keys_answer() {
    let dir = tempfile::tempdir().unwrap();
    let one_shard = SqliteConfig { shards: Some(1), ..config(dir.path()) };
    let tier = open_with(one_shard.clone(), ManualClock::new());
    put(&tier, "a", &entry(1, "of a")).await;
    put(&tier, "b", &entry(1, "of b")).await;
    tier.close().await.unwrap();
    let rows = database(dir.path(), 0);
    let value = |id: i64| -> Vec<u8> {
        rows.query_row("SELECT value FROM entry WHERE id = ?1", [id], |row| row.get(0)).unwrap()
    };
    for (id, value) in [(1, value(2)), (2, value(1))] {
        assert_eq!(rows.execute("UPDATE entry SET value = ?2 WHERE id = ?1", (id, value)).unwrap(), 1);
    }
    drop(rows);
    let tier = open_with(one_shard, ManualClock::new());
    assert_eq!((get(&tier, "a").await, get(&tier, "b").await), (None, None));
    assert_eq!(put(&tier, "a", &entry(1, "of a")).await, Put::Stored, "what was damaged has gone");
}

#[tokio::test]
async fn beside_a_process_at_work_a_level_is_looked_at_and_repaired() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let tier = opened(dir.path());
    std::fs::remove_file(&files(dir.path())[0]).unwrap();
    let fresh = dir.path().join("level/files-0/0123456789abcdef0123456789abcdef");
    std::fs::write(&fresh, b"about to be named").unwrap();
    let report = check(dir.path(), true);
    assert_eq!((report.in_use, report.dangling, report.orphaned), (true, 1, 0), "{report:?}");
    assert!(fresh.exists(), "its row may be on the way");
    for n in 0..600u64 {
        put(&tier, &format!("k{}", n % 50), &entry(10_000 + n, vec![1; 2_000])).await;
        if n % 100 == 0 {
            let report = check(dir.path(), true);
            assert!(report.is_clean(), "{report:?}");
        }
    }
}

#[tokio::test]
async fn a_damaged_database_is_set_aside_when_it_is_opened_and_the_rest_stays() {
    for damage in ["header", "suspect"] {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path()).await;
        let path = dir.path().join("level/shard-1.db");
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        match damage {
            "header" => file.write_all_at(&[7; 4_096], 0).unwrap(),
            _ => {
                // Opening alone does not meet it: whoever met it has left a note.
                let pages = file.metadata().unwrap().len() / 4_096;
                (4..pages).for_each(|page| file.write_all_at(&[7; 4_096], page * 4_096).unwrap());
                std::fs::write(dir.path().join("level/shard-1.suspect"), b"").unwrap();
            }
        }
        assert_eq!(check(dir.path(), false).broken, 1, "{damage}");
        let tier = opened(dir.path());
        let mut found = 0;
        for n in 0..99 {
            found += u64::from(get(&tier, &format!("k{n}")).await.is_some());
        }
        assert!((40..99).contains(&found), "{damage}: {found}");
        assert_eq!(tier.usage().await.unwrap().entries, Some(found));
        for n in 0..99 {
            assert_eq!(put(&tier, &format!("k{n}"), &entry(20_000, "new")).await, Put::Stored);
        }
        tier.close().await.unwrap();
        drop(tier);
        assert!(dir.path().join("level/shard-1.db.damaged-1").exists());
        assert!(!dir.path().join("level/shard-1.suspect").exists());
        let report = check(dir.path(), true);
        assert_eq!((report.leftovers, report.broken), (1, 0), "{report:?}");
        let after = check(dir.path(), false);
        assert!(after.is_clean() && after.entries == 99, "{after:?}");
    }
}

#[tokio::test]
async fn a_damaged_database_that_another_process_has_open_is_left_to_it() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let tier = opened(dir.path());
    let path = dir.path().join("level/shard-1.db");
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[7; 4_096], 0).unwrap();
    let refused = SqliteTier::open_blocking(config(dir.path()), ManualClock::new());
    if let Err(error) = refused {
        assert!(matches!(&error, Error::Refused(why) if why.contains("stop that first")), "{error}");
        // Closed, it is out of the way, whoever still holds it.
        tier.close().await.unwrap();
        opened(dir.path());
        assert!(dir.path().join("level/shard-1.db.damaged-1").exists());
    }
}

#[tokio::test]
async fn a_repair_removes_a_broken_database_and_is_clean_after() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let path = dir.path().join("level/shard-2.db");
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[7; 4_096], 0).unwrap();
    let report = check(dir.path(), true);
    assert_eq!((report.broken, report.repaired), (1, true), "{report:?}");
    let after = check(dir.path(), false);
    assert!(after.is_clean(), "{after:?}");
    assert!(get(&opened(dir.path()), "k1").await.is_some() || after.entries < 99);
}
