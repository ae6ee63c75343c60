//! Batches: each item as if it were called on its own.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::{
    HOLD, T0, Withdrawn, entry, get, get_key, join, key, named, poll_and_drop, put, put_key, remove,
};
use crate::tier::{Always, Permit, Put, PutItem, Removal};
use crate::{Entry, Generation, Key, Tier};

/// More than any store of this workspace takes at once.
const MANY: u64 = 300;

/// An empty batch is no request and no answer.
pub async fn a_batch_of_nothing_answers_nothing(tier: Arc<dyn Tier>) {
    assert!(tier.get_many(&[]).await.is_empty());
    assert!(tier.put_many(&[]).await.is_empty());
    assert!(tier.remove_many(&[]).await.is_empty());
}

/// Hits and misses come back in the order of the keys, whatever their namespaces, sizes and looks.
pub async fn a_batch_answers_each_key_in_its_place(tier: Arc<dyn Tier>) {
    let size = tier.profile().max_entry_bytes.map_or(200 << 10, |limit| (limit / 2).min(200 << 10)) as usize;
    let keys = [
        key("small"),
        key("absent"),
        key("large"),
        named("a", b"small"),
        named("a", b"absent"),
        key("empty"),
        named("", b"odd \r\n\0\xff*"),
        key("removed"),
    ];
    let stands = [
        Some(entry(1, "value")),
        None,
        Some(Entry::new(vec![7; size], Generation::new(2), T0)),
        Some(entry(3, "another's")),
        None,
        Some(entry(4, "")),
        Some(entry(5, "odd")),
        None,
    ];
    for (key, entry) in keys.iter().zip(&stands).filter_map(|(key, entry)| Some((key, entry.as_ref()?))) {
        put_key(&tier, key, entry).await;
    }
    put(&tier, "removed", &entry(6, "removed")).await;
    remove(&tier, "removed", 7).await;
    assert_eq!(got(&tier, &keys).await, stands);
    let backwards: Vec<Key> = keys.iter().rev().cloned().collect();
    let expected: Vec<_> = stands.into_iter().rev().collect();
    assert_eq!(got(&tier, &backwards).await, expected);
}

/// Of one batch some entries are taken and some are not, each for what stands under its own key.
pub async fn a_batch_puts_each_entry_on_its_own_condition(tier: Arc<dyn Tier>) {
    for name in ["older", "same", "newer", "withdrawn"] {
        put(&tier, name, &entry(5, "standing")).await;
    }
    let (newer, older, same) = (entry(6, "newer"), entry(4, "older"), entry(5, "standing"));
    let large = tier.profile().max_entry_bytes.filter(|&limit| limit <= 16 << 20);
    let large = large.map(|limit| Entry::new(vec![7; limit as usize + 1], Generation::new(7), T0));
    let always: &dyn Permit = &Always;
    let mut offers = vec![
        ("older", &newer, always, Put::Stored),
        ("same", &same, always, Put::Unchanged),
        ("newer", &older, always, Put::Superseded),
        ("withdrawn", &newer, &Withdrawn, Put::Superseded),
        ("absent", &newer, always, Put::Stored),
        ("withdrawn and absent", &newer, &Withdrawn, Put::Superseded),
    ];
    offers.extend(large.as_ref().map(|large| ("large", large, always, Put::TooLarge)));
    offers.push(("last", &older, always, Put::Stored));
    let keys: Vec<Key> = offers.iter().map(|(name, ..)| key(name)).collect();
    let items = keys.iter().zip(&offers).map(|(key, (_, entry, permit, _))| item(key, entry, *permit));
    let answers = tier.put_many(&items.collect::<Vec<_>>()).await;
    assert_eq!(answers.len(), offers.len(), "an answer for each");
    for (answer, (name, _, _, expected)) in answers.into_iter().zip(&offers) {
        assert_eq!(answer.unwrap_or_else(|error| panic!("put of {name}: {error}")), *expected, "{name}");
    }
    for (name, expected) in [
        ("older", Some(&newer)),
        ("same", Some(&same)),
        ("newer", Some(&same)),
        ("withdrawn", Some(&same)),
        ("absent", Some(&newer)),
        ("withdrawn and absent", None),
        ("large", None),
        ("last", Some(&older)),
    ] {
        assert_eq!(get(&tier, name).await.as_ref(), expected, "{name}");
    }
}

