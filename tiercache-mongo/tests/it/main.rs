//! The MongoDB level and tracking against a server.

mod common;
mod faults;
mod stub;
mod suite;
