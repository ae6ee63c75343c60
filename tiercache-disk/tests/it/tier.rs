//! What the level promises while it is open.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::*;
use tiercache_core::testing::ManualClock;
use tiercache_core::tier::{Always, Cause, Dead, FenceLog, Hold, Index, Listing, Permit, Put, Scope, TryGet};
use tiercache_core::{Clock, Entry, Generation, Key, KeyRef, Stay, Tier};

struct NoneDead;

impl Dead for NoneDead {
    fn is_dead(&self, _: KeyRef<'_>, _: &Entry) -> bool {
        false
    }
}

#[tokio::test]
async fn what_was_put_is_found_before_and_after_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    for len in [0, 1, 255, 4096, 50_000] {
        let name = format!("of {len}");
        assert_eq!(put(&tier, &name, &filler(&name, len), 1).await, Put::Stored);
        assert_eq!(value(&tier, &name).await.unwrap(), filler(&name, len));
    }
    tier.sync().await.unwrap();
    for len in [0, 1, 255, 4096, 50_000] {
        let name = format!("of {len}");
        assert_eq!(value(&tier, &name).await.unwrap(), filler(&name, len));
        assert_eq!(tier.holds(key(&name).as_ref()), Some(Generation::new(1)));
    }
    assert_eq!(value(&tier, "absent").await, None);
    assert_eq!(tier.holds(key("absent").as_ref()), None);
    assert_eq!(tier.usage().await.unwrap().entries, Some(5));
}

#[tokio::test]
async fn a_hit_on_a_written_entry_does_not_wait() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    put(&tier, "a", "1", 1).await;
    assert!(matches!(tier.try_get(key("a").as_ref()), TryGet::Done(Some(_))));
    tier.sync().await.unwrap();
    // A file system without RWF_NOWAIT is allowed to say that it would block, and then `get` answers.
    match tier.try_get(key("a").as_ref()) {
        TryGet::Done(found) => assert!(found.is_some()),
        TryGet::WouldBlock => assert_eq!(value(&tier, "a").await.unwrap(), "1"),
    }
}

#[tokio::test]
async fn only_a_newer_generation_replaces() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    assert_eq!(put(&tier, "a", "5", 5).await, Put::Stored);
    assert_eq!(put(&tier, "a", "4", 4).await, Put::Superseded);
    assert_eq!(put(&tier, "a", "other 5", 5).await, Put::Unchanged);
    assert_eq!(value(&tier, "a").await.unwrap(), "5");
    assert_eq!(put(&tier, "a", "6", 6).await, Put::Stored);
    assert_eq!(value(&tier, "a").await.unwrap(), "6");
    assert_eq!(tier.usage().await.unwrap().entries, Some(1));
}

#[tokio::test]
async fn a_removal_counts_as_a_generation() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    put(&tier, "a", "1", 1).await;
    tier.remove(&key("a"), Generation::new(5)).await.unwrap();
    assert_eq!(value(&tier, "a").await, None);
    assert_eq!(tier.holds(key("a").as_ref()), None);
    assert_eq!(put(&tier, "a", "4", 4).await, Put::Superseded);
    assert_eq!(put(&tier, "a", "5", 5).await, Put::Stored);
    tier.remove(&key("a"), Generation::new(5)).await.unwrap();
    assert_eq!(value(&tier, "a").await.unwrap(), "5", "not below the removal's generation");
    assert_eq!(tier.usage().await.unwrap().entries, Some(1));
}

#[tokio::test]
async fn removing_what_is_absent_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    put(&tier, "a", "1", 1).await;
    tier.sync().await.unwrap();
    let size = segments(dir.path())[0].metadata().unwrap().len();
    assert!(matches!(tier.try_remove(key("absent").as_ref(), Generation::new(9)), Some(Ok(()))));
    tier.sync().await.unwrap();
    assert_eq!(segments(dir.path())[0].metadata().unwrap().len(), size);
}

struct Once(AtomicBool);

