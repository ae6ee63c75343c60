//! Reading what Python's diskcache and pysciqlop-cache keep: an SQLite database and files beside it, or several such
//! shards.
//!
//! | | diskcache 5 | pysciqlop-cache 0.1 to 0.3 |
//! |---|---|---|
//! | database | `cache.db`, table `Cache` | `sciqlop-cache.db`, table `cache` |
//! | shards | folders `000`, `001`, … | folders `00`, `01`, … |
//! | key | `key`; `raw` 0 when it is pickled | text; `\0i`, `\0f`, `\0b`, `\0p` in front of what was no text |
//! | value | `value`, or the file `filename`, as `mode` says | `value` or the file `path`, pickled |
//! | time to live, tag | `expire_time`, `tag` | `expire`, `tag` |
//!
//! Nothing there is ever changed: a database without a log of its own (`-wal`, `-journal`) is opened as one that
//! nobody changes, any other is copied aside first. Whatever writes to it must be stopped meanwhile.

use std::fs::File;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, OpenFlags, Row};
use tiercache_core::{CacheManager, Entry, Error, Generation, Key, Timestamp};
use tokio::sync::mpsc;

use super::carry::Storing;
use super::python::{Plain, float, unpickle};
use super::{Report, TransferError};

/// The largest file that is taken for a value.
const MOST: u64 = 1 << 30;
/// Entries that were read and are not stored yet.
const AHEAD: usize = 16;

/// Whose folder it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignKind {
    /// Python's diskcache: `Cache`, `FanoutCache`, `Index`, `Deque`.
    DiskCache,
    /// pysciqlop-cache: `Cache`, `FanoutCache`, `Index`, `FanoutIndex`.
    SciqlopCache,
}

impl ForeignKind {
    const ALL: [Self; 2] = [Self::DiskCache, Self::SciqlopCache];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DiskCache => "diskcache",
            Self::SciqlopCache => "pysciqlop-cache",
        }
    }

    const fn database(self) -> &'static str {
        match self {
            Self::DiskCache => "cache.db",
            Self::SciqlopCache => "sciqlop-cache.db",
        }
    }
}

/// A folder of another system.
#[derive(Clone, Debug)]
pub struct Foreign {
    kind: ForeignKind,
    shards: Vec<PathBuf>,
}

impl Foreign {
    /// Finds out whose folder it is. Nothing is read yet.
    ///
    /// # Errors
    /// [`TransferError::Foreign`] when it is nobody's, [`TransferError::Io`].
    pub fn open(folder: &Path) -> Result<Self, TransferError> {
        for kind in ForeignKind::ALL {
            let has = |folder: &Path| folder.join(kind.database()).is_file();
            if has(folder) {
                return Ok(Self { kind, shards: vec![folder.to_owned()] });
            }
            let mut shards = Vec::new();
            for entry in std::fs::read_dir(folder).map_err(TransferError::io(folder.display()))? {
                let entry = entry.map_err(TransferError::io(folder.display()))?;
                let name = entry.file_name();
                let is_number =
                    |name: &str| (2..=3).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_digit());
                if name.to_str().is_some_and(is_number) && has(&entry.path()) {
                    shards.push(entry.path());
                }
            }
            if !shards.is_empty() {
                shards.sort();
                return Ok(Self { kind, shards });
            }
        }
        Err(TransferError::Foreign {
            path: folder.display().to_string(),
            found: "there is no cache.db of diskcache and no sciqlop-cache.db, neither here nor in shards"
                .into(),
        })
    }

    /// Whose it is.
    pub fn kind(&self) -> ForeignKind {
        self.kind
    }

    /// Puts what is there into `cache`, with deadlines and tags; a tag becomes the tag `tag`. Text, bytes and numbers
    /// are taken, numbers as the text Python writes, and keys likewise; where two keys become one that way, the first
    /// stays unless later ones shall `replace` what is there. What is dead is counted as expired, everything else as
    /// unreadable with its reason: every row is accounted for.
    ///
    /// # Errors
    /// What a database or the cache said.
    pub async fn import_into(
        self,
        cache: &CacheManager,
        replace: bool,
        mut progress: impl FnMut(&Report) + Send,
    ) -> Result<Report, TransferError> {
        let (found, mut rows) = mpsc::channel(AHEAD);
        let reading = tokio::task::spawn_blocking(move || {
            for folder in &self.shards {
                Shard::open(self.kind, folder)?.read(&found)?;
            }
            Ok::<(), TransferError>(())
        });
        let mut report = Report::default();
        let mut storing = Storing::new(cache, replace);
        while let Some((name, row)) = rows.recv().await {
            report.read += 1;
            match row {
                Ok(Some((key, entry))) => storing.put(key, entry, &mut report).await?,
                Ok(None) => report.expired += 1,
                Err(reason) => report.cannot_read(|| name, reason),
            }
            progress(&report);
        }
        storing.finish(&mut report).await?;
        progress(&report);
        reading.await.map_err(|_| Error::Panicked { what: "the reader of a foreign folder" })??;
        Ok(report)
    }
}

