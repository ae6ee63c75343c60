//! Nanoseconds of a hit and a put beside the bare engines, and bytes of memory an entry takes over key and value.
//!
//! `cargo run --release -p tiercache-ram --example measure [memory POLICY SIZE]`

use std::hash::{BuildHasher, Hash, Hasher};
use std::hint::black_box;
use std::time::Instant;

use bytes::Bytes;
use quick_cache::{Equivalent, Lifecycle, OptionsBuilder, Weighter};
use tiercache_core::tier::{Dead, Hold, Look, Resident, Tier};
use tiercache_core::{Entry, Generation, Key, KeyRef, Stay, Timestamp};
use tiercache_ram::{Policy, RamConfig, RamTier};

const CAPACITY: u64 = 1 << 30;
const KEYS: usize = 1_000;
const ROUNDS: usize = 41;
const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["memory", policy, size] => memory(policy, size.parse().expect("a number of bytes")),
        _ => speed(),
    }
}

type Case<'a> = (&'static str, Box<dyn FnMut() + 'a>);

fn speed() {
    let keys: Vec<Key> = (0..KEYS).map(key).collect();
    let value = Bytes::from(vec![7u8; 256]);
    let quick = raw_quick();
    let moka = raw_moka();
    let tiers = [Policy::Adaptive, Policy::Lru, Policy::TinyLfu].map(tier);
    for key in &keys {
        // Each with a count of its own: two threads on one count are what one measures otherwise.
        let fresh = || Bytes::from(vec![7u8; 256]);
        quick.insert(key.clone(), fresh());
        moka.insert(key.clone(), fresh());
        tiers.iter().for_each(|tier| put(tier, key, &fresh(), 1));
    }
    let look = Look { now: NOW, slack: 1_000, valid_from: Generation::ZERO };
    // As the manager has them: behind a pointer.
    let residents: Vec<&dyn Resident> = black_box(tiers.iter().map(|tier| tier as &dyn Resident).collect());
    for (name, ratio) in [
        ("raw quick_cache", scaling(&keys, |key| drop(black_box(quick.get(&Borrowed(key.as_ref())))))),
        ("adaptive", scaling(&keys, |key| drop(black_box(residents[0].hit(key.as_ref(), look))))),
    ] {
        println!("two threads hit {ratio:.2} times as fast as one: {name}");
    }
    let mut generation = 1;
    let mut cases: Vec<Case<'_>> = vec![
        ("hit  raw quick_cache", over(&keys, |key| drop(black_box(quick.get(&Borrowed(key.as_ref())))))),
        ("hit  adaptive", over(&keys, |key| drop(black_box(residents[0].hit(key.as_ref(), look))))),
        ("hit  raw moka", over(&keys, |key| drop(black_box(moka.get(key))))),
        ("hit  lru", over(&keys, |key| drop(black_box(residents[1].hit(key.as_ref(), look))))),
        ("hit  tinylfu", over(&keys, |key| drop(black_box(residents[2].hit(key.as_ref(), look))))),
        ("miss adaptive (peek)", over(&keys, |_| drop(black_box(tiers[0].peek(missing()))))),
        ("miss lru (peek)", over(&keys, |_| drop(black_box(tiers[1].peek(missing()))))),
        ("put  raw quick_cache", over(&keys, |key| quick.insert(key.clone(), value.clone()))),
        ("put  adaptive", {
            let (tier, keys, value, generation) = (&tiers[0], &keys, &value, &mut generation);
            Box::new(move || {
                *generation += 1;
                keys.iter().for_each(|key| put(tier, key, value, *generation));
            })
        }),
        ("put  raw moka", over(&keys, |key| moka.insert(key.clone(), value.clone()))),
    ];
    let mut times = vec![Vec::new(); cases.len()];
    for _ in 0..ROUNDS {
        for ((_, case), times) in cases.iter_mut().zip(&mut times) {
            let started = Instant::now();
            (0..20).for_each(|_| case());
            times.push(started.elapsed().as_nanos() as f64 / (20 * KEYS) as f64);
        }
    }
    for ((name, _), times) in cases.iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        println!("{name:24} {:7.1} ns (best {:.1})", times[ROUNDS / 2], times[0]);
    }
}

fn over<'a>(keys: &'a [Key], mut each: impl FnMut(&Key) + 'a) -> Box<dyn FnMut() + 'a> {
    Box::new(move || keys.iter().for_each(&mut each))
}

