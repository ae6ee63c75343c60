//! The contract of [`Tier`], one case a line. Each case takes a fresh tier; [`suite`] runs them all.

mod batches;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;

pub use self::batches::*;
use crate::tier::{
    Always, Dead, Hold, Left, Look, Permit, Put, Reach, Removal, Scope, Spill, TryGet, Waiting,
};
use crate::{Entry, Error, Generation, Key, KeyRef, Level, Levels, Stay, Tier, Timestamp};

/// The time of the cases that do not turn on it.
pub const T0: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// Runs every case, each on a tier that `fresh` makes, empty and shared with nobody. A failure names its case.
///
/// Tiers are bounded best at 1 to 16 MiB: the case that fills one is left out where that would take longer.
pub async fn suite(fresh: impl AsyncFn() -> Arc<dyn Tier>) {
    macro_rules! run {
        ($($case:ident)*) => {$({
            let _named = Named(stringify!($case));
            $case(fresh().await).await;
        })*};
    }
    run! {
        an_absent_key_is_a_miss
        what_was_put_is_answered
        a_newer_generation_replaces
        the_same_generation_changes_nothing
        an_older_generation_is_refused
        a_withdrawn_permit_refuses
        a_removal_takes_what_is_below_its_generation
        a_removal_counts_as_a_generation_where_it_is_remembered
        a_removal_at_a_shared_tier_tells_what_stood_there
        clearing_a_namespace_takes_what_is_below_in_it
        clearing_all_takes_what_is_below
        namespaces_are_walls
        an_empty_value_is_a_value
        a_large_value_comes_back_whole
        what_is_too_large_is_refused_and_changes_nothing
        odd_keys_are_keys_of_their_own
        what_travels_with_a_value_survives
        a_deadline_survives_whatever_its_distance
        a_stay_keeps_whatever_its_length
        two_handles_see_one_store
        concurrent_puts_end_with_the_newest
        concurrent_puts_and_removals_end_without_the_removed
        a_dropped_call_leaves_all_or_nothing
        what_makes_room_is_spilled_before_it_is_gone
        usage_adds_up
        a_sweep_takes_only_what_is_due
        a_sweep_takes_what_was_invalidated
        a_batch_of_nothing_answers_nothing
        a_batch_answers_each_key_in_its_place
        a_batch_puts_each_entry_on_its_own_condition
        a_batch_removes_each_key_below_its_own_generation
        a_batch_may_name_a_key_twice
        a_batch_may_be_larger_than_a_store_takes_at_once
        a_dropped_batch_leaves_each_item_whole
        batches_side_by_side_end_with_the_newest
        a_closed_tier_says_so
        a_listing_shows_what_stays_exactly_once
        fences_are_remembered
        a_fence_is_no_change_of_a_key
        notes_are_listed_until_they_are_struck
        notes_are_no_entries
        an_index_knows_without_waiting
        a_resident_answers_like_the_tier
    }
}

/// Runs the cases of a tier that outlives the process. `open` opens the store of that number, empty at first, and
/// again after the tier it gave out was closed and dropped.
pub async fn persistent_suite(open: impl AsyncFn(usize) -> Arc<dyn Tier>) {
    let mut place = 0;
    macro_rules! run {
        ($($case:ident)*) => {$({
            let _named = Named(stringify!($case));
            $case(async || open(place).await).await;
            place += 1;
        })*};
    }
    run! {
        what_was_put_is_there_after_reopening
        an_overwritten_value_stays_overwritten_after_reopening
        a_removal_holds_after_reopening
        a_cleared_namespace_stays_cleared_after_reopening
        the_newest_generation_is_known_after_reopening
        fences_are_remembered_after_reopening
        notes_are_listed_after_reopening
    }
    let _ = place;
}

/// Says which case failed.
struct Named(&'static str);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the tier fails the case `{}`", self.0);
        }
    }
}

/// A miss is no error, and neither is removing what is not there.
pub async fn an_absent_key_is_a_miss(tier: Arc<dyn Tier>) {
    assert_eq!(get(&tier, "absent").await, None, "a miss is `Ok(None)`");
    tier.remove(&key("absent"), Generation::new(7)).await.expect("removing what is absent succeeds");
    assert_eq!(get(&tier, "absent").await, None, "a removal makes nothing");
}

/// An answer is what was put, whole.
pub async fn what_was_put_is_answered(tier: Arc<dyn Tier>) {
    let entry = entry(1, "value");
    assert_eq!(put(&tier, "k", &entry).await, Put::Stored);
    assert_eq!(get(&tier, "k").await, Some(entry));
    assert_eq!(get(&tier, "K").await, None, "another key has nothing");
}

/// A put replaces a lower generation.
pub async fn a_newer_generation_replaces(tier: Arc<dyn Tier>) {
    for generation in 1..=20 {
        let entry = entry(generation, &format!("value {generation}"));
        assert_eq!(put(&tier, "k", &entry).await, Put::Stored);
        assert_eq!(get(&tier, "k").await, Some(entry));
    }
}

/// A put of a generation that stands writes nothing.
pub async fn the_same_generation_changes_nothing(tier: Arc<dyn Tier>) {
    put(&tier, "k", &entry(5, "first")).await;
    assert_eq!(put(&tier, "k", &entry(5, "first")).await, Put::Unchanged);
    // Two processes may have come to one generation: a shared tier may tell that it is not the same entry.
    let other = put(&tier, "k", &entry(5, "again")).await;
    assert!(other == Put::Unchanged || (tier.profile().shared && other == Put::Superseded), "{other:?}");
    assert_eq!(get(&tier, "k").await, Some(entry(5, "first")));
}

/// A put never replaces a higher generation.
pub async fn an_older_generation_is_refused(tier: Arc<dyn Tier>) {
    put(&tier, "k", &entry(5, "newer")).await;
    assert_eq!(put(&tier, "k", &entry(4, "older")).await, Put::Superseded);
    assert_eq!(get(&tier, "k").await, Some(entry(5, "newer")));
}

/// A put whose permit does not hold writes nothing.
pub async fn a_withdrawn_permit_refuses(tier: Arc<dyn Tier>) {
    put(&tier, "standing", &entry(1, "old")).await;
    for name in ["standing", "absent"] {
        let before = get(&tier, name).await;
        let answer = tier.put(&key(name), &entry(2, "late"), HOLD, &Withdrawn).await.expect("a put");
        assert_eq!(answer, Put::Superseded, "{name}");
        assert_eq!(get(&tier, name).await, before, "{name}");
    }
}

