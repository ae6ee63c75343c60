#![doc = include_str!("../README.md")]

mod batch;
mod config;
mod contents;
mod keys;
mod leases;
mod ledger;
mod link;
mod listing;
mod tier;
mod track;
mod tracking;

pub use config::{RedisConfig, RedisTrackingConfig};
pub use contents::Contents;
pub use tier::RedisTier;
pub use tracking::RedisTracking;

/// What errors and logs call it.
const NAME: &str = "redis";
