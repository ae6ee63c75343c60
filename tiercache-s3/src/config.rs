use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tiercache_core::{Address, Codec, EncryptionConfig, Error, Packing, Result, Secret};

/// The smallest part but the last that S3 takes.
const MIN_PART: u64 = 5 << 20;
/// The most parts of one upload.
const MOST_PARTS: u64 = 10_000;
/// The most bytes S3 takes in one request.
const MOST_AT_ONCE: u64 = 5 << 30;

/// How an [`S3Tier`](crate::S3Tier) is set up.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Config {
    /// The bucket, which must be there. No default.
    ///
    /// ```yaml
    /// bucket: app-cache
    /// ```
    pub bucket: String,
    /// The service, for vendors other than AWS; `http://` is used only when it stands here. Default: that of AWS in
    /// the region, by `https`.
    ///
    /// ```yaml
    /// endpoint_url: http://127.0.0.1:9000
    /// ```
    pub endpoint_url: Option<Address>,
    /// A file with the authorities, in PEM, of which one must have signed the service's certificate, instead of those the
    /// system trusts. It does not count where credentials are asked for. Default: those of the system.
    ///
    /// ```yaml
    /// ca_file: /etc/ssl/minio-ca.pem
    /// ```
    pub ca_file: Option<PathBuf>,
    /// The region. Default: `us-east-1` with an `endpoint_url`, else what environment and profile say.
    ///
    /// ```yaml
    /// region: eu-central-1
    /// ```
    pub region: Option<String>,
    /// What the names of all objects begin with; the level's name follows. Default: `tiercache/`.
    ///
    /// ```yaml
    /// prefix: shop/cache/
    /// ```
    pub prefix: String,
    /// The key's id. Default: credentials from the environment, else the profile, else the machine's role.
    ///
    /// ```yaml
    /// access_key: ${S3_KEY}
    /// ```
    pub access_key: Option<Secret>,
    /// The key's secret, given together with `access_key`.
    ///
    /// ```yaml
    /// secret_key: ${S3_SECRET}
    /// ```
    pub secret_key: Option<Secret>,
    /// The token that temporary keys come with. Default: none.
    ///
    /// ```yaml
    /// session_token: ${S3_TOKEN}
    /// ```
    pub session_token: Option<Secret>,
    /// Whether the bucket stands in the path instead of the host's name. Default: with an `endpoint_url`.
    ///
    /// ```yaml
    /// force_path_style: false
    /// ```
    pub force_path_style: Option<bool>,
    /// The most bytes the level should take; what is over it goes, oldest first, at every walk. Default: no limit.
    ///
    /// ```yaml
    /// max_size: 500GB
    /// ```
    pub max_size: Option<u64>,
    /// The most bytes of an entry, which is in memory as a whole when it is read. Default: 1 GiB.
    ///
    /// ```yaml
    /// max_entry_size: 64MiB
    /// ```
    pub max_entry_size: u64,
    /// Entries of more bytes are uploaded in parts. Default: 16 MiB.
    ///
    /// ```yaml
    /// multipart_threshold: 32MiB
    /// ```
    pub multipart_threshold: u64,
    /// Bytes of a part, at least 5 MiB. Default: 8 MiB.
    ///
    /// ```yaml
    /// part_size: 16MiB
    /// ```
    pub part_size: u64,
    /// The longest a connection may take to be made. Default: 3 s.
    ///
    /// ```yaml
    /// connect_timeout: 1s
    /// ```
    pub connect_timeout: Duration,
    /// The longest a request may take, its body included. The level's own deadlines are shorter as a rule; this one
    /// ends what nobody waits for any more. Default: 30 s.
    ///
    /// ```yaml
    /// timeout: 10s
    /// ```
    pub timeout: Duration,
    /// How often all objects are walked over, to drop what is dead. The first walk is made when the cache starts.
    /// Default: every day; `null` is never, for buckets with a lifecycle rule.
    ///
    /// ```yaml
    /// walk_every: 12h
    /// ```
    pub walk_every: Option<Duration>,
    /// How often the objects are only listed and `max_size` is seen to. Default: every hour.
    ///
    /// ```yaml
    /// list_every: 10m
    /// ```
    pub list_every: Duration,
    /// The age at which an unfinished upload under the prefix is cleaned up; longer than the longest upload takes.
    /// Default: one day.
    ///
    /// ```yaml
    /// unfinished_after: 2h
    /// ```
    pub unfinished_after: Duration,
    /// The storage class of entries. Default: the bucket's.
    ///
    /// ```yaml
    /// storage_class: ONEZONE_IA
    /// ```
    pub storage_class: Option<String>,
    /// Encryption by the server: `AES256`, `aws:kms` or `aws:kms:dsse`. Default: the bucket's.
    ///
    /// ```yaml
    /// server_side_encryption: aws:kms
    /// ```
    pub server_side_encryption: Option<String>,
    /// The key for `aws:kms`. Default: the account's.
    ///
    /// ```yaml
    /// kms_key_id: arn:aws:kms:eu-central-1:111122223333:key/1234
    /// ```
    pub kms_key_id: Option<String>,
    /// How values are made smaller. Default: `none`. `lz4` and `zstd` need the feature of that name.
    ///
    /// ```yaml
    /// compression: zstd
    /// ```
    pub compression: Packing,
    /// How entries are encrypted before they leave the process. Default: not at all. Needs the feature `encryption`.
    ///
    /// ```yaml
    /// encryption: { key: "${CACHE_KEY}" }
    /// ```
    pub encryption: Option<EncryptionConfig>,
}

