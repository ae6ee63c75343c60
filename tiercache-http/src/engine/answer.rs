//! Responses from what is stored.

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use tiercache_core::{CacheManager, Timestamp};

use crate::Body;
use crate::policy::range::{self, Asked};
use crate::policy::status::{CACHE_STATUS, Told};
use crate::policy::{conditional, fields};
use crate::store::{self, Stored};

/// The response to a request from what is stored for it.
pub(crate) fn from_store(
    manager: &CacheManager,
    request: &Parts,
    mut stored: Stored,
    now: Timestamp,
) -> Response<Body> {
    let age = stored.fresh.age(now) / 1000;
    stored.headers.insert(header::AGE, HeaderValue::from(age));
    if stored.part.is_none() && conditional::is_not_modified(&request.headers, stored.status, &stored.headers)
    {
        return response(
            StatusCode::NOT_MODIFIED,
            conditional::not_modified_headers(stored.headers),
            Body::empty(),
        );
    }
    let status = StatusCode::from_u16(stored.status).unwrap_or(StatusCode::OK);
    let asked = part_asked(&request.headers, &stored);
    let mut headers = std::mem::take(&mut stored.headers);
    if request.method == Method::HEAD {
        headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(stored.length()));
        return response(status, headers, Body::empty());
    }
    let (has, whole) = stored.part.clone().unwrap_or((0..stored.length(), stored.length()));
    match asked {
        Asked::Part(part) => {
            headers.insert(header::CONTENT_RANGE, range::value(&part, whole));
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(part.end - part.start));
            let bytes = part.start - has.start..part.end - has.start;
            response(StatusCode::PARTIAL_CONTENT, headers, store::read(manager, &stored.content, bytes))
        }
        Asked::Unsatisfiable => {
            let mut headers = conditional::not_modified_headers(headers);
            if let Ok(value) = HeaderValue::try_from(format!("bytes */{whole}")) {
                headers.insert(header::CONTENT_RANGE, value);
            }
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(0));
            response(StatusCode::RANGE_NOT_SATISFIABLE, headers, Body::empty())
        }
        Asked::Whole => response(status, headers, store::read(manager, &stored.content, 0..stored.length())),
    }
}

/// What a request asks of a stored response: ranges are of 200 only.
fn part_asked(request: &HeaderMap, stored: &Stored) -> Asked {
    let whole = stored.part.as_ref().map_or(stored.length(), |(_, whole)| *whole);
    let ranged = stored.status == 200 || stored.part.is_some();
    if ranged && conditional::if_range_holds(request, &stored.headers) {
        range::asked(request, whole)
    } else {
        Asked::Whole
    }
}

/// Whether what is stored has everything that is asked for.
pub(crate) fn covers(request: &Parts, stored: &Stored) -> bool {
    let Some((has, _)) = &stored.part else { return true };
    let conditions = [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE];
    request.method == Method::GET
        && conditions.iter().all(|name| !request.headers.contains_key(name))
        && matches!(part_asked(&request.headers, stored), Asked::Part(part) if has.start <= part.start && part.end <= has.end)
}

/// The answer when only the store may answer and does not (RFC 9111 §5.2.1.7).
pub(crate) fn nothing_stored() -> Response<Body> {
    response(StatusCode::GATEWAY_TIMEOUT, HeaderMap::new(), Body::empty())
}

fn response(status: StatusCode, headers: HeaderMap, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Adds what was done, behind what caches nearer to the origin have said.
pub(crate) fn tell(headers: &mut HeaderMap, name: &str, told: &Told) {
    let Some(value) = told.value(name) else { return };
    let before: Vec<&str> = headers.get_all(CACHE_STATUS).iter().filter_map(fields::text).collect();
    let value = if before.is_empty() {
        value
    } else {
        let joined = [before.join(", ").as_bytes(), value.as_bytes()].join(&b", "[..]);
        HeaderValue::from_bytes(&joined).unwrap_or(value)
    };
    headers.insert(CACHE_STATUS, value);
}
