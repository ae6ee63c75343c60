//! Many keys, one call of the loader.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tiercache_core::{CacheManager, Eager, Error, Level, LoadOptions};
use tiercache_tests::rig::{Gated, get, idle};
use tokio::sync::Semaphore;

use super::{Origin, in_ram};

/// An origin of records, which notes what it was asked for.
#[derive(Debug)]
struct Records {
    asked: Mutex<Vec<Vec<String>>>,
    gate: Semaphore,
    version: Mutex<u32>,
}

impl Records {
    fn new() -> Arc<Self> {
        let gate = Semaphore::new(Semaphore::MAX_PERMITS);
        Arc::new(Self { asked: Mutex::default(), gate, version: 1.into() })
    }

    fn hold(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    fn asked(&self) -> Vec<Vec<String>> {
        let mut asked = std::mem::take(&mut *self.asked.lock().unwrap());
        asked.iter_mut().for_each(|keys| keys.sort());
        asked
    }

    /// Brings every key but those that begin with `no`.
    async fn load(self: Arc<Self>, keys: Vec<String>) -> Result<HashMap<String, Bytes>, Error> {
        let version = *self.version.lock().unwrap();
        self.asked.lock().unwrap().push(keys.clone());
        self.gate.acquire().await.unwrap().forget();
        let exists = keys.into_iter().filter(|key| !key.starts_with("no"));
        Ok(exists.map(|key| (key.clone(), Bytes::from(format!("{key} v{version}")))).collect())
    }
}

async fn many(
    cache: &CacheManager,
    keys: &[&str],
    options: &LoadOptions,
    records: &Arc<Records>,
) -> Vec<Option<String>> {
    let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
    let records = records.clone();
    let found = cache.get_or_load_many(&keys, options, move |keys| records.clone().load(keys)).await.unwrap();
    found.into_iter().map(|value| value.map(|value| String::from_utf8(value.to_vec()).unwrap())).collect()
}

fn told(values: &[Option<&str>]) -> Vec<Option<String>> {
    values.iter().map(|value| value.map(str::to_owned)).collect()
}

#[tokio::test]
async fn only_what_is_missing_is_loaded_in_one_call_and_each_record_kept_on_its_own() {
    let (cache, clock) = in_ram(|builder| builder).await;
    let (records, options) = (Records::new(), LoadOptions::new().negative_ttl(Duration::from_secs(10)));
    cache.set("b", "set").await.unwrap();
    let found = many(&cache, &["a", "b", "c", "a", "none"], &options, &records).await;
    assert_eq!(found, told(&[Some("a v1"), Some("set"), Some("c v1"), Some("a v1"), None]));
    assert_eq!(records.asked(), [["a", "c", "none"]]);
    assert_eq!(get(&cache, "c").await.unwrap(), "c v1");
    assert_eq!(
        many(&cache, &["none", "c", "d"], &options, &records).await,
        told(&[None, Some("c v1"), Some("d v1")])
    );
    assert_eq!(records.asked(), [["d"]], "what does not exist is remembered");
    clock.advance(Duration::from_secs(10));
    many(&cache, &["none"], &options, &records).await;
    assert_eq!(records.asked(), [["none"]]);
    many(&cache, &["c"], &options, &records).await;
    assert!(records.asked().is_empty(), "nothing missing, no call");
    let none: [String; 0] = [];
    assert!(
        cache
            .get_or_load_many(&none, &options, move |keys| records.clone().load(keys))
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn batches_that_overlap_and_single_loads_load_no_key_twice() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let (records, options) = (Records::new(), LoadOptions::new());
    let origin = Origin::new("single");
    origin.hold();
    records.hold();
    let single = tokio::spawn({
        let (cache, load) = (cache.clone(), origin.load());
        async move { cache.get_or_load("s", load).await.unwrap() }
    });
    origin.begun().await;
    let batch = |keys: &'static [&'static str]| {
        let (cache, records, options) = (cache.clone(), records.clone(), options.clone());
        tokio::spawn(async move { many(&cache, keys, &options, &records).await })
    };
    let first = batch(&["a", "b", "s"]);
    idle().await;
    let second = batch(&["b", "c"]);
    idle().await;
    let joins = tokio::spawn({
        let (cache, load) = (cache.clone(), origin.load());
        async move { cache.get_or_load("c", load).await.unwrap() }
    });
    idle().await;
    assert_eq!(records.asked(), [vec!["a", "b"], vec!["c"]]);
    records.gate.add_permits(2);
    origin.release();
    assert_eq!(first.await.unwrap(), told(&[Some("a v1"), Some("b v1"), Some("single")]));
    assert_eq!(second.await.unwrap(), told(&[Some("b v1"), Some("c v1")]));
    assert_eq!(
        (single.await.unwrap().as_ref(), joins.await.unwrap().as_ref()),
        (b"single".as_slice(), b"c v1".as_slice())
    );
    assert_eq!(origin.loads(), 1);
    let stats = cache.stats().await.unwrap();
    assert_eq!((stats.loads, stats.in_flight), (4, 0));
}

#[tokio::test]
async fn a_record_that_was_removed_while_its_batch_loaded_is_not_kept() {
    let rig = Gated::new().await;
    let (records, options) = (Records::new(), LoadOptions::new().tag("t", "1"));
    records.hold();
    let batch = tokio::spawn({
        let (cache, records) = (rig.cache.clone(), records.clone());
        async move { many(&cache, &["a", "b"], &options, &records).await }
    });
    idle().await;
    rig.cache.delete("a").await.unwrap();
    records.gate.add_permits(1);
    assert_eq!(batch.await.unwrap(), told(&[Some("a v1"), Some("b v1")]), "its own caller may have it");
    assert_eq!((get(&rig.cache, "a").await, get(&rig.cache, "b").await.is_some()), (None, true));
    let read = rig.cache.entry("b").await.unwrap().unwrap();
    assert_eq!((read.level, read.tags.len()), (Level::Hot, 1));
}

#[tokio::test]
async fn one_error_fails_all_who_waited_for_that_batch_and_none_is_kept() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let keys = ["a".to_owned(), "b".to_owned()];
    let fails = |_| async { Err::<HashMap<String, Bytes>, _>("the origin is down") };
    let error = cache.get_or_load_many(&keys, &LoadOptions::new(), fails).await.unwrap_err();
    assert_eq!(super::origin_error(&error).unwrap(), "the origin is down");
    assert_eq!(cache.stats().await.unwrap().in_flight, 0);
    let records = Records::new();
    assert_eq!(many(&cache, &["a"], &LoadOptions::new(), &records).await, told(&[Some("a v1")]));
}

