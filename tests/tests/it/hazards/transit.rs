//! Between two levels, and between an update and an eviction.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tiercache_core::testing::{Hooked, Hooks, ManualClock, MemoryTier, Op, Point};
use tiercache_core::tier::{Left, Resident, Spill};
use tiercache_core::tracking::Query;
use tiercache_core::{Entry, Key, KeyRef, Level};
use tiercache_tests::rig::{Gated, builder, get, id, ram, ram_for};
use tiercache_tracking::{MemoryConfig, MemoryTracking};

const WRITE: Point = Point::Before(Op::Put);

#[tokio::test]
async fn h9_every_read_operation_finds_what_is_on_its_way_down() {
    let tracking = Arc::new(MemoryTracking::new(&MemoryConfig::default()));
    let rig = Gated::with(|builder| builder.tracking(tracking)).await;
    // The first is held while it is written, the others wait behind it.
    let keys = ["k0", "k1", "k2", "k3", "k4", "k5", "k6"];
    for key in keys {
        rig.cache.set(key, key).ttl(Duration::from_secs(60)).tag("t", key).await.unwrap();
    }
    rig.evict();
    rig.gate.close_gate(WRITE);
    let worker = rig.spawn_settle();
    rig.gate.held(WRITE).await;
    rig.gate.close_gate(Point::Before(Op::Get));
    let listed = async || {
        let listed = rig.cache.keys(Query::all()).page(100).await.unwrap();
        listed.into_iter().map(|record| record.key.display().into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(listed().await, keys);
    for key in keys {
        assert!(rig.in_hot(key).is_none() && rig.in_dry(key).await.is_none(), "{key} is on its way");
        assert!(rig.cache.contains(key).await.unwrap(), "{key}");
    }
    let entry = rig.cache.entry("k1").await.unwrap().unwrap();
    assert_eq!((entry.level, entry.time_left), (Level::Dry, Some(Duration::from_secs(60))));
    assert_eq!(rig.cache.get_many(&["k2", "k0"]).await.unwrap(), [Some("k2".into()), Some("k0".into())]);
    rig.gate.open_gate(Point::Before(Op::Get));
    // Operations by key and by tag reach them too.
    let waiting = |key: &'static str| rig.in_hot(key).is_none();
    assert!(waiting("k3") && waiting("k4") && waiting("k5"));
    assert!(rig.cache.touch("k3", Duration::from_secs(600)).await.unwrap().found);
    let left = rig.cache.entry("k3").await.unwrap().unwrap().time_left;
    assert_eq!(left, Some(Duration::from_secs(600)));
    rig.cache.invalidate_tag("t", "k4").await.unwrap();
    assert_eq!(rig.cache.pop("k5").await.unwrap().value.unwrap(), "k5");
    assert!(!rig.cache.set("k6", "other").only_if_absent().await.unwrap().stored);
    for (key, there) in [("k3", true), ("k4", false), ("k5", false), ("k6", true)] {
        assert_eq!(rig.cache.contains(key).await.unwrap(), there, "{key}");
        assert_eq!(rig.cache.get(key).await.unwrap().is_some(), there, "{key}");
    }
    assert_eq!(listed().await, ["k0", "k1", "k2", "k3", "k6"]);
    rig.gate.open_gate(WRITE);
    worker.await.unwrap();
    assert_eq!(listed().await, ["k0", "k1", "k2", "k3", "k6"]);
    assert_eq!(rig.cache.stats().await.unwrap().pending, (0, 0));
}

#[tokio::test]
async fn h9_a_listing_without_tracking_shows_what_is_on_its_way_down() {
    let clock = ManualClock::new();
    let (hot, gate) = (MemoryTier::new(), Gated::new().await.gate);
    let rules = tiercache_core::Rules {
        rules: Vec::new(),
        defaults: [Some(tiercache_core::Stay::For(Duration::from_secs(1))), None, None],
    };
    let cache = builder(&clock).rules(rules).hot(hot).dry(gate.clone()).build().await.unwrap();
    for key in ["a", "b"] {
        cache.set(key, key).await.unwrap();
    }
    clock.advance(Duration::from_secs(2));
    let listed = async || {
        let mut listed: Vec<_> = cache.keys(Query::all()).page(100).await.unwrap();
        listed.sort_by(|one, other| one.key.cmp(&other.key));
        listed.into_iter().map(|record| record.key.display().into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(listed().await, ["a", "b"]);
    cache.prune().await.unwrap();
    assert_eq!(cache.stats().await.unwrap().pending.0, 2);
    assert_eq!(listed().await, ["a", "b"]);
    cache.settle().await.unwrap();
    assert_eq!(listed().await, ["a", "b"]);
}

/// Tells somebody of every eviction as it happens, or keeps them to be told of later.
#[derive(Debug)]
struct Evictions {
    late: bool,
    told: mpsc::Sender<Key>,
    kept: Arc<Mutex<Vec<Spilled>>>,
}

type Spilled = (Arc<dyn Spill>, Key, Entry, Left);

#[derive(Debug)]
struct Interposed(Arc<dyn Spill>, bool, mpsc::Sender<Key>, Arc<Mutex<Vec<Spilled>>>);

impl Hooks for Evictions {
    fn attached(&self, spill: Arc<dyn Spill>) -> Arc<dyn Spill> {
        Arc::new(Interposed(spill, self.late, self.told.clone(), self.kept.clone()))
    }
}

impl Spill for Interposed {
    fn spill(&self, key: Key, entry: Entry, left: Left) {
        let Self(spill, late, told, kept) = self;
        if *late {
            let kept = &mut *kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push((spill.clone(), key, entry, left));
        } else {
            spill.spill(key.clone(), entry, left);
            told.send(key).unwrap();
        }
    }

    fn used(&self, key: KeyRef<'_>, uses: u32) {
        self.0.used(key, uses);
    }
}

#[tokio::test]
async fn h7_an_eviction_told_after_the_update_does_not_bring_the_old_value_back() {
    let (hot, store, kept) = (ram(), MemoryTier::persistent(), Arc::default());
    let evictions = Evictions { late: true, told: mpsc::channel().0, kept: Arc::clone(&kept) };
    let hooked = Hooked::showing(hot.clone(), evictions);
    let clock = ManualClock::new();
    let cache = builder(&clock).hot(hooked).dry(store.clone()).build().await.unwrap();
    cache.set("k", "old").await.unwrap();
    hot.drain();
    cache.set("k", "new").await.unwrap();
    for (spill, key, entry, left) in std::mem::take(&mut *kept.lock().unwrap()) {
        spill.spill(key, entry, left);
    }
    assert_eq!(get(&cache, "k").await.unwrap(), "new");
    cache.settle().await.unwrap();
    assert_eq!(get(&cache, "k").await.unwrap(), "new");
    let below = tiercache_core::Tier::get(&*store, &id("k")).await.unwrap();
    assert_eq!(below, None, "the level was fenced when the new value was set");
}

/// On two threads: the moment an eviction of the key is told, the other thread updates it.
#[test]
fn h7_an_update_that_meets_its_eviction_stays() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (told, evicted) = mpsc::channel();
    let hot = ram_for(8, 20);
    let store = MemoryTier::persistent();
    let hooked = Hooked::showing(hot.clone(), Evictions { late: false, told, kept: Arc::default() });
    let clock = ManualClock::new();
    let cache = runtime.block_on(builder(&clock).hot(hooked).dry(store).build()).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let cache = cache.blocking();
            for n in 0..2_000 {
                cache.set(format!("filler {}", n % 50), "0123456789").unwrap();
            }
            over.store(true, Ordering::Release);
        });
        let cache = cache.blocking();
        cache.set("k", "0").unwrap();
        let mut n = 0;
        while !over.load(Ordering::Acquire) {
            let Ok(key) = evicted.recv_timeout(Duration::from_millis(20)) else { continue };
            if key != id("k") {
                continue;
            }
            n += 1;
            cache.set("k", n.to_string()).unwrap();
            assert_eq!(cache.get("k").unwrap().unwrap(), n.to_string());
        }
        runtime.block_on(cache.manager().settle()).unwrap();
        assert_eq!(cache.get("k").unwrap().unwrap(), n.to_string());
        assert!(n > 5, "the key was evicted {n} times");
    });
}
