//! Every public future, dropped at its n-th poll, for every n.

use std::collections::HashMap;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tiercache_core::testing::{Hooked, ManualClock, MemoryTier};
use tiercache_core::tier::{Resident, Tier};
use tiercache_core::tracking::Query;
use tiercache_core::{CacheManager, Error, Level, LoadOptions, Result, Write};
use tiercache_ram::RamTier;
use tiercache_tests::doubles::{Yielding, poll_at_most};
use tiercache_tests::rig::{builder, get, id, idle, ram};
use tiercache_tracking::{MemoryTracking, SqliteConfig, SqliteTracking};

type Call = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// A cache in which every call of a lower level takes several polls, with one key in every place there is.
struct Subject {
    cache: CacheManager,
    hot: Arc<RamTier>,
    middle: Arc<MemoryTier>,
    store: Arc<MemoryTier>,
}

const PLACES: [&str; 5] = ["hot", "way", "cold", "dry", "nowhere"];

impl Subject {
    async fn new(write: Write) -> Self {
        let store = MemoryTier::persistent();
        let (hot, clock) = (ram(), ManualClock::new());
        let middle = MemoryTier::new();
        let cold = Hooked::opaque(middle.clone(), Yielding);
        let cache = builder(&clock)
            .hot(hot.clone())
            .cold(cold)
            .dry(Hooked::opaque(store.clone(), Yielding))
            .tracking(Arc::new(MemoryTracking::new(&Default::default())))
            .write(write)
            .build()
            .await
            .unwrap();
        cache.set("dry", "old").tag("t", "1").skip(Level::Hot).skip(Level::Cold).await.unwrap();
        cache.set("cold", "old").tag("t", "1").skip(Level::Hot).skip(Level::Dry).await.unwrap();
        cache.set("way", "old").tag("t", "1").await.unwrap();
        hot.drain();
        cache.set("hot", "old").tag("t", "1").await.unwrap();
        Self { cache, hot, middle, store }
    }

    /// Whatever became of the call: the cache answers, nothing is left in flight or on the way, and each key has
    /// the value of before or that of after, the same one every time.
    async fn is_sound(&self, after: impl Fn(&str) -> Option<&'static str>, what: &str) {
        idle().await;
        let cache = &self.cache;
        let mut values = Vec::new();
        for key in PLACES {
            let value = get(cache, key).await;
            let before = (key != "nowhere").then_some("old");
            assert!([before, after(key)].contains(&value.as_deref()), "{what}: {key} is {value:?}");
            assert_eq!(cache.contains(key).await.unwrap(), value.is_some(), "{what}: {key}");
            values.push(value);
        }
        self.hot.drain();
        cache.settle().await.unwrap();
        idle().await;
        let stats = cache.stats().await.unwrap();
        assert_eq!((stats.in_flight, stats.pending), (0, (0, 0)), "{what}: {stats:?}");
        for (key, value) in PLACES.iter().zip(values) {
            assert_eq!(get(cache, key).await, value, "{what}: {key}, after sinking");
            assert!(cache.set(*key, "next").await.unwrap().degraded.is_empty(), "{what}: {key}");
            assert_eq!(get(cache, key).await.unwrap(), "next", "{what}: {key}");
            cache.delete(*key).await.unwrap();
            assert_eq!(get(cache, key).await, None, "{what}: {key}");
        }
        assert_eq!(cache.stats().await.unwrap().in_flight, 0, "{what}");
    }
}

/// What a call with that key makes of a place, if it changes it.
type After = fn(key: &str, place: &str) -> Option<&'static str>;

/// Drops `call` at its first poll, its second, and so on until it completes; looks after each at what it left.
async fn drop_at_every_poll(what: &str, after: After, call: impl Fn(CacheManager, &'static str) -> Call) {
    for write in [Write::Back, Write::Behind, Write::Through] {
        for key in PLACES {
            for polls in 1.. {
                let subject = Subject::new(write).await;
                let done = poll_at_most(call(subject.cache.clone(), key), polls).await;
                let what = format!("{what} of {key}, {write:?}, dropped at poll {polls}");
                if let Some(result) = &done {
                    result.as_ref().unwrap_or_else(|error| panic!("{what}: {error}"));
                }
                subject.is_sound(|place| after(key, place), &what).await;
                assert!(polls < 1_000, "{what}: never completes");
                if done.is_some() {
                    break;
                }
            }
        }
    }
}

macro_rules! dropped {
    ($name:ident, $after:expr, |$cache:ident, $key:ident| $call:expr) => {
        #[tokio::test]
        async fn $name() {
            let call = |$cache: CacheManager, $key: &'static str| -> Call {
                Box::pin(async move {
                    $call;
                    Ok(())
                })
            };
            drop_at_every_poll(stringify!($name), $after, call).await;
        }
    };
}

