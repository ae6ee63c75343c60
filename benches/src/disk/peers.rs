//! Databases and foyer's disk cache, none of them synced.

use std::path::Path;

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions};
use foyer::{
    BlockEngineConfig, DeviceBuilder, FsDeviceBuilder, HybridCache, HybridCacheBuilder, HybridCachePolicy,
};
use heed::types::Bytes as Raw;
use heed::{EnvFlags, EnvOpenOptions};
use rusqlite::{Connection, OptionalExtension};
use tokio::runtime::{Builder, Runtime};

use super::{Open, Store};

pub(super) fn all() -> Vec<(&'static str, Open)> {
    vec![("lmdb", lmdb), ("fjall", fjall), ("sqlite", sqlite), ("foyer-disk", foyer)]
}

struct Lmdb {
    env: heed::Env,
    database: heed::Database<Raw, Raw>,
}

#[allow(
    unsafe_code,
    reason = "LMDB maps its file: nobody else may change it, and in a new directory nobody does"
)]
fn lmdb(directory: &Path, bytes: usize) -> Box<dyn Store> {
    let mut options = EnvOpenOptions::new();
    options.map_size((bytes * 4).max(1 << 30).next_multiple_of(4096));
    // SAFETY: the directory is new and this process's own. What the flags give up is safety from power cuts.
    let env = unsafe {
        options.flags(EnvFlags::NO_SYNC | EnvFlags::NO_META_SYNC | EnvFlags::WRITE_MAP);
        options.open(directory).expect("a new directory")
    };
    let mut transaction = env.write_txn().expect("the only writer");
    let database = env.create_database(&mut transaction, None).expect("the unnamed database");
    transaction.commit().expect("an empty transaction");
    Box::new(Lmdb { env, database })
}

impl Store for Lmdb {
    fn put(&mut self, key: &str, value: &Bytes) {
        let mut transaction = self.env.write_txn().expect("the only writer");
        self.database.put(&mut transaction, key.as_bytes(), value).expect("the map is large enough");
        transaction.commit().expect("the map is large enough");
    }

    fn get(&mut self, key: &str) -> Option<usize> {
        let transaction = self.env.read_txn().ok()?;
        Some(self.database.get(&transaction, key.as_bytes()).ok()??.to_vec().len())
    }
}

struct Fjall {
    _database: Database,
    items: Keyspace,
}

fn fjall(directory: &Path, _: usize) -> Box<dyn Store> {
    let database = Database::builder(directory).open().expect("a new directory");
    let options = || KeyspaceCreateOptions::default().with_kv_separation(Some(Default::default()));
    let items = database.keyspace("items", options).expect("a new keyspace");
    Box::new(Fjall { _database: database, items })
}

impl Store for Fjall {
    fn put(&mut self, key: &str, value: &Bytes) {
        self.items.insert(key, &value[..]).expect("the disk takes it");
    }

    fn get(&mut self, key: &str) -> Option<usize> {
        Some(self.items.get(key).ok()??.to_vec().len())
    }
}

struct Sqlite(Connection);

fn sqlite(directory: &Path, _: usize) -> Box<dyn Store> {
    let connection = Connection::open(directory.join("items.db")).expect("a new directory");
    let set_up = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA mmap_size = 4294967296;
        CREATE TABLE items (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;";
    connection.execute_batch(set_up).expect("a new database");
    Box::new(Sqlite(connection))
}

impl Store for Sqlite {
    fn put(&mut self, key: &str, value: &Bytes) {
        let insert = "INSERT OR REPLACE INTO items VALUES (?, ?)";
        let mut insert = self.0.prepare_cached(insert).expect("valid SQL");
        insert.execute((key, &value[..])).expect("the disk takes it");
    }

    fn get(&mut self, key: &str) -> Option<usize> {
        let mut select = self.0.prepare_cached("SELECT value FROM items WHERE key = ?").expect("valid SQL");
        let value: Option<Vec<u8>> = select.query_row([key], |row| row.get(0)).optional().ok()?;
        value.map(|value| value.len())
    }
}

struct Foyer {
    cache: HybridCache<String, Bytes>,
    runtime: Runtime,
}

fn foyer(directory: &Path, bytes: usize) -> Box<dyn Store> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let cache = runtime.block_on(async {
        let capacity = (bytes * 2).max(1 << 30);
        let device =
            FsDeviceBuilder::new(directory).with_capacity(capacity).build().expect("a new directory");
        HybridCacheBuilder::new()
            .with_policy(HybridCachePolicy::WriteOnInsertion)
            .memory(1)
            .with_weighter(|key: &String, value: &Bytes| key.len() + value.len())
            .storage()
            .with_engine_config(BlockEngineConfig::new(device))
            .build()
            .await
            .expect("a new directory")
    });
    Box::new(Foyer { cache, runtime })
}

impl Store for Foyer {
    fn put(&mut self, key: &str, value: &Bytes) {
        drop(self.cache.insert(key.to_string(), value.clone()));
    }

    fn get(&mut self, key: &str) -> Option<usize> {
        let found = self.runtime.block_on(async { self.cache.get(key).await }).ok()??;
        Some(found.value().len())
    }

    fn settle(&mut self) {
        // It writes behind, and says nothing of when.
        self.runtime.block_on(self.cache.storage().wait());
    }

    fn drops(&self) -> bool {
        true
    }
}
