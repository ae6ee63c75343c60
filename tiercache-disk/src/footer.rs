//! The footer of a sealed segment: its rows in order, each told by what differs from the row before.
//!
//! ```text
//! count of namespaces 2, each: length 1, name
//! runs: what the rows of the run leave out 1, count 1, then for each row
//!   hash 5, [length], [generation, difference], [deadline, difference], [namespace], [gap before it]
//! ```
//! Numbers in brackets are varints (LEB128, differences zigzag) and there only when the run does not leave them out.
//! Rows of equal entries thus take 5 bytes each.

use tiercache_core::{Generation, Timestamp};

use crate::index::Names;
use crate::segment::{Kind, Row, SEGMENT_HEADER, read};

const KIND: u8 = 0b11;
const SAME_LEN: u8 = 1 << 2;
const NEXT_GENERATION: u8 = 1 << 3;
const SAME_DEADLINE: u8 = 1 << 4;
const SAME_NAMESPACE: u8 = 1 << 5;
const NO_GAP: u8 = 1 << 6;

const NEVER: u64 = (1 << 48) - 1;

/// What a row is told against.
#[derive(Clone, Copy, Debug)]
struct Before {
    end: u32,
    len: u32,
    generation: u64,
    deadline: u64,
    namespace: u64,
}

const FIRST: Before =
    Before { end: SEGMENT_HEADER as u32, len: 0, generation: 0, deadline: NEVER, namespace: 0 };

/// A footer that grows with its segment.
#[derive(Debug)]
pub(crate) struct Footer {
    names: Vec<u8>,
    ids: Vec<u16>,
    runs: Vec<u8>,
    run: Option<usize>,
    before: Before,
}

/// The most bytes one more row adds, its namespace's name included.
pub(crate) const MAX_ROW: usize = 2 + 5 + 5 + 10 + 10 + 3 + 5 + 256;

impl Footer {
    pub(crate) fn new() -> Self {
        Self { names: Vec::new(), ids: Vec::new(), runs: Vec::new(), run: None, before: FIRST }
    }

    pub(crate) fn len(&self) -> usize {
        2 + self.names.len() + self.runs.len()
    }

    pub(crate) fn push(&mut self, row: &Row, names: &Names) {
        let before = self.before;
        let deadline = row.deadline.as_millis().min(NEVER);
        let namespace = self.local(row.namespace, names);
        let gap = row.offset - before.end;
        let kind = match row.kind {
            Kind::Entry => 0,
            Kind::Removal => 1,
            Kind::Fence => 2,
        };
        let flag = |holds: bool, flag: u8| if holds { flag } else { 0 };
        let form = kind
            | flag(row.len == before.len, SAME_LEN)
            | flag(row.generation.get() == before.generation.wrapping_add(1), NEXT_GENERATION)
            | flag(deadline == before.deadline, SAME_DEADLINE)
            | flag(namespace == before.namespace, SAME_NAMESPACE)
            | flag(gap == 0, NO_GAP);
        match self.run.filter(|&run| self.runs[run] == form && self.runs[run + 1] < u8::MAX) {
            Some(run) => self.runs[run + 1] += 1,
            None => {
                self.run = Some(self.runs.len());
                self.runs.extend_from_slice(&[form, 1]);
            }
        }
        let runs = &mut self.runs;
        runs.extend_from_slice(&row.hash.to_le_bytes()[..5]);
        if form & SAME_LEN == 0 {
            varint(runs, row.len.into());
        }
        if form & NEXT_GENERATION == 0 {
            difference(runs, row.generation.get(), before.generation);
        }
        if form & SAME_DEADLINE == 0 {
            difference(runs, deadline, before.deadline);
        }
        if form & SAME_NAMESPACE == 0 {
            varint(runs, namespace);
        }
        if form & NO_GAP == 0 {
            varint(runs, gap.into());
        }
        self.before = Before {
            end: row.offset + row.len,
            len: row.len,
            generation: row.generation.get(),
            deadline,
            namespace,
        };
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len());
        out.extend_from_slice(&(self.ids.len() as u16).to_le_bytes());
        out.extend_from_slice(&self.names);
        out.extend_from_slice(&self.runs);
        out
    }

    /// The number of a namespace within this footer.
    fn local(&mut self, id: u16, names: &Names) -> u64 {
        if let Some(&last) = self.ids.get(self.before.namespace as usize)
            && last == id
        {
            return self.before.namespace;
        }
        let at = self.ids.iter().position(|&known| known == id).unwrap_or_else(|| {
            self.ids.push(id);
            let name = names.name(id);
            self.names.push(name.len() as u8);
            self.names.extend_from_slice(name.as_bytes());
            self.ids.len() - 1
        });
        at as u64
    }
}