const UNCHANGED: After = |_, place| (place != "nowhere").then_some("old");
const WRITTEN: After = |key, place| if place == key { Some("new") } else { UNCHANGED(key, place) };
const REMOVED: After = |key, place| if place == key { None } else { UNCHANGED(key, place) };
const EMPTY: After = |_, _| None;

dropped!(a_dropped_get, UNCHANGED, |cache, key| cache.get(key).await?);
dropped!(a_dropped_get_many, UNCHANGED, |cache, key| cache.get_many(&[key, "dry", "cold", "way"]).await?);
dropped!(a_dropped_entry, UNCHANGED, |cache, key| cache.entry(key).await?);
dropped!(a_dropped_contains, UNCHANGED, |cache, key| cache.contains(key).await?);
dropped!(a_dropped_typed_get, UNCHANGED, |cache, key| cache.typed::<String>().get(key).await?);
dropped!(a_dropped_set, WRITTEN, |cache, key| cache.set(key, "new").await?);
dropped!(a_dropped_set_with_options, WRITTEN, |cache, key| {
    let set = cache.set(key, "new").ttl(Duration::from_secs(60)).tag("t", "2").user("a", "b");
    set.content_type("text/plain").await?
});
dropped!(a_dropped_set_if_absent, WRITTEN, |cache, key| cache.set(key, "new").only_if_absent().await?);
dropped!(a_dropped_add, WRITTEN, |cache, key| cache.add(key, "new").await?);
dropped!(a_dropped_replace, WRITTEN, |cache, key| cache.replace(key, "new").await?);
dropped!(a_dropped_compare_and_set, WRITTEN, |cache, key| {
    if let Some(found) = cache.read(key).await? {
        cache.compare_and_set(key, found.generation, "new").await?;
    }
});
dropped!(a_dropped_get_and_touch, UNCHANGED, |cache, key| cache
    .get_and_touch(key, Duration::from_secs(60))
    .await?);
dropped!(a_dropped_set_below_hot, WRITTEN, |cache, key| cache.set(key, "new").skip(Level::Hot).await?);
dropped!(a_dropped_set_pinned_to_dry, WRITTEN, |cache, key| cache.set(key, "new").pin(Level::Dry).await?);
dropped!(
    a_dropped_set_many,
    |key, place| if ["hot", "dry"].contains(&place) { Some("new") } else { WRITTEN(key, place) },
    |cache, key| {
        for written in cache.set_many([(key, "new"), ("hot", "new"), ("dry", "new")]).await {
            written?;
        }
    }
);
dropped!(
    a_dropped_load,
    |key, place| if place == "nowhere" && key == place { Some("loaded") } else { UNCHANGED(key, place) },
    |cache, key| cache.get_or_load(key, || async { Ok::<_, Error>("loaded") }).await?
);
dropped!(
    a_dropped_gathered_load,
    |key, place| if place == "nowhere" && key == place { Some("loaded") } else { UNCHANGED(key, place) },
    |cache, key| {
        let load = async |keys: Vec<&'static str>| {
            Ok::<_, Error>(keys.into_iter().map(|key| (key, "loaded")).collect::<HashMap<_, _>>())
        };
        cache.batch_loader(LoadOptions::new(), load).window(Duration::ZERO).get(key).await?
    }
);
dropped!(a_dropped_touch, UNCHANGED, |cache, key| cache.touch(key, Duration::from_secs(60)).await?);
dropped!(a_dropped_delete, REMOVED, |cache, key| cache.delete(key).await?);
dropped!(
    a_dropped_delete_many,
    |key, place| REMOVED(key, place).filter(|_| !["cold", "dry"].contains(&place)),
    |cache, key| cache.delete_many(&[key, "cold", "dry"]).await?
);
dropped!(a_dropped_pop, REMOVED, |cache, key| cache.pop(key).await?);
dropped!(a_dropped_invalidate_tag, EMPTY, |cache, _key| cache.invalidate_tag("t", "1").await?);
dropped!(a_dropped_expire_tag, EMPTY, |cache, _key| cache.expire_tag("t", "1").await?);
dropped!(a_dropped_clear, EMPTY, |cache, _key| cache.clear().await?);
dropped!(a_dropped_flush, EMPTY, |cache, _key| cache.flush(Level::Dry).await?);
dropped!(
    a_dropped_flush_of_hot,
    |_, place| (place == "cold" || place == "dry").then_some("old"),
    |cache, _key| cache.flush(Level::Hot).await?
);
dropped!(a_dropped_purge, EMPTY, |cache, _key| cache.purge("*").await?);
dropped!(a_dropped_listing, UNCHANGED, |cache, _key| cache.keys(Query::all()).next().await?);
dropped!(a_dropped_stats, UNCHANGED, |cache, _key| cache.stats().await?);
dropped!(a_dropped_reset_stats, UNCHANGED, |cache, _key| cache.reset_stats().await?);
dropped!(a_dropped_settle, UNCHANGED, |cache, _key| cache.settle().await?);
dropped!(a_dropped_prune, UNCHANGED, |cache, _key| cache.prune().await?);

