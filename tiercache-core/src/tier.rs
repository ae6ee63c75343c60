//! What a store must do to stand at a level.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use crate::entry::Decoded;
pub use crate::journal::{Journal, Reach, Waiting};
pub use crate::side_by_side::{Call, side_by_side};
use crate::transaction::Transactions;
use crate::{Entry, Generation, Key, KeyRef, Leasing, Result, Stay, Timestamp};

/// A store that keeps entries. The manager decides what moves where; a tier only keeps and forgets.
///
/// # Contract
/// Every line is a case of the suite in `testing::tier`.
/// - A miss is `Ok(None)`; removing what is absent succeeds.
/// - `put` is conditional: it replaces only a lower generation of the same key, whole or not at all. Where the
///   tier remembers a removal, the removal counts as a generation.
/// - An answer is exactly what one `put` stored under that namespace and key, or absent. Bytes that do not check
///   out are a miss, counted in [`Usage::damaged`], logged and removed; never an error and never a panic.
/// - A tier may forget anything at any time. It is never trusted to expire: the manager looks at every deadline.
/// - A tier that gives up live entries for room hands each to its [`Spill`] *before* it stops answering for it.
/// - Any future may be dropped at any point: the operation happens whole or not at all.
/// - No blocking work runs on the runtime's threads.
/// - A batch is its items, each called on its own, in any order: one answer for each in the order of the items, the
///   same contract for each, and one that fails fails no other. A store that can makes it one round trip; the batch may
///   be larger than what the store takes at once, name a key twice, or be empty.
#[async_trait]
pub trait Tier: fmt::Debug + Send + Sync + 'static {
    /// For logs, metrics and errors, such as `ram` or `local`.
    fn name(&self) -> &'static str;

    /// What the manager must know before it uses the tier.
    fn profile(&self) -> Profile;

    /// Called once, before use, by the manager the tier stands under.
    fn attach(&self, spill: Arc<dyn Spill>);

    /// The entry of `key`, dead or alive.
    async fn get(&self, key: &Key) -> Result<Option<Entry>>;

    /// Keeps `entry` if it is newer than what is kept and `permit` still holds where it is committed.
    async fn put(&self, key: &Key, entry: &Entry, hold: Hold, permit: &dyn Permit) -> Result<Put>;

    /// Forgets `key` as far as its generation is below `below`, durably where the tier is durable. A shared tier
    /// leaves a mark for a while, so that a write with a lower generation that arrives late is refused.
    async fn remove(&self, key: &Key, below: Generation) -> Result<Removal>;

    /// [`Tier::get`] of many keys. As it stands here, the calls are made side by side, some at a time.
    async fn get_many(&self, keys: &[Key]) -> Vec<Result<Option<Entry>>> {
        side_by_side(AT_ONCE, keys.iter().map(|key| self.get(key)).collect()).await
    }

    /// [`Tier::put`] of many entries. Each permit is asked where its own entry is committed, or right before the
    /// request that has it is sent. As it stands here, the calls are made side by side, some at a time.
    async fn put_many(&self, items: &[PutItem<'_>]) -> Vec<Result<Put>> {
        let calls = items.iter().map(|item| self.put(item.key, item.entry, item.hold, item.permit));
        side_by_side(AT_ONCE, calls.collect()).await
    }

    /// [`Tier::remove`] of many keys, each as far as it is below its generation. As it stands here, the calls are
    /// made side by side, some at a time.
    async fn remove_many(&self, items: &[(Key, Generation)]) -> Vec<Result<Removal>> {
        side_by_side(AT_ONCE, items.iter().map(|(key, below)| self.remove(key, *below)).collect()).await
    }

    /// Forgets every entry (of `namespace`, or of all) whose generation is below `below`, durably likewise.
    async fn clear(&self, namespace: Option<&str>, below: Generation) -> Result<()>;

    /// What the tier holds. Cheap: kept, not computed.
    async fn usage(&self) -> Result<Usage>;

    /// Drops what is dead at `now`, hands over what has stayed its time, and tells the [`Spill`] of uses since the
    /// last sweep. The manager calls it every so often; `dead` tells of invalidations the tier cannot see. A tier that has nothing to sweep does nothing.
    async fn sweep(&self, now: Timestamp, dead: &dyn Dead) -> Result<Swept>;

    /// Makes everything accepted so far durable, as far as the tier is.
    async fn sync(&self) -> Result<()>;

    /// The last call: flushes and releases. Later calls fail with [`Closed`](crate::Error::Closed).
    async fn close(&self) -> Result<()>;

    /// The tier as one that answers without waiting, if it is in this process's memory.
    fn resident(&self) -> Option<&dyn Resident> {
        None
    }

    /// The tier as one that knows without I/O what it holds.
    fn index(&self) -> Option<&dyn Index> {
        None
    }

    /// The tier as one that can be listed.
    fn listing(&self) -> Option<&dyn Listing> {
        None
    }

    /// The tier as one that keeps invalidations of whole tags and namespaces across restarts.
    fn fences(&self) -> Option<&dyn FenceLog> {
        None
    }

    /// The tier as one that remembers, on this machine, removals that other levels have yet to see.
    fn journal(&self) -> Option<&dyn Journal> {
        None
    }

    /// The tier as one that may have to be opened later.
    fn late(&self) -> Option<&dyn Late> {
        None
    }

    /// The tier as one that counts.
    fn counting(&self) -> Option<&dyn Counting> {
        None
    }

    /// The tier as one that gives out leases.
    fn leasing(&self) -> Option<&dyn Leasing> {
        None
    }

    /// The tier as one that changes several keys as one step.
    fn transactions(&self) -> Option<&dyn Transactions> {
        None
    }

    /// The tier as one, not in this process's memory, whose limit can be changed while it is used.
    fn sizing(&self) -> Option<&dyn Sizing> {
        None
    }
}

