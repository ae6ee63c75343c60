//! Names of backends and how each is opened.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tiercache_core::{Clock, Level, Result, Tier, Tracking};
#[cfg(feature = "disk")]
use tiercache_disk::{DiskConfig, DiskTier};
#[cfg(feature = "memcached")]
use tiercache_memcached::MemcachedTier;
#[cfg(feature = "mongodb")]
use tiercache_mongo::{MongoConfig, MongoTier, MongoTracking, MongoTrackingConfig};
#[cfg(feature = "ram")]
use tiercache_ram::{RamConfig, RamTier};
#[cfg(feature = "sqlite")]
use tiercache_sqlite::SqliteTier;
#[cfg(feature = "redis")]
use tiercache_redis::{RedisTier, RedisTracking};
#[cfg(feature = "s3")]
use tiercache_s3::{S3Config, S3Tier};
use tiercache_tracking::{MemoryConfig, MemoryTracking};
#[cfg(feature = "postgres")]
use tiercache_tracking::{PostgresConfig, PostgresTracking};
#[cfg(feature = "sqlite")]
use tiercache_tracking::{SqliteConfig, SqliteTracking};

#[cfg(any(feature = "ram", feature = "disk", feature = "sqlite"))]
use crate::config::node::{Key, Kind};
#[cfg(any(feature = "ram", feature = "disk"))]
use crate::config::node::Key;
#[cfg(any(feature = "ram", feature = "disk", feature = "s3"))]
#[cfg(any(feature = "ram", feature = "disk", feature = "mongodb"))]
use crate::config::node::Kind;
use crate::config::{Node, Problem, read_node, show_hidden};

/// What a `tier.yaml` can name: for each backend, its configuration type and how it is opened.
///
/// A plain value. [`Registry::builtin`] has what is compiled in; others are added under a name of their own:
///
/// ```
/// # use std::sync::Arc;
/// # use serde::{Deserialize, Serialize};
/// # use tiercache::Registry;
/// # use tiercache::core::tracking::NoTracking;
/// #[derive(Deserialize, Serialize)]
/// #[serde(deny_unknown_fields)]
/// struct Diary {
///     book: String,
/// }
///
/// let registry = Registry::builtin()
///     .with_tracking("diary", |config: Diary, _| async move { Ok(Arc::new(NoTracking)) });
/// assert!(tiercache::Config::parse("tracking: { backend: diary, book: blue }", &registry).is_ok());
/// ```
pub struct Registry {
    tiers: BTreeMap<String, Prepare<dyn Tier>>,
    trackings: BTreeMap<String, Prepare<dyn Tracking>>,
}

type Prepare<T> = Box<dyn Fn(&Section) -> Result<Prepared<T>, Problem> + Send + Sync>;
type Opening<T> = Pin<Box<dyn Future<Output = Result<Arc<T>>> + Send>>;
type Open<T> = Box<dyn FnOnce(Arc<dyn Clock>) -> Opening<T> + Send>;

/// Backends that exist, and the feature each needs.
const KNOWN_TIERS: [(&str, &str); 7] = [
    ("local", "disk"),
    ("memcached", "memcached"),
    ("mongodb", "mongodb"),
    ("ram", "ram"),
    ("redis", "redis"),
    ("s3", "s3"),
    ("sqlite", "sqlite"),
];
const KNOWN_TRACKINGS: [(&str, &str); 5] = [
    ("memory", ""),
    ("mongodb", "mongodb"),
    ("postgres", "postgres"),
    ("redis", "redis"),
    ("sqlite", "sqlite"),
];

/// The most bytes of a level that gives no `max_size`: 2, 10 and 100 GiB.
#[cfg(any(feature = "ram", feature = "disk", feature = "sqlite"))]
const DEFAULT_SIZES: [u64; 3] = [2 << 30, 10 << 30, 100 << 30];

