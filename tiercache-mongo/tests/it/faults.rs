//! Against the **simulator** of MongoDB: what is special to this store, and what it does under faults.

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::{
    Times, config, entry, get, hold, key, now, of, put, tier, tracking, tracking_config, until,
};
use futures_util::TryStreamExt;
use mongodb::bson::{DateTime, Document, doc};
use mongodb::{Client, Collection, Database};
use tiercache_core::tier::{Always, Dead, Left, Put, Removal, Scope, Spill, Swept};
use tiercache_core::tracking::{Event, Query, Record, Totals, What};
use tiercache_core::{Entry, Error, Key, KeyRef, Level, Tags, Tier, Timestamp, Tracking};
use tiercache_mongo::{MongoConfig, MongoTier};
use tiercache_services::{Fault, MongoSim, Proxy};

const CHUNK: usize = 255 << 10;

struct Nothing;

impl Dead for Nothing {
    fn is_dead(&self, _: KeyRef<'_>, _: &Entry) -> bool {
        false
    }
}

async fn database(url: &str) -> Database {
    Client::with_uri_str(url).await.expect("a client").database("tiercache")
}

/// The chunks and files that a level has.
async fn files(database: &Database, prefix: &str) -> (u64, u64) {
    let count = async |name: &str| {
        let all: Collection<Document> = database.collection(&format!("{prefix}.dry.{name}"));
        let found: Vec<Document> = all
            .find(doc! {})
            .projection(doc! { "_id": 1 })
            .await
            .expect("an answer")
            .try_collect()
            .await
            .expect("all");
        found.len() as u64
    };
    (count("chunks").await, count("files").await)
}

/// Sweeps until all was looked at, `ahead` of the time.
async fn sweep(tier: &MongoTier, ahead: Duration) -> u64 {
    let mut dropped = 0;
    loop {
        let Swept { dropped: more, complete, .. } =
            tier.sweep(now().after(ahead), &Nothing).await.expect("a sweep");
        dropped += more;
        if complete {
            return dropped;
        }
    }
}

fn large(generation: u64, chunks: usize) -> Entry {
    entry(generation, vec![generation as u8; chunks * CHUNK])
}

