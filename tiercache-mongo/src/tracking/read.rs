//! Look-ups and pages. The store's content is not trusted: a document that makes no sense is left out and counted.

use futures_util::TryStreamExt;
use mongodb::Collection;
use mongodb::bson::{Bson, Document, doc};
use mongodb::error::Result;
use tiercache_core::tracking::{Query, Record};
use tiercache_core::{Generation, Key, Level, Tags, Timestamp};

use crate::documents::number;
use crate::ids;

/// Documents the server sends at a time.
const BATCH: usize = 1_000;

/// A query as the server understands it.
pub(super) struct Search {
    filter: Document,
    query: Query,
    limit: usize,
    /// Whether the server decides every condition.
    exact: bool,
}

/// A page.
#[derive(Default)]
pub(super) struct Found {
    pub(super) records: Vec<Record>,
    pub(super) senseless: u64,
}

impl Search {
    pub(super) fn of(query: &Query, after: Option<&Key>, limit: usize) -> Self {
        let mut filter = Document::new();
        let mut names = Document::new();
        let mut from = String::new();
        if let Some(namespace) = &query.namespace {
            from = ids::of_prefix(namespace, &query.prefix);
            names.insert("$lt", ids::behind(from.clone()));
        }
        match after.map(ids::record).filter(|after| *after >= from) {
            Some(after) => drop(names.insert("$gt", after)),
            None if !from.is_empty() => drop(names.insert("$gte", from)),
            None => {}
        }
        if !names.is_empty() {
            filter.insert("_id", names);
        }
        if let Some(level) = query.level {
            filter.insert("level", level.index() as i64);
        }
        if !query.tags.is_empty() {
            let tags: Vec<String> = query.tags.iter().map(|(name, value)| ids::pair(name, value)).collect();
            filter.insert("tags", doc! { "$all": tags });
        }
        let mut range = |field: &str, bounds: &[(&str, Option<u64>)]| {
            let bounds: Document = bounds
                .iter()
                .filter_map(|&(operator, bound)| Some((operator.to_owned(), Bson::Int64(signed(bound?)))))
                .collect();
            if !bounds.is_empty() {
                filter.insert(field, bounds);
            }
        };
        let millis = |time: Option<Timestamp>| time.map(Timestamp::as_millis);
        range("created", &[("$gte", millis(query.created_from)), ("$lt", millis(query.created_before))]);
        range("size", &[("$gte", query.min_size), ("$lte", query.max_size)]);
        range("hits", &[("$gte", query.min_hits), ("$lte", query.max_hits)]);
        range("deadline", &[("$gt", millis(query.live_at))]);
        let exact = query.glob.is_none() && (query.prefix.is_empty() || query.namespace.is_some());
        Self { filter, query: query.clone(), limit, exact }
    }

    pub(super) async fn run(self, records: &Collection<Document>) -> Result<Found> {
        let batch = self.limit.min(BATCH) as u32;
        let mut find = records.find(self.filter).sort(doc! { "_id": 1 }).batch_size(batch);
        // One more than wanted would be looked at for nothing.
        if self.exact && self.limit <= BATCH {
            find = find.limit(self.limit as i64);
        }
        let mut cursor = find.await?;
        let mut found = Found::default();
        while let Some(document) = cursor.try_next().await? {
            match record(&document) {
                Some(record) if self.query.matches(&record) => found.records.push(record),
                Some(_) => {}
                None => found.senseless += 1,
            }
            if found.records.len() >= self.limit {
                break;
            }
        }
        Ok(found)
    }
}

/// The record a document stands for.
pub(super) fn record(document: &Document) -> Option<Record> {
    let natural = |field: &str| u64::try_from(number(document, field)?).ok();
    let time = |field: &str| natural(field).map(|millis| Timestamp::from_millis(unsigned(millis)));
    Some(Record {
        key: ids::key(document.get_str("_id").ok()?)?,
        generation: Some(Generation::new(natural("g")?)).filter(|found| *found <= Generation::MAX)?,
        level: *Level::ALL.get(usize::try_from(natural("level")?).ok()?)?,
        size: natural("size")?,
        created: time("created")?,
        used: time("used")?,
        deadline: time("deadline")?,
        hits: natural("hits")?,
        tags: tags(document.get_array("tags").ok()?)?,
    })
}

fn tags(tags: &[Bson]) -> Option<Tags> {
    tags.iter().map(|tag| ids::unpair(tag.as_str()?)).collect()
}

/// Numbers are kept signed: what is beyond stays at the top.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A time at the top is the one without end.
fn unsigned(millis: u64) -> u64 {
    if millis == i64::MAX as u64 { u64::MAX } else { millis }
}
