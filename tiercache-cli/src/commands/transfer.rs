//! `export`, `import`, `migrate`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tiercache::tracking::Query;
use tiercache::transfer::{Export, Exported, Foreign, Import, Migrate, Report};
use tiercache::units::rounded_size;
use tiercache::{Codec, Config, EncryptionConfig, Level, Packing, Registry};

use crate::args::{Args, ExportArgs, ImportArgs, MigrateArgs, PackingName, Picked};
use crate::outcome::{Failure, Outcome, Result};
use crate::say::say;
use crate::target::{self, Target};

pub(super) async fn export(target: &Target, args: &ExportArgs, json: bool) -> Result {
    let cache = target.local("export")?;
    let to_stdout = args.output == Path::new("-");
    if to_stdout && std::io::stdout().is_terminal() {
        return Err(Failure::usage("an export is no text: pipe it on, or name a file"));
    }
    let bar = bar(None);
    let shown = bar.clone();
    let export = Export::of(cache)
        .query(query(&args.picked))
        .codec(codec(args.compress, args.key_file.as_ref())?)
        .progress(move |done| shown.set_message(so_far(done.entries, done.bytes)));
    let exported = if to_stdout {
        export.to_writer("standard output", &mut tokio::io::stdout()).await
    } else {
        export.to_file(&args.output, args.force).await
    };
    bar.finish_and_clear();
    let exported = exported?;
    let Exported { entries, bytes, written, gone, failed, .. } = &exported;
    let line = match json {
        true => json!({
            "entries": entries,
            "bytes": bytes,
            "written": written,
            "gone": gone,
            "failed": failed,
            "failures": failures(&exported.failures),
        })
        .to_string(),
        false => {
            format!("{entries} entries, {}; {gone} gone meanwhile, {failed} failed", rounded_size(*bytes))
        }
    };
    // Standard output may be taken.
    if to_stdout {
        eprintln!("{line}")
    } else {
        say!("{line}")
    }
    tell(&exported.failures, json);
    Ok(if exported.is_complete() { Outcome::Done } else { Outcome::FallsShort })
}

pub(super) async fn import(target: &Target, args: &ImportArgs, json: bool) -> Result {
    let cache = target.local("import")?;
    let report = match (&args.from_diskcache, &args.file) {
        (Some(folder), _) => {
            let foreign = Foreign::open(folder)?;
            let kind = foreign.kind().name();
            let bar = bar(None);
            let imported = foreign.import_into(cache, args.replace, |done| {
                bar.set_message(format!("{kind}: {}", so_far(done.read, done.bytes)));
            });
            let imported = imported.await;
            bar.finish_and_clear();
            imported?
        }
        (None, Some(file)) => {
            let from_stdin = file == Path::new("-");
            if from_stdin && std::io::stdin().is_terminal() {
                return Err(Failure::usage("there is no export: name a file, or pipe one in"));
            }
            let length = std::fs::metadata(file).ok().filter(|_| !from_stdin).map(|file| file.len());
            let bar = bar(length);
            let shown = bar.clone();
            let import = Import::into(cache)
                .replace(args.replace)
                .skip_damaged(args.skip_damaged)
                .codec(codec(None, args.key_file.as_ref())?)
                .progress(move |done, read| {
                    shown.set_position(read);
                    shown.set_message(so_far(done.read, done.bytes));
                });
            let imported = if from_stdin {
                import.from_reader("standard input", &mut tokio::io::stdin()).await
            } else {
                import.from_file(file).await
            };
            bar.finish_and_clear();
            imported?
        }
        (None, None) => {
            return Err(Failure::usage("there is nothing to import: name a file or --from-diskcache"));
        }
    };
    Ok(report_of(&report, json))
}

