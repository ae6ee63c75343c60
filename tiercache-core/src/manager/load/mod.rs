//! Loading through the cache.
//!
//! `get_or_load`, in order:
//! 1. A hot hit is the answer, as for `get`.
//! 2. Else the levels are searched; what is fresh is the answer. What is stale is kept at hand.
//! 3. Under the key's stripe: a load under way is joined, unless a mutation of the key began since it did. Else, when
//!    nothing has come since step 2 began, this caller leads one: it takes the generation of the value to come, and
//!    registers a flight. Beside a set or a transaction, of which nothing is there yet, it loads for its callers alone.
//! 4. The load runs in a task of the manager's. Where other processes write to a level and nothing was found, that level
//!    is first asked to refuse what is older than the load.
//! 5. What was loaded is stored with the load's generation, if no mutation of the key began since: a load is ordered
//!    where it began, so that every invalidation that began later kills what it brings.
//! 6. The load ends, and all who wait for it have its answer. One who came after an invalidation that its value is
//!    killed by begins anew.
//!
//! A caller waits no longer than its options say, and a dropped one stops only waiting.

mod batch;
mod blocking;
mod lease;
mod loads;
mod many;
pub(crate) mod memo;
mod options;
mod run;
mod turn;
mod value;
mod warm;

use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::batch::BatchLoader;
pub(super) use self::loads::{Defaults, Loads};
pub use self::options::{Eager, LoadOptions, Loaded};
pub(super) use self::turn::{Failure, Loading};
use self::value::sealed;
pub use self::value::{Loadable, Of, Raw, View};
pub use self::warm::{Warm, Warmed};
use super::{CacheManager, TypedCache};
use crate::{AsKey, BoxError, Error, Key, Level, Result};

/// Why a loader is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Nothing is there.
    Missing,
    /// What is there is stale.
    Stale,
    /// What is there is to be refreshed ahead of time.
    Refresh,
}

/// What a loader is told.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoadContext<S> {
    /// The key, with its namespace.
    pub key: Key,
    /// Why it is called.
    pub reason: Reason,
    /// The value that is there, if it is one, and how long ago it was made.
    pub present: Option<(S, Duration)>,
}

/// An answer with what is known about it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Served<A> {
    /// The answer.
    pub value: A,
    /// The level it came from; `None` when it was loaded.
    pub level: Option<Level>,
    /// How long ago it was made.
    pub age: Duration,
    stale: bool,
}

impl<A> Served<A> {
    /// Whether it is past its time to live: its load failed, takes its time, or goes on in the background.
    pub fn is_stale(&self) -> bool {
        self.stale
    }
}

/// What brings a value that is missing.
pub trait Loader<S>: Send + 'static {
    /// What it brings: see [`Loadable`].
    type Value;
    /// Why it could not.
    type Error: Into<BoxError>;

    /// Loads.
    fn load(
        self,
        context: LoadContext<S>,
    ) -> impl Future<Output = Result<Self::Value, Self::Error>> + Send + 'static;
}

/// A loader that needs not be told anything.
#[derive(Clone, Copy, Debug)]
pub struct Plain<L>(L);

/// A loader that is told.
#[derive(Clone, Copy, Debug)]
pub struct Told<L>(L);

impl<S, L, F, R, E> Loader<S> for Plain<L>
where
    L: FnOnce() -> F + Send + 'static,
    F: Future<Output = Result<R, E>> + Send + 'static,
    E: Into<BoxError>,
{
    type Value = R;
    type Error = E;

    fn load(self, _: LoadContext<S>) -> impl Future<Output = Result<R, E>> + Send + 'static {
        (self.0)()
    }
}

impl<S, L, F, R, E> Loader<S> for Told<L>
where
    L: FnOnce(LoadContext<S>) -> F + Send + 'static,
    F: Future<Output = Result<R, E>> + Send + 'static,
    E: Into<BoxError>,
{
    type Value = R;
    type Error = E;

    fn load(self, context: LoadContext<S>) -> impl Future<Output = Result<R, E>> + Send + 'static {
        (self.0)(context)
    }
}

/// What a caller gets whose loader is an `L`.
type Answer<V, L> = <<L as Loader<<V as sealed::View>::Shared>>::Value as Loadable<
    <V as sealed::View>::Value,
>>::Answer<<V as sealed::View>::Shared>;

/// A read that loads what is missing: options, then `.await`.
#[must_use = "nothing is read until it is awaited"]
pub struct Load<'a, V, K, L> {
    manager: &'a CacheManager,
    key: K,
    loader: L,
    options: LoadOptions,
    view: PhantomData<V>,
}

impl CacheManager {
    /// The value of `key`; when there is none, what `loader` brings, kept for those who come later.
    ///
    /// Of one key one load runs at a time, in a task of the cache's; who comes meanwhile has its answer. A load that
    /// began before the key was set, removed or invalidated answers those who waited already, and is not kept. The
    /// loader's `Ok` is bytes, an `Option` of them (`None` says that there is no such value), or either as [`Loaded`]
    /// with the loader's own decisions.
    ///
    /// ```ignore
    /// let page = cache.get_or_load("page:7", || async move { render(7).await }).ttl(Duration::from_secs(60)).await?;
    /// ```
    ///
    /// # Errors
    /// [`Error::Load`] when the loader fails, [`Error::Panicked`] when it panics, [`Error::TimedOut`] after the hard
    /// time-out; each only when no stale value may answer. As for [`CacheManager::get`] besides. A value that no level
    /// takes is answered all the same.
    ///
    /// Dropping the future stops only the waiting: a load that began goes on.
    pub fn get_or_load<K, L, F, R, E>(&self, key: K, loader: L) -> Load<'_, Raw, K, Plain<L>>
    where
        K: AsKey,
        L: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<R, E>> + Send + 'static,
        R: Loadable<Bytes>,
        E: Into<BoxError>,
    {
        Load::new(self, key, Plain(loader))
    }

