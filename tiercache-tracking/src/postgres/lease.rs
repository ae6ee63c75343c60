//! Leases: a row each, by the server's clock. Every call is one statement, which waits for the row where another call
//! has it. Rows of leases that are over stay an hour, longer than any statement runs, so that a token made before a
//! row was there is never lower than one the row had.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use tiercache_core::lease::{Claim, Holder, Lease, Leasing, term_millis};
use tiercache_core::{Key, Result};
use tokio::time::Instant;

use super::schema::id;
use super::{PostgresTracking, failed, owned};

/// A call in so many takes rows away.
const SWEEP_EVERY: u64 = 256;

/// What is said.
pub(super) struct Leases {
    acquire: Arc<str>,
    left: Arc<str>,
    renew: Arc<str>,
    release: Arc<str>,
    sweep: Arc<str>,
}

impl Leases {
    pub(super) fn new(tables: &str) -> Self {
        const MICROS: &str = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
        const UNTIL: &str = "clock_timestamp() + $3 * interval '1 millisecond'";
        let table = format!("{tables}lease");
        Self {
            acquire: format!(
                "INSERT INTO {table} AS kept (id, holder, token, until) VALUES ($1, $2, {MICROS}, {UNTIL})
                ON CONFLICT (id) DO UPDATE SET holder = excluded.holder, until = {UNTIL}, token =
                    CASE WHEN kept.holder = $2 AND kept.until > clock_timestamp() THEN kept.token
                    ELSE greatest(kept.token + 1, {MICROS}) END
                WHERE kept.holder IN ($2, '') OR kept.until <= clock_timestamp()
                RETURNING token"
            )
            .into(),
            left: format!(
                "SELECT (extract(epoch FROM until - clock_timestamp()) * 1000)::bigint FROM {table} WHERE id = $1"
            )
            .into(),
            renew: format!(
                "UPDATE {table} SET until = {UNTIL}
                WHERE id = $1 AND holder = $2 AND until > clock_timestamp() RETURNING token"
            )
            .into(),
            release: format!(
                "UPDATE {table} SET holder = '', until = clock_timestamp()
                WHERE id = $1 AND holder = $2 AND until > clock_timestamp() RETURNING token"
            )
            .into(),
            sweep: format!(
                "DELETE FROM {table} WHERE id IN (SELECT id FROM {table}
                WHERE until < clock_timestamp() - interval '1 hour' LIMIT 1000 FOR UPDATE SKIP LOCKED)"
            )
            .into(),
        }
    }

    async fn acquire(
        &self,
        connection: &mut PgConnection,
        id: [u8; 16],
        holder: Holder,
        millis: i64,
    ) -> Result<std::result::Result<u64, Duration>, sqlx::Error> {
        if let Some(token) = changed(connection, &self.acquire, id, holder, Some(millis)).await? {
            if token.is_multiple_of(SWEEP_EVERY) {
                sqlx::query(AssertSqlSafe(self.sweep.clone())).execute(connection).await?;
            }
            return Ok(Ok(token));
        }
        let left = sqlx::query(AssertSqlSafe(self.left.clone())).bind(id).fetch_optional(connection).await?;
        let left: Option<i64> = left.map(|row| row.try_get(0)).transpose()?;
        Ok(Err(Duration::from_millis(left.and_then(|left| left.try_into().ok()).unwrap_or_default())))
    }
}

/// The token of the row that a statement changed, if it did.
async fn changed(
    connection: &mut PgConnection,
    statement: &Arc<str>,
    id: [u8; 16],
    holder: Holder,
    millis: Option<i64>,
) -> Result<Option<u64>, sqlx::Error> {
    let holder = holder.get().to_be_bytes();
    let mut query = sqlx::query(AssertSqlSafe(statement.clone())).bind(id).bind(holder);
    if let Some(millis) = millis {
        query = query.bind(millis);
    }
    let row = query.fetch_optional(connection).await?;
    Ok(row.map(|row| row.try_get::<i64, _>(0)).transpose()?.map(i64::cast_unsigned))
}

#[async_trait]
impl Leasing for PostgresTracking {
    async fn acquire(&self, name: &Key, holder: Holder, term: Duration) -> Result<Claim> {
        const OP: &str = "acquire a lease";
        let (millis, until) = (millis(term)?, Instant::now() + term);
        let (store, id) = (self.store.clone(), id(name.namespace(), name.bytes()));
        owned(OP, self.timeout, async move {
            let mut lent = store.lend(OP).await?;
            let claimed =
                store.leases.acquire(lent.connection()?, id, holder, millis).await.map_err(failed(OP))?;
            lent.give_back();
            Ok(match claimed {
                Ok(token) => Claim::Granted(Lease { token, until }),
                Err(left) => Claim::Taken { left },
            })
        })
        .await
    }

    async fn renew(&self, name: &Key, holder: Holder, term: Duration) -> Result<Option<Lease>> {
        let (millis, until) = (millis(term)?, Instant::now() + term);
        let token = self.relet("renew a lease", name, holder, Some(millis)).await?;
        Ok(token.map(|token| Lease { token, until }))
    }

    async fn release(&self, name: &Key, holder: Holder) -> Result<bool> {
        Ok(self.relet("release a lease", name, holder, None).await?.is_some())
    }
}

impl PostgresTracking {
    /// Has the lease last so long from now, or end.
    async fn relet(
        &self,
        op: &'static str,
        name: &Key,
        holder: Holder,
        millis: Option<i64>,
    ) -> Result<Option<u64>> {
        let (store, id) = (self.store.clone(), id(name.namespace(), name.bytes()));
        owned(op, self.timeout, async move {
            let mut lent = store.lend(op).await?;
            let statement = if millis.is_some() { &store.leases.renew } else { &store.leases.release };
            let token =
                changed(lent.connection()?, statement, id, holder, millis).await.map_err(failed(op))?;
            lent.give_back();
            Ok(token)
        })
        .await
    }
}

fn millis(term: Duration) -> Result<i64> {
    // Checked: a day at most.
    term_millis(term).map(u64::cast_signed)
}
