//! Listing, for every policy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use tiercache_core::tier::{Hold, Left, ListedEntry, Listing, Look, Resident, Spill, Tier};
use tiercache_core::{Entry, Error, Generation, Key, KeyRef, Stay, Timestamp};
use tiercache_ram::{Policy, RamConfig, RamTier};

const POLICIES: [Policy; 4] = [Policy::Adaptive, Policy::Lru, Policy::TinyLfu, Policy::Fifo];
const T0: Timestamp = Timestamp::from_millis(1_700_000_000_000);
const HOLD: Hold = Hold { now: T0, stay: Stay::Forever };

#[derive(Debug, Default)]
struct Spilled(Mutex<Vec<Key>>);

impl Spill for Spilled {
    fn spill(&self, key: Key, _: Entry, _: Left) {
        self.0.lock().unwrap().push(key);
    }

    fn used(&self, _: KeyRef<'_>, _: u32) {}
}

/// A tier for some `entries` entries with a key of five bytes and a value of 100.
fn tier(policy: Policy, entries: u64) -> (Arc<RamTier>, Arc<Spilled>) {
    let tier = RamTier::new(RamConfig { max_size: entries * (policy.overhead() + 106), policy });
    let spilled = Arc::new(Spilled::default());
    tier.attach(spilled.clone());
    (Arc::new(tier), spilled)
}

fn key(namespace: &str, number: u64) -> Key {
    Key::new(namespace, format!("{number:05}").as_bytes()).unwrap()
}

fn set(tier: &RamTier, number: u64) {
    let entry = Entry::new(vec![b'v'; 100], Generation::new(number + 1), T0);
    tier.insert(key("", number), entry, HOLD);
}

/// Every page, `between` them whatever it does.
async fn pages(tier: &RamTier, limit: usize, mut between: impl FnMut(u64)) -> Vec<ListedEntry> {
    let mut all = Vec::new();
    let (mut after, mut page) = (None, 0);
    loop {
        let listed = tier.list(None, after.take(), limit).await.unwrap();
        assert!(listed.entries.len() <= limit);
        all.extend(listed.entries);
        let Some(next) = listed.next else { return all };
        after = Some(next);
        between(page);
        page += 1;
        assert!(page < 10_000, "the listing does not end");
    }
}

/// Asserts that nothing was listed twice.
fn names(listed: &[ListedEntry]) -> BTreeSet<Key> {
    let names: BTreeSet<Key> = listed.iter().map(|listed| listed.key.clone()).collect();
    assert_eq!(names.len(), listed.len(), "something was listed twice");
    names
}

#[tokio::test]
async fn pages_of_any_size_show_the_same_in_one_order() {
    for policy in POLICIES {
        let (tier, _) = tier(policy, 4_000);
        for number in 0..700 {
            let entry = Entry::new(vec![b'v'; number as usize], Generation::new(number + 1), T0);
            tier.insert(key(["", "b", "long name"][number as usize % 3], number), entry, HOLD);
        }
        let whole = pages(&tier, 10_000, |_| {}).await;
        assert_eq!(names(&whole).len(), 700, "{policy:?}");
        for listed in &whole {
            assert!(listed.entry.value.is_empty(), "the value is left out");
            let number = listed.size;
            assert_eq!(listed.key.bytes(), format!("{number:05}").as_bytes(), "{policy:?}");
            assert_eq!(listed.entry.generation, Generation::new(number + 1));
        }
        let order: Vec<_> = whole.iter().map(|listed| &listed.key).collect();
        for limit in [0, 1, 7, 233, 700] {
            let paged = pages(&tier, limit.max(1), |_| {}).await;
            assert_eq!(
                paged.iter().map(|listed| &listed.key).collect::<Vec<_>>(),
                order,
                "{policy:?} {limit}"
            );
        }
        let within = tier.list(Some("b"), None, 1_000).await.unwrap();
        assert_eq!(within.entries.len(), 233, "{policy:?}");
        assert!(within.next.is_none());
        tier.close().await.unwrap();
        assert!(matches!(tier.list(None, None, 10).await, Err(Error::Closed)));
    }
}

/// What is not listed has been handed over by the end: nothing falls between a listing and the way down.
#[tokio::test]
async fn what_stood_there_is_listed_once_or_was_handed_over() {
    for policy in POLICIES {
        let (tier, spilled) = tier(policy, 1_000);
        (0..900).for_each(|number| set(&tier, number));
        let before = names(&pages(&tier, 10_000, |_| {}).await);
        let seen =
            names(&pages(&tier, 50, |page| (0..20).for_each(|n| set(&tier, 1_000 + page * 20 + n))).await);
        let gone: BTreeSet<Key> = spilled.0.lock().unwrap().iter().cloned().collect();
        assert!(!gone.is_empty(), "{policy:?}: nothing was evicted");
        for key in before.difference(&seen) {
            assert!(gone.contains(key), "{policy:?}: {key:?} is nowhere");
        }
    }
}

/// Likewise beside threads that write all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stood_there_is_listed_once_or_was_handed_over_whoever_writes() {
    for policy in POLICIES {
        let (tier, spilled) = tier(policy, 5_000);
        (0..4_500).for_each(|number| set(&tier, number));
        let before = names(&pages(&tier, 10_000, |_| {}).await);
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let tier = tier.clone();
                std::thread::spawn(move || {
                    (0..20_000).for_each(|n| set(&tier, 10_000 + writer * 40_000 + n));
                })
            })
            .collect();
        let mut listed = BTreeMap::<Key, usize>::new();
        for listing in pages(&tier, 500, |_| {}).await {
            *listed.entry(listing.key).or_default() += 1;
        }
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let gone: BTreeSet<Key> = spilled.0.lock().unwrap().iter().cloned().collect();
        assert!(listed.values().all(|&times| times == 1), "{policy:?}: something was listed twice");
        for key in &before {
            assert!(listed.contains_key(key) || gone.contains(key), "{policy:?}: {key:?} is nowhere");
        }
    }
}

