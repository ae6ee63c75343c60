//! What is stale is confirmed, refreshed, or stands for an origin that failed.

use crate::common::{Bench, Script, get, request, response};
use tiercache_http::{Outcome, Profile};

const URI: &str = "http://example.com/a";

#[tokio::test]
async fn a_304_renews_what_is_stored() {
    let bench = Bench::new(|cache| cache).await;
    let origin = Script::new(|asked| match asked.headers.get("if-none-match") {
        Some(_) => {
            Ok(response(304, &[("cache-control", "max-age=100"), ("x", "2"), ("content-length", "9")], ""))
        }
        None => Ok(response(200, &[("cache-control", "max-age=60"), ("etag", "\"a\""), ("x", "1")], "body")),
    });
    bench.get(&origin, URI).await;
    bench.pass(60);
    // The requester's own condition is answered from what comes of ours.
    let renewed = bench.ask(&origin, get(URI, &[("if-none-match", "\"mine\"")])).await;
    assert_eq!((renewed.text(), renewed.outcome, renewed.header("x")), ("body", Outcome::Revalidated, "2"));
    assert_eq!(renewed.header("cache-status"), "tiercache; hit; fwd=stale; fwd-status=304; ttl=100; stored");
    assert_eq!(origin.asked()[1].headers["if-none-match"], "\"a\"");
    bench.pass(99);
    let hit = bench.ask(&origin, get(URI, &[("if-none-match", "\"a\"")])).await;
    assert_eq!((hit.status, hit.outcome, hit.header("x"), origin.count()), (304, Outcome::Hit, "2", 2));
}

#[tokio::test]
async fn no_cache_is_confirmed_each_time() {
    let bench = Bench::new(|cache| cache).await;
    let origin = Script::new(|asked| match asked.headers.get("if-modified-since") {
        Some(_) => Ok(response(304, &[], "")),
        None => {
            let headers = [("cache-control", "no-cache"), ("last-modified", "Tue, 14 Nov 2023 20:13:20 GMT")];
            Ok(response(200, &headers, "body"))
        }
    });
    bench.get(&origin, URI).await;
    for _ in 0..3 {
        let confirmed = bench.get(&origin, URI).await;
        assert_eq!((confirmed.text(), confirmed.outcome), ("body", Outcome::Revalidated));
    }
    assert_eq!(origin.count(), 4);
}

#[tokio::test]
async fn stale_while_revalidate_answers_at_once_and_asks_once() {
    let bench = Bench::new(|cache| cache).await;
    let (origin, gate) =
        Script::counting(&[("cache-control", "max-age=60, stale-while-revalidate=60")]).gated();
    gate.add_permits(1);
    bench.get(&origin, URI).await;
    bench.pass(61);
    for _ in 0..10 {
        let stale = bench.get(&origin, URI).await;
        assert_eq!((stale.text(), stale.outcome), ("1", Outcome::Stale));
    }
    origin.until_asked(2).await;
    gate.add_permits(1);
    loop {
        let answer = bench.get(&origin, URI).await;
        if answer.outcome == Outcome::Hit {
            assert_eq!(answer.text(), "2");
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(origin.count(), 2);
    bench.pass(121);
    gate.add_permits(1);
    assert_eq!(bench.get(&origin, URI).await.text(), "3", "beyond the window the origin is waited for");
}

#[tokio::test]
async fn a_refresh_is_for_all_whatever_its_requester_has() {
    let bench = Bench::new(|cache| cache).await;
    let origin = Script::new(|asked| {
        assert!(!asked.headers.contains_key("range"));
        match asked.headers.get("if-none-match") {
            Some(_) => Ok(response(304, &[], "")),
            None => Ok(response(200, &[("cache-control", "max-age=60, stale-while-revalidate=60")], "body")),
        }
    });
    bench.get(&origin, URI).await;
    bench.pass(61);
    let own =
        get(URI, &[("if-none-match", "\"mine\""), ("range", "bytes=0-0"), ("cache-control", "max-stale=0")]);
    assert_eq!(bench.ask(&origin, own).await.outcome, Outcome::Stale);
    while bench.get(&origin, URI).await.outcome != Outcome::Hit {
        tokio::task::yield_now().await;
    }
    assert_eq!(origin.count(), 2);
}

#[tokio::test]
async fn stale_stands_for_an_origin_that_fails_where_that_is_allowed() {
    for (profile, control, stale) in [
        (Profile::Default, "max-age=60", false),
        (Profile::Default, "max-age=60, stale-if-error=60", true),
        (Profile::Rfc9111, "max-age=60", true),
        (Profile::Rfc9111, "max-age=60, must-revalidate", false),
        (Profile::Rfc9111, "s-maxage=60", false),
    ] {
        let bench = Bench::new(|cache| cache.profile(profile)).await;
        let origin = Script::new(|_| Err("refused"));
        origin.queue(Ok(response(200, &[("cache-control", control)], "body")));
        bench.get(&origin, URI).await;
        bench.pass(61);
        origin.queue(Ok(response(503, &[], "down")));
        let unavailable = bench.get(&origin, URI).await;
        assert_eq!(unavailable.text(), if stale { "body" } else { "down" }, "{profile:?} {control}");
        let failed = bench.cache.handle(get(URI, &[]), &origin).await;
        match failed {
            Ok(answer) => {
                let answer = crate::common::read(answer).await;
                assert!(stale, "{profile:?} {control}");
                assert_eq!((answer.text(), answer.outcome), ("body", Outcome::Stale));
            }
            Err(error) => assert_eq!((error, stale), ("refused", false), "the origin's own error, unchanged"),
        }
    }
}

#[tokio::test]
async fn errors_and_unstorable_answers_leave_what_is_stored_alone() {
    let bench = Bench::new(|cache| cache).await;
    let origin = Script::new(|_| Ok(response(200, &[("cache-control", "no-store")], "other")));
    origin.queue(Ok(response(200, &[("cache-control", "max-age=60"), ("etag", "\"a\"")], "body")));
    bench.get(&origin, URI).await;
    let fresh = get(URI, &[("cache-control", "no-cache")]);
    assert_eq!(bench.ask(&origin, fresh).await.text(), "other");
    assert_eq!(bench.get(&origin, URI).await.text(), "body");
}

#[tokio::test]
async fn a_head_renews_what_is_stored_or_shows_that_it_is_out_of_date() {
    for (etag, get_after) in [("\"a\"", Outcome::Hit), ("\"b\"", Outcome::Miss)] {
        let bench = Bench::new(|cache| cache).await;
        let origin = Script::new(move |asked| {
            let etag = if asked.method == "HEAD" { etag } else { "\"a\"" };
            Ok(response(200, &[("cache-control", "max-age=60"), ("etag", etag)], ""))
        });
        bench.get(&origin, URI).await;
        bench.pass(40);
        let head = bench.ask(&origin, request("HEAD", URI, &[("cache-control", "no-cache")])).await;
        assert_eq!((head.status, head.header("etag"), origin.count()), (200, etag, 2));
        bench.pass(if get_after == Outcome::Hit { 40 } else { 0 });
        assert_eq!(bench.get(&origin, URI).await.outcome, get_after, "{etag}");
    }
}