impl Permit for Once {
    fn holds(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn a_put_whose_permit_was_withdrawn_stores_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    let permit = Once(AtomicBool::new(false));
    let refused = tier.put(&key("a"), &entry("1", 1), hold(), &permit).await.unwrap();
    assert_eq!(refused, Put::Superseded);
    assert_eq!(tier.holds(key("a").as_ref()), None);
    permit.0.store(true, Ordering::Relaxed);
    assert_eq!(tier.put(&key("a"), &entry("1", 1), hold(), &permit).await.unwrap(), Put::Stored);
}

#[tokio::test]
async fn an_entry_larger_than_a_segment_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    let most = tier.profile().max_entry_bytes.unwrap() as usize;
    assert_eq!(put(&tier, "a", &filler("a", most), 1).await, Put::TooLarge);
    assert_eq!(put(&tier, "a", &filler("a", most - 64), 1).await, Put::Stored);
    assert_eq!(value(&tier, "a").await.unwrap().len(), most - 64);
}

#[tokio::test]
async fn odd_keys_are_kept_apart() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    let long = vec![b'k'; 16 * 1024];
    let keys: Vec<Key> = [
        Key::new("", b"../../etc/passwd"),
        Key::new("", b"\0"),
        Key::new("", &[0xFF, 0xFE]),
        Key::new("", b"CON"),
        Key::new("a", b"bc"),
        Key::new("ab", b"c"),
        Key::new("", &long),
        Key::new(&"n".repeat(255), &long),
        Key::new("", "schlüssel \u{202e}".as_bytes()),
    ]
    .into_iter()
    .map(Result::unwrap)
    .collect();
    for (n, key) in keys.iter().enumerate() {
        tier.put(key, &entry(format!("{n}"), 1), hold(), &Always).await.unwrap();
    }
    tier.sync().await.unwrap();
    for (n, key) in keys.iter().enumerate() {
        assert_eq!(&tier.get(key).await.unwrap().unwrap().value[..], format!("{n}").as_bytes(), "{key:?}");
    }
    let files: Vec<_> = std::fs::read_dir(dir.path().join("level")).unwrap().map(|e| e.unwrap()).collect();
    assert!(files.iter().all(|file| file.file_name().to_str().unwrap().len() <= 16), "{files:?}");
}

#[tokio::test]
async fn clearing_a_namespace_leaves_the_others_alone() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    let keys: Vec<Key> = ["", "a", "b"].iter().map(|space| Key::new(space, b"k").unwrap()).collect();
    for key in &keys {
        tier.put(key, &entry("v", 3), hold(), &Always).await.unwrap();
    }
    tier.clear(Some("a"), Generation::new(9)).await.unwrap();
    assert!(tier.get(&keys[1]).await.unwrap().is_none());
    assert!(tier.get(&keys[0]).await.unwrap().is_some() && tier.get(&keys[2]).await.unwrap().is_some());
    let late = tier.put(&keys[1], &entry("v", 8), hold(), &Always).await.unwrap();
    assert_eq!(late, Put::Superseded, "older than the clear");
    tier.clear(None, Generation::new(10)).await.unwrap();
    let usage = tier.usage().await.unwrap();
    assert_eq!((usage.entries, usage.bytes), (Some(0), Some(0)));
    assert_eq!(tier.put(&keys[1], &entry("v", 10), hold(), &Always).await.unwrap(), Put::Stored);
}

#[tokio::test]
async fn a_fence_on_a_tag_refuses_older_puts_and_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    let scope = Scope::Tag { namespace: String::new(), name: "type".into(), value: "thumbnail".into() };
    tier.fence(&scope, Generation::new(5)).await.unwrap();
    let tagged = |generation| {
        let mut entry = entry("v", generation);
        entry.extras_mut().tags.insert("type".into(), "thumbnail".into());
        entry
    };
    assert_eq!(tier.put(&key("a"), &tagged(4), hold(), &Always).await.unwrap(), Put::Superseded);
    assert_eq!(tier.put(&key("a"), &tagged(5), hold(), &Always).await.unwrap(), Put::Stored);
    assert_eq!(tier.remembered(), vec![(scope, Generation::new(5))]);
}

