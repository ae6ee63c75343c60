#![doc = include_str!("../README.md")]

mod across;
mod check;
mod config;
mod contents;
mod fences;
mod iterate;
mod journal;
mod leases;
mod open;
mod place;
mod powers;
mod queue;
mod read;
mod redo;
mod room;
mod shard;
mod step;
mod tier;
mod transaction;
mod turns;
mod values;
mod writer;

pub use check::Report;
pub use config::{SqliteConfig, Synchronous};
pub use contents::Contents;
pub use iterate::{Filter, Iteration};
pub use tier::SqliteTier;
pub use tiercache_core::Packing;
pub use transaction::Transaction;
