//! What storage does to bytes: flips, cuts and loses them, and what a process that ends at a bad moment leaves.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tiercache_core::testing::ManualClock;
use tiercache_core::tier::{Resident, Tier};
use tiercache_core::tracking::Query;
use tiercache_core::{CacheManager, Level};
use tiercache_disk::DiskTier;
use tiercache_ram::RamTier;
use tiercache_tests::rig::{builder, disk, get, killed, ram, segments};
use tiercache_tracking::{SqliteConfig, SqliteTracking};

/// A cache over the directory, with what is below hot at hand.
struct Process {
    cache: CacheManager,
    hot: Arc<RamTier>,
    disk: Arc<DiskTier>,
}

impl Process {
    async fn start(path: &Path) -> Self {
        let clock = ManualClock::new();
        let (hot, disk) = (ram(), disk(path, &clock).await);
        let cache = builder(&clock).hot(hot.clone()).dry(disk.clone()).build().await.unwrap();
        Self { cache, hot, disk }
    }

    /// Sets and sinks; afterwards only the file has it.
    async fn sunk(&self, key: &str, value: &str) {
        self.cache.set(key, value.to_owned()).await.unwrap();
        self.hot.drain();
        self.cache.settle().await.unwrap();
        self.disk.sync().await.unwrap();
    }

    async fn end(self) {
        assert!(self.cache.close(Duration::from_secs(10)).await.unwrap().failures.is_empty());
    }
}

#[tokio::test]
async fn h25_every_flipped_byte_and_every_cut_of_a_stored_entry_is_a_miss_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path()).await;
    process.sunk("before", "whole").await;
    let length = || segments(dir.path())[0].metadata().unwrap().len();
    let value = "victim ".repeat(12);
    let mut record = None;
    for cut in [false, true] {
        let mut at = 0;
        while record.is_none_or(|record| at < record) {
            let end = length();
            process.sunk("victim", &value).await;
            // The first stands alone; later ones may follow the removal of the one before.
            let start = length() - *record.get_or_insert(length() - end);
            assert!(start >= end || cut, "{start} {end}");
            let path = &segments(dir.path())[0];
            let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
            if cut {
                file.set_len(start + at).unwrap();
            } else {
                let mut byte = [0];
                file.read_exact_at(&mut byte, start + at).unwrap();
                file.write_all_at(&[byte[0] ^ (1 << (at % 8))], start + at).unwrap();
            }
            let damaged = process.disk.usage().await.unwrap().damaged;
            assert_eq!(get(&process.cache, "victim").await, None, "byte {at}, cut: {cut}");
            assert_eq!(process.disk.usage().await.unwrap().damaged, damaged + 1, "byte {at}, cut: {cut}");
            assert!(!process.cache.contains("victim").await.unwrap());
            assert_eq!(get(&process.cache, "before").await.unwrap(), "whole");
            // A file that was cut has a hole; the level goes on behind it.
            at += 1;
        }
    }
    assert!(record.unwrap() > 120, "{record:?}");
    process.sunk("victim", "healed").await;
    assert_eq!(get(&process.cache, "victim").await.unwrap(), "healed");
    process.end().await;
}

#[tokio::test]
async fn h32_a_kill_between_set_and_demotion_never_brings_the_older_value_back() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path()).await;
    for key in ["set", "deleted", "touched", "tagged", "popped", "kept"] {
        process.cache.set(key, "old").tag("t", key).await.unwrap();
    }
    process.hot.drain();
    process.cache.settle().await.unwrap();
    process.disk.sync().await.unwrap();
    process.cache.set("set", "new").await.unwrap();
    process.cache.delete("deleted").await.unwrap();
    process.cache.touch("touched", Duration::from_secs(1)).await.unwrap();
    process.cache.invalidate_tag("t", "tagged").await.unwrap();
    process.cache.pop("popped").await.unwrap();
    let after = killed(dir.path());
    let next = Process::start(after.path()).await;
    for key in ["set", "deleted", "touched", "tagged", "popped"] {
        assert_eq!(get(&next.cache, key).await, None, "{key}");
    }
    assert_eq!(get(&next.cache, "kept").await.unwrap(), "old");
    // Generations go on: what is set by the next process is newer than anything the last one wrote.
    next.sunk("set", "newest").await;
    let last = Process::start(killed(after.path()).path()).await;
    assert_eq!(get(&last.cache, "set").await.unwrap(), "newest");
}

