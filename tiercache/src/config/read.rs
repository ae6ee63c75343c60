//! What the file may say, apart from the keys that are a backend's own.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tiercache_core::rules::DEFAULT_STAYS;
use tiercache_core::{Level, Rule, Rules, Stay, Tags, Tier, Tracking, Write};

use super::error::Problem;
use super::node::{Key, Kind, Node};
use super::{Config, show};
use crate::registry::{Known, Prepared, Registry, Section};
use crate::units;

/// The options of the manager itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    pub(crate) write: Write,
    pub(crate) pending: Option<u64>,
    pub(crate) sweep: Option<Duration>,
}

/// A level whose tier is ready to be opened.
pub(crate) struct PreparedLevel {
    pub(crate) tier: Prepared<dyn Tier>,
    pub(crate) read_timeout: Option<Duration>,
    pub(crate) write_timeout: Option<Duration>,
}

/// The manager's own keys, and what they are when they are left out.
const PENDING: &str = "64MiB";
const SWEEP: &str = "1s";
const TOP_LEVEL: [&str; 7] =
    ["hot_cache", "cold_cache", "dry_cache", "tracking", "write", "pending", "sweep"];

const WRITES: [(&str, Write); 3] =
    [("back", Write::Back), ("behind", Write::Behind), ("through", Write::Through)];

pub(crate) const LEVEL_SECTIONS: [&str; 3] = ["hot_cache", "cold_cache", "dry_cache"];
const DEFAULT_BACKENDS: [&str; 3] = ["ram", "ram", "local"];

/// The keys of sections that several uses of one service share, whether or not its backend is compiled in.
const SHARED_SECTIONS: [(&str, &[&str]); 5] = [
    ("redis", &["url", "host", "port", "db", "username", "password"]),
    ("memcached", &["servers", "host", "port"]),
    ("s3", &["endpoint_url", "bucket", "region", "access_key", "secret_key", "prefix"]),
    ("mongodb", &["uri", "database"]),
    ("postgres", &["url", "dsn"]),
];

/// What every level's section may say; the rest is the backend's.
const COMMON_KEYS: [&str; 4] = ["backend", "ttl", "read_timeout", "write_timeout"];

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
    })
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

struct File<'a> {
    root: &'a [(Key, Node)],
    registry: &'a Registry,
    problems: &'a mut Vec<Problem>,
    effective: serde_json::Map<String, Value>,
    given: BTreeSet<String>,
}

