//! What a RAM tier does alone, for every policy.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tiercache_core::tier::{Cause, Dead, Hold, Left, Look, Put, Resident, Spill, Tier};
use tiercache_core::{Entry, Generation, Key, KeyRef, Stay, Timestamp};
use tiercache_ram::{Policy, RamConfig, RamTier};

const POLICIES: [Policy; 3] = [Policy::Adaptive, Policy::Lru, Policy::TinyLfu];
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

/// A tier for `entries` entries with a key of one byte and a value of `size`.
fn tier(policy: Policy, entries: u64, size: u64) -> (RamTier, Arc<Spilled>) {
    let max_size = entries * (policy.overhead() + 2 + size);
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
            assert_eq!(set(&tier, &generation.to_string(), generation, "12345678"), Put::Stored);
        }
        let spilled = spilled.keys();
        for generation in 1..=100 {
            let name = generation.to_string();
            assert!(value(&tier, &name).is_some() != spilled.contains(&name), "{policy:?} {name}");
        }
        assert!(spilled.len() >= 92, "{policy:?}");
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
        assert_eq!(spilled.0.lock().unwrap()[0].2, Left { cause: Cause::StayOver, uses: 0 });
        assert!(tier.peek(key("dying").as_ref()).is_none(), "{policy:?}");
        assert!(tier.peek(key("used").as_ref()).is_some_and(|resting| resting.uses == 0), "{policy:?}");
        assert_eq!(*spilled.1.lock().unwrap(), [("used".to_string(), 1)], "{policy:?}");
    }
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

#[test]
fn popular_keys_stay_under_a_zipf_load() {
    let sums: Vec<f64> = (1..=10_000)
        .scan(0.0, |sum, rank| {
            *sum += 1.0 / f64::from(rank);
            Some(*sum)
        })
        .collect();
    for policy in POLICIES {
        let mut random = Random(1);
        let ratio = hit_ratio(policy, 1_000, 300_000, || {
            let at = random.fraction() * sums[9_999];
            sums.partition_point(|&sum| sum < at) as u64
        });
        println!("zipf {policy:?} {ratio:.4}");
    }
}

#[test]
fn popular_keys_survive_a_scan() {
    for policy in POLICIES {
        let mut random = Random(2);
        let mut scan = 1_000;
        let ratio = hit_ratio(policy, 200, 300_000, || {
            if random.fraction() < 0.7 {
                return random.next() % 100;
            }
            scan += 1;
            scan
        });
        println!("scan {policy:?} {ratio:.4}");
    }
}
