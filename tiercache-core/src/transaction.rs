//! What a tier must do to change several keys as one step.

use async_trait::async_trait;

use crate::tier::{Hold, Put, Removal};
use crate::{Entry, Generation, Key, Result, Tier};

/// A tier with transactions.
#[async_trait]
pub trait Transactions: Tier {
    /// Runs `work` in a transaction over the keys, of which there is one at least, where it may block. What `work` does is
    /// seen by no other transaction, and kept by no crash, before it is committed; when it fails, or panics, it is undone.
    /// `work` runs once at most. A get of another process during the commit may find one key new and another as it was.
    ///
    /// # Errors
    /// What `work` said; [`Error::Unavailable`](crate::Error::Unavailable) and
    /// [`Error::TimedOut`](crate::Error::TimedOut) when it could not be begun or committed: nothing happened, unless the
    /// source says that it is committed and a part of it follows.
    async fn transact(&self, keys: &[Key], work: Work) -> Result<()>;
}

/// What is done in a transaction.
pub type Work = Box<dyn FnOnce(&mut dyn Transacting) -> Result<()> + Send>;

/// A transaction under way. Calls may block.
pub trait Transacting {
    /// The entry of the key as this transaction has it, dead or alive.
    fn get(&mut self, key: &Key) -> Result<Option<Entry>>;

    /// As [`Tier::put`].
    fn put(&mut self, key: &Key, entry: &Entry, hold: Hold) -> Result<Put>;

    /// As [`Tier::remove`].
    fn remove(&mut self, key: &Key, below: Generation) -> Result<Removal>;

    /// What whoever has put or removed the key before, in any process, has counted to.
    fn standing(&mut self, key: &Key) -> Result<Standing>;

    /// Whether an invalidation, by any process, reaches an entry of the key.
    fn kills(&mut self, key: &Key, entry: &Entry) -> Result<bool>;

    /// Runs `part`; when it fails, what it did is undone, and the transaction goes on as if it had not begun.
    fn nested(&mut self, part: &mut dyn FnMut(&mut dyn Transacting) -> Result<()>) -> Result<()>;
}

/// How far a key has been counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The generation of its entry, or of the mark of its removal.
    pub newest: Generation,
    /// What a put must have to be taken at least: above every invalidation, too.
    pub above: Generation,
}