/// Calls of a batch under way at a time, where a tier makes them one by one.
const AT_ONCE: usize = 16;

/// One of many entries to keep: what [`Tier::put`] takes.
#[derive(Clone, Copy)]
pub struct PutItem<'a> {
    /// Its key.
    pub key: &'a Key,
    /// What is to be kept.
    pub entry: &'a Entry,
    /// For how long.
    pub hold: Hold,
    /// Whether it still may be.
    pub permit: &'a dyn Permit,
}

impl fmt::Debug for PutItem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PutItem")
            .field("key", self.key)
            .field("entry", self.entry)
            .field("hold", &self.hold)
            .finish_non_exhaustive()
    }
}

/// What the manager must know of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Whether it outlives the process.
    pub persistent: bool,
    /// Whether other processes see it too.
    pub shared: bool,
    /// The most bytes an entry may have, key, value and overhead together; `None` when there is no limit.
    pub max_entry_bytes: Option<u64>,
    /// The highest generation it knows of, for a tier that outlives the process.
    pub last_generation: Generation,
}

/// How long a tier should keep an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The time of the call.
    pub now: Timestamp,
    /// How long it may remain without a use.
    pub stay: Stay,
}

impl Hold {
    /// When the entry leaves if nobody uses it: `min(deadline, now + stay)`.
    pub fn until(&self, entry: &Entry) -> Timestamp {
        entry.deadline.min(self.now.after_millis(self.stay.as_millis()))
    }
}

/// What became of a `put`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The tier has it.
    Stored,
    /// The tier already had this very generation; nothing was written.
    Unchanged,
    /// The tier has, or had and removed, a newer one, or the permit no longer held.
    Superseded,
    /// It has more bytes than the tier takes.
    TooLarge,
    /// There is no room and none can be made now.
    Full,
}

/// What became of a `remove`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Nothing of the key from before the mutation is left.
    Done {
        /// At a shared tier, the generation of what stood there, entry or mark of a removal: it tells a mutation that
        /// was made of what was read before whether another process came between. Zero when nothing stood there,
        /// and at a tier that is not shared.
        over: Generation,
    },
    /// A shared tier has the key, or the mark of its removal, at this generation, which is not below the one that
    /// was asked for: another process is ahead. The mutation must be made anew with a higher one.
    Behind(Generation),
    /// An invalidation of many stands at a shared tier above the generation that was asked for, and what is written with
    /// that could be dead at once. It is no sign that another process has changed the key; the mutation must be made
    /// anew with a higher one all the same.
    Fenced(Generation),
}

impl Removal {
    /// The answer of a tier that is not shared.
    pub const DONE: Self = Self::Done { over: Generation::ZERO };

    /// Whether nothing from before the mutation is left.
    pub const fn is_done(self) -> bool {
        matches!(self, Self::Done { .. })
    }
}

/// Whether a write that was decided earlier may still be made. Asked by the tier where it commits, under the lock
/// that orders its writes: a mutation that began meanwhile has withdrawn the permit before it looks for copies.
pub trait Permit: Send + Sync {
    /// Whether the write may be made now.
    fn holds(&self) -> bool;
}

