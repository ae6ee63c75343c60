//! The traits and the manager of tiercache: what a tier is, what tracking is, how values move between levels.
//!
//! Backends implement [`Tier`] and [`Tracking`]; services use [`CacheManager`]. The crate names no backend, reads
//! no YAML and has no network client.

#[cfg(not(tiercache_bugs))]
mod bugs;
#[cfg(tiercache_bugs)]
pub mod bugs;
mod codec;
mod encryption;
mod entry;
pub mod envelope;
mod error;
mod journal;
mod key;
mod late;
pub mod lease;
mod level;
mod manager;
pub mod memo;
pub mod rules;
pub mod secret;
mod side_by_side;
#[cfg(feature = "testing")]
pub mod testing;
pub mod tier;
mod time;
pub mod tracking;
pub mod transaction;

pub use codec::{Codec, Packing};
pub use encryption::{EncryptionConfig, OldKey};
pub use entry::{Decoded, Entry, Extras, Generation, Tags};
pub use error::{BoxError, Error, Result};
pub use key::{AsKey, ContentKey, Key, KeyRef, MAX_KEY_BYTES, MAX_NAMESPACE_BYTES};
pub use late::{LateTier, LateTracking};
pub use lease::Leasing;
pub use level::{Level, Levels, Stay};
pub use manager::{
    Addition, BatchLoader, BlockingCache, Builder, CacheManager, CloseReport, Eager, EntryInfo, Keys,
    LevelReport, LevelStats, Limits, Load, LoadContext, LoadEntry, LoadFuture, LoadOptions, Loadable, Loaded,
    Loader, Lock, LockGuard, Of, Origin, Plain, Popped, Pruned, Purged, Raw, Reason, Removed, Restored,
    Retune, Scan, Served, Set, Stats, Told, Touched, Transaction, TypedCache, Value, View, Warm, Warmed,
    Write, Written,
};
pub use memo::{default_cache, set_default};
pub use rules::{Rule, Rules};
pub use secret::{Address, Secret};
pub use tier::Tier;
pub use time::{COARSE_SLACK_MILLIS, Clock, SystemClock, Timestamp};
pub use tracking::Tracking;
