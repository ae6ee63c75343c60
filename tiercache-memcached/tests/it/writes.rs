//! Writes over what this process wrote itself: what it remembers may be out of date, and is never relied on.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::common::{HOLD, config, entry, era_of, get, key, open, put, remove};
use tiercache_core::tier::{Always, FenceLog, Permit, Put, Removal, Scope};
use tiercache_core::{Generation, Tier};
use tiercache_memcached::{MemcachedConfig, MemcachedTier};
use tiercache_services::{Fault, Memcached, Proxy};

const fn done(over: u64) -> Removal {
    Removal::Done { over: Generation::new(over) }
}

const fn behind(generation: u64) -> Removal {
    Removal::Behind(Generation::new(generation))
}

#[tokio::test]
async fn what_another_process_wrote_in_between_is_seen() {
    let Some(server) = Memcached::own() else { return };
    let (a, b) = (open(&[server.address()]).await, open(&[server.address()]).await);
    // Below and above where an item's flags tell a generation exactly.
    for base in [0, 1 << 40] {
        let name = format!("k{base}");
        assert_eq!(put(&a, &name, base + 5, "a").await, Put::Stored);
        assert_eq!(put(&b, &name, base + 10, "b").await, Put::Stored);
        assert_eq!(put(&a, &name, base + 7, "late").await, Put::Superseded);
        assert_eq!(get(&a, &name).await, Some(entry(base + 10, "b")));
        assert_eq!(put(&a, &name, base + 12, "a again").await, Put::Stored);
        assert_eq!(remove(&b, &name, base + 20).await, done(base + 12));
        assert_eq!(put(&a, &name, base + 15, "late").await, Put::Superseded);
        assert_eq!(remove(&a, &name, base + 18).await, behind(base + 20));
        assert_eq!(get(&a, &name).await, None);
        assert_eq!(put(&a, &name, base + 25, "after").await, Put::Stored);
        assert_eq!(put(&b, &name, base + 30, "newest").await, Put::Stored);
        assert_eq!(remove(&a, &name, base + 27).await, behind(base + 30));
        assert_eq!(get(&a, &name).await, Some(entry(base + 30, "newest")));
    }
}

#[tokio::test]
async fn a_removal_tells_what_this_process_wrote() {
    let Some(server) = Memcached::own() else { return };
    let tier = open(&[server.address()]).await;
    for base in [0, 1 << 40] {
        let name = format!("k{base}");
        assert_eq!(put(&tier, &name, base + 1, "one").await, Put::Stored);
        assert_eq!(remove(&tier, &name, base + 2).await, done(base + 1));
        assert_eq!(put(&tier, &name, base + 1, "late").await, Put::Superseded);
        assert_eq!(remove(&tier, &name, base + 2).await, behind(base + 2));
        assert_eq!(put(&tier, &name, base + 3, "two").await, Put::Stored);
        assert_eq!(put(&tier, &name, base + 3, "two").await, Put::Unchanged);
        assert_eq!(put(&tier, &name, base + 3, "other").await, Put::Superseded);
        assert_eq!(remove(&tier, &name, base + 4).await, done(base + 3));
        assert_eq!(remove(&tier, &name, base + 5).await, done(base + 4), "the mark");
    }
}

#[tokio::test]
async fn what_the_server_dropped_is_written_anew() {
    let Some(server) = Memcached::own() else { return };
    let tier = open(&[server.address()]).await;
    put(&tier, "k", 5, "value").await;
    let name = format!("tiercache:cold:{}:e:0::k", era_of(&server));
    assert_eq!(server.command(&format!("md {name}")), "HD");
    assert_eq!(put(&tier, "k", 6, "again").await, Put::Stored);
    assert_eq!(get(&tier, "k").await, Some(entry(6, "again")));
    assert_eq!(server.command(&format!("md {name}")), "HD");
    assert_eq!(remove(&tier, "k", 7).await, done(0), "nothing stood there");
    assert_eq!(put(&tier, "k", 6, "late").await, Put::Superseded);
}

#[tokio::test]
async fn large_entries_are_sent_when_it_is_known_that_they_are_wanted() {
    let Some(server) = Memcached::own() else { return };
    let (a, b) = (open(&[server.address()]).await, open(&[server.address()]).await);
    let large = |generation, byte| entry(generation, vec![byte; 100_000]);
    for (tier, generation, put) in
        [(&a, 5, Put::Stored), (&b, 10, Put::Stored), (&a, 7, Put::Superseded), (&b, 11, Put::Stored)]
    {
        let entry = large(generation, generation as u8);
        assert_eq!(tier.put(&key("k"), &entry, HOLD, &Always).await.unwrap(), put, "{generation}");
    }
    assert!(get(&a, "k").await == Some(large(11, 11)));
    assert_eq!(remove(&b, "k", 12).await, done(11));
}

/// Holds the first times it is asked, and never again.
struct Withdrawn(AtomicU64);

