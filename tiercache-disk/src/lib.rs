#![doc = include_str!("../README.md")]

mod check;
mod config;
mod contents;
mod dir;
mod fences;
mod footer;
mod index;
mod journal;
mod log;
mod open;
mod reclaim;
mod segment;
mod store;
#[cfg(test)]
mod tests;
mod tier;

pub use check::Report;
pub use config::{DiskConfig, Flush};
pub use contents::Contents;
pub use tier::DiskTier;
pub use tiercache_core::Packing;
