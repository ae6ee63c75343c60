mod config;
mod counters;
mod manage;
mod offline;
mod transfer;
mod values;

use std::future::Future;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::{Args, Command};
use crate::outcome::{Outcome, Result};
use crate::target::Target;

/// Does what was asked.
pub(crate) async fn run(args: Args) -> Result {
    match &args.command {
        Command::Init(init) => return config::init(init, args.json),
        Command::Config(what) => return config::config(*what, &args),
        Command::Check { repair } => return offline::check(&args, *repair).await,
        Command::Migrate(migrate) => return transfer::migrate(&args, migrate).await,
        Command::Stats => return manage::stats(&args).await,
        Command::Serve(serve) => return crate::serve::serve(&args, serve).await,
        Command::Proxy(proxy) => return crate::proxy::proxy(&args, proxy).await,
        _ => {}
    }
    let target = Target::open(&args).await?;
    let outcome = on(&target, &args).await;
    // What the command left in RAM must not be lost because it failed afterwards.
    let closed = target.close().await;
    let outcome = outcome?;
    closed.map(|()| outcome)
}

async fn on(target: &Target, args: &Args) -> Result {
    let json = args.json;
    match &args.command {
        Command::Get(get) => values::get(target, get, json).await,
        Command::Set(set) => values::set(target, set, json).await,
        Command::Delete { keys, .. } => values::delete(target, keys, json).await,
        Command::Touch(touch) => values::touch(target, touch, json).await,
        Command::Contains { key, .. } => values::contains(target, key, json).await,
        Command::Incr(count) => counters::count(target, count, 1, json).await,
        Command::Decr(count) => counters::count(target, count, -1, json).await,
        Command::Counter(counter) => counters::counter(target, counter, json).await,
        Command::Keys(keys) => manage::keys(target, keys, json).await,
        Command::Prune => manage::prune(target, json).await,
        Command::Export(export) => transfer::export(target, export, json).await,
        Command::Import(import) => transfer::import(target, import, json).await,
        Command::Clear(what) => manage::clear(target, what, json).await,
        // Done before the cache was opened.
        Command::Init(_)
        | Command::Config(_)
        | Command::Stats
        | Command::Check { .. }
        | Command::Migrate(_)
        | Command::Proxy(_)
        | Command::Serve(_) => Ok(Outcome::Done),
    }
}

/// Waits for work that may take long, with a sign of life where somebody looks on.
pub(crate) async fn busy<T>(what: &'static str, work: impl Future<Output = T>) -> T {
    busy_with(what, &spinner(), work).await
}

/// What [`busy_with`] shows, once it shows anything.
pub(crate) fn spinner() -> ProgressBar {
    ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()).with_message("")
}

/// Likewise, with a spinner whose message the work may change.
pub(crate) async fn busy_with<T>(what: &'static str, bar: &ProgressBar, work: impl Future<Output = T>) -> T {
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    let mut work = std::pin::pin!(work);
    // Most work is done before anybody would read it.
    if let Ok(done) = tokio::time::timeout(Duration::from_millis(300), &mut work).await {
        return done;
    }
    if bar.message().is_empty() {
        bar.set_message(what);
    }
    bar.set_draw_target(ProgressDrawTarget::stderr());
    bar.set_style(
        ProgressStyle::with_template("{spinner} {msg} {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    bar.enable_steady_tick(Duration::from_millis(100));
    let done = work.await;
    bar.finish_and_clear();
    done
}
