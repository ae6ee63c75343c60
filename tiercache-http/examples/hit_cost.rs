//! What a hit costs beside the service itself.
//!
//! ```text
//! cargo run --release -p tiercache-http --example hit_cost
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tiercache_core::{BoxError, CacheManager};
use tiercache_http::{Body, CacheLayer, HttpCache};
use tiercache_ram::{Policy, RamConfig, RamTier};
use tower::{Layer, ServiceExt, service_fn};

const ROUND: u32 = 40_000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    for size in [1 << 10, 64 << 10] {
        let ram = Arc::new(RamTier::new(RamConfig { max_size: 64 << 20, policy: Policy::default() }));
        let manager = CacheManager::builder().hot(ram).build().await?;
        let cache = HttpCache::new(manager);
        let body = Bytes::from(vec![7; size]);
        let service = service_fn(move |_: Request<Body>| {
            let body = body.clone();
            async move {
                let mut response = Response::new(Full::new(body));
                for (name, value) in [
                    ("cache-control", "max-age=3600"),
                    ("content-type", "text/html"),
                    ("etag", "\"abc\""),
                    ("server", "x"),
                    ("vary", "accept-encoding"),
                ] {
                    response.headers_mut().insert(name, http::HeaderValue::from_static(value));
                }
                Ok::<_, BoxError>(response)
            }
        });
        let plain = time(service.clone().map_response(|response| response.map(Body::wrap))).await?;
        let cached = time(CacheLayer::new(cache).layer(service)).await?;
        println!("{size} bytes: service {plain:?}, hit {cached:?}");
    }
    Ok(())
}

/// The best of five rounds, for one request and its response.
async fn time<S>(service: S) -> Result<Duration, BoxError>
where
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = BoxError> + Clone,
{
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let begun = Instant::now();
        for _ in 0..ROUND {
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = http::Uri::from_static("/pages/home?lang=en");
            for (name, value) in [
                ("host", "example.com"),
                ("accept", "text/html,*/*"),
                ("accept-encoding", "gzip, br"),
                ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) Gecko"),
            ] {
                request.headers_mut().insert(name, http::HeaderValue::from_static(value));
            }
            let response = service.clone().oneshot(request).await?;
            std::hint::black_box(response.into_body().collect().await?.to_bytes());
        }
        best = best.min(begun.elapsed() / (ROUND));
    }
    Ok(best)
}
