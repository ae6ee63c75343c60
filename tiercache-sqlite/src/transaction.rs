//! Several operations that happen all or not at all.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::OptionalExtension;
use tiercache_core::tier::{Hold, Put, Removal};
use tiercache_core::transaction::{Standing, Transacting, Transactions, Work};
use tiercache_core::{Entry, Error, Generation, Key, Result};

use crate::SqliteTier;
use crate::across;
use crate::read::{Stored, Unread, decode};
use crate::redo::Change;
use crate::shard::answer;
use crate::step::{Row, Step};
use crate::tier::NAME;
use crate::values::{Image, Unready, shard_of};

pub(crate) const OP: &str = "transaction";

/// A transaction over one shard or several. It sees everything that was committed before it began and nothing that others
/// do meanwhile; nobody sees what it does before it is committed.
pub struct Transaction<'a, 'b> {
    steps: &'a mut [Step<'b>],
    /// What was done, in order, with the shard it was done in; None where one commit is all.
    changes: Option<&'a mut Vec<(usize, Change)>>,
    shards: u64,
}

impl SqliteTier {
    /// Runs `work` in a transaction over the shard that has `key`, on the thread that writes to it. When `work` fails,
    /// everything it did is undone. Other writers to the shard wait meanwhile, those of other processes too, so it
    /// should be short and must not wait for this tier.
    ///
    /// # Errors
    /// What `work` said; [`Error::TimedOut`] when another process held the database for too long,
    /// [`Error::Unavailable`] when it could not be committed, [`Error::Panicked`] when `work` did: nothing happened.
    pub async fn transaction<T: Send + 'static>(
        &self,
        key: &Key,
        work: impl FnOnce(&mut Transaction<'_, '_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.check_open()?;
        let shard = self.shard(key);
        let room = shard.room(0).await.map_err(|failure| failure.into_error(OP))?;
        let shards = self.shards.len() as u64;
        let mut work = Some(work);
        let sent = shard.send(OP, true, Some(room), move |step| match work.take() {
            Some(work) => step.nested(|step| {
                work(&mut Transaction { steps: std::slice::from_mut(step), changes: None, shards })
            }),
            // It is alone in its batch, which is tried once.
            None => Ok(Err(Error::unavailable(NAME, OP, "it was rolled back"))),
        });
        answer(OP, sent).await.map_err(|failure| failure.into_error(OP))?
    }

    /// Likewise over all shards that have one of the keys. Writers to any of them wait meanwhile, and such
    /// transactions of one process take turns. Keys of one shard are what [`SqliteTier::transaction`] is for, and this
    /// does that then.
    ///
    /// All of it is committed or nothing, `kill -9` and, but for `synchronous: off`, power cuts notwithstanding. Between
    /// the commits of two shards, reads outside transactions may find one shard new and the other as it was.
    ///
    /// # Errors
    /// As for [`SqliteTier::transaction`]; [`Error::InvalidOption`] when there are no keys. An [`Error::Unavailable`]
    /// whose source says that it is committed means it: a shard could not be written to any more, and has its part as
    /// soon as it can.
    pub async fn transaction_over<T: Send + 'static>(
        &self,
        keys: &[Key],
        work: impl FnOnce(&mut Transaction<'_, '_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let numbers: BTreeSet<usize> = keys.iter().map(|key| self.shard_of(key)).collect();
        match (keys.first(), numbers.len()) {
            (Some(key), 1) => self.transaction(key, work).await,
            (Some(_), _) => self.across(numbers.into_iter().collect(), work).await,
            (None, _) => {
                let reason = "a transaction needs at least one key".into();
                Err(Error::InvalidOption { option: "keys", reason })
            }
        }
    }

    /// Likewise over all shards, and so over any keys.
    ///
    /// # Errors
    /// As for [`SqliteTier::transaction_over`].
    pub async fn transaction_over_all<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Transaction<'_, '_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.across((0..self.shards.len()).collect(), work).await
    }

    async fn across<T: Send + 'static>(
        &self,
        numbers: Vec<usize>,
        work: impl FnOnce(&mut Transaction<'_, '_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.check_open()?;
        let mut writers = self.across.clone().lock_owned().await;
        self.check_open()?;
        let concerned: Vec<_> = numbers.iter().map(|&number| self.shards[number].clone()).collect();
        let shards = self.shards.len() as u64;
        // From here on it is carried out, whether or not this is dropped.
        let running = tokio::task::spawn_blocking(move || {
            across::run(&concerned, &mut writers, |steps, changes| {
                work(&mut Transaction::new(steps, changes, shards))
            })
        });
        running.await.unwrap_or(Err(Error::Panicked { what: "work in a transaction" }))
    }
}

