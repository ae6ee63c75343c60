//! A function behind the cache: asked twice, run once.

use std::sync::Arc;
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

#[derive(Clone, Debug, Serialize, Deserialize)]
struct User {
    name: String,
}

/// A database, say. Cheap to clone, as pools of connections are.
#[derive(Clone, Default)]
struct Database {
    queries: Arc<AtomicU32>,
}

impl Database {
    async fn find(&self, id: u64) -> Result<Option<User>, BoxError> {
        self.queries.fetch_add(1, Ordering::Relaxed);
        Ok((id == 42).then(|| User { name: "Ada".into() }))
    }
}

/// Kept for a minute; for five more, the old value is answered while the next is fetched.
#[cached(skip(database), ttl = "1m", stale_while_revalidate = "5m", negative_ttl = "10s", tags(user = id))]
async fn user(database: &Database, id: u64) -> Result<Option<User>, BoxError> {
    database.find(id).await
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let cache = from_yaml(TIERS, &Registry::builtin()).await?;
    set_default(cache.clone())?;
    let database = Database::default();

    for id in [42, 42, 7, 7] {
        println!("{id}: {:?}", user(&database, id).await?.map(|user| user.name));
    }
    println!("{} queries", database.queries.load(Ordering::Relaxed));

    // Somebody changed the user.
    user::invalidate(42).await?;
    user(&database, 42).await?;
    // This process did, and knows the new value.
    user::prime(42, User { name: "Ada Lovelace".into() }).await?;
    println!("42: {:?}", user(&database, 42).await?.map(|user| user.name));
    println!("{} queries", database.queries.load(Ordering::Relaxed));

    cache.close(Duration::from_secs(1)).await?;
    Ok(())
}
