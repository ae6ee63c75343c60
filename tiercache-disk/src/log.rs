//! The end of the log: where records get their place, and the groups in which they are written.
//!
//! Appending copies a record into the open group in RAM; groups are written one after the other, in order, so that
//! what a killed process leaves behind is always a beginning of what it appended. Whoever takes the turn (`writing`)
//! writes: the writer thread, or a removal that finds little to write.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tiercache_core::Timestamp;
use tokio::sync::Notify;

use crate::footer::{Footer, MAX_ROW};
use crate::index::{Place, lock};
use crate::segment::{Codec, Header, Item, Row, SAVED, SEGMENT_HEADER, seal};

/// A group is written when it has that many bytes…
const GROUP: usize = 256 << 10;
/// …or when its first record has waited that long.
pub(crate) const LINGER: Duration = Duration::from_millis(10);
/// Bytes accepted and not yet written; who would exceed them waits.
const MAX_PENDING: usize = 8 << 20;
/// Envelopes from here on are not copied into the group's buffer but moved into it.
const MOVED: usize = 64 << 10;
/// A removal writes the open group itself when it has at most that many bytes.
const INLINE: usize = 64 << 10;
/// How long a disk that was full is taken to be so.
const FULL_FOR: Duration = Duration::from_secs(1);

/// A segment in use. A file that is used again gets a new one of these.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) seq: u32,
    pub(crate) salt: u64,
    pub(crate) file: Arc<File>,
    pub(crate) capacity: u32,
    /// How far it was written. Set only by who has the turn.
    pub(crate) written: AtomicU32,
    /// How far it was written when the directory was opened.
    pub(crate) recovered: u32,
    pub(crate) sealed: AtomicBool,
    /// A group failed: the footer would promise what is not there.
    pub(crate) holed: AtomicBool,
    pub(crate) dirty: AtomicBool,
    /// Hashes given up in the index because their records could not be written here.
    pub(crate) orphans: Mutex<Vec<u64>>,
    /// What its first group has to do before.
    pub(crate) activation: Mutex<Option<Activation>>,
}

/// What makes a spare file a segment.
#[derive(Debug)]
pub(crate) struct Activation {
    /// The name the file still has.
    pub(crate) name: Option<String>,
    /// The header it still lacks.
    pub(crate) header: Header,
}

impl Segment {
    pub(crate) fn new(codec: &Codec, seq: u32, file: Arc<File>, capacity: u32) -> Self {
        Self {
            seq,
            salt: codec.salt(seq),
            file,
            capacity,
            written: AtomicU32::new(0),
            recovered: 0,
            sealed: AtomicBool::new(false),
            holed: AtomicBool::new(false),
            dirty: AtomicBool::new(false),
            orphans: Mutex::default(),
            activation: Mutex::default(),
        }
    }

    /// A segment that is to begin in the file of `spare`.
    pub(crate) fn begin(codec: &Codec, seq: u32, spare: Spare, capacity: u32, now: Timestamp) -> Self {
        let header =
            Header { seed: codec.seed, seq, capacity, prefix: codec.prefix, written: now, footer: None };
        Self {
            activation: Mutex::new(Some(Activation { name: Some(spare.name), header })),
            ..Self::new(codec, seq, spare.file, capacity)
        }
    }

    pub(crate) fn has_written(&self, place: Place) -> bool {
        place.offset + place.len <= self.written.load(Ordering::Acquire)
    }
}

/// The segments by number.
#[derive(Debug, Default)]
pub(crate) struct Segments(RwLock<HashMap<u32, Arc<Segment>>>);

impl Segments {
    pub(crate) fn get(&self, seq: u32) -> Option<Arc<Segment>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&seq).cloned()
    }

    pub(crate) fn insert(&self, segment: Arc<Segment>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(segment.seq, segment);
    }

    pub(crate) fn remove(&self, seq: u32) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&seq);
    }

    pub(crate) fn all(&self) -> Vec<Arc<Segment>> {
        let mut all: Vec<_> =
            self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.sort_unstable_by_key(|segment| segment.seq);
        all
    }
}

/// A segment file that waits to be used.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) name: String,
    pub(crate) file: Arc<File>,
}

/// What became of a group.
#[derive(Debug, Default)]
pub(crate) struct Ticket(AtomicU8);

