//! Objects: one method, one request, as a rule.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ServerSideEncryption, StorageClass};
use bytes::Bytes;
use tiercache_core::envelope::{HEADER_BYTES, Header};
use tiercache_core::{Generation, Result, Timestamp};
use xxhash_rust::xxh3::xxh3_64;

use crate::client::{Clients, Failure, Kind};
use crate::{S3Config, upload};

/// Bytes that have the front of nearly every envelope.
pub(crate) const FRONT: u64 = 4 << 10;
/// The most keys S3 lists at once.
const PAGE: i32 = 1_000;
/// User metadata; S3 puts `x-amz-meta-` before it.
const GENERATION: &str = "generation";
const DEADLINE: &str = "deadline";
const UNTIL: &str = "until";
const IDENTITY: &str = "identity";
/// Where generation, creation and deadline stand in an envelope.
const TIMES: std::ops::Range<usize> = 11..29;

/// The requests a level makes.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) clients: Clients,
    pub(crate) bucket: String,
    pub(crate) timeout: Duration,
    pub(crate) multipart_threshold: u64,
    pub(crate) part_size: usize,
    pub(crate) storage_class: Option<StorageClass>,
    pub(crate) encryption: Option<ServerSideEncryption>,
    pub(crate) kms_key_id: Option<String>,
    /// Whether the vendor takes requests with a condition. One that ignores conditions does no harm.
    conditions: AtomicBool,
}

/// What stands under a name, without its body.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) generation: Generation,
    pub(crate) identity: Option<u64>,
    pub(crate) etag: Option<String>,
}

/// An object that was read, as far as it was asked for.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) bytes: Bytes,
    pub(crate) etag: Option<String>,
    /// When it leaves the level if nobody uses it.
    pub(crate) until: Timestamp,
}

/// What is written with an entry.
#[derive(Clone, Debug)]
pub(crate) struct Labels {
    pub(crate) generation: Generation,
    pub(crate) deadline: Timestamp,
    pub(crate) until: Timestamp,
    pub(crate) identity: u64,
}

/// What a listing says of an object.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) size: u64,
    /// When it was written: milliseconds since the epoch, by the server's clock.
    pub(crate) modified: i64,
}

/// An upload that was begun and not ended.
#[derive(Clone, Debug)]
pub(crate) struct Unfinished {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) begun: i64,
}

/// What a read gave.
pub(crate) enum Read {
    Absent,
    TooLarge,
    Object(Object),
}

impl Store {
    pub(crate) fn new(config: &S3Config, clients: Clients) -> Self {
        Self {
            clients,
            bucket: config.bucket.clone(),
            timeout: config.timeout,
            multipart_threshold: config.multipart_threshold,
            part_size: usize::try_from(config.part_size).unwrap_or(usize::MAX),
            storage_class: config.storage_class.as_deref().map(StorageClass::from),
            encryption: config.server_side_encryption.as_deref().map(ServerSideEncryption::from),
            kms_key_id: config.kms_key_id.clone(),
            conditions: AtomicBool::new(true),
        }
    }

