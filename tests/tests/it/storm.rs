//! Real threads on few keys and tiny levels: reads never go back, removals are never undone, nothing is lost.
//!
//! `TIERCACHE_SEED` is where the clients' numbers begin, `TIERCACHE_STORMS` how often each storm is repeated.

use std::sync::Arc;

use tiercache_core::{Level, Write};
use tiercache_ram::Policy;
use tiercache_redis::{RedisConfig, RedisTier};
use tiercache_services::Redis;
use tiercache_tests::counting::{Counting, over};
use tiercache_tests::storm::{Act, Dry, Mix, READS, Storm};
use tiercache_tests::sums::Tally;
use tiercache_tests::transfers::Transfers;

const POLICIES: [Policy; 4] = [Policy::Adaptive, Policy::Lru, Policy::TinyLfu, Policy::Fifo];

const CHANGES: Mix = &[
    (Act::Set, 10),
    (Act::Delete, 4),
    (Act::Pop, 2),
    (Act::SetShort, 1),
    (Act::Add, 2),
    (Act::Touch, 2),
    (Act::Get, 6),
    (Act::Entry, 2),
];

const CONDITIONS: Mix = &[
    (Act::CompareAndSet, 10),
    (Act::Replace, 3),
    (Act::Add, 4),
    (Act::GetAndTouch, 2),
    (Act::Set, 2),
    (Act::Delete, 3),
    (Act::Pop, 1),
    (Act::Get, 4),
];

const INVALIDATIONS: Mix =
    &[(Act::Set, 30), (Act::InvalidateTag, 3), (Act::Clear, 1), (Act::Delete, 3), (Act::Get, 12)];

const UPHEAVAL: Mix = &[
    (Act::Set, 20),
    (Act::Delete, 4),
    (Act::Touch, 2),
    (Act::Get, 12),
    (Act::Flush, 1),
    (Act::Prune, 1),
    (Act::InvalidateTag, 1),
];

const LOADS: Mix = &[
    (Act::Load, 16),
    (Act::LoadMany, 4),
    (Act::Set, 6),
    (Act::SetShort, 2),
    (Act::SetMany, 2),
    (Act::Delete, 4),
    (Act::DeleteMany, 1),
    (Act::InvalidateTag, 1),
    (Act::Clear, 1),
];

const TRANSACTIONS: Mix = &[
    (Act::Transact, 8),
    (Act::Set, 6),
    (Act::SetShort, 1),
    (Act::SetMany, 1),
    (Act::CompareAndSet, 2),
    (Act::Touch, 2),
    (Act::Delete, 3),
    (Act::Pop, 1),
    (Act::Load, 2),
    (Act::InvalidateTag, 1),
    (Act::Get, 20),
];

const DROPPED: Mix = &[(Act::Drop, 8), (Act::Set, 6), (Act::Delete, 3), (Act::Pop, 1), (Act::Get, 6)];

fn storm(policy: Policy) -> Storm {
    Storm {
        seed: number("TIERCACHE_SEED").unwrap_or(1),
        policy,
        dry: Dry::Memory,
        write: Write::Back,
        keys: 16,
        operations: 16_000,
        clients: vec![CHANGES, CHANGES, READS, CHANGES, READS, READS],
        filled: false,
    }
}

