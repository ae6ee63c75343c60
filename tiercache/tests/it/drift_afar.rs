//! Tracking compared with levels of servers, which other processes use meanwhile.
#![cfg(all(feature = "redis", feature = "s3", feature = "mongodb", feature = "sqlite"))]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tiercache::drift::Drift;
use tiercache::tracking::{Event, Query, Record, What};
use tiercache::{CacheManager, Config, Generation, Level, Registry, Timestamp, Tracking};
use tiercache_services::{MongoSim, Redis};

use crate::common::s3::S3;

/// A server, and what tells whether anything at it has changed.
enum Store {
    Redis(Redis),
    S3(S3),
    Mongo(MongoSim),
}

impl Store {
    /// Those that can be had here.
    async fn all() -> Vec<Self> {
        let s3 = Some(Self::S3(S3::start().await));
        let mongo = MongoSim::persistent().map(Self::Mongo);
        [Redis::own().map(Self::Redis), s3, mongo].into_iter().flatten().collect()
    }

    fn section(&self) -> String {
        match self {
            Self::Redis(server) => format!("{{ backend: redis, url: '{}' }}", server.url()),
            Self::S3(server) => server.section(""),
            Self::Mongo(server) => format!("{{ backend: mongodb, uri: '{}' }}", server.url()),
        }
    }

    fn state(&self) -> String {
        match self {
            Self::Redis(server) => {
                let info = server.command("INFO persistence");
                let changes = info.lines().find(|line| line.starts_with("rdb_changes_since_last_save"));
                changes.unwrap_or_else(|| panic!("no changes in {info}")).to_owned()
            }
            Self::S3(server) => format!("{:?}", server.files()),
            Self::Mongo(server) => dump(&server.dir().join("data.sqlite")),
        }
    }
}

/// Every row of every table.
fn dump(database: &Path) -> String {
    let database = rusqlite::Connection::open(database).unwrap();
    let mut tables = database.prepare("SELECT name FROM sqlite_master WHERE type = 'table'").unwrap();
    let tables: Vec<String> = tables.query_map((), |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let mut text = String::new();
    for table in tables {
        let mut rows = database.prepare(&format!("SELECT * FROM \"{table}\"")).unwrap();
        let columns = rows.column_count();
        let mut rows = rows.query(()).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let values = (0..columns).map(|column| format!("{:?}", row.get_ref(column).unwrap()));
            text += &format!("{table}: {}\n", values.collect::<Vec<_>>().join(", "));
        }
    }
    text
}

/// A cache whose last level is at a server.
struct Place {
    folder: tempfile::TempDir,
    text: String,
}

impl Place {
    fn new(store: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join("index.db").display().to_string();
        Self::with(
            folder,
            &format!(
                "cold_cache: {{ backend: none }}\ndry_cache: {store}\n\
            tracking: {{ backend: sqlite, path: {index} }}"
            ),
        )
    }

    fn with(folder: tempfile::TempDir, text: &str) -> Self {
        Self { folder, text: format!("hot_cache: {{ backend: none }}\nwrite: through\n{text}\n") }
    }

    fn config(&self) -> Config {
        Config::parse(&self.text, &Registry::builtin()).unwrap_or_else(|error| panic!("{error}"))
    }

    async fn open(&self) -> CacheManager {
        self.config().open().await.unwrap()
    }

    async fn compare(&self, repair: bool) -> Drift {
        self.config().drift(repair, &[], |_| ()).await.unwrap().expect("there is tracking")
    }

    async fn tracking(&self) -> Arc<dyn Tracking> {
        self.config().open_tracking().await.unwrap().expect("there is tracking")
    }

    /// Every record but its uses.
    async fn records(&self) -> Vec<Record> {
        let tracking = self.tracking().await;
        let records = tracking.find(&Query::all(), None, 10_000).await.unwrap();
        tracking.close().await.unwrap();
        records.into_iter().map(|record| Record { hits: 0, used: Timestamp::EPOCH, ..record }).collect()
    }

    /// Has one process put, replace and remove, and the index be that of some time before.
    async fn drift_apart(&self) -> Vec<Record> {
        let cache = self.open().await;
        for key in ["gone", "kept", "old"] {
            cache.set(key, "first").await.unwrap();
        }
        close(cache).await;
        let index = self.folder.path().join("index.db");
        let earlier = std::fs::read(&index).unwrap();

        let cache = self.open().await;
        assert!(cache.delete("gone").await.unwrap().found);
        cache.set("old", "second value").await.unwrap();
        cache.set("new", "v").tag("type", "text").ttl(Duration::from_secs(7_200)).await.unwrap();
        cache.set("large", "value ".repeat(100_000)).await.unwrap();
        // Of what follows something stands there still, or its mark, and all of it is dead.
        cache.set("removed", "v").await.unwrap();
        cache.delete("removed").await.unwrap();
        cache.set("short", "v").ttl(Duration::from_millis(1)).await.unwrap();
        cache.set("fenced", "v").tag("kind", "some").await.unwrap();
        cache.invalidate_tag("kind", "some").await.unwrap();
        let cleared = cache.namespace("cleared").unwrap();
        cleared.set("k", "v").await.unwrap();
        cleared.clear().await.unwrap();
        close(cache).await;
        let right =
            self.records().await.into_iter().filter(|record| record.key.bytes() != b"short").collect();
        std::fs::write(&index, earlier).unwrap();
        right
    }
}

