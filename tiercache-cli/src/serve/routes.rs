//! The routes.
//!
//! Keys are what stands behind `/cache/`, percent-decoded, slashes and all.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{
    AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderValue, IF_MATCH,
    IF_NONE_MATCH, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, Request, Response, StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{any, delete, get, post};
use bytes::{Bytes, BytesMut};
use futures_core::Stream as _;
use serde_json::json;
use tiercache::CacheManager;
use tiercache::units::{duration_of_hours, parse_duration};
use tokio::sync::SemaphorePermit;

use super::Service;
use super::answer::{Answer, FOUND, REMOVED, Refusal, absent, done, json_response};
use super::condition::{conditional, etag, names, not_met};
use super::counters;
use super::guard::guard;
use super::media::media_type_of;
use super::metrics;
use crate::args::{ClearArgs, KeysArgs, LevelName, level_message, tag_name};
use crate::{keyname, report, target};

/// How long a sender may pause within a body.
const BODY_PAUSE: Duration = Duration::from_secs(30);
const OCTETS: &str = "application/octet-stream";

pub(crate) fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/cache/{*key}", get(read).put(write).delete(remove).patch(touch))
        .route("/cache", delete(clear))
        .route("/counters/{*key}", get(counters::read).post(counters::add).delete(counters::remove))
        .route("/stats", get(stats))
        .route("/keys", get(keys))
        .route("/prune", post(prune))
        .route("/health", get(async || json_response(StatusCode::OK, &json!({ "status": "ok" }))))
        .route("/metrics", get(metrics))
        .fallback(any(async || {
            Refusal::new(
                StatusCode::NOT_FOUND,
                "there is nothing here; keys are below /cache/, counters below /counters/",
            )
        }))
        .method_not_allowed_fallback(async || {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "not a method of this path")
        })
        .layer(from_fn_with_state(service.clone(), guard))
        .with_state(service)
}

pub(super) type Shared = State<Arc<Service>>;

/// `GET` and `HEAD`; the body of an answer to `HEAD` is left out by the server.
async fn read(State(service): Shared, uri: Uri, headers: HeaderMap) -> Answer {
    let key = key(&uri)?;
    let Some(entry) = alone(&service, &uri)?.read(&key).await? else {
        let mut response = absent("key");
        response.headers_mut().insert("cache-status", HeaderValue::from_static("tiercache; fwd=miss"));
        return Ok(response);
    };
    let etag = etag(&entry);
    let unchanged = headers.get_all(IF_NONE_MATCH).iter().any(|given| names(given, &etag, false));
    let mut response = Response::new(Body::empty());
    let fields = response.headers_mut();
    fields.insert(ETAG, ascii(&etag));
    fields.insert("cache-status", ascii(&format!("tiercache; hit; detail={}", entry.level)));
    fields.insert(AGE, entry.age.as_secs().into());
    // Whoever keeps the answer asks again before using it: the cache may have changed.
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if unchanged {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    let content_type = entry.content_type.as_deref().and_then(|media| HeaderValue::from_str(media).ok());
    fields.insert(CONTENT_TYPE, content_type.unwrap_or(HeaderValue::from_static(OCTETS)));
    // What was stored may be a page: it must not run as one of this service's own.
    fields.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    fields.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    fields.insert(CONTENT_LENGTH, entry.value.len().into());
    *response.body_mut() = Body::from(entry.value);
    Ok(response)
}

/// `PUT`, on the condition that `If-Match` or `If-None-Match` names.
async fn write(State(service): Shared, request: Request<Body>) -> Answer {
    let (head, body) = request.into_parts();
    let key = key(&head.uri)?;
    let (cache, parameters) = within(&service, &head.uri)?;
    let options = WriteOptions::of(parameters)?;
    let given = head.headers.get(CONTENT_TYPE).and_then(|given| given.to_str().ok());
    let given = given.filter(|given| !given.trim().eq_ignore_ascii_case(OCTETS) && !given.trim().is_empty());
    let content_type = given.or_else(|| media_type_of(&key)).map(str::to_owned);
    let announced = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced == Some(0) {
        return Err(Refusal::bad("the body is empty"));
    }
    let _room = room(&service, announced).await?;
    let value = whole(body, announced, service.max_body).await?;
    if value.is_empty() {
        return Err(Refusal::bad("the body is empty"));
    }
    let mut set = conditional(cache.set(&key, value), &cache, &key, &head.headers).await?;
    set = match options.ttl {
        Some(Some(ttl)) => set.ttl(ttl),
        Some(None) => set.never(),
        None => set,
    };
    for (name, value) in options.tags {
        set = set.tag(name, value);
    }
    if let Some(content_type) = content_type {
        set = set.content_type(content_type);
    }
    let written = set.await?;
    if written.stored { Ok(done(&written.degraded)) } else { Err(not_met()) }
}

async fn remove(State(service): Shared, uri: Uri, headers: HeaderMap) -> Answer {
    if headers.contains_key(IF_MATCH) || headers.contains_key(IF_NONE_MATCH) {
        return Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, "a removal takes no condition"));
    }
    let (cache, key) = (alone(&service, &uri)?, key(&uri)?);
    // A level that others share does not say what a removal met there.
    let there = cache.contains(&key).await?;
    let removed = cache.delete(&key).await?;
    let mut response = done(&removed.degraded);
    let found = if there { "true" } else { "false" };
    response.headers_mut().insert(FOUND, HeaderValue::from_static(found));
    Ok(response)
}

