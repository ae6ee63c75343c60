//! SQLite, the simulator of MongoDB, and tracking in PostgreSQL, each beside its client.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use mongodb::IndexModel;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Document, doc};
use mongodb::options::IndexOptions;
use rusqlite::{Connection, OptionalExtension};
use sqlx::{AssertSqlSafe, Connection as _, Row};
use tiercache_core::tracking::{Event, Record, What};
use tiercache_core::{Address, Clock, Generation, Level, SystemClock, Tags, Tier, Timestamp, Tracking};
use tiercache_mongo::{MongoConfig, MongoTier};
use tiercache_services::{MongoSim, Postgres};
use tiercache_sqlite::{SqliteConfig, SqliteTier};
use tiercache_tracking::{PostgresConfig, PostgresTracking};

use super::{Bench, Cores, KEYS, VALUE, Writer, skipped};
use crate::Options;

pub(super) async fn run(options: &Options) {
    if options.wants("backend", "sqlite") {
        sqlite(options).await;
    }
    if options.wants("backend", "mongodb-simulator") {
        mongodb(options).await;
    }
    if options.wants("backend", "postgres-tracking") {
        postgres(options).await;
    }
}

/// Beside rusqlite as a program without blocking would use it: on a thread of the runtime's for what blocks.
async fn sqlite(options: &Options) {
    let dir = tempfile::tempdir().expect("a directory");
    let config = SqliteConfig { path: Some(dir.path().join("level")), ..SqliteConfig::default() };
    let clock: Arc<dyn Clock> = SystemClock::start();
    let tier = SqliteTier::open(config, clock).await.expect("a level");
    let connection = Connection::open(dir.path().join("raw.db")).expect("a database");
    let prepared = connection.execute_batch(
        "PRAGMA journal_mode = wal; PRAGMA synchronous = normal;
         CREATE TABLE entry (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID",
    );
    prepared.expect("a table");
    let connection = Arc::new(Mutex::new(connection));
    let writer = Writer::new(KEYS, VALUE);
    let bench = Bench { options, backend: "sqlite", client: "rusqlite", size: "1K".into(), calls: 1_000 };
    writer.fill(&tier).await;
    let put = async |number: usize| writer.put(&tier, writer.key(number)).await;
    let raw_put = async |number: usize| {
        let (connection, name, value) =
            (connection.clone(), writer.name(number).to_owned(), writer.value.clone());
        let work = move || {
            let connection = connection.lock().expect("nobody panicked");
            let mut insert = connection.prepare_cached("INSERT OR REPLACE INTO entry VALUES (?1, ?2)")?;
            insert.execute((name, &value[..]))
        };
        tokio::task::spawn_blocking(work).await.expect("no panic").expect("an insert");
    };
    bench.compare("put", put, raw_put).await;
    let raw_get = async |number: usize| {
        let (connection, name) = (connection.clone(), writer.name(number).to_owned());
        let work = move || {
            let connection = connection.lock().expect("nobody panicked");
            let mut select = connection.prepare_cached("SELECT value FROM entry WHERE key = ?1")?;
            select.query_row([name], |row| row.get::<_, Vec<u8>>(0)).optional()
        };
        let found = tokio::task::spawn_blocking(work).await.expect("no panic").expect("a select");
        assert_eq!(found.map(|found| found.len()), Some(VALUE));
    };
    bench.compare("get", async |number| writer.found(&tier, number).await, raw_get).await;
    bench.batches(&tier, &writer).await;
}

async fn mongodb(options: &Options) {
    let cores = Cores::one();
    let Some(server) = MongoSim::start() else { return skipped("mongodb-simulator") };
    let url = server.url();
    let config = MongoConfig {
        uri: Some(Address::from(url.as_str())),
        database: Some("bench".into()),
        ..MongoConfig::default()
    };
    let tier = MongoTier::open(config, "dry").await.expect("the simulator takes us");
    let client = mongodb::Client::with_uri_str(&url).await.expect("a client");
    let raw = client.database("bench").collection::<Document>("raw");
    // As the level has them. Where there are any, the simulator looks for expired documents before each read, which
    // MongoDB does once a minute beside.
    for field in ["until", "removed"] {
        let options = IndexOptions::builder().expire_after(Duration::ZERO).sparse(true).build();
        let index = IndexModel::builder().keys(doc! { field: 1 }).options(options).build();
        raw.create_index(index).await.expect("an index");
    }
    let writer = Writer::new(KEYS, VALUE);
    let backend = "mongodb-simulator";
    let bench = Bench { options, backend, client: "mongodb", size: "1K".into(), calls: 200 };
    writer.fill(&tier).await;
    let put = async |number: usize| writer.put(&tier, writer.key(number)).await;
    let raw_put = async |number: usize| {
        let body = Binary { subtype: BinarySubtype::Generic, bytes: writer.value.to_vec() };
        let update = doc! { "$set": { "body": body } };
        let done = raw.update_one(doc! { "_id": writer.name(number) }, update).upsert(true).await;
        done.expect("an update");
    };
    bench.compare("put", put, raw_put).await;
    let raw_get = async |number: usize| {
        let found = raw.find_one(doc! { "_id": writer.name(number) }).await.expect("an answer");
        let found = found.expect("it was put");
        assert_eq!(found.get_binary_generic("body").expect("bytes").len(), VALUE);
    };
    bench.compare("get", async |number| writer.found(&tier, number).await, raw_get).await;
    cores.apart();
    bench.batches(&tier, &writer).await;
    tier.close().await.expect("it closes");
}

async fn postgres(options: &Options) {
    let _cores = Cores::one();
    let Some(server) = Postgres::start() else { return skipped("postgres-tracking") };
    let url = server.url();
    let config = PostgresConfig { url: Some(Address::from(url.as_str())), ..PostgresConfig::default() };
    let tables = format!("\"{}\".\"{}record\"", config.schema, config.table_prefix);
    let tracking = PostgresTracking::open(config).await.expect("PostgreSQL takes us");
    let writer = Writer::new(KEYS, 0);
    let events = writer.keys.iter().map(|key| Event {
        at: Timestamp::EPOCH,
        what: What::Stored(Record {
            key: key.clone(),
            generation: Generation::new(1),
            level: Level::Hot,
            size: 1_024,
            created: Timestamp::EPOCH,
            used: Timestamp::EPOCH,
            deadline: Timestamp::NEVER,
            hits: 0,
            tags: Tags::new(),
        }),
    });
    let events: Vec<Event> = events.collect();
    tracking.record(&events).await.expect("they are recorded");
    let mut raw = sqlx::PgConnection::connect(&url).await.expect("a connection");
    let ids = sqlx::query(AssertSqlSafe(format!("SELECT id FROM {tables}"))).fetch_all(&mut raw).await;
    let ids: Vec<Vec<u8>> = ids.expect("rows").iter().map(|row| row.get("id")).collect();
    let columns = "id, namespace, key, generation, level, size, created, used, deadline, hits, tags";
    let select: Arc<str> = format!("SELECT {columns} FROM {tables} WHERE id = $1").into();
    let backend = "postgres-tracking";
    let bench = Bench { options, backend, client: "sqlx", size: "row".into(), calls: 1_000 };
    let lookup = async |number: usize| {
        let found = tracking.lookup(writer.key(number)).await.expect("an answer");
        assert!(found.is_some(), "it was recorded");
    };
    // One connection, and one that is taken from the client's own pool for each call, as a program would.
    let pool = sqlx::PgPool::connect(&url).await.expect("a pool");
    let raw_lookup = async |client: usize, number: usize| {
        let id = &ids[number % ids.len()][..];
        let query = sqlx::query(AssertSqlSafe(select.clone())).bind(id);
        let found = match client {
            0 => query.fetch_optional(&mut raw).await,
            _ => {
                let mut lent = pool.acquire().await.expect("a connection");
                let found = query.fetch_optional(&mut *lent).await;
                // It asks whether the connection still lives, which would be done beside the next contender's call.
                lent.return_to_pool().await;
                found
            }
        };
        assert!(found.expect("an answer").is_some(), "it was recorded");
    };
    bench.compare_with("lookup", &["sqlx", "sqlx-pool"], lookup, raw_lookup).await;
    tracking.close().await.expect("it closes");
}
