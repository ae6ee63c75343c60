//! The Redis level and tracking against its real server.

mod access;
mod batches;
mod common;
mod faults;
mod shared;
mod suites;
mod topologies;
