//! A backend of one's own, named in YAML like those that come along.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tiercache::prelude::*;
use tiercache::tier::{Dead, Hold, Permit, Profile, Put, Removal, Spill, Swept, Usage};
use tiercache::{Entry, Generation, Result, Tier, Timestamp, async_trait, from_yaml};

/// What a section with `backend: shelf` may say.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ShelfConfig {
    max_entry: u64,
}

#[derive(Debug)]
struct Shelf(ShelfConfig, Mutex<BTreeMap<Key, Entry>>);

impl Shelf {
    fn books(&self) -> MutexGuard<'_, BTreeMap<Key, Entry>> {
        self.1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, keep: impl Fn(&Key, &Entry) -> bool) -> Result<()> {
        self.books().retain(|key, entry| keep(key, entry));
        Ok(())
    }
}

#[rustfmt::skip] // One line for what is one thought.
#[async_trait]
impl Tier for Shelf {
    fn name(&self) -> &'static str { "shelf" }
    fn profile(&self) -> Profile {
        let max_entry_bytes = Some(self.0.max_entry);
        Profile { persistent: false, shared: false, max_entry_bytes, last_generation: Generation::ZERO }
    }
    fn attach(&self, _: Arc<dyn Spill>) {}
    async fn get(&self, key: &Key) -> Result<Option<Entry>> { Ok(self.books().get(key).cloned()) }
    async fn put(&self, key: &Key, entry: &Entry, _: Hold, permit: &dyn Permit) -> Result<Put> {
        if entry.value.len() as u64 > self.0.max_entry { return Ok(Put::TooLarge) }
        let mut books = self.books();
        match books.get(key).map(|kept| kept.generation) {
            Some(kept) if kept == entry.generation => return Ok(Put::Unchanged),
            Some(kept) if kept > entry.generation => return Ok(Put::Superseded),
            _ if !permit.holds() => return Ok(Put::Superseded),
            _ => books.insert(key.clone(), entry.clone()),
        };
        Ok(Put::Stored)
    }
    async fn remove(&self, key: &Key, below: Generation) -> Result<Removal> {
        self.keep(|kept, entry| kept != key || entry.generation >= below).map(|()| Removal::DONE)
    }
    async fn clear(&self, namespace: Option<&str>, below: Generation) -> Result<()> {
        self.keep(|key, entry| namespace.is_some_and(|name| name != key.namespace()) || entry.generation >= below)
    }
    async fn usage(&self) -> Result<Usage> {
        Ok(Usage { entries: Some(self.books().len() as u64), ..Usage::default() })
    }
    async fn sweep(&self, now: Timestamp, dead: &dyn Dead) -> Result<Swept> {
        self.keep(|key, entry| entry.is_live(now) && !dead.is_dead(key.as_ref(), entry))?;
        Ok(Swept { complete: true, ..Swept::default() })
    }
    async fn sync(&self) -> Result<()> { Ok(()) }
    async fn close(&self) -> Result<()> { Ok(()) }
}

#[tokio::main]
async fn main() -> Result<()> {
    let registry = Registry::builtin()
        .with_tier("shelf", |config, _| async { Ok(Arc::new(Shelf(config, Mutex::default()))) });
    let tiers = "dry_cache: { backend: shelf, max_entry: 1MiB }\ntracking: { backend: none }";
    let cache = from_yaml(tiers, &registry).await?;
    cache.set("moby-dick", vec![b'a'; 1000]).pin(Level::Dry).await?;
    println!("{:?}", cache.entry("moby-dick").await?.map(|entry| entry.level));
    Ok(())
}