/// A removal takes the key as far as it is below the generation.
pub async fn a_removal_takes_what_is_below_its_generation(tier: Arc<dyn Tier>) {
    put(&tier, "k", &entry(5, "value")).await;
    put(&tier, "other", &entry(1, "other")).await;
    remove(&tier, "k", 5).await;
    assert_eq!(get(&tier, "k").await, Some(entry(5, "value")), "5 is not below 5");
    remove(&tier, "k", 6).await;
    assert_eq!(get(&tier, "k").await, None);
    assert_eq!(get(&tier, "other").await, Some(entry(1, "other")), "another key stays");
    assert_eq!(put(&tier, "k", &entry(6, "next")).await, Put::Stored, "what comes after a removal is taken");
    assert_eq!(get(&tier, "k").await, Some(entry(6, "next")));
}

/// A shared tier tells at which generation the key stood. A mark of removal may be gone, an entry not here.
pub async fn a_removal_at_a_shared_tier_tells_what_stood_there(tier: Arc<dyn Tier>) {
    let shared = tier.profile().shared;
    let at = |number: u64| Removal::Done { over: Generation::new(if shared { number } else { 0 }) };
    let key = key("k");
    let of = |number| tier.remove(&key, Generation::new(number));
    assert_eq!(of(3).await.expect("a removal"), at(0), "nothing stood there");
    put(&tier, "k", &entry(5, "value")).await;
    assert_eq!(of(7).await.expect("a removal"), at(5));
    let marked = of(9).await.expect("a removal");
    assert!(marked == at(7) || marked == at(0), "{marked:?}");
    if shared {
        put(&tier, "k", &entry(12, "value")).await;
        assert_eq!(of(12).await.expect("a removal"), Removal::Behind(Generation::new(12)));
    }
}

/// A tier that remembers a removal refuses what is older; one that does not takes it. Neither says one thing and
/// does the other.
pub async fn a_removal_counts_as_a_generation_where_it_is_remembered(tier: Arc<dyn Tier>) {
    put(&tier, "k", &entry(5, "removed")).await;
    remove(&tier, "k", 10).await;
    let late = entry(7, "late");
    match put(&tier, "k", &late).await {
        Put::Superseded => assert_eq!(get(&tier, "k").await, None, "refused, so not there"),
        Put::Stored => assert_eq!(get(&tier, "k").await, Some(late), "taken, so there"),
        other => panic!("{other:?} after a removal"),
    }
    assert_eq!(put(&tier, "k", &entry(10, "next")).await, Put::Stored);
    assert_eq!(get(&tier, "k").await, Some(entry(10, "next")));
}

/// Clearing a namespace takes what is below the generation there, and nothing else.
pub async fn clearing_a_namespace_takes_what_is_below_in_it(tier: Arc<dyn Tier>) {
    for namespace in ["", "a", "b"] {
        put_key(&tier, &named(namespace, b"old"), &entry(1, namespace)).await;
        put_key(&tier, &named(namespace, b"new"), &entry(9, namespace)).await;
    }
    tier.clear(Some("a"), Generation::new(5)).await.expect("clear");
    for namespace in ["", "a", "b"] {
        let old = get_key(&tier, &named(namespace, b"old")).await;
        assert_eq!(old.is_some(), namespace != "a", "the old entry in {namespace:?}");
        assert!(get_key(&tier, &named(namespace, b"new")).await.is_some(), "the new entry in {namespace:?}");
    }
    tier.clear(Some(""), Generation::new(5)).await.expect("clear");
    assert_eq!(get_key(&tier, &named("", b"old")).await, None, "the default namespace is one like any other");
    assert!(get_key(&tier, &named("b", b"old")).await.is_some(), "and not all of them");
}

/// Clearing everything takes what is below the generation everywhere.
pub async fn clearing_all_takes_what_is_below(tier: Arc<dyn Tier>) {
    for number in 0..50 {
        put(&tier, &format!("k{number}"), &entry(number + 1, "value")).await;
    }
    put_key(&tier, &named("a", b"k"), &entry(7, "value")).await;
    tier.clear(None, Generation::new(31)).await.expect("clear");
    for number in 0..50 {
        assert_eq!(get(&tier, &format!("k{number}")).await.is_some(), number >= 30, "k{number}");
    }
    assert_eq!(get_key(&tier, &named("a", b"k")).await, None);
}

/// No namespace and key read, replace or remove those of another pair, however alike they look.
pub async fn namespaces_are_walls(tier: Arc<dyn Tier>) {
    let pairs = [
        ("", "a:b:c"),
        ("a", "b:c"),
        ("a:b", "c"),
        ("a_b", "c"),
        ("a%", "c"),
        ("a[bc]", "c"),
        ("ab", "c"),
        ("a", "bc"),
        ("a*", "c"),
        ("a?", "c"),
        ("a/b", "c"),
        ("a", "b/c"),
        ("A", "b:c"),
        ("a ", "b:c"),
    ];
    for (number, (namespace, name)) in (1..).zip(pairs) {
        put_key(&tier, &named(namespace, name.as_bytes()), &entry(number, &format!("{namespace}|{name}")))
            .await;
    }
    let mut left: Vec<_> = (1..).zip(pairs).collect();
    while let Some((_, (cleared, _))) = left.first().copied() {
        for (number, (namespace, name)) in left.iter().copied() {
            let found = get_key(&tier, &named(namespace, name.as_bytes())).await;
            assert_eq!(found, Some(entry(number, &format!("{namespace}|{name}"))), "{namespace:?} {name:?}");
        }
        tier.clear(Some(cleared), Generation::new(100)).await.expect("clear");
        for (_, (namespace, name)) in left.extract_if(.., |(_, (namespace, _))| *namespace == cleared) {
            assert_eq!(
                get_key(&tier, &named(namespace, name.as_bytes())).await,
                None,
                "{namespace:?} {name:?}"
            );
        }
    }
}

/// A value of no bytes is there.
pub async fn an_empty_value_is_a_value(tier: Arc<dyn Tier>) {
    assert_eq!(put(&tier, "k", &entry(1, "")).await, Put::Stored);
    assert_eq!(get(&tier, "k").await, Some(entry(1, "")));
}

