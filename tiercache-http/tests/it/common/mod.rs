//! An origin that says what it is told to say, and a clock that stands still.

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
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) uri: String,
    pub(crate) headers: HeaderMap,
}

type Said = Result<Response<Body>, &'static str>;
type Say = Arc<dyn Fn(&Asked) -> Said + Send + Sync>;

/// The origin. It answers with what was queued, or else by its rule.
#[derive(Clone)]
pub(crate) struct Script {
    asked: Arc<Mutex<Vec<Asked>>>,
    queue: Arc<Mutex<VecDeque<Said>>>,
    rule: Say,
    gate: Option<Arc<Semaphore>>,
}

impl Script {
    pub(crate) fn new(rule: impl Fn(&Asked) -> Said + Send + Sync + 'static) -> Self {
        Self { asked: Arc::default(), queue: Arc::default(), rule: Arc::new(rule), gate: None }
    }

    /// Always the same headers, and the number of the request as the body.
    pub(crate) fn counting(headers: &'static [(&'static str, &'static str)]) -> Self {
        let count = Mutex::new(0);
        Self::new(move |_| {
            let mut count = count.lock().unwrap();
            *count += 1;
            Ok(response(200, headers, count.to_string()))
        })
    }

    /// Answers only as often as the gate is given permits.
    pub(crate) fn gated(self) -> (Self, Arc<Semaphore>) {
        let gate = Arc::new(Semaphore::new(0));
        (Self { gate: Some(gate.clone()), ..self }, gate)
    }

    pub(crate) fn queue(&self, response: Said) {
        self.queue.lock().unwrap().push_back(response);
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// Waits until it was asked that often.
    pub(crate) async fn until_asked(&self, times: usize) {
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

pub(crate) fn response(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Body> {
    let builder = Response::builder().status(status);
    let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
    builder.body(Body::from(body.into())).unwrap()
}

/// A response whose body comes in these frames, and fails where one says so.
pub(crate) fn streamed(headers: &[(&str, &str)], frames: Vec<Result<Bytes, &'static str>>) -> Response<Body> {
    response(200, headers, "").map(|_| Body::wrap(body_of(frames)))
}

pub(crate) fn body_of(
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

pub(crate) fn get(uri: &str, headers: &[(&str, &str)]) -> Request<Body> {
    request("GET", uri, headers)
}

pub(crate) fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let builder = Request::builder().method(method).uri(uri);
    let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
    builder.body(Body::empty()).unwrap()
}

/// A response, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) outcome: Outcome,
    pub(crate) body: Result<Bytes, String>,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(self.body.as_ref().unwrap()).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

pub(crate) async fn read(response: Response<Body>) -> Answer {
    let (parts, body) = response.into_parts();
    let outcome = *parts.extensions.get().expect("every response says what the cache did");
    let body = body.collect().await.map(|body| body.to_bytes()).map_err(|error| error.to_string());
    Answer { status: parts.status.as_u16(), headers: parts.headers, outcome, body }
}

/// A cache over RAM whose time stands still.
pub(crate) struct Bench {
    pub(crate) cache: HttpCache,
    pub(crate) manager: CacheManager,
    pub(crate) clock: Arc<ManualClock>,
}

impl Bench {
    pub(crate) async fn new(build: impl FnOnce(Builder) -> Builder) -> Self {
        let clock = ManualClock::new();
        let ram = RamTier::new(RamConfig { max_size: 64 << 20, policy: Policy::default() });
        let manager = CacheManager::builder().hot(Arc::new(ram)).clock(clock.clone()).build().await.unwrap();
        Self::over(manager, clock, build)
    }

    /// Over a level whose keys can be listed.
    pub(crate) async fn listed(build: impl FnOnce(Builder) -> Builder) -> Self {
        let clock = ManualClock::new();
        let manager =
            CacheManager::builder().hot(MemoryTier::new()).clock(clock.clone()).build().await.unwrap();
        Self::over(manager, clock, build)
    }

    pub(crate) fn over(
        manager: CacheManager,
        clock: Arc<ManualClock>,
        build: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let cache = build(HttpCache::builder(manager.clone())).build().unwrap();
        Self { cache, manager, clock }
    }

    pub(crate) async fn ask(&self, origin: &Script, request: Request<Body>) -> Answer {
        read(self.cache.handle(request, origin).await.unwrap()).await
    }

    pub(crate) async fn get(&self, origin: &Script, uri: &str) -> Answer {
        self.ask(origin, get(uri, &[])).await
    }

    pub(crate) fn pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }
}
