//! Writing an export.

use std::path::{Path, PathBuf};

use tiercache_core::tracking::Query;
use tiercache_core::{CacheManager, Codec, Timestamp};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use xxhash_rust::xxh3::Xxh3;

use super::carry::{Fetching, Read, told};
use super::format::{Header, Trailer};
use super::{Report, TransferError};

/// What is gathered before it is written.
const BUFFER: usize = 256 << 10;

/// An export: what, how, and then [`to_file`](Self::to_file) or [`to_writer`](Self::to_writer).
#[must_use = "nothing is written yet"]
pub struct Export<'a> {
    cache: &'a CacheManager,
    query: Query,
    codec: Codec,
    progress: Box<dyn FnMut(&Exported) + Send + 'a>,
}

/// What an export came to, or has so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exported {
    /// Entries written.
    pub entries: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// Bytes of the stream.
    pub written: u64,
    /// Entries that were removed, or died, while the export ran.
    pub gone: u64,
    /// Entries that a level did not give. The export is not whole.
    pub failed: u64,
    /// The first of those, as text, and why.
    pub failures: Vec<(String, String)>,
}

impl<'a> Export<'a> {
    /// Everything the handle sees: of the default namespace's, every namespace.
    pub fn of(cache: &'a CacheManager) -> Self {
        Self { cache, query: Query::all(), codec: Codec::default(), progress: Box::new(|_| ()) }
    }

    /// Only what fits.
    pub fn query(self, query: Query) -> Self {
        Self { query, ..self }
    }

    /// How entries are packed or sealed. Default: as they are. What is sealed takes the same key to import.
    pub fn codec(self, codec: Codec) -> Self {
        Self { codec, ..self }
    }

    /// Called after each entry.
    pub fn progress(self, progress: impl FnMut(&Exported) + Send + 'a) -> Self {
        Self { progress: Box::new(progress), ..self }
    }

    /// Writes a file of mode 0600, whole or not at all: what stands there stays until the export is complete and on the
    /// disk. One that is there is overwritten only if `force`.
    ///
    /// # Errors
    /// [`TransferError::Exists`], and as for [`Export::to_writer`]. Dropping the future leaves at most a file
    /// `NAME.*.part` beside it, if the process ends with it.
    pub async fn to_file(self, path: &Path, force: bool) -> Result<Exported, TransferError> {
        let failed = TransferError::io(path.display());
        if !force && tokio::fs::try_exists(path).await.unwrap_or(false) {
            return Err(TransferError::Exists(path.to_owned()));
        }
        let part = Part::beside(path);
        let mut file = match part.create().await {
            Ok(file) => file,
            Err(error) => return Err(failed(error)),
        };
        let exported = self.to_writer(&path.display().to_string(), &mut file).await?;
        let placed = async {
            file.sync_all().await?;
            drop(file);
            part.place(path, force).await
        };
        match placed.await {
            Ok(()) => Ok(exported),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(TransferError::Exists(path.to_owned()))
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Writes a stream; `name` is what errors call it.
    ///
    /// Entries that are set or removed meanwhile may or may not be in it; what stays is. Memory is bounded, whatever
    /// lower levels hold: by some values, and the keys of levels in RAM.
    ///
    /// # Errors
    /// What the stream or the listing of the cache said. An entry that a level does not give is counted instead.
    pub async fn to_writer(
        self,
        name: &str,
        out: &mut (impl AsyncWrite + Unpin + Send),
    ) -> Result<Exported, TransferError> {
        let Self { cache, query, codec, mut progress } = self;
        let header = Header::new(now());
        let mut stream = Stream { out, name, hash: Xxh3::new(), buffer: Vec::new(), written: 0 };
        let mut exported = Exported::default();
        stream.write(&header.encode()).await?;
        let mut reading = Fetching::new(cache, query);
        let mut envelope = Vec::new();
        while let Some(read) = reading.next().await? {
            let Read::Fetched((key, entry)) = read else { continue };
            let fail = |exported: &mut Exported, why: String| {
                exported.failed += 1;
                if exported.failures.len() < super::TOLD {
                    exported.failures.push((key.display().to_string(), why));
                }
            };
            match entry {
                Ok(Some(entry)) => {
                    envelope.clear();
                    let encoded = codec.encode(key.as_ref(), &entry, &mut envelope);
                    match encoded.map(u32::try_from) {
                        Ok(Ok(length)) => {
                            stream.write(&header.record(length)).await?;
                            stream.write(&envelope).await?;
                            exported.entries += 1;
                            exported.bytes += entry.value.len() as u64;
                        }
                        Ok(Err(_)) => fail(&mut exported, "it has 4 GiB or more".into()),
                        Err(damage) => fail(&mut exported, damage.to_string()),
                    }
                }
                Ok(None) => exported.gone += 1,
                Err(error) => fail(&mut exported, told(&error)),
            }
            exported.written = stream.written;
            progress(&exported);
        }
        stream.write(&header.trailer(exported.entries, exported.bytes)).await?;
        let Trailer { checksum, .. } = Trailer { checksum: stream.hash.digest(), ..Trailer::default() };
        stream.write(&checksum.to_le_bytes()).await?;
        stream.flush().await?;
        exported.written = stream.written;
        Ok(exported)
    }
}

/// What is written, gathered and summed up.
struct Stream<'a, W> {
    out: &'a mut W,
    name: &'a str,
    hash: Xxh3,
    buffer: Vec<u8>,
    written: u64,
}

impl<W: AsyncWrite + Unpin + Send> Stream<'_, W> {
    async fn write(&mut self, bytes: &[u8]) -> Result<(), TransferError> {
        self.hash.update(bytes);
        self.written += bytes.len() as u64;
        if self.buffer.len() + bytes.len() <= BUFFER {
            self.buffer.extend_from_slice(bytes);
            return Ok(());
        }
        self.drain().await?;
        if bytes.len() < BUFFER {
            self.buffer.extend_from_slice(bytes);
            return Ok(());
        }
        self.out.write_all(bytes).await.map_err(TransferError::io(self.name))
    }

