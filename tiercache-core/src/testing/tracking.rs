//! The suite every [`Tracking`] passes: one case per line of its contract.
//!
//! A store's own tests call [`suite`] with a closure that makes a fresh, empty store, and [`persistent_suite`]
//! when it outlives the process.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::tier::Scope;
use crate::tracking::{Event, Query, Record, Totals, What};
use crate::{Generation, Key, Level, Tags, Timestamp, Tracking};

/// Runs every case, each on a store of its own.
pub async fn suite(make: impl AsyncFn() -> Arc<dyn Tracking>) {
    stored_is_found_again(&*make().await).await;
    nothing_is_known_of_a_key_never_stored(&*make().await).await;
    stored_replaces_hits_and_tags(&*make().await).await;
    stored_of_the_same_generation_replaces(&*make().await).await;
    moved_changes_the_level_alone(&*make().await).await;
    moved_to_none_forgets(&*make().await).await;
    used_adds_hits_and_renews_use(&*make().await).await;
    lower_generations_change_nothing(&*make().await).await;
    removed_forgets(&*make().await).await;
    events_of_unknown_keys_change_nothing(&*make().await).await;
    invalidated_tag_spares_newer_and_others(&*make().await).await;
    invalidated_namespace_spares_newer_and_others(&*make().await).await;
    invalidated_all_spares_newer(&*make().await).await;
    flushed_level_spares_newer_and_others(&*make().await).await;
    totals_add_up_and_reset(&*make().await).await;
    totals_survive_what_happens_to_records(&*make().await).await;
    the_highest_numbers_are_kept(&*make().await).await;
    a_batch_is_applied_in_order(&*make().await).await;
    an_empty_batch_is_fine(&*make().await).await;
    every_condition_selects(&*make().await).await;
    pages_are_complete_ordered_and_without_repeats(&*make().await).await;
    pages_hold_while_records_change(&*make().await).await;
    odd_keys_are_keys(&*make().await).await;
    namespaces_are_walls(&*make().await).await;
    concurrent_batches_all_count(make().await).await;
    batches_are_seen_whole(make().await).await;
    a_dropped_batch_is_whole_or_absent(make().await).await;
}

/// Runs every case of stores that outlive the process. `place` makes a fresh place and returns what opens the
/// store there, again and again.
pub async fn persistent_suite<F: AsyncFn() -> Arc<dyn Tracking>>(place: impl Fn() -> F) {
    records_survive_reopening(place()).await;
    totals_survive_reopening(place()).await;
    a_store_dropped_without_closing_opens_again(place()).await;
    a_closed_store_fails(place()).await;
}

/// What was stored is answered exactly.
pub async fn stored_is_found_again(tracking: &dyn Tracking) {
    let record = Record { hits: 7, ..tagged(record("a", 5), &[("type", "thumbnail"), ("", "")]) };
    store(tracking, [record.clone()]).await;
    assert_eq!(lookup(tracking, "a").await, Some(record));
}

/// A key that was never stored has no record.
pub async fn nothing_is_known_of_a_key_never_stored(tracking: &dyn Tracking) {
    store(tracking, [record("a", 1)]).await;
    assert_eq!(lookup(tracking, "b").await, None);
    assert_eq!(found(tracking, &Query { prefix: b"b".to_vec(), ..Query::all() }).await, [""; 0]);
}

/// A newer value begins with its own hits and tags.
pub async fn stored_replaces_hits_and_tags(tracking: &dyn Tracking) {
    let first = Record { hits: 9, ..tagged(record("a", 1), &[("type", "image"), ("old", "1")]) };
    let second = Record { size: 5, level: Level::Dry, ..tagged(record("a", 2), &[("type", "video")]) };
    store(tracking, [first]).await;
    store(tracking, [second.clone()]).await;
    assert_eq!(lookup(tracking, "a").await, Some(second));
    for (name, value, expected) in [("type", "image", 0), ("old", "1", 0), ("type", "video", 1)] {
        assert_eq!(found(tracking, &with_tags(&[(name, value)])).await.len(), expected, "{name}: {value}");
    }
    let plain = record("a", 3);
    store(tracking, [plain.clone()]).await;
    assert_eq!(lookup(tracking, "a").await, Some(plain));
    assert_eq!(found(tracking, &with_tags(&[("type", "video")])).await, [""; 0]);
}

