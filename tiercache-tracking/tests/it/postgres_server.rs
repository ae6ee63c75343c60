//! What only a look at PostgreSQL itself shows: the way there is verified, and questions are answered by indexes.
#![cfg(feature = "postgres")]

use std::path::Path;

use crate::common::{config, event, key, opened, record};
use tiercache_core::tracking::{Query, Record, What};
use tiercache_core::{Error, Key, Level, Tags, Timestamp, Tracking};
use tiercache_services::Postgres;
use tiercache_tracking::{PostgresConfig, PostgresTracking, Tls};

#[tokio::test]
async fn with_tls_the_server_is_verified() {
    let Some((server, certificates)) = Postgres::with_tls() else { return };
    let base = config(&server);
    let at = |host: &str, tls: Tls, ca: Option<&Path>| PostgresConfig {
        host: Some(host.to_owned()),
        tls: Some(tls),
        ca: ca.map(Path::to_owned),
        ..base.clone()
    };
    let (ca, other) = (&*certificates.ca, &*certificates.other);
    let near = "127.0.0.1";
    for trusted in [
        at(near, Tls::VerifyFull, Some(ca)),
        at("localhost", Tls::VerifyCa, Some(ca)),
        at(near, Tls::Require, None),
    ] {
        let tracking = opened(trusted).await;
        tracking.record(&[event(What::Stored(record("k", 1)))]).await.expect("recorded");
        assert!(tracking.lookup(&key("k")).await.expect("an answer").is_some());
        // Every connection speaks TLS, not only the first.
        let plain = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE application_name = 'tiercache' AND NOT ssl";
        assert_eq!(count(&server, plain).await, 0);
        let sealed = plain.replace("AND NOT ssl", "AND ssl");
        assert!(count(&server, &sealed).await > 0);
        tracking.close().await.expect("closed");
    }
    for doubtful in [
        at(near, Tls::VerifyFull, None),
        at(near, Tls::VerifyFull, Some(other)),
        at(near, Tls::VerifyCa, Some(other)),
        at("localhost", Tls::VerifyFull, Some(ca)),
    ] {
        let told = format!("{doubtful:?}");
        let error = PostgresTracking::open(doubtful).await.expect_err(&told);
        assert!(matches!(error, Error::Unavailable { .. }), "{told}: {error:?}");
        assert!(format!("{error:?}").to_lowercase().contains("certificate"), "{told}: {error:?}");
    }
    // A server that speaks no TLS is not talked to in the clear.
    let Some(bare) = Postgres::own() else { return };
    let config = PostgresConfig { tls: Some(Tls::Require), ..config(&bare) };
    PostgresTracking::open(config).await.expect_err("it speaks no TLS");
}

#[tokio::test]
async fn questions_are_answered_by_indexes() {
    // The server itself writes down how it answers what it is really asked.
    let explain = [
        "session_preload_libraries=auto_explain",
        "auto_explain.log_min_duration=0",
        "auto_explain.log_format=text",
    ];
    let args: Vec<&str> = explain.iter().flat_map(|set| ["-c", set]).collect();
    let Some(server) = Postgres::start_with(&args) else { return };
    let config = config(&server);
    let tables = format!("{}.tiercache_record", config.schema);
    let tracking = opened(config).await;
    // Few that are asked for, among many others.
    let rare: Vec<_> = (0..50)
        .map(|number| {
            let mut record = record(&format!("rare/{number}"), 1);
            record.level = Level::Dry;
            record.tags = Tags::from([("type".into(), "rare".into())]);
            event(What::Stored(record))
        })
        .collect();
    tracking.record(&rare).await.expect("recorded");
    let others = format!(
        "INSERT INTO {tables} SELECT decode(md5(number::text), 'hex'), '', convert_to('k/' || number, 'UTF8'), 1, 0, 100, \
         number, number, number, 0, ARRAY[number]::bigint[], ARRAY[]::bytea[] FROM generate_series(1, 50000) AS number; \
         ANALYZE {tables}"
    );
    execute(&server, &others).await;

    let tagged = Query { tags: Tags::from([("type".into(), "rare".into())]), ..Query::all() };
    let by_tag = plan(&server, tracking.find(&tagged, None, 100), 50).await;
    assert!(by_tag.contains("Bitmap Index Scan on tiercache_record_tags"), "{by_tag}");

    let prefix = Query { prefix: b"rare/".into(), namespace: Some(String::new()), ..Query::all() };
    let by_prefix = plan(&server, tracking.find(&prefix, None, 100), 50).await;
    assert!(
        by_prefix.contains("tiercache_record_key") || by_prefix.contains("tiercache_record_level"),
        "{by_prefix}"
    );

    let level = Query { level: Some(Level::Dry), ..Query::all() };
    let by_level = plan(&server, tracking.find(&level, None, 100), 50).await;
    assert!(by_level.contains("tiercache_record_level"), "{by_level}");

    // What has expired is passed over on the way through the index, and a page does not sort the whole table.
    let alive = Query { live_at: Some(Timestamp::from_millis(40_000)), ..Query::all() };
    let page = plan(&server, tracking.find(&alive, None, 100), 100).await;
    assert!(page.contains("Index Scan using tiercache_record_key"), "{page}");
    let last = tracking.find(&alive, None, 100).await.expect("a page").pop().expect("a record").key;
    let next = plan(&server, tracking.find(&alive, Some(&last), 100), 100).await;
    assert!(next.contains("Index Scan using tiercache_record_key"), "{next}");

    let one = plan(&server, async { tracking.lookup(&key("rare/7")).await.map(Vec::from_iter) }, 1).await;
    assert!(one.contains("tiercache_record_pkey"), "{one}");
    for plan in [by_tag, by_prefix, by_level, page, next, one] {
        assert!(!plan.contains("Seq Scan"), "{plan}");
    }
}

