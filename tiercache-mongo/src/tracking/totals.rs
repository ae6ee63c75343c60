//! The totals: one document, replaced as a whole if it is still what was read.
//!
//! ```text
//! { _id: "totals",  hits: [ hot, cold, dry ],  misses,  sets,  deletes,  last: [ ids of the last additions ] }
//! ```
//!
//! An addition whose answer was lost is found among the last ones, and not made twice.

use std::time::Duration;

use mongodb::Collection;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, Document, doc};
use mongodb::error::Result as DriverResult;
use tiercache_core::Result;
use tiercache_core::tracking::Totals;

use super::read::signed;
use crate::documents::number;
use crate::link::{Link, is_duplicate};

const ID: &str = "totals";
/// How many additions are remembered.
const REMEMBERED: usize = 64;
/// How often an addition is tried: against others', and when it is not answered.
const TRIES: u32 = 32;
/// How often it is sent when the way to the server fails.
const SENT: u32 = 3;

#[derive(Clone)]
pub(super) struct Store(Collection<Document>);

impl Store {
    pub(super) fn new(documents: Collection<Document>) -> Self {
        Self(documents)
    }

    /// Makes the document.
    pub(super) async fn prepare(&self) -> DriverResult<()> {
        let first = document(&Totals::default(), &[ObjectId::new()]);
        let made = self.0.update_one(doc! { "_id": ID }, doc! { "$setOnInsert": first }).upsert(true).await;
        match made {
            Err(error) if !is_duplicate(&error) => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) async fn get(&self) -> DriverResult<Totals> {
        let found = self.0.find_one(doc! { "_id": ID }).await?;
        Ok(found.as_ref().map(totals).unwrap_or_default())
    }

    pub(super) async fn add(&self, link: &Link, more: Totals) -> Result<()> {
        self.change(link, move |totals| totals.add(&more)).await
    }

    pub(super) async fn reset(&self, link: &Link) -> Result<()> {
        self.change(link, |totals| *totals = Totals::default()).await
    }

    async fn change(
        &self,
        link: &Link,
        change: impl Fn(&mut Totals) + Clone + Send + Sync + 'static,
    ) -> Result<()> {
        let id = ObjectId::new();
        let mut sent = SENT;
        loop {
            let (store, change) = (self.clone(), change.clone());
            match link.run("totals", async move { store.apply(id, change).await }).await {
                Ok(()) => return Ok(()),
                Err(error) if sent == 1 || !error.is_retryable() => return Err(error),
                Err(_) => sent -= 1,
            }
        }
    }

    /// Makes the change of that id, unless it was made.
    async fn apply(&self, id: ObjectId, change: impl Fn(&mut Totals)) -> DriverResult<()> {
        let mut tries = TRIES;
        loop {
            let found = match self.0.find_one(doc! { "_id": ID }).await? {
                Some(found) => found,
                None => {
                    self.prepare().await?;
                    self.0.find_one(doc! { "_id": ID }).await?.unwrap_or_default()
                }
            };
            let mut last = last(&found);
            if last.contains(&id) {
                return Ok(());
            }
            let same = doc! { "_id": ID, "v": found.get("v").cloned().unwrap_or(Bson::Null) };
            let mut sum = totals(&found);
            change(&mut sum);
            last.push(id);
            let surplus = last.len().saturating_sub(REMEMBERED);
            let update = doc! { "$set": document(&sum, &last[surplus..]) };
            let updated = self.0.update_one(same, update).await?;
            if updated.matched_count > 0 {
                return Ok(());
            }
            tries -= 1;
            if tries == 0 {
                return Err(mongodb::error::Error::custom("the totals are changed by others all the time"));
            }
            // The more are at it, the longer each waits.
            tokio::time::sleep(Duration::from_millis(u64::from(id.bytes()[11] % 8) + 1)).await;
        }
    }
}

fn document(totals: &Totals, last: &[ObjectId]) -> Document {
    doc! {
        "v": last.last().copied().unwrap_or_default(),
        "hits": totals.hits.map(signed).to_vec(),
        "misses": signed(totals.misses),
        "sets": signed(totals.sets),
        "deletes": signed(totals.deletes),
        "last": last.to_vec(),
    }
}

fn totals(document: &Document) -> Totals {
    let natural =
        |field: &str| number(document, field).and_then(|number| u64::try_from(number).ok()).unwrap_or(0);
    let mut hits = [0; 3];
    if let Ok(found) = document.get_array("hits") {
        for (hits, found) in hits.iter_mut().zip(found) {
            *hits = number(&doc! { "n": found.clone() }, "n")
                .and_then(|found| u64::try_from(found).ok())
                .unwrap_or(0);
        }
    }
    Totals { hits, misses: natural("misses"), sets: natural("sets"), deletes: natural("deletes") }
}

fn last(document: &Document) -> Vec<ObjectId> {
    let found = document.get_array("last").map(Vec::as_slice).unwrap_or_default();
    found.iter().filter_map(Bson::as_object_id).collect()
}
