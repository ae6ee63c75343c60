//! Transactions: several keys of one level, all or nothing.
//!
//! 1. In the order of the keys, each is registered and its turn is taken: sets and removals of it by this process wait
//!    until the end, reads do not. What is made of what was read (a touch, a write on a condition, what a load keeps)
//!    does not even begin, since it would come after the commit and take the place of what it never saw.
//! 2. What RAM has of each is looked at: it may be newer than what the level has.
//! 3. The level begins a transaction. It takes a generation above everything the level has met at the keys; what another
//!    process has replaced since leaves RAM. It runs the caller's work, which reads the newer of the two and writes to the
//!    level.
//! 4. The work is done: floors of the keys that were written rise, what RAM and the way down have of them goes. From
//!    here on a get of them is a miss; a moment later the level commits, and it is the new value.
//! 5. Nobody joins a read or a load any more that began before the commit, and what began beside it is not kept; the
//!    turns end. Nothing of this happened if the work failed: no floor rose, and RAM has what it had.
//!
//! The level must be the only one outside RAM, so that its commit decides for all.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedMutexGuard;

use super::counters::Count;
use super::set::{Draft, Ttl, checked};
use super::slot::Slot;
use super::{CacheManager, InFlight, Shared};
use crate::bugs::seeded;
use crate::tier::{Put, Removal, Scope};
use crate::tracking::Record;
use crate::transaction::{Transacting, Transactions};
use crate::{AsKey, Entry, Error, Generation, Key, KeyRef, Result, Timestamp};

/// The most keys of one transaction.
const MOST_KEYS: usize = 10_000;
/// The longest a transaction may go on once it has begun.
const LONGEST: Duration = Duration::from_secs(3_600);

/// A transaction under way, in the hands of its caller's work.
pub struct Transaction<'a> {
    level: &'a mut dyn Transacting,
    about: &'a About,
    /// What was written, in order; `None` for what was removed.
    written: &'a mut Vec<Written>,
}

/// A key, its mutation, and the entry that was put.
type Written = (Key, Generation, Option<Entry>);

/// What a transaction knows from the beginning.
struct About {
    shared: Arc<Shared>,
    namespace: Arc<str>,
    /// Each key with what RAM has of it, if that counts.
    keys: BTreeMap<Key, Option<Entry>>,
    now: Timestamp,
}

/// A key that a transaction decides about, until it is dropped.
struct Deciding {
    flight: InFlight<Arc<Shared>>,
    _turn: OwnedMutexGuard<()>,
}

impl Drop for Deciding {
    fn drop(&mut self) {
        let InFlight { shared, hash } = &self.flight;
        shared.stripes.lock(*hash).end_transaction(*hash);
    }
}

/// A value with what is to be kept with it.
#[derive(Debug)]
pub struct Value(Result<Draft>);

impl CacheManager {
    /// Runs `work` on these keys as one step: all of what it does happens, or, when it fails, nothing.
    ///
    /// ```ignore
    /// let moved = cache.transaction(&["from", "to"], |tx| {
    ///     let value = tx.get("from")?.ok_or(Error::InvalidKey("there is nothing to move"))?;
    ///     tx.delete("from")?;
    ///     tx.set("to", value)
    /// }).await;
    /// ```
    ///
    /// `work` reads what this process has last set and what the level has, and writes to the level; `get` of this process
    /// finds all of it when this returns, and nothing before it is committed: a get of a key that is being written
    /// may be a miss for that moment. Other processes find it at the level, where they do not have the keys in their own
    /// RAM. It runs on the thread that writes to the level, so it should be short and must not wait for the cache.
    ///
    /// # Errors
    /// - What `work` said; [`Error::Panicked`] when it panicked: nothing happened.
    /// - [`Error::Unsupported`] when no level has transactions (`sqlite` does), or another level stands outside RAM.
    /// - [`Error::InvalidOption`] when there are no keys, or more than 10,000.
    /// - [`Error::Unavailable`] and [`Error::TimedOut`] when the level did not do it, or only a part yet; what was
    ///   written is then removed, since nobody knows.
    ///
    /// Dropping the future after it was first polled does not stop it.
    pub async fn transaction<K: AsKey, T: Send + 'static>(
        &self,
        keys: &[K],
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let keys = keys.iter().map(|key| Ok(self.key(key)?.to_key())).collect::<Result<Vec<_>>>()?;
        let (shared, namespace) = (self.shared.clone(), self.namespace.clone());
        let transaction = async move { shared.transact(namespace, keys, work).await };
        self.shared.owned(transaction, "a transaction").await?
    }
}

