//! The cache for code without an async runtime.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{
    Addition, Builder, CacheManager, CloseReport, EntryInfo, LockGuard, Popped, Removed, Set, Stats, Touched,
    Transaction, Written,
};
use crate::tracking::{Query, Record};
use crate::{AsKey, Error, Level, Result};

/// The cache with calls that block the thread. Cheap to clone, and shared by any number of threads.
///
/// Inside an async runtime every call fails with [`Error::WouldBlockRuntime`] instead of stopping its thread.
#[derive(Clone, Debug)]
pub struct BlockingCache {
    manager: CacheManager,
    /// The runtime this was built with, if it was built without one around it.
    runtime: Option<Arc<OwnRuntime>>,
}

/// A runtime on a thread of its own, until this is dropped.
#[derive(Debug)]
struct OwnRuntime {
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl CacheManager {
    /// The same cache for code that does not run on an async runtime, such as a plain thread.
    pub fn blocking(&self) -> BlockingCache {
        BlockingCache { manager: self.clone(), runtime: None }
    }
}

impl BlockingCache {
    /// Builds a cache for a program without a runtime: background work gets a thread of its own, which ends with
    /// the last handle.
    ///
    /// # Errors
    /// As for [`Builder::build`]; [`Error::WouldBlockRuntime`] inside a runtime.
    pub fn build(builder: Builder) -> Result<Self> {
        Self::start(builder.build())
    }

    /// Like [`BlockingCache::build`], for anything that makes a cache inside a runtime.
    ///
    /// # Errors
    /// As for [`BlockingCache::build`].
    pub fn start<E: From<Error>>(
        making: impl Future<Output = std::result::Result<CacheManager, E>>,
    ) -> std::result::Result<Self, E> {
        outside("build")?;
        let failed = |error| Error::unavailable("runtime", "start", error);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let manager = runtime.block_on(making)?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name("tiercache".into())
            .spawn(move || {
                // Either way it is over: the sender went with the last handle.
                let _ = runtime.block_on(stopped);
            })
            .map_err(failed)?;
        Ok(Self { manager, runtime: Some(Arc::new(OwnRuntime { _stop: stop })) })
    }

    /// The cache for async code.
    pub fn manager(&self) -> &CacheManager {
        &self.manager
    }

    /// See [`CacheManager::namespace`].
    ///
    /// # Errors
    /// As there.
    pub fn namespace(&self, name: &str) -> Result<Self> {
        Ok(Self { manager: self.manager.namespace(name)?, runtime: self.runtime.clone() })
    }

    /// See [`CacheManager::get`].
    ///
    /// # Errors
    /// As there; [`Error::WouldBlockRuntime`] inside a runtime. So for every call of this type.
    pub fn get(&self, key: impl AsKey) -> Result<Option<Bytes>> {
        self.wait("get", self.manager.get(key))?
    }

    /// See [`CacheManager::entry`].
    ///
    /// # Errors
    /// As for [`BlockingCache::get`].
    pub fn entry(&self, key: impl AsKey) -> Result<Option<EntryInfo>> {
        self.wait("entry", self.manager.entry(key))?
    }

    /// See [`CacheManager::set`]: sets with the levels' defaults.
    ///
    /// # Errors
    /// As for [`BlockingCache::get`].
    pub fn set(&self, key: impl AsKey, value: impl Into<Bytes>) -> Result<Written> {
        self.set_with(key, value, |set| set)
    }

    /// See [`CacheManager::set`]: `options` adds them, such as `|set| set.ttl(ttl).tag("type", "a")`.
    ///
    /// # Errors
    /// As for [`BlockingCache::get`].
    pub fn set_with(
        &self,
        key: impl AsKey,
        value: impl Into<Bytes>,
        options: impl FnOnce(Set<'_>) -> Set<'_>,
    ) -> Result<Written> {
        let set = options(self.manager.set(key, value));
        self.wait("set", set.into_future())?
    }

    /// See [`CacheManager::delete`].
    ///
    /// # Errors
    /// As for [`BlockingCache::get`].
    pub fn delete(&self, key: impl AsKey) -> Result<Removed> {
        self.wait("delete", self.manager.delete(key))?
    }

    /// See [`CacheManager::pop`].
    ///
    /// # Errors
    /// As for [`BlockingCache::get`].
    pub fn pop(&self, key: impl AsKey) -> Result<Popped> {
        self.wait("pop", self.manager.pop(key))?
    }

    /// See [`CacheManager::contains`].
    ///
    /// # Errors
    /// As for [`BlockingCache::get`].
    pub fn contains(&self, key: impl AsKey) -> Result<bool> {
        self.wait("contains", self.manager.contains(key))?
    }

    /// See [`CacheManager::touch`].
    ///
    /// # Errors
    /// As for [`BlockingCache::get`].
    pub fn touch(&self, key: impl AsKey, ttl: impl Into<Option<Duration>>) -> Result<Touched> {
        self.wait("touch", self.manager.touch(key, ttl))?
    }

    /// See [`CacheManager::get_and_touch`].
    ///
    /// # Errors
    /// As for [`BlockingCache::get`].
    pub fn get_and_touch(
        &self,
        key: impl AsKey,
        ttl: impl Into<Option<Duration>>,
    ) -> Result<Option<EntryInfo>> {
        self.wait("get_and_touch", self.manager.get_and_touch(key, ttl))?
    }

    /// See [`CacheManager::lock`]: waits as long as it takes. Dropping the guard gives the lock back.
    ///
    /// # Errors
    /// As for [`BlockingCache::get`], and as there.
    pub fn lock(&self, name: impl AsKey, expiry: Duration) -> Result<LockGuard> {
        self.wait("lock", self.manager.lock(name, expiry).into_future())?
    }

    /// See [`CacheManager::try_lock`].
    ///
    /// # Errors
    /// As for [`BlockingCache::lock`].
    pub fn try_lock(&self, name: impl AsKey, expiry: Duration) -> Result<Option<LockGuard>> {
        self.wait("try_lock", self.manager.try_lock(name, expiry))?
    }

    /// See [`CacheManager::transaction`].
    ///
    /// # Errors
    /// As for [`BlockingCache::get`], and as there.
    pub fn transaction<K: AsKey, T: Send + 'static>(
        &self,
        keys: &[K],
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.wait("transaction", self.manager.transaction(keys, work))?
    }

