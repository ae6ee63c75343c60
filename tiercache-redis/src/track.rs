//! How tracking is written down: members of sorted sets that lie in the order of keys, tags, events as the
//! script takes them.

use redis::RedisResult;
use tiercache_core::tier::Scope;
use tiercache_core::tracking::{Event, Query, Record, Totals, What};
use tiercache_core::{Generation, Key, Level, Tags, Timestamp};

use crate::ledger::typed;

/// Ends the namespace in a member; a zero byte of its own is followed by [`QUOTED`], which is higher.
const END: [u8; 2] = [0, 1];
const QUOTED: u8 = 0xff;

/// The fields of [`Totals`], in the order scripts have them.
pub(crate) const TOTALS: [&str; 6] = ["hot", "cold", "dry", "misses", "sets", "deletes"];

/// What stands for a key in sorted sets: byte by byte in the order of namespaces and keys.
pub(crate) fn member(key: &Key) -> Vec<u8> {
    let mut member = namespace_head(key.namespace());
    member.extend(key.bytes());
    member
}

/// What the members of a namespace begin with.
pub(crate) fn namespace_head(namespace: &str) -> Vec<u8> {
    let mut head = Vec::with_capacity(namespace.len() + 64);
    for &byte in namespace.as_bytes() {
        head.push(byte);
        if byte == 0 {
            head.push(QUOTED);
        }
    }
    head.extend(END);
    head
}

/// How much of a member is its namespace.
pub(crate) fn head_len(member: &[u8]) -> Option<usize> {
    member.windows(2).position(|pair| pair == END).map(|at| at + END.len())
}

fn key_of(member: &[u8]) -> Option<Key> {
    let (head, key) = member.split_at(head_len(member)?);
    let head = &head[..head.len() - END.len()];
    let mut namespace = Vec::with_capacity(head.len());
    let mut bytes = head.iter();
    while let Some(&byte) = bytes.next() {
        namespace.push(byte);
        if byte == 0 && bytes.next() != Some(&QUOTED) {
            return None;
        }
    }
    Key::new(std::str::from_utf8(&namespace).ok()?, key).ok()
}

/// The first text behind all that begin with `prefix`, if there is one.
pub(crate) fn behind(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// A stretch of members as the server takes its ends.
pub(crate) struct Stretch {
    pub(crate) from: Vec<u8>,
    pub(crate) to: Vec<u8>,
}

impl Stretch {
    /// From a member on, to before another, or to the end.
    pub(crate) fn between(from: &[u8], before: Option<&[u8]>) -> Self {
        Self {
            from: [b"[", from].concat(),
            to: before.map_or_else(|| b"+".to_vec(), |before| [b"(", before].concat()),
        }
    }

    /// All members that begin so.
    fn of(head: &[u8]) -> Self {
        Self::between(head, behind(head).as_deref())
    }
}

pub(crate) fn level_index(level: Level) -> Vec<u8> {
    format!(":l{}", level.index()).into_bytes()
}

pub(crate) fn tag_index(name: &str, value: &str) -> Vec<u8> {
    [b":t", tag(name, value).as_slice()].concat()
}

fn tag(name: &str, value: &str) -> Vec<u8> {
    [sized(name.as_bytes()).as_slice(), value.as_bytes()].concat()
}

/// The bytes, their length and a colon before them.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let mut sized = format!("{}:", bytes.len()).into_bytes();
    sized.extend(bytes);
    sized
}

fn unsized_one<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let colon = rest.iter().position(|&byte| byte == b':')?;
    let length = std::str::from_utf8(&rest[..colon]).ok()?.parse().ok()?;
    let (bytes, behind) = rest[colon + 1..].split_at_checked(length)?;
    *rest = behind;
    Some(bytes)
}

fn packed(tags: &Tags) -> Vec<u8> {
    tags.iter().flat_map(|(name, value)| sized(&tag(name, value))).collect()
}

fn tags_of(packed: &[u8]) -> Option<Tags> {
    let mut rest = packed;
    let mut tags = Tags::new();
    while !rest.is_empty() {
        let mut value = unsized_one(&mut rest)?;
        let name = unsized_one(&mut value)?.to_vec();
        tags.insert(String::from_utf8(name).ok()?, String::from_utf8(value.to_vec()).ok()?);
    }
    Some(tags)
}

/// Appends an event as the script takes it.
pub(crate) fn write(event: &Event, args: &mut Vec<Vec<u8>>) {
    let text = |number: u64| number.to_string().into_bytes();
    let mut push = |parts: &[&[u8]]| args.extend(parts.iter().map(|part| part.to_vec()));
    match &event.what {
        What::Stored(record) => push(&[
            b"stored",
            &member(&record.key),
            &text(record.generation.get()),
            &text(record.level.index() as u64),
            &text(record.size),
            &text(record.created.as_millis()),
            &text(record.used.as_millis()),
            &text(record.deadline.as_millis()),
            &text(countable(record.hits)),
            &packed(&record.tags),
        ]),
        What::Moved { key, generation, to: Some(level) } => {
            push(&[b"moved", &member(key), &text(generation.get()), &text(level.index() as u64)]);
        }
        What::Moved { key, generation, to: None } | What::Removed { key, generation } => {
            push(&[b"removed", &member(key), &text(generation.get())]);
        }
        What::Used { key, hits } => {
            push(&[b"used", &member(key), &text(countable(*hits)), &text(event.at.as_millis())]);
        }
        What::Invalidated { scope, generation } => {
            let (index, stretch) = match scope {
                Scope::All => (b":k".to_vec(), Stretch::between(b"", None)),
                Scope::Namespace(name) => (b":k".to_vec(), Stretch::of(&namespace_head(name))),
                Scope::Tag { namespace, name, value } => {
                    (tag_index(name, value), Stretch::of(&namespace_head(namespace)))
                }
            };
            push(&[b"dropped", &index, &stretch.from, &stretch.to, &text(generation.get())]);
        }
        What::Flushed { level, namespace, generation } => {
            let stretch = match namespace {
                None => Stretch::between(b"", None),
                Some(name) => Stretch::of(&namespace_head(name)),
            };
            push(&[b"dropped", &level_index(*level), &stretch.from, &stretch.to, &text(generation.get())]);
        }
        What::Counted(more) => {
            let counts = [more.hits[0], more.hits[1], more.hits[2], more.misses, more.sets, more.deletes];
            push(&[b"counted"]);
            args.extend(counts.map(|count| text(countable(count))));
        }
    }
}

