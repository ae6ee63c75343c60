//! The RAM level.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod listing;
mod resident;
mod storm;
mod suite;
