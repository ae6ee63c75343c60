//! The level itself: index, log and fences together.
//!
//! Locks are taken in this order: shard of the index, fences, log. None is held across I/O or `.await`.

use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use rustix::io::{Errno, ReadWriteFlags};
use tiercache_core::envelope::Damage;
use tiercache_core::tier::{Hold, Permit, Put, Scope, Spill};
use tiercache_core::{self as core, Clock, Entry, Error, Generation, Key, KeyRef, Result, Timestamp};

use crate::config::{Flush, MAX_VALUE};
use crate::dir::{Dir, Lock, segment_name};
use crate::fences::Fences;
use crate::index::{Index, OTHER, Place, SHARDS, Shard, Slot, State, Stays, lock};
use crate::journal::Journal;
use crate::log::{Activation, Appended, For, Group, Log, NoPlace, Segment, Ticket};
use crate::segment::{Codec, Header, Item, Kind, Row, SAVED, footer_sum, note, scope_fits};
use crate::tier::NAME;

/// Values from here on are compressed and encrypted on a thread for blocking work.
const PACK_ELSEWHERE: usize = 64 << 10;
/// How often room is made for one group on a disk that is full: upkeep may have used what it was at work on.
const ROOM: usize = 2;
/// How often a read that raced a move looks again before it waits.
const LOOKS: usize = 4;

pub(crate) struct Store {
    pub(crate) dir: Dir,
    pub(crate) lock: Mutex<Option<Lock>>,
    pub(crate) codec: Codec,
    pub(crate) index: Index,
    pub(crate) log: Log,
    pub(crate) fences: RwLock<Fences>,
    /// Held across I/O, by threads for blocking work alone and under no other lock.
    pub(crate) journal: Mutex<Journal>,
    pub(crate) stays: Stays,
    pub(crate) clock: Arc<dyn Clock>,
    /// The clock's coarse time.
    pub(crate) coarse: Arc<AtomicU64>,
    pub(crate) opened: Timestamp,
    pub(crate) flush: Flush,
    pub(crate) entries: core::Codec,
    /// The most bytes of all segments; may change while the level is used.
    pub(crate) max_size: AtomicU64,
    /// Bytes of all segments, spare ones too, at their full size.
    pub(crate) allotted: AtomicU64,
    pub(crate) spill: OnceLock<Arc<dyn Spill>>,
    pub(crate) closed: AtomicBool,
    pub(crate) damaged: AtomicU64,
    pub(crate) evicted: AtomicU64,
    pub(crate) last_generation: AtomicU64,
    pub(crate) sweep_at: AtomicUsize,
    /// Held, across I/O too, while the oldest segment is emptied; taken before every other lock.
    pub(crate) reclaiming: Mutex<()>,
    /// Bytes moved by reclaim and bytes put, for the write amplification.
    pub(crate) moved: AtomicU64,
    pub(crate) accepted: AtomicU64,
}

/// What a look for a key found.
#[derive(Debug)]
pub(crate) enum Look {
    Hit(Entry),
    Miss,
    /// Its page is not in memory.
    WouldBlock,
}

/// What it takes to remove a key.
enum Removal {
    Nothing,
    /// The record that settles it must be written.
    Write(Place),
    /// A removal must be appended.
    Append,
}

impl Store {
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    fn coarse(&self) -> Timestamp {
        Timestamp::from_millis(self.coarse.load(Ordering::Relaxed))
    }

