//! The same cache for a program without an async runtime, here with text instead of a file.

use std::time::Duration;

use tiercache::from_yaml;
use tiercache::prelude::*;

const TIERS: &str = "
hot_cache:  { backend: ram, max_size: 64MiB }
cold_cache: { backend: none }
dry_cache:  { backend: none }
tracking:   { backend: memory }
";

fn main() -> tiercache::Result<()> {
    let registry = Registry::builtin();
    let cache = BlockingCache::start(from_yaml(TIERS, &registry))?;
    cache.set("greeting", "hello")?;
    println!("{:?}", cache.get("greeting")?);
    cache.close(Duration::from_secs(1))?;
    Ok(())
}
