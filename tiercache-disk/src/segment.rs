//! The format of a segment file, version 1, little endian.
//!
//! ```text
//! header, 64 bytes
//!   0  7  "tcdisk1"             7  1  state: 0 open, 1 sealed
//!   8  8  seed of the directory 16  4  sequence number      20  4  capacity
//!  24  3  first bytes of its envelopes                      27  5  zero
//!  32  4  where the footer begins                           36  4  its length
//!  40  8  XXH3-64 of the footer                             48  8  when the header was written
//!  56  8  XXH3-64 of what stands before
//! records, one after the other
//!   entry    C7, the envelope without its first 3 bytes, its checksum XOR the salt; in a sealed one the note is
//!            hash 5, namespace
//!   removal  D3, hash 5, generation 6, XXH3-64 of these seeded with the salt
//!   fence    F5, length of the body 2, body, XXH3-64 likewise
//! footer, when sealed: what the records are, so that opening need not read them
//! ```
//!
//! The salt is made of the directory's seed and the segment's number. A file that is used again has a new number, so
//! nothing written before can be taken for a record, and a segment whose header is damaged can still be read.

use std::sync::Arc;

use tiercache_core::envelope::{self, HEADER_BYTES};
use tiercache_core::tier::Scope;
use tiercache_core::{Entry, Generation, KeyRef, Timestamp};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::index::Names;

pub(crate) const SEGMENT_HEADER: usize = 64;
/// Bytes an entry's record is shorter than its envelope.
pub(crate) const SAVED: usize = 2;
pub(crate) const REMOVAL_BYTES: usize = 20;
/// Hashes have 40 bits: 5 bytes in a footer and 4 in the index, where the shard says the rest.
pub(crate) const HASH_BITS: u32 = 40;
const HASH_BYTES: usize = HASH_BITS as usize / 8;

const MAGIC: &[u8; 7] = b"tcdisk1";
const ENTRY: u8 = 0xC7;
const REMOVAL: u8 = 0xD3;
const FENCE: u8 = 0xF5;
const CHECKSUM_AT: usize = HEADER_BYTES - 8;

/// Hashes a key with a seed; tests inject bad ones.
pub(crate) type HashFn = fn(KeyRef<'_>, u64) -> u64;

pub(crate) fn hash_key(key: KeyRef<'_>, seed: u64) -> u64 {
    let seed = if key.namespace().is_empty() { seed } else { xxh3_64_with_seed(key.namespace(), !seed) };
    xxh3_64_with_seed(key.bytes(), seed)
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Entry,
    Removal,
    Fence,
}

/// What is known of a record without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) kind: Kind,
    pub(crate) hash: u64,
    pub(crate) offset: u32,
    pub(crate) len: u32,
    pub(crate) generation: Generation,
    pub(crate) deadline: Timestamp,
    pub(crate) namespace: u16,
}

/// Reads and writes records of one directory.
#[derive(Clone, Debug)]
pub(crate) struct Codec {
    pub(crate) seed: u64,
    pub(crate) hasher: HashFn,
    pub(crate) prefix: [u8; 3],
    pub(crate) names: Arc<Names>,
}

impl Codec {
    pub(crate) fn new(seed: u64, hasher: HashFn, names: Arc<Names>) -> Self {
        let mut sample = Vec::new();
        let mut prefix = [envelope::MAGIC[0], envelope::MAGIC[1], 1];
        let entry = Entry::new("", Generation::ZERO, Timestamp::EPOCH);
        if let Ok(key) = KeyRef::new("", b"0")
            && envelope::encode(key, &entry, envelope::Compression::None, &mut sample).is_ok()
        {
            prefix.copy_from_slice(&sample[..3]);
        }
        Self { seed, hasher, prefix, names }
    }

    pub(crate) fn salt(&self, seq: u32) -> u64 {
        xxh3_64_with_seed(&seq.to_le_bytes(), self.seed)
    }

    pub(crate) fn hash(&self, key: KeyRef<'_>) -> u64 {
        (self.hasher)(key, self.seed) & ((1 << HASH_BITS) - 1)
    }

