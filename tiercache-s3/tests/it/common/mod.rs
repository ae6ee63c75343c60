//! What the tests of this crate share.

mod fake;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
pub(crate) use fake::{Cut, Fake};
use tiercache_core::testing::ManualClock;
use tiercache_core::tier::{Always, Dead, Hold, Put, Removal};
use tiercache_core::{Clock, Entry, Generation, Key, KeyRef, Secret, Stay, Tier};
use tiercache_s3::{S3Config, S3Tier};

pub(crate) const BUCKET: &str = "cache";
pub(crate) const ACCESS: &str = "AKIDTESTTESTTESTTEST";
pub(crate) const SECRET: &str = "sentinel/5ecret+key";

/// A prefix of its own for each call.
pub(crate) fn prefix() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("p{}/", NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn config(url: &str) -> S3Config {
    S3Config {
        bucket: BUCKET.into(),
        endpoint_url: Some(url.into()),
        prefix: prefix(),
        access_key: Some(Secret::from(ACCESS.to_owned())),
        secret_key: Some(Secret::from(SECRET.to_owned())),
        max_entry_size: 16 << 20,
        ..S3Config::default()
    }
}

pub(crate) async fn open(config: S3Config) -> S3Tier {
    S3Tier::open(config, "dry", ManualClock::new()).await.unwrap()
}

pub(crate) async fn open_at(config: S3Config, clock: &Arc<ManualClock>) -> S3Tier {
    S3Tier::open(config, "dry", clock.clone() as Arc<dyn Clock>).await.unwrap()
}

/// The SDK as it comes, to look behind the level's back.
pub(crate) fn raw(url: &str) -> Client {
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(aws_smithy_http_client::tls::Provider::Rustls(
            aws_smithy_http_client::tls::rustls_provider::CryptoMode::Ring,
        ))
        .build_https();
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .http_client(http)
        .credentials_provider(Credentials::new(ACCESS, SECRET, None, None, "test"))
        .region(Region::new("us-east-1"))
        .endpoint_url(url)
        .force_path_style(true)
        .request_checksum_calculation(aws_sdk_s3::config::RequestChecksumCalculation::WhenRequired)
        .build();
    Client::from_conf(config)
}

/// Names of objects under a prefix.
pub(crate) async fn names(client: &Client, prefix: &str) -> Vec<String> {
    let listed = client.list_objects_v2().bucket(BUCKET).prefix(prefix).send().await.unwrap();
    listed.contents().iter().map(|object| object.key().unwrap().to_owned()).collect()
}

/// Names of entries' objects under a prefix.
pub(crate) async fn entries(client: &Client, prefix: &str) -> Vec<String> {
    names(client, &format!("{prefix}dry/o/")).await
}

pub(crate) fn key(name: &str) -> Key {
    Key::new("", name.as_bytes()).unwrap()
}

pub(crate) fn entry(value: impl Into<bytes::Bytes>, generation: u64) -> Entry {
    Entry::new(value, Generation::new(generation), ManualClock::new().now())
}

pub(crate) fn hold() -> Hold {
    Hold { now: ManualClock::new().now(), stay: Stay::Forever }
}

pub(crate) async fn put(tier: &S3Tier, name: &str, value: &str, generation: u64) -> Put {
    tier.put(&key(name), &entry(value.to_owned(), generation), hold(), &Always).await.unwrap()
}

pub(crate) async fn value(tier: &S3Tier, name: &str) -> Option<String> {
    let entry = tier.get(&key(name)).await.unwrap()?;
    Some(String::from_utf8(entry.value.to_vec()).unwrap())
}

pub(crate) async fn remove(tier: &S3Tier, name: &str, below: u64) -> Removal {
    tier.remove(&key(name), Generation::new(below)).await.unwrap()
}

/// Bytes that nothing packs and that are not all alike.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(next).collect()
}

/// Waits until it is so; what is waited for happens in the background.
pub(crate) async fn eventually(what: &str, so: impl AsyncFn() -> bool) {
    for _ in 0..500 {
        if so().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

pub(crate) struct NothingIsDead;

impl Dead for NothingIsDead {
    fn is_dead(&self, _: KeyRef<'_>, _: &Entry) -> bool {
        false
    }
}
