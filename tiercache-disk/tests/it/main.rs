//! The disk level on a real file system.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod check;
mod common;
mod full;
mod recovery;
mod sealed;
mod suite;
mod tier;
