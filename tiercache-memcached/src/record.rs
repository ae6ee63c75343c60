//! What a server remembers of the level as a whole: one item.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};

use serde::{Deserialize, Serialize};
use tiercache_core::tier::Scope;
use tiercache_core::{Entry, Generation, Tags};
use xxhash_rust::xxh3::xxh3_64;

/// Magic and version.
const HEAD: [u8; 3] = [0xC7, 0x7F, 1];
/// Where the content begins, after a checksum of it.
const CONTENT: usize = HEAD.len() + 8;
/// The most bytes of a record; fences are merged to stay below.
const MAX_BYTES: usize = 16 << 10;

/// A server's record of a level. An item can be lost at any time, this one too; the entries it says something about
/// are in items that bear its era in their names and are lost with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Part of every other item's name, drawn at random.
    pub(crate) era: u64,
    /// Entries here may have generations up to this one.
    pub(crate) generations: u64,
    /// What is dead: below which generation, by namespace and tag. No namespace means all.
    fences: BTreeMap<Fenced, u64>,
    /// What was cleared, likewise by namespace.
    cleared: BTreeMap<Option<String>, u64>,
    /// All servers of the level.
    servers: BTreeSet<String>,
    /// Which of them were there without a break since the era began.
    since: BTreeSet<String>,
    /// How often the servers changed.
    changes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Fenced {
    namespace: Option<String>,
    tag: Option<(String, String)>,
}

impl Record {
    /// The record that a server of these must have, given what the servers have now and which of that it has itself. Its era goes on
    /// unless an older copy of a key that comes back to it could be there: it missed a change, or a server went that
    /// had come after the era began.
    pub(crate) fn settled(own: Option<&Self>, all: &[Option<&Self>], servers: &BTreeSet<String>) -> Self {
        let newest = all.iter().copied().flatten().max_by_key(|record| record.changes);
        let changes = newest.map_or(0, |newest| newest.changes + u64::from(newest.servers != *servers));
        let kept = own.zip(newest).filter(|(own, newest)| {
            let gone = newest.servers.difference(servers);
            (own.changes, &own.servers) == (newest.changes, &newest.servers)
                && gone.into_iter().all(|server| own.since.contains(server))
        });
        match kept {
            Some((own, _)) => {
                let since = own.since.intersection(servers).cloned().collect();
                Self { servers: servers.clone(), since, changes, ..own.clone() }
            }
            None => {
                let known = own.cloned().unwrap_or_default();
                Self { servers: servers.clone(), since: servers.clone(), changes, ..known }.reborn()
            }
        }
    }

    /// The same in a new era: nothing that is there is seen any more.
    pub(crate) fn reborn(self) -> Self {
        let (random, process) = (RandomState::new(), std::process::id());
        Self { era: random.hash_one((process, std::time::SystemTime::now())), ..self }
    }

    /// Whether another record was written by a process that knows of other servers, and later than this one.
    pub(crate) fn is_overruled_by(&self, other: &Self) -> bool {
        other.servers != self.servers && other.changes >= self.changes
    }

    /// Whether another record was written by a process that had not heard of the servers of this one.
    pub(crate) fn overrules(&self, other: &Self) -> bool {
        other.servers != self.servers && !self.is_overruled_by(other)
    }

    pub(crate) fn raise(&mut self, generation: Generation) {
        self.generations = self.generations.max(generation.get().min(Generation::MAX.get()));
    }

    pub(crate) fn fence(&mut self, scope: &Scope, below: Generation) {
        self.raise(below);
        let fence = self.fences.entry(Fenced::from(scope)).or_default();
        *fence = below.get().max(*fence);
        self.shrink();
    }

    /// Counters have no generation, and go whatever was cleared before: each clearing is above the last.
    pub(crate) fn clear(&mut self, namespace: Option<&str>, below: Generation) {
        let known = match namespace {
            Some(namespace) => Some(self.cleared(namespace).get()).filter(|known| *known > 0),
            None => self.cleared.values().max().copied(),
        };
        let below = known.map_or(below, |known| below.max(Generation::new(known + 1)));
        self.raise(below);
        self.cleared.insert(namespace.map(str::to_owned), below.get());
        self.shrink();
    }

    pub(crate) fn fences(&self) -> impl Iterator<Item = (Scope, Generation)> {
        self.fences.iter().map(|(fenced, &below)| (fenced.clone().into(), Generation::new(below)))
    }

    /// Below which generation `namespace` was cleared.
    pub(crate) fn cleared(&self, namespace: &str) -> Generation {
        let (all, one) = (self.cleared.get(&None), self.cleared.get(&Some(namespace.to_owned())));
        Generation::new(all.max(one).copied().unwrap_or_default())
    }

    /// Below which generation everything in `namespace` is dead.
    pub(crate) fn floor(&self, namespace: &str) -> Generation {
        let fence = |namespace: Option<&str>| {
            let fenced = Fenced { namespace: namespace.map(str::to_owned), tag: None };
            Generation::new(self.fences.get(&fenced).copied().unwrap_or_default())
        };
        if self.fences.is_empty() && self.cleared.is_empty() {
            return Generation::ZERO;
        }
        self.cleared(namespace).max(fence(None)).max(fence(Some(namespace)))
    }

