//! One load among several processes over real stores, by what stands in the file.
#![cfg(all(feature = "ram", feature = "sqlite"))]
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tiercache::core::Error;
use tiercache::{CacheManager, Config, Registry};
use tokio::sync::Semaphore;

const HEAD: &str = "
hot_cache: { backend: ram, max_size: 1MiB }
dry_cache: { backend: none }
tracking: { backend: none }
loading: { lease: 20s }
";
const NODES: usize = 4;

async fn open(store: &str) -> CacheManager {
    let config = Config::parse(&format!("{HEAD}{store}\n"), &Registry::builtin());
    config.unwrap_or_else(|error| panic!("{error}")).open().await.unwrap()
}

/// Of many callers at several nodes one loads, and all have what it brought.
async fn one_loads(store: &str) {
    let mut nodes = Vec::new();
    for _ in 0..NODES {
        nodes.push(open(store).await);
    }
    let (loads, begun, gate) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    for round in 1..=3 {
        let callers: Vec<_> = (0..NODES * 25)
            .map(|number| {
                let (cache, loads) = (nodes[number % NODES].clone(), loads.clone());
                let (begun, gate) = (begun.clone(), gate.clone());
                tokio::spawn(async move {
                    let load = async move || {
                        loads.fetch_add(1, Ordering::Relaxed);
                        begun.add_permits(1);
                        gate.acquire().await.unwrap().forget();
                        Ok::<_, Error>(format!("value {round}"))
                    };
                    cache.get_or_load(format!("key {round}"), load).await.unwrap()
                })
            })
            .collect();
        begun.acquire().await.unwrap().forget();
        // Every other node has asked and was told to wait, or will be.
        for node in &nodes {
            while node.stats().await.unwrap().in_flight == 0 {
                tokio::task::yield_now().await;
            }
        }
        gate.add_permits(1);
        for caller in callers {
            assert_eq!(caller.await.unwrap(), format!("value {round}"));
        }
        assert_eq!(loads.load(Ordering::Relaxed), round);
    }
    let mut elsewhere = 0;
    for node in &nodes {
        let stats = node.stats().await.unwrap();
        assert_eq!((stats.loads_unleased, stats.load_failures), (0, 0));
        elsewhere += stats.loads_elsewhere;
        node.close(Duration::from_secs(10)).await.unwrap();
    }
    assert!(elsewhere > 0, "somebody waited");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    one_loads(&format!("cold_cache: {{ backend: sqlite, path: {} }}", folder.path().display())).await;
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_redis() {
    let Some(server) = tiercache_services::Redis::own() else { return };
    one_loads(&format!("cold_cache: {{ backend: redis, url: '{}' }}", server.url())).await;
}

#[cfg(feature = "memcached")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_memcached() {
    let Some(server) = tiercache_services::Memcached::own() else { return };
    one_loads(&format!("cold_cache: {{ backend: memcached, servers: ['{}'] }}", server.address())).await;
}

/// A server that goes while a node loads costs that load nothing, and the next one no error.
#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_redis_that_dies() {
    let Some(server) = tiercache_services::Redis::own() else { return };
    let cache = open(&format!("cold_cache: {{ backend: redis, url: '{}' }}", server.url())).await;
    let server = std::sync::Mutex::new(Some(server));
    let load = async move || {
        drop(server.lock().unwrap().take());
        Ok::<_, Error>("v")
    };
    assert_eq!(cache.get_or_load("a", load).await.unwrap(), "v");
    assert_eq!(cache.get("a").await.unwrap().unwrap(), "v", "kept in RAM");
    for key in ["b", "c", "d"] {
        assert_eq!(cache.get_or_load(key, async || Ok::<_, Error>("v")).await.unwrap(), "v");
    }
    let stats = cache.stats().await.unwrap();
    assert_eq!((stats.loads, stats.load_failures, stats.loads_unleased), (4, 0, 3));
}
