//! The one byte format of stored entries.
//!
//! Version 1, little endian, sizes in bytes:
//!
//! ```text
//!  0  2  magic, C7 7E
//!  2  1  version, 1
//!  3  1  flags: bits 0-1 compression (0 none, 1 lz4, 2 zstd), 2 extras, 3 levels, 4 explicit ttl, 5 sealed
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
//! A sealed one says in its fixed part only what a store must know; the other flags are not set, and
//!
//! ```text
//!  4  1  zero
//!  5  2  length of the note
//!  7  4  length of what follows the note
//! 37     the note, readable, what the store wants to know of the entry without opening it
//!        id of the key 8, nonce 24
//!        sealed: bytes 3 to 10 as above, then what stands behind 37 as above
//!        tag 16
//! ```
//!
//! The seal, XChaCha20-Poly1305, is bound to everything before it but the checksum, which is of the bytes as stored: it
//! tells damage, the seal tells forgery.
//!
//! Nothing is allocated before the declared lengths agree with the bytes at hand and the checksum holds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use serde::{Deserialize, Serialize};

use crate::encryption::{Keys, SEAL_HEAD, SEAL_TAG};
use crate::{Entry, Extras, Generation, Key, KeyRef, Levels, Stay, Timestamp};

/// Bytes of the part every envelope has.
pub const HEADER_BYTES: usize = 37;
/// The first bytes of every envelope.
pub const MAGIC: [u8; 2] = [0xC7, 0x7E];
const VERSION: u8 = 1;
/// Where the lengths and flags stand that a sealed envelope has inside.
const FORM: std::ops::Range<usize> = 3..11;
const FORM_BYTES: usize = FORM.end - FORM.start;
const CHECKSUM_AT: usize = 29;
const NEVER_48: u64 = (1 << 48) - 1;

const COMPRESSION: u8 = 0b11;
const HAS_EXTRAS: u8 = 1 << 2;
const HAS_LEVELS: u8 = 1 << 3;
const EXPLICIT_TTL: u8 = 1 << 4;
const SEALED: u8 = 1 << 5;
const KNOWN_FLAGS: u8 = COMPRESSION | HAS_EXTRAS | HAS_LEVELS | EXPLICIT_TTL | SEALED;

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
    /// Sealed under a key that is not among the reader's.
    #[error("it is sealed under an unknown key")]
    UnknownKey,
    /// Whole, but not what the holder of the key wrote here.
    #[error("the seal does not match")]
    Forged,
    /// Plain where entries must be sealed.
    #[error("it is not sealed")]
    Unsealed,
    /// The system gave no random bytes to seal with.
    #[error("no random bytes to seal with")]
    NoRandom,
}

/// The header of an envelope, enough to index it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    flags: u8,
    /// Bytes of the namespace; 0 when it is sealed.
    pub namespace_len: usize,
    /// Bytes of the key; those of the note when it is sealed.
    pub key_len: usize,
    /// Bytes of the value as stored; of all that follows the note when it is sealed.
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
        if bytes[2] != VERSION {
            return Err(Damage::Version);
        }
        let deadline = read_48(&bytes[23..]);
        let header = Self {
            flags: 0,
            namespace_len: 0,
            key_len: 0,
            stored_len: 0,
            generation: Generation::new(read_48(&bytes[11..])),
            created: Timestamp::from_millis(read_48(&bytes[17..])),
            deadline: if deadline == NEVER_48 { Timestamp::NEVER } else { Timestamp::from_millis(deadline) },
            checksum: u64::from_le_bytes(bytes[CHECKSUM_AT..].try_into().map_err(|_| Damage::Length)?),
        };
        header.with_form(&bytes[FORM])
    }

    /// The same entry with the flags and lengths that stand in `form`.
    fn with_form(self, form: &[u8]) -> Result<Self, Damage> {
        let form: &[u8; FORM_BYTES] = form.try_into().map_err(|_| Damage::Length)?;
        let flags = form[0];
        if flags & !KNOWN_FLAGS != 0 || flags & COMPRESSION == COMPRESSION {
            return Err(Damage::Version);
        }
        let (namespace_len, key_len) = (usize::from(form[1]), u16::from_le_bytes([form[2], form[3]]));
        let sealed = flags & SEALED != 0;
        if sealed && (flags != SEALED || namespace_len != 0) {
            return Err(Damage::Version);
        }
        if !sealed && key_len == 0 {
            return Err(Damage::Length);
        }
        let stored_len = u32::from_le_bytes([form[4], form[5], form[6], form[7]]) as usize;
        Ok(Self { flags, namespace_len, key_len: key_len.into(), stored_len, ..self })
    }

    /// Whether namespace, key, extras and value can be read with a key only.
    pub const fn is_sealed(&self) -> bool {
        self.flags & SEALED != 0
    }

    /// What two envelopes of the same entry have in common, and two of one generation that differ do not: the
    /// checksum. No two sealed ones are alike, so there it is made of sizes and times.
    pub fn identity(&self) -> u64 {
        if !self.is_sealed() {
            return self.checksum;
        }
        let seen = [self.stored_len as u64, self.created.as_millis(), self.deadline.as_millis()];
        let bytes: Vec<u8> = seen.iter().flat_map(|number| number.to_le_bytes()).collect();
        xxhash_rust::xxh3::xxh3_64_with_seed(&bytes, self.generation.get())
    }

    /// Bytes between the fixed part and the namespace.
    const fn optional_len(&self) -> usize {
        (self.flags & HAS_LEVELS != 0) as usize
            + 4 * (self.flags & HAS_EXTRAS != 0) as usize
            + 4 * (self.flags & COMPRESSION != 0) as usize
    }

    /// Where namespace and key stand in the envelope; the note, when it is sealed.
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
    write(key, entry, compression, None, out)
}

