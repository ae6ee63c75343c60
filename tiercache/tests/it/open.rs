//! From a file to a cache that works.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::common::variables;
use serde::{Deserialize, Serialize};
use tiercache::core::tracking::NoTracking;
use tiercache::prelude::*;
use tiercache::ram::{RamConfig, RamTier};
use tiercache::{Config, from_config, from_yaml};

fn tiers(folder: &Path, more: &str) -> String {
    let folder = folder.display();
    format!(
        "hot_cache: {{ backend: ram, max_size: 1MiB }}\n\
         cold_cache: {{ backend: ram, max_size: 1MiB }}\n\
         dry_cache: {{ backend: local, path: '{folder}/dry', max_size: 16MiB }}\n\
         tracking: {{ backend: sqlite, path: '{folder}/index.db' }}\n{more}"
    )
}

#[tokio::test]
async fn a_file_wires_a_cache_that_keeps_values_over_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tier.yaml");
    std::fs::write(&file, tiers(folder.path(), "")).expect("a file");
    let cache = CacheManager::from_config(&file).await.expect("a cache");
    cache.set("k", "v").tag("type", "raw").await.expect("set");
    assert_eq!(cache.entry("k").await.expect("get").expect("there").level, Level::Hot);
    let report = cache.close(Duration::from_secs(5)).await.expect("closed");
    assert_eq!((report.written, report.dropped()), (1, 0), "{report}");

    let cache = from_config(&file, &Registry::builtin()).await.expect("a cache");
    let entry = cache.entry("k").await.expect("get").expect("there");
    assert_eq!((entry.level, &entry.value[..], entry.tags["type"].as_str()), (Level::Dry, &b"v"[..], "raw"));
    cache.close(Duration::from_secs(5)).await.expect("closed");
}

#[tokio::test]
async fn two_caches_share_a_level_in_sqlite() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = |index: &str| {
        let folder = folder.path().display();
        format!(
            "hot_cache: {{ backend: ram, max_size: 1MiB }}\ncold_cache: {{ backend: none }}\n\
             dry_cache: {{ backend: sqlite, path: '{folder}/dry', max_size: 16MiB, busy_timeout: 2s }}\n\
             tracking: {{ backend: sqlite, path: '{folder}/{index}.db' }}\nwrite: through\n"
        )
    };
    let one = from_yaml(&text("one"), &Registry::builtin()).await.expect("a cache");
    let two = from_yaml(&text("two"), &Registry::builtin()).await.expect("a cache");
    one.set("k", "first").tag("type", "raw").await.expect("set");
    assert_eq!(two.get("k").await.expect("get").as_deref(), Some(&b"first"[..]));
    two.set("k", "second").await.expect("set");
    one.flush(Level::Hot).await.expect("flush");
    assert_eq!(
        one.get("k").await.expect("get").as_deref(),
        Some(&b"second"[..]),
        "from the level they share"
    );
    one.set("tagged", "v").tag("type", "raw").await.expect("set");
    two.invalidate_tag("type", "raw").await.expect("invalidated");
    one.flush(Level::Hot).await.expect("flush");
    assert_eq!(one.get("tagged").await.expect("get"), None);
    for cache in [one, two] {
        cache.close(Duration::from_secs(5)).await.expect("closed");
    }
}

#[tokio::test]
async fn a_wrong_number_of_shards_names_the_section_and_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = |shards: u32| {
        let path = folder.path().display();
        format!("dry_cache: {{ backend: sqlite, path: '{path}/dry', max_size: 16MiB, shards: {shards} }}\n")
    };
    let cache = from_yaml(&text(2), &Registry::builtin()).await.expect("a cache");
    cache.close(Duration::from_secs(5)).await.expect("closed");
    let said = from_yaml(&text(8), &Registry::builtin()).await.expect_err("refused").to_string();
    assert!(said.contains("dry_cache") && said.contains("2 shards") && said.contains("leave"), "{said}");
}

#[tokio::test]
async fn the_write_mode_of_the_file_is_in_force() {
    for write in ["behind", "through"] {
        let folder = tempfile::tempdir().expect("a folder");
        let text = tiers(folder.path(), &format!("write: {write}\npending: 1MiB\nsweep: 1h\n"));
        let cache = from_yaml(&text, &Registry::builtin()).await.expect("a cache");
        cache.set("k", "v").await.expect("set");
        cache.settle().await.expect("settled");
        let dry = cache.stats().await.expect("stats").levels[2].usage.expect("usage");
        assert_eq!(dry.entries, Some(1), "{write}");
        cache.close(Duration::from_secs(5)).await.expect("closed");
    }
}

#[tokio::test]
async fn counters_stand_at_the_level_the_file_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache =
        from_yaml(&tiers(folder.path(), "counters: hot\n"), &Registry::builtin()).await.expect("a cache");
    assert_eq!(cache.counter_level().expect("a level"), tiercache::Level::Hot);
    cache.close(Duration::from_secs(5)).await.expect("closed");
    let refused = from_yaml(&tiers(folder.path(), "counters: dry\n"), &Registry::builtin()).await;
    let told = refused.expect_err("the disk does not count").to_string();
    assert!(told.contains("`counters: dry`"), "{told}");
}

