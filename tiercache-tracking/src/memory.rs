use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tiercache_core::tier::Scope;
use tiercache_core::tracking::{Event, Query, Record, Totals, What};
use tiercache_core::{Generation, Key, Result, Tags, Timestamp, Tracking};

use crate::order::Order;
use crate::records::{MOST_RECORDS, Records};
use crate::span::Span;

/// How many records a search looks at before it lets others in.
const STRIDE: usize = 1_024;

/// How a [`MemoryTracking`] is made.
///
/// ```yaml
/// tracking: { backend: memory, max_records: 200000 }
/// ```
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemoryConfig {
    /// The most keys it remembers; beyond, it forgets the one least recently used. Default: 1000000.
    ///
    /// ```yaml
    /// max_records: 200000
    /// ```
    pub max_records: NonZeroUsize,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { max_records: const { NonZeroUsize::new(1_000_000).expect("not zero") } }
    }
}

/// Tracking in this process's memory: gone when the process ends.
///
/// Bounded in records. The policy when it is full is *forget the least recently used*; how many that were,
/// [`MemoryTracking::forgotten`] tells.
#[derive(Debug)]
pub struct MemoryTracking {
    max_records: usize,
    memory: Mutex<Memory>,
}

impl MemoryTracking {
    /// An empty one.
    pub fn new(config: &MemoryConfig) -> Self {
        Self { max_records: config.max_records.get().min(MOST_RECORDS - 1), memory: Mutex::default() }
    }

