use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use async_trait::async_trait;
use rusqlite::Connection;
use tiercache_core::tier::{
    Call, Counting, Dead, FenceLog, Hold, Journal, Listing, Permit, Profile, Put, PutItem, Removal, Scope,
    Sizing, Spill, Swept, Usage, side_by_side,
};
use tiercache_core::transaction::Transactions;
use tiercache_core::{Clock, Entry, Error, Generation, Key, Leasing, Packing, Result, Tier, Timestamp};

use crate::across::Writers;
use crate::config::{DEFAULT_SHARDS, MAX_VALUE, SqliteConfig, Synchronous};
use crate::fences::Purge;
use crate::open::{Setup, check_library, open_shard};
use crate::place::Dir;
use crate::queue::{BATCH, Failure};
use crate::read::lookup;
use crate::redo::keeps_any;
use crate::room::due;
use crate::shard::{Common, Shard, answer, lock};
use crate::step::Step;
use crate::values::{Files, Image, Unready, generation, number, shard_of, sql};
use crate::writer;

/// The backend's name in YAML, logs and errors.
pub(crate) const NAME: &str = "sqlite";

/// Up to so many bytes a value is made ready on the caller's thread.
const QUICK: usize = 64 << 10;
/// Entries a sweep takes from a shard at a time, and about how many bytes of them.
const SWEPT: (usize, u64) = (512, 8 << 20);

/// A level in SQLite databases, for several processes on one directory.
#[derive(Debug)]
pub struct SqliteTier {
    pub(crate) common: Arc<Common>,
    pub(crate) shards: Vec<Arc<Shard>>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
    /// The connections of transactions over several shards, in the hands of one at a time.
    pub(crate) across: Arc<tokio::sync::Mutex<Writers>>,
    last_generation: Generation,
    readers: u32,
    sweep_at: AtomicUsize,
}

impl SqliteTier {
    /// Opens the directory, making it when it is not there. A database that is damaged is set aside and made anew.
    ///
    /// # Errors
    /// [`Error::Config`] when the configuration cannot be used or has another number of shards than the directory,
    /// [`Error::Refused`] when the directory is not safe to use or not ours, [`Error::Unavailable`] when the disk fails.
    pub async fn open(config: SqliteConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        tokio::task::spawn_blocking(move || Self::open_blocking(config, clock))
            .await
            .map_err(|_| Error::Panicked { what: "opening the SQLite level" })?
    }

    /// Likewise, where blocking is fine.
    ///
    /// # Errors
    /// As for [`SqliteTier::open`].
    pub fn open_blocking(config: SqliteConfig, clock: Arc<dyn Clock>) -> Result<Self> {
        check_library()?;
        config.check()?;
        let codec = config.codec()?;
        let failed = |error: std::io::Error| Error::unavailable(NAME, "open", error);
        let damaged = |error: rusqlite::Error| Error::unavailable(NAME, "open", error);
        let dir = Dir::open(&config.directory()?, true)?;
        let _opening = dir.begin_opening()?;
        let members = dir.join()?;
        let count = shards(&config, &dir)?;
        let common = Arc::new(Common {
            dir,
            members,
            clock,
            codec,
            packs: config.compression != Packing::None,
            setup: Setup { patience: config.busy_timeout, synchronous: config.synchronous },
            share: AtomicU64::new(config.max_size / u64::from(count)),
            inline_max: config.inline_max,
            spill: Default::default(),
            damaged: Default::default(),
            evicted: Default::default(),
            closed: Default::default(),
            lost: Default::default(),
        });
        let durable = config.synchronous == Synchronous::Full;
        let mut last = 0;
        let mut opened = Vec::new();
        for number in 0..count as usize {
            let writer = open_shard(&common.dir, &common.members, number, common.setup)?;
            let files = Files::open(&common.dir, number, true, durable).map_err(failed)?;
            let shard = Arc::new(Shard::new(common.clone(), number, files, config.readers));
            let (newest, version) = writer
                .query_row("SELECT generation, fences FROM state WHERE id = 1", (), |row| {
                    Ok((row.get::<_, i64>(0)?, row.get(1)?))
                })
                .map_err(damaged)?;
            last = last.max(newest);
            shard.catch_up(&writer, version).map_err(damaged)?;
            *lock(&shard.purges) = Purge::unfinished(&writer).map_err(damaged)?;
            opened.push((shard, writer));
        }
        see_through(&opened).map_err(damaged)?;
        let tier = Self {
            common,
            shards: opened.iter().map(|(shard, _)| shard.clone()).collect(),
            threads: Arc::default(),
            across: Arc::default(),
            last_generation: generation(last),
            readers: config.readers,
            sweep_at: AtomicUsize::new(0),
        };
        // Each ends when the tier is closed or dropped.
        for (shard, writer) in opened {
            let thread = std::thread::Builder::new()
                .name(format!("tiercache-sq-{}", shard.number))
                .spawn(move || writer::run(&shard, writer))
                .map_err(failed)?;
            lock(&tier.threads).push(thread);
        }
        Ok(tier)
    }

