//! Counters: items of decimal digits, changed by the server itself (`ma`) on condition of their CAS. A sum is known to be
//! in range before it is made, and nothing is added twice.
//!
//! memcached's numbers have 64 bits and no sign, and wrap around: they are an `i64`'s bits. When a counter dies stands in its
//! flags, since the server expires it up to two seconds later.

use async_memcached::MetaValue;
use async_trait::async_trait;
use tiercache_core::tier::Counting;
use tiercache_core::{Error, Key, Result, Timestamp};
use tokio::time::Instant;

use crate::names::expiry;
use crate::server::{NAME, Server, TRIES, Written};
use crate::tier::{MemcachedTier, Shared};

#[async_trait]
impl Counting for MemcachedTier {
    async fn add(
        &self,
        key: &Key,
        delta: i64,
        start: i64,
        deadline: Timestamp,
        now: Timestamp,
    ) -> Result<i64> {
        let server = self.shared.server(key)?;
        let turn = &self.shared.adding[key.hash64() as usize % self.shared.adding.len()];
        let _turn = turn.lock().await;
        for _ in 0..TRIES {
            let (name, found) = self.shared.counter(server, key, "add").await?;
            let added = match &found {
                Some(found) if lives(found, now) => go_on(server, &name, found, delta).await?,
                found => {
                    let dead = found.as_ref().and_then(|found| found.cas);
                    begin(server, &name, dead, sum(start, delta)?, deadline, now).await?
                }
            };
            if let Some(sum) = added {
                return Ok(sum);
            }
        }
        Err(Error::unavailable(NAME, "add", "the counter changes faster than it can be added to"))
    }

    async fn counter(&self, key: &Key, now: Timestamp) -> Result<Option<i64>> {
        let server = self.shared.server(key)?;
        let (_, found) = self.shared.counter(server, key, "counter").await?;
        Ok(found.filter(|found| lives(found, now)).as_ref().and_then(value))
    }

    async fn remove_counter(&self, key: &Key) -> Result<bool> {
        let server = self.shared.server(key)?;
        for _ in 0..TRIES {
            let (name, found) = self.shared.counter(server, key, "remove counter").await?;
            let Some(cas) = found.and_then(|found| found.cas) else { return Ok(false) };
            if server.delete("remove counter", &name, cas).await? {
                return Ok(true);
            }
        }
        Err(Error::unavailable(NAME, "remove counter", "the counter changes faster than it can be removed"))
    }
}

impl Shared {
    /// A counter's item and its name, which depends on the record: that is asked for in the same round trip.
    async fn counter(
        &self,
        server: &Server,
        key: &Key,
        op: &'static str,
    ) -> Result<(String, Option<MetaValue>)> {
        let mut known = server.known(op).await?;
        for _ in 0..TRIES {
            let name = self.names.counter(&known.record, key);
            let names = [&name, server.record_name()];
            let asked = Instant::now();
            let [counter, record] = server.pair(op, names, &["v", "c", "f"]).await?;
            let record = record.as_ref().and_then(|record| record.data.as_deref());
            if server.confirms(&known, record, asked) {
                return Ok((name, counter));
            }
            known = server.asked(op).await?;
        }
        Err(Error::unavailable(NAME, op, "the record changes faster than it can be read"))
    }
}

/// Adds to a counter; `None` when another process was faster.
async fn go_on(server: &Server, name: &str, found: &MetaValue, delta: i64) -> Result<Option<i64>> {
    let no_number = || Error::unavailable(NAME, "add", "the server's answer is no number");
    let (value, cas) = value(found).zip(found.cas).ok_or_else(no_number)?;
    sum(value, delta)?;
    match server.add("add", name, delta as u64, cas).await? {
        Some(added) => self::value(&added).map(Some).ok_or_else(no_number),
        None => Ok(None),
    }
}

/// Makes a counter, over a dead one if there is one; `None` when another process was faster.
async fn begin(
    server: &Server,
    name: &str,
    dead: Option<u64>,
    first: i64,
    deadline: Timestamp,
    now: Timestamp,
) -> Result<Option<i64>> {
    let flags = format!("F{}", death(deadline, now));
    let digits = (first as u64).to_string();
    match server.set("add", name, digits.as_bytes(), dead, [&flags, &expiry(deadline, now)]).await? {
        Written::Stored => Ok(Some(first)),
        Written::Changed => Ok(None),
        Written::TooLarge | Written::Full => {
            Err(Error::unavailable(NAME, "add", "the server has no room for a counter"))
        }
    }
}

fn sum(value: i64, delta: i64) -> Result<i64> {
    value.checked_add(delta).ok_or_else(|| Error::InvalidOption {
        option: "delta",
        reason: format!("{delta} leads out of the range of a counter that is at {value}"),
    })
}

fn value(found: &MetaValue) -> Option<i64> {
    let digits = std::str::from_utf8(found.data.as_deref()?).ok()?;
    // The server pads a number that became shorter.
    digits.trim_end().parse::<u64>().ok().map(|bits| bits as i64)
}

/// A deadline in the 32 bits of an item's flags. 0 is never. With the highest bit, the lower ones of its milliseconds:
/// the item lives for seconds after it at the most, so that which of the times meant is clear. Without, for what is
/// more than 12 days ahead, its seconds from 2020 on, rounded up.
fn death(deadline: Timestamp, now: Timestamp) -> u32 {
    if deadline.since(now).as_millis() < u128::from(NEAR) {
        return EXACT | (deadline.as_millis() % u64::from(EXACT)) as u32;
    }
    let seconds = deadline.as_millis().div_ceil(1_000).saturating_sub(EPOCH);
    u32::try_from(seconds).ok().filter(|seconds| seconds & EXACT == 0).unwrap_or(0)
}

const EXACT: u32 = 1 << 31;
const NEAR: u32 = 1 << 30;
const EPOCH: u64 = 1_577_836_800;

fn lives(found: &MetaValue, now: Timestamp) -> bool {
    match found.flags.unwrap_or_default() {
        0 => true,
        exact if exact & EXACT != 0 => {
            let now = (now.as_millis() % u64::from(EXACT)) as u32;
            let left = (exact & !EXACT).wrapping_sub(now) & !EXACT;
            (1..=NEAR).contains(&left)
        }
        seconds => now < Timestamp::from_millis((EPOCH + u64::from(seconds)) * 1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_dies_at_its_deadline_and_not_before() {
        let born = Timestamp::from_millis(1_800_000_000_123);
        for ahead in [1, 999, 60_000, u64::from(NEAR) - 1, u64::from(NEAR), 10 * 365 * 86_400_000] {
            let deadline = born.after_millis(ahead);
            let found = MetaValue { flags: Some(death(deadline, born)), ..MetaValue::default() };
            let last = Timestamp::from_millis(deadline.as_millis() - 1);
            assert!(lives(&found, born) && lives(&found, last), "{ahead}");
            let late = if ahead < u64::from(NEAR) { 0 } else { 1_000 };
            for after in [late, late + 1, late + 600_000] {
                assert!(!lives(&found, deadline.after_millis(after)), "{ahead} and {after}");
            }
        }
        assert_eq!(death(Timestamp::NEVER, born), 0);
    }
}
