//! One load among several processes, where tracking gives the leases out and a level that gives none has the value.
#![cfg(feature = "postgres")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::{config, opened};
use async_trait::async_trait;
use tiercache_core::testing::MemoryTier;
use tiercache_core::tier::{Dead, Hold, Permit, Profile, Put, Removal, Spill, Swept, Usage};
use tiercache_core::{CacheManager, Entry, Error, Generation, Key, LoadOptions, Result, Tier};
use tiercache_services::Postgres;
use tokio::sync::Semaphore;

/// A store of bytes that other processes see, and nothing more.
#[derive(Debug)]
struct Bare(Arc<MemoryTier>);

#[async_trait]
impl Tier for Bare {
    fn name(&self) -> &'static str {
        "bare"
    }

    fn profile(&self) -> Profile {
        self.0.profile()
    }

    fn attach(&self, spill: Arc<dyn Spill>) {
        self.0.attach(spill);
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        self.0.get(key).await
    }

    async fn put(&self, key: &Key, entry: &Entry, hold: Hold, permit: &dyn Permit) -> Result<Put> {
        self.0.put(key, entry, hold, permit).await
    }

    async fn remove(&self, key: &Key, below: Generation) -> Result<Removal> {
        self.0.remove(key, below).await
    }

    async fn clear(&self, namespace: Option<&str>, below: Generation) -> Result<()> {
        self.0.clear(namespace, below).await
    }

    async fn usage(&self) -> Result<Usage> {
        self.0.usage().await
    }

    async fn sweep(&self, now: tiercache_core::Timestamp, dead: &dyn Dead) -> Result<Swept> {
        self.0.sweep(now, dead).await
    }

    async fn sync(&self) -> Result<()> {
        self.0.sync().await
    }

    async fn close(&self) -> Result<()> {
        self.0.close().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_four_nodes_one_loads() {
    let Some(server) = Postgres::start() else { return };
    let (place, store) = (config(&server), MemoryTier::shared());
    let mut nodes = Vec::new();
    for _ in 0..4 {
        let tracking = Arc::new(opened(place.clone()).await);
        let builder = CacheManager::builder().dry(Arc::new(Bare(store.reopen()))).tracking(tracking);
        nodes.push(builder.build().await.unwrap());
    }
    assert_eq!(nodes[0].locks_in(), "postgres");
    let (loads, begun, gate) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let callers: Vec<_> = (0..40)
        .map(|number| {
            let (cache, loads) = (nodes[number % 4].clone(), loads.clone());
            let (begun, gate) = (begun.clone(), gate.clone());
            let options = LoadOptions::new().lease(Duration::from_secs(20));
            tokio::spawn(async move {
                let load = async move || {
                    loads.fetch_add(1, Ordering::Relaxed);
                    begun.add_permits(1);
                    gate.acquire().await.unwrap().forget();
                    Ok::<_, Error>("v")
                };
                cache.get_or_load("k", load).options(&options).await.unwrap()
            })
        })
        .collect();
    begun.acquire().await.unwrap().forget();
    for node in &nodes {
        while node.stats().await.unwrap().in_flight == 0 {
            tokio::task::yield_now().await;
        }
    }
    gate.add_permits(1);
    for caller in callers {
        assert_eq!(caller.await.unwrap(), "v");
    }
    assert_eq!(loads.load(Ordering::Relaxed), 1);
    for node in nodes {
        assert_eq!(node.stats().await.unwrap().loads_unleased, 0);
        node.close(Duration::from_secs(10)).await.unwrap();
    }
}
