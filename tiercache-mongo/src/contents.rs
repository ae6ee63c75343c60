//! What a level holds, seen without opening it.

use tiercache_core::tier::{Listed, ListedEntry, Listing, Scope};
use tiercache_core::{Generation, Key, Result, Tier};

use crate::{MongoConfig, MongoTier};

/// What a level holds, while other processes use it. Nothing in the database changes by it, not even its indexes.
#[derive(Debug)]
pub struct Contents {
    tier: MongoTier,
}

impl MongoTier {
    /// Connects to look at what the level of that name holds. One that was never opened holds nothing.
    ///
    /// # Errors
    /// As for [`MongoTier::open`].
    pub async fn contents(config: &MongoConfig, level: &str) -> Result<Contents> {
        Ok(Contents { tier: Self::connect(config, level, true).await? })
    }
}

impl Contents {
    /// A page of the entries, without their values, in the order of their names; `after` is where the page before
    /// ended. What was cleared or removed is left out; what is fenced, see [`Contents::fences`], is not.
    ///
    /// # Errors
    /// What the server said.
    pub async fn list(&self, after: Option<Vec<u8>>, limit: usize) -> Result<Listed> {
        self.tier.list(None, after, limit).await
    }

    /// The entries of these keys, as a listing would show them.
    ///
    /// # Errors
    /// As for [`Contents::list`].
    pub async fn find(&self, keys: &[Key]) -> Result<Vec<Option<ListedEntry>>> {
        self.tier.find(keys).await
    }

    /// The invalidations of many that the level remembers.
    ///
    /// # Errors
    /// As for [`Contents::list`].
    pub async fn fences(&self) -> Result<Vec<(Scope, Generation)>> {
        self.tier.look_at_fences().await
    }

    /// Ends the connections.
    ///
    /// # Errors
    /// None that is known of.
    pub async fn close(&self) -> Result<()> {
        self.tier.close().await
    }
}
