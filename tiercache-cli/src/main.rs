//! The command `tiercache`: look into a cache, manage it, serve it over HTTP.

mod args;
mod client;
mod commands;
mod keyname;
mod outcome;
mod proxy;
mod report;
mod say;
mod serve;
mod target;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command};
use crate::outcome::{Failure, Outcome};

/// A hit of the proxy is a dozen small allocations: the system's take longer.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = Args::parse();
    start_logging(matches!(&args.command, Command::Proxy(proxy) if proxy.access_log));
    let json = args.json;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::backend(format!("no runtime: {error}")).told(json),
    };
    let outcome = runtime.block_on(commands::run(args));
    // A blocking read of standard input cannot be ended: it must not keep the process.
    runtime.shutdown_background();
    let outcome = outcome.and_then(|outcome| match say::broken() {
        Some(error) => Err(Failure::backend(format!("standard output: {error}"))),
        None => Ok(outcome),
    });
    match outcome {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::FallsShort) => ExitCode::from(1),
        Err(failure) => failure.told(json),
    }
}

fn start_logging(access: bool) {
    use tracing_subscriber::EnvFilter;

    let quiet = if access { "warn,tiercache::access=info" } else { "warn" };
    let filter = EnvFilter::try_from_env("TIERCACHE_LOG").unwrap_or_else(|_| EnvFilter::new(quiet));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