/// A new time to live: `PATCH /cache/{key}?ttl=2h`, or `ttl=never`.
async fn touch(State(service): Shared, uri: Uri) -> Answer {
    let (cache, parameters) = within(&service, &uri)?;
    let options = WriteOptions::of(parameters)?;
    let ttl = options.ttl.ok_or_else(|| Refusal::bad("the parameter `ttl` is missing"))?;
    if !options.tags.is_empty() {
        return Err(Refusal::bad("tags are given when a value is set"));
    }
    let touched = cache.touch(&key(&uri)?, ttl).await?;
    if touched.found { Ok(done(&touched.degraded)) } else { Ok(absent("key")) }
}

/// `DELETE /cache?level=hot|cold|dry|all`, `?tag.type=thumbnail`, `?prefix=a/`, each within a `namespace` if one is
/// named.
async fn clear(State(service): Shared, uri: Uri) -> Answer {
    let mut what = ClearArgs { level: None, tag: None, prefix: None, namespace: None };
    let mut all = false;
    let (cache, pairs) = within(&service, &uri)?;
    if pairs.len() != 1 {
        return Err(Refusal::bad(
            "say what to clear: one of level=hot|cold|dry|all, tag.NAME=VALUE, prefix=TEXT",
        ));
    }
    for (name, value) in pairs {
        match (name.as_str(), tag_name(&name)) {
            ("level" | "tier", _) if value == "all" => all = true,
            ("level" | "tier", _) => {
                let level = <LevelName as clap::ValueEnum>::from_str(&value, false);
                what.level =
                    Some(level.map_err(|_| Refusal::bad(format!("{}, all", level_message(&value))))?);
            }
            ("prefix", _) if value.is_empty() => {
                return Err(Refusal::bad("the prefix is empty: level=all clears everything"));
            }
            ("prefix", _) => what.prefix = Some(value),
            (_, Some(tag)) => what.tag = Some((tag.to_owned(), value)),
            _ => return Err(unknown(&name, "level, tag.NAME, prefix, namespace")),
        }
    }
    debug_assert!(all != (what.level.is_some() || what.tag.is_some() || what.prefix.is_some()));
    let removed = target::clear(&cache, &what)
        .await
        .map_err(|failure| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, failure.message()))?;
    let mut response = done(&[]);
    if let Some(removed) = removed {
        response.headers_mut().insert(REMOVED, removed.into());
    }
    Ok(response)
}

async fn stats(State(service): Shared) -> Answer {
    Ok(json_response(StatusCode::OK, &report::stats(&service.cache.stats().await?)))
}

async fn keys(State(service): Shared, uri: Uri) -> Answer {
    let (cache, parameters) = within(&service, &uri)?;
    let wanted = KeysArgs::from_pairs(parameters).map_err(Refusal::bad)?;
    Ok(json_response(StatusCode::OK, &report::keys(&cache, &wanted).await?))
}

/// The longest a call may keep its connection: one that was not complete is made again.
const PRUNING: Duration = Duration::from_secs(60);

async fn prune(State(service): Shared) -> Answer {
    let pruned = service.cache.prune_within(PRUNING, |_| ()).await?;
    Ok(json_response(StatusCode::OK, &report::pruned(&pruned)))
}

