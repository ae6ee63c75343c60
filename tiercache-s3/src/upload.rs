//! Entries in parts.
//!
//! 1. An upload is begun; its id is guarded from here on.
//! 2. The parts go up, a few at a time; nobody sees them.
//! 3. It is completed, if that is still permitted: the commit point. Until then a caller that goes away, or an error, leaves the guard to end the
//!    upload in the background. What even that does not reach, because the process ended, the walk cleans up.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http_body::{Body, Frame, SizeHint};
use tiercache_core::tier::Permit;

use crate::background::Background;
use crate::client::Failure;
use crate::store::{Labels, Standing, Store};

/// Parts of one upload on their way at once.
const AT_ONCE: usize = 4;

/// Uploads of this process that have begun and not ended.
pub(crate) type Active = Arc<Mutex<HashSet<String>>>;

/// Uploads an entry in parts, where `standing` is what stands there as far as the vendor sees to that; whether the permit
/// held where it was to be completed.
#[allow(clippy::too_many_arguments, reason = "called once")]
pub(crate) async fn in_parts(
    store: &Arc<Store>,
    background: &Arc<Background>,
    active: &Active,
    name: &str,
    pieces: [Bytes; 2],
    labels: &Labels,
    standing: Option<&Standing>,
    permit: &dyn Permit,
) -> Result<bool, Failure> {
    let request = store
        .once()
        .create_multipart_upload()
        .bucket(&store.bucket)
        .key(name)
        .set_metadata(Some(labels.to_map()))
        .set_storage_class(store.storage_class.clone())
        .set_server_side_encryption(store.encryption.clone())
        .set_ssekms_key_id(store.kms_key_id.clone());
    let begun = store.timed("begin upload", request.send()).await?;
    let id = begun.upload_id().ok_or_else(|| Failure::torn("begin upload", "the answer has no upload id"))?;
    let guard = Guard::over(store, background, active, name, id);

    let part = |(number, pieces): (i32, [Bytes; 2])| {
        let (store, name, id) = (store.clone(), name.to_owned(), id.to_owned());
        async move {
            let request = store
                .clients
                .again
                .upload_part()
                .bucket(&store.bucket)
                .key(name)
                .upload_id(id)
                .part_number(number)
                .body(body(pieces));
            let sent =
                store.timed("upload part", request.customize().disable_payload_signing().send()).await?;
            let etag = sent.e_tag().map(str::to_owned);
            Ok::<_, Failure>(CompletedPart::builder().part_number(number).set_e_tag(etag).build())
        }
    };
    let parts = (1..).zip(split(pieces, store.part_size));
    let mut parts: Vec<_> =
        stream::iter(parts.collect::<Vec<_>>()).map(part).buffer_unordered(AT_ONCE).try_collect().await?;
    parts.sort_by_key(|part| part.part_number());

    if !permit.holds() {
        return Ok(false);
    }
    let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
    store
        .with_condition(|condition| {
            let request = store
                .once()
                .complete_multipart_upload()
                .bucket(&store.bucket)
                .key(name)
                .upload_id(id)
                .multipart_upload(parts.clone())
                .set_if_match(
                    condition.then(|| standing.and_then(|standing| standing.etag.clone())).flatten(),
                )
                .set_if_none_match((condition && standing.is_none()).then(|| "*".to_owned()));
            store.timed("complete upload", request.send())
        })
        .await?;
    guard.end();
    Ok(true)
}

/// Ends the upload unless it is over.
struct Guard {
    store: Arc<Store>,
    background: Arc<Background>,
    active: Active,
    name: String,
    id: String,
    over: bool,
}

impl Guard {
    fn over(store: &Arc<Store>, background: &Arc<Background>, active: &Active, name: &str, id: &str) -> Self {
        active.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned());
        let (store, background, active) = (store.clone(), background.clone(), active.clone());
        Self { store, background, active, name: name.to_owned(), id: id.to_owned(), over: false }
    }

    fn end(mut self) {
        self.over = true;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.active.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        if self.over {
            return;
        }
        let store = self.store.clone();
        let (name, id) = (std::mem::take(&mut self.name), std::mem::take(&mut self.id));
        self.background.begin(async move {
            if let Err(failure) = store.abort(&name, &id).await {
                tracing::warn!(object = name, error = %failure.error, "an unfinished upload is left to the next walk");
            }
        });
    }
}

/// The two pieces of an envelope as one body, uncopied.
pub(crate) fn body(pieces: [Bytes; 2]) -> ByteStream {
    let mut pieces: VecDeque<Bytes> = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
    if pieces.len() < 2 {
        return ByteStream::from(pieces.pop_front().unwrap_or_default());
    }
    ByteStream::new(SdkBody::retryable(move || SdkBody::from_body_1_x(Pieces(pieces.clone()))))
}

/// Cuts an envelope into parts of `size` bytes, of which the first may be in two pieces. Nothing is copied.
fn split([mut front, mut value]: [Bytes; 2], size: usize) -> Vec<[Bytes; 2]> {
    let mut parts = Vec::new();
    while !front.is_empty() || !value.is_empty() {
        let first = front.split_to(front.len().min(size));
        let second = value.split_to(value.len().min(size - first.len()));
        parts.push([first, second]);
    }
    parts
}

#[derive(Debug)]
struct Pieces(VecDeque<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|piece| piece.len() as u64).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_their_size_and_all_bytes_in_order() {
        let whole: Vec<u8> = (0..=255).collect();
        for (front, size) in [(0, 10), (5, 10), (10, 10), (25, 10), (256, 10), (3, 256), (3, 1_000)] {
            let pieces = [Bytes::copy_from_slice(&whole[..front]), Bytes::copy_from_slice(&whole[front..])];
            let parts: Vec<Vec<u8>> = split(pieces, size).iter().map(|part| part.concat()).collect();
            assert_eq!(parts.concat(), whole, "{front} {size}");
            assert!(parts[..parts.len() - 1].iter().all(|part| part.len() == size), "{front} {size}");
        }
    }
}
