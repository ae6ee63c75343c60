//! The layer around services of tower and routers of axum.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::{Bench, read};
use axum::Router;
use axum::extract::{Path, Request};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse;
use axum::routing::get;
use http_body_util::Full;
use tiercache_http::{Body, CacheLayer, Outcome, RequestOptions};
use tower::{Layer, ServiceExt, service_fn};

fn ask(uri: &str) -> Request {
    Request::get(uri).body(axum::body::Body::empty()).unwrap()
}

/// A router that counts how often it is asked.
fn pages(asked: Arc<AtomicUsize>) -> Router {
    let page = move |Path(name): Path<String>| {
        let count = asked.fetch_add(1, Ordering::Relaxed) + 1;
        async move { ([(CACHE_CONTROL, "max-age=60"), (CONTENT_TYPE, "text/x")], format!("{name} {count}")) }
    };
    Router::new().route("/pages/{name}", get(page))
}

#[tokio::test]
async fn a_router_is_asked_once_for_what_it_lets_be_stored() {
    let bench = Bench::new(|cache| cache).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let app = pages(asked.clone()).layer(CacheLayer::new(bench.cache.clone()));
    for (uri, expected) in
        [("/pages/a", "a 1"), ("/pages/a", "a 1"), ("/pages/b", "b 2"), ("/pages/a", "a 1")]
    {
        let answer = app.clone().oneshot(ask(uri)).await.unwrap();
        assert_eq!(answer.headers()[CONTENT_TYPE], "text/x");
        let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        assert_eq!(body, expected);
    }
    // The state is the cache's: another router over it finds what this one stored.
    let other = pages(asked.clone()).layer(CacheLayer::new(bench.cache.clone()));
    let answer = other.oneshot(ask("/pages/a")).await.unwrap();
    assert_eq!(answer.extensions().get::<Outcome>(), Some(&Outcome::Hit));
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_route_says_its_own() {
    let bench = Bench::new(|cache| cache).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let plain = move || {
        let count = counted.fetch_add(1, Ordering::Relaxed) + 1;
        async move { count.to_string().into_response() }
    };
    let layer = CacheLayer::new(bench.cache.clone());
    let options = RequestOptions::new().ttl(Duration::from_secs(60)).tag("type", "page");
    let app: Router = Router::new()
        .route("/kept", get(plain.clone()).layer(layer.clone().options(options)))
        .route("/plain", get(plain.clone()).layer(layer.clone()))
        .route(
            "/outside",
            get(plain).layer(layer).layer(from_fn(|mut request: Request, next: Next| {
                request.extensions_mut().insert(RequestOptions::new().ttl(Duration::from_secs(60)));
                next.run(request)
            })),
        );
    let get = async |uri| {
        let answer = app.clone().oneshot(ask(uri)).await.unwrap();
        String::from_utf8(
            http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes().into(),
        )
        .unwrap()
    };
    for (uri, expected) in [
        ("/kept", "1"),
        ("/kept", "1"),
        ("/plain", "2"),
        ("/plain", "3"),
        ("/outside", "4"),
        ("/outside", "4"),
    ] {
        assert_eq!(get(uri).await, expected, "{uri}");
    }
    bench.cache.purge_tag("type", "page").await.unwrap();
    assert_eq!(get("/kept").await, "5");
}

#[tokio::test]
async fn the_services_own_errors_are_kept_and_it_need_not_be_sync() {
    let bench = Bench::new(|cache| cache).await;
    let service = service_fn(|_: http::Request<Body>| async {
        Err::<http::Response<Full<bytes::Bytes>>, _>(std::io::Error::other("down"))
    });
    let failed = CacheLayer::new(bench.cache.clone()).layer(service).oneshot(ask("/x")).await;
    assert_eq!(failed.unwrap_err().to_string(), "down");

    // A service need not be `Sync`.
    let asked = std::cell::Cell::new(0);
    let counting = service_fn(move |_: http::Request<Body>| {
        asked.set(asked.get() + 1);
        let text = asked.get().to_string();
        async move { Ok::<_, Infallible>(http::Response::new(Full::new(bytes::Bytes::from(text)))) }
    });
    let cached = CacheLayer::new(bench.cache.clone()).layer(counting);
    let answer = read(cached.oneshot(ask("/a")).await.unwrap()).await;
    assert_eq!((answer.text(), answer.outcome), ("1", Outcome::Miss));
}
