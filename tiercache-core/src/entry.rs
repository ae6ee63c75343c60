use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;

use crate::{Level, Levels, Stay, Timestamp};

/// Orders the mutations of a key: a later mutation has a higher generation. Never derived from a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(u64);

impl Generation {
    /// Lower than that of every mutation.
    pub const ZERO: Self = Self(0);
    /// Higher than that of every mutation: envelopes have 48 bits for it.
    pub const MAX: Self = Self((1 << 48) - 1);

    /// The generation of that number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Tags of an entry: name to value, sorted.
pub type Tags = BTreeMap<String, String>;

/// A value decoded above the tiers, shared by every typed hit.
pub type Decoded = Arc<dyn Any + Send + Sync>;

/// What few entries have; kept behind one pointer so that the rest pay 8 bytes for it.
#[derive(Clone, Default)]
pub struct Extras {
    /// Tags given at `set`.
    pub tags: Tags,
    /// Stay per level given at `set`, by [`Level::index`]; `None` leaves it to the rules.
    pub stays: [Option<Stay>; 3],
    /// The media type of the value.
    pub content_type: Option<String>,
    /// The caller's own fields.
    pub user: BTreeMap<String, String>,
    /// How long before its deadline the entry turns stale: a miss to `get`, an answer to reads that accept it.
    pub stale: Duration,
    /// Whether it says that there is no value: a miss to `get`, an answer to a load.
    pub nothing: bool,
    /// How long it took to load.
    pub cost: Duration,
    /// The value as the typed view decoded it. Not stored.
    pub decoded: OnceLock<Decoded>,
}

impl Extras {
    /// Whether a store has nothing to keep of these.
    pub fn is_plain(&self) -> bool {
        self.tags.is_empty()
            && self.stays == [None; 3]
            && self.content_type.is_none()
            && self.user.is_empty()
            && self.load_notes() == Self::default().load_notes()
    }

    fn load_notes(&self) -> (Duration, bool, Duration) {
        (self.stale, self.nothing, self.cost)
    }
}

impl fmt::Debug for Extras {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Extras")
            .field("tags", &self.tags)
            .field("stays", &self.stays)
            .field("content_type", &self.content_type)
            .field("user", &self.user)
            .field("stale", &self.stale)
            .field("nothing", &self.nothing)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Extras {
    fn eq(&self, other: &Self) -> bool {
        self.tags == other.tags
            && self.stays == other.stays
            && self.content_type == other.content_type
            && self.user == other.user
            && self.load_notes() == other.load_notes()
    }
}

/// A value and what travels with it through every level. Cheap to clone.
#[derive(Clone, PartialEq)]
pub struct Entry {
    /// The value.
    pub value: Bytes,
    /// The mutation that made this entry.
    pub generation: Generation,
    /// When it was set.
    pub created: Timestamp,
    /// After this it is dead everywhere; only `set` and `touch` change it.
    pub deadline: Timestamp,
    /// Where it may stand.
    pub levels: Levels,
    /// Whether the deadline was asked for. Such an entry is not dropped by the last level's stay.
    pub explicit_ttl: bool,
    /// Tags and the like, for entries that have any.
    pub extras: Option<Arc<Extras>>,
}

impl Entry {
    /// An entry without a deadline, at any level.
    pub fn new(value: impl Into<Bytes>, generation: Generation, created: Timestamp) -> Self {
        Self {
            value: value.into(),
            generation,
            created,
            deadline: Timestamp::NEVER,
            levels: Levels::ALL,
            explicit_ttl: false,
            extras: None,
        }
    }

    /// Whether it may still be answered at `now`: a deadline is the first moment it may not.
    #[inline]
    pub fn is_live(&self, now: Timestamp) -> bool {
        now < self.deadline
    }

    /// When it turns stale: the first moment at which `get` does not answer with it any more.
    #[inline]
    pub fn fresh_until(&self) -> Timestamp {
        self.extras.as_ref().map_or(self.deadline, |extras| self.deadline.before(extras.stale))
    }

    /// Whether `get` may answer with it at `now`, as far as time tells.
    #[inline]
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        now < self.fresh_until()
    }

    /// Whether it says that there is no value.
    pub fn is_nothing(&self) -> bool {
        self.extras.as_ref().is_some_and(|extras| extras.nothing)
    }

    /// The tags, which most entries do not have.
    pub fn tags(&self) -> Option<&Tags> {
        self.extras.as_ref().map(|extras| &extras.tags).filter(|tags| !tags.is_empty())
    }

    /// The stay at `level` that was given at `set`.
    pub fn stay(&self, level: Level) -> Option<Stay> {
        self.extras.as_ref().and_then(|extras| extras.stays[level.index()])
    }

    /// The media type given at `set`.
    pub fn content_type(&self) -> Option<&str> {
        self.extras.as_ref().and_then(|extras| extras.content_type.as_deref())
    }

    /// Changes the extras, making them when there are none.
    pub fn extras_mut(&mut self) -> &mut Extras {
        Arc::make_mut(self.extras.get_or_insert_with(Default::default))
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The value may be a secret or a gigabyte: its length is enough to debug with.
        f.debug_struct("Entry")
            .field("bytes", &self.value.len())
            .field("generation", &self.generation.0)
            .field("created", &self.created)
            .field("deadline", &self.deadline)
            .field("levels", &self.levels)
            .field("extras", &self.extras)
            .finish_non_exhaustive()
    }
}
