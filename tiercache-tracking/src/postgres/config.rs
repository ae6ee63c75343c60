use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tiercache_core::{Address, Error, Result, Secret};

/// What a URL may say behind its `?`.
const PARAMETERS: [&str; 16] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "ssl-root-cert",
    "user",
];

/// How a [`PostgresTracking`](crate::PostgresTracking) is opened.
///
/// ```yaml
/// tracking: { backend: postgres, url: "postgres://cache:${PGPASSWORD}@db.internal/app" }
/// ```
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PostgresConfig {
    /// Where the server is: a URL, or words as in `host=db user=cache`; `dsn` is the same. What the fields below
    /// give goes before it. Default: none.
    ///
    /// ```yaml
    /// url: postgres://cache:${PGPASSWORD}@db.internal:5432/app
    /// ```
    #[serde(alias = "dsn")]
    pub url: Option<Address>,
    /// Host, or the folder of a unix socket. Default: `127.0.0.1`.
    ///
    /// ```yaml
    /// host: db.internal
    /// ```
    pub host: Option<String>,
    /// Default: 5432.
    ///
    /// ```yaml
    /// port: 5432
    /// ```
    pub port: Option<u16>,
    /// Default: `postgres`.
    ///
    /// ```yaml
    /// user: cache
    /// ```
    #[serde(alias = "username")]
    pub user: Option<String>,
    /// Default: none.
    ///
    /// ```yaml
    /// password: ${PGPASSWORD}
    /// ```
    pub password: Option<Secret>,
    /// Default: the user's name.
    ///
    /// ```yaml
    /// database: app
    /// ```
    #[serde(alias = "dbname", alias = "db")]
    pub database: Option<String>,
    /// How connections are encrypted. Default: `sslmode` of the URL, else `verify-full`, and `disable` on the same
    /// machine.
    ///
    /// ```yaml
    /// tls: verify-full
    /// ```
    pub tls: Option<Tls>,
    /// A PEM file with the authority that signed the server's certificate. Default: those that browsers know.
    ///
    /// ```yaml
    /// ca: /etc/ssl/db-ca.pem
    /// ```
    pub ca: Option<PathBuf>,
    /// The schema of the tables, made when it is not there. Default: `public`.
    ///
    /// ```yaml
    /// schema: cache
    /// ```
    pub schema: String,
    /// What the names of the tables begin with. Caches that do not share their tiers need different ones. Default:
    /// `tiercache_`.
    ///
    /// ```yaml
    /// table_prefix: thumbnails_
    /// ```
    pub table_prefix: String,
    /// The most connections at a time. Default: 4.
    ///
    /// ```yaml
    /// max_connections: 8
    /// ```
    pub max_connections: u32,
    /// How long connecting may take. Default: 3 s.
    ///
    /// ```yaml
    /// connect_timeout: 3s
    /// ```
    pub connect_timeout: Duration,
    /// How long a batch or an answer may take, the wait for a connection included. Default: 10 s.
    ///
    /// ```yaml
    /// timeout: 10s
    /// ```
    pub timeout: Duration,
}

impl Default for PostgresConfig {
    fn default() -> Self {
        Self {
            url: None,
            host: None,
            port: None,
            user: None,
            password: None,
            database: None,
            tls: None,
            ca: None,
            schema: "public".into(),
            table_prefix: "tiercache_".into(),
            max_connections: 4,
            connect_timeout: Duration::from_secs(3),
            timeout: Duration::from_secs(10),
        }
    }
}

/// How connections are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// Not at all.
    Disable,
    /// If the server can, without looking whose certificate it is.
    Prefer,
    /// Always, without looking whose certificate it is.
    Require,
    /// Always, with a certificate of a known authority.
    VerifyCa,
    /// Likewise, and made out to this host.
    VerifyFull,
}

