//! The stretch of keys, in their order, in which a page can lie.

use std::ops::Bound;

use tiercache_core::Key;
use tiercache_core::tracking::Query;

/// Every key a query can still find from some point on. What is within need not match; what is outside does not.
#[derive(Debug)]
pub(crate) struct Span<'q> {
    /// The namespace, if it is one alone.
    pub(crate) namespace: Option<&'q str>,
    /// What every key begins with.
    pub(crate) prefix: &'q [u8],
    /// Where it begins.
    pub(crate) from: Bound<Key>,
}

impl<'q> Span<'q> {
    /// Where the page behind `after` lies; `None` when there can be none.
    pub(crate) fn of(query: &'q Query, after: Option<&Key>) -> Option<Self> {
        let namespace = query.namespace.as_deref();
        let prefix = longer(&query.prefix, query.glob.as_deref().map_or(&[], literal_head))?;
        let first = match namespace {
            // A key has at least one byte: this one is the first of all.
            Some(namespace) => Some(Key::new(namespace, if prefix.is_empty() { &[0] } else { prefix }).ok()?),
            None => None,
        };
        let from = match (first, after) {
            (Some(first), Some(after)) if *after < first => Bound::Included(first),
            (_, Some(after)) => Bound::Excluded(after.clone()),
            (Some(first), None) => Bound::Included(first),
            (None, None) => Bound::Unbounded,
        };
        let beyond = after.zip(namespace).is_some_and(|(after, namespace)| after.namespace() > namespace);
        (!beyond).then_some(Self { namespace, prefix, from })
    }

    /// Whether a key behind the beginning may be followed by others of the span.
    pub(crate) fn reaches(&self, key: &Key) -> bool {
        self.namespace.is_none_or(|namespace| {
            key.namespace() == namespace
                && (key.bytes().starts_with(self.prefix) || key.bytes() < self.prefix)
        })
    }
}

/// The longer of two prefixes, if what begins with it begins with the other, too.
fn longer<'a>(one: &'a [u8], other: &'a [u8]) -> Option<&'a [u8]> {
    match one.len() >= other.len() {
        true => one.starts_with(other).then_some(one),
        false => other.starts_with(one).then_some(other),
    }
}

/// What everything that matches `glob` begins with.
fn literal_head(glob: &str) -> &[u8] {
    let glob = glob.as_bytes();
    &glob[..glob.iter().position(|byte| b"*?[\\".contains(byte)).unwrap_or(glob.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(namespace: &str, bytes: &str) -> Key {
        Key::new(namespace, bytes.as_bytes()).unwrap()
    }

    fn from(query: &Query, after: Option<&Key>) -> Option<Bound<Key>> {
        Span::of(query, after).map(|span| span.from)
    }

    #[test]
    fn a_page_begins_at_the_prefix_or_behind_the_page_before() {
        let query = Query { namespace: Some("n".into()), prefix: b"p".to_vec(), ..Query::all() };
        let first = Bound::Included(key("n", "p"));
        assert_eq!(from(&query, None), Some(first.clone()));
        assert_eq!(from(&query, Some(&key("n", "a"))), Some(first.clone()));
        assert_eq!(from(&query, Some(&key("m", "z"))), Some(first));
        assert_eq!(from(&query, Some(&key("n", "pa"))), Some(Bound::Excluded(key("n", "pa"))));
        assert_eq!(from(&query, Some(&key("o", "a"))), None);
        assert_eq!(from(&Query::all(), None), Some(Bound::Unbounded));
    }

    #[test]
    fn the_literal_head_of_a_glob_is_a_prefix() {
        let globbed = |prefix: &str, glob: &str| Query {
            prefix: prefix.into(),
            glob: Some(glob.into()),
            ..Query::all()
        };
        for (prefix, glob, expected) in [
            ("", "img:*", Some("img:")),
            ("im", "img:?", Some("img:")),
            ("img:7", "img:*", Some("img:7")),
            ("doc", "img:*", None),
            ("x", "[a]", Some("x")),
            ("", r"a\*", Some("a")),
        ] {
            let query = globbed(prefix, glob);
            let span = Span::of(&query, None);
            assert_eq!(span.map(|span| span.prefix), expected.map(str::as_bytes), "{prefix} {glob}");
        }
    }

    #[test]
    fn a_prefix_longer_than_any_key_finds_nothing() {
        let query = Query { namespace: Some(String::new()), prefix: vec![b'a'; 20_000], ..Query::all() };
        assert!(Span::of(&query, None).is_none());
    }
}