    /// Makes an envelope of a record that was read to `bytes[SAVED..]`.
    pub(crate) fn unseal(&self, salt: u64, bytes: &mut [u8]) {
        if bytes.len() >= HEADER_BYTES {
            // A damaged marker makes it an unknown version.
            let damage = bytes[SAVED] ^ ENTRY;
            bytes[..3].copy_from_slice(&self.prefix);
            bytes[SAVED] ^= damage;
            mask(&mut bytes[CHECKSUM_AT..HEADER_BYTES], salt);
        }
    }

    /// The record that begins at `bytes[at]`, verified, and the scope if it is a fence.
    pub(crate) fn record(
        &self,
        salt: u64,
        bytes: &[u8],
        at: usize,
        scratch: &mut Vec<u8>,
    ) -> Option<(Row, Option<Scope>)> {
        let rest = &bytes[at..];
        let offset = u32::try_from(at).ok()?;
        match *rest.first()? {
            ENTRY => {
                let len = self.entry_len(rest)?;
                scratch.clear();
                scratch.extend_from_slice(&[0; SAVED]);
                scratch.extend_from_slice(rest.get(..len)?);
                self.unseal(salt, scratch);
                let header = envelope::verify(scratch).ok()?;
                let keys = &scratch[header.key_range()];
                let (hash, namespace) = if header.is_sealed() {
                    let (hash, namespace) = keys.split_at_checked(HASH_BYTES)?;
                    (read(hash), std::str::from_utf8(namespace).ok()?)
                } else {
                    let (namespace, key) = keys.split_at(header.namespace_len);
                    let namespace = std::str::from_utf8(namespace).ok()?;
                    (self.hash(KeyRef::new(namespace, key).ok()?), namespace)
                };
                let row = Row {
                    kind: Kind::Entry,
                    hash,
                    offset,
                    len: len as u32,
                    generation: header.generation,
                    deadline: header.deadline,
                    namespace: self.names.id(namespace),
                };
                Some((row, None))
            }
            REMOVAL => {
                let bytes = rest.get(..REMOVAL_BYTES)?;
                (word(&bytes[12..]) == xxh3_64_with_seed(&bytes[..12], salt)).then_some(())?;
                let row = marker(Kind::Removal, offset, REMOVAL_BYTES as u32, read(&bytes[6..12]));
                Some((Row { hash: read(&bytes[1..6]), ..row }, None))
            }
            FENCE => {
                let body = 3 + usize::from(u16::from_le_bytes([*rest.get(1)?, *rest.get(2)?]));
                let bytes = rest.get(..body + 8)?;
                (word(&bytes[body..]) == xxh3_64_with_seed(&bytes[..body], salt)).then_some(())?;
                let (scope, generation) = read_scope(&bytes[3..body])?;
                Some((marker(Kind::Fence, offset, (body + 8) as u32, generation.get()), Some(scope)))
            }
            _ => None,
        }
    }

    /// Bytes of the entry's record that begins here, as it says itself.
    fn entry_len(&self, record: &[u8]) -> Option<usize> {
        let mut head = [0; HEADER_BYTES + 9];
        let have = record.len().min(head.len() - SAVED);
        head[SAVED..SAVED + have].copy_from_slice(&record[..have]);
        head[..3].copy_from_slice(&self.prefix);
        envelope::declared_len(&head[..SAVED + have]).ok().map(|len| len - SAVED)
    }

