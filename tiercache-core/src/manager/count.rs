//! Counters.
//!
//! A counter stands at one level, its home, which adds to it in one step of its own. It is never copied up or down, so
//! there is nothing to fence: what the home answers is the counter. An addition goes to the home once and is never
//! repeated; when the home does not say what became of it, the caller is told so.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::set::checked;
use super::slot::Slot;
use super::{CacheManager, Shared};
use crate::bugs::seeded;
use crate::tier::{Counting, Scope};
use crate::{AsKey, Error, Key, Level, Result, Timestamp};

/// An addition to a counter on its way: options, then `.await`.
#[must_use = "nothing is added until it is awaited"]
pub struct Addition<'a> {
    manager: &'a CacheManager,
    key: Result<Key>,
    delta: Result<i64>,
    negative: bool,
    start: i64,
    ttl: Result<Option<Duration>>,
}

impl CacheManager {
    /// Adds one to the counter of `key` and returns the sum. A counter that is absent, or dead, begins at zero.
    ///
    /// ```ignore
    /// let visits = cache.incr("visits").await?;
    /// let left = cache.decr("quota").by(3).start(100).ttl(Duration::from_secs(3_600)).await?;
    /// ```
    ///
    /// Counters stand at one level, see [`Builder::counters`](super::Builder::counters), apart from values: `get` and
    /// `delete` do not see them, `clear` drops those of the namespace, and `flush` those of its level.
    ///
    /// # Errors
    /// - [`Error::Uncertain`] when the level did not say whether it added: it did so once, or not at all.
    /// - [`Error::Unsupported`] when no level of the cache counts; [`Error::InvalidOption`] when the sum would leave
    ///   the range of `i64`; any other: nothing was added.
    ///
    /// Dropping the future after it was first polled does not stop the addition.
    pub fn incr(&self, key: impl AsKey) -> Addition<'_> {
        let key = self.key(&key).map(|key| key.to_key());
        Addition { manager: self, key, delta: Ok(1), negative: false, start: 0, ttl: Ok(None) }
    }

    /// Takes one from the counter of `key` and returns what is left, as [`CacheManager::incr`] does; it may be
    /// negative.
    ///
    /// # Errors
    /// As for [`CacheManager::incr`].
    pub fn decr(&self, key: impl AsKey) -> Addition<'_> {
        Addition { delta: Ok(-1), negative: true, ..self.incr(key) }
    }

    /// The counter of `key`; `None` when there is none that lives.
    ///
    /// # Errors
    /// [`Error::InvalidKey`], [`Error::Closed`], [`Error::Unsupported`] when no level counts,
    /// [`Error::Unavailable`] and [`Error::TimedOut`] when the level that does cannot be reached.
    pub async fn counter(&self, key: impl AsKey) -> Result<Option<i64>> {
        let key = self.key(&key)?.to_key();
        let (slot, counting) = self.shared.home()?;
        self.shared.check_counter(slot, &key)?;
        let now = self.shared.flow.now();
        slot.call("counter", slot.limits().read_timeout, counting.counter(&key, now)).await
    }

    /// Forgets the counter of `key`: the next addition begins anew. Returns whether there was one.
    ///
    /// # Errors
    /// As for [`CacheManager::counter`]; [`Error::Uncertain`] when the level did not say whether it did.
    pub async fn remove_counter(&self, key: impl AsKey) -> Result<bool> {
        let key = self.key(&key)?.to_key();
        let shared = self.shared.clone();
        let removed = async move {
            let (slot, counting) = shared.home()?;
            shared.check_counter(slot, &key)?;
            shared.certainly(slot, "remove a counter", counting.remove_counter(&key)).await
        };
        self.shared.owned(removed, "a tier").await?
    }

    /// The level that has the counters.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when none counts.
    pub fn counter_level(&self) -> Result<Level> {
        self.shared.home().map(|(slot, _)| slot.level)
    }
}

impl Addition<'_> {
    /// Adds (or takes) so much instead of one.
    pub fn by(mut self, by: i64) -> Self {
        self.delta = if self.negative { by.checked_neg() } else { Some(by) }.ok_or_else(|| {
            Error::InvalidOption { option: "by", reason: format!("{by} cannot be taken, it has no opposite") }
        });
        self
    }

    /// What a counter that is absent is taken to have before the addition. Default: 0.
    pub fn start(mut self, start: i64) -> Self {
        self.start = start;
        self
    }

    /// The time a counter lives that begins with this; one that is there keeps its own. Default: until it is removed.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = checked(ttl, "ttl").map(Some);
        self
    }
}

impl fmt::Debug for Addition<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Addition").field("key", &self.key).field("delta", &self.delta).finish_non_exhaustive()
    }
}

impl<'a> IntoFuture for Addition<'a> {
    type Output = Result<i64>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<i64>> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let (key, delta, ttl) = (self.key?, self.delta?, self.ttl?);
            let (shared, start) = (self.manager.shared.clone(), self.start);
            let adding = async move { shared.add(&key, delta, start, ttl).await };
            self.manager.shared.owned(adding, "a tier").await?
        })
    }
}

impl Shared {
    async fn add(self: &Arc<Self>, key: &Key, delta: i64, start: i64, ttl: Option<Duration>) -> Result<i64> {
        let (slot, counting) = self.home()?;
        self.check_counter(slot, key)?;
        let now = self.flow.now();
        let deadline = ttl.map_or(Timestamp::NEVER, |ttl| now.after(ttl));
        let added = self.certainly(slot, "add", counting.add(key, delta, start, deadline, now)).await;
        match added {
            Err(Error::Uncertain { .. }) if seeded("adds-again") => {
                counting.add(key, delta, start, deadline, now).await
            }
            added => added,
        }
    }

    /// The level that has the counters: the one that was chosen, else the lowest that counts.
    fn home(&self) -> Result<(&Slot, &dyn Counting)> {
        self.check_open()?;
        let chosen = |slot: &&Slot| self.counters.is_none_or(|level| level == slot.level);
        let mut counting =
            self.slots().rev().filter(chosen).filter_map(|slot| Some((slot, slot.tier.counting()?)));
        counting
            .next()
            .ok_or(Error::Unsupported { backend: "this cache", op: "count: none of its levels does" })
    }

    /// Whether the home's counters of that namespace are to be believed: not while a removal has yet to reach it.
    fn check_counter(&self, slot: &Slot, key: &Key) -> Result<()> {
        let covered = |scope: &Scope| match scope {
            Scope::All => true,
            Scope::Namespace(namespace) => namespace == key.namespace(),
            Scope::Tag { .. } => false,
        };
        if slot.lagging().iter().any(covered) {
            let why = "counters are cleared when the level is back";
            return Err(Error::unavailable(slot.tier.name(), "count", why));
        }
        Ok(())
    }

    /// Makes a change at a level, once. What it did not say it may have done, if it was asked at all.
    async fn certainly<T>(
        &self,
        slot: &Slot,
        op: &'static str,
        change: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let asked = AtomicBool::new(false);
        let call = async {
            asked.store(true, Ordering::Relaxed);
            change.await
        };
        let result = slot.call(op, slot.limits().write_timeout, call).await;
        result.map_err(|error| match error {
            Error::Unavailable { .. } | Error::TimedOut { .. } | Error::Panicked { .. }
                if asked.load(Ordering::Relaxed) =>
            {
                Error::Uncertain { backend: slot.tier.name(), op, source: Arc::new(error) }
            }
            error => error,
        })
    }
}
