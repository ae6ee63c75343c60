//! Reading a [`Node`] into a backend's own serde configuration, with places in the errors.
//!
//! Backends declare plain types and the file is written in units: where a number is wanted `2GB` will do, and a
//! [`Duration`](std::time::Duration) is written `90s`.

use std::fmt;

use serde::de::value::{MapDeserializer, StrDeserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, Expected, IntoDeserializer,
    MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};

use super::error::Problem;
use super::node::{Key, Kind, Node};

/// Reads `node` as a `T`.
pub(crate) fn read<T: DeserializeOwned>(node: &Node) -> Result<T, Problem> {
    T::deserialize(node).map_err(|error| error.at(node).0)
}

/// A problem that may not know its place yet.
#[derive(Debug)]
pub(crate) struct Failure(Problem);

impl Failure {
    fn is_placed(&self) -> bool {
        !self.0.path.is_empty()
    }

    fn at(mut self, node: &Node) -> Self {
        if !self.is_placed() {
            self.0.at = node.at;
            self.0.path.clone_from(&node.path);
            if self.0.found.is_empty() {
                self.0.found = format!("found {}", node.describe());
            }
        }
        self
    }

    fn at_key(mut self, key: &Key, map: &Node) -> Self {
        if !self.is_placed() {
            self.0.at = key.at;
            self.0.path = format!("{}.{}", map.path, key.name);
        }
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Failure {}

impl serde::de::Error for Failure {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(Problem::new(Default::default(), "", message.to_string()))
    }

    // What was found may be a secret; the node at whose place the failure is put says what may be said.
    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self(Problem::new(Default::default(), "", "").allowed(expected.to_string()))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self(
            Problem::new(Default::default(), "", Problem::UNKNOWN_KEY).among(field, expected.iter().copied()),
        )
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let found = format!("unknown value `{variant}`");
        Self(Problem::new(Default::default(), "", found).among(variant, expected.iter().copied()))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(format!("the key `{field}` is missing"))
    }
}

impl Node {
    fn wrong(&self, expected: &dyn Expected) -> Failure {
        Failure(self.not(expected.to_string()))
    }

    fn number<'de, V: Visitor<'de>>(&self, visitor: V) -> Result<V::Value, Failure> {
        let (text, sized) = match &self.kind {
            Kind::Number(text) => (text, false),
            Kind::Text(text) | Kind::Expanded(text) => (text, true),
            _ => return Err(self.wrong(&visitor)),
        };
        let plain = text.replace('_', "");
        let visited = if let Ok(number) = plain.parse::<u64>() {
            visitor.visit_u64(number)
        } else if let Ok(number) = plain.parse::<i64>() {
            visitor.visit_i64(number)
        } else if sized && let Ok(bytes) = crate::units::parse_size(text) {
            visitor.visit_u64(bytes)
        } else if let Ok(number) = plain.parse::<f64>() {
            visitor.visit_f64(number)
        } else {
            return Err(self.wrong(&visitor));
        };
        visited.map_err(|error: Failure| error.at(self))
    }
}

macro_rules! numbers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
            self.number(visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for &Node {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match &self.kind {
            Kind::Null => visitor.visit_unit(),
            Kind::Bool(value) => visitor.visit_bool(*value),
            Kind::Number(_) => self.number(visitor),
            Kind::Text(text) | Kind::Expanded(text) => visitor.visit_str(text),
            Kind::List(_) => self.deserialize_seq(visitor),
            Kind::Map(_) => self.deserialize_map(visitor),
        }
        .map_err(|error: Failure| error.at(self))
    }

    numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match &self.kind {
            Kind::Bool(value) => visitor.visit_bool(*value),
            Kind::Expanded(text) if text == "true" || text == "false" => visitor.visit_bool(text == "true"),
            _ => Err(self.wrong(&"true or false")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        let text = self.text().map_err(Failure)?;
        visitor.visit_string(text).map_err(|error: Failure| error.at(self))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        if self.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        if self.is_null() { visitor.visit_unit() } else { Err(self.wrong(&visitor)) }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self).map_err(|error: Failure| error.at(self))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        let Kind::List(items) = &self.kind else { return Err(self.wrong(&visitor)) };
        visitor.visit_seq(Items(items.iter())).map_err(|error: Failure| error.at(self))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        let entries = self.entries().map_err(Failure)?;
        visitor
            .visit_map(Entries { map: self, rest: entries.iter(), value: None })
            .map_err(|error: Failure| error.at(self))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        if name == "Duration" && fields == ["secs", "nanos"] {
            let duration = self.duration().map_err(Failure)?;
            let parts = [("secs", duration.as_secs()), ("nanos", u64::from(duration.subsec_nanos()))];
            return visitor.visit_map(MapDeserializer::new(parts.into_iter()));
        }
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        match &self.kind {
            Kind::Map(entries) if entries.len() == 1 => {
                visitor.visit_enum(Variant { name: &entries[0].0.name, content: Some(&entries[0].1) })
            }
            Kind::Map(_) | Kind::List(_) | Kind::Null => {
                Err(self.wrong(&"one word, or one key with its value"))
            }
            _ => visitor.visit_enum(Variant { name: &self.text().map_err(Failure)?, content: None }),
        }
        .map_err(|error: Failure| error.at(self))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_unit()
    }
}

struct Items<'a>(std::slice::Iter<'a, Node>);

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Failure;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Failure> {
        self.0.next().map(|item| seed.deserialize(item).map_err(|error| error.at(item))).transpose()
    }
}

struct Entries<'a> {
    map: &'a Node,
    rest: std::slice::Iter<'a, (Key, Node)>,
    value: Option<&'a Node>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Failure> {
        let Some((key, value)) = self.rest.next() else { return Ok(None) };
        self.value = Some(value);
        let name: StrDeserializer<'_, Failure> = key.name.as_str().into_deserializer();
        seed.deserialize(name).map(Some).map_err(|error| error.at_key(key, self.map))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Failure> {
        let value = self.value.take().ok_or_else(|| Failure::custom("a value without a key"))?;
        seed.deserialize(value).map_err(|error| error.at(value))
    }
}

struct Variant<'a> {
    name: &'a str,
    content: Option<&'a Node>,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = Failure;
    type Variant = Content<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Content<'a>), Failure> {
        let name: StrDeserializer<'_, Failure> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, Content(self.content)))
    }
}

struct Content<'a>(Option<&'a Node>);

impl<'a> Content<'a> {
    fn given(self) -> Result<&'a Node, Failure> {
        self.0.ok_or_else(|| Failure::custom("this word needs a value"))
    }
}

impl<'de> VariantAccess<'de> for Content<'_> {
    type Error = Failure;

    fn unit_variant(self) -> Result<(), Failure> {
        match self.0 {
            Some(node) if !node.is_null() => Err(node.wrong(&"nothing")),
            _ => Ok(()),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Failure> {
        let node = self.given()?;
        seed.deserialize(node).map_err(|error| error.at(node))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Failure> {
        self.given()?.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.given()?.deserialize_map(visitor)
    }
}
