//! Walks over everything a level has at the server: for a caller, and to give back the bytes of what is dead.
//!
//! The server's own walk may show a name twice and gives no exact pages, so a listing is remembered from page to
//! page: what it has shown, by hash, and what waits to be shown.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use redis::{RedisResult, Value, cmd};
use tiercache_core::envelope::HEADER_BYTES;
use tiercache_core::tier::{Listed, ListedEntry, Listing};
use tiercache_core::{Error, Result};
use xxhash_rust::xxh3::xxh3_64;

use crate::RedisTier;
use crate::keys::part;
use crate::ledger::typed;
use crate::tier::{generation_of, is_mark};

/// Listings under way that are remembered; the oldest is forgotten first.
const MOST_LISTINGS: usize = 16;
/// How many names one step of a walk looks at.
const STEP: usize = 256;
/// Steps of a sweep.
const STEPS: usize = 4;

/// The listings under way.
#[derive(Debug, Default)]
pub(crate) struct Listings {
    under_way: Mutex<BTreeMap<u64, Walk>>,
    last: AtomicU64,
}

/// A walk over names that match a pattern, over all nodes of a cluster one after the other.
#[derive(Debug)]
struct Walk {
    pattern: Vec<u8>,
    /// What is left of the nodes; one without an address stands for a server that is no cluster.
    nodes: VecDeque<Option<(String, u16)>>,
    cursor: u64,
    found: VecDeque<Vec<u8>>,
    seen: HashSet<u64>,
    exact: bool,
}

impl Walk {
    async fn begin(tier: &RedisTier, pattern: Vec<u8>, exact: bool) -> RedisResult<Self> {
        let nodes = if tier.link().is_cluster() {
            masters(tier.link().query(cmd("CLUSTER").arg("SLOTS")).await?)
        } else {
            VecDeque::from([None])
        };
        Ok(Self { pattern, nodes, cursor: 0, found: VecDeque::new(), seen: HashSet::new(), exact })
    }

    fn is_over(&self) -> bool {
        self.nodes.is_empty() && self.found.is_empty()
    }

    /// One step further. Nothing is changed when it fails.
    async fn step(&mut self, tier: &RedisTier) -> RedisResult<()> {
        let Some(node) = self.nodes.front() else { return Ok(()) };
        let mut scan = cmd("SCAN");
        scan.arg(self.cursor).arg("MATCH").arg(&self.pattern).arg("COUNT").arg(STEP);
        let answer = match node {
            Some((host, port)) => tier.link().query_at(&scan, host, *port).await?,
            None => tier.link().query(&scan).await?,
        };
        let (cursor, names): (u64, Vec<Vec<u8>>) = typed(answer)?;
        for name in names {
            if !self.exact || self.seen.insert(xxh3_64(&name)) {
                self.found.push_back(name);
            }
        }
        self.cursor = cursor;
        if cursor == 0 {
            self.nodes.pop_front();
        }
        Ok(())
    }
}

/// The masters of a cluster, each once.
fn masters(slots: Value) -> VecDeque<Option<(String, u16)>> {
    let mut nodes = VecDeque::new();
    let Value::Array(ranges) = slots else { return nodes };
    for range in ranges {
        let Value::Array(range) = range else { continue };
        let Some(Value::Array(master)) = range.into_iter().nth(2) else { continue };
        let mut parts = master.into_iter();
        let (Some(host), Some(port)) = (parts.next(), parts.next()) else { continue };
        if let (Ok(host), Ok(port)) = (typed::<String>(host), typed::<u16>(port))
            && !nodes.contains(&Some((host.clone(), port)))
        {
            nodes.push_back(Some((host, port)));
        }
    }
    nodes
}

#[async_trait]
impl Listing for RedisTier {
    async fn list(&self, namespace: Option<&str>, after: Option<Vec<u8>>, limit: usize) -> Result<Listed> {
        self.check_open()?;
        let failed = self.failed("list");
        let token = after.map(|after| <[u8; 8]>::try_from(after).map_or(0, u64::from_le_bytes));
        let mut walk = match token {
            None => {
                let record = self.ledger.current().await.map_err(&failed)?;
                let pattern = self.ledger.names().entries(&record.era, namespace);
                // Who looks at everything there is does not remember all of it.
                Walk::begin(self, pattern, !self.ledger.looks()).await.map_err(&failed)?
            }
            // Taken out: a page that is dropped half-way ends its listing rather than leave something out.
            Some(token) => self.listings.take(token).ok_or_else(|| Error::InvalidOption {
                option: "after",
                reason: "the listing is not under way any more: begin again".to_owned(),
            })?,
        };
        let mut entries = Vec::new();
        while entries.len() < limit.max(1) && !walk.is_over() {
            let wanted = (limit.max(1) - entries.len()).min(STEP);
            let names: Vec<_> = walk.found.drain(..wanted.min(walk.found.len())).collect();
            if names.is_empty() {
                walk.step(self).await.map_err(&failed)?;
                continue;
            }
            entries.extend(self.read_entries(namespace, &names).await.map_err(&failed)?);
        }
        let next = (!walk.is_over()).then(|| self.listings.keep(walk));
        Ok(Listed { entries, next })
    }
}

