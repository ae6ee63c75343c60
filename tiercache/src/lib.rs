//! An async cache of three levels, hot, cold and dry, wired by one YAML file.

pub mod config;
mod registry;
pub mod units;

pub use config::{Config, ConfigError};
pub use registry::{Place, Registry};
pub use tiercache_core as core;
