//! What the tests of this crate share.

use std::path::Path;
use std::sync::Arc;

use tiercache_core::testing::ManualClock;
use tiercache_core::tier::{Always, Hold, Put, Removal};
use tiercache_core::{Clock, Entry, Generation, Key, Stay, SystemClock, Tier, Timestamp};
use tiercache_sqlite::{Report, SqliteConfig, SqliteTier};

pub(crate) const T0: Timestamp = Timestamp::from_millis(1_700_000_000_000);

pub(crate) fn config(path: &Path) -> SqliteConfig {
    SqliteConfig { path: Some(path.join("level")), max_size: 64 << 20, ..SqliteConfig::default() }
}

pub(crate) fn open(path: &Path) -> SqliteTier {
    open_with(config(path), ManualClock::new())
}

pub(crate) fn open_with(config: SqliteConfig, clock: Arc<dyn Clock>) -> SqliteTier {
    SqliteTier::open_blocking(config, clock).unwrap()
}

/// With the machine's clock, as in a process of its own.
pub(crate) fn open_live(path: &Path) -> SqliteTier {
    open_with(config(path), SystemClock::start())
}

pub(crate) fn key(name: &str) -> Key {
    Key::new("", name.as_bytes()).unwrap()
}

pub(crate) fn g(number: u64) -> Generation {
    Generation::new(number)
}

pub(crate) fn entry(generation: u64, value: impl Into<Vec<u8>>) -> Entry {
    Entry::new(value.into(), g(generation), T0)
}

pub(crate) fn tagged(generation: u64, value: &str, name: &str, of: &str) -> Entry {
    let mut entry = entry(generation, value);
    entry.extras_mut().tags.insert(name.into(), of.into());
    entry
}

pub(crate) const HOLD: Hold = Hold { now: T0, stay: Stay::Forever };

pub(crate) fn at(millis: u64) -> Hold {
    Hold { now: T0.after_millis(millis), stay: Stay::Forever }
}

pub(crate) async fn put(tier: &SqliteTier, name: &str, entry: &Entry) -> Put {
    tier.put(&key(name), entry, HOLD, &Always).await.unwrap()
}

pub(crate) async fn get(tier: &SqliteTier, name: &str) -> Option<Entry> {
    tier.get(&key(name)).await.unwrap()
}

pub(crate) async fn remove(tier: &SqliteTier, name: &str, below: u64) -> Removal {
    tier.remove(&key(name), g(below)).await.unwrap()
}

pub(crate) fn check(path: &Path, repair: bool) -> Report {
    let mut last = (0, 0);
    let report = SqliteTier::check(&path.join("level"), repair, &mut |done, total| {
        assert!(done >= last.0 && done <= total);
        last = (done, total);
    });
    let report = report.unwrap();
    assert_eq!(last.0, last.1);
    report
}

/// Files of large values.
pub(crate) fn files(path: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for folder in std::fs::read_dir(path.join("level")).unwrap().map(|entry| entry.unwrap().path()) {
        if folder.is_dir() {
            files.extend(std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    files
}

/// A shard's database behind the level's back.
pub(crate) fn database(path: &Path, shard: usize) -> rusqlite::Connection {
    rusqlite::Connection::open(path.join(format!("level/shard-{shard}.db"))).unwrap()
}
