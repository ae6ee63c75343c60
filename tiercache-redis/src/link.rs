//! The way to the server: one multiplexed connection, made anew in the background when it is lost.
//!
//! The client's own manager is not used: it gives up for ever when reconnecting fails for another reason than I/O,
//! such as a server that is still loading its data, and it cannot follow a sentinel to another server.
//!
//! A call may be dropped at any point: the client either has not taken the command yet, and it is never sent, or
//! has, and then it reads the answer in its turn and throws it away. No call can meet another's answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{RoutingInfo, SingleNodeRoutingInfo};
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo, ProtocolVersion,
    PushInfo, PushKind, RedisError, RedisResult, ServerErrorKind, TlsMode, Value,
};
use tiercache_core::{Error, Result};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::NAME;
use crate::config::{Place, Reach};

/// Pauses between attempts to connect: doubled each time, so that a server that is back is used within seconds.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often a cluster's client sends a command again that another node must answer or whose answer was lost.
const RESENT: u32 = 3;

/// Whether a cluster's client may send a command again without knowing whether it was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resend {
    /// What is sent makes no difference the second time.
    Freely,
    /// Only when the server said that it did nothing.
    Never,
}

/// A way to the server.
#[derive(Debug)]
pub(crate) struct Link {
    state: watch::Receiver<State>,
    /// The number of the last connection that is not to be used any more.
    lost: Arc<watch::Sender<u64>>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    resend: Resend,
    response_timeout: Duration,
    born: Instant,
    /// Since when, in milliseconds after birth, nothing was answered; 0 when nothing is waited for.
    unanswered: AtomicU64,
    cluster: bool,
}

#[derive(Clone, Debug)]
enum State {
    Connecting,
    Up(Connection, u64),
    Down(RedisError),
}

#[derive(Clone)]
enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::One(_) => "One",
            Self::Cluster(_) => "Cluster",
        })
    }
}

/// A Lua script, called by its hash.
#[derive(Debug)]
pub(crate) struct Script {
    code: String,
    hash: String,
}

impl Script {
    pub(crate) fn new(code: impl Into<String>) -> Self {
        let code = code.into();
        let hash = redis::Script::new(&code).get_hash().to_owned();
        Self { code, hash }
    }

    /// The call of the script by its hash.
    pub(crate) fn call(&self, keys: &[&[u8]], args: &[&[u8]]) -> Cmd {
        self.command("EVALSHA", keys, args)
    }

    fn command(&self, name: &'static str, keys: &[&[u8]], args: &[&[u8]]) -> Cmd {
        let code = if name == "EVAL" { &self.code } else { &self.hash };
        let parts = || keys.iter().chain(args);
        let bytes: usize = parts().map(|part| part.len()).sum();
        let mut cmd = Cmd::with_capacity(3 + keys.len() + args.len(), 32 + code.len() + bytes);
        cmd.arg(name).arg(code).arg(keys.len());
        for part in parts() {
            cmd.arg(*part);
        }
        cmd
    }
}

impl Link {
    /// Connects.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server does not let us in, [`Error::Unavailable`] when it cannot be reached in
    /// time; both name it and the `section` of the configuration.
    pub(crate) async fn open(reach: &Reach, resend: Resend, section: &str) -> Result<Self> {
        // The client takes the process's provider, and panics when several are compiled in and none is chosen.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let blamed = |error| at_open(error, "connect", &reach.shown(), section);
        let mut maker = Maker::new(reach, resend).map_err(blamed)?;
        let lost = Arc::new(watch::Sender::new(0));
        let first = maker.connect(1, &lost).await.map_err(blamed)?;
        let (sender, state) = watch::channel(State::Up(first, 1));
        let keeper = tokio::spawn(keep(maker, sender, lost.clone()));
        Ok(Self {
            state,
            lost,
            keeper: Mutex::new(Some(keeper)),
            resend,
            response_timeout: reach.response_timeout,
            born: Instant::now(),
            unanswered: AtomicU64::new(0),
            cluster: reach.is_cluster(),
        })
    }

    /// Which connection is in use; another number after it was made anew. 0 while there is none.
    pub(crate) fn number(&self) -> u64 {
        match &*self.state.borrow() {
            State::Up(_, number) if *number > *self.lost.borrow() => *number,
            _ => 0,
        }
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.cluster
    }

