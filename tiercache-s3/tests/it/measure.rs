//! What the level costs over the SDK alone. Not a test: `cargo nextest run -p tiercache-s3 --run-ignored only
//! --no-capture measure`.

use std::time::{Duration, Instant};

use crate::common::{BUCKET, Fake, config, hold, key, noise, open, raw};
use bytes::Bytes;
use tiercache_core::tier::Always;
use tiercache_core::{Entry, Generation, Tier};
use tiercache_s3::S3Config;

/// The median of so many runs of each, one after the other in turns, so that both see the same machine.
async fn compare(
    times: usize,
    mut one: impl AsyncFnMut(usize),
    mut other: impl AsyncFnMut(usize),
) -> [Duration; 2] {
    let mut took = [Vec::new(), Vec::new()];
    for number in 0..times {
        let began = Instant::now();
        one(number).await;
        took[0].push(began.elapsed());
        let began = Instant::now();
        other(number).await;
        took[1].push(began.elapsed());
    }
    took.map(|mut took| {
        took.sort();
        took[took.len() / 2]
    })
}

#[tokio::test]
#[ignore = "a measurement"]
async fn measure() {
    let fake = Fake::start();
    let client = raw(fake.url());
    for (size, times) in [(4 << 10, 200), (1 << 20, 100), (64 << 20, 7)] {
        let value = Bytes::from(noise(size));
        let config = S3Config { max_entry_size: 1 << 30, multipart_threshold: 1 << 30, ..config(fake.url()) };
        let tier = open(config.clone()).await;
        let in_parts = open(S3Config { multipart_threshold: 16 << 20, ..config.clone() }).await;
        let sdk_put = async |signed: bool, number: usize| {
            let put =
                client.put_object().bucket(BUCKET).key(format!("raw/{number}")).body(value.clone().into());
            if signed {
                put.send().await.unwrap();
            } else {
                put.customize().disable_payload_signing().send().await.unwrap();
            }
        };
        let entry = |number: usize| Entry::new(value.clone(), Generation::new(number as u64 + 1), hold().now);
        let put = async |tier: &tiercache_s3::S3Tier, name: &str, number: usize| {
            let key = key(&format!("{name}{number}"));
            tier.put(&key, &entry(number), hold(), &Always).await.unwrap();
        };
        let show = |what: &str, [sdk, ours]: [Duration; 2]| {
            let ratio = ours.as_secs_f64() / sdk.as_secs_f64();
            println!("{size:>9} bytes, {what:<32} sdk {sdk:>10.2?}  level {ours:>10.2?}  {ratio:.2} x");
        };
        sdk_put(true, 0).await;
        put(&tier, "warm", 0).await;
        show(
            "put",
            compare(times, async |n| sdk_put(true, n).await, async |n| put(&tier, "k", n).await).await,
        );
        show(
            "put, sdk unsigned",
            compare(times, async |n| sdk_put(false, n).await, async |n| put(&tier, "l", n).await).await,
        );
        if size > 16 << 20 {
            show(
                "put in parts",
                compare(times, async |n| sdk_put(true, n).await, async |n| put(&in_parts, "m", n).await)
                    .await,
            );
        }
        let sdk_get = async |number: usize| {
            let got = client.get_object().bucket(BUCKET).key(format!("raw/{number}")).send().await.unwrap();
            assert_eq!(got.body.collect().await.unwrap().into_bytes().len(), size);
        };
        let get = async |number: usize| {
            let got = tier.get(&key(&format!("k{number}"))).await.unwrap().unwrap();
            assert_eq!(got.value.len(), size);
        };
        show("get", compare(times, sdk_get, get).await);
    }
}