/// The same mutation reported again replaces what it reported first.
pub async fn stored_of_the_same_generation_replaces(tracking: &dyn Tracking) {
    store(tracking, [record("a", 4)]).await;
    let again = Record { deadline: Timestamp::from_millis(99_000), ..record("a", 4) };
    store(tracking, [again.clone()]).await;
    assert_eq!(lookup(tracking, "a").await, Some(again));
}

/// A move keeps generation, hits, times and tags.
pub async fn moved_changes_the_level_alone(tracking: &dyn Tracking) {
    let before = Record { hits: 3, ..tagged(record("a", 4), &[("type", "image")]) };
    store(tracking, [before.clone()]).await;
    for level in [Level::Cold, Level::Dry, Level::Hot] {
        record_one(tracking, 9_999, What::Moved { key: key("a"), generation: of(4), to: Some(level) }).await;
        assert_eq!(lookup(tracking, "a").await, Some(Record { level, ..before.clone() }));
    }
}

/// What stands at no level has no record.
pub async fn moved_to_none_forgets(tracking: &dyn Tracking) {
    store(tracking, [tagged(record("a", 4), &[("type", "image")]), record("b", 4)]).await;
    record_one(tracking, 1, What::Moved { key: key("a"), generation: of(4), to: None }).await;
    assert_eq!(lookup(tracking, "a").await, None);
    assert_eq!(found(tracking, &with_tags(&[("type", "image")])).await, [""; 0]);
    assert_eq!(found(tracking, &Query::all()).await, ["b"]);
}

/// Uses add up; the time of the last use never goes back.
pub async fn used_adds_hits_and_renews_use(tracking: &dyn Tracking) {
    let before = Record { hits: 2, used: Timestamp::from_millis(5_000), ..record("a", 4) };
    store(tracking, [before.clone()]).await;
    for (at, hits, used_after, hits_after) in [(6_000, 3, 6_000, 5), (5_500, 1, 6_000, 6)] {
        record_one(tracking, at, What::Used { key: key("a"), hits }).await;
        let expected =
            Record { hits: hits_after, used: Timestamp::from_millis(used_after), ..before.clone() };
        assert_eq!(lookup(tracking, "a").await, Some(expected));
    }
}

/// What is older than the record it meets changes nothing.
pub async fn lower_generations_change_nothing(tracking: &dyn Tracking) {
    let kept = tagged(record("a", 5), &[("type", "image")]);
    store(tracking, [kept.clone()]).await;
    let old = of(4);
    let namespace = kept.key.namespace().to_owned();
    for what in [
        What::Stored(tagged(record("a", 4), &[("type", "old")])),
        What::Moved { key: key("a"), generation: old, to: Some(Level::Dry) },
        What::Moved { key: key("a"), generation: old, to: None },
        What::Removed { key: key("a"), generation: old },
        What::Invalidated { scope: Scope::All, generation: old },
        What::Invalidated { scope: Scope::Namespace(namespace.clone()), generation: old },
        What::Invalidated { scope: tag_scope(&namespace, "type", "image"), generation: old },
        What::Flushed { level: Level::Hot, namespace: None, generation: old },
        What::Flushed { level: Level::Hot, namespace: Some(namespace.clone()), generation: old },
    ] {
        record_one(tracking, 1, what.clone()).await;
        assert_eq!(lookup(tracking, "a").await, Some(kept.clone()), "after {what:?}");
    }
    assert_eq!(found(tracking, &with_tags(&[("type", "old")])).await, [""; 0]);
    assert_eq!(found(tracking, &with_tags(&[("type", "image")])).await, ["a"]);
}

/// A removed key has no record, and can be stored again.
pub async fn removed_forgets(tracking: &dyn Tracking) {
    store(tracking, [tagged(record("a", 1), &[("type", "image")]), record("b", 1)]).await;
    record_one(tracking, 1, What::Removed { key: key("a"), generation: of(2) }).await;
    assert_eq!(lookup(tracking, "a").await, None);
    assert_eq!(found(tracking, &with_tags(&[("type", "image")])).await, [""; 0]);
    assert_eq!(found(tracking, &Query::all()).await, ["b"]);
    store(tracking, [record("a", 3)]).await;
    assert_eq!(lookup(tracking, "a").await, Some(record("a", 3)));
}

/// Only [`What::Stored`] makes a record.
pub async fn events_of_unknown_keys_change_nothing(tracking: &dyn Tracking) {
    record_one(tracking, 1, What::Moved { key: key("a"), generation: of(1), to: Some(Level::Dry) }).await;
    record_one(tracking, 1, What::Used { key: key("a"), hits: 3 }).await;
    record_one(tracking, 1, What::Removed { key: key("a"), generation: of(1) }).await;
    assert_eq!(found(tracking, &Query::all()).await, [""; 0]);
}