impl PostgresConfig {
    /// What the client is told.
    pub(super) fn options(&self) -> Result<PgConnectOptions> {
        let mut options = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(5432)
            .username("postgres")
            .ssl_mode(PgSslMode::VerifyFull);
        let mut chosen = false;
        if let Some(url) = &self.url {
            (options, chosen) = match url.reveal().contains("://") {
                true => from_url(url.reveal())?,
                false => from_words(url.reveal(), options)?,
            };
        }
        options = match &self.host {
            Some(host) if host.starts_with('/') => options.socket(host),
            Some(host) => options.host(host),
            None => options,
        };
        options = self.port.into_iter().fold(options, PgConnectOptions::port);
        options = self.user.iter().fold(options, |options, user| options.username(user));
        options = self.password.iter().fold(options, |options, password| options.password(password.reveal()));
        options = self.database.iter().fold(options, |options, database| options.database(database));
        options = self.ca.iter().fold(options, |options, ca| options.ssl_root_cert(ca));
        let near = options.get_socket().is_some() || is_loopback(options.get_host());
        options = match self.tls {
            Some(tls) => options.ssl_mode(tls.mode()),
            None if chosen => options,
            None if near => options.ssl_mode(PgSslMode::Disable),
            None => options.ssl_mode(PgSslMode::VerifyFull),
        };
        if !near && !matches!(options.get_ssl_mode(), PgSslMode::VerifyCa | PgSslMode::VerifyFull) {
            let (host, tls) = (options.get_host(), options.get_ssl_mode());
            tracing::warn!(host, ?tls, "whether the server is the right one is not verified");
        }
        Ok(options.application_name("tiercache").disable_statement_logging())
    }

    /// Whether the level can be opened with these values; connects to nothing.
    ///
    /// # Errors
    /// [`Error::Config`], whose message begins with the key that is wrong.
    pub fn check(&self) -> Result<()> {
        check_name("schema", &self.schema)?;
        check_name("table_prefix", &self.table_prefix)?;
        if self.max_connections == 0 {
            return Err(Error::Config("max_connections: at least 1 is needed".into()));
        }
        for (field, time) in [("connect_timeout", self.connect_timeout), ("timeout", self.timeout)] {
            if time < Duration::from_millis(1) || time > Duration::from_secs(86_400) {
                return Err(Error::Config(format!("{field}: it is not between 1 ms and 24 h")));
            }
        }
        self.options().map(drop)
    }
}

impl Tls {
    fn mode(self) -> PgSslMode {
        match self {
            Self::Disable => PgSslMode::Disable,
            Self::Prefer => PgSslMode::Prefer,
            Self::Require => PgSslMode::Require,
            Self::VerifyCa => PgSslMode::VerifyCa,
            Self::VerifyFull => PgSslMode::VerifyFull,
        }
    }
}

/// The options of a URL, and whether it says how to encrypt.
fn from_url(url: &str) -> Result<(PgConnectOptions, bool)> {
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
    let names = || parameters.split(['&', '#']).filter_map(|pair| pair.split('=').next());
    if let Some(unknown) = names().find(|name| !name.is_empty() && !PARAMETERS.contains(name)) {
        return Err(Error::Config(format!("url: unknown parameter `{unknown}`")));
    }
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(Error::Config("url: it does not begin with postgres://".into()));
    }
    let chosen = names().any(|name| name == "sslmode" || name == "ssl-mode");
    let options = url.parse().map_err(|error| match error {
        sqlx::Error::Configuration(error) => Error::Config(format!("url: {error}")),
        _ => Error::Config("url: it is not one".into()),
    })?;
    Ok((options, chosen))
}

