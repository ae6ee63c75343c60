//! Entries as documents: how they are written, compared and read.
//!
//! ```text
//! { _id:     name of the key (see `ids`),
//!   rank:    2 × generation of an entry, 2 × generation − 1 of the mark of a removal,
//!   sum:     the envelope's checksum,  size: bytes of the value,  head: the envelope without its value,
//!   body:    the envelope, if it is small,  file: else the GridFS file that has it,
//!   written: when, by the writer's clock: the oldest leave first where there is a bound,
//!   until:   when the server may remove the entry (TTL index),
//!   removed: when the mark was made, by the server's clock (TTL index) }
//! ```
//!
//! With ranks, one comparison says what a write may replace: a put replaces what has a lower rank (older entries, and
//! marks of its own generation), a removal likewise (entries below its generation, and older marks). Every write is
//! one `findAndModify` that inserts where nothing is; that it met something of no lower rank comes back as a
//! duplicate key.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::TryStreamExt;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, DateTime, Document, doc};
use mongodb::error::Result;
use mongodb::options::{IndexOptions, ReturnDocument};
use mongodb::{Collection, IndexModel};
use tiercache_core::tier::{Put, Removal};
use tiercache_core::{Generation, Timestamp};

use crate::large::Files;
use crate::link::is_duplicate;

/// How long a removal is remembered: longer than any write may be late.
const REMOVAL_MARK: Duration = Duration::from_secs(60);
/// Documents outlive their time by this: clocks differ, and deadlines are the manager's to keep.
const MARGIN: u64 = 60_000;
/// Beyond this a time is no time for the server.
const CENTURY: u64 = 100 * 365 * 86_400_000;
/// How often a write is tried when what it met is gone or older at the second look.
const TRIES: u32 = 8;

/// The documents of a level.
pub(crate) struct Documents {
    entries: Collection<Document>,
    files: Files,
    pub(crate) damaged: AtomicU64,
    pub(crate) evicted: AtomicU64,
}

/// An entry as it stands in the store.
pub(crate) struct Found {
    rank: i64,
    pub(crate) bytes: Vec<u8>,
    file: Option<ObjectId>,
    /// The rank as the document has it.
    exactly: Bson,
}

impl Found {
    pub(crate) fn generation(&self) -> Generation {
        generation(self.rank)
    }
}

/// An entry as it is to be written.
pub(crate) struct Written {
    pub(crate) name: String,
    pub(crate) generation: Generation,
    pub(crate) sum: i64,
    pub(crate) size: u64,
    pub(crate) head: Vec<u8>,
    pub(crate) body: Body,
    pub(crate) until: Option<DateTime>,
}

/// Where the envelope is.
pub(crate) enum Body {
    Inline(Vec<u8>),
    File(ObjectId),
}

impl Documents {
    pub(crate) fn new(entries: Collection<Document>, files: Files) -> Self {
        Self { entries, files, damaged: AtomicU64::new(0), evicted: AtomicU64::new(0) }
    }

    pub(crate) fn entries(&self) -> &Collection<Document> {
        &self.entries
    }

    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// Makes the indexes by which the server forgets.
    pub(crate) async fn prepare(&self) -> Result<()> {
        self.entries.create_index(expiring("until", Duration::ZERO)).await?;
        self.entries.create_index(expiring("removed", REMOVAL_MARK)).await?;
        Ok(())
    }

    /// Makes the index by which the oldest are found.
    pub(crate) async fn prepare_eviction(&self) -> Result<()> {
        self.entries.create_index(IndexModel::builder().keys(doc! { "written": 1 }).build()).await.map(drop)
    }

    /// The names of the entries that were written first.
    pub(crate) async fn oldest(&self, limit: i64) -> Result<Vec<String>> {
        let entries = doc! { "written": { "$exists": true } };
        let found = self.entries.find(entries).projection(doc! { "_id": 1 }).sort(doc! { "written": 1 });
        let found: Vec<Document> = found.limit(limit).await?.try_collect().await?;
        Ok(found.iter().filter_map(|found| found.get_str("_id").ok()).map(str::to_owned).collect())
    }

