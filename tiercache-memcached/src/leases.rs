//! Leases: an item each, `holder token`, that the server expires, and one item a server with the last token.
//!
//! 1. The lease is taken by an item without a token, if there is none.
//! 2. While nobody else can take it, it gets the next token.
//! 3. The token is put in the item by its CAS: the lease is given. If the item is gone or changed meanwhile, again.

use std::time::Duration;

use async_trait::async_trait;
use tiercache_core::lease::{Claim, Holder, Lease, Leasing, least_token, term_millis};
use tiercache_core::{Error, Key, Result, Timestamp};
use tokio::time::Instant;

use crate::names::expiry;
use crate::server::{NAME, Server, TRIES, Written};
use crate::tier::MemcachedTier;

/// A lease as it stands at the server.
struct Standing {
    holder: Option<Holder>,
    /// 0 while it has none yet.
    token: u64,
    cas: u64,
    left: Duration,
}

#[async_trait]
impl Leasing for MemcachedTier {
    async fn acquire(&self, name: &Key, holder: Holder, term: Duration) -> Result<Claim> {
        const OP: &str = "acquire a lease";
        let (server, names) = (self.shared.server(name)?, &self.shared.names);
        let (expiry, item) = (lasting(term)?, names.lease(name));
        let until = Instant::now() + term;
        for _ in 0..TRIES {
            let flags = ["F0", expiry.as_str()];
            let (taken, cas) = server.set_seen(OP, &item, text(holder, 0).as_bytes(), None, flags).await?;
            let (token, cas) = match (taken, cas) {
                (Written::Stored, Some(cas)) => (0, cas),
                (Written::TooLarge | Written::Full, _) => return Err(full(OP)),
                _ => match standing(server, OP, &item).await? {
                    None => continue,
                    Some(found) if found.holder == Some(holder) => (found.token, found.cas),
                    Some(found) => return Ok(Claim::Taken { left: found.left }),
                },
            };
            let token = if token > 0 { token } else { next_token(server, &names.token()).await? };
            match server.set(OP, &item, text(holder, token).as_bytes(), Some(cas), flags).await? {
                Written::Stored => return Ok(Claim::Granted(Lease { token, until })),
                Written::Changed => {}
                Written::TooLarge | Written::Full => return Err(full(OP)),
            }
        }
        Err(Error::unavailable(NAME, OP, "the lease changes faster than it can be taken"))
    }

    async fn renew(&self, name: &Key, holder: Holder, term: Duration) -> Result<Option<Lease>> {
        const OP: &str = "renew a lease";
        let server = self.shared.server(name)?;
        let (expiry, item) = (lasting(term)?, self.shared.names.lease(name));
        let until = Instant::now() + term;
        for _ in 0..TRIES {
            let found = standing(server, OP, &item).await?;
            let Some(found) = found.filter(|found| found.holder == Some(holder) && found.token > 0) else {
                return Ok(None);
            };
            let text = text(holder, found.token);
            match server.set(OP, &item, text.as_bytes(), Some(found.cas), ["F0", &expiry]).await? {
                Written::Stored => return Ok(Some(Lease { token: found.token, until })),
                Written::Changed => {}
                Written::TooLarge | Written::Full => return Err(full(OP)),
            }
        }
        Err(Error::unavailable(NAME, OP, "the lease changes faster than it can be renewed"))
    }

    async fn release(&self, name: &Key, holder: Holder) -> Result<bool> {
        const OP: &str = "release a lease";
        let (server, item) = (self.shared.server(name)?, self.shared.names.lease(name));
        for _ in 0..TRIES {
            let found = standing(server, OP, &item).await?;
            let Some(found) = found.filter(|found| found.holder == Some(holder)) else { return Ok(false) };
            if server.delete(OP, &item, found.cas).await? {
                return Ok(true);
            }
        }
        Err(Error::unavailable(NAME, OP, "the lease changes faster than it can be released"))
    }
}

async fn standing(server: &Server, op: &'static str, item: &str) -> Result<Option<Standing>> {
    let Some(found) = server.get(op, item, &["v", "c", "t"]).await? else { return Ok(None) };
    let (holder, token) = found.data.as_deref().and_then(parse).unzip();
    Ok(Some(Standing {
        holder,
        token: token.unwrap_or_default(),
        cas: found.cas.unwrap_or_default(),
        left: Duration::from_secs(
            found.ttl_remaining.and_then(|left| left.try_into().ok()).unwrap_or_default(),
        ),
    }))
}

/// A token above every one before, as far as the server remembers it.
async fn next_token(server: &Server, item: &str) -> Result<u64> {
    const OP: &str = "number a lease";
    for _ in 0..TRIES {
        let found = server.get(OP, item, &["v", "c"]).await?;
        let last =
            found.as_ref().and_then(|found| std::str::from_utf8(found.data.as_deref()?).ok()?.parse().ok());
        let next = least_token().max(last.unwrap_or(0_u64).saturating_add(1));
        let cas = found.and_then(|found| found.cas);
        match server.set(OP, item, next.to_string().as_bytes(), cas, ["F0", "T0"]).await? {
            Written::Stored => return Ok(next),
            Written::Changed => {}
            Written::TooLarge | Written::Full => return Err(full(OP)),
        }
    }
    Err(Error::unavailable(NAME, OP, "others number leases all the time"))
}

fn text(holder: Holder, token: u64) -> String {
    format!("{holder} {token}")
}

fn parse(text: &[u8]) -> Option<(Holder, u64)> {
    let (holder, token) = std::str::from_utf8(text).ok()?.split_once(' ')?;
    Some((Holder::of(u128::from_str_radix(holder, 16).ok()?), token.parse().ok()?))
}

/// The flag that makes an item expire when the term is over, and never before.
fn lasting(term: Duration) -> Result<String> {
    Ok(expiry(Timestamp::from_millis(term_millis(term)?), Timestamp::EPOCH))
}

fn full(op: &'static str) -> Error {
    Error::unavailable(NAME, op, "the server has no room for a lease")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_there_is_read_back_or_nobodys() {
        let holder = Holder::new();
        assert_eq!(parse(text(holder, 7).as_bytes()), Some((holder, 7)));
        for odd in [&b""[..], b"x", b"x 7", b"0 x", b"\xff 7"] {
            assert_eq!(parse(odd), None);
        }
    }
}
