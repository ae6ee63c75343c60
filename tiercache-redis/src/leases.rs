//! Leases: a hash each that the server expires, and one number, the last token. All begin with the base, which stands
//! in braces, so that a cluster has them on one node.

use std::time::Duration;

use async_trait::async_trait;
use redis::{ErrorKind, RedisError, RedisResult};
use tiercache_core::lease::{Claim, Holder, Lease, Leasing, term_millis};
use tiercache_core::{Error, Key, Result};
use tokio::time::Instant;

use crate::keys::part;
use crate::ledger::typed;
use crate::link::{Link, Script};
use crate::{RedisTier, RedisTracking};

#[derive(Debug)]
pub(crate) struct Leases {
    base: Vec<u8>,
    acquire: Script,
    relet: Script,
}

impl Leases {
    pub(crate) fn new(base: impl Into<Vec<u8>>) -> Self {
        Self {
            base: base.into(),
            acquire: Script::new(include_str!("lua/acquire.lua")),
            relet: Script::new(include_str!("lua/relet.lua")),
        }
    }

    async fn acquire(
        &self,
        link: &Link,
        name: &Key,
        holder: Holder,
        term: Duration,
        failed: impl Fn(RedisError) -> Error,
    ) -> Result<Claim> {
        let life = life(term)?;
        let until = Instant::now() + term;
        let names = [self.name(name), [&self.base, &b":token"[..]].concat()];
        let names = names.each_ref().map(Vec::as_slice);
        let holder = holder.to_string();
        let answer = link.eval(&self.acquire, &names, &[holder.as_bytes(), life.as_bytes()]).await;
        let answer: i64 = answer.and_then(typed).map_err(&failed)?;
        match u64::try_from(answer) {
            Ok(token) => Ok(Claim::Granted(Lease { token, until })),
            Err(_) => Ok(Claim::Taken { left: Duration::from_millis(answer.unsigned_abs() - 1) }),
        }
    }

    /// Has the lease last that many milliseconds from now; 0 ends it. The token, if the holder has it.
    async fn relet(&self, link: &Link, name: &Key, holder: Holder, life: &str) -> RedisResult<Option<u64>> {
        let (name, holder) = (self.name(name), holder.to_string());
        let token: i64 =
            typed(link.eval(&self.relet, &[&name], &[holder.as_bytes(), life.as_bytes()]).await?)?;
        match u64::try_from(token) {
            Ok(token) => Ok(Some(token).filter(|&token| token > 0)),
            Err(_) => Err(RedisError::from((ErrorKind::UnexpectedReturnType, "a token is not below zero"))),
        }
    }

    fn name(&self, name: &Key) -> Vec<u8> {
        let (namespace, bytes) = (part(name.namespace().as_bytes(), false), part(name.bytes(), true));
        [&self.base[..], b":l:", &namespace, b":", &bytes].concat()
    }
}

/// The milliseconds the server is told: it cuts its clock to whole ones.
fn life(term: Duration) -> Result<String> {
    Ok((term_millis(term)? + 1).to_string())
}

macro_rules! leasing {
    ($($store:ty)*) => {$(
        #[async_trait]
        impl Leasing for $store {
            async fn acquire(&self, name: &Key, holder: Holder, term: Duration) -> Result<Claim> {
                self.check_open()?;
                self.leases.acquire(self.link(), name, holder, term, self.failed("acquire a lease")).await
            }

            async fn renew(&self, name: &Key, holder: Holder, term: Duration) -> Result<Option<Lease>> {
                self.check_open()?;
                let (life, until) = (life(term)?, Instant::now() + term);
                let token = self.leases.relet(self.link(), name, holder, &life).await;
                let token = token.map_err(self.failed("renew a lease"))?;
                Ok(token.map(|token| Lease { token, until }))
            }

            async fn release(&self, name: &Key, holder: Holder) -> Result<bool> {
                self.check_open()?;
                let token = self.leases.relet(self.link(), name, holder, "0").await;
                Ok(token.map_err(self.failed("release a lease"))?.is_some())
            }
        }
    )*};
}

leasing! { RedisTier RedisTracking }