/// The rows of a footer whose checksum holds; `None` when it is not one all the same.
pub(crate) fn rows(footer: &[u8], names: &Names) -> Option<Vec<Row>> {
    let mut input = Input { bytes: footer };
    let count = read(input.take(2)?);
    let mut ids = Vec::new();
    for _ in 0..count {
        let len = input.take(1)?[0];
        ids.push(names.id(std::str::from_utf8(input.take(len.into())?).ok()?));
    }
    let mut rows = Vec::with_capacity(input.bytes.len() / 6);
    let mut before = FIRST;
    while !input.bytes.is_empty() {
        let [form, count] = *input.take(2)? else { return None };
        for _ in 0..count {
            let hash = read(input.take(5)?);
            let len = if form & SAME_LEN != 0 { before.len.into() } else { input.varint()? };
            let generation = if form & NEXT_GENERATION != 0 {
                before.generation.wrapping_add(1)
            } else {
                input.difference(before.generation)?
            };
            let deadline = if form & SAME_DEADLINE != 0 {
                before.deadline
            } else {
                input.difference(before.deadline)?
            };
            let namespace = if form & SAME_NAMESPACE != 0 { before.namespace } else { input.varint()? };
            let gap = if form & NO_GAP != 0 { 0 } else { input.varint()? };
            let offset = u32::try_from(u64::from(before.end).checked_add(gap)?).ok()?;
            let len = u32::try_from(len).ok()?;
            let end = offset.checked_add(len)?;
            let kind = match form & KIND {
                0 => Kind::Entry,
                1 => Kind::Removal,
                2 => Kind::Fence,
                _ => return None,
            };
            rows.push(Row {
                kind,
                hash,
                offset,
                len,
                generation: Generation::new(generation),
                deadline: if deadline >= NEVER { Timestamp::NEVER } else { Timestamp::from_millis(deadline) },
                namespace: *ids.get(usize::try_from(namespace).ok()?)?,
            });
            before = Before { end, len, generation, deadline, namespace };
        }
    }
    Some(rows)
}

struct Input<'a> {
    bytes: &'a [u8],
}

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(len)?;
        self.bytes = rest;
        Some(head)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn difference(&mut self, before: u64) -> Option<u64> {
        let zigzag = self.varint()?;
        Some(before.wrapping_add((zigzag >> 1) ^ (zigzag & 1).wrapping_neg()))
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn difference(out: &mut Vec<u8>, value: u64, before: u64) {
    let by = value.wrapping_sub(before) as i64;
    varint(out, ((by << 1) ^ (by >> 63)) as u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: u32) -> Row {
        Row {
            kind: Kind::Entry,
            hash: u64::from(n) * 0x9E37_79B9 % (1 << 40),
            offset: SEGMENT_HEADER as u32 + n * 300,
            len: 300,
            generation: Generation::new(u64::from(n) + 1),
            deadline: Timestamp::NEVER,
            namespace: 0,
        }
    }

    #[test]
    fn equal_entries_take_little_more_than_their_hash() {
        let names = Names::default();
        let mut footer = Footer::new();
        names.id("");
        (0..10_000).for_each(|n| footer.push(&row(n), &names));
        assert!(footer.len() < 10_000 * 51 / 10, "{}", footer.len());
        assert_eq!(footer.len(), footer.encode().len());
        assert_eq!(rows(&footer.encode(), &names).unwrap(), (0..10_000).map(row).collect::<Vec<_>>());
    }

    #[test]
    fn rows_of_every_kind_come_back() {
        let names = Names::default();
        let mut footer = Footer::new();
        let mut at = SEGMENT_HEADER as u32;
        let expected: Vec<Row> = (0..500u32)
            .map(|n| {
                let row = Row {
                    kind: [Kind::Entry, Kind::Removal, Kind::Fence][n as usize % 3],
                    hash: u64::from(n),
                    offset: at + n % 7,
                    len: 20 + n % 11 * 1000,
                    generation: Generation::new(u64::from(n * n % 101)),
                    deadline: if n % 2 == 0 { Timestamp::NEVER } else { Timestamp::from_millis(n.into()) },
                    namespace: names.id(&format!("space{}", n % 5)),
                };
                at = row.offset + row.len;
                footer.push(&row, &names);
                row
            })
            .collect();
        assert_eq!(rows(&footer.encode(), &names).unwrap(), expected);
        let bytes = footer.encode();
        for end in 0..bytes.len() {
            // Cut anywhere it may be a shorter footer or none, but never a panic.
            let _ = rows(&bytes[..end], &names);
        }
    }
}
