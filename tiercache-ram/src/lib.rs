//! The RAM level: entries in this process's memory, bounded in bytes.
//!
//! [`RamTier`] is a [`Tier`](tiercache_core::Tier) that answers hits without waiting
//! ([`Resident`](tiercache_core::tier::Resident)). What it gives up for room, or because it stayed its time, goes
//! to the [`Spill`](tiercache_core::tier::Spill) before the tier stops answering for it.
//!
//! It can be listed ([`Listing`](tiercache_core::tier::Listing)) at no cost to hits and sets: no second index is kept, a page is
//! a walk over the whole level that remembers the lowest names behind the page before. So large pages are cheaper, and a walk
//! is not a use, holds no lock from one entry to the next, and lets other tasks run.

mod config;
mod counters;
mod engine;
mod fifo;
mod listing;
mod moka;
mod outlet;
mod quick;
mod slot;
mod tier;

pub use config::{Policy, RamConfig};
pub use tier::RamTier;