    /// Sends a command and waits for its answer, for no longer than the configuration says.
    pub(crate) async fn query(&self, cmd: &Cmd) -> RedisResult<Value> {
        self.sent(cmd, None).await
    }

    /// Sends commands in one write and waits for their answers, each on its own; errors within an answer are left there.
    /// Not for clusters, where what belongs to several nodes goes by single commands side by side.
    pub(crate) async fn pipeline(&self, commands: Vec<Cmd>) -> RedisResult<Vec<RedisResult<Value>>> {
        let (connection, number) = self.connection().await?;
        let Connection::One(mut connection) = connection else {
            return Err(RedisError::from((ErrorKind::Client, "a cluster takes no pipeline of many keys")));
        };
        let count = commands.len();
        let mut pipeline = redis::Pipeline::with_capacity(count);
        for command in commands {
            pipeline.add_command(command);
        }
        let said = pipeline.ignore_errors().query_async::<Value>(&mut connection).await;
        self.heed(&said, number);
        let Value::Array(answers) = said? else { return Err(out_of_step()) };
        if answers.len() != count {
            self.distrust(number);
            return Err(out_of_step());
        }
        for answer in &answers {
            let within = if let Value::Array(within) = answer { &within[..] } else { &[] };
            for value in within.iter().chain([answer]) {
                if let Value::ServerError(error) = value {
                    self.heed::<()>(&Err(error.clone().into()), number);
                }
            }
        }
        let answer = |value| match value {
            Value::ServerError(error) => Err(error.into()),
            value => Ok(value),
        };
        Ok(answers.into_iter().map(answer).collect())
    }

    /// Sends a command to one node of a cluster, given as `host:port`.
    pub(crate) async fn query_at(&self, cmd: &Cmd, host: &str, port: u16) -> RedisResult<Value> {
        self.sent(cmd, Some((host, port))).await
    }

    /// Runs a script, which the server may not know yet.
    pub(crate) async fn eval(&self, script: &Script, keys: &[&[u8]], args: &[&[u8]]) -> RedisResult<Value> {
        match self.query(&script.call(keys, args)).await {
            Err(error) if is_unknown_script(&error) => self.query(&script.command("EVAL", keys, args)).await,
            answer => answer,
        }
    }

    /// Tells the server of a script.
    pub(crate) async fn load(&self, script: &Script) -> RedisResult<()> {
        self.query(redis::cmd("SCRIPT").arg("LOAD").arg(&script.code)).await.map(drop)
    }

    /// Stops using the connection of that number: its answers are not to be believed.
    pub(crate) fn distrust(&self, number: u64) {
        raise(&self.lost, number);
    }

    /// Ends the connection; calls fail from now on.
    pub(crate) fn close(&self) {
        if let Some(keeper) = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take() {
            keeper.abort();
        }
        raise(&self.lost, u64::MAX);
    }

    async fn sent(&self, cmd: &Cmd, node: Option<(&str, u16)>) -> RedisResult<Value> {
        let mut pause = SHORTEST_PAUSE;
        for _ in 1..RESENT {
            match self.sent_once(cmd, node).await {
                // Nothing was done; by the next time the client knows more of its cluster.
                Err(error) if self.cluster && self.resend == Resend::Never && not_here(&error) => {
                    tokio::time::sleep(pause).await;
                    pause *= 4;
                }
                answer => return answer,
            }
        }
        self.sent_once(cmd, node).await
    }

    async fn sent_once(&self, cmd: &Cmd, node: Option<(&str, u16)>) -> RedisResult<Value> {
        let (connection, number) = self.connection().await?;
        let answer = match (connection, node) {
            (Connection::One(mut connection), _) => cmd.query_async(&mut connection).await,
            (Connection::Cluster(mut connection), None) => cmd.query_async(&mut connection).await,
            (Connection::Cluster(mut connection), Some((host, port))) => {
                let node = SingleNodeRoutingInfo::ByAddress { host: host.to_owned(), port };
                let answer = connection.route_command(cmd.clone(), RoutingInfo::SingleNode(node)).await;
                answer.and_then(Value::extract_error)
            }
        };
        self.heed(&answer, number);
        answer
    }

