//! A disk that is full.

use std::path::Path;
use std::process::Command;

use crate::common::*;
use tiercache_core::Tier;
use tiercache_core::testing::ManualClock;
use tiercache_core::tier::Put;
use tiercache_sqlite::SqliteConfig;

/// A small file system, as long as it is held; None where none may be mounted.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(megabytes: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={megabytes}m");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).output();
        if mounted.is_ok_and(|mounted| mounted.status.success()) {
            return Some(Self(dir));
        }
        eprintln!("SKIPPED: no small file system can be mounted here");
        None
    }

    fn grow(&self, megabytes: u32) {
        let size = format!("remount,size={megabytes}m");
        assert!(Command::new("mount").args(["-o", &size]).arg(self.path()).status().unwrap().success());
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_and_the_cache_goes_on() {
    let Some(disk) = Small::mount(6) else { return };
    let config = SqliteConfig { max_size: 1 << 30, inline_max: 20_000, ..config(disk.path()) };
    let tier = open_with(config, ManualClock::new());
    let mut refused = 0;
    for n in 0..1_200u64 {
        let size = if n % 10 == 0 { 40_000 } else { 10_000 };
        match put(&tier, &format!("k{n}"), &entry(n + 1, vec![n as u8; size])).await {
            Put::Stored => {}
            Put::Full => refused += 1,
            other => panic!("{other:?}"),
        }
        if refused > 20 {
            break;
        }
    }
    assert!(refused > 20, "6 MiB hold no 12");
    let mut kept = 0;
    for n in 0..1_200u64 {
        if let Some(found) = get(&tier, &format!("k{n}")).await {
            assert!(found.value.iter().all(|&byte| byte == n as u8), "k{n} is torn");
            kept += 1;
        }
    }
    // SQLite needs room to bring its log home: about half is used.
    assert!(kept > 100, "{kept}");
    assert_eq!(tier.usage().await.unwrap().damaged, 0);
    let standing = async |n: u64| tier.get(&key(&format!("k{n}"))).await.unwrap();
    let before = [standing(1).await, standing(2).await, standing(3).await, standing(4).await];
    let over = [1, 2, 3, 4].map(|n| key(&format!("k{n}")));
    let named = over.clone();
    let failed = tier.transaction_over(&over, move |work| {
        for (n, key) in named.iter().enumerate() {
            let put = work.put(key, &entry(90_000, vec![n as u8; 19_000 * 40]), HOLD)?;
            assert!(matches!(put, Put::Stored | Put::Full), "{put:?}");
            // What it says of one key is no reason for the work to go on.
            if put == Put::Full {
                return Err(tiercache_core::Error::Full { backend: "sqlite", op: "put" });
            }
        }
        Ok(())
    });
    assert!(failed.await.is_err(), "there is no room for it");
    assert_eq!([standing(1).await, standing(2).await, standing(3).await, standing(4).await], before);
    disk.grow(32);
    assert!(remove(&tier, "k1", 100_000).await.is_done());
    assert_eq!(put(&tier, "k1", &entry(100_001, "fits")).await, Put::Stored);
    assert_eq!(get(&tier, "k1").await.unwrap().value, "fits");
    tier.close().await.unwrap();
    drop(tier);
    let report = check(disk.path(), true);
    assert!(report.is_clean(), "what was refused has left nothing behind: {report:?}");
}