impl Registry {
    /// The backends that are compiled in: `ram`, `local`, `sqlite`; `memory`, `sqlite`.
    /// The backends that are compiled in: `ram`, `local`, `redis`; `memory`, `sqlite`, `redis`.
    /// The backends that are compiled in: `ram`, `local`, `mongodb`; `memory`, `mongodb`, `sqlite`.
    pub fn builtin() -> Self {
        let registry = Self::empty().with_tracking("memory", |config: MemoryConfig, _| async move {
            Ok(Arc::new(MemoryTracking::new(&config)))
        });
        #[cfg(feature = "sqlite")]
        let registry = registry.with_tracking("sqlite", |config: SqliteConfig, _| async move {
            SqliteTracking::open(config).await.map(Arc::new)
        });
        #[cfg(feature = "postgres")]
        let registry = registry.with_tracking("postgres", |config: PostgresConfig, _| async move {
            PostgresTracking::open(config).await.map(Arc::new)
        });
        #[cfg(feature = "redis")]
        let registry = registry
            .with_tier("redis", |config, place: Place| async move {
                let level = place.level.unwrap_or(Level::Dry);
                RedisTier::open(config, level).await.map(Arc::new)
            })
            .with_tracking(
                "redis",
                |config, _| async move { RedisTracking::open(config).await.map(Arc::new) },
            );
        #[cfg(feature = "ram")]
        let registry = registry
            .with_sized_tier("ram", |config: RamConfig, _| async move { Ok(Arc::new(RamTier::new(config))) });
        #[cfg(feature = "disk")]
        let registry = registry.with_local();
        #[cfg(feature = "sqlite")]
        let registry = registry.with_sqlite();
        #[cfg(feature = "memcached")]
        let registry = registry.with_tier("memcached", |config, place| async move {
            MemcachedTier::open(config, place.level.map_or("", Level::name)).await.map(Arc::new)
        });
        #[cfg(feature = "s3")]
        let registry = registry.with_s3();
        #[cfg(feature = "mongodb")]
        let registry = registry.with_mongodb();
        registry
    }

    /// One that knows no backend but `none`.
    pub fn empty() -> Self {
        Self { tiers: BTreeMap::new(), trackings: BTreeMap::new() }
    }

    /// Adds a backend for levels, or replaces the one of that name.
    ///
    /// `open` gets what the section says apart from `backend` and `ttl`, read as a `C`: it should refuse unknown
    /// keys (`#[serde(deny_unknown_fields)]`) and may use plain numbers for sizes and
    /// [`Duration`](std::time::Duration) for times, which the file gives in units. Nothing may be opened before
    /// the future is polled, since a configuration may only be checked.
    pub fn with_tier<C, T, F, O>(mut self, name: impl Into<String>, open: F) -> Self
    where
        C: DeserializeOwned + Serialize + Send + 'static,
        T: Tier,
        F: Fn(C, Place) -> O + Send + Sync + 'static,
        O: Future<Output = Result<Arc<T>>> + Send + 'static,
    {
        let open = Arc::new(open);
        let prepare = move |section: &Section| section.prepare(&open, |tier| tier as Arc<dyn Tier>);
        self.tiers.insert(name.into(), Box::new(prepare));
        self
    }

    /// Adds a backend for tracking, or replaces the one of that name; `open` as for [`Registry::with_tier`].
    pub fn with_tracking<C, T, F, O>(mut self, name: impl Into<String>, open: F) -> Self
    where
        C: DeserializeOwned + Serialize + Send + 'static,
        T: Tracking,
        F: Fn(C, Place) -> O + Send + Sync + 'static,
        O: Future<Output = Result<Arc<T>>> + Send + 'static,
    {
        let open = Arc::new(open);
        let prepare =
            move |section: &Section| section.prepare(&open, |tracking| tracking as Arc<dyn Tracking>);
        self.trackings.insert(name.into(), Box::new(prepare));
        self
    }

    /// As [`Registry::with_tier`], where a section without `max_size` gets that of its level.
    #[cfg(feature = "ram")]
    fn with_sized_tier<C, T, F, O>(mut self, name: &str, open: F) -> Self
    where
        C: DeserializeOwned + Serialize + Send + 'static,
        T: Tier,
        F: Fn(C, Place) -> O + Send + Sync + 'static,
        O: Future<Output = Result<Arc<T>>> + Send + 'static,
    {
        let open = Arc::new(open);
        let prepare =
            move |section: &Section| section.with_size().prepare(&open, |tier| tier as Arc<dyn Tier>);
        self.tiers.insert(name.to_owned(), Box::new(prepare));
        self
    }

    /// The disk level, with its folder made known: what is shown, and where the index stands, depend on it.
    #[cfg(feature = "disk")]
    fn with_local(mut self) -> Self {
        let open = |config: DiskConfig, place: Place| async move {
            DiskTier::open(config, place.clock).await.map(Arc::new)
        };
        let open = Arc::new(open);
        let prepare = move |section: &Section| {
            let folder = || DiskConfig::default().directory().map(|path| path.display().to_string());
            let section = section.with_size().with_text("path", folder)?;
            section.read::<DiskConfig>()?.check().map_err(|error| section.blame(&error.to_string()))?;
            section.prepare(&open, |tier| tier as Arc<dyn Tier>)
        };
        self.tiers.insert("local".to_owned(), Box::new(prepare));
        self
    }

