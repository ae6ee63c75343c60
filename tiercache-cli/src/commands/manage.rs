//! `keys`, `stats`, `prune`, `clear`.

use std::io::IsTerminal;

use comfy_table::{Table, TableStyle};

use serde_json::{Value, json};
use tiercache::units::rounded_size;

use super::{busy, busy_with, offline, spinner};
use crate::args::{Args, ClearArgs, KeysArgs};
use crate::client::Client;
use crate::outcome::{Outcome, Result};
use crate::say::say;
use crate::target::{self, Target};

pub(super) async fn keys(target: &Target, args: &KeysArgs, json: bool) -> Result {
    let page = busy("listing keys", target.keys(args)).await?;
    if json {
        say!("{page}");
        return Ok(Outcome::Done);
    }
    let none = Vec::new();
    let keys = page["keys"].as_array().unwrap_or(&none);
    if std::io::stdout().is_terminal() {
        say!("{}", table(keys));
    } else {
        // One key per line, so that other programs can go on with them.
        keys.iter().for_each(|key| say!("{}", key["key"].as_str().unwrap_or_default()));
    }
    if let Some(next) = page["next"].as_str() {
        eprintln!("there may be more: --after '{next}'");
    }
    Ok(Outcome::Done)
}

fn table(keys: &[Value]) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_header([
        "key",
        "level",
        "size",
        "hits",
        "age",
        "time left",
        "tags",
    ]);
    for key in keys {
        let text = |name: &str| key[name].as_str().unwrap_or("-").to_owned();
        let tags = key["tags"].as_object().into_iter().flatten();
        let tags: Vec<String> =
            tags.map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect();
        table.add_row([
            // A key may hold what a terminal would obey.
            text("key").escape_debug().to_string(),
            text("level"),
            rounded_size(key["size_bytes"].as_u64().unwrap_or_default()),
            key["hits"].to_string(),
            text("age"),
            text("time_left"),
            tags.join(" ").escape_debug().to_string(),
        ]);
    }
    table
}

/// Of a service what it says; else a look from outside, which a process that has the cache open does not hinder.
pub(super) async fn stats(args: &Args) -> Result {
    let stats = match &args.url {
        Some(url) => {
            let client = Client::new(url, args.token.clone())?;
            Target::Remote(client).stats().await?
        }
        None => busy("looking", offline::stats(target::config(args)?)).await?,
    };
    if args.json {
        say!("{stats}");
        return Ok(Outcome::Done);
    }
    if let Some(owner) = stats["owner"].as_u64() {
        say!("process {owner} has it open and holds more in RAM; --url asks it");
    }
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_header(["level", "backend", "hits", "entries", "size", "of"]);
    for level in stats["levels"].as_array().into_iter().flatten() {
        let name = level["level"].as_str().unwrap_or_default();
        let size = |field: &str| level[field].as_u64().map_or("-".to_owned(), rounded_size);
        let count = |value: &Value| value.as_u64().map_or("-".to_owned(), |count| count.to_string());
        table.add_row([
            name.to_owned(),
            level["backend"].as_str().unwrap_or_default().to_owned(),
            count(&stats[format!("{name}_hits")]),
            count(&level["entries"]),
            size("bytes"),
            size("capacity_bytes"),
        ]);
    }
    say!("{table}");
    say!("misses {}, sets {}, deletes {}", stats["misses"], stats["sets"], stats["deletes"]);
    Ok(Outcome::Done)
}

pub(super) async fn prune(target: &Target, json: bool) -> Result {
    let told = |pruned: &Value| format!("{} dropped, {} sinking", pruned["dropped"], pruned["sinking"]);
    let bar = spinner();
    let progress = |pruned: &Value| bar.set_message(format!("pruning: {}", told(pruned)));
    let pruned = busy_with("pruning", &bar, target.prune(progress)).await?;
    if json {
        say!("{pruned}");
    } else {
        say!("{}", told(&pruned));
    }
    if pruned["complete"] == false {
        eprintln!(
            "not all of it was looked at: a level did not answer, or there is more to do than one call does"
        );
    }
    Ok(Outcome::Done)
}

pub(super) async fn clear(target: &Target, what: &ClearArgs, json: bool) -> Result {
    let removed = busy("clearing", target.clear(what)).await?;
    match (json, removed) {
        (true, removed) => say!("{}", json!({ "cleared": true, "removed": removed })),
        (false, Some(removed)) => say!("{removed} removed"),
        (false, None) => say!("cleared"),
    }
    Ok(Outcome::Done)
}