/// How much faster two threads are than one, each going through the keys in its own order.
fn scaling(keys: &[Key], each: impl Fn(&Key) + Sync) -> f64 {
    let run = |threads: usize| {
        let started = Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let each = &each;
                scope.spawn(move || {
                    let mut at = thread * keys.len() / 2;
                    for _ in 0..1_000_000 {
                        at = (at + 389) % keys.len();
                        each(&keys[at]);
                    }
                });
            }
        });
        started.elapsed().as_secs_f64() / threads as f64
    };
    let mut ratios: Vec<f64> = (0..9).map(|_| run(1) / run(2)).collect();
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

/// Fills the tier to a million entries and prints what the process grew by.
fn memory(policy: &str, size: usize) {
    const ENTRIES: usize = 1_000_000;
    let policy = match policy {
        "adaptive" => Policy::Adaptive,
        "lru" => Policy::Lru,
        _ => Policy::TinyLfu,
    };
    let before = resident_bytes();
    let weight = policy.overhead() + 25 + size as u64;
    let tier = RamTier::new(RamConfig { max_size: weight * ENTRIES as u64, policy });
    for number in 0..2 * ENTRIES {
        put(&tier, &key(number), &Bytes::from(vec![7u8; size]), 1);
    }
    let held = tier.peek(key(2 * ENTRIES - 1).as_ref()).is_some();
    let grown = resident_bytes() - before;
    let entries = (0..2 * ENTRIES).filter(|&number| tier.peek(key(number).as_ref()).is_some()).count();
    let started = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let swept = runtime.block_on(tier.sweep(NOW, &NothingIsDead)).expect("it is open");
    println!(
        "a sweep takes {:.1} ns an entry: {swept:?}",
        started.elapsed().as_nanos() as f64 / entries as f64
    );
    println!(
        "{entries} entries, newest held: {held}, {:.1} bytes an entry over key and value, {:.3} of the limit",
        grown as f64 / entries as f64 - (24 + size) as f64,
        grown as f64 / (weight * ENTRIES as u64) as f64,
    );
}

struct NothingIsDead;

impl Dead for NothingIsDead {
    fn is_dead(&self, _: KeyRef<'_>, _: &Entry) -> bool {
        false
    }
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

fn key(number: usize) -> Key {
    Key::new("", format!("key:{number:020}").as_bytes()).expect("a valid key")
}

fn missing() -> KeyRef<'static> {
    KeyRef::new("", b"key:that-is-not-there-ever").expect("a valid key")
}

fn tier(policy: Policy) -> RamTier {
    RamTier::new(RamConfig { max_size: CAPACITY, policy })
}

fn put(tier: &RamTier, key: &Key, value: &Bytes, generation: u64) {
    let entry = Entry::new(value.clone(), Generation::new(generation), NOW);
    black_box(tier.insert(key.clone(), entry, Hold { now: NOW, stay: Stay::from_millis(14_400_000) }));
}

type RawQuick = quick_cache::sync::Cache<Key, Bytes, Weigh, Carry, Hook>;

fn raw_quick() -> RawQuick {
    let options = OptionsBuilder::new()
        .estimated_items_capacity((CAPACITY / 1024) as usize)
        .weight_capacity(CAPACITY)
        .shards(32)
        .build()
        .expect("both capacities are given");
    quick_cache::sync::Cache::with_options(options, Weigh, Carry(0), Hook)
}

fn raw_moka() -> moka::sync::Cache<Key, Bytes, Carry> {
    moka::sync::Cache::builder()
        .max_capacity(CAPACITY)
        .weigher(|key: &Key, value: &Bytes| (key.encoded().len() + value.len()) as u32)
        .eviction_listener(|_, value, _| drop(black_box(value)))
        .build_with_hasher(Carry(0))
}

#[derive(Clone)]
struct Weigh;

impl Weighter<Key, Bytes> for Weigh {
    fn weight(&self, key: &Key, value: &Bytes) -> u64 {
        (key.encoded().len() + value.len()) as u64
    }
}

#[derive(Clone)]
struct Hook;

impl Lifecycle<Key, Bytes> for Hook {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), key: Key, value: Bytes) {
        drop(black_box((key, value)));
    }
}

struct Borrowed<'a>(KeyRef<'a>);

impl Hash for Borrowed<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Equivalent<Key> for Borrowed<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.0.is(key)
    }
}

#[derive(Clone)]
struct Carry(u64);

impl BuildHasher for Carry {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self(0)
    }
}

impl Hasher for Carry {
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, _: &[u8]) {}

    fn finish(&self) -> u64 {
        self.0
    }
}
