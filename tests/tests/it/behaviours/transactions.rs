//! Several keys at once, all or nothing.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use tiercache_core::testing::{ManualClock, MemoryTier};
use tiercache_core::tier::Resident;
use tiercache_core::tracking::Query;
use tiercache_core::{CacheManager, Error, Level, Tier, Value};
use tiercache_ram::RamTier;
use tiercache_sqlite::{SqliteConfig, SqliteTier};
use tiercache_tests::rig::{builder, disk, get, idle, ram};
use tiercache_tracking::MemoryTracking;

struct Subject {
    cache: CacheManager,
    hot: Arc<RamTier>,
    clock: Arc<ManualClock>,
}

async fn level(path: &Path, shards: u32, clock: &Arc<ManualClock>) -> Arc<SqliteTier> {
    let path = Some(path.join("level"));
    let config = SqliteConfig { path, max_size: 64 << 20, shards: Some(shards), ..SqliteConfig::default() };
    Arc::new(SqliteTier::open(config, clock.clone()).await.unwrap())
}

/// Over a level of so many shards that the keys of a test are in several.
async fn open(path: &Path) -> Subject {
    open_with(path, 8).await
}

async fn open_with(path: &Path, shards: u32) -> Subject {
    let (clock, hot) = (ManualClock::new(), ram());
    let dry = level(path, shards, &clock).await;
    let tracking = Arc::new(MemoryTracking::new(&Default::default()));
    let cache =
        builder(&clock).hot(hot.clone()).cold(ram()).dry(dry).tracking(tracking).build().await.unwrap();
    Subject { cache, hot, clock }
}

impl Subject {
    async fn sink(&self) {
        self.hot.drain();
        self.cache.settle().await.unwrap();
        self.cache.settle().await.unwrap();
    }
}

fn no(reason: &'static str) -> Error {
    Error::Refused(reason.into())
}

#[tokio::test]
async fn all_of_it_happens_wherever_the_keys_were() {
    for sunk in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let subject = open(folder.path()).await;
        let cache = &subject.cache;
        cache.set("from", "10").await.unwrap();
        cache.set("gone", "x").await.unwrap();
        if sunk {
            subject.sink().await;
        }
        let left = cache.transaction(&["from", "to", "gone"], |tx| {
            let value = tx.get("from")?.ok_or_else(|| no("nothing to move"))?;
            assert_eq!(tx.get("to")?, None);
            tx.set("to", value)?;
            tx.set("from", "0")?;
            tx.set("from", Value::new("1").ttl(Duration::from_secs(60)).tag("t", "1"))?;
            assert_eq!(tx.get("from")?.unwrap(), "1", "it sees what it wrote");
            assert!(tx.delete("gone")?);
            assert!(!tx.delete("gone")?);
            Ok(7)
        });
        assert_eq!(left.await.unwrap(), 7);
        assert_eq!(get(cache, "from").await.unwrap(), "1", "{sunk}");
        assert_eq!(get(cache, "to").await.unwrap(), "10", "{sunk}");
        assert_eq!(get(cache, "gone").await, None, "{sunk}");
        let found = cache.entry("from").await.unwrap().unwrap();
        assert_eq!((found.time_left, found.tags["t"].as_str()), (Some(Duration::from_secs(60)), "1"));
        let mut keys: Vec<String> = Vec::new();
        for record in cache.keys(Query::all()).page(10).await.unwrap() {
            keys.push(record.key.display().into_owned());
        }
        assert_eq!(keys, ["from", "to"], "tracking agrees");
        cache.invalidate_tag("t", "1").await.unwrap();
        assert_eq!(get(cache, "from").await, None);
        cache.set("to", "11").await.unwrap();
        assert_eq!(get(cache, "to").await.unwrap(), "11", "later sets come after it");
        subject.clock.advance(Duration::from_secs(61));
    }
}

#[tokio::test]
async fn what_failed_was_never_there_and_takes_nothing_from_ram() {
    for sunk in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let subject = open(folder.path()).await;
        let cache = &subject.cache;
        cache.set("a", "1").await.unwrap();
        cache.set("b", "2").await.unwrap();
        if sunk {
            subject.sink().await;
        }
        let failed: Result<(), Error> = cache
            .transaction(&["a", "b", "c"], |tx| {
                tx.set("a", "x")?;
                tx.delete("b")?;
                tx.set("c", "x")?;
                Err(no("changed my mind"))
            })
            .await;
        assert_eq!(failed.unwrap_err().to_string(), "changed my mind");
        let panicked = cache.transaction(&["a", "b"], |tx| -> Result<(), Error> {
            tx.set("a", "y")?;
            panic!("on purpose")
        });
        assert!(matches!(panicked.await, Err(Error::Panicked { .. })));
        assert_eq!(get(cache, "a").await.unwrap(), "1", "{sunk}");
        assert_eq!(get(cache, "b").await.unwrap(), "2", "{sunk}");
        assert_eq!(get(cache, "c").await, None, "{sunk}");
        assert_eq!(cache.stats().await.unwrap().in_flight, 0);
    }
}

