//! What a level holds, seen without opening it.

use std::sync::Arc;

use tiercache_core::tier::Listed;
use tiercache_core::{Generation, Key, Result};

/// What a level holds. Everything blocks.
pub(crate) trait Contents: Send + Sync {
    /// The process that has it open, if one has.
    fn used_by(&self) -> Option<String>;

    /// A page of its entries, without their values.
    fn list(&self, after: Option<&[u8]>, limit: usize) -> Result<Listed>;

    /// The generation with which a key would be answered, `likely` being the one that is expected.
    fn generation(&self, key: &Key, likely: Generation) -> Result<Option<Generation>>;
}

pub(crate) type Held = Arc<dyn Contents>;

/// Looks at a level, and keeps others from opening it if it is told to; None when there is nothing.
pub(crate) type Look = Box<dyn FnOnce(bool) -> Result<Option<Held>> + Send>;

/// A level that was never opened, or that is in the memory of a process that has ended.
pub(crate) struct Nothing;

impl Contents for Nothing {
    fn used_by(&self) -> Option<String> {
        None
    }

    fn list(&self, _after: Option<&[u8]>, _limit: usize) -> Result<Listed> {
        Ok(Listed::default())
    }

    fn generation(&self, _key: &Key, _likely: Generation) -> Result<Option<Generation>> {
        Ok(None)
    }
}

#[cfg(feature = "disk")]
impl Contents for tiercache_disk::Contents {
    fn used_by(&self) -> Option<String> {
        self.owner().map(|process| format!("process {process}"))
    }

    fn list(&self, after: Option<&[u8]>, limit: usize) -> Result<Listed> {
        Ok(self.list(after, limit))
    }

    fn generation(&self, key: &Key, likely: Generation) -> Result<Option<Generation>> {
        Ok(self.generation(key, likely))
    }
}

#[cfg(feature = "sqlite")]
impl Contents for tiercache_sqlite::Contents {
    fn used_by(&self) -> Option<String> {
        self.in_use().then(|| "a process".to_owned())
    }

    fn list(&self, after: Option<&[u8]>, limit: usize) -> Result<Listed> {
        self.list(after, limit)
    }

    fn generation(&self, key: &Key, _likely: Generation) -> Result<Option<Generation>> {
        self.generation(key)
    }
}