/// A tag's invalidation reaches what carries it, in its namespace, below its generation.
pub async fn invalidated_tag_spares_newer_and_others(tracking: &dyn Tracking) {
    let image = |name, generation| tagged(record(name, generation), &[("type", "image"), ("size", "s")]);
    let elsewhere = Record { key: key_in("other", "a"), ..image("a", 1) };
    store(
        tracking,
        [
            image("old", 1),
            image("same", 5),
            image("new", 6),
            tagged(record("value", 1), &[("type", "video")]),
            tagged(record("name", 1), &[("kind", "image")]),
            record("plain", 1),
            elsewhere,
        ],
    )
    .await;
    record_one(tracking, 1, What::Invalidated { scope: tag_scope("", "type", "image"), generation: of(5) })
        .await;
    assert_eq!(found(tracking, &Query::all()).await, ["name", "new", "plain", "same", "value", "other/a"]);
    assert_eq!(found(tracking, &with_tags(&[("size", "s")])).await, ["new", "same", "other/a"]);
}

/// A namespace's invalidation reaches what is in it and below its generation.
pub async fn invalidated_namespace_spares_newer_and_others(tracking: &dyn Tracking) {
    let records = ["", "a", "a/b", "b"].into_iter().flat_map(|namespace| {
        [("old", 1), ("same", 5), ("new", 6)]
            .map(|(name, generation)| Record { key: key_in(namespace, name), ..record(name, generation) })
    });
    store(tracking, records).await;
    let invalidated =
        |name: &str| What::Invalidated { scope: Scope::Namespace(name.into()), generation: of(5) };
    record_one(tracking, 1, invalidated("a")).await;
    assert_eq!(found(tracking, &in_namespace("a")).await, ["a/new", "a/same"]);
    assert_eq!(found(tracking, &Query::all()).await.len(), 11);
    record_one(tracking, 1, invalidated("")).await;
    assert_eq!(found(tracking, &in_namespace("")).await, ["new", "same"]);
    assert_eq!(found(tracking, &Query::all()).await.len(), 10);
}

/// The invalidation of everything reaches every namespace, below its generation.
pub async fn invalidated_all_spares_newer(tracking: &dyn Tracking) {
    let elsewhere = |name, generation| Record { key: key_in("other", name), ..record(name, generation) };
    store(tracking, [record("old", 1), record("same", 5), elsewhere("old", 1), elsewhere("new", 6)]).await;
    record_one(tracking, 1, What::Invalidated { scope: Scope::All, generation: of(5) }).await;
    assert_eq!(found(tracking, &Query::all()).await, ["same", "other/new"]);
}

/// A flush reaches what stands at the level, there or everywhere, below its generation.
pub async fn flushed_level_spares_newer_and_others(tracking: &dyn Tracking) {
    let cold = |namespace, name, generation| Record {
        key: key_in(namespace, name),
        level: Level::Cold,
        ..record("", generation)
    };
    store(
        tracking,
        [
            cold("", "old", 1),
            cold("", "same", 5),
            record("hot", 1),
            cold("other", "old", 1),
            cold("third", "old", 1),
            cold("third", "new", 6),
        ],
    )
    .await;
    let flushed = |namespace: Option<&str>| What::Flushed {
        level: Level::Cold,
        namespace: namespace.map(str::to_owned),
        generation: of(5),
    };
    record_one(tracking, 1, flushed(Some("other"))).await;
    assert_eq!(found(tracking, &Query::all()).await, ["hot", "old", "same", "third/new", "third/old"]);
    record_one(tracking, 1, flushed(Some(""))).await;
    assert_eq!(found(tracking, &Query::all()).await, ["hot", "same", "third/new", "third/old"]);
    record_one(tracking, 1, flushed(None)).await;
    assert_eq!(found(tracking, &Query::all()).await, ["hot", "same", "third/new"]);
}

