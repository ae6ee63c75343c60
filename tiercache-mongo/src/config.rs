use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tiercache_core::{Address, Codec, EncryptionConfig, Error, Packing, Result, Secret};

/// A document has at most 16 MiB, and there is more in it than the value.
pub(crate) const MAX_INLINE: u64 = 15 << 20;
/// Sooner than this an upload may still be under way.
const MIN_ORPHAN_AGE: Duration = Duration::from_secs(600);

/// Declares a configuration: what it has of its own, and what it takes to reach a server.
macro_rules! config {
    (
        $(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr,)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            /// The connection string. Default: `mongodb://127.0.0.1:27017`, or what `host` and `port` say. Its
            /// options for time-outs and pools give way to those below.
            ///
            /// ```yaml
            /// uri: mongodb://${MONGO_USER}:${MONGO_PASSWORD}@db1,db2,db3/?replicaSet=rs0&tls=true
            /// ```
            pub uri: Option<Address>,
            /// The server's name, instead of `uri`. Default: `127.0.0.1`.
            ///
            /// ```yaml
            /// host: db.example.org
            /// ```
            pub host: Option<String>,
            /// The server's port, beside `host`. Default: 27017.
            ///
            /// ```yaml
            /// port: 27018
            /// ```
            pub port: Option<u16>,
            /// Who one is. Default: what `uri` says, or nobody.
            ///
            /// ```yaml
            /// username: cache
            /// ```
            pub username: Option<String>,
            /// The password, as it is (not percent-encoded). Default: what `uri` says, or none.
            ///
            /// ```yaml
            /// password: ${MONGO_PASSWORD}
            /// ```
            pub password: Option<Secret>,
            /// Whether to use TLS; certificates are verified. Default: `false`, or what `uri` says.
            ///
            /// ```yaml
            /// tls: true
            /// ```
            pub tls: bool,
            /// A file of certificates to trust instead of the usual ones. Default: none.
            ///
            /// ```yaml
            /// tls_ca_file: /etc/ssl/mongo-ca.pem
            /// ```
            pub tls_ca_file: Option<PathBuf>,
            /// The database. Default: the one `uri` names, else `tiercache`.
            ///
            /// ```yaml
            /// database: app
            /// ```
            pub database: Option<String>,
            /// What the names of its collections begin with: caches with different prefixes share nothing.
            /// Default: `tiercache`.
            ///
            /// ```yaml
            /// prefix: thumbnails
            /// ```
            pub prefix: String,
            /// Who must have a write before it counts. Default: `majority`, or what `uri` says with `w`.
            ///
            /// ```yaml
            /// write_concern: one
            /// ```
            pub write_concern: Option<WriteConcern>,
            /// How long connecting, and finding a server that takes the call, may take. Default: 2 s.
            ///
            /// ```yaml
            /// connect_timeout: 2s
            /// ```
            pub connect_timeout: Duration,
            /// How long an operation may take. Default: 10 s.
            ///
            /// ```yaml
            /// timeout: 10s
            /// ```
            pub timeout: Duration,
            /// The most connections, and the most calls at a time. Default: 16.
            ///
            /// ```yaml
            /// connections: 32
            /// ```
            pub connections: u32,
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    uri: None,
                    host: None,
                    port: None,
                    username: None,
                    password: None,
                    tls: false,
                    tls_ca_file: None,
                    database: None,
                    prefix: "tiercache".to_owned(),
                    write_concern: None,
                    connect_timeout: Duration::from_secs(2),
                    timeout: Duration::from_secs(10),
                    connections: 16,
                    $($field: $default,)*
                }
            }
        }

        impl $name {
            pub(crate) fn server(&self) -> Server {
                Server {
                    uri: self.uri.clone(),
                    host: self.host.clone(),
                    port: self.port,
                    username: self.username.clone(),
                    password: self.password.clone(),
                    tls: self.tls,
                    tls_ca_file: self.tls_ca_file.clone(),
                    database: self.database.clone(),
                    prefix: self.prefix.clone(),
                    write_concern: self.write_concern,
                    connect_timeout: self.connect_timeout,
                    timeout: self.timeout,
                    connections: self.connections,
                }
            }
        }
    };
}

