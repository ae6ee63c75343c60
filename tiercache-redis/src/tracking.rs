use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use redis::{RedisError, RedisResult, Value, cmd};
use tiercache_core::tracking::{Event, Query, Record, Totals};
use tiercache_core::{Error, Key, Leasing, Result, Tracking};

use crate::config::Reach;
use crate::leases::Leases;
use crate::ledger::typed;
use crate::link::{Link, Resend, Script, at_open};
use crate::track::{self, Stretch};
use crate::{NAME, RedisTrackingConfig};

/// How many records one call of a search looks at: others have their turn between.
const STRIDE: usize = 512;

/// Tracking in Redis, shared by every process that opens it: a hash a record, and sorted sets of keys in their order,
/// one of all, one a level and one a tag.
#[derive(Debug)]
pub struct RedisTracking {
    link: Link,
    /// What every name begins with; the braces keep all of it in one slot of a cluster.
    base: Vec<u8>,
    record: Script,
    find: Script,
    pub(crate) leases: Leases,
    skipped: AtomicU64,
    closed: AtomicBool,
    response_timeout: std::time::Duration,
}

impl RedisTracking {
    /// Connects.
    ///
    /// # Errors
    /// [`Error::Config`] for values that cannot be meant, [`Error::Refused`] when the server does not let us in,
    /// [`Error::Unavailable`] when it cannot be reached in time.
    pub async fn open(config: RedisTrackingConfig) -> Result<Self> {
        let reach = config.reach()?;
        let base = format!("{{{}:tracking}}", config.prefix).into_bytes();
        let tracking = Self {
            // Hits must not be counted twice.
            link: Link::open(&reach, Resend::Never, "tracking").await?,
            leases: Leases::new(base.clone()),
            base,
            record: Script::new(include_str!("lua/record.lua")),
            find: Script::new(include_str!("lua/find.lua")),
            skipped: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            response_timeout: reach.response_timeout,
        };
        let denied = |error| at_open(error, "open", &reach.shown(), "tracking");
        tracking.apply(&[]).await.map_err(denied)?;
        tracking.warn_of_eviction(&reach).await;
        Ok(tracking)
    }

    /// How many records were skipped because they made no sense, each time they were met.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    pub(crate) fn failed(&self, op: &'static str) -> impl Fn(RedisError) -> Error {
        let after = self.response_timeout;
        move |error| match error.is_timeout() {
            true => Error::TimedOut { backend: NAME, op, after },
            false => Error::unavailable(NAME, op, error),
        }
    }

    fn named(&self, what: &str) -> Vec<u8> {
        [&self.base, what.as_bytes()].concat()
    }

    async fn apply(&self, events: &[Event]) -> RedisResult<()> {
        let mut args = vec![self.base.clone()];
        events.iter().for_each(|event| track::write(event, &mut args));
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        self.link.eval(&self.record, &[&self.named(":k")], &args).await.map(drop)
    }

    /// The next page of what `query` finds from a member on.
    async fn page(&self, query: &Query, after: Option<&Key>, limit: usize) -> RedisResult<Vec<Record>> {
        let mut page = Vec::new();
        let Some(prefix) = track::common_prefix(query) else { return Ok(page) };
        // Behind a member comes the same with a zero byte.
        let mut from = after.map_or_else(Vec::new, |after| [track::member(after).as_slice(), b"\0"].concat());
        while page.len() < limit {
            // One namespace after the other, unless that makes no difference.
            let head = match &query.namespace {
                Some(namespace) => track::namespace_head(namespace),
                None if prefix.is_empty() => Vec::new(),
                None => match self.first_namespace(&from).await? {
                    Some(head) => head,
                    None => break,
                },
            };
            let begin = [head.as_slice(), prefix].concat();
            let end = track::behind(&begin);
            self.stretch(query, from.clone().max(begin), end.as_deref(), limit, &mut page).await?;
            match (&query.namespace, track::behind(&head)) {
                (None, Some(next)) if !head.is_empty() => from = from.max(next),
                _ => break,
            }
        }
        Ok(page)
    }

    /// Adds what matches between two members to the page, as far as it has room.
    async fn stretch(
        &self,
        query: &Query,
        mut from: Vec<u8>,
        end: Option<&[u8]>,
        limit: usize,
        page: &mut Vec<Record>,
    ) -> RedisResult<()> {
        let mut indexes: Vec<Vec<u8>> =
            query.tags.iter().map(|(name, value)| track::tag_index(name, value)).collect();
        indexes.extend(query.level.map(track::level_index));
        if indexes.is_empty() {
            indexes.push(b":k".to_vec());
        }
        while page.len() < limit && end.is_none_or(|end| from.as_slice() < end) {
            let stretch = Stretch::between(&from, end);
            let count = STRIDE.to_string();
            let args = [self.base.as_slice(), &stretch.from, &stretch.to, count.as_bytes()];
            let args: Vec<&[u8]> = args.into_iter().chain(indexes.iter().map(Vec::as_slice)).collect();
            let rows = track::rows(self.link.eval(&self.find, &[&self.named(":k")], &args).await?)?;
            let Some((last, _)) = rows.last().filter(|_| rows.len() == STRIDE) else {
                self.take(query, &rows, limit, page);
                return Ok(());
            };
            from = [last.as_slice(), b"\0"].concat();
            self.take(query, &rows, limit, page);
        }
        Ok(())
    }

    fn take(&self, query: &Query, rows: &[track::Row], limit: usize, page: &mut Vec<Record>) {
        for (member, fields) in rows {
            if page.len() >= limit {
                return;
            }
            match track::record_of(member, fields) {
                Some(record) if query.matches(&record) => page.push(record),
                Some(_) => {}
                None => {
                    self.skipped.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(
                        "a record of the tracking makes no sense, or was evicted, and was skipped"
                    );
                }
            }
        }
    }

    /// What the members of the first namespace from a member on begin with.
    async fn first_namespace(&self, from: &[u8]) -> RedisResult<Option<Vec<u8>>> {
        let stretch = Stretch::between(from, None);
        let mut first = cmd("ZRANGEBYLEX");
        first.arg(self.named(":k")).arg(&stretch.from).arg(&stretch.to).arg("LIMIT").arg(0).arg(1);
        let members: Vec<Vec<u8>> = typed(self.link.query(&first).await?)?;
        Ok(members.into_iter().next().map(|mut member| {
            member.truncate(track::head_len(&member).unwrap_or(member.len()));
            member
        }))
    }

    /// Says so when the server may drop what is tracked for want of memory.
    async fn warn_of_eviction(&self, reach: &Reach) {
        let answer = self.link.query(cmd("INFO").arg("memory")).await;
        let evicts = answer.map(|answer| {
            let texts = match answer {
                Value::Map(nodes) => nodes.into_iter().map(|(_, text)| text).collect(),
                one => vec![one],
            };
            texts.into_iter().filter_map(|text| typed::<String>(text).ok()).any(|text| may_evict(&text))
        });
        match evicts {
            Ok(true) => tracing::warn!(
                server = reach.shown(),
                "maxmemory-policy of the redis server may evict what is tracked: use noeviction or volatile-*"
            ),
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "could not ask the redis server for its maxmemory-policy"),
        }
    }
}

