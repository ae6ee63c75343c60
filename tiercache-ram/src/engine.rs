//! The seam between the tier and what keeps its entries.

use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tiercache_core::KeyRef;
use tiercache_core::tier::Resting;

use crate::Policy;
use crate::fifo::Fifo;
use crate::moka::Moka;
use crate::outlet::Outlet;
use crate::quick::Quick;
use crate::slot::Slot;

/// The table of the entries, with its policy of what goes when room is needed.
///
/// What it evicts it hands to the outlet. `hit` and `peek` show the slot to `visit`; `false` or `None` counts as
/// an absent entry. `remove_if` judges and removes in one step: no other write comes in between.
#[derive(Debug)]
pub(crate) enum Engine {
    Quick(Quick),
    Moka(Moka),
    Fifo(Fifo),
}

/// Calls the same method of either engine.
macro_rules! either {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self {
            Engine::Quick(engine) => engine.$method($($argument),*),
            Engine::Moka(engine) => engine.$method($($argument),*),
            Engine::Fifo(engine) => engine.$method($($argument),*),
        }
    };
}

impl Engine {
    pub(crate) fn new(policy: Policy, capacity: u64, outlet: Arc<Outlet>) -> Self {
        match policy {
            Policy::Adaptive => Self::Quick(Quick::new(capacity, outlet)),
            Policy::Lru | Policy::TinyLfu => Self::Moka(Moka::new(policy, capacity, outlet)),
            Policy::Fifo => Self::Fifo(Fifo::new(capacity, outlet)),
        }
    }

    /// The most bytes an entry may have. Slots note their weight in 32 bits.
    pub(crate) fn entry_limit(&self) -> u64 {
        either!(self.entry_limit()).min(u64::from(u32::MAX))
    }

    /// A look-up that the policy counts as a use if `visit` does.
    #[inline]
    pub(crate) fn hit(&self, key: &KeyRef<'_>, visit: impl FnOnce(&Slot) -> bool) {
        either!(self.hit(key, visit))
    }

    /// A look-up that is not a use. When it finds nothing, whatever was evicted has been handed over.
    pub(crate) fn peek<T>(&self, key: KeyRef<'_>, visit: impl FnOnce(&Slot) -> Option<T>) -> Option<T> {
        either!(self.peek(key, visit))
    }

    /// Inserts a slot no heavier than the limit. `replaces` says that an older entry of the key may be there, which
    /// is not handed over.
    pub(crate) fn insert(&self, slot: Slot, replaces: bool) {
        match self {
            Self::Quick(engine) => engine.insert(slot, replaces),
            Self::Moka(engine) => engine.insert(slot),
            Self::Fifo(engine) => engine.insert(slot),
        }
    }

    /// Removes the entry if `condition`. When it finds nothing, whatever was evicted has been handed over.
    pub(crate) fn remove_if(
        &self,
        key: KeyRef<'_>,
        condition: impl FnOnce(&Slot) -> bool,
    ) -> Option<Resting> {
        either!(self.remove_if(key, condition))
    }

    /// A copy, without its value, of every entry that is there from the beginning to the end. Holds no lock between two.
    pub(crate) fn each(&self) -> Box<dyn Iterator<Item = Slot> + Send + '_> {
        match self {
            Self::Quick(engine) => Box::new(engine.each()),
            Self::Moka(engine) => Box::new(engine.each()),
            Self::Fifo(engine) => Box::new(engine.each()),
        }
    }

    /// Does what is due and nobody asked for.
    pub(crate) fn maintain(&self) {
        if let Self::Moka(engine) = self {
            engine.maintain();
        }
    }

    pub(crate) fn entries(&self) -> u64 {
        either!(self.entries())
    }

    pub(crate) fn bytes(&self) -> u64 {
        either!(self.bytes())
    }

    pub(crate) fn resize(&self, capacity: u64) {
        either!(self.resize(capacity))
    }
}

/// Locks for the writes of a key, shared by keys that fall on the same stripe.
#[derive(Debug)]
pub(crate) struct Stripes(Box<[Mutex<()>; 64]>);

impl Stripes {
    pub(crate) fn new() -> Self {
        Self(Box::new([const { Mutex::new(()) }; 64]))
    }

    pub(crate) fn lock(&self, key: KeyRef<'_>) -> MutexGuard<'_, ()> {
        let stripe = &self.0[(key.hash64() % 64) as usize];
        // There is nothing behind the lock that a panic could have left half done.
        stripe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every lock, for what concerns all keys.
    pub(crate) fn lock_all(&self) -> Vec<MutexGuard<'_, ()>> {
        self.0.iter().map(|stripe| stripe.lock().unwrap_or_else(PoisonError::into_inner)).collect()
    }
}

/// Passes the hash that a key brings along on to a table.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KeyHash;

impl BuildHasher for KeyHash {
    type Hasher = Carried;

    #[inline]
    fn build_hasher(&self) -> Carried {
        Carried(0)
    }
}

pub(crate) struct Carried(u64);

impl Hasher for Carried {
    #[inline]
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, bytes: &[u8]) {
        // Keys hash as one number; whatever else comes must only not be lost.
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}
