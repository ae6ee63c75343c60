//! Tracking compared with levels of which some cannot be listed.

use std::sync::Arc;
use std::time::Duration;

use tiercache::ram::{RamConfig, RamTier};
use tiercache::{Config, Level, Registry};

fn registry() -> Registry {
    Registry::builtin()
        .with_tier("shelf", |config: RamConfig, _| async move { Ok(Arc::new(RamTier::new(config))) })
}

#[tokio::test]
async fn what_a_level_holds_that_cannot_be_listed_is_left_alone_and_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path().display();
    let text = format!(
        "hot_cache: {{ backend: none }}\ncold_cache: {{ backend: local, path: {at}/cold, max_size: 16MiB }}\n\
         dry_cache: {{ backend: shelf, max_size: 1MiB }}\ntracking: {{ backend: sqlite, path: {at}/index.db }}\n"
    );
    let read = || Config::parse(&text, &registry()).expect("a configuration");
    let cache = read().open().await.expect("a cache");
    for (key, level) in [("here", Level::Cold), ("there", Level::Dry)] {
        cache.set(key, "v").pin(level).await.expect("set");
    }
    cache.close(Duration::from_secs(10)).await.expect("closed");
    for repair in [false, true, false] {
        let drift = read().drift(repair, &[], |_| ()).await.expect("compared").expect("there is tracking");
        assert_eq!((drift.records, drift.entries, drift.stale, drift.untracked), (1, 1, 0, 0), "{drift:?}");
        assert_eq!(drift.compared, [Level::Cold]);
        let [(Level::Dry, why)] = &drift.not_compared[..] else { panic!("{drift:?}") };
        assert_eq!(why, "what `shelf` holds cannot be listed from outside");
        assert!(drift.is_clean() && !drift.repaired);
    }
}

#[tokio::test]
async fn tracking_that_nothing_outlives_is_not_compared() {
    let folder = tempfile::tempdir().expect("a folder");
    for tracking in ["memory", "none"] {
        let text = format!(
            "dry_cache: {{ backend: local, path: {}, max_size: 16MiB }}\ntracking: {{ backend: {tracking} }}\n",
            folder.path().display()
        );
        let config = Config::parse(&text, &registry()).expect("a configuration");
        assert!(config.drift(false, &[], |_| ()).await.expect("looked").is_none());
    }
}
