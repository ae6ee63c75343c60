//! Sealing entries before a store gets them: whoever can read or write the store can neither read nor make them.
//!
//! The cipher is XChaCha20-Poly1305, the nonce random. Sealed are namespace, key, extras and value; generation, times
//! and size stay readable, as stores need them. They are bound to the rest all the same: an entry that was moved to
//! another key, namespace or generation is a miss. What is not prevented is that an older entry of the same key is put
//! back as it was.
//!
//! An entry grows by 56 bytes and a random nonce is asked of the system for each. `cargo run --release -p tiercache-core
//! --features encryption --example seal`, on two busy cores, µs an entry, without and with:
//!
//! | value | write | read |
//! |---|---|---|
//! | 256 B | 0.08 → 4.7 | 0.14 → 2.9 |
//! | 4 KiB | 0.4 → 9.4 | 0.4 → 11 |
//! | 64 KiB | 4.8 → 142 | 3.8 → 129 |
//! | 1 MiB | 103 → 1,840 | 53 → 1,710 |

#[cfg(feature = "encryption")]
mod keys;
#[cfg(not(feature = "encryption"))]
mod none;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Secret;

#[cfg(feature = "encryption")]
pub(crate) use keys::Keys;
#[cfg(not(feature = "encryption"))]
pub(crate) use none::Keys;

/// Bytes of the id of a key.
pub(crate) const KEY_ID: usize = 8;
/// Bytes in front of what is sealed: the key's id and the nonce.
pub(crate) const SEAL_HEAD: usize = KEY_ID + 24;
/// Bytes behind it.
pub(crate) const SEAL_TAG: usize = 16;

/// How a store's entries are encrypted. Needs the feature `encryption`.
///
/// ```yaml
/// encryption:
///   key: ${CACHE_KEY}               # openssl rand -base64 32
///   old_keys:
///     - key_file: /etc/app/cache.key.2025
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EncryptionConfig {
    /// The key of everything written: 32 bytes in base64. This or `key_file`.
    ///
    /// ```yaml
    /// key: ${CACHE_KEY}
    /// ```
    #[serde(default)]
    pub key: Option<Secret>,
    /// A file with the key, as 32 bytes or as base64, that others than its owner and group may not read.
    ///
    /// ```yaml
    /// key_file: /run/secrets/cache.key
    /// ```
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// The name under which entries remember their key. Default: derived from the key.
    ///
    /// ```yaml
    /// id: "2026"
    /// ```
    #[serde(default)]
    pub id: Option<String>,
    /// Keys of before: what is sealed under one is still read. Once none of it is left, a key can go from here.
    ///
    /// ```yaml
    /// old_keys: [{ key: "${CACHE_KEY_2025}" }]
    /// ```
    #[serde(default)]
    pub old_keys: Vec<OldKey>,
    /// Whether entries that are not sealed are misses, so that nobody can plant one. Default: `true`; `false` is for
    /// the time in which a store with plain entries turns over.
    ///
    /// ```yaml
    /// require: true
    /// ```
    #[serde(default = "yes")]
    pub require: bool,
}

impl Default for EncryptionConfig {
    fn default() -> Self {
        Self { key: None, key_file: None, id: None, old_keys: Vec::new(), require: true }
    }
}

fn yes() -> bool {
    true
}

/// A key that is only read with; the fields are those of [`EncryptionConfig`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct OldKey {
    /// 32 bytes in base64. This or `key_file`.
    #[serde(default)]
    pub key: Option<Secret>,
    /// A file with the key.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// The `id` it had, if it had one.
    #[serde(default)]
    pub id: Option<String>,
}
