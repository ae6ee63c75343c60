//! What a restart finds, however the process before ended and whatever happened to the files.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::*;
use tiercache_core::testing::ManualClock;
use tiercache_core::tier::{Always, FenceLog, Index, Put, Scope};
use tiercache_core::{Clock, Error, Generation, Key, Tier, Timestamp};
use tiercache_disk::{DiskConfig, DiskTier};

#[tokio::test]
async fn everything_is_back_after_close() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..5u64 {
        let tier = open(dir.path());
        for n in 0..round * 50 {
            assert_eq!(value(&tier, &format!("key {n}")).await.unwrap(), filler("v", n as usize), "{n}");
        }
        assert_eq!(tier.usage().await.unwrap().entries, Some(round * 50));
        assert_eq!(tier.profile().last_generation, Generation::new(round * 50));
        for n in round * 50..(round + 1) * 50 {
            put(&tier, &format!("key {n}"), &filler("v", n as usize), n + 1).await;
        }
        tier.close().await.unwrap();
        // A short life does not cost a segment.
        assert_eq!(segments(dir.path()).len(), 1);
    }
}

#[tokio::test]
async fn everything_is_back_after_many_segments() {
    let dir = tempfile::tempdir().unwrap();
    let before: Vec<_> = {
        let tier = open(dir.path());
        for n in 0..3_000u64 {
            put(&tier, &format!("key {}", n % 700), &filler(&format!("{n} "), 900), n + 1).await;
        }
        let mut found = Vec::new();
        for n in 0..700 {
            found.push(value(&tier, &format!("key {n}")).await);
        }
        found
    };
    let tier = open(dir.path());
    for (n, before) in before.into_iter().enumerate() {
        assert_eq!(value(&tier, &format!("key {n}")).await, before, "{n}");
    }
}

#[tokio::test]
async fn after_a_kill_what_was_written_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    for n in 0..500 {
        put(&tier, &format!("key {n}"), &filler("v", 800), 1).await;
    }
    tier.sync().await.unwrap();
    kill(tier, dir.path());
    let tier = open(dir.path());
    for n in 0..500 {
        assert_eq!(value(&tier, &format!("key {n}")).await.unwrap(), filler("v", 800));
    }
}

#[tokio::test]
async fn after_a_kill_a_removal_stands() {
    for quick in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let tier = open(dir.path());
        put(&tier, "a", "1", 1).await;
        put(&tier, "b", "1", 1).await;
        tier.sync().await.unwrap();
        if quick {
            assert!(matches!(tier.try_remove(key("a").as_ref(), Generation::new(2)), Some(Ok(()))));
        } else {
            put(&tier, "large", &filler("l", 60_000), 1).await;
            tier.remove(&key("a"), Generation::new(2)).await.unwrap();
        }
        kill(tier, dir.path());
        let tier = open(dir.path());
        assert_eq!(value(&tier, "a").await, None);
        assert_eq!(value(&tier, "b").await.unwrap(), "1");
        assert_eq!(put(&tier, "a", "1", 1).await, Put::Superseded);
        assert!(tier.profile().last_generation >= Generation::new(2));
    }
}

#[tokio::test]
async fn after_a_kill_a_replaced_value_is_not_back() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    put(&tier, "a", "1", 1).await;
    tier.sync().await.unwrap();
    assert_eq!(put(&tier, "a", "2", 2).await, Put::Stored);
    kill(tier, dir.path());
    assert_eq!(value(&open(dir.path()), "a").await.unwrap(), "2");
}

#[tokio::test]
async fn after_a_kill_what_stayed_its_time_can_still_be_removed() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let tier = open_at(config(dir.path()), &clock);
    let hold = tiercache_core::tier::Hold {
        now: clock.now(),
        stay: tiercache_core::Stay::For(Duration::from_secs(1)),
    };
    tier.put(&key("a"), &entry("1", 1), hold, &Always).await.unwrap();
    tier.sync().await.unwrap();
    clock.advance(Duration::from_secs(2));
    struct NoneDead;
    impl tiercache_core::tier::Dead for NoneDead {
        fn is_dead(&self, _: tiercache_core::KeyRef<'_>, _: &tiercache_core::Entry) -> bool {
            false
        }
    }
    assert_eq!(tier.sweep(clock.now(), &NoneDead).await.unwrap().spilled, 1);
    assert_eq!(value(&tier, "a").await, None);
    // Its record is still there, so a mutation must be told that there is something to fence.
    assert!(tier.holds(key("a").as_ref()).is_some());
    tier.remove(&key("a"), Generation::new(2)).await.unwrap();
    kill(tier, dir.path());
    assert_eq!(value(&open(dir.path()), "a").await, None);
}

