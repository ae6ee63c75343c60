//! What a level remembers beside its entries: how far generations have come, what was cleared, fences. One small object
//! each, see [`names`](crate::names); of several the highest counts.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tiercache_core::tier::{HighWater, Scope};
use tiercache_core::{Clock, Entry, Generation, KeyRef, Result, Timestamp};
use xxhash_rust::xxh3::xxh3_128;

use crate::client::{Failure, Kind};
use crate::late::LATEST;
use crate::names::{Hash, Names, Record};
use crate::store::{Read, Store};

/// The most bytes a scope takes: three texts and what says how long they are.
const MOST_SCOPE: u64 = 1 << 20;
/// How long a fence is kept at least: nothing it could hit arrives later.
const FENCE_AGE: Duration = LATEST.saturating_mul(2);

#[derive(Debug)]
pub(crate) struct Meta {
    store: Arc<Store>,
    names: Names,
    clock: Arc<dyn Clock>,
    water: HighWater,
    known: RwLock<Known>,
    /// How far generations had come when the level was opened.
    pub(crate) last_generation: Generation,
    /// Whether nothing in the bucket may change.
    looks: bool,
}

#[derive(Debug, Default)]
struct Known {
    all: Generation,
    namespaces: HashMap<Hash, Generation>,
    fences: HashMap<Hash, Fence>,
    /// The highest of all: what is not below it is not dead.
    newest: Generation,
}

#[derive(Clone, Debug)]
struct Fence {
    scope: Scope,
    generation: Generation,
    /// Since when this process knows of it.
    since: Timestamp,
}

impl Meta {
    pub(crate) async fn open(
        store: Arc<Store>,
        names: Names,
        clock: Arc<dyn Clock>,
        looks: bool,
    ) -> Result<Self, Failure> {
        let mut meta = Self {
            store,
            names,
            clock,
            water: HighWater::new(Generation::ZERO),
            known: RwLock::default(),
            last_generation: Generation::ZERO,
            looks,
        };
        meta.last_generation = meta.refresh().await?;
        meta.water = HighWater::new(meta.last_generation);
        Ok(meta)
    }

    /// Learns what other processes have written; returns how far generations have come. One listing when there is
    /// nothing new.
    pub(crate) async fn refresh(&self) -> Result<Generation, Failure> {
        let (mut reached, mut old) = (Generation::ZERO, Vec::new());
        let mut fences: HashMap<Hash, Generation> = HashMap::new();
        let listed = self.store.list_all(&self.names.records()).await?;
        let records = listed.iter().filter_map(|listed| self.names.parse_record(&listed.name));
        for record in records {
            match record {
                Record::Reached(generation) => {
                    if reached > Generation::ZERO {
                        old.push(Record::Reached(reached.min(generation)));
                    }
                    reached = reached.max(generation);
                }
                Record::Cleared(namespace, generation) => {
                    let mut known = self.write();
                    let floor = known.floor_of(namespace);
                    if generation < floor {
                        old.push(record);
                    } else {
                        known.clear(namespace, generation);
                    }
                }
                Record::Fence(scope, generation) => {
                    let before = fences.insert(scope, generation).unwrap_or_default();
                    if before > Generation::ZERO {
                        old.push(Record::Fence(scope, before.min(generation)));
                        fences.insert(scope, before.max(generation));
                    }
                }
            }
        }
        for (hash, generation) in fences {
            self.learn(hash, generation).await?;
        }
        self.tidy(old).await;
        Ok(reached)
    }

    /// Takes in a fence whose name was listed.
    async fn learn(&self, hash: Hash, generation: Generation) -> Result<(), Failure> {
        let known = self.read().fences.get(&hash).map(|fence| (fence.scope.clone(), fence.generation));
        let scope = match known {
            Some((_, known)) if known >= generation => return Ok(()),
            Some((scope, _)) => scope,
            None => {
                let name = self.names.record(Record::Fence(hash, generation));
                match self.store.read(&name, None, MOST_SCOPE).await? {
                    Read::Object(object) if xxh3_128(&object.bytes) == hash => match decode(&object.bytes) {
                        Some(scope) => scope,
                        None => return Ok(()),
                    },
                    // Gone since it was listed: a higher one stands there, or nothing needs it any more.
                    Read::Absent => return Ok(()),
                    Read::Object(_) | Read::TooLarge => {
                        tracing::warn!(object = name, "no fence is to be read here");
                        return Ok(());
                    }
                }
            }
        };
        self.write().fence(hash, scope, generation, self.clock.now());
        Ok(())
    }

