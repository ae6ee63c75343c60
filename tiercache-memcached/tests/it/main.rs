//! The memcached level against its real server.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
mod counting;
mod faults;
mod manager;
mod processes;
mod suite;
mod writes;
