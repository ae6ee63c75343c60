//! The service, asked over HTTP.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use crate::common::{Place, Server};

#[test]
fn what_was_put_is_answered_with_its_content_type() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    for (path, given, answered) in [
        ("/cache/a.png", None, "image/png"),
        ("/cache/b.json", Some("application/octet-stream"), "application/json"),
        ("/cache/c.png", Some("text/plain; charset=utf-8"), "text/plain; charset=utf-8"),
        ("/cache/d", None, "application/octet-stream"),
        ("/cache/e.unknown-ending", Some("application/octet-stream"), "application/octet-stream"),
    ] {
        let headers: Vec<(&str, &str)> = given.iter().map(|given| ("Content-Type", *given)).collect();
        assert_eq!(server.ask("PUT", path, &headers, b"bytes").status, 204, "{path}");
        let answer = server.get(path);
        assert_eq!((answer.status, answer.text().as_str()), (200, "bytes"), "{path}");
        assert_eq!(answer.header("content-type"), answered, "{path}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("cache-status"), "tiercache; hit; detail=hot");
    }
}

#[test]
fn a_miss_is_404_an_empty_body_400_and_a_removal_204() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let miss = server.get("/cache/nothing");
    assert_eq!((miss.status, miss.header("cache-status")), (404, "tiercache; fwd=miss"));
    assert!(!miss.error().is_empty());
    let empty = server.put("/cache/k", b"");
    assert_eq!((empty.status, empty.error().as_str()), (400, "the body is empty"));
    assert_eq!(server.put("/cache/k", b"v").status, 204);
    let removed = server.ask("DELETE", "/cache/k", &[], b"");
    assert_eq!((removed.status, removed.header("tiercache-found"), removed.body.len()), (204, "true", 0));
    assert_eq!(server.get("/cache/k").status, 404);
    let again = server.ask("DELETE", "/cache/k", &[], b"");
    assert_eq!((again.status, again.header("tiercache-found")), (204, "false"));
}

#[test]
fn a_key_is_whatever_stands_behind_the_slash() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let keys = [
        "a/b/c.txt",
        "a%2Fb",
        "%00",
        "%FF%FE",
        "%C3%BC",
        "a b".replace(' ', "%20").leak(),
        "..",
        "a//b",
        "/x",
        "%25",
        "a;b@c:d",
    ];
    for (number, key) in keys.iter().enumerate() {
        // The second is the same key as `a/b`, which is none of the others.
        assert_eq!(server.put(&format!("/cache/{key}"), number.to_string().as_bytes()).status, 204, "{key}");
    }
    for (number, key) in keys.iter().enumerate() {
        assert_eq!(server.get(&format!("/cache/{key}")).text(), number.to_string(), "{key}");
    }
    assert_eq!(server.get("/cache/a/b").text(), "1");
    for key in ["%", "%4", "a%zz"] {
        assert_eq!(server.get(&format!("/cache/{key}")).status, 400, "{key}");
    }
    let long = format!("/cache/{}", "k".repeat(20_000));
    assert_eq!(server.put(&long, b"v").status, 400);
}

#[test]
fn head_tells_what_get_would_without_the_body() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    server.put("/cache/a.txt", b"12345");
    let (get, head) = (server.get("/cache/a.txt"), server.ask("HEAD", "/cache/a.txt", &[], b""));
    assert_eq!((head.status, head.body.len(), head.header("content-length")), (200, 0, "5"));
    for name in ["etag", "content-type", "cache-status", "content-length"] {
        assert_eq!(get.header(name), head.header(name), "{name}");
    }
    let miss = server.ask("HEAD", "/cache/b", &[], b"");
    assert_eq!((miss.status, miss.body.len()), (404, 0));
}

#[test]
fn an_etag_that_still_holds_is_answered_with_304() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    server.put("/cache/k", b"one");
    let etag = server.get("/cache/k").header("etag").to_owned();
    assert!(etag.starts_with('"') && etag.ends_with('"'), "strong: {etag}");
    for given in [etag.clone(), format!("W/{etag}"), format!("\"x\", {etag}"), "*".to_owned()] {
        let answer = server.ask("GET", "/cache/k", &[("If-None-Match", &given)], b"");
        assert_eq!(
            (answer.status, answer.body.len(), answer.header("etag")),
            (304, 0, etag.as_str()),
            "{given}"
        );
    }
    assert_eq!(server.ask("GET", "/cache/k", &[("If-None-Match", "\"x\"")], b"").status, 200);
    server.put("/cache/k", b"two");
    let changed = server.ask("GET", "/cache/k", &[("If-None-Match", &etag)], b"");
    assert_eq!((changed.status, changed.text().as_str()), (200, "two"));
    assert_ne!(changed.header("etag"), etag);
}

