//! `serve`: the cache over HTTP until SIGTERM or SIGINT, then RAM sinks to disk.

mod answer;
mod condition;
mod counters;
mod door;
mod guard;
mod media;
mod metrics;
mod routes;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tiercache::{CacheManager, Reload as _};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout};

pub(crate) use self::answer::{Answer, DEGRADED, FOUND, REMOVED, Refusal, json_response};
pub(crate) use self::door::Door;
pub(crate) use self::guard::same;
pub(crate) use self::media::media_type_of;
pub(crate) use self::metrics::{single, text};
pub(crate) use self::routes::parameters;
use crate::args::{Args, ServeArgs};
use crate::commands::busy;
use crate::outcome::{Failure, Outcome, Result};
use crate::say::say;
use crate::target;

/// What every request is answered from.
#[derive(Debug)]
pub(crate) struct Service {
    cache: CacheManager,
    guard: guard::Guard,
    max_body: u64,
    /// KiB of bodies that may be on their way in at a time.
    bodies: Semaphore,
}

/// How many of the largest bodies may be on their way in at a time; smaller ones are more.
const BODIES: u64 = 8;

/// Serves until it is told to stop.
pub(crate) async fn serve(args: &Args, serve: &ServeArgs) -> Result {
    if args.url.is_some() {
        return Err(Failure::usage("serve opens the cache itself: --url has no meaning here"));
    }
    let guard = guard::Guard::new(serve.listen, args.token.clone())?;
    let config = target::config(args)?;
    let mut signals = Signals::new()?;
    // Bound before the cache is opened: a taken port must not cost a recovery.
    let listener = TcpListener::bind(serve.listen)
        .await
        .map_err(|error| Failure::backend(format!("cannot listen on {}: {error}", serve.listen)))?;
    let address = listener.local_addr()?;
    let cache = busy("opening", config.open()).await?;
    announce(address, args.json);

    let max_body = serve.max_body;
    let bodies = Semaphore::new(
        usize::try_from(max_body.div_ceil(1024) * BODIES).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS),
    );
    let service = Arc::new(Service { cache: cache.clone(), guard, max_body, bodies });
    let (stop, stopped) = oneshot::channel::<()>();
    let server =
        axum::serve(door::Door::new(listener), routes::router(service)).with_graceful_shutdown(async {
            // Either way it is time to stop: the sender goes with the command.
            let _ = stopped.await;
        });
    let mut server = tokio::spawn(server.into_future());
    let early = loop {
        tokio::select! {
            told = signals.next() => match told {
                Told::Stop => break None,
                Told::Reload => reload(&cache, args).await,
            },
            ended = &mut server => break Some(ended),
        }
    };
    let began = Instant::now();
    drop(stop);
    if let Some(ended) = early {
        let why = ended
            .map_err(|error| error.to_string())
            .and_then(|ended| ended.map_err(|error| error.to_string()));
        tracing::error!(?why, "the server ended by itself");
    } else if timeout(serve.drain / 4, &mut server).await.is_err() {
        // Requests that still run would keep the cache from closing.
        server.abort();
    }
    let left = serve.drain.saturating_sub(began.elapsed());
    tokio::select! {
        outcome = close(&cache, left, args.json) => outcome,
        () = signals.stop() => Err(Failure::backend("stopped before RAM had sunk to disk: what only RAM held is lost")),
    }
}

pub(crate) async fn close(cache: &CacheManager, deadline: Duration, as_json: bool) -> Result {
    let report = busy("sinking to disk", cache.close(deadline)).await?;
    let bytes: u64 = report.levels.iter().map(|level| level.bytes).sum();
    if as_json {
        let levels: Vec<_> = report
            .levels
            .iter()
            .map(|level| json!({ "level": level.level.name(), "entries": level.entries, "bytes": level.bytes }))
            .collect();
        say!(
            "{}",
            json!({
                "stopped": true,
                "levels": levels,
                "written": report.written,
                "settled": report.settled,
                "dropped": report.dropped(),
                "failures": report.failures.iter().map(|(part, error)| format!("{part}: {error}")).collect::<Vec<_>>(),
            })
        );
    } else {
        for level in &report.levels {
            say!(
                "{} held {} entries, {}",
                level.level,
                level.entries,
                tiercache::units::rounded_size(level.bytes)
            );
        }
        say!("stopped: {report}");
    }
    tracing::info!(bytes, written = report.written, dropped = report.dropped(), "closed");
    Ok(if report.is_clean() { Outcome::Done } else { Outcome::FallsShort })
}

fn announce(address: SocketAddr, as_json: bool) {
    if as_json {
        say!("{}", json!({ "listening": format!("http://{address}") }));
    } else {
        say!("listening on http://{address}");
    }
}

/// Goes over to what the configuration says now; what is wrong with it changes nothing.
async fn reload(cache: &CacheManager, args: &Args) {
    let reloaded = match target::config(args) {
        Ok(config) => cache.reload(config).await.map_err(Failure::from),
        Err(failure) => Err(failure),
    };
    let line = match (&reloaded, args.json) {
        (Ok(changes), false) if changes.is_empty() => "reloaded: nothing has changed".to_owned(),
        (Ok(changes), false) => {
            let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
            format!("reloaded: {}", changes.join(", "))
        }
        (Ok(changes), true) => {
            let changed = changes
                .iter()
                .map(|change| (change.path.clone(), json!({ "from": change.from, "to": change.to })))
                .collect::<serde_json::Map<_, _>>();
            json!({ "reloaded": true, "changed": changed }).to_string()
        }
        (Err(failure), false) => format!("not reloaded: {}", failure.message()),
        (Err(failure), true) => json!({ "reloaded": false, "error": failure.message() }).to_string(),
    };
    match reloaded {
        Ok(_) => tracing::info!("configuration reloaded"),
        Err(failure) => tracing::error!(error = failure.message(), "configuration not reloaded"),
    }
    say!("{line}");
}

/// What a signal says.
pub(crate) enum Told {
    Stop,
    Reload,
}

/// What tells the service to stop, or to read its configuration again.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    pub(crate) async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Reload,
        }
    }

    /// The next that says to stop.
    pub(crate) async fn stop(&mut self) {
        while !matches!(self.next().await, Told::Stop) {}
    }
}
