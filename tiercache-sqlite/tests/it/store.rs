//! What the level promises beyond the suite every tier passes.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::common::*;
use tiercache_core::testing::ManualClock;
use tiercache_core::tier::{
    Always, Counting, FenceLog, Hold, Left, Listing, Put, Removal, Scope, Spill, Swept,
};
use tiercache_core::{Clock, Entry, Error, Generation, Key, KeyRef, Stay, Tier, Timestamp};
use tiercache_sqlite::{Filter, SqliteConfig, SqliteTier};

#[tokio::test]
async fn evicting_a_tag_takes_exactly_what_carries_it_and_counts_it_whoever_put_it() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (open(dir.path()), open(dir.path()));
    for n in 0..60 {
        let tier = if n % 2 == 0 { &one } else { &two };
        let entry = tagged(n + 1, "value", "type", if n % 3 == 0 { "raw" } else { "done" });
        put(tier, &format!("k{n}"), &entry).await;
    }
    assert_eq!(one.evict_tag("", "type", "raw").await.unwrap(), 20);
    for n in 0..60 {
        assert_eq!(get(&two, &format!("k{n}")).await.is_none(), n % 3 == 0, "k{n}");
    }
    assert_eq!(one.evict_tag("", "type", "raw").await.unwrap(), 0);
    assert_eq!(put(&two, "late", &tagged(60, "old", "type", "raw")).await, Put::Superseded);
    assert!(check(dir.path(), false).is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_a_flood_of_writes_the_limit_holds_at_every_moment() {
    let dir = tempfile::tempdir().unwrap();
    let config = SqliteConfig { max_size: 1 << 20, ..config(dir.path()) };
    let (one, two) = (open_with(config.clone(), ManualClock::new()), open_with(config, ManualClock::new()));
    let value = vec![7; 4_000];
    let mut most = 0;
    for n in 0..1_500u64 {
        let tier = if n % 2 == 0 { &one } else { &two };
        assert_eq!(put(tier, &format!("k{n}"), &entry(n + 1, value.clone())).await, Put::Stored);
        if n % 10 == 0 {
            most = most.max(one.usage().await.unwrap().bytes.unwrap());
        }
    }
    assert!((900 << 10..=1 << 20).contains(&most), "{most}");
    let evicted = one.usage().await.unwrap().evicted + two.usage().await.unwrap().evicted;
    assert_eq!(evicted + one.usage().await.unwrap().entries.unwrap(), 1_500);
    let databases: u64 =
        (0..4).map(|n| dir.path().join(format!("level/shard-{n}.db")).metadata().unwrap().len()).sum();
    assert!(databases < 3 << 20, "the files follow the limit: {databases}");
}

#[tokio::test]
async fn what_was_read_last_stays_and_what_was_not_goes_after_reopening_too() {
    let dir = tempfile::tempdir().unwrap();
    let config = SqliteConfig { shards: Some(1), max_size: 96 << 10, ..config(dir.path()) };
    for reopen in [false, true] {
        let clock = ManualClock::new();
        let mut tier = open_with(config.clone(), clock.clone());
        tier.clear(None, g(1_000)).await.unwrap();
        let first = 1_000 + u64::from(reopen) * 100;
        for n in 0..9 {
            let put =
                tier.put(&key(&format!("k{n}")), &entry(first + n, vec![1; 10_000]), at(n), &Always).await;
            assert_eq!(put.unwrap(), Put::Stored);
        }
        clock.set(T0.after_millis(100));
        assert!(get(&tier, "k0").await.is_some());
        if reopen {
            tier.close().await.unwrap();
            drop(tier);
            tier = open_with(config.clone(), clock.clone());
        }
        tier.put(&key("k9"), &entry(first + 9, vec![1; 10_000]), at(200), &Always).await.unwrap();
        assert!(get(&tier, "k0").await.is_some(), "read last");
        assert!(get(&tier, "k1").await.is_none(), "used longest ago");
        assert!(get(&tier, "k2").await.is_some() && get(&tier, "k9").await.is_some());
        tier.clear(None, g(first + 50)).await.unwrap();
        tier.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_transaction_that_fails_leaves_old_values_whole_and_no_file_behind() {
    let dir = tempfile::tempdir().unwrap();
    let config = SqliteConfig { shards: Some(1), inline_max: 1 << 10, ..config(dir.path()) };
    let tier = open_with(config, ManualClock::new());
    for name in ["a", "b"] {
        put(&tier, name, &entry(1, vec![1; 50_000])).await;
    }
    let before = tier.usage().await.unwrap();
    let failed = tier
        .transaction(&key("a"), |work| {
            assert_eq!(work.put(&key("a"), &entry(2, vec![2; 60_000]), HOLD)?, Put::Stored);
            assert_eq!(work.get(&key("a"))?.unwrap().value.len(), 60_000);
            assert!(work.remove(&key("b"), g(2))?.is_done());
            work.put(&key("c"), &entry(1, vec![3; 70_000]), HOLD)?;
            Err::<(), _>(Error::InvalidOption { option: "any", reason: "changed my mind".into() })
        })
        .await;
    assert!(matches!(failed, Err(Error::InvalidOption { .. })));
    for name in ["a", "b"] {
        assert_eq!(get(&tier, name).await, Some(entry(1, vec![1; 50_000])));
    }
    assert_eq!(get(&tier, "c").await, None);
    assert_eq!(tier.usage().await.unwrap(), before);
    assert_eq!(files(dir.path()).len(), 2);
    assert!(check(dir.path(), false).is_clean());

    let a = key("a");
    let swapped = tier.transaction(&a, |work| {
        work.put(&key("a"), &entry(2, "small"), HOLD)?;
        work.remove(&key("b"), g(2))
    });
    assert!(swapped.await.unwrap().is_done());
    assert_eq!(get(&tier, "a").await.unwrap().value, "small");
    assert_eq!((get(&tier, "b").await, files(dir.path()).len()), (None, 0));
    let panicked = tier.transaction(&a, |_| -> tiercache_core::Result<()> { panic!("on purpose") });
    assert!(matches!(panicked.await, Err(Error::Panicked { .. })));
    assert_eq!(get(&tier, "a").await.unwrap().value, "small", "and the writer lives on");
    assert_eq!(put(&tier, "a", &entry(3, "next")).await, Put::Stored);
}

#[tokio::test]
async fn a_nested_part_that_fails_is_undone_alone() {
    let dir = tempfile::tempdir().unwrap();
    let config = SqliteConfig { shards: Some(1), inline_max: 1 << 10, ..config(dir.path()) };
    let tier = open_with(config, ManualClock::new());
    let a = key("a");
    let done = tier.transaction(&a, |work| {
        work.put(&key("a"), &entry(1, "outer"), HOLD)?;
        let inner = work.nested(|work| {
            work.put(&key("a"), &entry(2, vec![2; 5_000]), HOLD)?;
            work.put(&key("b"), &entry(2, "inner"), HOLD)?;
            work.nested(|work| work.put(&key("c"), &entry(2, "innermost"), HOLD))?;
            Err::<(), _>(Error::Unsupported { backend: "sqlite", op: "go on" })
        });
        assert!(inner.is_err());
        assert_eq!(work.get(&key("a"))?.unwrap().value, "outer");
        work.nested(|work| work.put(&key("d"), &entry(3, "kept"), HOLD))
    });
    assert_eq!(done.await.unwrap(), Put::Stored);
    assert_eq!(get(&tier, "a").await.unwrap().value, "outer");
    assert_eq!(get(&tier, "d").await.unwrap().value, "kept");
    assert_eq!((get(&tier, "b").await, get(&tier, "c").await), (None, None));
    assert_eq!(files(dir.path()).len(), 0);
    assert!(check(dir.path(), false).is_clean());
}

#[tokio::test]
async fn a_transaction_refuses_what_it_is_not_over_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    let first = key("a");
    let other = (0..).map(|n| key(&format!("k{n}"))).find(|key| tier.shard_of(key) != tier.shard_of(&first));
    let other = other.unwrap();
    let refused = tier.transaction(&first, move |work| work.get(&other)).await.unwrap_err();
    assert!(refused.to_string().contains("over all its keys"), "{refused}");
}

#[tokio::test]
async fn another_number_of_shards_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open_with(SqliteConfig { shards: Some(3), ..config(dir.path()) }, ManualClock::new());
    for n in 0..50 {
        put(&tier, &format!("k{n}"), &entry(1, "value")).await;
    }
    tier.close().await.unwrap();
    let eight = SqliteConfig { shards: Some(8), ..config(dir.path()) };
    let refused = SqliteTier::open_blocking(eight, ManualClock::new()).unwrap_err();
    let said = refused.to_string();
    assert!(
        matches!(refused, Error::Config(_)) && said.contains("3 shards") && said.contains("leave"),
        "{said}"
    );
    let tier = open(dir.path());
    for n in 0..50 {
        assert!(get(&tier, &format!("k{n}")).await.is_some(), "k{n}");
    }
}

#[tokio::test]
async fn an_iteration_is_of_one_moment_and_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    for n in 0..100 {
        put(&tier, &format!("k{n:03}"), &entry(1, "before")).await;
    }
    let mut iteration = tier.iterate(Filter::default()).await.unwrap();
    let mut seen: Vec<String> = Vec::new();
    for page in 0.. {
        let listed = iteration.next(7).await.unwrap();
        if listed.is_empty() {
            break;
        }
        assert!(listed.len() <= 7);
        assert!(listed.iter().all(|listed| listed.size == 6));
        seen.extend(listed.into_iter().map(|listed| listed.key.display().into_owned()));
        remove(&tier, &format!("k{:03}", 99 - page), 5).await;
        put(&tier, &format!("k{page:03}"), &entry(9, "changed meanwhile")).await;
        put(&tier, &format!("new {page}"), &entry(1, "new")).await;
    }
    seen.sort();
    assert_eq!(seen, (0..100).map(|n| format!("k{n:03}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn prefixes_and_tags_find_what_matches() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    for n in 0..40 {
        put(&tier, &format!("user:{n:02}"), &tagged(1, "value", "kind", if n < 10 { "a" } else { "b" }))
            .await;
        put(&tier, &format!("user%{n:02}"), &entry(1, "value")).await;
        let other = Key::new("other", format!("user:{n:02}").as_bytes()).unwrap();
        tier.put(&other, &tagged(1, "value", "kind", "a"), HOLD, &Always).await.unwrap();
    }
    let odd = Key::new("", &[255, 255, 1]).unwrap();
    tier.put(&odd, &entry(1, "value"), HOLD, &Always).await.unwrap();
    let kind = |value: &str| Some(("kind".to_owned(), value.to_owned()));
    for (namespace, prefix, tag, expected) in [
        (None, &b""[..], None, 121),
        (Some(""), b"user:", None, 40),
        (None, b"user:", None, 80),
        (Some(""), b"user:0", None, 10),
        (Some(""), b"", kind("a"), 10),
        (None, b"", kind("a"), 50),
        (Some(""), b"user:3", kind("b"), 10),
        (Some(""), b"user:3", kind("a"), 0),
        (Some(""), &[255, 255], None, 1),
        (Some("none"), b"", None, 0),
    ] {
        let filter = Filter { namespace: namespace.map(str::to_owned), prefix: prefix.to_vec(), tag };
        let mut iteration = tier.iterate(filter.clone()).await.unwrap();
        let mut found = 0;
        loop {
            match iteration.next(6).await.unwrap().len() {
                0 => break,
                some => found += some,
            }
        }
        assert_eq!(found, expected, "{filter:?}");
    }
}

#[tokio::test]
async fn a_listing_of_everything_goes_through_all_shards_and_reads_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open_with(SqliteConfig { inline_max: 0, ..config(dir.path()) }, ManualClock::new());
    for n in 0..50 {
        put(&tier, &format!("k{n}"), &entry(1, vec![1; n])).await;
    }
    files(dir.path()).into_iter().for_each(|file| std::fs::remove_file(file).unwrap());
    let (mut seen, mut sizes, mut after) = (0, 0, None);
    loop {
        let page = tier.list(None, after, 3).await.unwrap();
        seen += page.entries.len();
        sizes += page.entries.iter().map(|listed| listed.size).sum::<u64>();
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((seen, sizes), (50, 49 * 50 / 2));
}

#[tokio::test]
async fn any_key_is_an_entry_of_its_own_and_nothing_is_written_outside() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open_with(SqliteConfig { inline_max: 0, ..config(dir.path()) }, ManualClock::new());
    let long = "x".repeat(10_000);
    let names =
        ["..", "../../escaped", "/tmp/escaped", "a\0b", "größe", "'; DROP TABLE entry; --", "%", &long];
    for (n, name) in names.iter().enumerate() {
        put(&tier, name, &entry(1, vec![n as u8; 10])).await;
    }
    for (n, name) in names.iter().enumerate() {
        assert_eq!(get(&tier, name).await.unwrap().value, vec![n as u8; 10]);
    }
    let outside: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(outside, ["level"]);
}

#[tokio::test]
async fn a_directory_that_was_moved_has_everything() {
    let dir = tempfile::tempdir().unwrap();
    let inline_max = 100;
    let tier = open_with(SqliteConfig { inline_max, ..config(dir.path()) }, ManualClock::new());
    put(&tier, "small", &entry(1, "small")).await;
    put(&tier, "large", &entry(1, vec![7; 5_000])).await;
    tier.close().await.unwrap();
    drop(tier);
    std::fs::rename(dir.path().join("level"), dir.path().join("moved")).unwrap();
    let moved = SqliteConfig { path: Some(dir.path().join("moved")), ..config(dir.path()) };
    let tier = open_with(moved, ManualClock::new());
    assert_eq!(get(&tier, "small").await.unwrap().value, "small");
    assert_eq!(get(&tier, "large").await.unwrap().value, vec![7; 5_000]);
}

#[tokio::test]
async fn files_of_others_in_the_directory_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    let foreign = [dir.path().join("level/mine.txt"), dir.path().join("level/files-0/mine.txt")];
    foreign.iter().for_each(|file| std::fs::write(file, b"mine").unwrap());
    put(&tier, "k", &entry(1, vec![1; 100_000])).await;
    tier.clear(None, g(10)).await.unwrap();
    tier.close().await.unwrap();
    drop(tier);
    check(dir.path(), true);
    assert!(foreign.iter().all(|file| file.exists()));
}

