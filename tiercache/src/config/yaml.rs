//! The one module that knows the YAML library: text in, [`Node`]s out.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Location, Spanned};

use super::error::{Position, Problem};
use super::node::{Key, Kind, Node};

const MAX_DEPTH: usize = 32;
const MAX_NODES: usize = 100_000;

/// Parses one document. Syntax and duplicate keys are problems; an empty text is a null.
pub(crate) fn parse(text: &str) -> Result<Node, Problem> {
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::Error,
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
        },
    };
    let document: Spanned<Raw> =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| problem(&error))?;
    Ok(node(document, text, String::new()))
}

fn problem(error: &serde_saphyr::Error) -> Problem {
    let at = error.location().map(position).unwrap_or_default();
    // The library adds the place and a drawing of the lines; both are said elsewhere, or show secrets.
    match error.without_snippet() {
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
            Problem::new(at, key.clone(), "the key is given twice").allowed("one of the two")
        }
        serde_saphyr::Error::MultipleDocuments { .. } => {
            Problem::new(at, "", "a second document begins").allowed("one document")
        }
        other => {
            let words = other.to_string();
            let words = words.lines().next().unwrap_or_default();
            Problem::new(at, "", format!("not YAML: {}", words.split(" at line ").next().unwrap_or(words)))
        }
    }
}

fn position(location: Location) -> Position {
    let short = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    Position { line: short(location.line()), column: short(location.column()) }
}

/// Puts positions and paths in.
fn node(raw: Spanned<Raw>, text: &str, path: String) -> Node {
    let at = position(raw.referenced);
    let kind = match raw.value {
        Raw::Null => Kind::Null,
        Raw::Bool(value) => Kind::Bool(value),
        Raw::Number(value) => Kind::Number(source(raw.defined, text).unwrap_or(value)),
        Raw::Text(value) => Kind::Text(value),
        Raw::List(items) => Kind::List(
            items
                .into_iter()
                .enumerate()
                .map(|(index, item)| node(item, text, format!("{path}[{index}]")))
                .collect(),
        ),
        Raw::Map(entries) => Kind::Map(
            entries
                .into_iter()
                .map(|(key, value)| {
                    let name = key.value;
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    (Key { at: position(key.referenced), name }, node(value, text, path))
                })
                .collect(),
        ),
    };
    Node { at, path, kind }
}

/// A number as it was written, so that `007` asked for as text is not `7`.
fn source(location: Location, text: &str) -> Option<String> {
    let start = usize::try_from(location.span().byte_offset()?).ok()?;
    let length = usize::try_from(location.span().byte_len()?).ok()?;
    text.get(start..start.checked_add(length)?)
        .map(|written| written.trim().to_owned())
        .filter(|written| !written.is_empty())
}

enum Raw {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map: Vec<(Spanned<String>, Spanned<Raw>)> = Vec::new();
        while let Some(key) = entries.next_key::<Spanned<String>>()? {
            if map.iter().any(|(known, _)| known.value == key.value) {
                return Err(A::Error::custom(format!("duplicate key `{}`", key.value)));
            }
            map.push((key, entries.next_value()?));
        }
        Ok(Raw::Map(map))
    }
}