    /// Ends what was opened just now and used by nobody.
    pub(crate) fn close_blocking(self) -> Result<()> {
        self.common.closed.store(true, Ordering::Release);
        self.shards.iter().for_each(|shard| shard.stop());
        let threads = std::mem::take(&mut *lock(&self.threads));
        let panicked = threads.into_iter().map(JoinHandle::join).filter(Result::is_err).count();
        self.common.members.leave();
        if panicked > 0 { Err(Error::Panicked { what: "a thread of the SQLite level" }) } else { Ok(()) }
    }

    /// Removes everything in the namespace that carries the tag, whichever process put it, and returns how many
    /// entries that were. What was set before and is written later is refused.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::TimedOut`]: some may be left.
    pub async fn evict_tag(&self, namespace: &str, name: &str, value: &str) -> Result<u64> {
        const OP: &str = "evict a tag";
        self.check_open()?;
        let scope =
            Scope::Tag { namespace: namespace.to_owned(), name: name.to_owned(), value: value.to_owned() };
        let below = self.above_all(Generation::ZERO).await?;
        let mut gone = 0;
        for shard in &self.shards {
            let scope = scope.clone();
            let work = move |step: &mut Step<'_>| step.evict(&scope, below);
            gone += shard.write(OP, 0, work).await.map_err(|failure| failure.into_error(OP))?;
        }
        Ok(gone)
    }

    /// A generation that is at least `least`, and above everything that any process has put before this began.
    pub(crate) async fn above_all(&self, least: Generation) -> Result<Generation> {
        let mut newest = 0;
        for shard in &self.shards {
            let read = shard.read("read the newest generation", |_, connection| {
                connection
                    .prepare_cached("SELECT generation FROM state WHERE id = 1")?
                    .query_row((), |row| row.get::<_, i64>(0))
            });
            newest = newest.max(number(read.await?));
        }
        Ok(least.max(Generation::new(newest + 1)))
    }

    /// Which shard has the key.
    pub fn shard_of(&self, key: &Key) -> usize {
        shard_of(key, self.shards.len() as u64)
    }

    pub(crate) fn shard(&self, key: &Key) -> &Arc<Shard> {
        &self.shards[self.shard_of(key)]
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.common.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        if self.common.lost.load(Ordering::Acquire) {
            // Other processes would make it anew and not see what is put here.
            return Err(Error::unavailable(
                NAME,
                "use",
                "the directory was removed or replaced: open it again",
            ));
        }
        Ok(())
    }

