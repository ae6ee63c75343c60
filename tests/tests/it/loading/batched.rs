//! Single loads and refreshes that become one call.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tiercache_core::testing::{FaultTier, ManualClock, MemoryTier, Op};
use tiercache_core::{BatchLoader, CacheManager, Eager, Error, LoadOptions, Raw};
use tiercache_tests::rig::{builder, get, idle, ram};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::{in_ram, origin_error};

/// An origin that is asked for many keys: `k1` has `v1`, `none…` has nothing.
#[derive(Debug)]
struct Table {
    calls: Mutex<Vec<Vec<String>>>,
    begun: Semaphore,
    gate: Semaphore,
}

impl Table {
    fn new() -> Arc<Self> {
        let gate = Semaphore::new(Semaphore::MAX_PERMITS);
        Arc::new(Self { calls: Mutex::default(), begun: Semaphore::new(0), gate })
    }

    fn hold(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    /// What it was asked for, sorted, call by call.
    fn calls(&self) -> Vec<Vec<String>> {
        self.calls.lock().unwrap().clone()
    }

    async fn find(self: Arc<Self>, mut keys: Vec<String>) -> Result<HashMap<String, String>, &'static str> {
        keys.sort();
        let version = {
            let mut calls = self.calls.lock().unwrap();
            calls.push(keys.clone());
            calls.len()
        };
        self.begun.add_permits(1);
        self.gate.acquire().await.unwrap().forget();
        if keys.iter().any(|key| key == "bad") {
            return Err("the table is gone");
        }
        assert!(!keys.iter().any(|key| key == "panic"), "told to panic");
        let found = keys.into_iter().filter(|key| !key.starts_with("none"));
        Ok(found.map(|key| (key.clone(), format!("{key} of call {version}"))).collect())
    }

    fn loader(self: &Arc<Self>, cache: &CacheManager, options: LoadOptions) -> BatchLoader<Raw, String> {
        let table = self.clone();
        cache.batch_loader(options, move |keys| table.clone().find(keys))
    }
}

type Asked = tokio::task::JoinHandle<Result<Option<Bytes>, Error>>;

fn ask(loader: &BatchLoader<Raw, String>, key: &str) -> Asked {
    let (loader, key) = (loader.clone(), key.to_owned());
    tokio::spawn(async move { loader.get(key).await })
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_within_the_window_is_one_call() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let table = Table::new();
    let loader = table.loader(&cache, LoadOptions::new());
    let callers: Vec<_> = (0..300).map(|number| ask(&loader, &format!("k{}", number % 100))).collect();
    for (number, caller) in callers.into_iter().enumerate() {
        let value = caller.await.unwrap().unwrap().unwrap();
        assert_eq!(value, format!("k{} of call 1", number % 100));
    }
    let calls = table.calls();
    assert_eq!((calls.len(), calls[0].len()), (1, 100), "each key once");
    let later = ask(&loader, "later");
    assert_eq!(later.await.unwrap().unwrap().unwrap(), "later of call 2");
    let stats = cache.stats().await.unwrap();
    assert_eq!((stats.loads, stats.in_flight), (101, 0));
}

#[tokio::test(start_paused = true)]
async fn a_full_batch_waits_no_longer() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let table = Table::new();
    let loader = table.loader(&cache, LoadOptions::new());
    let loader = loader.window(Duration::from_secs(60)).max_batch(NonZeroUsize::new(3).unwrap());
    let began = Instant::now();
    let callers: Vec<_> = (0..7).map(|number| ask(&loader, &format!("k{number}"))).collect();
    idle().await;
    assert_eq!(table.calls().iter().map(Vec::len).collect::<Vec<_>>(), [3, 3]);
    for caller in callers {
        assert!(caller.await.unwrap().unwrap().is_some());
    }
    assert_eq!(table.calls().len(), 3);
    assert_eq!(began.elapsed().as_secs(), 60, "the last one waited for others");
}