#[tokio::test]
async fn h33_torn_and_vanished_files_are_misses_and_the_cache_serves_on() {
    type Harm = (&'static str, fn(&Path));
    let harms: [Harm; 6] = [
        ("vanished", |file| std::fs::remove_file(file).unwrap()),
        ("empty", |file| std::fs::write(file, []).unwrap()),
        ("zeros", |file| std::fs::write(file, vec![0; 30_000]).unwrap()),
        ("half", |file| open(file).set_len(file.metadata().unwrap().len() / 2).unwrap()),
        ("zeros at the end", |file| {
            let length = file.metadata().unwrap().len();
            open(file).write_all_at(&vec![0; length as usize / 2], length / 2).unwrap();
        }),
        ("garbage", |file| {
            let garbage: Vec<u8> =
                (0..20_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
            std::fs::write(file, garbage).unwrap();
        }),
    ];
    let value = |n: usize| format!("{n} ").repeat(200);
    for (harm, do_harm) in harms {
        for which in [0, 1, 2] {
            let dir = tempfile::tempdir().unwrap();
            let process = Process::start(dir.path()).await;
            for n in 0..300 {
                process.cache.set(format!("key {n}"), value(n)).await.unwrap();
            }
            process.end().await;
            let files = segments(dir.path());
            do_harm(&files[which * (files.len() - 1) / 2]);
            let process = Process::start(dir.path()).await;
            let mut whole = 0;
            for n in 0..300 {
                if let Some(found) = get(&process.cache, &format!("key {n}")).await {
                    assert_eq!(found, value(n), "{harm} {which}");
                    whole += 1;
                }
            }
            assert!(whole < 300 || harm == "zeros at the end", "{harm} {which}");
            for n in 0..300 {
                process.cache.set(format!("key {n}"), "again").await.unwrap();
            }
            process.end().await;
            let process = Process::start(dir.path()).await;
            for n in 0..300 {
                assert_eq!(
                    get(&process.cache, &format!("key {n}")).await.unwrap(),
                    "again",
                    "{harm} {which}"
                );
            }
        }
    }
}

fn open(file: &Path) -> std::fs::File {
    std::fs::OpenOptions::new().write(true).open(file).unwrap()
}

#[tokio::test]
async fn h33_a_file_that_vanishes_under_an_open_cache_costs_what_was_in_it_at_most() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path()).await;
    for n in 0..300 {
        process.cache.set(format!("key {n}"), "v".repeat(500)).await.unwrap();
    }
    process.hot.drain();
    process.cache.settle().await.unwrap();
    process.disk.sync().await.unwrap();
    for file in segments(dir.path()) {
        open(&file).set_len(0).unwrap();
        std::fs::remove_file(file).unwrap();
    }
    for n in 0..300 {
        assert!(get(&process.cache, &format!("key {n}")).await.is_none_or(|value| value.len() == 500));
    }
    for n in 0..300 {
        process.sunk(&format!("key {n}"), "again").await;
        assert!(get(&process.cache, &format!("key {n}")).await.is_none_or(|value| value == "again"));
    }
    process.cache.delete("key 1").await.unwrap();
    process.cache.close(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test]
async fn h35_where_memory_of_keys_and_their_bytes_disagree_reads_follow_the_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tracking").join("index.db");
    let start = async || {
        let clock = ManualClock::new();
        let tracking = SqliteTracking::open(SqliteConfig { path: path.clone() }).await.unwrap();
        let hot = ram();
        let dry = disk(dir.path(), &clock).await;
        builder(&clock).hot(hot).dry(dry).tracking(Arc::new(tracking)).build().await.unwrap()
    };
    let listed = async |cache: &CacheManager| cache.keys(Query::all()).page(100).await.unwrap().len();
    let cache = start().await;
    for n in 0..50 {
        cache.set(format!("key {n}"), "v").await.unwrap();
    }
    cache.close(Duration::from_secs(5)).await.unwrap();
    // The bytes are gone, the memory of them is not.
    std::fs::remove_dir_all(dir.path().join("level")).unwrap();
    let cache = start().await;
    assert_eq!((get(&cache, "key 1").await, listed(&cache).await), (None, 0));
    assert_eq!(cache.purge("*").await.unwrap().keys, 0);
    for n in 0..50 {
        cache.set(format!("key {n}"), "again").await.unwrap();
    }
    assert_eq!(listed(&cache).await, 50);
    cache.close(Duration::from_secs(5)).await.unwrap();
    // The memory is gone, the bytes are not.
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    let cache = start().await;
    for n in 0..50 {
        assert_eq!(get(&cache, &format!("key {n}")).await.unwrap(), "again");
    }
    cache.delete("key 1").await.unwrap();
    assert_eq!(get(&cache, "key 1").await, None);
    cache.close(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test]
async fn h35_a_check_finds_what_does_not_agree_and_its_repair_leaves_it_clean() {
    let level = |dir: &Path| dir.join("level");
    let check = |dir: &Path, repair| DiskTier::check(&level(dir), repair, &mut |_, _| {}).unwrap();
    type Harm = (&'static str, fn(&Path));
    let harms: [Harm; 4] = [
        ("a flipped byte", |dir| {
            let file = std::fs::OpenOptions::new().read(true).write(true).open(&segments(dir)[0]).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, 5_000).unwrap();
            file.write_all_at(&[!byte[0]], 5_000).unwrap();
        }),
        ("a lost footer", |dir| {
            let file = &segments(dir)[0];
            open(file).set_len(file.metadata().unwrap().len() - 40).unwrap();
        }),
        ("a missing segment", |dir| std::fs::remove_file(&segments(dir)[1]).unwrap()),
        ("a segment of garbage", |dir| std::fs::write(&segments(dir)[1], [7; 40_000]).unwrap()),
    ];
    for (harm, do_harm) in harms {
        let dir = tempfile::tempdir().unwrap();
        let process = Process::start(dir.path()).await;
        for n in 0..300 {
            process.cache.set(format!("key {n}"), format!("{n} ").repeat(200)).await.unwrap();
        }
        process.end().await;
        assert!(check(dir.path(), false).is_clean());
        do_harm(dir.path());
        assert!(!check(dir.path(), false).is_clean(), "{harm}");
        assert!(!check(dir.path(), false).repaired, "{harm}: looking changes nothing");
        assert!(check(dir.path(), true).repaired, "{harm}");
        let report = check(dir.path(), false);
        assert!(report.is_clean(), "{harm}: {report:?}");
        let process = Process::start(dir.path()).await;
        for n in 0..300 {
            let found = get(&process.cache, &format!("key {n}")).await;
            assert!(found.is_none_or(|found| found == format!("{n} ").repeat(200)), "{harm}");
        }
    }
}

#[tokio::test]
async fn h35_after_a_kill_a_check_is_clean() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path()).await;
    for n in 0..2_000 {
        process.cache.set(format!("key {}", n % 500), format!("{n} ").repeat(100)).await.unwrap();
        if n % 100 == 99 {
            process.hot.drain();
            process.cache.settle().await.unwrap();
            process.cache.delete(format!("key {}", n % 7)).await.unwrap();
            let after = killed(dir.path());
            let report = DiskTier::check(&after.path().join("level"), false, &mut |_, _| {}).unwrap();
            assert!(report.is_clean(), "after {n}: {report:?}");
        }
    }
    assert_eq!(process.cache.stats().await.unwrap().levels[1].level, Level::Dry);
}

#[test]
fn h36_the_database_engine_is_one_without_known_corruption() {
    // 3.51.3 is the first whose write-ahead log may be reset under readers without damage.
    assert!(rusqlite::version_number() >= 3_051_003, "{}", rusqlite::version());
}
