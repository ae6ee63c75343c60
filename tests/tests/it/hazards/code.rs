//! Code of others, and callers, that panic, sleep, call back or go away.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tiercache_core::testing::{Hooked, Hooks, ManualClock, MemoryTier, Op, Point};
use tiercache_core::tier::{Resident, Tier};
use tiercache_core::tracking::{Event, Query, Record, Totals};
use tiercache_core::{CacheManager, Error, Key, Level, Result, Tracking, Write};
use tiercache_disk::{DiskConfig, DiskTier, Flush};
use tiercache_tests::doubles::RuntimeClock;
use tiercache_tests::rig::{Gated, builder, get, id, idle, ram, ram_for};
use tiercache_tracking::{MemoryTracking, SqliteConfig, SqliteTracking};

/// Panics in the calls it is told to, before the tier sees them or after.
#[derive(Debug, Default)]
struct Panicking(Mutex<BTreeSet<Point>>);

impl Panicking {
    fn arm(&self, point: Point) {
        self.0.lock().unwrap().insert(point);
    }

    fn heal(&self) {
        self.0.lock().unwrap().clear();
    }

    fn meet(&self, point: Point) {
        let armed = self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&point);
        assert!(!armed, "told to panic");
    }
}

#[async_trait]
impl Hooks for Panicking {
    async fn before(&self, op: Op) {
        self.meet(Point::Before(op));
    }

    async fn after(&self, op: Op) {
        self.meet(Point::After(op));
    }
}

const OPS: [Op; 7] = [Op::Get, Op::Put, Op::Remove, Op::Clear, Op::Usage, Op::Sweep, Op::Fence];

#[tokio::test(start_paused = true)]
async fn h27_a_level_that_panics_is_a_miss_or_an_error_and_everything_works_on() {
    for point in OPS.into_iter().flat_map(|op| [Point::Before(op), Point::After(op)]) {
        let store = MemoryTier::persistent();
        let dry = Hooked::opaque(store.clone(), Panicking::default());
        let hot = ram();
        let cache = CacheManager::builder()
            .clock(RuntimeClock::start())
            .hot(hot.clone())
            .dry(dry.clone())
            .tracking(Arc::new(MemoryTracking::new(&Default::default())))
            .build()
            .await
            .unwrap();
        for key in ["kept", "old", "gone"] {
            cache.set(key, "v").skip(Level::Hot).await.unwrap();
        }
        dry.hooks.arm(point);
        let fails = matches!(point, Point::Before(Op::Get) | Point::After(Op::Get));
        assert_eq!(get(&cache, "kept").await.is_none(), fails, "{point:?}");
        assert_eq!(cache.contains("old").await.unwrap(), !fails, "{point:?}");
        let written = cache.set("old", "new").await.unwrap();
        let fails = matches!(point, Point::Before(Op::Remove) | Point::After(Op::Remove));
        assert_eq!(written.degraded.len(), usize::from(fails), "{point:?}");
        cache.delete("gone").await.unwrap();
        cache.invalidate_tag("t", "1").await.unwrap();
        let put = cache.set("below", "v").skip(Level::Hot).await;
        let fails = matches!(point, Point::Before(Op::Put) | Point::After(Op::Put));
        assert_eq!(matches!(put, Err(Error::Panicked { .. })), fails, "{point:?}: {put:?}");
        cache.namespace("elsewhere").unwrap().clear().await.unwrap();
        cache.prune().await.unwrap();
        cache.stats().await.unwrap();
        assert_eq!(get(&cache, "old").await.unwrap(), "new", "{point:?}");
        assert_eq!(get(&cache, "gone").await, None, "{point:?}");

        // The workers that sink live on.
        hot.drain();
        tokio::time::sleep(Duration::from_secs(5)).await;
        dry.hooks.heal();
        tokio::time::sleep(Duration::from_secs(30)).await;
        for n in 0..1_000 {
            let key = format!("key {}", n % 100);
            cache.set(&key, n.to_string()).await.unwrap();
            assert_eq!(get(&cache, &key).await.unwrap(), n.to_string(), "{point:?}");
        }
        hot.drain();
        cache.settle().await.unwrap();
        let stats = cache.stats().await.unwrap();
        assert_eq!((stats.pending, stats.in_flight), ((0, 0), 0), "{point:?}");
        assert_eq!(store.get(&id("old")).await.unwrap().unwrap().value, "new", "{point:?}");
        assert_eq!(store.get(&id("gone")).await.unwrap(), None, "{point:?}");
        assert!(cache.close(Duration::from_secs(10)).await.unwrap().is_clean(), "{point:?}");
    }
}