config! {
    /// How a [`MongoTier`](crate::MongoTier) is set up.
    ///
    /// ```yaml
    /// dry_cache: { backend: mongodb, uri: "mongodb://127.0.0.1:27017", database: app }
    /// ```
    MongoConfig {
        /// Entries of fewer bytes are kept in their document, others in GridFS. Default: 1 MiB; at most 15 MiB.
        ///
        /// ```yaml
        /// inline_limit: 262144
        /// ```
        inline_limit: u64 = 1 << 20,
        /// The most bytes an entry may have. Default: 256 MiB; at most 1 GiB.
        ///
        /// ```yaml
        /// max_entry_size: 67108864
        /// ```
        max_entry_size: u64 = 256 << 20,
        /// How values are made smaller. Default: `none`. `lz4` and `zstd` need the feature of that name.
        ///
        /// ```yaml
        /// compression: zstd
        /// ```
        compression: Packing = Packing::None,
        /// How entries are encrypted. Default: not at all. Needs the feature `encryption`. Namespaces and keys stand
        /// in the names of documents and stay readable.
        ///
        /// ```yaml
        /// encryption: { key: "${CACHE_KEY}" }
        /// ```
        encryption: Option<EncryptionConfig> = None,
        /// The most bytes documents and files should take; a sweep removes the oldest entries beyond. Default: no
        /// bound.
        ///
        /// ```yaml
        /// max_size: 53687091200
        /// ```
        max_size: Option<u64> = None,
        /// The age from which a GridFS file that no entry points to is removed. An upload gives up after half of
        /// it; clocks of processes that share the store may differ by a quarter. Default: 1 h; at least 10 min.
        ///
        /// ```yaml
        /// orphans_after: 2h
        /// ```
        orphans_after: Duration = Duration::from_secs(3_600),
    }
}

config! {
    /// How a [`MongoTracking`](crate::MongoTracking) is set up.
    ///
    /// ```yaml
    /// tracking: { backend: mongodb, uri: "mongodb://127.0.0.1:27017", database: app }
    /// ```
    MongoTrackingConfig {}
}

/// Who must have a write before it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WriteConcern {
    /// Most members of the replica set, and reads see only such writes: nothing that was answered is rolled back.
    Majority,
    /// The primary: faster. A failover may roll back what was answered, removals too.
    One,
}

/// What it takes to reach a server, and where on it.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) uri: Option<Address>,
    pub(crate) host: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Secret>,
    pub(crate) tls: bool,
    pub(crate) tls_ca_file: Option<PathBuf>,
    pub(crate) database: Option<String>,
    pub(crate) prefix: String,
    pub(crate) write_concern: Option<WriteConcern>,
    pub(crate) connect_timeout: Duration,
    pub(crate) timeout: Duration,
    pub(crate) connections: u32,
}

impl MongoConfig {
    /// Whether the level can be opened with these values; connects to nothing.
    ///
    /// # Errors
    /// [`Error::Config`], whose message begins with the key that is wrong.
    pub fn check(&self) -> Result<()> {
        self.server().check()?;
        self.codec()?;
        if self.inline_limit > MAX_INLINE {
            return Err(wrong(
                "inline_limit",
                format!("a document takes no value of more than {MAX_INLINE} bytes"),
            ));
        }
        if self.max_entry_size == 0 || self.max_entry_size > 1 << 30 {
            return Err(wrong("max_entry_size", "give 1 byte to 1 GiB".to_owned()));
        }
        if self.orphans_after < MIN_ORPHAN_AGE {
            return Err(wrong("orphans_after", format!("give at least {MIN_ORPHAN_AGE:?}")));
        }
        Ok(())
    }
}