/// A row: its name, and what stands there, `None` when it is dead, or why that cannot be read.
type Found = (String, Result<Option<(Key, Entry)>, &'static str>);

struct Shard {
    kind: ForeignKind,
    folder: PathBuf,
    /// What errors call it.
    name: String,
    connection: Connection,
    /// Where a copy is, if there had to be one.
    _copy: Option<Copy>,
}

impl Shard {
    fn open(kind: ForeignKind, folder: &Path) -> Result<Self, TransferError> {
        let database = folder.join(kind.database());
        let name = database.display().to_string();
        let beside = |suffix: &str| {
            let mut path = database.clone().into_os_string();
            path.push(suffix);
            PathBuf::from(path)
        };
        let logs = ["-wal", "-journal"].map(beside);
        let has_log = logs.iter().any(|log| log.metadata().is_ok_and(|log| log.len() > 0));
        let copy = has_log.then(|| Copy::of(&database, &logs)).transpose()?;
        let failed =
            |error: rusqlite::Error| TransferError::Cache(Error::unavailable(kind.name(), "open", error));
        let connection = match &copy {
            // The log is brought home here, where nobody minds.
            Some(copy) => Connection::open_with_flags(
                copy.0.join(kind.database()),
                OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
            ),
            None => Connection::open_with_flags(
                address(&database),
                OpenFlags::SQLITE_OPEN_READ_ONLY
                    | OpenFlags::SQLITE_OPEN_URI
                    | OpenFlags::SQLITE_OPEN_NO_MUTEX,
            ),
        };
        let connection = connection.map_err(failed)?;
        Ok(Self { kind, folder: folder.to_owned(), name, connection, _copy: copy })
    }

    fn read(&self, found: &mpsc::Sender<Found>) -> Result<(), TransferError> {
        let failed = |error: rusqlite::Error| {
            let message = format!("{}: {error}", self.name);
            TransferError::Cache(Error::unavailable(self.kind.name(), "read", message))
        };
        let now = now();
        let has = |name: &str| {
            let sql = "SELECT count(*) FROM pragma_table_info('cache') WHERE name = ?1";
            self.connection.query_row(sql, [name], |row| row.get::<_, i64>(0)).map(|count| count > 0)
        };
        // An `Index` has neither.
        let or_null = |name: &'static str| Ok(if has(name)? { name } else { "NULL" });
        let sql = match self.kind {
            ForeignKind::DiskCache => {
                "SELECT key, raw, expire_time, tag, store_time, size, mode, filename, value FROM Cache ORDER BY rowid".to_owned()
            }
            ForeignKind::SciqlopCache => format!(
                "SELECT key, {}, {}, size, path, value FROM cache ORDER BY key",
                or_null("expire").map_err(failed)?,
                or_null("tag").map_err(failed)?
            ),
        };
        // Kept by the store, and unknown to the first versions, which always pickled.
        let serializer = match self.kind {
            ForeignKind::DiskCache => None,
            ForeignKind::SciqlopCache => self
                .connection
                .query_row("SELECT value FROM meta WHERE key = 'serializer'", (), |row| {
                    row.get::<_, String>(0)
                })
                .ok(),
        };
        let pickles = serializer.as_deref().is_none_or(|name| name == "pickle" || name == "pickle-oob");
        let mut statement = self.connection.prepare(&sql).map_err(failed)?;
        let mut rows = statement.query(()).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let one = match self.kind {
                ForeignKind::DiskCache => self.diskcache(row, now),
                ForeignKind::SciqlopCache => self.sciqlop(row, now, pickles),
            };
            if found.blocking_send(one.map_err(failed)?).is_err() {
                // Nobody waits for more.
                return Ok(());
            }
        }
        Ok(())
    }

    fn diskcache(&self, row: &Row<'_>, now: Timestamp) -> rusqlite::Result<Found> {
        let raw: bool = row.get::<_, Option<i64>>(1)? != Some(0);
        let key = match (row.get_ref(0)?, raw) {
            (key, true) => scalar(key).ok_or("a key of no plain kind"),
            (ValueRef::Blob(pickle), false) => unpickle(pickle).ok_or("a pickled key"),
            _ => Err("a key of no plain kind"),
        };
        let expire: Option<f64> = row.get(2)?;
        let tag: Value = row.get(3)?;
        let stored: Option<f64> = row.get(4)?;
        let size: Option<i64> = row.get(5)?;
        let mode: Option<i64> = row.get(6)?;
        let file: Option<String> = row.get(7)?;
        let value = row.get_ref(8)?;
        let (name, key) = named(key);
        Ok((
            name,
            entry(key, (expire, stored), &tag, now, || {
                let content = |file: &Option<String>| self.content(file.as_deref(), size);
                // What `diskcache.core` calls MODE_NONE to MODE_PICKLE.
                match mode.unwrap_or_default() {
                    1 => scalar(value).ok_or("a value of no plain kind"),
                    2 => content(&file).map(Plain::Bytes),
                    3 => String::from_utf8(content(&file)?.into())
                        .map(Plain::Text)
                        .map_err(|_| "text that is not UTF-8"),
                    4 => {
                        let pickle = match (value, &file) {
                            (ValueRef::Blob(pickle), None) => Bytes::copy_from_slice(pickle),
                            _ => content(&file)?,
                        };
                        unpickle(&pickle).ok_or("pickled")
                    }
                    _ => Err("a value of no known mode"),
                }
            }),
        ))
    }

    fn sciqlop(&self, row: &Row<'_>, now: Timestamp, pickles: bool) -> rusqlite::Result<Found> {
        let key = match row.get_ref(0)? {
            ValueRef::Text(text) => match text.split_first_chunk() {
                Some(([0, b'b'], latin)) => latin1(latin).map(Plain::Bytes).ok_or("a key of no plain kind"),
                Some(([0, b'i' | b'f'], number)) => plain_text(number),
                Some(([0, _], _)) => Err("a pickled key"),
                _ => plain_text(text),
            },
            other => scalar(other).ok_or("a key of no plain kind"),
        };
        let expire: Option<f64> = row.get(1)?;
        let tag: Value = row.get(2)?;
        let size: Option<i64> = row.get(3)?;
        let file: Option<String> = row.get(4)?;
        let value = row.get_ref(5)?;
        let (name, key) = named(key);
        Ok((
            name,
            entry(key, (expire, None), &tag, now, || {
                let read = |bytes: &[u8]| match pickles {
                    true => unpickle(bytes).ok_or("pickled"),
                    false => Err("of another serializer"),
                };
                match (value, file.as_deref()) {
                    (_, Some(file)) if !file.is_empty() => read(&self.content(Some(file), size)?),
                    (ValueRef::Blob(bytes), _) => read(bytes),
                    (other, _) => scalar(other).ok_or("a value of no plain kind"),
                }
            }),
        ))
    }

    /// What a file beside the database holds, which it must hold whole.
    fn content(&self, file: Option<&str>, size: Option<i64>) -> Result<Bytes, &'static str> {
        let file = Path::new(file.ok_or("a value without a file")?);
        // The names are the database's word: none leads out of the folder.
        let inside = file.components().all(|part| matches!(part, Component::Normal(_)));
        let folder = self.folder.canonicalize().map_err(|_| "a file that is missing")?;
        let path = folder.join(file).canonicalize().map_err(|_| "a file that is missing")?;
        if !inside || !path.starts_with(&folder) {
            return Err("a file outside the folder");
        }
        let file = File::open(path).map_err(|_| "a file that cannot be read")?;
        if !file.metadata().is_ok_and(|file| file.is_file() && file.len() <= MOST) {
            return Err("a file that is too large");
        }
        let mut content = Vec::new();
        file.take(MOST).read_to_end(&mut content).map_err(|_| "a file that cannot be read")?;
        if size.is_some_and(|size| u64::try_from(size) != Ok(content.len() as u64)) {
            return Err("a file of another size");
        }
        Ok(content.into())
    }
}

