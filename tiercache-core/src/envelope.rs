//! The one byte format of stored entries.
//!
//! Version 1, little endian, sizes in bytes:
//!
//! ```text
//!  0  2  magic, C7 7E
//!  2  1  version, 1
//!  3  1  flags: bits 0-1 compression (0 none, 1 lz4, 2 zstd), 2 extras, 3 levels, 4 explicit ttl
//!  4  1  length of the namespace
//!  5  2  length of the key
//!  7  4  length of the value as stored
//! 11  6  generation
//! 17  6  created, milliseconds since the epoch
//! 23  6  deadline likewise, all ones for never
//! 29  8  XXH3-64 of everything after this field, seeded with the XXH3-64 of everything before it
//! 37     [levels, 1] [length of the extras, 4] [length of the plain value, 4, when compressed]
//!        namespace, key, extras (MessagePack), value
//! ```
//!
//! Nothing is allocated before the declared lengths agree with the bytes at hand and the checksum holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use serde::{Deserialize, Serialize};

use crate::{Entry, Extras, Generation, Key, KeyRef, Levels, Stay, Timestamp};

/// Bytes of the part every envelope has.
pub const HEADER_BYTES: usize = 37;
/// The first bytes of every envelope.
pub const MAGIC: [u8; 2] = [0xC7, 0x7E];
const VERSION: u8 = 1;
const CHECKSUM_AT: usize = 29;
const NEVER_48: u64 = (1 << 48) - 1;

const COMPRESSION: u8 = 0b11;
const HAS_EXTRAS: u8 = 1 << 2;
const HAS_LEVELS: u8 = 1 << 3;
const EXPLICIT_TTL: u8 = 1 << 4;
const KNOWN_FLAGS: u8 = COMPRESSION | HAS_EXTRAS | HAS_LEVELS | EXPLICIT_TTL;

/// How values are made smaller before they are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// LZ4 block format: fast. Needs the feature `lz4`.
    Lz4,
    /// Zstandard at that level (1 to 19): small. Needs the feature `zstd`.
    Zstd(i32),
}

/// Values below this stay as they are: the frame would eat the gain.
const COMPRESS_FROM: usize = 128;

/// Why bytes are not an entry. Every reason is a miss to a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// Fewer bytes than the lengths declare, or more.
    #[error("the length does not fit")]
    Length,
    /// Not an envelope.
    #[error("no envelope begins here")]
    Magic,
    /// Written by a version, or with a feature, that this one does not know.
    #[error("the format is unknown")]
    Version,
    /// The bytes changed since they were written.
    #[error("the checksum does not match")]
    Checksum,
    /// Whole, but of another key.
    #[error("it is another key's entry")]
    OtherKey,
    /// The extras or the value do not decode.
    #[error("the content does not decode")]
    Content,
    /// The plain value is larger than the reader's limit.
    #[error("the value is larger than allowed")]
    TooLarge,
}

/// The header of an envelope, enough to index it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    flags: u8,
    /// Bytes of the namespace.
    pub namespace_len: usize,
    /// Bytes of the key.
    pub key_len: usize,
    /// Bytes of the value as stored.
    pub stored_len: usize,
    /// The entry's generation.
    pub generation: Generation,
    /// When it was set.
    pub created: Timestamp,
    /// When it dies.
    pub deadline: Timestamp,
    checksum: u64,
}

impl Header {
    /// Reads the fixed part. The rest may not be there yet, and nothing is verified but the form.
    ///
    /// # Errors
    /// Says why these bytes are not the beginning of an envelope.
    pub fn parse(bytes: &[u8]) -> Result<Self, Damage> {
        let bytes: &[u8; HEADER_BYTES] =
            bytes.get(..HEADER_BYTES).and_then(|head| head.try_into().ok()).ok_or(Damage::Length)?;
        if bytes[..2] != MAGIC {
            return Err(Damage::Magic);
        }
        let flags = bytes[3];
        if bytes[2] != VERSION || flags & !KNOWN_FLAGS != 0 || flags & COMPRESSION == COMPRESSION {
            return Err(Damage::Version);
        }
        let key_len = usize::from(u16::from_le_bytes([bytes[5], bytes[6]]));
        if key_len == 0 {
            return Err(Damage::Length);
        }
        let deadline = read_48(&bytes[23..]);
        Ok(Self {
            flags,
            namespace_len: usize::from(bytes[4]),
            key_len,
            stored_len: u32::from_le_bytes([bytes[7], bytes[8], bytes[9], bytes[10]]) as usize,
            generation: Generation::new(read_48(&bytes[11..])),
            created: Timestamp::from_millis(read_48(&bytes[17..])),
            deadline: if deadline == NEVER_48 { Timestamp::NEVER } else { Timestamp::from_millis(deadline) },
            checksum: u64::from_le_bytes(bytes[CHECKSUM_AT..].try_into().map_err(|_| Damage::Length)?),
        })
    }

