//! Changing the configuration of a cache that is used.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use tiercache_core::{CacheManager, Error, Level, Origin, Result, Retune};

use crate::config::{LEVEL_SECTIONS, Running};
use crate::{Config, units};

/// What every level may change in its section, beside its size where its tier can.
const OF_LEVELS: [&str; 3] = ["ttl", "read_timeout", "write_timeout"];
/// What may change elsewhere.
const ELSEWHERE: [&str; 3] = ["pending", "sweep", "ttl_rules"];
/// A section of which everything may.
const LOADING: &str = "loading";

/// Caches whose configuration can change while they are used.
pub trait Reload {
    /// Goes over to `config`: sizes, stays, rules, time-outs and the manager's own limits change at once, and no entry
    /// is lost by it. Returns what has changed, by key path: what it was and what it is now.
    ///
    /// Entries at rest keep the stay they came with until they are set again or move; what no longer fits a smaller
    /// level sinks. What a size is said to be is what the level then is, however long the sinking takes; this returns
    /// when it is done.
    ///
    /// # Errors
    /// [`Error::Config`] with every key that cannot change while the cache is used, what it is and what it would become;
    /// or that the cache was not made from a configuration. Nothing has changed then. Dropping the future after it was
    /// first polled does not stop the change.
    fn reload(&self, config: Config) -> impl Future<Output = Result<Vec<Change>>> + Send;
}

/// A key of the configuration that is different now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where it stands, such as `hot_cache.max_size`.
    pub path: String,
    /// What it was.
    pub from: String,
    /// What it is.
    pub to: String,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} → {}", self.path, self.from, self.to)
    }
}

impl Reload for CacheManager {
    async fn reload(&self, config: Config) -> Result<Vec<Change>> {
        let cache = self.clone();
        let (told, changes) = tokio::sync::oneshot::channel();
        self.retune(move |origin| {
            let (retune, changes) = plan(&cache, origin, &config)?;
            // Whoever asked may have stopped waiting.
            let _ = told.send(changes);
            Ok(retune)
        })
        .await?;
        changes.await.map_err(|_| Error::Closed)
    }
}

/// What is to be done, or everything that cannot be.
fn plan(cache: &CacheManager, origin: Option<&Origin>, config: &Config) -> Result<(Retune, Vec<Change>)> {
    let running = origin.and_then(|origin| origin.downcast_ref::<Running>());
    let running =
        running.ok_or_else(|| Error::Config("the cache was not made from a configuration".into()))?;
    let next = config.running();
    let mut changes = Vec::new();
    let mut refused = Vec::new();
    for (path, from, to) in differences(running, &next) {
        let change = Change { path, from, to };
        if may_change(cache, &change.path) { changes.push(change) } else { refused.push(change) }
    }
    // A level of another backend differs in everything: its backend says enough.
    let replaced: Vec<String> = refused
        .iter()
        .filter_map(|change| Some(format!("{}.", change.path.strip_suffix(".backend")?)))
        .collect();
    let said = |change: &Change| {
        change.path.ends_with(".backend") || !replaced.iter().any(|section| change.path.starts_with(section))
    };
    if !refused.is_empty() {
        let lines = refused
            .iter()
            .filter(|change| said(change))
            .map(|change| format!("{}: is {}, would become {}", change.path, change.from, change.to));
        let lines: Vec<String> = lines.collect();
        return Err(Error::Config(format!(
            "{}: cannot change while the cache is used, nothing has changed:\n  {}",
            config.file(),
            lines.join("\n  ")
        )));
    }
    let mut retune = Retune::new().rules(config.rules().clone());
    for level in Level::ALL {
        let section = LEVEL_SECTIONS[level.index()];
        let (read, write) = config.timeouts(level);
        if changes.iter().any(|change| change.path.starts_with(section) && change.path.ends_with("_timeout"))
        {
            retune = retune.timeouts(level, read, write);
        }
        let path = format!("{section}.max_size");
        if let Some(change) = changes.iter().find(|change| change.path == path) {
            let bytes =
                units::parse_size(&change.to).map_err(|found| Error::Config(format!("{path}: {found}")))?;
            cache
                .check_capacity(level, bytes)
                .map_err(|error| Error::Config(format!("{}: {section}.{error}", config.file())))?;
            retune = retune.capacity(level, bytes);
        }
    }
    let (pending, sweep) = config.limits();
    retune = config.loading().retune(retune);
    retune = retune.pending_bytes(pending).sweep_every(sweep).origin(Arc::new(next));
    Ok((retune, changes))
}

fn may_change(cache: &CacheManager, path: &str) -> bool {
    let Some((section, key)) = path.split_once('.') else { return ELSEWHERE.contains(&path) };
    if section == LOADING {
        return true;
    }
    let Some(at) = LEVEL_SECTIONS.iter().position(|name| *name == section) else { return false };
    OF_LEVELS.contains(&key) || (key == "max_size" && cache.is_sizable(Level::ALL[at]))
}

/// Every key that is not the same, with what it was and what it is.
fn differences(one: &Running, other: &Running) -> Vec<(String, String, String)> {
    let (before, after) = (flat(&one.effective), flat(&other.effective));
    let mut paths: Vec<&String> = before.keys().chain(after.keys()).collect();
    paths.sort();
    paths.dedup();
    let absent = || "not given".to_owned();
    let mut found: Vec<_> = paths
        .into_iter()
        .filter(|path| before.get(*path) != after.get(*path))
        .map(|path| {
            let shown = |side: &BTreeMap<String, String>| side.get(path).cloned().unwrap_or_else(absent);
            (path.clone(), shown(&before), shown(&after))
        })
        .collect();
    // What is not shown is compared all the same.
    let secrets = one.secrets.keys().chain(other.secrets.keys());
    for path in secrets.collect::<std::collections::BTreeSet<_>>() {
        let told = found.iter().any(|(told, ..)| told == path);
        if !told && one.secrets.get(path) != other.secrets.get(path) {
            found.push((path.clone(), "a value that is not shown".into(), "another".into()));
        }
    }
    found
}

/// The leaves by path; lists are leaves.
fn flat(value: &serde_json::Map<String, Value>) -> BTreeMap<String, String> {
    let mut leaves = BTreeMap::new();
    let mut waiting: Vec<(String, &Value)> = value.iter().map(|(key, value)| (key.clone(), value)).collect();
    while let Some((path, value)) = waiting.pop() {
        match value {
            Value::Object(entries) => {
                waiting.extend(entries.iter().map(|(key, value)| (format!("{path}.{key}"), value)));
            }
            Value::String(text) => {
                leaves.insert(path, text.clone());
            }
            other => {
                leaves.insert(path, other.to_string());
            }
        }
    }
    leaves
}