#[test]
fn a_write_is_made_on_the_condition_it_names() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let put = |value: &[u8], name, condition: &str| {
        server.ask("PUT", "/cache/k", &[(name, condition)], value).status
    };
    let tag = || server.get("/cache/k").header("etag").to_owned();
    assert_eq!(put(b"early", "If-Match", "*"), 412);
    assert_eq!(put(b"early", "If-Match", "\"1-1\""), 412);
    assert_eq!(put(b"first", "If-None-Match", "*"), 204);
    assert_eq!(put(b"again", "If-None-Match", "*"), 412);
    let first = tag();
    assert_eq!(put(b"second", "If-Match", &format!("\"other\", {first}")), 204);
    assert_eq!(put(b"lost", "If-Match", &first), 412, "it has changed since");
    assert_eq!(put(b"weak", "If-Match", &format!("W/{}", tag())), 412);
    assert_eq!(put(b"same", "If-None-Match", &format!("W/{}", tag())), 412);
    assert_eq!(server.get("/cache/k").text(), "second");
    assert_eq!(put(b"third", "If-None-Match", &first), 204);
    assert_eq!(put(b"fourth", "If-Match", "*"), 204);
    assert_eq!(server.get("/cache/k").text(), "fourth");
    assert_eq!(server.ask("DELETE", "/cache/k", &[("If-Match", &tag())], b"").status, 501);
    assert_eq!(server.get("/cache/k").status, 200);
}

#[test]
fn time_to_live_and_tags_have_effect_in_both_spellings() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    assert_eq!(server.put("/cache/a?ttl=2h&tag.type=thumbnail", b"v").status, 204);
    assert_eq!(server.put("/cache/b?ttl_hours=2&tag_type=thumbnail", b"v").status, 204);
    assert_eq!(server.put("/cache/c?ttl=never&tag.type=raw", b"v").status, 204);
    assert_eq!(server.put("/cache/d?ttl=1ms", b"v").status, 204);
    let began = Instant::now();
    while server.get("/cache/d").status != 404 {
        assert!(began.elapsed() < Duration::from_secs(5), "it was to live for a millisecond");
    }
    let keys = server.get("/keys?tag.type=thumbnail").json();
    let names: Vec<_> = keys["keys"].as_array().expect("keys").iter().map(|key| key["key"].clone()).collect();
    assert_eq!(names, ["a", "b"]);
    assert!(keys["keys"][1]["time_left"].as_str().expect("a time").starts_with("1h 59m"));
    assert_eq!(server.ask("PATCH", "/cache/c?ttl=90m", &[], b"").status, 204);
    assert_eq!(server.ask("PATCH", "/cache/x?ttl=90m", &[], b"").status, 404);
    assert_eq!(server.ask("DELETE", "/cache?tag.type=thumbnail", &[], b"").status, 204);
    assert_eq!((server.get("/cache/a").status, server.get("/cache/b").status), (404, 404));
    assert_eq!(server.get("/cache/c").status, 200);
}

