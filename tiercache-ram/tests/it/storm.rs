//! Many threads on few keys and a tiny tier: what was put is in the tier or was handed over, at every moment.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tiercache_core::tier::{Dead, Hold, Left, Look, Put, Resident, Spill, Tier};
use tiercache_core::{Entry, Generation, Key, KeyRef, Stay, Timestamp};
use tiercache_ram::{Policy, RamConfig, RamTier};

const KEYS: usize = 24;
const WRITERS: usize = 2;
const WRITES: u64 = 20_000;
const T0: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// The newest generation handed over of each key.
#[derive(Debug, Default)]
struct Below(Mutex<HashMap<Key, Generation>>);

impl Spill for Below {
    fn spill(&self, key: Key, entry: Entry, _: Left) {
        assert_eq!(entry.value, value(&key, entry.generation), "handed over as it was put");
        let mut below = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = below.entry(key).or_default();
        *newest = entry.generation.max(*newest);
    }

    fn used(&self, _: KeyRef<'_>, _: u32) {}
}

struct Nothing;

impl Dead for Nothing {
    fn is_dead(&self, _: KeyRef<'_>, _: &Entry) -> bool {
        false
    }
}

struct Storm {
    tier: RamTier,
    below: Arc<Below>,
    keys: Vec<Key>,
    /// The newest generation of each key whose put has returned.
    put: Vec<AtomicU64>,
    over: AtomicBool,
}

#[test]
fn nothing_is_lost_or_goes_back_in_a_storm_on_adaptive() {
    storm(Policy::Adaptive);
}

#[test]
fn nothing_is_lost_or_goes_back_in_a_storm_on_lru() {
    storm(Policy::Lru);
}

#[test]
fn nothing_is_lost_or_goes_back_in_a_storm_on_tinylfu() {
    storm(Policy::TinyLfu);
}

#[test]
fn nothing_is_lost_or_goes_back_in_a_storm_on_fifo() {
    storm(Policy::Fifo);
}

fn storm(policy: Policy) {
    let room = 6 * (policy.overhead() + 40);
    let storm = Storm {
        tier: RamTier::new(RamConfig { max_size: room, policy }),
        below: Arc::default(),
        keys: (0..KEYS).map(|number| Key::new("storm", &[number as u8]).expect("a key")).collect(),
        put: (0..KEYS).map(|_| AtomicU64::new(0)).collect(),
        over: AtomicBool::new(false),
    };
    storm.tier.attach(storm.below.clone());
    thread::scope(|threads| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                threads.spawn({
                    let storm = &storm;
                    move || storm.write(writer)
                })
            })
            .collect();
        for _ in 0..2 {
            threads.spawn(|| storm.read());
        }
        threads.spawn(|| storm.disturb(room));
        let ended: Vec<_> = writers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        storm.over.store(true, SeqCst);
        ended.into_iter().for_each(|ended| ended.expect("no writer panics"));
    });
    (0..KEYS).for_each(|key| {
        storm.newest(key);
    });
}

impl Storm {
    /// Writes its own share of the keys: writes of one key are ordered, as the tier may expect.
    fn write(&self, writer: usize) {
        for number in 1..=WRITES {
            let at = writer + WRITERS * (mix(number) as usize % (KEYS / WRITERS));
            let (key, generation) = (&self.keys[at], Generation::new(number));
            let entry = Entry::new(value(key, generation), generation, T0);
            let hold = Hold { now: T0, stay: Stay::For(Duration::from_secs(number % 2)) };
            assert_eq!(self.tier.insert(key.clone(), entry, hold), Put::Stored);
            self.put[at].store(number, SeqCst);
            assert_eq!(self.newest(at), generation, "what was just put is the newest");
        }
    }

    fn read(&self) {
        let mut seen = [Generation::ZERO; KEYS];
        for number in 0.. {
            if self.over.load(SeqCst) {
                break;
            }
            let at = mix(number) as usize % KEYS;
            let newest = self.newest(at);
            assert!(newest >= seen[at], "{:?} went back from {:?} to {newest:?}", self.keys[at], seen[at]);
            seen[at] = newest;
        }
    }

    /// The newest generation in the tier or below, at least the last one whose put had returned.
    fn newest(&self, at: usize) -> Generation {
        let key = &self.keys[at];
        let least = Generation::new(self.put[at].load(SeqCst));
        let look = Look { now: T0, slack: 0, valid_from: Generation::ZERO };
        if let Some(hit) = self.tier.hit(key.as_ref(), look) {
            assert!(hit.starts_with(key.bytes()), "another key's value");
        }
        let above = self.tier.peek(key.as_ref()).map(|resting| {
            assert_eq!(resting.entry.value, value(key, resting.entry.generation), "a torn entry");
            resting.entry.generation
        });
        let below = self.below.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied();
        let newest = above.max(below).unwrap_or_default();
        assert!(newest >= least, "{key:?} of {least:?} is nowhere, the newest is {newest:?}");
        newest
    }

    /// Sweeps, drains and resizes.
    fn disturb(&self, room: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        for number in 0.. {
            if self.over.load(SeqCst) {
                break;
            }
            match number {
                100 | 300 | 500 => self.tier.resize(room / 2),
                200 | 400 | 600 => self.tier.resize(room),
                _ if number % 16 == 7 => self.tier.drain(),
                _ => drop(runtime.block_on(self.tier.sweep(T0, &Nothing)).expect("it is open")),
            }
            thread::yield_now();
        }
    }
}

fn value(key: &Key, generation: Generation) -> Vec<u8> {
    [key.bytes(), &generation.get().to_be_bytes()].concat()
}

fn mix(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40
}