#[tokio::test]
async fn h27_a_level_that_panics_when_it_is_closed_does_not_keep_the_others_open() {
    let (cold, dry) = (MemoryTier::persistent(), MemoryTier::persistent());
    let hooked = Hooked::opaque(cold.clone(), Panicking::default());
    hooked.hooks.arm(Point::Before(Op::Close));
    let cache = builder(&ManualClock::new()).cold(hooked).dry(dry.clone()).build().await.unwrap();
    let report = cache.close(Duration::from_secs(1)).await.unwrap();
    assert!(matches!(report.failures[..], [("memory", Error::Panicked { .. })]), "{report:?}");
    assert!(matches!(dry.usage().await, Err(Error::Closed)));
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
#[derive(Clone)]
struct Touchy(u8);

impl From<Touchy> for u8 {
    fn from(touchy: Touchy) -> Self {
        assert!(touchy.0 != 1, "told to panic");
        touchy.0
    }
}

impl TryFrom<u8> for Touchy {
    type Error = &'static str;

    fn try_from(byte: u8) -> Result<Self, &'static str> {
        assert!(byte != 2, "told to panic");
        if byte == 3 { Err("not a touchy") } else { Ok(Self(byte)) }
    }
}

#[tokio::test]
async fn h27_a_codec_that_panics_is_an_error_of_its_caller_alone() {
    let hot = ram();
    let cache = builder(&ManualClock::new()).hot(hot.clone()).build().await.unwrap();
    let typed = cache.typed::<Touchy>();
    assert!(matches!(typed.set("encoder", Touchy(1)), Err(Error::Panicked { .. })));
    cache.set("decoder", vec![2]).await.unwrap();
    assert!(matches!(typed.get("decoder").await, Err(Error::Panicked { .. })));
    cache.set("undecodable", vec![3]).await.unwrap();
    assert!(typed.get("undecodable").await.unwrap().is_none());
    for n in 0..1_000 {
        typed.set(format!("{n}"), Touchy(4)).unwrap().await.unwrap();
        assert_eq!(typed.get(format!("{n}")).await.unwrap().unwrap().0, 4);
    }
    assert_eq!(cache.stats().await.unwrap().undecodable, 1);
}

/// A store that does something of its own whenever it is called.
#[derive(Debug)]
struct Odd {
    inner: MemoryTracking,
    cache: OnceLock<CacheManager>,
    does: Does,
    on: AtomicBool,
    calls: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Panic,
    Fail,
    Hang,
    CallBack,
}

impl Odd {
    fn new(does: Does) -> Arc<Self> {
        let inner = MemoryTracking::new(&Default::default());
        let (cache, on, calls) = (OnceLock::new(), AtomicBool::new(true), AtomicU64::new(0));
        Arc::new(Self { inner, cache, does, on, calls })
    }

    async fn act(&self) -> Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if !self.on.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.does {
            Does::Panic => panic!("told to panic"),
            Does::Fail => Err(Error::unavailable("odd", "anything", "told to fail")),
            Does::Hang => std::future::pending().await,
            Does::CallBack => {
                if let Some(cache) = self.cache.get() {
                    cache.set("from the store", "v").await?;
                    cache.get("k").await?;
                    cache.delete("nothing").await?;
                }
                Ok(())
            }
        }
    }
}