#[tokio::test]
async fn fences_are_back_and_reach_what_was_put_before_them() {
    let dir = tempfile::tempdir().unwrap();
    let tag = Scope::Tag { namespace: "n".into(), name: "type".into(), value: "x".into() };
    let tier = open(dir.path());
    for (n, space) in ["", "a", "b"].iter().enumerate() {
        let key = Key::new(space, b"k").unwrap();
        tier.put(&key, &entry("v", n as u64 + 1), hold(), &Always).await.unwrap();
    }
    tier.sync().await.unwrap();
    tier.fence(&tag, Generation::new(7)).await.unwrap();
    tier.fence(&Scope::Namespace("a".into()), Generation::new(8)).await.unwrap();
    kill(tier, dir.path());
    for by_footer in [false, true] {
        let tier = open(dir.path());
        assert!(tier.get(&Key::new("", b"k").unwrap()).await.unwrap().is_some(), "{by_footer}");
        assert!(tier.get(&Key::new("a", b"k").unwrap()).await.unwrap().is_none());
        let mut fences = tier.remembered();
        fences.sort();
        assert_eq!(
            fences,
            vec![(Scope::Namespace("a".into()), Generation::new(8)), (tag.clone(), Generation::new(7))]
        );
        assert_eq!(tier.profile().last_generation, Generation::new(8));
        tier.close().await.unwrap();
    }
}

#[tokio::test]
async fn removals_and_fences_are_forgotten_with_what_they_guard() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    put(&tier, "a", "1", 1).await;
    tier.remove(&key("a"), Generation::new(2)).await.unwrap();
    tier.fence(&Scope::Namespace("x".into()), Generation::new(3)).await.unwrap();
    for n in 0..4_000 {
        put(&tier, &format!("filler {n}"), &filler("f", 500), 5).await;
    }
    assert!(tier.remembered().is_empty());
    assert_eq!(put(&tier, "a", "1", 1).await, Put::Stored, "the removal is forgotten too");
}

#[tokio::test]
async fn each_flipped_byte_of_an_entry_is_a_miss_and_heals() {
    for sealed in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let tier = open(dir.path());
        let written = async |name: &str, value: &str| {
            put(&tier, name, value, 1).await;
            tier.sync().await.unwrap();
            segments(dir.path())[0].metadata().unwrap().len()
        };
        let start = written("before", "1").await;
        let end = written("victim", &filler("victim", 100)).await;
        written("after", "2").await;
        if sealed {
            drop(tier)
        } else {
            kill(tier, dir.path())
        }
        let path = segments(dir.path())[0].clone();
        let whole = std::fs::read(&path).unwrap();
        for at in start..end {
            for opened in [false, true] {
                std::fs::write(&path, &whole).unwrap();
                let flip = || {
                    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
                    file.write_all_at(&[whole[at as usize] ^ 0x20], at).unwrap();
                };
                if !opened {
                    flip();
                }
                let tier = open(dir.path());
                if opened {
                    flip();
                }
                assert_eq!(value(&tier, "victim").await, None, "byte {at}");
                assert_eq!(value(&tier, "before").await.unwrap(), "1", "byte {at}");
                assert_eq!(value(&tier, "after").await.unwrap(), "2", "byte {at}");
                assert_eq!(tier.usage().await.unwrap().damaged, 1, "byte {at}");
                assert_eq!(tier.usage().await.unwrap().entries, Some(2));
                put(&tier, "victim", "healed", 1).await;
                assert_eq!(value(&tier, "victim").await.unwrap(), "healed");
            }
        }
    }
}

