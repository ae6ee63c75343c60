//! Many who want the same ask once, and nobody is harmed by another.

use std::sync::Arc;

use crate::common::{Bench, Script, get, read, response};
use tiercache_core::CacheManager;
use tiercache_core::testing::{Fault, FaultTier, ManualClock, Op, When};
use tiercache_http::{HttpCache, Outcome};
use tiercache_ram::{Policy, RamConfig, RamTier};

const URI: &str = "http://example.com/a";
const FRESH: &[(&str, &str)] = &[("cache-control", "max-age=60")];

fn ask(
    cache: &HttpCache,
    origin: &Script,
) -> tokio::task::JoinHandle<Result<crate::common::Answer, &'static str>> {
    let (cache, origin) = (cache.clone(), origin.clone());
    tokio::spawn(async move { Ok(read(cache.handle(get(URI, &[]), &origin).await?).await) })
}

#[tokio::test(start_paused = true)]
async fn a_hundred_callers_ask_once() {
    let bench = Bench::new(|cache| cache).await;
    let (origin, gate) = Script::counting(FRESH).gated();
    let callers: Vec<_> = (0..100).map(|_| ask(&bench.cache, &origin)).collect();
    origin.until_asked(1).await;
    gate.add_permits(100);
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap().text(), "1");
    }
    assert_eq!(origin.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_fails_is_followed_by_another() {
    let bench = Bench::new(|cache| cache).await;
    let (origin, gate) = Script::counting(FRESH).gated();
    origin.queue(Err("refused"));
    let callers: Vec<_> = (0..10).map(|_| ask(&bench.cache, &origin)).collect();
    origin.until_asked(1).await;
    gate.add_permits(100);
    let mut failed = 0;
    for caller in callers {
        match caller.await.unwrap() {
            Ok(answer) => assert_eq!(answer.text(), "1"),
            Err(error) => {
                assert_eq!(error, "refused");
                failed += 1;
            }
        }
    }
    assert_eq!((failed, origin.count()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_dropped_is_followed_by_another() {
    let bench = Bench::new(|cache| cache).await;
    let (origin, gate) = Script::counting(FRESH).gated();
    let leader = ask(&bench.cache, &origin);
    origin.until_asked(1).await;
    let followers: Vec<_> = (0..10).map(|_| ask(&bench.cache, &origin)).collect();
    leader.abort();
    origin.until_asked(2).await;
    gate.add_permits(100);
    for follower in followers {
        assert_eq!(follower.await.unwrap().unwrap().text(), "1");
    }
    assert_eq!(origin.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_shared_is_asked_by_each_and_waited_for_by_none() {
    let bench = Bench::new(|cache| cache).await;
    let (origin, gate) = Script::counting(&[]).gated();
    gate.add_permits(1);
    bench.get(&origin, URI).await;
    let callers: Vec<_> = (0..10).map(|_| ask(&bench.cache, &origin)).collect();
    // All of them reach the origin before it has answered one.
    origin.until_asked(11).await;
    gate.add_permits(10);
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap().outcome, Outcome::Miss);
    }
}

#[tokio::test(start_paused = true)]
async fn variants_of_one_fetch_are_not_mixed() {
    let bench = Bench::new(|cache| cache).await;
    let (origin, gate) = Script::new(|asked| {
        let foo = asked.headers["foo"].to_str().unwrap().to_owned();
        Ok(response(200, &[("cache-control", "max-age=60"), ("vary", "foo")], foo))
    })
    .gated();
    gate.add_permits(1000);
    let callers: Vec<_> = (0..40)
        .map(|number| {
            let (cache, origin, foo) = (bench.cache.clone(), origin.clone(), (number % 4).to_string());
            tokio::spawn(async move {
                let request = get(URI, &[("foo", &foo)]);
                assert_eq!(read(cache.handle(request, &origin).await.unwrap()).await.text(), foo);
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    assert!(origin.count() >= 4, "each variant is fetched");
}

#[tokio::test]
async fn a_store_that_is_closed_or_fails_lets_requests_through() {
    let bench = Bench::new(|cache| cache).await;
    let origin = Script::counting(FRESH);
    bench.get(&origin, URI).await;
    bench.manager.close(std::time::Duration::from_secs(1)).await.unwrap();
    for expected in ["2", "3"] {
        assert_eq!(bench.get(&origin, URI).await.text(), expected);
    }
    let ram = RamTier::new(RamConfig { max_size: 1 << 20, policy: Policy::default() });
    let tier = Arc::new(FaultTier::new(Arc::new(ram)));
    for op in [Op::Get, Op::Put] {
        tier.inject(op, When::Always, Fault::FailBefore);
    }
    let clock = ManualClock::new();
    let manager = CacheManager::builder().cold(tier).clock(clock.clone()).build().await.unwrap();
    let bench = Bench::over(manager, clock, |cache| cache);
    for expected in ["4", "5"] {
        assert_eq!(bench.get(&origin, URI).await.text(), expected);
    }
}
