//! Batches whose keys fare differently, and a server that is full, forgets scripts or may not write.

use std::time::Duration;

use crate::common::{HOLD, client, entry, key, of, open, put, value, within};
use redis::AsyncCommands;
use tiercache_core::tier::{Always, Put, PutItem, Removal};
use tiercache_core::{Entry, Error, Key, Result, Tier};
use tiercache_services::Redis;

async fn put_all(tier: &dyn Tier, items: &[(Key, Entry)]) -> Vec<Result<Put>> {
    let item = |(key, entry)| PutItem { key, entry, hold: HOLD, permit: &Always };
    let items: Vec<PutItem<'_>> = items.iter().map(|(key, entry)| item((key, entry))).collect();
    tier.put_many(&items).await
}

fn all<T: std::fmt::Debug>(answers: Vec<Result<T>>) -> Vec<T> {
    answers.into_iter().map(|answer| answer.expect("an answer")).collect()
}

fn is_wrong_type<T>(answer: &Result<T>) -> bool {
    let Err(Error::Unavailable { source, .. }) = answer else { return false };
    source.to_string().contains("WRONGTYPE")
}

#[tokio::test]
async fn each_key_of_a_batch_is_judged_by_what_stands_there_and_its_own_namespace() {
    let Some(server) = Redis::own() else { return };
    let (tier, other) = (open(&server.url()).await, open(&server.url()).await);
    let named = |namespace| Key::new(namespace, b"k").unwrap();
    for (name, generation) in [("same", 7), ("newer", 9), ("foreign", 1), ("older", 1)] {
        put(&*tier, name, generation, "value").await.unwrap();
    }
    let mut raw = client(&server.url()).await;
    let names: Vec<String> = raw.keys("tiercache:cold:*:foreign").await.unwrap();
    let () = raw.del(&names).await.unwrap();
    let () = raw.rpush(&names[0], "a list").await.unwrap();
    // Cleared by another process a moment ago: the script knows it, this process does not.
    other.clear(Some("cleared"), of(8)).await.unwrap();
    let keys = [
        key("same"),
        named("cleared"),
        key("foreign"),
        key("older"),
        named("other"),
        key("newer"),
        key("new"),
    ];
    let items: Vec<(Key, Entry)> = keys.iter().map(|key| (key.clone(), entry(7, "value"))).collect();
    let mut answers = put_all(&*tier, &items).await;
    assert!(is_wrong_type(&answers.remove(2)), "what is no text is nobody's to overwrite");
    use Put::{Stored, Superseded, Unchanged};
    assert_eq!(all(answers), [Unchanged, Superseded, Stored, Stored, Superseded, Stored]);
    assert_eq!(tier.get(&named("cleared")).await.unwrap(), None);
    for (at, generation) in [(0, 7), (3, 7), (4, 7), (5, 9), (6, 7)] {
        assert_eq!(tier.get(&keys[at]).await.unwrap(), Some(entry(generation, "value")), "{:?}", keys[at]);
    }

    let () = raw.del(&names).await.unwrap();
    let () = raw.rpush(&names[0], "a list").await.unwrap();
    let items: Vec<_> = keys.iter().map(|key| (key.clone(), of(8))).collect();
    let mut answers = tier.remove_many(&items).await;
    assert!(is_wrong_type(&answers.remove(2)));
    let over = |generation| Removal::Done { over: of(generation) };
    assert_eq!(all(answers), [over(7), over(0), over(7), over(7), Removal::Behind(of(9)), over(7)]);
    for (at, key) in keys.iter().enumerate().filter(|(at, _)| *at != 2) {
        assert_eq!(tier.get(key).await.unwrap().is_some(), at == 5, "{key:?}");
    }
}

#[tokio::test]
async fn what_needs_several_scripts_is_stored_whole() {
    let Some(server) = Redis::own() else { return };
    let tier = open(&server.url()).await;
    let item = |number: u64| {
        let namespace = ["", "a", "b c"][number as usize % 3];
        let size = if number == 100 { 3 << 20 } else { 8 << 10 };
        let key = Key::new(namespace, number.to_string().as_bytes()).unwrap();
        (key, Entry::new(vec![number as u8; size], of(number + 1), crate::common::T0))
    };
    let items: Vec<(Key, Entry)> = (0..600).map(item).collect();
    assert!(all(put_all(&*tier, &items).await).iter().all(|put| *put == Put::Stored));
    let keys: Vec<Key> = items.iter().map(|(key, _)| key.clone()).collect();
    for (found, (_, entry)) in all(tier.get_many(&keys).await).into_iter().zip(&items) {
        assert_eq!(found.as_ref(), Some(entry));
    }
    let removals: Vec<_> = keys.iter().map(|key| (key.clone(), of(700))).collect();
    for (at, removal) in all(tier.remove_many(&removals).await).into_iter().enumerate() {
        assert_eq!(removal, Removal::Done { over: of(at as u64 + 1) });
    }
    assert!(all(tier.get_many(&keys).await).iter().all(Option::is_none));
}