#[tokio::test]
async fn a_flipped_byte_anywhere_in_a_segment_never_gives_a_wrong_value() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    for n in 0..40 {
        put(&tier, &format!("key {n}"), &filler(&format!("{n}."), 60), n + 1).await;
    }
    put(&tier, "key 0", &filler("new.", 60), 50).await;
    tier.remove(&key("key 1"), Generation::new(51)).await.unwrap();
    drop(tier);
    let path = segments(dir.path())[0].clone();
    let whole = std::fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(3) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bytes).unwrap();
        let tier = open(dir.path());
        let mut found = 0;
        for n in 2..40 {
            if let Some(value) = value(&tier, &format!("key {n}")).await {
                assert_eq!(value, filler(&format!("{n}."), 60), "byte {at}");
                found += 1;
            }
        }
        assert!(found >= 37 || at < 64, "byte {at}: {found}");
        drop(tier);
        for file in std::fs::read_dir(path.parent().unwrap()).unwrap() {
            let file = file.unwrap().path();
            if file.extension().is_some_and(|extension| extension != "lock") {
                std::fs::remove_file(file).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_segment_cut_anywhere_gives_what_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    for n in 0..20 {
        put(&tier, &format!("key {n}"), &filler(&format!("{n}."), 60), n + 1).await;
    }
    drop(tier);
    let path = segments(dir.path())[0].clone();
    let whole = std::fs::read(&path).unwrap();
    let mut most = 0;
    for end in 0..whole.len() {
        std::fs::write(&path, &whole[..end]).unwrap();
        let tier = open(dir.path());
        let mut found = 0;
        for n in 0..20 {
            if let Some(value) = value(&tier, &format!("key {n}")).await {
                assert_eq!(value, filler(&format!("{n}."), 60), "cut at {end}");
                found += 1;
            }
        }
        assert!(found >= most, "cut at {end}: {found} after {most}");
        assert_eq!(put(&tier, "new", "n", 99).await, Put::Stored);
        assert_eq!(value(&tier, "new").await.unwrap(), "n");
        most = found;
        drop(tier);
        segments(dir.path()).into_iter().for_each(|file| std::fs::remove_file(file).unwrap());
    }
    assert_eq!(most, 20);
}

#[tokio::test]
async fn a_torn_tail_costs_only_the_tail() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    for n in 0..10 {
        put(&tier, &format!("key {n}"), &filler("v", 200), 1).await;
    }
    tier.sync().await.unwrap();
    kill(tier, dir.path());
    let path = segments(dir.path())[0].clone();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(path.metadata().unwrap().len() - 10).unwrap();
    let tier = open(dir.path());
    assert_eq!(value(&tier, "key 9").await, None);
    assert_eq!(tier.usage().await.unwrap().entries, Some(9));
    put(&tier, "key 9", &filler("w", 200), 2).await;
    drop(tier);
    let tier = open(dir.path());
    assert_eq!(tier.usage().await.unwrap().entries, Some(10));
    assert_eq!(value(&tier, "key 9").await.unwrap(), filler("w", 200));
}

#[tokio::test]
async fn a_file_used_again_never_gives_what_it_had() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    // Round and round, so that every file was used several times; then killed in the middle of a segment.
    for n in 0..6_000u64 {
        put(&tier, &format!("key {}", n % 50), &filler(&format!("{n} "), 700), n + 1).await;
    }
    tier.sync().await.unwrap();
    kill(tier, dir.path());
    let tier = open(dir.path());
    assert_eq!(tier.usage().await.unwrap().entries, Some(50));
    assert_eq!(tier.usage().await.unwrap().damaged, 0);
    for n in 5_950..6_000u64 {
        assert_eq!(value(&tier, &format!("key {}", n % 50)).await.unwrap(), filler(&format!("{n} "), 700));
    }
}

#[tokio::test]
async fn a_missing_segment_takes_what_is_older_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    put(&tier, "old", "1", 1).await;
    for n in 0..300 {
        put(&tier, &format!("a {n}"), &filler("f", 500), 1).await;
    }
    tier.remove(&key("old"), Generation::new(2)).await.unwrap();
    for n in 0..300 {
        put(&tier, &format!("b {n}"), &filler("f", 500), 1).await;
    }
    drop(tier);
    let files = segments(dir.path());
    // The one that may have held the removal.
    std::fs::remove_file(&files[2]).unwrap();
    let tier = open(dir.path());
    assert_eq!(value(&tier, "old").await, None);
    assert!(value(&tier, "b 299").await.is_some());
}

