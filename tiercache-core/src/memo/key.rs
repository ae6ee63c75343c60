//! Keys from arguments: one argument, one encoding; equal arguments, equal encodings.

use serde::Serialize;

use super::encoder::Encoder;
use crate::{AsKey, MAX_KEY_BYTES};

/// Keys this short need no allocation.
const SHORT: usize = 192;
/// What stands for arguments too long for a key. No argument's encoding begins with it.
const HASHED: u8 = 0xff;

/// A key made of a function's name and its arguments. On the stack while it is short.
///
/// Arguments are encoded as they serialise, each value with its type before it: different ones never share an
/// encoding (`("ab", "c")` and `("a", "bc")`, `1` and `"1"`, `[1, 2]` and `(1, 2)`). Maps are sorted, so that equal
/// ones share theirs however they were filled. Arguments of more than 16 KiB are replaced by their hash (XXH3, 128
/// bit), as [`ContentKey`](crate::ContentKey) does.
#[derive(Clone, Debug)]
pub struct CallKey {
    buffer: Buffer,
    /// Where the arguments begin.
    arguments: usize,
    failure: Option<String>,
}

impl CallKey {
    /// A key of nothing.
    #[inline]
    #[must_use]
    pub fn new() -> Self {
        Self { buffer: Buffer::new(), arguments: 0, failure: None }
    }

    /// The bytes of `key` as they are, as by hand.
    pub fn verbatim(key: impl AsKey) -> Self {
        let mut this = Self::new();
        this.buffer.extend(key.key_bytes());
        this
    }

    /// Adds a name. Names come before arguments.
    #[inline]
    pub fn name(&mut self, name: &str) {
        self.buffer.extend(name.as_bytes());
        self.buffer.push(0);
        self.arguments = self.buffer.len;
    }

    /// Adds the name of an argument's type.
    pub fn name_of<T: ?Sized>(&mut self, _: &T) {
        self.name(std::any::type_name::<T>());
    }

    /// Adds an argument.
    #[inline]
    pub fn argument<T: Serialize + ?Sized>(&mut self, argument: &T) {
        if let Err(error) = argument.serialize(Encoder(&mut self.buffer)) {
            self.failure = Some(error.0);
        }
    }

    /// The key, once it has all arguments; the reason if one did not serialise.
    #[inline]
    pub(crate) fn finish(&mut self) -> Result<&[u8], &str> {
        if let Some(failure) = &self.failure {
            return Err(failure);
        }
        if self.buffer.len > MAX_KEY_BYTES {
            let hash = xxhash_rust::xxh3::xxh3_128(&self.buffer.bytes()[self.arguments..]);
            self.buffer.truncate(self.arguments);
            self.buffer.push(HASHED);
            self.buffer.extend(&hash.to_le_bytes());
        }
        Ok(self.buffer.bytes())
    }
}

impl Default for CallKey {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes, on the stack while they are few.
#[derive(Clone, Debug)]
pub(super) struct Buffer {
    pub(super) len: usize,
    short: [u8; SHORT],
    /// All of them, once they are many.
    long: Vec<u8>,
}

impl Buffer {
    #[inline]
    fn new() -> Self {
        Self { len: 0, short: [0; SHORT], long: Vec::new() }
    }

    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        if self.long.is_empty() { &self.short[..self.len] } else { &self.long }
    }

    #[inline]
    pub(super) fn push(&mut self, byte: u8) {
        self.extend(&[byte]);
    }

    #[inline]
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        if self.long.is_empty() {
            if let Some(room) = self.short.get_mut(self.len..end) {
                room.copy_from_slice(bytes);
                self.len = end;
                return;
            }
            self.long.extend_from_slice(&self.short[..self.len]);
        }
        self.long.extend_from_slice(bytes);
        self.len = end;
    }

    pub(super) fn truncate(&mut self, len: usize) {
        if !self.long.is_empty() {
            // An empty one would mean that the bytes are on the stack.
            let kept = self.long[..len].to_vec();
            *self = Self::new();
            self.extend(&kept);
        } else {
            self.len = len;
        }
    }

    pub(super) fn length(&mut self, length: usize) {
        self.extend(&(length as u64).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap, HashSet};

    use serde::Serializer;

    use super::*;

    fn key<T: Serialize + ?Sized>(argument: &T) -> Vec<u8> {
        let mut key = CallKey::new();
        key.name("f");
        key.argument(argument);
        key.finish().unwrap().to_vec()
    }

    #[derive(Serialize, Default)]
    struct Options {
        #[serde(skip_serializing_if = "Option::is_none")]
        width: Option<u8>,
        #[serde(skip_serializing_if = "Option::is_none")]
        height: Option<u8>,
    }

    #[derive(Serialize)]
    enum Shape {
        Point,
        Circle(u8),
        Square { side: u8 },
    }

    #[test]
    fn different_arguments_have_different_encodings() {
        let keys = [
            key(&("ab", "c")),
            key(&("a", "bc")),
            key(&("abc", "")),
            key("abc"),
            key("1"),
            key(&1),
            key(&1u8),
            key(&1i64),
            key(&'1'),
            key(&1.0),
            key(&true),
            key(&Some(1)),
            key(&None::<u8>),
            key(&()),
            key(&vec![1, 2]),
            key(&(1, 2)),
            key(&vec![vec![1, 2]]),
            key(&vec![vec![1], vec![2]]),
            key(&vec![vec![1, 2], vec![]]),
            key(&Vec::<u8>::new()),
            key(&[("a", 1)]),
            key(&BTreeMap::from([("a", 1)])),
            key(&BTreeMap::from([("a", 1), ("b", 2)])),
            key(&Options { width: Some(1), height: None }),
            key(&Options { width: None, height: Some(1) }),
            key(&Shape::Point),
            key(&Shape::Circle(1)),
            key(&Shape::Square { side: 1 }),
        ];
        assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len(), "{keys:x?}");
    }

    #[test]
    fn equal_maps_share_their_encoding_however_they_were_filled() {
        let filled = |order: &mut dyn Iterator<Item = u32>| -> HashMap<String, BTreeMap<u32, Vec<u32>>> {
            order.map(|n| (format!("key {n}"), BTreeMap::from([(n, vec![n; 50])]))).collect()
        };
        assert_eq!(key(&filled(&mut (0..40))), key(&filled(&mut (0..40).rev())));
        let pairs = filled(&mut (0..40));
        let sorted: BTreeMap<_, _> = pairs.iter().collect();
        assert_eq!(key(&pairs), key(&sorted));
        assert_ne!(key(&pairs), key(&filled(&mut (0..41))));
    }

    #[test]
    fn long_arguments_are_hashed_and_differ() {
        let long = |last: u8| key(&[[7u8; 20_000].as_slice(), &[last]].concat());
        assert!(long(1).len() < 40);
        assert_eq!(long(1), long(1));
        assert_ne!(long(1), long(2));
        // Neither is one that is too long mistaken for one that is not.
        for length in [SHORT - 20, SHORT, 8_000, 8_200, MAX_KEY_BYTES] {
            let bytes = key(&vec![1u8; length]);
            assert_eq!(bytes.len() < 40, length >= 8_200, "{length}");
        }
    }

    #[test]
    fn what_does_not_serialise_says_why() {
        struct Refuses;
        impl Serialize for Refuses {
            fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("not today"))
            }
        }
        let mut key = CallKey::new();
        key.argument(&Refuses);
        assert_eq!(key.finish(), Err("not today"));
    }
}
