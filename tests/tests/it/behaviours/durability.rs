//! What is there after the end of a process, orderly or not, and code without a runtime.

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tiercache_core::testing::{Fault, FaultTier, ManualClock, MemoryTier, Op, When};
use tiercache_core::tier::{Resident, Tier};
use tiercache_core::{BlockingCache, CacheManager, Clock, Error, Level, SystemClock, Write};
use tiercache_disk::{DiskConfig, DiskTier};
use tiercache_tests::rig::{builder, disk, disk_config, get, id, ram, ram_for, segments};

// 21 and 22
#[tokio::test]
async fn what_was_set_or_evicted_before_close_is_there_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    // Hot holds five; most of the others are on their way when it is closed.
    let cache =
        builder(&clock).hot(ram_for(5, 50)).dry(disk(dir.path(), &clock).await).build().await.unwrap();
    for n in 0..100 {
        cache.set(format!("key {n}"), n.to_string()).tag("n", n.to_string()).await.unwrap();
    }
    assert!(cache.stats().await.unwrap().pending.0 >= 90);
    let report = cache.close(Duration::from_secs(10)).await.unwrap();
    assert!(report.is_clean() && report.written == 100, "{report}");
    assert!(matches!(cache.get("key 1").await, Err(Error::Closed)));
    let cache = builder(&clock).hot(ram()).dry(disk(dir.path(), &clock).await).build().await.unwrap();
    for n in 0..100 {
        let entry = cache.entry(format!("key {n}")).await.unwrap().unwrap();
        assert_eq!((entry.value, &entry.tags["n"]), (n.to_string().into(), &n.to_string()));
    }
}

/// A cache for a program without a runtime.
fn blocking(path: &Path, entries: u64, write: Write) -> BlockingCache {
    let clock: Arc<dyn Clock> = SystemClock::start();
    let dry = DiskTier::open_blocking(disk_config(path), clock.clone()).unwrap();
    let levels = CacheManager::builder().clock(clock).hot(ram_for(entries, 50)).dry(Arc::new(dry));
    BlockingCache::build(levels.write(write)).unwrap()
}

// 23
#[test]
fn a_program_without_a_runtime_loses_nothing_it_sets() {
    let dir = tempfile::tempdir().unwrap();
    let cache = blocking(dir.path(), 5, Write::Back);
    for n in 0..100 {
        cache.set(format!("key {n}"), n.to_string()).unwrap();
    }
    for n in 0..100 {
        assert_eq!(cache.get(format!("key {n}")).unwrap().unwrap(), n.to_string());
    }
    assert!(cache.close(Duration::from_secs(10)).unwrap().is_clean());
    let cache = blocking(dir.path(), 5, Write::Back);
    for n in 0..100 {
        assert_eq!(cache.get(format!("key {n}")).unwrap().unwrap(), n.to_string());
    }
}

// 24
#[test]
fn a_program_that_used_only_blocking_calls_ends_when_its_main_function_does() {
    for close in ["close", "drop"] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = child(close, dir.path());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let over = lines.by_ref().map_while(Result::ok).find(|line| line.contains("main is over"));
        assert!(over.is_some(), "{close}: it said so");
        let began = Instant::now();
        assert!(child.wait().unwrap().success(), "{close}");
        assert!(began.elapsed() < Duration::from_secs(1), "{close}: {:?}", began.elapsed());
    }
}

// 25
#[test]
fn eight_threads_with_blocking_calls_each_read_what_they_set() {
    let dir = tempfile::tempdir().unwrap();
    let cache = blocking(dir.path(), 50, Write::Back);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let cache = cache.clone();
            scope.spawn(move || {
                for n in 0..60 {
                    let key = format!("{thread} {n}");
                    cache.set(&key, key.clone()).unwrap();
                    assert_eq!(cache.get(&key).unwrap().unwrap(), key);
                }
                for n in 0..60 {
                    let key = format!("{thread} {n}");
                    assert_eq!(cache.get(&key).unwrap().unwrap(), key);
                }
            });
        }
    });
}

// 26
#[tokio::test]
async fn a_blocking_call_inside_a_runtime_is_an_error_that_names_the_async_one() {
    let manager = builder(&ManualClock::new()).hot(ram()).build().await.unwrap();
    let cache = manager.blocking();
    let calls: [(&str, Error); 5] = [
        ("get", cache.get("k").unwrap_err()),
        ("set", cache.set("k", "v").unwrap_err()),
        ("delete", cache.delete("k").unwrap_err()),
        ("stats", cache.stats().unwrap_err()),
        ("close", cache.close(Duration::from_secs(1)).unwrap_err()),
    ];
    for (call, error) in calls {
        assert!(error.to_string().contains(&format!("`{call}`")), "{error}");
    }
    let built = BlockingCache::build(CacheManager::builder().hot(ram()));
    assert!(matches!(built, Err(Error::WouldBlockRuntime("build"))));
    // From a thread of its own it works, beside the runtime it came from.
    let found = std::thread::spawn(move || {
        cache.set("k", "v").unwrap();
        cache.get("k").unwrap().unwrap()
    });
    assert_eq!(found.join().unwrap(), "v");
    assert_eq!(get(&manager, "k").await.unwrap(), "v");
}