#[async_trait]
impl Tracking for Odd {
    fn name(&self) -> &'static str {
        "odd"
    }

    async fn record(&self, events: &[Event]) -> Result<()> {
        self.act().await?;
        self.inner.record(events).await
    }

    async fn lookup(&self, key: &Key) -> Result<Option<Record>> {
        self.act().await?;
        self.inner.lookup(key).await
    }

    async fn find(&self, query: &Query, after: Option<&Key>, limit: usize) -> Result<Vec<Record>> {
        self.act().await?;
        self.inner.find(query, after, limit).await
    }

    async fn totals(&self) -> Result<Totals> {
        self.act().await?;
        self.inner.totals().await
    }

    async fn reset_totals(&self) -> Result<()> {
        self.act().await?;
        self.inner.reset_totals().await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[tokio::test(start_paused = true)]
async fn h27_h29_a_tracking_store_that_panics_fails_hangs_or_calls_back_harms_no_cache_call() {
    for does in [Does::Panic, Does::Fail, Does::Hang, Does::CallBack] {
        let odd = Odd::new(does);
        let hot = ram_for(50, 20);
        let cache = CacheManager::builder()
            .clock(RuntimeClock::start())
            .hot(hot)
            .dry(MemoryTier::persistent())
            .tracking(odd.clone())
            .build()
            .await
            .unwrap();
        // A weak hold would be its own business; the test ends the circle below by closing.
        odd.cache.set(cache.clone()).unwrap();
        let began = tokio::time::Instant::now();
        for n in 0..1_000 {
            let key = format!("key {}", n % 80);
            cache.set(&key, n.to_string()).await.unwrap();
            assert_eq!(get(&cache, &key).await.unwrap(), n.to_string(), "{does:?}");
        }
        assert!(cache.contains("key 1").await.unwrap());
        cache.delete("key 1").await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(2), "{does:?}: {:?}", began.elapsed());

        // What wants to know from it does without, in time.
        let began = tokio::time::Instant::now();
        assert!(cache.entry("key 2").await.unwrap().is_some(), "{does:?}");
        cache.stats().await.unwrap();
        assert!(began.elapsed() <= Duration::from_secs(4), "{does:?}: {:?}", began.elapsed());

        tokio::time::sleep(Duration::from_secs(5)).await;
        odd.on.store(false, Ordering::Relaxed);
        if does == Does::Hang {
            // That call stays hanging, and with it the batch; nothing else does.
            assert_eq!(get(&cache, "key 3").await.unwrap().len(), 3);
            continue;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        cache.settle().await.unwrap();
        let stats = cache.stats().await.unwrap();
        assert_eq!(stats.tracking_failures > 0, does != Does::CallBack, "{does:?}");
        assert_eq!(stats.tracking_lost, 0, "{does:?}");
        let listed = cache.keys(Query::all()).page(1_000).await.unwrap();
        let extra = usize::from(does == Does::CallBack);
        assert_eq!(listed.len(), 79 + extra, "{does:?}: everything is told once it listens again");
        assert!(odd.inner.totals().await.unwrap().sets >= 1_000, "{does:?}");
        cache.close(Duration::from_secs(5)).await.unwrap();
    }
}

#[tokio::test]
async fn h28_when_the_reading_caller_goes_away_one_of_those_who_waited_reads_in_its_place() {
    let rig = Gated::new().await;
    rig.sunk("k", "v").await;
    let point = Point::After(Op::Get);
    rig.gate.close_gate(point);
    let mut callers: Vec<_> = (0..20).map(|_| rig.spawn_get("k")).collect();
    for _ in 0..10 {
        rig.gate.held(point).await;
        idle().await;
        // The first that still waits is the one that reads.
        callers.remove(0).abort();
        idle().await;
        assert_eq!(rig.cache.stats().await.unwrap().in_flight, 1, "one reads, the others wait again");
    }
    rig.gate.open_gate(point);
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap(), "v");
    }
    assert_eq!(rig.cache.stats().await.unwrap().in_flight, 0);
}

#[tokio::test]
async fn h28_a_thousand_storms_of_callers_that_go_away_leave_nothing_behind() {
    let rig = Gated::new().await;
    rig.sunk("k", "v").await;
    let mut random = 1u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    for _ in 0..1_000 {
        let mut callers: Vec<_> = (0..next(6) + 1).map(|_| rig.spawn_get("k")).collect();
        for _ in 0..next(5) {
            tokio::task::yield_now().await;
        }
        let gone = next(callers.len() as u64 + 1) as usize;
        callers.drain(..gone).for_each(|caller| caller.abort());
        for caller in callers {
            assert_eq!(caller.await.unwrap().unwrap(), "v");
        }
        rig.evict();
        rig.cache.settle().await.unwrap();
    }
    idle().await;
    assert_eq!(rig.cache.stats().await.unwrap().in_flight, 0);
}

/// Counts while the runtime's one worker is free to.
fn heartbeat() -> (Arc<AtomicU64>, tokio::task::JoinHandle<()>) {
    let beats = Arc::new(AtomicU64::new(0));
    let counted = beats.clone();
    let task = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    (beats, task)
}