    /// The generation that stands under a name: from the metadata, and from the beginning of the envelope where a
    /// vendor or a copy lost that.
    pub(crate) async fn head(&self, name: &str) -> Result<Option<Standing>, Failure> {
        let request = self.clients.again.head_object().bucket(&self.bucket).key(name);
        let found = match self.timed("head", request.send()).await {
            Ok(found) => found,
            Err(Failure { kind: Kind::Absent, .. }) => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let label = |label: &str| found.metadata().and_then(|labels| labels.get(label));
        if let Some(generation) = label(GENERATION).and_then(|text| text.parse().ok()) {
            return Ok(Some(Standing {
                generation: Generation::new(generation),
                identity: label(IDENTITY).and_then(|text| u64::from_str_radix(text, 16).ok()),
                etag: found.e_tag().map(str::to_owned),
            }));
        }
        match self.read(name, Some(HEADER_BYTES as u64), u64::MAX).await? {
            Read::Object(Object { bytes, etag, .. }) => Ok(Some(Standing {
                // What is no envelope is older than everything.
                generation: Header::parse(&bytes).map_or(Generation::ZERO, |header| header.generation),
                identity: identity_of(&bytes),
                etag,
            })),
            Read::Absent | Read::TooLarge => Ok(None),
        }
    }

    /// Reads an object, or the first `front` bytes of it, unless it has more than `most`.
    pub(crate) async fn read(&self, name: &str, front: Option<u64>, most: u64) -> Result<Read, Failure> {
        let mut request = self.clients.again.get_object().bucket(&self.bucket).key(name);
        if let Some(front) = front {
            request = request.range(format!("bytes=0-{}", front.saturating_sub(1)));
        }
        let reading = async {
            let found = match request.send().await {
                Ok(found) => found,
                Err(error) => return Err(Failure::of("get", error)),
            };
            let label = |label: &str| found.metadata().and_then(|labels| labels.get(label)).cloned();
            let until = label(UNTIL)
                .and_then(|text| text.parse().ok())
                .map_or(Timestamp::NEVER, Timestamp::from_millis);
            let etag = found.e_tag().map(str::to_owned);
            // Before anything is allocated; without a length nothing is known to be small enough.
            let declared = found.content_length().and_then(|length| u64::try_from(length).ok());
            let Some(length) = declared.filter(|length| *length <= most.min(front.unwrap_or(most))) else {
                return Ok(Read::TooLarge);
            };
            let bytes = collect(found.body, length).await?;
            Ok(Read::Object(Object { bytes, etag, until }))
        };
        match tokio::time::timeout(self.timeout, reading).await {
            Err(_) => Err(Failure::late("get", self.timeout)),
            Ok(Err(Failure { kind: Kind::Absent, .. })) => Ok(Read::Absent),
            // An empty object has no first byte.
            Ok(Err(Failure { code: Some(code), .. })) if code == "InvalidRange" => {
                Ok(Read::Object(Object { bytes: Bytes::new(), etag: None, until: Timestamp::NEVER }))
            }
            Ok(read) => read,
        }
    }

    /// Writes an entry at once where `standing` is what stands there, as far as the vendor sees to that.
    pub(crate) async fn write(
        &self,
        name: &str,
        pieces: [Bytes; 2],
        labels: &Labels,
        standing: Option<&Standing>,
    ) -> Result<(), Failure> {
        self.with_condition(|condition| {
            let request = self
                .clients
                .once
                .put_object()
                .bucket(&self.bucket)
                .key(name)
                .set_metadata(Some(labels.to_map()))
                .set_storage_class(self.storage_class.clone())
                .set_server_side_encryption(self.encryption.clone())
                .set_ssekms_key_id(self.kms_key_id.clone())
                .set_if_match(
                    condition.then(|| standing.and_then(|standing| standing.etag.clone())).flatten(),
                )
                .set_if_none_match((condition && standing.is_none()).then(|| "*".to_owned()))
                .body(upload::body(pieces.clone()));
            // The envelope has a checksum; hashing it all again would take longer than sending it.
            self.timed("put", request.customize().disable_payload_signing().send())
        })
        .await
        .map(drop)
    }

    /// Writes a small object whose name says nearly everything; never over another.
    pub(crate) async fn write_record(&self, name: &str, body: Vec<u8>) -> Result<(), Failure> {
        let request =
            self.clients.again.put_object().bucket(&self.bucket).key(name).body(ByteStream::from(body));
        self.timed("put record", request.send()).await.map(drop)
    }

    /// Deletes what `etag` names, as far as the vendor sees to that, else whatever stands there.
    pub(crate) async fn delete(&self, name: &str, etag: Option<&str>) -> Result<(), Failure> {
        let deleted = self.with_condition(|condition| {
            let request = self.clients.again.delete_object().bucket(&self.bucket).key(name);
            let request = request.set_if_match(etag.filter(|_| condition).map(str::to_owned));
            self.timed("delete", request.send())
        });
        match deleted.await {
            Ok(_) | Err(Failure { kind: Kind::Absent, .. }) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// A page of names that begin with `prefix`, in their order, behind `after`, and whether there are more.
    pub(crate) async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        most: usize,
    ) -> Result<(Vec<Listed>, bool), Failure> {
        let request = self
            .clients
            .again
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(prefix)
            .max_keys(i32::try_from(most).map_or(PAGE, |most| most.clamp(1, PAGE)))
            .set_start_after(after.map(str::to_owned));
        let page = self.timed("list", request.send()).await?;
        let listed = page.contents().iter().filter_map(|object| {
            Some(Listed {
                name: object.key()?.to_owned(),
                size: u64::try_from(object.size().unwrap_or_default()).unwrap_or_default(),
                modified: object.last_modified().map_or(0, millis),
            })
        });
        Ok((listed.collect(), page.is_truncated().unwrap_or_default()))
    }

    /// Every name that begins with `prefix`.
    pub(crate) async fn list_all(&self, prefix: &str) -> Result<Vec<Listed>, Failure> {
        let mut all: Vec<Listed> = Vec::new();
        loop {
            let after = all.last().map(|listed| listed.name.as_str());
            let (page, more) = self.list(prefix, after, PAGE as usize).await?;
            let empty = page.is_empty();
            all.extend(page);
            if !more || empty {
                return Ok(all);
            }
        }
    }

    /// Uploads under `prefix` that were begun and not ended.
    pub(crate) async fn unfinished(&self, prefix: &str) -> Result<Vec<Unfinished>, Failure> {
        let request = self.clients.again.list_multipart_uploads().bucket(&self.bucket).prefix(prefix);
        let page = self.timed("list uploads", request.send()).await?;
        let upload = |upload: &aws_sdk_s3::types::MultipartUpload| {
            Some(Unfinished {
                name: upload.key()?.to_owned(),
                id: upload.upload_id()?.to_owned(),
                begun: upload.initiated().map_or(0, millis),
            })
        };
        Ok(page.uploads().iter().filter_map(upload).collect())
    }

    /// Ends an upload without an object; its parts go.
    pub(crate) async fn abort(&self, name: &str, id: &str) -> Result<(), Failure> {
        let request =
            self.clients.again.abort_multipart_upload().bucket(&self.bucket).key(name).upload_id(id);
        match self.timed("abort upload", request.send()).await {
            Ok(_) | Err(Failure { kind: Kind::Absent, .. }) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Runs a request that may have a condition, and again without when the vendor does not know conditions.
    pub(crate) async fn with_condition<T, F>(&self, request: impl Fn(bool) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        if self.conditions.load(Ordering::Relaxed) {
            match request(true).await {
                Err(Failure { kind: Kind::Unknown, .. }) => {
                    tracing::info!(bucket = self.bucket, "the vendor knows no conditional requests");
                    self.conditions.store(false, Ordering::Relaxed);
                }
                answer => return answer,
            }
        }
        request(false).await
    }

    pub(crate) async fn timed<T, E>(
        &self,
        op: &'static str,
        request: impl Future<Output = Result<T, SdkError<E>>>,
    ) -> Result<T, Failure>
    where
        E: aws_sdk_s3::error::ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        match tokio::time::timeout(self.timeout, request).await {
            Ok(answer) => answer.map_err(|error| Failure::of(op, error)),
            Err(_) => Err(Failure::late(op, self.timeout)),
        }
    }

    pub(crate) fn once(&self) -> &Client {
        &self.clients.once
    }
}

impl Labels {
    pub(crate) fn to_map(&self) -> HashMap<String, String> {
        let texts = [
            (GENERATION, self.generation.get().to_string()),
            (DEADLINE, self.deadline.as_millis().to_string()),
            (UNTIL, self.until.as_millis().to_string()),
            (IDENTITY, format!("{:016x}", self.identity)),
        ];
        texts.map(|(label, text)| (label.to_owned(), text)).into()
    }
}

/// What tells two writes of one generation apart, by the header of the envelope: the checksum; of a sealed entry, which
/// is another one every time it is sealed, when it was made and when it dies.
pub(crate) fn identity_of(envelope: &[u8]) -> Option<u64> {
    let sealed = Header::parse(envelope).ok()?.is_sealed();
    let field = if sealed { TIMES } else { HEADER_BYTES - 8..HEADER_BYTES };
    let field = envelope.get(field)?;
    if sealed { Some(xxh3_64(field)) } else { field.try_into().ok().map(u64::from_le_bytes) }
}

/// Milliseconds since the epoch, by the server's clock.
fn millis(time: &aws_sdk_s3::primitives::DateTime) -> i64 {
    time.to_millis().unwrap_or_default()
}

/// Reads a body of so many bytes into one buffer.
async fn collect(mut body: ByteStream, length: u64) -> Result<Bytes, Failure> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let mut whole: Option<Vec<u8>> = None;
    let mut first = Bytes::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| Failure::torn("get", error))?;
        match &mut whole {
            // A small object comes in one piece.
            None if first.is_empty() => first = chunk,
            None => {
                let mut buffer = Vec::with_capacity(length);
                buffer.extend_from_slice(&first);
                buffer.extend_from_slice(&chunk);
                whole = Some(buffer);
            }
            Some(buffer) => buffer.extend_from_slice(&chunk),
        }
        let read = whole.as_ref().map_or(first.len(), Vec::len);
        if read > length {
            return Err(Failure::torn("get", "more bytes than were announced"));
        }
    }
    let bytes = whole.map_or(first, Bytes::from);
    if bytes.len() == length {
        Ok(bytes)
    } else {
        Err(Failure::torn("get", "fewer bytes than were announced"))
    }
}
