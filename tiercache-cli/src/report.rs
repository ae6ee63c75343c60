//! What a cache says of itself, in the one form that the command and the service share.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use tiercache::tracking::{Query, Record};
use tiercache::units::format_duration;
use tiercache::{CacheManager, Error, Key, Level, Pruned, Stats, Timestamp};

use crate::args::KeysArgs;
use crate::keyname;

/// The statistics: the counters by name, then what each level says.
pub(crate) fn stats(stats: &Stats) -> Value {
    let mut all = Map::new();
    for level in Level::ALL {
        all.insert(format!("{level}_hits"), json!(stats.totals.hits[level.index()]));
    }
    all.insert("misses".into(), json!(stats.totals.misses));
    all.insert("sets".into(), json!(stats.totals.sets));
    all.insert("deletes".into(), json!(stats.totals.deletes));
    for level in Level::ALL {
        let usage = stats.levels.iter().find(|told| told.level == level).and_then(|told| told.usage);
        // A level that is left out holds nothing; one that does not answer is not known.
        let absent = !stats.levels.iter().any(|told| told.level == level);
        let bytes = if absent { Some(0) } else { usage.and_then(|usage| usage.bytes) };
        all.insert(format!("{level}_size_bytes"), json!(bytes));
    }
    let levels: Vec<Value> = stats
        .levels
        .iter()
        .map(|told| {
            json!({
                "level": told.level.name(),
                "backend": told.backend,
                "entries": told.usage.and_then(|usage| usage.entries),
                "bytes": told.usage.and_then(|usage| usage.bytes),
                "capacity_bytes": told.usage.and_then(|usage| usage.capacity),
                "evicted": told.usage.map(|usage| usage.evicted),
                "damaged": told.usage.map(|usage| usage.damaged),
                "breaker_open": told.breaker_open,
                "breaker_opened": told.breaker_opened,
            })
        })
        .collect();
    all.insert("levels".into(), json!(levels));
    for (name, value, _) in counters(stats) {
        all.insert(name.into(), json!(value));
    }
    Value::Object(all)
}

/// The counters beside hits and misses: name, value, meaning. The metrics have these names too.
pub(crate) fn counters(stats: &Stats) -> [(&'static str, u64, &'static str); 24] {
    [
        ("pending_entries", stats.pending.0, "Entries on their way down."),
        ("pending_bytes", stats.pending.1, "Bytes on their way down."),
        ("in_flight", stats.in_flight, "Operations waiting for a level."),
        ("promoted", stats.promoted, "Entries that came up."),
        ("sunk", stats.sunk, "Entries that went down a level."),
        ("faded", stats.faded, "Entries that left the last level, or were dead on the way."),
        ("overflowed", stats.overflowed, "Entries dropped because the way down was full."),
        ("refused", stats.refused, "Old values that were about to be published and were not."),
        ("joined", stats.joined, "Gets that joined another's read."),
        ("undecodable", stats.undecodable, "Stored values that did not decode as the type asked for."),
        ("loads", stats.loads, "Loads that somebody waited for."),
        ("loads_joined", stats.loads_joined, "Callers that joined another's load."),
        ("load_failures", stats.load_failures, "Loads that failed."),
        (
            "loads_elsewhere",
            stats.loads_elsewhere,
            "Values that another process loaded, found under a lease.",
        ),
        ("loads_unleased", stats.loads_unleased, "Loads that were to have a lease and had none."),
        ("refreshes", stats.refreshes, "Values refreshed in the background."),
        ("refreshes_skipped", stats.refreshes_skipped, "Refreshes that were due and left for later."),
        ("served_stale", stats.served_stale, "Answers that were stale."),
        ("emptied", stats.emptied, "Times a level is emptied because too many removals waited for it."),
        ("unnoted", stats.unnoted, "Removals that wait for a level and would be forgotten by a kill."),
        ("degraded", stats.degraded, "Removals that could not reach a level at first."),
        ("tracking_failures", stats.tracking_failures, "Batches the tracking store did not take at first."),
        ("tracking_merged", stats.tracking_merged, "Hit details added up before they were told."),
        ("tracking_lost", stats.tracking_lost, "Placements the tracking store will never be told."),
    ]
}

/// What a prune did.
pub(crate) fn pruned(pruned: &Pruned) -> Value {
    json!({ "dropped": pruned.dropped, "sinking": pruned.sinking, "complete": pruned.complete })
}

/// A page of keys: `{"keys": […], "next": …}`, where `next` is what `after` takes.
pub(crate) async fn keys(cache: &CacheManager, wanted: &KeysArgs) -> Result<Value, Error> {
    let now = now();
    let mut listing = cache.keys(query(cache.namespace_name(), wanted, now));
    if let Some(after) = &wanted.after {
        let bytes = keyname::decode(after).ok_or(Error::InvalidKey("a % without two digits in `after`"))?;
        listing = listing.after(Key::new(cache.namespace_name(), &bytes)?);
    }
    let limit = usize::try_from(wanted.limit).unwrap_or(usize::MAX);
    let page = listing.page(limit).await?;
    let next = (page.len() == limit)
        .then(|| page.last().map(|record| keyname::encode(record.key.bytes())))
        .flatten();
    Ok(json!({ "keys": page.iter().map(|found| record(found, now)).collect::<Vec<_>>(), "next": next }))
}

fn query(namespace: &str, wanted: &KeysArgs, now: Timestamp) -> Query {
    let ago = |age: Duration| Timestamp::from_millis(now.as_millis().saturating_sub(millis(age)));
    Query {
        namespace: Some(namespace.to_owned()),
        level: wanted.level.map(Level::from),
        tags: wanted.tags.iter().cloned().collect(),
        prefix: wanted.prefix.as_deref().unwrap_or_default().as_bytes().to_vec(),
        glob: wanted.glob.clone(),
        created_from: wanted.newer_than.map(ago),
        created_before: wanted.older_than.map(ago),
        min_size: wanted.min_size,
        max_size: wanted.max_size,
        min_hits: wanted.min_hits,
        max_hits: wanted.max_hits,
        live_at: None,
    }
}

fn record(record: &Record, now: Timestamp) -> Value {
    json!({
        // What is no text is shown with replacement characters; `name` is exact.
        "key": record.key.display(),
        "name": keyname::encode(record.key.bytes()),
        "level": record.level.name(),
        "size_bytes": record.size,
        "hits": record.hits,
        "age": rounded(now.since(record.created)),
        "time_left": (!record.deadline.is_never()).then(|| rounded(record.deadline.since(now))),
        "tags": record.tags,
    })
}

/// Whole seconds, which is enough for people.
pub(crate) fn rounded(duration: Duration) -> String {
    format_duration(Duration::from_secs(duration.as_secs()))
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(millis(since))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
