//! What the file may say, apart from the keys that are a backend's own.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::{Value, json};
use tiercache_core::{Level, Rule, Rules, Stay, Tags, Write};

use super::error::Problem;
use super::loading::Loading;
use super::node::{Key, Kind, Node};
use super::parts::Part;
use super::secret::{is_secret, without_credentials};
use super::{Config, show};
use crate::registry::Registry;
use crate::units;

/// The options of the manager itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    pub(crate) write: Write,
    pub(crate) pending: Option<u64>,
    pub(crate) sweep: Option<Duration>,
    pub(crate) counters: Option<Level>,
    pub(crate) loading: Loading,
}

/// The manager's own keys, and what they are when they are left out.
pub(super) const PENDING_BYTES: u64 = 64 << 20;
pub(super) const SWEEP_EVERY: Duration = Duration::from_secs(1);
const TOP_LEVEL: [&str; 9] =
    ["hot_cache", "cold_cache", "dry_cache", "tracking", "write", "pending", "sweep", "counters", "loading"];

const WRITES: [(&str, Write); 3] =
    [("back", Write::Back), ("behind", Write::Behind), ("through", Write::Through)];

const LEVELS: [(&str, Level); 3] = [("hot", Level::Hot), ("cold", Level::Cold), ("dry", Level::Dry)];

pub(crate) const LEVEL_SECTIONS: [&str; 3] = ["hot_cache", "cold_cache", "dry_cache"];

/// The keys of sections that several uses of one service share, whether or not its backend is compiled in: how it is
/// reached. What else a level or tracking may say stands with them.
const SHARED_SECTIONS: [(&str, &[&str]); 5] = [
    (
        "redis",
        &[
            "url",
            "host",
            "port",
            "db",
            "username",
            "password",
            "nodes",
            "sentinels",
            "master",
            "sentinel_username",
            "sentinel_password",
            "tls",
            "ca_file",
            "prefix",
            "connect_timeout",
            "response_timeout",
        ],
    ),
    ("memcached", &["servers", "host", "port", "prefix", "connections", "connect_timeout", "timeout"]),
    (
        "s3",
        &[
            "endpoint_url",
            "ca_file",
            "bucket",
            "region",
            "access_key",
            "secret_key",
            "session_token",
            "force_path_style",
            "prefix",
            "connect_timeout",
            "timeout",
            "max_entry_size",
            "multipart_threshold",
            "part_size",
            "walk_every",
            "list_every",
            "unfinished_after",
            "storage_class",
            "server_side_encryption",
            "kms_key_id",
        ],
    ),
    (
        "mongodb",
        &[
            "uri",
            "host",
            "port",
            "username",
            "password",
            "database",
            "tls",
            "tls_ca_file",
            "prefix",
            "write_concern",
            "connect_timeout",
            "timeout",
            "connections",
        ],
    ),
    (
        "postgres",
        &[
            "url",
            "dsn",
            "host",
            "port",
            "user",
            "username",
            "password",
            "database",
            "tls",
            "ca",
            "schema",
            "table_prefix",
            "max_connections",
            "connect_timeout",
            "timeout",
        ],
    ),
];

/// Reads everything; what is wrong goes into `problems`.
pub(crate) fn config(root: &Node, registry: &Registry, problems: &mut Vec<Problem>) -> Option<Config> {
    let entries = match &root.kind {
        Kind::Null => {
            problems
                .push(root.problem("the file is empty").allowed("at least one section, such as `hot_cache`"));
            return None;
        }
        _ => root.entries().map_err(|problem| problems.push(problem)).ok()?,
    };
    let mut file =
        File { root: entries, registry, problems, effective: Default::default(), given: BTreeSet::new() };
    file.check_top_level();
    let mut rules = Rules::default();
    let levels = Level::ALL.map(|level| file.level(level, &mut rules));
    let tracking = file.tracking();
    let settings = file.settings();
    file.rules(&mut rules);
    file.check_together(settings.write);
    note_given(root, &mut file.given);
    let File { effective, given, .. } = file;
    Some(Config {
        file: String::new(),
        levels: levels.map(Option::flatten),
        tracking: tracking.flatten(),
        rules,
        settings,
        effective,
        given,
        secrets: secrets(root),
    })
}

/// What is not shown, by path: of each a hash, with keys that no other process has, to tell whether it changes.
fn secrets(root: &Node) -> BTreeMap<String, u64> {
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let mut found = BTreeMap::new();
    let mut waiting = vec![root];
    while let Some(node) = waiting.pop() {
        match &node.kind {
            Kind::Map(entries) => waiting.extend(entries.iter().map(|(_, value)| value)),
            Kind::List(items) => waiting.extend(items),
            Kind::Text(text) | Kind::Expanded(text) | Kind::Number(text) => {
                if is_secret(node.name()) || without_credentials(text) != *text {
                    found.insert(node.path.clone(), KEYS.hash_one(text));
                }
            }
            Kind::Null | Kind::Bool(_) => {}
        }
    }
    found
}