    /// Returns when the record of generations covers that one.
    pub(crate) async fn cover(&self, generation: Generation) -> Result<()> {
        self.water.cover(generation, |to| async move { Ok(self.raise(to).await?) }).await
    }

    async fn raise(&self, to: Generation) -> Result<Generation, Failure> {
        let to = to.min(Generation::MAX);
        let reached = self.reached().await?;
        let highest = reached.iter().copied().max().unwrap_or_default();
        if highest >= to {
            return Ok(highest);
        }
        self.store.write_record(&self.names.record(Record::Reached(to)), Vec::new()).await?;
        self.tidy(reached.into_iter().map(Record::Reached)).await;
        Ok(to)
    }

    async fn reached(&self) -> Result<Vec<Generation>, Failure> {
        let prefix = format!("{}g/", self.names.records());
        let listed = self.store.list_all(&prefix).await?;
        let reached = |name: &str| match self.names.parse_record(name)? {
            Record::Reached(generation) => Some(generation),
            Record::Cleared(..) | Record::Fence(..) => None,
        };
        Ok(listed.iter().filter_map(|listed| reached(&listed.name)).collect())
    }

    /// Remembers that what is below is cleared.
    pub(crate) async fn clear(&self, namespace: Option<Hash>, below: Generation) -> Result<()> {
        self.cover(below).await?;
        let before = self.read().floor_of(namespace);
        if before >= below {
            return Ok(());
        }
        let record = |generation| Record::Cleared(namespace, generation);
        self.store.write_record(&self.names.record(record(below)), Vec::new()).await?;
        self.write().clear(namespace, below);
        self.tidy((before > Generation::ZERO).then(|| record(before))).await;
        Ok(())
    }

    /// Remembers a fence above all that other processes may have put; returns its generation.
    pub(crate) async fn fence(&self, scope: &Scope, generation: Generation) -> Result<Generation> {
        let reached = self.reached().await?.into_iter().max().unwrap_or_default();
        let generation = generation.max(Generation::new(reached.get() + 1));
        self.cover(generation).await?;
        let body = encode(scope);
        let hash = xxh3_128(&body);
        self.store.write_record(&self.names.record(Record::Fence(hash, generation)), body).await?;
        let before = self.write().fence(hash, scope.clone(), generation, self.clock.now());
        self.tidy(before.map(|before| Record::Fence(hash, before))).await;
        Ok(generation)
    }

    pub(crate) fn remembered(&self) -> Vec<(Scope, Generation)> {
        self.read().fences.values().map(|fence| (fence.scope.clone(), fence.generation)).collect()
    }

    /// Below which generation a namespace holds nothing.
    pub(crate) fn floor(&self, namespace: Hash) -> Generation {
        let known = self.read();
        known.all.max(known.floor_of(Some(namespace)))
    }

    /// What is not below this was neither cleared nor fenced off.
    pub(crate) fn newest(&self) -> Generation {
        self.read().newest
    }

    /// Whether an entry was cleared or fenced off.
    pub(crate) fn is_dead(&self, namespace: Hash, key: KeyRef<'_>, entry: &Entry) -> bool {
        let known = self.read();
        entry.generation < known.newest
            && (entry.generation < known.all.max(known.floor_of(Some(namespace)))
                || scopes(key, entry).any(|scope| {
                    let fence = known.fences.get(&xxh3_128(&encode(&scope)));
                    fence.is_some_and(|fence| entry.generation < fence.generation)
                }))
    }

    /// The fences that have been known for long enough that a walk that begins now makes an end of what they hit.
    pub(crate) fn old_fences(&self) -> Vec<(Hash, Generation)> {
        let now = self.clock.now();
        let known = self.read();
        let old = known.fences.iter().filter(|(_, fence)| now.since(fence.since) >= FENCE_AGE);
        old.map(|(hash, fence)| (*hash, fence.generation)).collect()
    }

