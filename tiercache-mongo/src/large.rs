//! Envelopes too large for a document, in GridFS.
//!
//! 1. Every write is a file of its own, with a fresh id: an upload under an id that exists would destroy that file.
//! 2. The document of the entry points to the file, and is written last: that is the commit.
//! 3. The file of the entry that was replaced is removed after.
//!
//! What is cut between leaves files, or chunks without a file, that nothing points to. [`Files::collect`] removes them
//! once they are older than any upload may take. There is no TTL index on files: it would leave their chunks behind.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::{AsyncReadExt, AsyncWriteExt, TryStreamExt};
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, Document, doc};
use mongodb::error::{ErrorKind, GridFsErrorKind, Result};
use mongodb::gridfs::GridFsBucket;
use mongodb::options::GridFsBucketOptions;
use mongodb::{Collection, Database};

use crate::documents::rank;
use tiercache_core::Generation;

/// Bytes written before it is asked again whether the upload is still wanted.
const PIECE: usize = 4 << 20;
/// Files looked at, or removed, at a time.
const PAGE: usize = 200;

/// The GridFS bucket of a level.
pub(crate) struct Files {
    bucket: GridFsBucket,
    files: Collection<Document>,
    chunks: Collection<Document>,
}

impl Files {
    pub(crate) fn new(database: &Database, base: &str) -> Self {
        let options = GridFsBucketOptions::builder().bucket_name(base.to_owned()).build();
        Self {
            bucket: database.gridfs_bucket(options),
            files: database.collection(&format!("{base}.files")),
            chunks: database.collection(&format!("{base}.chunks")),
        }
    }

    pub(crate) fn chunks(&self) -> &Collection<Document> {
        &self.chunks
    }

    /// Uploads `bytes` as the file of that id; returns whether it is whole. It is given up as soon as it is not
    /// `wanted` any more.
    pub(crate) async fn upload(
        &self,
        id: ObjectId,
        name: &str,
        generation: Generation,
        bytes: Bytes,
        wanted: Arc<AtomicBool>,
    ) -> Result<bool> {
        let metadata = doc! { "rank": rank(generation) };
        let mut stream =
            self.bucket.open_upload_stream(name).id(Bson::ObjectId(id)).metadata(metadata).await?;
        for piece in bytes.chunks(PIECE) {
            if !wanted.load(Ordering::Acquire) {
                stream.abort().await?;
                return Ok(false);
            }
            stream.write_all(piece).await?;
        }
        stream.close().await?;
        Ok(true)
    }

    /// The bytes of a file; `None` when it is not there, or not whole.
    pub(crate) async fn download(&self, id: ObjectId) -> Result<Option<Vec<u8>>> {
        let mut stream = match self.bucket.open_download_stream(Bson::ObjectId(id)).await {
            Ok(stream) => stream,
            Err(error) => return if is_missing(&error) { Ok(None) } else { Err(error) },
        };
        let mut bytes = Vec::new();
        match stream.read_to_end(&mut bytes).await {
            Ok(_) => Ok(Some(bytes)),
            Err(error) => {
                let error = mongodb::error::Error::from(error);
                if is_missing(&error) { Ok(None) } else { Err(error) }
            }
        }
    }

    /// Removes files, those of the first chunk last: by it the rest is found if this is cut.
    pub(crate) async fn remove(&self, ids: &[ObjectId]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        self.chunks.delete_many(doc! { "files_id": { "$in": ids }, "n": { "$gt": 0 } }).await?;
        self.files.delete_many(doc! { "_id": { "$in": ids } }).await?;
        self.chunks.delete_many(doc! { "files_id": { "$in": ids } }).await?;
        Ok(())
    }

    /// Removes files below a generation whose names are in a range. Nothing may point to them any more.
    pub(crate) async fn clear(&self, range: Option<&Document>, below: Generation) -> Result<()> {
        let mut dead = doc! { "metadata.rank": { "$lt": rank(below) } };
        if let Some(names) = range {
            dead.insert("filename", names.clone());
        }
        loop {
            let page = ids(&self.files, dead.clone(), "_id", doc! {}).await?;
            if page.is_empty() {
                return Ok(());
            }
            self.remove(&page.into_iter().collect::<Vec<_>>()).await?;
        }
    }

    /// Looks at a page of the files with ids above `after` and made before `until`, and removes those no entry
    /// points to. Returns how many it removed, and where the next page begins.
    pub(crate) async fn collect(
        &self,
        entries: &Collection<Document>,
        after: Option<ObjectId>,
        until: ObjectId,
    ) -> Result<(u64, Option<ObjectId>)> {
        let mut old = doc! { "$lt": until };
        if let Some(after) = after {
            old.insert("$gt", after);
        }
        // A cut upload has chunks without a file, a cut removal may have left a file without chunks.
        let begun =
            ids(&self.chunks, doc! { "files_id": old.clone(), "n": 0 }, "files_id", doc! { "files_id": 1 })
                .await?;
        let ended = ids(&self.files, doc! { "_id": old }, "_id", doc! { "_id": 1 }).await?;
        let full = |page: &BTreeSet<ObjectId>| if page.len() < PAGE { None } else { page.last().copied() };
        let next = [full(&begun), full(&ended)].into_iter().flatten().min();
        let page: Vec<ObjectId> =
            begun.union(&ended).copied().filter(|id| next.is_none_or(|next| *id <= next)).collect();
        if page.is_empty() {
            return Ok((0, next));
        }
        let wanted = doc! { "_id": 0, "filename": 1 };
        let named = self.files.find(doc! { "_id": { "$in": &page } }).projection(wanted).await?;
        let named: Vec<Document> = named.try_collect().await?;
        let names: Vec<&str> = named.iter().filter_map(|file| file.get_str("filename").ok()).collect();
        let pointing = entries.find(doc! { "_id": { "$in": names } }).projection(doc! { "file": 1 }).await?;
        let pointing: Vec<Document> = pointing.try_collect().await?;
        let alive: HashSet<ObjectId> =
            pointing.iter().filter_map(|entry| entry.get_object_id("file").ok()).collect();
        let orphans: Vec<ObjectId> = page.into_iter().filter(|id| !alive.contains(id)).collect();
        self.remove(&orphans).await?;
        Ok((orphans.len() as u64, next))
    }
}

/// A page of the ids that `field` has, in order.
async fn ids(
    collection: &Collection<Document>,
    filter: Document,
    field: &str,
    sort: Document,
) -> Result<BTreeSet<ObjectId>> {
    let wanted = if field == "_id" {
        doc! { "_id": 1 }
    } else {
        doc! { "_id": 0, field: 1 }
    };
    let found = collection.find(filter).projection(wanted).sort(sort).limit(PAGE as i64).await?;
    let found: Vec<Document> = found.try_collect().await?;
    Ok(found.iter().filter_map(|document| document.get_object_id(field).ok()).collect())
}

/// Whether a file, or a part of it, is not there, or not as it was written.
fn is_missing(error: &mongodb::error::Error) -> bool {
    match &*error.kind {
        ErrorKind::GridFs(
            GridFsErrorKind::FileNotFound { .. }
            | GridFsErrorKind::MissingChunk { .. }
            | GridFsErrorKind::WrongSizeChunk { .. }
            | GridFsErrorKind::WrongNumberOfChunks { .. },
        ) => true,
        // Through the stream, the driver's errors come wrapped.
        ErrorKind::Io(error) => error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<mongodb::error::Error>())
            .is_some_and(is_missing),
        _ => false,
    }
}
