//! The RAM tier keeps the contract of a tier, with every policy.

use std::sync::Arc;

use tiercache_core::testing::{FaultTier, GateTier, tier};
use tiercache_core::tier::Tier;
use tiercache_ram::{Policy, RamConfig, RamTier};

fn fresh(policy: Policy) -> Arc<dyn Tier> {
    Arc::new(RamTier::new(RamConfig { max_size: 4 << 20, policy }))
}

#[tokio::test]
async fn adaptive_keeps_the_contract() {
    tier::suite(async || fresh(Policy::Adaptive)).await;
}

#[tokio::test]
async fn lru_keeps_the_contract() {
    tier::suite(async || fresh(Policy::Lru)).await;
}

#[tokio::test]
async fn tinylfu_keeps_the_contract() {
    tier::suite(async || fresh(Policy::TinyLfu)).await;
}

#[tokio::test]
async fn fifo_keeps_the_contract() {
    tier::suite(async || fresh(Policy::Fifo)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_several_threads_too() {
    for policy in [Policy::Adaptive, Policy::Lru, Policy::TinyLfu, Policy::Fifo] {
        tier::suite(async || fresh(policy)).await;
    }
}

#[tokio::test]
async fn decorated_too() {
    tier::suite(async || Arc::new(GateTier::transparent(fresh(Policy::Adaptive))) as Arc<dyn Tier>).await;
    tier::suite(async || Arc::new(FaultTier::transparent(fresh(Policy::Adaptive))) as Arc<dyn Tier>).await;
}
