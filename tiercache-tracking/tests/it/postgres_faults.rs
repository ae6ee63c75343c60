//! PostgreSQL that fails: nothing hangs, nothing is half done, and it works again by itself.
#![cfg(feature = "postgres")]

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::{config, event, key, opened, record, stored, used};
use tiercache_core::tier::Scope;
use tiercache_core::tracking::{Query, Totals, What};
use tiercache_core::{Error, Generation, Key, Secret, Tracking};
use tiercache_services::{Fault, Postgres, Proxy};
use tiercache_tracking::{PostgresConfig, PostgresTracking};

/// Tracking behind a proxy, with short patience.
async fn behind(proxy: &Proxy, server: &Postgres) -> PostgresTracking {
    opened(PostgresConfig {
        url: Some(format!("postgres://postgres@{}/postgres", proxy.address()).as_str().into()),
        connect_timeout: Duration::from_millis(500),
        timeout: Duration::from_millis(1_000),
        ..config(server)
    })
    .await
}

async fn works(tracking: &PostgresTracking, name: &str) -> Result<(), Error> {
    tracking.record(&[stored(name, 1), used(name, 2)]).await?;
    let found = tracking.lookup(&key(name)).await?.expect("a record");
    assert!(found.hits >= 2);
    Ok(())
}

