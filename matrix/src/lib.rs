#![doc = include_str!("../README.md")]

mod backend;
mod cell;
mod trouble;
mod watch;

pub use backend::{BACKENDS, Backend};
pub use cell::{Cell, STORES, table};
pub use trouble::Trouble;
pub use watch::{READ_TIMEOUT, WRITE_TIMEOUT, Watch, rounds};

use tiercache::{CacheManager, Registry, Result, from_yaml};

/// Opens what `text` describes, with every backend.
///
/// # Errors
/// As [`from_yaml`].
pub async fn open(text: &str) -> Result<CacheManager> {
    from_yaml(text, &Registry::builtin()).await
}
