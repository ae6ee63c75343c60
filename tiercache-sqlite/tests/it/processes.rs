//! Several processes on one directory: this test binary starts itself.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::common::*;
use tiercache_core::tier::{Always, Counting, FenceLog, Put, Removal, Scope};
use tiercache_core::{Error, Generation, Key, SystemClock, Tier, Timestamp};
use tiercache_sqlite::Transaction;

const ROLE: &str = "TIERCACHE_SQLITE_ROLE";
const PLACE: &str = "TIERCACHE_SQLITE_PLACE";

fn start(role: &str, place: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::a_process_of_its_own", "--nocapture"])
        .env(ROLE, role)
        .env(PLACE, place)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn all_end_well(children: Vec<Child>) {
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
}

/// What a process that was started does; nothing when the tests are run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_of_its_own() {
    let (Ok(role), Ok(place)) = (std::env::var(ROLE), std::env::var(PLACE)) else { return };
    let place = Path::new(&place);
    let (role, number) = role.rsplit_once(' ').unwrap();
    let number: u64 = number.parse().unwrap();
    match role {
        "set one key" => set_one_key(place, number).await,
        "count" => count(place).await,
        "write until killed" => write_until_killed(place, number).await,
        "transfer until killed" => transfer_until_killed(place, number).await,
        other => panic!("{other}"),
    }
}

async fn set_one_key(place: &Path, number: u64) {
    let tier = open_live(place);
    let mut generation = number + 1;
    for _ in 0..300 {
        // As the manager sets: what is below is removed, and another process that is ahead is overtaken.
        while let Removal::Behind(found) = tier.remove(&key("k"), g(generation)).await.unwrap() {
            generation = found.get() + 1;
        }
        let value = vec![number as u8; 2_000 + number as usize];
        let put = tier.put(&key("k"), &entry(generation, value), HOLD, &Always).await.unwrap();
        assert!(matches!(put, Put::Stored | Put::Superseded), "{put:?}");
        if let Some(found) = get(&tier, "k").await {
            let writer = found.value[0];
            assert_eq!(found.value.len(), 2_000 + usize::from(writer));
            assert!(found.value.iter().all(|&byte| byte == writer));
        }
        generation += 1;
    }
    tier.close().await.unwrap();
}

#[tokio::test]
async fn four_processes_set_one_key_and_it_stays_whole() {
    let dir = tempfile::tempdir().unwrap();
    all_end_well((0..4).map(|n| start(&format!("set one key {n}"), dir.path())).collect());
    let tier = open_live(dir.path());
    let found = get(&tier, "k").await.unwrap();
    assert_eq!(found.value.len(), 2_000 + usize::from(found.value[0]));
    assert_eq!(tier.usage().await.unwrap().damaged, 0);
    assert!(check(dir.path(), false).is_clean());
}

async fn count(place: &Path) {
    let tier = open_live(place);
    for _ in 0..1_000 {
        tier.add(&key("n"), 1, 0, Timestamp::NEVER, T0).await.unwrap();
    }
    tier.close().await.unwrap();
}

#[tokio::test]
async fn four_processes_count_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open_live(dir.path());
    let deadline = T0.after_millis(1_000_000);
    tier.add(&key("n"), 0, 0, deadline, T0).await.unwrap();
    all_end_well((0..4).map(|_| start("count 0", dir.path())).collect());
    assert_eq!(tier.counter(&key("n"), T0).await.unwrap(), Some(4_000));
    assert_eq!(tier.counter(&key("n"), T0.after_millis(999_999)).await.unwrap(), Some(4_000));
    assert_eq!(tier.counter(&key("n"), deadline).await.unwrap(), None, "its deadline is the first one's");
}

fn value_of(n: u64, generation: u64) -> Vec<u8> {
    let size = if n.is_multiple_of(5) { 100_000 } else { 500 };
    format!("{n} {generation} ").repeat(size / 8).into_bytes()
}

