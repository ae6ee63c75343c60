//! What is stored answers.

use crate::common::{Bench, Script, get, request, response};
use http::HeaderName;
use tiercache_http::{Outcome, Profile, RequestOptions};

const URI: &str = "http://example.com/a?b=c";
const FRESH: &[(&str, &str)] = &[("cache-control", "max-age=60")];

#[tokio::test]
async fn a_fresh_response_answers_until_it_is_stale_and_says_how_old_it_is() {
    let (bench, origin) = (Bench::new(|cache| cache).await, Script::counting(FRESH));
    let first = bench.get(&origin, URI).await;
    assert_eq!((first.text(), first.outcome), ("1", Outcome::Miss));
    assert_eq!(first.header("cache-status"), "tiercache; fwd=uri-miss; stored");
    bench.pass(59);
    let hit = bench.get(&origin, URI).await;
    assert_eq!((hit.text(), hit.outcome, hit.header("age")), ("1", Outcome::Hit, "59"));
    assert_eq!(hit.header("cache-status"), "tiercache; hit; ttl=1");
    assert_eq!(hit.header("date"), "Tue, 14 Nov 2023 22:13:20 GMT", "what is kept says when it was made");
    bench.pass(1);
    let stale = bench.get(&origin, URI).await;
    assert_eq!((stale.text(), stale.outcome), ("2", Outcome::Miss));
}

#[tokio::test]
async fn another_query_host_or_scheme_is_another_resource() {
    let (bench, origin) = (Bench::new(|cache| cache).await, Script::counting(FRESH));
    for (index, uri) in [
        URI,
        "http://example.com/a?b=d",
        "http://example.com/a",
        "http://example.org/a?b=c",
        "https://example.com/a?b=c",
    ]
    .iter()
    .enumerate()
    {
        assert_eq!(bench.get(&origin, uri).await.text(), (index + 1).to_string(), "{uri}");
    }
    assert_eq!(bench.ask(&origin, get("/a?b=c", &[("host", "EXAMPLE.com:80")])).await.text(), "1");
}

#[tokio::test]
async fn what_says_nothing_is_not_stored_and_what_forbids_it_neither() {
    for headers in [
        &[][..],
        &[("cache-control", "no-store, max-age=60")],
        &[("cache-control", "private, max-age=60")],
        &[("cache-control", "max-age=60"), ("set-cookie", "a=b")],
        &[("cache-control", "max-age=60"), ("vary", "*")],
    ] {
        let (bench, origin) = (Bench::new(|cache| cache).await, Script::counting(headers));
        bench.get(&origin, URI).await;
        assert_eq!(bench.get(&origin, URI).await.text(), "2", "{headers:?}");
    }
}

#[tokio::test]
async fn head_is_answered_from_what_get_stored() {
    let (bench, origin) = (Bench::new(|cache| cache).await, Script::counting(FRESH));
    bench.get(&origin, URI).await;
    let head = bench.ask(&origin, request("HEAD", URI, &[])).await;
    assert_eq!((head.outcome, head.text(), head.header("content-length")), (Outcome::Hit, "", "1"));
}

#[tokio::test]
async fn conditions_are_answered_from_what_is_stored() {
    let bench = Bench::new(|cache| cache).await;
    let origin =
        Script::counting(&[("cache-control", "max-age=60"), ("etag", "\"a\""), ("content-type", "text/x")]);
    bench.get(&origin, URI).await;
    let same = bench.ask(&origin, get(URI, &[("if-none-match", "\"x\", \"a\"")])).await;
    assert_eq!(
        (same.status, same.text(), same.header("etag"), same.header("content-type")),
        (304, "", "\"a\"", "")
    );
    let other = bench.ask(&origin, get(URI, &[("if-none-match", "\"x\"")])).await;
    assert_eq!((other.status, other.text()), (200, "1"));
    assert_eq!(origin.count(), 1);
}

