//! Loading through the cache, with gates in the loaders.

mod batched;
mod failing;
mod flight;
mod leased;
mod many;
mod overtaken;
mod refreshing;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tiercache_core::testing::ManualClock;
use tiercache_core::{Builder, CacheManager, Error};
use tiercache_tests::rig::{builder, ram};
use tokio::sync::Semaphore;

/// An origin that counts its loads, holds them while it is told to, and fails while it is told to.
#[derive(Debug)]
struct Origin {
    loads: AtomicUsize,
    begun: Semaphore,
    gate: Semaphore,
    answers: std::sync::Mutex<Answers>,
}

#[derive(Debug, Default)]
struct Answers {
    value: String,
    fails: bool,
}

impl Origin {
    fn new(value: &str) -> Arc<Self> {
        let answers = Answers { value: value.into(), fails: false };
        Arc::new(Self {
            loads: AtomicUsize::new(0),
            begun: Semaphore::new(0),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            answers: answers.into(),
        })
    }

    /// What it says from now on.
    fn says(&self, value: &str) {
        *self.answers.lock().unwrap() = Answers { value: value.into(), fails: false };
    }

    fn fails(&self) {
        self.answers.lock().unwrap().fails = true;
    }

    /// Loads that begin from here on wait.
    fn hold(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    /// Lets one load go on.
    fn release(&self) {
        self.gate.add_permits(1);
    }

    /// Returns when one more load has read its answer.
    async fn begun(&self) {
        self.begun.acquire().await.unwrap().forget();
    }

    fn loads(&self) -> usize {
        self.loads.load(Ordering::Relaxed)
    }

    /// The loader: reads its answer at once, and brings it when it is let go.
    fn load(self: &Arc<Self>) -> impl FnOnce() -> Loading + Send + 'static + use<> {
        let origin = self.clone();
        move || {
            Box::pin(async move {
                origin.loads.fetch_add(1, Ordering::Relaxed);
                let answer = {
                    let answers = origin.answers.lock().unwrap();
                    if answers.fails { Err("the origin is down") } else { Ok(answers.value.clone()) }
                };
                origin.begun.add_permits(1);
                origin.gate.acquire().await.unwrap().forget();
                answer
            })
        }
    }
}

type Loading = std::pin::Pin<Box<dyn Future<Output = Result<String, &'static str>> + Send>>;

async fn in_ram(options: impl FnOnce(Builder) -> Builder) -> (CacheManager, Arc<ManualClock>) {
    let clock = ManualClock::new();
    (options(builder(&clock).hot(ram())).build().await.unwrap(), clock)
}

/// The origin's error, if that is what this is.
fn origin_error(error: &Error) -> Option<String> {
    match error {
        Error::Load { source } => Some(source.to_string()),
        _ => None,
    }
}
