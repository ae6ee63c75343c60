//! What a level holds, seen without opening it.

use std::sync::Arc;

use tiercache_core::tier::{Call, FenceLog, Listed, ListedEntry, Listing, Scope, side_by_side};
use tiercache_core::{Clock, Generation, Key, Result, Tier};

use crate::shared::Front;
use crate::tier::AT_ONCE;
use crate::{S3Config, S3Tier};

/// What a level holds, while other processes use it. Nothing in the bucket changes by it.
#[derive(Debug)]
pub struct Contents {
    tier: S3Tier,
}

impl S3Tier {
    /// Connects to look at what the level of that name holds. One that was never opened holds nothing.
    ///
    /// # Errors
    /// As for [`S3Tier::open`].
    pub async fn contents(config: &S3Config, level: &str, clock: Arc<dyn Clock>) -> Result<Contents> {
        Ok(Contents { tier: Self::connect(config, level, clock, true).await? })
    }
}

impl Contents {
    /// A page of the entries, without their values, in the order of their objects; `after` is where the page before
    /// ended. What was cleared or fenced off by the last call of [`Contents::fences`], or is damaged, is left out.
    ///
    /// # Errors
    /// What the service said.
    pub async fn list(&self, after: Option<Vec<u8>>, limit: usize) -> Result<Listed> {
        self.tier.list(None, after, limit).await
    }

    /// The entries of these keys, as a listing would show them: the first bytes of an object are read for each.
    ///
    /// # Errors
    /// As for [`Contents::list`].
    pub async fn find(&self, keys: &[Key]) -> Result<Vec<Option<ListedEntry>>> {
        let calls = keys.iter().map(|key| -> Call<'_, _> { Box::pin(self.find_one(key)) });
        side_by_side(AT_ONCE, calls.collect()).await.into_iter().collect()
    }

    /// The invalidations of many that the level remembers, read anew.
    ///
    /// # Errors
    /// As for [`Contents::list`].
    pub async fn fences(&self) -> Result<Vec<(Scope, Generation)>> {
        self.tier.shared.meta.refresh().await?;
        Ok(self.tier.remembered())
    }

    /// Ends what is under way.
    ///
    /// # Errors
    /// None that is known of.
    pub async fn close(&self) -> Result<()> {
        self.tier.close().await
    }

    async fn find_one(&self, key: &Key) -> Result<Option<ListedEntry>> {
        let shared = &self.tier.shared;
        let name = shared.names.entry(key.as_ref());
        let front = shared.front(&name).await?;
        Ok(front
            .filter(|front| front.key == *key && !shared.is_dead(&name, key, &front.entry))
            .map(|Front { key, entry, size, .. }| ListedEntry { key, entry, size }))
    }
}