/// A value of a megabyte, or half of what the tier takes, comes back as it was.
pub async fn a_large_value_comes_back_whole(tier: Arc<dyn Tier>) {
    let size = tier.profile().max_entry_bytes.map_or(1 << 20, |limit| (limit / 2).min(1 << 20));
    let value: Vec<u8> = (0..size).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect();
    let entry = Entry::new(value, Generation::new(1), T0);
    assert_eq!(put(&tier, "large", &entry).await, Put::Stored);
    assert!(get(&tier, "large").await == Some(entry), "{size} bytes come back as they were");
}

/// What is larger than the tier says it takes is refused, and what stands stays.
pub async fn what_is_too_large_is_refused_and_changes_nothing(tier: Arc<dyn Tier>) {
    const TESTED: u64 = 64 << 20;
    let Some(limit) = tier.profile().max_entry_bytes.filter(|&limit| limit <= TESTED) else { return };
    put(&tier, "k", &entry(1, "standing")).await;
    put(&tier, "other", &entry(1, "other")).await;
    let large = Entry::new(vec![7; limit as usize + 1], Generation::new(2), T0);
    for name in ["k", "absent"] {
        assert_eq!(put(&tier, name, &large).await, Put::TooLarge, "{name}");
    }
    assert_eq!(get(&tier, "absent").await, None);
    assert_eq!(get(&tier, "k").await, Some(entry(1, "standing")));
    assert_eq!(get(&tier, "other").await, Some(entry(1, "other")), "nothing made room for what was refused");
}

/// Any bytes are a key, and no two share an entry.
pub async fn odd_keys_are_keys_of_their_own(tier: Arc<dyn Tier>) {
    let long = "long ".repeat(2_048);
    let mut keys: Vec<Key> = [
        &b"\0"[..],
        b"\0\0",
        b"a\0b",
        b"a",
        b"a ",
        b" a",
        b"a b",
        b".",
        b"..",
        b"../a",
        b"../../etc/passwd",
        b"/",
        b"/a",
        b"a/",
        b"a/b",
        b"a\\b",
        b"A",
        b"%00",
        b"\r\n",
        b"a\nb",
        b"\xff\xfe",
        b"\xc3\x28",
        "schlüssel".as_bytes(),
        "s\u{308}".as_bytes(),
        "\u{1f511}".as_bytes(),
        b"NUL",
        b"con",
        b"*",
        b"[a-z]",
        b"'; --",
        long.as_bytes(),
    ]
    .map(|bytes| named("", bytes))
    .into();
    keys.push(named("", &long.as_bytes()[..long.len() - 1]));
    keys.push(named("schlüssel", b".."));
    keys.push(named(&"n".repeat(crate::MAX_NAMESPACE_BYTES), &vec![b'k'; crate::MAX_KEY_BYTES]));
    for (number, key) in (1..).zip(&keys) {
        assert_eq!(put_key(&tier, key, &entry(number, &format!("{number}"))).await, Put::Stored, "{key:?}");
    }
    for (number, key) in (1..).zip(&keys) {
        assert_eq!(get_key(&tier, key).await, Some(entry(number, &format!("{number}"))), "{key:?}");
    }
    for key in &keys {
        tier.remove(key, Generation::MAX).await.expect("remove");
        assert_eq!(get_key(&tier, key).await, None, "{key:?}");
    }
}

/// Tags, stays, media type, user fields, levels and times come back as they were.
pub async fn what_travels_with_a_value_survives(tier: Arc<dyn Tier>) {
    let mut entry = entry(Generation::MAX.get() - 1, "value");
    entry.created = T0.after_millis(123);
    entry.levels = Levels::ALL.without(Level::Hot);
    entry.explicit_ttl = true;
    entry.deadline = T0.after_millis(86_400_001);
    let extras = entry.extras_mut();
    extras.tags = [("type", "thumbnail"), ("größe", "§ 64\0"), ("", "")].map(owned).into();
    extras.stays = [Some(Stay::Forever), None, Some(Stay::For(Duration::from_millis(1)))];
    extras.content_type = Some("image/png; q=\"1\"".into());
    extras.user = [("etag", "W/\"1\""), ("empty", "")].map(owned).into();
    assert_eq!(put(&tier, "k", &entry).await, Put::Stored);
    assert_eq!(get(&tier, "k").await, Some(entry));
}

/// A deadline comes back to the millisecond. One within a second may already have taken its entry along.
pub async fn a_deadline_survives_whatever_its_distance(tier: Arc<dyn Tier>) {
    for (generation, millis) in (1..).zip(DISTANCES) {
        let name = format!("in {millis}");
        let mut entry = entry(generation, &name);
        entry.deadline = T0.after_millis(millis);
        assert_eq!(put(&tier, &name, &entry).await, Put::Stored, "{name}");
        let found = get(&tier, &name).await;
        assert!(found.is_some() || millis < 1_000, "{name} is gone before its time");
        assert!(found.is_none_or(|found| found == entry), "{name} came back with another deadline");
    }
}

/// However long a stay is, the entry is there at its beginning and its deadline is its own.
pub async fn a_stay_keeps_whatever_its_length(tier: Arc<dyn Tier>) {
    for (generation, millis) in (1..).zip(DISTANCES) {
        let name = format!("for {millis}");
        let entry = entry(generation, &name);
        let hold = Hold { now: T0, stay: Stay::from_millis(millis) };
        assert_eq!(tier.put(&key(&name), &entry, hold, &Always).await.expect("put"), Put::Stored, "{name}");
        let found = get(&tier, &name).await;
        assert!(found.is_some() || millis < 1_000, "{name} is gone before its time");
        assert!(found.is_none_or(|found| found == entry), "{name} came back changed");
    }
}

/// Distances in time that stores are known to stumble over.
const DISTANCES: [u64; 9] = [
    1,
    999,
    1_000,
    1_001,
    THIRTY_DAYS - 1_000,
    THIRTY_DAYS,
    THIRTY_DAYS + 1_000,
    10 * 365 * 86_400_000,
    u64::MAX,
];
const THIRTY_DAYS: u64 = 30 * 86_400_000;

