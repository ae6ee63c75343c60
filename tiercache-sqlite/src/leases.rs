//! Leases: a row each, by the machine's clock as it is at every call. What processes took when they began would drift
//! apart.

use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{OptionalExtension, params};
use tiercache_core::lease::{Claim, Holder, Lease, Leasing, least_token, term_millis};
use tiercache_core::{Key, Result};
use tokio::time::Instant;

use crate::SqliteTier;
use crate::step::Step;
use crate::values::{number, sql};

/// Rows of leases that are over which a new lease takes away.
const SWEPT: u32 = 16;

/// What became of a claim, without the time of this process.
enum Claimed {
    Token(u64),
    Taken(Duration),
}

impl Step<'_> {
    fn acquire(&mut self, name: &Key, holder: Holder, micros: u64) -> rusqlite::Result<Claimed> {
        // The same number: the time of day in microseconds.
        let now = least_token();
        let until = sql(now.saturating_add(micros));
        if let Some((by, token, ends)) = self.lease(name, now)? {
            if by != holder {
                return Ok(Claimed::Taken(Duration::from_micros(ends.saturating_sub(now))));
            }
            self.relet(name, until)?;
            return Ok(Claimed::Token(token));
        }
        self.connection
            .prepare_cached(
                "DELETE FROM lease WHERE (namespace, name) IN
                 (SELECT namespace, name FROM lease WHERE until <= ?1 LIMIT ?2)",
            )?
            .execute((sql(now), SWEPT))?;
        let token: i64 = self
            .connection
            .prepare_cached("UPDATE state SET token = max(token + 1, ?1) WHERE id = 1 RETURNING token")?
            .query_row([sql(now)], |row| row.get(0))?;
        self.connection
            .prepare_cached(
                "INSERT INTO lease (namespace, name, holder, token, until) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO UPDATE SET holder = excluded.holder, token = excluded.token,
                 until = excluded.until",
            )?
            .execute(params![name.namespace(), name.bytes(), holder.get().to_be_bytes(), token, until])?;
        Ok(Claimed::Token(number(token)))
    }

    fn renew(&mut self, name: &Key, holder: Holder, micros: u64) -> rusqlite::Result<Option<u64>> {
        let now = least_token();
        let held = self.lease(name, now)?.filter(|&(by, ..)| by == holder);
        if held.is_some() {
            self.relet(name, sql(now.saturating_add(micros)))?;
        }
        Ok(held.map(|(_, token, _)| token))
    }

    fn release(&mut self, name: &Key, holder: Holder) -> rusqlite::Result<bool> {
        let held = self.lease(name, least_token())?.is_some_and(|(by, ..)| by == holder);
        if held {
            self.connection
                .prepare_cached("DELETE FROM lease WHERE namespace = ?1 AND name = ?2")?
                .execute((name.namespace(), name.bytes()))?;
        }
        Ok(held)
    }

    /// Holder, token and end of the lease, if it is not over.
    fn lease(&self, name: &Key, now: u64) -> rusqlite::Result<Option<(Holder, u64, u64)>> {
        self.connection
            .prepare_cached(
                "SELECT holder, token, until FROM lease WHERE namespace = ?1 AND name = ?2 AND until > ?3",
            )?
            .query_row((name.namespace(), name.bytes(), sql(now)), |row| {
                let holder = Holder::of(u128::from_be_bytes(row.get(0)?));
                Ok((holder, number(row.get(1)?), number(row.get(2)?)))
            })
            .optional()
    }

    fn relet(&self, name: &Key, until: i64) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("UPDATE lease SET until = ?3 WHERE namespace = ?1 AND name = ?2")?
            .execute((name.namespace(), name.bytes(), until))
            .map(drop)
    }
}

#[async_trait]
impl Leasing for SqliteTier {
    async fn acquire(&self, name: &Key, holder: Holder, term: Duration) -> Result<Claim> {
        let micros = term_millis(term)? * 1_000;
        let until = Instant::now() + term;
        let claimed =
            self.lease_step("acquire a lease", name, move |step, name| step.acquire(name, holder, micros));
        Ok(match claimed.await? {
            Claimed::Token(token) => Claim::Granted(Lease { token, until }),
            Claimed::Taken(left) => Claim::Taken { left },
        })
    }

    async fn renew(&self, name: &Key, holder: Holder, term: Duration) -> Result<Option<Lease>> {
        let micros = term_millis(term)? * 1_000;
        let until = Instant::now() + term;
        let token =
            self.lease_step("renew a lease", name, move |step, name| step.renew(name, holder, micros));
        Ok(token.await?.map(|token| Lease { token, until }))
    }

    async fn release(&self, name: &Key, holder: Holder) -> Result<bool> {
        self.lease_step("release a lease", name, move |step, name| step.release(name, holder)).await
    }
}

impl SqliteTier {
    async fn lease_step<T: Send + 'static>(
        &self,
        op: &'static str,
        name: &Key,
        mut work: impl FnMut(&mut Step<'_>, &Key) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        self.check_open()?;
        let shard = self.shard(name);
        let name = name.clone();
        let done = shard.write(op, 0, move |step| work(step, &name)).await;
        done.map_err(|failure| failure.into_error(op))
    }
}
