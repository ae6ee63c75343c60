//! Whatever happens, SQLite and memory tracking remember and find the same, and pages add up to the filter's
//! definition.
#![cfg(feature = "sqlite")]

use proptest::prelude::*;
use tempfile::TempDir;
use tiercache_core::tier::Scope;
use tiercache_core::tracking::{Event, Query, Record, Totals, What};
use tiercache_core::{Generation, Key, Level, Tags, Timestamp, Tracking};
use tiercache_tracking::{MemoryTracking, SqliteConfig, SqliteTracking};

fn namespace() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["", "a", "a_b", "a%", "b"]).prop_map(str::to_owned)
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(b"\0%_ab\xfe\xff".to_vec()), 1..4)
}

fn key() -> impl Strategy<Value = Key> {
    (namespace(), bytes()).prop_map(|(namespace, bytes)| Key::new(&namespace, &bytes).expect("a valid key"))
}

fn level() -> impl Strategy<Value = Level> {
    prop::sample::select(Level::ALL.to_vec())
}

fn generation() -> impl Strategy<Value = Generation> {
    (0..12u64).prop_map(Generation::new)
}

fn time() -> impl Strategy<Value = Timestamp> {
    prop_oneof![9 => (0..9u64).prop_map(Timestamp::from_millis), 1 => Just(Timestamp::NEVER)]
}

fn tags(most: usize) -> impl Strategy<Value = Tags> {
    prop::collection::btree_map("[xy]", "[pq]", 0..=most)
}

fn record() -> impl Strategy<Value = Record> {
    let times = (time(), time(), time());
    (key(), generation(), level(), 0..9u64, times, 0..9u64, tags(2)).prop_map(
        |(key, generation, level, size, (created, used, deadline), hits, tags)| Record {
            key,
            generation,
            level,
            size,
            created,
            used,
            deadline,
            hits,
            tags,
        },
    )
}

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![
        1 => Just(Scope::All),
        3 => namespace().prop_map(Scope::Namespace),
        3 => (namespace(), "[xy]", "[pq]")
            .prop_map(|(namespace, name, value)| Scope::Tag { namespace, name, value }),
    ]
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        12 => record().prop_map(What::Stored),
        3 => (key(), generation(), prop::option::weighted(0.8, level()))
            .prop_map(|(key, generation, to)| What::Moved { key, generation, to }),
        3 => (key(), 0..9u64).prop_map(|(key, hits)| What::Used { key, hits }),
        2 => (key(), generation()).prop_map(|(key, generation)| What::Removed { key, generation }),
        1 => (scope(), generation()).prop_map(|(scope, generation)| What::Invalidated { scope, generation }),
        1 => (level(), prop::option::of(namespace()), generation())
            .prop_map(|(level, namespace, generation)| What::Flushed { level, namespace, generation }),
        1 => prop::array::uniform6(0..9u64).prop_map(|[hot, cold, dry, misses, sets, deletes]| {
            What::Counted(Totals { hits: [hot, cold, dry], misses, sets, deletes })
        }),
    ]
}

fn batches() -> impl Strategy<Value = Vec<Vec<Event>>> {
    let event = (time(), what()).prop_map(|(at, what)| Event { at, what });
    prop::collection::vec(prop::collection::vec(event, 0..40), 1..6)
}

fn query() -> impl Strategy<Value = Query> {
    fn rarely<T: std::fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
        prop::option::weighted(0.25, of)
    }
    let number = || rarely(0..9u64);
    let place = (prop::option::of(namespace()), rarely(level()), tags(2));
    let names = (prop_oneof![2 => Just(Vec::new()), 1 => bytes()], rarely("[ab%_?*\\[\\]!-]{0,3}[*]?"));
    let times = (rarely(time()), rarely(time()), rarely(time()));
    let numbers = (number(), number(), number(), number());
    (place, names, times, numbers).prop_map(
        |((namespace, level, tags), (prefix, glob), times, (min_size, max_size, min_hits, max_hits))| Query {
            namespace,
            level,
            tags,
            prefix,
            glob,
            created_from: times.0,
            created_before: times.1,
            live_at: times.2,
            min_size,
            max_size,
            min_hits,
            max_hits,
        },
    )
}

async fn walk(tracking: &dyn Tracking, query: &Query, limit: usize) -> Vec<Record> {
    let mut all: Vec<Record> = Vec::new();
    loop {
        let after = all.last().map(|record| record.key.clone());
        let page = tracking.find(query, after.as_ref(), limit).await.expect("a page");
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn both_remember_and_find_the_same(
        batches in batches(),
        queries in prop::collection::vec(query(), 12),
        probes in prop::collection::vec(key(), 8),
        limit in 1..9usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let folder = TempDir::new().expect("a folder");
            let config = SqliteConfig { path: folder.path().join("index.db") };
            let (memory, sqlite) = (MemoryTracking::default(), SqliteTracking::open(config).await.expect("opens"));
            for batch in &batches {
                memory.record(batch).await.expect("records");
                sqlite.record(batch).await.expect("records");
                prop_assert_eq!(walk(&memory, &Query::all(), 1_000).await, walk(&sqlite, &Query::all(), 1_000).await);
            }
            prop_assert_eq!(memory.totals().await.expect("totals"), sqlite.totals().await.expect("totals"));
            for key in &probes {
                prop_assert_eq!(memory.lookup(key).await.expect("an answer"), sqlite.lookup(key).await.expect("an answer"));
            }
            let all = walk(&memory, &Query::all(), 1_000).await;
            for query in &queries {
                let expected: Vec<_> = all.iter().filter(|record| query.matches(record)).cloned().collect();
                prop_assert_eq!(&walk(&memory, query, limit).await, &expected, "memory, {:?}", query);
                prop_assert_eq!(&walk(&sqlite, query, limit).await, &expected, "sqlite, {:?}", query);
            }
            Ok(())
        })?;
    }
}
