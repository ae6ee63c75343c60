//! A parsed file: values with the place and the key path each stands at.

use std::fmt;
use std::time::Duration;

use super::error::{Position, Problem};
use super::secret::is_secret;
use crate::units::{self, DURATION_FORM, SIZE_FORM};

/// A value and where it stands.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) at: Position,
    pub(crate) path: String,
    pub(crate) kind: Kind,
}

/// What a value is.
#[derive(Clone)]
pub(crate) enum Kind {
    Null,
    Bool(bool),
    /// As it was written.
    Number(String),
    Text(String),
    /// Text that came out of `${…}`: a number to whom wants one, text to others.
    Expanded(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key and where it stands.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) at: Position,
    pub(crate) name: String,
}

impl Node {
    /// An empty mapping, for a section that is left out.
    pub(crate) fn absent(path: &str) -> Self {
        Self { at: Position::default(), path: path.to_owned(), kind: Kind::Map(Vec::new()) }
    }

    pub(crate) fn problem(&self, found: impl Into<String>) -> Problem {
        Problem::new(self.at, self.path.clone(), found)
    }

    /// The problem that something else than `wanted` stands here.
    pub(crate) fn not(&self, wanted: impl Into<String>) -> Problem {
        self.problem(format!("found {}", self.describe())).allowed(wanted)
    }

    /// What stands here, without a secret.
    pub(crate) fn describe(&self) -> String {
        match &self.kind {
            Kind::Null => "null".to_owned(),
            Kind::List(_) => "a list".to_owned(),
            Kind::Map(_) => "a mapping".to_owned(),
            _ if is_secret(self.name()) => "a value that is not shown".to_owned(),
            Kind::Bool(value) => format!("`{value}`"),
            Kind::Number(text) => format!("the number `{text}`"),
            Kind::Text(text) | Kind::Expanded(text) => format!("the text {text:?}"),
        }
    }

    /// The last part of the path.
    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or_default()
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(self.kind, Kind::Null)
    }

    pub(crate) fn entries(&self) -> Result<&[(Key, Node)], Problem> {
        match &self.kind {
            Kind::Map(entries) => Ok(entries),
            Kind::Null => Err(self.problem("the section is empty").allowed("its keys, or to leave it out")),
            _ => Err(self.not("a mapping")),
        }
    }

    pub(crate) fn items(&self) -> Result<&[Self], Problem> {
        match &self.kind {
            Kind::List(items) => Ok(items),
            _ => Err(self.not("a list")),
        }
    }

    /// The text of a scalar; a number or a truth value is the text it was written as.
    pub(crate) fn text(&self) -> Result<String, Problem> {
        match &self.kind {
            Kind::Text(text) | Kind::Expanded(text) | Kind::Number(text) => Ok(text.clone()),
            Kind::Bool(value) => Ok(value.to_string()),
            _ => Err(self.not("text")),
        }
    }

    pub(crate) fn float(&self) -> Result<f64, Problem> {
        match &self.kind {
            Kind::Number(text) | Kind::Expanded(text) => {
                text.replace('_', "").parse().map_err(|_| self.not("a number"))
            }
            _ => Err(self.not("a number")),
        }
    }

    /// `4h`, `90s`.
    pub(crate) fn duration(&self) -> Result<Duration, Problem> {
        match &self.kind {
            Kind::Text(text) | Kind::Expanded(text) | Kind::Number(text) => {
                units::duration(text).map_err(|found| self.problem(found).allowed(DURATION_FORM))
            }
            _ => Err(self.not(DURATION_FORM)),
        }
    }

    /// A number of hours.
    pub(crate) fn hours(&self) -> Result<Duration, Problem> {
        let hours = self.float().map_err(|problem| problem.allowed("a number of hours above zero"))?;
        units::duration_of_hours(hours).map_err(|found| self.problem(found))
    }

    /// `2GB`, `512MiB`, a number of bytes.
    pub(crate) fn size(&self) -> Result<u64, Problem> {
        match &self.kind {
            Kind::Text(text) | Kind::Expanded(text) | Kind::Number(text) => {
                units::size(text).map_err(|found| self.problem(found).allowed(SIZE_FORM))
            }
            _ => Err(self.not(SIZE_FORM)),
        }
    }

    /// A number of GiB.
    pub(crate) fn gib(&self) -> Result<u64, Problem> {
        let gib = self.float().map_err(|problem| problem.allowed("a number of GiB above zero"))?;
        units::size_of_gib(gib).map_err(|found| self.problem(found))
    }

    /// One of some words.
    pub(crate) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, Problem> {
        let word = self.text()?;
        words.iter().find(|(name, _)| *name == word).map(|&(_, value)| value).ok_or_else(|| {
            self.problem(format!("unknown value `{word}`")).among(&word, words.iter().map(|&(name, _)| name))
        })
    }
}

/// Not even by accident does a dump show what may be a secret.
impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Map(entries) => f.debug_list().entries(entries.iter().map(|(_, value)| value)).finish(),
            Kind::List(items) => f.debug_list().entries(items).finish(),
            _ => f.write_str(&self.path),
        }
    }
}
