//! Against a scripted server: what no server does on demand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::stub::{Reply, Stub, cursor, page};
use crate::common::{config, entry, get, hold, key, of, put, tier, tracking, tracking_config, until};
use mongodb::bson::{Binary, Document, doc, spec::BinarySubtype};
use tiercache_core::tier::{Always, Put};
use tiercache_core::tracking::{Event, Query, Totals, What};
use tiercache_core::{Codec, Error, Key, Tier, Timestamp, Tracking};
use tiercache_mongo::{MongoConfig, MongoTier, MongoTracking, MongoTrackingConfig};

/// A document as the tier writes one.
fn kept(of: &Key, found: &tiercache_core::Entry, rank: i64) -> Document {
    let mut bytes = Vec::new();
    Codec::default().encode(of.as_ref(), found, &mut bytes).expect("encodes");
    doc! { "_id": "x", "rank": rank, "body": Binary { subtype: BinarySubtype::Generic, bytes } }
}

async fn quick(stub: &Stub) -> Arc<MongoTier> {
    tier(&MongoConfig { timeout: Duration::from_millis(400), ..config(&stub.url()) }).await
}

#[tokio::test]
async fn errors_of_the_server_are_errors_with_their_cause() {
    let stub = Stub::start().await;
    let tier = tier(&config(&stub.url())).await;
    stub.next("findAndModify", Reply::Error(8_000));
    let error = tier.put(&key("k"), &entry(1, "v"), hold(), &Always).await.expect_err("an error");
    assert!(matches!(error, Error::Unavailable { backend: "mongodb", .. }), "{error:?}");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.contains("as the test says"), "{cause}");
    assert_eq!(put(&*tier, "k", &entry(1, "v")).await, Put::Stored, "and the next call is made");
}

#[tokio::test]
async fn a_server_that_is_no_primary_any_more_is_looked_for_again() {
    let stub = Stub::start().await;
    let tier = tier(&config(&stub.url())).await;
    for code in [10_107, 11_600, 13_435] {
        stub.next("findAndModify", Reply::Error(code));
        let refused = tier.put(&key("k"), &entry(1, "v"), hold(), &Always).await;
        assert!(refused.is_err_and(|error| error.is_retryable()), "{code}");
        assert_eq!(put(&*tier, "k", &entry(1, "v")).await, Put::Stored, "{code}");
        assert_eq!(get(&*tier, "k").await, None, "{code}");
    }
}

#[tokio::test]
async fn no_broken_answer_is_an_entry_and_none_harms_the_next_call() {
    let stub = Stub::start().await;
    let tier = quick(&stub).await;
    let (of_k, whole) = (key("k"), entry(7, "value"));
    let found = || page(vec![kept(&of_k, &whole, 14)]);
    // A read is tried twice by the driver.
    for broken in [Reply::Cut(found()), Reply::Lost, Reply::Garbage, Reply::Endless, Reply::Torn] {
        for _ in 0..2 {
            stub.next("find", broken.clone());
        }
        let answer = tier.get(&of_k).await;
        assert!(answer.as_ref().is_ok_and(Option::is_none) || answer.is_err(), "{broken:?}: {answer:?}");
        until("the script was asked for", async || {
            let _ = tier.get(&of_k).await;
            stub.left() == 0
        })
        .await;
        stub.next("find", Reply::Answer(found()));
        until("the next call", async || {
            tier.get(&of_k).await.is_ok_and(|found| found == Some(whole.clone())) || {
                stub.next("find", Reply::Answer(found()));
                false
            }
        })
        .await;
    }
}

