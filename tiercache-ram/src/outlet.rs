use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use tiercache_core::tier::{Cause, Left, Spill};
use tiercache_core::{Key, KeyRef};

use crate::slot::Slot;

/// Where entries leave the tier. Shared with the engine, whose hooks run under its locks.
#[derive(Debug, Default)]
pub(crate) struct Outlet {
    spill: OnceLock<Arc<dyn Spill>>,
    evicted: AtomicU64,
}

impl Outlet {
    /// Sets where to; the first time counts.
    pub(crate) fn attach(&self, spill: Arc<dyn Spill>) {
        if self.spill.set(spill).is_err() {
            tracing::warn!(tier = "ram", "a spill is attached already");
        }
    }

    /// Entries given up for room so far.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted.load(Relaxed)
    }

    /// Hands over what the engine gives up for room.
    pub(crate) fn evict(&self, slot: &Slot) {
        self.evicted.fetch_add(1, Relaxed);
        self.hand_over(slot, Cause::Evicted);
    }

    /// Hands over what is about to be answered no more.
    pub(crate) fn hand_over(&self, slot: &Slot, cause: Cause) {
        let Some(spill) = self.spill.get() else { return };
        let key: Key = slot.key.clone();
        let left = Left { cause, uses: slot.uses() };
        // A panic must not unwind through an engine's locks.
        if catch_unwind(AssertUnwindSafe(|| spill.spill(key, slot.entry(), left))).is_err() {
            tracing::error!(tier = "ram", key = ?slot.key, "spill panicked, the entry is lost");
        }
    }

    /// Tells of uses that were counted.
    pub(crate) fn used(&self, key: KeyRef<'_>, uses: u32) {
        if let Some(spill) = self.spill.get() {
            spill.used(key, uses);
        }
    }
}