impl File<'_> {
    fn note<T>(&mut self, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.problems.push(problem)).ok()
    }

    fn key(&self, name: &str) -> Option<&Node> {
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
                "servers" => {
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

    /// One level: its stay, and its backend made ready. `Some(None)` when it is left out.
    fn level(&mut self, level: Level, rules: &mut Rules) -> Option<Option<PreparedLevel>> {
        let name = LEVEL_SECTIONS[level.index()];
        let absent = Node::absent(name);
        let node = self.key(name).cloned().unwrap_or(absent);
        let entries = self.note(node.entries())?.to_vec();
        let mut part = Part::new(&node, entries);

        let stay = match part.either("ttl", "ttl_hours") {
            Ok(Some((value, hours))) => self.note(stay(&value, hours)),
            Ok(None) => None,
            Err(problem) => self.note(Err(problem)),
        };
        rules.defaults[level.index()] = stay;
        let size = part.either("max_size", "max_size_gb").and_then(|size| {
            size.map(|(value, gib)| Ok((value.clone(), if gib { value.gib() } else { value.size() }?)))
                .transpose()
        });
        if let Some(Some((value, bytes))) = self.note(size) {
            part.put(
                "max_size",
                Node { kind: Kind::Number(bytes.to_string()), path: format!("{name}.max_size"), ..value },
            );
        }

        let mut timeout = |key| part.take(key).map(|node| node.duration()).and_then(|given| self.note(given));
        let (read_timeout, write_timeout) = (timeout("read_timeout"), timeout("write_timeout"));

        let backend = self.backend(&mut part, DEFAULT_BACKENDS[level.index()])?;
        let mut shown = serde_json::Map::new();
        shown.insert("backend".into(), json!(backend));
        let prepared = if backend == "none" {
            self.no_more_keys(&part, &["max_size"]);
            Some(None)
        } else {
            shown.insert("ttl".into(), show::stay(stay.unwrap_or(DEFAULT_STAYS[level.index()])));
            for (key, given) in [("read_timeout", read_timeout), ("write_timeout", write_timeout)] {
                shown.extend(given.map(|given| (key.to_owned(), json!(units::format_duration(given)))));
            }
            let section = self.section(part, &backend, Some(level));
            let tier = with_common_keys(name, &COMMON_KEYS, self.registry.prepare_tier(&backend, &section));
            let tier = self.note(tier);
            if let Some(tier) = &tier {
                shown.extend(show::object(&tier.effective));
            }
            tier.map(|tier| Some(PreparedLevel { tier, read_timeout, write_timeout }))
        };
        self.effective.insert(name.into(), Value::Object(shown));
        prepared
    }

    /// Tracking: by default an index beside the disk level, or in memory where nothing lasts.
    fn tracking(&mut self) -> Option<Option<Prepared<dyn Tracking>>> {
        let absent = Node::absent("tracking");
        let node = self.key("tracking").cloned().unwrap_or(absent);
        let entries = self.note(node.entries())?.to_vec();
        let mut part = Part::new(&node, entries);
        let index = self.index_path();
        let backend = self.backend(&mut part, if index.is_some() { "sqlite" } else { "memory" })?;
        if let Some(path) = index.filter(|_| backend == "sqlite" && part.take_null("path")) {
            part.put("path", Node { kind: Kind::Text(path), path: "tracking.path".to_owned(), at: part.at });
        }
        let mut shown = serde_json::Map::new();
        shown.insert("backend".into(), json!(backend));
        let prepared = if backend == "none" {
            self.no_more_keys(&part, &[]);
            Some(None)
        } else {
            let section = self.section(part, &backend, None);
            let prepared = self.note(with_common_keys(
                "tracking",
                &["backend"],
                self.registry.prepare_tracking(&backend, &section),
            ));
            if let Some(prepared) = &prepared {
                shown.extend(show::object(&prepared.effective));
            }
            prepared.map(Some)
        };
        self.effective.insert("tracking".into(), Value::Object(shown));
        prepared
    }

    /// Where the index stands if nothing is said: beside the folder of the last level on disk, since caches that
    /// do not share their levels must not share it.
    fn index_path(&self) -> Option<String> {
        let local =
            |name: &&&str| self.effective.get(**name).is_some_and(|shown| shown["backend"] == "local");
        let section = LEVEL_SECTIONS.iter().rev().find(local)?;
        let folder = self.effective[*section].get("path")?.as_str()?.trim_end_matches('/');
        Some(format!("{folder}-index.db"))
    }

    /// The backend's name, if it is one that can be had.
    fn backend(&mut self, part: &mut Part, default: &str) -> Option<String> {
        let given = part.take("backend");
        let tracking = part.path == "tracking";
        let (at, word) = match &given {
            // `backend: null` is how one may write `none`.
            Some(node) if node.is_null() => return Some("none".to_owned()),
            Some(node) => (node.at, self.note(node.text())?),
            None => (part.at, default.to_owned()),
        };
        if word == "none" {
            return Some(word);
        }
        let path = format!("{}.backend", part.path);
        match self.registry.knows(&word, tracking) {
            Known::Here => Some(word),
            Known::Elsewhere => {
                let (is, other) =
                    if tracking { ("a store for a level", "tracking") } else { ("for tracking", "a level") };
                let found = format!("the backend `{word}` is {is}, not for {other}");
                self.problems
                    .push(Problem::new(at, path, found).allowed(self.registry.listed(tracking).join(", ")));
                None
            }
            Known::NotCompiledIn(feature) => {
                let found = format!(
                    "the backend `{word}` is known but not compiled in: enable the feature `{feature}`"
                );
                self.problems.push(Problem::new(at, path, found));
                self.check_needed(part, &word);
                None
            }
            Known::No => {
                let listed = self.registry.listed(tracking);
                let found = format!("unknown backend `{word}`");
                self.problems
                    .push(Problem::new(at, path, found).among(&word, listed.iter().map(String::as_str)));
                None
            }
        }
    }

    /// What a service cannot do without is asked for even where its backend is not compiled in.
    fn check_needed(&mut self, part: &Part, backend: &str) {
        let needed: &[&str] = match backend {
            "s3" => &["bucket"],
            "postgres" => &["dsn", "url"],
            _ => return,
        };
        let shared = self.key(backend).and_then(|node| node.entries().ok()).unwrap_or_default();
        let given = |name: &&str| part.entries.iter().chain(shared).any(|(key, _)| key.name == *name);
        if !needed.iter().any(given) {
            let found = format!("the key `{}` is missing", needed[0]);
            let path = format!("{}.{}", if backend == "s3" { backend } else { &part.path }, needed[0]);
            let at = self.key(backend).map_or(part.at, |node| node.at);
            self.problems.push(Problem::new(at, path, found));
        }
    }

    fn no_more_keys(&mut self, part: &Part, but: &[&str]) {
        for (key, _) in part.entries.iter().filter(|(key, _)| !but.contains(&key.name.as_str())) {
            let path = format!("{}.{}", part.path, key.name);
            let found = "has no meaning beside `backend: none`";
            self.problems.push(Problem::new(key.at, path, found));
        }
    }

    /// What is left for the backend: the section's other keys over those of the shared section of its name.
    fn section(&self, part: Part, backend: &str, level: Option<Level>) -> Section {
        let mut entries = part.entries;
        let shared = self.key(backend).and_then(|node| node.entries().ok()).unwrap_or_default();
        for (key, value) in shared {
            if !entries.iter().any(|(given, _)| given.name == key.name) {
                entries.push((key.clone(), value.clone()));
            }
        }
        Section::new(Node { at: part.at, path: part.path, kind: Kind::Map(entries) }, level)
    }

    /// The manager's own keys.
    fn settings(&mut self) -> Settings {
        let write = self.key("write").map(|node| node.word(&WRITES));
        let write = write.and_then(|write| self.note(write)).unwrap_or_default();
        let pending = self.key("pending").map(Node::size).and_then(|size| self.note(size));
        let sweep = self.key("sweep").map(Node::duration).and_then(|every| self.note(every));
        let name = WRITES.iter().find(|(_, known)| *known == write).map_or("", |(name, _)| name);
        self.effective.insert("write".into(), json!(name));
        self.effective
            .insert("pending".into(), json!(pending.map_or(PENDING.to_owned(), units::format_size)));
        self.effective.insert("sweep".into(), json!(sweep.map_or(SWEEP.to_owned(), units::format_duration)));
        Settings { write, pending, sweep }
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

/// A section while its keys are taken out one by one.
struct Part {
    at: super::Position,
    path: String,
    entries: Vec<(Key, Node)>,
}

impl Part {
    fn new(node: &Node, entries: Vec<(Key, Node)>) -> Self {
        Self { at: node.at, path: node.path.clone(), entries }
    }

    fn take(&mut self, name: &str) -> Option<Node> {
        let at = self.entries.iter().position(|(key, _)| key.name == name)?;
        Some(self.entries.remove(at).1)
    }

    /// Whether nothing is said under that name; a null is taken out.
    fn take_null(&mut self, name: &str) -> bool {
        match self.entries.iter().position(|(key, _)| key.name == name) {
            Some(at) if self.entries[at].1.is_null() => self.entries.remove(at).1.is_null(),
            found => found.is_none(),
        }
    }

    fn put(&mut self, name: &str, value: Node) {
        self.entries.push((Key { at: value.at, name: name.to_owned() }, value));
    }

    /// The value under one of two spellings, and whether it is the older; not both.
    fn either(&mut self, ours: &str, older: &str) -> Result<Option<(Node, bool)>, Problem> {
        match (self.take(ours), self.take(older)) {
            (Some(_), Some(second)) => {
                Err(second.problem(format!("given twice: also as `{ours}`")).allowed("one of the two"))
            }
            (Some(value), None) => Ok(Some((value, false))),
            (None, Some(value)) => Ok(Some((value, true))),
            (None, None) => Ok(None),
        }
    }
}

/// A key the backend does not know may be a misspelled one that every section has.
fn with_common_keys<T>(section: &str, keys: &[&str], result: Result<T, Problem>) -> Result<T, Problem> {
    result.map_err(|problem| {
        let own = problem.path.strip_prefix(section).is_some_and(|rest| rest.matches('.').count() == 1);
        if own && problem.found == Problem::UNKNOWN_KEY { problem.also_among(keys) } else { problem }
    })
}

fn stay(value: &Node, hours: bool) -> Result<Stay, Problem> {
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