#[tokio::test(start_paused = true)]
async fn with_no_window_a_batch_is_what_is_asked_for_at_once() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let table = Table::new();
    let loader = table.loader(&cache, LoadOptions::new()).window(Duration::ZERO);
    let began = Instant::now();
    let (a, b) = tokio::join!(loader.get("a".into()), loader.get("b".into()));
    assert_eq!((a.unwrap().unwrap(), b.unwrap().unwrap()), ("a of call 1".into(), "b of call 1".into()));
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_harms_nobody() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let table = Table::new();
    table.hold();
    let loader = table.loader(&cache, LoadOptions::new());
    // The first of a batch, before its window is over.
    let (first, second) = (ask(&loader, "a"), ask(&loader, "b"));
    idle().await;
    first.abort();
    table.begun.acquire().await.unwrap().forget();
    // And one whose load is under way.
    let third = ask(&loader, "c");
    table.begun.acquire().await.unwrap().forget();
    third.abort();
    idle().await;
    table.gate.add_permits(2);
    assert_eq!(second.await.unwrap().unwrap().unwrap(), "b of call 1");
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(get(&cache, "a").await.unwrap(), "a of call 1", "kept, though nobody waits");
    assert_eq!(get(&cache, "c").await.unwrap(), "c of call 2");
    assert_eq!(cache.stats().await.unwrap().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn refreshes_are_one_call_behind_the_answers() {
    let (cache, clock) = in_ram(|builder| builder).await;
    let table = Table::new();
    let ttl = Duration::from_secs(100);
    let loader = table.loader(&cache, LoadOptions::new().ttl(ttl).eager(Eager::After(0.5)));
    let names: Vec<String> = (0..10).map(|number| format!("k{number}")).collect();
    let callers: Vec<_> = names.iter().map(|name| ask(&loader, name)).collect();
    for caller in callers {
        caller.await.unwrap().unwrap();
    }
    clock.advance(ttl * 6 / 10);
    let began = Instant::now();
    for name in names.iter().chain(&names) {
        let answer = loader.get(name.clone()).await.unwrap().unwrap();
        assert_eq!(answer, format!("{name} of call 1"));
    }
    assert_eq!(began.elapsed(), Duration::ZERO, "nobody waits");
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(table.calls()[1..], [names]);
    assert_eq!(get(&cache, "k3").await.unwrap(), "k3 of call 2");
    assert_eq!(cache.stats().await.unwrap().refreshes, 10);
}

#[tokio::test(start_paused = true)]
async fn stale_values_answer_while_their_batch_is_loaded() {
    let (cache, clock) = in_ram(|builder| builder).await;
    let table = Table::new();
    let options =
        LoadOptions::new().ttl(Duration::from_secs(10)).stale_while_revalidate(Duration::from_secs(1_000));
    let loader = table.loader(&cache, options);
    for caller in [ask(&loader, "a"), ask(&loader, "b")] {
        caller.await.unwrap().unwrap();
    }
    clock.advance(Duration::from_secs(20));
    table.hold();
    for (caller, name) in [(ask(&loader, "a"), "a"), (ask(&loader, "b"), "b")] {
        assert_eq!(caller.await.unwrap().unwrap().unwrap(), format!("{name} of call 1"));
    }
    idle().await;
    assert_eq!(table.calls()[1..], [["a", "b"]]);
    table.gate.add_permits(1);
    idle().await;
    assert_eq!(get(&cache, "b").await.unwrap(), "b of call 2");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_or_panics_fails_its_own_batch_alone() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let table = Table::new();
    let loader = table.loader(&cache, LoadOptions::new());
    let (a, bad) = (ask(&loader, "a"), ask(&loader, "bad"));
    for caller in [a, bad] {
        let error = caller.await.unwrap().unwrap_err();
        assert_eq!(origin_error(&error).unwrap(), "the table is gone");
    }
    let error = ask(&loader, "panic").await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Panicked { .. }), "{error:?}");
    assert_eq!(ask(&loader, "a").await.unwrap().unwrap().unwrap(), "a of call 3");
    let error = loader.get(String::new()).await.unwrap_err();
    assert!(matches!(error, Error::InvalidKey(_)), "{error:?}");
    assert_eq!(cache.stats().await.unwrap().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn each_has_its_answer_as_soon_as_there_is_one() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let gate = Arc::new(Semaphore::new(0));
    let slow = tokio::spawn({
        let (cache, gate) = (cache.clone(), gate.clone());
        async move {
            let load = async move || {
                gate.acquire().await.unwrap().forget();
                Ok::<_, Error>("slow")
            };
            cache.get_or_load("slow", load).await.unwrap()
        }
    });
    idle().await;
    let table = Table::new();
    let loader = table.loader(&cache, LoadOptions::new());
    // In one batch: one that another loads already, and one that is loaded now.
    let (joined, own) = (ask(&loader, "slow"), ask(&loader, "own"));
    assert_eq!(own.await.unwrap().unwrap().unwrap(), "own of call 1");
    assert_eq!(table.calls(), [["own"]]);
    assert!(!joined.is_finished());
    gate.add_permits(1);
    assert_eq!(joined.await.unwrap().unwrap().unwrap(), "slow");
    assert_eq!(slow.await.unwrap(), "slow");
}

