//! The servers of the tests, and the proxy in front of them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod proxy;
mod servers;
