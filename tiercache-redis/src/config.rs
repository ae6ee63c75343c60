use std::path::PathBuf;
use std::time::Duration;

use redis::{
    ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo, TlsCertificates,
};
use serde::{Deserialize, Serialize};
use tiercache_core::{Address, Codec, EncryptionConfig, Error, Packing, Result, Secret};

/// Level and tracking are reached alike, and `flatten` would let unknown keys pass.
macro_rules! configs {
    ($($(#[$about:meta])* pub struct $name:ident { $($own:tt)* })*) => {$(
        $(#[$about])*
        #[derive(Clone, Debug, Deserialize, Serialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            /// Where the server is: `redis://`, `rediss://` for TLS, `redis+unix://` for a socket. Default:
            /// `redis://127.0.0.1:6379/0`.
            ///
            /// ```yaml
            /// url: redis://cache.internal:6379/0
            /// ```
            pub url: Option<Address>,
            /// The server's name, instead of `url`. Default: none.
            ///
            /// ```yaml
            /// host: cache.internal
            /// ```
            pub host: Option<String>,
            /// Its port, with `host`. Default: 6379.
            ///
            /// ```yaml
            /// port: 6379
            /// ```
            pub port: Option<u16>,
            /// Seeds of a cluster, instead of `url`. Default: none.
            ///
            /// ```yaml
            /// nodes: [ "10.0.0.1:7000", "10.0.0.2:7000" ]
            /// ```
            pub nodes: Vec<String>,
            /// Sentinels that know where the server is, instead of `url`. Default: none.
            ///
            /// ```yaml
            /// sentinels: [ "10.0.0.1:26379", "10.0.0.2:26379" ]
            /// ```
            pub sentinels: Vec<String>,
            /// What the sentinels call the server. Default: `mymaster`.
            ///
            /// ```yaml
            /// master: mymaster
            /// ```
            pub master: String,
            /// Who we are to the sentinels. Default: nobody.
            ///
            /// ```yaml
            /// sentinel_username: watcher
            /// ```
            pub sentinel_username: Option<String>,
            /// The sentinels' password. Default: none.
            ///
            /// ```yaml
            /// sentinel_password: ${SENTINEL_PASSWORD}
            /// ```
            pub sentinel_password: Option<Secret>,
            /// The database; a cluster has only 0. Default: that of `url`, else 0.
            ///
            /// ```yaml
            /// db: 2
            /// ```
            pub db: Option<u16>,
            /// The user of the server's access control list. Default: that of `url`, else the server's `default`.
            ///
            /// ```yaml
            /// username: cache
            /// ```
            pub username: Option<String>,
            /// The password. Default: that of `url`, else none.
            ///
            /// ```yaml
            /// password: ${REDIS_PASSWORD}
            /// ```
            pub password: Option<Secret>,
            /// Whether to speak TLS; certificates are always verified. Default: as `url` says, else `false`.
            ///
            /// ```yaml
            /// tls: true
            /// ```
            pub tls: bool,
            /// Certificates (PEM) to trust instead of the authorities of the web. Default: none.
            ///
            /// ```yaml
            /// ca_file: /etc/ssl/redis-ca.pem
            /// ```
            pub ca_file: Option<PathBuf>,
            /// What every key begins with: letters, digits, `-`, `_`, `.` and `/`. Applications on one server need
            /// different ones. Default: `tiercache`.
            ///
            /// ```yaml
            /// prefix: shop
            /// ```
            pub prefix: String,
            /// How long a connection may take to be made. Default: 1 s.
            ///
            /// ```yaml
            /// connect_timeout: 1s
            /// ```
            pub connect_timeout: Duration,
            /// How long an answer may take before it is given up; a connection without any answer for that long is
            /// made anew. Default: 2 s.
            ///
            /// ```yaml
            /// response_timeout: 2s
            /// ```
            pub response_timeout: Duration,
            $($own)*
        }

        impl $name {
            pub(crate) fn reach(&self) -> Result<Reach> {
                Reach::of(Said {
                    url: self.url.as_ref(),
                    host: self.host.as_deref(),
                    port: self.port,
                    nodes: &self.nodes,
                    sentinels: &self.sentinels,
                    master: &self.master,
                    sentinel_login: (self.sentinel_username.as_deref(), self.sentinel_password.as_ref()),
                    db: self.db,
                    login: (self.username.as_deref(), self.password.as_ref()),
                    tls: self.tls,
                    ca_file: self.ca_file.as_ref(),
                    prefix: &self.prefix,
                    connect_timeout: self.connect_timeout,
                    response_timeout: self.response_timeout,
                })
            }
        }
    )*};
}

configs! {
    /// How a [`RedisTier`](crate::RedisTier) is opened.
    ///
    /// ```yaml
    /// cold_cache: { backend: redis, url: "redis://127.0.0.1:6379/0", prefix: shop }
    /// ```
    pub struct RedisConfig {
        /// How values are made smaller: `none`, `lz4` or `zstd`. Default: `none`.
        ///
        /// ```yaml
        /// compression: lz4
        /// ```
        pub compression: Packing,
        /// How entries are encrypted. Default: not at all. Needs the feature `encryption`.
        ///
        /// ```yaml
        /// encryption: { key: "${CACHE_KEY}" }
        /// ```
        pub encryption: Option<EncryptionConfig>,
        /// The most bytes of an entry; larger ones are refused. The server takes 512 MiB at most. Default: 64 MiB.
        ///
        /// ```yaml
        /// max_entry_bytes: 64MiB
        /// ```
        pub max_entry_bytes: u64,
    }

    /// How a [`RedisTracking`](crate::RedisTracking) is opened.
    ///
    /// ```yaml
    /// tracking: { backend: redis, url: "redis://127.0.0.1:6379/1", prefix: shop }
    /// ```
    pub struct RedisTrackingConfig {}
}

macro_rules! defaults {
    ($name:ident $($own:tt)*) => {
        impl Default for $name {
            fn default() -> Self {
                Self {
                    url: None,
                    host: None,
                    port: None,
                    nodes: Vec::new(),
                    sentinels: Vec::new(),
                    master: "mymaster".to_owned(),
                    sentinel_username: None,
                    sentinel_password: None,
                    db: None,
                    username: None,
                    password: None,
                    tls: false,
                    ca_file: None,
                    prefix: "tiercache".to_owned(),
                    connect_timeout: Duration::from_secs(1),
                    response_timeout: Duration::from_secs(2),
                    $($own)*
                }
            }
        }
    };
}

defaults!(RedisConfig compression: Packing::None, encryption: None, max_entry_bytes: 64 << 20);
defaults!(RedisTrackingConfig);

/// The most bytes a string of the server may have.
const MOST_BYTES: u64 = 512 << 20;
const DEFAULT_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

impl RedisConfig {
    /// # Errors
    /// [`Error::Config`] when a value cannot be meant; it begins with the key it is about.
    pub(crate) fn codec(&self) -> Result<Codec> {
        let codec = Codec::new(self.compression)?;
        let codec = self
            .encryption
            .as_ref()
            .map_or(Ok(codec.clone()), |encryption| codec.with_encryption(encryption))?;
        match self.max_entry_bytes {
            1_024..=MOST_BYTES => Ok(codec),
            other => Err(wrong("max_entry_bytes", format!("{other} is not between 1 KiB and 512 MiB"))),
        }
    }
}

/// Where the server is and how it is spoken to, checked.
#[derive(Clone)]
pub(crate) struct Reach {
    pub(crate) place: Place,
    pub(crate) login: RedisConnectionInfo,
    pub(crate) sentinel_login: RedisConnectionInfo,
    /// The certificates to trust, for TLS.
    pub(crate) certificates: Option<TlsCertificates>,
    pub(crate) connect_timeout: Duration,
    pub(crate) response_timeout: Duration,
}

#[derive(Clone, Debug)]
pub(crate) enum Place {
    One(ConnectionAddr),
    Cluster(Vec<ConnectionAddr>),
    Sentinels { addresses: Vec<ConnectionAddr>, master: String },
}

impl std::fmt::Debug for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Reach {
    /// For people, without user and password.
    pub(crate) fn shown(&self) -> String {
        let list = |addresses: &[ConnectionAddr]| {
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        match &self.place {
            Place::One(address) => address.to_string(),
            Place::Cluster(addresses) => format!("cluster {}", list(addresses)),
            Place::Sentinels { addresses, master } => format!("{master} of sentinels {}", list(addresses)),
        }
    }

    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self.place, Place::Cluster(_))
    }

    fn of(said: Said<'_>) -> Result<Self> {
        let ways =
            [said.url.is_some(), said.host.is_some(), !said.nodes.is_empty(), !said.sentinels.is_empty()];
        if ways.iter().filter(|&&given| given).count() > 1 {
            return Err(wrong("url", "the server is given twice: one of url, host, nodes and sentinels"));
        }
        if said.port.is_some() && said.host.is_none() {
            return Err(wrong("port", "it needs `host`"));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
        if said.prefix.is_empty() || said.prefix.len() > 64 || !said.prefix.bytes().all(plain) {
            return Err(wrong("prefix", "1 to 64 letters, digits, `-`, `_`, `.` and `/` are allowed"));
        }
        for (key, timeout) in
            [("connect_timeout", said.connect_timeout), ("response_timeout", said.response_timeout)]
        {
            if timeout.is_zero() {
                return Err(wrong(key, "it must be longer than nothing"));
            }
        }
        let from_url = said.url.map(parsed).transpose()?;
        let mut login = from_url.as_ref().map(|info| info.redis_settings().clone()).unwrap_or_default();
        if let Some(db) = said.db {
            login = login.set_db(i64::from(db));
        }
        if !said.nodes.is_empty() && login.db() != 0 {
            return Err(wrong("db", "a cluster has only database 0"));
        }
        let login = logged_in(login, said.login);
        let url_tls =
            from_url.as_ref().is_some_and(|info| matches!(info.addr(), ConnectionAddr::TcpTls { .. }));
        let tls = said.tls || url_tls || said.ca_file.is_some();
        let root_cert = said
            .ca_file
            .map(|path| {
                std::fs::read(path).map_err(|error| wrong("ca_file", format!("{}: {error}", path.display())))
            })
            .transpose()?;
        let address = |(host, port)| match tls {
            true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
            false => ConnectionAddr::Tcp(host, port),
        };
        let all = |key, list: &[String], port| {
            list.iter().map(|text| host_port(key, text, port).map(address)).collect::<Result<Vec<_>>>()
        };
        let place = match (from_url, said.host) {
            (Some(info), _) => match info.addr().clone() {
                ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                    Place::One(address((host, port)))
                }
                other => Place::One(other),
            },
            (None, Some(host)) => Place::One(address((host.to_owned(), said.port.unwrap_or(DEFAULT_PORT)))),
            (None, None) if !said.nodes.is_empty() => Place::Cluster(all("nodes", said.nodes, DEFAULT_PORT)?),
            (None, None) if !said.sentinels.is_empty() => Place::Sentinels {
                addresses: all("sentinels", said.sentinels, SENTINEL_PORT)?,
                master: said.master.to_owned(),
            },
            (None, None) => Place::One(address(("127.0.0.1".to_owned(), DEFAULT_PORT))),
        };
        Ok(Self {
            place,
            login,
            sentinel_login: logged_in(RedisConnectionInfo::default(), said.sentinel_login),
            certificates: tls.then_some(TlsCertificates { client_tls: None, root_cert }),
            connect_timeout: said.connect_timeout,
            response_timeout: said.response_timeout,
        })
    }
}

