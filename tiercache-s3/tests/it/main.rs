//! The S3 level against a server that speaks it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
mod credentials;
mod faults;
mod late;
mod measure;
mod suite;
mod tls;
mod uploads;
mod walk;
