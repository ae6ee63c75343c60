use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tiercache_core::{Codec, EncryptionConfig, Error, Packing, Result};

/// The largest segment: offsets in it stay far below 32 bits.
const MAX_SEGMENT: u64 = 1 << 30;
const MIN_SEGMENT: u64 = 4 << 10;
const DEFAULT_SEGMENT: u64 = 64 << 20;
/// The largest value that is stored, and that a compressed one may become.
pub(crate) const MAX_VALUE: usize = 1 << 30;

/// How a [`DiskTier`](crate::DiskTier) is set up.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiskConfig {
    /// The directory, made when it is not there; it belongs to one process at a time. Default: `tiercache` in the
    /// user's cache directory (`$XDG_CACHE_HOME`, else `~/.cache`).
    ///
    /// ```yaml
    /// path: /var/cache/thumbnails
    /// ```
    pub path: Option<PathBuf>,
    /// The most bytes its segments take. Default: 10 GiB.
    ///
    /// ```yaml
    /// max_size: 53687091200
    /// ```
    pub max_size: u64,
    /// Bytes of a segment, the unit in which room is reclaimed; an entry must fit in one. Default: an eighth of
    /// `max_size`, at least 1 MiB, at most 64 MiB; above 32 GiB a 512th of `max_size`, at most 1 GiB, since each
    /// segment is an open file.
    ///
    /// ```yaml
    /// segment_size: 67108864
    /// ```
    pub segment_size: Option<u64>,
    /// When what was written is forced to the disk. Default: `never`.
    ///
    /// ```yaml
    /// flush: 1s
    /// ```
    pub flush: Flush,
    /// How values are made smaller. Default: `none`. `lz4` and `zstd` need the feature of that name.
    ///
    /// ```yaml
    /// compression: zstd
    /// ```
    pub compression: Packing,
    /// How entries are encrypted. Default: not at all. Needs the feature `encryption`.
    ///
    /// ```yaml
    /// encryption: { key: "${CACHE_KEY}" }
    /// ```
    pub encryption: Option<EncryptionConfig>,
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self {
            path: None,
            max_size: 10 << 30,
            segment_size: None,
            flush: Flush::default(),
            compression: Packing::default(),
            encryption: None,
        }
    }
}

/// When writes are forced to the disk. Whatever is chosen, a removal survives the end of the process, `kill -9`
/// too, once it has been answered; this is about power cuts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum Flush {
    /// Left to the system. After a power cut the level may hold what was removed shortly before it.
    #[default]
    #[serde(rename = "never")]
    Never,
    /// Every second, in the background.
    #[serde(rename = "1s")]
    EverySecond,
    /// Before a put or a removal is answered.
    #[serde(rename = "each")]
    Each,
}

impl DiskConfig {
    /// The directory meant, the user's cache directory when none was given.
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
            .map(|cache| cache.join("tiercache"))
            .ok_or_else(|| {
                Error::Config("path: neither XDG_CACHE_HOME nor HOME is set, give the directory".into())
            })
    }

    /// Whether the level can be opened with these values; changes nothing.
    ///
    /// # Errors
    /// [`Error::Config`], whose message begins with the key that is wrong.
    pub fn check(&self) -> Result<()> {
        self.segment()?;
        self.codec()?;
        Ok(())
    }

    /// How entries are written.
    pub(crate) fn codec(&self) -> Result<Codec> {
        let codec = Codec::new(self.compression)?.with_max_value(MAX_VALUE);
        self.encryption.as_ref().map_or(Ok(codec.clone()), |encryption| codec.with_encryption(encryption))
    }

    /// Bytes of a segment.
    pub(crate) fn segment(&self) -> Result<u32> {
        let size = self.segment_size.unwrap_or_else(|| {
            let usual = (self.max_size / 8).clamp(1 << 20, DEFAULT_SEGMENT).min(self.max_size / 4);
            usual.max(self.max_size / 512).min(MAX_SEGMENT)
        });
        if !(MIN_SEGMENT..=MAX_SEGMENT).contains(&size) {
            return Err(Error::Config(match self.segment_size {
                Some(_) => {
                    format!("segment_size: {size} is not between {MIN_SEGMENT} and {MAX_SEGMENT} bytes")
                }
                None => format!("max_size: {} is below the least, {} bytes", self.max_size, 4 * MIN_SEGMENT),
            }));
        }
        if self.max_size / size < 3 {
            return Err(Error::Config(format!(
                "max_size: {} has no room for three segments of {size} bytes, give at least {}",
                self.max_size,
                3 * size
            )));
        }
        // At most 1 GiB, as checked above.
        Ok(size as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_shrink_with_the_level() {
        let segment = |max_size| DiskConfig { max_size, ..DiskConfig::default() }.segment();
        assert_eq!(segment(10 << 30).unwrap(), 64 << 20);
        assert_eq!(segment(1 << 40).unwrap(), 1 << 30);
        assert_eq!(segment(64 << 20).unwrap(), 8 << 20);
        assert_eq!(segment(8 << 20).unwrap(), 1 << 20);
        assert_eq!(segment(1 << 20).unwrap(), 256 << 10);
        assert!(segment(4 << 10).is_err());
    }

    #[test]
    fn too_few_segments_are_refused_with_the_least_that_would_do() {
        let config = DiskConfig { max_size: 1 << 20, segment_size: Some(512 << 10), ..DiskConfig::default() };
        assert!(config.segment().unwrap_err().to_string().contains("1572864"));
    }
}
