#![doc = include_str!("../README.md")]

mod alarms;
mod batch;
mod config;
mod counting;
mod fences;
mod leases;
mod names;
mod own;
mod record;
mod server;
mod tier;
mod wire;
mod write;

pub use config::MemcachedConfig;
pub use tier::MemcachedTier;
pub use tiercache_core::{EncryptionConfig, Packing};
