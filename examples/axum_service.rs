//! An axum service behind the cache: each route has its policy, tags say what a change makes invalid.
//!
//! ```text
//! cargo run -p tiercache-examples --bin axum_service                  # asks itself, and ends
//! cargo run -p tiercache-examples --bin axum_service 127.0.0.1:8000
//! ```

mod ask;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::IntoResponse;
use axum::routing::get;
use tiercache::prelude::*;
use tiercache::{BoxError, from_yaml};
use tiercache_http::{CacheLayer, HttpCache, RequestOptions};

const TIERS: &str = "
hot_cache:  { backend: ram, max_size: 64MiB }
cold_cache: { backend: none }
dry_cache:  { backend: none }
tracking:   { backend: memory }
";

#[derive(Clone)]
struct Shop {
    cache: HttpCache,
    /// Goes up with every change.
    edition: Arc<AtomicU32>,
}

impl Shop {
    fn page(&self, name: &str) -> String {
        format!("{name}, edition {}", self.edition.load(Ordering::Relaxed))
    }
}

/// Says itself how long it is fresh, and what it is about.
async fn product(State(shop): State<Shop>, Path(id): Path<u32>) -> impl IntoResponse {
    let about = [("surrogate-key", format!("product-{id}"))];
    ([(CACHE_CONTROL, "max-age=60")], about, shop.page(&format!("product {id}")))
}

/// A change. The cache drops what is stored for this URI by itself; other pages show the product too.
async fn change(State(shop): State<Shop>, Path(id): Path<u32>) -> Result<&'static str, StatusCode> {
    shop.edition.fetch_add(1, Ordering::Relaxed);
    let purged = shop.cache.purge_tag("surrogate-key", &format!("product-{id}")).await;
    purged.map(|()| "changed").map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

/// Says nothing about caching: its route does.
async fn offers(State(shop): State<Shop>) -> impl IntoResponse {
    ([("surrogate-key", "product-7 product-8")], shop.page("offers"))
}

/// Of one customer: not stored.
async fn basket(State(shop): State<Shop>) -> impl IntoResponse {
    ([(CACHE_CONTROL, "private")], shop.page("basket"))
}

fn app(cache: HttpCache) -> Router {
    let layer = CacheLayer::new(cache.clone());
    let five = RequestOptions::new().ttl(Duration::from_secs(5)).tag("type", "list");
    Router::new()
        .route("/products/{id}", get(product).put(change))
        .route("/basket", get(basket))
        .layer(layer.clone())
        .merge(Router::new().route("/offers", get(offers)).layer(layer.options(five)))
        .with_state(Shop { cache, edition: Arc::default() })
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let manager = from_yaml(TIERS, &Registry::builtin()).await?;
    let cache = HttpCache::builder(manager).tags_from("surrogate-key".parse()?).build()?;
    let listen = std::env::args().nth(1);
    let listener = tokio::net::TcpListener::bind(listen.as_deref().unwrap_or("127.0.0.1:0")).await?;
    let at = listener.local_addr()?;
    let app = app(cache.clone());
    if listen.is_some() {
        axum::serve(listener, app).await?;
        return Ok(());
    }
    tokio::spawn(async move { axum::serve(listener, app).await });
    for path in ["/products/7", "/products/7", "/offers", "/offers", "/basket", "/basket"] {
        ask::ask(at, "GET", path).await?;
    }
    ask::ask(at, "PUT", "/products/7").await?;
    ask::ask(at, "GET", "/products/7").await?;
    ask::ask(at, "GET", "/offers").await?;
    cache.purge_tag("type", "list").await?;
    ask::ask(at, "GET", "/offers").await?;
    cache.purge(&"http://shop.example/products/7".parse()?).await?;
    ask::ask(at, "GET", "/products/7").await?;
    Ok(())
}