/// What one handle does the other sees.
pub async fn two_handles_see_one_store(tier: Arc<dyn Tier>) {
    let other = tier.clone();
    put(&tier, "k", &entry(1, "one")).await;
    assert_eq!(get(&other, "k").await, Some(entry(1, "one")));
    put(&other, "k", &entry(2, "two")).await;
    assert_eq!(get(&tier, "k").await, Some(entry(2, "two")));
    remove(&tier, "k", 3).await;
    assert_eq!(get(&other, "k").await, None);
}

/// Whatever the order of arrival, the highest generation is what stands, and no reader sees the order go back.
pub async fn concurrent_puts_end_with_the_newest(tier: Arc<dyn Tier>) {
    const WRITERS: u64 = 8;
    const EACH: u64 = 40;
    let mut tasks = JoinSet::new();
    for writer in 0..WRITERS {
        let tier = tier.clone();
        tasks.spawn(async move {
            let mut seen = 0;
            for number in 0..EACH {
                // Each writer's generations rise; all writers together arrive in no order.
                let generation = 1 + number * WRITERS + (writer * 5) % WRITERS;
                put(&tier, "k", &entry(generation, &generation.to_string())).await;
                let found = get(&tier, "k").await.expect("something was put");
                assert_eq!(found.value, found.generation.get().to_string(), "a torn entry");
                assert!(found.generation.get() >= seen.max(generation), "the generation went back");
                seen = found.generation.get();
                tokio::task::yield_now().await;
            }
        });
    }
    join(tasks).await;
    assert_eq!(get(&tier, "k").await, Some(entry(WRITERS * EACH, &(WRITERS * EACH).to_string())));
}

/// A removal that came after every put wins over all of them.
pub async fn concurrent_puts_and_removals_end_without_the_removed(tier: Arc<dyn Tier>) {
    let mut tasks = JoinSet::new();
    for number in 0..64 {
        let tier = tier.clone();
        tasks.spawn(async move {
            if number % 2 == 0 {
                put(&tier, "k", &entry(1 + number, "value")).await;
            } else {
                remove(&tier, "k", 1 + number).await;
            }
        });
    }
    join(tasks).await;
    remove(&tier, "k", 64).await;
    assert_eq!(get(&tier, "k").await, None);
    assert_eq!(put(&tier, "k", &entry(64, "next")).await, Put::Stored);
}

/// A call that is dropped half-way happened or did not.
pub async fn a_dropped_call_leaves_all_or_nothing(tier: Arc<dyn Tier>) {
    let mut generation = 1;
    put(&tier, "k", &entry(generation, "1")).await;
    for polls in 0..6 {
        let newer = entry(generation + 1, &(generation + 1).to_string());
        let before = get(&tier, "k").await.expect("nothing removed it");
        let key = key("k");
        poll_and_drop(tier.put(&key, &newer, HOLD, &Always), polls).await;
        let found = get(&tier, "k").await.expect("a dropped put removes nothing");
        // An earlier call that was dropped may have happened meanwhile.
        let whole = entry(found.generation.get(), &found.generation.get().to_string());
        let range = before.generation..=newer.generation;
        assert!(found == whole && range.contains(&found.generation), "dropped at poll {polls}: {found:?}");
        generation += 1;
    }
    for polls in 0..6 {
        generation += 1;
        let standing = entry(generation, "standing");
        put(&tier, "k", &standing).await;
        let key = key("k");
        poll_and_drop(tier.remove(&key, Generation::new(generation + 1)), polls).await;
        let found = get(&tier, "k").await;
        assert!(found.is_none_or(|found| found == standing), "dropped at poll {polls}");
        generation += 1;
        assert_eq!(put(&tier, "k", &entry(generation, "next")).await, Put::Stored, "and the key is usable");
    }
}

/// While a bounded tier is filled over its limit, every entry is in it or in its spill.
pub async fn what_makes_room_is_spilled_before_it_is_gone(tier: Arc<dyn Tier>) {
    const FILLED: u64 = 16 << 20;
    let spilled = Arc::new(Spilled::default());
    tier.attach(spilled.clone());
    let capacity = tier.usage().await.expect("usage").capacity;
    let Some(capacity) = capacity.filter(|&capacity| capacity <= FILLED) else { return };
    let largest = tier.profile().max_entry_bytes.unwrap_or(capacity);
    let size = (largest / 4).clamp(1, 16 << 10) as usize;
    let count = 2 * capacity / size as u64 + 10;
    let value = |number: u64| Bytes::from(number.to_le_bytes().repeat(size.div_ceil(8)));
    for number in 1..=count {
        let entry = Entry::new(value(number), Generation::new(number), T0);
        if put(&tier, &number.to_string(), &entry).await == Put::Full {
            spilled.entries().insert(number.to_string(), entry);
        }
        let behind = 1 + number / 2;
        assert!(is_somewhere(&tier, &spilled, behind, &value(behind)).await, "{behind} is nowhere");
    }
    for number in 1..=count {
        assert!(
            is_somewhere(&tier, &spilled, number, &value(number)).await,
            "{number} is nowhere at the end"
        );
    }
    let usage = tier.usage().await.expect("usage");
    assert!(usage.bytes.is_none_or(|bytes| bytes <= capacity), "{usage:?}");
}

async fn is_somewhere(tier: &Arc<dyn Tier>, spilled: &Spilled, number: u64, value: &Bytes) -> bool {
    // In this order: what leaves the tier is in the spill before.
    let found = get(tier, &number.to_string()).await;
    let found = found.or_else(|| spilled.entries().get(&number.to_string()).cloned());
    found.is_some_and(|found| found.generation == Generation::new(number) && found.value == value)
}