const LATER: Duration = Duration::from_secs(7_200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_entry_has_one_file_and_its_old_one_goes() {
    let Some(server) = MongoSim::start() else { return };
    let config = MongoConfig { inline_limit: 1 << 10, ..config(&server.url()) };
    let (tier, database) = (tier(&config).await, database(&server.url()).await);
    for generation in 1..=3 {
        assert_eq!(put(&*tier, "k", &large(generation, 2)).await, Put::Stored);
        assert_eq!(get(&*tier, "k").await, Some(large(generation, 2)));
        // Two chunks and the envelope's head.
        until("one file", async || files(&database, &config.prefix).await == (3, 1)).await;
    }
    assert_eq!(put(&*tier, "k", &large(2, 2)).await, Put::Superseded, "uploaded for nothing");
    until("no file of it", async || files(&database, &config.prefix).await == (3, 1)).await;
    assert_eq!(sweep(&tier, LATER).await, 0, "what an entry points to is no orphan");
    assert_eq!(get(&*tier, "k").await, Some(large(3, 2)));

    assert_eq!(put(&*tier, "k", &entry(4, "small")).await, Put::Stored);
    until("no file", async || files(&database, &config.prefix).await == (0, 0)).await;
    put(&*tier, "k", &large(5, 2)).await;
    assert!(tier.remove(&key("k"), of(6)).await.expect("removed").is_done());
    until("no file", async || files(&database, &config.prefix).await == (0, 0)).await;
    put(&*tier, "k", &large(7, 2)).await;
    tier.clear(None, of(8)).await.expect("cleared");
    until("no file", async || files(&database, &config.prefix).await == (0, 0)).await;
    put(&*tier, "k", &large(9, 2)).await;
    assert_eq!(get(&*tier, "k").await, Some(large(9, 2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_cut_at_any_chunk_shows_nothing_and_a_sweep_leaves_nothing() {
    let Some(server) = MongoSim::start() else { return };
    let proxy = Proxy::to(server.address());
    let direct = config(&server.url());
    let cut = MongoConfig {
        uri: Some(format!("mongodb://{}", proxy.address()).as_str().into()),
        timeout: Duration::from_secs(2),
        connect_timeout: Duration::from_millis(500),
        ..direct.clone()
    };
    let (whole, cut, database) = (tier(&direct).await, tier(&cut).await, database(&server.url()).await);
    put(&*whole, "k", &large(1, 5)).await;
    let chunks = files(&database, &direct.prefix).await;
    for (generation, chunk) in (2..).zip(0..=6) {
        until("connected", async || {
            cut.counting().expect("it counts").counter(&key("c"), now()).await.is_ok()
        })
        .await;
        proxy.set(Fault::CutRequestAfter(chunk * CHUNK + CHUNK / 2));
        let answer = cut.put(&key("k"), &large(generation, 5), hold(), &Always).await;
        proxy.set(Fault::Pass);
        let found = get(&*whole, "k").await.expect("an entry");
        if matches!(answer, Ok(Put::Stored)) {
            assert_eq!(found.generation, of(generation), "cut at {chunk}");
        }
        assert!(found == large(found.generation.get(), 5), "cut at {chunk}: whole");
    }
    sweep(&whole, LATER).await;
    assert_eq!(files(&database, &direct.prefix).await, chunks, "one whole file, and nothing else");
    assert!(get(&*whole, "k").await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_upload_is_whole_or_gone() {
    let Some(server) = MongoSim::start() else { return };
    let config = MongoConfig { inline_limit: 1 << 10, ..config(&server.url()) };
    let (tier, database) = (tier(&config).await, database(&server.url()).await);
    put(&*tier, "k", &large(1, 2)).await;
    let one = files(&database, &config.prefix).await;
    for (generation, patience) in (2..).zip([0, 1, 3, 6, 10, 20, 40]) {
        let (of_k, newer) = (key("k"), large(generation, 2));
        let putting = tier.put(&of_k, &newer, hold(), &Always);
        let _ = tokio::time::timeout(Duration::from_millis(patience), putting).await;
        let found = get(&*tier, "k").await.expect("an entry");
        assert!(found == large(found.generation.get(), 2));
    }
    // What was given up cleans up after itself; a sweep would find the rest.
    until("one file", async || files(&database, &config.prefix).await == one).await;

    let withdrawn = Times(AtomicU32::new(1));
    let refused = tier.put(&key("k"), &large(99, 2), hold(), &withdrawn).await.expect("a put");
    assert_eq!(refused, Put::Superseded, "withdrawn while it was uploaded");
    until("one file", async || files(&database, &config.prefix).await == one).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_removes_orphans_once_they_are_old_and_nothing_else() {
    let Some(server) = MongoSim::start() else { return };
    let config = MongoConfig { inline_limit: 1 << 10, ..config(&server.url()) };
    let (tier, database) = (tier(&config).await, database(&server.url()).await);
    for number in 0..5 {
        put(&*tier, &format!("stays {number}"), &large(1, 1)).await;
    }
    let kept = files(&database, &config.prefix).await;
    let bucket: Collection<Document> = database.collection(&format!("{}.dry.files", config.prefix));
    let chunks: Collection<Document> = database.collection(&format!("{}.dry.chunks", config.prefix));
    for number in 0..450 {
        let id = mongodb::bson::oid::ObjectId::new();
        // Chunks of a cut upload; files of a cut removal; whole files that lost a race.
        if number % 3 != 1 {
            chunks.insert_one(doc! { "files_id": id, "n": 0, "data": "x" }).await.expect("a chunk");
        }
        if number % 3 != 0 {
            bucket.insert_one(doc! { "_id": id, "filename": " gone", "length": 1 }).await.expect("a file");
        }
    }
    assert_eq!(sweep(&tier, Duration::ZERO).await, 0, "they may be uploads under way");
    assert_eq!(sweep(&tier, LATER).await, 450);
    assert_eq!(files(&database, &config.prefix).await, kept);
    for number in 0..5 {
        assert_eq!(get(&*tier, &format!("stays {number}")).await, Some(large(1, 1)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_whose_file_is_damaged_or_gone_is_a_miss_and_heals() {
    let Some(server) = MongoSim::start() else { return };
    let config = MongoConfig { inline_limit: 1 << 10, ..config(&server.url()) };
    let (tier, database) = (tier(&config).await, database(&server.url()).await);
    let of = |name: &str| database.collection::<Document>(&format!("{}.dry.{name}", config.prefix));
    let (bucket, chunks) = (of("files"), of("chunks"));
    for (generation, damage) in (1..).zip(["no file", "no chunk", "a chunk"]) {
        put(&*tier, "k", &large(generation, 2)).await;
        match damage {
            "no file" => drop(bucket.delete_many(doc! {}).await.expect("deleted")),
            "no chunk" => drop(chunks.delete_many(doc! { "n": 1 }).await.expect("deleted")),
            _ => {
                let bytes = mongodb::bson::Binary { subtype: 0.into(), bytes: vec![7; CHUNK] };
                chunks
                    .update_many(doc! { "n": 0 }, doc! { "$set": { "data": bytes } })
                    .await
                    .expect("changed");
            }
        }
        assert_eq!(get(&*tier, "k").await, None, "{damage}");
        until("it is removed", async || {
            let all: Collection<Document> = database.collection(&format!("{}.dry", config.prefix));
            all.find_one(doc! { "_id": " k" }).await.expect("an answer").is_none()
        })
        .await;
    }
    assert_eq!(tier.usage().await.expect("usage").damaged, 3);
    assert_eq!(put(&*tier, "k", &large(1, 2)).await, Put::Stored, "and the key is usable");
    assert_eq!(get(&*tier, "k").await, Some(large(1, 2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_share_a_store_order_their_mutations_by_generation_alone() {
    let Some(server) = MongoSim::start() else { return };
    let config = config(&server.url());
    let (one, other) = (tier(&config).await, tier(&config).await);
    put(&*one, "k", &entry(50, "ahead")).await;
    assert_eq!(other.remove(&key("k"), of(7)).await.expect("told"), Removal::Behind(of(50)));
    assert_eq!(get(&*other, "k").await, Some(entry(50, "ahead")));
    assert!(other.remove(&key("k"), of(51)).await.expect("removed").is_done());
    assert_eq!(put(&*one, "k", &entry(50, "late")).await, Put::Superseded, "the mark refuses it");
    assert_eq!(
        one.remove(&key("k"), of(20)).await.expect("told"),
        Removal::Behind(of(51)),
        "a mark counts too"
    );
    assert_eq!(put(&*one, "k", &entry(51, "next")).await, Put::Stored);

    put(&*one, "fenced", &entry(70_000, "by another process")).await;
    let fences = other.fences().expect("it has fences");
    let scope = Scope::Tag { namespace: String::new(), name: "a".into(), value: "b".into() };
    let fence = fences.fence(&scope, of(9)).await.expect("a fence");
    assert!(fence > of(70_000), "{fence:?}");
    let third = tier(&config).await;
    assert_eq!(third.fences().expect("it has fences").remembered(), [(scope, fence)]);
    assert!(third.profile().last_generation >= fence);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clearing_holds_for_every_process_and_for_what_arrives_late() {
    let Some(server) = MongoSim::start() else { return };
    let config = config(&server.url());
    let (one, other) = (tier(&config).await, tier(&config).await);
    let hot = Arc::new(MongoTier::open(config.clone(), "hot").await.expect("another level"));
    let foreign = tier(&crate::common::config(&server.url())).await;
    for tier in [&one, &hot, &foreign] {
        put(&**tier, "k", &entry(5, "v")).await;
    }
    one.clear(Some(""), of(9)).await.expect("cleared");
    assert_eq!(get(&*one, "k").await, None);
    assert_eq!(get(&*other, "k").await, None);
    assert!(get(&*hot, "k").await.is_some(), "another level has collections of its own");
    assert!(get(&*foreign, "k").await.is_some(), "and so has another prefix");
    assert_eq!(put(&*one, "k", &entry(8, "late")).await, Put::Superseded);
    until("the other knows", async || {
        let _ = get(&*other, "k").await;
        put(&*other, "late", &entry(8, "late")).await == Put::Superseded
    })
    .await;
    assert_eq!(get(&*other, "late").await, None);
    assert_eq!(put(&*other, "k", &entry(9, "after")).await, Put::Stored);
    assert!(get(&*one, "k").await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clearing_that_was_cut_is_finished_by_a_sweep() {
    let Some(server) = MongoSim::start() else { return };
    let config = config(&server.url());
    let (one, database) = (tier(&config).await, database(&server.url()).await);
    put(&*one, "old", &entry(5, "v")).await;
    put(&*one, "new", &entry(50, "v")).await;
    let state: Collection<Document> = database.collection(&format!("{}.dry.state", config.prefix));
    state.insert_one(doc! { "_id": "live in  ", "n": 9 }).await.expect("as if cut after the commit");
    let next = tier(&config).await;
    assert_eq!(get(&*next, "old").await, None, "dead from the start");
    sweep(&next, Duration::ZERO).await;
    let entries: Collection<Document> = database.collection(&format!("{}.dry", config.prefix));
    assert!(entries.find_one(doc! { "_id": " old" }).await.expect("an answer").is_none());
    assert!(get(&*next, "new").await.is_some());
    let floor = state.find_one(doc! { "_id": "live in  " }).await.expect("an answer").expect("for a minute");
    assert!(floor.contains_key("done"), "{floor}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_store_misses_and_gets_its_record_and_indexes_back() {
    let Some(server) = MongoSim::start() else { return };
    let config = config(&server.url());
    let (tier, database) = (tier(&config).await, database(&server.url()).await);
    put(&*tier, "k", &entry(100_000, "v")).await;
    for name in ["dry", "dry.state", "dry.counters"] {
        database.collection::<Document>(&format!("{}.{name}", config.prefix)).drop().await.expect("dropped");
    }
    assert_eq!(get(&*tier, "k").await, None);
    let entries: Collection<Document> = database.collection(&format!("{}.dry", config.prefix));
    until("the record and the indexes are back", async || {
        let _ = get(&*tier, "k").await;
        let names = entries.list_index_names().await.unwrap_or_default();
        let fresh = crate::common::tier(&config).await;
        fresh.profile().last_generation >= of(100_000) && names.len() == 3
    })
    .await;
    assert_eq!(put(&*tier, "k", &entry(100_001, "v")).await, Put::Stored);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_forgets_by_itself_but_never_files() {
    let Some(server) = MongoSim::start() else { return };
    let config = MongoConfig { inline_limit: 1 << 10, ..config(&server.url()) };
    let (tier, database) = (tier(&config).await, database(&server.url()).await);
    put(&*tier, "k", &large(1, 1)).await;
    let expiring = async |name: &str| {
        let all: Collection<Document> = database.collection(&format!("{}.{name}", config.prefix));
        let indexes: Vec<_> = all.list_indexes().await.expect("a list").try_collect().await.expect("all");
        let expires = |index: &&mongodb::IndexModel| {
            index.options.as_ref().is_some_and(|options| options.expire_after.is_some())
        };
        indexes.iter().filter(expires).count()
    };
    assert_eq!(expiring("dry").await, 2, "entries, and marks of removal");
    assert_eq!(expiring("dry.state").await, 1, "clearings that are done");
    assert_eq!(expiring("dry.counters").await, 1);
    assert_eq!(expiring("dry.files").await + expiring("dry.chunks").await, 0);
    let entries: Collection<Document> = database.collection(&format!("{}.dry", config.prefix));
    let mut dying = entry(2, "v");
    dying.deadline = now().after(Duration::from_secs(5));
    put(&*tier, "dying", &dying).await;
    let found = entries.find_one(doc! { "_id": " dying" }).await.expect("an answer").expect("a document");
    // The simulator gives times back as texts.
    let until = found.get_datetime("until").copied().unwrap_or_else(|_| {
        let text = found.get_str("until").expect("a time").trim_end_matches("+00:00").trim_end_matches('Z');
        DateTime::parse_rfc3339_str(format!("{text}Z")).unwrap_or_else(|_| panic!("{text} is no time"))
    });
    let until = until.timestamp_millis() as u64;
    assert!(until >= dying.deadline.as_millis(), "never earlier than its deadline");
    assert!(until < dying.deadline.as_millis() + 120_000);
}

/// Keeps the names of what it is handed.
#[derive(Debug, Default)]
struct Handed(Mutex<Vec<String>>);

impl Spill for Handed {
    fn spill(&self, key: Key, entry: Entry, _: Left) {
        assert_eq!(entry.value.len(), 4 << 10, "whole");
        self.0.lock().expect("no panic").push(key.display().into_owned());
    }

    fn used(&self, _: KeyRef<'_>, _: u32) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_its_bound_the_oldest_are_handed_on_and_removed() {
    let Some(server) = MongoSim::start() else { return };
    for inline_limit in [1 << 20, 0] {
        let config = MongoConfig { max_size: Some(60 << 10), inline_limit, ..config(&server.url()) };
        let (tier, handed) = (tier(&config).await, Arc::new(Handed::default()));
        tier.attach(handed.clone());
        for number in 0..20 {
            put(&*tier, &format!("{number:02}"), &entry(1 + number, vec![7; 4 << 10])).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        sweep(&tier, Duration::ZERO).await;
        let usage = tier.usage().await.expect("usage");
        assert!(usage.bytes.is_some_and(|bytes| bytes <= 60 << 10), "{usage:?}");
        let gone = handed.0.lock().expect("no panic").clone();
        assert_eq!(usage.evicted, gone.len() as u64);
        assert!((5..17).contains(&gone.len()), "{gone:?}");
        assert_eq!(
            gone,
            (0..gone.len()).map(|number| format!("{number:02}")).collect::<Vec<_>>(),
            "the oldest"
        );
        for number in 0..20 {
            let there = get(&*tier, &format!("{number:02}")).await.is_some();
            assert_eq!(there, number >= gone.len(), "{number}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_add_up_exactly_and_stay_within_their_range() {
    let Some(server) = MongoSim::start() else { return };
    let tier = tier(&config(&server.url())).await;
    let later = now().after(Duration::from_secs(600));
    let adding = (0..8).map(|_| {
        let tier = tier.clone();
        tokio::spawn(async move {
            for _ in 0..10 {
                tier.counting()
                    .expect("it counts")
                    .add(&key("n"), 3, 100, later, now())
                    .await
                    .expect("added");
            }
        })
    });
    for task in adding.collect::<Vec<_>>() {
        task.await.expect("no panic");
    }
    let counting = tier.counting().expect("it counts");
    assert_eq!(counting.counter(&key("n"), now()).await.expect("an answer"), Some(340));
    assert_eq!(counting.counter(&key("n"), later).await.expect("an answer"), None, "dead by then");
    assert_eq!(counting.add(&key("n"), 1, 7, later.after_millis(9), later).await.expect("anew"), 8);
    assert_eq!(get(&*tier, "n").await, None, "no entry");

    let out = async |delta, start| {
        let added = counting.add(&key("edge"), delta, start, later, now()).await;
        matches!(added, Err(Error::InvalidOption { .. }))
    };
    assert!(out(1, i64::MAX).await && out(-1, i64::MIN).await, "nothing to begin with");
    assert_eq!(counting.add(&key("edge"), i64::MAX, 0, later, now()).await.expect("added"), i64::MAX);
    assert!(out(1, 0).await && out(i64::MAX, 0).await && out(1, i64::MAX).await);
    assert_eq!(counting.add(&key("edge"), i64::MIN, 0, later, now()).await.expect("added"), -1);
    assert!(out(i64::MIN, 0).await);
    assert_eq!(counting.add(&key("edge"), 0, 5, later, now()).await.expect("added"), -1);

    assert!(counting.remove_counter(&key("edge")).await.expect("removed"));
    assert!(!counting.remove_counter(&key("edge")).await.expect("nothing there"));
    let elsewhere = Key::new("ns", b"n").expect("a key");
    counting.add(&elsewhere, 1, 0, Timestamp::NEVER, now()).await.expect("added");
    tier.clear(Some(""), of(1)).await.expect("cleared");
    assert_eq!(counting.counter(&key("n"), later).await.expect("an answer"), None);
    assert_eq!(counting.counter(&elsewhere, later).await.expect("an answer"), Some(1));
}

/// Calls while a fault lasts end in time, and what they answer is right; after it all is well within five seconds.
async fn endures(fault: impl AsyncFn(), mend: impl AsyncFn(), tier: &MongoTier, what: &str) {
    let budget = Duration::from_millis(1_500);
    let mut newest = 0;
    put(tier, "k", &Entry::new("0", of(1), Timestamp::EPOCH)).await;
    fault().await;
    for generation in 2..4 {
        let begun = Instant::now();
        let value = generation.to_string();
        let next = Entry::new(value, of(generation), Timestamp::EPOCH);
        if matches!(tier.put(&key("k"), &next, hold(), &Always).await, Ok(Put::Stored)) {
            newest = generation;
        }
        assert!(begun.elapsed() < budget, "{what}: a put took {:?}", begun.elapsed());
        let begun = Instant::now();
        if let Ok(Some(found)) = tier.get(&key("k")).await {
            assert!(found.generation >= of(newest), "{what}: older than what was stored");
            assert!(found.generation == of(1) || found.value == found.generation.get().to_string(), "{what}");
        }
        assert!(begun.elapsed() < budget, "{what}: a get took {:?}", begun.elapsed());
    }
    mend().await;
    let begun = Instant::now();
    let last = Entry::new("last", of(99), Timestamp::EPOCH);
    while tier.put(&key("k"), &last, hold(), &Always).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(5), "{what}: not healthy yet");
    }
    while tier.get(&key("k")).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(5), "{what}: not healthy yet");
    }
    assert_eq!(get(tier, "k").await, Some(last), "{what}");
}

fn impatient(url: &str) -> MongoConfig {
    let times = Duration::from_millis(500);
    MongoConfig { timeout: times, connect_timeout: times, ..config(url) }
}

/// No fault on the way gives a wrong value or a long wait.
async fn is_endured(fault: Fault) {
    let Some(server) = MongoSim::start() else { return };
    let proxy = Proxy::to(server.address());
    let tier = tier(&impatient(&format!("mongodb://{}", proxy.address()))).await;
    endures(async || proxy.set(fault), async || proxy.set(Fault::Pass), &tier, &format!("{fault:?}")).await;
}

macro_rules! endured {
    ($($name:ident: $($fault:expr),+;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            $(is_endured($fault).await;)+
        }
    )*};
}

endured! {
    a_port_where_nobody_listens_is_endured: Fault::Refuse;
    a_connection_that_hangs_is_endured: Fault::Hang;
    connections_that_are_reset_are_endured: Fault::Reset;
    bytes_that_come_one_by_one_are_endured: Fault::OneByte;
    late_answers_are_endured: Fault::Delay(Duration::from_millis(500));
    answers_that_are_cut_are_endured: Fault::CutAfter(30);
    requests_that_are_cut_are_endured: Fault::CutRequestAfter(60);
    answers_of_a_wrong_length_are_endured: Fault::Corrupt(3), Fault::Corrupt(0);
    answers_with_a_turned_bit_are_endured: Fault::Corrupt(14), Fault::Corrupt(60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_comes_back_with_what_it_had() {
    let Some(server) = MongoSim::persistent() else { return };
    let tier = tier(&impatient(&server.url())).await;
    put(&*tier, "stays", &entry(1, "v")).await;
    let kept = get(&*tier, "stays").await;
    endures(async || server.kill(), async || server.restart(), &tier, "kill -9").await;
    assert!(kept.is_some());
    assert_eq!(get(&*tier, "stays").await, kept);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_costs_the_time_out() {
    let Some(server) = MongoSim::start() else { return };
    let tier = tier(&impatient(&server.url())).await;
    endures(async || server.pause(), async || server.resume(), &tier, "SIGSTOP").await;
}

fn record(name: &str, generation: u64) -> Record {
    Record {
        key: key(name),
        generation: of(generation),
        level: Level::Hot,
        size: 1,
        created: Timestamp::from_millis(1),
        used: Timestamp::from_millis(1),
        deadline: Timestamp::NEVER,
        hits: 0,
        tags: Tags::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_share_tracking_lose_no_hit_and_no_count() {
    let Some(server) = MongoSim::start() else { return };
    let config = tracking_config(&server.url());
    let both = [tracking(&config).await, tracking(&config).await];
    let event = |what| Event { at: Timestamp::from_millis(5), what };
    both[0].record(&[event(What::Stored(record("k", 1)))]).await.expect("recorded");
    let tasks = both.iter().cloned().map(|tracking| {
        tokio::spawn(async move {
            for round in 0..15 {
                let counted = Totals { misses: 1, ..Totals::default() };
                let batch = [
                    event(What::Used { key: key("k"), hits: 2 }),
                    event(What::Stored(record(&format!("same {round}"), round))),
                    event(What::Counted(counted)),
                ];
                tracking.record(&batch).await.expect("recorded");
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("no panic");
    }
    assert_eq!(both[0].lookup(&key("k")).await.expect("an answer").expect("a record").hits, 60);
    assert_eq!(both[1].totals().await.expect("totals").misses, 30);
    assert_eq!(both[1].find(&Query::all(), None, 100).await.expect("a page").len(), 16);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_thousands_is_a_few_commands() {
    let Some(server) = MongoSim::start() else { return };
    let tracking = tracking(&tracking_config(&server.url())).await;
    let stored = |number: u64| Event {
        at: Timestamp::from_millis(5),
        what: What::Stored(record(&format!("{number:05}"), 1)),
    };
    let batch: Vec<Event> = (0..2_500).map(stored).collect();
    tracking.record(&batch).await.expect("recorded");
    assert_eq!(tracking.find(&Query::all(), None, usize::MAX).await.expect("a page").len(), 2_500);
    let page =
        tracking.find(&Query { prefix: b"01".to_vec(), ..Query::all() }, None, 1_500).await.expect("a page");
    assert_eq!(page.len(), 1_000, "beyond one of the server's pages");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tracking_under_faults_fails_in_time_and_is_healthy_after() {
    let Some(server) = MongoSim::start() else { return };
    let proxy = Proxy::to(server.address());
    let times = Duration::from_millis(300);
    let url = format!("mongodb://{}", proxy.address());
    let config = tiercache_mongo::MongoTrackingConfig {
        timeout: times,
        connect_timeout: times,
        ..tracking_config(&url)
    };
    let tracking = tracking(&config).await;
    let event = |number| Event { at: Timestamp::from_millis(5), what: What::Stored(record("k", number)) };
    for (generation, fault) in
        (1..).zip([Fault::Refuse, Fault::Hang, Fault::Reset, Fault::CutAfter(20), Fault::Corrupt(40)])
    {
        proxy.set(fault);
        let begun = Instant::now();
        let _ = tracking.record(&[event(generation)]).await;
        let _ = tracking.lookup(&key("k")).await;
        assert!(begun.elapsed() < Duration::from_secs(3), "{fault:?}: {:?}", begun.elapsed());
        proxy.set(Fault::Pass);
        until("healthy", async || tracking.record(&[event(generation)]).await.is_ok()).await;
        let found = tracking.lookup(&key("k")).await.expect("an answer").expect("a record");
        assert_eq!(found.generation, of(generation), "{fault:?}");
    }
}