/// The entry of a row, unless it is dead; the value is read only then.
fn entry(
    key: Result<Key, &'static str>,
    (expire, stored): (Option<f64>, Option<f64>),
    tag: &Value,
    now: Timestamp,
    value: impl FnOnce() -> Result<Plain, &'static str>,
) -> Result<Option<(Key, Entry)>, &'static str> {
    let deadline = expire.map_or(Timestamp::NEVER, time);
    if deadline <= now {
        return Ok(None);
    }
    let key = key?;
    let (value, media_type) = value()?.value().ok_or("none")?;
    let created = stored.map_or(now, time).min(now);
    let mut entry = Entry::new(value, Generation::ZERO, created);
    entry.deadline = deadline;
    entry.explicit_ttl = expire.is_some();
    if let Some(media_type) = media_type {
        entry.extras_mut().content_type = Some(media_type.to_owned());
    }
    let tag = match tag {
        Value::Null => None,
        Value::Integer(number) => Some(number.to_string()),
        Value::Real(number) => Some(float(*number)),
        Value::Text(text) => Some(text.clone()),
        Value::Blob(bytes) => Some(String::from_utf8(bytes.clone()).map_err(|_| "a tag that is no text")?),
    };
    if let Some(tag) = tag {
        if tag.len() > 1024 {
            return Err("a tag that is too long");
        }
        entry.extras_mut().tags.insert("tag".to_owned(), tag);
    }
    Ok(Some((key, entry)))
}

