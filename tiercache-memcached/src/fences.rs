//! Invalidations of many: in every server's record.

use std::collections::BTreeMap;

use async_trait::async_trait;
use tiercache_core::tier::{FenceLog, Scope};
use tiercache_core::{Generation, Result};

use crate::tier::MemcachedTier;

#[async_trait]
impl FenceLog for MemcachedTier {
    async fn fence(&self, scope: &Scope, generation: Generation) -> Result<Generation> {
        let (shared, scope) = (self.shared.clone(), scope.clone());
        self.everywhere("fence", async move {
            // Above what any process may have put before now.
            let mut below = generation;
            for server in &shared.servers {
                let known = server.asked("fence").await?;
                below = below.max(Generation::new(known.record.generations + 1)).min(Generation::MAX);
            }
            for server in &shared.servers {
                server.update("fence", |record| record.fence(&scope, below)).await?;
            }
            Ok(below)
        })
        .await
    }

    fn remembered(&self) -> Vec<(Scope, Generation)> {
        let mut highest = BTreeMap::<Scope, Generation>::new();
        for known in self.servers().iter().filter_map(|server| server.last()) {
            for (scope, below) in known.record.fences() {
                let fence = highest.entry(scope).or_default();
                *fence = below.max(*fence);
            }
        }
        highest.into_iter().collect()
    }
}