    pub(crate) fn read_fences(&self) -> RwLockReadGuard<'_, Fences> {
        self.fences.read().unwrap_or_else(PoisonError::into_inner)
    }

    // Put. 1 look whether it would be refused, 2 encode, 3 wait for room, 4 commit under the shard's lock, 5 wait
    // for the write where an older record would come back without it.

    pub(crate) async fn put(&self, key: &Key, entry: &Entry, hold: Hold, permit: &dyn Permit) -> Result<Put> {
        self.check_open()?;
        let hash = self.codec.hash(key.as_ref());
        let settled = self.settled(&mut self.index.shard(hash), hash, entry, &hold, permit);
        if let Some(put) = settled {
            return Ok(put);
        }
        if entry.value.len() > MAX_VALUE {
            return Ok(Put::TooLarge);
        }
        let namespace = self.codec.names.id(key.namespace());
        if namespace == OTHER {
            tracing::warn!(namespace = key.namespace(), "more than 65535 namespaces, entry refused");
            return Ok(Put::Full);
        }
        let mut envelope = scratch::take();
        let note = if self.entries.seals() { note(hash, key.namespace().as_bytes()) } else { Vec::new() };
        if self.entries.is_costly() && entry.value.len() >= PACK_ELSEWHERE {
            let (key, entry, codec) = (key.clone(), entry.clone(), self.entries.clone());
            let pack =
                move || codec.encode_noted(key.as_ref(), &entry, &note, &mut envelope).map(|_| envelope);
            let packed = tokio::task::spawn_blocking(pack).await;
            envelope = match packed.map_err(|_| Error::Panicked { what: "compression" })? {
                Ok(envelope) => envelope,
                Err(damage) => return refuse(damage),
            };
        } else if let Err(damage) = self.entries.encode_noted(key.as_ref(), entry, &note, &mut envelope) {
            return refuse(damage);
        }
        let len = envelope.len() - SAVED;
        if len > self.log.max_record() {
            return Ok(Put::TooLarge);
        }
        let slot = Slot {
            state: State::Live,
            place: Place { segment: 0, offset: 0, len: 0 },
            generation: entry.generation,
            deadline: entry.deadline,
            since: hold.now,
            stay: self.stays.id(hold.stay),
            namespace,
            uses: 0,
        };
        let room = self.log.reserve(len).await;
        let mut commit = || self.commit(hash, key, entry, &hold, permit, &mut envelope, slot);
        let mut outcome = commit();
        while let Err(NoPlace::Segment) = outcome {
            let changed = self.log.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            outcome = commit();
            if let Err(NoPlace::Segment) = outcome {
                changed.await;
                self.check_open()?;
            }
        }
        let appended = match outcome {
            Ok(Ok(appended)) => appended,
            Ok(Err(put)) => return Ok(put),
            Err(_) => {
                self.check_open()?;
                return Ok(Put::Full);
            }
        };
        room.keep();
        scratch::give(envelope);
        match appended {
            Some(ticket) if !self.log.wait(&ticket).await => Ok(Put::Full),
            _ => Ok(Put::Stored),
        }
    }

    /// What becomes of a put that needs no write.
    fn settled(
        &self,
        shard: &mut Shard<'_>,
        hash: u64,
        entry: &Entry,
        hold: &Hold,
        permit: &dyn Permit,
    ) -> Option<Put> {
        let slot = shard.get(hash)?;
        if slot.generation > entry.generation {
            return Some(Put::Superseded);
        }
        if slot.state != State::Live || slot.generation != entry.generation {
            return None;
        }
        if !permit.holds() {
            return Some(Put::Superseded);
        }
        // Its stay begins anew.
        shard.set(hash, &Slot { since: hold.now, stay: self.stays.id(hold.stay), ..slot });
        Some(Put::Unchanged)
    }

    /// The commit point. `Ok(Ok(Some))` when the answer must wait for the write.
    #[allow(clippy::too_many_arguments, reason = "one step of put, cut out for its lock")]
    fn commit(
        &self,
        hash: u64,
        key: &Key,
        entry: &Entry,
        hold: &Hold,
        permit: &dyn Permit,
        envelope: &mut Vec<u8>,
        slot: Slot,
    ) -> Result<Result<Option<Arc<Ticket>>, Put>, NoPlace> {
        let mut shard = self.index.shard(hash);
        if let Some(put) = self.settled(&mut shard, hash, entry, hold, permit) {
            return Ok(Err(put));
        }
        let before = shard.get(hash);
        if !permit.holds() {
            return Ok(Err(Put::Superseded));
        }
        let fences = self.read_fences();
        if fences.kill(key.namespace(), entry) {
            return Ok(Err(Put::Superseded));
        }
        let row = Row {
            kind: Kind::Entry,
            hash,
            offset: 0,
            len: 0,
            generation: slot.generation,
            deadline: slot.deadline,
            namespace: slot.namespace,
        };
        let len = envelope.len() as u64;
        let Appended { place, ticket } =
            self.log.append(&self.codec, Item::Entry(envelope), row, For::Put, hold.now)?;
        drop(fences);
        shard.set(hash, &Slot { place, ..slot });
        drop(shard);
        self.last_generation.fetch_max(slot.generation.get(), Ordering::Relaxed);
        self.accepted.fetch_add(len, Ordering::Relaxed);
        // An older record that no removal covers would come back if the process were killed before this is written.
        let covers = before
            .is_some_and(|before| before.state != State::Removed && before.generation < slot.generation);
        Ok(Ok((covers || self.flush == Flush::Each).then_some(ticket)))
    }

    // Look. The record is read without a lock; if reclaim moved it meanwhile, its salt no longer fits.

    pub(crate) fn look(&self, key: KeyRef<'_>, blocking: bool) -> Look {
        let hash = self.codec.hash(key);
        for look in 0..1_000 {
            let slot = if look == 0 {
                self.index.shard(hash).use_live(hash, self.coarse())
            } else {
                self.index.shard(hash).get(hash).filter(|slot| slot.state == State::Live)
            };
            let Some(slot) = slot else { return Look::Miss };
            if look >= LOOKS && !blocking {
                return Look::WouldBlock;
            }
            let Some(segment) = self.log.segments.get(slot.place.segment) else { continue };
            let damage = match self.read(&segment, slot.place, blocking) {
                Ok(mut bytes) => {
                    self.codec.unseal(segment.salt, &mut bytes);
                    match self.entries.decode_for(key, &bytes.into()) {
                        Ok(entry) => return Look::Hit(self.rewound(entry, &segment, slot.place)),
                        // Another key with the same hash.
                        Err(Damage::OtherKey) => return Look::Miss,
                        Err(damage) => damage.to_string(),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Look::WouldBlock,
                Err(error) => error.to_string(),
            };
            if self.damaged(hash, slot.place, &damage) {
                return Look::Miss;
            }
        }
        Look::Miss
    }

    /// The bytes of a record, behind [`SAVED`] bytes for what its envelope has more.
    pub(crate) fn read(&self, segment: &Segment, place: Place, blocking: bool) -> io::Result<Vec<u8>> {
        if !segment.has_written(place)
            && let Some(bytes) = self.log.buffered(segment, place)
        {
            return Ok(bytes);
        }
        let mut bytes = vec![0; SAVED + place.len as usize];
        if blocking {
            segment.file.read_exact_at(&mut bytes[SAVED..], place.offset.into())?;
            return Ok(bytes);
        }
        let mut target = [IoSliceMut::new(&mut bytes[SAVED..])];
        match rustix::io::preadv2(&segment.file, &mut target, place.offset.into(), ReadWriteFlags::NOWAIT) {
            Ok(read) if read == place.len as usize => Ok(bytes),
            // Part of it is not in memory, or the system does not know how to look without waiting.
            Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::INTR) => {
                Err(io::ErrorKind::WouldBlock.into())
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Gives up what is damaged, unless it moved. Whether it is still there.
    pub(crate) fn damaged(&self, hash: u64, place: Place, damage: &str) -> bool {
        if !self.index.shard(hash).give_up(hash, place) {
            return false;
        }
        self.damaged.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(segment = place.segment, offset = place.offset, damage, "damaged entry dropped");
        true
    }

    /// An entry from the future was stored before the clock was set back: it gets no longer life than it had.
    pub(crate) fn rewound(&self, mut entry: Entry, segment: &Segment, place: Place) -> Entry {
        if place.offset < segment.recovered && entry.created > self.opened && !entry.deadline.is_never() {
            let life = entry.deadline.since(entry.created);
            entry.deadline = entry.deadline.min(self.opened.after(life));
        }
        entry
    }

    pub(crate) fn holds(&self, key: KeyRef<'_>) -> Option<Generation> {
        let hash = self.codec.hash(key);
        let slot = self.index.shard(hash).get(hash)?;
        match slot.state {
            State::Live => Some(slot.generation),
            // Not answered, but a restart would find something unless a mutation fences it.
            State::Gone => Some(Generation::ZERO),
            State::Removed => (!self.is_written(slot.place)).then_some(Generation::ZERO),
        }
    }

    fn is_written(&self, place: Place) -> bool {
        self.log.segments.get(place.segment).is_none_or(|segment| segment.has_written(place))
    }

    // Remove. Nothing is known: nothing to do. Else a short record is appended and written before the answer.

    pub(crate) fn try_remove(&self, key: KeyRef<'_>, below: Generation) -> Option<Result<()>> {
        if let Err(error) = self.check_open() {
            return Some(Err(error));
        }
        let hash = self.codec.hash(key);
        let mut shard = self.index.shard(hash);
        let slot = shard.get(hash);
        let (ticket, group) = match (self.removal(&mut shard, hash, slot, below), slot) {
            (Removal::Nothing, _) | (_, None) => return Some(Ok(())),
            _ if self.flush == Flush::Each => return None,
            (Removal::Write(place), _) => {
                let Some(ticket) = self.log.ticket(place) else { return Some(Ok(())) };
                (ticket, self.log.turn_inline().ok()?)
            }
            (Removal::Append, Some(slot)) => {
                let room = self.log.take_room(crate::segment::REMOVAL_BYTES);
                let (item, row) = removal_record(hash, below);
                let (place, group) = self.log.append_inline(&self.codec, item, row, self.coarse()).ok()?;
                room.keep();
                self.note_removal(&mut shard, hash, slot, below, place);
                (Arc::clone(&group.ticket), Some(group))
            }
        };
        drop(shard);
        if let Some(group) = group {
            self.write_inline(&group);
        }
        match ticket.outcome() {
            Some(true) => Some(Ok(())),
            Some(false) => Some(Err(unwritten("remove"))),
            None => None,
        }
    }

    pub(crate) async fn remove(&self, key: KeyRef<'_>, below: Generation) -> Result<()> {
        self.check_open()?;
        let hash = self.codec.hash(key);
        loop {
            let changed = self.log.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let ticket = {
                let mut shard = self.index.shard(hash);
                let slot = shard.get(hash);
                match (self.removal(&mut shard, hash, slot, below), slot) {
                    (Removal::Nothing, _) | (_, None) => return Ok(()),
                    (Removal::Write(place), _) => match self.log.ticket(place) {
                        Some(ticket) => Ok(ticket),
                        None => return Ok(()),
                    },
                    (Removal::Append, Some(slot)) => {
                        let room = self.log.take_room(crate::segment::REMOVAL_BYTES);
                        let (item, row) = removal_record(hash, below);
                        self.log.append(&self.codec, item, row, For::Upkeep, self.coarse()).map(|appended| {
                            room.keep();
                            self.note_removal(&mut shard, hash, slot, below, appended.place);
                            appended.ticket
                        })
                    }
                }
            };
            match ticket {
                Ok(ticket) if self.log.wait(&ticket).await => return Ok(()),
                Ok(_) => return Err(unwritten("remove")),
                Err(NoPlace::Segment) => self.wait_for_segment(changed, "remove").await?,
                Err(_) => return Err(unwritten("remove")),
            }
        }
    }

    /// Waits for a change that may bring a segment; fails when none can be had.
    async fn wait_for_segment(
        &self,
        changed: std::pin::Pin<&mut tokio::sync::futures::Notified<'_>>,
        op: &'static str,
    ) -> Result<()> {
        if self.log.lock().full_until.is_some() {
            return Err(unwritten(op));
        }
        changed.await;
        self.check_open()
    }

    fn removal(&self, shard: &mut Shard<'_>, hash: u64, slot: Option<Slot>, below: Generation) -> Removal {
        let Some(slot) = slot else { return Removal::Nothing };
        match slot.state {
            State::Gone => Removal::Append,
            State::Live if slot.generation < below => Removal::Append,
            State::Removed if slot.generation < below => {
                // No record was put since, so the one on disk covers the same.
                shard.set(hash, &Slot { generation: below, ..slot });
                self.unless_written(slot.place)
            }
            _ => self.unless_written(slot.place),
        }
    }

    fn unless_written(&self, place: Place) -> Removal {
        if self.is_written(place) { Removal::Nothing } else { Removal::Write(place) }
    }

    fn note_removal(&self, shard: &mut Shard<'_>, hash: u64, slot: Slot, below: Generation, place: Place) {
        self.last_generation.fetch_max(below.get(), Ordering::Relaxed);
        // What is gone but not below stays known, as a restart would still find it.
        if slot.generation < below {
            shard.set(hash, &Slot { state: State::Removed, generation: below, place, uses: 0, ..slot });
        }
    }

    // Fences.

    /// Remembers a fence, durably, and drops what it reaches as far as the index can tell.
    pub(crate) async fn fence(&self, scope: &Scope, below: Generation) -> Result<()> {
        self.check_open()?;
        if !scope_fits(scope) {
            return Err(Error::InvalidOption {
                option: "tag",
                reason: "it has more than 60000 bytes".into(),
            });
        }
        loop {
            let changed = self.log.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.append_fence(scope, below) {
                Ok(ticket) if self.log.wait(&ticket).await => break,
                Err(NoPlace::Segment) => self.wait_for_segment(changed, "fence").await?,
                _ => return Err(unwritten("fence")),
            }
        }
        let namespace = match scope {
            Scope::All => None,
            Scope::Namespace(namespace) => match self.codec.names.known(namespace) {
                Some(known) => Some(known),
                None => return Ok(()),
            },
            Scope::Tag { .. } => return Ok(()),
        };
        for number in 0..SHARDS {
            self.index.retain(number, |_, slot| {
                slot.state == State::Removed
                    || slot.generation >= below
                    || namespace.is_some_and(|namespace| slot.namespace != namespace)
            });
            if number % 16 == 15 {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    fn append_fence(&self, scope: &Scope, below: Generation) -> Result<Arc<Ticket>, NoPlace> {
        // Written under the lock that puts read: one that did not see the fence stands before it in the log.
        let mut fences = self.fences.write().unwrap_or_else(PoisonError::into_inner);
        let item = Item::Fence { scope, below };
        let room = self.log.take_room(item.len());
        let row = Row { kind: Kind::Fence, hash: 0, ..removal_record(0, below).1 };
        let appended = self.log.append(&self.codec, item, row, For::Upkeep, self.coarse())?;
        room.keep();
        fences.add(scope, below, appended.place.segment);
        self.last_generation.fetch_max(below.get(), Ordering::Relaxed);
        Ok(appended.ticket)
    }

    // Writing.

    /// Writes until the end, as the writer thread.
    pub(crate) fn write_all(&self) {
        while let Some(group) = self.log.next_group() {
            self.write(&group);
        }
    }

    /// Likewise without making room, which would block for longer: a group that finds none is left to the writer
    /// thread.
    fn write_inline(&self, group: &Group) {
        match self.write_group(group) {
            Err(error) if is_full(&error) => self.log.leave_turn(),
            written => self.settle(group, written),
        }
    }

    /// Writes a group whose turn was taken, and gives the turn back. On a disk that is full room is made first.
    fn write(&self, group: &Group) {
        let mut written = self.write_group(group);
        for _ in 0..ROOM {
            if !written.as_ref().is_err_and(is_full) || !self.make_room(group.segment.seq) {
                break;
            }
            written = self.write_group(group);
        }
        self.settle(group, written);
    }

    fn settle(&self, group: &Group, written: io::Result<()>) {
        if let Err(error) = &written {
            tracing::warn!(%error, segment = group.segment.seq, "a group of entries could not be written");
            self.lose(group);
        }
        self.log.give_back(group, written.is_ok());
    }

    fn write_group(&self, group: &Group) -> io::Result<()> {
        let segment = &group.segment;
        {
            let mut activation = lock(&segment.activation);
            if let Some(Activation { name, header }) = &mut *activation {
                // The name first: a segment without its header is read all the same, nothing else is.
                if let Some(spare) = name {
                    self.dir.rename(spare, &segment_name(segment.seq))?;
                    *name = None;
                }
                if self.flush != Flush::Never {
                    self.dir.sync()?;
                }
                segment.file.write_all_at(&header.encode(), 0)?;
                *activation = None;
            }
        }
        for chunk in &group.chunks {
            segment.file.write_all_at(chunk.record(), chunk.at.into())?;
        }
        if let Some(footer) = &group.footer
            && !segment.holed.load(Ordering::Relaxed)
            && let Err(error) = write_footer(&self.codec, segment, group.end, footer, self.coarse())
        {
            // Opening reads the segment instead.
            tracing::warn!(%error, segment = segment.seq, "a footer could not be written");
            segment.holed.store(true, Ordering::Relaxed);
        }
        if self.flush == Flush::Each {
            segment.file.sync_data()?;
        }
        Ok(())
    }

    /// Gives up what was in a group that could not be written.
    fn lose(&self, group: &Group) {
        let segment = &group.segment;
        segment.holed.store(true, Ordering::Relaxed);
        let mut scratch = Vec::new();
        for chunk in &group.chunks {
            let bytes = chunk.record();
            let mut at = 0;
            while let Some((row, _)) = self.codec.record(segment.salt, bytes, at, &mut scratch) {
                at += row.len as usize;
                let place = Place { segment: segment.seq, offset: chunk.at + row.offset, len: row.len };
                let mut shard = self.index.shard(row.hash);
                if let Some(slot) = shard.get(row.hash).filter(|slot| slot.place == place) {
                    // Whatever older record there is has nothing durable above it.
                    shard.set(row.hash, &Slot { state: State::Gone, ..slot });
                    lock(&segment.orphans).push(row.hash);
                }
            }
        }
    }

    /// Forces everything written to the disk.
    pub(crate) fn sync_segments(&self) -> io::Result<()> {
        for segment in self.log.segments.all() {
            if segment.dirty.swap(false, Ordering::Relaxed)
                && let Err(error) = segment.file.sync_data()
            {
                segment.dirty.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
        lock(&self.journal).sync()
    }

    /// Counts what left for want of room.
    pub(crate) fn count_evicted(&self) {
        self.evicted.fetch_add(1, Ordering::Relaxed);
    }
}

/// Writes the footer behind the records and then the header that tells of it.
pub(crate) fn write_footer(
    codec: &Codec,
    segment: &Segment,
    end: u32,
    footer: &[u8],
    now: Timestamp,
) -> io::Result<()> {
    segment.file.write_all_at(footer, end.into())?;
    let header = Header {
        seed: codec.seed,
        seq: segment.seq,
        capacity: segment.capacity,
        prefix: codec.prefix,
        written: now,
        footer: Some((end, footer.len() as u32, footer_sum(footer))),
    };
    segment.file.write_all_at(&header.encode(), 0)
}

fn removal_record(hash: u64, below: Generation) -> (Item<'static>, Row) {
    let row = Row {
        kind: Kind::Removal,
        hash,
        offset: 0,
        len: 0,
        generation: below,
        deadline: Timestamp::NEVER,
        namespace: 0,
    };
    (Item::Removal { hash, below }, row)
}

fn refuse(damage: Damage) -> Result<Put> {
    match damage {
        Damage::TooLarge => Ok(Put::TooLarge),
        damage => Err(Error::unavailable(NAME, "encode", damage)),
    }
}

/// Whether an error says that the file system has no room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

pub(crate) fn unwritten(op: &'static str) -> Error {
    Error::unavailable(NAME, op, io::Error::from(io::ErrorKind::StorageFull))
}

/// A buffer per thread to encode small entries in.
mod scratch {
    use std::cell::Cell;

    const KEEP: usize = 128 << 10;

    thread_local! {
        static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    }

    pub(super) fn take() -> Vec<u8> {
        BUFFER.take()
    }

    pub(super) fn give(mut buffer: Vec<u8>) {
        if (1..=KEEP).contains(&buffer.capacity()) {
            buffer.clear();
            BUFFER.set(buffer);
        }
    }
}
