//! Tracking in MongoDB.
//!
//! ```text
//! { _id:  name of the key (see `ids`), which sorts as keys do,
//!   g:    generation,  level,  size,  created,  used,  deadline,  hits,
//!   tags: [ "name value", … ],
//!   last: the command that changed hits last,
//!   dies: when the server may remove it (TTL index) }
//! ```

mod read;
mod totals;
mod write;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::try_join;
use mongodb::bson::{Document, doc};
use mongodb::error::Result as DriverResult;
use mongodb::{Collection, IndexModel};
use tiercache_core::tracking::{Event, Query, Record, Totals};
use tiercache_core::{Error, Key, Leasing, Result, Tracking};
use tokio::sync::RwLock;

use crate::MongoTrackingConfig;
use crate::documents::expiring;
use crate::leases::Leases;
use crate::link::{Link, NAME};

/// What selects by itself, each by an index of its own.
const INDEXED: [&str; 5] = ["tags", "level", "created", "size", "hits"];

/// Tracking in a MongoDB database: records and totals survive a restart, and several processes share it.
pub struct MongoTracking {
    store: Arc<Store>,
    /// Held alone by a batch: what this process reads is a whole number of its batches.
    batches: Arc<RwLock<()>>,
}

struct Store {
    link: Link,
    records: Collection<Document>,
    totals: totals::Store,
    leases: Leases,
    skipped: AtomicU64,
}

impl MongoTracking {
    /// Connects, and makes the indexes that are missing. The collections' names begin with the prefix and `tracking`.
    ///
    /// # Errors
    /// [`Error::Config`] when the configuration cannot be used, [`Error::Refused`] when user or password are wrong
    /// or lack rights, [`Error::Unavailable`] when the server does not answer within twice `connect_timeout`.
    pub async fn open(config: MongoTrackingConfig) -> Result<Self> {
        config.check()?;
        let link = Link::open(&config.server()).await?;
        let base = format!("{}.tracking", config.prefix);
        let store = Arc::new(Store {
            records: link.database().collection(&base),
            totals: totals::Store::new(link.database().collection(&format!("{base}.totals"))),
            leases: Leases::new(link.database(), &base),
            link,
            skipped: AtomicU64::new(0),
        });
        let opening = store.clone();
        if let Err(error) = store.link.run("open", async move { opening.prepare().await }).await {
            let error = store.link.blame(error);
            store.link.abandon();
            return Err(error);
        }
        Ok(Self { store, batches: Arc::default() })
    }

    /// How many documents were skipped because they made no sense, each time they were met.
    pub fn skipped(&self) -> u64 {
        self.store.skipped.load(Ordering::Relaxed)
    }

    pub(crate) fn link(&self) -> &Link {
        &self.store.link
    }

    pub(crate) fn leases(&self) -> Leases {
        self.store.leases.clone()
    }

    /// Reads between batches.
    async fn read<T: Send + 'static>(
        &self,
        op: &'static str,
        call: impl Future<Output = DriverResult<T>> + Send + 'static,
    ) -> Result<T> {
        self.store.link.check_open()?;
        let _between = self.batches.read().await;
        self.store.link.run(op, call).await
    }

    /// Changes something, in a task that ends whether or not it is waited for.
    async fn change<F: Future<Output = Result<()>> + Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Store>) -> F,
    ) -> Result<()> {
        self.store.link.check_open()?;
        let alone = self.batches.clone().write_owned().await;
        let work = work(self.store.clone());
        let task = tokio::spawn(async move {
            let _alone = alone;
            work.await
        });
        task.await.unwrap_or_else(|error| match error.is_panic() {
            true => Err(Error::Panicked { what: "tracking in MongoDB" }),
            false => Err(Error::unavailable(NAME, "record", error)),
        })
    }
}

#[async_trait]
impl Tracking for MongoTracking {
    fn name(&self) -> &'static str {
        NAME
    }

    /// Several commands: see the README for what a failure between them leaves.
    async fn record(&self, events: &[Event]) -> Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        let batch = write::Batch::of(events);
        self.change(|store| async move {
            batch.apply(&store.link, &store.records).await?;
            match batch.totals() {
                Some(totals) => store.totals.add(&store.link, totals).await,
                None => Ok(()),
            }
        })
        .await
    }

    async fn lookup(&self, key: &Key) -> Result<Option<Record>> {
        let (store, name) = (self.store.clone(), crate::ids::record(key));
        let found =
            self.read("lookup", async move { store.records.find_one(doc! { "_id": name }).await }).await?;
        let record = found.as_ref().map(read::record);
        self.note(record.as_ref().is_some_and(Option::is_none) as u64);
        Ok(record.flatten())
    }

    async fn find(&self, query: &Query, after: Option<&Key>, limit: usize) -> Result<Vec<Record>> {
        if limit == 0 {
            return self.store.link.check_open().map(|()| Vec::new());
        }
        let (store, search) = (self.store.clone(), read::Search::of(query, after, limit));
        let found = self.read("find", async move { search.run(&store.records).await }).await?;
        self.note(found.senseless);
        Ok(found.records)
    }

    async fn totals(&self) -> Result<Totals> {
        let store = self.store.clone();
        self.read("totals", async move { store.totals.get().await }).await
    }

    async fn reset_totals(&self) -> Result<()> {
        self.change(|store| async move { store.totals.reset(&store.link).await }).await
    }

    async fn close(&self) -> Result<()> {
        let _alone = self.batches.write().await;
        self.store.link.close().await;
        Ok(())
    }

    fn leasing(&self) -> Option<&dyn Leasing> {
        Some(self)
    }
}

impl MongoTracking {
    fn note(&self, senseless: u64) {
        if senseless > 0 {
            self.store.skipped.fetch_add(senseless, Ordering::Relaxed);
            tracing::warn!(tracking = NAME, senseless, "records that make no sense were left out");
        }
    }
}

impl fmt::Debug for MongoTracking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MongoTracking")
            .field("collection", &self.store.records.name())
            .finish_non_exhaustive()
    }
}

impl Store {
    async fn prepare(&self) -> DriverResult<()> {
        let index = |field: &str| IndexModel::builder().keys(doc! { field: 1 }).build();
        let indexes = INDEXED.iter().map(|field| index(field)).chain([expiring("dies", Duration::ZERO)]);
        try_join!(
            self.records.create_indexes(indexes).into_future(),
            self.totals.prepare(),
            self.leases.prepare()
        )
        .map(drop)
    }
}