#[tokio::test]
async fn a_part_that_fails_is_undone_alone() {
    let folder = tempfile::tempdir().unwrap();
    let subject = open(folder.path()).await;
    let cache = &subject.cache;
    cache.set("a", "1").await.unwrap();
    cache.set("kept", "in RAM").await.unwrap();
    let done = cache.transaction(&["a", "b", "kept"], |tx| {
        tx.set("b", "outer")?;
        let inner: Result<(), Error> = tx.nested(|tx| {
            tx.set("a", "inner")?;
            tx.delete("kept")?;
            tx.nested(|tx| tx.set("b", "innermost"))?;
            assert_eq!(tx.get("b")?.unwrap(), "innermost");
            Err(no("undone"))
        });
        assert!(inner.is_err());
        assert_eq!(tx.get("a")?.unwrap(), "1");
        assert_eq!(tx.get("b")?.unwrap(), "outer");
        tx.nested(|tx| {
            tx.set("a", "2")?;
            Ok(tx.get("a")?.unwrap())
        })
    });
    assert_eq!(done.await.unwrap(), "2");
    assert_eq!(get(cache, "a").await.unwrap(), "2");
    assert_eq!(get(cache, "b").await.unwrap(), "outer");
    assert_eq!(get(cache, "kept").await.unwrap(), "in RAM");
}

/// Holds a transaction after its first write, and lets it go on, or fail.
struct Held {
    reached: tokio::sync::oneshot::Receiver<()>,
    go_on: Sender<bool>,
    task: tokio::task::JoinHandle<Result<(), Error>>,
}

