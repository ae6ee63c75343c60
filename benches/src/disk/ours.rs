//! The disk level by itself, and under a manager with a small hot level above.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use tiercache_core::tier::{Always, Hold, Index, TryGet};
use tiercache_core::{CacheManager, Clock, Entry, Generation, Key, Level, Stay, SystemClock, Tier};
use tiercache_disk::{DiskConfig, DiskTier};
use tiercache_ram::{RamConfig, RamTier};
use tokio::runtime::{Builder, Runtime};

use super::Store;
use crate::Options;
use crate::keys::Random;

struct Direct {
    tier: DiskTier,
    entry: Entry,
    hold: Hold,
    runtime: Runtime,
}

fn level(directory: &Path, bytes: usize, clock: &Arc<SystemClock>) -> DiskTier {
    // Room for all, so that nothing is reclaimed.
    let max_size = (bytes as u64 * 2).max(1 << 30);
    let config = DiskConfig { path: Some(directory.join("level")), max_size, ..DiskConfig::default() };
    DiskTier::open_blocking(config, clock.clone()).expect("a new directory")
}

pub(super) fn tier(directory: &Path, bytes: usize) -> Box<dyn Store> {
    let clock = SystemClock::start();
    let tier = level(directory, bytes, &clock);
    let hold = Hold { now: clock.now(), stay: Stay::Forever };
    let entry = Entry::new("", Generation::ZERO, clock.now());
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime of one thread");
    Box::new(Direct { tier, entry, hold, runtime })
}

impl Store for Direct {
    fn put(&mut self, key: &str, value: &Bytes) {
        let key = Key::new("", key.as_bytes()).expect("a valid key");
        self.entry.value = value.clone();
        self.entry.generation = Generation::new(self.entry.generation.get() + 1);
        let put = self.tier.put(&key, &self.entry, self.hold, &Always);
        self.runtime.block_on(put).expect("the disk takes it");
    }

    fn get(&mut self, key: &str) -> Option<usize> {
        let key = Key::new("", key.as_bytes()).expect("a valid key");
        let found = match self.tier.try_get(key.as_ref()) {
            TryGet::Done(found) => found,
            TryGet::WouldBlock => self.runtime.block_on(self.tier.get(&key)).ok().flatten(),
        };
        found.map(|entry| entry.value.len())
    }

    fn settle(&mut self) {
        self.runtime.block_on(self.tier.sync()).expect("the disk takes it");
    }
}

struct Managed {
    cache: CacheManager,
    runtime: Runtime,
}

pub(super) fn manager(directory: &Path, bytes: usize) -> Box<dyn Store> {
    let clock = SystemClock::start();
    let tier = level(directory, bytes, &clock);
    // What the manager does in a task of its own stays on the thread of who asked, as it does for a caller that is a
    // task of the runtime's itself.
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime of one thread");
    let cache = runtime.block_on(async {
        let hot = RamTier::new(RamConfig { max_size: 4 << 20, policy: Default::default() });
        let builder = CacheManager::builder().clock(clock).hot(Arc::new(hot)).dry(Arc::new(tier));
        builder.build().await.expect("one level below another")
    });
    Box::new(Managed { cache, runtime })
}

impl Store for Managed {
    fn put(&mut self, key: &str, value: &Bytes) {
        let set = async { self.cache.set(key, value.clone()).pin(Level::Dry).await };
        self.runtime.block_on(set).expect("the disk takes it");
    }

    fn get(&mut self, key: &str) -> Option<usize> {
        self.runtime.block_on(self.cache.get(key)).ok().flatten().map(|value| value.len())
    }

    fn settle(&mut self) {
        self.runtime.block_on(self.cache.settle()).expect("the disk takes it");
    }
}

/// Overwrites four times the level's size with 80 % of it live, half of which is read: what reclaiming room costs.
pub(super) fn reclaim(options: &Options, parent: &Path) {
    let directory = match tempfile::Builder::new().prefix("tiercache-bench-").tempdir_in(parent) {
        Ok(directory) => directory,
        Err(error) => return eprintln!("{}: {error}", parent.display()),
    };
    let clock = SystemClock::start();
    let max_size = 512 << 20;
    let path = Some(directory.path().join("level"));
    let config = DiskConfig { path, max_size, ..DiskConfig::default() };
    let tier = DiskTier::open_blocking(config, clock.clone()).expect("a new directory");
    let hold = Hold { now: clock.now(), stay: Stay::Forever };
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime of one thread");
    let mut entry = Entry::new(vec![7; 4096], Generation::ZERO, clock.now());
    let mut random = Random::new(1);
    let live = (max_size as usize / 10 * 8) / (4096 + 59);
    let key = |number: usize| Key::new("", crate::keys::key(number).as_bytes()).expect("a valid key");
    runtime.block_on(async {
        for number in 0..4 * max_size / (4096 + 59) {
            entry.generation = Generation::new(number + 1);
            tier.put(&key(random.below(live)), &entry, hold, &Always).await.expect("the disk takes it");
            let _ = tier.try_get(key(random.below(live / 2)).as_ref());
        }
    });
    let (moved, put) = tier.moved_and_put();
    let amplification = 1.0 + moved as f64 / put.max(1) as f64;
    if options.json {
        let line = json!({ "bench": "disk", "case": "reclaim", "contender": "tiercache", "write_amplification": amplification });
        println!("{line}");
    } else {
        println!("reclaim at 80 % live, half of it read: write amplification {amplification:.3}");
    }
}
