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
    vec![
        ("macro_hit", "tiercache", Box::new(by_macro)),
        ("macro_hit", "hand-written", Box::new(hand_written)),
    ]
}
