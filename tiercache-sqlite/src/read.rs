//! Looking up. The database's content is not trusted: what does not check out is a miss, counted and removed.

use std::io;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};
use tiercache_core::envelope::Damage;
use tiercache_core::{Entry, Key};

use crate::shard::Shard;
use crate::step::Row;
use crate::tier::NAME;
use crate::values::sql;

/// What a row holds.
pub(crate) struct Stored {
    pub(crate) row: Row,
    pub(crate) value: Vec<u8>,
}

/// Why a row is not answered.
pub(crate) enum Unread {
    Damage(Damage),
    /// The file it names is not there.
    Dangling,
    Failed(io::Error),
}

/// The row's file was replaced while it was read, at most so often in a row.
const RACES: usize = 8;

/// One statement, so that the entry and the count of fences are of one moment.
const LOOKUP: &str = "
    SELECT entry.id, entry.generation, checksum, size, tags, file, used, value, state.fences
    FROM entry JOIN state ON state.id = 1 WHERE namespace = ?1 AND key = ?2";

/// The entry of the key, unless it is absent, damaged or dead by a fence.
pub(crate) fn lookup(
    shard: &Shard,
    connection: &Connection,
    key: &Key,
) -> rusqlite::Result<io::Result<Option<Entry>>> {
    let mut missing: Option<String> = None;
    for _ in 0..RACES {
        let found = connection
            .prepare_cached(LOOKUP)?
            .query_row((key.namespace(), key.bytes()), |row| {
                Ok((Stored { row: Row::of(row)?, value: row.get(7)? }, row.get(8)?))
            })
            .optional()?;
        let Some((stored, version)) = found else { return Ok(Ok(None)) };
        let row = stored.row.clone();
        match decode(shard, key, stored) {
            Ok(entry) => {
                shard.catch_up(connection, version)?;
                if shard.fences().cover(key, &entry) {
                    return Ok(Ok(None));
                }
                shard.touch(row.id, sql(shard.common.clock.now().as_millis()));
                return Ok(Ok(Some(entry)));
            }
            // The file of a row that is replaced goes a moment later: look again before it is called damage.
            Err(Unread::Dangling) if missing != row.file => missing = row.file,
            Err(Unread::Failed(error)) => return Ok(Err(error)),
            Err(unread) => {
                damaged(shard, key, row, &unread);
                return Ok(Ok(None));
            }
        }
    }
    Ok(Ok(None))
}

/// The entry that a row, and the file it names, hold.
pub(crate) fn decode(shard: &Shard, key: &Key, stored: Stored) -> Result<Entry, Unread> {
    let Stored { row, value } = stored;
    let bytes = match &row.file {
        None => value,
        Some(name) => shard.files.read(name).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Unread::Dangling,
            _ => Unread::Failed(error),
        })?,
    };
    let entry = shard.common.codec.decode_for(key.as_ref(), &Bytes::from(bytes)).map_err(Unread::Damage)?;
    // A column that says something else than the envelope would order writes wrongly.
    if entry.generation == row.generation { Ok(entry) } else { Err(Unread::Damage(Damage::Content)) }
}

/// Counts the damage, and has that very copy removed.
fn damaged(shard: &Shard, key: &Key, row: Row, unread: &Unread) {
    let why = match unread {
        Unread::Damage(damage) => damage.to_string(),
        Unread::Dangling => "its file is gone".to_owned(),
        Unread::Failed(error) => error.to_string(),
    };
    shard.common.damaged.fetch_add(1, Ordering::Relaxed);
    tracing::warn!(tier = NAME, ?key, %why, "damaged entry removed");
    let key = key.clone();
    shard.later("remove a damaged entry", move |step| match step.standing(&key)? {
        Some(now) if now.id == row.id && now.generation == row.generation && now.file == row.file => {
            step.forget(&key, &now)
        }
        _ => Ok(()),
    });
}
