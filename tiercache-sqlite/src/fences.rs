//! Invalidations of many, as a shard has them.

use std::collections::HashMap;

use rusqlite::Connection;
use tiercache_core::tier::Scope;
use tiercache_core::{Entry, Generation, Key, Tags};

use crate::values::{generation, sql};

const ALL: i64 = 0;
const NAMESPACE: i64 = 1;
const TAG: i64 = 2;

/// So many may be remembered before those that the shard no longer has are forgotten.
const FORGET_FROM: usize = 250_000;

/// What is fenced, by scope. Kept by every process, which catches up when the shard's count of changes is another.
#[derive(Debug, Default)]
pub(crate) struct Fences {
    /// The shard's count of changes to them.
    pub(crate) version: i64,
    by_scope: HashMap<Scope, Fence>,
    /// The highest in each namespace, those of its tags too.
    highest: HashMap<String, Generation>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Fence {
    /// Invalidated everywhere below it.
    fenced: Generation,
    /// Cleared at this level alone below it.
    cleared: Generation,
    /// When it was last fenced.
    written: i64,
}

impl Fences {
    /// Adds what was fenced after `version` and up to now, which is the shard's version `now`.
    pub(crate) fn catch_up(&mut self, connection: &Connection, now: i64) -> rusqlite::Result<()> {
        if self.by_scope.len() > FORGET_FROM {
            *self = Self::default();
        }
        let mut statement = connection.prepare_cached(
            "SELECT kind, namespace, name, value, cleared, generation, written FROM fence WHERE version > ?1",
        )?;
        let mut rows = statement.query([self.version])?;
        while let Some(row) = rows.next()? {
            if let Some(scope) = scope_of(row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?) {
                self.add(scope, generation(row.get(5)?), row.get(4)?, row.get(6)?);
            }
        }
        self.version = now;
        Ok(())
    }

    pub(crate) fn add(&mut self, scope: Scope, below: Generation, cleared: bool, written: i64) {
        if let Scope::Namespace(namespace) | Scope::Tag { namespace, .. } = &scope {
            let highest = self.highest.entry(namespace.clone()).or_default();
            *highest = below.max(*highest);
        }
        let fence = self.by_scope.entry(scope).or_default();
        let kind = if cleared { &mut fence.cleared } else { &mut fence.fenced };
        *kind = below.max(*kind);
        fence.written = written.max(fence.written);
    }

    /// Whether the entry is dead by one of them.
    pub(crate) fn cover(&self, key: &Key, entry: &Entry) -> bool {
        self.cover_tagged(key, entry.generation, entry.tags())
    }

    /// Likewise, where the tags are at hand.
    pub(crate) fn cover_tagged(&self, key: &Key, generation: Generation, tags: Option<&Tags>) -> bool {
        if self.by_scope.is_empty() || self.highest(key.namespace()) <= generation {
            return false;
        }
        let below = |scope: &Scope| {
            self.by_scope.get(scope).is_some_and(|fence| generation < fence.fenced.max(fence.cleared))
        };
        below(&Scope::All)
            || below(&Scope::Namespace(key.namespace().to_owned()))
            || tags.into_iter().flatten().any(|(name, value)| below(&tag(key.namespace(), name, value)))
    }

    /// The highest generation below which something in the namespace is dead.
    pub(crate) fn highest(&self, namespace: &str) -> Generation {
        let all = self.by_scope.get(&Scope::All).copied().unwrap_or_default();
        self.highest.get(namespace).copied().unwrap_or_default().max(all.fenced).max(all.cleared)
    }

    /// Those meant for the whole cache that were written since then.
    pub(crate) fn fenced(&self, since: i64) -> impl Iterator<Item = (&Scope, Generation)> {
        let fenced = self.by_scope.iter().filter(move |(_, fence)| fence.written >= since);
        fenced.map(|(scope, fence)| (scope, fence.fenced)).filter(|(_, below)| *below > Generation::ZERO)
    }
}

fn tag(namespace: &str, name: &str, value: &str) -> Scope {
    Scope::Tag { namespace: namespace.to_owned(), name: name.to_owned(), value: value.to_owned() }
}

fn scope_of(kind: i64, namespace: String, name: String, value: String) -> Option<Scope> {
    match kind {
        ALL => Some(Scope::All),
        NAMESPACE => Some(Scope::Namespace(namespace)),
        TAG => Some(Scope::Tag { namespace, name, value }),
        _ => None,
    }
}

/// The columns of a scope: kind, namespace, name and value.
pub(crate) fn columns(scope: &Scope) -> (i64, &str, &str, &str) {
    match scope {
        Scope::All => (ALL, "", "", ""),
        Scope::Namespace(namespace) => (NAMESPACE, namespace, "", ""),
        Scope::Tag { namespace, name, value } => (TAG, namespace, name, value),
    }
}

/// Bytes of rows that nobody answers any more and that go in the background.
#[derive(Clone, Debug)]
pub(crate) struct Purge {
    pub(crate) scope: Scope,
    pub(crate) below: Generation,
    /// Where the last step ended: the row of a scan over everything, the key of one over a namespace.
    pub(crate) row: i64,
    pub(crate) key: Vec<u8>,
}

impl Purge {
    pub(crate) fn new(scope: Scope, below: Generation) -> Self {
        Self { scope, below, row: i64::MIN, key: Vec::new() }
    }

    /// Those that were begun and not ended, by whichever process.
    pub(crate) fn unfinished(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        let mut statement = connection
            .prepare("SELECT kind, namespace, name, value, generation FROM fence WHERE swept = 0")?;
        let rows = statement.query_map((), |row| {
            let scope = scope_of(row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            Ok(scope.map(|scope| (scope, row.get::<_, i64>(4))))
        })?;
        let mut purges = Vec::new();
        for row in rows {
            if let Some((scope, below)) = row? {
                purges.push(Self::new(scope, generation(below?)));
            }
        }
        Ok(purges)
    }

    /// Notes that nothing is left of it.
    pub(crate) fn note_done(&self, connection: &Connection) -> rusqlite::Result<()> {
        let (kind, namespace, name, value) = columns(&self.scope);
        connection
            .prepare_cached(
                "UPDATE fence SET swept = 1
                 WHERE kind = ?1 AND namespace = ?2 AND name = ?3 AND value = ?4 AND generation = ?5",
            )?
            .execute((kind, namespace, name, value, sql(self.below.get())))
            .map(drop)
    }
}
