//! A server that is down, slow, lying or not to be entered.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::{Fake, SECRET, config, entry, eventually, hold, key, noise, open, put, remove, value};
use tiercache_core::testing::ManualClock;
use tiercache_core::tier::{Always, Put};
use tiercache_core::{Entry, Error, Generation, Secret, Tier};
use tiercache_s3::{S3Config, S3Tier};
use tiercache_services::{Fault, Proxy};

/// Requests give up early.
fn hasty(proxy: &Proxy) -> S3Config {
    S3Config {
        timeout: Duration::from_millis(400),
        connect_timeout: Duration::from_millis(300),
        ..config(&format!("http://{}", proxy.address()))
    }
}

#[tokio::test]
async fn whatever_happens_on_the_way_nothing_wrong_is_answered_and_nobody_waits_for_ever() {
    let fake = Fake::start();
    let proxy = Proxy::to(fake.address());
    let tier = open(hasty(&proxy)).await;
    let large = Entry::new(noise(300_000), Generation::new(1), hold().now);
    assert_eq!(put(&tier, "small", "value", 1).await, Put::Stored);
    assert_eq!(tier.put(&key("large"), &large, hold(), &Always).await.unwrap(), Put::Stored);
    let faults = [
        Fault::Refuse,
        Fault::Hang,
        Fault::Reset,
        Fault::CutAfter(0),
        Fault::CutAfter(100),
        Fault::CutAfter(100_000),
        Fault::CutRequestAfter(100),
        Fault::Delay(Duration::from_millis(20)),
        Fault::OneByte,
    ];
    let mut generation = 1;
    for fault in faults {
        proxy.set(fault);
        let began = Instant::now();
        if let Ok(found) = tier.get(&key("small")).await {
            assert_eq!(found, Some(entry("value", 1)), "{fault:?}");
        }
        if let Ok(found) = tier.get(&key("large")).await {
            assert!(found.as_ref() == Some(&large), "{fault:?}");
        }
        generation += 1;
        let written = entry(format!("{generation}"), generation);
        let stored = tier.put(&key("written"), &written, hold(), &Always).await;
        if let Err(error) = &stored {
            assert!(error.is_retryable(), "{fault:?}: {error}");
        }
        assert!(began.elapsed() < Duration::from_secs(4), "{fault:?} took {:?}", began.elapsed());
        proxy.set(Fault::Pass);
        assert_eq!(value(&tier, "small").await, Some("value".into()), "after {fault:?}");
        assert!(tier.get(&key("large")).await.unwrap().as_ref() == Some(&large), "after {fault:?}");
        let found = tier.get(&key("written")).await.unwrap();
        match stored {
            Ok(put) => assert_eq!((put, found), (Put::Stored, Some(written)), "after {fault:?}"),
            Err(_) => {
                assert!(found.is_none_or(|found| found.generation <= written.generation), "after {fault:?}")
            }
        }
    }
    assert_eq!(tier.usage().await.unwrap().damaged, 0);
}

#[tokio::test]
async fn an_answer_that_was_changed_on_its_way_is_a_miss_and_the_entry_stays() {
    let fake = Fake::start();
    let proxy = Proxy::to(fake.address());
    let tier = open(hasty(&proxy)).await;
    let large = Entry::new(noise(300_000), Generation::new(1), hold().now);
    tier.put(&key("large"), &large, hold(), &Always).await.unwrap();
    proxy.set(Fault::Corrupt(100_000));
    assert_eq!(tier.get(&key("large")).await.unwrap(), None);
    proxy.set(Fault::Pass);
    assert_eq!(tier.usage().await.unwrap().damaged, 1);
    assert!(tier.get(&key("large")).await.unwrap().as_ref() == Some(&large), "it is whole where it stands");
    tier.close().await.unwrap();
    assert_eq!(fake.objects().len(), 1);
}

#[tokio::test]
async fn what_is_damaged_where_it_stands_is_a_miss_and_goes() {
    let fake = Fake::start();
    let tier = open(config(fake.url())).await;
    for (number, damage) in (1..).zip([
        (|bytes: &mut Vec<u8>| bytes[60] ^= 1) as fn(&mut Vec<u8>),
        |bytes| bytes.truncate(20),
        |bytes| bytes.clear(),
        |bytes| bytes.push(0),
        |bytes| *bytes = b"<html>".to_vec(),
    ]) {
        put(&tier, "k", &"value ".repeat(20), number).await;
        let object = fake.objects().pop().unwrap();
        let mut bytes = std::fs::read(&object).unwrap();
        damage(&mut bytes);
        std::fs::write(&object, bytes).unwrap();
        assert_eq!(value(&tier, "k").await, None, "damage {number}");
        eventually("it is deleted", async || fake.objects().is_empty()).await;
        assert_eq!(tier.usage().await.unwrap().damaged, number);
    }
}

