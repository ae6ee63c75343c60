#![doc = include_str!("../README.md")]

mod config;
mod counting;
mod fences;
mod leases;
mod names;
mod record;
mod server;
mod tier;

pub use config::MemcachedConfig;
pub use tier::MemcachedTier;
pub use tiercache_core::{EncryptionConfig, Packing};
