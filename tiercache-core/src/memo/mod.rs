//! What `#[cached]` is made of. The macro writes calls of these; there is seldom a reason to write one by hand.

mod encoder;
mod key;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};

pub use key::CallKey;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use crate::manager::memo::{
    ByClone, ByCloneAndFrom, ByFrom, Bytes, Cloned, Errors, Failed, Fallible, Form, InTurn, Kind, Maybe,
    Memo, Memoised, Miss, Named, Policy, Shared, Sure,
};
use crate::{BlockingCache, CacheManager, Error, Result, TypedCache};

static DEFAULT: OnceLock<BlockingCache> = OnceLock::new();

/// Makes `cache`, a [`CacheManager`] or a [`BlockingCache`], that of all functions that are `#[cached]` without
/// naming one. Until then they run every time they are called, and say so in the log once.
///
/// It stays for the life of the process: close it before the process ends, or what RAM holds is forgotten.
///
/// # Errors
/// [`Error::Refused`] when one is set already; that one stays.
pub fn set_default(cache: impl Into<BlockingCache>) -> Result<()> {
    DEFAULT.set(cache.into()).map_err(|_| Error::Refused("the default cache is set already".into()))
}

/// What [`set_default`] was given.
pub fn default_cache() -> Option<&'static CacheManager> {
    DEFAULT.get().map(BlockingCache::manager)
}

/// What `cache = …` and `cache(…)` may name. A [`OnceLock`] that is empty and an `Option` that is `None` have no cache:
/// the function runs every time.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no cache",
    label = "not a cache",
    note = "a cache is a `CacheManager`, a `BlockingCache`, a `TypedCache`, or an `Arc`, `Option`, `OnceLock` or `LazyLock` of one"
)]
pub trait Handle {
    /// The cache, if there is one.
    fn cache(&self) -> Option<&CacheManager>;
}

/// The process-wide default.
#[derive(Clone, Copy, Debug)]
pub struct Default;

impl Handle for Default {
    #[inline]
    fn cache(&self) -> Option<&CacheManager> {
        static TOLD: AtomicBool = AtomicBool::new(false);
        let cache = default_cache();
        if cache.is_none() && !TOLD.swap(true, Ordering::Relaxed) {
            tracing::warn!("no default cache is set: functions that need one run every time they are called");
        }
        cache
    }
}

impl Handle for CacheManager {
    #[inline]
    fn cache(&self) -> Option<&CacheManager> {
        Some(self)
    }
}

impl Handle for BlockingCache {
    fn cache(&self) -> Option<&CacheManager> {
        Some(self.manager())
    }
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Handle for TypedCache<T> {
    fn cache(&self) -> Option<&CacheManager> {
        Some(self.bytes())
    }
}

impl<H: Handle + ?Sized> Handle for &H {
    #[inline]
    fn cache(&self) -> Option<&CacheManager> {
        (**self).cache()
    }
}

impl<H: Handle + ?Sized> Handle for Arc<H> {
    fn cache(&self) -> Option<&CacheManager> {
        (**self).cache()
    }
}

impl<H: Handle> Handle for Option<H> {
    fn cache(&self) -> Option<&CacheManager> {
        self.as_ref()?.cache()
    }
}

impl<H: Handle> Handle for OnceLock<H> {
    fn cache(&self) -> Option<&CacheManager> {
        self.get()?.cache()
    }
}

impl<H: Handle, F: FnOnce() -> H> Handle for LazyLock<H, F> {
    fn cache(&self) -> Option<&CacheManager> {
        (**self).cache()
    }
}
