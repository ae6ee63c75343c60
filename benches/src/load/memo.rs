//! `#[cached]` beside the same written by hand.

use std::hint::black_box;

use serde::{Deserialize, Serialize};
use tiercache_core::{CacheManager, Error, TypedCache};
use tiercache_macros::cached;
use tokio::runtime::Runtime;

use super::{Case, PASS, passes};

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Price {
    id: u64,
    cents: u64,
}

#[cached(crate = tiercache_core, cache(cache), name = "price")]
async fn price(cache: &CacheManager, id: u64) -> Result<Price, Error> {
    Ok(Price { id, cents: 100 * id })
}

async fn by_hand(prices: &TypedCache<Price>, id: u64) -> Result<Price, Error> {
    let load = move || async move { Ok::<_, Error>(Price { id, cents: 100 * id }) };
    let price = prices.get_or_load(format!("price:{id}"), load).await?;
    Ok(Price::clone(&price))
}

pub(super) fn cases<'a>(runtime: &'a Runtime, cache: &'a CacheManager) -> Vec<Case<'a>> {
    let ids: Vec<u64> = (0..1_000).map(|id| id * 1_000_003).collect();
    let prices = cache.typed::<Price>();
    runtime.block_on(async {
        for &id in &ids {
            let (one, other) = (price(cache, id).await, by_hand(&prices, id).await);
            assert_eq!(one.expect("a price").cents, other.expect("a price").cents);
        }
    });
    let by_macro = {
        let ids = ids.clone();
        move || {
            passes(runtime, &ids, PASS, async |&id| {
                black_box(&price(cache, id).await);
            })
        }
    };
    let hand_written = move || {
        passes(runtime, &ids, PASS, async |&id| {
            black_box(&by_hand(&prices, id).await);
        })
    };
    let cases: [Case<'a>; 2] = [
        ("macro_hit", "tiercache", Box::new(by_macro)),
        ("macro_hit", "hand-written", Box::new(hand_written)),
    ];
    let cases = cases.into_iter();
    #[cfg(feature = "peers")]
    let cases = cases.chain([peer::case(runtime)]);
    cases.collect()
}

/// The macro of hitbox over its level in memory.
#[cfg(feature = "peers")]
mod peer {
    use std::hint::black_box;
    use std::time::Duration;

    use hitbox_fn::prelude::*;
    use hitbox_moka::MokaBackend;
    use serde::{Deserialize, Serialize};
    use tokio::runtime::Runtime;

    use crate::load::{Case, PASS, passes};

    #[derive(Clone, Debug, Serialize, Deserialize, CacheableResponse)]
    struct Price {
        id: u64,
        cents: u64,
    }

    #[cached(prefix = "price")]
    async fn price(id: u64) -> Price {
        Price { id, cents: 100 * id }
    }

    pub(super) fn case(runtime: &Runtime) -> Case<'_> {
        let backend = MokaBackend::builder().max_entries(1 << 20).build();
        let policy = PolicyConfig::builder().ttl(Duration::from_secs(3_600)).build();
        let cache = Cache::builder().backend(backend).policy(policy).build();
        let ids: Vec<u64> = (0..1_000).map(|id| id * 1_000_003).collect();
        runtime.block_on(async {
            for &id in &ids {
                assert_eq!(price(id).cache(&cache).await.cents, 100 * id);
            }
        });
        let run = move || {
            passes(runtime, &ids, PASS, async |&id| {
                black_box(&price(id).cache(&cache).await);
            })
        };
        ("macro_hit", "hitbox", Box::new(run))
    }
}
