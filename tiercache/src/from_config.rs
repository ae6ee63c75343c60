use std::future::Future;
use std::path::Path;

use tiercache_core::{CacheManager, Result};

use crate::{Config, Registry};

/// Caches that a `tier.yaml` wires.
///
/// ```no_run
/// use tiercache::prelude::*;
///
/// # async fn run() -> tiercache::Result<()> {
/// let cache = CacheManager::from_config("tier.yaml").await?;
/// cache.set("greeting", "hello").await?;
/// # Ok(())
/// # }
/// ```
///
/// Code without a runtime does the same with
/// [`BlockingCache::start`](tiercache_core::BlockingCache::start)`(CacheManager::from_config("tier.yaml"))`.
pub trait FromConfig: Sized {
    /// Opens what the file at `path` describes, with the backends that are compiled in.
    ///
    /// # Errors
    /// Everything that is wrong with the file, or the backend that does not open and why.
    fn from_config(path: impl AsRef<Path> + Send) -> impl Future<Output = Result<Self>> + Send;
}

impl FromConfig for CacheManager {
    async fn from_config(path: impl AsRef<Path> + Send) -> Result<Self> {
        from_config(path, &Registry::builtin()).await
    }
}

/// Opens what the file at `path` describes, with the backends of `registry`.
///
/// # Errors
/// As for [`FromConfig::from_config`].
pub async fn from_config(path: impl AsRef<Path>, registry: &Registry) -> Result<CacheManager> {
    Config::load(path, registry)?.open().await
}

/// Opens what `text` describes, with the backends of `registry`.
///
/// # Errors
/// As for [`FromConfig::from_config`].
pub async fn from_yaml(text: &str, registry: &Registry) -> Result<CacheManager> {
    Config::parse(text, registry)?.open().await
}
