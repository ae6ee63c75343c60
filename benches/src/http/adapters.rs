//! Services of axum and actix-web that answer from memory, bare and behind a cache. Each is a process of its own, this
//! program once more, so that it has a core for itself and its processor time can be told.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use axum::Router;
use axum::error_handling::HandleError;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use axum::serve::ListenerExt;
use bytes::Bytes;
use http_body_util::Full;
use tiercache_core::CacheManager;
use tiercache_http::{BoxError, CacheLayer, HttpCache};
use tiercache_ram::{Policy, RamConfig, RamTier};
use tower::{Layer, Service, service_fn};
use tower_http_cache::backend::memory::InMemoryBackend;

use super::{MADE, SIZES};

const FRESH: &str = "max-age=3600";
const TEXT: &str = "text/plain";

/// What there is to ask, of the sizes that are asked for.
#[derive(Clone)]
struct Pages {
    pages: Arc<[Bytes]>,
    made: Arc<AtomicU64>,
}

impl Pages {
    fn new() -> Self {
        Self {
            pages: SIZES.iter().map(|(_, bytes)| vec![b'x'; *bytes].into()).collect(),
            made: Arc::default(),
        }
    }

    /// A page, and how many were made.
    fn page(&self, path: &str) -> (Bytes, u64) {
        let length = path.trim_start_matches('/').parse();
        let page = self.pages.iter().find(|page| Ok(page.len()) == length).cloned().unwrap_or_default();
        (page, self.made.fetch_add(1, Ordering::Relaxed))
    }

    fn respond(&self, path: &str) -> Response<Full<Bytes>> {
        let (page, made) = self.page(path);
        let mut response = Response::new(Full::new(page));
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(FRESH));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(TEXT));
        headers.insert(MADE, made.into());
        response
    }
}

/// Serves that kind at `address` until it is ended.
pub(crate) fn serve(kind: &str, address: &str) -> Result<(), BoxError> {
    let (address, pages) = (address.parse()?, Pages::new());
    if kind.starts_with("actix") {
        return actix_web::rt::System::new().block_on(with_actix(kind, pages, address));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        match kind {
            "axum" => with_axum(answering(pages), address).await,
            "axum-layer" => {
                let layer = CacheLayer::new(cache().await?);
                with_axum(layer.layer(answering(pages)), address).await
            }
            "tower-http-cache" => {
                let layer = tower_http_cache::CacheLayer::builder(InMemoryBackend::new(10_000))
                    .ttl(Duration::from_secs(3600))
                    .build();
                let failed = |_: BoxError| async { StatusCode::INTERNAL_SERVER_ERROR };
                with_axum(HandleError::new(layer.layer(answering(pages)), failed), address).await
            }
            other => Err(format!("no service is called {other}").into()),
        }
    })
}

async fn cache() -> Result<HttpCache, BoxError> {
    let ram = Arc::new(RamTier::new(RamConfig { max_size: 64 << 20, policy: Policy::default() }));
    Ok(HttpCache::new(CacheManager::builder().hot(ram).build().await?))
}

/// A service that makes the pages, whatever the type of requests' bodies is.
fn answering<B: 'static>(
    pages: Pages,
) -> impl Service<Request<B>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ Sync {
    service_fn(move |request: Request<B>| {
        let response = pages.respond(request.uri().path());
        async move { Ok(response) }
    })
}

async fn with_axum<S>(service: S, address: SocketAddr) -> Result<(), BoxError>
where
    S: Service<axum::extract::Request, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Response: IntoResponse,
    S::Future: Send + 'static,
{
    let listener = tokio::net::TcpListener::bind(address).await?.tap_io(|stream| {
        // As actix-web and the other servers have it.
        if let Err(error) = stream.set_nodelay(true) {
            eprintln!("a connection delays what is small: {error}");
        }
    });
    Ok(axum::serve(listener, Router::new().fallback_service(service)).await?)
}

async fn with_actix(kind: &str, pages: Pages, address: SocketAddr) -> Result<(), BoxError> {
    let pages = web::Data::new(pages);
    let app = move || App::new().app_data(pages.clone()).default_service(web::to(page));
    if kind == "actix" {
        return Ok(HttpServer::new(app).workers(1).bind(address)?.run().await?);
    }
    let layer = tiercache_http::actix::Cache::new(cache().await?);
    let app = move || app().wrap(layer.clone());
    Ok(HttpServer::new(app).workers(1).bind(address)?.run().await?)
}

async fn page(request: HttpRequest, pages: web::Data<Pages>) -> HttpResponse {
    let (page, made) = pages.page(request.path());
    HttpResponse::Ok()
        .insert_header(("cache-control", FRESH))
        .insert_header(("content-type", TEXT))
        .insert_header((MADE, made))
        .body(page)
}
