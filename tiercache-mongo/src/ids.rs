//! Names of documents: namespace and key as one text that is injective, sorts as the pair does, and is readable
//! where the key is.
//!
//! BSON binaries sort by length before content, texts byte by byte: pages in the order of keys, and the ranges a
//! namespace or a prefix takes, need texts. A byte stands for itself from `"` to `}`; lower ones become `!` and two
//! hexadecimal digits, higher ones `~` and two. Namespace and key are parted by a space, which is lower than all.

use tiercache_core::{Key, KeyRef};

/// Keys whose text is longer are named by their hash: what has the name is verified in the envelope.
const LONGEST: usize = 512;
/// Higher than whatever can follow in a name.
const BEHIND: char = '\u{7f}';

/// The name of a key's entry.
pub(crate) fn entry(key: KeyRef<'_>) -> String {
    let mut name = of_namespace(key.namespace());
    let start = name.len();
    encode(key.bytes(), &mut name);
    if name.len() - start > LONGEST {
        name.truncate(start);
        // No key's own text has an escape of another form.
        name.push_str("!#");
        name.push_str(&format!("{:032x}", xxhash_rust::xxh3::xxh3_128(key.bytes())));
    }
    name
}

/// The name of a key's record: never a hash, since records are listed in the order of keys.
pub(crate) fn record(key: &Key) -> String {
    let mut name = of_namespace(key.namespace().as_bytes());
    encode(key.bytes(), &mut name);
    name
}

/// The key of a record's name.
pub(crate) fn key(name: &str) -> Option<Key> {
    let (namespace, bytes) = name.split_once(' ')?;
    let namespace = String::from_utf8(decode(namespace)?).ok()?;
    Key::new(&namespace, &decode(bytes)?).ok()
}

/// What the names in a namespace begin with.
pub(crate) fn of_namespace(namespace: &[u8]) -> String {
    let mut name = String::with_capacity(namespace.len() + 32);
    encode(namespace, &mut name);
    name.push(' ');
    name
}

/// What the names of keys with that prefix begin with.
pub(crate) fn of_prefix(namespace: &str, prefix: &[u8]) -> String {
    let mut name = of_namespace(namespace.as_bytes());
    encode(prefix, &mut name);
    name
}

/// The end, exclusive, of the names that begin so.
pub(crate) fn behind(mut start: String) -> String {
    start.push(BEHIND);
    start
}

/// A pair of texts as one, injectively, such as a tag.
pub(crate) fn pair(name: &str, value: &str) -> String {
    let mut text = of_namespace(name.as_bytes());
    encode(value.as_bytes(), &mut text);
    text
}

/// The texts of a pair.
pub(crate) fn unpair(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once(' ')?;
    Some((String::from_utf8(decode(name)?).ok()?, String::from_utf8(decode(value)?).ok()?))
}

fn encode(bytes: &[u8], out: &mut String) {
    for &byte in bytes {
        match byte {
            b'"'..=b'}' => out.push(char::from(byte)),
            _ => {
                out.push(if byte < b'"' { '!' } else { '~' });
                out.extend(
                    [byte >> 4, byte & 15].map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])),
                );
            }
        }
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    loop {
        match rest {
            [] => return Some(bytes),
            [b'!' | b'~', high, low, tail @ ..] => {
                let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
                bytes.push(digit(*high)? << 4 | digit(*low)?);
                rest = tail;
            }
            [plain @ b'"'..=b'}', tail @ ..] => {
                bytes.push(*plain);
                rest = tail;
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(namespace: &str, bytes: &[u8]) -> Key {
        Key::new(namespace, bytes).expect("a valid key")
    }

    #[test]
    fn names_are_readable_and_come_back() {
        let key_of = of("thumbs", b"img:1/a-b_c.png");
        assert_eq!(record(&key_of), "thumbs img:1/a-b_c.png");
        assert_eq!(entry(key_of.as_ref()), record(&key_of));
        assert_eq!(record(&of("", b" !~\0\xff")), " !20!21~7e!00~ff");
        for key_of in [key_of, of("", b"\0"), of("schl\u{fc}ssel", &[0, 31, 32, 33, 34, 125, 126, 127, 255])]
        {
            assert_eq!(key(&record(&key_of)).as_ref(), Some(&key_of));
        }
        for name in ["", "a", "a ", "a !0", "a !zz", "a \u{e9}", "~ff k"] {
            assert_eq!(key(name), None, "{name:?}");
        }
        assert_eq!(unpair(&pair("gr\u{f6}\u{df}e", "\u{a7} 64\0")), Some(("größe".into(), "§ 64\0".into())));
    }

    #[test]
    fn names_sort_as_keys_do() {
        let bytes: Vec<Vec<u8>> = (0..=255u8)
            .flat_map(|byte| [vec![byte], vec![byte, 0], vec![byte, 255], vec![b'a', byte]])
            .collect();
        let namespaces = ["", "a", "a ", "a!", "a\"", "ab", "~", "\u{e9}"];
        let mut keys: Vec<Key> = namespaces
            .iter()
            .flat_map(|namespace| bytes.iter().map(move |bytes| of(namespace, bytes)))
            .collect();
        keys.sort();
        keys.dedup();
        let names: Vec<String> = keys.iter().map(record).collect();
        assert!(names.is_sorted_by(|one, other| one < other));
    }

    #[test]
    fn a_range_has_what_begins_so_and_nothing_else() {
        let names: Vec<String> = ["a", "ab", "a!", "a~", "a\0", "b", "a\u{7f}"]
            .iter()
            .flat_map(|name| [of("n", name.as_bytes()), of("n2", name.as_bytes()), of("", name.as_bytes())])
            .map(|key| record(&key))
            .collect();
        let start = of_prefix("n", b"a");
        let end = behind(start.clone());
        for name in names {
            let key = key(&name).expect("a key");
            let within = key.namespace() == "n" && key.bytes().starts_with(b"a");
            assert_eq!(name >= start && name < end, within, "{name:?}");
        }
    }

    #[test]
    fn long_keys_are_named_by_their_hash_and_no_short_one_is_named_alike() {
        let long = entry(of("n", &[b'k'; 600]).as_ref());
        assert_ne!(long, entry(of("n", &[b'k'; 601]).as_ref()));
        assert!(long.len() < 40 && long.starts_with("n !#"), "{long}");
        assert_ne!(entry(of("n", &long.as_bytes()[2..]).as_ref()), long);
        assert!(entry(of("n", &[0; 171]).as_ref()).starts_with("n !#"), "three characters a byte count");
    }
}