#[tokio::test]
async fn parts_are_cut_from_the_whole() {
    let bench = Bench::new(|cache| cache).await;
    let origin = Script::new(|_| {
        Ok(response(200, &[("cache-control", "max-age=60"), ("etag", "\"a\"")], "0123456789"))
    });
    bench.get(&origin, URI).await;
    for (range, status, text, content_range) in [
        ("bytes=0-1", 206, "01", "bytes 0-1/10"),
        ("bytes=8-", 206, "89", "bytes 8-9/10"),
        ("bytes=-3", 206, "789", "bytes 7-9/10"),
        ("bytes=10-", 416, "", "bytes */10"),
        ("bytes=0-1,4-5", 200, "0123456789", ""),
    ] {
        let part = bench.ask(&origin, get(URI, &[("range", range)])).await;
        assert_eq!(
            (part.status, part.text(), part.header("content-range")),
            (status, text, content_range),
            "{range}"
        );
    }
    let changed = bench.ask(&origin, get(URI, &[("range", "bytes=0-1"), ("if-range", "\"b\"")])).await;
    assert_eq!((changed.status, changed.text()), (200, "0123456789"));
    assert_eq!(origin.count(), 1);
}

#[tokio::test]
async fn parts_are_stored_and_put_together_when_they_are_of_the_same() {
    let bench = Bench::new(|cache| cache).await;
    let origin = Script::new(|asked| {
        let (part, text) = match asked.headers.get("range").map(|range| range.to_str().unwrap()) {
            Some("bytes=0-4") => ("bytes 0-4/10", "01234"),
            Some("bytes=5-9") => ("bytes 5-9/10", "56789"),
            _ => return Err("a part was expected"),
        };
        let headers = [("cache-control", "max-age=60"), ("etag", "\"a\""), ("content-range", part)];
        Ok(response(206, &headers, text))
    });
    let ask = |range: &'static str| get(URI, &[("range", range)]);
    assert_eq!(bench.ask(&origin, ask("bytes=0-4")).await.outcome, Outcome::Miss);
    let within = bench.ask(&origin, ask("bytes=1-3")).await;
    assert_eq!((within.outcome, within.status, within.text()), (Outcome::Hit, 206, "123"));
    assert_eq!(bench.ask(&origin, ask("bytes=5-9")).await.outcome, Outcome::Miss);
    let whole = bench.get(&origin, URI).await;
    assert_eq!((whole.outcome, whole.status, whole.text()), (Outcome::Hit, 200, "0123456789"));
    assert_eq!(origin.count(), 2);
}

#[tokio::test]
async fn a_part_that_contradicts_itself_is_not_stored() {
    for (part, length) in [("bytes 4-9/10", "5"), ("bytes 0-4/*", "5"), ("bytes 0-20/10", "5")] {
        let bench = Bench::new(|cache| cache).await;
        let origin = Script::new(move |_| {
            let headers =
                [("cache-control", "max-age=60"), ("content-range", part), ("content-length", length)];
            Ok(response(206, &headers, "01234"))
        });
        for _ in 0..2 {
            bench.ask(&origin, get(URI, &[("range", "bytes=-5")])).await;
        }
        assert_eq!(origin.count(), 2, "{part}");
    }
}

#[tokio::test]
async fn variants_are_kept_side_by_side_up_to_their_bound() {
    let bench = Bench::new(|cache| cache.max_variants(2)).await;
    let origin = Script::counting(&[("cache-control", "max-age=60"), ("vary", "foo")]);
    for (foo, expected) in
        [("a", "1"), ("b", "2"), ("a", "1"), ("b", "2"), ("c", "3"), ("b", "2"), ("a", "4")]
    {
        assert_eq!(bench.ask(&origin, get(URI, &[("foo", foo)])).await.text(), expected, "{foo}");
    }
    assert_eq!(bench.get(&origin, URI).await.header("cache-status"), "tiercache; fwd=vary-miss; stored");
}