// 27
#[test]
fn after_a_kill_each_key_is_whole_or_missing_and_a_check_is_clean() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let mut child = child("write", dir.path());
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut written =
            lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("set ")?.parse::<u32>().ok());
        assert!(written.by_ref().take(700).count() == 700, "{round}: it was killed while it wrote");
        child.kill().unwrap();
        // It went on until then; what it has said since was answered too.
        let last = written.last().unwrap_or(699);
        child.wait().unwrap();
        let level = dir.path().join("level");
        let report = DiskTier::check(&level, false, &mut |_, _| {}).unwrap();
        assert!(report.is_clean(), "{round}: {report:?}");
        let cache = blocking(dir.path(), 5, Write::Through);
        // The one after the last may have been replaced and not be written yet.
        for n in (0..=last).filter(|n| n % 400 != (last + 1) % 400) {
            let found = cache.get(format!("key {}", n % 400)).unwrap();
            if let Some(found) = &found {
                let text = std::str::from_utf8(found).unwrap();
                let first = text.split(' ').next().unwrap();
                assert_eq!(text, value(first.parse().unwrap()), "{round}: whole");
            }
            if n + 400 > last {
                // `through`: what was answered is there.
                let newest = found.unwrap_or_else(|| panic!("{round}: {n} was answered and is gone"));
                let number: u32 =
                    std::str::from_utf8(&newest).unwrap().split(' ').next().unwrap().parse().unwrap();
                assert!(number >= n, "{round}: {number} after {n}");
            }
        }
    }
}

fn value(n: u32) -> String {
    format!("{n} ").repeat(30 + n as usize % 50)
}

/// This test as a program of its own, over the level in `dir`.
fn child(does: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "behaviours::durability::a_program",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("TIERCACHE_CHILD_DOES", does)
        .env("TIERCACHE_CHILD_DIR", dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "the program that other tests start"]
fn a_program() {
    let (Ok(does), Ok(dir)) = (std::env::var("TIERCACHE_CHILD_DOES"), std::env::var("TIERCACHE_CHILD_DIR"))
    else {
        return;
    };
    let cache = blocking(Path::new(&dir), 5, if does == "write" { Write::Through } else { Write::Back });
    let say = |line: &str| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
    };
    if does == "write" {
        say("");
        for n in 0.. {
            cache.set(format!("key {}", n % 400), value(n)).unwrap();
            if !say(&format!("set {n}")) {
                return;
            }
        }
    }
    for n in 0..100 {
        cache.set(format!("key {n}"), "v").unwrap();
        cache.get(format!("key {}", n / 2)).unwrap();
    }
    if does == "close" {
        cache.close(Duration::from_secs(5)).unwrap();
    }
    say("main is over");
}

// 28
#[tokio::test]
async fn a_truncated_file_is_a_miss_that_is_counted_and_does_not_last() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let (hot, dry) = (ram(), disk(dir.path(), &clock).await);
    let cache = builder(&clock).hot(hot.clone()).dry(dry.clone()).build().await.unwrap();
    cache.set("k", "v".repeat(1_000)).await.unwrap();
    hot.drain();
    cache.settle().await.unwrap();
    dry.sync().await.unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&segments(dir.path())[0]).unwrap();
    file.set_len(file.metadata().unwrap().len() - 100).unwrap();
    for _ in 0..3 {
        assert_eq!(get(&cache, "k").await, None);
        assert_eq!(dry.usage().await.unwrap().damaged, 1, "removed when it was met");
    }
    cache.set("k", "again").await.unwrap();
    hot.drain();
    cache.settle().await.unwrap();
    assert_eq!(get(&cache, "k").await.unwrap(), "again");
}

// 29
#[tokio::test]
async fn on_a_full_disk_a_set_is_an_error_or_stays_in_ram_and_is_never_half_there() {
    for (fault, write) in
        [(Fault::Full, Write::Back), (Fault::Full, Write::Through), (Fault::FailBefore, Write::Through)]
    {
        let store = MemoryTier::persistent();
        let full = Arc::new(FaultTier::new(store.clone()));
        let cache =
            builder(&ManualClock::new()).hot(ram()).dry(full.clone()).write(write).build().await.unwrap();
        cache.set("k", "old").await.unwrap();
        full.inject(Op::Put, When::Always, fault);
        let set = cache.set("k", "new").await;
        assert_eq!(set.is_ok(), write == Write::Back, "{set:?}");
        let found = get(&cache, "k").await;
        assert_eq!(found.as_deref(), (write == Write::Back).then_some("new"), "{fault:?} {write:?}");
        assert_eq!(store.get(&id("k")).await.unwrap(), None, "{fault:?} {write:?}");
    }
    // A level with a bound of its own makes room instead.
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let config = DiskConfig { max_size: 4 << 16, ..disk_config(dir.path()) };
    let dry = Arc::new(DiskTier::open(config, clock.clone()).await.unwrap());
    let cache = builder(&clock).hot(ram()).dry(dry.clone()).write(Write::Through).build().await.unwrap();
    for n in 0..2_000 {
        cache.set(format!("key {n}"), vec![b'v'; 1_000]).pin(Level::Dry).await.unwrap();
        let usage = dry.usage().await.unwrap();
        assert!(usage.bytes <= usage.capacity, "{n}: {usage:?}");
    }
    assert!(cache.get("key 1999").await.unwrap().is_some());
}