#[tokio::test]
async fn the_directory_is_private_and_one_that_is_not_safe_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open_with(SqliteConfig { inline_max: 0, ..config(dir.path()) }, ManualClock::new());
    put(&tier, "k", &entry(1, "value")).await;
    let level = dir.path().join("level");
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&level), 0o700);
    let mut looked = 0;
    for path in std::fs::read_dir(&level).unwrap().map(|entry| entry.unwrap().path()).chain(files(dir.path()))
    {
        assert_eq!(mode(&path), if path.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
        looked += 1;
    }
    assert!(looked > 12);
    tier.close().await.unwrap();
    drop(tier);

    let refused = |path: &str| {
        let config = SqliteConfig { path: Some(dir.path().join(path)), ..config(dir.path()) };
        let error = SqliteTier::open_blocking(config, ManualClock::new()).unwrap_err();
        assert!(matches!(error, Error::Refused(_)), "{error}");
        error.to_string()
    };
    std::os::unix::fs::symlink(&level, dir.path().join("link")).unwrap();
    assert!(refused("link").contains("symbolic link"));
    std::fs::write(dir.path().join("file"), b"x").unwrap();
    refused("file");
    std::fs::create_dir(dir.path().join("open")).unwrap();
    std::fs::write(dir.path().join("open/theirs"), b"x").unwrap();
    std::fs::set_permissions(dir.path().join("open"), PermissionsExt::from_mode(0o777)).unwrap();
    assert!(refused("open").contains("others"));
    std::fs::rename(level.join("shard-0.db"), dir.path().join("elsewhere.db")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("elsewhere.db"), level.join("shard-0.db")).unwrap();
    assert!(refused("level").contains("symbolic link"));
}