#[tokio::test]
async fn the_bound_is_exact_under_churn_and_counters_agree() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    let basket = Arc::new(Basket::default());
    tier.attach(basket.clone());
    for n in 0..4_000u64 {
        let name = format!("key {}", n * 7919 % 1_000);
        put(&tier, &name, &filler(&name, 100 + n as usize % 3_000), n + 1).await;
        if n % 500 == 0 {
            let size: u64 = std::fs::read_dir(dir.path().join("level"))
                .unwrap()
                .filter_map(|file| file.ok()?.metadata().ok())
                .map(|meta| meta.len())
                .sum();
            assert!(size <= 16 * SEGMENT + 16, "{size}");
        }
    }
    let usage = tier.usage().await.unwrap();
    assert!(usage.bytes.unwrap() <= usage.capacity.unwrap());
    let mut found = 0;
    for n in 0..1_000 {
        let name = format!("key {n}");
        if let Some(value) = value(&tier, &name).await {
            assert!(value.starts_with(&name));
            found += 1;
        }
    }
    assert_eq!(usage.entries, Some(found));
    let spilled = basket.0.lock().unwrap();
    assert_eq!(usage.evicted, spilled.len() as u64);
    assert!(
        spilled.iter().all(|(key, entry, left)| {
            left.cause == Cause::Evicted && entry.value.starts_with(key.bytes())
        })
    );
}

#[tokio::test]
async fn what_was_read_stays_when_room_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    for n in 0..20 {
        put(&tier, &format!("read {n}"), &filler("r", 500), 1).await;
        put(&tier, &format!("unread {n}"), &filler("u", 500), 1).await;
    }
    for n in 0..6_000u64 {
        if n % 100 == 0 {
            for n in 0..20 {
                assert!(value(&tier, &format!("read {n}")).await.is_some(), "{n}");
            }
        }
        put(&tier, &format!("filler {n}"), &filler("f", 500), 1).await;
    }
    assert!(tier.moved_and_put().0 > 0);
    for n in 0..20 {
        assert!(value(&tier, &format!("unread {n}")).await.is_none());
    }
}

#[tokio::test]
async fn moving_never_writes_more_than_half_of_what_is_put() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    for n in 0..8_000u64 {
        put(&tier, &format!("{n}"), &filler("f", 500), 1).await;
        // Everything is used: all of it would be moved.
        value(&tier, &format!("{n}")).await.unwrap();
    }
    let (moved, put) = tier.moved_and_put();
    assert!(moved > 0 && 2 * moved <= put, "{moved} of {put}");
}

#[tokio::test]
async fn what_stayed_its_time_is_handed_over_and_a_use_renews_the_stay() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let tier = open_at(config(dir.path()), &clock);
    let basket = Arc::new(Basket::default());
    tier.attach(basket.clone());
    let hold = |stay| Hold { now: clock.now(), stay: Stay::For(Duration::from_secs(stay)) };
    tier.put(&key("unused"), &entry("1", 1), hold(60), &Always).await.unwrap();
    tier.put(&key("used"), &entry("2", 1), hold(60), &Always).await.unwrap();
    let mut dying = entry("3", 1);
    dying.deadline = clock.now().after(Duration::from_secs(30));
    tier.put(&key("dying"), &dying, hold(3600), &Always).await.unwrap();
    clock.advance(Duration::from_secs(59));
    value(&tier, "used").await.unwrap();
    clock.advance(Duration::from_secs(1));
    let swept = tier.sweep(clock.now(), &NoneDead).await.unwrap();
    assert_eq!((swept.dropped, swept.spilled, swept.complete), (1, 1, true));
    assert_eq!(value(&tier, "unused").await, None);
    assert_eq!(value(&tier, "dying").await, None);
    assert_eq!(value(&tier, "used").await.unwrap(), "2");
    let spilled = basket.0.lock().unwrap();
    assert_eq!(spilled.len(), 1);
    assert_eq!((spilled[0].0.clone(), spilled[0].2.cause), (key("unused"), Cause::StayOver));
}

