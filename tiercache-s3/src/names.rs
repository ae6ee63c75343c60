//! Names of objects. `ROOT` is the prefix and the level:
//!
//! ```text
//! ROOT o/NAMESPACE/KEY      an entry; both are 32 hexadecimal digits of an XXH3-128
//! ROOT _meta/g/GENERATION   generations up to that one may be in here
//! ROOT _meta/c/NAMESPACE/GENERATION   what is below is cleared from the namespace, or from `all`
//! ROOT _meta/f/SCOPE/GENERATION       what is below is dead in the scope, which is the object's body
//! ```
//!
//! Generations are 12 hexadecimal digits. No object under `_meta` is ever overwritten: of several, the highest counts, so
//! that two processes that write at once need no conditional writes to agree.

use tiercache_core::{Generation, KeyRef};
use xxhash_rust::xxh3::xxh3_128;

/// A hash of a namespace or a key.
pub(crate) type Hash = u128;

/// The names of one level.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    root: String,
}

/// The name of an entry's object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) object: String,
    pub(crate) namespace: Hash,
    pub(crate) key: Hash,
}

impl Names {
    pub(crate) fn new(prefix: &str, level: &str) -> Self {
        let slash = if prefix.is_empty() || prefix.ends_with('/') { "" } else { "/" };
        Self { root: format!("{prefix}{slash}{level}/") }
    }

    /// What all names begin with.
    pub(crate) fn root(&self) -> &str {
        &self.root
    }

    pub(crate) fn entry(&self, key: KeyRef<'_>) -> Name {
        let namespace = hash_namespace(key.namespace());
        // The namespace's length first, so that no two pairs give the same bytes.
        let mut bytes = Vec::with_capacity(1 + key.namespace().len() + key.bytes().len());
        bytes.push(key.namespace().len() as u8);
        bytes.extend_from_slice(key.namespace());
        bytes.extend_from_slice(key.bytes());
        self.of(namespace, xxh3_128(&bytes))
    }

    fn of(&self, namespace: Hash, key: Hash) -> Name {
        Name { object: format!("{}o/{namespace:032x}/{key:032x}", self.root), namespace, key }
    }

    /// The entry whose object has that name; `None` when it is not one of ours.
    pub(crate) fn parse(&self, object: &str) -> Option<Name> {
        let (namespace, key) = object.strip_prefix(&self.root)?.strip_prefix("o/")?.split_once('/')?;
        let name = self.of(Hash::from_str_radix(namespace, 16).ok()?, Hash::from_str_radix(key, 16).ok()?);
        (name.object == object).then_some(name)
    }

    /// What the names of entries (of a namespace, or all) begin with.
    pub(crate) fn entries(&self, namespace: Option<&str>) -> String {
        match namespace {
            Some(namespace) => format!("{}o/{:032x}/", self.root, hash_namespace(namespace.as_bytes())),
            None => format!("{}o/", self.root),
        }
    }

    /// What the names of records begin with.
    pub(crate) fn records(&self) -> String {
        format!("{}_meta/", self.root)
    }

    pub(crate) fn record(&self, record: Record) -> String {
        let root = self.records();
        match record {
            Record::Reached(generation) => format!("{root}g/{:012x}", generation.get()),
            Record::Cleared(None, generation) => format!("{root}c/all/{:012x}", generation.get()),
            Record::Cleared(Some(namespace), generation) => {
                format!("{root}c/{namespace:032x}/{:012x}", generation.get())
            }
            Record::Fence(scope, generation) => format!("{root}f/{scope:032x}/{:012x}", generation.get()),
        }
    }

    /// The record an object's name is; `None` when it is not one of ours.
    pub(crate) fn parse_record(&self, object: &str) -> Option<Record> {
        let mut parts = object.strip_prefix(&self.records())?.split('/');
        let (kind, second, third) = (parts.next()?, parts.next()?, parts.next());
        let generation = |digits: &str| u64::from_str_radix(digits, 16).ok().map(Generation::new);
        let hash = |digits: &str| Hash::from_str_radix(digits, 16).ok();
        let record = match (kind, third) {
            ("g", None) => Record::Reached(generation(second)?),
            ("c", Some(third)) if second == "all" => Record::Cleared(None, generation(third)?),
            ("c", Some(third)) => Record::Cleared(Some(hash(second)?), generation(third)?),
            ("f", Some(third)) => Record::Fence(hash(second)?, generation(third)?),
            _ => return None,
        };
        (self.record(record) == object).then_some(record)
    }
}

/// What the name of a small object under `_meta` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Reached(Generation),
    Cleared(Option<Hash>, Generation),
    Fence(Hash, Generation),
}

pub(crate) fn hash_namespace(namespace: &[u8]) -> Hash {
    xxh3_128(namespace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tiercache_core::Key;

    #[test]
    fn no_two_keys_share_a_name_and_no_key_stands_in_one() {
        let names = Names::new("app", "dry");
        let pairs = [("", "a:b"), ("a", "b"), ("a", ":b"), ("ab", "c"), ("a", "bc"), ("../x", "../../etc")];
        let mut seen = std::collections::BTreeSet::new();
        for (namespace, key) in pairs {
            let name = names.entry(Key::new(namespace, key.as_bytes()).unwrap().as_ref());
            assert_eq!(names.parse(&name.object), Some(name.clone()));
            assert!(name.object.starts_with(&names.entries(Some(namespace))));
            assert!(name.object.starts_with("app/dry/o/") && !name.object.contains(".."), "{}", name.object);
            assert!(seen.insert(name.object));
        }
    }

    #[test]
    fn records_are_read_as_they_are_written_and_nothing_else_is() {
        let names = Names::new("", "cold");
        let generation = Generation::new(0xABC);
        for record in [
            Record::Reached(generation),
            Record::Cleared(None, generation),
            Record::Cleared(Some(7), generation),
            Record::Fence(9, Generation::MAX),
        ] {
            assert_eq!(names.parse_record(&names.record(record)), Some(record));
        }
        for other in
            ["cold/_meta/g/zz", "cold/_meta/g/1", "cold/_meta/x/1/2", "cold/_meta/c/all", "cold/o/1/2"]
        {
            assert_eq!(names.parse_record(other), None, "{other}");
            assert_eq!(names.parse(other), None, "{other}");
        }
    }
}