impl Ticket {
    pub(crate) fn settle(&self, written: bool) {
        self.0.store(if written { 1 } else { 2 }, Ordering::Release);
    }

    /// Whether the group was written; `None` as long as it waits.
    pub(crate) fn outcome(&self) -> Option<bool> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            outcome => Some(outcome == 1),
        }
    }
}

/// Bytes that stand together in a group; the first `skip` do not belong to it.
pub(crate) struct Chunk {
    pub(crate) at: u32,
    pub(crate) skip: usize,
    pub(crate) bytes: Vec<u8>,
}

impl Chunk {
    pub(crate) fn record(&self) -> &[u8] {
        &self.bytes[self.skip..]
    }
}

/// Records that are written together.
pub(crate) struct Group {
    pub(crate) segment: Arc<Segment>,
    pub(crate) chunks: Vec<Chunk>,
    pub(crate) end: u32,
    pub(crate) ticket: Arc<Ticket>,
    /// Whether it is the first of its segment, whose file must get its name and header before.
    activates: bool,
    /// The footer that seals the segment with this group.
    pub(crate) footer: Option<Vec<u8>>,
    len: usize,
    since: Instant,
}

impl Group {
    fn new(segment: Arc<Segment>, end: u32) -> Self {
        Self {
            segment,
            chunks: Vec::new(),
            end,
            ticket: Arc::default(),
            activates: false,
            footer: None,
            len: 0,
            since: Instant::now(),
        }
    }

    fn find(&self, place: Place) -> Option<&[u8]> {
        let chunk = match self.chunks.binary_search_by_key(&place.offset, |chunk| chunk.at) {
            Ok(at) => &self.chunks[at],
            Err(after) => &self.chunks[after.checked_sub(1)?],
        };
        let from = (place.offset - chunk.at) as usize;
        chunk.record().get(from..from + place.len as usize)
    }
}

/// Why a record got no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// The segment is full and no other is ready.
    Segment,
    /// The disk is full or broken.
    Disk,
    /// Writing it at once would take waiting.
    Busy,
}

/// Who appends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// A put: leaves what reclaim needs to move records into.
    Put,
    /// A removal, a fence, or reclaim: takes what is there.
    Upkeep,
}

/// Where a record went.
#[derive(Debug)]
pub(crate) struct Appended {
    pub(crate) place: Place,
    pub(crate) ticket: Arc<Ticket>,
}

pub(crate) struct LogState {
    active: Arc<Segment>,
    end: u32,
    footer: Footer,
    open: Group,
    queue: VecDeque<Arc<Group>>,
    writing: bool,
    hurry: bool,
    next_seq: u32,
    pub(crate) spares: Vec<Spare>,
    /// Kept free in the active segment while no spare is ready: what reclaim may move into it to make one.
    pub(crate) reserve: u32,
    pub(crate) full_until: Option<Instant>,
    /// The writer has a group for which the disk has no room: whoever empties a segment gives its file back and waits
    /// for no group meanwhile.
    pub(crate) starved: bool,
    pub(crate) stopping: bool,
}

/// The end of the log.
pub(crate) struct Log {
    state: Mutex<LogState>,
    /// For the writer: there is something to write, or the turn is free.
    work: Condvar,
    /// For the upkeep thread: a spare is wanted, or the end.
    pub(crate) upkeep: Condvar,
    /// For threads that wait for a group.
    settled: Condvar,
    /// For tasks that wait for a group, for room or for a segment.
    changed: Notify,
    pending: AtomicUsize,
    pub(crate) segments: Segments,
    pub(crate) segment_size: u32,
}

impl Log {
    /// A log that goes on in `active`, at `end`, after the rows that are in `footer`.
    pub(crate) fn new(active: Arc<Segment>, end: u32, footer: Footer, segment_size: u32) -> Self {
        let segments = Segments::default();
        segments.insert(Arc::clone(&active));
        let mut open = Group::new(Arc::clone(&active), end);
        open.activates = lock(&active.activation).is_some();
        let state = LogState {
            next_seq: active.seq.wrapping_add(1),
            active,
            end,
            footer,
            open,
            queue: VecDeque::new(),
            writing: false,
            hurry: false,
            spares: Vec::new(),
            reserve: 0,
            full_until: None,
            starved: false,
            stopping: false,
        };
        Self {
            state: Mutex::new(state),
            work: Condvar::new(),
            upkeep: Condvar::new(),
            settled: Condvar::new(),
            changed: Notify::new(),
            pending: AtomicUsize::new(0),
            segments,
            segment_size,
        }
    }