/// Usage follows what is put and removed.
pub async fn usage_adds_up(tier: Arc<dyn Tier>) {
    let empty = tier.usage().await.expect("usage");
    assert!(empty.entries.is_none_or(|entries| entries == 0), "{empty:?}");
    let sizes = [10, 200, 3_000];
    for (generation, size) in (1..).zip(sizes) {
        put(&tier, &size.to_string(), &Entry::new(vec![7; size], Generation::new(generation), T0)).await;
    }
    let full = tier.usage().await.expect("usage");
    assert!(full.entries.is_none_or(|entries| entries == 3), "{full:?}");
    assert!(full.bytes.is_none_or(|bytes| bytes >= sizes.iter().sum::<usize>() as u64), "{full:?}");
    assert!(
        full.capacity.is_none_or(|capacity| full.bytes.is_none_or(|bytes| bytes <= capacity)),
        "{full:?}"
    );
    put(&tier, "10", &Entry::new(vec![7; 20], Generation::new(9), T0)).await;
    assert!(
        tier.usage().await.expect("usage").entries.is_none_or(|entries| entries == 3),
        "replaced, not added"
    );
    for size in sizes {
        remove(&tier, &size.to_string(), 100).await;
    }
    let emptied = tier.usage().await.expect("usage");
    assert!(emptied.entries.is_none_or(|entries| entries == 0), "{emptied:?}");
    assert_eq!(
        (emptied.evicted, emptied.damaged),
        (empty.evicted, empty.damaged),
        "nothing was evicted or damaged"
    );
}

/// A sweep leaves alone what is alive and within its stay, drops what is dead, hands over what stayed its time.
pub async fn a_sweep_takes_only_what_is_due(tier: Arc<dyn Tier>) {
    let spilled = Arc::new(Spilled::default());
    tier.attach(spilled.clone());
    let stay = |secs| Hold { now: T0, stay: Stay::For(Duration::from_secs(secs)) };
    let mut dying = entry(1, "dying");
    dying.deadline = T0.after_millis(60_000);
    for (name, entry, hold) in [
        ("dying", &dying, stay(3_600)),
        ("idle", &entry(2, "idle"), stay(60)),
        ("fresh", &entry(3, "fresh"), stay(3_600)),
    ] {
        tier.put(&key(name), entry, hold, &Always).await.expect("put");
    }
    let swept = tier.sweep(T0.after_millis(59_999), &Nothing).await.expect("sweep");
    assert_eq!((swept.dropped, swept.spilled), (0, 0), "nothing is due yet");
    let mut swept = tier.sweep(T0.after_millis(60_000), &Nothing).await.expect("sweep");
    while !swept.complete {
        let more = tier.sweep(T0.after_millis(60_000), &Nothing).await.expect("sweep");
        swept.dropped += more.dropped;
        swept.spilled += more.spilled;
        swept.complete = more.complete;
    }
    assert_eq!(get(&tier, "fresh").await, Some(entry(3, "fresh")));
    assert!(get(&tier, "dying").await.is_none() || swept.dropped == 0, "dropped, so gone");
    assert!(get(&tier, "idle").await.is_none() || swept.spilled == 0, "handed over, so gone");
    let handed: Vec<String> = spilled.entries().keys().cloned().collect();
    assert_eq!(
        handed,
        if swept.spilled == 0 { vec![] } else { vec!["idle"] },
        "what is dead is not handed over"
    );
}

/// A tier that sweeps drops what the manager knows to be invalidated.
pub async fn a_sweep_takes_what_was_invalidated(tier: Arc<dyn Tier>) {
    struct Older;
    impl Dead for Older {
        fn is_dead(&self, key: KeyRef<'_>, entry: &Entry) -> bool {
            assert_eq!(key.bytes()[0], b'k');
            entry.generation < Generation::new(5)
        }
    }
    for generation in 1..=9 {
        put(&tier, &format!("k{generation}"), &entry(generation, "value")).await;
    }
    let swept = tier.sweep(T0, &Older).await.expect("sweep");
    for generation in 1..=9 {
        let gone = get(&tier, &format!("k{generation}")).await.is_none();
        assert!(!gone || generation < 5, "{generation} was not invalidated");
        assert!(gone || generation >= 5 || swept.dropped < 4, "{generation} was counted and is there");
    }
}

/// After `close`, every call fails with `Closed`.
pub async fn a_closed_tier_says_so(tier: Arc<dyn Tier>) {
    put(&tier, "k", &entry(1, "value")).await;
    tier.sync().await.expect("sync");
    tier.close().await.expect("close");
    let key = key("k");
    assert!(matches!(tier.get(&key).await, Err(Error::Closed)), "get");
    assert!(matches!(tier.put(&key, &entry(2, "late"), HOLD, &Always).await, Err(Error::Closed)), "put");
    assert!(matches!(tier.remove(&key, Generation::MAX).await, Err(Error::Closed)), "remove");
    assert!(matches!(tier.clear(None, Generation::MAX).await, Err(Error::Closed)), "clear");
    assert!(matches!(tier.usage().await, Err(Error::Closed)), "usage");
    assert!(matches!(tier.sweep(T0, &Nothing).await, Err(Error::Closed)), "sweep");
    assert!(matches!(tier.sync().await, Err(Error::Closed)), "sync");
    if let Some(resident) = tier.resident() {
        assert!(resident.peek(key.as_ref()).is_none(), "peek");
        assert_ne!(resident.insert(key.clone(), entry(3, "late"), HOLD), Put::Stored, "insert");
    }
}

/// Page by page, a listing shows every entry that stays exactly once, whatever comes and goes meanwhile.
pub async fn a_listing_shows_what_stays_exactly_once(tier: Arc<dyn Tier>) {
    let Some(listing) = tier.listing() else { return };
    for number in 0..40 {
        put_key(&tier, &named("a", format!("stays {number}").as_bytes()), &entry(number + 1, "12345")).await;
        put_key(&tier, &named("a", format!("goes {number}").as_bytes()), &entry(number + 1, "1")).await;
        put_key(&tier, &named("b", format!("stays {number}").as_bytes()), &entry(number + 1, "b")).await;
    }
    let mut seen = BTreeMap::<String, usize>::new();
    let mut after = None;
    let mut pages = 0;
    loop {
        let page = listing.list(Some("a"), after, 7).await.expect("list");
        assert!(page.entries.len() <= 7, "a page is no longer than asked");
        for listed in page.entries {
            assert_eq!(listed.key.namespace(), "a");
            assert!(listed.entry.value.is_empty(), "the value is left out");
            let name = listed.key.display().into_owned();
            assert_eq!(listed.size, if name.starts_with("stays") { 5 } else { 1 }, "{name}");
            *seen.entry(name).or_default() += 1;
        }
        tier.remove(&named("a", format!("goes {pages}").as_bytes()), Generation::MAX).await.expect("remove");
        put_key(&tier, &named("a", format!("comes {pages}").as_bytes()), &entry(1, "1")).await;
        pages += 1;
        after = page.next;
        if after.is_none() {
            break;
        }
        assert!(pages < 100, "the listing does not end");
    }
    for number in 0..40 {
        assert_eq!(seen.get(&format!("stays {number}")), Some(&1), "stays {number}");
    }
    assert!(seen.values().all(|&times| times == 1), "nothing is shown twice");
}