/// Totals begin at zero, add up and can be set to zero.
pub async fn totals_add_up_and_reset(tracking: &dyn Tracking) {
    assert!(totals(tracking).await.is_zero());
    let some = Totals { hits: [1, 20, 300], misses: 4, sets: 50, deletes: 6 };
    let more = Totals { hits: [1, 0, 0], misses: 1, sets: 0, deletes: 1 };
    let at = Timestamp::EPOCH;
    let batch = [some, more].map(|totals| Event { at, what: What::Counted(totals) });
    tracking.record(&batch).await.expect("counts");
    record_one(tracking, 1, What::Counted(more)).await;
    let expected = Totals { hits: [3, 20, 300], misses: 6, sets: 50, deletes: 8 };
    assert_eq!(totals(tracking).await, expected);
    tracking.reset_totals().await.expect("resets");
    assert!(totals(tracking).await.is_zero());
    record_one(tracking, 1, What::Counted(more)).await;
    assert_eq!(totals(tracking).await, more);
}

/// Removing records takes nothing from the totals, and resetting totals takes no records.
pub async fn totals_survive_what_happens_to_records(tracking: &dyn Tracking) {
    let some = Totals { misses: 3, ..Totals::default() };
    store(tracking, [record("a", 1)]).await;
    record_one(tracking, 1, What::Counted(some)).await;
    record_one(tracking, 1, What::Invalidated { scope: Scope::All, generation: of(9) }).await;
    assert_eq!(totals(tracking).await, some);
    store(tracking, [record("b", 1)]).await;
    tracking.reset_totals().await.expect("resets");
    assert_eq!(found(tracking, &Query::all()).await, ["b"]);
}

/// Times without end are kept as such, and sums stop at the top instead of failing.
pub async fn the_highest_numbers_are_kept(tracking: &dyn Tracking) {
    let highest =
        Record { generation: Generation::MAX, deadline: Timestamp::NEVER, size: 1 << 60, ..record("a", 0) };
    store(tracking, [highest.clone()]).await;
    assert_eq!(lookup(tracking, "a").await, Some(highest));
    for _ in 0..2 {
        record_one(tracking, 1, What::Used { key: key("a"), hits: u64::MAX }).await;
        record_one(tracking, 1, What::Counted(Totals { misses: u64::MAX, ..Totals::default() })).await;
    }
    let hits = lookup(tracking, "a").await.expect("a record").hits;
    assert!(hits >= i64::MAX as u64, "{hits} hits");
    assert!(totals(tracking).await.misses >= i64::MAX as u64);
    let forever = Query { live_at: Some(Timestamp::from_millis(u64::from(u32::MAX) << 20)), ..Query::all() };
    assert_eq!(found(tracking, &forever).await, ["a"]);
}

/// Within a batch, too, the later event meets what the earlier one left.
pub async fn a_batch_is_applied_in_order(tracking: &dyn Tracking) {
    let events = [
        What::Stored(record("a", 1)),
        What::Used { key: key("a"), hits: 2 },
        What::Stored(record("a", 2)),
        What::Used { key: key("a"), hits: 3 },
        What::Moved { key: key("a"), generation: of(2), to: Some(Level::Cold) },
        What::Stored(record("b", 3)),
        What::Removed { key: key("b"), generation: of(4) },
        What::Stored(record("c", 5)),
        What::Invalidated { scope: Scope::All, generation: of(2) },
        What::Moved { key: key("c"), generation: of(1), to: None },
    ]
    .map(|what| Event { at: Timestamp::from_millis(1), what });
    tracking.record(&events).await.expect("a batch");
    let expected = Record { level: Level::Cold, hits: 3, ..record("a", 2) };
    assert_eq!(lookup(tracking, "a").await, Some(expected));
    assert_eq!(found(tracking, &Query::all()).await, ["a", "c"]);
}

/// No events are no work.
pub async fn an_empty_batch_is_fine(tracking: &dyn Tracking) {
    tracking.record(&[]).await.expect("an empty batch");
    assert!(tracking.find(&Query::all(), None, 0).await.expect("an empty page").is_empty());
}

