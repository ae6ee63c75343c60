//! Opening: the database's form, and whether it is ours, sound and of a version we know.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use tiercache_core::{Error, Result};

use super::{NAME, place, read, write};

/// The first version whose write-ahead log does not damage a database two connections write to.
const OLDEST_SOUND_SQLITE: i32 = 3_051_003;
/// Marks a database as ours: `tctr`.
const APPLICATION: i32 = 0x7463_7472;
/// Counted up with every change of the form below.
const VERSION: i32 = 1;

const SCHEMA: &str = "
    CREATE TABLE record (
        id INTEGER PRIMARY KEY,
        namespace TEXT NOT NULL,
        key BLOB NOT NULL,
        generation INTEGER NOT NULL,
        level INTEGER NOT NULL,
        size INTEGER NOT NULL,
        created INTEGER NOT NULL,
        used INTEGER NOT NULL,
        deadline INTEGER NOT NULL,
        hits INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX record_key ON record (namespace, key);
    CREATE INDEX record_level ON record (level);
    CREATE INDEX record_created ON record (created);
    CREATE INDEX record_size ON record (size);
    CREATE INDEX record_hits ON record (hits);

    CREATE TABLE tag (
        record_id INTEGER NOT NULL REFERENCES record (id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (record_id, name)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX tag_value ON tag (name, value, record_id);

    CREATE TABLE totals (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        hot_hits INTEGER NOT NULL DEFAULT 0,
        cold_hits INTEGER NOT NULL DEFAULT 0,
        dry_hits INTEGER NOT NULL DEFAULT 0,
        misses INTEGER NOT NULL DEFAULT 0,
        sets INTEGER NOT NULL DEFAULT 0,
        deletes INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    INSERT INTO totals (id) VALUES (1);

    -- `clean` is 1 from an orderly close until something is written again.
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO meta VALUES ('clean', 1);
";

/// The connections of an open database.
pub(super) struct Opened {
    pub(super) writer: Connection,
    pub(super) lookups: Connection,
    pub(super) listings: Connection,
}

/// Opens or makes the database of that file; sets it aside first when it is damaged.
pub(super) fn open(path: &Path) -> Result<Opened> {
    let path = check_place(path)?;
    place::prepare_folder(&path)?;
    let _lock = place::lock(&path)?;
    place::prepare_file(&path)?;
    match connect(&path) {
        Err(Trouble::Damage(reason)) => {
            let aside = place::set_aside(&path)?;
            tracing::warn!(path = %path.display(), aside = %aside.display(), %reason, "damaged database set aside");
            place::prepare_file(&path)?;
            connect(&path).map_err(Trouble::into_error)
        }
        opened => opened.map_err(Trouble::into_error),
    }
}

/// Opens the database of that file to read it, as it is; says why when it is damaged, and None when there is none.
pub(super) fn look(path: &Path) -> Result<Option<Result<Opened, String>>> {
    let path = check_place(path)?;
    if !place::is_there(&path)? {
        return Ok(None);
    }
    let opened = || -> Result<Opened, Trouble> {
        let mut readers = [connection(&path)?, connection(&path)?, connection(&path)?];
        for reader in &mut readers {
            reader.pragma_update(None, "query_only", true)?;
        }
        let [writer, lookups, listings] = readers;
        if !is_ours(&writer, &path)? {
            return Err(Trouble::Damage("has no tables".into()));
        }
        let verdict: String = writer.query_row("PRAGMA quick_check(1)", (), |row| row.get(0))?;
        if verdict != "ok" {
            return Err(Trouble::Damage(verdict));
        }
        write::check(&writer)?;
        read::check(&lookups)?;
        Ok(Opened { writer, lookups, listings })
    };
    match opened() {
        Err(Trouble::Damage(reason)) => Ok(Some(Err(reason))),
        opened => opened.map(|opened| Some(Ok(opened))).map_err(Trouble::into_error),
    }
}

/// Notes that nothing was under way when the database was closed.
pub(super) fn mark_clean(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.execute("UPDATE meta SET value = 1 WHERE name = 'clean'", ()).map(drop)
}

/// The path, if it can be one of a database, and SQLite one that does not damage it.
fn check_place(path: &Path) -> Result<PathBuf> {
    if rusqlite::version_number() < OLDEST_SOUND_SQLITE {
        return Err(Error::Refused(format!(
            "SQLite {} can damage its databases: 3.51.3 or later is needed",
            rusqlite::version()
        )));
    }
    if path.file_name().is_none() {
        return Err(Error::Config(format!("tracking.path: {:?} is not the path of a file", path.display())));
    }
    // Absolute, so that no name means something else to SQLite, such as `:memory:`.
    std::path::absolute(path).map_err(|error| Error::unavailable(NAME, "open", error))
}

/// Why a database could not be opened.
enum Trouble {
    /// It is of no use: set it aside.
    Damage(String),
    /// Anything else: leave it alone.
    Other(Error),
}

impl Trouble {
    fn into_error(self) -> Error {
        match self {
            Self::Damage(reason) => Error::unavailable(NAME, "open", reason),
            Self::Other(error) => error,
        }
    }
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        // What SQLite calls an error of input is, with statements of our own, a table that is not as we made it.
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown) | None => {
                Self::Damage(error.to_string())
            }
            Some(_) => Self::Other(Error::unavailable(NAME, "open", error)),
        }
    }
}

fn connect(path: &Path) -> Result<Opened, Trouble> {
    let mut writer = connection(path)?;
    identify(&mut writer, path)?;
    let mode: String = writer.query_row("PRAGMA journal_mode = WAL", (), |row| row.get(0))?;
    if mode != "wal" {
        return Err(Trouble::Other(Error::Refused(format!(
            "{}: the file system does not support SQLite's write-ahead log",
            path.display()
        ))));
    }
    let clean: i64 = writer.query_row("SELECT value FROM meta WHERE name = 'clean'", (), |row| row.get(0))?;
    if clean != 1 {
        let verdict: String = writer.query_row("PRAGMA quick_check(1)", (), |row| row.get(0))?;
        if verdict != "ok" {
            return Err(Trouble::Damage(verdict));
        }
    }
    write::check(&writer)?;
    let reader = || -> Result<Connection, Trouble> {
        let reader = connection(path)?;
        reader.pragma_update(None, "query_only", true)?;
        read::check(&reader)?;
        Ok(reader)
    };
    Ok(Opened { lookups: reader()?, listings: reader()?, writer })
}

fn connection(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(32);
    // The file may be anybody's work: nothing in its schema may run functions, and its pages are looked at closely.
    connection.execute_batch(
        "PRAGMA trusted_schema = OFF;
         PRAGMA cell_size_check = ON;
         PRAGMA foreign_keys = ON;
         PRAGMA synchronous = NORMAL;
         PRAGMA temp_store = MEMORY;
         PRAGMA cache_size = -32768;
         PRAGMA wal_autocheckpoint = 8192;
         PRAGMA journal_size_limit = 67108864;",
    )?;
    Ok(connection)
}

/// Makes the tables in an empty database, and refuses one that is not ours or of another version.
fn identify(connection: &mut Connection, path: &Path) -> Result<(), Trouble> {
    if is_ours(connection, path)? {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(SCHEMA)?;
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    Ok(transaction.commit()?)
}

/// Whether it has our tables; else it is empty. One that is another's, or of another version, is refused.
fn is_ours(connection: &Connection, path: &Path) -> Result<bool, Trouble> {
    let number = |sql| connection.query_row(sql, (), |row| row.get::<_, i32>(0));
    let application = number("PRAGMA application_id")?;
    let version = number("PRAGMA user_version")?;
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    let refused = |reason: String| {
        Err(Trouble::Other(Error::Refused(format!("{}: {reason}; name another file", path.display()))))
    };
    match (application, version, tables) {
        (0, 0, 0) => Ok(false),
        (APPLICATION, VERSION, _) => Ok(true),
        (APPLICATION, ..) => {
            refused(format!("has version {version} of the tracking database, not {VERSION}"))
        }
        _ => refused("is the database of another application".into()),
    }
}