/// Opens both caches itself.
pub(super) async fn migrate(args: &Args, what: &MigrateArgs) -> Result {
    if args.url.is_some() || args.config.is_some() {
        return Err(Failure::usage("migrate has its own --from and --to: leave out --url and --config"));
    }
    let read = |file: &PathBuf| Config::load(file, &Registry::builtin());
    let (from, to) = (read(&what.from)?, read(&what.to)?);
    Migrate::check(&from, &to)?;
    let from = from.open().await?;
    let to = match to.open().await {
        Ok(to) => to,
        Err(error) => {
            target::close(from).await?;
            return Err(error.into());
        }
    };
    let bar = bar(None);
    let migrate = Migrate::new(&from, &to)
        .query(query(&what.picked))
        .replace(what.replace)
        .progress(|done| bar.set_message(so_far(done.read, done.bytes)));
    let migrated = migrate.run().await;
    bar.finish_and_clear();
    // Both are closed whatever came of it: what arrived must reach the disk.
    let closed = [target::close(to).await, target::close(from).await];
    let report = migrated?;
    let outcome = report_of(&report, args.json);
    closed.into_iter().collect::<Result<Vec<()>>>()?;
    Ok(outcome)
}

fn query(picked: &Picked) -> Query {
    Query {
        namespace: picked.namespace.clone(),
        level: picked.level.map(Level::from),
        tags: picked.tags.iter().cloned().collect(),
        prefix: picked.prefix.as_deref().unwrap_or_default().as_bytes().to_vec(),
        glob: picked.glob.clone(),
        ..Query::all()
    }
}

fn codec(compress: Option<PackingName>, key_file: Option<&PathBuf>) -> Result<Codec> {
    let codec = Codec::new(match compress {
        None => Packing::None,
        Some(PackingName::Lz4) => Packing::Lz4,
        Some(PackingName::Zstd) => Packing::Zstd,
    })?;
    let Some(key_file) = key_file else { return Ok(codec) };
    let encryption = EncryptionConfig { key_file: Some(key_file.clone()), ..EncryptionConfig::default() };
    Ok(codec.with_encryption(&encryption)?)
}

/// Where somebody looks on.
fn bar(length: Option<u64>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match length {
        Some(length) => (ProgressBar::new(length), "{bar:30} {bytes}/{total_bytes} {msg} {eta}"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg} {elapsed}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn so_far(entries: u64, bytes: u64) -> String {
    format!("{} entries, {}", HumanCount(entries), HumanBytes(bytes))
}

fn report_of(report: &Report, json: bool) -> Outcome {
    if json {
        say!(
            "{}",
            json!({
                "read": report.read,
                "stored": report.stored,
                "bytes": report.bytes,
                "skipped": report.skipped(),
                "present": report.present,
                "expired": report.expired,
                "gone": report.gone,
                "failed": report.failed,
                "unreadable": report.unreadable,
                "skipped_bytes": report.skipped_bytes,
                "missing": report.missing,
                "truncated": report.truncated,
                "failures": failures(&report.failures),
            })
        );
    } else {
        say!(
            "{} read: {} stored ({}), {} there already, {} expired, {} gone meanwhile, {} failed",
            report.read,
            report.stored,
            rounded_size(report.bytes),
            report.present,
            report.expired,
            report.gone,
            report.failed,
        );
        for (reason, count) in &report.unreadable {
            say!("  {count} unreadable: {reason}");
        }
        if report.skipped_bytes > 0 {
            say!("  {} bytes stepped over", report.skipped_bytes);
        }
        if let Some(missing) = report.missing {
            say!("  {missing} missing");
        }
        if report.truncated {
            say!("  the export ends before its end");
        }
        tell(&report.failures, json);
    }
    if report.is_complete() { Outcome::Done } else { Outcome::FallsShort }
}

fn tell(failures: &[(String, String)], json: bool) {
    for (name, why) in failures.iter().filter(|_| !json) {
        // A key may hold what a terminal would obey.
        eprintln!("{}: {why}", name.escape_debug());
    }
}

fn failures(failures: &[(String, String)]) -> Value {
    failures.iter().map(|(name, why)| json!({ "entry": name, "why": why })).collect()
}
