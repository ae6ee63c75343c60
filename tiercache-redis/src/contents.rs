//! What a level holds, seen without opening it.

use tiercache_core::tier::{Call, Listed, ListedEntry, Listing, Scope, side_by_side};
use tiercache_core::{Generation, Key, Level, Result, Tier};

use crate::{RedisConfig, RedisTier};

/// Look-ups under way at a time.
const AT_ONCE: usize = 16;

/// What a level holds, while other processes use it. Nothing at the server changes by it.
#[derive(Debug)]
pub struct Contents {
    tier: RedisTier,
}

impl RedisTier {
    /// Connects to look at what a level holds; `None` when it was never opened, or is lost.
    ///
    /// # Errors
    /// As for [`RedisTier::open`].
    pub async fn contents(config: &RedisConfig, level: Level) -> Result<Option<Contents>> {
        Ok(Self::look(config, level).await?.map(|tier| Contents { tier }))
    }
}

impl Contents {
    /// A page of the entries that would be answered, without their values; `after` is where the page before ended.
    /// An entry is seen twice when the server makes its table smaller meanwhile: what was seen is not remembered.
    ///
    /// # Errors
    /// What the server said, also when it has lost what the level remembers.
    pub async fn list(&self, after: Option<Vec<u8>>, limit: usize) -> Result<Listed> {
        self.tier.list(None, after, limit).await
    }

    /// The entries of these keys, as a listing would show them.
    ///
    /// # Errors
    /// As for [`Contents::list`].
    pub async fn find(&self, keys: &[Key]) -> Result<Vec<Option<ListedEntry>>> {
        let calls = keys.iter().map(|key| -> Call<'_, _> { Box::pin(self.find_one(key)) });
        side_by_side(AT_ONCE, calls.collect()).await.into_iter().collect()
    }

    /// The invalidations of many that the level remembers.
    ///
    /// # Errors
    /// As for [`Contents::list`].
    pub async fn fences(&self) -> Result<Vec<(Scope, Generation)>> {
        self.tier.ledger.current().await.map_err(self.tier.failed("look"))?;
        Ok(self.tier.ledger.fences())
    }

    /// Ends the connection.
    ///
    /// # Errors
    /// None that is known of.
    pub async fn close(&self) -> Result<()> {
        self.tier.close().await
    }

    async fn find_one(&self, key: &Key) -> Result<Option<ListedEntry>> {
        let (tier, failed) = (&self.tier, self.tier.failed("look"));
        let record = tier.ledger.current().await.map_err(&failed)?;
        let name = tier.ledger.names().entry(&record.era, key);
        let found = tier.read_entries(None, &[name]).await.map_err(&failed)?;
        Ok(found.into_iter().find(|found| found.key == *key))
    }
}
