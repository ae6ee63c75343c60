//! What is in force, shown without secrets.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};
use tiercache_core::{Level, Rule, Stay};

use super::node::{Kind, Node};
use super::secret::{HIDDEN, is_secret, without_credentials};
use crate::units;

/// A node as JSON, secrets and all.
pub(crate) fn json(node: &Node) -> Value {
    match &node.kind {
        Kind::Null => Value::Null,
        Kind::Bool(value) => json!(value),
        Kind::Number(text) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        Kind::Text(text) | Kind::Expanded(text) => json!(text),
        Kind::List(items) => items.iter().map(json).collect(),
        Kind::Map(entries) => entries.iter().map(|(key, value)| (key.name.clone(), json(value))).collect(),
    }
}

/// A backend's own configuration: units instead of numbers, secrets hidden.
pub(crate) fn hidden(value: &Value) -> Value {
    named("", value)
}

fn named(name: &str, value: &Value) -> Value {
    match value {
        Value::Null => Value::Null,
        Value::Object(entries) => match duration(entries) {
            Some(duration) => json!(units::format_duration(duration)),
            None => entries.iter().map(|(key, value)| (key.clone(), named(key, value))).collect(),
        },
        Value::Array(items) => items.iter().map(|item| named(name, item)).collect(),
        _ if is_secret(name) => json!(HIDDEN),
        Value::Number(number) if name.contains("size") || name.contains("bytes") => {
            number.as_u64().map_or_else(|| value.clone(), |bytes| json!(units::format_size(bytes)))
        }
        Value::String(text) => json!(without_credentials(text)),
        other => other.clone(),
    }
}

/// What serde makes of a [`Duration`](std::time::Duration).
fn duration(entries: &Map<String, Value>) -> Option<std::time::Duration> {
    let (secs, nanos) = (entries.get("secs")?.as_u64()?, entries.get("nanos")?.as_u64()?);
    (entries.len() == 2).then(|| std::time::Duration::new(secs, u32::try_from(nanos).unwrap_or(0)))
}

/// The entries of an object; a configuration that is none has none.
pub(crate) fn object(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

pub(crate) fn stay(stay: Stay) -> Value {
    match stay {
        Stay::Forever => Value::Null,
        Stay::For(duration) => json!(units::format_duration(duration)),
    }
}

pub(crate) fn rule(rule: &Rule) -> Value {
    let mut shown = Map::new();
    shown.insert("tag".into(), json!(rule.tags));
    for level in Level::ALL {
        if let Some(given) = rule.stays[level.index()] {
            shown.insert(format!("{level}_ttl"), stay(given));
        }
    }
    Value::Object(shown)
}

/// As a YAML file; keys that are not in `given` are marked.
pub(crate) fn yaml(effective: &Map<String, Value>, given: &BTreeSet<String>) -> String {
    const ORDER: [&str; 10] = [
        "hot_cache",
        "cold_cache",
        "dry_cache",
        "tracking",
        "write",
        "pending",
        "sweep",
        "counters",
        "loading",
        "ttl_rules",
    ];
    let mut out = String::new();
    let first = ORDER.iter().filter_map(|name| effective.get_key_value(*name));
    let rest = effective.iter().filter(|(name, _)| !ORDER.contains(&name.as_str()));
    for (name, value) in first.chain(rest) {
        entry(&mut out, 0, name, value, name, given);
    }
    out
}

fn entry(out: &mut String, depth: usize, name: &str, value: &Value, path: &str, given: &BTreeSet<String>) {
    let indent = "  ".repeat(depth);
    // Writing to a string cannot fail.
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            let _ = writeln!(out, "{indent}{}:", scalar(&json!(name)));
            for (key, value) in entries {
                entry(out, depth + 1, key, value, &format!("{path}.{key}"), given);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let _ = writeln!(out, "{indent}{}:", scalar(&json!(name)));
            for item in items {
                let _ = writeln!(out, "{indent}  - {}", scalar(item));
            }
        }
        _ => {
            let mark = if given.contains(path) { "" } else { "  # default" };
            let _ = writeln!(out, "{indent}{}: {}{mark}", scalar(&json!(name)), scalar(value));
        }
    }
}

/// On one line; JSON is YAML, and plain words go without quotes.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        other => other.to_string(),
    }
}

fn is_plain(text: &str) -> bool {
    let mut chars = text.chars();
    let words = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    let begins = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || matches!(c, '.' | '/'));
    let unit = units::parse_duration(text).is_ok()
        || (units::parse_size(text).is_ok() && text.parse::<f64>().is_err());
    let number = text.parse::<f64>().is_ok();
    unit || (begins && !number && chars.all(letters) && !words.contains(&text.to_ascii_lowercase().as_str()))
}
