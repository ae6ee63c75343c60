//! A cache put together in code: two levels of RAM over a folder.

use std::sync::Arc;
use std::time::Duration;

use tiercache::disk::{DiskConfig, DiskTier};
use tiercache::prelude::*;
use tiercache::ram::{RamConfig, RamTier};
use tiercache::{Clock, SystemClock};

#[tokio::main]
async fn main() -> tiercache::Result<()> {
    let ram =
        |mebibytes: u64| RamTier::new(RamConfig { max_size: mebibytes << 20, policy: Default::default() });
    let clock: Arc<dyn Clock> = SystemClock::start();
    let folder = std::env::temp_dir().join(format!("tiercache-quickstart-{}", std::process::id()));
    let disk = DiskConfig { path: Some(folder.clone()), ..DiskConfig::default() };
    let cache = CacheManager::builder()
        .clock(clock.clone())
        .hot(Arc::new(ram(64)))
        .cold(Arc::new(ram(256)))
        .dry(Arc::new(DiskTier::open(disk, clock).await?))
        .build()
        .await?;

    cache.set("greeting", "hello").await?;
    cache.set("session", "42").ttl(Duration::from_secs(60)).tag("user", "ada").await?;
    println!("{:?}", cache.get("greeting").await?);

    cache.invalidate_tag("user", "ada").await?;
    println!("{:?}", cache.get("session").await?);

    // What RAM holds sinks to the folder: it is there when the program starts again.
    println!("{}", cache.close(Duration::from_secs(5)).await?);
    std::fs::remove_dir_all(folder).map_err(|error| Error::unavailable("quickstart", "tidy up", error))
}