    /// How many records were forgotten because there were too many.
    pub fn forgotten(&self) -> u64 {
        self.memory().forgotten
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.memory().records.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryTracking {
    fn default() -> Self {
        Self::new(&MemoryConfig::default())
    }
}

#[async_trait]
impl Tracking for MemoryTracking {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn record(&self, events: &[Event]) -> Result<()> {
        let mut memory = self.memory();
        for event in events {
            memory.apply(event);
            if memory.records.len() > self.max_records {
                memory.forget_least_recently_used();
            }
        }
        Ok(())
    }

    async fn lookup(&self, key: &Key) -> Result<Option<Record>> {
        let memory = self.memory();
        Ok(memory.records.find(key).map(|place| memory.records.at(place).clone()))
    }

    async fn find(&self, query: &Query, after: Option<&Key>, limit: usize) -> Result<Vec<Record>> {
        let mut page = Vec::new();
        let Some(mut span) = Span::of(query, after) else { return Ok(page) };
        while page.len() < limit {
            // A statement of its own: the lock is free again before others are let in.
            let reached = self.memory().search(query, &span, limit, &mut page);
            let Some(reached) = reached else { break };
            span.from = Bound::Excluded(reached);
            tokio::task::yield_now().await;
        }
        Ok(page)
    }

    async fn totals(&self) -> Result<Totals> {
        Ok(self.memory().totals)
    }

    async fn reset_totals(&self) -> Result<()> {
        self.memory().totals = Totals::default();
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        let released = std::mem::take(&mut *self.memory());
        drop(released);
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Memory {
    records: Records,
    order: Order,
    tags: TagIndex,
    totals: Totals,
    forgotten: u64,
}

impl Memory {
    fn apply(&mut self, event: &Event) {
        match &event.what {
            What::Stored(record) => self.store(record),
            What::Moved { key, generation, to: Some(level) } => {
                if let Some(place) = self.find(key, *generation) {
                    self.records.at_mut(place).level = *level;
                }
            }
            What::Moved { key, generation, to: None } | What::Removed { key, generation } => {
                if let Some(place) = self.find(key, *generation) {
                    self.remove(place);
                }
            }
            What::Used { key, hits } => self.use_again(key, *hits, event.at),
            What::Invalidated { scope, generation } => self.remove_below(&scope_query(scope), *generation),
            What::Flushed { level, namespace, generation } => {
                let query = Query { level: Some(*level), namespace: namespace.clone(), ..Query::all() };
                self.remove_below(&query, *generation);
            }
            What::Counted(more) => self.totals.add(more),
        }
    }

    /// The place of a record that an event of that generation is not too old for.
    fn find(&self, key: &Key, generation: Generation) -> Option<u32> {
        self.records.find(key).filter(|&place| self.records.at(place).generation <= generation)
    }

    fn store(&mut self, record: &Record) {
        let Some(place) = self.records.find(&record.key) else {
            let place = self.records.insert(record.clone());
            self.order.insert(place, &self.records);
            self.tags.add(&record.tags, place, &self.records);
            return;
        };
        if self.records.at(place).generation > record.generation {
            return;
        }
        if self.records.at(place).tags != record.tags {
            self.tags.remove(&self.records.at(place).tags, place, &self.records);
            self.tags.add(&record.tags, place, &self.records);
        }
        *self.records.at_mut(place) = record.clone();
        self.records.renew(place);
    }

    fn use_again(&mut self, key: &Key, hits: u64, at: Timestamp) {
        if let Some(place) = self.records.find(key) {
            let record = self.records.at_mut(place);
            record.hits = record.hits.saturating_add(hits);
            record.used = record.used.max(at);
            self.records.renew(place);
        }
    }

    fn remove(&mut self, place: u32) {
        self.order.remove(place, &self.records);
        self.tags.remove(&self.records.at(place).tags, place, &self.records);
        self.records.remove(place);
    }

    fn remove_below(&mut self, query: &Query, generation: Generation) {
        let Some(span) = Span::of(query, None) else { return };
        let below = |record: &Record| record.generation < generation && query.matches(record);
        let places = self.within(&query.tags, &span);
        let doomed: Vec<u32> = places.filter(|&place| below(self.records.at(place))).collect();
        doomed.into_iter().for_each(|place| self.remove(place));
    }

    fn forget_least_recently_used(&mut self) {
        if let Some(place) = self.records.oldest() {
            self.remove(place);
            self.forgotten += 1;
        }
    }

    /// Adds what matches to the page, and returns the key reached if there may be more.
    fn search(&self, query: &Query, span: &Span<'_>, limit: usize, page: &mut Vec<Record>) -> Option<Key> {
        let mut reached = None;
        for place in self.within(&query.tags, span).take(STRIDE) {
            let record = self.records.at(place);
            reached = Some(&record.key);
            if query.matches(record) {
                page.push(record.clone());
                if page.len() >= limit {
                    break;
                }
            }
        }
        reached.cloned()
    }

    /// The records of `span`, in order; by way of the rarest of `tags` when there are any.
    fn within(&self, tags: &Tags, span: &Span<'_>) -> impl Iterator<Item = u32> {
        let orders = tags.iter().map(|(name, value)| self.tags.order(name, value));
        // Nobody carries a tag that has no order.
        let rarest = match orders.min_by_key(|order| order.map_or(0, Order::len)) {
            Some(rarest) => rarest,
            None => Some(&self.order),
        };
        rarest
            .into_iter()
            .flat_map(|order| order.from(span.from.as_ref(), &self.records))
            .take_while(|&place| span.reaches(self.records.key(place)))
    }
}

/// What an invalidation reaches, whatever its generation.
fn scope_query(scope: &Scope) -> Query {
    match scope {
        Scope::All => Query::all(),
        Scope::Namespace(namespace) => Query { namespace: Some(namespace.clone()), ..Query::all() },
        Scope::Tag { namespace, name, value } => Query {
            namespace: Some(namespace.clone()),
            tags: Tags::from([(name.clone(), value.clone())]),
            ..Query::all()
        },
    }
}

/// The records that carry a tag: by its name, then by its value.
#[derive(Debug, Default)]
struct TagIndex(BTreeMap<String, BTreeMap<String, Order>>);

impl TagIndex {
    fn order(&self, name: &str, value: &str) -> Option<&Order> {
        self.0.get(name)?.get(value)
    }

    fn add(&mut self, tags: &Tags, place: u32, records: &Records) {
        for (name, value) in tags {
            let values = self.0.entry(name.clone()).or_default();
            values.entry(value.clone()).or_default().insert(place, records);
        }
    }

    fn remove(&mut self, tags: &Tags, place: u32, records: &Records) {
        for (name, value) in tags {
            let Some(values) = self.0.get_mut(name) else { continue };
            let Some(order) = values.get_mut(value) else { continue };
            order.remove(place, records);
            if order.len() == 0 {
                values.remove(value);
            }
            if values.is_empty() {
                self.0.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tiercache_core::Level;

    use super::*;

    fn key(number: u64) -> Key {
        Key::new("", number.to_string().as_bytes()).unwrap()
    }

    fn stored(number: u64) -> What {
        What::Stored(Record {
            key: key(number),
            generation: Generation::new(1),
            level: Level::Hot,
            size: 1,
            created: Timestamp::EPOCH,
            used: Timestamp::EPOCH,
            deadline: Timestamp::NEVER,
            hits: 0,
            tags: Tags::from([("parity".into(), (number % 2).to_string())]),
        })
    }

    async fn record(tracking: &MemoryTracking, events: impl IntoIterator<Item = What>) {
        let events: Vec<_> = events.into_iter().map(|what| Event { at: Timestamp::EPOCH, what }).collect();
        tracking.record(&events).await.unwrap();
    }

    fn of(max_records: usize) -> MemoryTracking {
        MemoryTracking::new(&MemoryConfig { max_records: NonZeroUsize::new(max_records).unwrap() })
    }

    #[tokio::test]
    async fn beyond_the_limit_the_least_recently_used_is_forgotten_and_counted() {
        let tracking = of(3);
        record(&tracking, (0..3).map(stored)).await;
        record(&tracking, [What::Used { key: key(0), hits: 1 }, stored(3), stored(4)]).await;
        let page = tracking.find(&Query::all(), None, 10).await.unwrap();
        assert_eq!(page.into_iter().map(|record| record.key).collect::<Vec<_>>(), [key(0), key(3), key(4)]);
        assert_eq!((tracking.forgotten(), tracking.len()), (2, 3));
    }

    #[tokio::test]
    async fn what_is_forgotten_leaves_nothing_behind() {
        let tracking = of(10);
        for _ in 0..50 {
            record(
                &tracking,
                (0..1_000)
                    .map(|n| if n % 2 == 0 { stored(n) } else { What::Used { key: key(n - 1), hits: 1 } }),
            )
            .await;
        }
        let memory = tracking.memory();
        assert_eq!((memory.records.len(), memory.order.len()), (10, 10));
        assert_eq!(memory.tags.order("parity", "0").map(Order::len), Some(10));
        assert!(memory.tags.order("parity", "1").is_none());
    }

    #[tokio::test]
    async fn a_search_goes_on_where_it_let_others_in() {
        let tracking = MemoryTracking::default();
        record(&tracking, (0..5 * STRIDE as u64).map(stored)).await;
        let rare = Query { glob: Some("*99".into()), ..Query::all() };
        let expected = (0..5 * STRIDE as u64).filter(|n| n % 100 == 99).count();
        assert_eq!(tracking.find(&rare, None, usize::MAX).await.unwrap().len(), expected);
    }

    #[test]
    fn a_configuration_names_what_it_does_not_know() {
        let read = |text| serde_json::from_str::<MemoryConfig>(text);
        assert_eq!(read("{}").unwrap().max_records.get(), 1_000_000);
        assert_eq!(read(r#"{"max_records": 5}"#).unwrap().max_records.get(), 5);
        assert!(read(r#"{"max_record": 5}"#).unwrap_err().to_string().contains("max_records"));
        assert!(read(r#"{"max_records": 0}"#).is_err());
    }
}
