//! Other caches that load, each as its documentation does it.

use std::convert::Infallible;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cached::ShardedLruCache;
use foyer::CacheBuilder;
use multi_tier_cache::{CacheStrategy, CacheSystemBuilder, MokaCacheConfig, TierConfig};

use super::{Call, Case, Given, Herd, slow};

type Moka = moka::future::Cache<String, Bytes, foldhash::fast::RandomState>;
type Foyer = foyer::Cache<String, Bytes>;
type MultiTier = Arc<multi_tier_cache::CacheManager>;

const ROOM: u64 = 1 << 20;

pub(super) fn cases<'a>(given: &'a Given<'a>) -> Vec<Case<'a>> {
    let (moka, foyer, multi, lru) = (moka(), foyer(), given.runtime.block_on(multi_tier()), lru());
    given.runtime.block_on(async {
        for key in given.keys {
            moka.insert(key.clone(), given.value.clone()).await;
            foyer.insert(key.clone(), given.value.clone());
            let kept = multi.set_with_strategy(key, given.value.clone(), CacheStrategy::LongTerm).await;
            kept.expect("room");
            lru.get_or_set_with(key.clone(), || given.value.clone());
        }
    });
    let mut cases: Vec<Case<'a>> = Vec::new();
    let cache = moka.clone();
    let get = move || {
        given.hits(async |key| {
            black_box(&cache.get(key).await);
        })
    };
    cases.push(("get_hit", "moka", Box::new(get)));
    let cache = moka.clone();
    let load = move || {
        given.hits(async |key| {
            black_box(&cache.get_with_by_ref(key, async { Bytes::new() }).await);
        })
    };
    cases.push(("get_or_load_hit", "moka", Box::new(load)));
    let miss = move || {
        given.misses(async |key| {
            let value = given.value.clone();
            black_box(&moka.get_with_by_ref(key, async { value }).await);
        })
    };
    cases.push(("miss", "moka", Box::new(miss)));

    let cache = foyer.clone();
    let get = move || {
        given.hits(async |key| {
            black_box(&cache.get(key));
        })
    };
    cases.push(("get_hit", "foyer-memory", Box::new(get)));
    let cache = foyer.clone();
    let load = move || {
        given.hits(async |key| {
            black_box(&cache.get_or_fetch(key, || async { Ok::<_, Infallible>(Bytes::new()) }).await);
        })
    };
    cases.push(("get_or_load_hit", "foyer-memory", Box::new(load)));
    let miss = move || {
        given.misses(async |key| {
            let value = given.value.clone();
            black_box(&foyer.get_or_fetch(key, || async { Ok::<_, Infallible>(value) }).await);
        })
    };
    cases.push(("miss", "foyer-memory", Box::new(miss)));

    let cache = multi.clone();
    let get = move || {
        given.hits(async |key| {
            black_box(&cache.get(key).await);
        })
    };
    cases.push(("get_hit", "multi-tier-cache", Box::new(get)));
    let cache = multi.clone();
    let load = move || {
        given.hits(async |key| {
            let never = || async { Ok(Bytes::new()) };
            black_box(&cache.get_or_compute_with(key, CacheStrategy::LongTerm, never).await);
        })
    };
    cases.push(("get_or_load_hit", "multi-tier-cache", Box::new(load)));
    let miss = move || {
        given.misses(async |key| {
            let value = given.value.clone();
            let compute = || async { Ok(value) };
            black_box(&multi.get_or_compute_with(key, CacheStrategy::LongTerm, compute).await);
        })
    };
    cases.push(("miss", "multi-tier-cache", Box::new(miss)));

    // It takes the key itself: a clone of it is its cost.
    let cache = lru.clone();
    let load = move || {
        given.hits(async |key| {
            black_box(&cache.get_or_set_with(key.clone(), Bytes::new));
        })
    };
    cases.push(("get_or_load_hit", "cached", Box::new(load)));
    let miss = move || {
        given.misses(async |key| {
            black_box(&lru.get_or_set_with(key.clone(), || given.value.clone()));
        })
    };
    cases.push(("miss", "cached", Box::new(miss)));
    cases
}

pub(super) fn herds() -> Vec<Herd> {
    let moka = || -> Call {
        let cache = moka();
        Box::new(move |loads| {
            let (cache, loads) = (cache.clone(), loads.clone());
            Box::pin(async move {
                let load = async {
                    slow(&loads).await;
                    Bytes::from_static(b"value")
                };
                black_box(&cache.get_with_by_ref("one", load).await);
            })
        })
    };
    let foyer = || -> Call {
        let cache = foyer();
        Box::new(move |loads| {
            let (cache, loads) = (cache.clone(), loads.clone());
            Box::pin(async move {
                let load = || async move {
                    slow(&loads).await;
                    Ok::<_, Infallible>(Bytes::from_static(b"value"))
                };
                black_box(&cache.get_or_fetch("one", load).await.is_ok());
            })
        })
    };
    let multi = || -> Call {
        let runtime = tokio::runtime::Handle::current();
        let cache = tokio::task::block_in_place(|| runtime.block_on(multi_tier()));
        Box::new(move |loads| {
            let (cache, loads) = (cache.clone(), loads.clone());
            Box::pin(async move {
                let load = || async move {
                    slow(&loads).await;
                    Ok(Bytes::from_static(b"value"))
                };
                black_box(&cache.get_or_compute_with("one", CacheStrategy::LongTerm, load).await.is_ok());
            })
        })
    };
    vec![("moka", Box::new(moka)), ("foyer-memory", Box::new(foyer)), ("multi-tier-cache", Box::new(multi))]
}

fn moka() -> Moka {
    moka::future::Cache::builder().max_capacity(ROOM).build_with_hasher(Default::default())
}

fn foyer() -> Foyer {
    let weigh = |key: &String, value: &Bytes| key.len() + value.len();
    CacheBuilder::new(256 << 20).with_weighter(weigh).build()
}

fn lru() -> Arc<ShardedLruCache<String, Bytes>> {
    Arc::new(ShardedLruCache::builder().max_size(ROOM as usize).build().expect("a size is given"))
}

async fn multi_tier() -> MultiTier {
    let config = MokaCacheConfig {
        max_capacity: ROOM,
        time_to_live: Duration::from_secs(86_400),
        time_to_idle: Duration::from_secs(86_400),
    };
    let tier = |config| Arc::new(multi_tier_cache::L1Cache::new(config).expect("a valid configuration"));
    let system = CacheSystemBuilder::new()
        .with_tier(tier(config), TierConfig::as_l1())
        .with_tier(tier(config), TierConfig::as_l2())
        .build()
        .await
        .expect("tiers in memory need nothing");
    system.cache_manager().clone()
}