/// What either configuration says of the way to the server.
struct Said<'a> {
    url: Option<&'a Address>,
    host: Option<&'a str>,
    port: Option<u16>,
    nodes: &'a [String],
    sentinels: &'a [String],
    master: &'a str,
    sentinel_login: (Option<&'a str>, Option<&'a Secret>),
    db: Option<u16>,
    login: (Option<&'a str>, Option<&'a Secret>),
    tls: bool,
    ca_file: Option<&'a PathBuf>,
    prefix: &'a str,
    connect_timeout: Duration,
    response_timeout: Duration,
}

fn parsed(url: &Address) -> Result<ConnectionInfo> {
    // The client's own words could repeat the address, which may hold a password.
    let info = url
        .reveal()
        .into_connection_info()
        .map_err(|_| wrong("url", format!("{url} is not the address of a Redis server")))?;
    match info.addr() {
        ConnectionAddr::TcpTls { insecure: true, .. } => {
            Err(wrong("url", "certificates are always verified, `#insecure` is not allowed: see ca_file"))
        }
        _ => Ok(info),
    }
}

fn logged_in(
    mut login: RedisConnectionInfo,
    (username, password): (Option<&str>, Option<&Secret>),
) -> RedisConnectionInfo {
    if let Some(username) = username {
        login = login.set_username(username);
    }
    if let Some(password) = password {
        login = login.set_password(password.reveal());
    }
    // It tells at once when a connection is lost.
    login.set_protocol(ProtocolVersion::RESP3)
}

