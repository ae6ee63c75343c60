use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tiercache_core::{Codec, EncryptionConfig, Error, Packing, Result};

/// Shards of a directory that is made anew and for which nothing is said.
pub(crate) const DEFAULT_SHARDS: u32 = 4;
const MAX_SHARDS: u32 = 64;
/// The least bytes a shard may have.
const MIN_SHARE: u64 = 64 << 10;
/// The largest value that is stored, and that a compressed one may become.
pub(crate) const MAX_VALUE: u64 = 1 << 30;
const MAX_INLINE: u64 = 16 << 20;
const MAX_READERS: u32 = 32;

/// How a [`SqliteTier`](crate::SqliteTier) is set up.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SqliteConfig {
    /// The directory, made when it is not there; several processes of one user may share it. Default:
    /// `tiercache-sqlite` in the user's cache directory (`$XDG_CACHE_HOME`, else `~/.cache`).
    ///
    /// ```yaml
    /// path: /var/cache/pages
    /// ```
    pub path: Option<PathBuf>,
    /// The most bytes its entries take, whichever process put them; every shard has an equal part. Default: 10 GiB.
    ///
    /// ```yaml
    /// max_size: 53687091200
    /// ```
    pub max_size: u64,
    /// Databases the keys are spread over, each with a writer of its own. Fixed when the directory is made; another
    /// number is refused later. Default: what the directory has, 4 for a new one.
    ///
    /// ```yaml
    /// shards: 8
    /// ```
    pub shards: Option<u32>,
    /// Values of up to so many bytes, packed or not, stand in the database, larger ones in files. Default: 64 KiB.
    ///
    /// ```yaml
    /// inline_max: 65536
    /// ```
    pub inline_max: u64,
    /// Connections of a shard that read, and so the most threads that read from it at once. Default: 2.
    ///
    /// ```yaml
    /// readers: 2
    /// ```
    pub readers: u32,
    /// What is forced to the disk. Default: `normal`.
    ///
    /// ```yaml
    /// synchronous: normal
    /// ```
    pub synchronous: Synchronous,
    /// How long a writer waits for those of other processes. Default: 5 s.
    ///
    /// ```yaml
    /// busy_timeout: 5s
    /// ```
    pub busy_timeout: Duration,
    /// How values are made smaller. Default: `none`. `lz4` and `zstd` need the feature of that name.
    ///
    /// ```yaml
    /// compression: zstd
    /// ```
    pub compression: Packing,
    /// How values are encrypted; keys, namespaces and tags are not. Default: not at all. Needs the feature
    /// `encryption`.
    ///
    /// ```yaml
    /// encryption: { key: "${CACHE_KEY}" }
    /// ```
    pub encryption: Option<EncryptionConfig>,
}

impl Default for SqliteConfig {
    fn default() -> Self {
        Self {
            path: None,
            max_size: 10 << 30,
            shards: None,
            inline_max: 64 << 10,
            readers: 2,
            synchronous: Synchronous::default(),
            busy_timeout: Duration::from_secs(5),
            compression: Packing::default(),
            encryption: None,
        }
    }
}

/// What is forced to the disk. Whatever is chosen, what was answered survives the end of the process, `kill -9` too;
/// this is about power cuts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Synchronous {
    /// Nothing: a power cut may damage a database, which is then set aside.
    Off,
    /// The log before it is brought home: a power cut takes back the last commits, removals too.
    #[default]
    Normal,
    /// Every commit, and the file of a large value before its commit.
    Full,
}

impl SqliteConfig {
    /// The directory meant, one in the user's cache directory when none was given.
    ///
    /// # Errors
    /// [`Error::Config`] when neither a path nor a home is known.
    pub fn directory(&self) -> Result<PathBuf> {
        if let Some(path) = &self.path {
            return Ok(path.clone());
        }
        let absolute =
            |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        absolute("XDG_CACHE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
            .map(|cache| cache.join("tiercache-sqlite"))
            .ok_or_else(|| {
                Error::Config("path: neither XDG_CACHE_HOME nor HOME is set, give the directory".into())
            })
    }

    /// Whether the level can be opened with these values; changes nothing.
    ///
    /// # Errors
    /// [`Error::Config`], whose message begins with the key that is wrong.
    pub fn check(&self) -> Result<()> {
        let wrong = |message: String| Err(Error::Config(message));
        let shards = self.shards.unwrap_or(DEFAULT_SHARDS);
        match () {
            () if !(1..=MAX_SHARDS).contains(&shards) => {
                wrong(format!("shards: {shards} is not between 1 and {MAX_SHARDS}"))
            }
            () if self.max_size / u64::from(shards) < MIN_SHARE => wrong(format!(
                "max_size: {} is below the least for {shards} shards, {} bytes",
                self.max_size,
                u64::from(shards) * MIN_SHARE
            )),
            () if self.inline_max > MAX_INLINE => {
                wrong(format!("inline_max: {} is above the most, {MAX_INLINE} bytes", self.inline_max))
            }
            () if !(1..=MAX_READERS).contains(&self.readers) => {
                wrong(format!("readers: {} is not between 1 and {MAX_READERS}", self.readers))
            }
            () if self.busy_timeout.is_zero() || self.busy_timeout > Duration::from_secs(3_600) => {
                wrong("busy_timeout: give more than nothing and at most an hour".into())
            }
            () => self.codec().map(drop),
        }
    }

    /// How entries are written.
    pub(crate) fn codec(&self) -> Result<Codec> {
        let codec = Codec::new(self.compression)?.with_max_value(MAX_VALUE as usize);
        self.encryption.as_ref().map_or(Ok(codec.clone()), |encryption| codec.with_encryption(encryption))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_cannot_be_meant_are_refused_by_name() {
        SqliteConfig::default().check().unwrap();
        let refused = |config: SqliteConfig| config.check().unwrap_err().to_string();
        let base = SqliteConfig::default;
        assert!(refused(SqliteConfig { shards: Some(0), ..base() }).starts_with("shards: "));
        assert!(refused(SqliteConfig { max_size: 1 << 10, ..base() }).starts_with("max_size: "));
        assert!(refused(SqliteConfig { inline_max: 1 << 30, ..base() }).starts_with("inline_max: "));
        assert!(refused(SqliteConfig { readers: 0, ..base() }).starts_with("readers: "));
        assert!(refused(SqliteConfig { busy_timeout: Duration::ZERO, ..base() }).starts_with("busy_timeout"));
    }
}