/// As [`encode`], sealed when there are keys: then with that note.
pub(crate) fn write(
    key: KeyRef<'_>,
    entry: &Entry,
    compression: Compression,
    seal: Option<(&Keys, &[u8])>,
    out: &mut Vec<u8>,
) -> Result<usize, Damage> {
    let start = out.len();
    let written = append(key, entry, compression, seal, out);
    if written.is_err() {
        out.truncate(start);
    }
    written
}

fn append(
    key: KeyRef<'_>,
    entry: &Entry,
    compression: Compression,
    seal: Option<(&Keys, &[u8])>,
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
    // Compressed values are kept only when they are shorter, so this fits where the plain length did.
    let form = |out: &mut Vec<u8>| put_form(out, flags, namespace_len, key_len, value.len() as u32);

    let sealing = seal.map_or(0, |(_, note)| note.len() + SEAL_HEAD + FORM_BYTES + SEAL_TAG);
    out.reserve(
        HEADER_BYTES
            + 9
            + sealing
            + key.namespace().len()
            + key.bytes().len()
            + extras.as_ref().map_or(0, Vec::len)
            + value.len(),
    );
    out.put_slice(&MAGIC);
    out.put_u8(VERSION);
    match seal {
        None => form(out),
        Some((_, note)) => {
            put_form(out, SEALED, 0, u16::try_from(note.len()).map_err(|_| Damage::TooLarge)?, 0);
        }
    }
    out.put_uint_le(entry.generation.get().min(NEVER_48), 6);
    out.put_uint_le(entry.created.as_millis().min(NEVER_48), 6);
    out.put_uint_le(entry.deadline.as_millis().min(NEVER_48), 6);
    out.put_u64_le(0);
    let mut body = out.len();
    if let Some((keys, note)) = seal {
        out.put_slice(note);
        out.put_slice(&keys.head()?);
        body = out.len();
        form(out);
    }
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

    if let Some((keys, _)) = seal {
        let stored = u32::try_from(SEAL_HEAD + out.len() - body + SEAL_TAG).map_err(|_| Damage::TooLarge)?;
        out[start + FORM.end - 4..start + FORM.end].copy_from_slice(&stored.to_le_bytes());
        let (known, body) = out[start..].split_at_mut(body - start);
        let tag = keys.seal(known, body)?;
        out.put_slice(&tag);
    }
    let sum = checksum(&out[start..]);
    out[start + CHECKSUM_AT..start + HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    Ok(out.len() - start)
}

/// The envelope of `entry`, neither compressed nor sealed, in two pieces, its front and its value: the value is not copied.
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
/// [`Damage::Length`] when the front goes on beyond `bytes`, as that of a sealed envelope does to its end; else what is
/// wrong with it.
pub fn decode_front(bytes: &[u8]) -> Result<(Key, Entry, u64), Damage> {
    let header = Header::parse(bytes)?;
    if header.is_sealed() {
        return Err(Damage::Length);
    }
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

fn put_form(out: &mut Vec<u8>, flags: u8, namespace_len: u8, key_len: u16, stored_len: u32) {
    out.put_u8(flags);
    out.put_u8(namespace_len);
    out.put_u16_le(key_len);
    out.put_u32_le(stored_len);
}

/// Reads one whole envelope, which must fill `bytes`; the value is shared with it when it is neither compressed nor
/// sealed. `max_value` bounds what a compressed value may become.
///
/// # Errors
/// Says what is wrong with the bytes.
pub fn decode(bytes: &Bytes, max_value: usize) -> Result<(Key, Entry), Damage> {
    read(bytes, max_value, None)
}

/// Reads one whole envelope that must be `key`'s.
///
/// # Errors
/// [`Damage::OtherKey`] when it is whole but of another key, else what is wrong with the bytes.
pub fn decode_for(key: KeyRef<'_>, bytes: &Bytes, max_value: usize) -> Result<Entry, Damage> {
    read_for(key, bytes, max_value, None)
}

/// As [`decode`], with keys for what is sealed.
pub(crate) fn read(bytes: &Bytes, max_value: usize, keys: Option<&Keys>) -> Result<(Key, Entry), Damage> {
    let (bytes, parts) = Parts::open(bytes, keys)?;
    let namespace = std::str::from_utf8(&bytes[parts.namespace.clone()]).map_err(|_| Damage::Content)?;
    let key = Key::new(namespace, &bytes[parts.key.clone()]).map_err(|_| Damage::Content)?;
    Ok((key, parts.entry(&bytes, max_value)?))
}

/// As [`decode_for`], with keys for what is sealed.
pub(crate) fn read_for(
    key: KeyRef<'_>,
    bytes: &Bytes,
    max_value: usize,
    keys: Option<&Keys>,
) -> Result<Entry, Damage> {
    let (bytes, parts) = Parts::open(bytes, keys)?;
    if &bytes[parts.namespace.clone()] != key.namespace() || &bytes[parts.key.clone()] != key.bytes() {
        return Err(Damage::OtherKey);
    }
    parts.entry(&bytes, max_value)
}

/// Checks form and checksum of one whole envelope without building the entry, nor opening what is sealed.
///
/// # Errors
/// Says what is wrong with the bytes.
pub fn verify(bytes: &[u8]) -> Result<Header, Damage> {
    let header = Header::parse(bytes)?;
    if declared_len(bytes)? != bytes.len() {
        return Err(Damage::Length);
    }
    if checksum(bytes) != header.checksum {
        return Err(Damage::Checksum);
    }
    Ok(header)
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
    /// The parts of one whole envelope, and the bytes they are in: decrypted ones, when it is sealed.
    fn open(bytes: &Bytes, keys: Option<&Keys>) -> Result<(Bytes, Self), Damage> {
        let header = verify(bytes)?;
        if !header.is_sealed() {
            let parts = Self::of(header, bytes, HEADER_BYTES, bytes.len())?;
            return match keys {
                Some(keys) if keys.require() => Err(Damage::Unsealed),
                _ => Ok((bytes.clone(), parts)),
            };
        }
        let keys = keys.ok_or(Damage::UnknownKey)?;
        let body = header.key_range().end + SEAL_HEAD;
        let end = bytes
            .len()
            .checked_sub(SEAL_TAG)
            .filter(|end| body + FORM_BYTES <= *end)
            .ok_or(Damage::Length)?;
        let mut plain = bytes.to_vec();
        let (known, sealed) = plain.split_at_mut(body);
        // As it was when the seal was made.
        known[CHECKSUM_AT..HEADER_BYTES].fill(0);
        keys.open(known, sealed)?;
        let inner = header.with_form(&plain[body..body + FORM_BYTES])?;
        let parts = Self::of(inner, &plain, body + FORM_BYTES, end)?;
        Ok((plain.into(), parts))
    }

    /// The parts from `at` to `end`, which they must fill.
    fn of(header: Header, bytes: &[u8], mut at: usize, end: usize) -> Result<Self, Damage> {
        if header.is_sealed() {
            return Err(Damage::Content);
        }
        let bytes = &bytes[..end];
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
        if value.end != end {
            return Err(Damage::Length);
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
    /// Milliseconds that it is stale for, whether it says that there is no value, milliseconds the load took. Last,
    /// and left out where a load noted nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    load: Option<(u64, bool, u64)>,
}

impl From<&Extras> for Wire {
    fn from(extras: &Extras) -> Self {
        Self {
            tags: extras.tags.clone(),
            stays: extras.stays.map(|stay| stay.map(Stay::as_millis)),
            content_type: extras.content_type.clone(),
            user: extras.user.clone(),
            load: Some((millis(extras.stale), extras.nothing, millis(extras.cost)))
                .filter(|notes| *notes != (0, false, 0)),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<Wire> for Extras {
    fn from(wire: Wire) -> Self {
        let (stale, nothing, cost) = wire.load.unwrap_or_default();
        Self {
            stale: Duration::from_millis(stale),
            nothing,
            cost: Duration::from_millis(cost),
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
