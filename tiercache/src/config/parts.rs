//! The sections of levels and tracking: which backend, and what is left for it to read.

use std::time::Duration;

use serde_json::{Value, json};
use tiercache_core::rules::DEFAULT_STAYS;
use tiercache_core::{Level, Rules, Tier, Tracking};

use super::error::{Position, Problem};
use super::node::{Key, Kind, Node};
use super::read::{File, LEVEL_SECTIONS, stay};
use super::show;
use crate::drift::Look;
use crate::registry::{Known, Prepared, Registry, Section};
use crate::units;

const DEFAULT_BACKENDS: [&str; 3] = ["ram", "ram", "local"];
/// What every level's section may say; the rest is the backend's.
const COMMON_KEYS: [&str; 5] = ["backend", "ttl", "read_timeout", "write_timeout", "when_down"];
/// Backends whose store is on this machine: it is there or will not be.
const LOCAL: [&str; 4] = ["local", "memory", "ram", "sqlite"];

/// A level whose tier is ready to be opened.
pub(crate) struct PreparedLevel {
    pub(crate) tier: Prepared<dyn Tier>,
    /// How it is looked at without being opened, where that can be done.
    pub(crate) look: Option<Look>,
    pub(crate) read_timeout: Option<Duration>,
    pub(crate) write_timeout: Option<Duration>,
    /// The backend's name, if the cache begins whether or not its server is there.
    pub(crate) waits: Option<&'static str>,
}

/// Tracking that is ready to be opened.
pub(crate) struct PreparedTracking {
    pub(crate) tracking: Prepared<dyn Tracking>,
    /// As [`PreparedLevel::waits`].
    pub(crate) waits: Option<&'static str>,
}

impl File<'_> {
    /// One level: its stay, and its backend made ready. `Some(None)` when it is left out.
    pub(super) fn level(&mut self, level: Level, rules: &mut Rules) -> Option<Option<PreparedLevel>> {
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

        let when_down = part.take("when_down");
        let backend = self.backend(&mut part, DEFAULT_BACKENDS[level.index()])?;
        let waits = self.waits(when_down, &backend);
        // What is used there moves up to hot: another policy would go by what is left.
        let hot = self.effective.get("hot_cache").and_then(|hot| hot.get("backend"));
        let sunk_into = level == Level::Cold && hot.is_some_and(|backend| backend == "ram");
        if sunk_into && backend == "ram" && part.take_null("policy") {
            let (kind, path) = (Kind::Text("fifo".to_owned()), format!("{name}.policy"));
            part.put("policy", Node { kind, path, at: part.at });
        }
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
            shown.extend(waits.map(|_| ("when_down".to_owned(), json!("wait"))));
            let section = self.section(part, &backend, Some(level));
            let tier = with_common_keys(name, &COMMON_KEYS, self.registry.prepare_tier(&backend, &section));
            let tier = self.note(tier);
            if let Some(tier) = &tier {
                shown.extend(show::object(&tier.effective));
            }
            let look = self.registry.look(&backend, &section);
            tier.map(|tier| Some(PreparedLevel { tier, look, read_timeout, write_timeout, waits }))
        };
        self.effective.insert(name.into(), Value::Object(shown));
        prepared
    }

    /// Tracking: by default an index beside the disk level, or in memory where nothing lasts.
    pub(super) fn tracking(&mut self) -> Option<Option<PreparedTracking>> {
        let absent = Node::absent("tracking");
        let node = self.key("tracking").cloned().unwrap_or(absent);
        let entries = self.note(node.entries())?.to_vec();
        let mut part = Part::new(&node, entries);
        let index = self.index_path();
        let lasting = index.is_some() && matches!(self.registry.knows("sqlite", true), Known::Here);
        let when_down = part.take("when_down");
        let backend = self.backend(&mut part, if lasting { "sqlite" } else { "memory" })?;
        let waits = self.waits(when_down, &backend);
        if let Some(path) = index.filter(|_| backend == "sqlite" && part.take_null("path")) {
            part.put("path", Node { kind: Kind::Text(path), path: "tracking.path".to_owned(), at: part.at });
        }
        let mut shown = serde_json::Map::new();
        shown.insert("backend".into(), json!(backend));
        let prepared = if backend == "none" {
            self.no_more_keys(&part, &[]);
            Some(None)
        } else {
            shown.extend(waits.map(|_| ("when_down".to_owned(), json!("wait"))));
            let section = self.section(part, &backend, None);
            let prepared = self.note(with_common_keys(
                "tracking",
                &["backend", "when_down"],
                self.registry.prepare_tracking(&backend, &section),
            ));
            if let Some(prepared) = &prepared {
                shown.extend(show::object(&prepared.effective));
            }
            prepared.map(|tracking| Some(PreparedTracking { tracking, waits }))
        };
        self.effective.insert("tracking".into(), Value::Object(shown));
        prepared
    }

    /// What `when_down` says, `fail` if nothing.
    fn waits(&mut self, given: Option<Node>, backend: &str) -> Option<&'static str> {
        let given = given?;
        let word = self.note(given.text())?;
        match word.as_str() {
            "fail" => {}
            "wait" if backend == "none" || LOCAL.contains(&backend) => {
                let found = format!("there is no server to wait for with `backend: {backend}`");
                self.problems.push(given.problem(found).allowed("fail"));
            }
            "wait" => return Some(Registry::name_of(backend)),
            other => {
                let found = format!("`{other}` is no answer");
                self.problems.push(given.problem(found).among(other, ["fail", "wait"]));
            }
        }
        None
    }

    /// Where the index stands if nothing is said: beside the folder of the last level on disk, since caches that
    /// do not share their levels must not share it.
    fn index_path(&self) -> Option<String> {
        let local = |name: &&&str| {
            let shown = self.effective.get(**name);
            shown.is_some_and(|shown| shown["backend"] == "local" || shown["backend"] == "sqlite")
        };
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
}

/// A section while its keys are taken out one by one.
pub(super) struct Part {
    at: Position,
    path: String,
    pub(super) entries: Vec<(Key, Node)>,
}

impl Part {
    pub(super) fn new(node: &Node, entries: Vec<(Key, Node)>) -> Self {
        Self { at: node.at, path: node.path.clone(), entries }
    }

    pub(super) fn take(&mut self, name: &str) -> Option<Node> {
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
    pub(super) fn either(&mut self, ours: &str, older: &str) -> Result<Option<(Node, bool)>, Problem> {
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
