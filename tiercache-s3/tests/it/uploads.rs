//! Entries in parts: all of one or nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::{
    Cut, Fake, NothingIsDead, config, entries, eventually, hold, key, noise, open, put, raw, value,
};
use tiercache_core::testing::tier::T0;
use tiercache_core::tier::{Always, Permit, Put};
use tiercache_core::{Entry, Generation, Tier};
use tiercache_s3::S3Config;
use tiercache_services::Moto;

/// Three parts: with the beginning and the end five requests.
const REQUESTS: usize = 5;

fn parted(url: &str) -> S3Config {
    S3Config {
        multipart_threshold: 1 << 20,
        part_size: 5 << 20,
        unfinished_after: Duration::from_millis(1),
        ..config(url)
    }
}

fn large(generation: u64) -> Entry {
    Entry::new(noise((11 << 20) + 17), Generation::new(generation), T0)
}

#[tokio::test]
async fn what_goes_up_in_parts_comes_back_whole() {
    let fake = Fake::start();
    let tier = open(parted(fake.url())).await;
    for generation in [1, 2] {
        assert_eq!(tier.put(&key("k"), &large(generation), hold(), &Always).await.unwrap(), Put::Stored);
        assert!(tier.get(&key("k")).await.unwrap() == Some(large(generation)), "generation {generation}");
    }
    assert_eq!(tier.put(&key("k"), &large(2), hold(), &Always).await.unwrap(), Put::Unchanged);
    assert_eq!(tier.put(&key("k"), &large(1), hold(), &Always).await.unwrap(), Put::Superseded);
    assert_eq!((fake.uploads(), fake.parts()), (0, 0));
}

#[tokio::test]
async fn over_moto_too() {
    let Some(moto) = Moto::start() else { return };
    let client = raw(&moto.url());
    let _ = client.create_bucket().bucket(crate::common::BUCKET).send().await.unwrap();
    let config = parted(&moto.url());
    let tier = open(config.clone()).await;
    assert_eq!(tier.put(&key("k"), &large(1), hold(), &Always).await.unwrap(), Put::Stored);
    assert!(tier.get(&key("k")).await.unwrap() == Some(large(1)));

    // What a process that was killed has left behind.
    let name = format!("{}dry/o/left", config.prefix);
    let left =
        client.create_multipart_upload().bucket(crate::common::BUCKET).key(&name).send().await.unwrap();
    let part = client.upload_part().bucket(crate::common::BUCKET).key(&name).part_number(1);
    let body = noise(5 << 20).into();
    part.upload_id(left.upload_id().unwrap()).body(body).send().await.unwrap();
    let foreign =
        client.create_multipart_upload().bucket(crate::common::BUCKET).key("elsewhere").send().await.unwrap();
    // A test's clock stands in the past: here it must be the server's.
    let now = tiercache_core::Timestamp::from_millis(4_000_000_000_000);
    tier.sweep(now, &NothingIsDead).await.unwrap();
    let unfinished = client.list_multipart_uploads().bucket(crate::common::BUCKET).send().await.unwrap();
    let ids: Vec<_> = unfinished.uploads().iter().filter_map(|upload| upload.upload_id()).collect();
    assert_eq!(ids, [foreign.upload_id().unwrap()], "ours has gone, another's stays");
}

#[tokio::test]
async fn an_upload_that_was_superseded_meanwhile_is_not_completed() {
    struct Until(AtomicUsize);
    impl Permit for Until {
        fn holds(&self) -> bool {
            self.0.fetch_sub(1, Ordering::SeqCst) > 1
        }
    }
    let fake = Fake::start();
    let tier = open(parted(fake.url())).await;
    let once = Until(AtomicUsize::new(2));
    assert_eq!(tier.put(&key("k"), &large(1), hold(), &once).await.unwrap(), Put::Superseded);
    assert_eq!(tier.get(&key("k")).await.unwrap(), None);
    eventually("the upload is ended", async || fake.uploads() == 0 && fake.parts() == 0).await;
}