/// Each condition of a query selects by itself and together with others.
pub async fn every_condition_selects(tracking: &dyn Tracking) {
    let at = Timestamp::from_millis;
    let all: Vec<_> = (0..60u64)
        .map(|n| {
            let mut record = record(&format!("{}:{n:02}", ["img", "doc", "im"][n as usize % 3]), n);
            record.level = Level::ALL[(n / 3) as usize % 3];
            record.size = n * 10;
            record.hits = n % 7;
            record.created = at(1_000 + n);
            record.deadline = if n % 2 == 0 { Timestamp::NEVER } else { at(2_000 + n) };
            if n % 4 != 0 {
                record = tagged(record, &[("type", ["a", "b"][n as usize % 2]), ("n", &(n % 5).to_string())]);
            }
            record
        })
        .collect();
    store(tracking, all.clone()).await;
    let plain = Query::all;
    let conditions = [
        Query { namespace: Some(String::new()), ..plain() },
        Query { namespace: Some("none".into()), ..plain() },
        Query { level: Some(Level::Hot), ..plain() },
        Query { level: Some(Level::Dry), ..plain() },
        with_tags(&[("type", "a")]),
        with_tags(&[("type", "b"), ("n", "3")]),
        with_tags(&[("type", "c")]),
        Query { prefix: b"im".to_vec(), ..plain() },
        Query { prefix: b"img:".to_vec(), ..plain() },
        Query { prefix: b"zzz".to_vec(), ..plain() },
        Query { glob: Some("*g:?[0-4]".into()), ..plain() },
        Query { glob: Some("im:*".into()), ..plain() },
        Query { glob: Some("".into()), ..plain() },
        Query { created_from: Some(at(1_030)), ..plain() },
        Query { created_before: Some(at(1_030)), ..plain() },
        Query { created_from: Some(at(1_010)), created_before: Some(at(1_011)), ..plain() },
        Query { min_size: Some(300), ..plain() },
        Query { max_size: Some(300), ..plain() },
        Query { min_size: Some(u64::MAX), ..plain() },
        Query { min_hits: Some(3), ..plain() },
        Query { max_hits: Some(3), ..plain() },
        Query { min_hits: Some(4), max_hits: Some(2), ..plain() },
        Query { live_at: Some(at(2_031)), ..plain() },
    ];
    for (first, one) in conditions.iter().enumerate() {
        for other in &conditions[first..] {
            let query = both(one, other);
            let mut expected: Vec<_> = all.iter().filter(|record| query.matches(record)).cloned().collect();
            expected.sort_by(|a, b| a.key.cmp(&b.key));
            let page = tracking.find(&query, None, usize::MAX).await.expect("a page");
            assert_eq!(page, expected, "for {query:?}");
        }
    }
}

/// Walking the pages shows each record once, in order, whatever the length of a page.
pub async fn pages_are_complete_ordered_and_without_repeats(tracking: &dyn Tracking) {
    let names = ["", "a", "b", "aa"];
    let records: Vec<_> = (0..120)
        .map(|n| {
            let tags: &[_] = if n % 3 == 0 { &[("third", "yes")] } else { &[] };
            Record { key: key_in(names[n % 4], &format!("{n:03}")), ..tagged(record("", 1), tags) }
        })
        .collect();
    store(tracking, records.clone()).await;
    let queries = [
        Query::all(),
        in_namespace("a"),
        with_tags(&[("third", "yes")]),
        Query { prefix: b"0".to_vec(), ..Query::all() },
        Query { prefix: b"0".to_vec(), ..in_namespace("aa") },
    ];
    for (query, limit) in queries.iter().flat_map(|query| [1, 7, 1_000].map(|limit| (query, limit))) {
        let mut expected: Vec<_> =
            records.iter().filter(|record| query.matches(record)).map(|record| record.key.clone()).collect();
        expected.sort();
        assert_eq!(walk(tracking, query, limit, async |_| ()).await, expected, "{query:?} by {limit}");
    }
    // A page may also begin where no record is, in a namespace without any or beyond the last.
    for (after, expected) in
        [(key_in("a", "0015"), 29), (key_in("a0", "x"), 0), (key_in("", "x"), 30), (key_in("zz", "x"), 0)]
    {
        let page = tracking.find(&in_namespace("a"), Some(&after), 1_000).await.expect("a page");
        assert_eq!(page.len(), expected, "after {after:?}");
    }
}

/// While others come, go and change, a record that stays is seen exactly once.
pub async fn pages_hold_while_records_change(tracking: &dyn Tracking) {
    let name = |n: u64| format!("{n:04}");
    store(tracking, (0..100).map(|n| record(&name(n * 10), 1))).await;
    // Every fourth is removed in its turn, others are changed, new ones come in front and behind.
    let keys = walk(tracking, &Query::all(), 6, async |page| {
        let events = [
            What::Removed { key: key(&name(page * 40 + 30)), generation: of(2) },
            What::Stored(Record { size: 1, ..record(&name(page * 40 + 20), 2) }),
            What::Moved { key: key(&name(page * 10)), generation: of(2), to: Some(Level::Dry) },
            What::Used { key: key(&name(990 - page * 10)), hits: 1 },
            What::Stored(record(&name(page * 10 + 5), 1)),
            What::Stored(record(&name(999 - page), 1)),
        ]
        .map(|what| Event { at: Timestamp::from_millis(1), what });
        tracking.record(&events).await.expect("changes");
    })
    .await;
    assert!(keys.is_sorted_by(|a, b| a < b), "ordered, without repeats");
    let seen: BTreeSet<_> = keys.into_iter().collect();
    let missing: Vec<_> = (0..100)
        .filter(|n| n % 4 != 3)
        .map(|n| key(&name(n * 10)))
        .filter(|key| !seen.contains(key))
        .collect();
    assert_eq!(missing, [], "records that stayed");
}

