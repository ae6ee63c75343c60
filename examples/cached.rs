//! A function behind the cache: asked twice, run once.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tiercache::prelude::*;
use tiercache::{BoxError, cached, from_yaml, set_default};

const TIERS: &str = "
hot_cache:  { backend: ram, max_size: 64MiB }
cold_cache: { backend: none }
dry_cache:  { backend: none }
tracking:   { backend: memory }
";

static QUERIES: AtomicU32 = AtomicU32::new(0);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct User {
    name: String,
}

/// A database, say.
#[derive(Clone)]
struct Database;

/// Kept for a minute; for five more, the old value is answered while the next is fetched.
#[cached(skip(database), ttl = "1m", stale_while_revalidate = "5m", negative_ttl = "10s", tags(user = id))]
async fn user(database: &Database, id: u64) -> Result<Option<User>, BoxError> {
    QUERIES.fetch_add(1, Ordering::Relaxed);
    Ok((id == 42).then(|| User { name: "Ada".into() }))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let cache = from_yaml(TIERS, &Registry::builtin()).await?;
    set_default(cache.clone())?;

    for id in [42, 42, 7, 7] {
        println!("{id}: {:?}", user(&Database, id).await?.map(|user| user.name));
    }
    println!("{} queries", QUERIES.load(Ordering::Relaxed));

    // Somebody changed the user.
    user::invalidate(42).await?;
    user(&Database, 42).await?;
    // This process did, and knows the new value.
    user::prime(42, User { name: "Ada Lovelace".into() }).await?;
    println!("42: {:?}", user(&Database, 42).await?.map(|user| user.name));
    println!("{} queries", QUERIES.load(Ordering::Relaxed));

    cache.close(Duration::from_secs(1)).await?;
    Ok(())
}
