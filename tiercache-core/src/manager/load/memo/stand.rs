//! A load whose function runs where it was called.

use std::future::Future;
use std::pin::Pin;

use tokio::sync::oneshot;

use super::super::super::CacheManager;
use super::super::{LoadOptions, Plain};
use super::errors::{Errors, Failed};
use super::{Answer, Kind, ViewOf, run};
use crate::Key;

pub(super) enum Turn<K: Kind> {
    Mine,
    Answered(Answer<K>),
}

/// A load that waits for its caller to run the function.
pub(super) struct Stand<'a, K: Kind> {
    begun: oneshot::Receiver<()>,
    done: oneshot::Sender<Result<K::Kept, Failed>>,
    answer: Pin<Box<dyn Future<Output = Answer<K>> + Send + 'a>>,
}

impl<'a, K: Kind> Stand<'a, K> {
    pub(super) fn new(cache: &'a CacheManager, key: &Key, options: &LoadOptions) -> Self {
        let (begin, begun) = oneshot::channel();
        let (done, outcome) = oneshot::channel();
        let load = move || async move {
            // Nobody runs it any more if nobody hears this.
            let _ = begin.send(());
            outcome.await.unwrap_or_else(|_| Err(Failed::dropped()))
        };
        let (key, options) = (key.clone(), options.clone());
        let answer = Box::pin(run::obtain::<ViewOf<K>, _>(cache, key, Plain(load), options));
        Self { begun, done, answer }
    }

    pub(super) async fn turn(&mut self) -> Turn<K> {
        tokio::select! {
            biased;
            answer = &mut self.answer => Turn::Answered(answer),
            Ok(()) = &mut self.begun => Turn::Mine,
        }
    }

    pub(super) async fn end<E>(self, outcome: Result<K::Out, E>, errors: &Errors<E>) -> Result<K::Out, E> {
        let outcome = outcome.map(K::keep);
        let told = match &outcome {
            Ok(kept) => Ok(kept.clone()),
            Err(error) => Err((errors.mark)(error)),
        };
        // A load that was given up does not hear it.
        let _ = self.done.send(told);
        match self.answer.await {
            Ok(served) => Ok(K::out(served.value)),
            Err(_) => outcome.map(K::out),
        }
    }
}