/// A key, and what it is called when something is wrong with it.
fn named(key: Result<Plain, &'static str>) -> (String, Result<Key, &'static str>) {
    match key.and_then(|key| key.value().ok_or("a key of no plain kind")) {
        Ok((bytes, _)) => {
            let reason = if bytes.is_empty() { "an empty key" } else { "a key that is too long" };
            (String::from_utf8_lossy(&bytes).into_owned(), Key::new("", &bytes).map_err(|_| reason))
        }
        Err(reason) => (reason.to_owned(), Err(reason)),
    }
}

fn scalar(value: ValueRef<'_>) -> Option<Plain> {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(Plain::Integer(number)),
        ValueRef::Real(number) => Some(Plain::Float(number)),
        ValueRef::Text(text) => Some(Plain::Text(std::str::from_utf8(text).ok()?.to_owned())),
        ValueRef::Blob(bytes) => Some(Plain::Bytes(Bytes::copy_from_slice(bytes))),
    }
}

fn plain_text(text: &[u8]) -> Result<Plain, &'static str> {
    std::str::from_utf8(text).map(|text| Plain::Text(text.to_owned())).map_err(|_| "a key of no plain kind")
}

/// Bytes that were written as the text of the first 256 characters.
fn latin1(text: &[u8]) -> Option<Bytes> {
    std::str::from_utf8(text)
        .ok()?
        .chars()
        .map(|char| u8::try_from(char).ok())
        .collect::<Option<Vec<u8>>>()
        .map(Bytes::from)
}

/// Seconds since the epoch, which may be nonsense.
fn time(seconds: f64) -> Timestamp {
    let millis = (seconds * 1000.0).round();
    if millis.is_nan() || millis <= 0.0 {
        Timestamp::EPOCH
    } else {
        // Saturates: what is later than every time is never.
        Timestamp::from_millis(millis as u64)
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The address of a database that nobody changes.
fn address(database: &Path) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt as _;

    let mut address = String::from("file:");
    let absolute = std::path::absolute(database).unwrap_or_else(|_| database.to_owned());
    for &byte in absolute.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
                address.push(byte.into())
            }
            // Writing to a string cannot fail.
            other => drop(write!(address, "%{other:02X}")),
        }
    }
    address + "?immutable=1"
}

/// A database with its log, in a folder of its own that goes with this.
struct Copy(PathBuf);

impl Copy {
    fn of(database: &Path, logs: &[PathBuf]) -> Result<Self, TransferError> {
        use std::os::unix::fs::DirBuilderExt as _;

        let number = Timestamp::as_millis(now());
        let folder = std::env::temp_dir().join(format!("tiercache-{}-{number}", std::process::id()));
        let mut attempt = 0;
        let copy = loop {
            let folder = folder.with_extension(attempt.to_string());
            match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
                Ok(()) => break Self(folder),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && attempt < 100 => {
                    attempt += 1
                }
                Err(error) => return Err(TransferError::io(folder.display())(error)),
            }
        };
        for file in std::iter::once(database).chain(logs.iter().map(PathBuf::as_path)) {
            if let Some(name) = file.file_name()
                && file.exists()
            {
                std::fs::copy(file, copy.0.join(name)).map_err(TransferError::io(file.display()))?;
            }
        }
        Ok(copy)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a copy stays behind");
        }
    }
}
