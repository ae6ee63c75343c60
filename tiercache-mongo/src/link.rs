//! The way to the server.
//!
//! The driver's futures must not be dropped half-way, and callers of this crate may drop theirs at any time: every
//! call runs in a task of its own, of which there are as many at a time as there may be connections, and time-outs
//! are on waiting for it. A task that the driver does not end is given up [`GRACE`] later; its connection
//! still has a command under way then, so the pool closes it.

use std::time::Duration;

use mongodb::bson::{Document, doc};
use mongodb::error::{Error as DriverError, ErrorKind, Result as DriverResult, WriteFailure};
use mongodb::options::{
    Acknowledgment, ClientOptions, Credential, ReadConcern, ReadPreference, SelectionCriteria, ServerAddress,
    Tls, TlsOptions, WriteConcern as DriverConcern,
};
use mongodb::{Client, Database};
use tiercache_core::{Error, Result};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::config::{Server, WriteConcern};

/// The backend's name in YAML, logs and errors.
pub(crate) const NAME: &str = "mongodb";

/// How much longer than its caller waits a call may go on.
const GRACE: Duration = Duration::from_secs(30);
const DEFAULT_PORT: u16 = 27_017;
const DEFAULT_DATABASE: &str = "tiercache";

/// The code of a key that is there already.
const DUPLICATE_KEY: i32 = 11_000;
/// Codes of those who are not let in: unauthorized, wrong user or password.
const NOT_LET_IN: [i32; 2] = [13, 18];

/// A client and its database.
pub(crate) struct Link {
    client: Client,
    database: Database,
    address: String,
    calls: std::sync::Arc<Semaphore>,
    connections: u32,
    timeout: Duration,
}

impl Link {
    /// Connects, and asks for a sign of life.
    pub(crate) async fn open(server: &Server) -> Result<Self> {
        let options = options(server).await?;
        let address = options.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let named = server.database.clone().or_else(|| options.default_database.clone());
        let client = Client::with_options(options)
            .map_err(|_| Error::Config("uri: these options do not go together".to_owned()))?;
        let link = Self {
            database: client.database(named.as_deref().unwrap_or(DEFAULT_DATABASE)),
            client,
            address,
            calls: std::sync::Arc::new(Semaphore::new(server.connections as usize)),
            connections: server.connections,
            timeout: server.timeout,
        };
        let database = link.database.clone();
        // Finding a server takes that long at most, the answer of one that was found may take as long again.
        let limit = server.connect_timeout * 2;
        let alive =
            link.within("open", limit, async move { database.run_command(doc! { "ping": 1 }).await }).await;
        if let Err(error) = alive {
            let error = link.blame(error);
            link.abandon();
            return Err(error);
        }
        Ok(link)
    }

    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    /// What the write concern is for commands that are put together by hand.
    pub(crate) fn concern(&self) -> Document {
        let timeout = i64::try_from(self.timeout.as_millis()).unwrap_or(i64::MAX);
        match self.database.write_concern().and_then(|concern| concern.w.clone()) {
            Some(Acknowledgment::Nodes(nodes)) => doc! { "w": i64::from(nodes), "wtimeout": timeout },
            Some(Acknowledgment::Custom(name)) => doc! { "w": name, "wtimeout": timeout },
            _ => doc! { "w": "majority", "wtimeout": timeout },
        }
    }

