#![doc = include_str!("../README.md")]

mod memory;
mod span;
#[cfg(feature = "sqlite")]
mod sqlite;

pub use memory::{MemoryConfig, MemoryTracking};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteConfig, SqliteTracking};
