//! Keys from arguments: one argument, one encoding; equal arguments, equal encodings.

use std::fmt::Display;

use serde::Serialize;
use serde::ser::{
    SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

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
struct Buffer {
    len: usize,
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
    fn bytes(&self) -> &[u8] {
        if self.long.is_empty() { &self.short[..self.len] } else { &self.long }
    }

    #[inline]
    fn push(&mut self, byte: u8) {
        self.extend(&[byte]);
    }

    #[inline]
    fn extend(&mut self, bytes: &[u8]) {
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

    fn truncate(&mut self, len: usize) {
        if !self.long.is_empty() {
            // An empty one would mean that the bytes are on the stack.
            let kept = self.long[..len].to_vec();
            *self = Self::new();
            self.extend(&kept);
        } else {
            self.len = len;
        }
    }

    fn length(&mut self, length: usize) {
        self.extend(&(length as u64).to_le_bytes());
    }
}

// What comes next. `END` closes what has no length, so no value begins with it.
const END: u8 = 0;
const UNIT: u8 = 1;
const NONE: u8 = 2;
const SOME: u8 = 3;
const FALSE: u8 = 4;
const TRUE: u8 = 5;
const I8: u8 = 6;
const I16: u8 = 7;
const I32: u8 = 8;
const I64: u8 = 9;
const I128: u8 = 10;
const U8: u8 = 11;
const U16: u8 = 12;
const U32: u8 = 13;
const U64: u8 = 14;
const U128: u8 = 15;
const F32: u8 = 16;
const F64: u8 = 17;
const CHAR: u8 = 18;
const TEXT: u8 = 19;
const BYTES: u8 = 20;
const SEQUENCE: u8 = 21;
const TUPLE: u8 = 22;
const MAP: u8 = 23;
const STRUCT: u8 = 24;
const VARIANT: u8 = 25;

struct Encoder<'a>(&'a mut Buffer);

/// Why an argument does not serialise.
#[derive(Debug)]
struct Failure(String);

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl serde::ser::Error for Failure {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

macro_rules! numbers {
    ($($name:ident $of:ty: $tag:ident),*) => {$(
        #[inline]
        fn $name(self, number: $of) -> Result<(), Failure> {
            self.0.push($tag);
            self.0.extend(&number.to_le_bytes());
            Ok(())
        }
    )*};
}

impl<'a> Encoder<'a> {
    fn text(self, text: &str) -> &'a mut Buffer {
        self.0.length(text.len());
        self.0.extend(text.as_bytes());
        self.0
    }

    fn variant(self, index: u32, variant: &str) -> &'a mut Buffer {
        self.0.push(VARIANT);
        self.0.extend(&index.to_le_bytes());
        Encoder(self.0).text(variant)
    }
}

impl<'a> Serializer for Encoder<'a> {
    type Ok = ();
    type Error = Failure;
    type SerializeSeq = Items<'a>;
    type SerializeTuple = Items<'a>;
    type SerializeTupleStruct = Items<'a>;
    type SerializeTupleVariant = Items<'a>;
    type SerializeMap = Entries<'a>;
    type SerializeStruct = Items<'a>;
    type SerializeStructVariant = Items<'a>;

    numbers! {
        serialize_i8 i8: I8, serialize_i16 i16: I16, serialize_i32 i32: I32, serialize_i64 i64: I64,
        serialize_i128 i128: I128, serialize_u8 u8: U8, serialize_u16 u16: U16, serialize_u32 u32: U32,
        serialize_u64 u64: U64, serialize_u128 u128: U128, serialize_f32 f32: F32, serialize_f64 f64: F64
    }

    fn serialize_bool(self, value: bool) -> Result<(), Failure> {
        self.0.push(if value { TRUE } else { FALSE });
        Ok(())
    }

    fn serialize_char(self, value: char) -> Result<(), Failure> {
        self.0.push(CHAR);
        self.0.extend(&u32::from(value).to_le_bytes());
        Ok(())
    }

