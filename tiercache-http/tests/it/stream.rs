//! Bodies stream: stored on their way, whole or not at all.

use std::sync::Arc;

use crate::common::{Bench, Script, get, read, request, response, streamed};
use bytes::Bytes;
use http_body_util::BodyExt;
use tiercache_core::CacheManager;
use tiercache_core::testing::ManualClock;
use tiercache_core::tracking::Query;
use tiercache_http::Outcome;
use tiercache_ram::{Policy, RamConfig, RamTier};

const URI: &str = "http://example.com/a";
const FRESH: &[(&str, &str)] = &[("cache-control", "max-age=60")];

/// Bytes that differ from place to place.
fn long(length: usize) -> Bytes {
    (0..length).map(|at| (at / 251 + at) as u8).collect::<Vec<_>>().into()
}

fn frames(body: &Bytes, size: usize) -> Vec<Result<Bytes, &'static str>> {
    body.chunks(size).map(|chunk| Ok(body.slice_ref(chunk))).collect()
}

/// The keys there are, of pieces and of variants.
async fn stored(bench: &Bench) -> (usize, usize) {
    let mut keys = bench.manager.namespace("http").unwrap().keys(Query::default());
    let (mut pieces, mut variants) = (0, 0);
    while let Some(record) = keys.next().await.unwrap() {
        match record.key.bytes()[0] {
            b'p' => pieces += 1,
            b'v' => variants += 1,
            _ => {}
        }
    }
    (pieces, variants)
}

#[tokio::test]
async fn a_long_body_is_stored_in_pieces_and_comes_back_whole_and_in_parts() {
    let bench = Bench::new(|cache| cache).await;
    let body = long((3 << 20) + 12_345);
    for announced in [true, false] {
        let uri = format!("{URI}?{announced}");
        let length = body.len().to_string();
        let headers = [("cache-control", "max-age=60"), ("content-length", length.as_str())];
        let headers = if announced { &headers[..] } else { &headers[..1] };
        let origin = Script::new(|_| Err("asked twice"));
        origin.queue(Ok(streamed(headers, frames(&body, 10_000))));
        assert!(bench.get(&origin, &uri).await.body.unwrap() == body);
        let hit = bench.get(&origin, &uri).await;
        assert_eq!(hit.outcome, Outcome::Hit);
        assert!(hit.body.unwrap() == body);
        for (start, end) in [(0, 0), (262_143, 262_144), (100, 1_000_000), (3 << 20, (3 << 20) + 12_344)] {
            let part = bench.ask(&origin, get(&uri, &[("range", &format!("bytes={start}-{end}"))])).await;
            assert_eq!(part.status, 206);
            assert!(part.body.unwrap() == body.slice(start..=end), "{start}-{end}");
        }
        let head = bench.ask(&origin, request("HEAD", &uri, &[])).await;
        assert_eq!(head.header("content-length"), length);
    }
}

