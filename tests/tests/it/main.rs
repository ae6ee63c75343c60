//! The contract: hazards, behaviours, loads, storms, the model, dropped futures, killed processes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod batches;
mod behaviours;
mod cancel;
mod close;
mod envelope;
mod hazards;
mod kill;
mod loading;
mod model;
mod processes;
mod storm;
mod transfer;
