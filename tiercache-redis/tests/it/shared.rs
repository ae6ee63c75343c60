//! Several processes on one server, and a server that loses what it was told.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{HOLD, T0, client, entry, key, of, open, open_at, put, value, within};
use redis::AsyncCommands;
use tiercache_core::tier::{Always, Counting, Dead, FenceLog, Hold, Listing, Put, Removal, Scope};
use tiercache_core::{Entry, Error, Generation, Key, KeyRef, Level, Stay, Tier, Timestamp};
use tiercache_services::Redis;

/// What two processes see of one another is a moment old at most.
const SOON: Duration = Duration::from_millis(1_500);

struct Nothing;

impl Dead for Nothing {
    fn is_dead(&self, _: KeyRef<'_>, _: &Entry) -> bool {
        false
    }
}

#[tokio::test]
async fn processes_see_each_other_and_the_higher_generation_wins() {
    let Some(server) = Redis::own() else { return };
    let (a, b) = (open(&server.url()).await, open(&server.url()).await);
    assert_eq!(put(&*a, "k", 5, "five").await.unwrap(), Put::Stored);
    assert_eq!(value(&*b, "k").await.as_deref(), Some("five"));
    assert_eq!(put(&*b, "k", 4, "four").await.unwrap(), Put::Superseded);
    assert_eq!(put(&*b, "k", 5, "another five").await.unwrap(), Put::Superseded);
    assert_eq!(put(&*b, "k", 5, "five").await.unwrap(), Put::Unchanged);
    assert_eq!(b.remove(&key("k"), of(5)).await.unwrap(), Removal::Behind(of(5)));
    assert_eq!(value(&*a, "k").await.as_deref(), Some("five"));
    assert!(b.remove(&key("k"), of(6)).await.unwrap().is_done());
    assert_eq!(value(&*a, "k").await, None);
    assert_eq!(put(&*a, "k", 5, "late").await.unwrap(), Put::Superseded, "the mark refuses it");
    assert_eq!(a.remove(&key("k"), of(6)).await.unwrap(), Removal::Behind(of(6)));
    assert_eq!(put(&*a, "k", 6, "six").await.unwrap(), Put::Stored);
    let later = open(&server.url()).await;
    assert!(later.profile().last_generation >= of(6));
}

#[tokio::test]
async fn a_mark_of_removal_leaves_by_itself_and_an_entry_not_too_early() {
    let Some(server) = Redis::own() else { return };
    let tier = open(&server.url()).await;
    tier.remove(&key("removed"), of(5)).await.unwrap();
    let hold = |millis| Hold { now: T0, stay: Stay::from_millis(millis) };
    tier.put(&key("stays"), &entry(5, "value"), hold(90_000), &Always).await.unwrap();
    tier.put(&key("ever"), &entry(5, "value"), HOLD, &Always).await.unwrap();
    tier.put(&key("short"), &entry(5, "value"), hold(30), &Always).await.unwrap();
    let mut raw = client(&server.url()).await;
    let names: Vec<String> = raw.keys("tiercache:cold:*").await.unwrap();
    for (key, low, high) in [("removed", 55_000, 60_000), ("stays", 85_000, 90_000), ("ever", -1, -1)] {
        let name = names.iter().find(|name| name.ends_with(key)).expect("it is there");
        let left: i64 = raw.pttl(name).await.unwrap();
        assert!((low..=high).contains(&left), "{key}: {left}");
    }
    within(SOON, "expiry", async || value(&*tier, "short").await.is_none()).await;
}

#[tokio::test]
async fn a_wiped_server_means_misses_and_generations_go_on() {
    let Some(server) = Redis::own() else { return };
    let (a, b) = (open(&server.url()).await, open(&server.url()).await);
    put(&*a, "k", 70_000, "value").await.unwrap();
    put(&*b, "other", 1, "value").await.unwrap();
    server.wipe();
    assert_eq!(value(&*a, "k").await, None);
    assert_eq!(put(&*a, "k", 70_001, "next").await.unwrap(), Put::Stored);
    assert_eq!(value(&*a, "k").await.as_deref(), Some("next"));
    within(SOON, "b follows", async || value(&*b, "k").await.as_deref() == Some("next")).await;
    assert_eq!(put(&*b, "k", 1, "old").await.unwrap(), Put::Superseded);
    assert!(open(&server.url()).await.profile().last_generation >= of(70_001));
}

