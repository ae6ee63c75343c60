//! Several processes, levels and servers.

use crate::common::{HOLD, T0, config, entry, era_of, get, hear, key, open, put, remove};
use tiercache_core::tier::{Always, FenceLog, Put, Removal, Scope};
use tiercache_core::{Error, Generation, Key, Stay, Tier};
use tiercache_memcached::{MemcachedConfig, MemcachedTier};
use tiercache_services::Memcached;

#[tokio::test]
async fn a_write_that_is_late_is_refused() {
    let Some(server) = Memcached::own() else { return };
    let (a, b) = (open(&[server.address()]).await, open(&[server.address()]).await);
    assert_eq!(put(&a, "k", 5, "old").await, Put::Stored);
    assert!(remove(&b, "k", 10).await.is_done());
    assert_eq!(put(&a, "k", 7, "late").await, Put::Superseded);
    assert_eq!(get(&a, "k").await, None);
    assert_eq!(put(&a, "k", 10, "new").await, Put::Stored);
    assert_eq!(get(&b, "k").await, Some(entry(10, "new")));
}

#[tokio::test]
async fn a_removal_tells_when_another_process_is_ahead() {
    let Some(server) = Memcached::own() else { return };
    let (a, b) = (open(&[server.address()]).await, open(&[server.address()]).await);
    // Below and above where an item's flags tell a generation exactly.
    for base in [0, 1 << 31, (1 << 40) + 7] {
        let name = format!("k{base}");
        let behind = |at| Removal::Behind(Generation::new(base + at));
        assert_eq!(put(&a, &name, base + 50, "ahead").await, Put::Stored);
        assert_eq!(remove(&b, &name, base + 20).await, behind(50));
        assert_eq!(remove(&b, &name, base + 50).await, behind(50));
        assert!(get(&b, &name).await.is_some());
        assert!(remove(&b, &name, base + 51).await.is_done());
        assert_eq!(remove(&a, &name, base + 51).await, behind(51));
        assert_eq!(put(&a, &name, base + 50, "late").await, Put::Superseded);
        assert_eq!(put(&a, &name, base + 51, "new").await, Put::Stored);
        assert_eq!(put(&b, &name, base + 51, "other").await, Put::Superseded, "same generation, other value");
        assert_eq!(put(&b, &name, base + 51, "new").await, Put::Unchanged);
        assert_eq!(put(&b, &name, base + 52, "newer").await, Put::Stored);
        assert_eq!(put(&a, &name, base + 51, "new").await, Put::Superseded);
        assert_eq!(get(&a, &name).await, Some(entry(base + 52, "newer")));
    }
}

#[tokio::test]
async fn what_one_process_clears_or_fences_is_gone_for_the_other() {
    let Some(server) = Memcached::own() else { return };
    let (a, b) = (open(&[server.address()]).await, open(&[server.address()]).await);
    assert_eq!(put(&a, "k", 7_000, "value").await, Put::Stored);
    let mut tagged = entry(7_001, "tagged");
    tagged.extras_mut().tags.insert("type".into(), "thumbnail".into());
    assert_eq!(a.put(&key("tagged"), &tagged, HOLD, &Always).await.unwrap(), Put::Stored);

    let tag = Scope::Tag { namespace: String::new(), name: "type".into(), value: "thumbnail".into() };
    let below = b.fence(&tag, Generation::new(3)).await.unwrap();
    assert!(below > Generation::new(7_001), "above what others put: {below:?}");
    assert_eq!(get(&b, "tagged").await, None);
    assert!(get(&b, "k").await.is_some(), "which has no such tag");
    hear(&a, 8_000).await;
    assert_eq!(get(&a, "tagged").await, None);
    tagged.generation = Generation::new(below.get() - 1);
    assert_eq!(a.put(&key("tagged"), &tagged, HOLD, &Always).await.unwrap(), Put::Superseded);

    b.clear(Some(""), below).await.unwrap();
    assert_eq!(get(&b, "k").await, None);
    hear(&a, below.get()).await;
    assert_eq!(get(&a, "k").await, None);
    assert_eq!(put(&a, "k", below.get() - 1, "late").await, Put::Superseded);
    assert_eq!(remove(&a, "k", below.get() - 1).await, Removal::Behind(below));
    assert_eq!(put(&a, "k", below.get(), "new").await, Put::Stored);
    assert!(open(&[server.address()]).await.remembered().contains(&(tag, below)));
}