#[test]
fn parameters_that_make_no_sense_are_400_and_say_why() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    for (method, path, says) in [
        ("PUT", "/cache/k?ttl=0s", "not above zero"),
        ("PUT", "/cache/k?ttl=90", "no unit"),
        ("PUT", "/cache/k?ttl_hours=soon", "not a number"),
        ("PUT", "/cache/k?ttl_hours=-1", "above zero"),
        ("PUT", "/cache/k?ttl=1h&ttl_hours=1", "given twice"),
        ("PUT", "/cache/k?tlt=1h", "unknown parameter `tlt`; allowed: ttl"),
        ("PUT", "/cache/k?tag.=x", "unknown parameter"),
        ("PUT", "/cache/k?ttl=%zz", "percent"),
        ("GET", "/cache/k?ttl=1h", "unknown parameter `ttl`"),
        ("PATCH", "/cache/k", "`ttl` is missing"),
        ("DELETE", "/cache", "say what to clear"),
        ("DELETE", "/cache?level=warm", "unknown level `warm`; allowed: hot, cold, dry, all"),
        ("DELETE", "/cache?tier=warm", "unknown level `warm`"),
        ("DELETE", "/cache?level=hot&tag.a=b", "say what to clear"),
        ("DELETE", "/cache?namespace=shop", "say what to clear"),
        ("DELETE", "/cache?prefix=", "the prefix is empty"),
        ("GET", "/cache/k?namespace=", "has no name"),
        ("GET", "/cache/k?namespace=a&namespace=b", "given twice"),
        ("POST", "/counters/k?namespace=", "has no name"),
        ("GET", "/keys?color=red", "unknown parameter `color`; allowed: namespace"),
        ("GET", "/keys?min_size=big", "not a size"),
    ] {
        let answer = server.ask(method, path, &[], b"v");
        assert_eq!(answer.status, 400, "{method} {path}");
        assert!(answer.error().contains(says), "{method} {path}: {}", answer.error());
    }
    assert_eq!(server.get("/cache/k").status, 404, "nothing was stored");
    assert_eq!(server.get("/").status, 404);
    assert_eq!(server.ask("POST", "/stats", &[], b"").status, 405);
}

#[test]
fn levels_are_cleared_by_name() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    for word in ["level=hot", "tier=all", "level=all", "level=dry", "level=cold", "prefix=k"] {
        server.put("/cache/k", b"v");
        assert_eq!(server.ask("DELETE", &format!("/cache?{word}"), &[], b"").status, 204, "{word}");
        let status = server.get("/cache/k").status;
        assert_eq!(status, if ["level=dry", "level=cold"].contains(&word) { 200 } else { 404 }, "{word}");
    }
}

#[test]
fn a_body_over_the_limit_is_413_however_it_comes() {
    let place = Place::new();
    let server = Server::start(&place, &["--max-body", "1KiB"]);
    assert_eq!(server.put("/cache/k", &[7; 1024]).status, 204);
    assert_eq!(server.put("/cache/k", &[7; 1025]).status, 413);
    let chunk = format!("{:x}\r\n{}\r\n", 700, "x".repeat(700));
    let body = format!("{chunk}{chunk}0\r\n\r\n");
    let chunked = server.ask("PUT", "/cache/k", &[("Transfer-Encoding", "chunked")], body.as_bytes());
    assert_eq!(chunked.status, 413);
    let small = format!("{chunk}0\r\n\r\n");
    assert_eq!(
        server.ask("PUT", "/cache/s", &[("Transfer-Encoding", "chunked")], small.as_bytes()).status,
        204
    );
    assert_eq!(server.get("/cache/s").body.len(), 700);
    assert_eq!(server.get("/cache/k").body, [7; 1024], "the old value stands");
}

#[test]
fn a_body_that_breaks_off_stores_nothing() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let mut stream = server.connect();
    let head =
        format!("PUT /cache/k HTTP/1.1\r\nHost: {}\r\nContent-Length: 100\r\n\r\nhalf", server.address);
    stream.write_all(head.as_bytes()).expect("half a request");
    drop(stream);
    assert_eq!(server.get("/cache/k").status, 404);
}

#[test]
fn statistics_have_the_seven_names_and_the_command_says_the_same() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    server.put("/cache/k", b"v");
    server.get("/cache/k");
    server.get("/cache/nothing");
    let stats = server.get("/stats").json();
    assert_eq!((&stats["hot_hits"], &stats["misses"], &stats["sets"]), (&1.into(), &1.into(), &1.into()));
    for name in ["cold_hits", "dry_hits", "hot_size_bytes", "cold_size_bytes", "dry_size_bytes"] {
        assert!(stats[name].is_u64(), "{name}: {}", stats[name]);
    }
    assert!(stats["hot_size_bytes"].as_u64() > Some(0));
    let told = place.run(&["stats", "--json", "--url", &server.url()]).expect(0).json();
    assert_eq!(told["hot_hits"], stats["hot_hits"]);
    assert_eq!(told["levels"], stats["levels"]);
}

