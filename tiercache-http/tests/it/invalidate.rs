//! Invalidation beats what is in flight.

use crate::common::{Bench, Script, get, request, response};
use http::HeaderName;
use tiercache_http::{Outcome, RequestOptions};

const URI: &str = "http://example.com/a";
const TAGGED: &[(&str, &str)] = &[("cache-control", "max-age=60"), ("surrogate-key", "one two")];

async fn tagged() -> Bench {
    Bench::new(|cache| cache.tags_from(HeaderName::from_static("surrogate-key"))).await
}

#[tokio::test]
async fn unsafe_requests_invalidate_unless_they_fail() {
    for (method, status, invalidates) in [
        ("POST", 200, true),
        ("PUT", 204, true),
        ("DELETE", 303, true),
        ("M-SEARCH", 200, true),
        ("POST", 500, false),
        ("POST", 404, false),
        ("OPTIONS", 200, false),
    ] {
        let bench = Bench::new(|cache| cache).await;
        let origin = Script::counting(&[("cache-control", "max-age=60")]);
        bench.get(&origin, URI).await;
        origin.queue(Ok(response(status, &[], "")));
        bench.ask(&origin, request(method, URI, &[])).await;
        let after = bench.get(&origin, URI).await.outcome;
        assert_eq!(after == Outcome::Miss, invalidates, "{method} {status}");
    }
}

#[tokio::test]
async fn a_get_that_says_it_is_a_delete_invalidates() {
    let bench = Bench::new(|cache| cache).await;
    let origin = Script::counting(&[("cache-control", "max-age=60")]);
    bench.get(&origin, URI).await;
    bench.ask(&origin, get(URI, &[("x-http-method-override", "DELETE")])).await;
    assert_eq!(bench.get(&origin, URI).await.outcome, Outcome::Miss);
}

#[tokio::test]
async fn a_change_whose_caller_leaves_or_that_is_not_answered_invalidates() {
    let bench = Bench::new(|cache| cache).await;
    let origin = Script::counting(&[("cache-control", "max-age=60")]);
    for leaves in [true, false] {
        bench.get(&origin, URI).await;
        assert_eq!(bench.get(&origin, URI).await.outcome, Outcome::Hit);
        let (changed, _gate) = Script::counting(&[]).gated();
        let failing = Script::new(|_| Err("reset"));
        let asked = if leaves { changed } else { failing };
        let change = tokio::spawn({
            let (cache, asked) = (bench.cache.clone(), asked.clone());
            async move { cache.handle(request("POST", URI, &[]), &asked).await.map(drop) }
        });
        asked.until_asked(1).await;
        if leaves {
            change.abort();
            assert!(change.await.unwrap_err().is_cancelled());
        } else {
            assert_eq!(change.await.unwrap(), Err("reset"));
        }
        while bench.get(&origin, URI).await.outcome == Outcome::Hit {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn locations_of_the_same_origin_are_invalidated_too() {
    let bench = Bench::new(|cache| cache).await;
    let origin = Script::counting(&[("cache-control", "max-age=60")]);
    let uris = ["http://example.com/b", "http://example.com/c", "http://other.com/c"];
    for uri in uris {
        bench.get(&origin, uri).await;
    }
    for (location, content_location) in [("/b", "c"), ("http://other.com/c", "")] {
        let headers = [("location", location), ("content-location", content_location)];
        origin.queue(Ok(response(201, &headers, "")));
        bench.ask(&origin, request("POST", URI, &[])).await;
    }
    for (uri, expected) in uris.into_iter().zip([Outcome::Miss, Outcome::Miss, Outcome::Hit]) {
        assert_eq!(bench.get(&origin, uri).await.outcome, expected, "{uri}");
    }
}

#[tokio::test]
async fn a_tag_takes_all_that_list_it() {
    let (bench, origin) = (tagged().await, Script::counting(TAGGED));
    for (tag, survives) in [("one", false), ("two", false), ("three", true)] {
        bench.get(&origin, URI).await;
        bench.cache.purge_tag("Surrogate-Key", tag).await.unwrap();
        assert_eq!(bench.get(&origin, URI).await.outcome == Outcome::Hit, survives, "{tag}");
    }
    let mut own = get("http://example.com/own", &[]);
    own.extensions_mut().insert(RequestOptions::new().tag("type", "page"));
    bench.ask(&origin, own).await;
    bench.manager.namespace("http").unwrap().invalidate_tag("type", "page").await.unwrap();
    assert_eq!(bench.get(&origin, "http://example.com/own").await.outcome, Outcome::Miss);
}

/// Asks, invalidates while the origin has not answered, lets it answer, and asks again.
async fn overtaken<F: Future<Output = ()>>(bench: &Bench, method: &str, invalidate: impl FnOnce() -> F) {
    let (origin, gate) = Script::counting(TAGGED).gated();
    let first = tokio::spawn({
        let (cache, origin, request) = (bench.cache.clone(), origin.clone(), request(method, URI, &[]));
        async move { crate::common::read(cache.handle(request, &origin).await.unwrap()).await }
    });
    origin.until_asked(1).await;
    invalidate().await;
    gate.add_permits(2);
    assert_eq!(first.await.unwrap().text(), "1", "its own caller has it");
    let second = bench.get(&origin, URI).await;
    assert_eq!((second.text(), second.outcome), ("2", Outcome::Miss), "and nobody else");
}

#[tokio::test]
async fn a_fetch_that_began_before_a_purge_is_not_stored_after_it() {
    let bench = tagged().await;
    overtaken(&bench, "GET", || async { bench.cache.purge(&URI.parse().unwrap()).await.unwrap() }).await;
}

#[tokio::test]
async fn a_fetch_that_began_before_a_purge_by_tag_is_not_stored_after_it() {
    let bench = tagged().await;
    overtaken(&bench, "GET", || async { bench.cache.purge_tag("surrogate-key", "two").await.unwrap() }).await;
}

#[tokio::test]
async fn a_fetch_that_began_before_the_cache_was_cleared_is_not_stored_after_it() {
    let bench = tagged().await;
    let responses = bench.manager.namespace("http").unwrap();
    overtaken(&bench, "GET", || async { drop(responses.clear().await.unwrap()) }).await;
}

#[tokio::test]
async fn a_fetch_that_began_before_an_unsafe_request_is_not_stored_after_it() {
    let bench = tagged().await;
    let change = || async {
        let other = Script::counting(&[]);
        bench.ask(&other, request("PUT", URI, &[])).await;
    };
    overtaken(&bench, "GET", change).await;
}

#[tokio::test]
async fn what_was_purged_is_not_confirmed_back() {
    let bench = tagged().await;
    let (origin, gate) = Script::new(|asked| match asked.headers.get("if-none-match") {
        Some(_) => Ok(response(304, &[], "")),
        None => Ok(response(200, &[("cache-control", "max-age=60"), ("etag", "\"a\"")], "body")),
    })
    .gated();
    gate.add_permits(1);
    bench.get(&origin, URI).await;
    bench.pass(60);
    let validating = tokio::spawn({
        let (cache, origin) = (bench.cache.clone(), origin.clone());
        async move { crate::common::read(cache.handle(get(URI, &[]), &origin).await.unwrap()).await }
    });
    origin.until_asked(2).await;
    bench.cache.purge(&URI.parse().unwrap()).await.unwrap();
    gate.add_permits(2);
    assert_eq!(validating.await.unwrap().outcome, Outcome::Revalidated);
    assert_eq!(bench.get(&origin, URI).await.outcome, Outcome::Miss);
}
