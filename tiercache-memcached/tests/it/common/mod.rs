//! What the tests here share.

use std::io::{Read, Write};
use std::time::Duration;

use tiercache_core::tier::{Always, Hold, Put, Removal};
use tiercache_core::{Entry, Generation, Key, Stay, Tier, Timestamp};
use tiercache_memcached::{MemcachedConfig, MemcachedTier};
use tiercache_services::Memcached;

pub(crate) const T0: Timestamp = Timestamp::from_millis(1_700_000_000_000);
pub(crate) const HOLD: Hold = Hold { now: T0, stay: Stay::Forever };

pub(crate) fn config(servers: &[&str]) -> MemcachedConfig {
    let servers = servers.iter().map(|&server| server.to_owned()).collect();
    let timeout = Duration::from_millis(400);
    MemcachedConfig { servers, timeout, connect_timeout: timeout, ..MemcachedConfig::default() }
}

/// The level as one process has it.
pub(crate) async fn open(servers: &[&str]) -> MemcachedTier {
    MemcachedTier::open(config(servers), "cold").await.unwrap()
}

pub(crate) fn key(name: &str) -> Key {
    Key::new("", name.as_bytes()).unwrap()
}

pub(crate) fn entry(generation: u64, value: impl Into<Vec<u8>>) -> Entry {
    Entry::new(value.into(), Generation::new(generation), T0)
}

pub(crate) async fn put(tier: &MemcachedTier, name: &str, generation: u64, value: &str) -> Put {
    tier.put(&key(name), &entry(generation, value), HOLD, &Always).await.unwrap()
}

pub(crate) async fn get(tier: &MemcachedTier, name: &str) -> Option<Entry> {
    tier.get(&key(name)).await.unwrap()
}

pub(crate) async fn remove(tier: &MemcachedTier, name: &str, below: u64) -> Removal {
    tier.remove(&key(name), Generation::new(below)).await.unwrap()
}

/// Lets a process hear what became of the record, which it does within a second by itself.
pub(crate) async fn hear(tier: &MemcachedTier, generation: u64) {
    remove(tier, "nobody's key", generation).await;
}

/// The era, as the names of the level's items have it.
pub(crate) fn era_of(server: &Memcached) -> String {
    // An item whose answer is still being sent is not listed.
    (0..1_000).find_map(|_| listed_era(server)).expect("an item of the level")
}

fn listed_era(server: &Memcached) -> Option<String> {
    let mut stream = std::net::TcpStream::connect(server.address()).unwrap();
    stream.write_all(b"lru_crawler metadump all\r\n").unwrap();
    let mut dump = String::new();
    while !dump.contains("END") {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).unwrap();
        dump.push_str(std::str::from_utf8(&piece[..count]).unwrap());
    }
    // Names are shown with their colons escaped.
    let mut eras = dump.split("cold%3A").skip(1).filter_map(|rest| rest.get(..16));
    eras.find(|era| u64::from_str_radix(era, 16).is_ok()).map(str::to_owned)
}
