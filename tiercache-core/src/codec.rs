use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::encryption::Keys;
use crate::envelope::{self, Compression, Damage};
use crate::{EncryptionConfig, Entry, Key, KeyRef, Result};

/// The most bytes a value may have once it is unpacked, unless the store says otherwise.
const MAX_VALUE: usize = 1 << 30;

/// How a byte store writes entries down and reads them: the envelope, with what the store's configuration says of
/// compression and encryption. Values are packed first, then sealed.
#[derive(Clone, Debug)]
pub struct Codec {
    compression: Compression,
    keys: Option<Arc<Keys>>,
    max_value: usize,
}

impl Default for Codec {
    fn default() -> Self {
        Self { compression: Compression::None, keys: None, max_value: MAX_VALUE }
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

    /// The same, sealing what it writes and reading only what is sealed.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when a key cannot be had or encryption is not compiled in; it begins
    /// with the key of the configuration it is about and shows no secret.
    pub fn with_encryption(self, encryption: &EncryptionConfig) -> Result<Self> {
        Ok(Self { keys: Some(Arc::new(Keys::of(encryption)?)), ..self })
    }

    /// The same, refusing values with more than `max_value` bytes once they are unpacked.
    pub fn with_max_value(self, max_value: usize) -> Self {
        Self { max_value, ..self }
    }

    /// Whether encoding a large value takes long enough to be done elsewhere.
    pub fn is_costly(&self) -> bool {
        self.compression != Compression::None || self.seals()
    }

    /// Whether what it writes is sealed.
    pub fn seals(&self) -> bool {
        self.keys.is_some()
    }

    /// Appends the envelope of `entry` to `out` and returns its length.
    ///
    /// # Errors
    /// As [`envelope::encode`].
    pub fn encode(&self, key: KeyRef<'_>, entry: &Entry, out: &mut Vec<u8>) -> Result<usize, Damage> {
        self.encode_noted(key, entry, &[], out)
    }

    /// Likewise, where a sealed envelope has a note that can be read without a key: see [`envelope`]. One that is not
    /// sealed has none.
    ///
    /// # Errors
    /// As [`envelope::encode`].
    pub fn encode_noted(
        &self,
        key: KeyRef<'_>,
        entry: &Entry,
        note: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<usize, Damage> {
        envelope::write(key, entry, self.compression, self.keys.as_deref().map(|keys| (keys, note)), out)
    }

    /// Reads one whole envelope that must be `key`'s.
    ///
    /// # Errors
    /// As [`envelope::decode_for`]; with encryption also [`Damage::UnknownKey`], [`Damage::Forged`],
    /// [`Damage::Unsealed`].
    pub fn decode_for(&self, key: KeyRef<'_>, bytes: &Bytes) -> Result<Entry, Damage> {
        envelope::read_for(key, bytes, self.max_value, self.keys.as_deref())
    }

    /// Reads one whole envelope, of whatever key.
    ///
    /// # Errors
    /// As [`Codec::decode_for`].
    pub fn decode(&self, bytes: &Bytes) -> Result<(Key, Entry), Damage> {
        envelope::read(bytes, self.max_value, self.keys.as_deref())
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
