//! What passes between clients and the origin, and over which connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::{LONG, Origin, Received, Reply, Running, fresh, response};
use tiercache_http::{HttpCache, Profile};
use tiercache_proxy::{Limits, Proxy};
use tokio::sync::Notify;
use tokio::time::timeout;

/// A response that no cache keeps.
fn passing(body: &str) -> Reply {
    Reply::Bytes(response("200 OK", "Cache-Control: no-store", body))
}

#[tokio::test]
async fn a_request_arrives_with_its_path_host_and_body_and_says_where_it_came_from() {
    let origin = Origin::start(|_| passing("created")).await;
    let proxy = Running::before(&origin).await;
    let mut client = proxy.connect().await;
    client
        .send(
            "POST /a%2Fb;c=1?q=%00&r=a+b HTTP/1.1\r\nHost: a.example\r\nX-Mine: 1\r\nConnection: x-hop\r\nX-Hop: 1\r\n\
             TE: trailers\r\nKeep-Alive: 5\r\nExpect: 100-continue\r\nContent-Length: 8\r\n\r\n",
        )
        .await;
    assert_eq!(client.answer(false).await.status(), 100, "the body is asked for");
    client.send("the body").await;
    let answer = client.answer(false).await;
    assert_eq!((answer.status(), answer.text().as_str()), (200, "created"));
    let received = origin.last();
    assert_eq!(received.line(), "POST /a%2Fb;c=1?q=%00&r=a+b HTTP/1.1");
    assert_eq!(received.body, b"the body");
    for (name, values) in [
        ("host", vec!["a.example"]),
        ("via", vec!["1.1 tiercache"]),
        ("x-mine", vec!["1"]),
        ("x-forwarded-for", vec!["127.0.0.1"]),
        ("x-forwarded-host", vec!["a.example"]),
        ("x-forwarded-proto", vec!["http"]),
        ("connection", vec![]),
        ("x-hop", vec![]),
        ("te", vec![]),
        ("keep-alive", vec![]),
        ("expect", vec![]),
    ] {
        assert_eq!(received.all(name), values, "{name}");
    }
}

#[tokio::test]
async fn a_response_keeps_its_status_and_fields_but_those_of_the_connection() {
    let origin = Origin::start(|_| {
        let fields = "Cache-Control: no-store\nX-Mine: a\nX-Mine: b\nSet-Cookie: c=1\nSet-Cookie: d=2\n\
                      Connection: keep-alive, x-hop\nX-Hop: 1\nKeep-Alive: timeout=5\nProxy-Authenticate: Basic\n\
                      Upgrade: h2c\nLocation: http://elsewhere.example/";
        Reply::Bytes(response("302 Found Elsewhere", fields, "body"))
    })
    .await;
    let proxy = Running::before(&origin).await;
    let answer = proxy.get("/", &[]).await;
    // Not followed.
    assert_eq!((answer.status(), answer.text().as_str()), (302, "body"));
    for (name, values) in [
        ("x-mine", vec!["a", "b"]),
        ("set-cookie", vec!["c=1", "d=2"]),
        ("location", vec!["http://elsewhere.example/"]),
        ("via", vec!["1.1 tiercache"]),
        ("x-hop", vec![]),
        ("keep-alive", vec![]),
        ("proxy-authenticate", vec![]),
        ("upgrade", vec![]),
    ] {
        assert_eq!(answer.all(name), values, "{name}");
    }
    assert_eq!(origin.received().len(), 1);
}

#[tokio::test]
async fn connections_to_the_origin_are_used_again() {
    let origin = Origin::start(|received| passing(received.path())).await;
    let proxy = Running::before(&origin).await;
    let mut client = proxy.connect().await;
    for number in 0..20 {
        client.send(&format!("GET /{number} HTTP/1.1\r\nHost: a.example\r\n\r\n")).await;
        assert_eq!(client.answer(false).await.text(), format!("/{number}"));
    }
    let opened = proxy.count("upstream_connections");
    assert!(opened < 20, "{opened}");
    assert_eq!(proxy.count("upstream_requests"), 20);
}

/// Ends a connection without an answer to its second request, once; then answers.
fn closes_once(end: fn(Vec<u8>) -> Reply) -> impl Fn(&Received) -> Reply + Send + Sync {
    let closed = AtomicBool::new(false);
    move |received| {
        if received.turn > 0 && !closed.swap(true, Ordering::SeqCst) {
            return end(Vec::new());
        }
        passing(received.path())
    }
}