/// The server counts in signed numbers: what is beyond stays at the top.
fn countable(number: u64) -> u64 {
    number.min(i64::MAX as u64)
}

/// One record as the script answers it, and its member; `None` for one that makes no sense, or is not there.
pub(crate) type Row = (Vec<u8>, Vec<Option<Vec<u8>>>);

/// The rows of an answer.
pub(crate) fn rows(answer: redis::Value) -> RedisResult<Vec<Row>> {
    let rows: Vec<Vec<Option<Vec<u8>>>> = typed(answer)?;
    Ok(rows
        .into_iter()
        .map(|mut row| {
            (row.first_mut().and_then(Option::take).unwrap_or_default(), row.split_off(row.len().min(1)))
        })
        .collect())
}

pub(crate) fn record_of(member: &[u8], fields: &[Option<Vec<u8>>]) -> Option<Record> {
    let [generation, level, size, created, used, deadline, hits, tags] = fields else { return None };
    let number = |field: &Option<Vec<u8>>| std::str::from_utf8(field.as_ref()?).ok()?.parse::<u64>().ok();
    let time = |field| number(field).map(Timestamp::from_millis);
    Some(Record {
        key: key_of(member)?,
        generation: Generation::new(number(generation)?),
        level: *Level::ALL.get(usize::try_from(number(level)?).ok()?)?,
        size: number(size)?,
        created: time(created)?,
        used: time(used)?,
        deadline: time(deadline)?,
        hits: number(hits)?,
        tags: tags_of(tags.as_ref()?)?,
    })
}

pub(crate) fn totals_of(counts: [Option<u64>; 6]) -> Totals {
    let [hot, cold, dry, misses, sets, deletes] = counts.map(Option::unwrap_or_default);
    Totals { hits: [hot, cold, dry], misses, sets, deletes }
}

/// What every key a query finds begins with; `None` when it finds none.
pub(crate) fn common_prefix(query: &Query) -> Option<&[u8]> {
    let glob = query.glob.as_deref().map_or(&b""[..], |glob| {
        let glob = glob.as_bytes();
        &glob[..glob.iter().position(|byte| b"*?[\\".contains(byte)).unwrap_or(glob.len())]
    });
    let (short, long) = if query.prefix.len() < glob.len() {
        (query.prefix.as_slice(), glob)
    } else {
        (glob, query.prefix.as_slice())
    };
    long.starts_with(short).then_some(long)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(namespace: &str, bytes: &[u8]) -> Key {
        Key::new(namespace, bytes).unwrap()
    }

    #[test]
    fn members_lie_in_the_order_of_keys_and_are_keys_again() {
        let mut keys: Vec<Key> = ["", "a", "a\0", "a\0\u{1}", "aa", "b", "\0", "é"]
            .into_iter()
            .flat_map(|namespace| {
                [&b"\0"[..], b"\x01", b"k", b"\xff", b"\xff\0k", b"\0\xffk"]
                    .map(|bytes| key(namespace, bytes))
            })
            .collect();
        keys.sort();
        let members: Vec<_> = keys.iter().map(member).collect();
        assert!(members.is_sorted_by(|a, b| a < b));
        for (key, member) in keys.iter().zip(&members) {
            assert_eq!(key_of(member).as_ref(), Some(key));
            assert!(member.starts_with(&namespace_head(key.namespace())));
        }
        for odd in [&b""[..], b"a", b"a\0", b"a\0\x02\0\x01k", b"\xff\0\x01k", b"a\0\x01"] {
            assert_eq!(key_of(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn tags_come_back_as_they_were() {
        let tags: Tags = [("", ""), ("a", "1:b"), ("1:a", ":"), ("größe", "\0")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        assert_eq!(tags_of(&packed(&tags)), Some(tags));
        for odd in [&b"x"[..], b"5:a", b"2:1:", b"3:1:\xff"] {
            assert_eq!(tags_of(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn the_prefix_of_a_query_is_the_longer_of_both() {
        for (prefix, glob, expected) in [
            ("", Some("img:*"), Some("img:")),
            ("img:7", Some("img:*"), Some("img:7")),
            ("doc", Some("img:*"), None),
            ("x", None, Some("x")),
        ] {
            let query = Query { prefix: prefix.into(), glob: glob.map(str::to_owned), ..Query::all() };
            assert_eq!(common_prefix(&query), expected.map(str::as_bytes), "{prefix} {glob:?}");
        }
    }
}
