//! Two processes' managers over one memcached.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::{config, open};
use tiercache_core::CacheManager;
use tiercache_memcached::MemcachedTier;
use tiercache_services::Memcached;

async fn manager(server: &Memcached) -> CacheManager {
    let tier = Arc::new(open(&[server.address()]).await);
    CacheManager::builder().cold(tier).build().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_sets_and_deletes_the_other_sees() {
    let Some(server) = Memcached::own() else { return };
    let (a, b) = (manager(&server).await, manager(&server).await);
    for round in 0..20 {
        let value = format!("{round}");
        let (one, other) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        one.set("k", value.clone()).await.unwrap();
        assert_eq!(other.get("k").await.unwrap().unwrap(), value);
        assert_eq!(one.get("k").await.unwrap().unwrap(), value);
        other.delete("k").await.unwrap();
        assert_eq!(one.get("k").await.unwrap(), None);
        assert_eq!(other.get("k").await.unwrap(), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_namespaces_and_all_are_invalidated_for_good() {
    let Some(server) = Memcached::own() else { return };
    let (a, b) = (manager(&server).await, manager(&server).await);
    for cache in [&a, &b] {
        cache.set("tagged", "1").tag("type", "thumbnail").await.unwrap();
        cache.set("plain", "2").await.unwrap();
        cache.invalidate_tag("type", "thumbnail").await.unwrap();
        assert_eq!(cache.get("tagged").await.unwrap(), None);
        assert_eq!(cache.get("plain").await.unwrap().unwrap(), "2");
        cache.set("tagged", "3").tag("type", "thumbnail").await.unwrap();
        assert_eq!(cache.get("tagged").await.unwrap().unwrap(), "3");
        cache.namespace("space").unwrap().set("k", "4").await.unwrap();
        cache.clear().await.unwrap();
        assert_eq!(cache.get("plain").await.unwrap(), None);
        assert_eq!(cache.get("tagged").await.unwrap(), None);
        cache.set("plain", "5").await.unwrap();
        assert_eq!(cache.get("plain").await.unwrap().unwrap(), "5");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_costs_a_deadline_and_comes_back() {
    let Some(server) = Memcached::own() else { return };
    let cache = manager(&server).await;
    cache.set("k", "value").await.unwrap();
    server.pause();
    for _ in 0..5 {
        let start = Instant::now();
        assert_eq!(cache.get("k").await.unwrap(), None, "reads fail open");
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
    server.resume();
    let start = Instant::now();
    while cache.get("k").await.unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(5), "it is well again and nobody looks");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(MemcachedTier::open(config(&[server.address()]), "cold").await.is_ok());
}