/// Any bytes are a key of their own.
pub async fn odd_keys_are_keys(tracking: &dyn Tracking) {
    let long = vec![b'k'; 10_000];
    let long_too = [&long[..9_999], b"l"].concat();
    let keys: &[&[u8]] = &[
        b"\0",
        b"\0\0",
        b"a",
        b"a\0",
        b"a\0b",
        b"%",
        b"_",
        b"a%",
        b"a_",
        b"ab",
        b"A",
        b"'; drop table record; --",
        b"..",
        b"a/b",
        "ключ-é-🦀".as_bytes(),
        &[0xff],
        &[0xff, 0xff],
        &[0x80, 0xfe],
        &long,
        &long_too,
    ];
    let of_bytes = |bytes: &[u8]| Key::new("", bytes).expect("a key");
    let records =
        keys.iter().zip(1..).map(|(bytes, size)| Record { key: of_bytes(bytes), size, ..record("x", 1) });
    store(tracking, records).await;
    for (bytes, size) in keys.iter().zip(1..) {
        let found = tracking.lookup(&of_bytes(bytes)).await.expect("an answer").expect("a record");
        assert_eq!((found.key.bytes(), found.size), (*bytes, size));
    }
    let mut sorted = keys.to_vec();
    sorted.sort_unstable();
    let listed = walk(tracking, &Query::all(), 3, async |_| ()).await;
    assert_eq!(listed.iter().map(Key::bytes).collect::<Vec<_>>(), sorted);
    for prefix in keys {
        let query = Query { prefix: prefix.to_vec(), ..Query::all() };
        let expected: Vec<_> = sorted.iter().filter(|key| key.starts_with(prefix)).copied().collect();
        let listed = walk(tracking, &query, 100, async |_| ()).await;
        assert_eq!(listed.iter().map(Key::bytes).collect::<Vec<_>>(), expected, "prefix {prefix:?}");
    }
    record_one(tracking, 1, What::Removed { key: of_bytes(b"a%"), generation: of(2) }).await;
    assert_eq!(walk(tracking, &Query::all(), 100, async |_| ()).await.len(), keys.len() - 1);
}

/// Names of namespaces are names: no character in them stands for others, and none reaches into another.
pub async fn namespaces_are_walls(tracking: &dyn Tracking) {
    let names = ["", "a", "a_b", "a%", "a[bc]", "ab", "axb", "A", "a*", "a\0", "a/b", "é"];
    let records = names.iter().flat_map(|namespace| {
        ["k", "b/k"].map(|name| Record {
            key: key_in(namespace, name),
            size: namespace.len() as u64,
            ..tagged(record("", 1), &[("type", "image")])
        })
    });
    store(tracking, records).await;
    for (round, namespace) in names.into_iter().enumerate() {
        let listed = tracking.find(&in_namespace(namespace), None, 100).await.expect("a page");
        let keys: Vec<_> = listed.iter().map(|record| (record.key.namespace(), record.key.bytes())).collect();
        assert_eq!(keys, [(namespace, b"b/k".as_slice()), (namespace, b"k".as_slice())]);
        let scope = match round % 2 {
            0 => Scope::Namespace(namespace.into()),
            _ => tag_scope(namespace, "type", "image"),
        };
        record_one(tracking, 1, What::Invalidated { scope, generation: of(2) }).await;
        assert_eq!(found(tracking, &in_namespace(namespace)).await, [""; 0]);
        assert_eq!(found(tracking, &Query::all()).await.len(), (names.len() - 1 - round) * 2);
    }
}