#[tokio::test]
async fn an_answer_that_never_comes_costs_the_time_out_and_a_late_one_reaches_nobody_else() {
    let stub = Stub::start().await;
    let tier = quick(&stub).await;
    let (of_k, other) = (key("k"), entry(7, "other"));
    stub.next("find", Reply::Never);
    let begun = Instant::now();
    let late = tier.get(&of_k).await.expect_err("no answer");
    assert!(matches!(late, Error::TimedOut { .. }), "{late:?}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());

    stub.next("find", Reply::Late(Duration::from_millis(600), page(vec![kept(&key("other"), &other, 14)])));
    assert!(matches!(tier.get(&key("other")).await, Err(Error::TimedOut { .. })));
    for _ in 0..20 {
        assert_eq!(get(&*tier, "k").await, None, "an answer to another call");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

#[tokio::test]
async fn hung_calls_are_as_many_as_connections_and_the_rest_is_told_in_time() {
    let stub = Stub::start().await;
    let config = MongoConfig { timeout: Duration::from_millis(200), connections: 3, ..config(&stub.url()) };
    let tier = tier(&config).await;
    for _ in 0..3 {
        stub.next("find", Reply::Never);
    }
    let before = stub.seen("find").len();
    let begun = Instant::now();
    for _ in 0..3 {
        let calls = (0..10).map(|_| {
            let tier = tier.clone();
            tokio::spawn(async move { tier.get(&key("k")).await })
        });
        for call in calls.collect::<Vec<_>>() {
            assert!(matches!(call.await.expect("no panic"), Err(Error::TimedOut { .. })));
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(stub.seen("find").len() - before, 3, "no call goes out beyond them");
}

#[tokio::test]
async fn what_is_another_keys_or_of_another_generation_is_a_miss_and_is_removed() {
    let stub = Stub::start().await;
    let tier = tier(&config(&stub.url())).await;
    let (of_k, whole) = (key("k"), entry(7, "value"));
    let mut flipped = kept(&of_k, &whole, 14);
    if let Ok(bytes) = flipped.get_binary_generic_mut("body") {
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
    }
    let wrong = [
        kept(&key("other"), &whole, 14),
        kept(&of_k, &whole, 16),
        flipped,
        doc! { "_id": "x", "rank": 14 },
        doc! { "_id": "x", "rank": "no number", "body": 1 },
        doc! { "_id": "x" },
    ];
    for (number, wrong) in (1..).zip(wrong) {
        stub.next("find", Reply::Answer(page(vec![wrong.clone()])));
        assert_eq!(tier.get(&of_k).await.expect("no error"), None, "{wrong}");
        until("it is removed", async || stub.seen("delete").len() == number).await;
        stub.next("count", Reply::Answer(doc! { "n": 0 }));
        assert_eq!(tier.usage().await.expect("usage").damaged, number as u64);
    }
    let removed = stub.seen("delete").remove(1);
    let filter = removed.get_array("deletes").expect("a list")[0].as_document().expect("a statement");
    assert_eq!(
        filter.get_document("q").expect("a filter").get("rank"),
        Some(&16_i64.into()),
        "only that copy"
    );
}

#[tokio::test]
async fn numbers_are_read_however_they_are_spelled() {
    let stub = Stub::start().await;
    let tier = tier(&config(&stub.url())).await;
    let (of_k, whole) = (key("k"), entry(7, "value"));
    for rank in [mongodb::bson::Bson::Int32(14), 14_i64.into(), 14.0.into()] {
        let mut found = kept(&of_k, &whole, 14);
        found.insert("rank", rank);
        stub.next("find", Reply::Answer(page(vec![found])));
        assert_eq!(tier.get(&of_k).await.expect("no error"), Some(whole.clone()));
    }
}

#[tokio::test]
async fn a_write_that_always_meets_something_that_is_gone_gives_up() {
    let stub = Stub::start().await;
    let tier = tier(&config(&stub.url())).await;
    put(&*tier, "k", &entry(1, "v")).await;
    for _ in 0..50 {
        stub.next("findAndModify", Reply::Error(11_000));
    }
    let error = tier.put(&key("k"), &entry(2, "v"), hold(), &Always).await.expect_err("no end");
    assert!(error.is_retryable(), "{error:?}");
    assert!(stub.left() > 30, "{} left", stub.left());
}

#[tokio::test]
async fn a_cursor_the_server_does_not_know_is_an_error_and_no_end_of_the_list() {
    let stub = Stub::start().await;
    let tier = tier(&config(&stub.url())).await;
    let head = |name: &str| {
        let mut found = kept(&key(name), &entry(7, ""), 14);
        let head = found.remove("body").expect("it has one");
        doc! { "_id": format!(" {name}"), "rank": 14, "size": 5, "head": head }
    };
    stub.next("find", Reply::Answer(cursor(77, vec![head("a")])));
    stub.next("getMore", Reply::Error(43));
    let listed = tier.listing().expect("it lists").list(None, None, 10).await;
    assert!(matches!(listed, Err(Error::Unavailable { .. })), "{listed:?}");

    stub.next("find", Reply::Answer(page(vec![head("a"), doc! { "_id": " broken" }, head("b")])));
    let listed = tier.listing().expect("it lists").list(None, None, 10).await.expect("a page");
    assert_eq!(listed.entries.len(), 2, "what makes no sense is left out");

    let tracking = tracking(&tracking_config(&stub.url())).await;
    stub.next("find", Reply::Answer(cursor(77, Vec::new())));
    stub.next("getMore", Reply::Error(43));
    let found = tracking.find(&Query::all(), None, 10).await;
    assert!(matches!(found, Err(Error::Unavailable { .. })), "{found:?}");
    stub.next("find", Reply::Answer(page(vec![doc! { "_id": " a", "g": "x" }, doc! { "_id": 5 }])));
    assert!(tracking.find(&Query::all(), None, 10).await.expect("a page").is_empty());
    assert_eq!(tracking.skipped(), 2);
}

#[tokio::test]
async fn a_wrong_password_is_refused_without_a_word_of_it() {
    let stub = Stub::start().await;
    let with = |uri: String| MongoConfig { uri: Some(uri.as_str().into()), ..config(&stub.url()) };
    let uri = stub.url().replace("//", "//me:s3ntinel@");
    stub.next("saslStart", Reply::Error(18));
    let error = MongoTier::open(with(uri), "dry").await.expect_err("not let in");
    let message = error.to_string();
    assert!(matches!(error, Error::Refused(_)), "{error:?}");
    assert!(message.contains("wrong user or password") && message.contains("127.0.0.1:"), "{message}");
    assert!(!format!("{error:?} {message}").contains("s3ntinel"));

    stub.next("createIndexes", Reply::Error(13));
    let error = MongoTracking::open(tracking_config(&stub.url())).await.expect_err("no right");
    assert!(matches!(error, Error::Refused(_)), "{error:?}");
}

#[tokio::test]
async fn opening_where_nobody_is_or_nobody_answers_ends_and_names_the_place() {
    let stub = Stub::start().await;
    let silent =
        MongoTrackingConfig { connect_timeout: Duration::from_millis(200), ..tracking_config(&stub.url()) };
    stub.next("ping", Reply::Never);
    let begun = Instant::now();
    let error = MongoTracking::open(silent).await.expect_err("no answer");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.contains("127.0.0.1:"), "{cause}");
    drop(stub);
    let nobody =
        MongoConfig { connect_timeout: Duration::from_millis(200), ..config("mongodb://127.0.0.1:1") };
    let error = MongoTier::open(nobody, "dry").await.expect_err("nobody");
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.contains("127.0.0.1:1"), "{cause}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_batch_whose_answer_is_lost_is_sent_again_and_carries_the_same_mark() {
    let stub = Stub::start().await;
    let tracking = tracking(&tracking_config(&stub.url())).await;
    let used = Event { at: Timestamp::from_millis(5), what: What::Used { key: key("k"), hits: 3 } };
    let before = stub.seen("update").len();
    stub.next("update", Reply::Lost);
    tracking.record(&[used]).await.expect("sent again");
    let sent = &stub.seen("update")[before..];
    let mark = |command: &Document| {
        let statement = command.get_array("updates").expect("a list")[0].as_document().expect("one").clone();
        let filter =
            statement.get_document("q").expect("a filter").get_document("last").expect("a mark").clone();
        let set =
            statement.get_document("u").expect("an update").get_document("$set").expect("a mark").clone();
        assert_eq!(filter.get_object_id("$ne").ok(), set.get_object_id("last").ok());
        set.get_object_id("last").expect("a mark")
    };
    assert_eq!(sent.len(), 2);
    assert_eq!(mark(&sent[0]), mark(&sent[1]), "so that the server applies it once");
}

#[tokio::test]
async fn totals_whose_answer_is_lost_are_not_counted_twice() {
    let stub = Stub::start().await;
    let tracking = tracking(&tracking_config(&stub.url())).await;
    let counted =
        Event { at: Timestamp::EPOCH, what: What::Counted(Totals { misses: 1, ..Totals::default() }) };
    let document = |last: Vec<mongodb::bson::oid::ObjectId>| {
        page(vec![
            doc! { "_id": "totals", "v": 1, "hits": [0, 0, 0], "misses": 4, "sets": 0, "deletes": 0, "last": last },
        ])
    };
    let before = stub.seen("update").len();
    stub.next("find", Reply::Answer(document(Vec::new())));
    stub.next("update", Reply::Lost);
    let recording = tokio::spawn({
        let tracking = tracking.clone();
        async move { tracking.record(&[counted]).await }
    });
    until("the first addition", async || stub.seen("update").len() > before).await;
    // It was carried out: that is what the second look finds, if it comes before this is said it asks again.
    let first = stub.seen("update").remove(before);
    let statement = first.get_array("updates").expect("a list")[0].as_document().expect("one").clone();
    let set = statement.get_document("u").expect("an update").get_document("$set").expect("all").clone();
    assert_eq!(set.get_i64("misses").ok(), Some(5));
    let last = set.get_array("last").expect("additions").iter().filter_map(|id| id.as_object_id()).collect();
    stub.next("find", Reply::Answer(document(last)));
    recording.await.expect("no panic").expect("known to be done");
}

#[tokio::test]
async fn a_batch_the_server_refuses_is_an_error() {
    let stub = Stub::start().await;
    let tracking = tracking(&tracking_config(&stub.url())).await;
    let used = || Event { at: Timestamp::EPOCH, what: What::Used { key: key("k"), hits: 3 } };
    let refusal = doc! { "n": 0, "writeErrors": [{ "index": 0, "code": 121, "errmsg": "validation" }] };
    stub.next("update", Reply::Answer(refusal));
    assert!(matches!(tracking.record(&[used()]).await, Err(Error::Unavailable { .. })));
    stub.next(
        "update",
        Reply::Answer(doc! { "n": 1, "writeConcernError": { "code": 64, "errmsg": "late" } }),
    );
    assert!(matches!(tracking.record(&[used()]).await, Err(Error::Unavailable { .. })));
    let moved = What::Moved { key: key("k"), generation: of(1), to: None };
    stub.next("delete", Reply::Error(13));
    let refused = tracking.record(&[Event { at: Timestamp::EPOCH, what: moved }]).await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })));
    tracking.record(&[used()]).await.expect("the next is taken");
}
