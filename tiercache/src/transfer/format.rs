//! The one stream that exports are written in.
//!
//! Version 1, little endian, sizes in bytes:
//!
//! ```text
//! header   0  8  magic, 89 "TCX" 0D 0A 1A 0A: what changes line ends or cuts the eighth bit is noticed at once
//!          8  2  version, 1
//!         10  2  zero
//!         12  8  salt, random
//!         20  8  made at, milliseconds since the epoch
//!         28  4  check: the low half of the XXH3-64 of everything before
//! record   0  4  "TCXr"
//!          4  4  length of what follows the check
//!          8  4  check: the low half of the XXH3-64 of the eight bytes before, seeded with the salt
//!         12     an envelope, as stores keep it: see `tiercache_core::envelope`
//! trailer  0  4  "TCXe"
//!          4  4  24
//!          8  4  check likewise
//!         12  8  records
//!         20  8  bytes of their values
//!         28  8  XXH3-64 of everything before this field, from the header on
//! ```
//!
//! The salt makes sure that a value which holds an export itself is never taken for records, not even when damage makes
//! a reader look for the next one. Nothing stands behind the trailer.

use std::hash::{BuildHasher, Hasher};

use tiercache_core::Timestamp;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The first bytes of every export.
pub const MAGIC: [u8; 8] = *b"\x89TCX\r\n\x1a\n";
/// The version this one writes, and the only one it reads.
pub const VERSION: u16 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 32;
/// Bytes in front of each envelope, and of the trailer's fields.
pub const FRAME_BYTES: usize = 12;
/// Bytes of the trailer behind its frame.
pub const TRAILER_BYTES: usize = 24;

const RECORD: [u8; 4] = *b"TCXr";
const TRAILER: [u8; 4] = *b"TCXe";

/// The beginning of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Tells this stream's frames from those of every other.
    pub salt: u64,
    /// When it was made.
    pub made: Timestamp,
}

/// What a frame announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// An envelope of so many bytes.
    Record(u32),
    /// The end.
    Trailer,
}

/// The fields of the trailer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trailer {
    /// Records in the stream.
    pub records: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// The checksum of the whole.
    pub checksum: u64,
}

impl Header {
    /// One with a salt of its own.
    pub fn new(made: Timestamp) -> Self {
        // Every hasher of the standard library's has random keys, which is all that is needed here.
        let salt = std::collections::hash_map::RandomState::new().build_hasher().finish();
        Self { salt, made }
    }

    /// As it is written.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[12..20].copy_from_slice(&self.salt.to_le_bytes());
        out[20..28].copy_from_slice(&self.made.as_millis().to_le_bytes());
        let check = low(xxh3_64(&out[..28]));
        out[28..].copy_from_slice(&check);
        out
    }

    /// Reads the beginning of a stream, however much of it there is.
    ///
    /// # Errors
    /// Says what stands there instead.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let known = bytes.len().min(MAGIC.len());
        if bytes.is_empty() || bytes[..known] != MAGIC[..known] {
            return Err("this is no export: it does not begin with 89 54 43 58".into());
        }
        let Some(bytes) = bytes.get(..HEADER_BYTES) else {
            return Err(format!("the export ends after {} of its {HEADER_BYTES} first bytes", bytes.len()));
        };
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != VERSION {
            return Err(format!("the export has version {version}, this program reads {VERSION}"));
        }
        if bytes[28..] != low(xxh3_64(&bytes[..28])) {
            return Err("the header of the export is damaged: its checksum does not match".into());
        }
        Ok(Self { salt: number(&bytes[12..20]), made: Timestamp::from_millis(number(&bytes[20..28])) })
    }

    /// The frame of an envelope of so many bytes.
    pub fn record(&self, length: u32) -> [u8; FRAME_BYTES] {
        self.frame(RECORD, length)
    }

    /// The trailer's frame and fields, but for the checksum of the whole.
    pub fn trailer(&self, records: u64, bytes: u64) -> [u8; FRAME_BYTES + 16] {
        let mut out = [0; FRAME_BYTES + 16];
        out[..FRAME_BYTES].copy_from_slice(&self.frame(TRAILER, TRAILER_BYTES as u32));
        out[FRAME_BYTES..FRAME_BYTES + 8].copy_from_slice(&records.to_le_bytes());
        out[FRAME_BYTES + 8..].copy_from_slice(&bytes.to_le_bytes());
        out
    }

    /// What the frame at the beginning of `bytes` announces; `None` when it is none of this stream.
    pub fn parse(&self, bytes: &[u8]) -> Option<Frame> {
        let bytes = bytes.get(..FRAME_BYTES)?;
        if bytes[8..] != low(xxh3_64_with_seed(&bytes[..8], self.salt)) {
            return None;
        }
        let length = u32::from_le_bytes(bytes[4..8].try_into().ok()?);
        match bytes[..4].try_into().ok()? {
            RECORD => Some(Frame::Record(length)),
            TRAILER if length as usize == TRAILER_BYTES => Some(Frame::Trailer),
            _ => None,
        }
    }

    fn frame(&self, mark: [u8; 4], length: u32) -> [u8; FRAME_BYTES] {
        let mut out = [0; FRAME_BYTES];
        out[..4].copy_from_slice(&mark);
        out[4..8].copy_from_slice(&length.to_le_bytes());
        let check = low(xxh3_64_with_seed(&out[..8], self.salt));
        out[8..].copy_from_slice(&check);
        out
    }
}

