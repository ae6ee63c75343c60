//! What a RAM tier does alone, for every policy.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tiercache_core::tier::{Cause, Dead, Hold, Left, Look, Put, Resident, Spill, Tier};
use tiercache_core::{Entry, Generation, Key, KeyRef, Stay, Timestamp};
use tiercache_ram::{Policy, RamConfig, RamTier};

const POLICIES: [Policy; 4] = [Policy::Adaptive, Policy::Lru, Policy::TinyLfu, Policy::Fifo];
const T0: Timestamp = Timestamp::from_millis(1_700_000_000_000);

#[derive(Debug, Default)]
struct Spilled(Mutex<Vec<(Key, Entry, Left)>>, Mutex<Vec<(String, u32)>>);

impl Spill for Spilled {
    fn spill(&self, key: Key, entry: Entry, left: Left) {
        self.0.lock().unwrap().push((key, entry, left));
    }

    fn used(&self, key: KeyRef<'_>, uses: u32) {
        self.1.lock().unwrap().push((key.to_key().display().into_owned(), uses));
    }
}

impl Spilled {
    fn keys(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(key, ..)| key.display().into_owned()).collect()
    }
}

struct Nothing;

impl Dead for Nothing {
    fn is_dead(&self, _: KeyRef<'_>, _: &Entry) -> bool {
        false
    }
}

/// A tier for `entries` entries with a key of three bytes and a value of `size`.
fn tier(policy: Policy, entries: u64, size: u64) -> (RamTier, Arc<Spilled>) {
    let max_size = entries * (policy.overhead() + 4 + size);
    let tier = RamTier::new(RamConfig { max_size, policy });
    let spilled = Arc::new(Spilled::default());
    tier.attach(spilled.clone());
    (tier, spilled)
}

fn key(name: &str) -> Key {
    Key::new("", name.as_bytes()).unwrap()
}

fn hold() -> Hold {
    Hold { now: T0, stay: Stay::Forever }
}

fn look(now: Timestamp) -> Look {
    Look { now, slack: 0, valid_from: Generation::ZERO }
}

fn set(tier: &RamTier, name: &str, generation: u64, value: impl Into<Bytes>) -> Put {
    tier.insert(key(name), Entry::new(value, Generation::new(generation), T0), hold())
}

fn value(tier: &RamTier, name: &str) -> Option<Bytes> {
    tier.hit(key(name).as_ref(), look(T0))
}

#[test]
fn what_is_set_is_answered() {
    for policy in POLICIES {
        let (tier, _) = tier(policy, 10, 8);
        assert_eq!(set(&tier, "a", 1, "one"), Put::Stored, "{policy:?}");
        assert_eq!(value(&tier, "a"), Some(Bytes::from("one")), "{policy:?}");
        assert_eq!(value(&tier, "b"), None, "{policy:?}");
    }
}

#[test]
fn what_makes_room_is_spilled() {
    for policy in POLICIES {
        let (tier, spilled) = tier(policy, 8, 8);
        for generation in 1..=100 {
            assert_eq!(set(&tier, &name(generation), generation, "12345678"), Put::Stored);
        }
        let spilled = spilled.keys();
        for generation in 1..=100 {
            let held = value(&tier, &name(generation)).is_some();
            assert!(held != spilled.contains(&name(generation)), "{policy:?} {generation}");
        }
        assert!(spilled.len() >= 92, "{policy:?}");
    }
}

#[tokio::test]
async fn a_third_entry_displaces_one_of_two_and_stays_itself() {
    for (policy, displaced) in
        [(Policy::Lru, &["a"][..]), (Policy::Fifo, &["a"]), (Policy::Adaptive, &["a", "b"])]
    {
        let (tier, spilled) = tier(policy, 2, 5);
        for (generation, name) in (1..).zip(["a", "b", "c"]) {
            set(&tier, name, generation, "12345");
        }
        assert_eq!(spilled.keys().len(), 1, "{policy:?}");
        assert!(displaced.contains(&spilled.keys()[0].as_str()), "{policy:?}");
        assert_eq!(value(&tier, "c").unwrap(), "12345", "{policy:?}");
        assert_eq!(tier.usage().await.unwrap().evicted, 1, "{policy:?}");
    }
}

#[test]
fn the_entry_nobody_read_goes_first() {
    for policy in [Policy::Adaptive, Policy::Lru] {
        let (tier, spilled) = tier(policy, 3, 8);
        for (generation, name) in (1..).zip(["a", "b", "c"]) {
            set(&tier, name, generation, "12345678");
        }
        assert!(value(&tier, "b").is_some() && value(&tier, "c").is_some());
        set(&tier, "d", 4, "12345678");
        assert_eq!(spilled.keys(), ["a"], "{policy:?}");
    }
}