fn rage(name: &str, storm: Storm) {
    for repeat in 0..number("TIERCACHE_STORMS").unwrap_or(1) {
        let mut storm = storm.clone();
        storm.seed += repeat;
        let began = std::time::Instant::now();
        let weather = storm.rage().unwrap_or_else(|broken| panic!("{name}: {broken}"));
        println!(
            "{name}, {:?}, {:?}, {:?}: {weather:?} in {:?}",
            storm.policy,
            storm.dry,
            storm.write,
            began.elapsed()
        );
        let tally = weather.tally;
        assert!(tally.hits * 20 > tally.reads, "hardly anything is ever found");
        assert!(weather.sunk > 100 && weather.promoted > 100, "hardly anything moves");
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn writes_and_removals_over_memory() {
    for policy in POLICIES {
        rage("changes", storm(policy));
    }
}

#[test]
fn writes_and_removals_over_the_disk() {
    for (policy, write) in POLICIES.into_iter().zip([Write::Back, Write::Behind, Write::Through]) {
        rage("changes", Storm { dry: Dry::Disk, write, ..storm(policy) });
    }
}

#[test]
fn writes_and_removals_over_a_disk_that_reclaims() {
    for policy in POLICIES {
        rage("changes", Storm { dry: Dry::CrampedDisk, keys: 32, ..storm(policy) });
    }
}

#[test]
fn nothing_is_ever_missing_while_everything_moves() {
    for policy in POLICIES {
        for dry in [Dry::Memory, Dry::Disk] {
            let clients = vec![READS; 6];
            rage(
                "reads",
                Storm { dry, keys: 24, operations: 12_000, clients, filled: true, ..storm(policy) },
            );
        }
    }
}

#[test]
fn writes_on_conditions() {
    for (policy, write) in POLICIES.into_iter().zip([Write::Back, Write::Behind, Write::Through]) {
        let clients = vec![CONDITIONS, CONDITIONS, CONDITIONS, CHANGES, READS, READS];
        rage("conditions", Storm { dry: Dry::Disk, write, clients, operations: 8_000, ..storm(policy) });
    }
}

#[test]
fn loads_and_batches_while_keys_are_changed() {
    for (policy, write) in POLICIES.into_iter().zip([Write::Back, Write::Behind, Write::Through]) {
        let clients = vec![LOADS, LOADS, LOADS, CHANGES, READS, LOADS];
        rage("loads", Storm { dry: Dry::Disk, write, clients, operations: 8_000, ..storm(policy) });
    }
}

#[test]
fn invalidations_of_tags_and_clears() {
    for (policy, dry) in POLICIES.into_iter().zip([Dry::Disk, Dry::Memory, Dry::CrampedDisk]) {
        let clients = vec![INVALIDATIONS, INVALIDATIONS, READS, INVALIDATIONS, READS, READS];
        rage("invalidations", Storm { dry, clients, operations: 10_000, ..storm(policy) });
    }
}

#[test]
fn flushes_and_prunes_in_between() {
    for (policy, dry) in POLICIES.into_iter().zip([Dry::Memory, Dry::Disk, Dry::CrampedDisk]) {
        let clients = vec![UPHEAVAL, UPHEAVAL, READS, UPHEAVAL, READS, READS];
        rage("upheaval", Storm { dry, clients, operations: 10_000, ..storm(policy) });
    }
}

#[test]
fn futures_that_are_dropped() {
    for (policy, dry) in POLICIES.into_iter().zip([Dry::Disk, Dry::CrampedDisk, Dry::Memory]) {
        let clients = vec![DROPPED, DROPPED, READS, CHANGES, READS, READS];
        rage("dropped", Storm { dry, clients, operations: 10_000, ..storm(policy) });
    }
}

#[test]
fn transactions_among_everything_else() {
    for (policy, write) in POLICIES.into_iter().zip([Write::Back, Write::Behind, Write::Through]) {
        let clients = vec![TRANSACTIONS, TRANSACTIONS, READS, TRANSACTIONS, CHANGES, READS];
        rage("transactions", Storm { dry: Dry::Sqlite, write, clients, operations: 2_500, ..storm(policy) });
    }
}

fn transfers(storm: Transfers) {
    for repeat in 0..number("TIERCACHE_STORMS").unwrap_or(1) {
        let storm = Transfers { seed: storm.seed + repeat, ..storm.clone() };
        let began = std::time::Instant::now();
        let tally = storm.rage().unwrap_or_else(|broken| panic!("transfers: {broken}"));
        println!("transfers, {} in {:?}: {tally:?}", storm.processes, began.elapsed());
        assert!(tally.committed > 100 && tally.unheard > 10 && tally.others > 50, "hardly anything is done");
        assert!(tally.hits * 2 > tally.gets && tally.gets > 500, "hardly anything is found");
    }
}

#[test]
fn transfers_between_accounts_in_one_process() {
    for (policy, shards) in POLICIES.into_iter().zip([5, 2, 1]) {
        let seed = number("TIERCACHE_SEED").unwrap_or(1);
        transfers(Transfers { seed, policy, shards, processes: 1, clients: 6, operations: 700 });
    }
}

#[test]
fn transfers_between_accounts_in_several_processes() {
    for (policy, shards) in POLICIES.into_iter().zip([4, 3, 1]) {
        let seed = number("TIERCACHE_SEED").unwrap_or(1);
        transfers(Transfers { seed, policy, shards, processes: 3, clients: 6, operations: 500 });
    }
}

fn count(home: &str, storm: Counting, rage: impl Fn(&Counting) -> Result<Tally, String>) {
    for repeat in 0..number("TIERCACHE_STORMS").unwrap_or(1) {
        let storm = Counting { seed: storm.seed + repeat, ..storm.clone() };
        let began = std::time::Instant::now();
        let tally = rage(&storm).unwrap_or_else(|broken| panic!("counters in {home}: {broken}"));
        println!("counters in {home}: {tally:?} in {:?}", began.elapsed());
        assert!(tally.additions > 1_000 && tally.unheard > 50, "hardly anything is added");
        assert!(tally.reads > 500 && tally.lives > 100 && tally.mortal > 10, "hardly any counter begins");
    }
}

fn counting(caches: u16, operations: u32) -> Counting {
    let seed = number("TIERCACHE_SEED").unwrap_or(1);
    Counting { seed, counters: 8, lasting: 4, caches, clients: 6, operations, clears: true, survive: true }
}

#[test]
fn counters_in_ram_while_values_come_and_go() {
    let storm = Counting { survive: false, ..counting(1, 10_000) };
    count("RAM", storm, Counting::in_ram);
}

#[test]
fn counters_in_sqlite_in_several_processes() {
    count("sqlite", counting(3, 1_500), Counting::in_sqlite);
}

fn in_redis(storm: Counting) {
    let Some(server) = Redis::start() else { return };
    let open = async |url: String| {
        let config = RedisConfig { url: Some(url.as_str().into()), ..RedisConfig::default() };
        over(Arc::new(RedisTier::open(config, Level::Dry).await?), Level::Dry).await
    };
    count("Redis", storm, |storm| {
        server.wipe();
        storm.rage(|| open(server.url()))
    });
}

#[test]
fn counters_in_redis_in_several_processes() {
    // What another process has cleared is read up to a second longer.
    in_redis(Counting { clears: false, ..counting(3, 1_500) });
}

#[test]
fn counters_in_redis_while_some_are_cleared() {
    in_redis(counting(1, 1_500));
}