    /// The records in `bytes`, a segment as far as it was written: rows, fences, and what was between them that is
    /// no record. Also says where the last record ends.
    pub(crate) fn scan(&self, seq: u32, bytes: &[u8]) -> Scan {
        let salt = self.salt(seq);
        let mut found = Scan { end: SEGMENT_HEADER as u32, ..Scan::default() };
        let mut scratch = Vec::new();
        let mut at = SEGMENT_HEADER;
        // What resuming after damage may cost: garbage that looks like records must not make opening slow.
        let mut budget = 2 * bytes.len() + (1 << 20);
        let mut broken = false;
        while at < bytes.len() {
            if let Some((row, scope)) = self.record(salt, bytes, at, &mut scratch) {
                found.damaged += u64::from(broken);
                broken = false;
                found.fences.extend(scope.map(|scope| (scope, row.generation)));
                found.rows.push(row);
                at += row.len as usize;
                found.end = at as u32;
                continue;
            }
            if !broken {
                broken = true;
                // The damage may be within a record whose lengths are whole.
                let next = match bytes[at] {
                    ENTRY => self.entry_len(&bytes[at..]).map(|len| at + len),
                    REMOVAL => Some(at + REMOVAL_BYTES),
                    _ => None,
                };
                if let Some(next) = next.filter(|&next| next < bytes.len())
                    && self.record(salt, bytes, next, &mut scratch).is_some()
                {
                    at = next;
                    continue;
                }
            }
            let candidate = |byte: &u8| matches!(*byte, ENTRY | REMOVAL | FENCE);
            let Some(skip) = bytes[at + 1..].iter().position(candidate) else { break };
            at += 1 + skip;
            let cost = if bytes[at] == ENTRY { self.entry_len(&bytes[at..]).unwrap_or(0) } else { 64 };
            let cost = if cost > bytes.len() - at { 1 } else { cost };
            match budget.checked_sub(cost) {
                Some(left) => budget = left,
                None => break,
            }
        }
        found
    }
}

/// What a scan found.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) rows: Vec<Row>,
    pub(crate) fences: Vec<(Scope, Generation)>,
    pub(crate) damaged: u64,
    pub(crate) end: u32,
}

fn marker(kind: Kind, offset: u32, len: u32, generation: u64) -> Row {
    let generation = Generation::new(generation);
    Row { kind, hash: 0, offset, len, generation, deadline: Timestamp::NEVER, namespace: 0 }
}

/// A record before it has its place.
pub(crate) enum Item<'a> {
    /// An envelope.
    Entry(&'a mut Vec<u8>),
    Removal {
        hash: u64,
        below: Generation,
    },
    Fence {
        scope: &'a Scope,
        below: Generation,
    },
}

impl Item<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Entry(envelope) => envelope.len() - SAVED,
            Self::Removal { .. } => REMOVAL_BYTES,
            Self::Fence { scope, .. } => 3 + scope_len(scope) + 8,
        }
    }

    /// Appends the record to `out`.
    pub(crate) fn write(&self, salt: u64, out: &mut Vec<u8>) {
        let start = out.len();
        match self {
            Self::Entry(envelope) => {
                out.extend_from_slice(&envelope[SAVED..]);
                seal(salt, out, start);
                return;
            }
            Self::Removal { hash, below } => {
                out.push(REMOVAL);
                out.extend_from_slice(&hash.to_le_bytes()[..5]);
                out.extend_from_slice(&below.get().to_le_bytes()[..6]);
            }
            Self::Fence { scope, below } => {
                out.push(FENCE);
                out.extend_from_slice(&(scope_len(scope) as u16).to_le_bytes());
                write_scope(scope, *below, out);
            }
        }
        let sum = xxh3_64_with_seed(&out[start..], salt);
        out.extend_from_slice(&sum.to_le_bytes());
    }
}

/// Makes a record of an envelope whose first bytes are gone and which begins at `at`.
pub(crate) fn seal(salt: u64, bytes: &mut [u8], at: usize) {
    bytes[at] = ENTRY;
    mask(&mut bytes[at + CHECKSUM_AT - SAVED..at + HEADER_BYTES - SAVED], salt);
}

fn mask(checksum: &mut [u8], salt: u64) {
    for (byte, salt) in checksum.iter_mut().zip(salt.to_le_bytes()) {
        *byte ^= salt;
    }
}

/// Whether a scope's record can be written: its names have at most 64 KiB together.
pub(crate) fn scope_fits(scope: &Scope) -> bool {
    match scope {
        Scope::Tag { name, value, .. } => name.len() + value.len() < 60_000,
        _ => true,
    }
}

