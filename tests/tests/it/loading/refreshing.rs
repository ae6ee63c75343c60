//! Values renewed before anybody has to wait for them.

use std::convert::Infallible;
use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use tiercache_core::{Eager, LoadContext, LoadOptions, Reason};
use tiercache_tests::rig::idle;

use super::{Origin, in_ram};

const TTL: Duration = Duration::from_secs(100);

#[tokio::test(start_paused = true)]
async fn within_its_window_a_stale_value_is_answered_at_once_and_renewed_once() {
    let (cache, clock) = in_ram(|builder| builder).await;
    let origin = Origin::new("v1");
    let options = LoadOptions::new().ttl(TTL).stale_while_revalidate(TTL);
    cache.get_or_load("k", origin.load()).options(&options).await.unwrap();
    clock.advance(TTL);
    origin.says("v2");
    origin.hold();
    let begun = tokio::time::Instant::now();
    for _ in 0..50 {
        let served = cache.get_or_load("k", origin.load()).options(&options).entry().await.unwrap();
        assert!(served.is_stale());
        assert_eq!(served.value, "v1");
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
    idle().await;
    assert_eq!(origin.loads(), 2);
    origin.release();
    idle().await;
    let served = cache.get_or_load("k", origin.load()).options(&options).entry().await.unwrap();
    assert_eq!((served.value.as_ref(), served.is_stale()), (b"v2".as_slice(), false));
    let stats = cache.stats().await.unwrap();
    assert_eq!((stats.loads, stats.refreshes, stats.served_stale), (1, 1, 50));
}

#[tokio::test(start_paused = true)]
async fn a_hit_past_the_eager_share_renews_the_value_in_the_background() {
    let (cache, clock) = in_ram(|builder| builder).await;
    let origin = Origin::new("v1");
    let options = LoadOptions::new().ttl(TTL).eager(Eager::After(0.8));
    let get = || async { cache.get_or_load("k", origin.load()).options(&options).await.unwrap() };
    get().await;
    clock.advance(TTL.mul_f32(0.79));
    get().await;
    idle().await;
    assert_eq!(origin.loads(), 1, "not yet");
    clock.advance(TTL.mul_f32(0.02));
    origin.says("v2");
    origin.hold();
    for _ in 0..20 {
        assert_eq!(get().await, "v1", "nobody waits");
    }
    idle().await;
    assert_eq!(origin.loads(), 2, "one refresh");
    origin.release();
    idle().await;
    assert_eq!(get().await, "v2");
    clock.advance(TTL.mul_f32(0.79));
    assert_eq!(get().await, "v2", "with a life of its own");
    assert_eq!(origin.loads(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_chance_refresh_is_the_likelier_the_longer_a_load_took_and_the_nearer_the_end_is() {
    let options = LoadOptions::new().ttl(TTL).eager(Eager::Probably(1.0));
    let refreshes = async |takes: u64, left: u64| {
        let (cache, clock) = in_ram(|builder| builder.max_refreshes(1_000)).await;
        let load = |number: usize| {
            let loader = move || async move {
                tokio::time::sleep(Duration::from_secs(takes)).await;
                Ok::<_, Infallible>("v")
            };
            cache.get_or_load(format!("k{number}"), loader).options(&options).into_future()
        };
        for number in 0..200 {
            load(number).await.unwrap();
        }
        clock.advance(TTL - Duration::from_secs(left));
        for number in 0..200 {
            load(number).await.unwrap();
        }
        idle().await;
        cache.stats().await.unwrap().refreshes
    };
    // Of 200, the chance is exp(-left / cost): 5 %, 61 %, and none for what takes no time.
    let (early, late, cheap) = (refreshes(20, 60).await, refreshes(20, 10).await, refreshes(0, 10).await);
    assert!((1..=25).contains(&early) && (90..=160).contains(&late) && cheap == 0, "{early} {late} {cheap}");
}

#[tokio::test(start_paused = true)]
async fn no_more_values_are_renewed_at_once_than_may_be() {
    let (cache, clock) = in_ram(|builder| builder.max_refreshes(3)).await;
    let origin = Origin::new("v1");
    let options = LoadOptions::new().ttl(TTL).stale_while_revalidate(TTL);
    let key = |number: usize| format!("k{number}");
    for number in 0..10 {
        cache.get_or_load(key(number), origin.load()).options(&options).await.unwrap();
    }
    clock.advance(TTL);
    origin.hold();
    for number in 0..10 {
        cache.get_or_load(key(number), origin.load()).options(&options).await.unwrap();
    }
    idle().await;
    assert_eq!(origin.loads(), 13);
    assert_eq!(cache.stats().await.unwrap().refreshes_skipped, 7);
}

#[tokio::test(start_paused = true)]
async fn a_loader_is_told_what_is_there_and_why_it_is_called() {
    let (cache, clock) = in_ram(|builder| builder).await;
    let options = LoadOptions::new().ttl(TTL).stale_if_error(TTL);
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    for expected in [Reason::Missing, Reason::Stale] {
        let tell = tell.clone();
        let loader = move |context: LoadContext<Bytes>| async move {
            let _ = tell.send((context.key, context.reason, context.present));
            Ok::<_, Infallible>("v")
        };
        cache.namespace("ns").unwrap().get_or_load_with("k", loader).options(&options).await.unwrap();
        let (key, reason, present) = told.recv().await.unwrap();
        assert_eq!((key.namespace(), key.bytes(), reason), ("ns", b"k".as_slice(), expected));
        let present = present.map(|(value, age)| (value.to_vec(), age));
        assert_eq!(present, (expected == Reason::Stale).then(|| (b"v".to_vec(), TTL)));
        clock.advance(TTL);
    }
}

#[tokio::test(start_paused = true)]
async fn jitter_spreads_the_ends_of_what_was_loaded_together() {
    let (cache, _clock) = in_ram(|builder| builder).await;
    let origin = Origin::new("v");
    let mut lives = Vec::new();
    for number in 0..100 {
        let key = format!("k{number}");
        cache.get_or_load(key.as_str(), origin.load()).ttl(TTL).jitter(0.2).await.unwrap();
        lives.push(cache.entry(key.as_str()).await.unwrap().unwrap().time_left.unwrap());
    }
    lives.sort();
    assert!(lives[0] >= TTL.mul_f32(0.8) && lives[99] <= TTL, "{lives:?}");
    assert!(lives[99] - lives[0] > TTL.mul_f32(0.15), "{lives:?}");
}
