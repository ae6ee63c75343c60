//! The S3 level keeps the contract of a tier, and of one that outlives the process, over two servers that share no code.

use std::sync::Arc;

use crate::common::{Fake, config, open, raw};
use tiercache_core::testing::tier;
use tiercache_core::{EncryptionConfig, Packing, Secret, Tier};
use tiercache_s3::S3Config;
use tiercache_services::Moto;

async fn keeps_the_contract(config: impl Fn() -> S3Config) {
    let fresh = || S3Config { max_entry_size: 4 << 20, ..config() };
    tier::suite(async || Arc::new(open(fresh()).await) as Arc<dyn Tier>).await;
}

async fn keeps_it_across_processes(url: &str) {
    let all = config(url);
    let place = |number| S3Config { prefix: format!("{}{number}", all.prefix), ..all.clone() };
    tier::persistent_suite(async |number| Arc::new(open(place(number)).await) as Arc<dyn Tier>).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_s3s_it_keeps_the_contract() {
    let fake = Fake::start();
    keeps_the_contract(|| config(fake.url())).await;
}

#[tokio::test]
async fn packed_and_sealed_it_keeps_the_contract() {
    let fake = Fake::start();
    let encryption = EncryptionConfig {
        key: Some(Secret::from(format!("{}=", "A".repeat(43)))),
        ..EncryptionConfig::default()
    };
    keeps_the_contract(|| S3Config {
        compression: Packing::Zstd,
        encryption: Some(encryption.clone()),
        ..config(fake.url())
    })
    .await;
}

#[tokio::test]
async fn over_s3s_it_keeps_the_contract_across_processes() {
    keeps_it_across_processes(Fake::start().url()).await;
}

#[tokio::test]
async fn over_a_vendor_that_ignores_conditions_it_keeps_the_contract() {
    let fake = Fake::start();
    fake.ignore_conditions();
    keeps_the_contract(|| config(fake.url())).await;
}

#[tokio::test]
async fn over_a_vendor_that_knows_no_conditions_it_keeps_the_contract() {
    let fake = Fake::start();
    fake.refuse_conditions();
    keeps_the_contract(|| config(fake.url())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_moto_it_keeps_the_contract() {
    let Some(moto) = Moto::start() else { return };
    let _ = raw(&moto.url()).create_bucket().bucket(crate::common::BUCKET).send().await.unwrap();
    keeps_the_contract(|| config(&moto.url())).await;
}

#[tokio::test]
async fn over_moto_it_keeps_the_contract_across_processes() {
    let Some(moto) = Moto::start() else { return };
    let _ = raw(&moto.url()).create_bucket().bucket(crate::common::BUCKET).send().await.unwrap();
    keeps_it_across_processes(&moto.url()).await;
}