#[test]
fn fifo_gives_up_the_first_whether_it_was_read_or_not_and_a_new_value_is_new() {
    let (tier, spilled) = tier(Policy::Fifo, 3, 8);
    for (generation, name) in (1..).zip(["a", "b", "c"]) {
        set(&tier, name, generation, "12345678");
    }
    assert!(value(&tier, "b").is_some());
    set(&tier, "a", 4, "87654321");
    assert!(spilled.keys().is_empty(), "what is replaced is not given up");
    set(&tier, "d", 5, "12345678");
    set(&tier, "e", 6, "12345678");
    assert_eq!(spilled.keys(), ["b", "c"]);
    let taken = Generation::new(4);
    assert!(tier.take(key("a").as_ref(), taken).is_some(), "out of the middle of those that are left");
    for (generation, name) in (7..).zip(["f", "g", "h"]) {
        set(&tier, name, generation, "12345678");
    }
    assert_eq!(spilled.keys(), ["b", "c", "d", "e"]);
    assert!(["f", "g", "h"].iter().all(|name| value(&tier, name).is_some()));
}

#[test]
fn when_all_were_read_new_ones_still_come_in() {
    for policy in [Policy::Adaptive, Policy::Lru, Policy::Fifo] {
        let (tier, spilled) = tier(policy, 3, 8);
        for (generation, name) in (1..).zip(["a", "b", "c"]) {
            set(&tier, name, generation, "12345678");
            assert!(value(&tier, name).is_some());
        }
        for (generation, name) in (4..).zip(["d", "e"]) {
            set(&tier, name, generation, "12345678");
            assert!(value(&tier, name).is_some(), "{policy:?} {name}");
        }
        assert_eq!(spilled.keys().len(), 2, "{policy:?}");
        assert!(spilled.keys() == ["a", "b"] || policy == Policy::Adaptive, "the oldest go");
    }
}

#[tokio::test]
async fn replacing_an_entry_spills_nothing_of_it_and_counts_it_once() {
    for policy in POLICIES {
        let (tier, spilled) = tier(policy, 10, 100);
        set(&tier, "k", 1, vec![1; 10]);
        set(&tier, "k", 2, vec![2; 500]);
        tier.sweep(T0, &Nothing).await.unwrap();
        assert!(spilled.keys().is_empty(), "{policy:?}");
        let usage = tier.usage().await.unwrap();
        assert_eq!(usage.bytes, Some(policy.overhead() + 2 + 500), "{policy:?}");
        assert_eq!(usage.entries, Some(1), "{policy:?}");
    }
}

#[tokio::test]
async fn usage_is_the_sum_of_the_entries_after_any_history() {
    for policy in POLICIES {
        let (tier, _) = tier(policy, 12, 60);
        let mut random = Random(3);
        for generation in 1..=10_000 {
            let name = name(random.next() % 30);
            match random.next() % 8 {
                0 => drop(tier.discard(key(&name).as_ref(), Generation::MAX)),
                1 => drop(value(&tier, &name)),
                2 if generation % 100 == 0 => tier.clear(None, Generation::MAX).await.unwrap(),
                3 if generation % 10 == 0 => drop(tier.sweep(T0, &Nothing).await.unwrap()),
                _ => {
                    set(&tier, &name, generation, vec![7; (random.next() % 120) as usize]);
                }
            }
            let usage = tier.usage().await.unwrap();
            assert!(usage.bytes <= usage.capacity, "{policy:?}: {usage:?} after {generation}");
        }
        tier.sweep(T0, &Nothing).await.unwrap();
        let held: Vec<_> = (0..30).filter_map(|number| tier.peek(key(&name(number)).as_ref())).collect();
        let bytes = held.iter().map(|resting| policy.overhead() + 4 + resting.entry.value.len() as u64);
        let usage = tier.usage().await.unwrap();
        assert_eq!(usage.bytes, Some(bytes.sum()), "{policy:?}");
        assert_eq!(usage.entries, Some(held.len() as u64), "{policy:?}");
    }
}

#[tokio::test]
async fn never_more_is_held_than_there_is_room_for() {
    for policy in POLICIES {
        let (tier, _) = tier(policy, 20, 8);
        for generation in 0..2_000 {
            set(&tier, &name(generation % 200), generation + 1, "12345678");
            assert!(tier.usage().await.unwrap().entries.unwrap() <= 20, "{policy:?}");
        }
    }
}

