//! Managers over one directory agree, whatever their generations.

use std::sync::Arc;
use std::time::Duration;

use crate::common::*;
use tiercache_core::{CacheManager, Level, Limits, SystemClock, Write};
use tokio::task::JoinSet;

async fn manager(path: &std::path::Path) -> CacheManager {
    let tier = Arc::new(open_live(path));
    let builder = CacheManager::builder().clock(SystemClock::start()).write(Write::Through);
    // What this is about is agreement, not how busy the machine is.
    let limits = Limits { read_timeout: Duration::from_secs(10), write_timeout: Duration::from_secs(10) };
    builder.level(Level::Dry, tier).limits(Level::Dry, limits).build().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_has_done_the_others_see() {
    let dir = tempfile::tempdir().unwrap();
    let mut managers = Vec::new();
    for _ in 0..3 {
        managers.push(manager(dir.path()).await);
    }
    let mut keys = JoinSet::new();
    for number in 0..8usize {
        let managers = managers.clone();
        keys.spawn(async move {
            let name = format!("k{number}");
            for round in 0..60usize {
                let (writer, reader) = (&managers[(round + number) % 3], &managers[(round * 2 + number) % 3]);
                let large = if round % 7 == 0 { 100_000 } else { 10 };
                let value = format!("{round} ").repeat(large / 2);
                let written = writer.set(&name, value.clone()).tag("of", &name).await.unwrap();
                assert!(written.degraded.is_empty(), "{written:?}");
                assert_eq!(reader.get(&name).await.unwrap().unwrap(), value, "{name} {round}");
                match round % 5 {
                    0 => drop(reader.delete(&name).await.unwrap()),
                    1 => drop(reader.invalidate_tag("of", &name).await.unwrap()),
                    _ => continue,
                }
                for manager in &managers {
                    assert_eq!(manager.get(&name).await.unwrap(), None, "{name} {round}");
                }
            }
        });
    }
    while let Some(key) = keys.join_next().await {
        key.unwrap();
    }
    managers[0].clear().await.unwrap();
    for manager in &managers {
        for number in 0..8 {
            assert_eq!(manager.get(&format!("k{number}")).await.unwrap(), None);
        }
    }
    for manager in managers {
        manager.close(Duration::from_secs(5)).await.unwrap();
    }
    assert!(check(dir.path(), false).is_clean());
}
