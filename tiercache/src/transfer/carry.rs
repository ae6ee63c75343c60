//! Reading many entries out of a cache, and putting many into one, some at a time and in bounded memory.

use tiercache_core::tracking::{Query, Record};
use tiercache_core::{CacheManager, Entry, Error, Key, Restored, Result, Scan};
use tokio::task::JoinSet;

use super::Report;

/// Entries under way at a time.
const AT_ONCE: usize = 32;
/// Bytes of values under way at a time; a larger value goes alone.
const BYTES: u64 = 16 << 20;

/// What a read came to: the entry, or that it is gone.
pub(super) type Fetched = (Key, Result<Option<Entry>>);

/// Entries that fit a query, read some at a time.
pub(super) struct Fetching {
    cache: CacheManager,
    scan: Option<Scan>,
    running: JoinSet<(u64, Fetched)>,
    bytes: u64,
    /// Only what a cache does not have yet is worth reading.
    missing_at: Option<CacheManager>,
}

impl Fetching {
    pub(super) fn new(cache: &CacheManager, query: Query) -> Self {
        Self {
            cache: cache.clone(),
            scan: Some(cache.scan(query)),
            running: JoinSet::new(),
            bytes: 0,
            missing_at: None,
        }
    }

    /// Reads only what `cache` does not have; for the rest it says `None` without reading.
    pub(super) fn missing_at(self, cache: &CacheManager) -> Self {
        Self { missing_at: Some(cache.clone()), ..self }
    }

    /// The next entry, in no order.
    pub(super) async fn next(&mut self) -> Result<Option<Read>> {
        while let Some(scan) = &mut self.scan
            && self.running.len() < AT_ONCE
            && (self.bytes < BYTES || self.running.is_empty())
        {
            let Some(record) = scan.next().await? else {
                self.scan = None;
                break;
            };
            if let Some(there) = &self.missing_at
                && there.namespace(record.key.namespace())?.contains(&record.key).await?
            {
                return Ok(Some(Read::Present));
            }
            self.begin(record);
        }
        let Some(ended) = self.running.join_next().await else { return Ok(None) };
        let (bytes, fetched) = ended.map_err(|_| Error::Closed)?;
        self.bytes -= bytes;
        Ok(Some(Read::Fetched(fetched)))
    }

    fn begin(&mut self, record: Record) {
        self.bytes += record.size;
        let cache = self.cache.clone();
        self.running.spawn(async move {
            let Record { key, size, .. } = record;
            let entry = async { cache.namespace(key.namespace())?.snapshot(&key).await };
            let entry = entry.await;
            (size, (key, entry))
        });
    }
}

/// What became of one record of a scan.
pub(super) enum Read {
    /// It was read.
    Fetched(Fetched),
    /// The other cache has it already.
    Present,
}

/// Entries on their way into a cache, some at a time.
pub(super) struct Storing {
    cache: CacheManager,
    replace: bool,
    running: JoinSet<(Key, u64, Result<Restored>)>,
    bytes: u64,
}

impl Storing {
    pub(super) fn new(cache: &CacheManager, replace: bool) -> Self {
        Self { cache: cache.clone(), replace, running: JoinSet::new(), bytes: 0 }
    }

    /// Takes an entry, once there is room for it. What became of earlier ones is noted in `report`.
    pub(super) async fn put(&mut self, key: Key, entry: Entry, report: &mut Report) -> Result<()> {
        let size = entry.value.len() as u64;
        while self.running.len() >= AT_ONCE || (self.bytes + size > BYTES && !self.running.is_empty()) {
            self.end_one(report).await?;
        }
        self.bytes += size;
        // A handle that is confined to a namespace puts everything there.
        let confined = !self.cache.namespace_name().is_empty();
        let within = if confined { self.cache.clone() } else { self.cache.namespace(key.namespace())? };
        let replace = self.replace;
        self.running.spawn(async move {
            let restored = within.restore(&key, entry, replace).await;
            (key, size, restored)
        });
        Ok(())
    }

    /// Waits for all that were taken.
    pub(super) async fn finish(mut self, report: &mut Report) -> Result<()> {
        while !self.running.is_empty() {
            self.end_one(report).await?;
        }
        Ok(())
    }

    async fn end_one(&mut self, report: &mut Report) -> Result<()> {
        let Some(ended) = self.running.join_next().await else { return Ok(()) };
        let (key, size, restored) = ended.map_err(|_| Error::Closed)?;
        self.bytes -= size;
        match restored {
            Ok(Restored::Stored(written)) => {
                report.stored += 1;
                report.bytes += size;
                for (level, error) in written.degraded {
                    tracing::warn!(?key, %level, %error, "an older copy could not be removed yet");
                }
            }
            Ok(Restored::Present) => report.present += 1,
            Ok(Restored::Expired) => report.expired += 1,
            Err(Error::Closed) => return Err(Error::Closed),
            Err(error) => report.fail(|| key.display().to_string(), told(&error)),
        }
        Ok(())
    }
}

/// An error with its cause.
pub(super) fn told(error: &Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}