#[tokio::test]
async fn what_ends_early_or_is_too_long_is_not_stored_and_leaves_nothing() {
    let body = long(2 << 20);
    let announced = [("cache-control", "max-age=60"), ("content-length", "3000000")];
    let mut failing = frames(&body, 100_000);
    failing.push(Err("reset"));
    let cases = [
        (streamed(&announced, frames(&body, 100_000)), 1 << 30, true),
        (streamed(FRESH, failing), 1 << 30, false),
        (streamed(FRESH, frames(&body, 100_000)), 1 << 20, true),
        (response(200, FRESH, body.clone()), 1 << 20, true),
        (response(200, &announced, body.clone()), 1 << 30, true),
    ];
    for (index, (first, most, ends)) in cases.into_iter().enumerate() {
        let bench = Bench::listed(|cache| cache.max_body(most)).await;
        let origin = Script::counting(&[]);
        origin.queue(Ok(first));
        let answer = bench.get(&origin, URI).await;
        assert_eq!(answer.body.is_ok(), ends, "case {index}: the requester has what the origin sent");
        assert_eq!(bench.get(&origin, URI).await.outcome, Outcome::Miss, "case {index}");
        while stored(&bench).await != (0, 0) {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_requester_who_leaves_does_not_keep_a_body_from_being_stored() {
    let bench = Bench::new(|cache| cache).await;
    let body = long(2 << 20);
    let origin = Script::new(|_| Err("asked twice"));
    origin.queue(Ok(streamed(FRESH, frames(&body, 50_000))));
    let mut response = bench.cache.handle(get(URI, &[]), &origin).await.unwrap();
    assert!(response.body_mut().frame().await.unwrap().is_ok());
    drop(response);
    let found = read(bench.cache.handle(get(URI, &[]), &origin).await.unwrap()).await;
    assert_eq!(found.outcome, Outcome::Hit);
    assert!(found.body.unwrap() == body);
}

#[tokio::test]
async fn a_missing_piece_is_a_miss_before_the_answer_and_an_error_within_it() {
    let bench = Bench::listed(|cache| cache).await;
    let body = long(2 << 20);
    let origin = Script::new({
        let body = body.clone();
        move |_| Ok(streamed(FRESH, frames(&body, 50_000)))
    });
    bench.get(&origin, URI).await;
    let responses = bench.manager.namespace("http").unwrap();
    let pieces = || async {
        let mut keys = responses.keys(Query::default());
        let mut pieces = Vec::new();
        while let Some(record) = keys.next().await.unwrap() {
            if record.key.bytes()[0] == b'p' {
                pieces.push(record.key);
            }
        }
        pieces.sort();
        pieces
    };
    let reading = bench.cache.handle(get(URI, &[]), &origin).await.unwrap();
    responses.delete(pieces().await.last().unwrap()).await.unwrap();
    let cut = read(reading).await;
    assert_eq!((cut.outcome, cut.body.unwrap_err().as_str()), (Outcome::Hit, "a piece of the body is gone"));
    let missed = bench.get(&origin, URI).await;
    assert_eq!(missed.outcome, Outcome::Miss);
    assert!(missed.body.unwrap() == body);
}

#[tokio::test]
async fn who_has_seen_the_end_finds_it_stored() {
    for length in [Some("11"), None] {
        let bench = Bench::new(|cache| cache).await;
        let origin = Script::new(move |_| {
            let headers: Vec<_> =
                FRESH.iter().copied().chain(length.map(|length| ("content-length", length))).collect();
            Ok(streamed(&headers, vec![Ok(Bytes::from_static(b"hello ")), Ok(Bytes::from_static(b"world"))]))
        });
        let mut first = bench.cache.handle(get(URI, &[]), &origin).await.unwrap().into_body();
        let mut seen = 0;
        while seen < 11 {
            seen += first.frame().await.unwrap().unwrap().into_data().unwrap().len();
        }
        if length.is_none() {
            assert!(first.frame().await.is_none());
        }
        assert_eq!(bench.get(&origin, URI).await.outcome, Outcome::Hit, "{length:?}");
    }
}

#[tokio::test]
async fn long_bodies_renewed_by_a_304_keep_their_pieces() {
    let bench = Bench::new(|cache| cache.keep_stale(std::time::Duration::from_secs(100))).await;
    let body = long(2 << 20);
    let origin = Script::new({
        let body = body.clone();
        move |asked| match asked.headers.get("if-none-match") {
            Some(_) => Ok(response(304, &[("cache-control", "max-age=60")], "")),
            None => {
                Ok(streamed(&[("cache-control", "max-age=60"), ("etag", "\"a\"")], frames(&body, 50_000)))
            }
        }
    });
    bench.get(&origin, URI).await;
    for _ in 0..5 {
        bench.pass(61);
        assert_eq!(bench.get(&origin, URI).await.outcome, Outcome::Revalidated);
        let hit = bench.get(&origin, URI).await;
        assert_eq!(hit.outcome, Outcome::Hit);
        assert!(hit.body.unwrap() == body);
    }
}

/// A cache whose hot level has room for `hot` bytes.
async fn over_two_levels(hot: u64) -> Bench {
    let clock = ManualClock::new();
    let ram = |max_size| Arc::new(RamTier::new(RamConfig { max_size, policy: Policy::default() }));
    let levels = CacheManager::builder().hot(ram(hot)).cold(ram(64 << 20));
    let manager = levels.clock(clock.clone()).build().await.unwrap();
    Bench::over(manager, clock, |cache| cache)
}

#[tokio::test]
async fn a_body_need_not_fit_into_the_hot_level() {
    let bench = over_two_levels(2 << 20).await;
    let body = long(16 << 20);
    let origin = Script::new(|_| Err("asked twice"));
    origin.queue(Ok(streamed(FRESH, frames(&body, 100_000))));
    assert!(bench.get(&origin, URI).await.body.unwrap() == body);
    let hit = bench.get(&origin, URI).await;
    assert_eq!(hit.outcome, Outcome::Hit);
    assert!(hit.body.unwrap() == body);
}

#[tokio::test]
async fn responses_sink_and_rise_like_any_other_entry() {
    let bench = over_two_levels(64 << 10).await;
    let origin = Script::new(|asked| Ok(response(200, FRESH, asked.uri.repeat(50))));
    let uris: Vec<String> = (0..200).map(|number| format!("{URI}?{number}")).collect();
    for uri in &uris {
        bench.get(&origin, uri).await;
    }
    for uri in &uris {
        let hit = bench.get(&origin, uri).await;
        assert_eq!((hit.outcome, hit.text()), (Outcome::Hit, uri.repeat(50).as_str()));
    }
    assert_eq!(origin.count(), 200);
}
