//! A cache wired by a file: `cargo run -p tiercache-examples --bin from_yaml -- examples/tier.yaml`.

use std::time::Duration;

use tiercache::prelude::*;

#[tokio::main]
async fn main() -> tiercache::Result<()> {
    let file = std::env::args().nth(1).unwrap_or_else(|| "tier.yaml".to_owned());
    let cache = CacheManager::from_config(file).await?;

    cache.set("logo.png", vec![0x89, 0x50]).tag("type", "thumbnail").content_type("image/png").await?;
    if let Some(entry) = cache.entry("logo.png").await? {
        println!("{} bytes of {:?} from {}", entry.value.len(), entry.content_type, entry.level);
    }

    println!("{}", cache.close(Duration::from_secs(5)).await?);
    Ok(())
}