/// Counters whose every step at the store takes several polls.
#[tokio::test]
async fn a_dropped_addition_is_made_once_or_not_at_all() {
    for polls in 1.. {
        let subject = Subject::new(Write::Back).await;
        let cache = &subject.cache;
        assert_eq!(cache.incr("n").by(100).await.unwrap(), 100);
        let added = poll_at_most(cache.incr("n").into_future(), polls).await;
        idle().await;
        let sum = cache.counter("n").await.unwrap().unwrap();
        // What was polled belongs to a task of the manager's, and goes on.
        assert_eq!(sum, 101, "dropped at poll {polls}");
        drop(poll_at_most(cache.counter("n"), polls).await);
        let removed = poll_at_most(cache.remove_counter("n"), polls).await;
        idle().await;
        assert_eq!(cache.counter("n").await.unwrap(), None, "dropped at poll {polls}");
        subject.is_sound(|key| UNCHANGED("", key), &format!("dropped at poll {polls}")).await;
        if let (Some(added), Some(removed)) = (added, removed) {
            assert_eq!((added.unwrap(), removed.unwrap()), (101, true));
            return;
        }
    }
}

/// Whoever gives up a lock leaves it to others, at once.
#[tokio::test(start_paused = true)]
async fn a_dropped_lock_is_free_again() {
    let expiry = Duration::from_secs(3_600);
    for polls in 1.. {
        let store = MemoryTier::shared();
        let open = async |store: Arc<MemoryTier>| {
            let dry = Hooked::opaque(store, Yielding);
            builder(&ManualClock::new()).hot(ram()).dry(dry).build().await.unwrap()
        };
        let (here, there) = (open(store.clone()).await, open(store.reopen()).await);
        let taken = poll_at_most(here.lock("n", expiry).into_future(), polls).await;
        let done = taken.is_some();
        if let Some(guard) = taken {
            drop(poll_at_most(guard.unwrap().release(), polls).await);
        }
        idle().await;
        let guard = there.lock("n", expiry).wait(Duration::from_secs(5)).await;
        let guard = guard.unwrap_or_else(|error| panic!("dropped at poll {polls}: {error}"));
        assert!(here.try_lock("n", expiry).await.unwrap().is_none());
        drop(poll_at_most(here.try_lock("n", expiry), polls).await);
        assert!(!guard.is_lost() && guard.release().await.unwrap());
        drop(here.lock("n", expiry).wait(Duration::from_secs(5)).await.unwrap());
        idle().await;
        for cache in [&here, &there] {
            assert_eq!(cache.stats().await.unwrap().in_flight, 0);
            cache.close(Duration::from_secs(1)).await.unwrap();
        }
        if done && polls > 20 {
            return;
        }
    }
}

/// What was polled once is committed, all of it, or has left nothing; either way the next one has its turn.
#[tokio::test]
async fn a_dropped_transaction_is_made_whole_or_leaves_nothing() {
    for gives_up in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let config = SqliteConfig { path: folder.path().join("tracking").join("index.db") };
        let tracking = SqliteTracking::open(config).await.unwrap();
        let config = tiercache_sqlite::SqliteConfig {
            path: Some(folder.path().join("level")),
            max_size: 64 << 20,
            shards: Some(8),
            ..Default::default()
        };
        let tier = tiercache_sqlite::SqliteTier::open(config, ManualClock::new()).await.unwrap();
        let dry = Hooked::opaque(Arc::new(tier), Yielding);
        let hot = ram();
        let builder = builder(&ManualClock::new()).hot(hot.clone()).dry(dry).tracking(Arc::new(tracking));
        let cache = builder.build().await.unwrap();
        let mut before = String::new();
        for polls in 1.. {
            if polls % 2 == 0 {
                hot.drain();
            }
            let new = format!("{polls}");
            let written = new.clone();
            let work = move |tx: &mut tiercache_core::Transaction<'_>| {
                tx.set("a", written.clone())?;
                tx.nested(|tx| tx.set("b", written))?;
                if gives_up { Err(Error::Refused("given up".into())) } else { tx.delete("c").map(drop) }
            };
            let done = poll_at_most(cache.transaction(&["a", "b", "c"], work), polls).await;
            let read = |tx: &mut tiercache_core::Transaction<'_>| Ok(["a", "b", "c"].map(|key| tx.get(key)));
            let seen = cache.transaction(&["a", "b", "c"], read).await.unwrap().map(Result::unwrap);
            let now = if gives_up { before.clone() } else { new };
            let expected = (!now.is_empty()).then(|| now.clone().into());
            assert_eq!(seen, [expected.clone(), expected, None], "dropped at poll {polls}");
            for key in ["a", "b"] {
                assert_eq!(get(&cache, key).await.unwrap_or_default(), now, "dropped at poll {polls}");
            }
            cache.settle().await.unwrap();
            let stats = cache.stats().await.unwrap();
            assert_eq!((stats.in_flight, stats.pending), (0, (0, 0)), "dropped at poll {polls}");
            assert!(cache.set("a", now.clone()).await.unwrap().degraded.is_empty());
            cache.set("c", "there").await.unwrap();
            cache.delete("c").await.unwrap();
            if gives_up && before.is_empty() {
                before = "first".into();
                for key in ["a", "b"] {
                    cache.set(key, "first").await.unwrap();
                }
                continue;
            }
            match done {
                Some(Ok(())) => assert!(!gives_up),
                Some(Err(error)) => assert!(gives_up && error.to_string() == "given up", "{error}"),
                None => continue,
            }
            break;
        }
        assert!(cache.close(Duration::from_secs(10)).await.unwrap().is_clean());
    }
}

