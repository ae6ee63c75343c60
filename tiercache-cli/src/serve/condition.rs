//! Validators, and the conditions of requests that name them (RFC 9110, section 13).

use axum::http::header::{HeaderValue, IF_MATCH, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use tiercache::{CacheManager, EntryInfo, Generation};

use super::answer::Refusal;

/// What must be there for a write to be made. Judged again in the step that writes.
pub(super) enum OnlyIf {
    Absent,
    Present,
    Generation(Generation),
}

/// The condition that a write comes with.
///
/// # Errors
/// 412 when it does not hold already.
pub(super) async fn condition(
    cache: &CacheManager,
    key: &[u8],
    headers: &HeaderMap,
) -> Result<Option<OnlyIf>, Refusal> {
    let any = |name| headers.get_all(name).iter().any(|field: &HeaderValue| field == "*");
    let (must, must_not) = (headers.contains_key(IF_MATCH), headers.contains_key(IF_NONE_MATCH));
    if any(IF_MATCH) {
        return Ok(Some(OnlyIf::Present));
    }
    if !must && any(IF_NONE_MATCH) {
        return Ok(Some(OnlyIf::Absent));
    }
    if !must && !must_not {
        return Ok(None);
    }
    let Some(entry) = cache.read(key).await? else {
        return if must { Err(not_met()) } else { Ok(Some(OnlyIf::Absent)) };
    };
    // With `If-Match` the other is not looked at, and weak tags match nothing.
    let (name, holds) = if must { (IF_MATCH, true) } else { (IF_NONE_MATCH, false) };
    let tag = etag(&entry);
    match headers.get_all(name).iter().any(|field| names(field, &tag, must)) == holds {
        true => Ok(Some(OnlyIf::Generation(entry.generation))),
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