/// The permit of a write that nothing can supersede.
#[derive(Clone, Copy, Debug)]
pub struct Always;

impl Permit for Always {
    fn holds(&self) -> bool {
        true
    }
}

/// Tells whether an invalidation of its tags or namespace killed an entry.
pub trait Dead: Send + Sync {
    /// Whether the entry was invalidated after it was made.
    fn is_dead(&self, key: KeyRef<'_>, entry: &Entry) -> bool;
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries dropped because they were dead.
    pub dropped: u64,
    /// Entries handed over because their stay was over.
    pub spilled: u64,
    /// Whether every entry was looked at; a sweep may do a part at a time.
    pub complete: bool,
}

/// What a tier holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Entries; `None` when the store cannot tell.
    pub entries: Option<u64>,
    /// Bytes counted against the limit.
    pub bytes: Option<u64>,
    /// The limit.
    pub capacity: Option<u64>,
    /// Answers that were damaged and became misses.
    pub damaged: u64,
    /// Entries given up for room.
    pub evicted: u64,
}

/// The way down. Called by a tier under its own locks: it never blocks and never calls back into a tier.
pub trait Spill: fmt::Debug + Send + Sync + 'static {
    /// Takes an entry the tier is about to stop answering for.
    fn spill(&self, key: Key, entry: Entry, left: Left);

    /// Notes uses that a tier has counted, as its sweeps collect them.
    fn used(&self, key: KeyRef<'_>, uses: u32);
}

/// How an entry left a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// Why.
    pub cause: Cause,
    /// Uses at that tier that nobody collected yet.
    pub uses: u32,
}

/// Why an entry left a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The tier needed the room.
    Evicted,
    /// It stayed its time.
    StayOver,
}