    /// Bytes accepted and not yet written.
    #[cfg(test)]
    pub(crate) fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, LogState> {
        lock(&self.state)
    }

    /// The largest record a segment takes.
    pub(crate) fn max_record(&self) -> usize {
        self.segment_size as usize - SEGMENT_HEADER - 2 - MAX_ROW
    }

    /// Gives `item` the next place. Neither waits nor does any I/O; called under the lock of the record's shard.
    pub(crate) fn append(
        &self,
        codec: &Codec,
        mut item: Item<'_>,
        row: Row,
        who: For,
        now: Timestamp,
    ) -> Result<Appended, NoPlace> {
        let mut guard = self.lock();
        let state = &mut *guard;
        self.ensure_place(codec, state, item.len(), who, now)?;
        Ok(self.place(codec, state, &mut item, row))
    }

    /// Like [`Log::append`], and takes the turn to write it when that is quick: the caller writes the group it gets
    /// once it has released its locks. Nothing is done when it is not.
    pub(crate) fn append_inline(
        &self,
        codec: &Codec,
        mut item: Item<'_>,
        row: Row,
        now: Timestamp,
    ) -> Result<(Place, Arc<Group>), NoPlace> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if !state.quick() {
            return Err(NoPlace::Busy);
        }
        self.ensure_place(codec, state, item.len(), For::Upkeep, now)?;
        // A roll queues the footer of the segment before: not quick any more, and nothing was appended.
        if !state.quick() {
            self.work.notify_one();
            return Err(NoPlace::Busy);
        }
        let appended = self.place(codec, state, &mut item, row);
        match state.take_turn() {
            Some(group) => Ok((appended.place, group)),
            // Unreachable: a record was just appended. Its place stands, the writer takes it.
            None => Err(NoPlace::Busy),
        }
    }

    /// Takes the turn to write what is open, when that is quick. `Ok(None)`: nothing is waiting.
    pub(crate) fn turn_inline(&self) -> Result<Option<Arc<Group>>, NoPlace> {
        let mut state = self.lock();
        if state.quick() { Ok(state.take_turn()) } else { Err(NoPlace::Busy) }
    }

    fn ensure_place(
        &self,
        codec: &Codec,
        state: &mut LogState,
        len: usize,
        who: For,
        now: Timestamp,
    ) -> Result<(), NoPlace> {
        if state.stopping {
            return Err(NoPlace::Disk);
        }
        if let Some(until) = state.full_until {
            if Instant::now() < until && who == For::Put {
                return Err(NoPlace::Disk);
            }
            if Instant::now() >= until {
                state.full_until = None;
            }
        }
        let left = |state: &LogState| {
            (state.active.capacity as usize).saturating_sub(state.end as usize + state.footer.len() + MAX_ROW)
        };
        let reserved = if who == For::Put && state.spares.is_empty() { state.reserve as usize } else { 0 };
        if len + reserved <= left(state) {
            return Ok(());
        }
        let Some(spare) = state.spares.pop() else {
            self.upkeep.notify_one();
            return Err(NoPlace::Segment);
        };
        state.seal();
        state.reserve = self.segment_size / 3;
        let seq = state.next_seq;
        state.next_seq = seq.wrapping_add(1);
        let segment = Arc::new(Segment::begin(codec, seq, spare, self.segment_size, now));
        self.segments.insert(Arc::clone(&segment));
        state.active = Arc::clone(&segment);
        state.end = SEGMENT_HEADER as u32;
        state.footer = Footer::new();
        state.open = Group::new(segment, state.end);
        state.open.activates = true;
        self.work.notify_one();
        self.upkeep.notify_one();
        Ok(())
    }

    fn place(&self, codec: &Codec, state: &mut LogState, item: &mut Item<'_>, row: Row) -> Appended {
        let len = item.len();
        // A segment has at most 1 GiB.
        let place = Place { segment: state.active.seq, offset: state.end, len: len as u32 };
        state.footer.push(&Row { offset: place.offset, len: place.len, ..row }, &codec.names);
        let salt = state.active.salt;
        let open = &mut state.open;
        if open.len == 0 {
            open.since = Instant::now();
            self.work.notify_one();
        }
        match item {
            Item::Entry(envelope) if len >= MOVED => {
                let mut bytes = std::mem::take(*envelope);
                seal(salt, &mut bytes, SAVED);
                open.chunks.push(Chunk { at: place.offset, skip: SAVED, bytes });
            }
            _ => {
                let fits = |chunk: &Chunk| chunk.bytes.len() + len <= chunk.bytes.capacity();
                if !open.chunks.last().is_some_and(fits) {
                    let bytes = Vec::with_capacity(len.max(GROUP + GROUP / 8));
                    open.chunks.push(Chunk { at: place.offset, skip: 0, bytes });
                }
                if let Some(chunk) = open.chunks.last_mut() {
                    item.write(salt, &mut chunk.bytes);
                }
            }
        }
        state.end += place.len;
        open.end = state.end;
        open.len += len;
        let ticket = Arc::clone(&open.ticket);
        if open.len >= GROUP {
            state.close_group();
            self.work.notify_one();
        }
        Appended { place, ticket }
    }

    /// Bytes of a record that has not been written yet.
    pub(crate) fn buffered(&self, segment: &Segment, place: Place) -> Option<Vec<u8>> {
        let state = self.lock();
        let groups = state.queue.iter().map(|group| &**group).chain(std::iter::once(&state.open));
        let found =
            groups.filter(|group| group.segment.seq == segment.seq).find_map(|group| group.find(place))?;
        let mut bytes = vec![0; SAVED];
        bytes.reserve_exact(found.len());
        bytes.extend_from_slice(found);
        Some(bytes)
    }

    /// Waits, as the writer thread, for a group and takes the turn. `None` at the end, when all is written.
    pub(crate) fn next_group(&self) -> Option<Arc<Group>> {
        let mut state = self.lock();
        loop {
            if state.writing {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            if state.queue.is_empty() && state.open.len > 0 {
                let waited = state.open.since.elapsed();
                if !(state.hurry || state.stopping) && waited < LINGER {
                    let wait = self.work.wait_timeout(state, LINGER - waited);
                    state = wait.unwrap_or_else(PoisonError::into_inner).0;
                    continue;
                }
            }
            if let Some(group) = state.take_turn() {
                return Some(group);
            }
            state.hurry = false;
            if state.stopping {
                return None;
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Gives the turn back after the group at the head of the queue was written, or was not.
    pub(crate) fn give_back(&self, group: &Group, written: bool) {
        let mut state = self.lock();
        if written {
            group.segment.dirty.store(true, Ordering::Relaxed);
            group.segment.written.store(group.end, Ordering::Release);
        } else {
            state.full_until = Some(Instant::now() + FULL_FOR);
        }
        // Whether or not its footer was written, nothing more comes into it.
        if group.footer.is_some() {
            group.segment.sealed.store(true, Ordering::Release);
        }
        state.queue.pop_front();
        state.writing = false;
        self.pending.fetch_sub(group.len, Ordering::Relaxed);
        drop(state);
        group.ticket.settle(written);
        self.work.notify_one();
        self.tell();
    }

    /// Gives the turn back with nothing done: the writer thread takes the group.
    pub(crate) fn leave_turn(&self) {
        let mut state = self.lock();
        state.writing = false;
        state.hurry = true;
        drop(state);
        self.work.notify_one();
    }

    /// Wakes everyone who waits for a change.
    pub(crate) fn tell(&self) {
        // Taken so that no thread can be between looking and waiting.
        drop(self.lock());
        self.settled.notify_all();
        self.changed.notify_waiters();
    }

    /// Lets the writer go at once.
    pub(crate) fn hurry(&self) {
        self.lock().hurry = true;
        self.work.notify_one();
    }

    /// The ticket of the last record appended; `None` when everything is written.
    pub(crate) fn last_ticket(&self) -> Option<Arc<Ticket>> {
        let state = self.lock();
        // A segment that was begun and has no record yet is written with its first one, whenever that comes.
        if state.open.len > 0 {
            Some(Arc::clone(&state.open.ticket))
        } else {
            state.queue.back().map(|group| Arc::clone(&group.ticket))
        }
    }

    /// The ticket of the group a record is in; `None` when it is written.
    pub(crate) fn ticket(&self, place: Place) -> Option<Arc<Ticket>> {
        let state = self.lock();
        let mut groups = state.queue.iter().map(|group| &**group).chain(std::iter::once(&state.open));
        groups
            .find(|group| group.segment.seq == place.segment && group.find(place).is_some())
            .map(|group| Arc::clone(&group.ticket))
    }

    /// Waits for the group of `ticket`; whether it was written.
    pub(crate) async fn wait(&self, ticket: &Ticket) -> bool {
        self.hurry();
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(outcome) = ticket.outcome() {
                return outcome;
            }
            changed.await;
        }
    }

    /// Likewise, on the upkeep thread: not beyond the moment when the writer waits for it in turn.
    pub(crate) fn wait_blocking(&self, ticket: &Ticket) -> bool {
        self.hurry();
        let mut starved = false;
        self.wait_until(|state| {
            starved = state.starved;
            starved || ticket.outcome().is_some()
        });
        !starved && ticket.outcome() == Some(true)
    }

    /// Has whoever empties a segment give its file back, or sees that nobody has to.
    pub(crate) fn starve(&self, starved: bool) {
        self.lock().starved = starved;
        self.tell();
    }

    /// Waits until `condition` holds, which something the log tells of makes true.
    pub(crate) fn wait_until(&self, mut condition: impl FnMut(&mut LogState) -> bool) {
        let mut state = self.lock();
        while !condition(&mut state) {
            state = self.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for room for `len` bytes among those not yet written.
    pub(crate) async fn reserve(&self, len: usize) -> Reserved<'_> {
        loop {
            if let Some(reserved) = self.try_reserve(len) {
                return reserved;
            }
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(reserved) = self.try_reserve(len) {
                return reserved;
            }
            changed.await;
        }
    }

    /// Takes room for `len` bytes whether it is there or not: for removals, which are small, and for upkeep.
    pub(crate) fn take_room(&self, len: usize) -> Reserved<'_> {
        self.pending.fetch_add(len, Ordering::Relaxed);
        Reserved { log: self, len }
    }

    fn try_reserve(&self, len: usize) -> Option<Reserved<'_>> {
        // One record is let through whatever its size, or it would wait for ever.
        let more = |before| (before == 0 || before + len <= MAX_PENDING).then_some(before + len);
        let taken = self.pending.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Reserved { log: self, len })
    }

    pub(crate) fn is_crowded(&self) -> bool {
        self.pending.load(Ordering::Relaxed) > MAX_PENDING
    }

    /// The next change; look at what is waited for after this was enabled.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Seals the last segment and lets both threads end.
    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        if !state.stopping {
            state.stopping = true;
            state.seal();
        }
        drop(state);
        self.work.notify_all();
        self.upkeep.notify_all();
        self.tell();
    }

    /// The number of the segment that is appended to.
    pub(crate) fn active(&self) -> u32 {
        self.lock().active.seq
    }
}

