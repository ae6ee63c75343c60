//! One database of the directory: its writer's queue, its readers, and what this process remembers of it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use rusqlite::Connection;
use tiercache_core::tier::Spill;
use tiercache_core::{Clock, Codec, Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::config::Synchronous;
use crate::fences::{Fences, Purge};
use crate::open::{Setup, is_damage, reader, writer};
use crate::place::{Dir, Membership};
use crate::queue::{Call, Failure, Queue};
use crate::redo::Beside;
use crate::step::Step;
use crate::tier::NAME;
use crate::turns::Turns;
use crate::values::Files;

/// Bytes that may wait for a shard's writer. A call that is larger waits alone.
pub(crate) const ROOM: u32 = 32 << 20;
/// The most uses that are remembered between two writings.
const MAX_TOUCHED: usize = 1 << 16;

/// What all shards of a level have in common.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) dir: Dir,
    pub(crate) members: Membership,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) codec: Codec,
    /// Whether an entry may take fewer bytes than its value has.
    pub(crate) packs: bool,
    pub(crate) setup: Setup,
    /// The most bytes a shard's entries may take.
    pub(crate) share: AtomicU64,
    pub(crate) inline_max: u64,
    pub(crate) spill: OnceLock<Arc<dyn Spill>>,
    pub(crate) damaged: AtomicU64,
    pub(crate) evicted: AtomicU64,
    pub(crate) closed: AtomicBool,
    /// Whether a database is not where it was any more.
    pub(crate) lost: AtomicBool,
}

impl Common {
    pub(crate) fn share(&self) -> u64 {
        self.share.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) number: usize,
    pub(crate) common: Arc<Common>,
    pub(crate) files: Arc<Files>,
    pub(crate) queue: Queue,
    path: PathBuf,
    room: Arc<Semaphore>,
    /// One for each connection that may read at a time.
    readers: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
    fences: RwLock<Fences>,
    /// When entries, by row, were last read since that was last written.
    touched: Mutex<HashMap<i64, i64>>,
    pub(crate) purges: Mutex<Vec<Purge>>,
    pub(crate) turns: Turns,
    /// For whoever writes, to read what others keep for this one.
    pub(crate) beside: Mutex<Beside>,
}

impl Shard {
    pub(crate) fn new(common: Arc<Common>, number: usize, files: Files, readers: u32) -> Self {
        Self {
            number,
            path: common.dir.database(number),
            files: Arc::new(files),
            queue: Queue::default(),
            room: Arc::new(Semaphore::new(ROOM as usize)),
            readers: Arc::new(Semaphore::new(readers as usize)),
            idle: Mutex::default(),
            fences: RwLock::default(),
            touched: Mutex::default(),
            purges: Mutex::default(),
            turns: Turns::default(),
            beside: Mutex::default(),
            common,
        }
    }

    /// Has the writer do `work` in a transaction, which it may share with others; the answer comes after the commit.
    /// Once this was polled to where it waits for that, dropping it does not stop the work.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        op: &'static str,
        bytes: usize,
        work: impl FnMut(&mut Step<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let room = self.room(bytes).await?;
        answer(op, self.send(op, false, Some(room), work)).await
    }

    /// Room in the queue for a call of so many bytes.
    pub(crate) async fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Failure> {
        let bytes = u32::try_from(bytes).unwrap_or(ROOM).clamp(1 << 10, ROOM);
        self.room.clone().acquire_many_owned(bytes).await.map_err(|_| Failure::Other(Error::Closed))
    }