fn host_port(key: &str, text: &str, default: u16) -> Result<(String, u16)> {
    let bare = text.strip_prefix("redis://").unwrap_or(text).trim_end_matches('/');
    let shown = || tiercache_core::secret::without_credentials(text);
    let (host, port) = match bare.rsplit_once(':') {
        // An IPv6 address without a port has colons of its own.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port.parse().ok()),
        _ => (bare, Some(default)),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match port {
        Some(port) if !host.is_empty() && !host.contains(['/', '@']) => Ok((host.to_owned(), port)),
        _ => Err(wrong(key, format!("{} is not host:port", shown()))),
    }
}

pub(crate) fn wrong(key: &str, reason: impl std::fmt::Display) -> Error {
    Error::Config(format!("{key}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> RedisConfig {
        serde_json::from_str(json).unwrap()
    }

    fn refused(json: &str) -> String {
        read(json).reach().expect_err("refused").to_string()
    }

    #[test]
    fn the_server_is_found_however_it_is_spelled() {
        for (json, shown) in [
            ("{}", "127.0.0.1:6379"),
            (r#"{"url": "redis://:pw@cache:7/2"}"#, "cache:7"),
            (r#"{"host": "cache"}"#, "cache:6379"),
            (r#"{"host": "cache", "port": 7}"#, "cache:7"),
            (r#"{"url": "redis+unix:///run/redis.sock"}"#, "/run/redis.sock"),
            (r#"{"nodes": ["a:1", "b", "[::1]:3"]}"#, "cluster a:1, b:6379, ::1:3"),
            (r#"{"sentinels": ["redis://a:1", "b"], "master": "m"}"#, "m of sentinels a:1, b:26379"),
        ] {
            assert_eq!(read(json).reach().unwrap().shown(), shown, "{json}");
        }
        let reach = read(r#"{"url": "redis://u:pw@cache/2", "db": 3, "password": "other"}"#).reach().unwrap();
        let login = (reach.login.username(), reach.login.password(), reach.login.db());
        assert_eq!(login, (Some("u"), Some("other"), 3));
        assert!(read(r#"{"url": "rediss://cache"}"#).reach().unwrap().certificates.is_some());
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name_and_without_secrets() {
        for (json, key) in [
            (r#"{"url": "redis://a", "host": "b"}"#, "url: "),
            (r#"{"port": 1}"#, "port: "),
            (r#"{"prefix": "a:b"}"#, "prefix: "),
            (r#"{"prefix": ""}"#, "prefix: "),
            (r#"{"nodes": ["a"], "db": 1}"#, "db: "),
            (r#"{"nodes": ["redis://u:hunter2@a:1"]}"#, "nodes: "),
            (r#"{"url": "http://u:hunter2@a"}"#, "url: "),
            (r#"{"url": "rediss://:hunter2@a/#insecure"}"#, "url: "),
            (r#"{"ca_file": "/nowhere"}"#, "ca_file: "),
            (r#"{"connect_timeout": {"secs": 0, "nanos": 0}}"#, "connect_timeout: "),
        ] {
            let told = refused(json);
            assert!(told.starts_with(key) && !told.contains("hunter2"), "{json}: {told}");
        }
        assert!(read(r#"{"max_entry_bytes": 1}"#).codec().is_err());
        assert!(
            serde_json::from_str::<RedisConfig>(r#"{"uri": "x"}"#).unwrap_err().to_string().contains("url")
        );
    }

    #[test]
    fn no_secret_is_shown() {
        let json = r#"{"url": "redis://u:hunter2@a", "password": "hunter2", "sentinel_password": "hunter2"}"#;
        let config = read(json);
        let shown = format!("{config:?} {}", serde_json::to_string(&config).unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