    /// Makes a call, and waits for its answer as long as an operation may take.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        op: &'static str,
        call: impl Future<Output = DriverResult<T>> + Send + 'static,
    ) -> Result<T> {
        self.within(op, self.timeout, call).await
    }

    /// Makes a call, and waits for its answer as long as that.
    pub(crate) async fn within<T: Send + 'static>(
        &self,
        op: &'static str,
        limit: Duration,
        call: impl Future<Output = DriverResult<T>> + Send + 'static,
    ) -> Result<T> {
        let until = Instant::now() + limit;
        let late = || Error::TimedOut { backend: NAME, op, after: limit };
        let waited = timeout_at(until, self.calls.clone().acquire_owned()).await;
        let permit = waited.map_err(|_| late())?.map_err(|_| Error::Closed)?;
        let task = tokio::spawn(async move {
            let _one_of_few = permit;
            timeout_at(until + GRACE, call).await
        });
        match timeout_at(until, task).await {
            Ok(Ok(Ok(answer))) => answer.map_err(|error| Error::unavailable(NAME, op, error)),
            Ok(Err(error)) if error.is_panic() => Err(Error::Panicked { what: "a call of MongoDB" }),
            Ok(Err(error)) => Err(Error::unavailable(NAME, op, error)),
            Ok(Ok(Err(_))) | Err(_) => Err(late()),
        }
    }

    /// Whether calls are still made.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.calls.is_closed() { Err(Error::Closed) } else { Ok(()) }
    }

    /// Waits for the calls that were begun, as long as one may take, and makes no more.
    pub(crate) async fn close(&self) {
        if self.calls.is_closed() {
            return;
        }
        let all = tokio::time::timeout(self.timeout, self.calls.acquire_many(self.connections)).await;
        if all.is_err() {
            tracing::warn!(backend = NAME, "closed while calls were under way");
        }
        let ended = self.abandon();
        if all.is_ok() {
            let _ = tokio::time::timeout(self.timeout, ended).await;
        }
    }

    /// Makes no more calls. What is under way ends by itself, and the client after it.
    pub(crate) fn abandon(&self) -> JoinHandle<()> {
        self.calls.close();
        let client = self.client.clone();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(GRACE * 2, client.shutdown().immediate(true).into_future()).await;
        })
    }

    /// The error of opening, with what one must know to mend it.
    pub(crate) fn blame(&self, error: Error) -> Error {
        let Error::Unavailable { backend, op, ref source } = error else {
            return match error {
                Error::TimedOut { backend, op, after } => Error::unavailable(
                    backend,
                    op,
                    format!("{} did not answer within {after:?}", self.address),
                ),
                other => other,
            };
        };
        match source.downcast_ref::<DriverError>() {
            Some(found) if is_not_let_in(found) => Error::Refused(format!(
                "mongodb at {} does not let us in: wrong user or password, or no right to the database `{}`",
                self.address,
                self.database.name()
            )),
            _ => Error::unavailable(backend, op, format!("{}: {source}", self.address)),
        }
    }
}

/// Whether the server has a document of that name already: a conditional write met one that is not older.
pub(crate) fn is_duplicate(error: &DriverError) -> bool {
    code(error) == Some(DUPLICATE_KEY)
}

/// Whether the server itself refused, so that asking again would not help; else the way to it failed.
pub(crate) fn is_answer(error: &DriverError) -> bool {
    code(error).is_some() && !error.contains_label("RetryableWriteError")
}

fn is_not_let_in(error: &DriverError) -> bool {
    matches!(*error.kind, ErrorKind::Authentication { .. })
        || code(error).is_some_and(|code| NOT_LET_IN.contains(&code))
        // The driver keeps of what a connection met only the words.
        || matches!(&*error.kind, ErrorKind::ServerSelection { message, .. } if message.contains("SCRAM failure"))
}

fn code(error: &DriverError) -> Option<i32> {
    match &*error.kind {
        ErrorKind::Command(error) => Some(error.code),
        ErrorKind::Write(WriteFailure::WriteError(error)) => Some(error.code),
        _ => None,
    }
}

