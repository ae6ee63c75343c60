use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use tiercache_core::tier::{
    Cause, Counting, Dead, Hold, Listing, Look, Permit, Profile, Put, Removal, Resident, Resting, Spill,
    Swept, Tier, Usage,
};
use tiercache_core::{Decoded, Entry, Error, Generation, Key, KeyRef, Result, Timestamp};

use crate::counters::Counters;
use crate::engine::{Engine, Stripes};
use crate::outlet::Outlet;
use crate::slot::Slot;
use crate::{Policy, RamConfig};

/// Entries swept before the task lets others run.
const SWEEP_BATCH: usize = 256;

/// A level in this process's memory.
///
/// It does not remember removals, and knows nothing of invalidations but what `sweep` and `revalidate` tell it.
#[derive(Debug)]
pub struct RamTier {
    pub(crate) engine: Engine,
    pub(crate) counters: Counters,
    outlet: Arc<Outlet>,
    policy: Policy,
    capacity: AtomicU64,
    closed: AtomicBool,
    /// Order the `put`s and `remove`s of one key; [`Resident`]'s methods are ordered by their caller.
    puts: Stripes,
}

impl RamTier {
    /// An empty tier.
    pub fn new(config: RamConfig) -> Self {
        let RamConfig { max_size, policy } = config;
        let outlet = Arc::new(Outlet::default());
        Self {
            engine: Engine::new(policy, max_size, outlet.clone()),
            counters: Counters::default(),
            outlet,
            policy,
            capacity: AtomicU64::new(max_size),
            closed: AtomicBool::new(false),
            puts: Stripes::new(),
        }
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    pub(crate) fn open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }
}

#[async_trait]
impl Tier for RamTier {
    fn name(&self) -> &'static str {
        "ram"
    }

    fn profile(&self) -> Profile {
        Profile {
            persistent: false,
            shared: false,
            max_entry_bytes: Some(self.engine.entry_limit()),
            last_generation: Generation::ZERO,
        }
    }

    fn attach(&self, spill: Arc<dyn Spill>) {
        self.outlet.attach(spill);
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        self.open()?;
        Ok(self.engine.peek(key.as_ref(), |slot| Some(slot.entry())))
    }

    async fn put(&self, key: &Key, entry: &Entry, hold: Hold, permit: &dyn Permit) -> Result<Put> {
        self.open()?;
        let _ordered = self.puts.lock(key.as_ref());
        if !permit.holds() {
            return Ok(Put::Superseded);
        }
        Ok(self.insert(key.clone(), entry.clone(), hold))
    }

    async fn remove(&self, key: &Key, below: Generation) -> Result<Removal> {
        self.open()?;
        let _ordered = self.puts.lock(key.as_ref());
        self.discard(key.as_ref(), below);
        Ok(Removal::DONE)
    }

    async fn clear(&self, namespace: Option<&str>, below: Generation) -> Result<()> {
        self.open()?;
        // Without a pause: a call that is dropped half-way must not leave half of it.
        for slot in self.engine.each() {
            if namespace.is_none_or(|namespace| namespace == slot.key.namespace()) {
                self.discard(slot.key.as_ref(), below);
            }
        }
        self.counters.clear(namespace);
        Ok(())
    }

    async fn usage(&self) -> Result<Usage> {
        self.open()?;
        Ok(Usage {
            entries: Some(self.engine.entries()),
            bytes: Some(self.engine.bytes() + self.counters.bytes()),
            capacity: Some(self.capacity()),
            damaged: 0,
            evicted: self.outlet.evicted(),
        })
    }

    async fn sweep(&self, now: Timestamp, dead: &dyn Dead) -> Result<Swept> {
        self.open()?;
        self.engine.maintain();
        self.counters.sweep(now);
        let mut swept = Swept { complete: true, ..Swept::default() };
        for (looked_at, slot) in self.engine.each().enumerate() {
            let (key, entry) = (slot.key.as_ref(), slot.entry());
            if !entry.is_live(now) || dead.is_dead(key, &entry) {
                swept.dropped += u64::from(self.take(key, entry.generation).is_some());
            } else if slot.until() <= now {
                swept.spilled += u64::from(self.hand_over(key, |slot| slot.until() <= now, Cause::StayOver));
            } else if slot.uses() > 0 {
                self.outlet.used(key, self.engine.peek(key, |slot| Some(slot.take_uses())).unwrap_or(0));
            }
            if (looked_at + 1) % SWEEP_BATCH == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(swept)
    }

    async fn sync(&self) -> Result<()> {
        self.open()
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        for slot in self.engine.each() {
            self.engine.remove_if(slot.key.as_ref(), |_| true);
        }
        self.engine.maintain();
        self.counters.clear(None);
        Ok(())
    }

    fn listing(&self) -> Option<&dyn Listing> {
        Some(self)
    }

    fn counting(&self) -> Option<&dyn Counting> {
        Some(self)
    }

    fn resident(&self) -> Option<&dyn Resident> {
        Some(self)
    }
}