fn hold(cache: &CacheManager) -> Held {
    let (reach, reached) = tokio::sync::oneshot::channel();
    let (go_on, wait): (Sender<bool>, Receiver<bool>) = channel();
    let cache = cache.clone();
    let task = tokio::spawn(async move {
        let work = move |tx: &mut tiercache_core::Transaction<'_>| {
            tx.set("a", "new")?;
            tx.set("b", "new")?;
            let _ = reach.send(());
            if wait.recv().unwrap_or(false) { Ok(()) } else { Err(no("told to fail")) }
        };
        cache.transaction(&["a", "b"], work).await
    });
    Held { reached, go_on, task }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_see_all_of_it_or_nothing_and_never_what_was_aborted() {
    for (sunk, commits) in [(false, true), (true, true), (false, false), (true, false)] {
        let folder = tempfile::tempdir().unwrap();
        let subject = open(folder.path()).await;
        let cache = &subject.cache;
        for key in ["a", "b"] {
            cache.set(key, "old").await.unwrap();
        }
        if sunk {
            subject.sink().await;
        }
        let held = hold(cache);
        held.reached.await.unwrap();
        for key in ["a", "b"] {
            assert_eq!(get(cache, key).await.unwrap(), "old", "{sunk} {commits}");
        }
        held.go_on.send(commits).unwrap();
        assert_eq!(held.task.await.unwrap().is_ok(), commits);
        for key in ["a", "b"] {
            let now = if commits { "new" } else { "old" };
            assert_eq!(get(cache, key).await.unwrap(), now, "{sunk} {commits}");
            subject.sink().await;
            assert_eq!(get(cache, key).await.unwrap(), now, "{sunk} {commits}, after sinking");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_begun_during_a_transaction_comes_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let subject = open(folder.path()).await;
    let cache = &subject.cache;
    cache.set("a", "old").await.unwrap();
    let held = hold(cache);
    held.reached.await.unwrap();
    let set = tokio::spawn({
        let cache = cache.clone();
        async move { cache.set("a", "set").await.unwrap() }
    });
    let removal = tokio::spawn({
        let cache = cache.clone();
        async move { cache.delete("b").await.unwrap() }
    });
    for _ in 0..50 {
        idle().await;
    }
    assert!(!set.is_finished() && !removal.is_finished(), "they wait their turn");
    held.go_on.send(true).unwrap();
    held.task.await.unwrap().unwrap();
    set.await.unwrap();
    removal.await.unwrap();
    assert_eq!(get(cache, "a").await.unwrap(), "set");
    assert_eq!(get(cache, "b").await, None);
    subject.sink().await;
    assert_eq!(get(cache, "a").await.unwrap(), "set");
    assert_eq!(cache.stats().await.unwrap().in_flight, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_made_of_what_was_read_waits_for_a_transaction_and_looks_at_what_it_left() {
    for commits in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let subject = open(folder.path()).await;
        let cache = &subject.cache;
        let old = cache.set("a", "old").await.unwrap().generation;
        let held = hold(cache);
        held.reached.await.unwrap();
        let touch = tokio::spawn({
            let cache = cache.clone();
            async move { cache.touch("a", Duration::from_secs(60)).await.unwrap() }
        });
        let comparison = tokio::spawn({
            let cache = cache.clone();
            async move { cache.compare_and_set("b", old, "compared").await.unwrap() }
        });
        let pop = tokio::spawn({
            let cache = cache.clone();
            async move { cache.pop("b").await.unwrap() }
        });
        for _ in 0..50 {
            idle().await;
        }
        assert!(!touch.is_finished() && !comparison.is_finished() && !pop.is_finished());
        held.go_on.send(commits).unwrap();
        assert_eq!(held.task.await.unwrap().is_ok(), commits);
        assert!(touch.await.unwrap().found, "{commits}");
        assert_eq!(get(cache, "a").await.unwrap(), if commits { "new" } else { "old" });
        assert!(!comparison.await.unwrap().stored, "{commits}");
        assert_eq!(pop.await.unwrap().value.is_some(), commits);
        assert_eq!(get(cache, "b").await, None, "{commits}");
        assert_eq!(cache.stats().await.unwrap().in_flight, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_loaded_beside_a_transaction_answers_its_callers_and_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let subject = open(folder.path()).await;
    let cache = &subject.cache;
    let held = hold(cache);
    held.reached.await.unwrap();
    let loaded = cache.get_or_load("a", async || Ok::<_, Error>("loaded")).await.unwrap();
    assert_eq!(loaded, "loaded", "it does not wait");
    held.go_on.send(true).unwrap();
    held.task.await.unwrap().unwrap();
    assert_eq!(get(cache, "a").await.unwrap(), "new");
    let again = cache.get_or_load("a", async || Ok::<_, Error>("loaded again")).await.unwrap();
    assert_eq!(again, "new");
    assert_eq!(cache.stats().await.unwrap().in_flight, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_whose_caller_left_is_carried_out() {
    let folder = tempfile::tempdir().unwrap();
    let subject = open(folder.path()).await;
    let cache = &subject.cache;
    let held = hold(cache);
    held.reached.await.unwrap();
    held.task.abort();
    held.go_on.send(true).unwrap();
    cache
        .transaction(&["a", "b"], |tx| {
            assert_eq!(tx.get("a")?.unwrap(), "new");
            assert_eq!(tx.get("b")?.unwrap(), "new");
            Ok(())
        })
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sums_over_keys_stay_what_they_are_under_crossing_transfers() {
    for shards in [1, 5] {
        crossing_transfers(shards).await;
    }
}

async fn crossing_transfers(shards: u32) {
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = [open_with(folder.path(), shards).await, open_with(folder.path(), shards).await];
    let caches = [one.cache, other.cache];
    let accounts: Vec<String> = (0..6).map(|n| format!("account {n}")).collect();
    let names = accounts.clone();
    caches[0]
        .transaction(&accounts, move |tx| names.iter().try_for_each(|name| tx.set(name, "100")))
        .await
        .unwrap();
    let balance = |tx: &mut tiercache_core::Transaction<'_>, name: &str| -> Result<i64, Error> {
        let value = tx.get(name)?.ok_or_else(|| no("an account is missing"))?;
        Ok(std::str::from_utf8(&value).unwrap().parse().unwrap())
    };
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8_usize {
        // Two processes over one directory.
        let (cache, accounts) = (caches[task % 2].clone(), accounts.clone());
        tasks.spawn(async move {
            for n in 0..25 {
                let (from, to) =
                    (accounts[(task + n) % 6].clone(), accounts[(task * 5 + n * 3 + 1) % 6].clone());
                if from == to {
                    continue;
                }
                cache
                    .transaction(&[from.clone(), to.clone()], move |tx| {
                        let (a, b) = (balance(tx, &from)?, balance(tx, &to)?);
                        tx.set(&from, (a - 1).to_string())?;
                        tx.set(&to, (b + 1).to_string())
                    })
                    .await
                    .unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let names = accounts.clone();
    let sum = caches[1]
        .transaction(&accounts, move |tx| {
            let mut sum = 0;
            for name in &names {
                sum += balance(tx, name)?;
            }
            Ok(sum)
        })
        .await
        .unwrap();
    assert_eq!(sum, 600);
}

#[tokio::test]
async fn what_a_transaction_has_seen_of_another_process_is_what_a_get_finds() {
    let folder = tempfile::tempdir().unwrap();
    let [here, there] = [open(folder.path()).await, open(folder.path()).await];
    for key in ["a", "b"] {
        here.cache.set(key, "old").await.unwrap();
    }
    here.sink().await;
    for key in ["a", "b"] {
        assert_eq!(get(&here.cache, key).await.unwrap(), "old", "it is in RAM here again");
    }
    there
        .cache
        .transaction(&["a", "b"], |tx| tx.set("a", "new").and(tx.delete("b").map(drop)))
        .await
        .unwrap();
    assert_eq!(get(&here.cache, "a").await.unwrap(), "old", "nothing has told this process yet");
    let seen = here.cache.transaction(&["a", "b"], |tx| Ok((tx.get("a")?, tx.get("b")?)));
    assert_eq!(seen.await.unwrap(), (Some("new".into()), None));
    assert_eq!(get(&here.cache, "a").await.unwrap(), "new", "it does not go back");
    assert_eq!(get(&here.cache, "b").await, None);
    // A set of this process that the level does not have yet stays what it is.
    here.cache.set("a", "ours").await.unwrap();
    assert_eq!(here.cache.transaction(&["a"], |tx| tx.get("a")).await.unwrap().unwrap(), "ours");
    assert_eq!(get(&here.cache, "a").await.unwrap(), "ours");
}

#[tokio::test]
async fn what_cannot_be_one_step_is_refused_with_what_to_do() {
    let clock = ManualClock::new();
    let folder = tempfile::tempdir().unwrap();
    let nothing = |_: &mut tiercache_core::Transaction<'_>| Ok(());
    let told = async |cache: &CacheManager, keys: &[&str]| {
        cache.transaction(keys, nothing).await.unwrap_err().to_string()
    };
    let ram_alone = builder(&clock).hot(ram()).build().await.unwrap();
    assert_eq!(told(&ram_alone, &["k"]).await, "this cache cannot run transactions: none of its levels does");
    let remote: Arc<dyn Tier> = MemoryTier::shared();
    let beside =
        builder(&clock).cold(level(folder.path(), 2, &clock).await).dry(remote).build().await.unwrap();
    assert!(told(&beside, &["k"]).await.contains("another level stands outside RAM"));
    drop(beside);
    let disk_folder = tempfile::tempdir().unwrap();
    let on_disk =
        builder(&clock).hot(ram()).dry(disk(disk_folder.path(), &clock).await).build().await.unwrap();
    assert!(told(&on_disk, &["k"]).await.contains("none of its levels does"));

    let folder = tempfile::tempdir().unwrap();
    let sharded =
        builder(&clock).hot(ram()).dry(level(folder.path(), 8, &clock).await).build().await.unwrap();
    let many: Vec<String> = (0..10_001).map(|n| format!("{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(told(&sharded, &many).await.contains("at most 10000 keys"));
    sharded.transaction(&many[..100], nothing).await.unwrap();
    assert!(told(&sharded, &[]).await.contains("at least one key"));
    sharded.transaction(&["k"], |tx| tx.set("k", "v")).await.unwrap();
    assert_eq!(sharded.entry("k").await.unwrap().unwrap().level, Level::Dry);
    let unknown = sharded.transaction(&["k"], |tx| tx.get("other")).await.unwrap_err();
    assert!(unknown.to_string().contains("not one of those"), "{unknown}");
    let odd = sharded.transaction(&["k"], |tx| tx.set("k", Value::new("v").ttl(Duration::ZERO))).await;
    assert!(matches!(odd, Err(Error::InvalidOption { option: "ttl", .. })));
    assert_eq!(get(&sharded, "k").await.unwrap(), "v");
}

#[tokio::test]
async fn what_is_known_not_to_exist_is_no_value_to_a_transaction() {
    for sunk in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let subject = open(folder.path()).await;
        let cache = &subject.cache;
        let nothing = cache.get_or_load("k", || async { Ok::<Option<bytes::Bytes>, Error>(None) });
        assert_eq!(nothing.negative_ttl(Duration::from_secs(60)).await.unwrap(), None);
        if sunk {
            subject.sink().await;
        }
        let found = cache.transaction(&["k"], |tx| Ok((tx.get("k")?, tx.delete("k")?)));
        assert_eq!(found.await.unwrap(), (None, false), "{sunk}");
    }
}
