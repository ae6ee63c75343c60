//! Connections: how many, how long they may take, and which of them are used again.

use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{self, Metrics, Object, PoolError, RecycleError, RecycleResult, Timeouts};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use tiercache_core::{Error, Result};

use super::config::PostgresConfig;
use super::{NAME, failed};

/// One that was idle for so long is asked whether it still lives.
const DOUBTFUL: Duration = Duration::from_secs(1);

pub(super) type Pool = managed::Pool<Manager>;

/// Connects.
#[derive(Debug)]
pub(super) struct Manager {
    options: PgConnectOptions,
    settings: String,
}

pub(super) fn build(config: &PostgresConfig, options: PgConnectOptions) -> Result<Pool> {
    let millis = config.timeout.as_millis();
    // Should the client be gone without a word, the server gives up too, and its locks.
    let settings = format!(
        "SET statement_timeout = {millis}; SET lock_timeout = {millis}; \
         SET idle_in_transaction_session_timeout = {millis}; SET client_min_messages = warning"
    );
    Pool::builder(Manager { options, settings })
        .max_size(config.max_connections as usize)
        .timeouts(Timeouts {
            wait: Some(config.timeout),
            create: Some(config.connect_timeout),
            recycle: Some(config.connect_timeout),
        })
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(|error| Error::unavailable(NAME, "make the pool", error))
}

/// A connection that serves. It goes back to the pool when it is given back: one dropped with an error, or in the
/// middle of anything, is closed.
pub(super) struct Lent(Option<Object<Manager>>);

impl Lent {
    pub(super) async fn of(pool: &Pool, op: &'static str) -> Result<Self> {
        match pool.get().await {
            Ok(lent) => Ok(Self(Some(lent))),
            Err(PoolError::Closed) => Err(Error::Closed),
            Err(PoolError::Backend(error)) => Err(failed(op)(error)),
            Err(error) => Err(Error::unavailable(NAME, op, error)),
        }
    }

    pub(super) fn connection(&mut self) -> Result<&mut PgConnection> {
        self.0.as_deref_mut().ok_or(Error::Closed)
    }

    pub(super) fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        drop(self.0.take().map(Object::take));
    }
}

impl managed::Manager for Manager {
    type Type = PgConnection;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<PgConnection, sqlx::Error> {
        let mut connection = self.options.connect().await?;
        sqlx::raw_sql(AssertSqlSafe(self.settings.clone())).execute(&mut connection).await?;
        Ok(connection)
    }

    async fn recycle(&self, connection: &mut PgConnection, metrics: &Metrics) -> RecycleResult<sqlx::Error> {
        if metrics.last_used() >= DOUBTFUL {
            connection.ping().await.map_err(RecycleError::Backend)?;
        }
        Ok(())
    }
}