    /// Whether an entry of `namespace` is dead.
    pub(crate) fn kills(&self, namespace: &str, entry: &Entry) -> bool {
        let tagged = |tags: &Tags| {
            tags.iter().any(|(name, value)| {
                let tag = Some((name.clone(), value.clone()));
                let fenced = Fenced { namespace: Some(namespace.to_owned()), tag };
                self.fences.get(&fenced).is_some_and(|&below| entry.generation.get() < below)
            })
        };
        entry.generation < self.floor(namespace)
            || (!self.fences.is_empty() && entry.tags().is_some_and(tagged))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        // Numbers, texts and maps of them: there is nothing that could fail.
        let content = rmp_serde::to_vec(self).unwrap_or_default();
        [&HEAD[..], &xxh3_64(&content).to_le_bytes(), &content].concat()
    }

    /// `None` when these bytes are none.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, content) = bytes.split_at_checked(CONTENT)?;
        let whole = head[..HEAD.len()] == HEAD && head[HEAD.len()..] == xxh3_64(content).to_le_bytes();
        whole.then(|| rmp_serde::from_slice(content).ok()).flatten()
    }

    /// Merges until it is small enough: tags into their namespace, namespaces into all. What is fenced stays so.
    fn shrink(&mut self) {
        while self.encode().len() > MAX_BYTES {
            let tagged = self.fences.keys().find(|fenced| fenced.tag.is_some()).cloned();
            let into = match tagged {
                Some(fenced) => Fenced { tag: None, ..fenced },
                None => Fenced { namespace: None, tag: None },
            };
            let merged = |fenced: &Fenced| into.namespace.is_none() || fenced.namespace == into.namespace;
            let highest =
                self.fences.extract_if(.., |fenced, _| merged(fenced)).map(|(_, below)| below).max();
            self.fences.extend(highest.map(|below| (into, below)));
            if self.fences.len() < 2 && self.cleared.len() > 1 {
                let highest = std::mem::take(&mut self.cleared).into_values().max();
                self.cleared.extend(highest.map(|below| (None, below)));
            }
            if self.fences.len() < 2 && self.cleared.len() < 2 {
                return;
            }
        }
    }
}

impl From<&Scope> for Fenced {
    fn from(scope: &Scope) -> Self {
        let (namespace, tag) = match scope {
            Scope::All => (None, None),
            Scope::Namespace(namespace) => (Some(namespace.clone()), None),
            Scope::Tag { namespace, name, value } => {
                (Some(namespace.clone()), Some((name.clone(), value.clone())))
            }
        };
        Self { namespace, tag }
    }
}

impl From<Fenced> for Scope {
    fn from(fenced: Fenced) -> Self {
        match (fenced.namespace, fenced.tag) {
            (None, _) => Self::All,
            (Some(namespace), None) => Self::Namespace(namespace),
            (Some(namespace), Some((name, value))) => Self::Tag { namespace, name, value },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(names: &str) -> BTreeSet<String> {
        names.chars().map(String::from).collect()
    }

    /// The records of the servers after they are opened as these.
    fn opened(records: &mut BTreeMap<char, Record>, names: &str) {
        let all: Vec<Option<Record>> = names.chars().map(|name| records.get(&name).cloned()).collect();
        let all: Vec<Option<&Record>> = all.iter().map(Option::as_ref).collect();
        for (name, own) in names.chars().zip(&all) {
            records.insert(name, Record::settled(*own, &all, &servers(names)));
        }
    }

    #[test]
    fn eras_go_on_until_an_older_copy_could_come_back() {
        let mut records = BTreeMap::new();
        let mut steps = Vec::new();
        // Opened as these servers; which of them keep their era.
        for (names, kept) in [
            ("ab", ""),
            ("ab", "ab"),
            ("abc", "ab"),
            // a and b may have what moved to c and was changed there.
            ("ab", ""),
            // b was there all along: a never had what is b's.
            ("a", "a"),
            // b missed that.
            ("ab", "a"),
            ("b", "b"),
        ] {
            let before: BTreeMap<char, u64> =
                records.iter().map(|(&n, r): (&char, &Record)| (n, r.era)).collect();
            opened(&mut records, names);
            let same: String = names.chars().filter(|n| before.get(n) == Some(&records[n].era)).collect();
            steps.push((names, kept, same));
        }
        for (at, (names, kept, same)) in steps.into_iter().enumerate() {
            assert_eq!(same, kept, "step {at}: {names}");
        }
    }

    #[test]
    fn fences_merge_when_they_are_many_and_still_hold() {
        let mut record = Record::default();
        for number in 1..=2_000 {
            let tag = |namespace: &str| Scope::Tag {
                namespace: namespace.to_owned(),
                name: "user".to_owned(),
                value: number.to_string(),
            };
            record.fence(&tag("a"), Generation::new(number));
            record.fence(&tag(&format!("n{number}")), Generation::new(number));
            record.clear(Some(&format!("n{number}")), Generation::new(number));
        }
        assert!(record.encode().len() <= MAX_BYTES);
        let mut entry = Entry::new("", Generation::new(1_999), tiercache_core::Timestamp::EPOCH);
        entry.extras_mut().tags.insert("user".into(), "2000".into());
        assert!(record.kills("a", &entry) && record.kills("n2000", &entry));
        entry.generation = Generation::new(2_000);
        assert!(!record.kills("a", &entry) && !record.kills("n2000", &entry));
        assert_eq!(Record::decode(&record.encode()), Some(record));
    }

    #[test]
    fn what_changed_on_the_way_is_no_record() {
        let mut record = Record::default().reborn();
        record.clear(Some("a"), Generation::new(7));
        let bytes = record.encode();
        for at in 0..bytes.len() {
            let mut turned = bytes.clone();
            turned[at] ^= 1;
            assert_eq!(Record::decode(&turned), None, "byte {at}");
            assert_eq!(Record::decode(&bytes[..at]), None, "cut at {at}");
        }
    }
}