fn scope_len(scope: &Scope) -> usize {
    7 + match scope {
        Scope::All => 0,
        Scope::Namespace(namespace) => 1 + namespace.len(),
        Scope::Tag { namespace, name, value } => 1 + namespace.len() + 2 + name.len() + value.len(),
    }
}

fn write_scope(scope: &Scope, below: Generation, out: &mut Vec<u8>) {
    out.extend_from_slice(&below.get().to_le_bytes()[..6]);
    let space = |namespace: &str, out: &mut Vec<u8>| {
        // Validated: a namespace has at most 255 bytes.
        out.push(namespace.len() as u8);
        out.extend_from_slice(namespace.as_bytes());
    };
    match scope {
        Scope::All => out.push(0),
        Scope::Namespace(namespace) => {
            out.push(1);
            space(namespace, out);
        }
        Scope::Tag { namespace, name, value } => {
            out.push(2);
            space(namespace, out);
            out.extend_from_slice(&(name.len() as u16).to_le_bytes());
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(value.as_bytes());
        }
    }
}

fn read_scope(body: &[u8]) -> Option<(Scope, Generation)> {
    let generation = Generation::new(read(body.get(..6)?));
    let kind = *body.get(6)?;
    if kind == 0 {
        return Some((Scope::All, generation));
    }
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
    let split = 8 + usize::from(*body.get(7)?);
    let namespace = text(body.get(8..split)?)?;
    if kind == 1 {
        return Some((Scope::Namespace(namespace), generation));
    }
    let rest = body.get(split..)?;
    let name_end = 2 + usize::from(u16::from_le_bytes([*rest.first()?, *rest.get(1)?]));
    let (name, value) = (text(rest.get(2..name_end)?)?, text(&rest[name_end..])?);
    Some((Scope::Tag { namespace, name, value }, generation))
}

/// The header of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) seed: u64,
    pub(crate) seq: u32,
    pub(crate) capacity: u32,
    pub(crate) prefix: [u8; 3],
    pub(crate) written: Timestamp,
    /// Where the footer is, its length and its checksum, once sealed.
    pub(crate) footer: Option<(u32, u32, u64)>,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut out = [0; SEGMENT_HEADER];
        let (at, len, sum) = self.footer.unwrap_or_default();
        out[..7].copy_from_slice(MAGIC);
        out[7] = u8::from(self.footer.is_some());
        out[8..16].copy_from_slice(&self.seed.to_le_bytes());
        out[16..20].copy_from_slice(&self.seq.to_le_bytes());
        out[20..24].copy_from_slice(&self.capacity.to_le_bytes());
        out[24..27].copy_from_slice(&self.prefix);
        out[32..36].copy_from_slice(&at.to_le_bytes());
        out[36..40].copy_from_slice(&len.to_le_bytes());
        out[40..48].copy_from_slice(&sum.to_le_bytes());
        out[48..56].copy_from_slice(&self.written.as_millis().to_le_bytes());
        let sum = xxh3_64(&out[..56]);
        out[56..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8; SEGMENT_HEADER]) -> Option<Self> {
        (bytes[..7] == MAGIC[..] && word(&bytes[56..]) == xxh3_64(&bytes[..56])).then_some(())?;
        Some(Self {
            seed: word(&bytes[8..]),
            seq: read(&bytes[16..20]) as u32,
            capacity: read(&bytes[20..24]) as u32,
            prefix: [bytes[24], bytes[25], bytes[26]],
            written: Timestamp::from_millis(word(&bytes[48..])),
            footer: (bytes[7] == 1)
                .then(|| (read(&bytes[32..36]) as u32, read(&bytes[36..40]) as u32, word(&bytes[40..]))),
        })
    }
}

pub(crate) fn footer_sum(footer: &[u8]) -> u64 {
    xxh3_64(footer)
}

fn word(bytes: &[u8]) -> u64 {
    read(&bytes[..8])
}

/// A little-endian number of up to 8 bytes.
pub(crate) fn read(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// What opening must know of an entry whose key is sealed: a footer says no less.
pub(crate) fn note(hash: u64, namespace: &[u8]) -> Vec<u8> {
    [&hash.to_le_bytes()[..HASH_BYTES], namespace].concat()
}
