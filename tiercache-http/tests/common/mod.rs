//! An origin that says what it is told to say, and a clock that stands still.

#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "for tests, each of which uses a part of it"
)]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::BodyExt;
use tiercache_core::CacheManager;
use tiercache_core::testing::{ManualClock, MemoryTier};
use tiercache_http::{Body, BoxError, Builder, HttpCache, Origin, Outcome};
use tiercache_ram::{Policy, RamConfig, RamTier};
use tokio::sync::Semaphore;

/// What the origin was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: Method,
    pub uri: String,
    pub headers: HeaderMap,
}

type Said = Result<Response<Body>, &'static str>;
type Say = Arc<dyn Fn(&Asked) -> Said + Send + Sync>;

/// The origin. It answers with what was queued, or else by its rule.
#[derive(Clone)]
pub struct Script {
    asked: Arc<Mutex<Vec<Asked>>>,
    queue: Arc<Mutex<VecDeque<Said>>>,
    rule: Say,
    gate: Option<Arc<Semaphore>>,
}

impl Script {
    pub fn new(rule: impl Fn(&Asked) -> Said + Send + Sync + 'static) -> Self {
        Self { asked: Arc::default(), queue: Arc::default(), rule: Arc::new(rule), gate: None }
    }

    /// Always the same headers, and the number of the request as the body.
    pub fn counting(headers: &'static [(&'static str, &'static str)]) -> Self {
        let count = Mutex::new(0);
        Self::new(move |_| {
            let mut count = count.lock().unwrap();
            *count += 1;
            Ok(response(200, headers, count.to_string()))
        })
    }

    /// Answers only as often as the gate is given permits.
    pub fn gated(self) -> (Self, Arc<Semaphore>) {
        let gate = Arc::new(Semaphore::new(0));
        (Self { gate: Some(gate.clone()), ..self }, gate)
    }

    pub fn queue(&self, response: Said) {
        self.queue.lock().unwrap().push_back(response);
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// Waits until it was asked that often.
    pub async fn until_asked(&self, times: usize) {
        while self.count() < times {
            tokio::task::yield_now().await;
        }
    }
}

impl Origin for Script {
    type Error = &'static str;

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, &'static str> {
        let asked = Asked {
            method: request.method().clone(),
            uri: request.uri().to_string(),
            headers: request.headers().clone(),
        };
        self.asked.lock().unwrap().push(asked.clone());
        if let Some(gate) = &self.gate {
            gate.acquire().await.expect("the gate stays").forget();
        }
        let queued = self.queue.lock().unwrap().pop_front();
        queued.unwrap_or_else(|| (self.rule)(&asked))
    }
}

pub fn response(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Body> {
    let builder = Response::builder().status(status);
    let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
    builder.body(Body::from(body.into())).unwrap()
}

/// A response whose body comes in these frames, and fails where one says so.
pub fn streamed(headers: &[(&str, &str)], frames: Vec<Result<Bytes, &'static str>>) -> Response<Body> {
    response(200, headers, "").map(|_| Body::wrap(body_of(frames)))
}

pub fn body_of(
    frames: Vec<Result<Bytes, &'static str>>,
) -> impl http_body::Body<Data = Bytes, Error = BoxError> + Send + Sync {
    let frames = frames.into_iter().map(|frame| match frame {
        Ok(data) => Ok::<_, BoxError>(http_body::Frame::data(data)),
        Err(error) => Err(error.into()),
    });
    http_body_util::StreamBody::new(Frames(frames))
}

struct Frames<I>(I);

impl<I: Iterator + Unpin> futures_core::Stream for Frames<I> {
    type Item = I::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<I::Item>> {
        std::task::Poll::Ready(self.0.next())
    }
}

pub fn get(uri: &str, headers: &[(&str, &str)]) -> Request<Body> {
    request("GET", uri, headers)
}

pub fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let builder = Request::builder().method(method).uri(uri);
    let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
    builder.body(Body::empty()).unwrap()
}

/// A response, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub outcome: Outcome,
    pub body: Result<Bytes, String>,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(self.body.as_ref().unwrap()).unwrap()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

pub async fn read(response: Response<Body>) -> Answer {
    let (parts, body) = response.into_parts();
    let outcome = *parts.extensions.get().expect("every response says what the cache did");
    let body = body.collect().await.map(|body| body.to_bytes()).map_err(|error| error.to_string());
    Answer { status: parts.status.as_u16(), headers: parts.headers, outcome, body }
}

/// A cache over RAM whose time stands still.
pub struct Bench {
    pub cache: HttpCache,
    pub manager: CacheManager,
    pub clock: Arc<ManualClock>,
}

impl Bench {
    pub async fn new(build: impl FnOnce(Builder) -> Builder) -> Self {
        let clock = ManualClock::new();
        let ram = RamTier::new(RamConfig { max_size: 64 << 20, policy: Policy::default() });
        let manager = CacheManager::builder().hot(Arc::new(ram)).clock(clock.clone()).build().await.unwrap();
        Self::over(manager, clock, build)
    }

    /// Over a level whose keys can be listed.
    pub async fn listed(build: impl FnOnce(Builder) -> Builder) -> Self {
        let clock = ManualClock::new();
        let manager =
            CacheManager::builder().hot(MemoryTier::new()).clock(clock.clone()).build().await.unwrap();
        Self::over(manager, clock, build)
    }

    pub fn over(
        manager: CacheManager,
        clock: Arc<ManualClock>,
        build: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let cache = build(HttpCache::builder(manager.clone())).build().unwrap();
        Self { cache, manager, clock }
    }

    pub async fn ask(&self, origin: &Script, request: Request<Body>) -> Answer {
        read(self.cache.handle(request, origin).await.unwrap()).await
    }

    pub async fn get(&self, origin: &Script, uri: &str) -> Answer {
        self.ask(origin, get(uri, &[])).await
    }

    pub fn pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }
}