#[tokio::test]
async fn a_database_of_another_application_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let path = dir.path().join("level/shard-1.db");
    std::fs::remove_file(&path).unwrap();
    for more in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{more}", path.display()));
    }
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (a); ").unwrap();
    let error = SqliteTier::open_blocking(config(dir.path()), ManualClock::new()).unwrap_err();
    assert!(error.to_string().contains("another application"), "{error}");
    rusqlite::Connection::open(&path).unwrap().execute_batch("SELECT a FROM theirs").unwrap();
}

#[tokio::test]
async fn what_one_process_invalidates_is_dead_for_all_at_once_whatever_their_generations() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (open(dir.path()), open(dir.path()));
    put(&two, "tagged", &tagged(500, "value", "type", "raw")).await;
    put(&two, "plain", &entry(500, "value")).await;
    let scope = Scope::Tag { namespace: String::new(), name: "type".into(), value: "raw".into() };
    // This process is far behind: its fence is raised above what others put.
    let raised = one.fence(&scope, g(3)).await.unwrap();
    assert!(raised > g(500));
    assert_eq!(get(&two, "tagged").await, None);
    assert!(get(&two, "plain").await.is_some());
    assert_eq!(put(&two, "tagged", &tagged(500, "late", "type", "raw")).await, Put::Superseded);
    assert_eq!(remove(&two, "other", 400).await, Removal::Fenced(raised), "so that it catches up");
    assert!(remove(&two, "tagged", raised.get() + 1).await.is_done());
    assert_eq!(put(&two, "tagged", &tagged(raised.get() + 1, "new", "type", "raw")).await, Put::Stored);
    assert!(get(&one, "tagged").await.is_some());
    assert_eq!(two.remembered(), [(scope.clone(), raised)]);
    let raised = two.fence(&Scope::All, g(1)).await.unwrap();
    assert_eq!((get(&one, "tagged").await, get(&one, "plain").await), (None, None));
    one.close().await.unwrap();
    two.close().await.unwrap();
    let again = open(dir.path());
    assert!(again.remembered().contains(&(Scope::All, raised)));
    assert!(again.profile().last_generation >= raised);
}

