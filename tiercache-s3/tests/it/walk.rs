//! What a walk over the objects does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{
    Fake, NothingIsDead, config, entries, entry, eventually, hold, key, open, open_at, put, raw, value,
};
use tiercache_core::testing::ManualClock;
use tiercache_core::testing::tier::T0;
use tiercache_core::tier::{Always, Cause, FenceLog, Hold, Left, Scope, Spill};
use tiercache_core::{Clock, Entry, Generation, Key, KeyRef, Stay, Tier};
use tiercache_s3::S3Config;

/// Keeps the names of what it is given.
#[derive(Debug, Default)]
struct Basket(Mutex<Vec<(String, Cause)>>);

impl Spill for Basket {
    fn spill(&self, key: Key, _: Entry, left: Left) {
        self.0.lock().unwrap().push((key.display().into_owned(), left.cause));
    }

    fn used(&self, _: KeyRef<'_>, _: u32) {}
}

#[tokio::test]
async fn a_walk_drops_what_is_dead_and_hands_over_what_has_stayed_its_time() {
    let fake = Fake::start();
    let config = config(fake.url());
    let tier = open(config.clone()).await;
    let basket = Arc::new(Basket::default());
    tier.attach(basket.clone());
    let dying = Entry { deadline: T0.after_millis(50), ..entry("dying", 1) };
    tier.put(&key("dying"), &dying, hold(), &Always).await.unwrap();
    let short = Hold { stay: Stay::For(Duration::from_millis(40)), ..hold() };
    tier.put(&key("idle"), &entry("idle", 2), short, &Always).await.unwrap();
    put(&tier, "stays", "stays", 3).await;
    let swept = tier.sweep(T0.after_millis(60), &NothingIsDead).await.unwrap();
    assert_eq!((swept.dropped, swept.spilled, swept.complete), (1, 1, true));
    assert_eq!(*basket.0.lock().unwrap(), [("idle".to_owned(), Cause::StayOver)]);
    assert_eq!(entries(&raw(fake.url()), &config.prefix).await.len(), 1);
    assert_eq!(value(&tier, "stays").await, Some("stays".into()));
    let usage = tier.usage().await.unwrap();
    assert_eq!(usage.entries, Some(1));
    assert!(usage.bytes.is_some_and(|bytes| bytes > 5 && bytes < 100), "{usage:?}");
}

#[tokio::test]
async fn walks_are_as_far_apart_as_the_configuration_says() {
    let fake = Fake::start();
    let tier = open(S3Config { walk_every: Some(Duration::from_secs(60)), ..config(fake.url()) }).await;
    let sweep = async |millis| {
        let _ = fake.requests();
        tier.sweep(T0.after_millis(millis), &NothingIsDead).await.unwrap();
        fake.requests().get("list").copied().unwrap_or_default()
    };
    assert_eq!(sweep(0).await, 1, "the first at once");
    assert_eq!(sweep(29_000).await, 0);
    assert_eq!(sweep(31_000).await, 1, "the records, no walk");
    assert_eq!(sweep(59_000).await, 0);
    assert_eq!(sweep(61_000).await, 2, "records and entries");
}

#[tokio::test]
async fn what_is_over_the_size_goes_oldest_first() {
    let fake = Fake::start();
    let config =
        S3Config { max_size: Some(10_000), list_every: Duration::from_secs(60), ..config(fake.url()) };
    let tier = open(config.clone()).await;
    let basket = Arc::new(Basket::default());
    tier.attach(basket.clone());
    for number in 0..20 {
        put(&tier, &format!("{number:02}"), &"x".repeat(1_000), number + 1).await;
        // Ages are told by the server's clock, in milliseconds here.
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let swept = tier.sweep(T0, &NothingIsDead).await.unwrap();
    assert!(swept.complete);
    let mut gone: Vec<_> = basket.0.lock().unwrap().iter().map(|(name, _)| name.clone()).collect();
    gone.sort();
    let oldest: Vec<_> = (0..gone.len()).map(|number| format!("{number:02}")).collect();
    assert_eq!(gone, oldest);
    let usage = tier.usage().await.unwrap();
    assert!(usage.bytes.unwrap() <= 10_000 && usage.bytes.unwrap() > 8_000, "{usage:?}");
    assert_eq!(usage.evicted, gone.len() as u64);
    assert_eq!(entries(&raw(fake.url()), &config.prefix).await.len() as u64, usage.entries.unwrap());
}

#[tokio::test]
async fn what_was_cleared_is_a_miss_at_once_everywhere_within_a_minute_and_gone_after_a_walk() {
    let fake = Fake::start();
    let clock = ManualClock::new();
    let config = S3Config { walk_every: None, ..config(fake.url()) };
    let (one, other) = (open_at(config.clone(), &clock).await, open_at(config.clone(), &clock).await);
    for number in 1..=30 {
        put(&one, &format!("k{number}"), "value", number).await;
    }
    one.clear(None, Generation::new(21)).await.unwrap();
    assert_eq!(value(&one, "k20").await, None);
    assert_eq!(value(&one, "k21").await, Some("value".into()));
    clock.advance(Duration::from_secs(31));
    other.sweep(clock.now(), &NothingIsDead).await.unwrap();
    assert_eq!(value(&other, "k19").await, None, "it was told");
    one.sweep(clock.now(), &NothingIsDead).await.unwrap();
    let client = raw(fake.url());
    eventually("their bytes go", async || entries(&client, &config.prefix).await.len() == 10).await;
}

#[tokio::test]
async fn a_fence_of_another_process_is_kept_and_forgotten_when_nothing_can_be_hit() {
    let fake = Fake::start();
    let clock = ManualClock::new();
    let config = config(fake.url());
    let (one, other) = (open_at(config.clone(), &clock).await, open_at(config.clone(), &clock).await);
    let mut tagged = entry("tagged", 5);
    tagged.extras_mut().tags.insert("type".into(), "thumbnail".into());
    one.put(&key("tagged"), &tagged, hold(), &Always).await.unwrap();
    put(&one, "plain", "plain", 6).await;
    let scope = Scope::Tag { namespace: String::new(), name: "type".into(), value: "thumbnail".into() };
    let fenced = one.fence(&scope, Generation::new(7)).await.unwrap();
    assert!(fenced > Generation::new(7), "above what others may have put");
    assert_eq!(value(&one, "tagged").await, None);
    clock.advance(Duration::from_secs(31));
    other.sweep(clock.now(), &NothingIsDead).await.unwrap();
    assert_eq!(other.remembered(), [(scope, fenced)]);
    assert_eq!(value(&other, "tagged").await, None);
    assert_eq!(value(&other, "plain").await, Some("plain".into()));
    clock.advance(Duration::from_secs(2 * 86_400));
    other.sweep(clock.now(), &NothingIsDead).await.unwrap();
    assert_eq!(other.remembered(), [], "a walk has made an end of what it hit");
    assert!(open(config).await.remembered().is_empty());
}

#[tokio::test]
async fn two_levels_and_two_applications_in_one_bucket_do_not_touch_each_other() {
    let fake = Fake::start();
    let config = config(fake.url());
    let clock = ManualClock::new();
    let at = async |prefix: &str, level: &str| {
        let config = S3Config { prefix: prefix.into(), ..config.clone() };
        tiercache_s3::S3Tier::open(config, level, clock.clone() as Arc<dyn Clock>).await.unwrap()
    };
    let tiers = [at("a", "hot").await, at("a", "cold").await, at("a/b", "hot").await, at("", "hot").await];
    for (generation, tier) in (1..).zip(&tiers) {
        put(tier, "k", &generation.to_string(), generation).await;
    }
    tiers[1].clear(None, Generation::MAX).await.unwrap();
    tiers[1].sweep(T0, &NothingIsDead).await.unwrap();
    for (generation, tier) in (1..).zip(&tiers) {
        assert_eq!(value(tier, "k").await, (generation != 2).then(|| generation.to_string()));
    }
}
