//! Validators, and the conditions of requests that name them (RFC 9110, section 13).

use axum::http::header::{HeaderValue, IF_MATCH, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use tiercache::{CacheManager, EntryInfo, Set};

use super::answer::Refusal;

/// A write on the condition that a request names, judged again in the step that writes.
///
/// # Errors
/// 412 when it does not hold already.
pub(super) async fn conditional<'a>(
    set: Set<'a>,
    cache: &CacheManager,
    key: &[u8],
    headers: &HeaderMap,
) -> Result<Set<'a>, Refusal> {
    let any = |name| headers.get_all(name).iter().any(|field: &HeaderValue| field == "*");
    let (must, must_not) = (headers.contains_key(IF_MATCH), headers.contains_key(IF_NONE_MATCH));
    if any(IF_MATCH) {
        return Ok(set.only_if_present());
    }
    if !must && any(IF_NONE_MATCH) {
        return Ok(set.only_if_absent());
    }
    if !must && !must_not {
        return Ok(set);
    }
    let Some(entry) = cache.read(key).await? else {
        return if must { Err(not_met()) } else { Ok(set.only_if_absent()) };
    };
    // With `If-Match` the other is not looked at, and weak tags match nothing.
    let (name, holds) = if must { (IF_MATCH, true) } else { (IF_NONE_MATCH, false) };
    let tag = etag(&entry);
    match headers.get_all(name).iter().any(|field| names(field, &tag, must)) == holds {
        true => Ok(set.only_if_generation(entry.generation)),
        false => Err(not_met()),
    }
}

pub(super) fn not_met() -> Refusal {
    Refusal::new(StatusCode::PRECONDITION_FAILED, "what is there is not what the condition asks for")
}

/// Names the bytes. Generations alone may come again after a crash, with other bytes, so a hash stands by.
pub(super) fn etag(entry: &EntryInfo) -> String {
    let hash = xxhash_rust::xxh3::xxh3_64(&entry.value);
    format!("\"{:x}-{hash:016x}\"", entry.generation.get())
}

/// Whether a list of tags names this one. Unless they are compared strongly, weak ones count as strong.
pub(super) fn names(field: &HeaderValue, etag: &str, strongly: bool) -> bool {
    let Ok(field) = field.to_str() else { return false };
    field.split(',').map(str::trim).any(|given| {
        let bare = if strongly { given } else { given.strip_prefix("W/").unwrap_or(given) };
        given == "*" || bare == etag
    })
}
