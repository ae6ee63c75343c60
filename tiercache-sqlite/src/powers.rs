//! Listing, fences and counters.

use std::collections::HashMap;

use async_trait::async_trait;
use tiercache_core::tier::{Counting, FenceLog, Listed, Listing, Scope};
use tiercache_core::{Entry, Generation, Key, Result, Timestamp};

use crate::SqliteTier;
use crate::iterate::{After, Filter, page};
use crate::step::counter;
use crate::values::sql;

/// How long, in milliseconds, a fence is told to managers, which look through all of them at every sweep.
const REMEMBERED: i64 = 600_000;

#[async_trait]
impl Listing for SqliteTier {
    async fn list(&self, namespace: Option<&str>, after: Option<Vec<u8>>, limit: usize) -> Result<Listed> {
        self.check_open()?;
        let filter = Filter { namespace: namespace.map(str::to_owned), ..Filter::default() };
        let (mut at, mut after) = after.as_deref().and_then(read_cursor).unwrap_or_default();
        let mut entries = Vec::new();
        while let Some(shard) = self.shards.get(at) {
            let (asked, rest) = (filter.clone(), limit.max(1) - entries.len());
            let found = shard
                .read("list", move |shard, connection| page(shard, connection, &asked, &after, rest))
                .await?;
            entries.extend(found.entries);
            match found.next {
                Some(next) if entries.len() >= limit.max(1) || found.heavy => {
                    return Ok(Listed { entries, next: Some(cursor(at, &next)) });
                }
                Some(next) => after = next,
                None => {
                    (at, after) = (at + 1, After::default());
                    if entries.len() >= limit.max(1) && at < self.shards.len() {
                        return Ok(Listed { entries, next: Some(cursor(at, &after)) });
                    }
                }
            }
        }
        Ok(Listed { entries, next: None })
    }
}

/// Where a page ended: the shard and the last key in it, nothing for the beginning of a shard.
fn cursor(shard: usize, after: &After) -> Vec<u8> {
    let mut cursor = vec![shard as u8];
    if let After::Key(key) = after {
        cursor.extend_from_slice(key.encoded());
    }
    cursor
}

fn read_cursor(cursor: &[u8]) -> Option<(usize, After)> {
    let (&shard, encoded) = cursor.split_first()?;
    let Some((&length, rest)) = encoded.split_first() else {
        return Some((usize::from(shard), After::Beginning));
    };
    let (namespace, bytes) = rest.split_at_checked(usize::from(length))?;
    let key = Key::new(std::str::from_utf8(namespace).ok()?, bytes).ok()?;
    Some((usize::from(shard), After::Key(key)))
}

#[async_trait]
impl FenceLog for SqliteTier {
    async fn fence(&self, scope: &Scope, below: Generation) -> Result<Generation> {
        self.check_open()?;
        let below = self.above_all(below).await?;
        let scope = scope.clone();
        self.everywhere("fence", move |step| step.fence(&scope, below, false)).await?;
        Ok(below)
    }

    fn remembered(&self) -> Vec<(Scope, Generation)> {
        // Older ones are seen to by this tier alone, wherever it reads and writes.
        let since = sql(self.common.clock.now().as_millis()).saturating_sub(REMEMBERED);
        let mut newest: HashMap<Scope, Generation> = HashMap::new();
        for shard in &self.shards {
            for (scope, below) in shard.fences().fenced(since) {
                let known = newest.entry(scope.clone()).or_default();
                *known = below.max(*known);
            }
        }
        newest.into_iter().collect()
    }

    fn kills(&self, key: &Key, entry: &Entry) -> bool {
        self.shard(key).fences().cover(key, entry)
    }
}

#[async_trait]
impl Counting for SqliteTier {
    async fn add(
        &self,
        key: &Key,
        delta: i64,
        start: i64,
        deadline: Timestamp,
        now: Timestamp,
    ) -> Result<i64> {
        self.check_open()?;
        let shard = self.shard(key);
        #[cfg(tiercache_bugs)]
        if tiercache_core::bugs::seeded("counter-read-apart") {
            let (count, key) = (self.counter(key, now).await?.unwrap_or(start), key.clone());
            let write = move |step: &mut crate::step::Step<'_>| {
                step.remove_counter(&key, now)?;
                step.add(&key, (delta, count), deadline, now)
            };
            return shard.write("add", 0, write).await.map_err(|failure| failure.into_error("add"))?;
        }
        let key = key.clone();
        shard
            .write("add", 0, move |step| step.add(&key, (delta, start), deadline, now))
            .await
            .map_err(|failure| failure.into_error("add"))?
    }

    async fn counter(&self, key: &Key, now: Timestamp) -> Result<Option<i64>> {
        self.check_open()?;
        let shard = self.shard(key);
        let key = key.clone();
        let found = shard.read("counter", move |_, connection| counter(connection, &key, now)).await?;
        Ok(found.map(|(count, _)| count))
    }

    async fn remove_counter(&self, key: &Key) -> Result<bool> {
        self.check_open()?;
        let shard = self.shard(key);
        let (key, now) = (key.clone(), self.common.clock.now());
        shard
            .write("remove a counter", 0, move |step| step.remove_counter(&key, now))
            .await
            .map_err(|failure| failure.into_error("remove a counter"))
    }
}