impl<'a, 'b> Transaction<'a, 'b> {
    /// Over the shards of these steps, of so many, with note taken of what is done.
    pub(crate) fn new(steps: &'a mut [Step<'b>], changes: &'a mut Vec<(usize, Change)>, shards: u64) -> Self {
        Self { steps, changes: Some(changes), shards }
    }

    /// The entry of the key, dead or alive.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] when the transaction is not over the shard that has the key, [`Error::Unavailable`].
    pub fn get(&mut self, key: &Key) -> Result<Option<Entry>> {
        let step = self.step(key)?;
        let found = step
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
        match decode(step.shard, key, stored) {
            Ok(entry) => Ok(Some(entry).filter(|entry| !step.covers(key, entry.generation, entry.tags()))),
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
        let step = self.step(key)?;
        let image = match Image::new(step.shard, (key, entry, hold), true) {
            Ok(image) => Arc::new(image),
            Err(Unready::TooLarge) => return Ok(Put::TooLarge),
            Err(Unready::Full) => return Ok(Put::Full),
            Err(Unready::Failed(error)) => return Err(Error::unavailable(NAME, "put", error)),
            Err(Unready::Blocks) => return Err(Error::unavailable(NAME, "put", "a file where none may be")),
        };
        let (put, shard) = (step.put(key, &image).map_err(failed)?, step.shard.number);
        if let (Put::Stored, Some(changes)) = (put, &mut self.changes) {
            changes.push((shard, Change::Put(key.clone(), image)));
        }
        Ok(put)
    }

    /// As [`Tier::remove`](tiercache_core::Tier::remove).
    ///
    /// # Errors
    /// As for [`Transaction::get`].
    pub fn remove(&mut self, key: &Key, below: Generation) -> Result<Removal> {
        let step = self.step(key)?;
        let (removal, shard) = (step.remove(key, below).map_err(failed)?, step.shard.number);
        if let (Removal::Done { .. }, Some(changes)) = (removal, &mut self.changes) {
            changes.push((shard, Change::Remove(key.clone(), below)));
        }
        Ok(removal)
    }

    /// Runs `part`; when it fails, what it did is undone, and this transaction goes on as if it had not begun.
    ///
    /// # Errors
    /// What `part` said; [`Error::Unavailable`] when it could not be begun or ended, and nothing of the whole
    /// transaction can be committed any more.
    pub fn nested<T>(&mut self, part: impl FnOnce(&mut Transaction<'_, '_>) -> Result<T>) -> Result<T> {
        let begun = self.steps.iter_mut().map(Step::begin_part).collect::<rusqlite::Result<Vec<_>>>();
        let begun = begun.map_err(failed)?;
        let before = self.changes.as_ref().map_or(0, |changes| changes.len());
        let (steps, changes) = (&mut *self.steps, self.changes.as_deref_mut());
        let done = part(&mut Transaction { steps, changes, shards: self.shards });
        for (step, begun) in self.steps.iter_mut().zip(&begun) {
            step.end_part(begun, done.is_err()).map_err(failed)?;
        }
        if let (Err(_), Some(changes)) = (&done, &mut self.changes) {
            changes.truncate(before);
        }
        done
    }

    fn step(&mut self, key: &Key) -> Result<&mut Step<'b>> {
        let number = shard_of(key, self.shards);
        match self.steps.iter_mut().find(|step| step.shard.number == number) {
            // SQLite does so when it has no other choice. What came now would stay whatever becomes of the rest.
            Some(step) if step.connection.is_autocommit() => {
                Err(Error::unavailable(NAME, OP, "it was rolled back"))
            }
            Some(step) => Ok(step),
            None => {
                let reason =
                    "another shard has it: begin the transaction over all its keys, or over all shards";
                Err(Error::InvalidOption { option: "key", reason: reason.into() })
            }
        }
    }
}

#[async_trait]
impl Transactions for SqliteTier {
    async fn transact(&self, keys: &[Key], work: Work) -> Result<()> {
        self.transaction_over(keys, move |transaction| work(transaction)).await
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
        self.step(key)?.counted(key).map_err(failed)
    }

    fn kills(&mut self, key: &Key, entry: &Entry) -> Result<bool> {
        Ok(self.step(key)?.covers(key, entry.generation, entry.tags()))
    }

    fn nested(&mut self, part: &mut dyn FnMut(&mut dyn Transacting) -> Result<()>) -> Result<()> {
        Transaction::nested(self, |transaction| part(transaction))
    }
}

impl fmt::Debug for Transaction<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shards: Vec<_> = self.steps.iter().map(|step| step.shard.number).collect();
        f.debug_struct("Transaction").field("shards", &shards).finish_non_exhaustive()
    }
}

fn failed(error: rusqlite::Error) -> Error {
    Error::unavailable(NAME, OP, error)
}