#[tokio::test]
async fn when_memory_is_full_each_key_of_a_batch_says_what_holds_for_it() {
    let Some(server) = Redis::start_with(&["--maxmemory", "4mb", "--maxmemory-policy", "noeviction"]) else {
        return;
    };
    let tier = open(&server.url()).await;
    let large = "x".repeat(100 << 10);
    put(&*tier, "newer", 200, "newer").await.unwrap();
    put(&*tier, "same", 150, "same").await.unwrap();
    let mut full = 1;
    while put(&*tier, &full.to_string(), full, &large).await.unwrap() == Put::Stored {
        full += 1;
        assert!(full < 60, "it is never full");
    }
    let items = [
        (key("absent"), entry(150, "value")),
        (key("newer"), entry(150, "value")),
        (key("1"), entry(150, "value")),
        (key("same"), entry(150, "same")),
    ];
    let answers = all(put_all(&*tier, &items).await);
    assert_eq!(answers, [Put::Full, Put::Superseded, Put::Full, Put::Unchanged]);
    assert_eq!(value(&*tier, "absent").await, None);
    assert_eq!(value(&*tier, "1").await.as_deref(), Some(large.as_str()), "it is as it was");
    let removals: Vec<_> = (1..full).map(|number| (key(&number.to_string()), of(150))).collect();
    for (number, removal) in (1..).zip(all(tier.remove_many(&removals).await)) {
        assert_eq!(removal, Removal::Done { over: of(number) });
    }
    for (name, generation) in [("1", 149), ("2", 1)] {
        assert_eq!(
            put(&*tier, name, generation, "late").await.unwrap(),
            Put::Superseded,
            "a mark stands there"
        );
    }
    let stored = async || all(put_all(&*tier, &items[..1]).await) == [Put::Stored];
    within(Duration::from_secs(2), "room", stored).await;
}

#[tokio::test]
async fn a_batch_is_made_whole_in_a_new_era_and_where_scripts_were_forgotten() {
    let Some(server) = Redis::own() else { return };
    let tier = open(&server.url()).await;
    let mut raw = client(&server.url()).await;
    let items = |generation| {
        ["a", "b"].map(|namespace| (Key::new(namespace, b"k").unwrap(), entry(generation, "value")))
    };
    for generation in 1..4 {
        let () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut raw).await.unwrap();
        if generation == 2 {
            let () = raw.del("{tiercache:cold}").await.unwrap();
        }
        let items = items(generation);
        assert_eq!(all(put_all(&*tier, &items).await), [Put::Stored, Put::Stored], "{generation}");
        let found = all(tier.get_many(&items.clone().map(|(key, _)| key)).await);
        assert_eq!(found, items.map(|(_, entry)| Some(entry)), "{generation}");
    }
}

#[tokio::test]
async fn a_server_that_may_not_write_any_more_is_left_for_another_connection() {
    let Some(server) = Redis::own() else { return };
    let tier = open(&server.url()).await;
    let mut raw = client(&server.url()).await;
    let own: u64 = redis::cmd("CLIENT").arg("ID").query_async(&mut raw).await.unwrap();
    let mut others = async || {
        let listed: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut raw).await.unwrap();
        let ids = listed.lines().filter_map(|line| line.strip_prefix("id=")?.split(' ').next()?.parse().ok());
        ids.filter(|&id| id != own).collect::<Vec<u64>>()
    };
    let items = [(key("a"), entry(1, "value")), (key("b"), entry(1, "value"))];
    assert_eq!(all(put_all(&*tier, &items).await), [Put::Stored, Put::Stored]);
    for removes in [false, true] {
        let before = others().await;
        assert_eq!(server.command("REPLICAOF 127.0.0.1 1"), "+OK");
        let newer = items.clone().map(|(key, _)| (key, entry(2, "newer")));
        if removes {
            let removals = newer.map(|(key, entry)| (key, entry.generation));
            assert!(tier.remove_many(&removals).await.iter().all(Result::is_err));
        } else {
            assert!(put_all(&*tier, &newer).await.iter().all(Result::is_err));
        }
        assert_eq!(server.command("REPLICAOF NO ONE"), "+OK");
        let left = async || others().await.iter().all(|id| !before.contains(id));
        within(Duration::from_secs(5), "the other connection", left).await;
        assert_eq!(value(&*tier, "a").await.as_deref(), Some("value"));
    }
}
