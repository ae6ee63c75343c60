//! Reading an export.

use std::path::Path;

use bytes::BytesMut;
use tiercache_core::{CacheManager, Codec, envelope::Damage};
use tokio::io::{AsyncRead, AsyncReadExt};
use xxhash_rust::xxh3::Xxh3;

use super::carry::Storing;
use super::format::{FRAME_BYTES, Frame, HEADER_BYTES, Header, TRAILER_BYTES, Trailer, next_mark};
use super::{Report, TransferError};

/// What is read at a time.
const CHUNK: usize = 64 << 10;
/// The largest record that is taken.
const MOST: u32 = (1 << 30) + (1 << 20);

/// Is told what was done so far, and how many bytes were read.
type Progress<'a> = Box<dyn FnMut(&Report, u64) + Send + 'a>;

/// An import: how, and then [`from_file`](Self::from_file) or [`from_reader`](Self::from_reader).
#[must_use = "nothing is read yet"]
pub struct Import<'a> {
    cache: &'a CacheManager,
    codec: Codec,
    replace: bool,
    skip_damaged: bool,
    progress: Progress<'a>,
}

impl<'a> Import<'a> {
    /// Into that cache, each entry into the namespace it came from; a handle that is confined to a namespace takes
    /// everything there.
    pub fn into(cache: &'a CacheManager) -> Self {
        Self {
            cache,
            codec: Codec::default(),
            replace: false,
            skip_damaged: false,
            progress: Box::new(|_, _| ()),
        }
    }

    /// Whether an entry replaces the live one its key has. Default: no, since nobody can tell which is newer.
    pub fn replace(self, replace: bool) -> Self {
        Self { replace, ..self }
    }

    /// Whether damage is stepped over and counted instead of ending the import. Default: no.
    pub fn skip_damaged(self, skip_damaged: bool) -> Self {
        Self { skip_damaged, ..self }
    }

    /// How sealed entries are opened.
    pub fn codec(self, codec: Codec) -> Self {
        Self { codec, ..self }
    }