    /// Bytes between the fixed part and the namespace.
    const fn optional_len(&self) -> usize {
        (self.flags & HAS_LEVELS != 0) as usize
            + 4 * (self.flags & HAS_EXTRAS != 0) as usize
            + 4 * (self.flags & COMPRESSION != 0) as usize
    }

    /// Where namespace and key stand in the envelope.
    pub const fn key_range(&self) -> std::ops::Range<usize> {
        let start = HEADER_BYTES + self.optional_len();
        start..start + self.namespace_len + self.key_len
    }
}

/// Bytes of the envelope that begins here, by the lengths it declares: enough to step over it. Needs at most
/// [`HEADER_BYTES`] + 9 bytes, and nothing is verified but the form.
///
/// # Errors
/// Says why these bytes are not the beginning of an envelope.
pub fn declared_len(bytes: &[u8]) -> Result<usize, Damage> {
    let header = Header::parse(bytes)?;
    let extras = if header.flags & HAS_EXTRAS == 0 {
        0
    } else {
        let at = HEADER_BYTES + usize::from(header.flags & HAS_LEVELS != 0);
        let field = bytes.get(at..at + 4).and_then(|field| field.try_into().ok()).ok_or(Damage::Length)?;
        u32::from_le_bytes(field) as usize
    };
    Ok(header.key_range().end + extras + header.stored_len)
}

