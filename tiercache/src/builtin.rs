//! The backends that are compiled in.

use std::sync::Arc;

use tiercache_tracking::{MemoryConfig, MemoryTracking};

use crate::Registry;
#[cfg(any(feature = "disk", feature = "sqlite"))]
use crate::{config::Problem, registry::Section};

impl Registry {
    /// The backends that are compiled in, by the features of the same names: `ram`, `local` (feature `disk`), `sqlite`,
    /// `memcached`, `redis`, `s3` and `mongodb` for levels; `memory`, `sqlite`, `postgres`, `redis` and `mongodb` for
    /// tracking.
    pub fn builtin() -> Self {
        let registry = Self::empty().with_tracking("memory", |config: MemoryConfig, _| async move {
            Ok(Arc::new(MemoryTracking::new(&config)))
        });
        #[cfg(feature = "ram")]
        let registry = registry.checked_tier(
            "ram",
            |section| Ok(section.with_size()),
            |_| Ok(()),
            |config, _| async move { Ok(Arc::new(tiercache_ram::RamTier::new(config))) },
        );
        #[cfg(feature = "disk")]
        let registry = {
            use tiercache_disk::{DiskConfig, DiskTier};
            registry
                .checked_tier(
                    "local",
                    |section| in_folder(section, || DiskConfig::default().directory()),
                    DiskConfig::check,
                    |config, place| async move { DiskTier::open(config, place.clock).await.map(Arc::new) },
                )
                .looked_at("local", |section| {
                    in_folder(section, || DiskConfig::default().directory())?.look(DiskTier::contents)
                })
        };
        #[cfg(feature = "sqlite")]
        let registry = {
            use tiercache_sqlite::{SqliteConfig, SqliteTier};
            use tiercache_tracking::SqliteTracking;
            registry
                .checked_tier(
                    "sqlite",
                    |section| in_folder(section, || SqliteConfig::default().directory()),
                    SqliteConfig::check,
                    |config, place| async move { SqliteTier::open(config, place.clock).await.map(Arc::new) },
                )
                .looked_at("sqlite", |section| {
                    in_folder(section, || SqliteConfig::default().directory())?.look(SqliteTier::contents)
                })
                .with_tracking("sqlite", |config, _| async move {
                    SqliteTracking::open(config).await.map(Arc::new)
                })
        };
        #[cfg(feature = "memcached")]
        let registry = {
            use tiercache_memcached::{MemcachedConfig, MemcachedTier};
            registry.checked_tier(
                "memcached",
                // The first system's files give a size, which only the server decides.
                |section| Ok(section.without("max_size")),
                MemcachedConfig::check,
                |config, place| async move {
                    MemcachedTier::open(config, level(&place).name()).await.map(Arc::new)
                },
            )
        };
        #[cfg(feature = "redis")]
        let registry = {
            use tiercache_redis::{RedisTier, RedisTracking};
            registry
                .with_tier("redis", |config, place| async move {
                    RedisTier::open(config, level(&place)).await.map(Arc::new)
                })
                .looked_at("redis", |section| {
                    section
                        .look_afar(|config, level| async move { RedisTier::contents(&config, level).await })
                })
                .with_tracking(
                    "redis",
                    |config, _| async move { RedisTracking::open(config).await.map(Arc::new) },
                )
        };
        #[cfg(feature = "s3")]
        let registry = {
            use tiercache_s3::{S3Config, S3Tier};
            registry
                .checked_tier(
                    "s3",
                    |section| section.as_it_is(),
                    S3Config::check,
                    |config, place| async move {
                        S3Tier::open(config, level(&place).name(), place.clock).await.map(Arc::new)
                    },
                )
                .looked_at("s3", |section| {
                    section.look_afar(|config, level| async move {
                        let clock = tiercache_core::SystemClock::start();
                        S3Tier::contents(&config, level.name(), clock).await.map(Some)
                    })
                })
        };
        #[cfg(feature = "mongodb")]
        let registry = {
            use tiercache_mongo::{MongoConfig, MongoTier, MongoTracking, MongoTrackingConfig};
            registry
                .checked_tier(
                    "mongodb",
                    |section| section.as_it_is(),
                    MongoConfig::check,
                    |config, place| async move {
                        MongoTier::open(config, level(&place).name()).await.map(Arc::new)
                    },
                )
                .looked_at("mongodb", |section| {
                    section.look_afar(|config, level| async move {
                        MongoTier::contents(&config, level.name()).await.map(Some)
                    })
                })
                .checked_tracking("mongodb", MongoTrackingConfig::check, |config, _| async move {
                    MongoTracking::open(config).await.map(Arc::new)
                })
        };
        #[cfg(feature = "postgres")]
        let registry = {
            use tiercache_tracking::{PostgresConfig, PostgresTracking};
            registry.checked_tracking("postgres", PostgresConfig::check, |config, _| async move {
                PostgresTracking::open(config).await.map(Arc::new)
            })
        };
        registry
    }
}

/// The level a tier will stand at; its store keeps the levels of one cache apart by it.
#[cfg(any(feature = "memcached", feature = "redis", feature = "s3", feature = "mongodb"))]
fn level(place: &crate::Place) -> tiercache_core::Level {
    place.level.unwrap_or(tiercache_core::Level::Dry)
}

/// A section with its folder and size made known: what is shown, and where the index stands, depend on them.
#[cfg(any(feature = "disk", feature = "sqlite"))]
fn in_folder(
    section: &Section,
    default: impl FnOnce() -> tiercache_core::Result<std::path::PathBuf>,
) -> Result<Section, Problem> {
    section.with_size().with_text("path", || default().map(|path| path.display().to_string()))
}