/// Asks until a request went over a connection that was used before.
async fn used_before(proxy: &Running, origin: &Origin, ask: impl AsyncFn(&Running) -> u16) -> u16 {
    loop {
        assert_eq!(proxy.get("/warm", &[]).await.status(), 200);
        let status = ask(proxy).await;
        if origin.received().iter().any(|received| received.turn > 0) {
            return status;
        }
    }
}

#[tokio::test]
async fn a_safe_request_is_sent_again_when_the_origin_had_closed_the_connection() {
    for end in [Reply::Close, Reply::Reset] {
        let origin = Origin::start(closes_once(end)).await;
        let proxy = Running::before(&origin).await;
        let status =
            used_before(&proxy, &origin, async |proxy| proxy.get("/again", &[]).await.status()).await;
        assert_eq!(status, 200);
        assert_eq!(proxy.count("upstream_retries"), 1);
    }
}

#[tokio::test]
async fn an_unsafe_request_is_never_sent_twice() {
    // Only requests other than GET end the connection.
    let origin = Origin::start(|received| {
        if received.line().starts_with("GET") { passing("x") } else { Reply::Close(Vec::new()) }
    })
    .await;
    let proxy = Running::before(&origin).await;
    for body in ["", "body"] {
        for round in 0..10 {
            assert_eq!(proxy.get("/warm", &[]).await.status(), 200);
            let path = format!("/once{body}{round}");
            let answer = proxy.ask("POST", &path, &[], body).await;
            assert_eq!(answer.status(), 502, "{answer:?}");
            assert!(answer.field("proxy-status").contains("connection_terminated"), "{answer:?}");
            let times = origin.received().iter().filter(|received| received.path() == path).count();
            assert_eq!(times, 1, "{path}");
        }
    }
    assert!(
        origin.received().iter().any(|received| received.turn > 0 && received.line().starts_with("POST"))
    );
}

#[tokio::test]
async fn an_origin_that_is_not_there_is_502() {
    let origin = Origin::start(|_| fresh("x")).await;
    let proxy = Running::before(&origin).await;
    origin.stop().await;
    let answer = proxy.get("/", &[]).await;
    assert_eq!((answer.status(), answer.text().as_str()), (502, "the origin cannot be reached\n"));
    assert_eq!(answer.field("cache-status"), "tiercache; detail=connection_refused");
    assert_eq!(answer.field("cache-control"), "no-store");
    assert_eq!(proxy.count("upstream_failures"), 1);
}

#[tokio::test]
async fn an_origin_that_does_not_answer_is_504_and_one_that_pauses_cuts_the_answer() {
    let limits = Limits {
        first_byte: Duration::from_millis(100),
        body_pause: Duration::from_millis(100),
        ..Limits::default()
    };
    let half = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nCache-Control: max-age=60\r\n\r\nhalf".to_vec();
    let origin = Origin::start(move |received| match received.path() {
        "/silent" => Reply::Wait(Arc::default(), Vec::new()),
        _ => Reply::Parts(half.clone(), Arc::default(), Vec::new()),
    })
    .await;
    let proxy = Running::with(&origin.url(), Profile::Default, limits).await;
    let answer = proxy.get("/silent", &[]).await;
    assert_eq!(answer.status(), 504);
    assert!(answer.field("proxy-status").contains("http_response_timeout"), "{answer:?}");
    // The connection that was given up is closed.
    timeout(LONG, origin.left.notified()).await.expect("it is told");
    for _ in 0..2 {
        let said = proxy.raw("GET /half HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
        assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("half"), "{said}");
    }
    // Nothing of what broke off was kept.
    let times = origin.received().iter().filter(|received| received.path() == "/half").count();
    assert_eq!(times, 2);
    assert_eq!(proxy.count("broken_off"), 2);
}

#[tokio::test]
async fn a_response_is_passed_on_as_it_comes() {
    let told = Arc::new(Notify::new());
    let (first, second) = (b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf".to_vec(), b"more".to_vec());
    let gate = told.clone();
    let origin = Origin::start(move |_| Reply::Parts(first.clone(), gate.clone(), second.clone())).await;
    let proxy = Running::before(&origin).await;
    let mut client = proxy.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 200);
    assert_eq!(client.some(4).await, b"half");
    told.notify_one();
    assert_eq!(client.some(4).await, b"more");
}

