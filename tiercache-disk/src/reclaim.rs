//! Upkeep, on a thread of its own: a spare segment is always made ready ahead, and written bytes are synced every
//! second when so configured.
//!
//! When the level is full a spare is made of the oldest segment:
//! 1. What is dead or replaced is known from the index and not read.
//! 2. Of what was used since it was written, the most used moves to the end of the log, up to a third of a segment, so
//!    that at most half as many bytes are written again as are put. The rest is handed to the spill.
//! 3. What was moved is written.
//! 4. The file is renamed: from here on no restart finds the segment. *(commit)*
//! 5. The index forgets what still points into it, removals and fences included.
//!
//! On a disk that is full the writer cannot wait for that: [`Store::make_room`] moves nothing in step 2 and removes the
//! file in step 4. When upkeep is at work on the oldest segment already, it goes over to this: it waits for no group any more,
//! moves nothing more, and removes the file. What it had moved is written in the room this makes; the end of the process
//! before that loses it, as it loses what is given up.
//!
//! Step 5 loses no removal that matters. A removal guards records that stand before it. Segments are reclaimed in
//! order, so those are in segments that are gone or in this one; and step 2 moves only the record the index points
//! to, which is never one that a removal stands above. The same holds for fences, see [`crate::fences`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use tiercache_core::Timestamp;
use tiercache_core::envelope::{self, Damage};
use tiercache_core::tier::{Cause, Left};

use crate::config::Flush;
use crate::dir::{segment_name, spare_name};
use crate::index::{Place, Slot, State, lock};
use crate::log::{Appended, For, NoPlace, Segment, Spare};
use crate::segment::{Item, Kind, Row, SAVED, SEGMENT_HEADER, footer_sum};
use crate::store::{Store, is_full};

const SECOND: Duration = Duration::from_secs(1);
/// Bytes read at a time.
const WINDOW: usize = 1 << 20;

impl Store {
    /// Runs until the end, as the upkeep thread.
    pub(crate) fn upkeep(&self) {
        let mut synced = Instant::now();
        while self.wait_for_upkeep(synced) {
            if self.flush == Flush::EverySecond && synced.elapsed() >= SECOND {
                if let Err(error) = self.sync_segments() {
                    tracing::warn!(%error, "writes could not be forced to the disk");
                }
                synced = Instant::now();
            }
            if !self.log.lock().spares.is_empty() {
                continue;
            }
            match self.make_spare() {
                Ok(Some(spare)) => {
                    self.log.lock().spares.push(spare);
                    self.log.tell();
                }
                Ok(None) => {}
                Err(error) => self.no_spare(&error),
            }
        }
    }