#[tokio::test]
async fn when_the_record_alone_is_evicted_everything_old_is_a_miss() {
    let Some(server) = Redis::own() else { return };
    let (a, b) = (open(&server.url()).await, open(&server.url()).await);
    put(&*a, "k", 5, "five").await.unwrap();
    put(&*a, "other", 5, "five").await.unwrap();
    a.fence(&Scope::Namespace("x".into()), of(6)).await.unwrap();
    let mut raw = client(&server.url()).await;
    let () = raw.del("{tiercache:cold}").await.unwrap();
    // A process that opens now begins a new era; what changes something is in it at once.
    let c = open(&server.url()).await;
    assert_eq!(value(&*c, "k").await, None);
    assert_eq!(put(&*c, "k", 3, "three").await.unwrap(), Put::Stored);
    assert!(b.remove(&key("k"), of(4)).await.unwrap().is_done());
    assert_eq!(value(&*c, "k").await, None, "the removal was made in the new era");
    within(SOON, "a follows", async || value(&*a, "other").await.is_none()).await;
    assert!(
        open(&server.url()).await.profile().last_generation >= of(5),
        "those who live tell how far they were"
    );
    // What the old era left is given back.
    let left = async |raw: &mut redis::aio::MultiplexedConnection| {
        let names: Vec<String> = raw.keys("tiercache:cold:*other").await.unwrap();
        names.len()
    };
    assert_eq!(left(&mut raw).await, 1);
    c.sweep(T0, &Nothing).await.unwrap();
    assert_eq!(left(&mut raw).await, 0);
}

#[tokio::test]
async fn a_server_that_comes_back_older_means_misses() {
    let Some(server) = Redis::own() else { return };
    let tier = open(&server.url()).await;
    put(&*tier, "kept", 1, "value").await.unwrap();
    put(&*tier, "k", 1, "old").await.unwrap();
    assert_eq!(server.command("SAVE"), "+OK");
    // Everything the server confirmed is in the snapshot: it is believed.
    server.restart();
    within(Duration::from_secs(5), "the way back", async || tier.get(&key("k")).await.is_ok()).await;
    assert_eq!(value(&*tier, "kept").await.as_deref(), Some("value"));
    // It lacks a removal.
    tier.remove(&key("k"), of(2)).await.unwrap();
    server.restart();
    within(Duration::from_secs(5), "the way back", async || tier.get(&key("k")).await.is_ok()).await;
    assert_eq!(value(&*tier, "k").await, None);
    assert_eq!(value(&*tier, "kept").await, None, "nobody can tell what else is missing");
    assert_eq!(put(&*tier, "k", 3, "new").await.unwrap(), Put::Stored);
    assert_eq!(value(&*tier, "k").await.as_deref(), Some("new"));
}

#[tokio::test]
async fn a_fence_of_one_process_reaches_the_reads_of_another() {
    let Some(server) = Redis::own() else { return };
    let (a, b) = (open(&server.url()).await, open(&server.url()).await);
    let mut tagged = entry(5, "tagged");
    tagged.extras_mut().tags = [("type".to_owned(), "image".to_owned())].into();
    a.put(&key("tagged"), &tagged, HOLD, &Always).await.unwrap();
    put(&*a, "plain", 5, "plain").await.unwrap();
    let scope = Scope::Tag { namespace: String::new(), name: "type".into(), value: "image".into() };
    let fenced = b.fence(&scope, of(6)).await.unwrap();
    assert!(fenced > of(5), "above everything there may be");
    within(SOON, "the fence", async || value(&*a, "tagged").await.is_none()).await;
    assert_eq!(value(&*a, "plain").await.as_deref(), Some("plain"));
    assert_eq!(a.put(&key("tagged"), &tagged, HOLD, &Always).await.unwrap(), Put::Superseded);
    assert_eq!(a.remembered(), [(scope.clone(), fenced)]);
    assert_eq!(open(&server.url()).await.remembered(), [(scope, fenced)]);
}

#[tokio::test]
async fn too_many_fences_become_one_of_everything() {
    let Some(server) = Redis::own() else { return };
    let tier = open(&server.url()).await;
    put(&*tier, "k", 5, "value").await.unwrap();
    let mut raw = client(&server.url()).await;
    let many: Vec<(String, u64)> = (0..10_000).map(|number| (format!("fn{number}"), 3)).collect();
    let () = raw.hset_multiple("{tiercache:cold}", &many).await.unwrap();
    let fenced = tier.fence(&Scope::Namespace("x".into()), of(6)).await.unwrap();
    assert_eq!(tier.remembered(), [(Scope::All, fenced)]);
    assert_eq!(value(&*tier, "k").await, None);
    put(&*tier, "k", fenced.get(), "next").await.unwrap();
    assert_eq!(value(&*tier, "k").await.as_deref(), Some("next"));
}

