//! Writes that arrive after what came later.

use std::sync::Arc;

use crate::common::{Fake, config, entries, entry, eventually, hold, key, open, put, raw, remove, value};
use tiercache_core::Tier;
use tiercache_core::tier::{Always, Put, Removal};
use tiercache_s3::S3Tier;

/// A put that the server has received and not carried out when its caller goes away.
async fn dropped_put(fake: &Fake, tier: &Arc<S3Tier>, name: &str, generation: u64) {
    fake.hold_puts();
    let (tier, name) = (tier.clone(), name.to_owned());
    let putting =
        tokio::spawn(async move { tier.put(&key(&name), &entry("late", generation), hold(), &Always).await });
    fake.received().await;
    putting.abort();
    assert!(putting.await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn a_write_that_arrives_after_its_removal_is_not_answered_and_goes() {
    let fake = Fake::start();
    let config = config(fake.url());
    let tier = Arc::new(open(config.clone()).await);
    dropped_put(&fake, &tier, "k", 5).await;
    assert!(remove(&tier, "k", 9).await.is_done(), "nothing is there yet");
    fake.release_puts();
    fake.landed().await;
    let client = raw(fake.url());
    assert_eq!(entries(&client, &config.prefix).await.len(), 1, "it has arrived");
    assert_eq!(value(&tier, "k").await, None);
    eventually("it is deleted", async || entries(&client, &config.prefix).await.is_empty()).await;
    assert_eq!(put(&tier, "k", "next", 9).await, Put::Stored);
    assert_eq!(value(&tier, "k").await, Some("next".into()));
}

#[tokio::test]
async fn a_write_that_arrives_over_a_newer_one_is_not_answered() {
    let fake = Fake::start();
    fake.ignore_conditions();
    let tier = Arc::new(open(config(fake.url())).await);
    dropped_put(&fake, &tier, "k", 5).await;
    remove(&tier, "k", 9).await;
    // What is put while the gate is closed waits behind it, too: the older one goes through first otherwise.
    let late = tokio::spawn({
        let tier = tier.clone();
        async move { tier.put(&key("other"), &entry("other", 10), hold(), &Always).await }
    });
    fake.received().await;
    fake.release_puts();
    late.await.unwrap().unwrap();
    fake.landed().await;
    fake.landed().await;
    assert_eq!(value(&tier, "k").await, None);
    assert_eq!(put(&tier, "k", "next", 9).await, Put::Stored, "in the place of the late one");
    assert_eq!(value(&tier, "k").await, Some("next".into()));
    assert_eq!(value(&tier, "other").await, Some("other".into()), "other keys are as they were");
}

#[tokio::test]
async fn a_condition_keeps_a_late_write_from_what_came_after_it() {
    let fake = Fake::start();
    let tier = Arc::new(open(config(fake.url())).await);
    assert_eq!(put(&tier, "k", "first", 4).await, Put::Stored);
    dropped_put(&fake, &tier, "k", 5).await;
    // Another process, which knows nothing of the write that is held, does what it likes.
    let client = raw(fake.url());
    let object = fake.objects().pop().unwrap();
    let name = format!("{}", object.display());
    let name = name.split_once("/cache/").unwrap().1.to_owned();
    client.delete_object().bucket(crate::common::BUCKET).key(&name).send().await.unwrap();
    fake.release_puts();
    fake.landed().await;
    assert_eq!(value(&tier, "k").await, None, "what it was to replace is gone, so it is refused");
}

#[tokio::test]
async fn a_removal_by_another_process_is_seen_by_generation() {
    let fake = Fake::start();
    let config = config(fake.url());
    let (one, other) = (open(config.clone()).await, open(config).await);
    assert_eq!(put(&one, "k", "one", 5).await, Put::Stored);
    assert_eq!(put(&other, "k", "other", 5).await, Put::Superseded, "the same generation, another value");
    assert_eq!(remove(&other, "k", 5).await, Removal::Behind(tiercache_core::Generation::new(5)));
    assert!(remove(&other, "k", 6).await.is_done());
    assert_eq!(value(&one, "k").await, None);
}
