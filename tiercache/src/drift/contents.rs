//! What a level holds, seen without opening it.

use std::sync::Arc;

use async_trait::async_trait;
use tiercache_core::tier::{Listed, Scope, Waiting};
use tiercache_core::{Error, Generation, Key, Result};

use super::dead::At;

/// What a level holds.
#[async_trait]
pub(crate) trait Contents: Send + Sync {
    /// The process that has it open, if it is to be left alone for that.
    fn used_by(&self) -> Option<String>;

    /// Whether other processes write there meanwhile.
    fn is_shared(&self) -> bool;

    /// Invalidations of many that other levels may not have been told of, read anew.
    async fn fences(&self) -> Result<Vec<(Scope, Generation)>>;

    /// Removals that it remembers for other levels, which have yet to see them.
    async fn waiting(&self) -> Result<Vec<Waiting>> {
        Ok(Vec::new())
    }

    /// A page of its entries, without their values.
    async fn list(&self, after: Option<Vec<u8>>, limit: usize) -> Result<Listed>;

    /// The generations with which keys would be answered, each key with the one that is expected; `dead` tells of what
    /// the level does not know itself.
    async fn generations(
        &self,
        wanted: &[(Key, Generation)],
        dead: &At<'_>,
    ) -> Result<Vec<Option<Generation>>>;

    /// The last call.
    async fn close(&self) -> Result<()>;
}

pub(crate) type Held = Arc<dyn Contents>;

/// How a level is looked at; the answer is None when there is nothing.
pub(crate) enum Look {
    /// One of this machine. Others are kept from opening it, if the question says so. Blocks.
    #[cfg_attr(
        not(any(feature = "disk", feature = "sqlite")),
        expect(dead_code, reason = "no backend that is compiled in has one")
    )]
    Here(Box<dyn FnOnce(bool) -> Result<Option<Held>> + Send>),
    /// One of a server.
    #[cfg_attr(
        not(any(feature = "redis", feature = "s3", feature = "mongodb")),
        expect(dead_code, reason = "no backend that is compiled in has one")
    )]
    Afar(Box<dyn FnOnce() -> Looking + Send>),
}

pub(crate) type Looking = std::pin::Pin<Box<dyn Future<Output = Result<Option<Held>>> + Send>>;

/// A level that was never opened, or that is in the memory of a process that has ended.
pub(crate) struct Nothing {
    /// As [`Contents::is_shared`].
    pub(crate) shared: bool,
}

#[async_trait]
impl Contents for Nothing {
    fn used_by(&self) -> Option<String> {
        None
    }

    fn is_shared(&self) -> bool {
        self.shared
    }

    async fn fences(&self) -> Result<Vec<(Scope, Generation)>> {
        Ok(Vec::new())
    }

    async fn list(&self, _after: Option<Vec<u8>>, _limit: usize) -> Result<Listed> {
        Ok(Listed::default())
    }

    async fn generations(
        &self,
        wanted: &[(Key, Generation)],
        _dead: &At<'_>,
    ) -> Result<Vec<Option<Generation>>> {
        Ok(vec![None; wanted.len()])
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// What is on this machine. Everything blocks; what is fenced is left out.
#[cfg(any(feature = "disk", feature = "sqlite"))]
pub(crate) trait OnDisk: Send + Sync + 'static {
    /// As [`Contents::used_by`].
    fn used_by(&self) -> Option<String>;

    /// As [`Contents::waiting`].
    fn waiting(&self) -> Result<Vec<Waiting>>;

    /// As [`Contents::list`].
    fn list(&self, after: Option<&[u8]>, limit: usize) -> Result<Listed>;

    /// As [`Contents::generations`], of one key.
    fn generation(&self, key: &Key, likely: Generation) -> Result<Option<Generation>>;
}

/// What is on this machine, looked at where it may block.
#[cfg(any(feature = "disk", feature = "sqlite"))]
pub(crate) struct Here<C>(pub(crate) Arc<C>);

#[cfg(any(feature = "disk", feature = "sqlite"))]
#[async_trait]
impl<C: OnDisk> Contents for Here<C> {
    fn used_by(&self) -> Option<String> {
        self.0.used_by()
    }

    fn is_shared(&self) -> bool {
        false
    }

    async fn fences(&self) -> Result<Vec<(Scope, Generation)>> {
        Ok(Vec::new())
    }

    async fn waiting(&self) -> Result<Vec<Waiting>> {
        let held = self.0.clone();
        blocking(move || held.waiting()).await
    }

    async fn list(&self, after: Option<Vec<u8>>, limit: usize) -> Result<Listed> {
        let held = self.0.clone();
        blocking(move || held.list(after.as_deref(), limit)).await
    }

    async fn generations(
        &self,
        wanted: &[(Key, Generation)],
        _dead: &At<'_>,
    ) -> Result<Vec<Option<Generation>>> {
        let (held, wanted) = (self.0.clone(), wanted.to_vec());
        let all = move || wanted.iter().map(|(key, likely)| held.generation(key, *likely)).collect();
        blocking(all).await
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let panicked = Error::Panicked { what: "comparing tracking with a level" };
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(panicked))
}

#[cfg(feature = "disk")]
impl OnDisk for tiercache_disk::Contents {
    fn used_by(&self) -> Option<String> {
        self.owner().map(|process| format!("process {process}"))
    }

    fn waiting(&self) -> Result<Vec<Waiting>> {
        Ok(self.waiting().to_vec())
    }

    fn list(&self, after: Option<&[u8]>, limit: usize) -> Result<Listed> {
        Ok(self.list(after, limit))
    }

    fn generation(&self, key: &Key, likely: Generation) -> Result<Option<Generation>> {
        Ok(self.generation(key, likely))
    }
}

#[cfg(feature = "sqlite")]
impl OnDisk for tiercache_sqlite::Contents {
    fn used_by(&self) -> Option<String> {
        self.in_use().then(|| "a process".to_owned())
    }

    fn waiting(&self) -> Result<Vec<Waiting>> {
        self.waiting()
    }

    fn list(&self, after: Option<&[u8]>, limit: usize) -> Result<Listed> {
        self.list(after, limit)
    }

    fn generation(&self, key: &Key, _likely: Generation) -> Result<Option<Generation>> {
        self.generation(key)
    }
}

/// A store that other processes use.
macro_rules! afar {
    ($feature:literal, $contents:ty) => {
        #[cfg(feature = $feature)]
        #[async_trait]
        impl Contents for $contents {
            fn used_by(&self) -> Option<String> {
                None
            }

            fn is_shared(&self) -> bool {
                true
            }

            async fn fences(&self) -> Result<Vec<(Scope, Generation)>> {
                self.fences().await
            }

            async fn list(&self, after: Option<Vec<u8>>, limit: usize) -> Result<Listed> {
                self.list(after, limit).await
            }

            async fn generations(
                &self,
                wanted: &[(Key, Generation)],
                dead: &At<'_>,
            ) -> Result<Vec<Option<Generation>>> {
                let keys: Vec<Key> = wanted.iter().map(|(key, _)| key.clone()).collect();
                let found = self.find(&keys).await?;
                let answered =
                    |found: &tiercache_core::tier::ListedEntry| !dead.kills(&found.key, &found.entry);
                Ok(found.into_iter().map(|found| Some(found.filter(answered)?.entry.generation)).collect())
            }

            async fn close(&self) -> Result<()> {
                self.close().await
            }
        }
    };
}

afar!("redis", tiercache_redis::Contents);
afar!("s3", tiercache_s3::Contents);
afar!("mongodb", tiercache_mongo::Contents);