    /// The entry of that name; its bytes are empty when its file is gone.
    pub(crate) async fn read(&self, name: &str) -> Result<Option<Found>> {
        let mut missing = None;
        loop {
            let wanted = doc! { "rank": 1, "body": 1, "file": 1 };
            let Some(mut found) = self.entries.find_one(doc! { "_id": name }).projection(wanted).await?
            else {
                return Ok(None);
            };
            let exactly = found.get("rank").cloned().unwrap_or(Bson::Null);
            // What has no rank has no bytes either: it is damaged.
            let Some(rank) = number(&found, "rank") else {
                return Ok(Some(Found { rank: 0, bytes: Vec::new(), file: None, exactly }));
            };
            if is_mark(rank) {
                return Ok(None);
            }
            if let Some(Bson::Binary(body)) = found.remove("body") {
                return Ok(Some(Found { rank, bytes: body.bytes, file: None, exactly }));
            }
            let file = found.get_object_id("file").ok();
            // The file of an entry that is replaced meanwhile goes away: the next look finds the other.
            let bytes = match file.filter(|_| file != missing) {
                Some(id) => match self.files.download(id).await? {
                    Some(bytes) => bytes,
                    None => {
                        missing = file;
                        continue;
                    }
                },
                None => Vec::new(),
            };
            return Ok(Some(Found { rank, bytes, file, exactly }));
        }
    }

    /// Removes a copy that makes no sense, and no other.
    pub(crate) async fn discard(&self, name: &str, found: &Found) -> Result<()> {
        let mut exactly = doc! { "_id": name, "rank": found.exactly.clone() };
        if let Some(file) = found.file {
            exactly.insert("file", file);
        }
        self.entries.delete_one(exactly).await?;
        if let Some(file) = found.file {
            self.files.remove(&[file]).await?;
        }
        Ok(())
    }

    /// Writes an entry if it is newer than what stands there; returns the file of what it replaced.
    pub(crate) async fn write(&self, entry: &Written) -> Result<(Put, Option<ObjectId>)> {
        let rank = rank(entry.generation);
        let mut set = doc! {
            "rank": rank,
            "sum": entry.sum,
            "size": i64::try_from(entry.size).unwrap_or(i64::MAX),
            "head": binary(entry.head.clone()),
            "written": DateTime::now(),
        };
        let mut unset = doc! { "removed": "" };
        match &entry.body {
            Body::Inline(bytes) => {
                set.insert("body", binary(bytes.clone()));
                unset.insert("file", "");
            }
            Body::File(id) => {
                set.insert("file", id);
                unset.insert("body", "");
            }
        }
        match entry.until {
            Some(until) => set.insert("until", until),
            None => unset.insert("until", ""),
        };
        let update = doc! { "$set": set, "$unset": unset };
        match self.replace(&entry.name, rank, update).await? {
            Met::Lower { file, .. } => Ok((Put::Stored, file)),
            Met::Standing { rank: same, sum } if same == rank && sum == Some(entry.sum) => {
                Ok((Put::Unchanged, None))
            }
            Met::Standing { .. } => Ok((Put::Superseded, None)),
        }
    }

    /// Puts the mark of a removal in the place of what is below it; returns the file of what was there.
    pub(crate) async fn remove(&self, name: &str, below: Generation) -> Result<(Removal, Option<ObjectId>)> {
        let rank = rank(below) - 1;
        let update = doc! {
            "$set": { "rank": rank },
            "$unset": { "sum": "", "size": "", "head": "", "body": "", "file": "", "written": "", "until": "" },
            "$currentDate": { "removed": true },
        };
        match self.replace(name, rank, update).await? {
            Met::Lower { rank, file } => Ok((Removal::Done { over: generation(rank) }, file)),
            Met::Standing { rank, .. } => Ok((Removal::Behind(generation(rank)), None)),
        }
    }

    /// Removes entries of a range of names below a generation; returns whether there were any.
    pub(crate) async fn clear(&self, range: &Document, below: Generation) -> Result<bool> {
        let mut dead = range.clone();
        dead.insert("rank", doc! { "$lt": rank(below) - 1 });
        dead.insert("removed", doc! { "$exists": false });
        Ok(self.entries.delete_many(dead).await?.deleted_count > 0)
    }

    /// How many entries there are, or were when the server last counted.
    pub(crate) async fn count(&self) -> Result<u64> {
        let all = self.entries.estimated_document_count().await?;
        let marks = self.entries.count_documents(doc! { "removed": { "$exists": true } }).await?;
        Ok(all.saturating_sub(marks))
    }