    /// Learns from an answer how the connection of that number is.
    fn heed<T>(&self, answer: &RedisResult<T>, number: u64) {
        if !answer.as_ref().is_err_and(RedisError::is_timeout) {
            self.unanswered.store(0, Ordering::Relaxed);
        }
        if let Err(error) = answer
            && self.ends_connection(error)
        {
            self.distrust(number);
        }
    }

    /// The connection in use, once there is one; fails as the last attempt to make one did.
    async fn connection(&self) -> RedisResult<(Connection, u64)> {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        if let Err(since) = self.unanswered.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed)
            && u128::from(now - since.min(now)) > self.response_timeout.as_millis()
        {
            // Those who asked have given up meanwhile, so nobody else saw that the server hangs.
            self.unanswered.store(now, Ordering::Relaxed);
            self.distrust(self.number());
        }
        let mut state = self.state.clone();
        let settled = |state: &State| match state {
            State::Connecting => false,
            State::Up(_, number) => *number > *self.lost.borrow(),
            State::Down(_) => true,
        };
        match state.wait_for(settled).await.as_deref() {
            Ok(State::Up(connection, number)) => Ok((connection.clone(), *number)),
            Ok(State::Down(error)) => Err(error.clone()),
            Ok(State::Connecting) | Err(_) => {
                Err(RedisError::from(std::io::Error::new(std::io::ErrorKind::NotConnected, "closed")))
            }
        }
    }

    fn ends_connection(&self, error: &RedisError) -> bool {
        match error.kind() {
            // A cluster's client sees to its connections itself, as long as it has any.
            ErrorKind::ClusterConnectionNotFound => true,
            _ if self.cluster => false,
            // Not the master any more: another server is to be found under its name, or by the sentinels.
            ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown) => true,
            _ => error.is_unrecoverable_error(),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

/// What is wrong with opening, for people.
pub(crate) fn at_open(error: RedisError, op: &'static str, server: &str, section: &str) -> Error {
    let code = error.code().unwrap_or_default().to_owned();
    let denied = error.kind() == ErrorKind::AuthenticationFailed
        || ["WRONGPASS", "NOAUTH", "NOPERM"].contains(&code.as_str());
    if denied {
        let code = if code.is_empty() { "authentication failed" } else { &code };
        return Error::Refused(format!(
            "{section}: redis at {server} denies access ({code}): see username, password and the user's rights"
        ));
    }
    Error::unavailable(NAME, op, AtOpen { place: format!("{section}: redis at {server}"), source: error })
}

#[derive(Debug)]
struct AtOpen {
    place: String,
    source: RedisError,
}

impl std::fmt::Display for AtOpen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.place, self.source)
    }
}

impl std::error::Error for AtOpen {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Whether the server does not know the script that was called by its hash; nothing was done then.
pub(crate) fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

fn out_of_step() -> RedisError {
    RedisError::from((ErrorKind::UnexpectedReturnType, "answers do not match the commands"))
}

fn not_here(error: &RedisError) -> bool {
    error.is_cluster_error() || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly)
}

fn raise(lost: &watch::Sender<u64>, number: u64) {
    lost.send_if_modified(|lost| {
        let raised = *lost < number;
        *lost = number.max(*lost);
        raised
    });
}

