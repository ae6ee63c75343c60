//! How a response is written into one entry: numbers, headers, and the body if it is short.
//!
//! ```text
//! version 1 | status 2 | flags 1 | came 8 | initial age 8 | lifetime 8 | while revalidate 8 | if error 8
//! part: start 8, end 8, whole length 8 | pieces: id 16, length 8, size of each 4
//! headers: count 2, each name length 2, value length 4, name, value | body
//! ```
//!
//! Integers are big-endian. The entry's envelope has the checksum; what does not decode is a miss.

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::Id;
use crate::policy::fresh::Freshness;

const VERSION: u8 = 1;
/// Headers that an answer may have besides those that are stored.
const ADDED: usize = 3;
const NO_CACHE: u8 = 1;
const MUST_REVALIDATE: u8 = 2;
const IMMUTABLE: u8 = 4;
const IF_ERROR: u8 = 8;
const PART: u8 = 16;
const PIECES: u8 = 32;

/// A stored response.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stored {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) fresh: Freshness,
    /// The part that it has, and the length of the whole; `None` when it has the whole.
    pub(crate) part: Option<(Range<u64>, u64)>,
    pub(crate) content: Content,
}

/// Where the body is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    Inline(Bytes),
    Pieces(Pieces),
}

/// A body in entries of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pieces {
    pub(crate) id: Id,
    pub(crate) length: u64,
    /// Of each but the last.
    pub(crate) size: u32,
}

impl Pieces {
    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.length.div_ceil(u64::from(self.size.max(1)))).unwrap_or(u32::MAX)
    }
}

