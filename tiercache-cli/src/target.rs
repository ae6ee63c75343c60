//! The cache a command works on: opened here, or behind a service.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use hyper::StatusCode;
use hyper::header::{AGE, CONTENT_TYPE, HeaderMap};
use serde_json::{Value, json};
use tiercache::units::format_duration;
use tiercache::{CacheManager, Config, Key, Level, Pruned, Registry};

use crate::args::{Args, ClearArgs, KeysArgs};
use crate::client::Client;
use crate::commands::busy;
use crate::keyname;
use crate::outcome::{Failure, Result};
use crate::report;
use crate::serve::{DEGRADED, FOUND, REMOVED};

/// How long RAM may take to sink when a command that wrote is done.
const CLOSE_PATIENCE: Duration = Duration::from_secs(60);

pub(crate) enum Target {
    Local(CacheManager),
    Remote(Client),
}

/// A value and what is known of it.
pub(crate) struct Found {
    pub(crate) value: Bytes,
    pub(crate) about: Value,
}

/// The file that configures the cache.
pub(crate) fn config_file(args: &Args) -> PathBuf {
    let named = args.config.clone().or_else(|| std::env::var_os("TIERCACHE_CONFIG").map(PathBuf::from));
    named.unwrap_or_else(|| "tier.yaml".into())
}

/// Reads the configuration.
pub(crate) fn config(args: &Args) -> Result<Config> {
    let file = config_file(args);
    if args.config.is_none() && std::env::var_os("TIERCACHE_CONFIG").is_none() && !file.exists() {
        return Err(Failure::usage(
            "there is no configuration: write one with `tiercache init`, or name it with --config or TIERCACHE_CONFIG",
        ));
    }
    Ok(Config::load(file, &Registry::builtin())?)
}

impl Target {
    pub(crate) async fn open(args: &Args) -> Result<Self> {
        match &args.url {
            Some(url) => {
                let client = Client::new(url, args.token.clone())?;
                Ok(Self::Remote(client.within(args.command.namespace())))
            }
            None => {
                let cache = config(args)?.open().await?;
                // Such a name was looked at when it was given.
                Ok(Self::Local(cache.namespace(args.command.namespace().unwrap_or_default())?))
            }
        }
    }

    /// The cache itself, for what a service does not do for others.
    pub(crate) fn local(&self, what: &str) -> Result<&CacheManager> {
        match self {
            Self::Local(cache) => Ok(cache),
            Self::Remote(_) => Err(Failure::usage(format!("{what} opens the cache itself: leave out --url"))),
        }
    }