#[tokio::test]
async fn a_write_below_a_removal_that_was_made_while_nobody_answered_stays_away() {
    let fake = Fake::start();
    let proxy = Proxy::to(fake.address());
    let tier = open(hasty(&proxy)).await;
    put(&tier, "k", "old", 5).await;
    proxy.set(Fault::Hang);
    let removing = tier.remove(&key("k"), Generation::new(9)).await;
    assert!(removing.unwrap_err().is_retryable());
    proxy.set(Fault::Pass);
    assert_eq!(value(&tier, "k").await, None, "it began, so nothing older is answered");
    assert!(remove(&tier, "k", 9).await.is_done());
}

#[tokio::test]
async fn a_level_that_cannot_be_opened_says_where_and_why() {
    let fake = Fake::start();
    let opened = async |config: S3Config| {
        let began = Instant::now();
        let error = S3Tier::open(config, "dry", ManualClock::new()).await.unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(3), "{error} took {:?}", began.elapsed());
        let shown = format!(
            "{error} {error:?} {}",
            std::error::Error::source(&error).map_or(String::new(), ToString::to_string)
        );
        assert!(!shown.contains("sentinel"), "{shown}");
        (error, shown)
    };
    let wrong = S3Config { secret_key: Some(Secret::from("sentinel2".to_owned())), ..config(fake.url()) };
    let (error, shown) = opened(wrong).await;
    assert!(matches!(error, Error::Refused(_)), "{shown}");
    assert!(shown.contains(fake.url()) && shown.contains("SignatureDoesNotMatch"), "{shown}");

    let (error, shown) = opened(S3Config { bucket: "nowhere".into(), ..config(fake.url()) }).await;
    assert!(matches!(error, Error::Refused(_)) && shown.contains("`nowhere`"), "{shown}");

    let proxy = Proxy::to(fake.address());
    for fault in [Fault::Refuse, Fault::Hang, Fault::Reset] {
        proxy.set(fault);
        let (error, shown) = opened(hasty(&proxy)).await;
        assert!(error.is_retryable() && shown.contains(&proxy.address()), "{fault:?}: {shown}");
    }
}

#[tokio::test]
async fn a_wiped_server_is_misses_and_takes_writes_again() {
    let fake = Fake::start();
    let tier = open(config(fake.url())).await;
    put(&tier, "k", "value", 5).await;
    fake.wipe();
    assert_eq!(value(&tier, "k").await, None);
    assert!(remove(&tier, "k", 6).await.is_done());
    assert_eq!(put(&tier, "k", "next", 6).await, Put::Stored);
    assert_eq!(value(&tier, "k").await, Some("next".into()));
}

#[test]
fn no_secret_is_written_down_however_much_is_logged() {
    const TOKEN: &str = "sentinel-session-token";
    let written = Written::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer({
            let written = written.clone();
            move || written.clone()
        })
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let fake = Fake::start();
            let config =
                S3Config { session_token: Some(Secret::from(TOKEN.to_owned())), ..config(fake.url()) };
            written.0.lock().unwrap().extend(format!("{config:?}").into_bytes());
            // A server that knows no tokens still answers.
            let tier = open(config.clone()).await;
            put(&tier, "k", "value", 5).await;
            assert_eq!(value(&tier, "k").await, Some("value".into()));
            remove(&tier, "k", 6).await;
            written.0.lock().unwrap().extend(format!("{tier:?}").into_bytes());
            let denied = S3Config { secret_key: Some(Secret::from(format!("{SECRET}x"))), ..config };
            let error = S3Tier::open(denied, "dry", ManualClock::new()).await.unwrap_err();
            written.0.lock().unwrap().extend(format!("{error:?}").into_bytes());
        });
    });
    let text = String::from_utf8_lossy(&written.0.lock().unwrap()).into_owned();
    assert!(text.len() > 10_000, "everything is logged");
    for secret in [SECRET, TOKEN] {
        let at = text.find(secret);
        assert!(at.is_none(), "{:?}", at.map(|at| &text[at.saturating_sub(600)..at + 50]));
    }
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