impl Transaction<'_> {
    /// The value of `key` as this transaction has it.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a key that the transaction was not begun with, [`Error::Unavailable`].
    pub fn get(&mut self, key: impl AsKey) -> Result<Option<Bytes>> {
        let key = self.known(&key)?;
        Ok(self.entry(&key)?.map(|entry| entry.value))
    }

    /// Keeps a value under `key`: bytes, text, or a [`Value`] with a time to live and tags.
    ///
    /// # Errors
    /// As for [`Transaction::get`]; [`Error::TooLarge`] and [`Error::Full`] when the level does not take it: then the
    /// key has no value in this transaction.
    pub fn set(&mut self, key: impl AsKey, value: impl Into<Value>) -> Result<()> {
        let (key, draft) = (self.known(&key)?, value.into().0?);
        let shared = &self.about.shared;
        let (slot, _) = shared.transacting()?;
        let mut entry = draft.entry(self.about.now);
        entry.generation = shared.flow.next_generation();
        self.written.push((key.clone(), entry.generation, None));
        if !self.level.remove(&key, entry.generation)?.is_done() {
            return Err(overtaken(slot));
        }
        let hold = shared.flow.hold(slot.level, &entry, true, self.about.now);
        match self.level.put(&key, &entry, hold)? {
            Put::Stored | Put::Unchanged => {}
            Put::TooLarge => {
                let limit = slot.profile.max_entry_bytes.unwrap_or_default();
                return Err(Error::TooLarge { size: entry.value.len() as u64, limit });
            }
            Put::Full => return Err(Error::Full { backend: slot.tier.name(), op: "put" }),
            Put::Superseded => return Err(overtaken(slot)),
        }
        self.written.push((key, entry.generation, Some(entry)));
        Ok(())
    }

    /// Removes `key`; whether there was something.
    ///
    /// # Errors
    /// As for [`Transaction::get`].
    pub fn delete(&mut self, key: impl AsKey) -> Result<bool> {
        let key = self.known(&key)?;
        let found = self.entry(&key)?.is_some();
        let shared = &self.about.shared;
        let generation = shared.flow.next_generation();
        self.written.push((key.clone(), generation, None));
        match self.level.remove(&key, generation)? {
            Removal::Done { .. } => Ok(found),
            Removal::Behind(_) | Removal::Fenced(_) => Err(overtaken(shared.transacting()?.0)),
        }
    }

    /// Runs `part`; when it fails, what it did is undone, and the transaction can go on as if it had not begun.
    ///
    /// # Errors
    /// What `part` said.
    pub fn nested<T>(&mut self, part: impl FnOnce(&mut Transaction<'_>) -> Result<T>) -> Result<T> {
        let (about, before) = (self.about, self.written.len());
        let written = &mut *self.written;
        let (mut part, mut done) = (Some(part), None);
        let result = self.level.nested(&mut |level| {
            if let Some(part) = part.take() {
                done = Some(part(&mut Transaction { level, about, written })?);
            }
            Ok(())
        });
        if result.is_err() {
            self.written.truncate(before);
        }
        result.and_then(|()| done.ok_or_else(|| Error::unavailable("transaction", "nest", "it was not run")))
    }

    fn known(&self, key: &(impl AsKey + ?Sized)) -> Result<Key> {
        let key = KeyRef::new(&self.about.namespace, key.key_bytes())?.to_key();
        if self.about.keys.contains_key(&key) {
            return Ok(key);
        }
        let reason = format!("{key:?} is not one of those the transaction was begun with");
        Err(Error::InvalidOption { option: "key", reason })
    }

    /// What is alive of a key: what was written here, else the newer of what RAM has and the level.
    fn entry(&mut self, key: &Key) -> Result<Option<Entry>> {
        let About { shared, keys, now, .. } = self.about;
        let below = self.level.get(key)?.filter(|entry| shared.flow.is_alive(key.as_ref(), entry, *now));
        if self.written.iter().any(|(written, ..)| written == key) {
            return Ok(below);
        }
        let above = keys.get(key).cloned().flatten();
        // What is known not to exist hides what is below it, and is no value.
        Ok(above.or(below).filter(|entry| !entry.is_nothing()))
    }
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("written", &self.written.len()).finish_non_exhaustive()
    }
}

impl Value {
    /// The value with the level's defaults.
    pub fn new(value: impl Into<Bytes>) -> Self {
        Self(Ok(Draft::new(value.into())))
    }

    /// The time it lives, from the beginning of the transaction.
    #[must_use]
    pub fn ttl(self, ttl: Duration) -> Self {
        Self(self.0.and_then(|draft| Ok(Draft { ttl: Ttl::For(checked(ttl, "ttl")?), ..draft })))
    }