    /// Sinks what the command left in RAM. Loses nothing in silence.
    pub(crate) async fn close(self) -> Result<()> {
        let Self::Local(cache) = self else { return Ok(()) };
        close(cache).await
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Option<Found>> {
        match self {
            Self::Local(cache) => Ok(cache.entry(key).await?.map(|entry| Found {
                about: json!({
                    "level": entry.level.name(),
                    "age": report::rounded(entry.age),
                    "time_left": entry.time_left.map(report::rounded),
                    "tags": entry.tags,
                    "hits": entry.hits,
                    "content_type": entry.content_type,
                }),
                value: entry.value,
            })),
            Self::Remote(client) => {
                let answer = client.send(Method::GET, &path(key, &[])?, None, Bytes::new()).await?;
                if answer.status == StatusCode::NOT_FOUND {
                    return Ok(None);
                }
                let level =
                    header(&answer.headers, "cache-status").and_then(|status| status.split("detail=").nth(1));
                let age = header(&answer.headers, AGE.as_str()).and_then(|age| age.parse().ok());
                let about = json!({
                    "level": level,
                    "age": age.map(|age| report::rounded(Duration::from_secs(age))),
                    "content_type": header(&answer.headers, CONTENT_TYPE.as_str()),
                });
                Ok(Some(Found { value: answer.body, about }))
            }
        }
    }

    pub(crate) async fn set(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
        tags: &[(String, String)],
        content_type: Option<&str>,
    ) -> Result<()> {
        match self {
            Self::Local(cache) => {
                let mut set = cache.set(key, value);
                if let Some(ttl) = ttl {
                    set = set.ttl(ttl);
                }
                for (name, value) in tags {
                    set = set.tag(name, value);
                }
                if let Some(content_type) = content_type {
                    set = set.content_type(content_type);
                }
                for (level, error) in set.await?.degraded {
                    tracing::warn!(%level, %error, "an older copy could not be removed yet");
                }
            }
            Self::Remote(client) => {
                let mut query: Vec<(String, String)> =
                    tags.iter().map(|(name, value)| (format!("tag.{name}"), value.clone())).collect();
                query.extend(ttl.map(|ttl| ("ttl".to_owned(), format_duration(ttl))));
                let answer = client.send(Method::PUT, &path(key, &query)?, content_type, value).await?;
                warn_of_lagging(&answer.headers);
            }
        }
        Ok(())
    }

    /// Whether it was there.
    pub(crate) async fn delete(&self, key: &str) -> Result<bool> {
        match self {
            Self::Local(cache) => {
                // A level that others share does not say what a removal met there.
                let there = cache.contains(key).await?;
                let removed = cache.delete(key).await?;
                match removed.degraded.into_iter().next() {
                    Some((level, error)) => {
                        Err(Failure::backend(format!("{key}: {level} still holds it: {error}")))
                    }
                    None => Ok(there),
                }
            }
            Self::Remote(client) => {
                let answer = client.send(Method::DELETE, &path(key, &[])?, None, Bytes::new()).await?;
                match header(&answer.headers, DEGRADED.as_str()) {
                    Some(levels) => Err(Failure::backend(format!("{key}: {levels} still holds it"))),
                    None => Ok(header(&answer.headers, FOUND) == Some("true")),
                }
            }
        }
    }

    /// Whether it is there.
    pub(crate) async fn touch(&self, key: &str, ttl: Option<Duration>) -> Result<bool> {
        match self {
            Self::Local(cache) => {
                let touched = cache.touch(key, ttl).await?;
                for (level, error) in touched.degraded {
                    tracing::warn!(%level, %error, "an older copy could not be removed yet");
                }
                Ok(touched.found)
            }
            Self::Remote(client) => {
                let ttl = ttl.map_or("never".to_owned(), format_duration);
                let path = path(key, &[("ttl".to_owned(), ttl)])?;
                let answer = client.send(Method::PATCH, &path, None, Bytes::new()).await?;
                warn_of_lagging(&answer.headers);
                Ok(answer.status != StatusCode::NOT_FOUND)
            }
        }
    }

    pub(crate) async fn contains(&self, key: &str) -> Result<bool> {
        match self {
            Self::Local(cache) => Ok(cache.contains(key).await?),
            Self::Remote(client) => {
                let answer = client.send(Method::HEAD, &path(key, &[])?, None, Bytes::new()).await?;
                Ok(answer.status != StatusCode::NOT_FOUND)
            }
        }
    }

    /// Adds to a counter, and returns the sum.
    pub(crate) async fn count(&self, key: &str, by: i64, start: i64, ttl: Option<Duration>) -> Result<i64> {
        match self {
            Self::Local(cache) => {
                let mut addition = cache.incr(key).by(by).start(start);
                if let Some(ttl) = ttl {
                    addition = addition.ttl(ttl);
                }
                Ok(addition.await?)
            }
            Self::Remote(client) => {
                let mut query =
                    vec![("by".to_owned(), by.to_string()), ("start".to_owned(), start.to_string())];
                query.extend(ttl.map(|ttl| ("ttl".to_owned(), format_duration(ttl))));
                let path = below("counters", key, &query)?;
                sum_of(&client.send(Method::POST, &path, None, Bytes::new()).await?.body)
            }
        }
    }

    pub(crate) async fn counter(&self, key: &str) -> Result<Option<i64>> {
        match self {
            Self::Local(cache) => Ok(cache.counter(key).await?),
            Self::Remote(client) => {
                let answer =
                    client.send(Method::GET, &below("counters", key, &[])?, None, Bytes::new()).await?;
                match answer.status {
                    StatusCode::NOT_FOUND => Ok(None),
                    _ => sum_of(&answer.body).map(Some),
                }
            }
        }
    }

    /// Whether it was there.
    pub(crate) async fn remove_counter(&self, key: &str) -> Result<bool> {
        match self {
            Self::Local(cache) => Ok(cache.remove_counter(key).await?),
            Self::Remote(client) => {
                let path = below("counters", key, &[])?;
                let answer = client.send(Method::DELETE, &path, None, Bytes::new()).await?;
                Ok(answer.status != StatusCode::NOT_FOUND)
            }
        }
    }

    pub(crate) async fn keys(&self, wanted: &KeysArgs) -> Result<Value> {
        match self {
            Self::Local(cache) => Ok(report::keys(cache, wanted).await?),
            Self::Remote(client) => {
                let path = with_query("/keys", &wanted.to_pairs());
                json_of(&client.send(Method::GET, &path, None, Bytes::new()).await?.body)
            }
        }
    }

    pub(crate) async fn stats(&self) -> Result<Value> {
        match self {
            Self::Local(cache) => Ok(report::stats(&cache.stats().await?)),
            Self::Remote(client) => {
                json_of(&client.send(Method::GET, "/stats", None, Bytes::new()).await?.body)
            }
        }
    }

    /// Until all is done; `progress` is told so far what was.
    pub(crate) async fn prune(&self, progress: impl Fn(&Value)) -> Result<Value> {
        match self {
            Self::Local(cache) => {
                let told = |pruned: &Pruned| progress(&report::pruned(pruned));
                let pruned = cache.prune_within(Duration::MAX, told).await?;
                cache.settle().await?;
                Ok(report::pruned(&pruned))
            }
            Self::Remote(client) => {
                json_of(&client.send(Method::POST, "/prune", None, Bytes::new()).await?.body)
            }
        }
    }

    /// How many keys went, where that is known.
    pub(crate) async fn clear(&self, what: &ClearArgs) -> Result<Option<u64>> {
        match self {
            Self::Local(cache) => clear(cache, what).await,
            Self::Remote(client) => {
                let mut query = Vec::new();
                query.extend(
                    what.level.map(|level| ("level".to_owned(), Level::from(level).name().to_owned())),
                );
                query.extend(what.tag.as_ref().map(|(name, value)| (format!("tag.{name}"), value.clone())));
                query.extend(what.prefix.as_ref().map(|prefix| ("prefix".to_owned(), prefix.clone())));
                if query.is_empty() {
                    query.push(("level".to_owned(), "all".to_owned()));
                }
                let answer =
                    client.send(Method::DELETE, &with_query("/cache", &query), None, Bytes::new()).await?;
                Ok(header(&answer.headers, REMOVED).and_then(|count| count.parse().ok()))
            }
        }
    }
}

/// Sinks what RAM holds.
pub(crate) async fn close(cache: CacheManager) -> Result<()> {
    let report = busy("sinking to disk", cache.close(CLOSE_PATIENCE)).await?;
    if report.is_clean() || report.nowhere_to_go == report.dropped() && report.failures.is_empty() {
        return Ok(());
    }
    Err(Failure::backend(format!("the cache did not close well: {report}")))
}

/// Removes what `what` picks.
pub(crate) async fn clear(cache: &CacheManager, what: &ClearArgs) -> Result<Option<u64>> {
    let (count, degraded) = if let Some(level) = what.level {
        cache.flush(level.into()).await?;
        return Ok(None);
    } else if let Some((name, value)) = &what.tag {
        (None, cache.invalidate_tag(name, value).await?.degraded)
    } else if let Some(prefix) = &what.prefix {
        let query = tiercache::tracking::Query {
            namespace: Some(cache.namespace_name().to_owned()),
            prefix: prefix.as_bytes().to_vec(),
            ..Default::default()
        };
        let purged = cache.purge_where(query).await?;
        (Some(purged.keys), purged.degraded)
    } else {
        (None, cache.clear().await?.degraded)
    };
    match degraded.into_iter().next() {
        Some((level, error)) => {
            Err(Failure::backend(format!("{level} still holds what was removed: {error}")))
        }
        None => Ok(count),
    }
}

/// The address of a key, which is checked here: an odd one would lead elsewhere.
fn path(key: &str, query: &[(String, String)]) -> Result<String> {
    below("cache", key, query)
}

fn below(what: &str, key: &str, query: &[(String, String)]) -> Result<String> {
    let key = Key::new("", key.as_bytes())?;
    Ok(with_query(&format!("/{what}/{}", keyname::encode(key.bytes())), query))
}

fn sum_of(body: &[u8]) -> Result<i64> {
    let answer = json_of(body)?;
    answer["counter"].as_i64().ok_or_else(|| Failure::backend("the answer has no counter"))
}

fn with_query(path: &str, query: &[(String, String)]) -> String {
    let encode = |text: &str| keyname::encode(text.as_bytes());
    let pairs: Vec<String> =
        query.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

fn warn_of_lagging(headers: &HeaderMap) {
    if let Some(levels) = header(headers, DEGRADED.as_str()) {
        tracing::warn!(%levels, "an older copy could not be removed yet");
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn json_of(body: &[u8]) -> Result<Value> {
    serde_json::from_slice(body).map_err(|error| Failure::backend(format!("the answer is no JSON: {error}")))
}