/// Fences are remembered with the highest generation given for each scope; a shared tier may have raised it.
pub async fn fences_are_remembered(tier: Arc<dyn Tier>) {
    fence_all(&tier).await;
}

/// A fence of a tag kills what carries it and is older, and is not taken for another process's change of a key.
pub async fn a_fence_is_no_change_of_a_key(tier: Arc<dyn Tier>) {
    let Some(log) = tier.fences() else { return };
    put_key(&tier, &named("a", b"stays"), &entry(1, "value")).await;
    let scope = Scope::Tag { namespace: "a".into(), name: "type".into(), value: "thumb".into() };
    let fence = log.fence(&scope, Generation::new(20)).await.expect("fence");
    for (named, found) in
        [(named("a", b"stays"), Generation::new(1)), (named("a", b"other"), Generation::ZERO)]
    {
        let answer = tier.remove(&named, Generation::new(10)).await.expect("remove");
        let done = Removal::Done { over: if tier.profile().shared { found } else { Generation::ZERO } };
        assert!(answer == done || answer == Removal::Fenced(fence), "{answer:?}");
        let mut entry = entry(10, "value");
        assert!(!log.kills(&named, &entry));
        entry.extras_mut().tags.insert("type".into(), "thumb".into());
        assert!(log.kills(&named, &entry));
        entry.generation = fence;
        assert!(!log.kills(&named, &entry));
    }
}

/// Fences every scope, and returns the highest generation of each; none where fences are not kept.
async fn fence_all(tier: &Arc<dyn Tier>) -> BTreeMap<Scope, Generation> {
    let mut fenced = BTreeMap::new();
    let Some(log) = tier.fences() else { return fenced };
    // A fence may be forgotten when nothing is left that it could hit.
    put_key(tier, &named("a", b"k"), &entry(1, "value")).await;
    for scope in scopes() {
        for generation in [5, 9, 7].map(Generation::new) {
            let raised = log.fence(&scope, generation).await.expect("fence");
            assert!(raised == generation || (raised > generation && tier.profile().shared), "{raised:?}");
            let highest: &mut Generation = fenced.entry(scope.clone()).or_default();
            *highest = raised.max(*highest);
        }
    }
    assert_remembered(tier, &fenced);
    fenced
}

fn scopes() -> [Scope; 3] {
    let tag = Scope::Tag { namespace: "a".into(), name: "type".into(), value: "größe:\0".into() };
    [Scope::All, Scope::Namespace("a".into()), tag]
}

fn assert_remembered(tier: &Arc<dyn Tier>, fenced: &BTreeMap<Scope, Generation>) {
    let remembered = tier.fences().expect("it had fences").remembered();
    for (scope, highest) in fenced {
        let newest =
            remembered.iter().filter(|(fenced, _)| fenced == scope).map(|(_, generation)| *generation).max();
        assert_eq!(newest, Some(*highest), "{scope:?}");
    }
}

/// What was noted is listed, whole and under numbers of its own, until it is struck.
pub async fn notes_are_listed_until_they_are_struck(tier: Arc<dyn Tier>) {
    let Some(journal) = tier.journal() else { return };
    assert_eq!(listed_notes(&tier).await, BTreeMap::new(), "nothing is noted at first");
    let mut noted = note_all(&tier).await;
    assert_eq!(listed_notes(&tier).await, noted);
    let numbers: Vec<u64> = noted.keys().copied().collect();
    journal.strike(&numbers[..2]).await.expect("strike");
    journal.strike(&numbers[1..3]).await.expect("striking what is not there succeeds");
    journal.strike(&[]).await.expect("nothing is struck");
    noted.retain(|number, _| !numbers[..3].contains(number));
    assert_eq!(listed_notes(&tier).await, noted);
    let waiting = noted.values().next().expect("some are left").clone();
    let again = journal.note(&waiting).await.expect("note");
    assert!(!numbers.contains(&again), "a number was given out twice");
    journal.strike(&numbers).await.expect("strike");
    assert_eq!(listed_notes(&tier).await, BTreeMap::from([(again, waiting)]));
}

/// Notes are neither answered nor listed as entries, nor cleared.
pub async fn notes_are_no_entries(tier: Arc<dyn Tier>) {
    if tier.journal().is_none() {
        return;
    }
    let noted = note_all(&tier).await;
    assert_eq!(get(&tier, "waits").await, None);
    tier.clear(None, Generation::new(1_000)).await.expect("clear");
    tier.remove(&key("waits"), Generation::new(2_000)).await.expect("remove");
    assert_eq!(listed_notes(&tier).await, noted);
    assert!(tier.usage().await.expect("usage").entries.is_none_or(|entries| entries == 0));
}

/// Notes removals of every kind.
async fn note_all(tier: &Arc<dyn Tier>) -> BTreeMap<u64, Waiting> {
    let journal = tier.journal().expect("a journal");
    let tag = Scope::Tag { namespace: "ns".into(), name: "type".into(), value: "thumb".into() };
    let long = Key::new("ns", &[0xFF; crate::MAX_KEY_BYTES]).expect("a key");
    let mut noted = BTreeMap::new();
    for (level, reach) in [
        (Level::Cold, Reach::Key(key("waits"))),
        (Level::Dry, Reach::Key(key("waits"))),
        (Level::Dry, Reach::Key(long)),
        (Level::Dry, Reach::Scope(Scope::All)),
        (Level::Hot, Reach::Scope(Scope::Namespace("ns".into()))),
        (Level::Cold, Reach::Scope(tag)),
        (Level::Cold, Reach::Level),
    ] {
        let waiting = Waiting { level, reach, below: Generation::new(noted.len() as u64 + 500) };
        let number = journal.note(&waiting).await.expect("note");
        assert!(noted.insert(number, waiting).is_none(), "a number was given out twice");
    }
    noted
}

async fn listed_notes(tier: &Arc<dyn Tier>) -> BTreeMap<u64, Waiting> {
    let notes = tier.journal().expect("a journal").notes().await.expect("notes");
    let count = notes.len();
    let listed: BTreeMap<u64, Waiting> = notes.into_iter().collect();
    assert_eq!(listed.len(), count, "a note is listed once");
    listed
}

