//! `check` and `stats`: looks from outside at what is there.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use tiercache::disk::{self, DiskTier};
use tiercache::drift::Drift;
use tiercache::sqlite::{self, SqliteTier};
use tiercache::tracking::Totals;
use tiercache::units::{parse_size, rounded_size};
use tiercache::{Config, Level};

use crate::args::Args;
use crate::outcome::{Failure, Outcome, Result};
use crate::say::say;
use crate::target;

/// Verifies every record of the levels on disk, then whether tracking knows what the levels hold.
pub(super) async fn check(args: &Args, repair: bool) -> Result {
    if args.url.is_some() {
        return Err(Failure::usage(
            "check looks at the disk itself: run it where the files are, without --url",
        ));
    }
    let config = target::config(args)?;
    let folders = folders(&config);
    let nothing = |why: &str| {
        let what = "no level is of the backend `local` or `sqlite`";
        Err(Failure::usage(format!("{what}, and {why}, so there is nothing to check")))
    };
    let shown = config.to_json();
    let outlives = |level: Level| {
        let backend = shown[format!("{level}_cache")]["backend"].as_str().unwrap_or_default();
        !["none", "ram"].contains(&backend)
    };
    if !Level::ALL.into_iter().any(outlives) {
        return nothing("none is on a server");
    }
    let on_disk = !folders.is_empty();
    let mut outcome = Outcome::Done;
    let mut unwell = Vec::new();
    for (level, backend, folder) in folders {
        // A level that was never opened has nothing that could be wrong.
        let report =
            if folder.is_dir() { verify(backend, folder.clone(), repair).await? } else { backend.nothing() };
        if !report.clean && !report.repaired {
            outcome = Outcome::FallsShort;
            unwell.push(level);
        }
        tell(level, &folder, &report, args.json);
    }
    match compare(config, repair, &unwell, args.json).await? {
        None if !on_disk => nothing("no tracking outlives a process"),
        None | Some(true) => Ok(outcome),
        Some(false) => Ok(Outcome::FallsShort),
    }
}

/// Whether tracking and the levels agree in the end; None when there is no tracking to compare.
async fn compare(config: Config, repair: bool, unwell: &[Level], as_json: bool) -> Result<Option<bool>> {
    let shown = config.to_json();
    let (backend, path) = (shown["tracking"]["backend"].clone(), shown["tracking"]["path"].clone());
    let bar = super::spinner();
    let so_far = |drift: &Drift| {
        bar.set_message(format!(
            "comparing tracking: {} records, {} entries",
            HumanCount(drift.records),
            HumanCount(drift.entries)
        ));
    };
    let comparing = config.drift(repair, unwell, so_far);
    let Some(drift) = super::busy_with("comparing tracking", &bar, comparing).await? else { return Ok(None) };
    tell_drift(&drift, &backend, &path, as_json);
    if !drift.failed.is_empty() {
        let whys: Vec<&str> = drift.failed.iter().map(|(_, why)| why.as_str()).collect();
        return Err(Failure::backend(whys.join("\n")));
    }
    Ok(Some(drift.is_clean() || drift.repaired))
}

fn tell_drift(drift: &Drift, backend: &Value, path: &Value, as_json: bool) {
    let findings = [("stale", drift.stale), ("untracked", drift.untracked), ("expired", drift.expired)];
    if as_json {
        let skipped = |(level, why): &(Level, String)| json!({ "level": level.name(), "why": why });
        let mut told = json!({
            "tracking": backend,
            "path": path,
            "clean": drift.is_clean(),
            "repaired": drift.repaired,
            "records": drift.records,
            "entries": drift.entries,
            "damaged": drift.damaged,
            "compared": drift.compared.iter().map(|level| level.name()).collect::<Vec<_>>(),
            "not_compared": drift.not_compared.iter().map(skipped).collect::<Vec<_>>(),
            "failed": drift.failed.iter().map(skipped).collect::<Vec<_>>(),
        });
        findings.iter().for_each(|(name, count)| told[*name] = json!(count));
        say!("{told}");
        return;
    }
    let place = path.as_str().or(backend.as_str()).unwrap_or_default();
    let (records, entries) = (drift.records, drift.entries);
    let levels = drift.compared.iter().map(|level| level.name()).collect::<Vec<_>>().join(", ");
    match levels.as_str() {
        "" => say!("tracking, {place}: not compared"),
        levels => say!("tracking, {place}: {records} records, {entries} entries at {levels}"),
    }
    for (name, count) in findings.iter().filter(|(_, count)| *count > 0) {
        say!("  {count} {name}");
    }
    drift.damaged.iter().for_each(|why| say!("  damaged: {why}"));
    drift.not_compared.iter().for_each(|(level, why)| say!("  {level} not compared: {why}"));
    drift.failed.iter().for_each(|(level, why)| say!("  {level} failed: {why}"));
    match (drift.is_clean(), drift.repaired) {
        (_, true) => say!("  repaired"),
        (true, false) if drift.compared.is_empty() => {}
        (true, false) => say!("  well"),
        (false, false) => say!("  not well; --repair tells tracking what the levels hold"),
    }
}

/// Those whose levels can be looked at while nobody has them open.
#[derive(Clone, Copy)]
enum Backend {
    Local,
    Sqlite,
}

impl Backend {
    fn of(name: &str) -> Option<Self> {
        match name {
            "local" => Some(Self::Local),
            "sqlite" => Some(Self::Sqlite),
            _ => None,
        }
    }

