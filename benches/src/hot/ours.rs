//! tiercache: two levels of RAM under one manager, tracking on unless the name says otherwise.

use std::hint::black_box;
use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Serialize};
use tiercache_core::tier::Resident;
use tiercache_core::{CacheManager, Tracking};
use tiercache_ram::{Policy, RamConfig, RamTier};
use tiercache_tracking::{MemoryConfig, MemoryTracking};
use tokio::runtime::{Builder, Runtime};

use super::contender::{Contender, awaited, each, seen, wait};
use super::{MANY, Room, VALUE_BYTES};

/// Where the managers' background work runs: beside the threads that are measured, as in a program.
static BACKGROUND: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime of one worker")
});

pub(super) fn all(room: Room) -> Vec<Contender> {
    vec![
        contender("tiercache", room, Policy::Adaptive, true),
        contender("tiercache-untracked", room, Policy::Adaptive, false),
        contender("tiercache-moka", room, Policy::Lru, true),
    ]
}

/// What `typed_hit` keeps.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Article {
    id: u64,
    title: String,
    body: String,
}

fn contender(name: &'static str, room: Room, policy: Policy, tracked: bool) -> Contender {
    // What the level counts of an entry: its overhead, the key with a byte before it, the value.
    let each_entry = policy.overhead() + (25 + VALUE_BYTES) as u64;
    let ram = |parts: u64| {
        let bytes = room.entries as u64 * each_entry;
        let max_size = if room.tight { bytes * parts / 5 } else { bytes * 2 + (64 << 20) };
        Arc::new(RamTier::new(RamConfig { max_size, policy }))
    };
    // Together the levels have as much room as the others have; what leaves hot is found in cold.
    let (hot, cold) = (ram(4), ram(1));
    let top = hot.clone();
    let cache = BACKGROUND.block_on(async {
        let mut builder = CacheManager::builder().hot(hot).cold(cold);
        if tracked {
            let tracking: Arc<dyn Tracking> = Arc::new(MemoryTracking::new(&MemoryConfig::default()));
            builder = builder.tracking(tracking);
        }
        builder.build().await.expect("levels in RAM need nothing")
    });
    let contender = awaited(
        name,
        cache.clone(),
        async |cache: &CacheManager, key: &String| cache.get(key).await,
        async |cache: &CacheManager, key: &String, value| {
            // Nothing here is too large, and nothing closed.
            drop(black_box(cache.set(key, value).await));
        },
    );
    let (one, many, typed, sunk) = (cache.clone(), cache.clone(), cache.clone(), cache.clone());
    let article = Article { id: 7, title: "A title".into(), body: "x".repeat(VALUE_BYTES - 60) };
    Contender {
        // As a caller writes it: through a closure each answer would be copied once more than raw engines' are.
        get: each(move |keys| {
            wait(async {
                for key in keys {
                    seen(&one.get(*key).await);
                }
            });
        }),
        get_many: Some(each(move |keys| {
            wait(async {
                for keys in keys.chunks(MANY) {
                    drop(black_box(many.get_many(keys).await));
                }
            });
        })),
        typed_get: (!room.tight).then(|| {
            let typed = typed.namespace("typed").expect("a short name").typed::<Article>();
            wait(async {
                for number in 0..room.entries.min(1_000) {
                    // Of its own: two threads do not count the handles of one value.
                    let article = Arc::new(article.clone());
                    let set = typed.set(crate::keys::key(number), article).expect("it serialises");
                    set.await.expect("it fits");
                }
            });
            let limit = crate::keys::key(room.entries.min(1_000));
            each(move |keys| {
                wait(async {
                    for key in keys.iter().filter(|key| ***key < limit) {
                        seen(&typed.get(key).await);
                    }
                });
            })
        }),
        sink: Box::new(move || {
            top.drain();
            // Tracking in memory takes everything.
            drop(wait(sunk.settle()));
        }),
        promotes: true,
        ..contender
    }
}
