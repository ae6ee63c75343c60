//! An axum service that has every answer from another server, behind a cache.
//!
//! ```text
//! cargo run -p tiercache-http --example forward -- http://127.0.0.1:8000 127.0.0.1:9000 rfc9111
//! ```

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::uri::{Authority, Scheme};
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tiercache_core::{BoxError, CacheManager};
use tiercache_http::{CacheLayer, HttpCache, Profile};
use tiercache_ram::{Policy, RamConfig, RamTier};

type Forward = (Client<HttpConnector, Body>, Authority);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let origin: Uri = arguments.next().ok_or("the origin's URI is missing")?.parse()?;
    let listen = arguments.next().ok_or("the address to listen at is missing")?;
    let profile = match arguments.next().as_deref() {
        Some("rfc9111") => Profile::Rfc9111,
        None | Some("default") => Profile::Default,
        Some(other) => return Err(format!("profile {other}: there are default and rfc9111").into()),
    };
    let ram = Arc::new(RamTier::new(RamConfig { max_size: 256 << 20, policy: Policy::default() }));
    let manager = CacheManager::builder().hot(ram).build().await?;
    let cache = HttpCache::builder(manager).profile(profile).build()?;
    // Servers close idle connections; closing them earlier loses no request to that.
    let client = Client::builder(TokioExecutor::new())
        .pool_idle_timeout(Duration::from_secs(2))
        .build(HttpConnector::new());
    let authority = origin.authority().ok_or("the origin's URI has no host")?.clone();
    let app = Router::new().fallback(forward).with_state((client, authority)).layer(CacheLayer::new(cache));
    let listener = tokio::net::TcpListener::bind(&listen).await?;
    axum::serve(listener, app).await?;
    Ok(())
}

async fn forward(State((client, authority)): State<Forward>, mut request: Request) -> Response {
    let mut target = std::mem::take(request.uri_mut()).into_parts();
    (target.scheme, target.authority) = (Some(Scheme::HTTP), Some(authority));
    let Ok(target) = Uri::from_parts(target) else { return StatusCode::BAD_REQUEST.into_response() };
    *request.uri_mut() = target;
    request.headers_mut().remove(header::HOST);
    drop_connection_fields(request.headers_mut());
    match client.request(request).await {
        Ok(response) => {
            let mut response = response.map(Body::new);
            drop_connection_fields(response.headers_mut());
            response
        }
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}

/// What is about one connection is not forwarded (RFC 9110 §7.6.1).
fn drop_connection_fields(headers: &mut HeaderMap) {
    let lines = headers.get_all(header::CONNECTION).iter().filter_map(|line| line.to_str().ok());
    let named: Vec<HeaderName> =
        lines.flat_map(|line| line.split(',')).filter_map(|name| name.trim().parse().ok()).collect();
    for name in named.into_iter().chain([header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE]) {
        headers.remove(name);
    }
}