async fn metrics(State(service): Shared) -> Answer {
    let mut response = Response::new(Body::from(metrics::text(&service.cache.stats().await?)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"));
    Ok(response)
}

/// What the query of a write may say.
struct WriteOptions {
    /// `Some(None)` stands for never.
    ttl: Option<Option<Duration>>,
    tags: Vec<(String, String)>,
}

impl WriteOptions {
    fn of(parameters: Vec<(String, String)>) -> Result<Self, Refusal> {
        let mut options = Self { ttl: None, tags: Vec::new() };
        for (name, value) in parameters {
            let ttl = match (name.as_str(), tag_name(&name)) {
                ("ttl", _) if value == "never" => None,
                ("ttl", _) => {
                    Some(parse_duration(&value).map_err(|why| Refusal::bad(format!("ttl: {why}")))?)
                }
                ("ttl_hours", _) => {
                    let hours = value.parse().map_err(|_| format!("`{value}` is not a number"));
                    Some(
                        hours
                            .and_then(duration_of_hours)
                            .map_err(|why| Refusal::bad(format!("ttl_hours: {why}")))?,
                    )
                }
                (_, Some(tag)) => {
                    options.tags.push((tag.to_owned(), value));
                    continue;
                }
                _ => return Err(unknown(&name, "ttl, ttl_hours, tag.NAME, namespace")),
            };
            if options.ttl.replace(ttl).is_some() {
                return Err(Refusal::bad("the time to live is given twice"));
            }
        }
        Ok(options)
    }
}

pub(super) fn unknown(name: &str, allowed: &str) -> Refusal {
    Refusal::bad(format!("unknown parameter `{}`; allowed: {allowed}", name.escape_debug()))
}

/// The cache of the namespace that a query names, and what else the query says.
pub(super) fn within(service: &Service, uri: &Uri) -> Result<(CacheManager, Vec<(String, String)>), Refusal> {
    let (named, rest): (Vec<_>, Vec<_>) =
        parameters(uri)?.into_iter().partition(|(name, _)| name == "namespace");
    match &named[..] {
        [] => Ok((service.cache.clone(), rest)),
        [(_, name)] if name.is_empty() => {
            Err(Refusal::bad("the default namespace has no name: leave out `namespace`"))
        }
        [(_, name)] => Ok((service.cache.namespace(name)?, rest)),
        _ => Err(Refusal::bad("the namespace is given twice")),
    }
}

/// Likewise, where the query may say nothing else.
pub(super) fn alone(service: &Service, uri: &Uri) -> Result<CacheManager, Refusal> {
    let (cache, rest) = within(service, uri)?;
    match rest.first() {
        Some((name, _)) => Err(unknown(name, "namespace")),
        None => Ok(cache),
    }
}

pub(crate) fn parameters(uri: &Uri) -> Result<Vec<(String, String)>, Refusal> {
    let pairs = keyname::query(uri.query().unwrap_or_default());
    let text = |(name, value)| Some((name, String::from_utf8(value).ok()?));
    pairs
        .and_then(|pairs| pairs.into_iter().map(text).collect())
        .ok_or_else(|| Refusal::bad("the query is not percent-encoded text"))
}

fn key(uri: &Uri) -> Result<Vec<u8>, Refusal> {
    key_below("/cache/", uri)
}

pub(super) fn key_below(path: &str, uri: &Uri) -> Result<Vec<u8>, Refusal> {
    let encoded = uri.path().strip_prefix(path).unwrap_or_default();
    keyname::decode(encoded).ok_or_else(|| Refusal::bad("a % without two digits in the key"))
}

/// Waits until the body's bytes, or as many as it may have, fit beside those of others.
async fn room(service: &Service, announced: Option<u64>) -> Result<SemaphorePermit<'_>, Refusal> {
    let bytes = announced.unwrap_or(u64::MAX).min(service.max_body);
    let share = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
    match tokio::time::timeout(BODY_PAUSE, service.bodies.acquire_many(share)).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too many bodies are on their way in")),
    }
}

/// Reads a body as it comes, and no further than the limit.
async fn whole(body: Body, announced: Option<u64>, limit: u64) -> Result<Bytes, Refusal> {
    let too_large =
        || Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a value has at most {limit} bytes here"));
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut stream = body.into_data_stream();
    let mut next = async || {
        let chunk = std::future::poll_fn(|context| Pin::new(&mut stream).poll_next(context));
        match tokio::time::timeout(BODY_PAUSE, chunk).await {
            Ok(chunk) => {
                chunk.transpose().map_err(|error| Refusal::bad(format!("the body broke off: {error}")))
            }
            Err(_) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body does not come")),
        }
    };
    // Most bodies come in one piece, which then is the value.
    let Some(first) = next().await? else { return Ok(Bytes::new()) };
    let mut value = BytesMut::from(first);
    loop {
        if value.len() as u64 > limit {
            return Err(too_large());
        }
        match next().await? {
            Some(chunk) => value.extend_from_slice(&chunk),
            None => return Ok(value.freeze()),
        }
    }
}

fn ascii(text: &str) -> HeaderValue {
    // Made of digits, letters and punctuation here.
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}