    /// Waits until there is something to do; `false` at the end.
    fn wait_for_upkeep(&self, synced: Instant) -> bool {
        let mut state = self.log.lock();
        loop {
            if state.stopping {
                return false;
            }
            if state.spares.is_empty() {
                return true;
            }
            let left = SECOND.saturating_sub(synced.elapsed());
            state = if self.flush != Flush::EverySecond {
                self.log.upkeep.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner)
            } else if left.is_zero() {
                return true;
            } else {
                let wait = self.log.upkeep.wait_timeout(state, left);
                wait.unwrap_or_else(std::sync::PoisonError::into_inner).0
            };
        }
    }

    /// Refuses puts for a while and tells who waits.
    fn no_spare(&self, error: &io::Error) {
        tracing::warn!(%error, path = %self.dir.path.display(), "no segment can be made ready");
        self.log.lock().full_until = Some(Instant::now() + SECOND);
        self.log.tell();
        let state = self.log.lock();
        if !state.stopping {
            drop(self.log.upkeep.wait_timeout(state, SECOND));
        }
    }

    /// A new file as long as there is room, else that of the oldest segment. `None` at the end.
    fn make_spare(&self) -> io::Result<Option<Spare>> {
        let size = u64::from(self.log.segment_size);
        loop {
            let oldest = self.log.segments.all().first().map(|oldest| oldest.seq);
            let oldest = oldest.filter(|oldest| *oldest != self.log.active());
            let most = self.max_size.load(Ordering::Relaxed);
            if self.allotted.load(Ordering::Relaxed) + size <= most {
                match self.create_spare() {
                    Ok(spare) => {
                        self.allotted.fetch_add(size, Ordering::Relaxed);
                        return Ok(Some(spare));
                    }
                    Err(error) if oldest.is_none() => return Err(error),
                    Err(error) => tracing::warn!(%error, "no new segment, the oldest is used again"),
                }
            }
            let Some(oldest) = oldest else {
                return Err(io::ErrorKind::StorageFull.into());
            };
            let _one = Reclaiming::wait(self);
            let Some(oldest) = self.log.segments.get(oldest) else { continue };
            match self.reclaim(&oldest) {
                // Whatever found no room until now finds it in that file.
                Ok(true) => self.log.lock().full_until = None,
                Ok(false) => return Ok(None),
                Err(error) if is_full(&error) && oldest.sealed.load(Ordering::Acquire) => {
                    self.give_back(&oldest)?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            if u64::from(oldest.capacity) == size && self.allotted.load(Ordering::Relaxed) <= most {
                let name = spare_name(oldest.seq);
                return Ok(Some(Spare { name, file: Arc::clone(&oldest.file) }));
            }
            self.dir.remove(&spare_name(oldest.seq))?;
            self.allotted.fetch_sub(oldest.capacity.into(), Ordering::Relaxed);
        }
    }

    /// Removes the files nobody will use, at the end.
    pub(crate) fn drop_spares(&self) {
        for spare in std::mem::take(&mut self.log.lock().spares) {
            if let Err(error) = self.dir.remove(&spare.name) {
                tracing::warn!(%error, name = spare.name, "a spare file stays behind");
            }
        }
    }

    fn create_spare(&self) -> io::Result<Spare> {
        let mut number = self.log.active();
        loop {
            number = number.wrapping_add(1);
            let name = spare_name(number);
            match self.dir.create(&name) {
                Ok(file) => return Ok(Spare { name, file: Arc::new(file) }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Empties a segment and gives its file up as a spare; `false` at the end.
    fn reclaim(&self, segment: &Segment) -> io::Result<bool> {
        let budget = self.log.segment_size / 3;
        self.log.hurry();
        let sealed = || segment.sealed.load(Ordering::Acquire);
        self.log.wait_until(|state| state.stopping || state.starved || sealed());
        if !sealed() && !self.log.lock().stopping {
            // What is still written to cannot be given back.
            return Err(io::ErrorKind::StorageFull.into());
        }
        let rows = self.rows_of(segment);
        let done = self.empty(segment, &rows, budget);
        self.log.lock().reserve = 0;
        if !done {
            return Ok(false);
        }
        if let Some(ticket) = self.log.last_ticket()
            && !self.log.wait_blocking(&ticket)
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.dir.rename(&segment_name(segment.seq), &spare_name(segment.seq))?;
        if self.flush != Flush::Never {
            self.dir.sync()?;
        }
        self.forget(segment, &rows);
        Ok(true)
    }

    /// Makes room on a disk that is full, without writing anything: hands over what the oldest segment holds and removes
    /// its file. Whether there may be room now; `writing` is the segment it is wanted for.
    ///
    /// Called by who has the turn to write, for which upkeep at work on that segment waits in places. So it is told, and
    /// waits for nobody until it is through.
    pub(crate) fn make_room(&self, writing: u32) -> bool {
        self.log.starve(true);
        let Some(_one) = Reclaiming::try_now(self) else {
            self.log.wait_until(|state| !state.starved);
            return true;
        };
        let oldest = self.log.segments.all().into_iter().next();
        let Some(oldest) =
            oldest.filter(|oldest| oldest.seq != writing && oldest.sealed.load(Ordering::Acquire))
        else {
            return false;
        };
        match self.give_back(&oldest) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, segment = oldest.seq, "the oldest segment could not be given back");
                false
            }
        }
    }

    /// Hands over everything in the oldest segment and removes its file; under `reclaiming`.
    fn give_back(&self, segment: &Segment) -> io::Result<()> {
        tracing::warn!(
            segment = segment.seq,
            path = %self.dir.path.display(),
            "the disk is full, the oldest segment is given back"
        );
        let rows = self.rows_of(segment);
        self.empty(segment, &rows, 0);
        self.dir.remove(&segment_name(segment.seq))?;
        if self.flush != Flush::Never {
            self.dir.sync()?;
        }
        self.forget(segment, &rows);
        // Whoever still has it open, a reader or a child process that is about to begin, would keep the room. Nobody looks
        // for anything there any more.
        if let Err(error) = segment.file.set_len(0) {
            tracing::warn!(%error, segment = segment.seq, "the room of a removed segment may be free later");
        }
        self.allotted.fetch_sub(segment.capacity.into(), Ordering::Relaxed);
        self.log.lock().full_until = None;
        Ok(())
    }

    /// Forgets what points into a segment whose file no restart finds.
    fn forget(&self, segment: &Segment, rows: &[Row]) {
        let orphans = std::mem::take(&mut *lock(&segment.orphans));
        for hash in rows.iter().map(|row| row.hash).chain(orphans) {
            let mut shard = self.index.shard(hash);
            if shard.get(hash).is_some_and(|slot| slot.place.segment == segment.seq) {
                shard.remove(hash);
            }
        }
        self.fences.write().unwrap_or_else(std::sync::PoisonError::into_inner).forget(segment.seq);
        self.log.segments.remove(segment.seq);
    }

    /// What a segment has, from its footer or, when that is not to be had, from its records.
    fn rows_of(&self, segment: &Segment) -> Vec<Row> {
        let footer = || {
            let mut header = [0; SEGMENT_HEADER];
            segment.file.read_exact_at(&mut header, 0).ok()?;
            let (at, len, sum) = crate::segment::Header::decode(&header)?.footer?;
            let mut footer = vec![0; len as usize];
            segment.file.read_exact_at(&mut footer, at.into()).ok()?;
            (footer_sum(&footer) == sum).then_some(())?;
            crate::footer::rows(&footer, &self.codec.names)
        };
        footer().unwrap_or_else(|| {
            let mut bytes = vec![0; segment.written.load(Ordering::Acquire) as usize];
            if let Err(error) = read_at_most(&segment.file, &mut bytes, 0) {
                tracing::warn!(%error, segment = segment.seq, "a segment cannot be read, its entries are dropped");
            }
            self.codec.scan(segment.seq, &bytes).rows
        })
    }

    /// Moves, up to so many bytes, or hands over every live entry; `false` at the end.
    fn empty(&self, segment: &Segment, rows: &[Row], budget: u32) -> bool {
        let now = self.clock.now();
        let mut live = Vec::new();
        for row in rows.iter().filter(|row| row.kind == Kind::Entry) {
            let place = place(segment, row);
            let mut shard = self.index.shard(row.hash);
            match shard.get(row.hash) {
                Some(slot) if slot.state == State::Live && slot.place == place => {
                    if slot.deadline <= now {
                        shard.give_up(row.hash, place);
                    } else {
                        live.push((row.hash, slot));
                    }
                }
                _ => {}
            }
        }
        // The fewest uses that still fit the budget.
        let mut bytes = [0u64; 64];
        for (_, slot) in &live {
            bytes[usize::from(slot.uses).min(63)] += u64::from(slot.place.len);
        }
        let mut total = 0;
        let fits = |uses: &usize| {
            total += bytes[*uses];
            total <= budget.into()
        };
        let least = (1..64).rev().take_while(fits).last().unwrap_or(64);
        let mut left = u64::from(budget);
        let mut window = Window::default();
        for (hash, slot) in live {
            // With nothing to move it is not long, and room may be what the last writes wait for.
            let (stopping, starved) = {
                let state = self.log.lock();
                (state.stopping, state.starved)
            };
            if budget > 0 && stopping {
                return false;
            }
            let uses = usize::from(slot.uses);
            let len = u64::from(slot.place.len);
            // Those of the class that does not fit as a whole move first come, first served.
            let moves = !starved && uses > 0 && (uses >= least || uses + 1 == least) && len <= left;
            let envelope = match window.record(segment, slot.place) {
                Ok(mut bytes) => {
                    self.codec.unseal(segment.salt, &mut bytes);
                    bytes
                }
                Err(error) => {
                    self.damaged(hash, slot.place, &error.to_string());
                    continue;
                }
            };
            match self.leave(segment, hash, &slot, envelope, moves, now) {
                Ok(true) => {
                    left -= len;
                    self.moved.fetch_add(len, Ordering::Relaxed);
                }
                Ok(false) => {}
                Err(damage) => {
                    self.damaged(hash, slot.place, &damage.to_string());
                }
            }
        }
        true
    }

    /// Moves an entry to the end of the log if it may and can be, else hands it over. Whether it moved.
    fn leave(
        &self,
        segment: &Segment,
        hash: u64,
        slot: &Slot,
        mut envelope: Vec<u8>,
        moves: bool,
        now: Timestamp,
    ) -> Result<bool, Damage> {
        // What the clock cut short is not moved: its record says otherwise.
        if moves && envelope::verify(&envelope)?.created <= self.opened.max(now) {
            match self.relocate(hash, slot, &mut envelope) {
                Moved::Yes => return Ok(true),
                Moved::Dead => return Ok(false),
                Moved::NoRoom => {}
            }
        }
        let (key, entry) = self.entries.decode(&envelope.into())?;
        let entry = self.rewound(entry, segment, slot.place);
        if !entry.is_live(now) || self.read_fences().kill(key.namespace(), &entry) {
            self.index.shard(hash).give_up(hash, slot.place);
            return Ok(false);
        }
        // The manager counted the uses itself.
        let left = Left { cause: Cause::Evicted, uses: 0 };
        if self.hand_over(hash, slot, key, entry, left) {
            self.count_evicted();
        }
        Ok(false)
    }

    fn relocate(&self, hash: u64, slot: &Slot, envelope: &mut Vec<u8>) -> Moved {
        while self.log.is_crowded() {
            let Some(ticket) = self.log.last_ticket() else { break };
            if !self.log.wait_blocking(&ticket) {
                return Moved::NoRoom;
            }
        }
        let room = self.log.take_room(envelope.len() - SAVED);
        let mut shard = self.index.shard(hash);
        let Some(current) = shard.get(hash).filter(|now| now.state == State::Live && now.place == slot.place)
        else {
            return Moved::Dead;
        };
        let fences = self.read_fences();
        if !fences.is_empty()
            && self
                .entries
                .decode(&envelope.clone().into())
                .is_ok_and(|(key, entry)| fences.kill(key.namespace(), &entry))
        {
            shard.give_up(hash, slot.place);
            return Moved::Dead;
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
        match self.log.append(&self.codec, Item::Entry(envelope), row, For::Upkeep, self.clock.now()) {
            Ok(Appended { place, .. }) => {
                room.keep();
                shard.set(hash, &Slot { place, uses: 0, ..current });
                Moved::Yes
            }
            // Puts took the rest of the last segment.
            Err(NoPlace::Segment | NoPlace::Disk | NoPlace::Busy) => Moved::NoRoom,
        }
    }
}

/// Held while the oldest segment is emptied. A writer that found it taken is told when it is released.
struct Reclaiming<'a> {
    store: &'a Store,
    one: Option<MutexGuard<'a, ()>>,
}

impl<'a> Reclaiming<'a> {
    fn wait(store: &'a Store) -> Self {
        Self { store, one: Some(lock(&store.reclaiming)) }
    }

    fn try_now(store: &'a Store) -> Option<Self> {
        match store.reclaiming.try_lock() {
            Ok(one) => Some(Self { store, one: Some(one) }),
            Err(TryLockError::Poisoned(poisoned)) => Some(Self { store, one: Some(poisoned.into_inner()) }),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Drop for Reclaiming<'_> {
    fn drop(&mut self) {
        // In this order: a writer says that it is starved before it finds the lock taken, and must not be left so.
        drop(self.one.take());
        self.store.log.starve(false);
    }
}

/// What became of an entry that was to be moved.
enum Moved {
    Yes,
    /// It is no longer there, or nobody may have it.
    Dead,
    NoRoom,
}

fn place(segment: &Segment, row: &Row) -> Place {
    Place { segment: segment.seq, offset: row.offset, len: row.len }
}

/// Reads as far as the file goes: its last records may not have been written for want of room. How far that is.
fn read_at_most(file: &File, bytes: &mut [u8], from: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], from + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// A part of a segment, read at once.
#[derive(Default)]
struct Window {
    at: u64,
    bytes: Vec<u8>,
}

impl Window {
    fn record(&mut self, segment: &Segment, place: Place) -> io::Result<Vec<u8>> {
        let (offset, len) = (u64::from(place.offset), place.len as usize);
        let end = self.at + self.bytes.len() as u64;
        if offset < self.at || offset + len as u64 > end {
            let written = u64::from(segment.written.load(Ordering::Acquire));
            let size = (WINDOW.max(len) as u64).min(written.saturating_sub(offset)) as usize;
            self.bytes.resize(size, 0);
            self.at = offset;
            let read =
                read_at_most(&segment.file, &mut self.bytes, offset).inspect_err(|_| self.bytes.clear())?;
            self.bytes.truncate(read);
        }
        let from = (offset - self.at) as usize;
        let found = self.bytes.get(from..from + len).ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut record = Vec::with_capacity(SAVED + len);
        record.extend_from_slice(&[0; SAVED]);
        record.extend_from_slice(found);
        Ok(record)
    }
}