#[tokio::test]
async fn levels_and_applications_on_one_server_do_not_touch_each_other() {
    let Some(server) = Redis::own() else { return };
    let mut tiers = vec![open_at(&server.url(), Level::Hot).await, open_at(&server.url(), Level::Cold).await];
    for prefix in ["tiercache2", "tiercache/hot", "t"] {
        let config =
            tiercache_redis::RedisConfig { prefix: prefix.into(), ..crate::common::config(&server.url()) };
        tiers.push(Arc::new(tiercache_redis::RedisTier::open(config, Level::Hot).await.unwrap()));
    }
    for (number, tier) in tiers.iter().enumerate() {
        assert_eq!(put(&**tier, "k", 5, &number.to_string()).await.unwrap(), Put::Stored);
    }
    tiers[0].clear(None, of(9)).await.unwrap();
    tiers[0].sweep(T0, &Nothing).await.unwrap();
    for (number, tier) in tiers.iter().enumerate() {
        assert_eq!(value(&**tier, "k").await, (number > 0).then(|| number.to_string()));
        let page = tier.list(None, None, 10).await.unwrap();
        assert_eq!(page.entries.len(), usize::from(number > 0));
    }
}

#[tokio::test]
async fn what_was_cleared_gives_its_bytes_back_with_the_sweeps() {
    let Some(server) = Redis::own() else { return };
    let tier = open(&server.url()).await;
    for number in 0..500u64 {
        let key = Key::new(["a", "b c"][number as usize % 2], number.to_string().as_bytes()).unwrap();
        tier.put(&key, &entry(number + 1, "value"), HOLD, &Always).await.unwrap();
    }
    tier.clear(Some("b c"), of(401)).await.unwrap();
    let mut raw = client(&server.url()).await;
    assert_eq!(dbsize(&mut raw).await, 501);
    for _ in 0..4 {
        tier.sweep(T0, &Nothing).await.unwrap();
    }
    assert_eq!(dbsize(&mut raw).await, 301, "the record and what was not below");
    assert_eq!(tier.list(Some("b c"), None, 1_000).await.unwrap().entries.len(), 50);
}

#[tokio::test]
async fn damaged_and_foreign_values_are_misses_and_removed() {
    let Some(server) = Redis::own() else { return };
    let tier = open(&server.url()).await;
    let mut raw = client(&server.url()).await;
    put(&*tier, "k", 5, "value").await.unwrap();
    put(&*tier, "other", 5, "value").await.unwrap();
    let names: Vec<String> = raw.keys("tiercache:cold:*:k").await.unwrap();
    let name = &names[0];
    let whole: Vec<u8> = raw.get(name).await.unwrap();
    let other: Vec<u8> = raw.get(name.replace(":k", ":other")).await.unwrap();
    let flipped = (0..whole.len()).map(|at| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        bytes
    });
    let cut = (0..whole.len()).map(|at| whole[..at].to_vec());
    let mut damaged = 0;
    for bytes in flipped.chain(cut).chain([other, vec![0; 100]]) {
        let () = raw.set(name, &bytes).await.unwrap();
        assert_eq!(value(&*tier, "k").await, None, "{bytes:?}");
        let left: bool = raw.exists(name).await.unwrap();
        // A mark of removal is what some of these look like.
        damaged += u64::from(!left);
    }
    assert!(damaged > 80, "{damaged}");
    assert_eq!(tier.usage().await.unwrap().damaged, damaged);
    assert_eq!(put(&*tier, "k", 6, "next").await.unwrap(), Put::Stored);
    assert_eq!(value(&*tier, "k").await.as_deref(), Some("next"));
    let () = raw.del(name).await.unwrap();
    let () = raw.rpush(name, "a list").await.unwrap();
    assert_eq!(value(&*tier, "k").await, None);
    assert_eq!(put(&*tier, "k", 7, "again").await.unwrap(), Put::Stored);
}

