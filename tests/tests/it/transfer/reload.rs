use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tiercache::{CacheManager, Change, Config, Registry, Reload};
use tiercache_core::testing::{ManualClock, Op, Point};
use tiercache_core::tier::Resident;
use tiercache_core::{Error, Level, Retune, Rule, Rules, Stay};
use tiercache_tests::rig::{Gated, builder, get, id, idle, ram};
use tokio::sync::Semaphore;

fn parsed(folder: &Path, text: &str) -> Config {
    let text = text.replace("FOLDER", &folder.display().to_string());
    Config::parse(&text, &Registry::builtin()).unwrap()
}

const TEXT: &str = "
hot_cache: { backend: ram, max_size: 8MiB, ttl: 1h }
cold_cache: { backend: none }
dry_cache: { backend: local, path: FOLDER/dry, max_size: 64MiB }
tracking: { backend: sqlite, path: FOLDER/index.db }
";

async fn capacities(cache: &CacheManager) -> Vec<u64> {
    let levels = cache.stats().await.unwrap().levels;
    levels.into_iter().map(|level| level.usage.unwrap().capacity.unwrap()).collect()
}

fn paths(changes: &[Change]) -> Vec<&str> {
    changes.iter().map(|change| change.path.as_str()).collect()
}

#[tokio::test]
async fn a_smaller_level_lets_sink_what_no_longer_fits_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    // Less may be on its way than must sink: it goes down in steps.
    let text = format!("{TEXT}pending: 1MiB\n");
    let cache = parsed(folder.path(), &text).open().await.unwrap();
    for number in 0..1_000 {
        cache.set(format!("k{number}"), vec![b'v'; 6_000]).await.unwrap();
    }
    let held = cache.stats().await.unwrap().levels[0].usage.unwrap().bytes.unwrap();
    assert!(held > 6_000_000, "{held}");
    let smaller = text.replace("max_size: 8MiB", "max_size: 256KiB");
    let changes = cache.reload(parsed(folder.path(), &smaller)).await.unwrap();
    let told: Vec<String> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["hot_cache.max_size: 8MiB → 256KiB"]);
    let stats = cache.stats().await.unwrap();
    assert_eq!(stats.levels[0].usage.unwrap().capacity, Some(256 << 10));
    assert!(stats.levels[0].usage.unwrap().bytes.unwrap() <= 256 << 10);
    assert_eq!(stats.overflowed, 0);
    for number in 0..1_000 {
        assert!(cache.get(format!("k{number}")).await.unwrap().is_some(), "k{number}");
    }
    // And back, with the disk level larger at the same time.
    let larger = text.replace("max_size: 64MiB", "max_size: 128MiB");
    let changes = cache.reload(parsed(folder.path(), &larger)).await.unwrap();
    assert_eq!(paths(&changes), ["dry_cache.max_size", "hot_cache.max_size"]);
    assert_eq!(capacities(&cache).await, [8 << 20, 128 << 20]);
    assert!(cache.reload(parsed(folder.path(), &larger)).await.unwrap().is_empty());
    assert!(cache.close(Duration::from_secs(10)).await.unwrap().is_clean());
}

#[tokio::test]
async fn a_smaller_disk_level_gives_up_its_oldest_segments_as_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let text = "
hot_cache: { backend: none }
cold_cache: { backend: none }
dry_cache: { backend: local, path: FOLDER/dry, max_size: 16MiB, segment_size: 1MiB }
tracking: { backend: none }
";
    let cache = parsed(folder.path(), text).open().await.unwrap();
    let fill = async |from: u32, to: u32| {
        for number in from..to {
            let value: Vec<u8> = (0..50_000u32).map(|at| (at.wrapping_mul(number + 7) >> 3) as u8).collect();
            cache.set(format!("k{number}"), value).await.unwrap();
        }
        cache.settle().await.unwrap();
    };
    let bytes = || {
        let files = std::fs::read_dir(folder.path().join("dry")).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>()
    };
    fill(0, 200).await;
    assert!(bytes() > 9 << 20, "{}", bytes());
    let smaller = text.replace("max_size: 16MiB", "max_size: 4MiB");
    cache.reload(parsed(folder.path(), &smaller)).await.unwrap();
    fill(200, 300).await;
    assert!(bytes() < 6 << 20, "{}", bytes());
    assert_eq!(capacities(&cache).await, [4 << 20]);
    assert!(cache.get("k299").await.unwrap().is_some());
}