/// Batches recorded at once are all applied.
pub async fn concurrent_batches_all_count(tracking: Arc<dyn Tracking>) {
    store(&*tracking, [record("a", 1)]).await;
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let tracking = tracking.clone();
            tokio::spawn(async move {
                for round in 0..10 {
                    let counted = Totals { sets: 1, ..Totals::default() };
                    let events = [
                        What::Used { key: key("a"), hits: 1 },
                        What::Stored(record(&format!("{task}-{round}"), 1)),
                        What::Counted(counted),
                    ]
                    .map(|what| Event { at: Timestamp::from_millis(1), what });
                    tracking.record(&events).await.expect("a batch");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a task");
    }
    assert_eq!(lookup(&*tracking, "a").await.map(|record| record.hits), Some(80));
    assert_eq!(totals(&*tracking).await.sets, 80);
    assert_eq!(found(&*tracking, &Query::all()).await.len(), 81);
}

/// A reader sees all of a batch or none of it.
pub async fn batches_are_seen_whole(tracking: Arc<dyn Tracking>) {
    let writer = tracking.clone();
    let names = ["a", "b", "c"];
    let tagged = move |generation: u64| {
        names.map(|name| tagged(record(name, generation), &[("round", generation.to_string().as_str())]))
    };
    store(&*tracking, tagged(0)).await;
    let writing = tokio::spawn(async move {
        for generation in 1..=40 {
            store(&*writer, tagged(generation)).await;
        }
    });
    while !writing.is_finished() {
        let page = tracking.find(&Query::all(), None, 10).await.expect("a page");
        let rounds: BTreeSet<_> = page.iter().map(|record| (record.generation, &record.tags)).collect();
        assert_eq!((page.len(), rounds.len()), (3, 1), "{page:?}");
        tokio::task::yield_now().await;
    }
    writing.await.expect("the writer");
}

/// Dropping a future of `record` at any of its first polls leaves all of the batch or none of it.
pub async fn a_dropped_batch_is_whole_or_absent(tracking: Arc<dyn Tracking>) {
    for polls in 0..6 {
        let names = ["a", "b"].map(|name| format!("{polls}{name}"));
        let events =
            names.clone().map(|name| Event { at: Timestamp::EPOCH, what: What::Stored(record(&name, 1)) });
        {
            let mut recording = tracking.record(&events);
            for _ in 0..polls {
                if std::future::poll_fn(|cx| std::task::Poll::Ready(recording.as_mut().poll(cx)))
                    .await
                    .is_ready()
                {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        // What comes after waits for what was begun.
        store(&*tracking, [record("last", polls)]).await;
        let known = [lookup(&*tracking, &names[0]).await, lookup(&*tracking, &names[1]).await];
        assert_eq!(known[0].is_some(), known[1].is_some(), "dropped after {polls} polls");
    }
}

/// An orderly stop loses nothing.
pub async fn records_survive_reopening(open: impl AsyncFn() -> Arc<dyn Tracking>) {
    let kept = tagged(record("a", 5), &[("type", "image")]);
    let tracking = open().await;
    store(&*tracking, [kept.clone(), record("gone", 5)]).await;
    record_one(&*tracking, 1, What::Removed { key: key("gone"), generation: of(6) }).await;
    tracking.close().await.expect("closes");
    drop(tracking);
    let tracking = open().await;
    assert_eq!(lookup(&*tracking, "a").await, Some(kept));
    assert_eq!(found(&*tracking, &with_tags(&[("type", "image")])).await, ["a"]);
    store(&*tracking, [record("a", 4)]).await;
    assert_eq!(lookup(&*tracking, "a").await.map(|record| record.generation), Some(of(5)));
    tracking.close().await.expect("closes");
}

/// Totals go on where they were.
pub async fn totals_survive_reopening(open: impl AsyncFn() -> Arc<dyn Tracking>) {
    let some = Totals { hits: [1, 2, 3], misses: 4, sets: 5, deletes: 6 };
    for round in 1..=3 {
        let tracking = open().await;
        record_one(&*tracking, 1, What::Counted(some)).await;
        let mut expected = Totals::default();
        (0..round).for_each(|_| expected.add(&some));
        assert_eq!(totals(&*tracking).await, expected);
        tracking.close().await.expect("closes");
    }
}

/// What was recorded is there after a stop that was none.
pub async fn a_store_dropped_without_closing_opens_again(open: impl AsyncFn() -> Arc<dyn Tracking>) {
    let tracking = open().await;
    store(&*tracking, [record("a", 1)]).await;
    drop(tracking);
    let tracking = open().await;
    assert_eq!(lookup(&*tracking, "a").await, Some(record("a", 1)));
    tracking.close().await.expect("closes");
}

/// After `close`, calls fail with [`Closed`](crate::Error::Closed), and closing again does no harm.
pub async fn a_closed_store_fails(open: impl AsyncFn() -> Arc<dyn Tracking>) {
    let tracking = open().await;
    tracking.close().await.expect("closes");
    tracking.close().await.expect("closes again");
    let closed =
        |result: crate::Result<()>| assert!(matches!(result, Err(crate::Error::Closed)), "{result:?}");
    closed(tracking.record(&[Event { at: Timestamp::EPOCH, what: What::Stored(record("a", 1)) }]).await);
    closed(tracking.lookup(&key("a")).await.map(drop));
    closed(tracking.find(&Query::all(), None, 1).await.map(drop));
    closed(tracking.totals().await.map(drop));
    closed(tracking.reset_totals().await);
}

fn of(generation: u64) -> Generation {
    Generation::new(generation)
}

fn key(name: &str) -> Key {
    key_in("", name)
}

fn key_in(namespace: &str, name: &str) -> Key {
    Key::new(namespace, name.as_bytes()).expect("a valid key")
}

fn record(name: &str, generation: u64) -> Record {
    Record {
        key: key(if name.is_empty() { "unnamed" } else { name }),
        generation: of(generation),
        level: Level::Hot,
        size: 100,
        created: Timestamp::from_millis(1_000),
        used: Timestamp::from_millis(1_000),
        deadline: Timestamp::NEVER,
        hits: 0,
        tags: Tags::new(),
    }
}

fn tagged(record: Record, tags: &[(&str, &str)]) -> Record {
    Record { tags: tags_of(tags), ..record }
}

fn tags_of(tags: &[(&str, &str)]) -> Tags {
    tags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn tag_scope(namespace: &str, name: &str, value: &str) -> Scope {
    Scope::Tag { namespace: namespace.into(), name: name.into(), value: value.into() }
}

fn with_tags(tags: &[(&str, &str)]) -> Query {
    Query { tags: tags_of(tags), ..Query::all() }
}

fn in_namespace(namespace: &str) -> Query {
    Query { namespace: Some(namespace.into()), ..Query::all() }
}

/// What fits `one` and, where `one` asks nothing, `other`.
fn both(one: &Query, other: &Query) -> Query {
    let (a, b) = (one.clone(), other.clone());
    Query {
        namespace: a.namespace.or(b.namespace),
        level: a.level.or(b.level),
        tags: b.tags.into_iter().chain(a.tags).collect(),
        prefix: if a.prefix.is_empty() { b.prefix } else { a.prefix },
        glob: a.glob.or(b.glob),
        created_from: a.created_from.or(b.created_from),
        created_before: a.created_before.or(b.created_before),
        min_size: a.min_size.or(b.min_size),
        max_size: a.max_size.or(b.max_size),
        min_hits: a.min_hits.or(b.min_hits),
        max_hits: a.max_hits.or(b.max_hits),
        live_at: a.live_at.or(b.live_at),
    }
}

async fn store(tracking: &dyn Tracking, records: impl IntoIterator<Item = Record>) {
    let events: Vec<_> =
        records.into_iter().map(|record| Event { at: record.created, what: What::Stored(record) }).collect();
    tracking.record(&events).await.expect("records");
}

async fn record_one(tracking: &dyn Tracking, at: u64, what: What) {
    tracking.record(&[Event { at: Timestamp::from_millis(at), what }]).await.expect("records");
}

async fn lookup(tracking: &dyn Tracking, name: &str) -> Option<Record> {
    tracking.lookup(&key(name)).await.expect("an answer")
}

async fn totals(tracking: &dyn Tracking) -> Totals {
    tracking.totals().await.expect("totals")
}

/// The keys `query` finds, as `key` or `namespace/key`.
async fn found(tracking: &dyn Tracking, query: &Query) -> Vec<String> {
    let page = tracking.find(query, None, 10_000).await.expect("a page");
    page.iter().map(|record| format!("{:?}", record.key)).collect()
}

/// The keys of all pages; `between` runs after each, with its number.
async fn walk(
    tracking: &dyn Tracking,
    query: &Query,
    limit: usize,
    mut between: impl AsyncFnMut(u64),
) -> Vec<Key> {
    let mut keys: Vec<Key> = Vec::new();
    for number in 0.. {
        let page = tracking.find(query, keys.last(), limit).await.expect("a page");
        assert!(page.len() <= limit, "{} records in a page of {limit}", page.len());
        if page.is_empty() {
            break;
        }
        keys.extend(page.into_iter().map(|record| record.key));
        between(number).await;
    }
    keys
}
