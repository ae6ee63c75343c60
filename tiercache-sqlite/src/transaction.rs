//! Several operations on the keys of one shard that happen all or not at all.

use std::fmt;

use async_trait::async_trait;
use rusqlite::OptionalExtension;
use tiercache_core::tier::{Hold, Put, Removal};
use tiercache_core::transaction::{Standing, Transacting, Transactions, Work};
use tiercache_core::{Entry, Error, Generation, Key, Result};

use crate::SqliteTier;
use crate::read::{Stored, Unread, decode};
use crate::shard::answer;
use crate::step::{Row, Step};
use crate::tier::NAME;
use crate::values::{Image, Unready, shard_of};

/// A transaction over one shard. Nobody sees what it does before it is committed, and it sees everything that was
/// committed before it began and nothing that others do meanwhile.
pub struct Transaction<'a, 'b> {
    step: &'a mut Step<'b>,
    shards: u64,
}

impl SqliteTier {
    /// Runs `work` in a transaction over the shard that has `key`, on the thread that writes to it. When `work` fails,
    /// everything it did is undone. Other writers to the shard wait meanwhile, those of other processes too, so it
    /// should be short and must not wait for this tier.
    ///
    /// Over any keys at once it works where the directory was made with one shard.
    ///
    /// # Errors
    /// What `work` said; [`Error::TimedOut`] when another process held the database for too long,
    /// [`Error::Unavailable`] when it could not be committed, [`Error::Panicked`] when `work` did: nothing happened.
    pub async fn transaction<T: Send + 'static>(
        &self,
        key: &Key,
        work: impl FnOnce(&mut Transaction<'_, '_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        const OP: &str = "transaction";
        self.check_open()?;
        let shard = self.shard(key);
        let room = shard.room(0).await.map_err(|failure| failure.into_error(OP))?;
        let shards = self.shards.len() as u64;
        let mut work = Some(work);
        let sent = shard.send(OP, true, Some(room), move |step| match work.take() {
            Some(work) => step.nested(|step| work(&mut Transaction { step, shards })),
            // It is alone in its batch, which is tried once.
            None => Ok(Err(Error::unavailable(NAME, OP, "it was rolled back"))),
        });
        answer(OP, sent).await.map_err(|failure| failure.into_error(OP))?
    }
}

impl Transaction<'_, '_> {
    /// The entry of the key, dead or alive.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] when another shard has the key, [`Error::Unavailable`].
    pub fn get(&mut self, key: &Key) -> Result<Option<Entry>> {
        self.check(key)?;
        let found = self
            .step
            .connection
            .prepare_cached(
                "SELECT id, generation, checksum, size, tags, file, used, value FROM entry
                 WHERE namespace = ?1 AND key = ?2",
            )
            .and_then(|mut statement| {
                statement
                    .query_row((key.namespace(), key.bytes()), |row| {
                        Ok(Stored { row: Row::of(row)?, value: row.get(7)? })
                    })
                    .optional()
            })
            .map_err(failed)?;
        let Some(stored) = found else { return Ok(None) };
        match decode(self.step.shard, key, stored) {
            Ok(entry) => {
                Ok(Some(entry).filter(|entry| !self.step.covers(key, entry.generation, entry.tags())))
            }
            Err(Unread::Failed(error)) => Err(Error::unavailable(NAME, "get", error)),
            // The next `get` outside removes it.
            Err(Unread::Damage(_) | Unread::Dangling) => Ok(None),
        }
    }

    /// As [`Tier::put`](tiercache_core::Tier::put).
    ///
    /// # Errors
    /// As for [`Transaction::get`].
    pub fn put(&mut self, key: &Key, entry: &Entry, hold: Hold) -> Result<Put> {
        self.check(key)?;
        match Image::new(self.step.shard, (key, entry, hold), true) {
            Ok(image) => self.step.put(key, &image).map_err(failed),
            Err(Unready::TooLarge) => Ok(Put::TooLarge),
            Err(Unready::Full) => Ok(Put::Full),
            Err(Unready::Failed(error)) => Err(Error::unavailable(NAME, "put", error)),
            Err(Unready::Blocks) => Err(Error::unavailable(NAME, "put", "a file where none may be")),
        }
    }

    /// As [`Tier::remove`](tiercache_core::Tier::remove).
    ///
    /// # Errors
    /// As for [`Transaction::get`].
    pub fn remove(&mut self, key: &Key, below: Generation) -> Result<Removal> {
        self.check(key)?;
        self.step.remove(key, below).map_err(failed)
    }

    /// Runs `part`; when it fails, what it did is undone, and this transaction goes on as if it had not begun.
    ///
    /// # Errors
    /// What `part` said.
    pub fn nested<T>(&mut self, part: impl FnOnce(&mut Transaction<'_, '_>) -> Result<T>) -> Result<T> {
        let shards = self.shards;
        self.step.nested(|step| part(&mut Transaction { step, shards })).map_err(failed)?
    }

    fn check(&self, key: &Key) -> Result<()> {
        if shard_of(key, self.shards) == self.step.shard.number {
            return Ok(());
        }
        let reason =
            "it is in another shard: make the directory with `shards: 1` for transactions over any keys";
        Err(Error::InvalidOption { option: "key", reason: reason.into() })
    }
}

#[async_trait]
impl Transactions for SqliteTier {
    fn part(&self, key: &Key) -> usize {
        self.shard_of(key)
    }

    async fn transact(&self, key: &Key, work: Work) -> Result<()> {
        self.transaction(key, move |transaction| work(transaction)).await
    }
}

impl Transacting for Transaction<'_, '_> {
    fn get(&mut self, key: &Key) -> Result<Option<Entry>> {
        Transaction::get(self, key)
    }

    fn put(&mut self, key: &Key, entry: &Entry, hold: Hold) -> Result<Put> {
        Transaction::put(self, key, entry, hold)
    }

    fn remove(&mut self, key: &Key, below: Generation) -> Result<Removal> {
        Transaction::remove(self, key, below)
    }

    fn standing(&mut self, key: &Key) -> Result<Standing> {
        self.check(key)?;
        self.step.counted(key).map_err(failed)
    }

    fn nested(&mut self, part: &mut dyn FnMut(&mut dyn Transacting) -> Result<()>) -> Result<()> {
        Transaction::nested(self, |transaction| part(transaction))
    }
}

impl fmt::Debug for Transaction<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("shard", &self.step.shard.number).finish_non_exhaustive()
    }
}

fn failed(error: rusqlite::Error) -> Error {
    Error::unavailable(NAME, "transaction", error)
}
