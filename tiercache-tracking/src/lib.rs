#![doc = include_str!("../README.md")]

mod memory;
mod order;
#[cfg(feature = "postgres")]
mod postgres;
mod records;
mod span;
#[cfg(feature = "sqlite")]
mod sqlite;

pub use memory::{MemoryConfig, MemoryTracking};
#[cfg(feature = "postgres")]
pub use postgres::{PostgresConfig, PostgresTracking, Tls};
#[cfg(feature = "sqlite")]
pub use sqlite::{Look, SqliteConfig, SqliteTracking};