    #[inline]
    fn serialize_str(self, value: &str) -> Result<(), Failure> {
        self.0.push(TEXT);
        self.text(value);
        Ok(())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Failure> {
        self.0.push(BYTES);
        self.0.length(value.len());
        self.0.extend(value);
        Ok(())
    }

    fn serialize_none(self) -> Result<(), Failure> {
        self.0.push(NONE);
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Failure> {
        self.0.push(SOME);
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Failure> {
        self.0.push(UNIT);
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Failure> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        index: u32,
        variant: &'static str,
    ) -> Result<(), Failure> {
        self.variant(index, variant).push(UNIT);
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Failure> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Failure> {
        value.serialize(Encoder(self.variant(index, variant)))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Items<'a>, Failure> {
        self.0.push(SEQUENCE);
        Ok(Items(self.0))
    }

    fn serialize_tuple(self, _: usize) -> Result<Items<'a>, Failure> {
        self.0.push(TUPLE);
        Ok(Items(self.0))
    }

    fn serialize_tuple_struct(self, _: &'static str, len: usize) -> Result<Items<'a>, Failure> {
        self.serialize_tuple(len)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Items<'a>, Failure> {
        Encoder(self.variant(index, variant)).serialize_tuple(len)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Entries<'a>, Failure> {
        self.0.push(MAP);
        let begin = self.0.len;
        Ok(Entries { buffer: self.0, begin, entries: Vec::new() })
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Items<'a>, Failure> {
        self.0.push(STRUCT);
        Ok(Items(self.0))
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Items<'a>, Failure> {
        Encoder(self.variant(index, variant)).serialize_struct(name, len)
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

/// What is kept in its order.
struct Items<'a>(&'a mut Buffer);

impl Items<'_> {
    #[inline]
    fn add<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Failure> {
        value.serialize(Encoder(self.0))
    }

    /// A field that is left out is told from one that is not by the names of the others.
    fn field<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), Failure> {
        self.0.push(TEXT);
        Encoder(self.0).text(name);
        self.add(value)
    }

    fn close(self) -> Result<(), Failure> {
        self.0.push(END);
        Ok(())
    }
}

macro_rules! items {
    ($($of:ident $add:ident),*) => {$(
        impl $of for Items<'_> {
            type Ok = ();
            type Error = Failure;

            fn $add<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Failure> {
                self.add(value)
            }

            fn end(self) -> Result<(), Failure> {
                self.close()
            }
        }
    )*};
}

items!(
    SerializeSeq serialize_element,
    SerializeTuple serialize_element,
    SerializeTupleStruct serialize_field,
    SerializeTupleVariant serialize_field
);

macro_rules! fields {
    ($($of:ident),*) => {$(
        impl $of for Items<'_> {
            type Ok = ();
            type Error = Failure;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Failure> {
                self.field(name, value)
            }

            fn end(self) -> Result<(), Failure> {
                self.close()
            }
        }
    )*};
}

fields!(SerializeStruct, SerializeStructVariant);

/// What is sorted at its end.
struct Entries<'a> {
    buffer: &'a mut Buffer,
    begin: usize,
    /// Where each begins.
    entries: Vec<usize>,
}

impl SerializeMap for Entries<'_> {
    type Ok = ();
    type Error = Failure;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Failure> {
        self.entries.push(self.buffer.len);
        key.serialize(Encoder(self.buffer))
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Failure> {
        value.serialize(Encoder(self.buffer))
    }

    fn end(self) -> Result<(), Failure> {
        let all = self.buffer.bytes();
        let ends = self.entries.iter().skip(1).copied().chain([all.len()]);
        let mut sorted: Vec<&[u8]> =
            self.entries.iter().zip(ends).map(|(begin, end)| &all[*begin..end]).collect();
        if !sorted.is_sorted() {
            sorted.sort_unstable();
            let sorted = sorted.concat();
            self.buffer.truncate(self.begin);
            self.buffer.extend(&sorted);
        }
        self.buffer.push(END);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap, HashSet};

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