#[tokio::test]
async fn when_memory_is_full_puts_say_so_and_removals_work() {
    let Some(server) = Redis::start_with(&["--maxmemory", "3mb", "--maxmemory-policy", "noeviction"]) else {
        return;
    };
    let tier = open(&server.url()).await;
    let large = "x".repeat(100 << 10);
    let mut full = 0;
    for number in 1..60 {
        if put(&*tier, &number.to_string(), number, &large).await.unwrap() == Put::Full {
            full = number;
            break;
        }
    }
    assert!(full > 1, "it is never full");
    assert_eq!(value(&*tier, &full.to_string()).await, None);
    assert_eq!(value(&*tier, "1").await.as_deref(), Some(large.as_str()));
    assert_eq!(put(&*tier, "1", 100, &large).await.unwrap(), Put::Full);
    tier.fence(&Scope::Namespace("x".into()), of(100)).await.expect("invalidating needs no room");
    tier.clear(Some("x"), of(100)).await.expect("invalidating needs no room");
    // Generations far above what the record covers.
    for number in 1..full {
        assert!(tier.remove(&key(&number.to_string()), of(1 << 40)).await.unwrap().is_done());
    }
    within(SOON, "room", async || put(&*tier, "k", 1 << 40, &large).await.unwrap() == Put::Stored).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_add_up_exactly_and_keep_their_range_and_deadline() {
    let Some(server) = Redis::own() else { return };
    let (a, b) = (open(&server.url()).await, open(&server.url()).await);
    let never = Timestamp::NEVER;
    let tasks: Vec<_> = (0..8)
        .map(|number| {
            let tier = if number % 2 == 0 { a.clone() } else { b.clone() };
            tokio::spawn(async move {
                for _ in 0..50 {
                    tier.add(&key("n"), 1, 100, never, T0).await.expect("adds");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(a.counter(&key("n"), T0).await.unwrap(), Some(500));
    // The range, to the last number.
    assert_eq!(a.add(&key("top"), i64::MAX - 1, 0, never, T0).await.unwrap(), i64::MAX - 1);
    assert_eq!(a.add(&key("top"), 1, 0, never, T0).await.unwrap(), i64::MAX);
    assert!(matches!(a.add(&key("top"), 1, 0, never, T0).await, Err(Error::InvalidOption { .. })));
    assert_eq!(b.counter(&key("top"), T0).await.unwrap(), Some(i64::MAX));
    assert_eq!(a.add(&key("low"), -1, i64::MIN + 1, never, T0).await.unwrap(), i64::MIN);
    assert!(matches!(a.add(&key("gone"), 1, i64::MAX, never, T0).await, Err(Error::InvalidOption { .. })));
    assert_eq!(a.counter(&key("gone"), T0).await.unwrap(), None, "nothing was begun");
    // The deadline is that of the beginning, at the server, too.
    let deadline = T0.after_millis(60_000);
    a.add(&key("d"), 1, 0, deadline, T0).await.unwrap();
    a.add(&key("d"), 1, 0, deadline.after_millis(1_000_000), T0).await.unwrap();
    assert_eq!(b.counter(&key("d"), T0.after_millis(59_999)).await.unwrap(), Some(2));
    assert_eq!(b.counter(&key("d"), deadline).await.unwrap(), None);
    let mut raw = client(&server.url()).await;
    let names: Vec<String> = raw.keys("tiercache:cold:*:c::d").await.unwrap();
    assert!(raw.pttl::<_, i64>(&names[0]).await.unwrap() <= 60_000);
    assert_eq!(a.add(&key("d"), 1, 10, never, deadline).await.unwrap(), 11, "a dead one begins again");
    assert_eq!(raw.pttl::<_, i64>(&names[0]).await.unwrap(), -1);
    // Removing and clearing.
    assert!(a.remove_counter(&key("d")).await.unwrap());
    assert!(!a.remove_counter(&key("d")).await.unwrap());
    let elsewhere = Key::new("x", b"n").unwrap();
    a.add(&elsewhere, 1, 0, never, T0).await.unwrap();
    a.clear(Some(""), of(5)).await.unwrap();
    assert_eq!(a.counter(&key("n"), T0).await.unwrap(), None);
    assert_eq!(b.add(&key("n"), 1, 0, never, T0).await.unwrap(), 1, "another process does not go on with it");
    assert_eq!(a.add(&key("n"), 1, 0, never, T0).await.unwrap(), 2);
    assert_eq!(a.counter(&elsewhere, T0).await.unwrap(), Some(1));
    // A process that has counted less far clears as well.
    for namespace in [Some("x"), None, Some("x")] {
        a.clear(namespace, of(3)).await.unwrap();
        assert_eq!(a.counter(&elsewhere, T0).await.unwrap(), None, "{namespace:?}");
        assert_eq!(b.add(&elsewhere, 1, 0, never, T0).await.unwrap(), 1, "{namespace:?}");
    }
    assert_eq!(value(&*a, "n").await, None, "a counter is no entry");
    assert!(a.list(None, None, 10).await.unwrap().entries.is_empty());
}

#[tokio::test]
async fn a_listing_that_is_not_under_way_says_so() {
    let Some(server) = Redis::own() else { return };
    let tier = open(&server.url()).await;
    for after in [vec![], vec![1, 2, 3], 77u64.to_le_bytes().to_vec()] {
        assert!(matches!(tier.list(None, Some(after), 10).await, Err(Error::InvalidOption { .. })));
    }
    assert_eq!(tier.profile().last_generation, Generation::ZERO);
}

async fn dbsize(raw: &mut redis::aio::MultiplexedConnection) -> u64 {
    redis::cmd("DBSIZE").query_async(raw).await.expect("an answer")
}