impl Trailer {
    /// Reads the fields behind the trailer's frame; fewer than [`TRAILER_BYTES`] are none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..TRAILER_BYTES)?;
        let (records, bytes, checksum) = (number(&bytes[..8]), number(&bytes[8..16]), number(&bytes[16..24]));
        Some(Self { records, bytes, checksum })
    }
}

/// Where the next frame may begin in `bytes`, which no frame begins with.
pub(super) fn next_mark(bytes: &[u8]) -> Option<usize> {
    (1..bytes.len()).find(|&at| {
        let rest = &bytes[at..];
        let known = rest.len().min(4);
        rest[..known] == RECORD[..known] || rest[..known] == TRAILER[..known]
    })
}

fn low(hash: u64) -> [u8; 4] {
    (hash as u32).to_le_bytes()
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| (number << 8) | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The format is a promise to whoever kept a file: these bytes must be read for ever.
    #[test]
    fn version_1_is_written_as_it_was_released() {
        let header = Header { salt: 0x0807_0605_0403_0201, made: Timestamp::from_millis(1_700_000_000_000) };
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(
            hex(&header.encode()),
            "895443580d0a1a0a0100000001020304050607080068e5cf8b010000".to_owned()
                + &hex(&low(xxh3_64(&header.encode()[..28])))
        );
        assert_eq!(Header::decode(&header.encode()), Ok(header));
        assert_eq!(header.parse(&header.record(70_000)), Some(Frame::Record(70_000)));
        assert_eq!(header.parse(&header.trailer(3, 9)), Some(Frame::Trailer));
        assert_eq!(Header { salt: 1, ..header }.parse(&header.record(70_000)), None, "of another stream");
    }

    #[test]
    fn a_header_says_what_stands_there_instead() {
        let header = Header::new(Timestamp::EPOCH).encode();
        let told = |bytes: &[u8]| Header::decode(bytes).unwrap_err();
        assert!(told(b"").contains("no export"));
        assert!(told(b"PK\x03\x04").contains("no export"));
        assert!(told(&header[..20]).contains("ends after 20"));
        let mut later = header;
        later[8] = 2;
        assert!(told(&later).contains("version 2"));
        let mut damaged = header;
        damaged[25] ^= 1;
        assert!(told(&damaged).contains("checksum"));
        // Carried by something that changes line ends.
        assert!(
            told(&header.iter().copied().filter(|byte| *byte != 13).collect::<Vec<_>>())
                .contains("no export")
        );
    }
}
