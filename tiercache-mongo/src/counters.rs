//! Counters: a document each, added to by the server.
//!
//! ```text
//! { _id: name of the key,  n,  dead: when it dies, in milliseconds,  until: when the server may remove it }
//! ```

use std::time::Duration;

use mongodb::Collection;
use mongodb::bson::{Document, doc};
use mongodb::error::Result;
use mongodb::options::ReturnDocument;
use tiercache_core::Timestamp;

use crate::documents::{expiring, expiry, number};
use crate::link::is_duplicate;

/// How often it is tried when the counter dies or is made between two looks.
const TRIES: u32 = 8;

pub(crate) struct Counters(Collection<Document>);

/// What became of adding.
pub(crate) enum Added {
    /// The sum.
    Sum(i64),
    /// It would leave the range; nothing was added.
    OutOfRange,
}

/// What is to be added.
pub(crate) struct Addition {
    pub(crate) delta: i64,
    pub(crate) start: i64,
    pub(crate) deadline: Timestamp,
    pub(crate) now: Timestamp,
}

impl Counters {
    pub(crate) fn new(documents: Collection<Document>) -> Self {
        Self(documents)
    }

    pub(crate) async fn prepare(&self) -> Result<()> {
        self.0.create_index(expiring("until", Duration::ZERO)).await.map(drop)
    }

    pub(crate) async fn add(&self, name: &str, add: &Addition) -> Result<Added> {
        let now = millis(add.now);
        let mut tries = TRIES;
        loop {
            // 1. One that lives, if the sum fits.
            let mut living = doc! { "_id": name, "dead": { "$gt": now } };
            match add.delta {
                0 => {}
                1.. => drop(living.insert("n", doc! { "$lte": i64::MAX - add.delta })),
                // `i64::MIN - i64::MIN` is zero.
                _ => drop(living.insert("n", doc! { "$gte": i64::MIN - add.delta })),
            }
            let update = doc! { "$inc": { "n": add.delta } };
            let added =
                self.0.find_one_and_update(living, update).return_document(ReturnDocument::After).await?;
            if let Some(sum) = added.and_then(|added| number(&added, "n")) {
                return Ok(Added::Sum(sum));
            }
            // 2. One that is dead or absent.
            let Some(first) = add.start.checked_add(add.delta) else {
                // Nothing to begin with; one that lives may have been made, or emptied, since.
                let lives =
                    self.get(name, add.now).await?.is_some_and(|sum| sum.checked_add(add.delta).is_some());
                if !lives || tries == 0 {
                    return Ok(Added::OutOfRange);
                }
                tries -= 1;
                continue;
            };
            let dead = doc! { "_id": name, "dead": { "$lte": now } };
            let mut set = doc! { "n": first, "dead": millis(add.deadline) };
            let update = match expiry(add.deadline, add.now, Duration::ZERO) {
                Some(until) => {
                    set.insert("until", until);
                    doc! { "$set": set }
                }
                None => doc! { "$set": set, "$unset": { "until": "" } },
            };
            match self.0.find_one_and_update(dead, update).upsert(true).await {
                Ok(_) => return Ok(Added::Sum(first)),
                Err(error) if is_duplicate(&error) => {
                    // 3. It lives: either the sum does not fit, or somebody has just made it.
                    let sum = self.get(name, add.now).await?;
                    if sum.is_some_and(|sum| sum.checked_add(add.delta).is_none()) {
                        return Ok(Added::OutOfRange);
                    }
                    if tries == 0 {
                        return Err(error);
                    }
                    tries -= 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) async fn get(&self, name: &str, now: Timestamp) -> Result<Option<i64>> {
        let found = self.0.find_one(doc! { "_id": name, "dead": { "$gt": millis(now) } }).await?;
        Ok(found.and_then(|found| number(&found, "n")))
    }

    pub(crate) async fn remove(&self, name: &str) -> Result<bool> {
        Ok(self.0.delete_one(doc! { "_id": name }).await?.deleted_count > 0)
    }

    /// Forgets those in a range of names.
    pub(crate) async fn clear(&self, range: Document) -> Result<()> {
        self.0.delete_many(range).await.map(drop)
    }
}

fn millis(time: Timestamp) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