#[tokio::test]
async fn storage_class_and_encryption_are_asked_for() {
    let Some(moto) = Moto::start() else { return };
    let client = raw(&moto.url());
    let _ = client.create_bucket().bucket(crate::common::BUCKET).send().await.unwrap();
    let config = S3Config {
        storage_class: Some("STANDARD_IA".into()),
        server_side_encryption: Some("aws:kms".into()),
        kms_key_id: Some("test-key".into()),
        ..parted(&moto.url())
    };
    let tier = open(config.clone()).await;
    put(&tier, "small", "value", 1).await;
    tier.put(&key("large"), &large(2), hold(), &Always).await.unwrap();
    let names = entries(&client, &config.prefix).await;
    assert_eq!(names.len(), 2);
    for name in names {
        let head = client.head_object().bucket(crate::common::BUCKET).key(&name).send().await.unwrap();
        assert_eq!(head.storage_class().unwrap().as_str(), "STANDARD_IA");
        assert_eq!(head.server_side_encryption().unwrap().as_str(), "aws:kms");
        assert!(head.ssekms_key_id().unwrap().ends_with("test-key"));
        let labels = head.metadata().unwrap();
        let generation: u64 = labels["generation"].parse().unwrap();
        assert!((1..=2).contains(&generation) && labels["deadline"] == u64::MAX.to_string(), "{labels:?}");
    }
}

#[tokio::test]
async fn an_upload_that_fails_at_any_request_leaves_nothing() {
    let fake = Fake::start();
    let config = parted(fake.url());
    let tier = open(config.clone()).await;
    for at in 0..REQUESTS {
        fake.cut_upload(at, Cut::Fails);
        tier.put(&key("k"), &large(1), hold(), &Always).await.unwrap_err();
        assert_eq!(tier.get(&key("k")).await.unwrap(), None, "cut at {at}");
        eventually("the upload is ended", async || fake.uploads() == 0 && fake.parts() == 0).await;
    }
    fake.mend();
    assert_eq!(entries(&raw(fake.url()), &config.prefix).await, [""; 0]);
    assert_eq!(tier.put(&key("k"), &large(1), hold(), &Always).await.unwrap(), Put::Stored);
}

#[tokio::test]
async fn an_upload_whose_caller_goes_away_at_any_request_leaves_nothing() {
    let fake = Fake::start();
    let tier = Arc::new(open(parted(fake.url())).await);
    put(&tier, "k", "standing", 1).await;
    for at in 0..REQUESTS {
        fake.cut_upload(at, Cut::Hangs);
        let putting = tokio::spawn({
            let tier = tier.clone();
            async move { tier.put(&key("k"), &large(2), hold(), &Always).await }
        });
        fake.reached_cut().await;
        putting.abort();
        putting.await.unwrap_err();
        fake.mend();
        assert_eq!(value(&tier, "k").await, Some("standing".into()), "cut at {at}");
        eventually("the upload is ended", async || fake.uploads() == 0 && fake.parts() == 0).await;
    }
}

#[tokio::test]
async fn a_walk_ends_what_killed_processes_have_left() {
    let fake = Fake::start();
    let config = parted(fake.url());
    let client = raw(fake.url());
    let begin = async |name: String| {
        let begun =
            client.create_multipart_upload().bucket(crate::common::BUCKET).key(&name).send().await.unwrap();
        let id = begun.upload_id().unwrap().to_owned();
        let part = client.upload_part().bucket(crate::common::BUCKET).key(&name).part_number(1).upload_id(id);
        part.body(noise(1_000).into()).send().await.unwrap();
    };
    begin(format!("{}dry/o/left", config.prefix)).await;
    begin(format!("{}hot/o/another-level", config.prefix)).await;
    let tier = open(config.clone()).await;
    let swept = tier.sweep(T0, &NothingIsDead).await.unwrap();
    assert!(swept.complete);
    assert_eq!(fake.uploads(), 2, "by the test's clock they are yet to come");
    let tier = open(config).await;
    let now = tiercache_core::Timestamp::from_millis(4_000_000_000_000);
    tier.sweep(now, &NothingIsDead).await.unwrap();
    assert_eq!((fake.uploads(), fake.parts()), (1, 1), "another level's stays");
}
