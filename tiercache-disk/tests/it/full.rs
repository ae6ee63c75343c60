//! A disk that is full.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::common::*;
use tiercache_core::testing::ManualClock;
use tiercache_core::tier::{Cause, Put};
use tiercache_core::{Clock, Generation, Tier, Timestamp};
use tiercache_disk::{DiskConfig, DiskTier};

/// A small file system, as long as it is held; None where none may be mounted.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(kilobytes: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={kilobytes}k,mode=0700");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).output();
        if mounted.is_ok_and(|mounted| mounted.status.success()) {
            return Some(Self(dir));
        }
        eprintln!("SKIPPED: no small file system can be mounted here");
        None
    }

    fn grow(&self, kilobytes: u32) {
        let size = format!("remount,size={kilobytes}k");
        assert!(Command::new("mount").args(["-o", &size]).arg(self.path()).status().unwrap().success());
    }

    /// Takes what room there is, as another program would.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.path().join("other")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
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

/// Far more than the file system has.
fn wide(path: &Path) -> DiskConfig {
    DiskConfig { max_size: 1024 * SEGMENT, ..config(path) }
}

#[tokio::test]
async fn a_full_disk_gives_up_the_oldest_and_takes_what_is_new() {
    let Some(disk) = Small::mount(640) else { return };
    let basket = Arc::new(Basket::default());
    let tier = open_at(wide(disk.path()), &ManualClock::new());
    tier.attach(basket.clone());
    let kept = |n: u64| filler(&format!("{n} "), 1_000);
    for n in 0..3_000 {
        assert_eq!(put(&tier, &format!("key {n}"), &kept(n), n + 1).await, Put::Stored, "{n}");
    }
    tier.sync().await.unwrap();
    let handed_over: HashSet<_> = {
        let spilled = basket.0.lock().unwrap();
        assert!(
            spilled.iter().all(|(_, entry, left)| left.cause == Cause::Evicted && !entry.value.is_empty())
        );
        spilled.iter().map(|(key, entry, _)| (key.bytes().to_vec(), entry.generation)).collect()
    };
    let mut there = HashSet::new();
    for n in 0..3_000 {
        let name = format!("key {n}");
        match value(&tier, &name).await {
            Some(found) => {
                assert_eq!(found, kept(n));
                there.insert(n);
            }
            None => {
                let left = (name.clone().into_bytes(), Generation::new(n + 1));
                assert!(handed_over.contains(&left), "{name} is neither there nor handed over");
            }
        }
    }
    assert!(there.len() > 300, "most of the room is used: {}", there.len());
    assert!((2_900..3_000).all(|n| there.contains(&n)), "the newest are there");
    let usage = tier.usage().await.unwrap();
    assert_eq!((usage.damaged, usage.evicted), (0, handed_over.len() as u64));
    tier.close().await.unwrap();
    drop(tier);
    let tier = open_at(wide(disk.path()), &ManualClock::new());
    for n in there {
        assert_eq!(value(&tier, &format!("key {n}")).await, Some(kept(n)));
    }
    drop(tier);
    let report = DiskTier::check(&disk.path().join("level"), false, &mut |_, _| {}).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_as_large_as_the_disk_hangs_nobody() {
    // Reclaim, which writes again what is used, meets a disk that is full.
    let Some(disk) = Small::mount(10 * 64) else { return };
    let limit = || DiskConfig { max_size: 10 * SEGMENT, ..config(disk.path()) };
    let tier = open_at(limit(), &ManualClock::new());
    let kept = |n: u64| filler(&format!("{n} "), 1_000);
    for n in 0..6_000 {
        let name = format!("key {}", n % 1_500);
        let taken = async {
            // While reclaim is at work there may be no room for a moment.
            while put(&tier, &name, &kept(n), n + 1).await != Put::Stored {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), taken).await.expect("the level takes it in the end");
        for used in [n / 2, n.saturating_sub(40)] {
            if let Some(found) = value(&tier, &format!("key {}", used % 1_500)).await {
                let number = found.split(' ').next().unwrap().parse::<u64>().unwrap();
                assert!(number % 1_500 == used % 1_500 && found == kept(number), "{used} is {found}");
            }
        }
    }
    tier.sync().await.unwrap();
    let mut newest = 0;
    for n in 4_500..6_000 {
        let name = format!("key {}", n % 1_500);
        if let Some(found) = value(&tier, &name).await {
            assert_eq!(found, kept(n), "{name} is older than what was answered for last");
            newest += 1;
        }
    }
    assert!(newest > 200, "{newest}");
    assert_eq!(tier.usage().await.unwrap().damaged, 0);
    tier.close().await.unwrap();
}

/// Holds the upkeep thread where it begins to empty a segment: nobody else there asks for the exact time.
#[derive(Debug)]
struct HeldUpkeep {
    clock: Arc<ManualClock>,
    /// Whether it is held, and whether it may go on.
    gate: Mutex<(bool, bool)>,
    opened: Condvar,
}

impl Clock for HeldUpkeep {
    fn now(&self) -> Timestamp {
        if std::thread::current().name() == Some("tiercache-disk-r") {
            let mut gate = self.gate.lock().unwrap();
            gate.0 = true;
            while !gate.1 {
                gate = self.opened.wait(gate).unwrap();
            }
        }
        self.clock.now()
    }

    fn coarse(&self) -> Arc<AtomicU64> {
        self.clock.coarse()
    }
}

/// The writer, and upkeep that waits for what it writes, must not both be stuck for want of room that upkeep has.
#[tokio::test]
async fn what_finds_no_room_while_the_oldest_is_emptied_is_written_in_its_room() {
    let Some(disk) = Small::mount(2_048) else { return };
    let manual = ManualClock::new();
    let clock =
        Arc::new(HeldUpkeep { clock: manual.clone(), gate: Mutex::default(), opened: Condvar::new() });
    let tier = DiskTier::open_blocking(config(disk.path()), Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
    let basket = Arc::new(Basket::default());
    tier.attach(basket.clone());
    let old = |n: u64| filler(&format!("{n} "), 1_500);
    let held = || clock.gate.lock().unwrap().0;
    let spare = || {
        let mut files = std::fs::read_dir(disk.path().join("level")).unwrap();
        files.any(|file| file.unwrap().path().extension().is_some_and(|extension| extension == "spare"))
    };
    let mut olds = 0;
    while !held() {
        let name = format!("old {olds}");
        assert_eq!(put(&tier, &name, &old(olds), olds + 1).await, Put::Stored);
        // What is used is moved when its segment is emptied.
        assert_eq!(value(&tier, &name).await, Some(old(olds)));
        tier.sync().await.unwrap();
        olds += 1;
        // One segment at a time, so that the last one has room for what comes.
        while !held() && !spare() {
            tokio::task::yield_now().await;
        }
    }
    disk.fill();
    // As one who reads it still has it.
    let _open: Vec<_> =
        segments(disk.path()).into_iter().map(|path| std::fs::File::open(path).unwrap()).collect();
    for n in 0..6 {
        assert_eq!(put(&tier, &format!("new {n}"), &filler("new", 1_500), 10_000 + n).await, Put::Stored);
    }
    clock.gate.lock().unwrap().1 = true;
    clock.opened.notify_all();
    tier.sync().await.unwrap();
    for n in 0..6 {
        assert_eq!(value(&tier, &format!("new {n}")).await, Some(filler("new", 1_500)), "new {n}");
    }
    let mut left = 0;
    for n in 0..olds {
        let name = format!("old {n}");
        if let Some(found) = value(&tier, &name).await {
            assert_eq!(found, old(n));
            left += 1;
        } else {
            let spilled = basket.0.lock().unwrap();
            assert!(spilled.iter().any(|(spilled, ..)| *spilled == key(&name)), "{name} is lost");
        }
    }
    assert!(left > 0 && left < olds, "one segment was given up: {left} of {olds} are left");
    tier.close().await.unwrap();
    drop(tier);
    let tier = open(disk.path());
    for n in 0..6 {
        assert_eq!(value(&tier, &format!("new {n}")).await, Some(filler("new", 1_500)), "new {n}");
    }
}

#[tokio::test]
async fn nothing_old_comes_back_when_another_program_took_the_room() {
    let Some(disk) = Small::mount(640) else { return };
    let tier = open_at(wide(disk.path()), &ManualClock::new());
    for n in 0..200 {
        put(&tier, &format!("key {n}"), &filler("old", 1_500), n + 1).await;
    }
    tier.sync().await.unwrap();
    disk.fill();
    let mut removed = 0;
    for n in 0..200u64 {
        let name = format!("key {n}");
        match n % 3 {
            0 => {
                let done = tier.remove(&key(&name), Generation::new(1_000 + n)).await;
                removed += u64::from(done.unwrap().is_done());
            }
            1 => {
                let put = put(&tier, &name, &filler("new", 1_500), 1_000 + n).await;
                assert_eq!(put, Put::Stored, "{name}");
            }
            _ => {}
        }
    }
    assert_eq!(removed, 67);
    // What a kill would leave now.
    let copy = tempfile::tempdir().unwrap();
    std::fs::create_dir(copy.path().join("level")).unwrap();
    for file in std::fs::read_dir(disk.path().join("level")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join("level").join(file.file_name())).unwrap();
    }
    let after = open_at(wide(copy.path()), &ManualClock::new());
    let mut met = [0; 3];
    for n in 0..200u64 {
        let name = format!("key {n}");
        for tier in [&tier, &after] {
            let Some(found) = value(tier, &name).await else { continue };
            met[(n % 3) as usize] += 1;
            assert_eq!(found, filler(if n % 3 == 1 { "new" } else { "old" }, 1_500), "{name}");
        }
    }
    assert_eq!(met[0], 0, "what was removed is gone");
    assert!(met[1] > 60, "what was put last is there: {met:?}");
}

#[tokio::test]
async fn with_nothing_to_give_up_a_full_disk_refuses_and_the_level_serves_on() {
    let Some(disk) = Small::mount(512) else { return };
    let config = || DiskConfig { max_size: 64 << 20, segment_size: Some(4 << 20), ..config(disk.path()) };
    let tier = open_at(config(), &ManualClock::new());
    let mut full = 0;
    for n in 0..1_000 {
        match put(&tier, &format!("key {n}"), &filler("v", 1_000), 1).await {
            Put::Stored => {}
            Put::Full => full += 1,
            other => panic!("{other:?}"),
        }
        if full > 10 {
            break;
        }
        // What is put is written later, and then there is no room for it.
        if n % 100 == 99 {
            let _ = tier.sync().await;
        }
    }
    assert!(full > 10, "512 KiB hold no 1,000");
    assert_eq!(value(&tier, "key 0").await.unwrap(), filler("v", 1_000));
    // Once there is room again, it goes on.
    disk.grow(8_192);
    drop(tier);
    let tier = open_at(config(), &ManualClock::new());
    assert_eq!(value(&tier, "key 0").await.unwrap(), filler("v", 1_000));
    assert_eq!(put(&tier, "key 0", "fits", 2).await, Put::Stored);
    assert_eq!(value(&tier, "key 0").await.unwrap(), "fits");
}