impl MongoConfig {
    /// How entries are written.
    pub(crate) fn codec(&self) -> Result<Codec> {
        let codec = Codec::new(self.compression)?;
        self.encryption.as_ref().map_or(Ok(codec.clone()), |encryption| codec.with_encryption(encryption))
    }
}

impl MongoTrackingConfig {
    /// Whether the store can be opened with these values; connects to nothing.
    ///
    /// # Errors
    /// [`Error::Config`], whose message begins with the key that is wrong.
    pub fn check(&self) -> Result<()> {
        self.server().check()
    }
}

impl Server {
    pub(crate) fn check(&self) -> Result<()> {
        if self.uri.is_some() && self.host.is_some() {
            return Err(wrong("host", "the address is given twice: give either `uri` or `host`".to_owned()));
        }
        if self.uri.is_some() && self.port.is_some() {
            return Err(wrong("port", "belongs to `host`, not to `uri`".to_owned()));
        }
        if self.password.is_some() && self.username.is_none() {
            return Err(wrong("password", "needs a `username`".to_owned()));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if !(1..=64).contains(&self.prefix.len()) || !self.prefix.bytes().all(plain) {
            return Err(wrong("prefix", "give 1 to 64 letters, digits, `-` or `_`".to_owned()));
        }
        if let Some(database) = &self.database
            && (!(1..=63).contains(&database.len()) || !database.bytes().all(plain))
        {
            return Err(wrong("database", "give 1 to 63 letters, digits, `-` or `_`".to_owned()));
        }
        for (name, time) in [("connect_timeout", self.connect_timeout), ("timeout", self.timeout)] {
            if time < Duration::from_millis(1) || time > Duration::from_secs(3_600) {
                return Err(wrong(name, "give 1 ms to 1 h".to_owned()));
            }
        }
        if !(1..=1_000).contains(&self.connections) {
            return Err(wrong("connections", "give 1 to 1000".to_owned()));
        }
        Ok(())
    }
}

fn wrong(key: &str, reason: String) -> Error {
    Error::Config(format!("{key}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_key() {
        let plain = MongoConfig::default;
        assert!(plain().check().is_ok());
        for (config, key) in [
            (MongoConfig { inline_limit: 16 << 20, ..plain() }, "inline_limit"),
            (MongoConfig { max_entry_size: 0, ..plain() }, "max_entry_size"),
            (MongoConfig { orphans_after: Duration::from_secs(1), ..plain() }, "orphans_after"),
            (MongoConfig { uri: Some("mongodb://a".into()), host: Some("b".into()), ..plain() }, "host"),
            (MongoConfig { uri: Some("mongodb://a".into()), port: Some(1), ..plain() }, "port"),
            (MongoConfig { password: Some("x".to_owned().into()), ..plain() }, "password"),
            (MongoConfig { prefix: "a.b".into(), ..plain() }, "prefix"),
            (MongoConfig { prefix: String::new(), ..plain() }, "prefix"),
            (MongoConfig { database: Some("a/b".into()), ..plain() }, "database"),
            (MongoConfig { timeout: Duration::ZERO, ..plain() }, "timeout"),
            (MongoConfig { connections: 0, ..plain() }, "connections"),
        ] {
            let message = config.check().unwrap_err().to_string();
            assert!(message.starts_with(&format!("{key}: ")), "{message}");
        }
    }

    #[test]
    fn no_secret_is_shown() {
        let config = MongoConfig {
            uri: Some("mongodb://user:s3ntinel@host/db".into()),
            password: Some("s3ntinel".to_owned().into()),
            ..MongoConfig::default()
        };
        let shown = format!("{config:?} {:?}", config.server());
        assert!(!shown.contains("s3ntinel") && shown.contains("host"), "{shown}");
    }
}