#[tokio::test(start_paused = true)]
async fn lower_levels_are_asked_once_for_a_batch() {
    let store = MemoryTier::persistent();
    let counted = Arc::new(FaultTier::new(store));
    let cache = builder(&ManualClock::new()).hot(ram()).dry(counted.clone()).build().await.unwrap();
    let table = Table::new();
    let loader = table.loader(&cache, LoadOptions::new());
    let callers: Vec<_> = (0..50).map(|number| ask(&loader, &format!("k{number}"))).collect();
    for caller in callers {
        caller.await.unwrap().unwrap().unwrap();
    }
    // The double counts the keys of a batch, too.
    assert_eq!((counted.calls(Op::GetMany), counted.calls(Op::Get)), (1, 50));
    let hit = loader.get("k7".into()).await.unwrap().unwrap();
    assert_eq!(hit, "k7 of call 1");
    assert_eq!((counted.calls(Op::GetMany), counted.calls(Op::Get)), (1, 50), "RAM answers");
}

#[tokio::test(start_paused = true)]
async fn what_the_loader_leaves_out_is_known_not_to_exist_and_a_removal_is_seen() {
    let (cache, clock) = in_ram(|builder| builder).await;
    let table = Table::new();
    let loader = table.loader(&cache, LoadOptions::new().negative_ttl(Duration::from_secs(10)));
    assert_eq!(loader.get("none".into()).await.unwrap(), None);
    assert_eq!(loader.get("none".into()).await.unwrap(), None);
    assert_eq!(table.calls().len(), 1, "remembered");
    clock.advance(Duration::from_secs(11));
    assert_eq!(loader.get("none".into()).await.unwrap(), None);
    assert_eq!(table.calls().len(), 2);
    assert_eq!(loader.get("a".into()).await.unwrap().unwrap(), "a of call 3");
    table.hold();
    cache.delete("a").await.unwrap();
    let before = ask(&loader, "a");
    table.begun.acquire_many(4).await.unwrap().forget();
    cache.delete("a").await.unwrap();
    let after = ask(&loader, "a");
    table.begun.acquire().await.unwrap().forget();
    table.gate.add_permits(2);
    assert_eq!(before.await.unwrap().unwrap().unwrap(), "a of call 4");
    assert_eq!(after.await.unwrap().unwrap().unwrap(), "a of call 5");
    assert_eq!(get(&cache, "a").await.unwrap(), "a of call 5");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_cache_ends_those_who_wait() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let table = Table::new();
    table.hold();
    let loader = table.loader(&cache, LoadOptions::new());
    let loading = ask(&loader, "a");
    table.begun.acquire().await.unwrap().forget();
    let gathering = ask(&loader, "b");
    idle().await;
    cache.close(Duration::from_secs(1)).await.unwrap();
    for caller in [loading, gathering] {
        let error = caller.await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Closed), "{error:?}");
    }
    assert!(matches!(loader.get("c".into()).await.unwrap_err(), Error::Closed));
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct User {
    name: String,
}

#[tokio::test(start_paused = true)]
async fn typed_values_are_shared() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let users = cache.typed::<User>().batch_loader(LoadOptions::new(), async |names: Vec<&'static str>| {
        let found = names.into_iter().filter(|name| *name != "nobody");
        Ok::<_, Error>(found.map(|name| (name, User { name: name.into() })).collect::<HashMap<_, _>>())
    });
    let (one, again, nobody) = tokio::join!(users.get("ada"), users.get("ada"), users.get("nobody"));
    let (one, again) = (one.unwrap().unwrap(), again.unwrap().unwrap());
    assert!(Arc::ptr_eq(&one, &again) && one.name == "ada");
    assert_eq!(nobody.unwrap(), None);
    assert!(Arc::ptr_eq(&users.get("ada").await.unwrap().unwrap(), &one));
}
