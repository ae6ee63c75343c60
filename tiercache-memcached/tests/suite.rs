//! The public suite against memcached itself: alone, several, on a unix socket.

#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tiercache_core::Tier;
use tiercache_core::testing::tier;
use tiercache_memcached::{MemcachedConfig, MemcachedTier};
use tiercache_services::Memcached;

async fn open(servers: &[String], prefix: String) -> Arc<dyn Tier> {
    let config = MemcachedConfig { servers: servers.to_vec(), prefix, ..MemcachedConfig::default() };
    Arc::new(MemcachedTier::open(config, "cold").await.unwrap())
}

async fn keeps_the_contract(servers: &[String]) {
    let cases = AtomicUsize::new(0);
    let fresh = async || {
        let case = cases.fetch_add(1, Ordering::Relaxed);
        open(servers, format!("case-{case}")).await
    };
    tier::suite(fresh).await;
}

#[tokio::test]
async fn a_server_keeps_the_contract() {
    let Some(server) = Memcached::start() else { return };
    keeps_the_contract(&[server.address().to_owned()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_servers_keep_the_contract() {
    let Some(servers) = (0..3).map(|_| Memcached::own()).collect::<Option<Vec<_>>>() else { return };
    let addresses: Vec<String> = servers.iter().map(|server| server.address().to_owned()).collect();
    keeps_the_contract(&addresses).await;
}

#[tokio::test]
async fn a_server_on_a_unix_socket_keeps_the_contract() {
    let Some((_server, path)) = Memcached::on_socket() else { return };
    keeps_the_contract(&[format!("unix://{}", path.display())]).await;
}

#[tokio::test]
async fn what_a_process_left_the_next_one_finds() {
    let Some(servers) = (0..2).map(|_| Memcached::own()).collect::<Option<Vec<_>>>() else { return };
    let addresses: Vec<String> = servers.iter().map(|server| server.address().to_owned()).collect();
    tier::persistent_suite(async |place| open(&addresses, format!("place-{place}")).await).await;
}