#[tokio::test]
async fn the_sqlite_level_changes_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let text = "
hot_cache: { backend: none }
cold_cache: { backend: none }
dry_cache: { backend: sqlite, path: FOLDER/dry, max_size: 16MiB, shards: 1 }
tracking: { backend: none }
";
    let cache = parsed(folder.path(), text).open().await.unwrap();
    for number in 0..100 {
        cache.set(format!("k{number}"), vec![b'v'; 20_000]).await.unwrap();
    }
    let smaller = text.replace("max_size: 16MiB", "max_size: 1MiB");
    cache.reload(parsed(folder.path(), &smaller)).await.unwrap();
    cache.set("last", vec![b'v'; 20_000]).await.unwrap();
    let usage = cache.stats().await.unwrap().levels[0].usage.unwrap();
    assert!(usage.capacity == Some(1 << 20) && usage.bytes.unwrap() <= 1 << 20, "{usage:?}");
    assert!(cache.get("last").await.unwrap().is_some());
}

#[tokio::test]
async fn new_rules_hold_for_what_is_set_and_for_what_sinks() {
    let clock = ManualClock::new();
    let (hot, cold) = (ram(), ram());
    let cache = builder(&clock).hot(hot.clone()).cold(cold.clone()).build().await.unwrap();
    let stay = |seconds| Some(Stay::For(Duration::from_secs(seconds)));
    let rules = |hot, cold| Rules {
        rules: vec![Rule { tags: [("type".into(), "page".into())].into(), stays: [hot, cold, None] }],
        defaults: [Some(Stay::Forever); 3],
    };
    cache.retune(move |_| Ok(Retune::new().rules(rules(stay(10), stay(100))))).await.unwrap();
    cache.set("before", "v").tag("type", "page").await.unwrap();
    cache.retune(move |_| Ok(Retune::new().rules(rules(stay(20), stay(200))))).await.unwrap();
    cache.set("after", "v").tag("type", "page").await.unwrap();
    cache.set("untagged", "v").await.unwrap();
    let left = |tier: &tiercache_ram::RamTier, key: &str| {
        let resting = tier.peek(id(key).as_ref()).unwrap();
        resting.until.since(tiercache_core::Clock::now(&*clock))
    };
    assert_eq!(left(&hot, "before"), Duration::from_secs(10), "what rests keeps the stay it came with");
    assert_eq!(left(&hot, "after"), Duration::from_secs(20));
    assert!(hot.peek(id("untagged").as_ref()).unwrap().until.is_never());
    hot.drain();
    cache.settle().await.unwrap();
    for key in ["before", "after"] {
        assert_eq!(left(&cold, key), Duration::from_secs(200), "{key}");
    }
}

#[tokio::test]
async fn time_outs_change_for_calls_that_come() {
    let rig = Gated::new().await;
    rig.sunk("k", "v").await;
    let timeouts = |read| move |_: Option<&_>| Ok(Retune::new().timeouts(Level::Dry, read, None));
    rig.cache.retune(timeouts(Some(Duration::from_millis(1)))).await.unwrap();
    rig.gate.close_gate(Point::Before(Op::Get));
    assert_eq!(get(&rig.cache, "k").await, None, "a level that does not answer in time is a miss");
    rig.gate.open_gate(Point::Before(Op::Get));
    rig.cache.retune(timeouts(None)).await.unwrap();
    assert_eq!(get(&rig.cache, "k").await.unwrap(), "v");
}

#[tokio::test]
async fn what_cannot_change_is_refused_as_a_whole_and_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("{TEXT}ttl_rules: [{{ tag: {{ type: page }}, hot_ttl: 1m }}]\n");
    let cache = parsed(folder.path(), &text).open().await.unwrap();
    cache.set("k", "v").await.unwrap();
    let before = capacities(&cache).await;
    let refused = async |from: &str, to: &str| {
        // Something that could change goes with it, and must not.
        let next = text.replace("8MiB", "4MiB").replace(from, to);
        assert!(next.contains(to));
        match cache.reload(parsed(folder.path(), &next)).await {
            Err(Error::Config(message)) => {
                assert!(message.contains("nothing has changed") || message.contains("max_size"), "{message}");
                assert!(!message.contains("hot_cache.max_size"), "{message}");
                message
            }
            other => panic!("{to}: {other:?}"),
        }
    };
    let path = folder.path().display();
    let message = refused("FOLDER/dry", "FOLDER/other").await;
    assert!(
        message.contains(&format!("dry_cache.path: is {path}/dry, would become {path}/other")),
        "{message}"
    );
    let message =
        refused("cold_cache: { backend: none }", "cold_cache: { backend: ram, max_size: 1MiB }").await;
    assert!(message.contains("cold_cache.backend: is none, would become ram"), "{message}");
    assert_eq!(message.matches("cold_cache.").count(), 1, "{message}");
    let message = refused("tracking:", "write: through\ntracking:").await;
    assert!(message.contains("write: is back, would become through"), "{message}");
    let message = refused("backend: sqlite, path: FOLDER/index.db", "backend: memory").await;
    assert!(message.contains("tracking.backend: is sqlite, would become memory"), "{message}");
    let message = refused("max_size: 64MiB", "max_size: 64MiB, compression: lz4").await;
    assert!(message.contains("dry_cache.compression: is none, would become lz4"), "{message}");
    // Read as such it would do; the segments that are there are too large for it.
    let message = refused("max_size: 64MiB", "max_size: 16MiB").await;
    assert!(message.contains("dry_cache.max_size: 16777216 has no room for three segments"), "{message}");
    assert_eq!(capacities(&cache).await, before);
    assert_eq!(get(&cache, "k").await.unwrap(), "v");
    assert_eq!(
        paths(
            &cache.reload(parsed(folder.path(), &text.replace("hot_ttl: 1m", "hot_ttl: 2m"))).await.unwrap()
        ),
        ["ttl_rules"]
    );
}