    /// Forgets fences that nothing can be hit by any more.
    pub(crate) async fn forget(&self, fences: Vec<(Hash, Generation)>) {
        for (hash, generation) in &fences {
            let mut known = self.write();
            if known.fences.get(hash).is_some_and(|fence| fence.generation == *generation) {
                known.fences.remove(hash);
            }
        }
        self.tidy(fences.into_iter().map(|(hash, generation)| Record::Fence(hash, generation))).await;
    }

    /// Deletes records that others make needless. One that stays does no harm.
    async fn tidy(&self, records: impl IntoIterator<Item = Record>) {
        for record in records.into_iter().filter(|_| !self.looks) {
            let name = self.names.record(record);
            if let Err(failure) = self.store.delete(&name, None).await {
                tracing::debug!(object = name, error = %failure.error, "a needless record stays");
                if failure.kind == Kind::Open {
                    return;
                }
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn floor_of(&self, namespace: Option<Hash>) -> Generation {
        match namespace {
            Some(namespace) => self.namespaces.get(&namespace).copied().unwrap_or_default(),
            None => self.all,
        }
    }

    fn clear(&mut self, namespace: Option<Hash>, below: Generation) {
        let floor = match namespace {
            Some(namespace) => self.namespaces.entry(namespace).or_default(),
            None => &mut self.all,
        };
        *floor = below.max(*floor);
        self.newest = self.newest.max(below);
    }

    /// Returns the generation of the fence it takes the place of.
    fn fence(
        &mut self,
        hash: Hash,
        scope: Scope,
        generation: Generation,
        now: Timestamp,
    ) -> Option<Generation> {
        self.newest = self.newest.max(generation);
        let fence = Fence { scope, generation, since: now };
        self.fences.insert(hash, fence).map(|before| before.generation)
    }
}

/// The scopes an entry is in.
fn scopes(key: KeyRef<'_>, entry: &Entry) -> impl Iterator<Item = Scope> {
    let namespace = std::str::from_utf8(key.namespace()).unwrap_or_default();
    let tags = entry.tags().into_iter().flatten().map(|(name, value)| Scope::Tag {
        namespace: namespace.to_owned(),
        name: name.clone(),
        value: value.clone(),
    });
    [Scope::All, Scope::Namespace(namespace.to_owned())].into_iter().chain(tags)
}

fn encode(scope: &Scope) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut text = |text: &str| {
        bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    };
    match scope {
        Scope::All => {}
        Scope::Namespace(namespace) => text(namespace),
        Scope::Tag { namespace, name, value } => {
            [namespace, name, value].into_iter().for_each(|part| text(part))
        }
    }
    bytes
}

fn decode(mut bytes: &[u8]) -> Option<Scope> {
    let mut texts = Vec::new();
    while !bytes.is_empty() && texts.len() < 4 {
        let (length, rest) = bytes.split_first_chunk()?;
        let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        texts.push(std::str::from_utf8(text).ok()?.to_owned());
        bytes = rest;
    }
    let mut texts = texts.into_iter();
    match (texts.next(), texts.next(), texts.next(), texts.next()) {
        (None, ..) => Some(Scope::All),
        (Some(namespace), None, ..) => Some(Scope::Namespace(namespace)),
        (Some(namespace), Some(name), Some(value), None) => Some(Scope::Tag { namespace, name, value }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_as_they_are_written() {
        let tag = |namespace: &str, name: &str, value: &str| Scope::Tag {
            namespace: namespace.into(),
            name: name.into(),
            value: value.into(),
        };
        for scope in [
            Scope::All,
            Scope::Namespace("".into()),
            Scope::Namespace("a".into()),
            tag("", "", ""),
            tag("a", "ü", "\0"),
        ] {
            assert_eq!(decode(&encode(&scope)), Some(scope));
        }
        for bytes in [&[1][..], &[1, 0, 0, 0], &[1, 0, 0, 0, 0xff], &[0; 8], &[0; 16], &[0xff; 9]] {
            assert_eq!(decode(bytes), None, "{bytes:?}");
        }
    }
}