/// An index agrees with the tier, and what it does not hold is not there.
pub async fn an_index_knows_without_waiting(tier: Arc<dyn Tier>) {
    let Some(index) = tier.index() else { return };
    put(&tier, "k", &entry(5, "value")).await;
    assert_eq!(index.holds(key("k").as_ref()), Some(Generation::new(5)));
    match index.try_get(key("k").as_ref()) {
        TryGet::Done(found) => assert_eq!(found, Some(entry(5, "value"))),
        TryGet::WouldBlock => {}
    }
    if index.holds(key("absent").as_ref()).is_none() {
        assert_eq!(get(&tier, "absent").await, None, "`None` is certain");
        assert!(matches!(index.try_get(key("absent").as_ref()), TryGet::Done(None)), "and takes no I/O");
    }
    match index.try_remove(key("k").as_ref(), Generation::new(5)) {
        Some(removed) => removed.expect("try_remove"),
        None => remove(&tier, "k", 5).await,
    }
    assert_eq!(get(&tier, "k").await, Some(entry(5, "value")), "5 is not below 5");
    match index.try_remove(key("k").as_ref(), Generation::new(6)) {
        Some(removed) => removed.expect("try_remove"),
        None => remove(&tier, "k", 6).await,
    }
    assert_eq!(get(&tier, "k").await, None);
}

/// What a resident tier answers at once is what the tier answers, as long as it is alive, fresh and valid.
pub async fn a_resident_answers_like_the_tier(tier: Arc<dyn Tier>) {
    let Some(resident) = tier.resident() else { return };
    let spilled = Arc::new(Spilled::default());
    tier.attach(spilled.clone());
    let k = key("k");
    let k = k.as_ref();
    let mut dying = entry(5, "value");
    dying.deadline = T0.after_millis(10_000);
    let hold = Hold { now: T0, stay: Stay::For(Duration::from_secs(4)) };
    assert_eq!(resident.insert(key("k"), dying.clone(), hold), Put::Stored);
    assert_eq!(resident.insert(key("k"), dying.clone(), hold), Put::Unchanged);
    assert_eq!(resident.insert(key("k"), entry(4, "older"), hold), Put::Superseded);
    assert_eq!(get(&tier, "k").await, Some(dying.clone()));

    let look = |millis| Look { now: T0.after_millis(millis), slack: 0, valid_from: Generation::ZERO };
    assert_eq!(resident.hit(k, look(3_999)).expect("within its stay"), "value");
    assert_eq!(resident.hit(k, look(7_998)).expect("the hit renewed its stay"), "value");
    assert_eq!(resident.peek(k).expect("it is there").uses, 2, "a peek is not a use");
    tier.sweep(T0.after_millis(7_998), &Nothing).await.expect("sweep");
    assert_eq!(resident.peek(k).expect("it is there").uses, 0, "a sweep collects uses");
    assert_eq!(spilled.uses(), 2, "and tells of them");
    assert!(resident.hit(k, Look { slack: 2_002, ..look(7_998) }).is_none(), "due within the slack");
    assert!(resident.hit(k, look(10_000)).is_none(), "no hit makes a deadline later");
    assert_eq!(resident.peek(k).expect("dead, and there").until, dying.deadline);

    let after = |valid_from| Look { valid_from: Generation::new(valid_from), ..look(8_000) };
    assert!(resident.hit(k, after(5)).is_some(), "as new as the invalidation");
    assert!(resident.hit(k, after(6)).is_none(), "older than an invalidation it may not have outlived");
    resident.revalidate(k, Generation::new(4), Generation::new(6));
    assert!(resident.hit(k, after(6)).is_none(), "another entry was revalidated");
    resident.revalidate(k, Generation::new(5), Generation::new(6));
    assert!(resident.hit(k, after(6)).is_some() && resident.hit(k, after(7)).is_none());

    assert!(resident.hit_decoded(k, look(8_000)).is_none(), "nobody decoded it");
    resident.attach_decoded(k, Generation::new(4), Arc::new("another"));
    assert!(resident.hit_decoded(k, look(8_000)).is_none(), "another entry was decoded");
    resident.attach_decoded(k, Generation::new(5), Arc::new("decoded"));
    let decoded = resident.hit_decoded(k, look(8_000)).expect("decoded");
    assert_eq!(decoded.downcast_ref(), Some(&"decoded"));
    assert!(resident.hit_decoded(k, look(12_000)).is_none(), "the same rules");

    assert!(
        resident.take(k, Generation::new(4)).is_none() && resident.discard(k, Generation::new(5)).is_none()
    );
    assert_eq!(resident.take(k, Generation::new(5)).expect("that generation").entry.value, "value");
    assert!(resident.peek(k).is_none() && get(&tier, "k").await.is_none());
}

/// What was put and synced is there in the next process.
pub async fn what_was_put_is_there_after_reopening(open: impl AsyncFn() -> Arc<dyn Tier>) {
    let keys: Vec<Key> = (1..=200).map(|number| named("a", format!("key/{number}\0").as_bytes())).collect();
    let tier = open().await;
    for (generation, key) in (1..).zip(&keys) {
        put_key(&tier, key, &entry(generation, &"x".repeat(generation as usize))).await;
    }
    let tier = reopened(tier, &open).await;
    for (generation, key) in (1..).zip(&keys) {
        assert_eq!(
            get_key(&tier, key).await,
            Some(entry(generation, &"x".repeat(generation as usize))),
            "{key:?}"
        );
    }
    tier.close().await.expect("close");
}

/// What was replaced stays replaced, and older puts are refused.
pub async fn an_overwritten_value_stays_overwritten_after_reopening(open: impl AsyncFn() -> Arc<dyn Tier>) {
    let tier = open().await;
    for generation in 1..=9 {
        put(&tier, "k", &entry(generation, &generation.to_string())).await;
    }
    let tier = reopened(tier, &open).await;
    assert_eq!(get(&tier, "k").await, Some(entry(9, "9")));
    assert_eq!(put(&tier, "k", &entry(8, "8")).await, Put::Superseded);
    tier.close().await.expect("close");
}

