#![doc = include_str!("../README.md")]

mod builtin;
pub mod config;
pub mod drift;
mod from_config;
mod registry;
mod reload;
pub mod transfer;
pub mod units;

/// What an implementation of [`Tier`] or [`Tracking`] is marked with.
pub use async_trait::async_trait;
pub use config::{Config, ConfigError};
pub use from_config::{FromConfig, from_config, from_yaml};
pub use registry::{Place, Registry};
pub use reload::{Change, Reload};
pub use tiercache_core as core;
pub use tiercache_core::*;
#[cfg(feature = "disk")]
pub use tiercache_disk as disk;
#[cfg(feature = "macros")]
pub use tiercache_macros::cached;
#[cfg(feature = "memcached")]
pub use tiercache_memcached as memcached;
#[cfg(feature = "ram")]
pub use tiercache_ram as ram;
#[cfg(feature = "s3")]
pub use tiercache_s3 as s3;
#[cfg(feature = "sqlite")]
pub use tiercache_sqlite as sqlite;
pub use tiercache_tracking as tracking_stores;

/// What most programs use.
pub mod prelude {
    pub use tiercache_core::{AsKey, BlockingCache, CacheManager, Error, Key, Level, Stay};

    #[cfg(feature = "macros")]
    pub use crate::cached;
    pub use crate::{FromConfig, Registry};
}
