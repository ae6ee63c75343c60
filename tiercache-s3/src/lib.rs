#![doc = include_str!("../README.md")]

mod background;
mod client;
mod config;
mod contents;
mod late;
mod meta;
mod names;
mod shared;
mod store;
mod tier;
mod turns;
mod upload;
mod walk;

pub use config::S3Config;
pub use contents::Contents;
pub use tier::S3Tier;
pub use tiercache_core::{EncryptionConfig, Packing};
