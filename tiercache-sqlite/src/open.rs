//! Opening a shard: the database's form, and whether it is ours, sound and of a version we know.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use tiercache_core::{Error, Result};

use crate::config::Synchronous;
use crate::place::{Dir, Membership};
use crate::tier::NAME;

/// The first version whose write-ahead log does not damage a database two connections write to.
const OLDEST_SOUND_SQLITE: i32 = 3_051_003;
/// Marks a database as ours: `tcsq`.
const APPLICATION: i32 = 0x7463_7371;
/// Counted up with every change of the form below.
const VERSION: i32 = 3;

/// `value` comes last, so that reading the other columns touches no page it runs over to.
const SCHEMA: &str = "
    CREATE TABLE entry (
        id INTEGER PRIMARY KEY,
        namespace TEXT NOT NULL,
        key BLOB NOT NULL,
        generation INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        deadline INTEGER NOT NULL,
        stay INTEGER NOT NULL,
        until INTEGER NOT NULL,
        used INTEGER NOT NULL,
        size INTEGER NOT NULL,
        length INTEGER NOT NULL,
        tags INTEGER NOT NULL,
        file TEXT,
        value BLOB NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX entry_key ON entry (namespace, key);
    CREATE INDEX entry_used ON entry (used);
    CREATE INDEX entry_until ON entry (until) WHERE until < 4611686018427387904;

    CREATE TABLE tag (
        entry INTEGER NOT NULL,
        name TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (entry, name)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX tag_value ON tag (name, value, entry);

    -- Removals, by the hash of the key: two keys that share one only make each other's writes wait.
    CREATE TABLE mark (
        hash INTEGER PRIMARY KEY,
        generation INTEGER NOT NULL,
        expires INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX mark_expires ON mark (expires);

    CREATE TABLE fence (
        kind INTEGER NOT NULL,
        namespace TEXT NOT NULL,
        name TEXT NOT NULL,
        value TEXT NOT NULL,
        cleared INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        written INTEGER NOT NULL,
        swept INTEGER NOT NULL,
        version INTEGER NOT NULL,
        PRIMARY KEY (kind, namespace, name, value, cleared)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX fence_version ON fence (version);

    CREATE TABLE counter (
        namespace TEXT NOT NULL,
        key BLOB NOT NULL,
        count INTEGER NOT NULL,
        deadline INTEGER NOT NULL,
        PRIMARY KEY (namespace, key)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX counter_deadline ON counter (deadline);

    CREATE TABLE lease (
        namespace TEXT NOT NULL,
        name BLOB NOT NULL,
        holder BLOB NOT NULL,
        token INTEGER NOT NULL,
        until INTEGER NOT NULL,
        PRIMARY KEY (namespace, name)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX lease_until ON lease (until);

    -- Removals that wait for other levels; in the first shard alone.
    CREATE TABLE waiting (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        note BLOB NOT NULL
    ) STRICT;

    -- What transactions over several shards have decided here and others may not have done yet; no `value` is a removal.
    CREATE TABLE redo (
        number INTEGER NOT NULL,
        shard INTEGER NOT NULL,
        identity INTEGER NOT NULL,
        place INTEGER NOT NULL,
        namespace TEXT NOT NULL,
        key BLOB NOT NULL,
        generation INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        deadline INTEGER NOT NULL,
        stay INTEGER NOT NULL,
        until INTEGER NOT NULL,
        used INTEGER NOT NULL,
        size INTEGER NOT NULL,
        length INTEGER NOT NULL,
        tags BLOB,
        file TEXT,
        value BLOB
    ) STRICT;
    CREATE UNIQUE INDEX redo_place ON redo (shard, number, place);

    -- The last of what another shard has decided that is done here.
    CREATE TABLE done (
        origin INTEGER PRIMARY KEY,
        number INTEGER NOT NULL
    ) STRICT;

    -- The highest generation met, what is in `entry`, a count of the changes of `fence`, the last lease's token,
    -- and what tells this database from one made in its place.
    CREATE TABLE state (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        generation INTEGER NOT NULL DEFAULT 0,
        entries INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0,
        fences INTEGER NOT NULL DEFAULT 0,
        token INTEGER NOT NULL DEFAULT 0,
        identity INTEGER NOT NULL
    ) STRICT;
    INSERT INTO state (id, identity) VALUES (1, random());
";

/// Every table and column the statements need.
const PROBES: [&str; 10] = [
    "SELECT id, namespace, key, generation, checksum, deadline, stay, until, used, size, length, tags, file, value
     FROM entry WHERE id = 0",
    "SELECT entry, name, value FROM tag LIMIT 0",
    "SELECT hash, generation, expires FROM mark LIMIT 0",
    "SELECT kind, namespace, name, value, cleared, generation, written, swept, version FROM fence LIMIT 0",
    "SELECT namespace, key, count, deadline FROM counter LIMIT 0",
    "SELECT namespace, name, holder, token, until FROM lease LIMIT 0",
    "SELECT generation, entries, bytes, fences, token, identity FROM state WHERE id = 1",
    "SELECT number, note FROM waiting LIMIT 0",
    "SELECT number, shard, identity, place, namespace, key, generation, checksum, deadline, stay, until, used, size,
     length, tags, file, value FROM redo LIMIT 0",
    "SELECT origin, number FROM done LIMIT 0",
];

/// Refuses a library that is known to damage databases.
pub(crate) fn check_library() -> Result<()> {
    if rusqlite::version_number() < OLDEST_SOUND_SQLITE {
        return Err(Error::Refused(format!(
            "SQLite {} can damage its databases: 3.51.3 or later is needed",
            rusqlite::version()
        )));
    }
    Ok(())
}

/// How connections are set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) patience: Duration,
    pub(crate) synchronous: Synchronous,
}

/// Opens or makes a shard's database, for writing; sets it aside first when it is damaged and nobody else has it.
pub(crate) fn open_shard(dir: &Dir, members: &Membership, shard: usize, setup: Setup) -> Result<Connection> {
    dir.prepare_database(shard)?;
    let path = dir.database(shard);
    match connect(&path, setup, dir.is_suspect(shard)) {
        Err(Trouble::Damage(reason)) => {
            if !members.is_alone() {
                members.share()?;
                return Err(Error::Refused(format!(
                    "{}: the database is damaged ({reason}) and another process has it open: stop that first",
                    path.display()
                )));
            }
            let aside = dir.set_aside(shard).map_err(|error| Error::unavailable(NAME, "open", error))?;
            tracing::warn!(tier = NAME, path = %path.display(), %aside, %reason, "damaged database set aside");
            dir.clear_suspicion(shard);
            dir.prepare_database(shard)?;
            let opened = connect(&path, setup, false).map_err(Trouble::into_error);
            members.share()?;
            opened
        }
        Ok(connection) => {
            dir.clear_suspicion(shard);
            Ok(connection)
        }
        Err(other) => Err(other.into_error()),
    }
}

/// A connection that only reads.
pub(crate) fn reader(path: &Path, setup: Setup) -> rusqlite::Result<Connection> {
    let connection = connection(path, setup)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// Another connection that writes to a database that was opened.
pub(crate) fn writer(path: &Path, setup: Setup) -> rusqlite::Result<Connection> {
    connection(path, setup)
}

/// Why a database could not be opened.
pub(crate) enum Trouble {
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

/// Whether an error says that the database itself is damaged.
pub(crate) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// A connection to a database that is there, which must be one of ours.
pub(crate) fn look_into(path: &Path, setup: Setup) -> Result<Connection, Trouble> {
    let connection = connection(path, setup)?;
    let number = |sql| connection.query_row(sql, (), |row| row.get::<_, i32>(0));
    match (number("PRAGMA application_id")?, number("PRAGMA user_version")?) {
        (APPLICATION, VERSION) => {}
        _ => {
            let why = "is the database of another version or application";
            return Err(Trouble::Other(Error::Refused(format!("{} {why}", path.display()))));
        }
    }
    probe(&connection)?;
    Ok(connection)
}

fn connect(path: &Path, setup: Setup, suspect: bool) -> Result<Connection, Trouble> {
    let mut writer = connection(path, setup)?;
    identify(&mut writer, path)?;
    let mode: String = writer.query_row("PRAGMA journal_mode = WAL", (), |row| row.get(0))?;
    if mode != "wal" {
        return Err(Trouble::Other(Error::Refused(format!(
            "{}: the file system does not support SQLite's write-ahead log",
            path.display()
        ))));
    }
    if suspect {
        let verdict: String = writer.query_row("PRAGMA quick_check(1)", (), |row| row.get(0))?;
        if verdict != "ok" {
            return Err(Trouble::Damage(verdict));
        }
    }
    probe(&writer)?;
    Ok(writer)
}

fn probe(connection: &Connection) -> rusqlite::Result<()> {
    for probe in PROBES {
        connection.prepare(probe)?.query(())?.next()?;
    }
    connection.query_row(PROBES[6], (), |_| Ok(()))
}

fn connection(path: &Path, setup: Setup) -> rusqlite::Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(setup.patience)?;
    connection.set_prepared_statement_cache_capacity(64);
    let synchronous = match setup.synchronous {
        Synchronous::Off => "OFF",
        Synchronous::Normal => "NORMAL",
        Synchronous::Full => "FULL",
    };
    // The file may be anybody's work: nothing in its schema may run functions, and its pages are looked at closely.
    connection.execute_batch(&format!(
        "PRAGMA trusted_schema = OFF;
         PRAGMA cell_size_check = ON;
         PRAGMA synchronous = {synchronous};
         PRAGMA temp_store = MEMORY;
         PRAGMA cache_size = -8192;
         PRAGMA wal_autocheckpoint = 4096;
         PRAGMA journal_size_limit = 16777216;",
    ))?;
    Ok(connection)
}

/// Makes the tables in an empty database, and refuses one that is not ours or of another version.
fn identify(connection: &mut Connection, path: &Path) -> Result<(), Trouble> {
    let number = |sql| connection.query_row(sql, (), |row| row.get::<_, i32>(0));
    let application = number("PRAGMA application_id")?;
    let version = number("PRAGMA user_version")?;
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    let refused = |reason: String| {
        Err(Trouble::Other(Error::Refused(format!("{}: {reason}; name another directory", path.display()))))
    };
    match (application, version, tables) {
        (0, 0, 0) => {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute_batch(SCHEMA)?;
            transaction.pragma_update(None, "application_id", APPLICATION)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
            Ok(transaction.commit()?)
        }
        (APPLICATION, VERSION, _) => Ok(()),
        (APPLICATION, ..) => refused(format!("has version {version} of the level's database, not {VERSION}")),
        _ => refused("is the database of another application".into()),
    }
}