/// What is below its own generation goes. Where somebody is ahead of one key, that one says so and the others go.
pub async fn a_batch_removes_each_key_below_its_own_generation(tier: Arc<dyn Tier>) {
    for (name, generation) in [("goes", 5), ("ahead", 9), ("just below", 6), ("not named", 1)] {
        put(&tier, name, &entry(generation, name)).await;
    }
    let below = |name, below| (key(name), Generation::new(below));
    let items = [below("goes", 6), below("ahead", 7), below("absent", 8), below("just below", 7)];
    let answers = tier.remove_many(&items).await;
    let answers: Vec<Removal> = answers.into_iter().map(|answer| answer.expect("a removal")).collect();
    let shared = tier.profile().shared;
    let over = |number: u64| Removal::Done { over: Generation::new(if shared { number } else { 0 }) };
    let ahead = if shared { Removal::Behind(Generation::new(9)) } else { Removal::DONE };
    assert_eq!(answers, [over(5), ahead, over(0), over(6)]);
    let left = [None, Some(entry(9, "ahead")), None, None, Some(entry(1, "not named"))];
    let keys = ["goes", "ahead", "absent", "just below", "not named"].map(key);
    assert_eq!(got(&tier, &keys).await, left);
    for (key, below) in items {
        let next = entry(below.get().max(9) + 1, "next");
        assert_eq!(put_key(&tier, &key, &next).await, Put::Stored, "{key:?} is usable");
    }
}

/// Twice the same key is twice the same call: the same answer, and of two entries the newer one stands.
pub async fn a_batch_may_name_a_key_twice(tier: Arc<dyn Tier>) {
    let (twice, other) = (key("twice"), key("other"));
    for (first, second) in [(1, 2), (4, 3)] {
        let entries = [first, second].map(|generation| entry(generation, &generation.to_string()));
        let beside = entry(second, "beside");
        let items = [item(&twice, &entries[0], &Always), item(&other, &beside, &Always)];
        let items = [items[0], items[1], item(&twice, &entries[1], &Always)];
        let answers: Vec<Put> =
            tier.put_many(&items).await.into_iter().map(|put| put.expect("put")).collect();
        let newest = usize::from(second > first) * 2;
        assert_eq!((answers[newest], answers[1]), (Put::Stored, Put::Stored), "{first} {second}");
        assert!(
            matches!(answers[2 - newest], Put::Stored | Put::Superseded),
            "{first} {second}: {answers:?}"
        );
        let newest = Some(entries[newest / 2].clone());
        let keys = [twice.clone(), other.clone(), twice.clone()];
        assert_eq!(got(&tier, &keys).await, [newest.clone(), Some(beside), newest], "{first} {second}");
    }
    let below = Generation::new;
    let items = [(twice.clone(), below(10)), (other.clone(), below(10)), (twice.clone(), below(11))];
    for (answer, (key, below)) in tier.remove_many(&items).await.into_iter().zip(&items) {
        let answer = answer.expect("a removal");
        let overtaken = *key == twice && below.get() == 10 && answer == Removal::Behind(Generation::new(11));
        assert!(answer.is_done() || overtaken, "{key:?} below {below:?}: {answer:?}");
    }
    assert_eq!(got(&tier, &[twice.clone(), other, twice]).await, [None, None, None]);
}

/// A batch is not bounded by what the store takes in one request.
pub async fn a_batch_may_be_larger_than_a_store_takes_at_once(tier: Arc<dyn Tier>) {
    let keys: Vec<Key> = (0..MANY).map(|number| key(&format!("key {number}"))).collect();
    let entries: Vec<Entry> = (1..=MANY).map(|number| entry(number, &format!("value {number}"))).collect();
    let items: Vec<_> = keys.iter().zip(&entries).map(|(key, entry)| item(key, entry, &Always)).collect();
    for (number, answer) in tier.put_many(&items).await.into_iter().enumerate() {
        assert_eq!(answer.expect("put"), Put::Stored, "{number}");
    }
    let found = got(&tier, &keys).await;
    assert_eq!(found.len(), entries.len());
    for (found, entry) in found.into_iter().zip(&entries) {
        assert_eq!(found.as_ref(), Some(entry));
    }
    let removals: Vec<_> =
        keys.iter().step_by(2).map(|key| (key.clone(), Generation::new(MANY + 1))).collect();
    for answer in tier.remove_many(&removals).await {
        assert!(answer.expect("a removal").is_done());
    }
    for (number, found) in got(&tier, &keys).await.into_iter().enumerate() {
        assert_eq!(found.is_some(), number % 2 == 1, "{number}");
    }
}