    fn inspect(self, folder: &Path) -> tiercache::Result<Report> {
        match self {
            Self::Local => DiskTier::inspect(folder).map(Report::from),
            Self::Sqlite => SqliteTier::inspect(folder).map(Report::from),
        }
    }

    fn check(
        self,
        folder: &Path,
        repair: bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> tiercache::Result<Report> {
        match self {
            Self::Local => DiskTier::check(folder, repair, progress).map(Report::from),
            Self::Sqlite => SqliteTier::check(folder, repair, progress).map(Report::from),
        }
    }

    fn nothing(self) -> Report {
        match self {
            Self::Local => disk::Report::default().into(),
            Self::Sqlite => sqlite::Report::default().into(),
        }
    }
}

/// What was found, whichever backend it is.
struct Report {
    clean: bool,
    repaired: bool,
    owner: Value,
    entries: u64,
    bytes: u64,
    /// What the backend calls its files.
    parts: (&'static str, u64),
    more: Vec<(&'static str, u64)>,
    /// Told to people only where there is some.
    findings: Vec<(&'static str, u64)>,
    /// Parts of transactions that a process left, which is nothing wrong.
    unfinished: u64,
}

impl From<disk::Report> for Report {
    fn from(report: disk::Report) -> Self {
        Self {
            clean: report.is_clean(),
            repaired: report.repaired,
            owner: json!(report.owner),
            entries: report.entries,
            bytes: report.bytes,
            parts: ("segments", report.segments),
            more: vec![
                ("file_bytes", report.file_bytes),
                ("superseded", report.superseded),
                ("removals", report.removals),
                ("fences", report.fences),
            ],
            findings: vec![
                ("damaged", report.damaged),
                ("bad_footers", report.bad_footers),
                ("lost", report.lost),
                ("leftovers", report.leftovers),
            ],
            unfinished: 0,
        }
    }
}

impl From<sqlite::Report> for Report {
    fn from(report: sqlite::Report) -> Self {
        Self {
            clean: report.is_clean(),
            repaired: report.repaired,
            // Nobody owns a level that several processes share.
            owner: Value::Null,
            entries: report.entries,
            bytes: report.bytes,
            parts: ("shards", report.shards),
            more: vec![
                ("file_bytes", report.file_bytes),
                ("files", report.files),
                ("removals", report.removals),
                ("fences", report.fences),
                ("counters", report.counters),
            ],
            findings: vec![
                ("broken", report.broken),
                ("damaged", report.damaged),
                ("dangling", report.dangling),
                ("orphaned", report.orphaned),
                ("wrong_sizes", report.wrong_sizes),
                ("drifted", report.drifted),
                ("leftovers", report.leftovers),
                ("unfinished", report.unfinished),
            ],
            unfinished: report.unfinished,
        }
    }
}

async fn verify(backend: Backend, folder: PathBuf, repair: bool) -> Result<Report> {
    let shown = folder.display().to_string();
    let work = tokio::task::spawn_blocking(move || {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let report = backend.check(&folder, repair, &mut |done, total| {
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
    let (parts, count) = report.parts;
    if as_json {
        let mut told = json!({
            "level": level.name(),
            "path": folder,
            "clean": report.clean,
            "repaired": report.repaired,
            "owner": report.owner,
            "entries": report.entries,
            "bytes": report.bytes,
            parts: count,
        });
        report.more.iter().chain(&report.findings).for_each(|(name, count)| told[name] = json!(count));
        say!("{told}");
        return;
    }
    let (entries, bytes) = (report.entries, rounded_size(report.bytes));
    say!("{level}, {}: {entries} entries, {bytes}, {count} {parts}", folder.display());
    for (name, count) in report.findings.iter().filter(|(_, count)| *count > 0) {
        say!("  {count} {}", name.replace('_', " "));
    }
    match (report.clean, report.repaired) {
        (_, true) => say!("  repaired"),
        (true, false) if report.unfinished > 0 => {
            say!("  well; whoever writes next finishes what a transaction left, or --repair does")
        }
        (true, false) => say!("  well"),
        (false, false) => {
            say!("  not well; --repair puts right what can be, while no process has it open")
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
    let mut owner = Value::Null;
    for level in Level::ALL {
        let section = &shown[format!("{level}_cache")];
        let backend = section["backend"].as_str().unwrap_or_default();
        let folder = folders.iter().find(|(of, _, folder)| *of == level && folder.is_dir());
        let (entries, bytes) = match folder {
            Some((_, looked_at, folder)) => {
                let (looked_at, folder) = (*looked_at, folder.clone());
                let looked = tokio::task::spawn_blocking(move || looked_at.inspect(&folder)).await;
                let report = looked.map_err(|error| Failure::backend(format!("{level}: {error}")))??;
                if !report.owner.is_null() {
                    owner = report.owner;
                }
                (Some(report.entries), Some(report.bytes))
            }
            // RAM is empty while nobody has the cache open.
            None if ["ram", "local", "sqlite", "none"].contains(&backend) => (Some(0), Some(0)),
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
    all.insert("owner".into(), owner);
    Ok(Value::Object(all))
}

/// The folders of the levels on disk.
fn folders(config: &Config) -> Vec<(Level, Backend, PathBuf)> {
    let shown = config.to_json();
    let folder = |level: Level| {
        let section = &shown[format!("{level}_cache")];
        let backend = Backend::of(section["backend"].as_str()?)?;
        Some((level, backend, PathBuf::from(section["path"].as_str()?)))
    };
    Level::ALL.into_iter().filter_map(folder).collect()
}
