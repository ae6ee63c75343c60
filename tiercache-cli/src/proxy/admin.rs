//! The listener of who runs the proxy: purges, statistics, metrics. Apart from the proxy's own, so that no client's request
//! can be taken for one.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use axum::http::{Response, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::{any, get, post};
use serde_json::{Map, Value, json};
use tiercache_proxy::Proxy;
use tokio::net::TcpListener;

use crate::args::tag_name;
use crate::outcome::{Failure, Result};
use crate::report;
use crate::serve::{self, Answer, Refusal, json_response, parameters, same};

/// What who purges must know. It has no way into a log.
#[derive(Clone)]
pub(super) struct Token(Option<String>);

impl Token {
    pub(super) fn new(given: Option<&str>) -> Result<Self> {
        match given {
            Some(token) if token.len() < 8 => {
                Err(Failure::usage("--admin-token: a token has at least 8 bytes"))
            }
            _ => Ok(Self(given.map(str::to_owned))),
        }
    }

    fn is(&self, given: &[u8]) -> bool {
        self.0.as_ref().is_some_and(|token| same(given, token.as_bytes()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

struct Admin {
    proxy: Proxy,
    token: Token,
    /// The headers that list tags.
    tags: Vec<String>,
}

type Shared = State<Arc<Admin>>;

/// Serves until `stop`.
pub(super) async fn serve(
    listener: TcpListener,
    proxy: Proxy,
    token: Token,
    tags: Vec<String>,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    let admin = Arc::new(Admin { proxy, token, tags });
    let served = axum::serve(serve::Door::new(listener), router(admin)).with_graceful_shutdown(stop);
    if let Err(error) = served.await {
        tracing::error!(%error, "the admin listener ended by itself");
    }
}

fn router(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/purge", post(purge))
        .route("/stats", get(stats))
        .route("/metrics", get(metrics))
        .route("/health", get(async || json_response(StatusCode::OK, &json!({ "status": "ok" }))))
        .fallback(any(async || {
            Refusal::new(
                StatusCode::NOT_FOUND,
                "there is nothing here; allowed: /purge, /stats, /metrics, /health",
            )
        }))
        .method_not_allowed_fallback(async || {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "not a method of this path")
        })
        .layer(from_fn_with_state(admin.clone(), guard))
        .with_state(admin)
}

/// Pages in somebody's browser know no token, so nothing else need be asked of who knows it.
async fn guard(State(admin): Shared, request: Request, next: Next) -> Response<Body> {
    let given = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let known = given.strip_prefix(b"Bearer ").is_some_and(|given| admin.token.is(given));
    if known || request.uri().path() == "/health" {
        return next.run(request).await;
    }
    Refusal::new(StatusCode::UNAUTHORIZED, "the token is missing or wrong").into_response()
}

/// `POST /purge?url=http://host/path`, `?tag=VALUE` in any of the headers that list tags, or `?tag.NAME=VALUE`.
async fn purge(State(admin): Shared, uri: Uri) -> Answer {
    let pairs = parameters(&uri)?;
    let [(name, value)] = pairs.as_slice() else {
        return Err(Refusal::bad("say what to purge: one of url=URL, tag=VALUE, tag.NAME=VALUE"));
    };
    let cache = admin.proxy.cache();
    match (name.as_str(), tag_name(name)) {
        ("url", _) => cache.purge(&absolute(value)?).await?,
        ("tag", _) => {
            for name in &admin.tags {
                cache.purge_tag(name, value).await?;
            }
        }
        (_, Some(name)) => cache.purge_tag(name, value).await?,
        _ => {
            return Err(Refusal::bad(format!(
                "unknown parameter `{}`; allowed: url, tag, tag.NAME",
                name.escape_debug()
            )));
        }
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// A path alone would leave open which host's.
fn absolute(given: &str) -> std::result::Result<Uri, Refusal> {
    let uri = given.parse::<Uri>().ok().filter(|uri| uri.scheme().is_some() && uri.authority().is_some());
    uri.ok_or_else(|| Refusal::bad(format!("`{}` is not http://HOST/PATH", given.escape_debug())))
}

async fn stats(State(admin): Shared) -> Answer {
    let told = admin.proxy.counters().all();
    let proxy: Map<String, Value> =
        told.into_iter().map(|(name, _, value)| (name.to_owned(), json!(value))).collect();
    let cache = report::stats(&admin.proxy.cache().manager().stats().await?);
    Ok(json_response(StatusCode::OK, &json!({ "proxy": proxy, "cache": cache })))
}

async fn metrics(State(admin): Shared) -> Answer {
    let mut text = serve::text(&admin.proxy.cache().manager().stats().await?);
    for (name, help, value) in admin.proxy.counters().all() {
        if name.ends_with("active") {
            serve::single(&mut text, &format!("proxy_{name}"), "gauge", help, value);
        } else {
            serve::single(&mut text, &format!("proxy_{name}_total"), "counter", help, value);
        }
    }
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"));
    Ok(response)
}
