//! The SQLite level.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod across;
mod check;
mod common;
mod full;
mod managers;
mod processes;
mod sealed;
mod store;
mod suite;