impl Listings {
    fn take(&self, token: u64) -> Option<Walk> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&token)
    }

    fn keep(&self, walk: Walk) -> Vec<u8> {
        let token = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.insert(token, walk);
        if under_way.len() > MOST_LISTINGS {
            under_way.pop_first();
        }
        token.to_le_bytes().to_vec()
    }
}

impl RedisTier {
    /// The entries under these names that are still there and alive to the record.
    pub(crate) async fn read_entries(
        &self,
        namespace: Option<&str>,
        names: &[Vec<u8>],
    ) -> RedisResult<Vec<ListedEntry>> {
        let record = self.ledger.current().await?;
        let mut entries = Vec::new();
        // One at a time, so that no more than one value is held: they are as large as may be.
        for name in names {
            let Value::BulkString(bytes) = self.link().query(cmd("GET").arg(name)).await? else { continue };
            let bytes = Bytes::from(bytes);
            if is_mark(&bytes) {
                continue;
            }
            // What is damaged is seen to when it is asked for.
            let Ok((key, mut entry)) = self.codec.decode(&bytes) else { continue };
            let ours = namespace.is_none_or(|namespace| namespace == key.namespace());
            if ours && !record.kills(&key, &entry) {
                let size = std::mem::take(&mut entry.value).len() as u64;
                entries.push(ListedEntry { key, entry, size });
            }
        }
        Ok(entries)
    }
}

/// Gives back, in steps, what clearings and eras that ended left behind.
#[derive(Debug, Default)]
pub(crate) struct Sweeper {
    /// Counted up with everything that leaves something behind.
    begun: AtomicU64,
    state: tokio::sync::Mutex<SweepState>,
}

#[derive(Debug, Default)]
struct SweepState {
    walk: Option<Walk>,
    /// What the walk under way, or the last one, was begun for.
    began_for: (u64, String),
}

impl Sweeper {
    /// Has the next sweeps look at everything.
    pub(crate) fn begin(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) async fn step(&self, tier: &RedisTier) -> RedisResult<()> {
        // One sweep at a time; another has nothing to do.
        let Ok(mut state) = self.state.try_lock() else { return Ok(()) };
        let record = tier.ledger.current().await?;
        let wanted = (self.begun.load(Ordering::Relaxed), record.era.clone());
        if state.walk.is_none() && state.began_for != wanted {
            state.walk = Some(Walk::begin(tier, tier.ledger.names().everything(), false).await?);
            state.began_for = wanted;
        }
        for _ in 0..STEPS {
            let Some(walk) = &mut state.walk else { break };
            walk.step(tier).await?;
            while let Some(name) = walk.found.pop_front() {
                drop_dead(tier, &name).await?;
            }
            if walk.is_over() {
                state.walk = None;
            }
        }
        Ok(())
    }
}

async fn drop_dead(tier: &RedisTier, name: &[u8]) -> RedisResult<()> {
    let mut record = tier.ledger.current().await?;
    let Some((era, kind, namespace)) = tier.ledger.names().taken_apart(name) else { return Ok(()) };
    if era != record.era.as_bytes() {
        // It may be a newer one.
        tier.ledger.forget();
        record = tier.ledger.current().await?;
    }
    if era != record.era.as_bytes() {
        return tier.link().query(cmd("UNLINK").arg(name)).await.map(drop);
    }
    if kind != b'e' {
        return Ok(());
    }
    let cleared = record
        .cleared_namespaces()
        .filter(|(cleared, _)| part(cleared.as_bytes(), false) == namespace)
        .map(|(_, below)| below)
        .fold(record.cleared_all(), Ord::max);
    if cleared.get() == 0 {
        return Ok(());
    }
    let head: Vec<u8> =
        typed(tier.link().query(cmd("GETRANGE").arg(name).arg(0).arg(HEADER_BYTES - 1)).await?)?;
    if !is_mark(&head) && generation_of(&head).is_some_and(|generation| generation < cleared) {
        tier.discard(name, &head).await?;
    }
    Ok(())
}
