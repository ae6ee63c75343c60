//! The encoding of an argument.

use std::fmt::Display;

use serde::Serialize;
use serde::ser::{
    SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

use super::key::Buffer;

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

pub(super) struct Encoder<'a>(pub(super) &'a mut Buffer);

/// Why an argument does not serialise.
#[derive(Debug)]
pub(super) struct Failure(pub(super) String);

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
pub(super) struct Items<'a>(&'a mut Buffer);

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
pub(super) struct Entries<'a> {
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
