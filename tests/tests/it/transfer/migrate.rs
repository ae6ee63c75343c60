use std::sync::Arc;
use std::time::Duration;

use tiercache::transfer::{Migrate, Report, TransferError};
use tiercache::{Config, Registry};
use tiercache_core::testing::{Fault, FaultTier, ManualClock, MemoryTier, Op, When};
use tiercache_core::{CacheManager, Write};
use tiercache_tests::rig::{builder, get};

use super::{cold_cache, traveller};

fn adds_up(report: &Report) {
    assert_eq!(report.read, report.stored + report.skipped() + report.failed, "{report:?}");
}

async fn filled(clock: &Arc<ManualClock>) -> CacheManager {
    let from = cold_cache(clock).await;
    for number in 0..100u32 {
        let set = from.set(format!("k{number}"), format!("v{number}")).tag("type", "page");
        set.ttl(Duration::from_secs(60 + u64::from(number))).await.unwrap();
    }
    from.namespace("tenant").unwrap().set("k", "v").await.unwrap();
    from
}

#[tokio::test]
async fn a_migration_keeps_deadlines_and_tags_and_its_counts_add_up() {
    let clock = ManualClock::new();
    let (from, to) = (filled(&clock).await, cold_cache(&clock).await);
    to.set("k1", "ours").await.unwrap();
    let mut seen = 0;
    let report = Migrate::new(&from, &to).progress(|report| seen = report.read).run().await.unwrap();
    adds_up(&report);
    assert_eq!((report.read, report.stored, report.present, seen), (101, 100, 1, 101));
    assert_eq!(get(&to, "k1").await.unwrap(), "ours");
    for key in [&b"k0"[..], b"k50", b"k99"] {
        assert_eq!(traveller(&from, key).await, traveller(&to, key).await);
    }
    assert_eq!(get(&to.namespace("tenant").unwrap(), "k").await.unwrap(), "v");
    let again = Migrate::new(&from, &to).run().await.unwrap();
    assert_eq!((again.read, again.present, again.stored), (101, 101, 0));
    let replaced = Migrate::new(&from, &to).replace(true).run().await.unwrap();
    assert_eq!((replaced.read, replaced.stored), (101, 101));
    assert_eq!(get(&to, "k1").await.unwrap(), "v1");
}

/// At whatever point the process dies, the next run completes it.
#[tokio::test]
async fn a_migration_that_was_killed_is_completed_by_the_next() {
    let clock = ManualClock::new();
    let from = filled(&clock).await;
    for polls in (1..60).step_by(3) {
        let store = MemoryTier::persistent();
        let through = async |store| builder(&clock).write(Write::Through).dry(store).build().await.unwrap();
        let to = through(store.clone()).await;
        let migration = Migrate::new(&from, &to).run();
        let whole = tiercache_tests::doubles::poll_at_most(migration, polls).await.is_some();
        drop(to);
        let next = through(store.reopen()).await;
        let report = Migrate::new(&from, &next).run().await.unwrap();
        adds_up(&report);
        assert_eq!((report.read, report.failed), (101, 0), "{polls}: {report:?}");
        assert!(!whole || report.stored == 0);
        for number in 0..100 {
            assert_eq!(get(&next, &format!("k{number}")).await.unwrap(), format!("v{number}"), "{polls}");
        }
    }
}

#[tokio::test]
async fn what_one_cache_does_not_give_or_the_other_not_take_is_counted() {
    let clock = ManualClock::new();
    let from = filled(&clock).await;
    let faulty = Arc::new(FaultTier::new(MemoryTier::persistent()));
    let to = builder(&clock).dry(faulty.clone()).build().await.unwrap();
    faulty.inject(Op::Put, When::Nth(3), Fault::Full);
    faulty.inject(Op::Put, When::Nth(5), Fault::Full);
    let report = Migrate::new(&from, &to).run().await.unwrap();
    adds_up(&report);
    assert_eq!((report.read, report.stored, report.failed), (101, 99, 2), "{report:?}");
    let again = Migrate::new(&from, &to).run().await.unwrap();
    assert_eq!((again.stored, again.present, again.failed), (2, 99, 0), "{again:?}");
}

#[test]
fn one_store_is_not_carried_into_itself() {
    let parse = |text: &str| Config::parse(text, &Registry::builtin()).unwrap();
    let one = "hot_cache: { backend: ram }\ncold_cache: none_yet\n".replace("cold_cache: none_yet\n", "");
    let disk = |path: &str, size: &str| {
        parse(&format!(
            "{one}cold_cache: {{ backend: none }}\ndry_cache: {{ backend: local, path: {path}, max_size: {size} }}\n"
        ))
    };
    let same = Migrate::check(&disk("/tmp/x", "1GiB"), &disk("/tmp/./x", "2GiB"));
    assert!(matches!(same, Err(TransferError::SamePlace(_))), "{same:?}");
    Migrate::check(&disk("/tmp/x", "1GiB"), &disk("/tmp/y", "1GiB")).unwrap();
    let ram = || {
        parse("hot_cache: { backend: ram }\ncold_cache: { backend: none }\ndry_cache: { backend: none }\n")
    };
    Migrate::check(&ram(), &ram()).unwrap();
}