impl Permit for Withdrawn {
    fn holds(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

#[tokio::test]
async fn a_permit_that_is_withdrawn_after_a_first_try_stops_the_second() {
    let Some(server) = Memcached::own() else { return };
    let (a, b) = (open(&[server.address()]).await, open(&[server.address()]).await);
    put(&a, "k", 5, "a").await;
    for times in 0..2 {
        let permit = Withdrawn(AtomicU64::new(times));
        let late = b.put(&key("k"), &entry(9, "b"), HOLD, &permit).await.unwrap();
        assert_eq!(late, Put::Superseded, "{times}");
        assert_eq!(get(&a, "k").await, Some(entry(5, "a")));
    }
    let permit = Withdrawn(AtomicU64::new(2));
    assert_eq!(b.put(&key("k"), &entry(9, "b"), HOLD, &permit).await.unwrap(), Put::Stored);
}

#[tokio::test]
async fn a_removal_finds_what_was_put_in_an_era_it_had_not_heard_of() {
    let Some(server) = Memcached::own() else { return };
    let a = open(&[server.address()]).await;
    for batch in [false, true] {
        put(&a, "k", 1, "own").await;
        put(&a, "other", 1, "own").await;
        assert_eq!(server.command("delete tiercache:cold:record"), "DELETED");
        // The other process begins another era, and the first does not ask within its second.
        let b = open(&[server.address()]).await;
        assert_eq!(put(&b, "k", 5, "in the new era").await, Put::Stored);
        let removed = match batch {
            false => remove(&a, "k", 10).await,
            true => {
                let items = [(key("k"), Generation::new(10)), (key("other"), Generation::new(10))];
                a.remove_many(&items).await.swap_remove(0).unwrap()
            }
        };
        assert_eq!(removed, done(5));
        assert_eq!((get(&a, "k").await, get(&b, "k").await), (None, None));
        assert_eq!(put(&b, "k", 7, "late").await, Put::Superseded);
        remove(&a, "other", 11).await;
        server.wipe();
        remove(&a, "k", 12).await;
    }
}

#[tokio::test]
async fn a_put_over_a_new_connection_finds_the_new_era() {
    let Some(server) = Memcached::own() else { return };
    let a = open(&[server.address()]).await;
    // The first one changes the record, and it is read again for the second.
    put(&a, "k", 1, "own").await;
    put(&a, "k", 2, "own").await;
    assert_eq!(server.command("delete tiercache:cold:record"), "DELETED");
    let b = open(&[server.address()]).await;
    let (one, other) = (entry(2, "one"), entry(2, "other"));
    let (one_key, other_key) = (key("one"), key("other"));
    // The second finds the one connection in use.
    let (one, other) =
        tokio::join!(a.put(&one_key, &one, HOLD, &Always), a.put(&other_key, &other, HOLD, &Always));
    assert_eq!((one.unwrap(), other.unwrap()), (Put::Stored, Put::Stored));
    assert_eq!(get(&b, "other").await, Some(entry(2, "other")));
    assert_eq!(get(&a, "k").await, None, "it has heard of it now");
}

#[tokio::test]
async fn a_removal_tells_of_a_fence_it_had_not_heard_of() {
    let Some(server) = Memcached::own() else { return };
    let (a, b) = (open(&[server.address()]).await, open(&[server.address()]).await);
    put(&a, "k", 1, "value").await;
    put(&a, "other", 1, "value").await;
    let below = b.fence(&Scope::All, Generation::new(50)).await.unwrap();
    assert_eq!(remove(&a, "k", 10).await, behind(below.get()));
    let above = b.fence(&Scope::All, Generation::new(below.get() + 50)).await.unwrap();
    let items = ["k", "other"].map(|name| (key(name), Generation::new(20)));
    for removed in a.remove_many(&items).await {
        assert_eq!(removed.unwrap(), behind(above.get()));
    }
    assert_eq!(put(&a, "k", above.get(), "new").await, Put::Stored);
    assert_eq!(get(&b, "k").await, Some(entry(above.get(), "new")));
}

#[tokio::test]
async fn a_restarted_server_that_counts_to_the_same_cas_is_another() {
    let Some(server) = Memcached::own() else { return };
    let tier = open(&[server.address()]).await;
    put(&tier, "k", 10, "before").await;
    let name = format!("tiercache:cold:{}:e:0::k", era_of(&server));
    let cas = server.command(&format!("mg {name} c"));
    server.kill();
    server.restart();
    // Somebody who has not heard of it either puts a newer one, which by chance gets the same CAS.
    for count in 1_u64.. {
        assert!(count < 100, "the server has counted past {cas}");
        if server.command(&format!("ms {name} 5 F20 c\r\nnewer")) == cas {
            break;
        }
    }
    assert_eq!(put(&tier, "k", 15, "after").await, Put::Stored);
    assert_eq!(server.command(&format!("mg {name} f s c")), format!("HD f20 s5 {}", &cas[3..]), "untouched");
    assert_eq!(get(&tier, "k").await, Some(entry(15, "after")), "in an era of its own");
}

#[tokio::test]
async fn a_server_that_drops_nothing_loses_nothing_newer_for_want_of_room() {
    let Some(server) = Memcached::start_with(&["-m", "2", "-M", "-o", "no_slab_reassign"]) else { return };
    let (a, b) = (open(&[server.address()]).await, open(&[server.address()]).await);
    put(&b, "k", 30, "older").await;
    put(&a, "k", 50, "newer").await;
    for number in 0..10_000 {
        let filling = entry(1, vec![7; 8_000]);
        match a.put(&key(&number.to_string()), &filling, HOLD, &Always).await.unwrap() {
            Put::Full => break,
            stored => assert!(stored == Put::Stored && number < 9_999, "{stored:?} {number}"),
        }
    }
    let late = entry(40, vec![7; 8_000]);
    for remembered in ["its own write", "nothing"] {
        assert_eq!(b.put(&key("k"), &late, HOLD, &Always).await.unwrap(), Put::Superseded, "{remembered}");
        assert_eq!(get(&a, "k").await, Some(entry(50, "newer")), "{remembered}");
    }
}

/// Polls a call so often and drops it then. Returns whether it was done before.
async fn dropped_after<F: Future>(polls: usize, call: F) -> bool {
    let (mut call, mut left) = (pin!(call), polls);
    std::future::poll_fn(|context| {
        if left == 0 {
            return std::task::Poll::Ready(false);
        }
        left -= 1;
        call.as_mut().poll(context).map(|_| true)
    })
    .await
}

#[tokio::test]
async fn a_write_that_is_dropped_at_any_await_happens_whole_or_not_at_all() {
    let Some(server) = Memcached::own() else { return };
    let proxy = Proxy::to(server.address());
    let config = MemcachedConfig { connections: 1, ..config(&[&proxy.address()]) };
    let tier = MemcachedTier::open(config, "cold").await.unwrap();
    put(&tier, "other", 1, "other").await;
    let mut generation = 10;
    for case in 0..3 {
        let mut whole = false;
        for polls in 0.. {
            assert!(polls < 100, "case {case} never ends");
            if whole {
                break;
            }
            let before = entry(generation, generation.to_string());
            tier.put(&key("k"), &before, HOLD, &Always).await.unwrap();
            let after = entry(generation + 1, (generation + 1).to_string());
            let below = Generation::new(generation + 1);
            let connections = proxy.connections();
            // So that an answer is never there when it is first looked for.
            proxy.set(Fault::Delay(Duration::from_millis(3)));
            whole = match case {
                0 => dropped_after(polls, tier.put(&key("k"), &after, HOLD, &Always)).await,
                1 => dropped_after(polls, tier.remove(&key("k"), below)).await,
                _ => dropped_after(polls, tier.remove_many(&[(key("k"), below), (key("l"), below)])).await,
            };
            proxy.set(Fault::Pass);
            assert_eq!(get(&tier, "other").await, Some(entry(1, "other")), "its own answer");
            if polls > 0 && !whole {
                assert!(proxy.connections() > connections, "case {case}, {polls}: used again");
            }
            let found = get(&tier, "k").await;
            let new = if case == 0 { Some(after) } else { None };
            assert!(found == new || (found == Some(before) && !whole), "case {case}, {polls}: {found:?}");
            generation += 10;
            // What was dropped may still arrive, but nothing is taken for what it is not.
            assert_eq!(put(&tier, "k", generation - 1, "next").await, Put::Stored);
            assert_eq!(remove(&tier, "k", generation).await, done(generation - 1));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_write_at_once_never_go_back() {
    const TASKS: u64 = 12;
    const ROUNDS: u64 = 150;
    let Some(server) = Memcached::own() else { return };
    let mut tiers = Vec::new();
    for _ in 0..3 {
        tiers.push(Arc::new(open(&[server.address()]).await));
    }
    let next = Arc::new(AtomicU64::new(1));
    let acknowledged: Arc<[AtomicU64; 3]> = Arc::default();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let (next, acknowledged) = (next.clone(), acknowledged.clone());
        let tier = tiers[task as usize % tiers.len()].clone();
        tasks.spawn(async move {
            for round in 0..ROUNDS {
                let at = ((task + round) % 3) as usize;
                let (k, least) = (key(&at.to_string()), acknowledged[at].load(Ordering::SeqCst));
                let generation = next.fetch_add(1, Ordering::SeqCst);
                let (k, below) = (&k, Generation::new(generation));
                let was_done = match (task * 7 + round * 5) % 6 {
                    0 | 1 => {
                        let entry = entry(generation, generation.to_string());
                        tier.put(k, &entry, HOLD, &Always).await.unwrap() == Put::Stored
                    }
                    2 => tier.remove(k, below).await.unwrap().is_done(),
                    3 => {
                        let other = (key("other"), below);
                        tier.remove_many(&[(k.clone(), below), other]).await[0].as_ref().unwrap().is_done()
                    }
                    _ => {
                        if let Some(found) = tier.get(k).await.unwrap() {
                            assert!(found.generation.get() >= least, "{found:?} after {least}");
                            assert_eq!(found.value, found.generation.get().to_string());
                        }
                        false
                    }
                };
                if was_done {
                    acknowledged[at].fetch_max(generation, Ordering::SeqCst);
                }
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
}
