//! Counters: `POST /counters/{key}?by=3&start=10&ttl=1h` adds, `GET` tells, `DELETE` removes.

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use serde_json::json;
use tiercache::units::parse_duration;

use super::answer::{Answer, Refusal, absent, done, json_response};
use super::routes::{Shared, alone, key_below, unknown, within};

pub(super) async fn add(State(service): Shared, uri: Uri) -> Answer {
    let (cache, parameters) = within(&service, &uri)?;
    let mut addition = cache.incr(key(&uri)?);
    for (name, value) in parameters {
        let number = || {
            let why = || Refusal::bad(format!("{name}: `{}` is not a whole number", value.escape_debug()));
            value.parse::<i64>().map_err(|_| why())
        };
        addition = match name.as_str() {
            "by" => addition.by(number()?),
            "start" => addition.start(number()?),
            "ttl" => addition.ttl(parse_duration(&value).map_err(|why| Refusal::bad(format!("ttl: {why}")))?),
            _ => return Err(unknown(&name, "by, start, ttl, namespace")),
        };
    }
    Ok(json_response(StatusCode::OK, &json!({ "counter": addition.await? })))
}

pub(super) async fn read(State(service): Shared, uri: Uri) -> Answer {
    match alone(&service, &uri)?.counter(key(&uri)?).await? {
        Some(sum) => Ok(json_response(StatusCode::OK, &json!({ "counter": sum }))),
        None => Ok(absent("counter")),
    }
}

pub(super) async fn remove(State(service): Shared, uri: Uri) -> Answer {
    if alone(&service, &uri)?.remove_counter(key(&uri)?).await? {
        Ok(done(&[]))
    } else {
        Ok(absent("counter"))
    }
}

fn key(uri: &Uri) -> Result<Vec<u8>, Refusal> {
    key_below("/counters/", uri)
}