/// Whether a server that says this of itself may evict keys that do not expire.
fn may_evict(info: &str) -> bool {
    info.lines().any(|line| line.trim().starts_with("maxmemory_policy:allkeys"))
}

#[async_trait]
impl Tracking for RedisTracking {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn record(&self, events: &[Event]) -> Result<()> {
        self.check_open()?;
        if events.is_empty() {
            return Ok(());
        }
        self.apply(events).await.map_err(self.failed("record"))
    }

    async fn lookup(&self, key: &Key) -> Result<Option<Record>> {
        self.check_open()?;
        let member = track::member(key);
        let mut get = cmd("HMGET");
        get.arg([self.named(":r").as_slice(), &member].concat());
        for field in ["generation", "level", "size", "created", "used", "deadline", "hits", "tags"] {
            get.arg(field);
        }
        let answer = self.link.query(&get).await.and_then(typed);
        let fields: Vec<Option<Vec<u8>>> = answer.map_err(self.failed("lookup"))?;
        if fields.iter().all(Option::is_none) {
            return Ok(None);
        }
        let record = track::record_of(&member, &fields);
        if record.is_none() {
            self.skipped.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(?key, "a record of the tracking makes no sense and was skipped");
        }
        Ok(record)
    }

    async fn find(&self, query: &Query, after: Option<&Key>, limit: usize) -> Result<Vec<Record>> {
        self.check_open()?;
        self.page(query, after, limit).await.map_err(self.failed("find"))
    }

    async fn totals(&self) -> Result<Totals> {
        self.check_open()?;
        let mut get = cmd("HMGET");
        get.arg(self.named(":totals"));
        for field in track::TOTALS {
            get.arg(field);
        }
        let counts = self.link.query(&get).await.and_then(typed).map_err(self.failed("totals"))?;
        Ok(track::totals_of(counts))
    }

    async fn reset_totals(&self) -> Result<()> {
        self.check_open()?;
        let reset = self.link.query(cmd("UNLINK").arg(self.named(":totals"))).await;
        reset.map(drop).map_err(self.failed("reset totals"))
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        self.link.close();
        Ok(())
    }

    fn leasing(&self) -> Option<&dyn Leasing> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_that_spare_what_does_not_expire_are_fine() {
        for (policy, evicts) in
            [("noeviction", false), ("volatile-lru", false), ("allkeys-lru", true), ("allkeys-random", true)]
        {
            assert_eq!(
                may_evict(&format!("# Memory\r\nmaxmemory_policy:{policy}\r\nx:1\r\n")),
                evicts,
                "{policy}"
            );
        }
    }
}