/// Appends the envelope of `entry` to `out` and returns its length.
///
/// # Errors
/// [`Damage::TooLarge`] when the value has 4 GiB or more, [`Damage::Content`] when the extras do not encode;
/// `out` is then as it was.
pub fn encode(
    key: KeyRef<'_>,
    entry: &Entry,
    compression: Compression,
    out: &mut Vec<u8>,
) -> Result<usize, Damage> {
    let start = out.len();
    let plain_len = u32::try_from(entry.value.len()).map_err(|_| Damage::TooLarge)?;
    let key_len = u16::try_from(key.bytes().len()).map_err(|_| Damage::TooLarge)?;
    let namespace_len = u8::try_from(key.namespace().len()).map_err(|_| Damage::TooLarge)?;
    let (packed, method) = compress(&entry.value, compression);
    let value = packed.as_deref().unwrap_or(&entry.value);
    let extras = match entry.extras.as_ref().filter(|extras| !extras.is_plain()) {
        Some(extras) => Some(rmp_serde::to_vec(&Wire::from(&**extras)).map_err(|_| Damage::Content)?),
        None => None,
    };
    let all_levels = entry.levels == Levels::ALL;
    let flags = method
        | if extras.is_some() { HAS_EXTRAS } else { 0 }
        | if all_levels { 0 } else { HAS_LEVELS }
        | if entry.explicit_ttl { EXPLICIT_TTL } else { 0 };

    out.reserve(HEADER_BYTES + 9 + key.namespace().len() + key.bytes().len() + value.len());
    out.put_slice(&MAGIC);
    out.put_u8(VERSION);
    out.put_u8(flags);
    out.put_u8(namespace_len);
    out.put_u16_le(key_len);
    // Compressed values are kept only when they are shorter, so this fits where the plain length did.
    out.put_u32_le(value.len() as u32);
    out.put_uint_le(entry.generation.get().min(NEVER_48), 6);
    out.put_uint_le(entry.created.as_millis().min(NEVER_48), 6);
    out.put_uint_le(entry.deadline.as_millis().min(NEVER_48), 6);
    out.put_u64_le(0);
    if !all_levels {
        out.put_u8(entry.levels.bits());
    }
    if let Some(extras) = &extras {
        out.put_u32_le(u32::try_from(extras.len()).map_err(|_| Damage::TooLarge)?);
    }
    if method != 0 {
        out.put_u32_le(plain_len);
    }
    out.put_slice(key.namespace());
    out.put_slice(key.bytes());
    out.put_slice(extras.as_deref().unwrap_or_default());
    out.put_slice(value);

    let sum = checksum(&out[start..]);
    out[start + CHECKSUM_AT..start + HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    Ok(out.len() - start)
}

/// The uncompressed envelope of `entry` in two pieces, its front and its value: the value is not copied.
///
/// # Errors
/// As for [`encode`].
pub fn encode_in_two(key: KeyRef<'_>, entry: &Entry) -> Result<(Vec<u8>, Bytes), Damage> {
    let value = entry.value.clone();
    let value_len = u32::try_from(value.len()).map_err(|_| Damage::TooLarge)?;
    let mut front = Vec::new();
    encode(key, &Entry { value: Bytes::new(), ..entry.clone() }, Compression::None, &mut front)?;
    front[7..11].copy_from_slice(&value_len.to_le_bytes());
    let mut hasher = xxhash_rust::xxh3::Xxh3::with_seed(xxhash_rust::xxh3::xxh3_64(&front[..CHECKSUM_AT]));
    hasher.update(&front[HEADER_BYTES..]);
    hasher.update(&value);
    front[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&hasher.digest().to_le_bytes());
    Ok((front, value))
}

/// Reads the front of an envelope, of whatever key: the entry without its value, and the bytes the value has once it
/// is unpacked. Nothing is verified but the form.
///
/// # Errors
/// [`Damage::Length`] when the front goes on beyond `bytes`, else what is wrong with it.
pub fn decode_front(bytes: &[u8]) -> Result<(Key, Entry, u64), Damage> {
    let header = Header::parse(bytes)?;
    let names = header.key_range();
    let body = declared_len(bytes)? - header.stored_len;
    let front = bytes.get(..body).ok_or(Damage::Length)?;
    let (namespace, key) = front[names.clone()].split_at(header.namespace_len);
    let namespace = std::str::from_utf8(namespace).map_err(|_| Damage::Content)?;
    let mut size = header.stored_len as u64;
    if header.flags & COMPRESSION != 0 {
        let plain = front[names.start - 4..names.start].try_into().map_err(|_| Damage::Length)?;
        size = u32::from_le_bytes(plain).into();
    }
    let levels =
        if header.flags & HAS_LEVELS == 0 { Levels::ALL } else { Levels::from_bits(front[HEADER_BYTES]) };
    let entry = Entry {
        deadline: header.deadline,
        levels,
        explicit_ttl: header.flags & EXPLICIT_TTL != 0,
        extras: decode_extras(&front[names.end..])?,
        ..Entry::new(Bytes::new(), header.generation, header.created)
    };
    Ok((Key::new(namespace, key).map_err(|_| Damage::Content)?, entry, size))
}

/// Reads one whole envelope, which must fill `bytes`; the value is shared with it when it is not compressed.
/// `max_value` bounds what a compressed value may become.
///
/// # Errors
/// Says what is wrong with the bytes.
pub fn decode(bytes: &Bytes, max_value: usize) -> Result<(Key, Entry), Damage> {
    let parts = Parts::of(bytes)?;
    let namespace = std::str::from_utf8(&bytes[parts.namespace.clone()]).map_err(|_| Damage::Content)?;
    let key = Key::new(namespace, &bytes[parts.key.clone()]).map_err(|_| Damage::Content)?;
    Ok((key, parts.entry(bytes, max_value)?))
}

/// Reads one whole envelope that must be `key`'s.
///
/// # Errors
/// [`Damage::OtherKey`] when it is whole but of another key, else what is wrong with the bytes.
pub fn decode_for(key: KeyRef<'_>, bytes: &Bytes, max_value: usize) -> Result<Entry, Damage> {
    let parts = Parts::of(bytes)?;
    if &bytes[parts.namespace.clone()] != key.namespace() || &bytes[parts.key.clone()] != key.bytes() {
        return Err(Damage::OtherKey);
    }
    parts.entry(bytes, max_value)
}

/// Checks form and checksum of one whole envelope without building the entry.
///
/// # Errors
/// Says what is wrong with the bytes.
pub fn verify(bytes: &[u8]) -> Result<Header, Damage> {
    Parts::of(bytes).map(|parts| parts.header)
}

struct Parts {
    header: Header,
    levels: Levels,
    plain_len: Option<usize>,
    namespace: std::ops::Range<usize>,
    key: std::ops::Range<usize>,
    extras: std::ops::Range<usize>,
    value: std::ops::Range<usize>,
}

impl Parts {
    fn of(bytes: &[u8]) -> Result<Self, Damage> {
        let header = Header::parse(bytes)?;
        let mut at = HEADER_BYTES;
        let word = |at: &mut usize| -> Result<usize, Damage> {
            let field = bytes.get(*at..*at + 4).and_then(|field| field.try_into().ok());
            *at += 4;
            field.map(|field| u32::from_le_bytes(field) as usize).ok_or(Damage::Length)
        };
        let mut levels = Levels::ALL;
        if header.flags & HAS_LEVELS != 0 {
            levels = Levels::from_bits(*bytes.get(at).ok_or(Damage::Length)?);
            at += 1;
        }
        let extras_len = if header.flags & HAS_EXTRAS != 0 { word(&mut at)? } else { 0 };
        let plain_len = if header.flags & COMPRESSION != 0 { Some(word(&mut at)?) } else { None };
        // Each length is below 4 GiB, so the sum cannot overflow 64 bits.
        let namespace = at..at + header.namespace_len;
        let key = namespace.end..namespace.end + header.key_len;
        let extras = key.end..key.end + extras_len;
        let value = extras.end..extras.end + header.stored_len;
        if value.end != bytes.len() {
            return Err(Damage::Length);
        }
        if checksum(bytes) != header.checksum {
            return Err(Damage::Checksum);
        }
        Ok(Self { header, levels, plain_len, namespace, key, extras, value })
    }

    fn entry(&self, bytes: &Bytes, max_value: usize) -> Result<Entry, Damage> {
        let extras = decode_extras(&bytes[self.extras.clone()])?;
        let stored = bytes.slice(self.value.clone());
        let value = match self.plain_len {
            None if stored.len() > max_value => return Err(Damage::TooLarge),
            None => stored,
            Some(plain) if plain > max_value => return Err(Damage::TooLarge),
            Some(plain) => Bytes::from(decompress(self.header.flags & COMPRESSION, &stored, plain)?),
        };
        Ok(Entry {
            value,
            generation: self.header.generation,
            created: self.header.created,
            deadline: self.header.deadline,
            levels: self.levels,
            explicit_ttl: self.header.flags & EXPLICIT_TTL != 0,
            extras,
        })
    }
}

fn decode_extras(bytes: &[u8]) -> Result<Option<Arc<Extras>>, Damage> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let mut decoder = rmp_serde::Deserializer::from_read_ref(bytes);
    decoder.set_max_depth(8);
    let wire = Wire::deserialize(&mut decoder).map_err(|_| Damage::Content)?;
    Ok(Some(Arc::new(Extras::from(wire))))
}