#[tokio::test]
async fn what_another_process_clears_is_heard_of_within_a_second() {
    let Some(server) = Memcached::own() else { return };
    let (a, b) = (open(&[server.address()]).await, open(&[server.address()]).await);
    put(&a, "k", 1, "value").await;
    b.clear(None, Generation::new(9)).await.unwrap();
    let cleared = std::time::Instant::now();
    while get(&a, "k").await.is_some() {
        assert!(cleared.elapsed() < std::time::Duration::from_millis(1_500));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_lost_record_takes_everything_along_for_every_process() {
    let Some(server) = Memcached::own() else { return };
    let (a, b) = (open(&[server.address()]).await, open(&[server.address()]).await);
    put(&a, "k", 100_000, "value").await;
    assert!(get(&b, "k").await.is_some());
    assert_eq!(server.command("delete tiercache:cold:record"), "DELETED");
    hear(&a, 100_001).await;
    assert_eq!(get(&a, "k").await, None, "a miss, for what killed it may be lost too");
    assert_eq!(put(&a, "k", 3, "other").await, Put::Stored);
    hear(&b, 100_002).await;
    assert_eq!(get(&b, "k").await, Some(entry(3, "other")), "the other process follows");
    let later = open(&[server.address()]).await.profile().last_generation;
    assert!(later >= Generation::new(100_000), "generations go on: {later:?}");
}

#[tokio::test]
async fn what_stands_in_the_place_of_the_record_is_none() {
    let Some(server) = Memcached::own() else { return };
    let a = open(&[server.address()]).await;
    put(&a, "k", 1, "value").await;
    assert_eq!(server.command("set tiercache:cold:record 0 0 7\r\ngarbage"), "STORED");
    hear(&a, 2).await;
    assert_eq!(get(&a, "k").await, None);
    assert_eq!(put(&a, "k", 3, "new").await, Put::Stored);
    assert_eq!(get(&open(&[server.address()]).await, "k").await, Some(entry(3, "new")));
}

#[tokio::test]
async fn a_damaged_copy_is_a_miss_and_removed() {
    let Some(server) = Memcached::own() else { return };
    let a = open(&[server.address()]).await;
    put(&a, "k", 1, "value").await;
    let era = era_of(&server);
    let name = format!("tiercache:cold:{era}:e:0::k");
    assert_eq!(server.command(&format!("append {name} 0 0 1\r\n!")), "STORED");
    assert_eq!(get(&a, "k").await, None);
    assert_eq!(server.command(&format!("mg {name}")), "EN", "removed");
    assert_eq!(a.usage().await.unwrap().damaged, 1);
}

/// Behaviour 76.
#[tokio::test]
async fn two_megabytes_are_overwritten_by_five_bytes_and_deleted() {
    let Some(server) = Memcached::start_with(&["-I", "3m"]) else { return };
    let tier = open(&[server.address()]).await;
    let large = entry(1, vec![7; 2 << 20]);
    assert_eq!(tier.put(&key("k"), &large, HOLD, &Always).await.unwrap(), Put::Stored);
    assert!(get(&tier, "k").await == Some(large));
    assert_eq!(put(&tier, "k", 2, "12345").await, Put::Stored);
    assert_eq!(get(&tier, "k").await, Some(entry(2, "12345")));
    assert!(remove(&tier, "k", 3).await.is_done());
    assert_eq!(get(&tier, "k").await, None);
}

#[tokio::test]
async fn what_the_level_says_it_takes_it_takes() {
    let Some(server) = Memcached::own() else { return };
    let tier = open(&[server.address()]).await;
    let limit = tier.profile().max_entry_bytes.unwrap();
    assert!((1_000_000..1 << 20).contains(&limit), "{limit}");
    for name in ["k".to_owned(), "k".repeat(200), "k".repeat(16_000)] {
        let longest = limit as usize - 37 - name.len();
        let [fits, exceeds] = [longest, longest + 1].map(|len| entry(1, vec![1; len]));
        assert_eq!(tier.put(&key(&name), &exceeds, HOLD, &Always).await.unwrap(), Put::TooLarge);
        assert_eq!(get(&tier, &name).await, None);
        assert_eq!(tier.put(&key(&name), &fits, HOLD, &Always).await.unwrap(), Put::Stored);
        assert!(get(&tier, &name).await == Some(fits));
    }
}

/// Behaviour 77.
#[tokio::test]
async fn hot_and_cold_on_one_server_do_not_touch_each_other() {
    let Some(server) = Memcached::own() else { return };
    let open = async |prefix: &str, level: &str| {
        let config = MemcachedConfig { prefix: prefix.to_owned(), ..config(&[server.address()]) };
        MemcachedTier::open(config, level).await.unwrap()
    };
    let (hot, cold, other) =
        (open("app", "hot").await, open("app", "cold").await, open("other", "cold").await);
    for (generation, tier) in (1..).zip([&hot, &cold, &other]) {
        put(tier, "k", generation, "value").await;
    }
    cold.clear(None, Generation::new(1_000)).await.unwrap();
    let found = [get(&hot, "k").await, get(&cold, "k").await, get(&other, "k").await];
    assert_eq!(found, [Some(entry(1, "value")), None, Some(entry(3, "value"))]);
    assert!(remove(&other, "k", 1_000).await.is_done());
    assert!(get(&hot, "k").await.is_some());
}

#[tokio::test]
async fn the_server_is_told_when_an_entry_ends_and_never_too_early() {
    let Some(server) = Memcached::own() else { return };
    let tier = open(&[server.address()]).await;
    const DAY: u64 = 86_400;
    for (generation, seconds) in (1..).zip([1, 60, 30 * DAY - 1, 30 * DAY, 30 * DAY + 1, 365 * DAY]) {
        let mut entry = entry(generation, "value");
        entry.deadline = T0.after_millis(seconds * 1_000);
        tier.put(&key("k"), &entry, HOLD, &Always).await.unwrap();
        let left = server.command(&format!("mg tiercache:cold:{}:e:0::k t", era_of(&server)));
        let left: u64 = left.strip_prefix("HD t").unwrap().parse().unwrap();
        // The server's second and ours change at different times.
        assert!((seconds..=seconds + 2).contains(&left), "{seconds}: {left}");
    }
    for (generation, millis) in (100..).zip([20_000 * DAY * 1_000, u64::MAX]) {
        let mut entry = entry(generation, "value");
        entry.deadline = T0.after_millis(millis);
        tier.put(&key("k"), &entry, HOLD, &Always).await.unwrap();
        let left = server.command(&format!("mg tiercache:cold:{}:e:0::k t", era_of(&server)));
        assert_eq!(left, "HD t-1", "never");
    }
}

/// Behaviour 78.
#[tokio::test]
async fn long_times_and_long_or_odd_keys_work() {
    let Some(server) = Memcached::own() else { return };
    let tier = open(&[server.address()]).await;
    let long = "k".repeat(251);
    for name in ["k", &long, "a key with blanks", "line\r\nflush_all\r\n"] {
        for (generation, days) in (1..).zip([29, 30, 31, 400, 20_000]) {
            let mut entry = entry(generation, name);
            entry.deadline = T0.after_millis(days * 86_400_000 + 1);
            let hold = tiercache_core::tier::Hold { now: T0, stay: Stay::from_millis(u64::MAX) };
            assert_eq!(tier.put(&key(name), &entry, hold, &Always).await.unwrap(), Put::Stored);
            assert_eq!(get(&tier, name).await, Some(entry), "{name:?} for {days} days");
        }
    }
}

#[tokio::test]
async fn another_server_takes_its_share_and_no_more() {
    let Some(servers) = (0..4).map(|_| Memcached::own()).collect::<Option<Vec<_>>>() else { return };
    let all: Vec<&str> = servers.iter().map(|server| server.address()).collect();
    let count = async |tier: &MemcachedTier| {
        let mut found = 0;
        for number in 0..400 {
            if let Some(entry) = get(tier, &format!("k{number}")).await {
                assert_eq!(entry.value, format!("{number}"));
                found += 1;
            }
        }
        found
    };
    let three = open(&all[..3]).await;
    for number in 0..400 {
        put(&three, &format!("k{number}"), 1, &number.to_string()).await;
    }
    assert_eq!(count(&three).await, 400);
    let four = open(&all).await;
    let stayed = count(&four).await;
    assert!((240..360).contains(&stayed), "about three quarters stay where they are: {stayed}");

    // What moves over to the fourth and is changed there must not come back as it was when the fourth goes.
    for number in 0..400 {
        put(&four, &format!("k{number}"), 2, "changed").await;
    }
    let again = open(&all[..3]).await;
    for number in 0..400 {
        assert_ne!(get(&again, &format!("k{number}")).await.map(|entry| entry.generation.get()), Some(1));
    }
}

#[tokio::test]
async fn a_process_that_divides_keys_among_other_servers_is_shut_out() {
    let Some(servers) = (0..2).map(|_| Memcached::own()).collect::<Option<Vec<_>>>() else { return };
    let old = open(&[servers[0].address()]).await;
    put(&old, "k", 1, "value").await;
    let new = open(&[servers[0].address(), servers[1].address()]).await;
    let refused = old.remove(&key("k"), Generation::new(2)).await.unwrap_err();
    assert!(matches!(refused, Error::Unavailable { .. }), "{refused}");
    assert_eq!(put(&new, "k", 5, "new").await, Put::Stored);
    assert_eq!(get(&new, "k").await, Some(entry(5, "new")));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let Err(Error::Unavailable { source, .. }) = MemcachedTier::open(config(&["127.0.0.1:1"]), "cold").await
    else {
        panic!("a server that may come back was not called away");
    };
    let told = source.to_string();
    assert!(told.contains("127.0.0.1:1") && told.contains("refused"), "{told}");
}

#[tokio::test]
async fn a_namespace_of_any_name_is_a_wall() {
    let Some(server) = Memcached::own() else { return };
    let tier = open(&[server.address()]).await;
    let keys = [("", "1:ab"), ("a", "b"), ("ab", ""), ("", "#ab")];
    let keys: Vec<Key> =
        keys.iter().filter_map(|(space, name)| Key::new(space, name.as_bytes()).ok()).collect();
    for (generation, key) in (1..).zip(&keys) {
        tier.put(key, &entry(generation, "value"), HOLD, &Always).await.unwrap();
    }
    for (generation, key) in (1..).zip(&keys) {
        assert_eq!(tier.get(key).await.unwrap().unwrap().generation, Generation::new(generation));
    }
}