/// A tier in this process's memory: it answers at once, without a future.
///
/// The manager serialises `insert`, `take` and `discard` of one key; `hit` and evictions run beside them.
pub trait Resident: Tier {
    /// Answers a hit: counts the use and renews the stay. `None` when the entry is absent, dead, past its stay
    /// or older than `look.valid_from`; which of these it was, [`Resident::peek`] tells.
    ///
    /// No lock that a writer holds for long, no allocation, no clock.
    fn hit(&self, key: KeyRef<'_>, look: Look) -> Option<Bytes>;

    /// [`Resident::hit`] for those who cannot wait: the value is put where the caller wants it, not moved there. `answer`
    /// comes empty.
    #[inline]
    fn hit_into(&self, key: &KeyRef<'_>, look: &Look, answer: &mut Option<Bytes>) {
        *answer = self.hit(*key, *look);
    }

    /// Like [`Resident::hit`], for the decoded value. `None` also when nobody decoded it yet.
    fn hit_decoded(&self, key: KeyRef<'_>, look: Look) -> Option<Decoded>;

    /// What stands there, dead or alive; not a use.
    fn peek(&self, key: KeyRef<'_>) -> Option<Resting>;

    /// Keeps `entry` if it is newer than what is kept. What it displaces is spilled, but not an older entry of
    /// the same key.
    fn insert(&self, key: Key, entry: Entry, hold: Hold) -> Put;

    /// Keeps an entry that the caller knows to be newer than whatever is kept of the key, as [`Resident::insert`] does;
    /// hands it back when it does not.
    fn insert_newest(&self, key: &Key, entry: Entry, hold: Hold) -> std::result::Result<(), Entry> {
        match self.insert(key.clone(), entry.clone(), hold) {
            Put::Stored | Put::Unchanged | Put::Superseded => Ok(()),
            Put::TooLarge | Put::Full => Err(entry),
        }
    }

    /// Notes that an entry of that generation outlived every invalidation up to `valid_from`, so that the next
    /// [`Resident::hit`] need not ask.
    fn revalidate(&self, key: KeyRef<'_>, generation: Generation, valid_from: Generation);

    /// Puts a decoded value beside the bytes it was decoded from.
    fn attach_decoded(&self, key: KeyRef<'_>, generation: Generation, decoded: Decoded);

    /// Removes and returns the entry if it has that generation. Not a spill.
    fn take(&self, key: KeyRef<'_>, generation: Generation) -> Option<Resting>;

    /// Removes and returns the entry if its generation is below `below`. Not a spill.
    fn discard(&self, key: KeyRef<'_>, below: Generation) -> Option<Resting>;

    /// Hands every entry to the spill, as at the end of the process.
    fn drain(&self);

    /// Changes the limit in bytes; what no longer fits is spilled.
    fn resize(&self, capacity: u64);
}

/// What a hit is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// The time, exact or coarse.
    pub now: Timestamp,
    /// How far `now` may be behind, in milliseconds: what is due within it is not answered but left to a look
    /// with the exact time.
    pub slack: u64,
    /// The newest invalidation of a tag or namespace; entries older than it are left to the slow path.
    pub valid_from: Generation,
}

/// An entry as it stands at a resident tier.
#[derive(Clone, Debug, PartialEq)]
pub struct Resting {
    /// The entry.
    pub entry: Entry,
    /// When it leaves this tier if nobody uses it.
    pub until: Timestamp,
    /// Uses since they were last collected.
    pub uses: u32,
}

/// A tier that knows without I/O what it holds.
#[async_trait]
pub trait Index: Tier {
    /// The generation held for `key`. `Some` may be another key's with the same hash; `None` is certain: a later
    /// `Some` needs a `put` that was permitted after this call. [`Generation::ZERO`] says that nothing is answered
    /// for the key, but that a restart would find something unless it is removed.
    fn holds(&self, key: KeyRef<'_>) -> Option<Generation>;

    /// [`Tier::get`] as far as it goes without blocking.
    fn try_get(&self, key: KeyRef<'_>) -> TryGet;

    /// [`Tier::remove`] as far as it goes without blocking for longer than a write of some bytes into the page
    /// cache; `None` when it does not and `remove` must be awaited.
    fn try_remove(&self, key: KeyRef<'_>, below: Generation) -> Option<Result<()>>;
}

/// An answer without waiting.
#[derive(Clone, Debug)]
pub enum TryGet {
    /// The tier's answer.
    Done(Option<Entry>),
    /// It takes I/O that may block: await [`Tier::get`].
    WouldBlock,
}

/// A tier whose entries can be listed.
#[async_trait]
pub trait Listing: Tier {
    /// A page of entries in an order of the tier's own, from the beginning or from where a page ended. Entries
    /// added or removed meanwhile may or may not be seen; an entry that stays is seen exactly once.
    async fn list(&self, namespace: Option<&str>, after: Option<Vec<u8>>, limit: usize) -> Result<Listed>;
}

/// A page of a listing.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    /// Key and entry without its value's bytes, and the size of the value.
    pub entries: Vec<ListedEntry>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<Vec<u8>>,
}

/// One entry of a listing.
#[derive(Clone, Debug)]
pub struct ListedEntry {
    /// The key.
    pub key: Key,
    /// The entry; its value is left out.
    pub entry: Entry,
    /// Bytes of the value.
    pub size: u64,
}

/// What an invalidation of many reaches.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Everything.
    All,
    /// A namespace, the default one being empty.
    Namespace(String),
    /// What carries a tag, within a namespace.
    Tag {
        /// The namespace.
        namespace: String,
        /// The tag's name.
        name: String,
        /// The tag's value.
        value: String,
    },
}

impl Scope {
    /// Whether `entry`, of `key`, is in it.
    pub fn covers(&self, key: KeyRef<'_>, entry: &Entry) -> bool {
        match self {
            Self::All => true,
            Self::Namespace(namespace) => namespace.as_bytes() == key.namespace(),
            Self::Tag { namespace, name, value } => {
                namespace.as_bytes() == key.namespace()
                    && entry.tags().and_then(|tags| tags.get(name)) == Some(value)
            }
        }
    }
}

/// A tier that keeps invalidations of many across restarts.
#[async_trait]
pub trait FenceLog: Tier {
    /// Remembers, durably, that what is in `scope` and below a generation is dead: that generation is returned. It is
    /// `generation`, or at a shared tier a higher one when other processes have put entries at or above it.
    /// Returns when the fence would survive the end of the process. The tier may forget it once nothing it
    /// holds can be hit by it.
    async fn fence(&self, scope: &Scope, generation: Generation) -> Result<Generation>;

    /// The fences it remembers.
    fn remembered(&self) -> Vec<(Scope, Generation)>;

    /// Whether one of those kills the entry. A shared tier knows all that other processes made before its last answer
    /// to [`Tier::remove`] of the key, or says what it may miss.
    fn kills(&self, key: &Key, entry: &Entry) -> bool {
        let hits = |(scope, fence): &(Scope, Generation)| {
            entry.generation < *fence && scope.covers(key.as_ref(), entry)
        };
        self.remembered().iter().any(hits)
    }
}

/// A tier whose store may be away when the cache begins: [`LateTier`](crate::LateTier).
///
/// Nobody knows what the store holds before it was opened, nor which generations. So it answers nothing until the
/// manager has taken over what it must know.
#[async_trait]
pub trait Late: Tier {
    /// Whether the store was opened and may answer. Once it is, it stays so.
    fn is_open(&self) -> bool;

    /// One attempt to open it. It does not answer yet; a second attempt takes the place of the first.
    ///
    /// # Errors
    /// What the store said: [`Error::is_retryable`](crate::Error::is_retryable) tells whether to try again.
    async fn open(&self) -> Result<Opened>;

    /// Lets it answer from here on.
    fn admit(&self);
}

/// What the manager must know of a store before it answers.
#[derive(Clone, Debug, Default)]
pub struct Opened {
    /// The highest generation it knows of.
    pub last_generation: Generation,
    /// The invalidations it remembers.
    pub fences: Vec<(Scope, Generation)>,
}

/// A tier with atomic counters. They are kept apart from entries: `get`, `put` and listings do not see them, and
/// [`Tier::clear`] drops those of the namespace.
#[async_trait]
pub trait Counting: Tier {
    /// Adds `delta` to the counter of `key` and returns the sum. A counter that is absent or dead begins at `start`
    /// and dies at `deadline`; one that lives keeps its deadline.
    ///
    /// # Errors
    /// [`Error::InvalidOption`](crate::Error::InvalidOption) when the sum would leave the range of `i64`: nothing
    /// was added. [`Error::TimedOut`](crate::Error::TimedOut) and
    /// [`Error::Unavailable`](crate::Error::Unavailable): it may have been added, or not. It is never added twice.
    /// [`Error::Full`](crate::Error::Full): there is no room for another counter, and nothing was added.
    async fn add(
        &self,
        key: &Key,
        delta: i64,
        start: i64,
        deadline: Timestamp,
        now: Timestamp,
    ) -> Result<i64>;

    /// The counter of `key`, if it lives.
    async fn counter(&self, key: &Key, now: Timestamp) -> Result<Option<i64>>;

    /// Forgets the counter of `key`; returns whether there was one.
    async fn remove_counter(&self, key: &Key) -> Result<bool>;
}

/// A tier whose limit in bytes can be changed while it is used. Those in this process's memory have
/// [`Resident::resize`].
pub trait Sizing: Tier {
    /// Whether it could have that limit. Nothing changes.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config), beginning with `max_size: `.
    fn check(&self, capacity: u64) -> Result<()>;

    /// Changes the limit, to one that [`Sizing::check`] allows. What no longer fits is given up as for want of room,
    /// at the latest when something is put.
    fn resize(&self, capacity: u64);
}

/// How far a shared or persistent store's record of the highest generation reaches. A tier whose store cannot tell
/// cheaply what it holds raises the record in steps, ahead of what it writes, and a later process begins above it.
#[derive(Debug)]
pub struct HighWater {
    covered: AtomicU64,
    raising: tokio::sync::Mutex<()>,
}

/// Generations the record is raised ahead by.
const STEP: u64 = 1 << 16;

impl HighWater {
    /// As the store has it.
    pub fn new(recorded: Generation) -> Self {
        Self { covered: AtomicU64::new(recorded.get()), raising: tokio::sync::Mutex::new(()) }
    }

    /// Returns when the store's record covers `generation`. `raise` makes the record at least as high as it is
    /// told to, durably, and returns what it then is; it is called once for many generations.
    ///
    /// # Errors
    /// What `raise` said; then `generation` must not be written.
    pub async fn cover<F: Future<Output = Result<Generation>>>(
        &self,
        generation: Generation,
        raise: impl FnOnce(Generation) -> F,
    ) -> Result<()> {
        if self.covers(generation) {
            return Ok(());
        }
        let _one = self.raising.lock().await;
        if self.covers(generation) {
            return Ok(());
        }
        let recorded = raise(Generation::new(generation.get() + STEP)).await?;
        self.covered.fetch_max(recorded.get(), Ordering::AcqRel);
        Ok(())
    }

    fn covers(&self, generation: Generation) -> bool {
        generation.get() <= self.covered.load(Ordering::Acquire)
    }
}
