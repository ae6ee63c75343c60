//! What a directory holds, entry by entry, without opening the level.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tiercache_core::tier::{Listed, ListedEntry, Scope, Waiting};
use tiercache_core::{self as core, Clock, Entry, Error, Generation, Key, Result, SystemClock};

use crate::config::DiskConfig;
use crate::dir::{Dir, Lock};
use crate::fences::Fences;
use crate::index::{Index, SHARDS, Slot, State};
use crate::journal::Journal;
use crate::open::{bury, read_dir, remember};
use crate::segment::{Codec, SAVED, hash_key};
use crate::tier::{DiskTier, NAME};

/// Bytes of values after which a page ends early.
const HEAVY: u64 = 16 << 20;

/// What a directory holds, as it was when it was looked at. Nothing in the directory changes by it.
pub struct Contents {
    owner: Option<u32>,
    codec: Codec,
    entries: core::Codec,
    index: Index,
    fences: Fences,
    /// Whether a fence asks for the tags of an entry.
    tags_count: bool,
    segments: HashMap<u32, Arc<std::fs::File>>,
    waiting: Vec<Waiting>,
    /// Held for as long as nobody may open the level.
    _lock: Option<Lock>,
}

impl DiskTier {
    /// Reads what a directory holds from its footers, as opening would; None when there is no directory. With `own` no
    /// process can open the level as long as the answer is kept. Blocks.
    ///
    /// # Errors
    /// [`Error::Refused`] when it is not a directory of this user, or with `own` when a process has it open;
    /// [`Error::Config`] when its entries cannot be decrypted with what is configured; [`Error::Unavailable`] when the
    /// disk fails.
    pub fn contents(config: &DiskConfig, own: bool) -> Result<Option<Contents>> {
        let path = config.directory()?;
        if !path.is_dir() {
            return Ok(None);
        }
        let failed = |error: std::io::Error| Error::unavailable(NAME, "look into", error);
        let entries = config.codec()?;
        let dir = Dir::open(&path, false)?;
        let lock = if own { Some(dir.lock()?) } else { None };
        let owner = if own { None } else { dir.owner() };
        let journal = Journal::read(&dir, entries.clone()).map_err(failed)?;
        let waiting = journal.notes().values().cloned().collect();
        let names = dir.names().map_err(failed)?;
        let found = read_dir(&dir, &names, hash_key, u64::MAX, false).map_err(failed)?;
        let now = SystemClock::start().now();
        let (index, mut fences) = (Index::new(), Fences::default());
        for loaded in &found.segments {
            loaded.rows.iter().for_each(|row| remember(&index, loaded.seq, row, now));
            loaded.fences.iter().for_each(|(scope, below)| fences.add(scope, *below, loaded.seq));
        }
        bury(&index, &fences, &found.codec, now.max(found.latest));
        let tags_count = fences.list().iter().any(|(scope, _)| matches!(scope, Scope::Tag { .. }));
        let segments = found.segments.into_iter().map(|loaded| (loaded.seq, loaded.file)).collect();
        let codec = found.codec;
        Ok(Some(Contents {
            owner,
            codec,
            entries,
            index,
            fences,
            tags_count,
            segments,
            waiting,
            _lock: lock,
        }))
    }
}

impl Contents {
    /// The process that had the level open: what it has not written yet, and what it wrote since, is not seen.
    pub fn owner(&self) -> Option<u32> {
        self.owner
    }

    /// Removals that it remembers for other levels, which have yet to see them.
    pub fn waiting(&self) -> &[Waiting] {
        &self.waiting
    }

    /// A page of the entries that would be answered, without their values, in an order that does not change; `after` is
    /// where the page before ended. What is damaged is left out. Blocks.
    pub fn list(&self, after: Option<&[u8]>, limit: usize) -> Listed {
        let first =
            after.map_or(0, |after| after.iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte)) + 1);
        let mut listed = Listed::default();
        let mut bytes = 0;
        for number in (first >> 32) as usize..SHARDS {
            let mut slots = self.index.collect(number, |slot| slot.state == State::Live);
            slots.sort_unstable_by_key(|(hash, _)| *hash);
            for (hash, slot) in slots.into_iter().filter(|(hash, _)| *hash >= first) {
                bytes += u64::from(slot.place.len);
                if let Some((key, mut entry)) = self.read(&slot) {
                    let size = entry.value.len() as u64;
                    entry.value = Default::default();
                    listed.entries.push(ListedEntry { key, entry, size });
                }
                if listed.entries.len() >= limit.max(1) || bytes >= HEAVY {
                    listed.next = Some(hash.to_be_bytes()[3..].to_vec());
                    return listed;
                }
            }
        }
        listed
    }

    /// The generation with which `key` would be answered. That it is `likely` is believed of the index; to tell another,
    /// the record is read. Blocks.
    pub fn generation(&self, key: &Key, likely: Generation) -> Option<Generation> {
        let slot = self.index.shard(self.codec.hash(key.as_ref())).get(self.codec.hash(key.as_ref()))?;
        if slot.state != State::Live {
            return None;
        }
        if slot.generation == likely && !self.tags_count {
            return Some(likely);
        }
        let (found, entry) = self.read(&slot)?;
        (found == *key).then_some(entry.generation)
    }

    /// The entry behind a slot, if it is whole and no fence reaches it.
    fn read(&self, slot: &Slot) -> Option<(Key, Entry)> {
        let mut bytes = vec![0; SAVED + slot.place.len as usize];
        let file = self.segments.get(&slot.place.segment)?;
        file.read_exact_at(&mut bytes[SAVED..], slot.place.offset.into()).ok()?;
        self.codec.unseal(self.codec.salt(slot.place.segment), &mut bytes);
        let (key, entry) = self.entries.decode(&bytes.into()).ok()?;
        (!self.fences.kill(key.namespace(), &entry)).then_some((key, entry))
    }
}

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contents")
            .field("owner", &self.owner)
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}
