//! What strangers send must not reach others, nor bring others' answers to them.

use crate::common::{Bench, Script, get, request, response};
use http::HeaderName;
use tiercache_http::{Body, Outcome, Profile};

const URI: &str = "http://example.com/a";
const FRESH: &[(&str, &str)] = &[("cache-control", "public, max-age=60")];
const PROFILES: [Profile; 2] = [Profile::Default, Profile::Rfc9111];

/// Says what the request had in that field.
fn reflecting(name: &'static str) -> Script {
    Script::new(move |asked| {
        let said = asked.headers.get(name).map_or("nothing", |value| value.to_str().unwrap());
        Ok(response(200, FRESH, said.to_owned()))
    })
}

#[tokio::test]
async fn fields_that_frameworks_take_for_the_target_reach_nobody_else() {
    for profile in PROFILES {
        for name in [
            "x-forwarded-host",
            "x-forwarded-port",
            "x-forwarded-prefix",
            "x-forwarded-proto",
            "x-forwarded-scheme",
            "x-forwarded-server",
            "x-host",
            "x-original-host",
            "x-original-url",
            "x-rewrite-url",
            "x-http-method-override",
            "x-method-override",
            "x-http-method",
        ] {
            let bench = Bench::new(|cache| cache.profile(profile)).await;
            let origin = reflecting(name);
            assert_eq!(bench.ask(&origin, get(URI, &[(name, "evil")])).await.text(), "evil");
            assert_eq!(bench.get(&origin, URI).await.text(), "nothing", "{name}");
            assert_eq!(bench.ask(&origin, get(URI, &[(name, "other")])).await.text(), "other", "{name}");
        }
        let bench = Bench::new(|cache| cache.profile(profile)).await;
        let origin = reflecting("forwarded");
        bench.ask(&origin, get(URI, &[("forwarded", "for=1;host=evil")])).await;
        assert_eq!(bench.get(&origin, URI).await.text(), "nothing");
    }
}

#[tokio::test]
async fn hosts_do_not_mix_and_two_of_them_are_not_stored() {
    for profile in PROFILES {
        let bench = Bench::new(|cache| cache.profile(profile)).await;
        let origin = reflecting("host");
        for (host, expected) in [("evil.com", "evil.com"), ("example.com", "example.com")] {
            assert_eq!(bench.ask(&origin, get("/a", &[("host", host)])).await.text(), expected);
        }
        let both = bench.ask(&origin, get("/b", &[("host", "example.com"), ("host", "evil.com")])).await;
        assert_eq!(both.outcome, Outcome::Bypass);
        let after = bench.ask(&origin, get("/b", &[("host", "example.com")])).await;
        assert_eq!(after.outcome, Outcome::Miss);
    }
}

#[tokio::test]
async fn a_get_with_a_body_is_not_stored() {
    for profile in PROFILES {
        let bench = Bench::new(|cache| cache.profile(profile)).await;
        let origin = Script::counting(FRESH);
        let fat = get(URI, &[]).map(|_| Body::from("x=evil"));
        assert_eq!(bench.ask(&origin, fat).await.outcome, Outcome::Bypass);
        assert_eq!(bench.get(&origin, URI).await.outcome, Outcome::Miss);
    }
}

#[tokio::test]
async fn a_path_that_looks_like_a_file_makes_nothing_storable() {
    for profile in PROFILES {
        for path in
            ["me/x.css", "me%2fx.css", "me;x.css", "me%00.css", "me%0ax.css", "me?x.css", "me/..%2fx.css"]
        {
            let uri = format!("http://example.com/{path}");
            let bench = Bench::new(|cache| cache.profile(profile)).await;
            let origin = Script::counting(&[]);
            bench.get(&origin, &uri).await;
            assert_eq!(bench.get(&origin, &uri).await.text(), "2", "{path}");
        }
    }
}

#[tokio::test]
async fn paths_that_an_origin_may_take_for_the_same_are_different_here() {
    for profile in PROFILES {
        let bench = Bench::new(|cache| cache.profile(profile)).await;
        let origin = Script::counting(FRESH);
        let paths = [
            "me", "me/", "me%2f", "me;", "me%00", "ME", "me?", "me?a&b", "me?b&a", "./me", "x/../me", "%6de",
        ];
        for (index, path) in paths.iter().enumerate() {
            let answer = bench.get(&origin, &format!("http://example.com/{path}")).await;
            assert_eq!(answer.text(), (index + 1).to_string(), "{path}");
        }
    }
}

