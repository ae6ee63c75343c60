use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tiercache_core::envelope::{Damage, HEADER_BYTES, Header};
use tiercache_core::tier::{Permit, Spill};
use tiercache_core::{Codec, Entry, Error, Key, Result, Timestamp};

use crate::background::Background;
use crate::client::Failure;
use crate::late::Late;
use crate::meta::Meta;
use crate::names::{Name, Names};
use crate::store::{FRONT, Labels, Object, Read, Standing, Store};
use crate::turns::Turns;
use crate::upload::{self, Active};

/// Bytes that are summed up here, in well under a millisecond; more are where it may block.
const SUMMED_HERE: usize = 8 << 20;
/// Bytes that are packed and sealed here.
const PACKED_HERE: usize = 64 << 10;

/// What a level's calls, its walks and its background work have in common.
pub(crate) struct Shared {
    pub(crate) names: Names,
    pub(crate) store: Arc<Store>,
    pub(crate) codec: Codec,
    pub(crate) late: Arc<Late>,
    pub(crate) meta: Meta,
    pub(crate) turns: Turns,
    pub(crate) background: Arc<Background>,
    pub(crate) active: Active,
    pub(crate) spill: OnceLock<Arc<dyn Spill>>,
    pub(crate) damaged: AtomicU64,
    pub(crate) evicted: AtomicU64,
    pub(crate) max_entry: u64,
    pub(crate) closed: AtomicBool,
}

/// What the first bytes of an object say.
pub(crate) struct Front {
    pub(crate) key: Key,
    pub(crate) entry: Entry,
    pub(crate) size: u64,
    pub(crate) etag: Option<String>,
    pub(crate) until: Timestamp,
}

impl Shared {
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    /// Whether an entry was removed, cleared or fenced off, as far as the level knows.
    pub(crate) fn is_dead(&self, name: &Name, key: &Key, entry: &Entry) -> bool {
        entry.generation < self.late.floor(name.key)
            || entry.generation < self.meta.floor(name.namespace)
            || self.meta.is_dead(name.namespace, key.as_ref(), entry)
    }

    /// Runs work on so many bytes here, or where it may block when they are many.
    pub(crate) async fn aside<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        if bytes <= if self.codec.is_costly() { PACKED_HERE } else { SUMMED_HERE } {
            return Ok(work());
        }
        tokio::task::spawn_blocking(work).await.map_err(|_| Error::Panicked { what: "the S3 level" })
    }

    /// Writes an entry; `false` when the permit was withdrawn before the end of an upload.
    pub(crate) async fn send(
        &self,
        name: &Name,
        pieces: [Bytes; 2],
        labels: &Labels,
        standing: Option<&Standing>,
        permit: &dyn Permit,
    ) -> Result<bool, Failure> {
        let (store, background, active) = (&self.store, &self.background, &self.active);
        if size(&pieces) <= store.multipart_threshold {
            return store.write(&name.object, pieces, labels, standing).await.map(|()| true);
        }
        upload::in_parts(store, background, active, &name.object, pieces, labels, standing, permit).await
    }

    /// Key and entry of an object without its value: the first bytes are asked for, and all only when they do not say.
    /// `None` when it is gone or damaged.
    pub(crate) async fn front(&self, name: &Name) -> Result<Option<Front>, Failure> {
        if let Read::Object(Object { bytes, etag, until }) =
            self.store.read(&name.object, Some(FRONT), FRONT).await?
        {
            match self.codec.decode_front(&bytes) {
                Ok((key, entry, size)) => return Ok(Some(Front { key, entry, size, etag, until })),
                Err(Damage::Length) => {}
                Err(_) => return Ok(None),
            }
        }
        match self.store.read(&name.object, None, self.max_entry).await? {
            Read::Object(Object { bytes, etag, until }) => {
                Ok(self.codec.decode(&bytes).ok().map(|(key, mut entry)| {
                    let size = std::mem::take(&mut entry.value).len() as u64;
                    Front { key, entry, size, etag, until }
                }))
            }
            Read::Absent | Read::TooLarge => Ok(None),
        }
    }

    /// Whether an object need not be looked at any closer. What is sealed can only be read as a whole, and most of it has
    /// nothing to fear: it is newer than every fence.
    pub(crate) async fn is_surely_alive(&self, name: &Name, now: Timestamp) -> Result<bool, Failure> {
        if !self.codec.seals() {
            return Ok(false);
        }
        let bytes = HEADER_BYTES as u64;
        let Read::Object(object) = self.store.read(&name.object, Some(bytes), bytes).await? else {
            return Ok(false);
        };
        Ok(Header::parse(&object.bytes).is_ok_and(|header| {
            now < header.deadline
                && now < object.until
                && header.generation >= self.meta.newest().max(self.late.floor(name.key))
        }))
    }

    /// Removes that very copy, unless it was replaced.
    pub(crate) async fn remove_copy(&self, name: &Name, etag: Option<&str>) -> Result<bool, Failure> {
        let _turn = self.turns.take(name.key).await;
        match self.store.head(&name.object).await? {
            Some(standing) if standing.etag.as_deref() == etag => {
                self.store.delete(&name.object, etag).await.map(|()| true)
            }
            _ => Ok(false),
        }
    }

    pub(crate) fn remove_later(self: &Arc<Self>, name: Name, etag: Option<String>) {
        let shared = self.clone();
        self.background.begin(async move {
            if let Err(failure) = shared.remove_copy(&name, etag.as_deref()).await {
                tracing::debug!(object = name.object, error = %failure.error, "a dead object is left to the next walk");
            }
        });
    }

    /// Removes what is damaged where it stands; what was only damaged on its way here stays.
    pub(crate) fn remove_damaged_later(self: &Arc<Self>, name: Name) {
        let shared = self.clone();
        self.background.begin(async move {
            let removed = async {
                let Read::Object(again) = shared.store.read(&name.object, None, shared.max_entry).await?
                else {
                    return Ok(());
                };
                match shared.codec.decode(&again.bytes) {
                    // Others may know what to do with it.
                    Ok(_) | Err(Damage::UnknownKey | Damage::Version) => {}
                    Err(_) => drop(shared.remove_copy(&name, again.etag.as_deref()).await?),
                }
                Ok::<_, Failure>(())
            };
            if let Err(failure) = removed.await {
                tracing::debug!(object = name.object, error = %failure.error, "a damaged object is left");
            }
        });
    }
}

/// Bytes of all pieces together.
pub(crate) fn size(pieces: &[Bytes]) -> u64 {
    pieces.iter().map(|piece| piece.len() as u64).sum()
}
