//! The cache in a client of reqwest, against a server on loopback.

use std::net::SocketAddr;
use std::time::Duration;

use crate::common::{Bench, Script, body_of, response, streamed};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use reqwest::redirect::Policy;
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, RequestBuilder};
use tiercache_http::client::Cache;
use tiercache_http::{Body, Origin, Outcome, RequestOptions};
use tokio::net::TcpListener;

const FRESH: &[(&str, &str)] = &[("cache-control", "max-age=60")];
const PRIVATE: &[(&str, &str)] = &[("cache-control", "private, max-age=60")];

/// Serves what the script says; where that is an error, the connection is closed without an answer.
async fn serve(script: &Script) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let script = script.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let script = script.clone();
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let script = script.clone();
                async move {
                    // What was sent is read to its end first, as servers do.
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await.map_err(|_| "cut")?.to_bytes();
                    let mut response = script.send(http::Request::from_parts(parts, Body::empty())).await?;
                    response.headers_mut().insert("x-sent", body.len().into());
                    Ok::<_, &'static str>(response)
                }
            });
            tokio::spawn(async move {
                // Errors are what some of the tests are about, on the other side.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

fn plain() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

fn client(cache: Cache) -> ClientWithMiddleware {
    ClientBuilder::new(plain()).with(cache).build()
}

/// A client with a private cache, its time, and where the script answers.
async fn private(script: &Script) -> (ClientWithMiddleware, Bench, String) {
    let bench = Bench::new(|cache| cache.private()).await;
    let client = client(Cache::over(bench.cache.clone()));
    (client, bench, format!("http://{}", serve(script).await))
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    outcome: Outcome,
    url: String,
    text: String,
}

async fn send(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    assert_eq!(response.version(), Version::HTTP_11);
    Answer {
        status: response.status(),
        headers: response.headers().clone(),
        outcome: *response.extensions().get().expect("every response says what the cache did"),
        url: response.url().to_string(),
        text: response.text().await.unwrap(),
    }
}

/// What was answered, and how.
async fn told(request: RequestBuilder) -> (String, Outcome) {
    let answer = send(request).await;
    (answer.text, answer.outcome)
}

fn said(text: &str, outcome: Outcome) -> (String, Outcome) {
    (text.to_owned(), outcome)
}

#[tokio::test]
async fn what_is_fresh_is_answered_without_a_request_as_if_it_came_from_there() {
    let script = Script::counting(&[("cache-control", "max-age=60"), ("x-own", "yes")]);
    let (client, bench, at) = private(&script).await;
    let url = format!("{at}/a?b=c");
    let miss = send(client.get(format!("{url}#d"))).await;
    bench.pass(7);
    let hit = send(client.get(format!("{url}#d"))).await;
    for (answer, outcome) in [(&miss, Outcome::Miss), (&hit, Outcome::Hit)] {
        assert_eq!((answer.status, answer.outcome), (StatusCode::OK, outcome));
        assert_eq!((answer.text.as_str(), answer.url.as_str()), ("1", url.as_str()));
        assert_eq!(answer.headers["x-own"], "yes");
    }
    assert_eq!(miss.headers["cache-status"], "tiercache; fwd=uri-miss; stored");
    assert_eq!(hit.headers["cache-status"], "tiercache; hit; ttl=53");
    assert_eq!(hit.headers["age"], "7");
    let head = send(client.head(&url)).await;
    assert_eq!((head.outcome, head.headers["content-length"].to_str().unwrap()), (Outcome::Hit, "1"));
    assert_eq!(script.count(), 1);
    let options = RequestOptions::new().bypass();
    assert_eq!(told(client.get(&url).with_extension(options)).await, said("2", Outcome::Bypass));
    let only = send(client.get(format!("{at}/other")).header("cache-control", "only-if-cached")).await;
    assert_eq!((only.status, only.url), (StatusCode::GATEWAY_TIMEOUT, format!("{at}/other")));
    assert_eq!(script.count(), 2);
}

#[tokio::test]
async fn what_is_stale_is_revalidated() {
    let script = Script::new(|asked| {
        let headers = [("etag", "\"a\""), ("cache-control", "max-age=60")];
        let known = asked.headers.get("if-none-match").is_some_and(|tag| tag == "\"a\"");
        Ok(response(if known { 304 } else { 200 }, &headers, if known { "" } else { "page" }))
    });
    let (client, bench, at) = private(&script).await;
    assert_eq!(told(client.get(&at)).await, said("page", Outcome::Miss));
    bench.pass(61);
    assert_eq!(told(client.get(&at)).await, said("page", Outcome::Revalidated));
    assert_eq!(told(client.get(&at)).await, said("page", Outcome::Hit));
    let mine = send(client.get(&at).header("if-none-match", "\"a\"")).await;
    assert_eq!((mine.status, mine.outcome), (StatusCode::NOT_MODIFIED, Outcome::Hit));
    let part = send(client.get(&at).header("range", "bytes=1-2")).await;
    assert_eq!((part.status, part.text.as_str()), (StatusCode::PARTIAL_CONTENT, "ag"));
    assert_eq!(script.count(), 2);
}

#[tokio::test]
async fn a_private_cache_keeps_what_is_private_and_a_shared_one_does_not() {
    for (headers, shared, private) in [
        (PRIVATE, Outcome::Miss, Outcome::Hit),
        (FRESH, Outcome::Hit, Outcome::Hit),
        (&[("cache-control", "s-maxage=60")], Outcome::Hit, Outcome::Miss),
        (&[("cache-control", "max-age=60"), ("set-cookie", "a=b")], Outcome::Miss, Outcome::Miss),
        (&[("cache-control", "no-store")], Outcome::Miss, Outcome::Miss),
    ] {
        let at = format!("http://{}", serve(&Script::counting(headers)).await);
        let bench = Bench::new(|cache| cache).await;
        let manager = bench.manager.clone();
        for (cache, expected) in [(Cache::over(bench.cache.clone()), shared), (Cache::new(manager), private)]
        {
            let client = client(cache);
            // Both are in one namespace, and neither finds what the other keeps.
            assert_eq!(send(client.get(&at)).await.outcome, Outcome::Miss);
            assert_eq!(send(client.get(&at)).await.outcome, expected, "{headers:?}");
        }
    }
}

#[tokio::test]
async fn credentials_have_their_own_answers_in_a_private_cache_and_pass_by_a_shared_one() {
    let script = Script::new(|asked| {
        let who = ["authorization", "cookie"].map(|name| asked.headers.get(name));
        Ok(response(200, PRIVATE, format!("{who:?}")))
    });
    let (client, bench, at) = private(&script).await;
    for name in ["authorization", "cookie"] {
        let mut seen = Vec::new();
        for outcome in [Outcome::Miss, Outcome::Hit] {
            for who in ["ann", "bob"] {
                let answer = send(client.get(&at).header(name, who)).await;
                assert!(answer.text.contains(who), "{name}: {} for {who}", answer.text);
                assert_eq!(answer.outcome, outcome, "{name} {who}");
                seen.push(answer.text);
            }
        }
        assert_eq!(seen[..2], seen[2..]);
    }
    assert_eq!(told(client.get(&at)).await, said("[None, None]", Outcome::Miss));
    // One removal reaches them all.
    bench.cache.purge(&at.parse().unwrap()).await.unwrap();
    assert_eq!(send(client.get(&at).header("cookie", "ann")).await.outcome, Outcome::Miss);
    // Whose they are may be said: then a token may change.
    let ann = RequestOptions::new().identity("ann");
    let ask = |token: &str| client.get(&at).header("authorization", token).with_extension(ann.clone());
    assert_eq!(send(ask("first")).await.outcome, Outcome::Miss);
    assert_eq!(send(ask("second")).await.outcome, Outcome::Hit);

    let bench = Bench::new(|cache| cache).await;
    let shared = self::client(Cache::over(bench.cache.clone()));
    for _ in 0..2 {
        assert_eq!(send(shared.get(&at).header("authorization", "ann")).await.outcome, Outcome::Bypass);
    }
}

#[tokio::test]
async fn variants_and_hosts_are_told_apart() {
    let script = Script::new(|asked| {
        let (language, host) = (asked.headers.get("accept-language"), &asked.headers["host"]);
        let headers = [("cache-control", "max-age=60"), ("vary", "accept-language")];
        Ok(response(200, &headers, format!("{language:?} {}", host == "other.example")))
    });
    let (client, _bench, at) = private(&script).await;
    for outcome in [Outcome::Miss, Outcome::Hit] {
        for (language, host) in [("en", None), ("de", None), ("en", Some("other.example"))] {
            let mut request = client.get(&at).header("accept-language", language);
            if let Some(host) = host {
                request = request.header("host", host);
            }
            let text = format!("Some({language:?}) {}", host.is_some());
            assert_eq!(told(request).await, said(&text, outcome));
        }
    }
}

#[tokio::test]
async fn what_varies_by_a_cookie_that_cannot_be_seen_is_not_stored() {
    let script = Script::counting(&[("cache-control", "max-age=60"), ("vary", "Accept, Cookie")]);
    let (client, bench, at) = private(&script).await;
    for text in ["1", "2"] {
        assert_eq!(told(client.get(&at)).await, said(text, Outcome::Miss));
    }
    // In the request it is seen.
    for outcome in [Outcome::Miss, Outcome::Hit] {
        assert_eq!(told(client.get(&at).header("cookie", "a=b")).await, said("3", outcome));
    }
    let without_store = self::client(Cache::over(bench.cache.clone()).sends_as_given());
    for outcome in [Outcome::Miss, Outcome::Hit] {
        assert_eq!(told(without_store.get(&at)).await, said("4", outcome));
    }
}

#[tokio::test]
async fn a_change_removes_what_is_stored_and_what_is_sent_arrives() {
    let script = Script::counting(FRESH);
    let (client, _bench, at) = private(&script).await;
    assert_eq!(told(client.get(&at)).await, said("1", Outcome::Miss));
    let long = Bytes::from(vec![7; 300_000]);
    let parts = long.chunks(1000).map(|part| Ok(long.slice_ref(part))).collect();
    let sent = reqwest::Body::wrap(body_of(parts));
    let changed = send(client.post(&at).body(sent)).await;
    assert_eq!((changed.headers["x-sent"].to_str().unwrap(), changed.outcome), ("300000", Outcome::Bypass));
    assert_eq!(told(client.get(&at)).await, said("3", Outcome::Miss));
    assert_eq!(script.asked()[1].method, Method::POST);
}

#[tokio::test]
async fn redirects_are_followed_and_what_they_lead_to_is_stored_under_no_other_name() {
    let script = Script::new(|asked| match asked.uri.as_str() {
        "/old" => Ok(response(302, &[("location", "/new")], "")),
        "/moved" => Ok(response(301, &[("location", "/new"), ("cache-control", "max-age=60")], "")),
        uri => Ok(response(200, FRESH, uri.to_owned())),
    });
    let (client, bench, at) = private(&script).await;
    for _ in 0..2 {
        let answer = send(client.get(format!("{at}/old"))).await;
        assert_eq!((answer.text.as_str(), answer.outcome), ("/new", Outcome::Miss));
        assert_eq!(answer.url, format!("{at}/new"));
    }
    assert_eq!(script.count(), 4);
    assert_eq!(send(client.get(format!("{at}/new"))).await.outcome, Outcome::Miss, "nor under its own");
    // Who follows them himself has each of them by its own word.
    let steps = reqwest::Client::builder().no_proxy().redirect(Policy::none()).build().unwrap();
    let steps = ClientBuilder::new(steps).with(Cache::over(bench.cache.clone())).build();
    for outcome in [Outcome::Miss, Outcome::Hit] {
        let answer = send(steps.get(format!("{at}/moved"))).await;
        assert_eq!((answer.status, answer.outcome), (StatusCode::MOVED_PERMANENTLY, outcome));
        assert_eq!(answer.headers["location"], "/new");
    }
}

#[tokio::test]
async fn a_change_that_leads_elsewhere_removes_both() {
    let script = Script::new(|asked| match (&asked.method, asked.uri.as_str()) {
        (&Method::POST, _) => Ok(response(303, &[("location", "/list")], "")),
        (_, "/list") if asked.headers.contains_key("x-fail") => Ok(response(500, &[], "")),
        (_, uri) => Ok(response(200, FRESH, uri.to_owned())),
    });
    let (client, _bench, at) = private(&script).await;
    for fails in [false, true] {
        for path in ["/form", "/list"] {
            send(client.get(format!("{at}{path}"))).await;
            assert_eq!(send(client.get(format!("{at}{path}"))).await.outcome, Outcome::Hit);
        }
        let mut post = client.post(format!("{at}/form")).body("x");
        if fails {
            // The change was made, whatever comes of what it led to.
            post = post.header("x-fail", "1");
        }
        assert_eq!(send(post).await.url, format!("{at}/list"));
        for path in ["/form", "/list"] {
            assert_eq!(
                send(client.get(format!("{at}{path}"))).await.outcome,
                Outcome::Miss,
                "{path} {fails}"
            );
        }
    }
}

#[tokio::test]
async fn a_304_of_something_else_confirms_nothing() {
    let script = Script::new(|asked| {
        let headers = [("etag", "\"same\""), ("cache-control", "max-age=60")];
        match (asked.uri.as_str(), asked.headers.contains_key("if-none-match")) {
            ("/a", _) => Ok(response(302, &[("location", "/b")], "")),
            (_, true) => Ok(response(304, &headers, "")),
            (_, false) => Ok(response(200, &headers, "b")),
        }
    });
    script.queue(Ok(response(200, &[("etag", "\"same\""), ("cache-control", "max-age=60")], "a")));
    let (client, bench, at) = private(&script).await;
    let url = format!("{at}/a");
    assert_eq!(told(client.get(&url)).await, said("a", Outcome::Miss));
    bench.pass(61);
    for _ in 0..2 {
        assert_eq!(told(client.get(&url)).await, said("b", Outcome::Miss));
    }
    let mine = send(client.get(&url).header("if-none-match", "\"same\"")).await;
    assert_eq!(mine.status, StatusCode::NOT_MODIFIED, "who asked for it gets it");
}

#[tokio::test]
async fn bodies_stream_and_those_over_the_limit_are_not_stored() {
    let long: Bytes = (0..3 << 20).map(|at: u32| (at / 251 + at) as u8).collect::<Vec<_>>().into();
    let frames = |bytes: &Bytes| bytes.chunks(50_000).map(|part| Ok(bytes.slice_ref(part))).collect();
    for (most, outcome) in [(4 << 20, Outcome::Hit), (1 << 20, Outcome::Miss)] {
        let script = Script::new(|_| Err("asked too often"));
        let bench = Bench::new(|cache| cache.private().max_body(most)).await;
        let client = client(Cache::over(bench.cache.clone()));
        let url = format!("http://{}/", serve(&script).await);
        for outcome in [Outcome::Miss, outcome] {
            script.queue(Ok(streamed(FRESH, frames(&long))));
            let mut answer = client.get(&url).send().await.unwrap();
            assert_eq!(answer.extensions().get(), Some(&outcome), "{most}");
            let mut read = Vec::new();
            while let Some(chunk) = answer.chunk().await.unwrap() {
                assert!(chunk.len() < long.len(), "it comes as a whole");
                read.extend(chunk);
            }
            assert!(read == long);
        }
    }
}

#[tokio::test]
async fn errors_are_what_they_are_without_the_cache_and_stale_answers_where_allowed() {
    let script = Script::new(|_| Err("closed"));
    let (client, bench, at) = private(&script).await;
    let (own, without) =
        (client.get(&at).send().await.unwrap_err(), plain().get(&at).send().await.unwrap_err());
    assert!(!own.is_middleware() && own.is_request() && without.is_request());
    assert_eq!(own.to_string(), without.to_string());
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert!(client.get(format!("http://{free}")).send().await.unwrap_err().is_connect());

    script.queue(Ok(response(200, &[("cache-control", "max-age=1, stale-if-error=60")], "kept")));
    assert_eq!(told(client.get(&at)).await, said("kept", Outcome::Miss));
    bench.pass(30);
    assert_eq!(told(client.get(&at)).await, said("kept", Outcome::Stale));
    bench.pass(60);
    assert!(client.get(&at).send().await.is_err(), "not for ever");
}

#[tokio::test]
async fn a_body_that_takes_too_long_is_a_timeout_and_is_not_stored() {
    let script = Script::counting(FRESH);
    script.queue(Ok(response(200, FRESH, "").map(|_| Body::wrap(Endless))));
    let (client, _bench, at) = private(&script).await;
    let begun = client.get(&at).timeout(Duration::from_millis(300)).send().await.unwrap();
    let error = begun.bytes().await.unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    assert_eq!(told(client.get(&at)).await, said("1", Outcome::Miss));
}

/// Begins, and never ends.
struct Endless;

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Pending
    }
}

