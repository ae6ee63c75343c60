//! Configuration files, from text to an open cache.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod bad_files;
mod common;
mod drift;
mod drift_afar;
mod good_files;
mod leases;
mod mongodb;
mod open;
mod s3;