#[tokio::test]
async fn a_cleared_level_gives_its_room_back_and_is_no_invalidation() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open_with(SqliteConfig { inline_max: 1_000, ..config(dir.path()) }, ManualClock::new());
    for n in 0..1_500 {
        put(&tier, &format!("k{n}"), &entry(1, if n % 50 == 0 { vec![1; 3_000] } else { vec![1; 30] })).await;
    }
    tier.clear(Some(""), g(2)).await.unwrap();
    assert_eq!(tier.list(None, None, 10).await.unwrap().entries.len(), 0);
    assert_eq!(put(&tier, "k1", &entry(1, "late")).await, Put::Superseded);
    assert_eq!(put(&tier, "k1", &entry(2, "new")).await, Put::Stored);
    // In the background: writers take steps between calls.
    while tier.usage().await.unwrap().entries != Some(1) {
        tokio::task::yield_now().await;
    }
    while !files(dir.path()).is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(tier.remembered(), [], "other levels keep theirs");
    tier.close().await.unwrap();
    drop(tier);
    assert!(check(dir.path(), false).is_clean());
}

#[tokio::test]
async fn a_removal_refuses_what_comes_late_and_tells_who_is_behind() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let (one, two) =
        (open_with(config(dir.path()), clock.clone()), open_with(config(dir.path()), clock.clone()));
    put(&one, "k", &entry(10, "ten")).await;
    assert_eq!(remove(&two, "k", 7).await, Removal::Behind(g(10)));
    assert!(get(&one, "k").await.is_some(), "nothing changed");
    assert!(remove(&two, "k", 20).await.is_done());
    assert_eq!(put(&one, "k", &entry(15, "late")).await, Put::Superseded);
    assert_eq!(remove(&one, "k", 15).await, Removal::Behind(g(20)));
    assert_eq!(get(&one, "k").await, None);
    clock.advance(Duration::from_secs(59));
    assert_eq!(put(&one, "k", &entry(15, "late")).await, Put::Superseded);
    clock.advance(Duration::from_secs(2));
    assert_eq!(put(&one, "k", &entry(15, "no longer late")).await, Put::Stored, "the mark has gone");
}