#[tokio::test]
async fn who_leaves_harms_nobody() {
    let (script, gate) = Script::counting(FRESH).gated();
    let (client, _bench, at) = private(&script).await;
    let first = tokio::spawn(send(client.get(&at)));
    script.until_asked(1).await;
    let others: Vec<_> = (0..10).map(|_| tokio::spawn(send(client.get(&at)))).collect();
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    script.until_asked(2).await;
    gate.add_permits(10);
    let mut texts: Vec<String> = Vec::new();
    for other in others {
        texts.push(other.await.unwrap().text);
    }
    texts.dedup();
    assert_eq!((texts.len(), script.count()), (1, 2), "one of them asked for all");

    // A body that nobody reads any more is stored all the same.
    let long = Bytes::from(vec![7; 2 << 20]);
    script.queue(Ok(streamed(FRESH, long.chunks(10_000).map(|part| Ok(long.slice_ref(part))).collect())));
    let url = format!("{at}/long");
    let mut begun = client.get(&url).send().await.unwrap();
    assert!(begun.chunk().await.unwrap().is_some());
    drop(begun);
    // Waits for what is under way, since it asks for the same.
    assert_eq!(send(client.get(&url)).await.outcome, Outcome::Hit);
}

#[tokio::test]
async fn what_is_stale_answers_while_another_client_revalidates_it() {
    let script = Script::counting(&[("cache-control", "max-age=1, stale-while-revalidate=60")]);
    let at = format!("http://{}", serve(&script).await);
    let bench = Bench::new(|cache| cache.private()).await;
    let cache = Cache::over(bench.cache.clone());
    let ahead = client(cache.clone().background(ClientBuilder::new(plain()).build()));
    assert_eq!(told(ahead.get(&at)).await, said("1", Outcome::Miss));
    bench.pass(5);
    assert_eq!(told(ahead.get(&at)).await, said("1", Outcome::Stale));
    script.until_asked(2).await;
    while told(ahead.get(&at)).await != said("2", Outcome::Hit) {
        // An answer from RAM waits for nothing.
        tokio::task::yield_now().await;
    }
    assert_eq!(script.count(), 2);
    // Without one, what is stale waits for its revalidation.
    bench.pass(5);
    assert_eq!(told(client(cache).get(&at)).await, said("3", Outcome::Miss));
}