    /// It lives until it is removed or there is no room.
    #[must_use]
    pub fn never(self) -> Self {
        Self(self.0.map(|draft| Draft { ttl: Ttl::Never, ..draft }))
    }

    /// Adds a tag.
    #[must_use]
    pub fn tag(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        Self(self.0.and_then(|mut draft| {
            draft.add_tag(name.into(), value.into())?;
            Ok(draft)
        }))
    }
}

impl<V: Into<Bytes>> From<V> for Value {
    fn from(value: V) -> Self {
        Self::new(value)
    }
}

impl Shared {
    async fn transact<T: Send + 'static>(
        self: Arc<Self>,
        namespace: Arc<str>,
        mut keys: Vec<Key>,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.check_open()?;
        let (slot, level) = self.transacting()?;
        keys.sort_unstable();
        keys.dedup();
        check_count(&keys)?;
        let turns = self.take_turns(&keys).await;
        self.check_lags(slot, &keys)?;
        let ours: Vec<_> = keys.iter().map(|key| (self.newest_in_ram(key), key.clone())).collect();
        let outcome: Arc<Mutex<(Option<T>, Vec<Written>)>> = Arc::new(Mutex::new((None, Vec::new())));
        let begun = Arc::new(AtomicBool::new(false));
        let job = {
            let (shared, outcome, begun) = (self.clone(), outcome.clone(), begun.clone());
            move |level: &mut dyn Transacting| {
                if begun.swap(true, Ordering::AcqRel) {
                    return Err(Error::unavailable("transaction", "begin", "nobody waits for it any more"));
                }
                let (about, mut written) = (About::of(shared, namespace, ours, level)?, Vec::new());
                let done = work(&mut Transaction { level, about: &about, written: &mut written })?;
                // The last moment before the level commits.
                about.shared.yield_to(&written);
                *outcome.lock().unwrap_or_else(PoisonError::into_inner) = (Some(done), written);
                Ok(())
            }
        };
        let limit = slot.limits().write_timeout;
        let whole = async {
            let mut running = std::pin::pin!(level.transact(&keys, Box::new(job)));
            match tokio::time::timeout(limit, &mut running).await {
                Ok(result) => result,
                // What has begun is waited for, since the turns are; what has not must not begin any more.
                Err(_) if begun.swap(true, Ordering::AcqRel) => running.await,
                Err(_) => Err(Error::TimedOut { backend: slot.tier.name(), op: "transaction", after: limit }),
            }
        };
        let result = slot.call("transaction", LONGEST, whole).await;
        let (done, written) = std::mem::take(&mut *outcome.lock().unwrap_or_else(PoisonError::into_inner));
        match (result, done) {
            (Ok(()), Some(done)) => {
                self.tell(slot, written);
                drop(turns);
                Ok(done)
            }
            (result, _) => {
                // What had to go is gone, and the level may have committed or not.
                for (key, ..) in written {
                    if let Err((_flight, joined)) = self.remove_at_once(&key) {
                        self.remove_in_turn(&key, &joined).await;
                    }
                }
                drop(turns);
                Err(result
                    .err()
                    .unwrap_or_else(|| Error::unavailable(slot.tier.name(), "transaction", "it was not run")))
            }
        }
    }

    /// The level with transactions, which must decide for all that is not in RAM.
    fn transacting(&self) -> Result<(&Slot, &dyn Transactions)> {
        let missing = "run transactions: none of its levels does";
        let beside = "run transactions: another level stands outside RAM beside the one that could";
        let refused = |op| Error::Unsupported { backend: "this cache", op };
        let with = |slot| Some((slot, Slot::transactions(slot)?));
        let found = self.lower_slots().find_map(with).ok_or_else(|| refused(missing))?;
        if self.lower_slots().count() > 1 || found.0.index().is_some() {
            return Err(refused(beside));
        }
        Ok(found)
    }

    /// Registers every key and waits for what removes it now; sets and removals wait from here on. In one order, so that
    /// no two transactions wait for each other.
    async fn take_turns(self: &Arc<Self>, keys: &[Key]) -> Vec<Deciding> {
        let mut hashes: Vec<(u64, &Key)> = keys.iter().map(|key| (key.hash64(), key)).collect();
        hashes.sort_unstable_by_key(|&(hash, _)| hash);
        // Keys that share a hash share their turn.
        hashes.dedup_by_key(|&mut (hash, _)| hash);
        let mut turns = Vec::with_capacity(hashes.len());
        for (hash, key) in hashes {
            let turn = {
                let mut stripe = self.stripes.lock(hash);
                stripe.enter(hash, self.flow.generation());
                stripe.turn(hash)
            };
            let flight = InFlight { shared: self.clone(), hash };
            let turn = turn.lock_owned().await;
            loop {
                let unsettled = self.stripes.lock(hash).begin_transaction(hash);
                let Some(joined) = unsettled else { break };
                self.remove_in_turn(key, &joined).await;
            }
            turns.push(Deciding { _turn: turn, flight });
        }
        turns
    }

    /// Nothing is decided on what an earlier removal has not reached.
    fn check_lags(&self, slot: &Slot, keys: &[Key]) -> Result<()> {
        let covered = |key: &Key| {
            self.stripes.lock(key.hash64()).lags(key.hash64(), slot.level)
                || slot.lagging().iter().any(|scope| match scope {
                    Scope::All => true,
                    Scope::Namespace(namespace) | Scope::Tag { namespace, .. } => {
                        namespace == key.namespace()
                    }
                })
        };
        if keys.iter().any(covered) {
            let why = "an earlier removal has not reached the level yet";
            return Err(Error::unavailable(slot.tier.name(), "transaction", why));
        }
        Ok(())
    }

    /// What levels in RAM and the way down have of a key.
    fn newest_in_ram(&self, key: &Key) -> Option<Entry> {
        let (flow, now) = (&self.flow, self.flow.now());
        let _stripe = self.stripes.lock(key.hash64());
        let resting =
            self.slots().filter_map(|slot| slot.resident()?.peek(key.as_ref())).map(|resting| resting.entry);
        let entries = resting.chain(flow.pending.get(key.as_ref()).map(|item| item.entry));
        entries.filter(|entry| flow.is_alive(key.as_ref(), entry, now)).max_by_key(|entry| entry.generation)
    }

    /// Step 4: nothing of before is answered from here on.
    fn yield_to(&self, written: &[Written]) {
        if seeded("transaction-leaves-ram") {
            return;
        }
        for (key, generation, _) in written {
            let mut stripe = self.stripes.lock(key.hash64());
            stripe.mutate(key.hash64(), *generation);
            self.flow.pending.discard(key.as_ref(), *generation);
            self.forget_in_ram(key, *generation);
        }
    }

    /// Another process may have set or removed the key, or its tag: whoever has seen that in a transaction must not see less later.
    fn yield_to_others(&self, key: &Key, newest: Generation) {
        let mut stripe = self.stripes.lock(key.hash64());
        stripe.yield_to(key.hash64(), newest);
        self.forget_in_ram(key, newest);
    }

    /// Counts, and tells tracking, what a transaction did: the last word on each key.
    fn tell(&self, slot: &Slot, written: Vec<Written>) {
        let now = self.flow.now();
        let last: BTreeMap<Key, (Generation, Option<Entry>)> =
            written.into_iter().map(|(key, generation, entry)| (key, (generation, entry))).collect();
        for (key, (generation, entry)) in last {
            match entry {
                Some(entry) => {
                    self.flow.counters.count(Count::Set);
                    self.flow.recorder.stored(now, || Record::of(key, &entry, slot.level));
                }
                None => {
                    self.flow.counters.count(Count::Delete);
                    self.flow.recorder.removed(now, key, generation);
                }
            }
        }
    }
}