    async fn drain(&mut self) -> Result<(), TransferError> {
        self.out.write_all(&self.buffer).await.map_err(TransferError::io(self.name))?;
        self.buffer.clear();
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), TransferError> {
        self.drain().await?;
        self.out.flush().await.map_err(TransferError::io(self.name))
    }
}

/// A file that is not finished: removed again unless it is.
struct Part(Option<PathBuf>);

impl Part {
    fn beside(path: &Path) -> Self {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        Self(Some(path.with_file_name(name)))
    }

    async fn create(&self) -> std::io::Result<tokio::fs::File> {
        let path = self.0.as_deref().unwrap_or(Path::new(""));
        let mut options = tokio::fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        match options.open(path).await {
            // Left by a process of this number that was killed: no two that live have one number.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                tokio::fs::remove_file(path).await?;
                options.open(path).await
            }
            opened => opened,
        }
    }

    /// Gives it its name; the folder remembers that, too.
    async fn place(mut self, path: &Path, force: bool) -> std::io::Result<()> {
        let Some(part) = self.0.clone() else { return Ok(()) };
        // A link is refused where a rename would overwrite what somebody else has put there meanwhile.
        let linked = if force { None } else { Some(tokio::fs::hard_link(&part, path).await) };
        match linked {
            Some(Ok(())) => {}
            Some(Err(error)) if error.kind() == std::io::ErrorKind::AlreadyExists => return Err(error),
            // Told to, or a file system without links: then it was not there a moment ago.
            None | Some(Err(_)) => {
                tokio::fs::rename(&part, path).await?;
                self.0 = None;
            }
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        tokio::fs::File::open(folder).await?.sync_all().await
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(path) = self.0.take()
            && let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "an unfinished file stays behind");
        }
    }
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl Exported {
    /// Whether nothing that was met is left out but what went meanwhile.
    pub fn is_complete(&self) -> bool {
        self.failed == 0
    }
}

impl From<&Exported> for Report {
    fn from(exported: &Exported) -> Self {
        Self {
            read: exported.entries + exported.gone + exported.failed,
            stored: exported.entries,
            bytes: exported.bytes,
            gone: exported.gone,
            failed: exported.failed,
            failures: exported.failures.clone(),
            ..Self::default()
        }
    }
}