#[tokio::test]
async fn a_dropped_set_that_began_is_carried_out() {
    for write in [Write::Back, Write::Behind, Write::Through] {
        for key in PLACES {
            let subject = Subject::new(write).await;
            let set = subject.cache.set(key, "new").into_future();
            drop(poll_at_most(set, 1).await);
            idle().await;
            assert_eq!(get(&subject.cache, key).await.unwrap(), "new", "{write:?} {key}");
            subject.cache.delete(key).await.unwrap();
            drop(poll_at_most(subject.cache.delete("cold"), 1).await);
            idle().await;
            assert_eq!(get(&subject.cache, "cold").await, None, "{write:?} {key}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_close_closes_and_loses_nothing() {
    for polls in 1.. {
        let subject = Subject::new(Write::Back).await;
        let done = poll_at_most(subject.cache.close(Duration::from_secs(5)), polls).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(matches!(subject.cache.get("hot").await, Err(Error::Closed)), "poll {polls}");
        let cache =
            builder(&ManualClock::new()).hot(ram()).dry(subject.store.reopen()).build().await.unwrap();
        // What was on its way to a level outside RAM goes there, what RAM held to the one that lasts.
        assert!(subject.middle.reopen().get(&id("way")).await.unwrap().is_some(), "dropped at poll {polls}");
        for key in ["hot", "dry"] {
            assert_eq!(get(&cache, key).await.unwrap(), "old", "{key}, dropped at poll {polls}");
        }
        if done.is_some() {
            return;
        }
    }
}

#[tokio::test]
async fn a_dropped_listing_goes_on_where_it_was() {
    let subject = Subject::new(Write::Back).await;
    for n in 0..600 {
        subject.cache.set(format!("key {n:03}"), "v").await.unwrap();
    }
    let mut keys = subject.cache.keys(Query { prefix: b"key".to_vec(), ..Query::default() });
    let mut listed = Vec::new();
    for attempt in 0.. {
        assert!(attempt < 10_000, "it never gets to its end");
        match poll_at_most(keys.next(), 1 + attempt % 7).await {
            Some(Ok(Some(record))) => listed.push(record.key.display().into_owned()),
            Some(Ok(None)) => break,
            Some(Err(error)) => panic!("{error}"),
            None => idle().await,
        }
    }
    assert_eq!(listed, (0..600).map(|n| format!("key {n:03}")).collect::<Vec<_>>());
}

/// With a store of records that answers from another thread.
#[tokio::test]
async fn dropped_calls_over_a_database_lose_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let config = SqliteConfig { path: dir.path().join("tracking").join("index.db") };
    let tracking = SqliteTracking::open(config).await.unwrap();
    let cache = builder(&ManualClock::new())
        .hot(ram())
        .dry(Hooked::opaque(MemoryTier::persistent(), Yielding))
        .tracking(Arc::new(tracking))
        .build()
        .await
        .unwrap();
    for n in 0..40 {
        cache.set(format!("key {n}"), "v").await.unwrap();
        let polls = 1 + n % 5;
        drop(poll_at_most(cache.settle(), polls).await);
        drop(poll_at_most(cache.entry(format!("key {n}")), polls).await);
        drop(poll_at_most(cache.stats(), polls).await);
        drop(poll_at_most(cache.reset_stats(), polls).await);
        drop(poll_at_most(cache.purge("nothing*"), polls).await);
    }
    cache.settle().await.unwrap();
    assert_eq!(cache.keys(Query::all()).page(100).await.unwrap().len(), 40);
    assert!(cache.close(Duration::from_secs(10)).await.unwrap().is_clean());
}