#[tokio::test]
async fn a_segment_that_got_its_name_and_nothing_else_stands_in_nobodys_way() {
    // A new file, and one that is used again and still has the header of the segment it was.
    for used_again in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let tier = open(dir.path());
        for n in 0..200 {
            put(&tier, &format!("key {n}"), &filler("v", 800), 1).await;
        }
        tier.sync().await.unwrap();
        kill(tier, dir.path());
        let files = segments(dir.path());
        let next = dir.path().join("level").join(format!("{:08x}.seg", files.len() + 1));
        if used_again {
            std::fs::copy(&files[0], &next).unwrap();
        } else {
            std::fs::write(&next, "").unwrap();
        }
        for round in 0..3 {
            let report = DiskTier::check(&dir.path().join("level"), false, &mut |_, _| {}).unwrap();
            assert!(report.is_clean(), "{used_again}, round {round}: {report:?}");
            let tier = open(dir.path());
            for n in 0..200 {
                assert_eq!(value(&tier, &format!("key {n}")).await.unwrap(), filler("v", 800), "{round}");
            }
            for n in 0..100 {
                put(&tier, &format!("new {n}"), &filler("n", 800), 2 + round).await;
            }
            tier.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn an_unreadable_segment_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    for n in 0..500 {
        put(&tier, &format!("{n}"), &filler("f", 500), 1).await;
    }
    drop(tier);
    let files = segments(dir.path());
    std::fs::remove_file(&files[1]).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &files[1]).unwrap();
    let tier = open(dir.path());
    assert!(value(&tier, "499").await.is_some());
    assert_eq!(value(&tier, "0").await, None);
    assert!(dir.path().join("level/damaged.seg").symlink_metadata().is_ok());
}

#[tokio::test]
async fn a_directory_may_be_moved() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    put(&tier, "a", "1", 1).await;
    drop(tier);
    std::fs::create_dir(dir.path().join("elsewhere")).unwrap();
    std::fs::rename(dir.path().join("level"), dir.path().join("elsewhere/level")).unwrap();
    assert_eq!(value(&open(&dir.path().join("elsewhere")), "a").await.unwrap(), "1");
}

#[tokio::test]
async fn a_second_opener_is_told_who_has_it_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let _tier = open(dir.path());
    let error = DiskTier::open(config(dir.path()), ManualClock::new()).await.unwrap_err();
    assert!(matches!(error, Error::Refused(_)));
    let text = error.to_string();
    for part in [&format!("process {}", std::process::id()), "--url", "sqlite"] {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn links_and_open_directories_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("real")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("real"), dir.path().join("level")).unwrap();
    let open = || DiskTier::open_blocking(config(dir.path()), ManualClock::new());
    assert!(open().unwrap_err().to_string().contains("symbolic link"));
    std::fs::remove_file(dir.path().join("level")).unwrap();
    std::fs::create_dir(dir.path().join("level")).unwrap();
    std::fs::write(dir.path().join("level/photo.jpg"), b"mine").unwrap();
    std::fs::set_permissions(dir.path().join("level"), std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(open().unwrap_err(), Error::Refused(_)));
}

#[tokio::test]
async fn modes_are_tight_and_foreign_files_stay() {
    let dir = tempfile::tempdir().unwrap();
    let level = dir.path().join("level");
    std::fs::create_dir(&level).unwrap();
    std::fs::set_permissions(&level, std::fs::Permissions::from_mode(0o755)).unwrap();
    let tier = open(dir.path());
    put(&tier, "a", "1", 1).await;
    std::fs::write(level.join("notes.txt"), b"mine").unwrap();
    std::fs::write(level.join("00000001.seg.bak"), b"mine").unwrap();
    tier.clear(None, Generation::new(9)).await.unwrap();
    tier.close().await.unwrap();
    assert_eq!(level.metadata().unwrap().mode() & 0o777, 0o700);
    for file in std::fs::read_dir(&level).unwrap().map(|file| file.unwrap()) {
        let name = file.file_name().into_string().unwrap();
        if name.ends_with(".seg") || name.ends_with(".lock") {
            assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600, "{name}");
        } else if name == "notes.txt" || name.ends_with(".bak") {
            assert_eq!(std::fs::read(file.path()).unwrap(), b"mine");
        }
    }
    assert_eq!(std::fs::read(open(dir.path()).name().len().to_string()).ok(), None);
    assert!(level.join("notes.txt").exists() && level.join("00000001.seg.bak").exists());
}

#[tokio::test]
async fn a_clock_set_back_gives_no_longer_life() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let start = clock.now();
    let tier = open_at(config(dir.path()), &clock);
    let mut short = entry("1", 1);
    short.created = start;
    short.deadline = start.after(Duration::from_secs(60));
    tier.put(&key("a"), &short, hold(), &Always).await.unwrap();
    drop(tier);
    clock.set(Timestamp::from_millis(start.as_millis() - 3_600_000));
    let tier = open_at(config(dir.path()), &clock);
    let found = tier.get(&key("a")).await.unwrap().unwrap();
    assert!(found.deadline <= clock.now().after(Duration::from_secs(60)), "{found:?}");
}