/// Makes connections anew as they are lost. Ends with its link.
async fn keep(mut maker: Maker, state: watch::Sender<State>, lost: Arc<watch::Sender<u64>>) {
    let mut number = 1;
    loop {
        if lost.subscribe().wait_for(|lost| *lost >= number).await.is_err() {
            return;
        }
        number += 1;
        state.send_replace(State::Connecting);
        let mut pause = SHORTEST_PAUSE;
        loop {
            match maker.connect(number, &lost).await {
                Ok(connection) => {
                    tracing::debug!(number, "redis connection made anew");
                    state.send_replace(State::Up(connection, number));
                    break;
                }
                Err(error) => {
                    tracing::debug!(%error, "redis cannot be reached");
                    state.send_replace(State::Down(error));
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// What makes connections.
struct Maker {
    source: Source,
    config: AsyncConnectionConfig,
    /// For all of it: sentinels and clusters take several steps.
    timeout: Duration,
}

enum Source {
    One(Box<Client>),
    Cluster(Box<ClusterClient>),
    Sentinels(Box<SentinelClient>),
}

impl Maker {
    fn new(reach: &Reach, resend: Resend) -> RedisResult<Self> {
        let (connect, response) = (reach.connect_timeout, reach.response_timeout);
        let tcp = || TcpSettings::default().set_nodelay(true);
        // A route that swallows everything is noticed by the system, too, not only by who asks.
        #[cfg(target_os = "linux")]
        let tcp = || tcp().set_user_timeout(response.max(Duration::from_secs(1)));
        let info = |address: &ConnectionAddr, login: &redis::RedisConnectionInfo| -> RedisResult<_> {
            let info = address.clone().into_connection_info()?;
            Ok(info.set_redis_settings(login.clone()).set_tcp_settings(tcp()))
        };
        let (source, steps) = match &reach.place {
            Place::One(address) => {
                let info = info(address, &reach.login)?;
                let client = match (&reach.certificates, address) {
                    (Some(certificates), ConnectionAddr::TcpTls { .. }) => {
                        Client::build_with_tls(info, certificates.clone())?
                    }
                    _ => Client::open(info)?,
                };
                (Source::One(Box::new(client)), 1)
            }
            Place::Cluster(addresses) => {
                let seeds = addresses.iter().map(|address| info(address, &reach.login));
                let mut builder = ClusterClient::builder(seeds.collect::<RedisResult<Vec<_>>>()?)
                    .use_protocol(ProtocolVersion::RESP3)
                    .tcp_settings(tcp())
                    .connection_timeout(connect)
                    .response_timeout(response)
                    .overall_response_timeout(Some(connect + response))
                    .retries(if resend == Resend::Never { 0 } else { RESENT })
                    .min_retry_wait(20)
                    .max_retry_wait(200);
                if let Some(certificates) = &reach.certificates {
                    builder = builder.tls(TlsMode::Secure).certs(certificates.clone());
                }
                (Source::Cluster(Box::new(builder.build()?)), 3)
            }
            Place::Sentinels { addresses, master } => {
                let mut builder = SentinelClientBuilder::new(
                    addresses.iter().cloned(),
                    master,
                    SentinelServerType::Master,
                )?
                .set_client_to_redis_tcp_settings(tcp())
                .set_client_to_redis_protocol(ProtocolVersion::RESP3)
                .set_client_to_redis_db(reach.login.db())
                .set_client_to_sentinel_tcp_settings(tcp());
                let (login, sentinel) = (&reach.login, &reach.sentinel_login);
                for (username, set) in [
                    (login.username(), SentinelClientBuilder::set_client_to_redis_username as fn(_, _) -> _),
                    (login.password(), SentinelClientBuilder::set_client_to_redis_password),
                    (sentinel.username(), SentinelClientBuilder::set_client_to_sentinel_username),
                    (sentinel.password(), SentinelClientBuilder::set_client_to_sentinel_password),
                ] {
                    if let Some(text) = username {
                        builder = set(builder, text.to_owned());
                    }
                }
                if let Some(certificates) = &reach.certificates {
                    builder = builder
                        .set_client_to_redis_tls_mode(TlsMode::Secure)
                        .set_client_to_redis_certificates(certificates.clone())
                        .set_client_to_sentinel_certificates(certificates.clone());
                }
                (Source::Sentinels(Box::new(builder.build()?)), 3)
            }
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(connect))
            .set_response_timeout(Some(response));
        Ok(Self { source, config, timeout: connect * steps })
    }

    async fn connect(&mut self, number: u64, lost: &Arc<watch::Sender<u64>>) -> RedisResult<Connection> {
        // Weak: the client keeps this for as long as its task runs.
        let told = Arc::downgrade(lost);
        let config = self.config.clone().set_push_sender(move |push: PushInfo| -> Result<(), ()> {
            if let (PushKind::Disconnection, Some(lost)) = (push.kind, told.upgrade()) {
                raise(&lost, number);
            }
            Ok(())
        });
        let connecting = async {
            match &mut self.source {
                Source::One(client) => {
                    client.get_multiplexed_async_connection_with_config(&config).await.map(Connection::One)
                }
                Source::Cluster(client) => client.get_async_connection().await.map(Connection::Cluster),
                Source::Sentinels(client) => {
                    client.get_async_connection_with_config(&config).await.map(Connection::One)
                }
            }
        };
        tokio::time::timeout(self.timeout, connecting).await.unwrap_or_else(|_| {
            Err(RedisError::from(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                "connecting took too long",
            )))
        })
    }
}