async fn close(cache: CacheManager) {
    let report = cache.close(Duration::from_secs(10)).await.unwrap();
    assert!(report.is_clean(), "{report}");
}

fn counts(drift: &Drift) -> [u64; 4] {
    [drift.records, drift.entries, drift.stale, drift.untracked]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ordinary_use_leaves_agrees() {
    for store in Store::all().await {
        let place = Place::new(&store.section());
        let cache = place.open().await;
        for key in ["kept", "replaced", "replaced", "removed", "tagged"] {
            cache.set(key, "v").tag("key", key).await.unwrap();
        }
        cache.set("large", "value ".repeat(100_000)).await.unwrap();
        cache.delete("removed").await.unwrap();
        cache.invalidate_tag("key", "tagged").await.unwrap();
        cache.settle().await.unwrap();
        // While it is open: nothing of this has to be closed for a look.
        let drift = place.compare(false).await;
        assert_eq!((counts(&drift), drift.is_clean()), ([3, 3, 0, 0], true), "{drift:?}");
        assert_eq!((&drift.compared, &drift.failed), (&vec![Level::Dry], &vec![]));
        close(cache).await;
        assert_eq!(counts(&place.compare(false).await), [3, 3, 0, 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_kinds_of_drift_are_found_and_repaired() {
    for store in Store::all().await {
        let place = Place::new(&store.section());
        let right = place.drift_apart().await;

        let (before, index) = (store.state(), place.records().await);
        let drift = place.compare(false).await;
        assert_eq!(counts(&drift), [3, 4, 1, 3], "{}: {drift:?}", store.section());
        assert!(!drift.is_clean() && !drift.repaired);
        assert_eq!((store.state(), place.records().await), (before, index), "looking changes nothing");

        let drift = place.compare(true).await;
        assert_eq!((counts(&drift), drift.repaired), ([3, 4, 1, 3], true), "{drift:?}");
        assert_eq!(place.records().await, right, "sizes, deadlines, tags and generations too");
        let drift = place.compare(false).await;
        assert_eq!((counts(&drift), drift.is_clean()), ([4, 4, 0, 0], true), "{drift:?}");

        let cache = place.open().await;
        assert_eq!(cache.get("old").await.unwrap().unwrap(), "second value");
        assert_eq!(cache.get("gone").await.unwrap(), None);
        close(cache).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_lost_is_rebuilt_page_by_page() {
    for store in Store::all().await {
        let place = Place::new(&store.section());
        let cache = place.open().await;
        let sets = (0..600).map(|number| (format!("k{number:03}"), "v".repeat(1 + number)));
        for set in cache.set_many(sets).await {
            set.unwrap();
        }
        close(cache).await;
        let right = place.records().await;
        assert_eq!(right.len(), 600);
        std::fs::remove_file(place.folder.path().join("index.db")).unwrap();
        let mut pages = Vec::new();
        let drift =
            place.config().drift(true, &[], |drift| pages.push(drift.entries)).await.unwrap().unwrap();
        assert_eq!(counts(&drift), [0, 600, 0, 600], "{drift:?}");
        assert!(pages.iter().any(|entries| (1..600).contains(entries)), "no page in {pages:?}");
        assert_eq!(place.records().await, right);
        assert_eq!(counts(&place.compare(false).await), [600, 600, 0, 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_difference_that_is_gone_at_the_second_look_is_none() {
    for store in Store::all().await {
        let place = Place::new(&store.section());
        let right = place.drift_apart().await;
        let before = place.records().await;
        let tracking = place.tracking().await;
        // What another process does between the looks: it tells tracking what it has done.
        let tell = |events: Vec<Event>| {
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(tracking.record(&events))
            })
        };
        let (mut removed, mut stored) = (false, false);
        let progress = |drift: &Drift| {
            let at = Timestamp::EPOCH;
            if !std::mem::replace(&mut removed, true) {
                let gone = before.iter().find(|record| record.key.bytes() == b"gone").unwrap();
                let (key, generation) = (gone.key.clone(), Generation::new(gone.generation.get() + 1));
                tell(vec![Event { at, what: What::Removed { key, generation } }]).unwrap();
            } else if drift.entries > 0 && !std::mem::replace(&mut stored, true) {
                let stored = right.iter().map(|record| Event { at, what: What::Stored(record.clone()) });
                tell(stored.collect()).unwrap();
            }
        };
        let drift = place.config().drift(true, &[], progress).await.unwrap().unwrap();
        assert!(removed && stored);
        assert_eq!((counts(&drift), drift.repaired), ([3, 4, 0, 0], false), "{}: {drift:?}", store.section());
        tracking.close().await.unwrap();
        assert_eq!(place.records().await, right);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_at_a_level_that_was_never_opened_makes_none() {
    for store in Store::all().await {
        let place = Place::new(&store.section());
        let before = store.state();
        let drift = place.compare(false).await;
        assert_eq!((counts(&drift), &drift.compared), ([0; 4], &vec![Level::Dry]), "{drift:?}");
        assert_eq!(store.state(), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_a_level_that_was_wiped_are_stale() {
    let Some(server) = Redis::own() else { return };
    let place = Place::new(&format!("{{ backend: redis, url: '{}' }}", server.url()));
    let cache = place.open().await;
    for key in ["a", "b"] {
        cache.set(key, "v").await.unwrap();
    }
    close(cache).await;
    server.wipe();
    assert_eq!(counts(&place.compare(true).await), [2, 0, 2, 0]);
    assert_eq!(server.command("DBSIZE"), ":0", "a repair is of tracking alone");
    assert_eq!(counts(&place.compare(false).await), [0; 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_told_with_its_section_and_the_others_are_compared() {
    let (Some(near), Some(far)) = (Redis::own(), Redis::own()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display().to_string();
    let place = Place::with(
        folder,
        &format!(
            "cold_cache: {{ backend: redis, url: '{}' }}\n\
             dry_cache: {{ backend: redis, url: '{}', connect_timeout: 300ms }}\n\
             tracking: {{ backend: sqlite, path: {at}/index.db }}",
            near.url(),
            far.url()
        ),
    );
    let cache = place.open().await;
    for (key, level) in [("here", Level::Cold), ("lost", Level::Cold), ("there", Level::Dry)] {
        cache.set(key, "v").pin(level).await.unwrap();
    }
    close(cache).await;
    let right = place.records().await;
    far.kill();
    for repair in [false, true] {
        let drift = place.compare(repair).await;
        assert_eq!((counts(&drift), &drift.compared), ([2, 2, 0, 0], &vec![Level::Cold]), "{drift:?}");
        let [(Level::Dry, why)] = &drift.failed[..] else { panic!("{drift:?}") };
        for part in ["configuration: dry_cache: ", far.address()] {
            assert!(why.contains(part), "{part} is not in {why}");
        }
    }
    assert_eq!(place.records().await, right, "nobody knows what stands there");
    // What the level above has lost may stand at the one that is away.
    near.wipe();
    let drift = place.compare(true).await;
    assert_eq!((counts(&drift), drift.failed.len()), ([0; 4], 1), "{drift:?}");
    assert_eq!(place.records().await, right);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tracking_at_a_server_records_of_shared_levels_are_judged_and_no_others() {
    let Some(server) = Redis::own() else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display().to_string();
    let place = Place::with(
        folder,
        &format!(
            "cold_cache: {{ backend: local, path: {at}/cold, max_size: 16MiB }}\n\
             dry_cache: {{ backend: redis, url: '{0}' }}\ntracking: {{ backend: redis, url: '{0}' }}",
            server.url()
        ),
    );
    let cache = place.open().await;
    for (key, level) in [("here", Level::Cold), ("there", Level::Dry), ("gone", Level::Dry)] {
        cache.set(key, "v").pin(level).await.unwrap();
    }
    close(cache).await;
    let tracking = place.tracking().await;
    let records = tracking.find(&Query::all(), None, 10).await.unwrap();
    // Another machine's, and one of what never was.
    let [gone, there, here] = ["gone", "there", "here"]
        .map(|key| records.iter().find(|record| record.key.bytes() == key.as_bytes()).unwrap().clone());
    let named = |name: &str, record: &Record| Record {
        key: tiercache::Key::new("", name.as_bytes()).unwrap(),
        ..record.clone()
    };
    let at = Timestamp::EPOCH;
    let events = [
        Event { at, what: What::Stored(named("elsewhere", &here)) },
        Event { at, what: What::Stored(named("never", &there)) },
        Event {
            at,
            what: What::Removed {
                key: gone.key.clone(),
                generation: Generation::new(gone.generation.get() + 1),
            },
        },
    ];
    tracking.record(&events).await.unwrap();
    tracking.close().await.unwrap();
    for (repair, expected) in [(false, [2, 3, 1, 1]), (true, [2, 3, 1, 1]), (false, [2, 3, 0, 0])] {
        let drift = place.compare(repair).await;
        assert_eq!((counts(&drift), drift.repaired), (expected, repair), "{drift:?}");
    }
    let records: Vec<Vec<u8>> =
        place.records().await.iter().map(|record| record.key.bytes().to_vec()).collect();
    assert_eq!(records, [&b"elsewhere"[..], b"gone", b"here", b"there"]);
}

#[cfg(feature = "memcached")]
#[tokio::test(flavor = "multi_thread")]
async fn memcached_is_said_to_list_nothing() {
    // Nobody is asked anything.
    let place = Place::new("{ backend: memcached, servers: ['127.0.0.1:1'] }");
    let drift = place.compare(false).await;
    assert_eq!(drift.not_compared, [(Level::Dry, "memcached cannot list what it holds".to_owned())]);
    assert_eq!((counts(&drift), drift.compared, drift.failed), ([0; 4], vec![], vec![]));
}
