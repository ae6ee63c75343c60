use std::time::Duration;

use serde::{Deserialize, Serialize};
use tiercache_core::{Codec, EncryptionConfig, Error, Packing, Result};

/// The longest prefix: with it, level, era and a hash a name still fits memcached's 250 bytes.
const MAX_PREFIX: usize = 100;

/// How a [`MemcachedTier`](crate::MemcachedTier) is set up.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemcachedConfig {
    /// The servers among which keys are divided: `host:port`, or a unix socket as `unix:///path`. Every process must
    /// give the same names. Default: `127.0.0.1:11211`.
    ///
    /// ```yaml
    /// servers: ["10.0.0.1:11211", "10.0.0.2:11211"]
    /// ```
    pub servers: Vec<String>,
    /// The host of the only server, instead of `servers`. Default: none.
    ///
    /// ```yaml
    /// host: cache.internal
    /// ```
    pub host: Option<String>,
    /// The port that goes with `host`. Default: 11211.
    ///
    /// ```yaml
    /// port: 11212
    /// ```
    pub port: Option<u16>,
    /// What the names of all items begin with: applications that share a server each have their own. Letters, digits
    /// and `_`, `-`, `.`, `/`. Default: `tiercache`.
    ///
    /// ```yaml
    /// prefix: shop
    /// ```
    pub prefix: String,
    /// The most connections to each server for entries, and as many for counters and leases. Default: 8.
    ///
    /// ```yaml
    /// connections: 16
    /// ```
    pub connections: usize,
    /// How long connecting to a server may take. Default: 1 second.
    ///
    /// ```yaml
    /// connect_timeout: 250ms
    /// ```
    pub connect_timeout: Duration,
    /// How long a server may take to answer, and how long to wait for a free connection. Default: 1 second.
    ///
    /// ```yaml
    /// timeout: 500ms
    /// ```
    pub timeout: Duration,
    /// How values are made smaller. Default: `none`. `lz4` and `zstd` need the feature of that name.
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
}

impl Default for MemcachedConfig {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            host: None,
            port: None,
            prefix: "tiercache".to_owned(),
            connections: 8,
            connect_timeout: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            compression: Packing::default(),
            encryption: None,
        }
    }
}

impl MemcachedConfig {
    /// Whether the level can be opened with these values; touches nothing.
    ///
    /// # Errors
    /// [`Error::Config`], whose message begins with the key that is wrong.
    pub fn check(&self) -> Result<()> {
        self.addresses()?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte);
        if self.prefix.is_empty() || self.prefix.len() > MAX_PREFIX || !self.prefix.bytes().all(plain) {
            let allowed = "letters, digits and `_`, `-`, `.`, `/`";
            return Err(config(format!("prefix: give 1 to {MAX_PREFIX} {allowed}")));
        }
        if self.connections == 0 {
            return Err(config("connections: give at least 1".to_owned()));
        }
        for (key, time) in [("connect_timeout", self.connect_timeout), ("timeout", self.timeout)] {
            if time.is_zero() {
                return Err(config(format!("{key}: give more than 0")));
            }
        }
        self.codec().map(drop)
    }

    /// How entries are written.
    pub(crate) fn codec(&self) -> Result<Codec> {
        let codec = Codec::new(self.compression)?;
        self.encryption.as_ref().map_or(Ok(codec.clone()), |encryption| codec.with_encryption(encryption))
    }

    /// The servers, each as it is dialled.
    pub(crate) fn addresses(&self) -> Result<Vec<String>> {
        let named = match (&self.host, self.servers.as_slice()) {
            (Some(_), [_, ..]) => return Err(config("host: give either this or `servers`".to_owned())),
            (None, _) if self.port.is_some() => {
                return Err(config("port: it goes with `host`; `servers` have theirs in them".to_owned()));
            }
            (Some(host), []) => vec![format!("{host}:{}", self.port.unwrap_or(11211))],
            (None, []) => vec!["127.0.0.1:11211".to_owned()],
            (None, servers) => servers.to_vec(),
        };
        let mut addresses = named.iter().map(|name| address(name)).collect::<Result<Vec<_>>>()?;
        addresses.sort();
        if addresses.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(config("servers: a server is given twice".to_owned()));
        }
        Ok(addresses)
    }
}

/// `name` as the client wants it: with a scheme, and a port where there is none.
fn address(name: &str) -> Result<String> {
    if let Some(path) = name.strip_prefix("unix://") {
        // The client reads this as a URL.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte);
        return if path.starts_with('/') && path.bytes().all(plain) {
            Ok(name.to_owned())
        } else {
            Err(config(format!(
                "servers: {name}: give an absolute path of letters, digits and `_`, `-`, `.`"
            )))
        };
    }
    let place =
        ["tcp://", "memcached://"].iter().find_map(|scheme| name.strip_prefix(scheme)).unwrap_or(name);
    let (host, port) = place.split_once(':').unwrap_or((place, "11211"));
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if host.is_empty() || !host.bytes().all(known) || port.parse::<u16>().map_or(true, |port| port == 0) {
        return Err(config(format!(
            "servers: {name}: give a name or an IPv4 address and a port, or unix:///path"
        )));
    }
    Ok(format!("tcp://{}:{port}", host.to_ascii_lowercase()))
}

fn config(message: String) -> Error {
    Error::Config(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(servers: &[&str]) -> MemcachedConfig {
        let servers = servers.iter().map(|&server| server.to_owned()).collect();
        MemcachedConfig { servers, ..MemcachedConfig::default() }
    }

    #[test]
    fn servers_are_given_as_a_list_or_as_host_and_port() {
        let addresses = |config: MemcachedConfig| config.addresses().unwrap();
        assert_eq!(addresses(MemcachedConfig::default()), ["tcp://127.0.0.1:11211"]);
        assert_eq!(addresses(of(&["b:2", "A", "tcp://c:3"])), ["tcp://a:11211", "tcp://b:2", "tcp://c:3"]);
        assert_eq!(addresses(of(&["unix:///run/memcached.sock"])), ["unix:///run/memcached.sock"]);
        let host = MemcachedConfig { host: Some("h".into()), port: Some(7), ..MemcachedConfig::default() };
        assert_eq!(addresses(host), ["tcp://h:7"]);
    }

    #[test]
    fn what_cannot_be_dialled_is_refused_with_the_key_that_is_wrong() {
        for servers in
            [&["a:0"][..], &["a:b"], &[""], &["[::1]:11211"], &["a b:1"], &["unix://x"], &["a", "A:11211"]]
        {
            let refused = of(servers).check().unwrap_err().to_string();
            assert!(refused.starts_with("servers: "), "{servers:?}: {refused}");
        }
        let both = MemcachedConfig { host: Some("h".into()), ..of(&["a:1"]) };
        assert!(both.check().is_err());
        for prefix in ["", "a b", "a:b", &"p".repeat(101)] {
            let config = MemcachedConfig { prefix: prefix.to_owned(), ..MemcachedConfig::default() };
            assert!(config.check().unwrap_err().to_string().starts_with("prefix: "), "{prefix}");
        }
    }
}
