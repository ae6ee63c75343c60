//! The public suites, whole: on the **simulator** of MongoDB, and on MongoDB itself where there is one.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{config, prefix, tier, tracking, tracking_config};
use tiercache_core::testing::{lease, tier as tiers, tracking as trackings};
use tiercache_core::{EncryptionConfig, Leasing, Secret, Tier, Tracking};
use tiercache_mongo::{MongoConfig, MongoTrackingConfig};
use tiercache_services::{MongoSim, Mongod};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_simulator_passes_the_suite_of_tiers() {
    let Some(server) = MongoSim::start() else { return };
    tier_suite(&server.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_simulator_passes_the_suite_of_tiers_with_everything_in_gridfs() {
    let Some(server) = MongoSim::start() else { return };
    let url = server.url();
    tiers::suite(async || tier(&MongoConfig { inline_limit: 0, ..config(&url) }).await as Arc<dyn Tier>)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_simulator_passes_the_suite_of_tiers_with_sealed_entries() {
    let Some(server) = MongoSim::start() else { return };
    let url = server.url();
    let key = Some(Secret::from("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".to_owned()));
    let encryption = Some(EncryptionConfig { key, ..EncryptionConfig::default() });
    tiers::suite(async || {
        let config = MongoConfig { encryption: encryption.clone(), ..config(&url) };
        tier(&config).await as Arc<dyn Tier>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_simulator_passes_the_suite_of_persistent_tiers() {
    let Some(server) = MongoSim::start() else { return };
    persistent_tier_suite(&server.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_simulator_passes_the_suite_of_tracking() {
    let Some(server) = MongoSim::start() else { return };
    tracking_suite(&server.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_simulator_passes_the_suite_of_leases() {
    let Some(server) = MongoSim::start() else { return };
    lease_suites(&server.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongodb_itself_passes_every_suite() {
    let Some(server) = Mongod::start() else { return };
    let url = server.url();
    tier_suite(&url).await;
    persistent_tier_suite(&url).await;
    tracking_suite(&url).await;
    lease_suites(&url).await;
}

async fn tier_suite(url: &str) {
    tiers::suite(async || tier(&config(url)).await as Arc<dyn Tier>).await;
}

async fn persistent_tier_suite(url: &str) {
    let prefix = prefix();
    tiers::persistent_suite(async |place| {
        tier(&MongoConfig { prefix: format!("{prefix}_{place}"), ..config(url) }).await as Arc<dyn Tier>
    })
    .await;
}

async fn tracking_suite(url: &str) {
    trackings::suite(async || tracking(&tracking_config(url)).await as Arc<dyn Tracking>).await;
    trackings::persistent_suite(|| {
        let config = tracking_config(url);
        async move || tracking(&config).await as Arc<dyn Tracking>
    })
    .await;
}

async fn lease_suites(url: &str) {
    let term = Duration::from_millis(200);
    let prefix = prefix();
    lease::suite(term, async |place| {
        tier(&MongoConfig { prefix: format!("{prefix}_{place}"), ..config(url) }).await as Arc<dyn Leasing>
    })
    .await;
    lease::suite(term, async |place| {
        let config = MongoTrackingConfig { prefix: format!("{prefix}_{place}"), ..tracking_config(url) };
        tracking(&config).await as Arc<dyn Leasing>
    })
    .await;
}