#[tokio::test]
async fn rules_of_the_file_are_in_force() {
    let folder = tempfile::tempdir().expect("a folder");
    let rules = "ttl_rules: [{ tag: { type: short }, hot_ttl: 1ms, cold_ttl: 1ms }]\nsweep: 10ms\n";
    let cache = from_yaml(&tiers(folder.path(), rules), &Registry::builtin()).await.expect("a cache");
    cache.set("short", "v").tag("type", "short").await.expect("set");
    cache.set("long", "v").await.expect("set");
    let sunk = async {
        while cache.stats().await.expect("stats").levels[2].usage.and_then(|usage| usage.entries) != Some(1) {
            cache.prune().await.expect("pruned");
            cache.settle().await.expect("settled");
        }
    };
    tokio::time::timeout(Duration::from_secs(10), sunk).await.expect("it sinks at once");
    assert_eq!(cache.entry("long").await.expect("get").expect("there").level, Level::Hot);
    assert_eq!(cache.entry("short").await.expect("get").expect("there").level, Level::Dry);
    cache.close(Duration::from_secs(5)).await.expect("closed");
}

#[tokio::test]
async fn the_documented_minimal_file_works_or_names_the_folder_that_cannot_be_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().display();
    let minimal = format!("dry_cache: {{ path: {path}/made/on/the/way }}");
    let cache = from_yaml(&minimal, &Registry::builtin()).await.expect("folders are made");
    cache.set("k", "v").await.expect("set");
    cache.close(Duration::from_secs(5)).await.expect("closed");
    assert!(folder.path().join("made/on/the/way-index.db").is_file(), "the index stands beside the level");

    std::fs::write(folder.path().join("file"), "").expect("a file");
    let error = from_yaml(&format!("dry_cache: {{ path: {path}/file/dry }}"), &Registry::builtin()).await;
    let error = error.expect_err("a file is no folder").to_string();
    assert!(error.contains("dry_cache") && error.contains(&format!("{path}/file")), "{error}");
    let text = format!("dry_cache: {{ path: {path}/other }}\ntracking: {{ path: {path}/file/index.db }}");
    let error = from_yaml(&text, &Registry::builtin()).await.expect_err("a file is no folder").to_string();
    assert!(error.contains("tracking") && error.contains(&format!("{path}/file")), "{error}");
}

#[tokio::test]
async fn two_caches_on_one_folder_are_refused_and_the_error_says_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = tiers(folder.path(), "");
    let cache = from_yaml(&text, &Registry::builtin()).await.expect("a cache");
    let error = from_yaml(&text, &Registry::builtin()).await.expect_err("the folder is taken");
    assert!(matches!(error, Error::Refused(_)), "{error:?}");
    assert!(error.to_string().contains("dry_cache"), "{error}");
    cache.close(Duration::from_secs(5)).await.expect("closed");
    from_yaml(&text, &Registry::builtin()).await.expect("it is free again");
}

#[test]
fn a_program_without_a_runtime_uses_the_same_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let (text, registry) = (tiers(folder.path(), ""), Registry::builtin());
    let cache = BlockingCache::start(from_yaml(&text, &registry)).expect("a cache");
    cache.set("k", "v").expect("set");
    cache.close(Duration::from_secs(5)).expect("closed");
    let cache = BlockingCache::start(from_yaml(&text, &registry)).expect("a cache");
    assert_eq!(cache.get("k").expect("get").as_deref(), Some(&b"v"[..]));
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ShelfConfig {
    room: u64,
    #[serde(default)]
    patience: Option<Duration>,
    #[serde(default)]
    password: Option<String>,
}

fn with_shelf() -> Registry {
    Registry::builtin()
        .with_tier("shelf", |config: ShelfConfig, place| async move {
            assert_eq!((place.section.as_str(), place.level), ("dry_cache", Some(Level::Dry)));
            Ok(Arc::new(RamTier::new(RamConfig { max_size: config.room, policy: Default::default() })))
        })
        .with_tracking("diary", |_: serde_json::Value, _| async { Ok(Arc::new(NoTracking)) })
}

#[tokio::test]
async fn a_third_partys_backend_is_used_from_yaml_under_its_name() {
    let text = "dry_cache: { backend: shelf, room: 2MB, patience: 90s }\ntracking: { backend: diary }\n";
    let cache = from_yaml(text, &with_shelf()).await.expect("a cache");
    cache.set("k", "v").pin(Level::Dry).await.expect("set");
    assert_eq!(cache.entry("k").await.expect("get").expect("there").level, Level::Dry);
}

#[test]
fn a_third_partys_configuration_is_checked_and_shown_like_ours() {
    let read = |text: &str| Config::read("tier.yaml", text, &with_shelf(), &variables);
    for (text, says) in [
        (
            "dry_cache: { backend: shelf, rom: 1MB }",
            "tier.yaml:1:30: dry_cache.rom: unknown key; allowed: backend, ttl, read_timeout, write_timeout, when_down, room, patience, password; did you mean `room`?",
        ),
        ("dry_cache: { backend: shelf }", "tier.yaml:1:12: dry_cache: the key `room` is missing"),
        (
            "dry_cache: { backend: shelf, room: wide }",
            "tier.yaml:1:36: dry_cache.room: found the text \"wide\"",
        ),
        ("dry_cache: { backend: shelf, room: 1MB, patience: 9 }", "dry_cache.patience: `9` has no unit"),
        ("dry_cache: { backend: shef, room: 1MB }", "did you mean `shelf`?"),
        ("tracking: { backend: shelf }", "`shelf` is a store for a level, not for tracking"),
    ] {
        let message = read(text).expect_err(text).to_string();
        assert!(message.contains(says), "{message}");
    }
    let text = "dry_cache: { backend: shelf, patience: 90s }\nshelf: { room: 1MB, password: '${SECRET}' }";
    let shown = read(text).unwrap_or_else(|error| panic!("{error}")).to_json()["dry_cache"].clone();
    assert_eq!((&shown["room"], &shown["patience"]), (&1_000_000.into(), &"1m 30s".into()));
    assert_eq!(shown["password"], "(hidden)");
}