/// Of a batch that is dropped half-way, each item happened or did not.
pub async fn a_dropped_batch_leaves_each_item_whole(tier: Arc<dyn Tier>) {
    let keys: Vec<Key> = (0..20).map(|number| key(&format!("key {number}"))).collect();
    let values = |generation: u64| entry(generation, &generation.to_string());
    for key in &keys {
        put_key(&tier, key, &values(1)).await;
    }
    let mut generation = 1;
    for polls in 0..6 {
        generation += 1;
        let newer = values(generation);
        let items: Vec<_> = keys.iter().map(|key| item(key, &newer, &Always)).collect();
        poll_and_drop(tier.put_many(&items), polls).await;
        for key in &keys {
            let found = get_key(&tier, key).await.expect("a dropped put removes nothing");
            let whole = values(found.generation.get());
            assert!(found == whole && found.generation <= newer.generation, "poll {polls}: {found:?}");
        }
        poll_and_drop(tier.get_many(&keys), polls).await;
    }
    for polls in 0..6 {
        generation += 1;
        let standing = values(generation);
        for key in &keys {
            put_key(&tier, key, &standing).await;
        }
        generation += 1;
        let items: Vec<_> = keys.iter().map(|key| (key.clone(), Generation::new(generation))).collect();
        poll_and_drop(tier.remove_many(&items), polls).await;
        for key in &keys {
            let found = get_key(&tier, key).await;
            assert!(found.is_none_or(|found| found == standing), "dropped at poll {polls}");
        }
    }
    generation += 1;
    for key in &keys {
        assert_eq!(put_key(&tier, key, &values(generation)).await, Put::Stored, "{key:?} is usable");
    }
}

/// Batches and single calls on the same keys, all at once: the highest generation stands under each key.
pub async fn batches_side_by_side_end_with_the_newest(tier: Arc<dyn Tier>) {
    const WRITERS: u64 = 6;
    const ROUNDS: u64 = 6;
    let keys: Arc<Vec<Key>> = Arc::new((0..10).map(|number| key(&format!("key {number}"))).collect());
    let mut tasks = JoinSet::new();
    for writer in 0..WRITERS {
        let (tier, keys) = (tier.clone(), keys.clone());
        tasks.spawn(async move {
            for round in 0..ROUNDS {
                let generation = 1 + round * WRITERS + (writer * 5) % WRITERS;
                let entry = entry(generation, &generation.to_string());
                if writer == 0 {
                    for key in keys.iter() {
                        put_key(&tier, key, &entry).await;
                    }
                } else {
                    let items: Vec<_> = keys.iter().map(|key| item(key, &entry, &Always)).collect();
                    for answer in tier.put_many(&items).await {
                        let answer = answer.expect("put");
                        assert!(matches!(answer, Put::Stored | Put::Superseded), "{answer:?}");
                    }
                }
                for found in got(&tier, &keys).await {
                    let found = found.expect("something was put");
                    assert_eq!(found.value, found.generation.get().to_string(), "a torn entry");
                    assert!(found.generation.get() >= generation, "the generation went back");
                }
            }
        });
    }
    join(tasks).await;
    let newest = WRITERS * ROUNDS;
    for found in got(&tier, &keys).await {
        assert_eq!(found, Some(entry(newest, &newest.to_string())));
    }
}

fn item<'a>(key: &'a Key, entry: &'a Entry, permit: &'a dyn Permit) -> PutItem<'a> {
    PutItem { key, entry, hold: HOLD, permit }
}

async fn got(tier: &Arc<dyn Tier>, keys: &[Key]) -> Vec<Option<Entry>> {
    let answers = tier.get_many(keys).await;
    assert_eq!(answers.len(), keys.len(), "an answer for each");
    let each = keys.iter().zip(answers);
    each.map(|(key, answer)| answer.unwrap_or_else(|error| panic!("get of {key:?}: {error}"))).collect()
}