    /// Called after each entry, with the bytes that were read.
    pub fn progress(self, progress: impl FnMut(&Report, u64) + Send + 'a) -> Self {
        Self { progress: Box::new(progress), ..self }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// As for [`Import::from_reader`].
    pub async fn from_file(self, path: &Path) -> Result<Report, TransferError> {
        let name = path.display().to_string();
        let mut file = tokio::fs::File::open(path).await.map_err(TransferError::io(&name))?;
        self.from_reader(&name, &mut file).await
    }

    /// Reads a stream; `name` is what errors call it. Entries are stored as they come, in bounded memory, and may be
    /// imported again: what is there already is counted as such.
    ///
    /// # Errors
    /// [`TransferError::Foreign`] when it is no export; unless damage is stepped over, [`TransferError::Damaged`] with
    /// the offset where it begins. An entry that the cache does not take is counted instead.
    pub async fn from_reader(
        self,
        name: &str,
        input: &mut (impl AsyncRead + Unpin + Send),
    ) -> Result<Report, TransferError> {
        let Self { cache, codec, replace, skip_damaged, mut progress } = self;
        let mut stream =
            Stream { input, name, buffer: BytesMut::new(), offset: 0, ended: false, hash: Xxh3::new() };
        stream.fill(HEADER_BYTES).await?;
        let header = Header::decode(&stream.buffer)
            .map_err(|found| TransferError::Foreign { path: name.to_owned(), found })?;
        stream.step(HEADER_BYTES);
        let mut report = Report::default();
        let mut storing = Storing::new(cache, replace);
        let mut records = 0;
        loop {
            let offset = stream.offset;
            let found = match next(&mut stream, &header, &codec).await? {
                Next::Record(key, entry) => {
                    records += 1;
                    report.read += 1;
                    storing.put(*key, *entry, &mut report).await?;
                    progress(&report, stream.offset);
                    continue;
                }
                Next::Trailer(trailer, intact) => {
                    let missing = trailer.records.saturating_sub(records);
                    report.missing = (missing > 0).then_some(missing);
                    stream.fill(1).await?;
                    if !stream.buffer.is_empty() {
                        "there are bytes behind the end of the export".to_owned()
                    } else if skip_damaged && !report.is_complete() {
                        break;
                    } else if !intact {
                        // Every record holds: it is the end that is wrong.
                        report.skipped_bytes += TRAILER_BYTES as u64;
                        "the checksum of the whole does not match".to_owned()
                    } else if missing > 0 {
                        format!("{missing} records are missing before the end of the export")
                    } else {
                        break;
                    }
                }
                Next::Damaged(damage) => {
                    if skip_damaged {
                        records += 1;
                        report.read += 1;
                        report.cannot_read(|| format!("the record at offset {offset}"), reason(damage));
                        continue;
                    }
                    damage.to_string()
                }
                Next::NoFrame if skip_damaged => {
                    report.skipped_bytes += stream.find(&header).await?;
                    continue;
                }
                Next::NoFrame => "no record begins here".to_owned(),
                Next::End => {
                    report.truncated = true;
                    "the export ends here, before its end".to_owned()
                }
            };
            if skip_damaged {
                // Nothing comes after it that could be read.
                report.skipped_bytes += stream.rest().await?;
                break;
            }
            storing.finish(&mut report).await?;
            let path = name.to_owned();
            return Err(TransferError::Damaged { path, offset, found, stored: report.stored });
        }
        storing.finish(&mut report).await?;
        progress(&report, stream.offset);
        Ok(report)
    }
}

/// What stands next in a stream.
enum Next {
    Record(Box<tiercache_core::Key>, Box<tiercache_core::Entry>),
    /// The end, and whether the whole is what was written.
    Trailer(Trailer, bool),
    /// A record that is none, stepped over.
    Damaged(Damage),
    /// Something else.
    NoFrame,
    /// Nothing, or less than was announced.
    End,
}

async fn next<R: AsyncRead + Unpin + Send>(
    stream: &mut Stream<'_, R>,
    header: &Header,
    codec: &Codec,
) -> Result<Next, TransferError> {
    stream.fill(FRAME_BYTES).await?;
    match header.parse(&stream.buffer) {
        Some(Frame::Record(length)) => {
            if length > MOST {
                // Nobody wrote that: a frame of a later version, or of somebody who means harm.
                return Ok(Next::NoFrame);
            }
            let length = length as usize;
            stream.fill(FRAME_BYTES + length).await?;
            if stream.buffer.len() < FRAME_BYTES + length {
                return Ok(Next::End);
            }
            stream.step(FRAME_BYTES);
            let envelope = stream.step(length);
            Ok(match codec.decode(&envelope) {
                Ok((key, entry)) => Next::Record(Box::new(key), Box::new(entry)),
                Err(damage) => Next::Damaged(damage),
            })
        }
        Some(Frame::Trailer) => {
            stream.fill(FRAME_BYTES + TRAILER_BYTES).await?;
            let Some(trailer) = Trailer::decode(&stream.buffer[FRAME_BYTES..]) else { return Ok(Next::End) };
            stream.step(FRAME_BYTES + TRAILER_BYTES - 8);
            let intact = stream.hash.digest() == trailer.checksum;
            stream.step(8);
            Ok(Next::Trailer(trailer, intact))
        }
        None if stream.buffer.len() < FRAME_BYTES => Ok(Next::End),
        None => Ok(Next::NoFrame),
    }
}

/// Why a record could not be read, as it is counted.
fn reason(damage: Damage) -> &'static str {
    match damage {
        Damage::UnknownKey => "sealed under an unknown key",
        Damage::Forged => "the seal does not match",
        Damage::Unsealed => "not sealed",
        Damage::TooLarge => "larger than allowed",
        Damage::Version => "of an unknown version",
        _ => "damaged",
    }
}

/// What is read, summed up.
struct Stream<'a, R> {
    input: &'a mut R,
    name: &'a str,
    buffer: BytesMut,
    /// Where the buffer begins.
    offset: u64,
    ended: bool,
    hash: Xxh3,
}

impl<R: AsyncRead + Unpin + Send> Stream<'_, R> {
    /// Reads until the buffer has `wanted` bytes, or to the end. The buffer grows with what comes, not with what was
    /// announced.
    async fn fill(&mut self, wanted: usize) -> Result<(), TransferError> {
        while self.buffer.len() < wanted && !self.ended {
            self.buffer.reserve(CHUNK);
            let read = self.input.read_buf(&mut self.buffer).await.map_err(TransferError::io(self.name))?;
            self.ended = read == 0;
        }
        Ok(())
    }

    fn step(&mut self, bytes: usize) -> bytes::Bytes {
        let stepped = self.buffer.split_to(bytes).freeze();
        self.hash.update(&stepped);
        self.offset += bytes as u64;
        stepped
    }

    /// Goes on to the next frame, or to the end; returns the bytes between.
    async fn find(&mut self, header: &Header) -> Result<u64, TransferError> {
        let from = self.offset;
        loop {
            let to = next_mark(&self.buffer).unwrap_or(self.buffer.len());
            self.step(to);
            self.fill(FRAME_BYTES).await?;
            if header.parse(&self.buffer).is_some() || self.buffer.is_empty() {
                return Ok(self.offset - from);
            }
            if self.ended && self.buffer.len() < FRAME_BYTES {
                let rest = self.buffer.len();
                self.step(rest);
                return Ok(self.offset - from);
            }
        }
    }

    /// Goes to the end; returns the bytes that were left.
    async fn rest(&mut self) -> Result<u64, TransferError> {
        let from = self.offset;
        loop {
            let all = self.buffer.len();
            self.step(all);
            self.fill(1).await?;
            if self.buffer.is_empty() {
                return Ok(self.offset - from);
            }
        }
    }
}
