//! What the tests of PostgreSQL share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tiercache_core::tracking::{Event, Record, What};
use tiercache_core::{Generation, Key, Level, Tags, Timestamp};
use tiercache_services::Postgres;
use tiercache_tracking::{PostgresConfig, PostgresTracking};

/// A schema of its own on the server.
pub(crate) fn config(server: &Postgres) -> PostgresConfig {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    PostgresConfig {
        url: Some(server.url().as_str().into()),
        schema: format!("s{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)),
        connect_timeout: Duration::from_secs(10),
        ..PostgresConfig::default()
    }
}

pub(crate) async fn opened(config: PostgresConfig) -> PostgresTracking {
    PostgresTracking::open(config).await.expect("opens")
}

pub(crate) fn key(name: &str) -> Key {
    Key::new("", name.as_bytes()).expect("a valid key")
}

pub(crate) fn record(name: &str, generation: u64) -> Record {
    let at = Timestamp::from_millis(1_000);
    Record {
        key: key(name),
        generation: Generation::new(generation),
        level: Level::Hot,
        size: 100,
        created: at,
        used: at,
        deadline: Timestamp::NEVER,
        hits: 0,
        tags: Tags::from([("type".into(), "image".into())]),
    }
}

pub(crate) fn event(what: What) -> Event {
    Event { at: Timestamp::from_millis(2_000), what }
}

pub(crate) fn stored(name: &str, generation: u64) -> Event {
    event(What::Stored(record(name, generation)))
}

pub(crate) fn used(name: &str, hits: u64) -> Event {
    event(What::Used { key: key(name), hits })
}