#[test]
fn h30_one_worker_is_never_held_up_by_a_database_that_is_busy() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tracking").join("index.db");
        let tracking = SqliteTracking::open(SqliteConfig { path: path.clone() }).await.unwrap();
        let cache = CacheManager::builder().hot(ram()).tracking(Arc::new(tracking)).build().await.unwrap();
        // Another process's transaction, as long as the test wants it.
        let other = rusqlite::Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let (beats, task) = heartbeat();
        cache.set("k", "v").await.unwrap();
        let settling = tokio::spawn({
            let cache = cache.clone();
            async move { cache.settle().await }
        });
        while beats.load(Ordering::Relaxed) < 50 {
            // Hits go on as well.
            assert_eq!(get(&cache, "k").await.unwrap(), "v");
            tokio::task::yield_now().await;
        }
        assert!(!settling.is_finished(), "the store waits for the other's transaction");
        other.execute_batch("ROLLBACK").unwrap();
        settling.await.unwrap().unwrap();
        task.abort();
        cache.close(Duration::from_secs(5)).await.unwrap();
    });
}

#[test]
fn h30_one_worker_does_everything_over_disk_and_database_without_being_held_up() {
    // Another thread measures what this machine makes everybody wait.
    let over = Arc::new(AtomicBool::new(false));
    let worst = |over: &AtomicBool, runtime: &tokio::runtime::Runtime| {
        let mut worst = Duration::ZERO;
        runtime.block_on(async {
            while !over.load(Ordering::Relaxed) {
                let began = std::time::Instant::now();
                tokio::time::sleep(Duration::from_millis(1)).await;
                worst = worst.max(began.elapsed());
            }
        });
        worst
    };
    let new = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let control = std::thread::spawn({
        let over = over.clone();
        move || worst(&over, &new())
    });
    let worked = new().block_on(async {
        let measured = tokio::spawn({
            let over = over.clone();
            async move {
                let mut worst = Duration::ZERO;
                while !over.load(Ordering::Relaxed) {
                    let began = std::time::Instant::now();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    worst = worst.max(began.elapsed());
                }
                worst
            }
        });
        everything().await;
        over.store(true, Ordering::Relaxed);
        measured.await.unwrap()
    });
    let control = control.join().unwrap();
    assert!(worked <= control + Duration::from_millis(150), "{worked:?}, where an idle one had {control:?}");
}

/// Every kind of call over a disk that syncs each write, and a database.
async fn everything() {
    let dir = tempfile::tempdir().unwrap();
    let clock = tiercache_core::SystemClock::start();
    let config = DiskConfig {
        path: Some(dir.path().join("level")),
        max_size: 64 << 20,
        segment_size: Some(4 << 20),
        flush: Flush::Each,
        ..DiskConfig::default()
    };
    let disk = DiskTier::open(config, clock.clone()).await.unwrap();
    let path = dir.path().join("tracking").join("index.db");
    let tracking = SqliteTracking::open(SqliteConfig { path }).await.unwrap();
    let hot = ram_for(20, 60_000);
    let cache = CacheManager::builder()
        .clock(clock)
        .hot(hot.clone())
        .dry(Arc::new(disk))
        .tracking(Arc::new(tracking))
        .write(Write::Behind)
        .build()
        .await
        .unwrap();
    for n in 0..200 {
        let set = cache.set(format!("key {n}"), vec![n as u8; 50_000]);
        set.tag("parity", (n % 2).to_string()).await.unwrap();
    }
    for n in 0..200 {
        let entry = cache.entry(format!("key {n}")).await.unwrap();
        assert!(entry.is_none_or(|entry| entry.value == vec![n as u8; 50_000]));
    }
    assert!(cache.touch("key 199", Duration::from_secs(60)).await.unwrap().found);
    cache.keys(Query::all()).page(1_000).await.unwrap();
    cache.delete("key 198").await.unwrap();
    cache.invalidate_tag("parity", "1").await.unwrap();
    assert_eq!(cache.get("key 199").await.unwrap(), None);
    hot.drain();
    cache.settle().await.unwrap();
    cache.prune().await.unwrap();
    cache.stats().await.unwrap();
    cache.flush(Level::Dry).await.unwrap();
    assert!(cache.close(Duration::from_secs(10)).await.unwrap().failures.is_empty());
}
