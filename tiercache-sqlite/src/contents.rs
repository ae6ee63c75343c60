//! What a directory holds, entry by entry, without opening the level.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};
use tiercache_core::tier::{Listed, Waiting};
use tiercache_core::{Codec, Error, Generation, Key, Result};

use crate::SqliteTier;
use crate::config::{SqliteConfig, Synchronous};
use crate::fences::Fences;
use crate::iterate::{After, Filter, rows};
use crate::journal;
use crate::open::{Setup, Trouble, check_library, look_into};
use crate::place::{Dir, Membership};
use crate::shard::lock;
use crate::tier::NAME;
use crate::values::{generation, shard_of};

/// What a directory holds. Nothing in its databases changes by it.
#[derive(Debug)]
pub struct Contents {
    in_use: bool,
    codec: Codec,
    shards: Vec<Option<Mutex<(Connection, Fences)>>>,
    /// Held for as long as nobody may open the level.
    _members: Membership,
}

impl SqliteTier {
    /// Looks at what a directory holds; None when there is no level in it. With `own` no process can open the level as
    /// long as the answer is kept, unless one has it open already. Blocks.
    ///
    /// # Errors
    /// [`Error::Refused`] when it is not a directory of this user, [`Error::Config`] when its entries cannot be decrypted
    /// with what is configured, [`Error::Unavailable`] when a database is damaged or the disk fails.
    pub fn contents(config: &SqliteConfig, own: bool) -> Result<Option<Contents>> {
        check_library()?;
        let codec = config.codec()?;
        let path = config.directory()?;
        if !path.is_dir() {
            return Ok(None);
        }
        let dir = Dir::open(&path, false)?;
        let Some(count) = dir.shards()? else { return Ok(None) };
        let opening = dir.begin_opening()?;
        let members = dir.join()?;
        let in_use = !members.is_alone();
        if in_use || !own {
            members.share()?;
        }
        drop(opening);
        let shards = (0..count as usize).map(|shard| open(&dir, shard).map(|shard| shard.map(Mutex::new)));
        Ok(Some(Contents { in_use, codec, shards: shards.collect::<Result<_>>()?, _members: members }))
    }
}

impl Contents {
    /// Whether a process had the level open: what it holds may be another from one moment to the next.
    pub fn in_use(&self) -> bool {
        self.in_use
    }

    /// Removals that it remembers for other levels, which have yet to see them. Blocks.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when a database cannot be read.
    pub fn waiting(&self) -> Result<Vec<Waiting>> {
        let Some(Some(first)) = self.shards.first() else { return Ok(Vec::new()) };
        let notes = journal::read(&lock(first).0).map_err(unreadable)?;
        Ok(notes.into_iter().map(|(_, waiting)| waiting).collect())
    }

    /// A page of the entries that would be answered, without their values, by shard and then in the order of keys;
    /// `after` is where the page before ended. What is damaged is left out. Blocks.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when a database cannot be read.
    pub fn list(&self, after: Option<&[u8]>, limit: usize) -> Result<Listed> {
        let (mut at, mut after) = match after.and_then(place_of) {
            Some((shard, key)) => (shard, After::Key(key)),
            None => (0, After::Beginning),
        };
        while at < self.shards.len() {
            if let Some(shard) = &self.shards[at] {
                let (connection, fences) = &*lock(shard);
                let page = rows(connection, &self.codec, fences, &Filter::default(), &after, limit.max(1))
                    .map_err(unreadable)?;
                let (entries, next) = (page.entries, page.next);
                match next {
                    Some(After::Key(key)) => return Ok(Listed { entries, next: Some(place(at, &key)) }),
                    _ if !entries.is_empty() => {
                        let last = entries.last().map(|last| place(at, &last.key));
                        return Ok(Listed { entries, next: last });
                    }
                    _ => {}
                }
            }
            (at, after) = (at + 1, After::Beginning);
        }
        Ok(Listed::default())
    }

    /// The generation with which `key` would be answered. Blocks.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when a database cannot be read.
    pub fn generation(&self, key: &Key) -> Result<Option<Generation>> {
        let Some(shard) = &self.shards[shard_of(key, self.shards.len() as u64)] else { return Ok(None) };
        let (connection, fences) = &*lock(shard);
        let found: Option<(i64, Vec<u8>)> = connection
            .prepare_cached("SELECT generation, value FROM entry WHERE namespace = ?1 AND key = ?2")
            .and_then(|mut select| {
                let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
                select.query_row(params![key.namespace(), key.bytes()], row).optional()
            })
            .map_err(unreadable)?;
        let Some((number, value)) = found else { return Ok(None) };
        let dead = fences.highest(key.namespace()) > generation(number)
            && self
                .codec
                .decode_for(key.as_ref(), &Bytes::from(value))
                .map_or(true, |entry| fences.cover(key, &entry));
        Ok((!dead).then(|| generation(number)))
    }
}

/// The database of a shard, if anything was ever put there, and what is fenced in it.
fn open(dir: &Dir, shard: usize) -> Result<Option<(Connection, Fences)>> {
    let path = dir.database(shard);
    if path.metadata().map_or(true, |meta| meta.len() == 0) {
        return Ok(None);
    }
    let setup = Setup { patience: Duration::from_secs(5), synchronous: Synchronous::Normal };
    let connection = look_into(&path, setup).map_err(|trouble| match trouble {
        Trouble::Damage(reason) => {
            Error::unavailable(NAME, "look into", format!("{} is damaged: {reason}", path.display()))
        }
        Trouble::Other(error) => error,
    })?;
    let mut fences = Fences::default();
    let known = connection.pragma_update(None, "query_only", true).and_then(|()| {
        let version = connection.query_row("SELECT fences FROM state WHERE id = 1", (), |row| row.get(0))?;
        fences.catch_up(&connection, version)
    });
    known.map_err(unreadable)?;
    Ok(Some((connection, fences)))
}

/// Where a page ended: the shard, then the key in its joined form.
fn place(shard: usize, key: &Key) -> Vec<u8> {
    [
        &(shard as u32).to_be_bytes()[..],
        &(key.namespace().len() as u32).to_be_bytes(),
        key.namespace().as_bytes(),
        key.bytes(),
    ]
    .concat()
}

fn place_of(bytes: &[u8]) -> Option<(usize, Key)> {
    let (shard, rest) = bytes.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (namespace, key) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    let key = Key::new(std::str::from_utf8(namespace).ok()?, key).ok()?;
    Some((u32::from_be_bytes(*shard) as usize, key))
}

fn unreadable(error: rusqlite::Error) -> Error {
    Error::unavailable(NAME, "look into", error)
}