/// The extras as they are stored. Fields are positional: a new one needs a new envelope version.
#[derive(Serialize, Deserialize)]
struct Wire {
    tags: BTreeMap<String, String>,
    stays: [Option<u64>; 3],
    content_type: Option<String>,
    user: BTreeMap<String, String>,
}

impl From<&Extras> for Wire {
    fn from(extras: &Extras) -> Self {
        Self {
            tags: extras.tags.clone(),
            stays: extras.stays.map(|stay| stay.map(Stay::as_millis)),
            content_type: extras.content_type.clone(),
            user: extras.user.clone(),
        }
    }
}

impl From<Wire> for Extras {
    fn from(wire: Wire) -> Self {
        Self {
            tags: wire.tags,
            stays: wire.stays.map(|stay| stay.map(Stay::from_millis)),
            content_type: wire.content_type,
            user: wire.user,
            decoded: Default::default(),
        }
    }
}

/// The packed value and its flag, when packing made it shorter.
fn compress(value: &[u8], compression: Compression) -> (Option<Vec<u8>>, u8) {
    if value.len() < COMPRESS_FROM {
        return (None, 0);
    }
    let (packed, flag): (Option<Vec<u8>>, u8) = match compression {
        Compression::None => (None, 0),
        #[cfg(feature = "lz4")]
        Compression::Lz4 => (Some(lz4_flex::block::compress(value)), 1),
        #[cfg(feature = "zstd")]
        Compression::Zstd(level) => (zstd::bulk::compress(value, level).ok(), 2),
        #[allow(unreachable_patterns, reason = "reachable when a compression feature is off")]
        _ => (None, 0),
    };
    match packed.filter(|packed| packed.len() < value.len()) {
        Some(packed) => (Some(packed), flag),
        None => (None, 0),
    }
}

/// Unpacks exactly `plain` bytes, or fails; `plain` was checked against the limit.
#[cfg_attr(not(any(feature = "lz4", feature = "zstd")), allow(unused_variables, unreachable_code))]
fn decompress(flag: u8, stored: &[u8], plain: usize) -> Result<Vec<u8>, Damage> {
    let value: Option<Vec<u8>> = match flag {
        #[cfg(feature = "lz4")]
        1 => lz4_flex::block::decompress(stored, plain).ok(),
        #[cfg(feature = "zstd")]
        2 => zstd::bulk::decompress(stored, plain).ok(),
        // Packed with what this build does not have.
        _ => return Err(Damage::Version),
    };
    value.filter(|value| value.len() == plain).ok_or(Damage::Content)
}

fn checksum(envelope: &[u8]) -> u64 {
    let seed = xxhash_rust::xxh3::xxh3_64(&envelope[..CHECKSUM_AT]);
    xxhash_rust::xxh3::xxh3_64_with_seed(&envelope[HEADER_BYTES..], seed)
}

fn read_48(bytes: &[u8]) -> u64 {
    let mut word = [0u8; 8];
    word[..6].copy_from_slice(&bytes[..6]);
    u64::from_le_bytes(word)
}
