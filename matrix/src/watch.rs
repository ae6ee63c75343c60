use std::future::IntoFuture;
use std::time::{Duration, Instant};

use tiercache::{CacheManager, Level, Removed, Result, Written};

/// The deadlines the caches of the matrix are given.
pub const READ_TIMEOUT: Duration = Duration::from_millis(300);
/// Likewise for writes.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// What a busy machine may add to anything.
const SLACK: Duration = Duration::from_millis(1_500);
/// A hit in RAM, on a busy machine.
const AT_ONCE: Duration = Duration::from_millis(250);
/// After the end of a trouble, the level is used again within this.
const HEALTHY: Duration = Duration::from_secs(5);
/// Misses that are asked for during a trouble.
const MISSES: u32 = 12;
/// Of them, those that may find out anew that the level is down: three until the breaker opens, and its probes.
const DEARLY: u32 = 6;

/// How often the troubles come: `cargo xtask matrix --rounds N`, else once.
///
/// # Panics
/// When the variable says no number.
pub fn rounds() -> usize {
    let rounds = std::env::var("TIERCACHE_MATRIX_ROUNDS").ok();
    rounds.map_or(1, |rounds| rounds.parse().expect("TIERCACHE_MATRIX_ROUNDS is a number"))
}

/// Looks at a cache before, during and after one trouble of a store under it.
#[derive(Debug)]
pub struct Watch {
    what: String,
    below: String,
    above: String,
    removed: String,
    /// What was kept above until it was replaced in the trouble, and what came of that.
    replaced: Option<String>,
}

impl Watch {
    /// Makes sure that all is well, and puts values at the level, and above it, to be looked for.
    ///
    /// # Panics
    /// When something is not as the contract has it, as all of these.
    pub async fn before(cache: &CacheManager, what: String, round: usize) -> Self {
        let watch = Self {
            below: format!("below {round}"),
            above: format!("above {round}"),
            removed: format!("removed {round}"),
            replaced: None,
            what,
        };
        watch.is_healthy(cache).await;
        for key in [&watch.below, &watch.removed] {
            watch.done(cache.set(key, "old"), WRITE_TIMEOUT).await.expect(&watch.what);
        }
        cache.flush(Level::Hot).await.expect(&watch.what);
        watch.done(cache.set(&watch.above, "old"), WRITE_TIMEOUT).await.expect(&watch.what);
        watch
    }

    /// The trouble is there: hits above do not wait, misses wait for a deadline and not for long, writes and removals
    /// say what came of them, and nothing older is answered. Returns whether a write or a removal did not get through.
    pub async fn during(&mut self, cache: &CacheManager) -> bool {
        let what = &self.what;
        self.hit(cache).await;
        let began = Instant::now();
        for number in 0..MISSES {
            let asked = Instant::now();
            assert_eq!(text(cache, &format!("never set {number}")).await, None, "{what}");
            assert!(asked.elapsed() < READ_TIMEOUT + SLACK, "{what}: a miss took {:?}", asked.elapsed());
        }
        let took = began.elapsed();
        assert!(took < READ_TIMEOUT * DEARLY + SLACK, "{what}: {MISSES} misses took {took:?}");
        let replaced: Result<Written> = self.done(cache.set(&self.below, "new"), WRITE_TIMEOUT).await;
        let found = text(cache, &self.below).await;
        assert_ne!(found.as_deref(), Some("old"), "{what}: after a set that ended with {replaced:?}");
        let mut felt = replaced.as_ref().map_or(true, |written| !written.degraded.is_empty());
        for key in [&self.above, &self.removed] {
            let removed: Result<Removed> = self.done(cache.delete(key), WRITE_TIMEOUT).await;
            let removed = removed.expect(what);
            felt |= !removed.degraded.is_empty();
            assert_eq!(text(cache, key).await, None, "{what}: degraded {:?}", removed.degraded);
        }
        self.replaced = Some(format!("{replaced:?}"));
        felt
    }

    /// The trouble is over: the level is used again, and what was replaced or removed stays so.
    pub async fn after(self, cache: &CacheManager) {
        self.is_healthy(cache).await;
        cache.flush(Level::Hot).await.expect(&self.what);
        let Self { what, below, above, removed, replaced } = self;
        let found = text(cache, &below).await;
        // A set that failed has removed what was there.
        assert!(found.is_none() || found.as_deref() == Some("new"), "{what}: {found:?} after {replaced:?}");
        for key in [above, removed] {
            assert_eq!(text(cache, &key).await, None, "{what}: {key} is back");
        }
    }

    /// A hit above needs nobody.
    async fn hit(&self, cache: &CacheManager) {
        let asked = Instant::now();
        assert_eq!(text(cache, &self.above).await.as_deref(), Some("old"), "{}", self.what);
        assert!(asked.elapsed() < AT_ONCE, "{}: a hit took {:?}", self.what, asked.elapsed());
    }

    /// The level takes values and gives them back, within [`HEALTHY`].
    async fn is_healthy(&self, cache: &CacheManager) {
        let began = Instant::now();
        let mut again = tokio::time::interval(Duration::from_millis(50));
        loop {
            again.tick().await;
            let set = cache.set("probe", "alive").await;
            if set.as_ref().is_ok_and(|written| written.degraded.is_empty()) {
                cache.flush(Level::Hot).await.expect(&self.what);
                if text(cache, "probe").await.as_deref() == Some("alive") {
                    return;
                }
            }
            assert!(began.elapsed() < HEALTHY, "{}: the level is not used again: {set:?}", self.what);
        }
    }

    /// What `work` ends with, within twice `limit`: a call may need two answers, to fence and to write.
    async fn done<T>(&self, work: impl IntoFuture<Output = T>, limit: Duration) -> T {
        let began = Instant::now();
        let done = work.await;
        let took = began.elapsed();
        assert!(took < limit * 2 + SLACK, "{}: took {took:?}", self.what);
        done
    }
}

async fn text(cache: &CacheManager, key: &str) -> Option<String> {
    let value = cache.get(key).await.expect("a get does not fail");
    value.map(|value| String::from_utf8_lossy(&value).into_owned())
}
