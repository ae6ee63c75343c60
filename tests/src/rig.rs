//! Small caches in which nothing happens on its own.

#![allow(missing_docs, reason = "a test's own vocabulary")]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tiercache_core::testing::{GateTier, ManualClock, MemoryTier};
use tiercache_core::tier::{Hold, Resident, Resting};
use tiercache_core::{
    Builder, CacheManager, Clock, Entry, Generation, Key, Level, Rules, Stay, Tier, Timestamp,
};
use tiercache_disk::{DiskConfig, DiskTier};
use tiercache_ram::{Policy, RamConfig, RamTier};
use tokio::task::JoinHandle;

pub const SEGMENT: u64 = 64 << 10;

/// RAM with room for more than any of these tests puts there.
pub fn ram() -> Arc<RamTier> {
    Arc::new(RamTier::new(RamConfig { max_size: 16 << 20, policy: Policy::Adaptive }))
}

/// RAM for that many entries whose key and value have `size` bytes together; the least recently used go first.
pub fn ram_for(entries: u64, size: u64) -> Arc<RamTier> {
    let policy = Policy::Lru;
    // One byte of a key's encoding is the length of its namespace.
    let max_size = entries * (policy.overhead() + size + 1);
    Arc::new(RamTier::new(RamConfig { max_size, policy }))
}

/// A disk level of 16 small segments.
pub fn disk_config(path: &Path) -> DiskConfig {
    DiskConfig {
        path: Some(path.join("level")),
        max_size: 16 * SEGMENT,
        segment_size: Some(SEGMENT),
        ..DiskConfig::default()
    }
}

pub async fn disk(path: &Path, clock: &Arc<ManualClock>) -> Arc<DiskTier> {
    let clock = clock.clone() as Arc<dyn Clock>;
    Arc::new(DiskTier::open(disk_config(path), clock).await.expect("the directory opens"))
}

/// What the directory of a level would be after `kill -9` now, as a directory of its own.
pub fn killed(path: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let to = copy.path().join("level");
    std::fs::create_dir(&to).unwrap();
    std::fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    for file in std::fs::read_dir(path.join("level")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
    copy
}

/// The segment files of the level in `path`, oldest first.
pub fn segments(path: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(path.join("level"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    files.sort();
    files
}

/// A cache that does nothing on its own, with stays for ever.
pub fn builder(clock: &Arc<ManualClock>) -> Builder {
    let rules = Rules { rules: Vec::new(), defaults: [Some(Stay::Forever); 3] };
    CacheManager::builder().clock(clock.clone()).rules(rules).manual()
}

/// Hot in RAM over a dry level that outlives the process and whose calls can be held.
pub struct Gated {
    pub cache: CacheManager,
    pub hot: Arc<RamTier>,
    pub gate: Arc<GateTier>,
    pub store: Arc<MemoryTier>,
    pub clock: Arc<ManualClock>,
}

impl Gated {
    pub async fn new() -> Self {
        Self::with(|builder| builder).await
    }

    pub async fn with(options: impl FnOnce(Builder) -> Builder) -> Self {
        Self::over(MemoryTier::persistent(), ManualClock::new(), options).await
    }

    async fn over(
        store: Arc<MemoryTier>,
        clock: Arc<ManualClock>,
        options: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let (hot, gate) = (ram(), Arc::new(GateTier::new(store.clone())));
        let builder = builder(&clock).hot(hot.clone()).dry(gate.clone());
        let cache = options(builder).build().await.expect("the cache is built");
        Self { cache, hot, gate, store, clock }
    }

    /// The next process over the same store, whether this one was closed or not.
    pub async fn next_process(&self) -> Self {
        Self::over(self.store.reopen(), self.clock.clone(), |builder| builder).await
    }

    /// Sets and sinks: afterwards only dry has it.
    pub async fn sunk(&self, key: &str, value: &str) {
        self.cache.set(key, value.to_owned()).await.unwrap();
        self.evict();
        self.cache.settle().await.unwrap();
        assert_eq!(self.cache.stats().await.unwrap().pending, (0, 0));
    }

    /// Hot gives up all it has.
    pub fn evict(&self) {
        self.hot.drain();
    }

    pub fn in_hot(&self, key: &str) -> Option<Resting> {
        self.hot.peek(id(key).as_ref())
    }

    pub async fn in_dry(&self, key: &str) -> Option<Entry> {
        self.store.get(&id(key)).await.unwrap()
    }

    pub fn spawn_get(&self, key: &'static str) -> JoinHandle<Option<String>> {
        let cache = self.cache.clone();
        tokio::spawn(async move { get(&cache, key).await })
    }

    /// The worker that writes below.
    pub fn spawn_settle(&self) -> JoinHandle<()> {
        let cache = self.cache.clone();
        tokio::spawn(async move { cache.settle().await.unwrap() })
    }
}

pub fn id(key: &str) -> Key {
    Key::new("", key.as_bytes()).unwrap()
}

/// An entry of another life of the process.
pub fn entry(value: &str, generation: u64) -> Entry {
    Entry::new(value.to_owned(), Generation::new(generation), Timestamp::from_millis(1_700_000_000_000))
}

pub fn hold() -> Hold {
    Hold { now: Timestamp::from_millis(1_700_000_000_000), stay: Stay::Forever }
}

pub async fn get(cache: &CacheManager, key: &str) -> Option<String> {
    cache.get(key).await.unwrap().map(text)
}

/// Where the answer came from.
pub async fn level(cache: &CacheManager, key: &str) -> Option<Level> {
    cache.entry(key).await.unwrap().map(|entry| entry.level)
}

pub fn text(value: Bytes) -> String {
    String::from_utf8(value.to_vec()).unwrap()
}

/// Lets every task that can go on do so, on a runtime of one thread.
pub async fn idle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}