impl About {
    fn of(
        shared: Arc<Shared>,
        namespace: Arc<str>,
        ours: Vec<(Option<Entry>, Key)>,
        level: &mut dyn Transacting,
    ) -> Result<Self> {
        let mut keys = BTreeMap::new();
        for (above, key) in ours {
            let standing = level.standing(&key)?;
            // Whoever has written there before has counted to no more than this process goes on from.
            shared.flow.join("transaction", standing.above.max(standing.newest))?;
            let passed = match &above {
                Some(above) if above.generation >= standing.newest => {
                    level.kills(&key, above)?.then_some(standing.above)
                }
                _ => Some(standing.newest),
            };
            if let Some(generation) = passed {
                shared.yield_to_others(&key, generation);
            }
            keys.insert(key, above.filter(|_| passed.is_none() || seeded("transaction-trusts-ram")));
        }
        let now = shared.flow.now();
        Ok(Self { shared, namespace, keys, now })
    }
}

fn check_count(keys: &[Key]) -> Result<()> {
    let refused = |reason: String| Err(Error::InvalidOption { option: "keys", reason });
    match keys.len() {
        0 => refused("a transaction needs at least one key".into()),
        count if count > MOST_KEYS => {
            refused(format!("a transaction has at most {MOST_KEYS} keys, not {count}"))
        }
        _ => Ok(()),
    }
}

fn overtaken(slot: &Slot) -> Error {
    Error::unavailable(slot.tier.name(), "transaction", "another process is ahead")
}