#[tokio::test]
async fn a_listing_goes_through_all_namespaces_whatever_its_pages() {
    let Some(server) = Postgres::start() else { return };
    let tracking = opened(config(&server)).await;
    let mut keys: Vec<Key> = ["", "a", "a\u{1}", "b", "z"]
        .into_iter()
        .flat_map(|namespace| {
            ["k", "k/1", "k/2", "l"].map(|name| Key::new(namespace, name.as_bytes()).expect("a key"))
        })
        .collect();
    let events: Vec<_> =
        keys.iter().map(|key| event(What::Stored(Record { key: key.clone(), ..record("k", 1) }))).collect();
    tracking.record(&events).await.expect("recorded");
    keys.sort();
    for prefix in ["", "k", "k/", "l"] {
        let wanted: Vec<_> = keys.iter().filter(|key| key.bytes().starts_with(prefix.as_bytes())).collect();
        let query = Query { prefix: prefix.into(), ..Query::all() };
        for limit in 1..8 {
            let mut listed: Vec<Key> = Vec::new();
            loop {
                let page = tracking.find(&query, listed.last(), limit).await.expect("a page");
                let last = page.len() < limit;
                listed.extend(page.into_iter().map(|record| record.key));
                if last {
                    break;
                }
            }
            assert!(listed.iter().eq(wanted.iter().copied()), "{prefix} by {limit}: {listed:?}");
        }
    }
}

/// How the server answered that question, which finds so many.
async fn plan<T>(
    server: &Postgres,
    question: impl Future<Output = tiercache_core::Result<Vec<T>>>,
    found: usize,
) -> String {
    let log = server.dir().join("log");
    let before = std::fs::read_to_string(&log).expect("the server's log").len();
    assert_eq!(question.await.expect("an answer").len(), found);
    // It is written before the answer is sent.
    let plans = std::fs::read_to_string(&log).expect("the server's log").split_off(before);
    assert!(plans.contains("Query Text: SELECT id, namespace, key"), "{plans}");
    plans
}

async fn connection(server: &Postgres) -> sqlx::PgConnection {
    let options: sqlx::postgres::PgConnectOptions = server.url().parse().expect("a URL");
    sqlx::ConnectOptions::connect(&options).await.expect("let in")
}

async fn execute(server: &Postgres, statements: &str) {
    let mut connection = connection(server).await;
    sqlx::raw_sql(sqlx::AssertSqlSafe(statements.to_owned())).execute(&mut connection).await.expect("done");
}

async fn count(server: &Postgres, question: &str) -> i64 {
    let mut connection = connection(server).await;
    let question = sqlx::AssertSqlSafe(question.to_owned());
    sqlx::query_scalar(question).fetch_one(&mut connection).await.expect("a number")
}
