//! `proxy`: HTTP caching in front of an origin until SIGTERM or SIGINT, then RAM sinks to disk.

mod admin;

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tiercache::{CacheManager, Config, Registry};
use tiercache_http::{HttpCache, Profile};
use tiercache_proxy::{Limits, Proxy, Target, UpstreamError};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::args::{Args, ProfileName, ProxyArgs};
use crate::commands::busy;
use crate::outcome::{Failure, Outcome, Result};
use crate::say::say;
use crate::serve::{Signals, Told, close};
use crate::target;

/// What keeps the responses when no configuration is named: some RAM, and nothing that outlives the process. A `tier.yaml`
/// that happens to lie here is another cache's.
const BUILT_IN: &str = "\
hot_cache: { backend: ram, max_size: 256MiB, ttl: null }
cold_cache: { backend: none }
dry_cache: { backend: none }
tracking: { backend: none }
";

/// Stands in front of the origin until it is told to stop.
pub(crate) async fn proxy(args: &Args, proxy: &ProxyArgs) -> Result {
    if args.url.is_some() {
        return Err(Failure::usage("proxy opens the cache itself: --url has no meaning here"));
    }
    let origin: Target = proxy.origin.parse().map_err(|why| Failure::usage(format!("--origin: {why}")))?;
    let origin = origin.allow_private(proxy.allow_private);
    let token = admin::Token::new(proxy.admin_token.as_deref())?;
    let built_in = args.config.is_none() && std::env::var_os("TIERCACHE_CONFIG").is_none();
    let config =
        if built_in { Config::parse(BUILT_IN, &Registry::builtin())? } else { target::config(args)? };
    let mut signals = Signals::new()?;
    // Bound before the cache is opened: a taken port must not cost a recovery.
    let listener = bind(proxy.listen).await?;
    let admin = match proxy.admin {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    look_up(&origin, listener.local_addr()?).await?;
    let cache = busy("opening", config.open()).await?;
    let server = build(cache.clone(), origin, proxy)?;
    announce(&listener, admin.as_ref(), args.json)?;

    let (stop, stopped) = watch::channel(());
    let told = |mut stopped: watch::Receiver<()>| async move {
        // Either way it is time to stop: the sender goes with the command.
        let _ = stopped.changed().await;
    };
    let drain = proxy.drain / 2;
    let serving = tokio::spawn({
        let (server, told) = (server.clone(), told(stopped.clone()));
        async move { server.serve(listener, told, drain).await }
    });
    let administering = admin.map(|listener| {
        let names = proxy.tags_from.iter().map(|name| name.as_str().to_owned()).collect();
        tokio::spawn(admin::serve(listener, server.clone(), token, names, told(stopped)))
    });
    // There is nothing to reload but the cache's own file, which the proxy may not have.
    while !matches!(signals.next().await, Told::Stop) {}
    let began = Instant::now();
    drop(stop);
    match serving.await {
        Ok(drained) if drained.cut > 0 => tracing::warn!(cut = drained.cut, "connections were cut"),
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "the server ended by itself"),
    }
    if let Some(mut administering) = administering
        && timeout(Duration::from_secs(1), &mut administering).await.is_err()
    {
        administering.abort();
    }
    let left = proxy.drain.saturating_sub(began.elapsed());
    tokio::select! {
        // What only RAM held was never meant to stay, unless a file says otherwise.
        outcome = close(&cache, left, args.json) => if built_in { outcome.map(|_| Outcome::Done) } else { outcome },
        () = signals.stop() => Err(Failure::backend("stopped before RAM had sunk to disk: what only RAM held is lost")),
    }
}

fn build(cache: CacheManager, origin: Target, args: &ProxyArgs) -> Result<Proxy> {
    let profile = match args.profile {
        ProfileName::Default => Profile::Default,
        ProfileName::Rfc9111 => Profile::Rfc9111,
    };
    let mut http = HttpCache::builder(cache).profile(profile).max_body(args.max_object);
    for name in &args.tags_from {
        http = http.tags_from(name.clone());
    }
    let limits = Limits {
        body_bytes: args.max_body,
        connect: args.connect_timeout,
        first_byte: args.first_byte_timeout,
        body_pause: args.body_timeout,
        upstream: args.max_upstream as usize,
        connections: args.max_connections as usize,
        ..Limits::default()
    };
    Ok(Proxy::new(http.build()?, origin, limits).trust_forwarded(args.trust_forwarded))
}

/// An origin that can never be asked is wrong use; one that is not there yet is not.
async fn look_up(origin: &Target, own: SocketAddr) -> Result<()> {
    match timeout(Duration::from_secs(5), origin.addresses()).await {
        Ok(Ok(addresses)) if addresses.contains(&own) => {
            Err(Failure::usage(format!("--origin: {origin} is the proxy itself")))
        }
        Ok(Err(UpstreamError::Prohibited(address))) => Err(Failure::usage(format!(
            "--origin: {origin} resolves to the private address {address}; --allow-private takes it all the same"
        ))),
        Ok(Err(error)) => {
            tracing::warn!(%error, %origin, "the origin cannot be found yet");
            Ok(())
        }
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| Failure::backend(format!("cannot listen on {address}: {error}")))
}

fn announce(listener: &TcpListener, admin: Option<&TcpListener>, as_json: bool) -> Result<()> {
    let url = |listener: &TcpListener| listener.local_addr().map(|address| format!("http://{address}"));
    let (listening, admin) = (url(listener)?, admin.map(url).transpose()?);
    if as_json {
        say!("{}", json!({ "listening": listening, "admin": admin }));
    } else {
        say!("listening on {listening}");
        if let Some(admin) = admin {
            say!("purges, statistics and metrics on {admin}");
        }
    }
    Ok(())
}