#[tokio::test]
async fn a_listing_is_not_a_use() {
    // In the order of insertion, which is not that of the listing, and without a use.
    for policy in [Policy::Lru, Policy::Fifo] {
        let (tier, spilled) = tier(policy, 100);
        (0..100).rev().for_each(|number| set(&tier, number));
        for _ in 0..3 {
            assert_eq!(pages(&tier, 9, |_| {}).await.len(), 100, "{policy:?}");
        }
        (100..110).for_each(|number| set(&tier, number));
        let gone: BTreeSet<Key> = spilled.0.lock().unwrap().iter().cloned().collect();
        assert_eq!(gone, (90..100).map(|number| key("", number)).collect(), "{policy:?}");
    }
    for policy in POLICIES {
        let (tier, _) = tier(policy, 100);
        set(&tier, 1);
        let name = key("", 1);
        tier.hit(name.as_ref(), Look { now: T0, slack: 0, valid_from: Generation::ZERO }).unwrap();
        pages(&tier, 9, |_| {}).await;
        assert_eq!(tier.peek(name.as_ref()).unwrap().uses, 1, "{policy:?}");
    }
}

/// A walk lets other tasks run; here one that changes the limit, which with moka replaces the table under the walk.
#[tokio::test]
async fn a_table_that_is_replaced_under_a_walk_shows_everything_once() {
    for policy in POLICIES {
        let (tier, _) = tier(policy, 2_000);
        (0..1_000).for_each(|number| set(&tier, number));
        for limit in [10_000, 300] {
            let resized = async {
                for _ in 0..3 {
                    tier.resize(2_000 * (policy.overhead() + 106));
                    tokio::task::yield_now().await;
                }
            };
            let (listed, ()) = tokio::join!(pages(&tier, limit, |_| {}), resized);
            assert_eq!(names(&listed).len(), 1_000, "{policy:?} {limit}");
        }
    }
}

/// Dropped at any point, a page changes nothing.
#[tokio::test]
async fn a_page_may_be_dropped() {
    use std::task::{Context, Waker};
    for policy in POLICIES {
        let (tier, _) = tier(policy, 2_000);
        (0..1_000).for_each(|number| set(&tier, number));
        for polls in 0..4 {
            let mut page = Box::pin(tier.list(None, None, 10));
            for _ in 0..polls {
                let polled = page.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                assert!(polled.is_pending(), "{policy:?}: a walk over 1,000 lets others run three times");
            }
            drop(page);
            assert_eq!(pages(&tier, 100, |_| {}).await.len(), 1_000, "{policy:?}");
        }
    }
}