#[tokio::test]
async fn a_client_that_goes_ends_the_work_for_it() {
    let origin = Origin::start(|received| {
        let half = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nCache-Control: no-store\r\n\r\nhalf".to_vec();
        match received.path() {
            "/post" => Reply::Wait(Arc::default(), Vec::new()),
            _ => Reply::Parts(half, Arc::default(), Vec::new()),
        }
    })
    .await;
    let proxy = Running::before(&origin).await;
    let mut client = proxy.connect().await;
    client.send("POST /post HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\n\r\n").await;
    while origin.received().is_empty() {
        tokio::task::yield_now().await;
    }
    drop(client);
    timeout(LONG, origin.left.notified()).await.expect("the origin sees it go");
    let mut client = proxy.connect().await;
    client.send("GET /half HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 200);
    drop(client);
    timeout(LONG, origin.left.notified()).await.expect("the origin sees it go");
}

#[tokio::test]
async fn bodies_over_the_limit_are_413_however_they_come() {
    let limits = Limits { body_bytes: 10, ..Limits::default() };
    let origin = Origin::start(|_| passing("x")).await;
    let proxy = Running::with(&origin.url(), Profile::Default, limits).await;
    assert_eq!(proxy.ask("POST", "/", &[], "ten bytes!").await.status(), 200);
    assert_eq!(proxy.ask("POST", "/", &[], "eleven byte").await.status(), 413);
    let chunked =
        "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    let said = proxy.raw(&format!("{chunked}a\r\nten bytes!\r\n1\r\nx\r\n0\r\n\r\n")).await;
    assert!(said.starts_with("HTTP/1.1 413 "), "{said}");
    let said = proxy.raw(&format!("{chunked}a\r\nten bytes!\r\n0\r\n\r\n")).await;
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
}

#[tokio::test]
async fn a_body_that_stops_is_408_and_nothing_waits_for_it() {
    let limits = Limits { body_pause: Duration::from_millis(100), ..Limits::default() };
    let origin = Origin::start(|_| passing("x")).await;
    let proxy = Running::with(&origin.url(), Profile::Default, limits).await;
    let said = proxy.raw("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 10\r\n\r\nhalf").await;
    assert!(said.starts_with("HTTP/1.1 408 "), "{said}");
}

#[tokio::test]
async fn no_more_requests_are_under_way_than_may_be() {
    let limits = Limits { upstream: 1, connect: Duration::from_millis(100), ..Limits::default() };
    let told = Arc::new(Notify::new());
    let gate = told.clone();
    let origin = Origin::start(move |_| Reply::Wait(gate.clone(), response("200 OK", "", "x"))).await;
    let proxy = Running::with(&origin.url(), Profile::Default, limits).await;
    let mut first = proxy.connect().await;
    first.send("GET /1 HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    while origin.received().is_empty() {
        tokio::task::yield_now().await;
    }
    let answer = proxy.get("/2", &[]).await;
    assert_eq!(answer.status(), 503);
    assert!(answer.field("proxy-status").contains("connection_limit_reached"), "{answer:?}");
    told.notify_one();
    assert_eq!(first.answer(false).await.text(), "x");
}

#[tokio::test]
async fn interim_responses_are_stepped_over() {
    let early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n".to_vec();
    let origin = Origin::start(move |_| {
        Reply::Bytes([early.clone(), response("200 OK", "Cache-Control: no-store", "final")].concat())
    })
    .await;
    let proxy = Running::before(&origin).await;
    let answer = proxy.get("/", &[]).await;
    assert_eq!((answer.status(), answer.text().as_str(), answer.field("link")), (200, "final", ""));
}

#[tokio::test]
async fn options_end_where_their_hops_do() {
    let origin = Origin::start(|_| passing("x")).await;
    let proxy = Running::before(&origin).await;
    assert_eq!(proxy.ask("OPTIONS", "*", &["Max-Forwards: 0"], "").await.status(), 204);
    assert!(origin.received().is_empty());
    assert_eq!(proxy.ask("OPTIONS", "/x", &["Max-Forwards: 2"], "").await.status(), 200);
    assert_eq!(
        (origin.last().line(), origin.last().field("max-forwards")),
        ("OPTIONS /x HTTP/1.1", Some("1"))
    );
    assert_eq!(proxy.ask("OPTIONS", "*", &[], "").await.status(), 200);
    assert_eq!(
        (origin.last().line(), origin.last().field("host")),
        ("OPTIONS * HTTP/1.1", Some("a.example"))
    );
}

#[tokio::test]
async fn a_trusted_proxy_in_front_is_believed() {
    let origin = Origin::start(|_| passing("x")).await;
    let cache = HttpCache::new(crate::common::manager().await);
    let target = origin.url().parse().expect("an origin");
    let proxy = Running::of(Proxy::new(cache, target, Limits::default()).trust_forwarded(true)).await;
    proxy.get("/", &["X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https", "Forwarded: for=x"]).await;
    let received = origin.last();
    assert_eq!(received.all("x-forwarded-for"), ["192.0.2.1, 127.0.0.1"]);
    assert_eq!(received.all("x-forwarded-proto"), ["https"]);
    assert_eq!(received.all("forwarded"), ["for=x"]);
}

#[tokio::test]
async fn a_stop_lets_answers_end_and_takes_no_more() {
    let told = Arc::new(Notify::new());
    let gate = told.clone();
    let origin = Origin::start(move |_| Reply::Wait(gate.clone(), response("200 OK", "", "the last"))).await;
    let mut proxy = Running::before(&origin).await;
    let mut idle = proxy.connect().await;
    let mut client = proxy.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    while origin.received().is_empty() {
        tokio::task::yield_now().await;
    }
    proxy.stop();
    assert_eq!(idle.rest().await, "", "who asks nothing is let go");
    told.notify_one();
    let answer = client.answer(false).await;
    assert_eq!(answer.text(), "the last");
    assert_eq!(client.rest().await, "");
    let address = proxy.address;
    assert_eq!(proxy.ended().await.cut, 0);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn many_who_ask_for_the_same_at_once_are_one_request_to_the_origin() {
    let told = Arc::new(Notify::new());
    let gate = told.clone();
    let shared = response("200 OK", "Cache-Control: max-age=60", "shared");
    let origin = Origin::start(move |_| Reply::Wait(gate.clone(), shared.clone())).await;
    let proxy = Running::before(&origin).await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = proxy.connect().await;
        client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
        clients.push(client);
    }
    while proxy.count("requests_active") < 10 || origin.received().is_empty() {
        tokio::task::yield_now().await;
    }
    told.notify_one();
    for client in &mut clients {
        assert_eq!(client.answer(false).await.text(), "shared");
    }
    assert_eq!(origin.received().len(), 1);
}

#[tokio::test]
async fn what_is_stale_stands_in_for_an_origin_that_is_gone_where_that_is_allowed() {
    let origin = Origin::start(|received| {
        let may = if received.path() == "/may" { ", stale-if-error=60" } else { ", must-revalidate" };
        let fields = format!("Cache-Control: max-age=0{may}\nETag: \"1\"");
        Reply::Close(response("200 OK", &fields, "kept"))
    })
    .await;
    let proxy = Running::before(&origin).await;
    for path in ["/may", "/must"] {
        assert_eq!(proxy.get(path, &[]).await.text(), "kept");
    }
    origin.stop().await;
    let answer = proxy.get("/may", &[]).await;
    assert_eq!((answer.status(), answer.text().as_str()), (200, "kept"), "{answer:?}");
    assert_eq!(proxy.count("stale"), 1);
    let answer = proxy.get("/must", &[]).await;
    assert!([502, 504].contains(&answer.status()), "{answer:?}");
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_the_connection() {
    let limits = Limits { head: Duration::from_millis(100), ..Limits::default() };
    let origin = Origin::start(|_| fresh("x")).await;
    let proxy = Running::with(&origin.url(), Profile::Default, limits).await;
    let said = proxy.raw("GET / HTTP/1.1\r\nHost: a.example\r\nX-Slow: ").await;
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 408 "), "{said}");
    // So does the next one's, on a connection that was used.
    let mut client = proxy.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    assert_eq!(client.answer(false).await.text(), "x");
    assert_eq!(client.rest().await, "");
    assert_eq!(origin.received().len(), 1);
}

#[tokio::test]
async fn a_stop_waits_no_longer_than_it_may() {
    let origin = Origin::start(|_| Reply::Wait(Arc::default(), Vec::new())).await;
    let cache = HttpCache::new(crate::common::manager().await);
    let proxy = Proxy::new(cache, origin.url().parse().expect("an origin"), Limits::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let stop = Arc::new(Notify::new());
    let (serving, told) = (proxy.clone(), stop.clone());
    let task =
        tokio::spawn(
            async move { serving.serve(listener, told.notified(), Duration::from_millis(50)).await },
        );
    let mut client = tokio::net::TcpStream::connect(address).await.expect("a connection");
    let request = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut client, request).await.expect("a request");
    while origin.received().is_empty() {
        tokio::task::yield_now().await;
    }
    stop.notify_one();
    let drained = timeout(LONG, task).await.expect("it ends").expect("it does not panic");
    assert_eq!(drained.cut, 1);
}