#[tokio::test]
async fn requests_say_what_they_accept() {
    let (bench, origin) = (
        Bench::new(|cache| cache).await,
        Script::counting(&[("cache-control", "max-age=60"), ("etag", "\"a\"")]),
    );
    let nothing = bench.ask(&origin, get(URI, &[("cache-control", "only-if-cached")])).await;
    assert_eq!((nothing.status, origin.count()), (504, 0));
    bench.get(&origin, URI).await;
    bench.pass(61);
    let stale = bench.ask(&origin, get(URI, &[("cache-control", "max-stale=5")])).await;
    assert_eq!((stale.text(), stale.outcome), ("1", Outcome::Stale));
    assert_eq!(stale.header("cache-status"), "tiercache; hit; ttl=-1");
    assert_eq!(bench.ask(&origin, get(URI, &[("cache-control", "no-store")])).await.text(), "2");
    assert_eq!(bench.get(&origin, URI).await.text(), "3", "no-store stored nothing");
    assert_eq!(bench.ask(&origin, get(URI, &[("cache-control", "no-cache")])).await.text(), "4");
    assert_eq!(bench.get(&origin, URI).await.text(), "4");
}

#[tokio::test]
async fn fields_of_the_connection_and_named_ones_are_not_stored() {
    let bench = Bench::new(|cache| cache.profile(Profile::Rfc9111)).await;
    let origin = Script::counting(&[
        ("cache-control", "max-age=60, no-cache=\"secret\""),
        ("connection", "hop"),
        ("hop", "1"),
        ("secret", "2"),
        ("kept", "3"),
    ]);
    bench.get(&origin, URI).await;
    let hit = bench.get(&origin, URI).await;
    assert_eq!((hit.outcome, hit.header("kept")), (Outcome::Hit, "3"));
    assert!(["connection", "hop", "secret"].iter().all(|name| !hit.headers.contains_key(*name)));
}

#[tokio::test]
async fn a_route_has_its_own_options() {
    let (bench, origin) = (Bench::new(|cache| cache).await, Script::counting(&[]));
    let ask = |options: RequestOptions| {
        let mut request = get(URI, &[]);
        request.extensions_mut().insert(options);
        bench.ask(&origin, request)
    };
    let minute = || RequestOptions::new().ttl(std::time::Duration::from_secs(60));
    assert_eq!(ask(minute()).await.text(), "1");
    assert_eq!(ask(minute()).await.text(), "1");
    assert_eq!(ask(minute().key_part("b")).await.text(), "2");
    assert_eq!(ask(minute().bypass()).await.outcome, Outcome::Bypass);
    assert_eq!(ask(minute().key_part("b")).await.text(), "2");
    bench.pass(60);
    assert_eq!(ask(minute()).await.text(), "4");
}

#[tokio::test]
async fn identities_and_key_headers_part_what_is_stored() {
    let bench = Bench::new(|cache| cache.key_header(HeaderName::from_static("tenant"))).await;
    let origin = Script::counting(&[("cache-control", "private, max-age=60"), ("set-cookie", "a=b")]);
    let ask = |identity: &'static str, tenant: &'static str| {
        let mut request = get(URI, &[("cookie", "s=1"), ("tenant", tenant)]);
        request.extensions_mut().insert(RequestOptions::new().identity(identity));
        bench.ask(&origin, request)
    };
    for (identity, tenant, expected) in
        [("a", "x", "1"), ("b", "x", "2"), ("a", "x", "1"), ("a", "y", "3"), ("b", "x", "2"), ("a", "y", "3")]
    {
        assert_eq!(ask(identity, tenant).await.text(), expected, "{identity} {tenant}");
    }
    bench.cache.purge(&URI.parse().unwrap()).await.unwrap();
    assert_eq!(ask("a", "x").await.text(), "4", "a purge reaches every identity");
    assert_eq!(ask("b", "x").await.text(), "5");
    assert_eq!(ask("a", "x").await.text(), "4");
}

#[tokio::test]
async fn a_post_answers_later_gets_by_the_letter_only() {
    for (profile, count) in [(Profile::Rfc9111, 1), (Profile::Default, 2)] {
        let bench = Bench::new(|cache| cache.profile(profile)).await;
        let origin = Script::counting(&[("cache-control", "max-age=60"), ("content-location", "/a?b=c")]);
        bench.ask(&origin, request("POST", URI, &[])).await;
        bench.get(&origin, URI).await;
        assert_eq!(origin.count(), count, "{profile:?}");
    }
}