#[tokio::test]
async fn errors_that_a_stranger_provokes_are_not_kept_for_others() {
    for status in [400, 401, 403, 405, 408, 413, 414, 421, 429, 431, 500, 501, 502, 503, 504] {
        let bench = Bench::new(|cache| cache).await;
        let origin = Script::counting(FRESH);
        origin.queue(Ok(response(status, FRESH, "evil")));
        assert_eq!(
            bench.ask(&origin, get(URI, &[("x-oversized", &"x".repeat(20_000))])).await.status,
            status
        );
        assert_eq!(bench.get(&origin, URI).await.status, 200, "{status}");
    }
}

#[tokio::test]
async fn oversized_keys_and_variants_pass_through() {
    for profile in PROFILES {
        let bench = Bench::new(|cache| cache.profile(profile)).await;
        let origin = Script::counting(&[("cache-control", "max-age=60"), ("vary", "foo")]);
        let long = format!("{URI}?{}", "x".repeat(17_000));
        let huge = "y".repeat(9_000);
        for expected in ["1", "2"] {
            assert_eq!(bench.get(&origin, &long).await.text(), expected);
        }
        for expected in ["3", "4"] {
            assert_eq!(bench.ask(&origin, get(URI, &[("foo", &huge)])).await.text(), expected);
        }
        assert_eq!(bench.get(&origin, URI).await.outcome, Outcome::Miss);
        assert_eq!(bench.get(&origin, URI).await.outcome, Outcome::Hit);
    }
}

#[tokio::test]
async fn responses_of_contradictory_length_are_not_stored() {
    for profile in PROFILES {
        for lengths in [&["5", "6"][..], &["5", "5"], &["-5"], &["5, 5"], &["6"], &["4"]] {
            let bench = Bench::new(|cache| cache.profile(profile)).await;
            let lengths: Vec<_> = lengths.iter().map(|length| ("content-length", *length)).collect();
            let headers: Vec<_> = FRESH.iter().copied().chain(lengths).collect();
            let origin = Script::counting(FRESH);
            origin.queue(Ok(response(200, &headers, "12345")));
            bench.get(&origin, URI).await;
            assert_eq!(bench.get(&origin, URI).await.outcome, Outcome::Miss, "{headers:?}");
        }
    }
}

#[tokio::test]
async fn what_a_request_says_comes_back_in_no_header_of_ours() {
    let bench = Bench::new(|cache| cache.name("evil\r\nset-cookie: a=b")).await;
    let origin = Script::counting(FRESH);
    let uri = "http://example.com/%0d%0aset-cookie:%20a=b?%0d%0a";
    bench.get(&origin, uri).await;
    let hit = bench.get(&origin, uri).await;
    assert_eq!(hit.outcome, Outcome::Hit);
    assert!(!hit.headers.contains_key("set-cookie"));
    assert_eq!(hit.header("cache-status"), "\"evilset-cookie: a=b\"; hit; ttl=60");
}

#[tokio::test]
async fn more_tags_than_an_entry_has_room_for_are_not_a_response_without_tags() {
    let bench = Bench::new(|cache| cache.tags_from(HeaderName::from_static("cache-tag"))).await;
    let tags = (0..65).map(|number| number.to_string()).collect::<Vec<_>>().join(",");
    let origin = Script::new(move |_| Ok(response(200, &[FRESH[0], ("cache-tag", &tags)], "")));
    for _ in 0..2 {
        assert_eq!(bench.get(&origin, URI).await.outcome, Outcome::Miss);
    }
}

#[tokio::test]
async fn a_redirect_elsewhere_invalidates_nothing_there() {
    let bench = Bench::new(|cache| cache).await;
    let origin = Script::counting(FRESH);
    bench.get(&origin, "http://victim.com/a").await;
    origin.queue(Ok(response(302, &[("location", "http://victim.com/a")], "")));
    bench.ask(&origin, request("POST", URI, &[])).await;
    assert_eq!(bench.get(&origin, "http://victim.com/a").await.outcome, Outcome::Hit);
}
