//! Bodies that are not one entry: written as they come, read as they are sent.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use tiercache_core::{CacheManager, Result};

use super::{Content, Id, Pieces, Tags, piece_key};
use crate::{Body, BoxError};

/// Up to this a body is in its variant's entry.
const INLINE: usize = 1 << 20;
/// Of each piece but the last.
const PIECE: usize = 256 << 10;

/// Takes a body's bytes as they come. What it wrote is removed unless it is finished.
pub(crate) struct PieceWriter {
    manager: CacheManager,
    id: Id,
    ttl: Duration,
    tags: Tags,
    most: u64,
    held: BytesMut,
    written: u32,
    length: u64,
    finished: bool,
}

impl PieceWriter {
    pub(crate) fn new(manager: CacheManager, id: Id, ttl: Duration, tags: Tags, most: u64) -> Self {
        Self { manager, id, ttl, tags, most, held: BytesMut::new(), written: 0, length: 0, finished: false }
    }

    /// The next bytes. `false` when there are more than may be stored.
    pub(crate) async fn push(&mut self, bytes: &Bytes) -> Result<bool> {
        self.length += bytes.len() as u64;
        if self.length > self.most {
            return Ok(false);
        }
        self.held.extend_from_slice(bytes);
        if self.written > 0 || self.held.len() > INLINE {
            while self.held.len() >= PIECE {
                let piece = self.held.split_to(PIECE).freeze();
                self.write(piece).await?;
            }
        }
        Ok(true)
    }

    /// All of them were.
    pub(crate) async fn finish(mut self) -> Result<(Content, Self)> {
        if self.written == 0 {
            let inline = Content::Inline(self.held.split().freeze());
            return Ok((inline, self));
        }
        if !self.held.is_empty() {
            let last = self.held.split().freeze();
            self.write(last).await?;
        }
        let pieces = Pieces { id: self.id, length: self.length, size: PIECE as u32 };
        Ok((Content::Pieces(pieces), self))
    }

    /// What names the pieces is stored: they stay.
    pub(crate) fn keep(mut self) {
        self.finished = true;
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    async fn write(&mut self, piece: Bytes) -> Result<()> {
        // Counted first: a write that was dropped half-way may have been made.
        let number = self.written;
        self.written += 1;
        let set = self.manager.set(piece_key(&self.id, number), piece).ttl(self.ttl);
        let set = self.tags.iter().fold(set, |set, (name, value)| set.tag(name, value));
        set.await.map(drop)
    }
}

impl Drop for PieceWriter {
    fn drop(&mut self) {
        if self.finished || self.written == 0 {
            return;
        }
        let (manager, id, written) = (self.manager.clone(), self.id, self.written);
        // Without a runtime the process is about to end; they end by their deadlines.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                for number in 0..written {
                    if let Err(error) = manager.delete(piece_key(&id, number)).await {
                        tracing::debug!(%error, "a piece of a body stays until its deadline");
                    }
                }
            });
        }
    }
}

/// The bytes of a stored body.
pub(crate) fn read(manager: &CacheManager, content: &Content, bytes: Range<u64>) -> Body {
    match content {
        Content::Inline(body) => {
            let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(body.len());
            body.slice(at(bytes.start)..at(bytes.end).max(at(bytes.start))).into()
        }
        Content::Pieces(_) if bytes.is_empty() => Body::empty(),
        Content::Pieces(pieces) => Body::wrap(PieceReader {
            manager: Arc::new(manager.clone()),
            pieces: *pieces,
            left: bytes,
            reading: None,
        }),
    }
}

type Reading = Pin<Box<dyn Future<Output = Result<Option<Bytes>>> + Send>>;

/// Reads piece by piece. One that is missing ends it with an error.
struct PieceReader {
    manager: Arc<CacheManager>,
    pieces: Pieces,
    left: Range<u64>,
    reading: Option<Reading>,
}

impl PieceReader {
    /// The part of the piece that is next which is to be sent.
    fn cut(&self, piece: &Bytes) -> Option<Bytes> {
        let size = u64::from(self.pieces.size);
        let offset = self.left.start / size * size;
        let expected = size.min(self.pieces.length - offset);
        if piece.len() as u64 != expected {
            return None;
        }
        let end = (self.left.end - offset).min(expected);
        // Both are within a piece, which has 32 bits.
        Some(piece.slice((self.left.start - offset) as usize..end as usize))
    }
}

impl http_body::Body for PieceReader {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        if self.reading.is_none() {
            let number = u32::try_from(self.left.start / u64::from(self.pieces.size)).unwrap_or(u32::MAX);
            let (manager, key) = (self.manager.clone(), piece_key(&self.pieces.id, number));
            self.reading = Some(Box::pin(async move { manager.get(key).await }));
        }
        let Some(reading) = &mut self.reading else { return Poll::Ready(None) };
        let piece = ready!(reading.as_mut().poll(context));
        self.reading = None;
        let sent = match piece {
            Ok(piece) => {
                piece.and_then(|piece| self.cut(&piece)).ok_or_else(|| "a piece of the body is gone".into())
            }
            Err(error) => Err(error.into()),
        };
        Poll::Ready(Some(match sent {
            Ok(bytes) => {
                self.left.start += bytes.len() as u64;
                Ok(Frame::data(bytes))
            }
            Err(error) => {
                self.left.start = self.left.end;
                Err(error)
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.end - self.left.start)
    }
}