#[tokio::test]
async fn a_listing_has_every_entry_once() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    for n in 0..500 {
        let key = Key::new(if n % 2 == 0 { "even" } else { "" }, format!("{n}").as_bytes()).unwrap();
        tier.put(&key, &entry(filler("v", n), 1), hold(), &Always).await.unwrap();
    }
    for (namespace, expected) in [(None, 500), (Some("even"), 250), (Some(""), 250), (Some("none"), 0)] {
        let mut seen = std::collections::HashSet::new();
        let mut after = None;
        loop {
            let page = tier.list(namespace, after, 7).await.unwrap();
            for listed in page.entries {
                assert!(listed.entry.value.is_empty());
                assert_eq!(listed.size.to_string().as_bytes(), listed.key.bytes());
                assert!(seen.insert(listed.key));
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen.len(), expected, "{namespace:?}");
    }
}

#[tokio::test]
async fn a_closed_level_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    put(&tier, "a", "1", 1).await;
    tier.close().await.unwrap();
    assert!(matches!(tier.get(&key("a")).await, Err(tiercache_core::Error::Closed)));
    assert!(matches!(tier.remove(&key("a"), Generation::MAX).await, Err(tiercache_core::Error::Closed)));
    tier.close().await.unwrap();
    // The directory is free while the handle lives on.
    assert_eq!(value(&open(dir.path()), "a").await.unwrap(), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_written_by_many_never_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let tier = Arc::new(open(dir.path()));
    let clock = Arc::new(std::sync::atomic::AtomicU64::new(1));
    let tasks: Vec<_> = (0..4)
        .map(|task| {
            let (tier, clock) = (tier.clone(), clock.clone());
            tokio::spawn(async move {
                let mut last = 0;
                for n in 0..1_500u64 {
                    let generation = clock.fetch_add(1, Ordering::Relaxed);
                    let entry = entry(format!("{generation} {}", filler("x", 300)), generation);
                    if (n + task) % 5 == 0 {
                        tier.remove(&key("k"), Generation::new(generation)).await.unwrap();
                    } else {
                        tier.put(&key("k"), &entry, hold(), &Always).await.unwrap();
                    }
                    if let Some(found) = tier.get(&key("k")).await.unwrap() {
                        let text = std::str::from_utf8(&found.value).unwrap();
                        assert!(text.starts_with(&format!("{} ", found.generation.get())));
                        assert!(found.generation.get() >= last, "{found:?} after {last}");
                        last = found.generation.get();
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn puts_faster_than_the_disk_wait_for_room() {
    let dir = tempfile::tempdir().unwrap();
    let config = tiercache_disk::DiskConfig {
        max_size: 256 << 20,
        segment_size: Some(32 << 20),
        ..config(dir.path())
    };
    let tier = Arc::new(open_at(config, &ManualClock::new()));
    let tasks: Vec<_> = (0..96u64)
        .map(|n| {
            let tier = tier.clone();
            tokio::spawn(
                async move { put(&tier, &format!("{n}"), &filler(&format!("{n} "), 1 << 20), 1).await },
            )
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), Put::Stored);
    }
    for n in 0..96u64 {
        assert_eq!(value(&tier, &format!("{n}")).await.unwrap(), filler(&format!("{n} "), 1 << 20));
    }
}

#[tokio::test]
async fn sync_does_not_wait_for_a_segment_that_has_no_record_yet() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open(dir.path());
    for n in 0..4_000 {
        put(&tier, &format!("key {n}"), "v", 1).await;
    }
    tier.sync().await.unwrap();
    let mut rolls = 0;
    for n in 0..4_000 {
        let key = key(&format!("key {n}"));
        // A removal that would be the first of a new segment is not made inline.
        if tier.try_remove(key.as_ref(), Generation::new(2)).is_none() {
            rolls += 1;
            tokio::time::timeout(Duration::from_secs(10), tier.sync()).await.expect("no hang").unwrap();
            tier.remove(&key, Generation::new(2)).await.unwrap();
            tier.sync().await.unwrap();
        }
    }
    assert!(rolls > 0, "no segment was begun by a removal");
}
