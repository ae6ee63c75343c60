use serde::{Deserialize, Serialize};

/// The configuration of a [`RamTier`](crate::RamTier).
///
/// ```yaml
/// hot_cache: { backend: ram, max_size: 2GB, policy: adaptive }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RamConfig {
    /// The most bytes its entries may have together: keys, values, tags and [`Policy::overhead`] for each.
    pub max_size: u64,
    /// Which entries go when room is needed. Default: `adaptive`; in a configuration file `fifo` for a cold level below a
    /// hot one in RAM.
    #[serde(default)]
    pub policy: Policy,
}

/// Which entries go when room is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Clock-PRO: weighs recency against frequency by what was evicted too early. The fastest, and the right one
    /// unless measured otherwise.
    #[default]
    Adaptive,
    /// Least recently used first.
    Lru,
    /// Frequent entries win. A new entry less popular than what it would displace is itself given up at once.
    TinyLfu,
    /// First in, first out, used or not. For a cold level below a hot one in RAM: what is used there moves up, so that of
    /// what remains the first has been of no use for the longest.
    Fifo,
}

impl Policy {
    /// Bytes counted for an entry on top of key, value and tags: what it takes in the tables.
    pub const fn overhead(self) -> u64 {
        match self {
            Self::Adaptive | Self::Fifo => 224,
            Self::Lru | Self::TinyLfu => 512,
        }
    }
}