    /// See [`CacheManager::incr`]: adds `by`, which may be negative.
    ///
    /// # Errors
    /// As for [`BlockingCache::get`], and as there.
    pub fn incr(&self, key: impl AsKey, by: i64) -> Result<i64> {
        self.incr_with(key, |addition| addition.by(by))
    }

    /// See [`CacheManager::incr`]: `options` adds them, such as `|addition| addition.by(3).start(10).ttl(ttl)`.
    ///
    /// # Errors
    /// As for [`BlockingCache::incr`].
    pub fn incr_with(
        &self,
        key: impl AsKey,
        options: impl FnOnce(Addition<'_>) -> Addition<'_>,
    ) -> Result<i64> {
        let addition = options(self.manager.incr(key));
        self.wait("incr", addition.into_future())?
    }

    /// See [`CacheManager::counter`].
    ///
    /// # Errors
    /// As for [`BlockingCache::get`].
    pub fn counter(&self, key: impl AsKey) -> Result<Option<i64>> {
        self.wait("counter", self.manager.counter(key))?
    }

    /// See [`CacheManager::remove_counter`].
    ///
    /// # Errors
    /// As for [`BlockingCache::incr`].
    pub fn remove_counter(&self, key: impl AsKey) -> Result<bool> {
        self.wait("remove_counter", self.manager.remove_counter(key))?
    }

    /// See [`CacheManager::invalidate_tag`].
    ///
    /// # Errors
    /// As for [`BlockingCache::get`].
    pub fn invalidate_tag(&self, name: &str, value: &str) -> Result<Removed> {
        self.wait("invalidate_tag", self.manager.invalidate_tag(name, value))?
    }

    /// See [`CacheManager::clear`].
    ///
    /// # Errors
    /// As for [`BlockingCache::get`].
    pub fn clear(&self) -> Result<Removed> {
        self.wait("clear", self.manager.clear())?
    }

    /// See [`CacheManager::flush`].
    ///
    /// # Errors
    /// As for [`BlockingCache::get`].
    pub fn flush(&self, level: Level) -> Result<()> {
        self.wait("flush", self.manager.flush(level))?
    }

    /// All that [`CacheManager::keys`] lists.
    ///
    /// # Errors
    /// As for [`BlockingCache::get`].
    pub fn keys(&self, query: Query) -> Result<Vec<Record>> {
        self.wait("keys", async { self.manager.keys(query).page(usize::MAX).await })?
    }

    /// See [`CacheManager::stats`].
    ///
    /// # Errors
    /// As for [`BlockingCache::get`].
    pub fn stats(&self) -> Result<Stats> {
        self.wait("stats", self.manager.stats())?
    }

    /// See [`CacheManager::close`].
    ///
    /// # Errors
    /// As for [`BlockingCache::get`].
    pub fn close(&self, deadline: Duration) -> Result<CloseReport> {
        self.wait("close", self.manager.close(deadline))?
    }

    pub(super) fn wait<T>(&self, call: &'static str, work: impl Future<Output = T>) -> Result<T> {
        wait(&self.manager, call, work)
    }
}

impl From<CacheManager> for BlockingCache {
    fn from(manager: CacheManager) -> Self {
        Self { manager, runtime: None }
    }
}

/// Blocks the thread until `work` is done.
pub(super) fn wait<T>(
    manager: &CacheManager,
    call: &'static str,
    work: impl Future<Output = T>,
) -> Result<T> {
    outside(call)?;
    Ok(manager.shared.runtime.block_on(work))
}

thread_local! {
    /// Whether this thread is a runtime's and may block all the same, since it is one of those for what blocks.
    static MAY_BLOCK: Cell<bool> = const { Cell::new(false) };
}

/// Fails inside an async runtime.
pub(super) fn outside(call: &'static str) -> Result<()> {
    match tokio::runtime::Handle::try_current() {
        Ok(_) if !MAY_BLOCK.get() => Err(Error::WouldBlockRuntime(call)),
        _ => Ok(()),
    }
}

/// Runs `work` on a thread of the runtime's for what blocks, where it may use the cache too. Panics if it does. Once it
/// began, it goes on when the future is dropped.
pub(super) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let task = tokio::task::spawn_blocking(move || {
        let _mark = Mark::set();
        work()
    });
    match task.await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going down, and with it whoever waits for this.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Threads are used again: the mark goes with what it was set for.
struct Mark;

impl Mark {
    fn set() -> Self {
        MAY_BLOCK.set(true);
        Self
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        MAY_BLOCK.set(false);
    }
}
