//! Ways to make a cache answer one client with what another asked for, or with what an attacker chose.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::{Answer, Origin, Received, Reply, Running, fresh, response};
use tiercache_http::Profile;
use tiercache_proxy::Limits;

/// Fresh for a minute; the body says what the origin saw of that field.
fn reflects(name: &'static str) -> impl Fn(&Received) -> Reply + Send + Sync {
    move |received| fresh(&format!("{name}={}", received.field(name).unwrap_or("none")))
}

fn is_hit(answer: &Answer) -> bool {
    answer.field("cache-status").contains("; hit")
}

#[tokio::test]
async fn a_forwarded_host_that_is_reflected_poisons_nothing() {
    for name in [
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Forwarded-For",
        "X-Forwarded-Port",
        "Forwarded",
        "X-Host",
    ] {
        let origin = Origin::start(reflects(name)).await;
        let proxy = Running::before(&origin).await;
        let evil = proxy.get("/", &[&format!("{name}: evil.example")]).await;
        let next = proxy.get("/", &[]).await;
        assert!(is_hit(&next), "{name}: {next:?}");
        assert_eq!(evil.text(), next.text());
        assert!(!next.text().contains("evil"), "{name}: {next:?}");
        // Written as CGI reads it, it is the same claim.
        let evil = proxy.get("/cgi", &[&format!("{}: evil.example", name.replace('-', "_"))]).await;
        assert_eq!((evil.status(), origin.last().field(&name.replace('-', "_"))), (200, None), "{name}");
    }
}

#[tokio::test]
async fn fields_that_change_path_or_method_do_not_reach_the_origin() {
    let origin = Origin::start(|received| fresh(&received.head)).await;
    let proxy = Running::before(&origin).await;
    for name in [
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-HTTP-Method-Override",
        "X-HTTP-Method",
        "X-Method-Override",
        "x_original_url",
    ] {
        let answer = proxy.get(&format!("/{name}"), &[&format!("{name}: /evil")]).await;
        assert!(!answer.text().contains("/evil"), "{name}: {}", answer.text());
    }
}

