//! The public suite against memcached itself: alone, several, on a unix socket.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tiercache_core::testing::{lease, tier};
use tiercache_core::tier::{Always, Hold};
use tiercache_core::{EncryptionConfig, Entry, Generation, Key, Leasing, Packing, Secret, Stay, Tier};
use tiercache_memcached::{MemcachedConfig, MemcachedTier};
use tiercache_services::Memcached;

async fn open(servers: &[String], prefix: String) -> Arc<MemcachedTier> {
    let config = MemcachedConfig { servers: servers.to_vec(), prefix, ..MemcachedConfig::default() };
    Arc::new(MemcachedTier::open(config, "cold").await.unwrap())
}

async fn keeps_the_contract(servers: &[String]) {
    let cases = AtomicUsize::new(0);
    let fresh = async || {
        let case = cases.fetch_add(1, Ordering::Relaxed);
        open(servers, format!("case-{case}")).await as Arc<dyn Tier>
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
    tier::persistent_suite(async |place| open(&addresses, format!("place-{place}")).await as Arc<dyn Tier>)
        .await;
}

#[tokio::test]
async fn packed_and_sealed_it_keeps_the_contract_and_shows_no_key() {
    let Some(server) = Memcached::own() else { return };
    let key = Secret::from("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".to_owned());
    let encryption = EncryptionConfig { key: Some(key), ..EncryptionConfig::default() };
    let cases = AtomicUsize::new(0);
    let fresh = async || {
        let config = MemcachedConfig {
            servers: vec![server.address().to_owned()],
            prefix: format!("case-{}", cases.fetch_add(1, Ordering::Relaxed)),
            compression: Packing::Lz4,
            encryption: Some(encryption.clone()),
            ..MemcachedConfig::default()
        };
        Arc::new(MemcachedTier::open(config, "cold").await.unwrap()) as Arc<dyn Tier>
    };
    tier::suite(&fresh).await;

    let tier = fresh().await;
    let secret = Key::new("", b"a-secret-key").unwrap();
    let entry = Entry::new("a value", Generation::new(1), tier::T0);
    let hold = Hold { now: tier::T0, stay: Stay::Forever };
    tier.put(&secret, &entry, hold, &Always).await.unwrap();
    let mut names = TcpStream::connect(server.address()).unwrap();
    names.write_all(b"lru_crawler metadump all\r\n").unwrap();
    let mut listed = String::new();
    for line in BufReader::new(names).lines().map_while(Result::ok).take_while(|line| line != "END") {
        listed.push_str(&line);
    }
    assert!(listed.contains("key=") && !listed.contains("secret"), "{listed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_give_out_leases() {
    let Some(servers) = (0..2).map(|_| Memcached::own()).collect::<Option<Vec<_>>>() else { return };
    let addresses: Vec<String> = servers.iter().map(|server| server.address().to_owned()).collect();
    let open = async |place| open(&addresses, format!("leases-{place}")).await as Arc<dyn Leasing>;
    lease::suite(Duration::from_secs(1), open).await;
}