    /// Has every shard's writer do the same, as one step of the caller's.
    pub(crate) async fn everywhere(
        &self,
        op: &'static str,
        work: impl Fn(&mut Step<'_>) -> rusqlite::Result<()> + Clone + Send + 'static,
    ) -> Result<()> {
        let send = |shard: &Arc<Shard>| {
            shard.send(op, false, None, {
                let work = work.clone();
                move |step: &mut Step<'_>| work(step)
            })
        };
        let sent: Vec<_> = self.shards.iter().map(send).collect();
        let mut outcome = Ok(());
        for sent in sent {
            outcome = outcome.and(answer(op, sent).await.map_err(|failure| failure.into_error(op)));
        }
        outcome
    }

    /// Makes the row of the entry, and its file when it is large.
    async fn image(&self, key: &Key, entry: &Entry, hold: Hold) -> Result<Image, Unready> {
        let shard = self.shard(key);
        let length = entry.value.len() as u64;
        if length > MAX_VALUE || (length > self.common.share() && !self.common.packs) {
            return Err(Unready::TooLarge);
        }
        if entry.value.len() <= QUICK {
            match Image::new(shard, (key, entry, hold), false) {
                Err(Unready::Blocks) => {}
                made => return made,
            }
        }
        let (shard, key, entry) = (shard.clone(), key.clone(), entry.clone());
        // Dropped meanwhile, the file goes with what this returns.
        tokio::task::spawn_blocking(move || Image::new(&shard, (&key, &entry, hold), true))
            .await
            .unwrap_or_else(|error| Err(Unready::Failed(std::io::Error::other(error))))
    }
}

/// Ends what a process that was killed, or the power, has left half done of transactions over several shards.
fn see_through(opened: &[(Arc<Shard>, Connection)]) -> rusqlite::Result<()> {
    let mut left = false;
    for (shard, connection) in opened {
        // A power cut may have taken the file that says so.
        if left && let Err(error) = shard.common.dir.owe(shard.number) {
            tracing::warn!(tier = NAME, shard = shard.number, %error, "what it is owed cannot be noted");
        }
        left |= keeps_any(connection)?;
    }
    if !left {
        return Ok(());
    }
    let rounds: [fn(&mut Step<'_>) -> rusqlite::Result<()>; 2] = [|_| Ok(()), |step| step.strike_redo()];
    for round in rounds {
        for (shard, connection) in opened {
            if let Err(failure) = writer::transact_in_turn(shard, connection, "open", round) {
                // Its writer tries again once a second.
                let error = failure.into_error("open");
                tracing::warn!(tier = NAME, shard = shard.number, %error, "a transaction is not seen through yet");
            }
        }
    }
    Ok(())
}

/// Looks keys of a shard up, each in its place of the batch.
async fn read_many(shard: &Arc<Shard>, keys: Vec<(usize, Key)>) -> Vec<(usize, Result<Option<Entry>>)> {
    let places: Vec<usize> = keys.iter().map(|(at, _)| *at).collect();
    let work = move |shard: &Shard, connection: &Connection| {
        let look = |(at, key): (usize, Key)| {
            let found =
                lookup(shard, connection, &key).map_err(|error| shard.failed("get", error).into_error("get"));
            let found = found.and_then(|found| found.map_err(|error| Error::unavailable(NAME, "get", error)));
            (at, found)
        };
        Ok(keys.into_iter().map(look).collect())
    };
    match shard.read("get", work).await {
        Ok(found) => found,
        Err(error) => places.into_iter().map(|at| (at, Err(error.clone()))).collect(),
    }
}

/// How many shards the directory has, or is to have.
fn shards(config: &SqliteConfig, dir: &Dir) -> Result<u32> {
    match (dir.shards()?, config.shards) {
        (Some(found), Some(asked)) if found != asked => Err(Error::Config(format!(
            "shards: {} was made with {found} shards, not {asked}: leave `shards` out, give {found}, or remove the \
             directory, whose entries would not be found",
            dir.path.display()
        ))),
        (Some(found), _) => Ok(found),
        (None, asked) => {
            let asked = asked.unwrap_or(DEFAULT_SHARDS);
            dir.note_shards(asked).map_err(|error| Error::unavailable(NAME, "open", error))?;
            Ok(asked)
        }
    }
}

impl Drop for SqliteTier {
    fn drop(&mut self) {
        self.common.closed.store(true, Ordering::Release);
        // Writers do what was accepted, and end; the last lets go of the directory.
        self.shards.iter().for_each(|shard| shard.stop());
    }
}

#[async_trait]
impl Tier for SqliteTier {
    fn name(&self) -> &'static str {
        NAME
    }

    fn profile(&self) -> Profile {
        Profile {
            persistent: true,
            shared: true,
            max_entry_bytes: Some(self.common.share().min(MAX_VALUE)),
            last_generation: self.last_generation,
        }
    }

    fn attach(&self, spill: Arc<dyn Spill>) {
        if self.common.spill.set(spill).is_err() {
            tracing::error!("a SQLite level was attached twice");
        }
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        self.check_open()?;
        let shard = self.shard(key);
        let key = key.clone();
        shard
            .read("get", move |shard, connection| lookup(shard, connection, &key))
            .await?
            .map_err(|error| Error::unavailable(NAME, "get", error))
    }

    async fn put(&self, key: &Key, entry: &Entry, hold: Hold, permit: &dyn Permit) -> Result<Put> {
        self.check_open()?;
        let shard = self.shard(key);
        // Before a file is written, so that what waits here is bounded.
        let room = shard.room(entry.value.len()).await.map_err(|failure| failure.into_error("put"))?;
        let image = match self.image(key, entry, hold).await {
            Ok(image) => image,
            Err(Unready::TooLarge) => return Ok(Put::TooLarge),
            Err(Unready::Full) => return Ok(Put::Full),
            Err(Unready::Failed(error)) => return Err(Error::unavailable(NAME, "put", error)),
            Err(Unready::Blocks) => return Err(Error::unavailable(NAME, "put", "a file where none may be")),
        };
        if !permit.holds() {
            return Ok(Put::Superseded);
        }
        let key = key.clone();
        let sent = shard.send("put", false, Some(room), move |step| step.put(&key, &image));
        match answer("put", sent).await {
            Ok(put) => Ok(put),
            Err(Failure::Full) => Ok(Put::Full),
            Err(failure) => Err(failure.into_error("put")),
        }
    }

    async fn remove(&self, key: &Key, below: Generation) -> Result<Removal> {
        self.check_open()?;
        let shard = self.shard(key);
        let key = key.clone();
        let removed = shard.write("remove", 0, move |step| step.remove(&key, below)).await;
        removed.map_err(|failure| failure.into_error("remove"))
    }

    /// One thread and one connection for the keys of a shard.
    async fn get_many(&self, keys: &[Key]) -> Vec<Result<Option<Entry>>> {
        if let Err(error) = self.check_open() {
            return vec![Err(error); keys.len()];
        }
        let mut shards: Vec<Vec<(usize, Key)>> = vec![Vec::new(); self.shards.len()];
        keys.iter().enumerate().for_each(|(at, key)| shards[self.shard_of(key)].push((at, key.clone())));
        let shards = self.shards.iter().zip(shards).filter(|(_, keys)| !keys.is_empty());
        let read = shards.map(|(shard, keys)| -> Call<'_, _> { Box::pin(read_many(shard, keys)) });
        let found = side_by_side(self.shards.len(), read.collect()).await;
        let mut found: Vec<_> = found.into_iter().flatten().collect();
        found.sort_unstable_by_key(|(at, _)| *at);
        found.into_iter().map(|(_, found)| found).collect()
    }

    /// So many at once that a shard's writer finds what one transaction can do waiting.
    async fn put_many(&self, items: &[PutItem<'_>]) -> Vec<Result<Put>> {
        let put = items.iter().map(|item| self.put(item.key, item.entry, item.hold, item.permit));
        side_by_side(BATCH * self.shards.len(), put.collect()).await
    }

    /// Likewise.
    async fn remove_many(&self, items: &[(Key, Generation)]) -> Vec<Result<Removal>> {
        let remove = items.iter().map(|(key, below)| self.remove(key, *below));
        side_by_side(BATCH * self.shards.len(), remove.collect()).await
    }

    async fn clear(&self, namespace: Option<&str>, below: Generation) -> Result<()> {
        self.check_open()?;
        let scope = namespace.map_or(Scope::All, |namespace| Scope::Namespace(namespace.to_owned()));
        self.everywhere("clear", move |step| step.fence(&scope, below, true)).await
    }

    async fn usage(&self) -> Result<Usage> {
        self.check_open()?;
        let (mut entries, mut bytes) = (0, 0);
        for shard in &self.shards {
            let (some, of) = shard
                .read("usage", |_, connection| {
                    connection
                        .prepare_cached("SELECT entries, bytes FROM state WHERE id = 1")?
                        .query_row((), |row| Ok((number(row.get(0)?), number(row.get(1)?))))
                })
                .await?;
            entries += some;
            bytes += of;
        }
        Ok(Usage {
            entries: Some(entries),
            bytes: Some(bytes),
            capacity: Some(self.common.share() * self.shards.len() as u64),
            damaged: self.common.damaged.load(Ordering::Relaxed),
            evicted: self.common.evicted.load(Ordering::Relaxed),
        })
    }

    async fn sweep(&self, now: Timestamp, dead: &dyn Dead) -> Result<Swept> {
        self.check_open()?;
        let mut swept = Swept { complete: true, ..Swept::default() };
        let first = self.sweep_at.fetch_add(1, Ordering::Relaxed);
        for at in 0..self.shards.len() {
            let shard = &self.shards[(first + at) % self.shards.len()];
            let at = sql(now.as_millis());
            let mut found =
                shard.read("sweep", move |shard, connection| due(shard, connection, at, SWEPT)).await?;
            if found.is_empty() {
                continue;
            }
            swept.complete &= found.len() < SWEPT.0;
            for due in &mut found {
                let key = &due.key;
                due.entry
                    .take_if(|entry| dead.is_dead(key.as_ref(), entry) || shard.fences().cover(key, entry));
            }
            let (dropped, spilled) = shard
                .write("sweep", 0, move |step| step.take_due(&found))
                .await
                .map_err(|failure| failure.into_error("sweep"))?;
            swept.dropped += dropped;
            swept.spilled += spilled;
        }
        Ok(swept)
    }

    async fn sync(&self) -> Result<()> {
        self.check_open()?;
        self.everywhere("sync", |step| step.write_touched()).await?;
        if self.common.setup.synchronous == Synchronous::Off {
            return Ok(());
        }
        for shard in &self.shards {
            // Forces the log to the disk before it is brought home.
            let checkpoint = |_: &Shard, connection: &rusqlite::Connection| {
                connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(()))
            };
            shard.read("sync", checkpoint).await?;
        }
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        self.common.closed.store(true, Ordering::Release);
        // What was begun over several shards is ended; nothing more is begun.
        let writers = std::mem::take(&mut *self.across.lock().await);
        let mut readers = Vec::new();
        for shard in &self.shards {
            shard.stop();
            readers.extend(shard.close_readers(self.readers).await);
        }
        let (threads, common) = (std::mem::take(&mut *lock(&self.threads)), self.common.clone());
        let work = move || {
            let panicked = threads.into_iter().map(JoinHandle::join).filter(Result::is_err).count();
            // The connection that closes last brings the log home. Of two that close at once neither might, so these
            // come after those of the threads, one by one.
            drop((readers, writers));
            common.members.leave();
            panicked
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(0) => Ok(()),
            _ => Err(Error::Panicked { what: "a thread of the SQLite level" }),
        }
    }

    fn listing(&self) -> Option<&dyn Listing> {
        Some(self)
    }

    fn fences(&self) -> Option<&dyn FenceLog> {
        Some(self)
    }

    fn journal(&self) -> Option<&dyn Journal> {
        Some(self)
    }

    fn counting(&self) -> Option<&dyn Counting> {
        Some(self)
    }

    fn leasing(&self) -> Option<&dyn Leasing> {
        Some(self)
    }

    fn transactions(&self) -> Option<&dyn Transactions> {
        Some(self)
    }

    fn sizing(&self) -> Option<&dyn Sizing> {
        Some(self)
    }
}

/// The limit is this process's: others that have the level open go by their own.
impl Sizing for SqliteTier {
    fn check(&self, capacity: u64) -> Result<()> {
        let shards = u32::try_from(self.shards.len()).ok();
        SqliteConfig { max_size: capacity, shards, ..SqliteConfig::default() }.check()
    }

    fn resize(&self, capacity: u64) {
        self.common.share.store(capacity / self.shards.len() as u64, Ordering::Relaxed);
    }
}