#[tokio::test]
async fn each_host_has_answers_of_its_own() {
    let origin = Origin::start(reflects("Host")).await;
    let proxy = Running::before(&origin).await;
    for host in ["a.example", "evil.example", "a.example:81", "a.example.evil.example"] {
        for _ in 0..2 {
            let said =
                proxy.raw(&format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
            assert!(said.ends_with(&format!("Host={host}")), "{said}");
        }
    }
    assert_eq!(origin.received().len(), 4);
    // The same name in another case is the same host.
    let said = proxy.raw("GET / HTTP/1.1\r\nHost: A.EXAMPLE\r\nConnection: close\r\n\r\n").await;
    assert!(said.ends_with("Host=a.example"), "{said}");
    assert_eq!(origin.received().len(), 4);
}

#[tokio::test]
async fn the_body_of_a_get_chooses_no_answer_for_others() {
    let origin =
        Origin::start(|received| fresh(&format!("q={}", String::from_utf8_lossy(&received.body)))).await;
    for profile in [Profile::Default, Profile::Rfc9111] {
        let proxy = Running::with(&origin.url(), profile, Limits::default()).await;
        let evil = proxy.ask("GET", "/", &[], "evil").await;
        assert!(evil.status() >= 400 || evil.text() == "q=evil", "{evil:?}");
        let next = proxy.get("/", &[]).await;
        assert_eq!(next.text(), "q=", "{profile:?}");
        let evil = proxy.ask("GET", "/", &[], "evil").await;
        assert!(evil.status() >= 400 || !evil.text().is_empty(), "{evil:?}");
        assert_eq!(proxy.get("/", &[]).await.text(), "q=", "{profile:?}");
    }
}

#[tokio::test]
async fn a_private_page_under_a_name_like_a_picture_stays_private() {
    let origin = Origin::start(|received| match received.field("cookie") {
        Some(cookie) => {
            Reply::Bytes(response("200 OK", "Cache-Control: private, no-store", &format!("of {cookie}")))
        }
        None => Reply::Bytes(response("200 OK", "Cache-Control: no-store", "nobody's")),
    })
    .await;
    for profile in [Profile::Default, Profile::Rfc9111] {
        let proxy = Running::with(&origin.url(), profile, Limits::default()).await;
        for path in [
            "/account/x.css",
            "/account;x.css",
            "/account%2Fx.css",
            "/account%00.css",
            "/account%3Bx.css",
            "/account%23x.css",
            "/account%3Fx.css",
            "/account%0Ax.css",
            "/account/..%2Fstatic/x.css",
            "/account?x=.css",
            "/account//x.css",
            "/static/..%2faccount",
        ] {
            let victim = proxy.get(path, &["Cookie: victim"]).await;
            assert_eq!(victim.text(), "of victim", "{path}");
            let attacker = proxy.get(path, &[]).await;
            assert_eq!(attacker.text(), "nobody's", "{path}");
            assert!(!is_hit(&attacker), "{path}");
            assert_eq!(origin.last().path(), path, "it goes on as it came");
        }
    }
}

#[tokio::test]
async fn paths_that_an_origin_might_read_alike_are_different_keys() {
    let origin = Origin::start(|received| fresh(received.path())).await;
    let proxy = Running::before(&origin).await;
    let paths = [
        "/a/b",
        "/a%2Fb",
        "/a%2fb",
        "/a//b",
        "/a/./b",
        "/a/b/",
        "/a/b;x",
        "/a/b%3Bx",
        "/a/b%00",
        "/a/b?",
        "/a/b?x",
        "/a/b?x=",
        "/a/b?x&y",
        "/a/b?y&x",
        "/A/b",
        "/a/%62",
        "/a/b%20",
        "/a/b+",
        "/a/b?x=%0d%0a",
        "/a/b?x=%0D%0A",
    ];
    for path in paths {
        assert_eq!(proxy.get(path, &[]).await.text(), path);
    }
    for path in paths {
        assert_eq!(proxy.get(path, &[]).await.text(), path);
    }
    assert_eq!(origin.received().len(), paths.len());
}

#[tokio::test]
async fn errors_that_odd_requests_cause_are_not_kept() {
    let origin = Origin::start(|received| {
        if received.field("x-odd").is_some() {
            return Reply::Bytes(response("400 Bad Request", "", "odd"));
        }
        if received.head.len() > 4000 {
            return Reply::Bytes(response("413 Content Too Large", "", "large"));
        }
        if received.field("x-broken").is_some() {
            return Reply::Bytes(response("500 Internal Server Error", "", "broken"));
        }
        if received.field("x-missing").is_some() {
            return Reply::Bytes(response("404 Not Found", "", "missing"));
        }
        fresh("fine")
    })
    .await;
    let proxy = Running::before(&origin).await;
    let large = format!("X-Large: {}", "x".repeat(4000));
    for (number, (field, status)) in
        [("X-Odd: 1", 400), (large.as_str(), 413), ("X-Broken: 1", 500), ("X-Missing: 1", 404)]
            .into_iter()
            .enumerate()
    {
        let path = format!("/{number}");
        assert_eq!(proxy.get(&path, &[field]).await.status(), status);
        assert_eq!(proxy.get(&path, &[]).await.text(), "fine", "{field}");
    }
}

#[tokio::test]
async fn refusals_of_the_proxy_are_not_kept_either() {
    let limits = Limits { fields: 20, target_bytes: 1000, ..Limits::default() };
    let origin = Origin::start(|_| fresh("fine")).await;
    let proxy = Running::with(&origin.url(), Profile::Rfc9111, limits).await;
    let many: Vec<String> = (0..30).map(|number| format!("X-{number}: v")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for (fields, status) in [
        (many, 431),
        (vec!["Expect: tea"], 417),
        (vec!["Range: bytes=0-1", "Range: bytes=2-3"], 400),
        (vec!["Host: b.example"], 400),
        (vec!["Authorization: a", "Authorization: b"], 400),
    ] {
        let path = format!("/{status}");
        assert_eq!(proxy.get(&path, &fields).await.status(), status, "{fields:?}");
        assert_eq!(proxy.get(&path, &[]).await.text(), "fine");
    }
    let long = format!("/{}", "x".repeat(1000));
    assert_eq!(proxy.get(&long, &[]).await.status(), 414);
    let huge = format!("X-Large: {}", "x".repeat(100_000));
    assert_eq!(proxy.get("/huge", &[&huge]).await.status(), 431);
    assert_eq!(proxy.get("/huge", &[]).await.text(), "fine");
    let said = proxy.raw(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(70_000))).await;
    assert!(said.starts_with("HTTP/1.1 414 ") || said.starts_with("HTTP/1.1 431 "), "{said}");
}

#[tokio::test]
async fn what_is_kept_cannot_be_split_into_two_answers() {
    // An origin that puts what it is asked for into a field, decoded: the line end ends the field, and what follows is read
    // as fields or as a body, never as a second response.
    let origin = Origin::start(|received| {
        let path = received.path().replace("%0d%0a", "\r\n");
        let bytes = format!(
            "HTTP/1.1 200 OK\r\nX-Path: {path}\r\nCache-Control: max-age=60\r\nContent-Length: 4\r\n\r\nbody"
        );
        Reply::Bytes(bytes.into_bytes())
    })
    .await;
    let proxy = Running::before(&origin).await;
    let evil = "/?a=%0d%0aContent-Length:0%0d%0a%0d%0aHTTP/1.1%20200%20OK%0d%0aX:";
    let said =
        proxy.raw(&format!("GET {evil} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")).await;
    assert_eq!(said.matches("HTTP/1.1").count(), 1, "{said}");
    for round in 0..10 {
        // Whoever comes next gets an answer to what they asked.
        let path = format!("/next{round}");
        let answer = proxy.get(&path, &[]).await;
        assert!(answer.status() == 502 || answer.field("x-path") == path, "{answer:?}");
    }
    // A bare line end within a value never leaves the proxy.
    for end in ["\r", "\n\r", "\0"] {
        let bytes = format!("HTTP/1.1 200 OK\r\nX: a{end}b\r\nContent-Length: 1\r\n\r\nx").into_bytes();
        let origin = Origin::start(move |_| Reply::Bytes(bytes.clone())).await;
        let proxy = Running::before(&origin).await;
        let answer = proxy.get("/", &[]).await;
        assert!(
            answer.status() == 502 || !answer.head.replace("\r\n", "").contains(['\r', '\n', '\0']),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn what_identifies_a_client_is_kept_for_no_other() {
    let asked = AtomicUsize::new(0);
    let origin = Origin::start(move |received| {
        let number = asked.fetch_add(1, Ordering::SeqCst);
        let who = received.field("authorization").or(received.field("cookie")).unwrap_or("nobody").to_owned();
        let fields = if received.path() == "/cookie" {
            "Cache-Control: max-age=60\nSet-Cookie: id=1"
        } else {
            "Cache-Control: max-age=60"
        };
        Reply::Bytes(response("200 OK", fields, &format!("{who} {number}")))
    })
    .await;
    let proxy = Running::before(&origin).await;
    for path in ["/", "/cookie"] {
        for field in ["Authorization: Basic one", "Cookie: one", "Authorization: Basic two", "Cookie: two"] {
            let answer = proxy.get(path, &[field]).await;
            let (_, who) = field.split_once(": ").expect("a value");
            assert!(answer.text().starts_with(who), "{path} {field}: {answer:?}");
        }
        assert!(proxy.get(path, &[]).await.text().starts_with("nobody"), "{path}");
    }
    // A response that sets a cookie is not another's.
    assert!(!is_hit(&proxy.get("/cookie", &[]).await));
}

#[tokio::test]
async fn a_connection_option_hides_nothing_from_the_cache_that_the_origin_sees() {
    // `Connection: authorization` takes the field out before the cache looks, so that both see the same request.
    let origin = Origin::start(reflects("Authorization")).await;
    let proxy = Running::before(&origin).await;
    let answer = proxy.get("/", &["Authorization: Basic x", "Connection: authorization"]).await;
    assert_eq!(answer.text(), "Authorization=none");
    // And what keeps a response out of the cache cannot be taken out of the host or the length.
    let answer = proxy.ask("POST", "/", &["Connection: host, content-length, x-forwarded-for"], "body").await;
    assert_eq!(answer.status(), 200);
    let received = origin.last();
    assert_eq!((received.field("host"), received.body.as_slice()), (Some("a.example"), &b"body"[..]));
    assert_eq!(received.field("x-forwarded-for"), Some("127.0.0.1"));
}