    /// The one step of every write: applies `update` to the document of that name if its rank is lower, or makes
    /// it.
    async fn replace(&self, name: &str, rank: i64, update: Document) -> Result<Met> {
        let mut tries = TRIES;
        loop {
            let lower = doc! { "_id": name, "rank": { "$lt": rank } };
            let written = self
                .entries
                .find_one_and_update(lower, update.clone())
                .upsert(true)
                .return_document(ReturnDocument::Before)
                .projection(doc! { "rank": 1, "file": 1 })
                .await;
            let error = match written {
                Ok(before) => {
                    let before = before.unwrap_or_default();
                    let rank = number(&before, "rank").unwrap_or_default();
                    return Ok(Met::Lower { rank, file: before.get_object_id("file").ok() });
                }
                Err(error) if is_duplicate(&error) => error,
                Err(error) => return Err(error),
            };
            let wanted = doc! { "rank": 1, "sum": 1 };
            if let Some(found) = self.entries.find_one(doc! { "_id": name }).projection(wanted).await? {
                match number(&found, "rank") {
                    Some(standing) if standing >= rank => {
                        return Ok(Met::Standing { rank: standing, sum: number(&found, "sum") });
                    }
                    Some(_) => {}
                    // What has no rank is no document of ours.
                    None => {
                        let exactly = found.get("rank").cloned().unwrap_or(Bson::Null);
                        self.entries.delete_one(doc! { "_id": name, "rank": exactly }).await?;
                    }
                }
            }
            // It was made or removed between the two looks: once more.
            tries -= 1;
            if tries == 0 {
                return Err(error);
            }
        }
    }
}

/// What a write met.
enum Met {
    /// Something of that lower rank, with that file, or nothing: it was written.
    Lower { rank: i64, file: Option<ObjectId> },
    /// Something of no lower rank: nothing was written.
    Standing { rank: i64, sum: Option<i64> },
}

pub(crate) fn rank(generation: Generation) -> i64 {
    // Generations have 48 bits.
    (generation.min(Generation::MAX).get() as i64) * 2
}

pub(crate) fn generation(rank: i64) -> Generation {
    Generation::new((rank.max(0) as u64).div_ceil(2))
}

fn is_mark(rank: i64) -> bool {
    rank & 1 == 1
}

pub(crate) fn binary(bytes: Vec<u8>) -> Binary {
    Binary { subtype: BinarySubtype::Generic, bytes }
}

/// A whole number, however the server spells it.
pub(crate) fn number(document: &Document, key: &str) -> Option<i64> {
    match document.get(key)? {
        Bson::Int32(number) => Some(i64::from(*number)),
        Bson::Int64(number) => Some(*number),
        Bson::Double(number) if number.fract() == 0.0 => Some(*number as i64),
        _ => None,
    }
}

/// When the server may remove what is to be kept until `until`, counted from this moment by this machine's clock;
/// `None`: never.
pub(crate) fn expiry(until: Timestamp, now: Timestamp, margin: Duration) -> Option<DateTime> {
    let left = until.as_millis().saturating_sub(now.as_millis());
    if until.is_never() || left > CENTURY {
        return None;
    }
    let margin = MARGIN.saturating_add(u64::try_from(margin.as_millis()).unwrap_or(u64::MAX));
    Some(
        DateTime::now().saturating_add_millis(i64::try_from(left.saturating_add(margin)).unwrap_or(i64::MAX)),
    )
}

/// An index by which the server removes documents so long after the time in `field`.
pub(crate) fn expiring(field: &str, after: Duration) -> IndexModel {
    let options = IndexOptions::builder().expire_after(after).sparse(true).build();
    IndexModel::builder().keys(doc! { field: 1 }).options(options).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_order_entries_and_marks() {
        let of = Generation::new;
        let mark = |below| rank(of(below)) - 1;
        assert!(rank(of(5)) > mark(5), "a put of the mark's generation is taken");
        assert!(rank(of(4)) < mark(5), "what is below is removed");
        assert!(rank(of(5)) >= mark(5), "what is not stays");
        assert_eq!((generation(rank(of(7))), generation(mark(7))), (of(7), of(7)));
        assert_eq!(generation(rank(Generation::MAX)), Generation::MAX);
        assert!(is_mark(mark(1)) && is_mark(mark(0)) && !is_mark(rank(of(0))));
    }

    #[test]
    fn expiry_is_counted_from_now_and_never_is_never() {
        let at = Timestamp::from_millis;
        assert_eq!(expiry(Timestamp::NEVER, at(5), Duration::ZERO), None);
        assert_eq!(expiry(at(u64::MAX - 1), at(5), Duration::ZERO), None);
        let soon = expiry(at(1_005), at(5), Duration::ZERO).expect("a time").timestamp_millis();
        let now = DateTime::now().timestamp_millis();
        assert!((now + 60_000..=now + 61_000).contains(&soon), "{}", soon - now);
    }
}
