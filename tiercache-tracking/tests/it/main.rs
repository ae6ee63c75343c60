//! The tracking stores.

mod agreement;
#[cfg(feature = "postgres")]
mod common;
mod memory;
mod postgres;
mod postgres_faults;
mod postgres_loads;
mod postgres_server;
mod sqlite;
mod untrusted;