#[tokio::test]
async fn what_was_evicted_a_moment_ago_does_not_let_an_older_write_in() {
    let dir = tempfile::tempdir().unwrap();
    let config = SqliteConfig { shards: Some(1), max_size: 64 << 10, ..config(dir.path()) };
    let tier = open_with(config, ManualClock::new());
    put(&tier, "k", &entry(10, "ten")).await;
    for n in 0..8 {
        put(&tier, &format!("more {n}"), &entry(11, vec![1; 10_000])).await;
    }
    assert_eq!(get(&tier, "k").await, None);
    assert_eq!(put(&tier, "k", &entry(5, "five")).await, Put::Superseded);
    assert_eq!(put(&tier, "k", &entry(10, "ten")).await, Put::Stored);
}

#[tokio::test]
async fn two_entries_of_one_generation_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (open(dir.path()), open(dir.path()));
    assert_eq!(put(&one, "k", &entry(5, "one")).await, Put::Stored);
    assert_eq!(put(&two, "k", &entry(5, "one")).await, Put::Unchanged);
    assert_eq!(put(&two, "k", &entry(5, "two")).await, Put::Superseded);
}

#[tokio::test]
async fn a_read_begins_a_stay_anew_for_every_process() {
    #[derive(Debug, Default)]
    struct Taken(std::sync::Mutex<Vec<(Vec<u8>, u64)>>);
    impl Spill for Taken {
        fn spill(&self, key: Key, entry: Entry, _: Left) {
            self.0.lock().unwrap().push((key.bytes().to_vec(), entry.generation.get()));
        }
        fn used(&self, _: KeyRef<'_>, _: u32) {}
    }
    struct Nothing;
    impl tiercache_core::tier::Dead for Nothing {
        fn is_dead(&self, _: KeyRef<'_>, _: &Entry) -> bool {
            false
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let (one, two) =
        (open_with(config(dir.path()), clock.clone()), open_with(config(dir.path()), clock.clone()));
    let taken = std::sync::Arc::new(Taken::default());
    one.attach(taken.clone());
    let hold = Hold { now: T0, stay: Stay::For(Duration::from_secs(60)) };
    let mut dying = entry(3, "dying");
    dying.deadline = T0.after_millis(30_000);
    for (name, entry) in [("read", entry(1, "value")), ("idle", entry(2, "value")), ("dying", dying)] {
        one.put(&key(name), &entry, hold, &Always).await.unwrap();
    }
    clock.advance(Duration::from_secs(40));
    assert!(get(&two, "read").await.is_some());
    two.sync().await.unwrap();
    clock.advance(Duration::from_secs(30));
    let swept = one.sweep(clock.now(), &Nothing).await.unwrap();
    assert_eq!(swept, Swept { dropped: 1, spilled: 1, complete: true });
    assert_eq!(*taken.0.lock().unwrap(), [(b"idle".to_vec(), 2)]);
    assert!(get(&two, "read").await.is_some() && get(&two, "idle").await.is_none());
}

#[tokio::test]
async fn counters_add_up_keep_their_deadline_and_refuse_to_overflow() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (open(dir.path()), open(dir.path()));
    let deadline = T0.after_millis(60_000);
    assert_eq!(one.add(&key("n"), 2, 10, deadline, T0).await.unwrap(), 12);
    assert_eq!(two.add(&key("n"), -5, 99, Timestamp::NEVER, T0).await.unwrap(), 7);
    assert_eq!(one.counter(&key("n"), T0).await.unwrap(), Some(7));
    assert_eq!(one.counter(&key("n"), deadline).await.unwrap(), None, "its deadline stayed");
    assert_eq!(one.add(&key("n"), 1, 0, Timestamp::NEVER, deadline).await.unwrap(), 1, "and it begins anew");
    assert!(matches!(
        one.add(&key("n"), i64::MAX, 0, Timestamp::NEVER, T0).await,
        Err(Error::InvalidOption { .. })
    ));
    assert_eq!(two.counter(&key("n"), T0).await.unwrap(), Some(1));
    assert_eq!(get(&one, "n").await, None, "counters are not entries");
    assert!(one.remove_counter(&key("n")).await.unwrap() && !one.remove_counter(&key("n")).await.unwrap());
    let inside = Key::new("a", b"n").unwrap();
    one.add(&inside, 1, 0, Timestamp::NEVER, T0).await.unwrap();
    one.add(&key("n"), 1, 0, Timestamp::NEVER, T0).await.unwrap();
    two.clear(Some("a"), Generation::new(5)).await.unwrap();
    assert_eq!(one.counter(&inside, T0).await.unwrap(), None);
    assert_eq!(one.counter(&key("n"), T0).await.unwrap(), Some(1));
}

#[tokio::test]
async fn a_level_that_was_given_less_room_shrinks() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    for n in 0..200 {
        put(&tier, &format!("k{n}"), &entry(1, vec![1; 10_000])).await;
    }
    tier.close().await.unwrap();
    drop(tier);
    let tier = open_with(SqliteConfig { max_size: 1 << 20, ..config(dir.path()) }, ManualClock::new());
    tier.sync().await.unwrap();
    assert!(tier.usage().await.unwrap().bytes.unwrap() <= 1 << 20);
}

#[tokio::test]
async fn a_directory_that_was_removed_is_not_used_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open_live(dir.path());
    put(&tier, "k", &entry(1, "value")).await;
    std::fs::remove_dir_all(dir.path().join("level")).unwrap();
    let other = open_live(dir.path());
    assert_eq!(get(&other, "k").await, None);
    while tier.get(&key("k")).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(matches!(tier.get(&key("k")).await, Err(Error::Unavailable { .. })));
}
