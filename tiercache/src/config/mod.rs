//! From the text of a `tier.yaml` to a cache that is ready to be opened.
//!
//! Reading is done in two steps: this module reads what every backend has in common, the rest of a section is
//! read by the backend's own configuration type (see [`Registry`]). All problems of a file come in one
//! [`ConfigError`].

mod de;
mod env;
mod error;
mod loading;
pub(crate) mod node;
mod parts;
mod read;
mod secret;
mod show;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tiercache_core::{
    CacheManager, Clock, Error, LateTier, LateTracking, Level, Limits, Result, Rules, SystemClock, Tracking,
};

pub use self::error::{ConfigError, Position, Problem};
pub(crate) use self::node::Node;
use self::parts::{PreparedLevel, PreparedTracking};
use self::read::Settings;
use crate::Registry;
pub use tiercache_core::Secret;

pub(crate) use self::de::read as read_node;
pub(crate) use self::read::LEVEL_SECTIONS;
pub(crate) use self::show::{hidden as show_hidden, json as node_json};

/// The largest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A configuration that was read and checked; nothing is opened yet.
pub struct Config {
    file: String,
    pub(crate) levels: [Option<PreparedLevel>; 3],
    tracking: Option<PreparedTracking>,
    rules: Rules,
    settings: Settings,
    pub(crate) effective: serde_json::Map<String, serde_json::Value>,
    given: BTreeSet<String>,
    secrets: BTreeMap<String, u64>,
}

/// What a cache was opened with, for a later configuration to be compared with.
pub(crate) struct Running {
    /// As it is shown.
    pub(crate) effective: serde_json::Map<String, serde_json::Value>,
    /// What is not shown, by path: a hash with keys of this process's own.
    pub(crate) secrets: BTreeMap<String, u64>,
}

