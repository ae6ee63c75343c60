//! Who may come in, and how the way there is kept from others.

use std::path::Path;
use std::time::Duration;

use crate::common::{client, config, key, of, put, value, within};
use tiercache_core::tier::Put;
use tiercache_core::{Address, Error, Level, Secret, Tier, Tracking};
use tiercache_redis::{RedisConfig, RedisTier, RedisTracking, RedisTrackingConfig};
use tiercache_services::{Certificates, Redis};

const PASSWORD: &str = "hunter2-sentinel";

async fn refused(config: RedisConfig) -> String {
    let error = RedisTier::open(config, Level::Cold).await.expect_err("not let in");
    assert!(matches!(error, Error::Refused(_)), "{error}");
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    error.to_string()
}

#[tokio::test]
async fn a_wrong_password_is_told_with_server_and_section_and_never_shown() {
    let Some(server) = Redis::with_password(PASSWORD) else { return };
    let bare = config(&format!("redis://{}", server.address()));
    for password in [None, Some("wrong-hunter2")] {
        let password = password.map(|text| Secret::from(text.to_owned()));
        let told = refused(RedisConfig { password, ..bare.clone() }).await;
        assert!(told.contains(server.address()) && told.starts_with("cold_cache"), "{told}");
    }
    let url = format!("redis://:wrong-hunter2@{}", server.address());
    let tracking = RedisTracking::open(RedisTrackingConfig {
        url: Some(Address::from(url.as_str())),
        ..RedisTrackingConfig::default()
    });
    let error = tracking.await.expect_err("not let in");
    assert!(matches!(&error, Error::Refused(told) if told.starts_with("tracking")), "{error}");
    let right = RedisConfig { password: Some(Secret::from(PASSWORD.to_owned())), ..bare };
    let tier = RedisTier::open(right, Level::Cold).await.expect("let in");
    assert_eq!(put(&tier, "k", 1, "value").await.unwrap(), Put::Stored);
    assert!(!format!("{tier:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_password_that_is_changed_while_in_use_is_an_error_and_no_secret_is_in_it() {
    let Some(server) = Redis::with_password(PASSWORD) else { return };
    let tier = RedisTier::open(config(&server.url()), Level::Cold).await.expect("let in");
    put(&tier, "k", 1, "value").await.unwrap();
    let mut raw = client(&server.url()).await;
    for line in ["CONFIG SET requirepass another", "CLIENT KILL TYPE normal"] {
        let mut words = line.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        words.for_each(|word| {
            command.arg(word);
        });
        let _: redis::Value = command.query_async(&mut raw).await.unwrap();
    }
    within(Duration::from_secs(5), "the refusal", async || {
        let error = tier.get(&key("k")).await.err();
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        error.is_some_and(|error| format!("{error:?}").contains("WRONGPASS"))
    })
    .await;
    // Whoever lets us in again later is used again.
    let _: redis::Value =
        redis::cmd("CONFIG").arg("SET").arg("requirepass").arg(PASSWORD).query_async(&mut raw).await.unwrap();
    within(Duration::from_secs(5), "the way back", async || tier.get(&key("k")).await.is_ok()).await;
}

#[tokio::test]
async fn a_user_of_the_access_control_list_needs_its_own_keys_alone() {
    let Some(server) = Redis::with_user("cache", PASSWORD) else { return };
    let with = |username: &str, prefix: &str| RedisConfig {
        username: Some(username.to_owned()),
        password: Some(Secret::from(PASSWORD.to_owned())),
        prefix: prefix.to_owned(),
        ..config(&format!("redis://{}", server.address()))
    };
    refused(with("nobody", "tiercache")).await;
    let told = refused(with("cache", "tiercache")).await;
    assert!(told.contains("NOPERM"), "the record's name begins with a brace: {told}");
}

#[tokio::test]
async fn the_rights_the_readme_names_are_enough() {
    let Some(server) = Redis::own() else { return };
    let rights = "ACL SETUSER cache on >hunter2-sentinel resetkeys ~shop:* ~{shop:* -@all +@read +@write +@scripting +@connection +info";
    assert_eq!(server.command(rights), "+OK");
    let url = format!("redis://cache:{PASSWORD}@{}", server.address());
    let tier =
        RedisTier::open(RedisConfig { prefix: "shop".into(), ..config(&url) }, Level::Hot).await.unwrap();
    assert_eq!(put(&tier, "k", 1, "value").await.unwrap(), Put::Stored);
    assert_eq!(value(&tier, "k").await.as_deref(), Some("value"));
    assert!(tier.remove(&key("k"), of(2)).await.unwrap().is_done());
    tier.clear(None, of(5)).await.unwrap();
    let listing = tier.listing().unwrap().list(None, None, 10).await.unwrap();
    assert!(listing.entries.is_empty());
    let config = RedisTrackingConfig {
        url: Some(Address::from(url.as_str())),
        prefix: "shop".into(),
        ..RedisTrackingConfig::default()
    };
    let tracking = RedisTracking::open(config).await.unwrap();
    assert!(tracking.totals().await.unwrap().is_zero());
}

#[tokio::test]
async fn another_database_is_another_store() {
    let Some(server) = Redis::own() else { return };
    let at = |db| RedisConfig { db: Some(db), ..config(&format!("redis://{}", server.address())) };
    let one = RedisTier::open(at(1), Level::Cold).await.unwrap();
    let two = RedisTier::open(at(2), Level::Cold).await.unwrap();
    put(&one, "k", 1, "value").await.unwrap();
    assert_eq!(value(&two, "k").await, None);
    assert!(RedisTier::open(at(99), Level::Cold).await.is_err());
}

#[tokio::test]
async fn a_socket_of_the_machine_is_a_way_too() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("redis.sock");
    let Some(_server) = Redis::start_with(&["--unixsocket", socket.to_str().unwrap()]) else { return };
    let config = config(&format!("redis+unix://{}", socket.display()));
    let tier = RedisTier::open(config, Level::Cold).await.expect("opens");
    assert_eq!(put(&tier, "k", 1, "value").await.unwrap(), Put::Stored);
    assert_eq!(value(&tier, "k").await.as_deref(), Some("value"));
}

#[tokio::test]
async fn with_tls_the_server_is_verified() {
    let dir = tempfile::tempdir().unwrap();
    let Some(certificates) = Certificates::make(dir.path()) else { return };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let Certificates { ca, server, key, other } = &certificates;
    let (cert, private, authority) = (server.to_string_lossy(), key.to_string_lossy(), ca.to_string_lossy());
    let args = [
        "--tls-port",
        &port,
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &private,
        "--tls-ca-cert-file",
        &authority,
    ];
    let args = [&args[..], &["--tls-auth-clients", "no"]].concat();
    let Some(_server) = Redis::start_with(&args) else { return };
    let at = |host: &str, ca_file: Option<&Path>| RedisConfig {
        ca_file: ca_file.map(Path::to_owned),
        ..config(&format!("rediss://{host}:{port}"))
    };
    let tier = RedisTier::open(at("127.0.0.1", Some(ca)), Level::Cold).await.expect("trusted");
    assert_eq!(put(&tier, "k", 1, "value").await.unwrap(), Put::Stored);
    assert_eq!(value(&tier, "k").await.as_deref(), Some("value"));
    for (host, ca_file) in [("127.0.0.1", None), ("127.0.0.1", Some(&**other)), ("localhost", Some(&**ca))] {
        let error = RedisTier::open(at(host, ca_file), Level::Cold).await.expect_err("not to be trusted");
        assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    }
}
