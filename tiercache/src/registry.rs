//! Names of backends and how each is opened.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tiercache_core::{Level, Result, Tier, Tracking};

use crate::config::{Key, Kind, Node, Problem, read_node, show_hidden};

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

impl Registry {
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
        C: DeserializeOwned + Serialize,
        T: Tier,
        F: Fn(C, Place) -> O + Send + Sync + 'static,
        O: Future<Output = Result<Arc<T>>> + Send + 'static,
    {
        let prepare = move |section: &Section| {
            let config: C = section.read()?;
            let effective = section.effective(&config);
            let opening = open(config, section.place());
            let open = Box::pin(async move { opening.await.map(|tier| tier as Arc<dyn Tier>) });
            Ok(Prepared { effective, open })
        };
        self.tiers.insert(name.into(), Box::new(prepare));
        self
    }

    /// Adds a backend for tracking, or replaces the one of that name; `open` as for [`Registry::with_tier`].
    pub fn with_tracking<C, T, F, O>(mut self, name: impl Into<String>, open: F) -> Self
    where
        C: DeserializeOwned + Serialize,
        T: Tracking,
        F: Fn(C, Place) -> O + Send + Sync + 'static,
        O: Future<Output = Result<Arc<T>>> + Send + 'static,
    {
        let prepare = move |section: &Section| {
            let config: C = section.read()?;
            let effective = section.effective(&config);
            let opening = open(config, section.place());
            let open = Box::pin(async move { opening.await.map(|tracking| tracking as Arc<dyn Tracking>) });
            Ok(Prepared { effective, open })
        };
        self.trackings.insert(name.into(), Box::new(prepare));
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
pub struct Place {
    /// The section of the file, such as `dry_cache`.
    pub section: String,
    /// The level; `None` for tracking.
    pub level: Option<Level>,
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
    pub(crate) open: Opening<T>,
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

    fn place(&self) -> Place {
        Place { section: self.node.path.clone(), level: self.level }
    }

    fn unknown(&self, name: &str) -> Problem {
        self.node.problem(format!("unknown backend `{name}`"))
    }

    /// The section with a value for `key` if it has none.
    fn or(&self, key: &str, number: u64) -> Self {
        let mut node = self.node.clone();
        if let Kind::Map(entries) = &mut node.kind
            && !entries.iter().any(|(given, _)| given.name == key)
        {
            let value = Node {
                at: node.at,
                path: format!("{}.{key}", node.path),
                kind: Kind::Number(number.to_string()),
            };
            entries.push((Key { at: node.at, name: key.to_owned() }, value));
        }
        Self { node, level: self.level }
    }
}

// FAKES
impl Registry {
    /// fake
    pub fn builtin() -> Self {
        #[derive(serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct FakeRam {
            max_size: u64,
            #[serde(default)]
            policy: Policy,
        }
        #[derive(serde::Serialize, serde::Deserialize, Default)]
        #[serde(rename_all = "lowercase")]
        enum Policy {
            #[default]
            Adaptive,
            Lru,
            TinyLfu,
        }
        #[derive(serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct FakeLocal {
            path: Option<std::path::PathBuf>,
            max_size: u64,
        }
        #[derive(serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct FakeSqlite {
            path: Option<std::path::PathBuf>,
        }
        use tiercache_core::tracking::NoTracking;
        let mut this = Self::empty()
            .with_tracking("sqlite", |_: FakeSqlite, _| async { Ok(Arc::new(NoTracking)) })
            .with_tracking("memory", |_: FakeSqlite, _| async { Ok(Arc::new(NoTracking)) });
        fn fake<C: Serialize + DeserializeOwned>(s: &Section) -> Result<Prepared<dyn Tier>, Problem> {
            let s = s.or("max_size", 2 << 30);
            let config: C = s.read()?;
            Ok(Prepared {
                effective: s.effective(&config),
                open: Box::pin(async { Err(tiercache_core::Error::Closed) }),
            })
        }
        this.tiers.insert("ram".into(), Box::new(fake::<FakeRam>));
        this.tiers.insert("local".into(), Box::new(fake::<FakeLocal>));
        this
    }
}