/// The path of every key that stands in the file, in our spelling.
fn note_given(node: &Node, given: &mut BTreeSet<String>) {
    if let Kind::Map(entries) = &node.kind {
        for (_, value) in entries {
            let path =
                value.path.strip_suffix("_hours").or(value.path.strip_suffix("_gb")).unwrap_or(&value.path);
            given.insert(path.to_owned());
            note_given(value, given);
        }
    }
}

pub(super) struct File<'a> {
    root: &'a [(Key, Node)],
    pub(super) registry: &'a Registry,
    pub(super) problems: &'a mut Vec<Problem>,
    pub(super) effective: serde_json::Map<String, Value>,
    given: BTreeSet<String>,
}

impl File<'_> {
    pub(super) fn note<T>(&mut self, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.problems.push(problem)).ok()
    }

    pub(super) fn key(&self, name: &str) -> Option<&Node> {
        self.root.iter().find(|(key, _)| key.name == name).map(|(_, node)| node)
    }

    fn check_top_level(&mut self) {
        let listed =
            || TOP_LEVEL.into_iter().chain(["ttl_rules"]).chain(SHARED_SECTIONS.map(|(name, _)| name));
        // Backends' names are sections too, but those one writes often are the ones to offer.
        let known: BTreeSet<&str> = listed().chain(self.registry.names()).collect();
        for (key, node) in self.root {
            if !known.contains(key.name.as_str()) {
                self.problems.push(
                    Problem::new(key.at, key.name.clone(), Problem::UNKNOWN_KEY).among(&key.name, listed()),
                );
            } else if let Some((_, allowed)) = SHARED_SECTIONS.iter().find(|(name, _)| *name == key.name) {
                self.shared_section(node, allowed);
            }
        }
    }

    fn shared_section(&mut self, section: &Node, allowed: &[&str]) {
        let Some(entries) = self.note(section.entries()) else { return };
        for (key, value) in entries {
            if !allowed.contains(&key.name.as_str()) {
                let problem = Problem::new(key.at, value.path.clone(), Problem::UNKNOWN_KEY);
                self.problems.push(problem.among(&key.name, allowed.iter().copied()));
                continue;
            }
            let checked = match key.name.as_str() {
                "port" => whole(value, 1, 65_535),
                "db" => whole(value, 0, 65_535),
                "servers" | "nodes" | "sentinels" => {
                    value.items().and_then(|items| items.iter().try_for_each(|item| item.text().map(drop)))
                }
                _ if value.is_null() => Ok(()),
                _ => value.text().map(drop),
            };
            self.note(checked);
        }
        let named = |name: &str| entries.iter().find(|(key, _)| key.name == name).map(|(_, value)| value);
        if let (Some(_), Some(host)) = (named("url").or(named("servers")), named("host")) {
            self.problems
                .push(host.problem("the address is given twice").allowed("either it or `host` and `port`"));
        }
        let shown = show::hidden(&show::json(section));
        let name = section.path.clone();
        self.effective.insert(name, shown);
    }

    /// The manager's own keys.
    fn settings(&mut self) -> Settings {
        let write = self.key("write").map(|node| node.word(&WRITES));
        let write = write.and_then(|write| self.note(write)).unwrap_or_default();
        let pending = self.key("pending").map(Node::size).and_then(|size| self.note(size));
        let sweep = self.key("sweep").map(Node::duration).and_then(|every| self.note(every));
        let name = WRITES.iter().find(|(_, known)| *known == write).map_or("", |(name, _)| name);
        self.effective.insert("write".into(), json!(name));
        self.effective.insert("pending".into(), json!(units::format_size(pending.unwrap_or(PENDING_BYTES))));
        self.effective.insert("sweep".into(), json!(units::format_duration(sweep.unwrap_or(SWEEP_EVERY))));
        let counters = self.key("counters").map(|node| node.word(&LEVELS));
        let counters = counters.and_then(|level| self.note(level));
        if let Some(level) = counters {
            self.effective.insert("counters".into(), json!(level.name()));
        }
        Settings { write, pending, sweep, counters, loading: self.loading() }
    }

    fn rules(&mut self, rules: &mut Rules) {
        let Some(node) = self.key("ttl_rules").cloned() else { return };
        let Some(items) = self.note(node.items()) else { return };
        for item in items {
            if let Some(rule) = self.rule(item) {
                rules.rules.push(rule);
            }
        }
        let shown = rules.rules.iter().map(show::rule).collect();
        self.effective.insert("ttl_rules".into(), Value::Array(shown));
    }

    fn rule(&mut self, node: &Node) -> Option<Rule> {
        let entries = self.note(node.entries())?.to_vec();
        let mut part = Part::new(node, entries);
        let mut rule = Rule::default();
        let before = self.problems.len();
        if let Some(tag) = part.take("tag") {
            let tags = tag.entries().and_then(|tags| {
                tags.iter()
                    .map(|(key, value)| Ok((key.name.clone(), value.text()?)))
                    .collect::<Result<Tags, _>>()
            });
            rule.tags = self.note(tags).unwrap_or_default();
        }
        for level in Level::ALL {
            let (ttl, hours) = (format!("{level}_ttl"), format!("{level}_ttl_hours"));
            let given = part
                .either(&ttl, &hours)
                .and_then(|given| given.map(|(value, hours)| stay(&value, hours)).transpose());
            rule.stays[level.index()] = self.note(given).flatten();
        }
        for (key, value) in &part.entries {
            let known =
                ["tag", "hot_ttl", "cold_ttl", "dry_ttl", "hot_ttl_hours", "cold_ttl_hours", "dry_ttl_hours"];
            self.problems
                .push(Problem::new(key.at, value.path.clone(), Problem::UNKNOWN_KEY).among(&key.name, known));
        }
        if self.problems.len() == before && rule.stays == [None; 3] {
            self.problems.push(node.problem("the rule names no level").allowed("hot_ttl, cold_ttl, dry_ttl"));
        }
        (self.problems.len() == before).then_some(rule)
    }

    /// What is right by itself and wrong together.
    fn check_together(&mut self, write: Write) {
        if !self.problems.is_empty() {
            return;
        }
        let backend = |name: &str| self.effective[name]["backend"].as_str().unwrap_or_default();
        let backends = LEVEL_SECTIONS.map(backend);
        let at = |path: &str| {
            let (section, key) = path.split_once('.').unwrap_or((path, ""));
            let section = self.key(section);
            let key = section.and_then(|node| node.entries().ok()?.iter().find(|(name, _)| name.name == key));
            key.map(|(_, node)| node.at).or(section.map(|node| node.at)).unwrap_or_default()
        };
        let mut found = Vec::new();
        if backends == ["none"; 3] {
            found.push(
                Problem::new(at("dry_cache.backend"), "dry_cache.backend", "every level is `none`")
                    .allowed("a backend for at least one level"),
            );
        }
        if write != Write::Back && backends.iter().all(|backend| ["none", "ram"].contains(backend)) {
            found.push(
                Problem::new(
                    at("write"),
                    "write",
                    "no level outlives the process, so nothing can be written to it",
                )
                .allowed("`back`, or a level such as `backend: local`"),
            );
        }
        let paths = LEVEL_SECTIONS.into_iter().chain(["tracking"]).filter_map(|name| {
            let path = self.effective[name].get("path")?;
            Some((name, path.as_str().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.into()))))
        });
        let paths: Vec<_> = paths.collect();
        for (index, (name, path)) in paths.iter().enumerate() {
            let twin = paths[..index].iter().find(|(other, seen)| {
                seen == path && self.effective[*other]["backend"] == self.effective[*name]["backend"]
            });
            if let Some((other, _)) = twin {
                let path = format!("{name}.path");
                found.push(
                    Problem::new(at(&path), path.clone(), format!("the same place as {other}.path"))
                        .allowed("a path of its own"),
                );
            }
        }
        self.problems.extend(found);
    }
}

pub(super) fn stay(value: &Node, hours: bool) -> Result<Stay, Problem> {
    match &value.kind {
        Kind::Null => Ok(Stay::Forever),
        Kind::Text(text) | Kind::Expanded(text) if !hours && ["never", "null"].contains(&text.as_str()) => {
            Ok(Stay::Forever)
        }
        _ if hours => value.hours().map(Stay::For),
        _ => value
            .duration()
            .map(Stay::For)
            .map_err(|problem| problem.allowed(format!("{}, or null for ever", units::DURATION_FORM))),
    }
}

fn whole(value: &Node, from: u32, to: u32) -> Result<(), Problem> {
    let number = value.float()?;
    if number.fract() == 0.0 && (f64::from(from)..=f64::from(to)).contains(&number) {
        Ok(())
    } else {
        Err(value.not(format!("a whole number from {from} to {to}")))
    }
}
