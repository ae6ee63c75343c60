//! Leases: a document each, by the server's clock.
//!
//! ```text
//! { _id: name of the lease,  holder,  token,
//!   until: when it is over, in milliseconds by the server's clock,
//!   gone:  when the server may remove it (TTL index) }
//! ```
//!
//! A call asks for the server's time first. By the time it is carried out that is a little while ago: a lease is
//! taken to be over too late rather than too soon. Documents stay an hour after the lease is over; a token made before
//! one was there is lower only if the call took as long.

use std::time::Duration;

use async_trait::async_trait;
use mongodb::bson::{DateTime, Document, doc};
use mongodb::error::Result as DriverResult;
use mongodb::options::ReturnDocument;
use mongodb::{Collection, Database};
use tiercache_core::lease::{Claim, Holder, Lease, Leasing, term_millis};
use tiercache_core::{Error, Key, Result};
use tokio::time::Instant;

use crate::documents::{expiring, number};
use crate::ids;
use crate::link::{NAME, is_duplicate};
use crate::{MongoTier, MongoTracking};

/// How often it is tried when the lease changes between two looks.
const TRIES: u32 = 100;
/// How long a document stays, in milliseconds.
const STAY: i64 = 3_600_000;

#[derive(Clone)]
pub(crate) struct Leases {
    documents: Collection<Document>,
    database: Database,
}

/// What became of a claim; a token, or how many milliseconds another has it for.
enum Claimed {
    Token(i64),
    Taken(i64),
    Unsettled,
}

impl Leases {
    pub(crate) fn new(database: &Database, base: &str) -> Self {
        Self { documents: database.collection(&format!("{base}.leases")), database: database.clone() }
    }

    pub(crate) async fn prepare(&self) -> DriverResult<()> {
        self.documents.create_index(expiring("gone", Duration::ZERO)).await.map(drop)
    }

    async fn acquire(&self, name: &str, holder: &str, term: i64) -> DriverResult<Claimed> {
        for _ in 0..TRIES {
            let now = self.now().await?;
            // 1. One that is over.
            let over = doc! { "_id": name, "until": { "$lte": now } };
            let mut taking = lasting(now + term);
            taking.insert("holder", holder);
            if let Some(token) =
                self.change(over, doc! { "$set": taking, "$inc": { "token": 1_i64 } }).await?
            {
                return Ok(Claimed::Token(token));
            }
            // 2. None. The time of day in microseconds is above all tokens of one that was there before.
            let mut fresh = doc! { "_id": name, "holder": holder, "token": now * 1_000 };
            fresh.extend(lasting(now + term));
            match self.documents.insert_one(fresh).await {
                Ok(_) => return Ok(Claimed::Token(now * 1_000)),
                Err(error) if is_duplicate(&error) => {}
                Err(error) => return Err(error),
            }
            // 3. The holder's own, or another's.
            if let Some(token) = self.renew(name, holder, now, term).await? {
                return Ok(Claimed::Token(token));
            }
            let found = self.documents.find_one(doc! { "_id": name }).await?;
            if let Some(until) = found.and_then(|found| number(&found, "until")).filter(|&until| until > now)
            {
                return Ok(Claimed::Taken(until - now));
            }
        }
        Ok(Claimed::Unsettled)
    }

    async fn renew(&self, name: &str, holder: &str, now: i64, term: i64) -> DriverResult<Option<i64>> {
        let own = doc! { "_id": name, "holder": holder, "until": { "$gt": now } };
        self.change(own, doc! { "$set": lasting(now + term) }).await
    }

    async fn release(&self, name: &str, holder: &str) -> DriverResult<bool> {
        let now = self.now().await?;
        let own = doc! { "_id": name, "holder": holder, "until": { "$gt": now } };
        let mut ended = lasting(now);
        ended.insert("holder", "");
        Ok(self.change(own, doc! { "$set": ended }).await?.is_some())
    }

    /// Changes the document, if it is as wanted, and returns its token.
    async fn change(&self, wanted: Document, update: Document) -> DriverResult<Option<i64>> {
        let changed =
            self.documents.find_one_and_update(wanted, update).return_document(ReturnDocument::After).await?;
        Ok(changed.and_then(|changed| number(&changed, "token")))
    }

    /// The server's time.
    async fn now(&self) -> DriverResult<i64> {
        let hello = self.database.run_command(doc! { "hello": 1 }).await?;
        let time = hello.get_datetime("localTime").map_err(mongodb::error::Error::custom)?;
        Ok(time.timestamp_millis())
    }
}

/// The end of a lease, and that of its document.
fn lasting(until: i64) -> Document {
    doc! { "until": until, "gone": DateTime::from_millis(until + STAY) }
}

/// The term in milliseconds; the server's time is cut to whole ones.
fn millis(term: Duration) -> Result<i64> {
    // Checked: a day at most.
    Ok(term_millis(term)?.cast_signed() + 1)
}

macro_rules! leasing {
    ($($store:ty)*) => {$(
        #[async_trait]
        impl Leasing for $store {
            async fn acquire(&self, name: &Key, holder: Holder, term: Duration) -> Result<Claim> {
                const OP: &str = "acquire a lease";
                let (millis, until) = (millis(term)?, Instant::now() + term);
                let (leases, name, holder) = (self.leases(), ids::entry(name.as_ref()), holder.to_string());
                let claim = async move { leases.acquire(&name, &holder, millis).await };
                match self.link().run(OP, claim).await? {
                    Claimed::Token(token) => Ok(Claim::Granted(Lease { token: token.cast_unsigned(), until })),
                    Claimed::Taken(left) => Ok(Claim::Taken { left: Duration::from_millis(left.cast_unsigned()) }),
                    Claimed::Unsettled => {
                        Err(Error::unavailable(NAME, OP, "the lease changes faster than it can be taken"))
                    }
                }
            }

            async fn renew(&self, name: &Key, holder: Holder, term: Duration) -> Result<Option<Lease>> {
                let (millis, until) = (millis(term)?, Instant::now() + term);
                let (leases, name, holder) = (self.leases(), ids::entry(name.as_ref()), holder.to_string());
                let renewal = async move { leases.renew(&name, &holder, leases.now().await?, millis).await };
                let token = self.link().run("renew a lease", renewal).await?;
                Ok(token.map(|token| Lease { token: token.cast_unsigned(), until }))
            }

            async fn release(&self, name: &Key, holder: Holder) -> Result<bool> {
                let (leases, name, holder) = (self.leases(), ids::entry(name.as_ref()), holder.to_string());
                let release = async move { leases.release(&name, &holder).await };
                self.link().run("release a lease", release).await
            }
        }
    )*};
}

leasing! { MongoTier MongoTracking }