#[tokio::test]
async fn a_smaller_level_keeps_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    for n in 0..2_000 {
        put(&tier, &format!("{n}"), &filler("f", 400), 1).await;
    }
    drop(tier);
    let smaller = DiskConfig { max_size: 5 * SEGMENT, ..config(dir.path()) };
    let tier = open_at(smaller, &ManualClock::new());
    assert!(value(&tier, "1999").await.is_some());
    assert_eq!(value(&tier, "0").await, None);
    for n in 2_000..3_000 {
        put(&tier, &format!("{n}"), &filler("f", 400), 1).await;
    }
    let size: u64 = segments(dir.path()).iter().map(|file| file.metadata().unwrap().len()).sum();
    assert!(size <= 5 * SEGMENT, "{size}");
}

#[tokio::test]
async fn another_segment_size_takes_over_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    put(&tier, "a", "1", 1).await;
    drop(tier);
    let other = DiskConfig { segment_size: Some(2 * SEGMENT), ..config(dir.path()) };
    let tier = open_at(other, &ManualClock::new());
    assert_eq!(value(&tier, "a").await.unwrap(), "1");
    // Long enough for what was read to be moved once and then to go.
    for n in 0..8_000 {
        put(&tier, &format!("{n}"), &filler("f", 400), 1).await;
    }
    assert_eq!(value(&tier, "a").await, None);
    let size: u64 = segments(dir.path()).iter().map(|file| file.metadata().unwrap().len()).sum();
    assert!(size <= 16 * SEGMENT, "{size}");
}

/// What the child of the test below does until it is killed: sets and removes keys, telling what was acknowledged.
#[test]
#[ignore = "run by the kill test, in a process of its own"]
fn child() {
    let path = std::path::PathBuf::from(std::env::var_os("TIERCACHE_TEST_DIR").unwrap());
    let start: u64 = std::env::var("TIERCACHE_TEST_GENERATION").unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        use std::io::Write;
        let tier = open(&path);
        let mut out = std::fs::OpenOptions::new().append(true).open(path.join("journal")).unwrap();
        for generation in start.. {
            let name = format!("key {}", generation * 31 % 40);
            // As the manager does it: what may lie below is fenced first, and told before anything newer is put.
            let mut tell =
                |what: &str| out.write_all(format!("{what} {name} {generation}\n").as_bytes()).unwrap();
            tell("begin");
            tier.remove(&key(&name), Generation::new(generation)).await.unwrap();
            tell("removed");
            if generation % 3 != 0 {
                put(&tier, &name, &format!("{generation} {}", filler("v", 700)), generation).await;
            }
        }
    });
}

#[tokio::test]
async fn killed_again_and_again_nothing_older_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("journal"), b"").unwrap();
    let mut generation = 1;
    let mut met = 0;
    for round in 0..20u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "recovery::child"])
            .env("TIERCACHE_TEST_DIR", dir.path())
            .env("TIERCACHE_TEST_GENERATION", generation.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Killed after so many lines, not after a time.
        let journal = || std::fs::read_to_string(dir.path().join("journal")).unwrap();
        let lines = journal().lines().count() + 200 + round as usize * 97 % 600;
        while journal().lines().count() < lines {
            assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let mut removed = std::collections::HashMap::new();
        for line in journal().lines() {
            let parts: Vec<_> = line.split(' ').collect();
            let [what, _, number, at] = parts[..] else { continue };
            generation = generation.max(at.parse::<u64>().unwrap_or(0) + 1);
            if what == "removed" {
                removed.insert(format!("key {number}"), at.parse::<u64>().unwrap());
            }
        }
        let tier = open(dir.path());
        for n in 0..40 {
            let name = format!("key {n}");
            let Some(found) = tier.get(&key(&name)).await.unwrap() else { continue };
            met += 1;
            let least = removed.get(&name).copied().unwrap_or(0);
            assert!(
                found.generation.get() >= least,
                "round {round}: {name} is {found:?}, removed below {least}"
            );
            assert!(found.value.starts_with(format!("{} ", found.generation.get()).as_bytes()));
        }
        assert_eq!(tier.usage().await.unwrap().damaged, 0);
    }
    assert!(met > 0);
}
