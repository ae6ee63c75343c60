use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::envelope::{self, Compression, Damage};
use crate::{Entry, Key, KeyRef, Result};

/// The most bytes a value may have once it is unpacked, unless the store says otherwise.
const MAX_VALUE: usize = 1 << 30;

/// How a byte store writes entries down and reads them: the envelope, with what the store's configuration says of
/// compression.
#[derive(Clone, Debug)]
pub struct Codec {
    compression: Compression,
    max_value: usize,
}

impl Default for Codec {
    fn default() -> Self {
        Self { compression: Compression::None, max_value: MAX_VALUE }
    }
}

impl Codec {
    /// One that packs values so.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when what is asked for is not compiled in; it begins with the key it is about.
    pub fn new(compression: Packing) -> Result<Self> {
        Ok(Self { compression: compression.compression()?, ..Self::default() })
    }

    /// Appends the envelope of `entry` to `out` and returns its length.
    ///
    /// # Errors
    /// As [`envelope::encode`].
    pub fn encode(&self, key: KeyRef<'_>, entry: &Entry, out: &mut Vec<u8>) -> Result<usize, Damage> {
        envelope::encode(key, entry, self.compression, out)
    }

    /// The envelope of `entry` in two pieces, for stores that take pieces. The second is the value where it goes as it
    /// is, which copies nothing, and empty otherwise.
    ///
    /// # Errors
    /// As [`envelope::encode`].
    pub fn encode_in_two(&self, key: KeyRef<'_>, entry: &Entry) -> Result<(Vec<u8>, Bytes), Damage> {
        if self.compression == Compression::None {
            return envelope::encode_in_two(key, entry);
        }
        let mut whole = Vec::new();
        self.encode(key, entry, &mut whole)?;
        Ok((whole, Bytes::new()))
    }

    /// Reads one whole envelope that must be `key`'s.
    ///
    /// # Errors
    /// As [`envelope::decode_for`].
    pub fn decode_for(&self, key: KeyRef<'_>, bytes: &Bytes) -> Result<Entry, Damage> {
        envelope::decode_for(key, bytes, self.max_value)
    }

    /// Reads one whole envelope, of whatever key.
    ///
    /// # Errors
    /// As [`envelope::decode`].
    pub fn decode(&self, bytes: &Bytes) -> Result<(Key, Entry), Damage> {
        envelope::decode(bytes, self.max_value)
    }

    /// Reads the front of an envelope, of whatever key: the entry without its value, and the size of the value.
    /// Nothing is verified but the form.
    ///
    /// # Errors
    /// [`Damage::Length`] when it takes more than `bytes` to tell, else what is wrong with it.
    pub fn decode_front(&self, bytes: &[u8]) -> Result<(Key, Entry, u64), Damage> {
        envelope::decode_front(bytes)
    }
}

/// How values are made smaller before they are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    /// Not at all.
    #[default]
    None,
    /// LZ4: fast.
    Lz4,
    /// Zstandard, level 3: small.
    Zstd,
}

impl Packing {
    /// The envelope's word for it.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when it is not compiled in.
    pub fn compression(self) -> Result<Compression> {
        match self {
            Self::None => Ok(Compression::None),
            #[cfg(feature = "lz4")]
            Self::Lz4 => Ok(Compression::Lz4),
            #[cfg(feature = "zstd")]
            Self::Zstd => Ok(Compression::Zstd(3)),
            #[cfg(not(feature = "lz4"))]
            Self::Lz4 => Err(missing("lz4")),
            #[cfg(not(feature = "zstd"))]
            Self::Zstd => Err(missing("zstd")),
        }
    }
}

#[cfg(not(all(feature = "lz4", feature = "zstd")))]
fn missing(feature: &str) -> crate::Error {
    crate::Error::Config(format!("compression: {feature} is not compiled in, enable the feature `{feature}`"))
}
