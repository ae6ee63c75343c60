//! What the tests of this crate share.

use std::path::Path;
use std::sync::{Arc, Mutex};

use tiercache_core::testing::ManualClock;
use tiercache_core::tier::{Always, Hold, Left, Put, Spill};
use tiercache_core::{Clock, Entry, Generation, Key, KeyRef, Stay, Tier};
use tiercache_disk::{DiskConfig, DiskTier};

pub(crate) const SEGMENT: u64 = 64 << 10;

/// A level of 16 small segments.
pub(crate) fn config(path: &Path) -> DiskConfig {
    DiskConfig {
        path: Some(path.join("level")),
        max_size: 16 * SEGMENT,
        segment_size: Some(SEGMENT),
        ..DiskConfig::default()
    }
}

pub(crate) fn open(path: &Path) -> DiskTier {
    open_at(config(path), &ManualClock::new())
}

pub(crate) fn open_at(config: DiskConfig, clock: &Arc<ManualClock>) -> DiskTier {
    DiskTier::open_blocking(config, Arc::clone(clock) as Arc<dyn Clock>).unwrap()
}

pub(crate) fn key(name: &str) -> Key {
    Key::new("", name.as_bytes()).unwrap()
}

pub(crate) fn entry(value: impl Into<bytes::Bytes>, generation: u64) -> Entry {
    Entry::new(value, Generation::new(generation), ManualClock::new().now())
}

pub(crate) fn hold() -> Hold {
    Hold { now: ManualClock::new().now(), stay: Stay::Forever }
}

pub(crate) async fn put(tier: &DiskTier, name: &str, value: &str, generation: u64) -> Put {
    tier.put(&key(name), &entry(value.to_owned(), generation), hold(), &Always).await.unwrap()
}

pub(crate) async fn value(tier: &DiskTier, name: &str) -> Option<String> {
    let entry = tier.get(&key(name)).await.unwrap()?;
    Some(String::from_utf8(entry.value.to_vec()).unwrap())
}

/// A value of `len` bytes that says whose it is.
pub(crate) fn filler(name: &str, len: usize) -> String {
    name.bytes().cycle().take(len).map(char::from).collect()
}

/// Keeps what it is given.
#[derive(Debug, Default)]
pub(crate) struct Basket(pub Mutex<Vec<(Key, Entry, Left)>>);

impl Spill for Basket {
    fn spill(&self, key: Key, entry: Entry, left: Left) {
        self.0.lock().unwrap().push((key, entry, left));
    }

    fn used(&self, _: KeyRef<'_>, _: u32) {}
}

/// Every segment file of the level, oldest first.
pub(crate) fn segments(path: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(path.join("level"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    files.sort();
    files
}

/// Ends as `kill -9` would: nothing that is only in RAM is written, and the directory is free again.
pub(crate) fn kill(tier: DiskTier, path: &Path) {
    // The process's end releases the lock; here a copy of the directory stands for what it leaves behind.
    let (from, to) = (path.join("level"), path.join("copy"));
    std::fs::create_dir(&to).unwrap();
    for file in std::fs::read_dir(&from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
    drop(tier);
    std::fs::remove_dir_all(&from).unwrap();
    std::fs::rename(&to, &from).unwrap();
}