#[test]
fn keys_come_in_pages() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    for number in 0..5 {
        server.put(&format!("/cache/k{number}"), b"v");
    }
    server.put("/cache/other", &[0; 2000]);
    let first = server.get("/keys?prefix=k&limit=2").json();
    assert_eq!((&first["keys"][0]["key"], &first["keys"][1]["key"]), (&"k0".into(), &"k1".into()));
    let mut seen = 2;
    let mut next = first["next"].as_str().map(str::to_owned);
    while let Some(after) = next {
        let page = server.get(&format!("/keys?prefix=k&limit=2&after={after}")).json();
        seen += page["keys"].as_array().expect("keys").len();
        next = page["next"].as_str().map(str::to_owned);
    }
    assert_eq!(seen, 5);
    let large = server.get("/keys?min_size=1kB").json();
    assert_eq!(
        (&large["keys"][0]["key"], large["keys"].as_array().map(Vec::len)),
        (&"other".into(), Some(1))
    );
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    server.put("/cache/k", b"v");
    server.get("/cache/k");
    let answer = server.get("/metrics");
    assert!(answer.header("content-type").starts_with("text/plain; version=0.0.4"));
    let text = answer.text();
    assert!(text.contains("tiercache_hits_total{level=\"hot\"} 1\n"), "{text}");
    for line in text.lines() {
        let fine = line.starts_with("# HELP tiercache_")
            || line.starts_with("# TYPE tiercache_")
            || line
                .split_once(' ')
                .is_some_and(|(name, value)| name.starts_with("tiercache_") && value.parse::<f64>().is_ok());
        assert!(fine, "{line}");
    }
}

#[test]
fn other_hosts_and_other_sites_are_turned_away() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    server.put("/cache/k", b"v");
    assert_eq!(server.ask("GET", "/cache/k", &[("Host", "evil.example")], b"").status, 421);
    assert_eq!(server.ask("GET", "/cache/k", &[("Host", "localhost:1")], b"").status, 200);
    let own = server.url();
    for (headers, status) in [
        (vec![("Origin", "http://evil.example")], 403),
        (vec![("Origin", "null")], 403),
        (vec![("Sec-Fetch-Site", "cross-site")], 403),
        (vec![("Origin", own.as_str())], 204),
        (vec![("Sec-Fetch-Site", "same-origin")], 204),
    ] {
        assert_eq!(server.ask("PUT", "/cache/k", &headers, b"w").status, status, "{headers:?}");
        assert_eq!(server.ask("DELETE", "/cache/x", &headers, b"").status, status, "{headers:?}");
    }
}

#[test]
fn with_a_token_only_who_knows_it_is_answered() {
    let place = Place::new();
    let server = Server::start(&place, &["--token", "a-long-secret"]);
    for headers in [vec![], vec![("Authorization", "Bearer wrong")], vec![("Authorization", "a-long-secret")]]
    {
        for path in ["/cache/k", "/stats", "/keys", "/metrics", "/"] {
            let answer = server.ask("GET", path, &headers, b"");
            assert_eq!(
                (answer.status, answer.header("www-authenticate")),
                (401, "Bearer"),
                "{path} {headers:?}"
            );
        }
    }
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.ask("PUT", "/cache/k", &[("Authorization", "Bearer a-long-secret")], b"v").status, 204);
    let url = server.url();
    place.run(&["get", "k", "--url", &url]).expect(2);
    assert_eq!(place.run(&["get", "k", "--url", &url, "--token", "a-long-secret"]).expect(0).out(), "v");
}

#[test]
fn a_public_address_without_a_token_is_wrong_use() {
    let place = Place::new();
    let ran = place.run(&["serve", "--listen", "0.0.0.0:0"]).expect(2);
    assert!(ran.err().contains("--token"), "{}", ran.err());
}

#[test]
fn a_large_value_comes_back_byte_for_byte() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let value: Vec<u8> =
        (0..3_000_000u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    assert_eq!(server.put("/cache/large", &value).status, 204);
    assert!(server.get("/cache/large").body == value);
}

#[test]
fn one_connection_serves_many_requests() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let mut stream = server.connect();
    for _ in 0..3 {
        let request = format!("GET /health HTTP/1.1\r\nHost: {}\r\n\r\n", server.address);
        stream.write_all(request.as_bytes()).expect("a request");
        let mut buffer = [0; 1024];
        let read = stream.read(&mut buffer).expect("an answer");
        assert!(buffer[..read].starts_with(b"HTTP/1.1 200"));
    }
}