impl Resident for RamTier {
    #[inline]
    fn hit(&self, key: KeyRef<'_>, look: Look) -> Option<Bytes> {
        let mut answer = None;
        self.hit_into(&key, &look, &mut answer);
        answer
    }

    #[inline]
    fn hit_into(&self, key: &KeyRef<'_>, look: &Look, answer: &mut Option<Bytes>) {
        self.engine.hit(key, |slot| {
            *answer = slot.hit(look);
            answer.is_some()
        });
    }

    fn hit_decoded(&self, key: KeyRef<'_>, look: Look) -> Option<Decoded> {
        let mut answer = None;
        self.engine.hit(&key, |slot| {
            answer = slot.hit_decoded(&look);
            answer.is_some()
        });
        answer
    }

    fn peek(&self, key: KeyRef<'_>) -> Option<Resting> {
        self.engine.peek(key, |slot| Some(slot.resting()))
    }

    fn insert(&self, key: Key, entry: Entry, hold: Hold) -> Put {
        if self.closed.load(Ordering::Acquire) {
            return Put::Full;
        }
        let weight = Slot::weigh(&key, &entry, self.policy.overhead());
        if weight > self.engine.entry_limit() {
            return Put::TooLarge;
        }
        // The limit fits into 32 bits.
        let slot = Slot::new(key, entry, hold, weight as u32);
        let standing = self.engine.peek(slot.key.as_ref(), |standing| Some(standing.generation()));
        if standing == Some(slot.generation()) {
            return Put::Unchanged;
        }
        if standing > Some(slot.generation()) {
            return Put::Superseded;
        }
        self.engine.insert(slot, standing.is_some());
        Put::Stored
    }

    fn insert_newest(&self, key: &Key, entry: Entry, hold: Hold) -> std::result::Result<(), Entry> {
        let weight = Slot::weigh(key, &entry, self.policy.overhead());
        if weight > self.engine.entry_limit() || self.closed.load(Ordering::Acquire) {
            return Err(entry);
        }
        // What it replaces, if anything, is older: nobody else inserts under this key.
        self.engine.insert(Slot::new(key.clone(), entry, hold, weight as u32), true);
        Ok(())
    }

    fn revalidate(&self, key: KeyRef<'_>, generation: Generation, valid_from: Generation) {
        self.at_generation(key, generation, |slot| slot.revalidate(valid_from));
    }

    fn attach_decoded(&self, key: KeyRef<'_>, generation: Generation, decoded: Decoded) {
        self.at_generation(key, generation, |slot| slot.attach_decoded(decoded));
    }

    fn take(&self, key: KeyRef<'_>, generation: Generation) -> Option<Resting> {
        self.engine.remove_if(key, |slot| slot.generation() == generation)
    }

    fn discard(&self, key: KeyRef<'_>, below: Generation) -> Option<Resting> {
        self.engine.remove_if(key, |slot| slot.generation() < below)
    }

    fn drain(&self) {
        for slot in self.engine.each() {
            self.hand_over(slot.key.as_ref(), |_| true, Cause::Evicted);
        }
    }

    fn resize(&self, capacity: u64) {
        self.capacity.store(capacity, Ordering::Relaxed);
        self.engine.resize(self.counters.leave(capacity));
    }
}

impl RamTier {
    fn at_generation(&self, key: KeyRef<'_>, generation: Generation, visit: impl FnOnce(&Slot)) {
        self.engine.peek(key, |slot| (slot.generation() == generation).then(|| visit(slot)));
    }

    /// Removes the entry if `condition`, spilling it while it still stands.
    fn hand_over(&self, key: KeyRef<'_>, condition: impl FnOnce(&Slot) -> bool, cause: Cause) -> bool {
        let spilled = |slot: &Slot| {
            let leaves = condition(slot);
            if leaves {
                self.outlet.hand_over(slot, cause);
            }
            leaves
        };
        self.engine.remove_if(key, spilled).is_some()
    }
}
