#![doc = include_str!("../README.md")]

mod config;
mod contents;
mod counters;
mod documents;
mod ids;
mod large;
mod leases;
mod link;
mod state;
mod tier;
mod tracking;

pub use config::{MongoConfig, MongoTrackingConfig, WriteConcern};
pub use contents::Contents;
pub use tier::MongoTier;
pub use tracking::MongoTracking;