impl Default for S3Config {
    fn default() -> Self {
        Self {
            bucket: String::new(),
            endpoint_url: None,
            ca_file: None,
            region: None,
            prefix: "tiercache/".into(),
            access_key: None,
            secret_key: None,
            session_token: None,
            force_path_style: None,
            max_size: None,
            max_entry_size: 1 << 30,
            multipart_threshold: 16 << 20,
            part_size: 8 << 20,
            connect_timeout: Duration::from_secs(3),
            timeout: Duration::from_secs(30),
            walk_every: Some(Duration::from_secs(86_400)),
            list_every: Duration::from_secs(3_600),
            unfinished_after: Duration::from_secs(86_400),
            storage_class: None,
            server_side_encryption: None,
            kms_key_id: None,
            compression: Packing::default(),
            encryption: None,
        }
    }
}

impl S3Config {
    /// Whether the level can be opened with these values; touches nothing.
    ///
    /// # Errors
    /// [`Error::Config`], whose message begins with the key that is wrong.
    pub fn check(&self) -> Result<()> {
        let wrong = |message: String| Err(Error::Config(message));
        if self.bucket.is_empty() {
            return wrong("bucket: give the name of the bucket".into());
        }
        if let Some(url) = &self.endpoint_url {
            let known = ["http://", "https://"].iter().any(|scheme| url.reveal().starts_with(scheme));
            if !known || url.reveal().contains('@') {
                return wrong(format!(
                    "endpoint_url: {url} is no `http://` or `https://` address without a user"
                ));
            }
        }
        let in_the_clear = self.endpoint_url.as_ref().is_some_and(|url| url.reveal().starts_with("http://"));
        if self.ca_file.is_some() && in_the_clear {
            return wrong("ca_file: needs an `https://` address in endpoint_url".into());
        }
        match (&self.access_key, &self.secret_key, &self.session_token) {
            (Some(_), None, _) => return wrong("access_key: needs a secret_key beside it".into()),
            (None, Some(_), _) => return wrong("secret_key: needs an access_key beside it".into()),
            (None, None, Some(_)) => return wrong("session_token: needs access_key and secret_key".into()),
            _ => {}
        }
        if self.part_size < MIN_PART {
            return wrong(format!("part_size: {} is below the least, {MIN_PART} bytes", self.part_size));
        }
        if self.multipart_threshold > MOST_AT_ONCE {
            return wrong(format!("multipart_threshold: S3 takes at most {MOST_AT_ONCE} bytes at once"));
        }
        // The envelope says a value's length in 32 bits.
        let most = self.part_size.saturating_mul(MOST_PARTS).min(u64::from(u32::MAX));
        if self.max_entry_size > most {
            return wrong(format!("max_entry_size: {} is above the most, {most} bytes", self.max_entry_size));
        }
        if self.kms_key_id.is_some()
            && !self.server_side_encryption.as_deref().is_some_and(|sse| sse.starts_with("aws:kms"))
        {
            return wrong("kms_key_id: goes with `server_side_encryption: aws:kms`".into());
        }
        self.codec()?;
        Ok(())
    }

    /// How entries are written.
    pub(crate) fn codec(&self) -> Result<Codec> {
        let codec = Codec::new(self.compression)?
            .with_max_value(usize::try_from(self.max_entry_size).unwrap_or(usize::MAX));
        self.encryption.as_ref().map_or(Ok(codec.clone()), |encryption| codec.with_encryption(encryption))
    }

    /// Where the level is, for people.
    pub(crate) fn place(&self) -> String {
        match &self.endpoint_url {
            Some(url) => format!("bucket `{}` at {url}", self.bucket),
            None => format!("bucket `{}`", self.bucket),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> S3Config {
        S3Config { bucket: "b".into(), ..S3Config::default() }
    }

    #[test]
    fn the_defaults_need_a_bucket_only() {
        config().check().unwrap();
        assert!(S3Config::default().check().unwrap_err().to_string().starts_with("bucket: "));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_name() {
        let secret = || Some(Secret::from("hunter2".to_owned()));
        for (name, config) in [
            ("endpoint_url", S3Config { endpoint_url: Some("127.0.0.1:9000".into()), ..config() }),
            ("endpoint_url", S3Config { endpoint_url: Some("http://hunter2@host".into()), ..config() }),
            (
                "ca_file",
                S3Config {
                    ca_file: Some("ca.pem".into()),
                    endpoint_url: Some("http://127.0.0.1:9000".into()),
                    ..config()
                },
            ),
            ("access_key", S3Config { access_key: secret(), ..config() }),
            ("secret_key", S3Config { secret_key: secret(), ..config() }),
            ("session_token", S3Config { session_token: secret(), ..config() }),
            ("part_size", S3Config { part_size: 1 << 20, ..config() }),
            ("multipart_threshold", S3Config { multipart_threshold: 6 << 30, ..config() }),
            ("max_entry_size", S3Config { max_entry_size: 5 << 30, ..config() }),
            ("kms_key_id", S3Config { kms_key_id: Some("k".into()), ..config() }),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}: ")), "{error}");
            assert!(!format!("{error}{config:?}").contains("hunter2"), "{error}");
        }
    }
}
