//! The names things have at the server.

use tiercache_core::Key;
use xxhash_rust::xxh3::xxh3_128;

/// Longer parts of names are hashed; the envelope tells which key an entry is of.
const LONGEST_PLAIN: usize = 128;

/// Names of one level of one application. Each is injective: prefix and level have no colon, nor has what stands
/// for the namespace, and the key comes last.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    stem: String,
}

impl Names {
    pub(crate) fn new(prefix: &str, part: &str) -> Self {
        Self { stem: format!("{prefix}:{part}") }
    }

    /// The record of era, generations and fences. The braces keep whatever begins with this in one slot of a cluster.
    pub(crate) fn record(&self) -> String {
        format!("{{{}}}", self.stem)
    }

    pub(crate) fn entry(&self, era: &str, key: &Key) -> Vec<u8> {
        self.of_key(era, b":e:", key)
    }

    pub(crate) fn counter(&self, era: &str, key: &Key) -> Vec<u8> {
        self.of_key(era, b":c:", key)
    }

    /// A pattern of the names of all entries of an era, or of one namespace.
    pub(crate) fn entries(&self, era: &str, namespace: Option<&str>) -> Vec<u8> {
        let mut name = format!("{}:{era}:e:", self.stem).into_bytes();
        if let Some(namespace) = namespace {
            name.extend(part(namespace.as_bytes(), false));
            name.push(b':');
        }
        starting_with(&name)
    }

    /// A pattern of the names of everything but the record.
    pub(crate) fn everything(&self) -> Vec<u8> {
        starting_with(format!("{}:", self.stem).as_bytes())
    }

    /// The era, the kind (`e`, `c`) and what stands for the namespace in a name; `None` when it is none of ours.
    pub(crate) fn taken_apart<'a>(&self, name: &'a [u8]) -> Option<(&'a [u8], u8, &'a [u8])> {
        let mut parts =
            name.strip_prefix(self.stem.as_bytes())?.strip_prefix(b":")?.splitn(4, |&byte| byte == b':');
        let (era, kind, namespace) = (parts.next()?, parts.next()?, parts.next()?);
        parts.next()?;
        (era.len() == ERA_BYTES && kind.len() == 1).then_some((era, kind[0], namespace))
    }

    fn of_key(&self, era: &str, kind: &[u8; 3], key: &Key) -> Vec<u8> {
        let mut name = Vec::with_capacity(self.stem.len() + era.len() + key.encoded().len() + 8);
        name.extend(self.stem.as_bytes());
        name.push(b':');
        name.extend(era.as_bytes());
        name.extend(kind);
        name.extend(part(key.namespace().as_bytes(), false));
        name.push(b':');
        name.extend(part(key.bytes(), true));
        name
    }
}

/// Letters of an era.
pub(crate) const ERA_BYTES: usize = 16;

/// An era nobody else has.
pub(crate) fn new_era() -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // Seeded by the system, differently each time.
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    format!("{:016x}", hasher.finish())
}

/// What stands for a namespace or a key: itself when it is plain text, else its hash.
pub(crate) fn part(bytes: &[u8], last: bool) -> Vec<u8> {
    let plain = |&byte: &u8| byte.is_ascii_graphic() && !b"{}".contains(&byte) && (last || byte != b':');
    if bytes.len() <= LONGEST_PLAIN && bytes.first() != Some(&b'#') && bytes.iter().all(plain) {
        bytes.to_vec()
    } else {
        format!("#{:032x}", xxh3_128(bytes)).into_bytes()
    }
}

/// The pattern that matches what begins so, whatever is in it.
fn starting_with(name: &[u8]) -> Vec<u8> {
    let mut pattern = Vec::with_capacity(name.len() + 1);
    for &byte in name {
        if b"*?[]^-\\".contains(&byte) {
            pattern.push(b'\\');
        }
        pattern.push(byte);
    }
    pattern.push(b'*');
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(namespace: &str, key: &[u8]) -> String {
        let key = Key::new(namespace, key).unwrap();
        String::from_utf8(Names::new("app", "cold").entry("0123456789abcdef", &key)).unwrap()
    }

    #[test]
    fn plain_keys_stay_readable_and_odd_ones_are_hashed() {
        assert_eq!(name("", b"user:42"), "app:cold:0123456789abcdef:e::user:42");
        assert_eq!(name("shop", b"k*[a]"), "app:cold:0123456789abcdef:e:shop:k*[a]");
        for odd in [&b"a b"[..], b"\r\n", b"{tag}", b"#0", b"\xff", &[b'k'; 200]] {
            assert!(name("", odd).starts_with("app:cold:0123456789abcdef:e::#"), "{odd:?}");
        }
        assert_ne!(name("a:b", b"c"), name("a", b"b:c"));
    }

    #[test]
    fn patterns_match_what_is_meant_alone() {
        let names = Names::new("app", "cold");
        assert_eq!(names.entries("0", Some("a*b")), b"app:cold:0:e:a\\*b:*");
        assert_eq!(names.entries("0", None), b"app:cold:0:e:*");
    }

    #[test]
    fn names_are_taken_apart_again() {
        let names = Names::new("app", "cold");
        let key = Key::new("shop", b"a:b").unwrap();
        let era = new_era();
        assert_eq!(names.taken_apart(&names.entry(&era, &key)), Some((era.as_bytes(), b'e', &b"shop"[..])));
        assert_eq!(names.taken_apart(&names.counter(&era, &key)), Some((era.as_bytes(), b'c', &b"shop"[..])));
        for other in [names.record().as_bytes(), b"app:cold:x:e::k", b"app:cold2:0123456789abcdef:e::k"] {
            assert_eq!(names.taken_apart(other), None);
        }
    }
}