#[tokio::test(start_paused = true)]
async fn what_is_due_is_refreshed_in_one_call_behind_the_answer() {
    for options in [
        LoadOptions::new().ttl(Duration::from_secs(10)).eager(Eager::After(0.5)),
        LoadOptions::new().ttl(Duration::from_secs(5)).stale_while_revalidate(Duration::from_secs(50)),
    ] {
        let (cache, clock) = in_ram(|builder| builder).await;
        let records = Records::new();
        let old = told(&[Some("a v1"), Some("b v1"), Some("c v1")]);
        assert_eq!(many(&cache, &["a", "b", "c"], &options, &records).await, old);
        records.asked();
        clock.advance(Duration::from_secs(6));
        *records.version.lock().unwrap() = 2;
        records.hold();
        assert_eq!(many(&cache, &["a", "b", "c"], &options, &records).await, old);
        assert_eq!(many(&cache, &["a", "b", "c"], &options, &records).await, old, "nobody waits");
        idle().await;
        assert_eq!(records.asked(), [["a", "b", "c"]], "one call for all of them, and only one");
        records.gate.add_permits(1);
        idle().await;
        assert_eq!(many(&cache, &["b"], &options, &records).await, told(&[Some("b v2")]));
        assert_eq!(cache.stats().await.unwrap().refreshes, 3);
    }
}