impl Stored {
    /// The body's length.
    pub(crate) fn length(&self) -> u64 {
        match &self.content {
            Content::Inline(bytes) => bytes.len() as u64,
            Content::Pieces(pieces) => pieces.length,
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let body = match &self.content {
            Content::Inline(bytes) => bytes.clone(),
            Content::Pieces(_) => Bytes::new(),
        };
        let fields: usize =
            self.headers.iter().map(|(name, value)| 6 + name.as_str().len() + value.len()).sum();
        let mut out = BytesMut::with_capacity(128 + fields + body.len());
        let fresh = &self.fresh;
        let mut flags = 0;
        for (set, flag) in [
            (fresh.no_cache, NO_CACHE),
            (fresh.must_revalidate, MUST_REVALIDATE),
            (fresh.immutable, IMMUTABLE),
            (fresh.if_error.is_some(), IF_ERROR),
            (self.part.is_some(), PART),
            (matches!(self.content, Content::Pieces(_)), PIECES),
        ] {
            flags |= if set { flag } else { 0 };
        }
        out.put_u8(VERSION);
        out.put_u16(self.status);
        out.put_u8(flags);
        for number in [
            fresh.came,
            fresh.initial_age,
            fresh.lifetime,
            fresh.while_revalidate,
            fresh.if_error.unwrap_or(0),
        ] {
            out.put_u64(number);
        }
        if let Some((part, whole)) = &self.part {
            [part.start, part.end, *whole].into_iter().for_each(|number| out.put_u64(number));
        }
        if let Content::Pieces(pieces) = &self.content {
            out.put_slice(&pieces.id);
            out.put_u64(pieces.length);
            out.put_u32(pieces.size);
        }
        // As many as `fits` lets through.
        out.put_u16(u16::try_from(self.headers.len()).unwrap_or(u16::MAX));
        for (name, value) in &self.headers {
            out.put_u16(u16::try_from(name.as_str().len()).unwrap_or(u16::MAX));
            out.put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
            out.put_slice(name.as_str().as_bytes());
            out.put_slice(value.as_bytes());
        }
        out.put_slice(&body);
        out.freeze()
    }

    /// Whether the headers can be written.
    pub(crate) fn fits(headers: &HeaderMap) -> bool {
        headers.len() < usize::from(u16::MAX)
            && headers.iter().all(|(name, value)| {
                name.as_str().len() < usize::from(u16::MAX) && u32::try_from(value.len()).is_ok()
            })
    }

    /// `None` for what is no stored response. Values and body share the entry's memory.
    pub(crate) fn decode(mut entry: Bytes) -> Option<Self> {
        if entry.try_get_u8().ok()? != VERSION {
            return None;
        }
        let status = entry.try_get_u16().ok()?;
        let flags = entry.try_get_u8().ok()?;
        let has = |flag: u8| flags & flag != 0;
        let (came, initial_age) = (entry.try_get_u64().ok()?, entry.try_get_u64().ok()?);
        let (lifetime, while_revalidate) = (entry.try_get_u64().ok()?, entry.try_get_u64().ok()?);
        let if_error = entry.try_get_u64().ok()?;
        let fresh = Freshness {
            came,
            initial_age,
            lifetime,
            no_cache: has(NO_CACHE),
            must_revalidate: has(MUST_REVALIDATE),
            immutable: has(IMMUTABLE),
            while_revalidate,
            if_error: has(IF_ERROR).then_some(if_error),
        };
        let mut part = None;
        if has(PART) {
            let (start, end) = (entry.try_get_u64().ok()?, entry.try_get_u64().ok()?);
            part = Some((start..end, entry.try_get_u64().ok()?));
        }
        let mut pieces = None;
        if has(PIECES) {
            let mut id = Id::default();
            entry.try_copy_to_slice(&mut id).ok()?;
            let (length, size) = (entry.try_get_u64().ok()?, entry.try_get_u32().ok()?);
            pieces = Some(Pieces { id, length, size }).filter(|pieces| pieces.size > 0);
            pieces.as_ref()?;
        }
        let count = usize::from(entry.try_get_u16().ok()?);
        // An entry of a few bytes must not make room for many headers. Those that an answer adds find theirs.
        let mut headers = HeaderMap::with_capacity(count.min(64) + ADDED);
        for _ in 0..count {
            let name = usize::from(entry.try_get_u16().ok()?);
            let value = entry.try_get_u32().ok()? as usize;
            if entry.len() < name.checked_add(value)? {
                return None;
            }
            let name = HeaderName::from_bytes(&entry.split_to(name)).ok()?;
            let value = HeaderValue::from_maybe_shared(entry.split_to(value)).ok()?;
            headers.try_append(name, value).ok()?;
        }
        let content = match pieces {
            Some(pieces) => Content::Pieces(pieces),
            None => Content::Inline(entry),
        };
        let stored = Self { status, headers, fresh, part, content };
        let consistent = stored.part.as_ref().is_none_or(|(part, whole)| {
            part.start < part.end && part.end <= *whole && part.end - part.start == stored.length()
        });
        consistent.then_some(stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::testing::headers;

    fn stored(content: Content, part: Option<(Range<u64>, u64)>) -> Stored {
        let fresh = Freshness {
            came: 1,
            initial_age: 2,
            lifetime: 3,
            no_cache: true,
            must_revalidate: false,
            immutable: true,
            while_revalidate: 4,
            if_error: Some(0),
        };
        let headers = headers(&[("a", "1"), ("a", "2"), ("empty", ""), ("etag", "\"\u{fc}\"")]);
        Stored { status: 404, headers, fresh, part, content }
    }

    fn samples() -> [Stored; 3] {
        let pieces = Pieces { id: [7; 16], length: 1000, size: 300 };
        assert_eq!(pieces.count(), 4);
        [
            stored(Content::Inline(Bytes::from_static(b"body")), None),
            stored(Content::Inline(Bytes::from_static(b"body")), Some((3..7, 9))),
            stored(Content::Pieces(pieces), None),
        ]
    }

    #[test]
    fn responses_come_back_as_they_went() {
        for sample in samples() {
            assert_eq!(Stored::decode(sample.encode()).as_ref(), Some(&sample));
        }
    }

    #[test]
    fn cut_or_altered_heads_are_misses_and_nothing_panics() {
        for sample in samples() {
            let whole = sample.encode();
            let head = whole.len() - if matches!(sample.content, Content::Inline(_)) { 4 } else { 0 };
            for cut in 0..head {
                assert_eq!(Stored::decode(whole.slice(..cut)), None, "{cut} of {head}");
            }
            for at in 0..whole.len() {
                let mut altered = whole.to_vec();
                altered[at] ^= 0xff;
                // The envelope's checksum finds what is wrong; here it must only not panic.
                let _ = Stored::decode(altered.into());
            }
        }
    }
}
