//! Listing what the tables hold, which keep no order: a page is a walk over all of it that remembers the lowest names.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

use async_trait::async_trait;
use tiercache_core::tier::{Listed, ListedEntry, Listing};
use tiercache_core::{Key, Result};

use crate::RamTier;
use crate::engine::Engine;
use crate::slot::Slot;

/// Entries looked at before the task lets others run.
const BATCH: usize = 256;

/// By the encoding of the keys, which is where a page ends, too. A page takes a walk over the whole level and memory for
/// its own entries alone, so that large pages are cheaper: hits and sets pay for none of it.
#[async_trait]
impl Listing for RamTier {
    async fn list(&self, namespace: Option<&str>, after: Option<Vec<u8>>, limit: usize) -> Result<Listed> {
        self.open()?;
        let wanted = |key: &Key| {
            namespace.is_none_or(|namespace| namespace == key.namespace())
                && after.as_deref().is_none_or(|after| key.encoded() > after)
        };
        let (entries, next) = match &self.engine {
            Engine::Moka(engine) => {
                let page = lowest(engine.slots(), wanted, limit).await;
                (page.slots.iter().map(|slot| listed(slot)).collect(), page.next)
            }
            // A walk's copies lack the values: what stands there now tells their sizes. Here that is not a use.
            engine => {
                let page = lowest(engine.each(), wanted, limit).await;
                let standing = |slot: &Slot| engine.peek(slot.key.as_ref(), |slot| Some(listed(slot)));
                (page.slots.iter().filter_map(standing).collect(), page.next)
            }
        };
        // What the walk did not meet since it was about to go has been handed over when the page is there.
        self.engine.maintain();
        Ok(Listed { entries, next })
    }
}

fn listed(slot: &Slot) -> ListedEntry {
    let entry = slot.clone().entry();
    ListedEntry { key: slot.key.clone(), entry, size: slot.value_len() }
}

struct Page<S> {
    /// In ascending order, each key once.
    slots: Vec<S>,
    next: Option<Vec<u8>>,
}

/// The first `limit` of the slots whose key is wanted.
async fn lowest<S: Borrow<Slot>>(
    slots: impl Iterator<Item = S>,
    wanted: impl Fn(&Key) -> bool,
    limit: usize,
) -> Page<S> {
    let limit = limit.max(1);
    let mut lowest: BinaryHeap<ByName<S>> = BinaryHeap::new();
    let mut is_last = true;
    for (looked_at, slot) in slots.enumerate() {
        if (looked_at + 1) % BATCH == 0 {
            tokio::task::yield_now().await;
        }
        if !wanted(&slot.borrow().key) {
            continue;
        }
        let slot = ByName(slot);
        if lowest.len() < limit {
            lowest.push(slot);
            continue;
        }
        is_last = false;
        if let Some(mut highest) = lowest.peek_mut()
            && slot < *highest
        {
            *highest = slot;
        }
    }
    let mut slots: Vec<S> = lowest.into_sorted_vec().into_iter().map(|ByName(slot)| slot).collect();
    let next = slots.last().filter(|_| !is_last).map(|last| name(last).to_vec());
    // A table that is replaced meanwhile shows what goes over twice.
    slots.dedup_by(|one, other| name(one) == name(other));
    Page { slots, next }
}

fn name<S: Borrow<Slot>>(slot: &S) -> &[u8] {
    slot.borrow().key.encoded()
}

struct ByName<S>(S);

impl<S: Borrow<Slot>> Ord for ByName<S> {
    fn cmp(&self, other: &Self) -> Ordering {
        name(&self.0).cmp(name(&other.0))
    }
}

impl<S: Borrow<Slot>> PartialOrd for ByName<S> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<S: Borrow<Slot>> PartialEq for ByName<S> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<S: Borrow<Slot>> Eq for ByName<S> {}