#[test]
fn what_is_too_large_is_refused_and_the_others_stay() {
    for policy in POLICIES {
        let (tier, spilled) = tier(policy, 4, 8);
        set(&tier, "a", 1, "a");
        let limit = tier.profile().max_entry_bytes.unwrap() - policy.overhead() - 2;
        assert_eq!(set(&tier, "b", 2, vec![7; limit as usize + 1]), Put::TooLarge, "{policy:?}");
        assert_eq!(set(&tier, "a", 3, vec![7; 1 << 20]), Put::TooLarge, "{policy:?}");
        assert!(value(&tier, "a").unwrap() == "a" && spilled.keys().is_empty(), "{policy:?}");
        assert_eq!(
            set(&tier, "b", 4, vec![7; limit as usize]),
            Put::Stored,
            "{policy:?}: the limit itself fits"
        );
        assert!(value(&tier, "b").is_some() || spilled.keys().contains(&"b".into()), "{policy:?}");
    }
}

#[test]
fn a_tier_without_room_takes_nothing_and_lives() {
    for policy in POLICIES {
        for max_size in [0, 1, 10, policy.overhead()] {
            let tier = RamTier::new(RamConfig { max_size, policy });
            assert_eq!(set(&tier, "a", 1, "a"), Put::TooLarge, "{policy:?} {max_size}");
            assert_eq!(value(&tier, "a"), None, "{policy:?} {max_size}");
        }
    }
}

#[tokio::test]
async fn an_entry_counts_for_at_least_its_bytes_and_its_tags() {
    for policy in POLICIES {
        let tier = RamTier::new(RamConfig { max_size: 64 << 20, policy });
        let mut entry = Entry::new(vec![7; 1 << 20], Generation::new(1), T0);
        entry.extras_mut().tags.insert("name".into(), "v".repeat(5_000));
        tier.insert(key("k"), entry, hold());
        assert!(tier.usage().await.unwrap().bytes.unwrap() > (1 << 20) + 5_000, "{policy:?}");
    }
}

#[tokio::test]
async fn an_expired_entry_is_absent_to_a_hit_and_replaced_without_growth() {
    for policy in POLICIES {
        let (tier, spilled) = tier(policy, 1_000, 8);
        for generation in 1..=20_000 {
            let mut entry = Entry::new("expired!", Generation::new(generation), T0);
            entry.deadline = T0;
            assert_eq!(tier.insert(key("k"), entry, hold()), Put::Stored, "{policy:?}");
            assert_eq!(value(&tier, "k"), None, "{policy:?}");
        }
        let usage = tier.usage().await.unwrap();
        assert_eq!((usage.entries, usage.bytes), (Some(1), Some(policy.overhead() + 2 + 8)), "{policy:?}");
        assert_eq!(tier.sweep(T0, &Nothing).await.unwrap().dropped, 1, "{policy:?}");
        assert!(spilled.keys().is_empty(), "{policy:?}: what is dead goes nowhere");
    }
}

#[tokio::test]
async fn what_stayed_its_time_is_spilled_and_what_is_dead_dropped() {
    for policy in POLICIES {
        let (tier, spilled) = tier(policy, 100, 8);
        let stay = Hold { now: T0, stay: Stay::For(Duration::from_secs(10)) };
        let mut dying = Entry::new("dying", Generation::new(1), T0);
        dying.deadline = T0.after(Duration::from_secs(5));
        tier.insert(key("dying"), dying, stay);
        tier.insert(key("idle"), Entry::new("idle", Generation::new(2), T0), stay);
        tier.insert(key("used"), Entry::new("used", Generation::new(3), T0), stay);
        let later = T0.after(Duration::from_secs(6));
        assert!(tier.hit(key("used").as_ref(), look(later)).is_some());

        let swept = tier.sweep(T0.after(Duration::from_secs(11)), &Nothing).await.unwrap();
        assert_eq!((swept.dropped, swept.spilled, swept.complete), (1, 1, true), "{policy:?}");
        assert_eq!(spilled.keys(), ["idle"], "{policy:?}");
        assert_eq!(spilled.0.lock().unwrap()[0].1.value, "idle", "{policy:?}: with its value");
        assert_eq!(spilled.0.lock().unwrap()[0].2, Left { cause: Cause::StayOver, uses: 0 });
        assert!(tier.peek(key("dying").as_ref()).is_none(), "{policy:?}");
        assert!(tier.peek(key("used").as_ref()).is_some_and(|resting| resting.uses == 0), "{policy:?}");
        assert_eq!(*spilled.1.lock().unwrap(), [("used".to_string(), 1)], "{policy:?}");
    }
}

#[tokio::test]
async fn a_thousand_uses_are_a_thousand_uses() {
    for policy in POLICIES {
        let (tier, spilled) = tier(policy, 10, 8);
        set(&tier, "k", 1, "value");
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| (0..250).for_each(|_| assert!(value(&tier, "k").is_some())));
            }
        });
        tier.sweep(T0, &Nothing).await.unwrap();
        tier.sweep(T0, &Nothing).await.unwrap();
        assert_eq!(*spilled.1.lock().unwrap(), [("k".to_string(), 1_000)], "{policy:?}");
    }
}