#[tokio::test]
async fn a_secret_that_changes_is_noticed_and_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let key = |letter: &str| format!("{}=", letter.repeat(42) + "A");
    let text = |key: &str| {
        TEXT.replace("max_size: 64MiB", &format!("max_size: 64MiB, encryption: {{ key: \"{key}\" }}"))
    };
    let cache = parsed(folder.path(), &text(&key("A"))).open().await.unwrap();
    assert!(cache.reload(parsed(folder.path(), &text(&key("A")))).await.unwrap().is_empty());
    match cache.reload(parsed(folder.path(), &text(&key("B")))).await {
        Err(Error::Config(message)) => {
            assert!(message.contains("dry_cache.encryption.key: is a value that is not shown"), "{message}");
            assert!(!message.contains("AAAA") && !message.contains("BBBB"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_cache_without_a_configuration_says_so() {
    let cache = super::cache(&ManualClock::new()).await;
    let folder = tempfile::tempdir().unwrap();
    let refused = cache.reload(parsed(folder.path(), TEXT)).await;
    assert!(matches!(refused, Err(Error::Config(_))), "{refused:?}");
    let no_level = cache.retune(|_| Ok(Retune::new().capacity(Level::Cold, 1))).await;
    assert!(matches!(no_level, Err(Error::Config(_))), "{no_level:?}");
    cache.close(Duration::from_secs(1)).await.unwrap();
    assert!(matches!(cache.retune(|_| Ok(Retune::new())).await, Err(Error::Closed)));
}

#[tokio::test(start_paused = true)]
async fn limits_and_defaults_of_loading_change() {
    let folder = tempfile::tempdir().unwrap();
    let text = "
hot_cache: { backend: ram, max_size: 1MiB }
cold_cache: { backend: none }
dry_cache: { backend: none }
tracking: { backend: none }
";
    let cache = parsed(folder.path(), &format!("{text}loading: {{ max_loads: 1 }}\n")).open().await.unwrap();
    let (begun, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let load = |key: &'static str| {
        let (cache, begun, gate) = (cache.clone(), begun.clone(), gate.clone());
        let load = async move || {
            begun.add_permits(1);
            gate.acquire().await.unwrap().forget();
            Ok::<_, Error>("v")
        };
        tokio::spawn(async move { cache.get_or_load(key, load).await.unwrap() })
    };
    let first = load("a");
    begun.acquire().await.unwrap().forget();
    let second = load("b");
    idle().await;
    assert_eq!(begun.available_permits(), 0, "one at once");
    let more = parsed(folder.path(), &format!("{text}loading: {{ max_loads: 2, lease: 5s, jitter: 0.5 }}\n"));
    let changes = cache.reload(more).await.unwrap();
    let told: Vec<String> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["loading.jitter: 0.0 → 0.5", "loading.lease: null → 5s", "loading.max_loads: 1 → 2"]);
    begun.acquire().await.unwrap().forget();
    gate.add_permits(2);
    assert_eq!((first.await.unwrap(), second.await.unwrap()), ("v".into(), "v".into()));
    // Lives are shortened from now on.
    let mut least = Duration::MAX;
    for number in 0..20 {
        let key = format!("j{number}");
        cache.get_or_load(&key, async || Ok::<_, Error>("v")).ttl(Duration::from_secs(1_000)).await.unwrap();
        least = least.min(cache.entry(&key).await.unwrap().unwrap().time_left.unwrap());
    }
    assert!(least < Duration::from_secs(900), "{least:?}");
}