    /// The SQLite level, likewise.
    #[cfg(feature = "sqlite")]
    fn with_sqlite(mut self) -> Self {
        use tiercache_sqlite::SqliteConfig;
        let open = |config: SqliteConfig, place: Place| async move {
            SqliteTier::open(config, place.clock).await.map(Arc::new)
        };
        let open = Arc::new(open);
        let prepare = move |section: &Section| {
            let folder = || SqliteConfig::default().directory().map(|path| path.display().to_string());
            let section = section.with_size().with_text("path", folder)?;
            section.read::<SqliteConfig>()?.check().map_err(|error| section.blame(&error.to_string()))?;
            section.prepare(&open, |tier| tier as Arc<dyn Tier>)
        };
        self.tiers.insert("sqlite".to_owned(), Box::new(prepare));
    /// The S3 level, whose values are checked before anything is opened. The level's name is a part of its objects'.
    #[cfg(feature = "s3")]
    fn with_s3(mut self) -> Self {
        let open = |config: S3Config, place: Place| async move {
            let level = place.level.map_or(place.section, |level| level.to_string());
            S3Tier::open(config, &level, place.clock).await.map(Arc::new)
            section.read::<S3Config>()?.check().map_err(|error| section.blame(&error.to_string()))?;
        self.tiers.insert("s3".to_owned(), Box::new(prepare));
    /// MongoDB for levels and tracking. Each level has collections of its own, by its name.
    #[cfg(feature = "mongodb")]
    fn with_mongodb(mut self) -> Self {
        let open = Arc::new(|config: MongoConfig, place: Place| async move {
            MongoTier::open(config, place.level.map_or("level", Level::name)).await.map(Arc::new)
        });
            section.read::<MongoConfig>()?.check().map_err(|error| section.blame(&error.to_string()))?;
        self.tiers.insert("mongodb".to_owned(), Box::new(prepare));
        let open = Arc::new(|config: MongoTrackingConfig, _: Place| async move {
            MongoTracking::open(config).await.map(Arc::new)
        });
            section
                .read::<MongoTrackingConfig>()?
                .check()
                .map_err(|error| section.blame(&error.to_string()))?;
            section.prepare(&open, |tracking| tracking as Arc<dyn Tracking>)
        self.trackings.insert("mongodb".to_owned(), Box::new(prepare));
        self
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tiers.keys().chain(self.trackings.keys()).map(String::as_str)
    }

    pub(crate) fn knows(&self, name: &str, tracking: bool) -> Known {
        let (here, there) = if tracking {
            (self.trackings.contains_key(name), self.tiers.contains_key(name))
        } else {
            (self.tiers.contains_key(name), self.trackings.contains_key(name))
        };
        let (known, other): (&[_], &[_]) =
            if tracking { (&KNOWN_TRACKINGS, &KNOWN_TIERS) } else { (&KNOWN_TIERS, &KNOWN_TRACKINGS) };
        let find = |known: &[(&str, &'static str)]| {
            known.iter().find(|(word, _)| *word == name).map(|&(_, feature)| feature)
        };
        match (here, find(known)) {
            (true, _) => Known::Here,
            (false, Some(feature)) => Known::NotCompiledIn(feature),
            (false, None) if there || find(other).is_some() => Known::Elsewhere,
            (false, None) => Known::No,
        }
    }

    /// What one may write after `backend:`.
    pub(crate) fn listed(&self, tracking: bool) -> Vec<String> {
        let known: &[(&str, &str)] = if tracking { &KNOWN_TRACKINGS } else { &KNOWN_TIERS };
        let here: Vec<&String> =
            if tracking { self.trackings.keys().collect() } else { self.tiers.keys().collect() };
        let mut listed: Vec<String> =
            known.iter().map(|&(name, _)| name.to_owned()).chain(here.into_iter().cloned()).collect();
        listed.sort();
        listed.dedup();
        listed.push("none".to_owned());
        listed
    }

    pub(crate) fn prepare_tier(&self, name: &str, section: &Section) -> Result<Prepared<dyn Tier>, Problem> {
        self.tiers.get(name).ok_or_else(|| section.unknown(name))?(section)
    }

    pub(crate) fn prepare_tracking(
        &self,
        name: &str,
        section: &Section,
    ) -> Result<Prepared<dyn Tracking>, Problem> {
        self.trackings.get(name).ok_or_else(|| section.unknown(name))?(section)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("tiers", &self.tiers.keys())
            .field("trackings", &self.trackings.keys())
            .finish()
    }
}

/// Where a backend will stand.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Place {
    /// The section of the file, such as `dry_cache`.
    pub section: String,
    /// The level; `None` for tracking.
    pub level: Option<Level>,
    /// The clock of the whole cache.
    pub clock: Arc<dyn Clock>,
}

/// Whether a name is one of a backend.
pub(crate) enum Known {
    Here,
    NotCompiledIn(&'static str),
    /// It is, but of one for tracking where one for a level is wanted, or the other way round.
    Elsewhere,
    No,
}

/// A backend whose configuration was read and that is not opened yet.
pub(crate) struct Prepared<T: ?Sized> {
    /// The whole configuration, defaults included, secrets hidden.
    pub(crate) effective: serde_json::Value,
    pub(crate) open: Open<T>,
}

/// What the file says to one backend.
pub(crate) struct Section {
    node: Node,
    level: Option<Level>,
}

impl Section {
    pub(crate) fn new(node: Node, level: Option<Level>) -> Self {
        Self { node, level }
    }

    fn read<C: DeserializeOwned>(&self) -> Result<C, Problem> {
        read_node(&self.node)
    }

    fn effective(&self, config: &impl Serialize) -> serde_json::Value {
        // A configuration that is no JSON (a map with odd keys) is shown as what the file says.
        show_hidden(&serde_json::to_value(config).unwrap_or_else(|_| crate::config::node_json(&self.node)))
    }

    fn unknown(&self, name: &str) -> Problem {
        self.node.problem(format!("unknown backend `{name}`"))
    }

    /// Reads the configuration; what opens the backend waits in the result.
    fn prepare<C, T, F, O, D>(
        &self,
        open: &Arc<F>,
        erase: fn(Arc<T>) -> Arc<D>,
    ) -> Result<Prepared<D>, Problem>
    where
        C: DeserializeOwned + Serialize + Send + 'static,
        T: Send + Sync + 'static,
        D: ?Sized + 'static,
        F: Fn(C, Place) -> O + Send + Sync + 'static,
        O: Future<Output = Result<Arc<T>>> + Send + 'static,
    {
        let config: C = self.read()?;
        let effective = self.effective(&config);
        let (open, section, level) = (open.clone(), self.node.path.clone(), self.level);
        let open = Box::new(move |clock| -> Opening<D> {
            let opening = open(config, Place { section, level, clock });
            Box::pin(async move { opening.await.map(erase) })
        });
        Ok(Prepared { effective, open })
    }

    /// The section with a `max_size`: as documented for its level, if it gives none.
    #[cfg(any(feature = "ram", feature = "disk", feature = "sqlite"))]
    fn with_size(&self) -> Self {
        match self.level {
            Some(level) if !self.gives("max_size") => {
                self.with("max_size", Kind::Number(DEFAULT_SIZES[level.index()].to_string()))
            }
            _ => Self { node: self.node.clone(), level: self.level },
        }
    }

    /// The section with a text for `key`, if it gives none.
    #[cfg(any(feature = "disk", feature = "sqlite"))]
    fn with_text(self, key: &str, text: impl FnOnce() -> Result<String>) -> Result<Self, Problem> {
        if self.gives(key) {
            return Ok(self);
        }
        let text = text().map_err(|error| self.node.problem(error.to_string()))?;
        Ok(self.with(key, Kind::Text(text)))
    }

    /// The problem a backend found with its values, at the key with which its message begins.
    #[cfg(any(feature = "disk", feature = "sqlite"))]
    #[cfg(any(feature = "disk", feature = "s3"))]
    #[cfg(any(feature = "disk", feature = "mongodb"))]
    fn blame(&self, message: &str) -> Problem {
        let (name, found) = message.split_once(": ").unwrap_or(("", message));
        match &self.node.kind {
            Kind::Map(entries) => entries.iter().find(|(key, _)| key.name == name),
            _ => None,
        }
        .map_or_else(|| self.node.problem(message), |(_, value)| value.problem(found))
    }

    #[cfg(any(feature = "ram", feature = "disk", feature = "sqlite"))]
    fn gives(&self, key: &str) -> bool {
        matches!(&self.node.kind, Kind::Map(entries)
            if entries.iter().any(|(given, value)| given.name == key && !value.is_null()))
    }

    #[cfg(any(feature = "ram", feature = "disk", feature = "sqlite"))]
    fn with(&self, key: &str, kind: Kind) -> Self {
        let mut node = self.node.clone();
        let value = Node { at: node.at, path: format!("{}.{key}", node.path), kind };
        if let Kind::Map(entries) = &mut node.kind {
            entries.retain(|(given, _)| given.name != key);
            entries.push((Key { at: value.at, name: key.to_owned() }, value));
        }
        Self { node, level: self.level }
    }
}
