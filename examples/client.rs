//! A client of reqwest with a private cache: pages that may be kept are asked for once, changes remove them.
//!
//! ```text
//! cargo run -p tiercache-examples --bin client
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL};
use axum::routing::get;
use reqwest_middleware::{ClientBuilder, RequestBuilder};
use tiercache::prelude::*;
use tiercache::{BoxError, from_yaml};
use tiercache_http::client::Cache;

const TIERS: &str = "
hot_cache:  { backend: ram, max_size: 64MiB }
cold_cache: { backend: none }
dry_cache:  { backend: none }
tracking:   { backend: memory }
";

/// The service that is asked: each user's own page, which tells how often there was a change.
fn service() -> Router {
    let page = async |State(changes): State<Arc<AtomicU32>>, headers: HeaderMap| {
        let user = headers.get(AUTHORIZATION).and_then(|user| user.to_str().ok()).unwrap_or("nobody");
        let page = format!("page of {user}, {} changes", changes.load(Ordering::Relaxed));
        ([(CACHE_CONTROL, "private, max-age=60")], page)
    };
    let change = async |State(changes): State<Arc<AtomicU32>>| {
        changes.fetch_add(1, Ordering::Relaxed);
        "changed"
    };
    Router::new().route("/page", get(page).post(change)).with_state(Arc::default())
}

async fn show(request: RequestBuilder) -> Result<(), BoxError> {
    let response = request.send().await?;
    let did = response.headers().get("cache-status").and_then(|did| did.to_str().ok()).unwrap_or_default();
    // The rest says for how long.
    let did = did.split("; ttl").next().unwrap_or_default().to_owned();
    println!("{} ({did})", response.text().await?);
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/page", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, service()).await });

    let manager = from_yaml(TIERS, &Registry::builtin()).await?;
    let client = ClientBuilder::new(reqwest::Client::new()).with(Cache::new(manager)).build();
    for user in ["ann", "ann", "bob", "bob"] {
        show(client.get(&url).header(AUTHORIZATION, user)).await?;
    }
    show(client.post(&url)).await?;
    show(client.get(&url).header(AUTHORIZATION, "ann")).await?;
    show(client.get(&url).header(AUTHORIZATION, "ann")).await?;
    Ok(())
}