async fn options(server: &Server) -> Result<ClientOptions> {
    server.check()?;
    let mut options = match &server.uri {
        // The driver's words may repeat a part of the string, and with it of the password.
        Some(uri) => ClientOptions::parse(uri.reveal()).await.map_err(|_| {
            Error::Config(
                "uri: is not a connection string one can use: `mongodb://user:password@host:27017/database`, special \
                 characters in user and password percent-encoded, hosts by name (no `mongodb+srv`)"
                    .to_owned(),
            )
        })?,
        None => ClientOptions::builder()
            .hosts(vec![ServerAddress::Tcp {
                host: server.host.clone().unwrap_or_else(|| "127.0.0.1".to_owned()),
                port: Some(server.port.unwrap_or(DEFAULT_PORT)),
            }])
            .build(),
    };
    if let Some(username) = &server.username {
        let mut credential = options.credential.take().unwrap_or_else(|| Credential::builder().build());
        credential.username = Some(username.clone());
        credential.password = server.password.as_ref().map(|password| password.reveal().to_owned());
        options.credential = Some(credential);
    }
    if server.tls || server.tls_ca_file.is_some() {
        let mut tls = match options.tls.take() {
            Some(Tls::Enabled(tls)) => tls,
            _ => TlsOptions::builder().build(),
        };
        tls.ca_file_path = server.tls_ca_file.clone().or(tls.ca_file_path);
        options.tls = Some(Tls::Enabled(tls));
    }
    options.app_name.get_or_insert_with(|| "tiercache".to_owned());
    options.connect_timeout = Some(server.connect_timeout);
    options.server_selection_timeout = Some(server.connect_timeout);
    options.heartbeat_freq = Some(Duration::from_secs(5));
    // As many as there are calls, which is bounded here. A bound of the pool's own would also count connections whose
    // handshake hangs, to which the driver sets no time: a few of those would stop it for good.
    options.max_pool_size = Some(u32::MAX);
    options.min_pool_size = Some(0);
    options.max_connecting = Some(u32::MAX);
    // A member that lags would answer what was removed.
    options.selection_criteria = Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
    let mut concern = options.write_concern.take().unwrap_or_default();
    concern.w = match server.write_concern {
        Some(WriteConcern::One) => Some(Acknowledgment::Nodes(1)),
        Some(WriteConcern::Majority) => Some(Acknowledgment::Majority),
        None => concern.w.or(Some(Acknowledgment::Majority)),
    };
    concern.w_timeout = Some(server.timeout);
    options.read_concern = Some(if concern.w == Some(Acknowledgment::Majority) {
        ReadConcern::majority()
    } else {
        ReadConcern::local()
    });
    options.write_concern = Some::<DriverConcern>(concern);
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MongoConfig;

    #[tokio::test]
    async fn options_are_explicit_whatever_the_uri_says() {
        let config = MongoConfig {
            uri: Some("mongodb://u:p%40ss@a:1,b:2/app?replicaSet=r&connectTimeoutMS=90000&w=1".into()),
            ..MongoConfig::default()
        };
        let found = options(&config.server()).await.expect("options");
        assert_eq!(found.connect_timeout, Some(Duration::from_secs(2)));
        assert_eq!(found.server_selection_timeout, Some(Duration::from_secs(2)));
        assert_eq!(found.default_database.as_deref(), Some("app"));
        assert_eq!(found.write_concern.and_then(|concern| concern.w), Some(Acknowledgment::Nodes(1)));
        assert_eq!(found.read_concern, Some(ReadConcern::local()));
        assert_eq!(found.credential.and_then(|credential| credential.password).as_deref(), Some("p@ss"));
    }

    #[tokio::test]
    async fn host_and_port_are_another_spelling() {
        let config = MongoConfig {
            host: Some("db".into()),
            username: Some("u".into()),
            password: Some("p@ss/word".to_owned().into()),
            tls: true,
            ..MongoConfig::default()
        };
        let found = options(&config.server()).await.expect("options");
        assert_eq!(found.hosts, [ServerAddress::Tcp { host: "db".into(), port: Some(27_017) }]);
        assert_eq!(found.credential.and_then(|credential| credential.password).as_deref(), Some("p@ss/word"));
        assert!(matches!(found.tls, Some(Tls::Enabled(_))));
        assert_eq!(found.write_concern.and_then(|concern| concern.w), Some(Acknowledgment::Majority));
        assert_eq!(found.read_concern, Some(ReadConcern::majority()));
    }

    #[tokio::test]
    async fn an_odd_uri_is_refused_without_showing_it() {
        for uri in
            ["mongodb://user:s3nt/inel@host", "mongodb://user:s3nt%zinel@host", "http://s3ntinel", "s3ntinel"]
        {
            let config = MongoConfig { uri: Some(uri.into()), ..MongoConfig::default() };
            let message = options(&config.server()).await.expect_err("an odd one").to_string();
            assert!(message.starts_with("uri: ") && !message.contains("s3nt"), "{message}");
        }
    }
}