async fn write_until_killed(place: &Path, first: u64) {
    let config = tiercache_sqlite::SqliteConfig { max_size: 8 << 20, ..config(place) };
    let tier = std::sync::Arc::new(open_with(config, SystemClock::start()));
    let mut generation = first;
    loop {
        let mut calls = tokio::task::JoinSet::new();
        for n in 0..20 {
            generation += 1;
            let (tier, generation) = (tier.clone(), generation);
            calls.spawn(async move {
                let name = format!("k{n}");
                if n == 7 {
                    remove(&tier, &name, generation).await;
                } else {
                    put(&tier, &name, &entry(generation, value_of(n, generation))).await;
                }
            });
        }
        while let Some(call) = calls.join_next().await {
            call.unwrap();
        }
        // Told to the parent: what was answered before this must be there.
        std::fs::write(place.join("progress.tmp"), (generation - 20).to_string()).unwrap();
        std::fs::rename(place.join("progress.tmp"), place.join("progress")).unwrap();
    }
}

#[tokio::test]
async fn a_kill_tears_nothing_and_takes_nothing_back() {
    let dir = tempfile::tempdir().unwrap();
    let progress = || -> u64 {
        std::fs::read_to_string(dir.path().join("progress"))
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    };
    let mut before = 0;
    for round in 1..=4u64 {
        let mut child = start(&format!("write until killed {before}"), dir.path());
        while progress() < before + round * 35 {
            assert!(child.try_wait().unwrap().is_none(), "it runs until it is killed");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        before = progress();
        let tier = open_live(dir.path());
        for n in 0..20 {
            let found = get(&tier, &format!("k{n}")).await;
            if n == 7 {
                assert_eq!(found, None);
                continue;
            }
            let found = found.unwrap();
            assert!(found.generation >= Generation::new(before), "k{n} went back");
            assert_eq!(found.value, value_of(n, found.generation.get()), "k{n} is torn");
        }
        assert_eq!(tier.usage().await.unwrap().damaged, 0);
        tier.close().await.unwrap();
        drop(tier);
        let report = check(dir.path(), true);
        let wrong = report.damaged + report.dangling + report.wrong_sizes + report.drifted + report.broken;
        assert_eq!(wrong, 0, "at most files that no row names yet, or any more: {report:?}");
        assert!(report.orphaned < 20 && check(dir.path(), false).is_clean());
        // Whoever comes next begins above everything that was written.
        before = open_live(dir.path()).profile().last_generation.get();
    }
}

const ACCOUNTS: usize = 8;

fn account(number: usize) -> Key {
    key(&format!("account {number}"))
}

/// The value and the generation to overtake.
fn balance(work: &mut Transaction<'_, '_>, of: usize) -> tiercache_core::Result<(i64, u64)> {
    let entry = work.get(&account(of))?.unwrap();
    // Some of them are large: those have files.
    let text = String::from_utf8(entry.value.to_vec()).unwrap();
    Ok((text.trim_end().parse().unwrap(), entry.generation.get()))
}

fn set_balance(
    work: &mut Transaction<'_, '_>,
    of: usize,
    balance: i64,
    generation: u64,
) -> tiercache_core::Result<()> {
    let mut text = balance.to_string();
    text.push_str(&" ".repeat(if of.is_multiple_of(2) { 10 } else { 70_000 }));
    let put = work.put(&account(of), &entry(generation, text), HOLD)?;
    assert_eq!(put, Put::Stored);
    Ok(())
}

/// What is forced to the disk is about power cuts, and would make this slow.
fn open_quick(place: &Path) -> tiercache_sqlite::SqliteTier {
    let synchronous = tiercache_sqlite::Synchronous::Off;
    open_with(tiercache_sqlite::SqliteConfig { synchronous, ..config(place) }, SystemClock::start())
}

async fn transfer_until_killed(place: &Path, seed: u64) {
    let tier = open_quick(place);
    for round in 0.. {
        let at = seed.wrapping_mul(31).wrapping_add(round) as usize;
        if round == 20 {
            std::fs::write(place.join(format!("transfers {seed}")), "some").unwrap();
        }
        let (from, to) = (at % ACCOUNTS, (at / ACCOUNTS + at * 3 + 1) % ACCOUNTS);
        if from == to {
            continue;
        }
        let over = [account(from), account(to)];
        let transfer = tier.transaction_over(&over, move |work| {
            let ((left, g1), (right, g2)) = (balance(work, from)?, balance(work, to)?);
            let generation = g1.max(g2) + 1;
            set_balance(work, from, left - 1, generation)?;
            set_balance(work, to, right + 1, generation)
        });
        transfer.await.unwrap();
    }
}

#[tokio::test]
async fn a_kill_in_the_middle_of_a_transfer_between_shards_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let tier = open_quick(dir.path());
    let first =
        |work: &mut Transaction<'_, '_>| (0..ACCOUNTS).try_for_each(|of| set_balance(work, of, 100, 1));
    tier.transaction_over_all(first).await.unwrap();
    let mut survivor = start("transfer until killed 1000", dir.path());
    for round in 1..=8u64 {
        let mut child = start(&format!("transfer until killed {round}"), dir.path());
        while !dir.path().join(format!("transfers {round}")).exists() {
            assert!(child.try_wait().unwrap().is_none() && survivor.try_wait().unwrap().is_none());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // At one moment or another.
        tokio::time::sleep(Duration::from_micros(round * 700)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let sum = tier.transaction_over_all(|work| {
            (0..ACCOUNTS).map(|of| Ok(balance(work, of)?.0)).sum::<tiercache_core::Result<i64>>()
        });
        assert_eq!(sum.await.unwrap(), 800, "after {round} kills");
    }
    survivor.kill().unwrap();
    survivor.wait().unwrap();
    tier.close().await.unwrap();
    drop(tier);
    let tier = open_quick(dir.path());
    let mut sum = 0;
    for of in 0..ACCOUNTS {
        let found = tier.get(&account(of)).await.unwrap().unwrap();
        sum += std::str::from_utf8(&found.value).unwrap().trim_end().parse::<i64>().unwrap();
    }
    assert_eq!(sum, 800, "also read outside a transaction, once it was opened");
    tier.close().await.unwrap();
    drop(tier);
    let report = check(dir.path(), true);
    let wrong = report.damaged + report.dangling + report.wrong_sizes + report.drifted + report.broken;
    assert_eq!((wrong, report.unfinished), (0, 0), "{report:?}");
}

#[tokio::test]
async fn a_process_that_does_not_know_of_a_fence_does_not_bring_back_what_it_hit() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (open_live(dir.path()), open_live(dir.path()));
    put(&one, "k", &entry(7, "value")).await;
    let raised = two.fence(&Scope::Namespace(String::new()), g(1)).await.unwrap();
    assert_eq!(put(&one, "again", &entry(7, "from its memory")).await, Put::Superseded);
    assert_eq!((get(&one, "k").await, get(&one, "again").await), (None, None));
    assert_eq!(put(&one, "again", &entry(raised.get(), "new")).await, Put::Stored);
}

#[tokio::test]
async fn a_writer_that_hangs_holds_up_no_reader_and_writes_for_so_long_only() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        tiercache_sqlite::SqliteConfig { busy_timeout: Duration::from_millis(100), ..config(dir.path()) };
    let tier = open_with(config, SystemClock::start());
    put(&tier, "k", &entry(1, "value")).await;
    let stopped: Vec<_> = (0..4).map(|shard| database(dir.path(), shard)).collect();
    stopped.iter().for_each(|connection| connection.execute_batch("BEGIN IMMEDIATE").unwrap());
    let late = tier.put(&key("k"), &entry(2, vec![1; 100_000]), HOLD, &Always).await;
    assert!(matches!(late, Err(Error::TimedOut { .. })), "{late:?}");
    let late = tier.remove(&key("k"), g(2)).await;
    assert!(matches!(late, Err(Error::TimedOut { .. })), "{late:?}");
    assert_eq!(get(&tier, "k").await.unwrap().value, "value");
    assert_eq!(files(dir.path()).len(), 0, "what was not taken leaves no file");
    let began = std::time::Instant::now();
    let tier = std::sync::Arc::new(tier);
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..200 {
        let tier = tier.clone();
        calls.spawn(async move { tier.remove(&key(&format!("k{n}")), g(2)).await.is_err() });
    }
    while let Some(failed) = calls.join_next().await {
        assert!(failed.unwrap());
    }
    assert!(began.elapsed() < Duration::from_secs(3), "calls wait together: {:?}", began.elapsed());
    drop(stopped);
    assert_eq!(put(&tier, "k", &entry(2, "next")).await, Put::Stored);
    assert_eq!(tier.usage().await.unwrap().damaged, 0);
}
