//! `check` and `stats`: looks from outside at what is on disk.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use tiercache::disk::{DiskTier, Report};
use tiercache::tracking::Totals;
use tiercache::units::{parse_size, rounded_size};
use tiercache::{Config, Level};

use crate::args::Args;
use crate::outcome::{Failure, Outcome, Result};
use crate::target;

/// Verifies every record of the levels on disk.
pub(super) async fn check(args: &Args, repair: bool) -> Result {
    if args.url.is_some() {
        return Err(Failure::usage(
            "check looks at the disk itself: run it where the files are, without --url",
        ));
    }
    let folders = folders(&target::config(args)?);
    if folders.is_empty() {
        return Err(Failure::usage("no level is of the backend `local`, so there is nothing to check"));
    }
    let mut outcome = Outcome::Done;
    for (level, folder) in folders {
        // A level that was never opened has nothing that could be wrong.
        let report = if folder.is_dir() { verify(folder.clone(), repair).await? } else { Report::default() };
        if !report.is_clean() && !report.repaired {
            outcome = Outcome::FallsShort;
        }
        tell(level, &folder, &report, args.json);
    }
    Ok(outcome)
}

async fn verify(folder: PathBuf, repair: bool) -> Result<Report> {
    let shown = folder.display().to_string();
    let work = tokio::task::spawn_blocking(move || {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let report = DiskTier::check(&folder, repair, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        });
        bar.finish_and_clear();
        report
    });
    let checked =
        work.await.map_err(|error| Failure::backend(format!("{shown}: the check did not end: {error}")))?;
    Ok(checked?)
}

fn tell(level: Level, folder: &Path, report: &Report, as_json: bool) {
    let wrong = [
        ("damaged", report.damaged),
        ("bad_footers", report.bad_footers),
        ("lost", report.lost),
        ("leftovers", report.leftovers),
    ];
    if as_json {
        let mut told = json!({
            "level": level.name(),
            "path": folder,
            "clean": report.is_clean(),
            "repaired": report.repaired,
            "owner": report.owner,
            "segments": report.segments,
            "entries": report.entries,
            "bytes": report.bytes,
            "file_bytes": report.file_bytes,
            "superseded": report.superseded,
            "removals": report.removals,
            "fences": report.fences,
        });
        wrong.into_iter().for_each(|(name, count)| told[name] = json!(count));
        println!("{told}");
        return;
    }
    let (entries, bytes, segments) = (report.entries, rounded_size(report.bytes), report.segments);
    println!("{level}, {}: {entries} entries, {bytes}, {segments} segments", folder.display());
    for (name, count) in wrong.into_iter().filter(|(_, count)| *count > 0) {
        println!("  {count} {}", name.replace('_', " "));
    }
    match (report.is_clean(), report.repaired) {
        (true, _) => println!("  well"),
        (false, true) => println!("  repaired"),
        (false, false) => {
            println!("  not well; --repair puts right what can be, while no process has it open")
        }
    }
}

/// What a cache that is not opened holds and has done, in the form of [`crate::report::stats`].
pub(super) async fn stats(config: Config) -> Result<Value> {
    let shown = config.to_json();
    let folders = folders(&config);
    // Opening would make an index where there is none, and looking must not leave anything behind.
    let is_new = shown["tracking"]["path"].as_str().is_some_and(|path| !Path::new(path).exists());
    let mut totals = Totals::default();
    if !is_new && let Some(tracking) = config.open_tracking().await? {
        totals = tracking.totals().await?;
        tracking.close().await?;
    }
    let mut all = Map::new();
    for level in Level::ALL {
        all.insert(format!("{level}_hits"), json!(totals.hits[level.index()]));
    }
    for (name, count) in [("misses", totals.misses), ("sets", totals.sets), ("deletes", totals.deletes)] {
        all.insert(name.into(), json!(count));
    }
    let mut levels = Vec::new();
    let mut owner = None;
    for level in Level::ALL {
        let section = &shown[format!("{level}_cache")];
        let backend = section["backend"].as_str().unwrap_or_default();
        let folder = folders.iter().find(|(of, folder)| *of == level && folder.is_dir());
        let (entries, bytes) = match folder {
            Some((_, folder)) => {
                let folder = folder.clone();
                let looked = tokio::task::spawn_blocking(move || DiskTier::inspect(&folder)).await;
                let report = looked.map_err(|error| Failure::backend(format!("{level}: {error}")))??;
                owner = report.owner.or(owner);
                (Some(report.entries), Some(report.bytes))
            }
            // RAM is empty while nobody has the cache open.
            None if ["ram", "local", "none"].contains(&backend) => (Some(0), Some(0)),
            None => (None, None),
        };
        all.insert(format!("{level}_size_bytes"), json!(bytes));
        if backend != "none" {
            let capacity = section["max_size"].as_str().and_then(|size| parse_size(size).ok());
            levels.push(json!({
                "level": level.name(),
                "backend": backend,
                "entries": entries,
                "bytes": bytes,
                "capacity_bytes": capacity,
            }));
        }
    }
    all.insert("levels".into(), json!(levels));
    all.insert("owner".into(), json!(owner));
    Ok(Value::Object(all))
}

/// The folders of the levels on disk.
fn folders(config: &Config) -> Vec<(Level, PathBuf)> {
    let shown = config.to_json();
    let folder = |level: Level| {
        let section = &shown[format!("{level}_cache")];
        let path = section["path"].as_str().filter(|_| section["backend"] == "local")?;
        Some((level, PathBuf::from(path)))
    };
    Level::ALL.into_iter().filter_map(folder).collect()
}