impl LogState {
    fn quick(&self) -> bool {
        !self.writing && self.queue.is_empty() && self.open.len <= INLINE && !self.open.activates
    }

    fn close_group(&mut self) {
        if self.open.len > 0 || self.open.activates {
            let next = Group::new(Arc::clone(&self.active), self.end);
            self.queue.push_back(Arc::new(std::mem::replace(&mut self.open, next)));
        }
    }

    fn take_turn(&mut self) -> Option<Arc<Group>> {
        if self.queue.is_empty() && self.open.len > 0 {
            self.close_group();
        }
        let group = self.queue.front().cloned()?;
        self.writing = true;
        Some(group)
    }

    /// Queues the footer of the active segment; nothing may be appended to it afterwards.
    fn seal(&mut self) {
        self.close_group();
        let mut group = Group::new(Arc::clone(&self.active), self.end);
        group.footer = Some(self.footer.encode());
        self.queue.push_back(Arc::new(group));
    }
}

/// Room for bytes on their way into the log; given back when dropped, kept when the record was appended.
pub(crate) struct Reserved<'a> {
    log: &'a Log,
    len: usize,
}

impl Reserved<'_> {
    /// The record was appended: its room is given back when it is written.
    pub(crate) fn keep(mut self) {
        self.len = 0;
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.len > 0 {
            self.log.pending.fetch_sub(self.len, Ordering::Relaxed);
            self.log.changed.notify_waiters();
        }
    }
}
