//! Names of backends and how each is opened.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tiercache_core::{Clock, Error, Level, Result, Tier, Tracking};

use crate::config::node::Kind;
use crate::config::{Node, Problem, read_node, show_hidden};
use crate::drift::Look;

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
    looks: BTreeMap<&'static str, PrepareLook>,
}

type PrepareLook = fn(&Section) -> Result<Look, Problem>;

type Prepare<T> = Box<dyn Fn(&Section) -> Result<Prepared<T>, Problem> + Send + Sync>;
type Opening<T> = Pin<Box<dyn Future<Output = Result<Arc<T>>> + Send>>;
type Open<T> = Box<dyn Fn(Arc<dyn Clock>) -> Opening<T> + Send + Sync>;

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
    /// One that knows no backend but `none`.
    pub fn empty() -> Self {
        Self { tiers: BTreeMap::new(), trackings: BTreeMap::new(), looks: BTreeMap::new() }
    }

    /// Adds a backend for levels, or replaces the one of that name.
    ///
    /// `open` gets what the section says apart from `backend` and `ttl`, read as a `C`: it should refuse unknown
    /// keys (`#[serde(deny_unknown_fields)]`) and may use plain numbers for sizes and
    /// [`Duration`](std::time::Duration) for times, which the file gives in units. Nothing may be opened before
    /// the future is polled, since a configuration may only be checked.
    pub fn with_tier<C, T, F, O>(self, name: impl Into<String>, open: F) -> Self
    where
        C: DeserializeOwned + Serialize + Send + 'static,
        T: Tier,
        F: Fn(C, Place) -> O + Send + Sync + 'static,
        O: Future<Output = Result<Arc<T>>> + Send + 'static,
    {
        self.checked_tier(name, Section::as_it_is, |_| Ok(()), open)
    }

    /// Adds a backend for tracking, or replaces the one of that name; `open` as for [`Registry::with_tier`].
    pub fn with_tracking<C, T, F, O>(self, name: impl Into<String>, open: F) -> Self
    where
        C: DeserializeOwned + Serialize + Send + 'static,
        T: Tracking,
        F: Fn(C, Place) -> O + Send + Sync + 'static,
        O: Future<Output = Result<Arc<T>>> + Send + 'static,
    {
        self.checked_tracking(name, |_| Ok(()), open)
    }

    /// As [`Registry::with_tier`], for a backend whose section is completed, and whose values are checked, before
    /// anything is opened. What `check` says begins with the key it is about.
    pub(crate) fn checked_tier<C, T, F, O>(
        mut self,
        name: impl Into<String>,
        complete: fn(&Section) -> Result<Section, Problem>,
        check: fn(&C) -> Result<()>,
        open: F,
    ) -> Self
    where
        C: DeserializeOwned + Serialize + Send + 'static,
        T: Tier,
        F: Fn(C, Place) -> O + Send + Sync + 'static,
        O: Future<Output = Result<Arc<T>>> + Send + 'static,
    {
        let open = Arc::new(open);
        let prepare =
            move |section: &Section| complete(section)?.prepare(check, &open, |tier| tier as Arc<dyn Tier>);
        self.tiers.insert(name.into(), Box::new(prepare));
        self
    }

    /// As [`Registry::with_tracking`], likewise.
    pub(crate) fn checked_tracking<C, T, F, O>(
        mut self,
        name: impl Into<String>,
        check: fn(&C) -> Result<()>,
        open: F,
    ) -> Self
    where
        C: DeserializeOwned + Serialize + Send + 'static,
        T: Tracking,
        F: Fn(C, Place) -> O + Send + Sync + 'static,
        O: Future<Output = Result<Arc<T>>> + Send + 'static,
    {
        let open = Arc::new(open);
        let prepare =
            move |section: &Section| section.prepare(check, &open, |tracking| tracking as Arc<dyn Tracking>);
        self.trackings.insert(name.into(), Box::new(prepare));
        self
    }

    /// Says how levels of a backend are looked at without being opened.
    #[cfg(any(feature = "disk", feature = "sqlite", feature = "redis", feature = "s3", feature = "mongodb"))]
    pub(crate) fn looked_at(mut self, name: &'static str, look: PrepareLook) -> Self {
        self.looks.insert(name, look);
        self
    }

    /// How a level is looked at without being opened, if that can be done with its backend.
    pub(crate) fn look(&self, name: &str, section: &Section) -> Option<Look> {
        self.looks.get(name)?(section).ok()
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

    /// The name of a backend as logs and errors have it.
    pub(crate) fn name_of(name: &str) -> &'static str {
        let known = KNOWN_TIERS.iter().chain(&KNOWN_TRACKINGS).find(|(known, _)| *known == name);
        known.map_or("a backend", |(known, _)| known)
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
        check: fn(&C) -> Result<()>,
        open: &Arc<F>,
        erase: fn(Arc<T>) -> Arc<D>,
    ) -> Result<Prepared<D>, Problem>
    where
        C: DeserializeOwned + Serialize + Send + 'static,
        T: Send + Sync + 'static,
        D: ?Sized + Send + Sync + 'static,
        F: Fn(C, Place) -> O + Send + Sync + 'static,
        O: Future<Output = Result<Arc<T>>> + Send + 'static,
    {
        let config: C = self.read()?;
        check(&config).map_err(|error| self.blame(&error.to_string()))?;
        let effective = self.effective(&config);
        let (open, level) = (open.clone(), self.level);
        let node = self.node.clone();
        // Read once more for every attempt.
        let open = Box::new(move |clock| -> Opening<D> {
            let config = read_node(&node).map_err(|problem| Error::Config(problem.to_string()));
            let section = node.path.clone();
            match config {
                Ok(config) => {
                    let opening = open(config, Place { section, level, clock });
                    Box::pin(async move { opening.await.map(erase) })
                }
                Err(error) => Box::pin(std::future::ready(Err(error))),
            }
        });
        Ok(Prepared { effective, open })
    }

    /// How a level with this section is looked at without being opened.
    #[cfg(any(feature = "disk", feature = "sqlite"))]
    pub(crate) fn look<C, H>(&self, look: fn(&C, bool) -> Result<Option<H>>) -> Result<Look, Problem>
    where
        C: DeserializeOwned + Send + 'static,
        H: crate::drift::contents::OnDisk,
    {
        use crate::drift::contents::Here;
        let config: C = self.read()?;
        Ok(Look::Here(Box::new(move |own| {
            Ok(look(&config, own)?.map(|held| Arc::new(Here(Arc::new(held))) as _))
        })))
    }

    /// Likewise, with a store that other processes use.
    #[cfg(any(feature = "redis", feature = "s3", feature = "mongodb"))]
    pub(crate) fn look_afar<C, H, O>(
        &self,
        look: impl FnOnce(C, Level) -> O + Send + 'static,
    ) -> Result<Look, Problem>
    where
        C: DeserializeOwned + Send + 'static,
        H: crate::drift::contents::Contents + 'static,
        O: Future<Output = Result<Option<H>>> + Send + 'static,
    {
        let config: C = self.read()?;
        let level = self.level.unwrap_or(Level::Dry);
        Ok(Look::Afar(Box::new(move || {
            let looking = look(config, level);
            Box::pin(async move { Ok(looking.await?.map(|held| Arc::new(held) as _)) })
        })))
    }

    /// The section without a key.
    #[cfg(feature = "memcached")]
    pub(crate) fn without(&self, key: &str) -> Self {
        let mut node = self.node.clone();
        if let Kind::Map(entries) = &mut node.kind {
            entries.retain(|(given, _)| given.name != key);
        }
        Self { node, level: self.level }
    }

    /// The section, as [`Registry::checked_tier`] wants it.
    pub(crate) fn as_it_is(&self) -> Result<Self, Problem> {
        Ok(Self { node: self.node.clone(), level: self.level })
    }

    /// The section with a `max_size`: as documented for its level, if it gives none.
    #[cfg(any(feature = "ram", feature = "disk", feature = "sqlite"))]
    pub(crate) fn with_size(&self) -> Self {
        match self.level {
            Some(level) if !self.gives("max_size") => {
                self.with("max_size", Kind::Number(DEFAULT_SIZES[level.index()].to_string()))
            }
            _ => Self { node: self.node.clone(), level: self.level },
        }
    }

    /// The section with a text for `key`, if it gives none.
    #[cfg(any(feature = "disk", feature = "sqlite"))]
    pub(crate) fn with_text(self, key: &str, text: impl FnOnce() -> Result<String>) -> Result<Self, Problem> {
        if self.gives(key) {
            return Ok(self);
        }
        let text = text().map_err(|error| self.node.problem(error.to_string()))?;
        Ok(self.with(key, Kind::Text(text)))
    }

    /// The problem a backend found with its values, at the key with which its message begins.
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
            entries.push((crate::config::node::Key { at: value.at, name: key.to_owned() }, value));
        }
        Self { node, level: self.level }
    }
}
