//! Two principals never cross: whatever responses claim, nobody gets what was made for another.

use crate::common::{Bench, Script, read, request, response};
use proptest::prelude::*;
use tiercache_http::{Identity, Profile};

const STEPS: usize = 250;
/// Of each property: 110,000 requests with their responses.
const CASES: u32 = 440;

const USERS: [&str; 4] = ["", "ann", "bob", "bobby"];
const URIS: [&str; 3] = ["http://example.com/", "http://example.com/me", "http://example.com/me?x"];
const METHODS: [&str; 5] = ["GET", "GET", "GET", "HEAD", "POST"];
/// What a careless origin says of what it made for one user.
const HEADERS: [&[(&str, &str)]; 14] = [
    &[("cache-control", "max-age=60")],
    &[("cache-control", "public, max-age=60")],
    &[("cache-control", "s-maxage=60")],
    &[("cache-control", "max-age=60, must-revalidate")],
    &[("cache-control", "max-age=60"), ("etag", "\"same-for-all\"")],
    &[("cache-control", "no-cache, public"), ("etag", "\"same-for-all\"")],
    &[("cache-control", "max-age=1, stale-while-revalidate=60, stale-if-error=60")],
    &[("cache-control", "private, max-age=60")],
    &[("cache-control", "max-age=60"), ("set-cookie", "user=x")],
    &[("cache-control", "max-age=60"), ("vary", "accept-language")],
    &[("cache-control", "max-age=60"), ("vary", "cookie")],
    &[("cdn-cache-control", "max-age=60"), ("cache-control", "no-store")],
    &[("expires", "Fri, 31 Dec 2038 23:59:59 GMT"), ("last-modified", "Tue, 14 Nov 2023 20:13:20 GMT")],
    &[],
];

#[derive(Clone, Debug)]
struct Step {
    user: usize,
    /// In `Authorization`, in `Cookie`, or in both.
    carried: usize,
    uri: usize,
    method: usize,
    said: usize,
    condition: Option<&'static str>,
    passes: u64,
}

fn step() -> impl Strategy<Value = Step> {
    let condition = prop_oneof![
        4 => Just(None),
        1 => Just(Some("max-stale")),
        1 => Just(Some("only-if-cached")),
        1 => Just(Some("no-cache")),
    ];
    let indices = (0..USERS.len(), 0..3usize, 0..URIS.len(), 0..METHODS.len(), 0..HEADERS.len());
    (indices, condition, 0..4u64).prop_map(|((user, carried, uri, method, said), condition, passes)| Step {
        user,
        carried,
        uri,
        method,
        said,
        condition,
        passes: [0, 0, 1, 61][passes as usize],
    })
}

fn who(headers: &http::HeaderMap) -> String {
    let value = headers.get("authorization").or_else(|| headers.get("cookie"));
    value.map(|value| value.to_str().unwrap().trim_start_matches("user=").to_owned()).unwrap_or_default()
}

#[derive(Clone, Copy)]
enum Kind {
    Shared,
    Identified,
    Private(Profile),
}

async fn play(steps: Vec<Step>, kind: Kind) {
    let bench = Bench::new(|cache| match kind {
        Kind::Shared => cache,
        Kind::Identified => {
            cache.identity(|parts| Some(who(&parts.headers)).filter(|who| !who.is_empty()).map(Identity))
        }
        Kind::Private(profile) => cache.private().profile(profile),
    })
    .await;
    for step in steps {
        bench.pass(step.passes);
        let origin = Script::new(move |asked| {
            Ok(response(200, HEADERS[step.said], format!("made for {:?}", who(&asked.headers))))
        });
        let user = format!("user={}", USERS[step.user]);
        let names = [&["authorization"][..], &["cookie"], &["authorization", "cookie"]][step.carried];
        let carried = names.iter().filter(|_| step.user > 0).map(|name| (*name, user.as_str()));
        let condition = step.condition.map(|condition| ("cache-control", condition));
        let headers: Vec<_> = carried.chain(condition).collect();
        let request = request(METHODS[step.method], URIS[step.uri], &headers);
        let answer = read(bench.cache.handle(request, &origin).await.unwrap()).await;
        if answer.status == 200 && METHODS[step.method] != "HEAD" {
            assert_eq!(answer.text(), format!("made for {:?}", USERS[step.user]), "{step:?}");
        }
    }
}

fn check(kind: Kind) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in proptest::collection::vec(step(), STEPS))| {
        runtime.block_on(play(steps, kind));
    });
}

#[test]
fn without_identities_nobody_gets_what_was_made_for_another() {
    check(Kind::Shared);
}

#[test]
fn with_identities_nobody_gets_what_was_made_for_another() {
    check(Kind::Identified);
}

#[test]
fn in_a_private_cache_nobody_gets_what_was_made_for_other_credentials() {
    check(Kind::Private(Profile::Default));
    check(Kind::Private(Profile::Rfc9111));
}