    /// Likewise without waiting for room, and with the answer to be waited for.
    pub(crate) fn send<T: Send + 'static>(
        &self,
        op: &'static str,
        alone: bool,
        room: Option<OwnedSemaphorePermit>,
        work: impl FnMut(&mut Step<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> oneshot::Receiver<Result<T, Failure>> {
        let (reply, answer) = oneshot::channel();
        let call = Call { op, alone, work, result: None, reply: Some(reply), room };
        if let Err(refused) = self.queue.push(Box::new(call)) {
            refused.answer(Some(Failure::Other(Error::Closed)));
        }
        answer
    }

    /// Has the writer do what nobody waits for.
    pub(crate) fn later(
        &self,
        op: &'static str,
        work: impl FnMut(&mut Step<'_>) -> rusqlite::Result<()> + Send + 'static,
    ) {
        let call = Call { op, alone: false, work, result: None, reply: None, room: None };
        // Refused by a shard that is closed: whoever opens it next meets the same and does it.
        let _ = self.queue.push(Box::new(call));
    }

    /// Does `work` on a connection that reads, where it may block.
    pub(crate) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        op: &'static str,
        work: impl FnOnce(&Self, &Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let slot = self.readers.clone().acquire_owned().await.map_err(|_| Error::Closed)?;
        let shard = self.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let answer = shard.connection().and_then(|connection| {
                let answer = work(&shard, &connection);
                lock(&shard.idle).push(connection);
                answer
            });
            let answer = answer.map_err(|error| shard.failed(op, error).into_error(op));
            drop(slot);
            answer
        });
        reading.await.unwrap_or_else(|error| match error.is_panic() {
            true => Err(Error::Panicked { what: "the SQLite level" }),
            false => Err(Error::unavailable(NAME, op, error)),
        })
    }

    fn connection(&self) -> rusqlite::Result<Connection> {
        match lock(&self.idle).pop() {
            Some(connection) => Ok(connection),
            None => self.reader(),
        }
    }

    /// A new connection that reads.
    pub(crate) fn reader(&self) -> rusqlite::Result<Connection> {
        reader(&self.path, self.common.setup)
    }

    /// Likewise to another shard.
    pub(crate) fn reader_of(&self, shard: usize) -> rusqlite::Result<Connection> {
        reader(&self.common.dir.database(shard), self.common.setup)
    }

    /// A new connection that writes, for transactions over several shards. What those commit is on the disk before they
    /// go on, whatever is asked of others, so that a power cut leaves no half of one.
    pub(crate) fn writer(&self) -> rusqlite::Result<Connection> {
        let synchronous = match self.common.setup.synchronous {
            Synchronous::Off => Synchronous::Off,
            Synchronous::Normal | Synchronous::Full => Synchronous::Full,
        };
        writer(&self.path, Setup { synchronous, ..self.common.setup })
    }

    /// What a failure is to the caller; damage is noted for the next to open.
    pub(crate) fn failed(&self, op: &'static str, error: rusqlite::Error) -> Failure {
        if is_damage(&error) {
            self.common.dir.suspect(self.number);
        }
        Failure::of(op, self.common.setup.patience, error)
    }

    /// Sees to it that the fences known are those of `version`, or later: a snapshot that is older is judged by what
    /// is known.
    pub(crate) fn catch_up(&self, connection: &Connection, version: i64) -> rusqlite::Result<()> {
        if self.fences().version >= version {
            return Ok(());
        }
        let mut known = self.fences.write().unwrap_or_else(PoisonError::into_inner);
        if known.version < version { known.catch_up(connection, version) } else { Ok(()) }
    }

    /// The fences as this process last read them.
    pub(crate) fn fences(&self) -> RwLockReadGuard<'_, Fences> {
        self.fences.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the entry of that row was read.
    pub(crate) fn touch(&self, row: i64, now: i64) {
        let mut touched = lock(&self.touched);
        if touched.len() < MAX_TOUCHED || touched.contains_key(&row) {
            touched.insert(row, now);
        }
    }

    pub(crate) fn has_touched(&self) -> bool {
        !lock(&self.touched).is_empty()
    }

    pub(crate) fn take_touched(&self) -> HashMap<i64, i64> {
        std::mem::take(&mut lock(&self.touched))
    }

    /// Takes no more calls; the writer ends when it has done those there are.
    pub(crate) fn stop(&self) {
        self.room.close();
        self.queue.close();
    }

    /// Waits for reads under way and hands out the connections they used, to be closed where that may block.
    pub(crate) async fn close_readers(&self, count: u32) -> Vec<Connection> {
        let all = self.readers.acquire_many(count).await;
        self.readers.close();
        drop(all);
        std::mem::take(&mut *lock(&self.idle))
    }
}

/// The writer's answer.
pub(crate) async fn answer<T>(
    op: &'static str,
    answer: oneshot::Receiver<Result<T, Failure>>,
) -> Result<T, Failure> {
    answer.await.unwrap_or(Err(Failure::Other(Error::Panicked { what: op })))
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