/// What was removed is not there in the next process.
pub async fn a_removal_holds_after_reopening(open: impl AsyncFn() -> Arc<dyn Tier>) {
    let tier = open().await;
    put(&tier, "removed", &entry(5, "value")).await;
    put(&tier, "stays", &entry(5, "value")).await;
    remove(&tier, "removed", 6).await;
    remove(&tier, "stays", 5).await;
    let tier = reopened(tier, &open).await;
    assert_eq!(get(&tier, "removed").await, None);
    assert_eq!(get(&tier, "stays").await, Some(entry(5, "value")));
    tier.close().await.expect("close");
}

/// What was cleared is not there in the next process; what came after is.
pub async fn a_cleared_namespace_stays_cleared_after_reopening(open: impl AsyncFn() -> Arc<dyn Tier>) {
    let tier = open().await;
    for namespace in ["a", "b"] {
        put_key(&tier, &named(namespace, b"old"), &entry(1, "old")).await;
    }
    tier.clear(Some("a"), Generation::new(5)).await.expect("clear");
    put_key(&tier, &named("a", b"new"), &entry(6, "new")).await;
    let tier = reopened(tier, &open).await;
    assert_eq!(get_key(&tier, &named("a", b"old")).await, None);
    assert_eq!(get_key(&tier, &named("a", b"new")).await, Some(entry(6, "new")));
    assert_eq!(get_key(&tier, &named("b", b"old")).await, Some(entry(1, "old")));
    tier.close().await.expect("close");
}

/// The next process knows how far generations had come.
pub async fn the_newest_generation_is_known_after_reopening(open: impl AsyncFn() -> Arc<dyn Tier>) {
    let tier = open().await;
    put(&tier, "k", &entry(7_000, "value")).await;
    remove(&tier, "other", 9_000).await;
    let tier = reopened(tier, &open).await;
    assert!(tier.profile().persistent, "a tier of this suite outlives the process");
    assert!(tier.profile().last_generation >= Generation::new(7_000), "{:?}", tier.profile());
    tier.close().await.expect("close");
}

/// Fences are remembered by the next process.
pub async fn fences_are_remembered_after_reopening(open: impl AsyncFn() -> Arc<dyn Tier>) {
    let tier = open().await;
    let fenced = fence_all(&tier).await;
    let tier = reopened(tier, &open).await;
    if tier.fences().is_some() {
        assert_remembered(&tier, &fenced);
    }
    tier.close().await.expect("close");
}

/// Notes outlive the process, and so do strikes.
pub async fn notes_are_listed_after_reopening(open: impl AsyncFn() -> Arc<dyn Tier>) {
    let tier = open().await;
    if tier.journal().is_none() {
        return;
    }
    let mut noted = note_all(&tier).await;
    let struck = *noted.keys().next().expect("some are noted");
    tier.journal().expect("a journal").strike(&[struck]).await.expect("strike");
    noted.remove(&struck);
    let tier = reopened(tier, &open).await;
    assert_eq!(listed_notes(&tier).await, noted);
    let numbers: Vec<u64> = noted.keys().copied().collect();
    tier.journal().expect("a journal").strike(&numbers).await.expect("strike");
    let tier = reopened(tier, &open).await;
    assert_eq!(listed_notes(&tier).await, BTreeMap::new());
    tier.close().await.expect("close");
}

async fn reopened(tier: Arc<dyn Tier>, open: &impl AsyncFn() -> Arc<dyn Tier>) -> Arc<dyn Tier> {
    tier.sync().await.expect("sync");
    tier.close().await.expect("close");
    drop(tier);
    open().await
}

const HOLD: Hold = Hold { now: T0, stay: Stay::Forever };

fn key(name: &str) -> Key {
    named("", name.as_bytes())
}

fn named(namespace: &str, bytes: &[u8]) -> Key {
    Key::new(namespace, bytes).expect("a valid key")
}

fn entry(generation: u64, value: &str) -> Entry {
    Entry::new(value.to_owned(), Generation::new(generation), T0)
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

async fn get(tier: &Arc<dyn Tier>, name: &str) -> Option<Entry> {
    get_key(tier, &key(name)).await
}

async fn get_key(tier: &Arc<dyn Tier>, key: &Key) -> Option<Entry> {
    tier.get(key).await.unwrap_or_else(|error| panic!("get of {key:?}: {error}"))
}

async fn put(tier: &Arc<dyn Tier>, name: &str, entry: &Entry) -> Put {
    put_key(tier, &key(name), entry).await
}

async fn put_key(tier: &Arc<dyn Tier>, key: &Key, entry: &Entry) -> Put {
    let answer = tier.put(key, entry, HOLD, &Always).await;
    answer.unwrap_or_else(|error| panic!("put of {key:?}: {error}"))
}

async fn remove(tier: &Arc<dyn Tier>, name: &str, below: u64) {
    let removed = tier.remove(&key(name), Generation::new(below)).await;
    removed.unwrap_or_else(|error| panic!("remove of {name}: {error}"));
}

async fn join(mut tasks: JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no task panics");
    }
}

/// Polls `call` so many times, then drops it. Between polls other tasks run.
async fn poll_and_drop<T>(call: impl Future<Output = T>, polls: usize) {
    let mut call = Box::pin(call);
    for _ in 0..polls {
        if call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Keeps what it is handed, the newest generation of each key, and counts uses.
#[derive(Debug, Default)]
struct Spilled {
    entries: Mutex<BTreeMap<String, Entry>>,
    uses: AtomicU32,
}

impl Spilled {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().expect("no panic")
    }

    fn uses(&self) -> u32 {
        self.uses.load(Relaxed)
    }
}

impl Spill for Spilled {
    fn spill(&self, key: Key, entry: Entry, left: Left) {
        self.used(key.as_ref(), left.uses);
        let mut spilled = self.entries();
        let kept = spilled.entry(key.display().into_owned()).or_insert_with(|| entry.clone());
        if kept.generation < entry.generation {
            *kept = entry;
        }
    }

    fn used(&self, _: KeyRef<'_>, uses: u32) {
        self.uses.fetch_add(uses, Relaxed);
    }
}

struct Withdrawn;

impl Permit for Withdrawn {
    fn holds(&self) -> bool {
        false
    }
}

struct Nothing;

impl Dead for Nothing {
    fn is_dead(&self, _: KeyRef<'_>, _: &Entry) -> bool {
        false
    }
}
