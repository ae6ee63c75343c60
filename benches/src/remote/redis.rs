//! Redis beside its client, and what tracking there costs a hit in RAM.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::AsyncCommands;
use tiercache_core::{Address, CacheManager, Level, Tier, Tracking};
use tiercache_ram::{Policy, RamConfig, RamTier};
use tiercache_redis::{RedisConfig, RedisTier, RedisTracking, RedisTrackingConfig};
use tiercache_services::Redis;

use super::{Bench, Cores, KEYS, ROUNDS, VALUE, Writer, skipped};
use crate::Options;
use crate::measure::median;

pub(super) async fn run(options: &Options) {
    if !options.wants("backend", "redis") {
        return;
    }
    let cores = Cores::one();
    let Some(server) = Redis::start() else { return skipped("redis") };
    let url = server.url();
    let address = || Some(Address::from(url.as_str()));
    let config = RedisConfig { url: address(), prefix: "bench".into(), ..RedisConfig::default() };
    let tier = RedisTier::open(config, Level::Cold).await.expect("Redis takes us");
    let client = redis::Client::open(url.as_str()).expect("a client");
    let mut raw = client.get_multiplexed_async_connection().await.expect("a connection");
    let writer = Writer::new(KEYS, VALUE);
    let bench = Bench { options, backend: "redis", client: "redis-rs", size: "1K".into(), calls: 2_000 };
    writer.fill(&tier).await;
    let (mut set, mut unlink) = (raw.clone(), raw.clone());
    let put = async |number: usize| writer.put(&tier, writer.key(number)).await;
    let raw_put = async |number: usize| {
        set.set::<_, _, ()>(writer.name(number), &writer.value[..]).await.expect("SET");
    };
    bench.compare("put", put, raw_put).await;
    let raw_get = async |number: usize| {
        let found: Vec<u8> = raw.get(writer.name(number)).await.expect("GET");
        assert_eq!(found.len(), VALUE);
    };
    bench.compare("get", async |number| writer.found(&tier, number).await, raw_get).await;
    let remove = async |number: usize| {
        tier.remove(writer.key(number), writer.next().generation).await.expect("a removal");
    };
    let raw_remove = async |number: usize| {
        unlink.unlink::<_, ()>(writer.name(number)).await.expect("UNLINK");
    };
    bench.compare("remove", remove, raw_remove).await;
    writer.fill(&tier).await;
    cores.apart();
    bench.batches(&tier, &writer).await;
    if bench.wants("tracked_hit") {
        tracked_hit(&bench, address()).await;
    }
}

/// Hits in RAM with tracking in Redis and without any, in turns.
async fn tracked_hit(bench: &Bench<'_>, url: Option<Address>) {
    const HITS: usize = 200_000;
    let config = RedisTrackingConfig { url, prefix: "bench".into(), ..RedisTrackingConfig::default() };
    let tracking: Arc<dyn Tracking> = Arc::new(RedisTracking::open(config).await.expect("Redis takes us"));
    let writer = Writer::new(KEYS, VALUE);
    let mut caches = Vec::new();
    for tracking in [Some(tracking), None] {
        let ram = RamTier::new(RamConfig { max_size: 64 << 20, policy: Policy::Adaptive });
        let mut builder = CacheManager::builder().hot(Arc::new(ram) as Arc<dyn Tier>);
        if let Some(tracking) = tracking {
            builder = builder.tracking(tracking);
        }
        let cache = builder.build().await.expect("a cache");
        for name in &writer.names {
            cache.set(name, writer.value.clone()).await.expect("a set");
        }
        caches.push(cache);
    }
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS * 3 {
        let mut times = [0.0; 2];
        for (cache, time) in caches.iter().zip(&mut times) {
            let begun = Instant::now();
            for number in 0..HITS {
                assert!(cache.get(writer.name(number)).await.expect("a get").is_some());
            }
            *time = begun.elapsed().as_nanos() as f64 / HITS as f64;
            // Between the measurements tracking is told of what was used.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        rounds.push(times);
    }
    let ratio = median(rounds.iter().map(|[on, off]| on / off));
    let [on, off] = [0, 1].map(|at| median(rounds.iter().map(|times| times[at])));
    bench.row("tracked_hit", "redis-tracking", on, f64::NAN, format!("{ratio:.2} × without"));
    bench.row("tracked_hit", "no-tracking", off, f64::NAN, String::new());
    for cache in caches {
        cache.close(Duration::from_secs(5)).await.expect("it closes");
    }
}