#[tokio::test]
async fn draining_hands_over_everything() {
    for policy in POLICIES {
        let (tier, spilled) = tier(policy, 100, 8);
        for generation in 1..=50 {
            set(&tier, &name(generation), generation, "12345678");
        }
        tier.drain();
        let mut keys = spilled.keys();
        keys.sort();
        assert_eq!(keys, (1..=50).map(name).collect::<Vec<_>>(), "{policy:?}");
        assert_eq!(tier.usage().await.unwrap().entries, Some(0), "{policy:?}");
        assert_eq!(set(&tier, "again", 51, "value"), Put::Stored, "{policy:?}: it goes on");
    }
}

#[tokio::test]
async fn a_smaller_tier_spills_what_no_longer_fits_and_a_larger_one_takes_more() {
    for policy in POLICIES {
        let (tier, spilled) = tier(policy, 40, 8);
        let each = policy.overhead() + 4 + 8;
        for number in 0..40 {
            set(&tier, &name(number), number + 1, "12345678");
        }
        tier.resize(20 * each);
        let usage = tier.usage().await.unwrap();
        assert!(usage.bytes <= usage.capacity && usage.capacity == Some(20 * each), "{policy:?} {usage:?}");
        for number in 0..40 {
            let held = value(&tier, &name(number)).is_some();
            assert!(held || spilled.keys().contains(&name(number)), "{policy:?} {number}");
        }
        tier.resize(80 * each);
        for number in 0..70 {
            set(&tier, &name(number), number + 100, "12345678");
        }
        assert_eq!(tier.usage().await.unwrap().entries, Some(70), "{policy:?}");
    }
}

#[test]
fn a_spill_that_panics_takes_nothing_else_along() {
    #[derive(Debug)]
    struct Panics;
    impl Spill for Panics {
        fn spill(&self, _: Key, _: Entry, _: Left) {
            panic!("a spill that panics");
        }
        fn used(&self, _: KeyRef<'_>, _: u32) {}
    }
    for policy in POLICIES {
        let tier = RamTier::new(RamConfig { max_size: 4 * (policy.overhead() + 10), policy });
        tier.attach(Arc::new(Panics));
        for generation in 1..=50 {
            assert_eq!(set(&tier, &name(generation % 25), generation, "12345678"), Put::Stored, "{policy:?}");
        }
        let held = (0..25).filter(|&number| value(&tier, &name(number)).is_some()).count();
        assert!((1..=4).contains(&held), "{policy:?}");
    }
}

#[test]
fn popular_keys_stay_under_a_zipf_load() {
    let sums: Vec<f64> = (1..=10_000)
        .scan(0.0, |sum, rank| {
            *sum += 1.0 / f64::from(rank);
            Some(*sum)
        })
        .collect();
    for (policy, least) in [(Policy::Adaptive, 0.735), (Policy::Lru, 0.665), (Policy::TinyLfu, 0.67)] {
        let mut random = Random(1);
        let ratio = hit_ratio(policy, 1_000, 300_000, || {
            let at = random.fraction() * sums[9_999];
            sums.partition_point(|&sum| sum < at) as u64
        });
        assert!(ratio >= least, "{policy:?} {ratio:.4}");
    }
}

#[test]
fn popular_keys_survive_a_scan() {
    for (policy, least) in [(Policy::Adaptive, 0.695), (Policy::Lru, 0.63), (Policy::TinyLfu, 0.695)] {
        let mut random = Random(2);
        let mut scan = 1_000;
        let ratio = hit_ratio(policy, 200, 300_000, || {
            if random.fraction() < 0.7 {
                return random.next() % 100;
            }
            scan += 1;
            scan
        });
        assert!(ratio >= least, "{policy:?} {ratio:.4}");
    }
}

/// The share of hits when every miss is followed by a put, at a capacity of `entries`.
fn hit_ratio(policy: Policy, entries: u64, requests: usize, mut next: impl FnMut() -> u64) -> f64 {
    let tier = RamTier::new(RamConfig { max_size: entries * (policy.overhead() + 64 + 9), policy });
    let mut hits = 0;
    for generation in 0..requests as u64 {
        let key = Key::new("", &next().to_be_bytes()).unwrap();
        if tier.hit(key.as_ref(), look(T0)).is_some() {
            hits += 1;
        } else {
            tier.insert(key, Entry::new(vec![0; 64], Generation::new(generation + 1), T0), hold());
        }
    }
    f64::from(hits) / requests as f64
}

/// Names of three digits, so that all weigh the same.
fn name(number: u64) -> String {
    format!("{number:03}")
}

/// Pseudo-random numbers, the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