/// The options of `host=db user=cache …`, and whether it says how to encrypt.
fn from_words(words: &str, mut options: PgConnectOptions) -> Result<(PgConnectOptions, bool)> {
    let mut chosen = false;
    for word in words.split_whitespace() {
        let plain = |value: &&str| !value.contains(['\'', '\\']);
        let Some((name, value)) = word.split_once('=').filter(|(_, value)| plain(value)) else {
            return Err(Error::Config(
                "url: neither a URL nor words like host=…; what has spaces or quotes goes into fields".into(),
            ));
        };
        let bad = || Error::Config(format!("url: the value of `{name}` cannot be meant"));
        options = match name {
            "host" if value.starts_with('/') => options.socket(value),
            "host" | "hostaddr" => options.host(value),
            "port" => options.port(value.parse().map_err(|_| bad())?),
            "user" => options.username(value),
            "password" => options.password(value),
            "dbname" => options.database(value),
            "sslrootcert" => options.ssl_root_cert(value),
            "application_name" => options,
            "sslmode" => {
                chosen = true;
                options.ssl_mode(value.parse().map_err(|_| bad())?)
            }
            _ => return Err(Error::Config(format!("url: unknown word `{name}`"))),
        };
    }
    Ok((options, chosen))
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

/// Names of tables stand in statements: these can be nothing else.
fn check_name(field: &str, name: &str) -> Result<()> {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let begins = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    match begins && name.len() <= 40 && name.bytes().all(letter) {
        true => Ok(()),
        false => Err(Error::Config(format!(
            "{field}: `{name}` is not a name of at most 40 small letters, digits and underscores"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_url(url: &str) -> PostgresConfig {
        PostgresConfig { url: Some(url.into()), ..PostgresConfig::default() }
    }

    #[test]
    fn all_spellings_mean_the_same() {
        let fields = PostgresConfig {
            host: Some("db".into()),
            port: Some(5433),
            user: Some("me".into()),
            password: Some(Secret::from("hunter2".to_owned())),
            database: Some("app".into()),
            tls: Some(Tls::Require),
            ..PostgresConfig::default()
        };
        let words = "host=db port=5433 user=me password=hunter2 dbname=app sslmode=require";
        for config in [
            with_url("postgres://me:hunter2@db:5433/app?sslmode=require"),
            with_url("postgresql://me:hunter2@db:5433/app?ssl-mode=require"),
            with_url(words),
            PostgresConfig { url: Some("postgres://you:x@there/other".into()), ..fields.clone() },
            fields,
        ] {
            let options = config.options().unwrap();
            let shown =
                (options.get_host(), options.get_port(), options.get_username(), options.get_database());
            assert_eq!(shown, ("db", 5433, "me", Some("app")));
            assert!(matches!(options.get_ssl_mode(), PgSslMode::Require));
            assert!(!format!("{config:?}").contains("hunter2"));
            assert!(!serde_json::to_string(&config).unwrap().contains("hunter2"));
        }
    }

    #[test]
    fn other_machines_are_verified_unless_told_otherwise() {
        let mode = |config: PostgresConfig| format!("{:?}", config.options().unwrap().get_ssl_mode());
        for near in ["postgres://localhost/x", "postgres://127.0.0.1/x", "postgres://[::1]/x", "host=/run/pg"]
        {
            assert_eq!(mode(with_url(near)), "Disable", "{near}");
        }
        assert_eq!(mode(PostgresConfig::default()), "Disable");
        assert_eq!(mode(with_url("postgres://db/x")), "VerifyFull");
        assert_eq!(mode(with_url("postgres://db/x?sslmode=disable")), "Disable");
        assert_eq!(mode(PostgresConfig { tls: Some(Tls::Prefer), ..with_url("postgres://db/x") }), "Prefer");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_without_a_secret() {
        for (config, begins) in [
            (with_url("postgres://me:hunter2@db:99999/app"), "url: "),
            (with_url("mysql://me:hunter2@db/app"), "url: it does not begin"),
            (with_url("postgres://me:hunter2@db/app?pasword=hunter2"), "url: unknown parameter `pasword`"),
            (with_url("hunter2"), "url: neither"),
            (with_url("host=db pass=hunter2"), "url: unknown word `pass`"),
            (with_url("port=hunter2"), "url: the value of `port`"),
            (PostgresConfig { schema: "a\"b".into(), ..PostgresConfig::default() }, "schema: "),
            (PostgresConfig { table_prefix: "1".into(), ..PostgresConfig::default() }, "table_prefix: "),
            (PostgresConfig { table_prefix: String::new(), ..PostgresConfig::default() }, "table_prefix: "),
            (PostgresConfig { max_connections: 0, ..PostgresConfig::default() }, "max_connections: "),
            (PostgresConfig { timeout: Duration::ZERO, ..PostgresConfig::default() }, "timeout: "),
        ] {
            let message = config.check().unwrap_err().to_string();
            assert!(message.starts_with(begins) && !message.contains("hunter2"), "{message}");
        }
        assert!(PostgresConfig::default().check().is_ok());
        let unknown = serde_json::from_str::<PostgresConfig>(r#"{"hots": "x"}"#).unwrap_err().to_string();
        assert!(unknown.contains("hots"), "{unknown}");
        let older = serde_json::from_str::<PostgresConfig>(r#"{"dsn": "postgres://db/x"}"#).unwrap();
        assert_eq!(older.url, Some("postgres://db/x".into()));
    }
}