impl Config {
    /// Reads a file, with the backends of `registry` and the variables of the environment.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(path: impl AsRef<Path>, registry: &Registry) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let file = path.display().to_string();
        let whole =
            |found: String| ConfigError::new(&file, vec![Problem::new(Position::default(), "", found)]);
        let cannot = |error: std::io::Error| whole(format!("cannot be read: {error}"));
        // Read no further than that, whatever stands there.
        let mut opened = std::fs::File::open(path).map_err(cannot)?.take(MAX_FILE_BYTES + 1);
        let mut text = String::new();
        opened.read_to_string(&mut text).map_err(cannot)?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(whole(format!("has more than {MAX_FILE_BYTES} bytes, which no configuration has")));
        }
        Self::read(&file, &text, registry, &|name| std::env::var(name).ok())
    }

    /// Reads a text, with the backends of `registry` and the variables of the environment.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str, registry: &Registry) -> Result<Self, ConfigError> {
        Self::read("configuration", text, registry, &|name| std::env::var(name).ok())
    }

    /// Reads `text` as if it stood in `file`, with `variable` in place of the environment.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn read(
        file: &str,
        text: &str,
        registry: &Registry,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut root = yaml::parse(text).map_err(|problem| ConfigError::new(file, vec![problem]))?;
        let mut problems = Vec::new();
        env::expand(&mut root, variable, &mut problems);
        let config = read::config(&root, registry, &mut problems);
        match config {
            Some(config) if problems.is_empty() => Ok(Self { file: file.to_owned(), ..config }),
            _ => Err(ConfigError::new(file, problems)),
        }
    }

    /// The stay of entries by tag and level.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// What is in force, defaults included and secrets hidden.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::Value::Object(self.effective.clone())
    }

    /// The same as YAML; what the file does not say is marked as a default.
    pub fn to_yaml(&self) -> String {
        show::yaml(&self.effective, &self.given)
    }

    /// A commented file to begin with.
    pub const fn default_yaml() -> &'static str {
        include_str!("default.yaml")
    }

    /// What the file is called.
    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    pub(crate) fn running(&self) -> Running {
        Running { effective: self.effective.clone(), secrets: self.secrets.clone() }
    }

    /// How long reads and writes may wait for `level`, where that is given.
    pub(crate) fn timeouts(&self, level: Level) -> (Option<Duration>, Option<Duration>) {
        let prepared = self.levels[level.index()].as_ref();
        prepared.map_or((None, None), |prepared| (prepared.read_timeout, prepared.write_timeout))
    }

    /// The most bytes on their way down, and how often levels are swept.
    pub(crate) fn limits(&self) -> (u64, Duration) {
        (
            self.settings.pending.unwrap_or(read::PENDING_BYTES),
            self.settings.sweep.unwrap_or(read::SWEEP_EVERY),
        )
    }

    /// How loads go unless they are told otherwise.
    pub(crate) fn loading(&self) -> loading::Loading {
        self.settings.loading
    }

    /// Opens tracking alone, for a look at what it remembers beside the process that has the levels open.
    ///
    /// # Errors
    /// As for [`Config::open`].
    pub async fn open_tracking(self) -> Result<Option<Arc<dyn Tracking>>> {
        let Some(PreparedTracking { tracking, .. }) = self.tracking else { return Ok(None) };
        let opened = (tracking.open)(SystemClock::start()).await;
        opened.map(Some).map_err(|error| within(&self.file, "tracking", error))
    }

    /// Opens the backends and starts the manager on the runtime this is called in.
    ///
    /// # Errors
    /// Names the section whose backend does not open, and why.
    pub async fn open(self) -> Result<CacheManager> {
        let clock: Arc<dyn Clock> = SystemClock::start();
        let (pending, sweep) = self.limits();
        let mut builder = CacheManager::builder()
            .clock(clock.clone())
            .origin(Arc::new(self.running()))
            .pending_bytes(pending)
            .sweep_every(sweep)
            .rules(self.rules)
            .write(self.settings.write);
        builder = self.settings.loading.build(builder);
        if let Some(level) = self.settings.counters {
            builder = builder.counters(level);
        }
        for (level, prepared) in Level::ALL.into_iter().zip(self.levels) {
            let Some(PreparedLevel { tier, read_timeout, write_timeout, waits, .. }) = prepared else {
                continue;
            };
            let (file, clock) = (self.file.clone(), clock.clone());
            let open = move || {
                let (opening, file) = ((tier.open)(clock.clone()), file.clone());
                async move {
                    opening.await.map_err(|error| within(&file, read::LEVEL_SECTIONS[level.index()], error))
                }
            };
            let tier = match waits {
                Some(backend) => LateTier::new(backend, open),
                None => open().await?,
            };
            if read_timeout.is_some() || write_timeout.is_some() {
                let defaults = Limits::of(&tier.profile());
                builder = builder.limits(
                    level,
                    Limits {
                        read_timeout: read_timeout.unwrap_or(defaults.read_timeout),
                        write_timeout: write_timeout.unwrap_or(defaults.write_timeout),
                    },
                );
            }
            builder = builder.level(level, tier);
        }
        if let Some(PreparedTracking { tracking, waits }) = self.tracking {
            let file = self.file.clone();
            let open = move || {
                let (opening, file) = ((tracking.open)(clock.clone()), file.clone());
                async move { opening.await.map_err(|error| within(&file, "tracking", error)) }
            };
            builder = builder.tracking(match waits {
                Some(backend) => LateTracking::begin(backend, open).await?,
                None => open().await?,
            });
        }
        builder.build().await
    }
}

/// Says in which section of which file it went wrong, and why.
pub(crate) fn blame(file: &str, section: &str, error: &Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{file}: {section}: {error}{cause}")
}

/// Likewise, as an error.
fn within(file: &str, section: &'static str, error: Error) -> Error {
    let message = blame(file, section, &error);
    match error {
        Error::Config(_) => Error::Config(message),
        // The caller may want to try again, or to ask the owner: the kind of failure is kept.
        Error::Refused(_) => Error::Refused(message),
        Error::Unavailable { backend, op, .. } | Error::TimedOut { backend, op, .. } => {
            Error::unavailable(backend, op, message)
        }
        Error::Panicked { .. } => Error::unavailable(section, "open", message),
        _ => Error::Config(message),
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("file", &self.file)
            .field("effective", &self.effective)
            .finish_non_exhaustive()
    }
}