/// Waits until it works; the server and the proxy are well again.
async fn heals(tracking: &PostgresTracking) {
    let start = Instant::now();
    while let Err(error) = works(tracking, "healed").await {
        assert!(start.elapsed() < Duration::from_secs(5), "{error:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn in_time<T>(limit: Duration, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, work).await.expect("an answer in time")
}

#[tokio::test]
async fn a_killed_server_is_found_again() {
    let Some(server) = Postgres::own() else { return };
    let tracking = opened(config(&server)).await;
    works(&tracking, "before").await.unwrap();
    server.kill();
    assert!(matches!(works(&tracking, "while").await, Err(Error::Unavailable { .. })));
    server.restart();
    heals(&tracking).await;
    assert!(tracking.lookup(&key("before")).await.unwrap().is_some());
}

#[tokio::test]
async fn a_hung_server_costs_a_call_its_timeout_and_heals() {
    let Some(server) = Postgres::start() else { return };
    let proxy = Proxy::to(server.address());
    let tracking = behind(&proxy, &server).await;
    works(&tracking, "before").await.unwrap();
    proxy.set(Fault::Hang);
    for _ in 0..2 {
        let refused = in_time(Duration::from_secs(3), works(&tracking, "while")).await;
        assert!(refused.is_err_and(|error| error.is_retryable()));
    }
    proxy.set(Fault::Pass);
    heals(&tracking).await;
}

#[tokio::test]
async fn a_stopped_server_goes_on() {
    let Some(server) = Postgres::own() else { return };
    let proxy = Proxy::to(server.address());
    let tracking = behind(&proxy, &server).await;
    works(&tracking, "before").await.unwrap();
    server.pause();
    // Only the postmaster stands still, so what is connected may work: what counts is that nothing hangs.
    let _ = in_time(Duration::from_secs(4), works(&tracking, "while")).await;
    server.resume();
    heals(&tracking).await;
}

#[tokio::test]
async fn cut_reset_refused_and_slow_answers_leave_whole_batches_or_none() {
    let Some(server) = Postgres::start() else { return };
    let proxy = Proxy::to(server.address());
    let tracking = behind(&proxy, &server).await;
    works(&tracking, "warm").await.unwrap();
    let cuts = (0..400).step_by(23).flat_map(|at| [Fault::CutAfter(at), Fault::CutRequestAfter(at)]);
    let faults =
        cuts.chain([Fault::Reset, Fault::Refuse, Fault::OneByte, Fault::Delay(Duration::from_millis(20))]);
    for (number, fault) in faults.enumerate() {
        let names = ["a", "b"].map(|name| format!("{number}{name}"));
        proxy.set(fault);
        let batch = names.clone().map(|name| stored(&name, 1));
        let recorded = in_time(Duration::from_secs(3), tracking.record(&batch)).await;
        proxy.set(Fault::Pass);
        heals(&tracking).await;
        let mut known = Vec::new();
        for name in &names {
            known.push(tracking.lookup(&key(name)).await.unwrap().is_some());
        }
        assert_eq!(known[0], known[1], "{fault:?}: {recorded:?}");
        assert!(recorded.is_err() || known[0], "{fault:?}: what was recorded is there");
    }
}

#[tokio::test]
async fn who_is_not_let_in_is_told_so_without_the_password() {
    let Some(server) = Postgres::own() else { return };
    let tracking = opened(config(&server)).await;
    tracking.close().await.unwrap();
    for (given, wanted) in [
        (PostgresConfig { user: Some("nobody".into()), ..config(&server) }, "set tracking.user"),
        (PostgresConfig { database: Some("none".into()), ..config(&server) }, "set tracking.database"),
    ] {
        let secret = Some(Secret::from("hunter2".to_owned()));
        let error = PostgresTracking::open(PostgresConfig { password: secret, ..given }).await.unwrap_err();
        assert!(matches!(&error, Error::Refused(message) if message.contains(wanted)), "{error:?}");
        assert!(!format!("{error:?} {error}").contains("hunter2"));
    }
}

#[tokio::test]
async fn a_wrong_password_is_told_without_showing_it() {
    let Some(server) = Postgres::own() else { return };
    let rules = server.dir().join("data/pg_hba.conf");
    if !rules.exists() {
        return;
    }
    let options: sqlx::postgres::PgConnectOptions = server.url().parse().unwrap();
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let role = "CREATE ROLE guarded LOGIN PASSWORD 'right'; GRANT CREATE ON DATABASE postgres TO guarded";
    sqlx::raw_sql(role).execute(&mut connection).await.unwrap();
    let guarded = "host all guarded 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n";
    std::fs::write(&rules, guarded).unwrap();
    server.kill();
    server.restart();
    let with = |password: &str| PostgresConfig {
        user: Some("guarded".into()),
        password: Some(Secret::from(password.to_owned())),
        ..config(&server)
    };
    let error = PostgresTracking::open(with("hunter2")).await.unwrap_err();
    assert!(matches!(&error, Error::Refused(message) if message.contains("tracking.password")), "{error:?}");
    assert!(!format!("{error:?} {error}").contains("hunter2"));
    works(&opened(with("right")).await, "a").await.unwrap();
}

#[tokio::test]
async fn a_dead_address_is_named_within_the_timeout() {
    let config = PostgresConfig {
        url: Some("postgres://me:hunter2@127.0.0.1:1/x".into()),
        connect_timeout: Duration::from_millis(500),
        ..PostgresConfig::default()
    };
    let error = in_time(Duration::from_secs(2), PostgresTracking::open(config)).await.unwrap_err();
    let shown = format!("{error:?}");
    assert!(shown.contains("127.0.0.1:1") && !shown.contains("hunter2"), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_of_the_same_tables_start_together_and_record_the_same_keys() {
    let Some(server) = Postgres::start() else { return };
    let config = config(&server);
    let tasks: Vec<_> = (0..4u64)
        .map(|task| {
            let config = config.clone();
            tokio::spawn(async move {
                let tracking = opened(config).await;
                for round in 0..15u64 {
                    // The same keys, in another order in each.
                    let mut events: Vec<_> =
                        (0..40u64).map(|n| used(&format!("{}", (n * 7 + task * 13) % 40), 1)).collect();
                    events.extend((0..40).map(|n| stored(&format!("{task}-{round}-{n}"), 1)));
                    let tag =
                        Scope::Tag { namespace: "x".into(), name: "type".into(), value: "image".into() };
                    events.push(event(What::Invalidated { scope: tag, generation: Generation::new(9) }));
                    events.push(event(What::Counted(Totals { sets: 1, ..Totals::default() })));
                    if round == 0 {
                        tracking
                            .record(&(0..40).map(|n| stored(&format!("{n}"), 1)).collect::<Vec<_>>())
                            .await?;
                    }
                    tracking.record(&events).await?;
                }
                tracking.close().await
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let tracking = opened(config).await;
    assert_eq!(tracking.totals().await.unwrap().sets, 60);
    assert_eq!(tracking.find(&Query::all(), None, 10_000).await.unwrap().len(), 4 * 15 * 40 + 40);
}

#[tokio::test]
async fn prefixes_are_walls_and_newer_tables_are_refused() {
    let Some(server) = Postgres::start() else { return };
    let one = config(&server);
    let other = PostgresConfig { table_prefix: "other_".into(), ..one.clone() };
    let (a, b) = (opened(one.clone()).await, opened(other).await);
    a.record(&[stored("a", 1)]).await.unwrap();
    b.record(&[event(What::Invalidated { scope: Scope::All, generation: Generation::MAX })]).await.unwrap();
    assert!(a.lookup(&key("a")).await.unwrap().is_some());
    assert!(b.lookup(&key("a")).await.unwrap().is_none());
    let options: sqlx::postgres::PgConnectOptions = server.url().parse().unwrap();
    let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let later = format!("INSERT INTO {}.tiercache_version (version) VALUES (99)", one.schema);
    sqlx::raw_sql(sqlx::AssertSqlSafe(later)).execute(&mut connection).await.unwrap();
    assert!(matches!(PostgresTracking::open(one).await, Err(Error::Refused(_))));
}

#[tokio::test]
async fn long_keys_and_tags_fit_though_no_index_takes_them() {
    let Some(server) = Postgres::start() else { return };
    let tracking = Arc::new(opened(config(&server)).await);
    // Bytes that do not compress.
    let noise = |seed: u64, len: usize| -> Vec<u8> {
        let next = |state: &mut u64| {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            Some((*state >> 56) as u8)
        };
        std::iter::repeat_with({
            let mut state = seed;
            move || next(&mut state).unwrap_or_default()
        })
        .take(len)
        .collect()
    };
    let shared = noise(1, 12_000);
    let mut keys: Vec<Key> =
        (2..8).map(|seed| Key::new("", &[&shared[..], &noise(seed, 4_000)].concat()).unwrap()).collect();
    let tag: String = noise(9, 30_000).iter().map(|byte| char::from(*byte)).collect();
    let events: Vec<_> = keys
        .iter()
        .map(|key| {
            let mut record = record("x", 1);
            record.key = key.clone();
            record.tags.insert("long".into(), tag.clone());
            event(What::Stored(record))
        })
        .collect();
    tracking.record(&events).await.unwrap();
    keys.sort();
    let query = Query { prefix: shared.clone(), tags: [("long".to_owned(), tag)].into(), ..Query::all() };
    let mut listed: Vec<Key> = Vec::new();
    loop {
        let page = tracking.find(&query, listed.last(), 2).await.unwrap();
        if page.is_empty() {
            break;
        }
        listed.extend(page.into_iter().map(|record| record.key));
    }
    assert_eq!(listed, keys);
}
