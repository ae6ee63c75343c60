//! Loading for code without an async runtime.

use std::future::IntoFuture;

use bytes::Bytes;

use super::super::{BlockingCache, blocking};
use super::{LoadContext, LoadOptions, Loadable, Served};
use crate::{AsKey, BoxError, Result};

impl BlockingCache {
    /// The value of `key`; when there is none, what `loader` brings: see
    /// [`CacheManager::get_or_load`](super::super::CacheManager::get_or_load).
    ///
    /// The loader runs on a thread of the runtime's for what blocks, and may use the cache. One that is given up goes on
    /// there to its end.
    ///
    /// ```ignore
    /// let page = cache.get_or_load("page:7", || std::fs::read("7.html"))?;
    /// ```
    ///
    /// # Errors
    /// As there; [`Error::WouldBlockRuntime`](crate::Error::WouldBlockRuntime) inside a runtime.
    pub fn get_or_load<L, R, E>(&self, key: impl AsKey, loader: L) -> Result<R::Answer<Bytes>>
    where
        L: FnOnce() -> Result<R, E> + Send + 'static,
        R: Loadable<Bytes>,
        E: Into<BoxError> + Send + 'static,
    {
        Ok(self.get_or_load_with(key, &LoadOptions::new(), move |_| loader())?.value)
    }

    /// As [`BlockingCache::get_or_load`], with options, a loader that is told about the key, the value that is there if
    /// it is stale, and why it is called, and an answer with what is known about it.
    ///
    /// # Errors
    /// As for [`BlockingCache::get_or_load`].
    pub fn get_or_load_with<L, R, E>(
        &self,
        key: impl AsKey,
        options: &LoadOptions,
        loader: L,
    ) -> Result<Served<R::Answer<Bytes>>>
    where
        L: FnOnce(LoadContext<Bytes>) -> Result<R, E> + Send + 'static,
        R: Loadable<Bytes>,
        E: Into<BoxError> + Send + 'static,
    {
        let loader = move |context| blocking::run(move || loader(context));
        let load = self.manager().get_or_load_with(key, loader).options(options).entry();
        self.wait("get_or_load", load.into_future())?
    }
}