    /// As [`CacheManager::get_or_load`], where the loader is told about the key, the value that is there if it is stale,
    /// and why it is called.
    ///
    /// # Errors
    /// As for [`CacheManager::get_or_load`].
    pub fn get_or_load_with<K, L, F, R, E>(&self, key: K, loader: L) -> Load<'_, Raw, K, Told<L>>
    where
        K: AsKey,
        L: FnOnce(LoadContext<Bytes>) -> F + Send + 'static,
        F: Future<Output = Result<R, E>> + Send + 'static,
        R: Loadable<Bytes>,
        E: Into<BoxError>,
    {
        Load::new(self, key, Told(loader))
    }
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> TypedCache<T> {
    /// The value of `key`; when there is none, what `loader` brings: see [`CacheManager::get_or_load`]. Those who waited
    /// share the loaded value itself.
    ///
    /// # Errors
    /// As for [`CacheManager::get_or_load`]; [`Error::Codec`] when what was loaded does not encode.
    pub fn get_or_load<K, L, F, R, E>(&self, key: K, loader: L) -> Load<'_, Of<T>, K, Plain<L>>
    where
        K: AsKey,
        L: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<R, E>> + Send + 'static,
        R: Loadable<T>,
        E: Into<BoxError>,
    {
        Load::new(&self.manager, key, Plain(loader))
    }

    /// As [`TypedCache::get_or_load`], where the loader is told about the key, the value that is there if it is stale,
    /// and why it is called.
    ///
    /// # Errors
    /// As for [`TypedCache::get_or_load`].
    pub fn get_or_load_with<K, L, F, R, E>(&self, key: K, loader: L) -> Load<'_, Of<T>, K, Told<L>>
    where
        K: AsKey,
        L: FnOnce(LoadContext<Arc<T>>) -> F + Send + 'static,
        F: Future<Output = Result<R, E>> + Send + 'static,
        R: Loadable<T>,
        E: Into<BoxError>,
    {
        Load::new(&self.manager, key, Told(loader))
    }
}

impl<'a, V, K, L> Load<'a, V, K, L> {
    fn new(manager: &'a CacheManager, key: K, loader: L) -> Self {
        Self { manager, key, loader, options: LoadOptions::default(), view: PhantomData }
    }

    /// All options at once, instead of those given so far.
    pub fn options(self, options: &LoadOptions) -> Self {
        Self { options: options.clone(), ..self }
    }

    /// Answers with what is known about the value: where it came from, its age, whether it is stale.
    pub fn entry(self) -> LoadEntry<'a, V, K, L> {
        LoadEntry(self)
    }
}

/// A [`Load`] that answers with [`Served`].
#[must_use = "nothing is read until it is awaited"]
pub struct LoadEntry<'a, V, K, L>(Load<'a, V, K, L>);

impl<'a, V, K, L> IntoFuture for Load<'a, V, K, L>
where
    V: View,
    K: AsKey,
    L: Loader<V::Shared, Value: Loadable<V::Value>>,
{
    type Output = Result<Answer<V, L>>;
    type IntoFuture = LoadFuture<'a, Answer<V, L>>;

    #[inline]
    fn into_future(self) -> Self::IntoFuture {
        let Self { manager, key, loader, options, .. } = self;
        let shared = &manager.shared;
        let key = match manager.key(&key) {
            Ok(key) => key,
            Err(error) => return LoadFuture(State::Ready(Some(Err(error)))),
        };
        if let Some(look) = options.look(shared)
            && let Some(value) = V::hit(manager, key, look)
            && let Some(answer) = L::Value::answer(Some(value))
        {
            return LoadFuture(State::Ready(Some(Ok(answer))));
        }
        let key = key.to_key();
        LoadFuture(State::Waiting(Box::pin(async move {
            Ok(run::obtain::<V, L>(manager, key, loader, options).await?.value)
        })))
    }
}

impl<'a, V, K, L> IntoFuture for LoadEntry<'a, V, K, L>
where
    V: View,
    K: AsKey,
    L: Loader<V::Shared, Value: Loadable<V::Value>>,
{
    type Output = Result<Served<Answer<V, L>>>;
    type IntoFuture = LoadFuture<'a, Served<Answer<V, L>>>;

    fn into_future(self) -> Self::IntoFuture {
        let Load { manager, key, loader, options, .. } = self.0;
        match manager.key(&key) {
            Ok(key) => LoadFuture(State::Waiting(Box::pin(run::obtain::<V, L>(
                manager,
                key.to_key(),
                loader,
                options,
            )))),
            Err(error) => LoadFuture(State::Ready(Some(Err(error)))),
        }
    }
}

/// The future of a [`Load`]. Boxes nothing when hot answers.
#[must_use = "futures do nothing unless polled"]
pub struct LoadFuture<'a, A>(State<'a, A>);

enum State<'a, A> {
    Ready(Option<Result<A>>),
    Waiting(Pin<Box<dyn Future<Output = Result<A>> + Send + 'a>>),
}

// The answer is moved out, never pinned.
impl<A> Unpin for LoadFuture<'_, A> {}

impl<A> Future for LoadFuture<'_, A> {
    type Output = Result<A>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<A>> {
        match &mut self.0 {
            // Polled again after its end, it says that there is nothing more.
            State::Ready(answer) => Poll::Ready(answer.take().unwrap_or(Err(Error::Closed))),
            State::Waiting(work) => {
                let answer = ready!(work.as_mut().poll(context));
                self.0 = State::Ready(None);
                Poll::Ready(answer)
            }
        }
    }
}
