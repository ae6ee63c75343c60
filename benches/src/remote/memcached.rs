//! memcached beside its client.

use async_memcached::{AsciiProtocol, Client};
use tiercache_core::Tier;
use tiercache_memcached::{MemcachedConfig, MemcachedTier};
use tiercache_services::Memcached;

use super::{Bench, Cores, KEYS, VALUE, Writer, skipped};
use crate::Options;

pub(super) async fn run(options: &Options) {
    if !options.wants("backend", "memcached") {
        return;
    }
    let cores = Cores::one();
    let Some(server) = Memcached::start() else { return skipped("memcached") };
    let url = server.url();
    let servers = vec![url.trim_start_matches("tcp://").trim_start_matches("memcached://").to_owned()];
    let dial = format!("tcp://{}", servers[0]);
    let config = MemcachedConfig { servers, prefix: "bench".into(), ..MemcachedConfig::default() };
    let tier = MemcachedTier::open(config, "cold").await.expect("memcached takes us");
    let mut client = Client::new(dial).await.expect("a client");
    let writer = Writer::new(KEYS, VALUE);
    let bench =
        Bench { options, backend: "memcached", client: "async-memcached", size: "1K".into(), calls: 2_000 };
    writer.fill(&tier).await;
    let put = async |number: usize| writer.put(&tier, writer.key(number)).await;
    let raw_put = async |number: usize| {
        client.set(writer.name(number), &writer.value[..], None, None).await.expect("a set");
    };
    bench.compare("put", put, raw_put).await;
    let raw_get = async |number: usize| {
        let found = client.get(writer.name(number)).await.expect("a get").expect("it was put");
        assert_eq!(found.data.map(|data| data.len()), Some(VALUE));
    };
    bench.compare("get", async |number| writer.found(&tier, number).await, raw_get).await;
    let remove = async |number: usize| {
        tier.remove(writer.key(number), writer.next().generation).await.expect("a removal");
    };
    // What is not there any more is an error of this client.
    let raw_remove = async |number: usize| drop(client.delete(writer.name(number)).await);
    bench.compare("remove", remove, raw_remove).await;
    writer.fill(&tier).await;
    cores.apart();
    bench.batches(&tier, &writer).await;
}
