//! The manager: the one place that decides what moves where.
//!
//! Every decision about a key is made under the key's stripe ([`stripes`]). The flow of each operation is written
//! down, step by step, where it begins: [`read`], [`write`], [`remove`], [`journal`], [`sink`].

mod below;
mod blocking;
mod builder;
mod change;
mod clock;
mod close;
mod conditional;
mod count;
mod counters;
mod fences;
mod find;
mod flow;
mod guard;
mod journal;
mod keys;
mod late;
mod lessor;
mod load;
mod lock;
mod many;
mod pending;
mod read;
mod recorder;
mod remove;
mod retune;
mod set;
mod sink;
mod slot;
mod stats;
mod stripes;
mod transaction;
mod transfer;
mod typed;
mod walk;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::watch;

pub use blocking::BlockingCache;
pub use builder::{Builder, Write};
pub use change::{Popped, Touched};
pub use close::{CloseReport, LevelReport};
pub use count::Addition;
pub use keys::{Keys, Purged};
pub(crate) use load::memo;
pub use load::{
    BatchLoader, Eager, Load, LoadContext, LoadEntry, LoadFuture, LoadOptions, Loadable, Loaded, Loader, Of,
    Plain, Raw, Reason, Served, Told, View, Warm, Warmed,
};
pub use lock::{Lock, LockGuard};
pub use read::EntryInfo;
pub use remove::Removed;
pub use retune::{Origin, Retune};
pub use set::Set;
pub use sink::Pruned;
pub use slot::Limits;
pub use stats::{LevelStats, Stats};
pub use transaction::{Transaction, Value};
pub use transfer::{Restored, Scan};
pub use typed::TypedCache;
pub use write::Written;

use self::flow::Flow;
use self::lessor::Lessor;
use self::lock::Locks;
use self::slot::Slot;
use self::stripes::Stripes;
use crate::{AsKey, Error, KeyRef, Level, Result};

/// A cache of up to three levels. Cheap to clone: every clone is the same cache.
///
/// Background work ends with [`CacheManager::close`] or with the last clone. What RAM holds survives only a
/// `close`, which sinks it; dropping the last clone forgets it.
#[derive(Clone, Debug)]
pub struct CacheManager {
    shared: Arc<Shared>,
    namespace: Arc<str>,
    /// Ends the background work when the last handle goes.
    _running: Arc<Running>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    flow: Arc<Flow>,
    /// By [`Level::index`].
    slots: [Option<Slot>; 3],
    stripes: Stripes,
    loads: load::Loads,
    write: Write,
    /// The level that has the counters, where it was chosen.
    counters: Option<Level>,
    lessor: Lessor,
    locks: Locks,
    /// How often levels are swept.
    sweep_every: watch::Sender<std::time::Duration>,
    /// Held while RAM takes an entry of a copy.
    restoring: tokio::sync::Mutex<()>,
    /// What the cache was made from. Held while that changes.
    origin: tokio::sync::Mutex<Option<Origin>>,
    closed: AtomicBool,
    /// Invalidations of many that some level has not made durable yet. Their fences are not forgotten.
    invalidating: AtomicUsize,
    /// The level that keeps the journal of removals that wait.
    journal: Option<Level>,
    /// Turns true when the cache was closed, or its last handle dropped.
    stopped: watch::Receiver<bool>,
    /// The runtime the manager was built in, where what it owns runs.
    runtime: tokio::runtime::Handle,
}

#[derive(Debug)]
struct Running(watch::Sender<bool>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

impl CacheManager {
    /// Begins a cache.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The same cache, confined to the namespace `name`: no operation of the handle reads, lists or clears
    /// anything of another. The empty name is the default namespace.
    ///
    /// # Errors
    /// [`Error::InvalidKey`] when the name is longer than 255 bytes.
    pub fn namespace(&self, name: &str) -> Result<Self> {
        if name.len() > crate::MAX_NAMESPACE_BYTES {
            return Err(Error::InvalidKey("a namespace has at most 255 bytes"));
        }
        Ok(Self { namespace: name.into(), ..self.clone() })
    }

    /// The name of this handle's namespace.
    pub fn namespace_name(&self) -> &str {
        &self.namespace
    }

    #[inline(always)]
    fn key<'a>(&'a self, key: &'a (impl AsKey + ?Sized)) -> Result<KeyRef<'a>> {
        KeyRef::within(&self.namespace, key.key_bytes())
    }

    /// A key that was made before, of its hash: what is held across an `await` lies in memory.
    fn hashed<'a>(&'a self, hash: u64, key: &'a (impl AsKey + ?Sized)) -> KeyRef<'a> {
        KeyRef::hashed(hash, &self.namespace, key.key_bytes())
    }
}

impl Shared {
    /// The levels there are, top down.
    fn slots(&self) -> impl DoubleEndedIterator<Item = &Slot> {
        self.slots.iter().flatten()
    }

    fn slot(&self, level: Level) -> Option<&Slot> {
        self.slots[level.index()].as_ref()
    }

    /// The levels that have to be waited for.
    fn lower_slots(&self) -> impl DoubleEndedIterator<Item = &Slot> {
        self.slots().filter(|slot| !slot.in_ram)
    }

    /// Whether no level below `level` takes entries of `levels`.
    fn is_last(&self, level: Level, levels: crate::Levels) -> bool {
        !self.slots().any(|slot| slot.level > level && levels.contains(slot.level))
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    /// Runs `work` to its end even if the caller stops waiting for it.
    async fn owned<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
        what: &'static str,
    ) -> Result<T> {
        self.runtime
            .spawn(work)
            .await
            .map_err(|error| if error.is_panic() { Error::Panicked { what } } else { Error::Closed })
    }
}

/// An operation registered with its key's stripe until it is dropped.
struct InFlight<S: std::ops::Deref<Target = Shared>> {
    shared: S,
    hash: u64,
}

impl<S: std::ops::Deref<Target = Shared>> Drop for InFlight<S> {
    fn drop(&mut self) {
        self.shared.stripes.lock(self.hash).leave(self.hash);
    }
}
