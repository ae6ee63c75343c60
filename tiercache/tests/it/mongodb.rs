//! MongoDB in a `tier.yaml`.
#![cfg(feature = "mongodb")]

use tiercache::{Config, Registry};

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, &Registry::builtin()).map_err(|error| error.to_string())
}

#[test]
fn levels_and_tracking_take_the_shared_section_and_show_no_secret() {
    let config = parse(
        "hot_cache: { backend: ram }\n\
         cold_cache: { backend: none }\n\
         dry_cache: { backend: mongodb, max_size_gb: 250, inline_limit: 256KiB, timeout: 5s, orphans_after: 2h }\n\
         tracking: { backend: mongodb, password: s3ntinel-1, username: me, host: other }\n\
         mongodb: { database: previews }\n",
    )
    .unwrap_or_else(|error| panic!("{error}"));
    let shown = config.to_json();
    assert_eq!(shown["dry_cache"]["database"], "previews");
    assert_eq!(shown["dry_cache"]["inline_limit"], 256 << 10);
    assert_eq!(shown["dry_cache"]["timeout"], "5s");
    assert_eq!(shown["tracking"]["database"], "previews");
    assert_eq!(shown["tracking"]["host"], "other");
    let config = parse("dry_cache: { backend: mongodb }\nmongodb: { uri: 'mongodb://me:s3ntinel-2@db/x' }\n")
        .unwrap_or_else(|error| panic!("{error}"));
    for shown in [shown.to_string(), config.to_yaml(), config.to_json().to_string(), format!("{config:?}")] {
        assert!(!shown.contains("s3ntinel"), "{shown}");
    }
}

#[test]
fn what_cannot_be_meant_is_told_at_its_key() {
    for (text, wanted) in [
        ("dry_cache: { backend: mongodb, inline_limit: 16MiB }", "dry_cache.inline_limit"),
        ("dry_cache: { backend: mongodb, orphans_after: 1s }", "dry_cache.orphans_after"),
        ("dry_cache: { backend: mongodb, prefix: a/b }", "dry_cache.prefix"),
        ("dry_cache: { backend: mongodb, host: a, uri: 'mongodb://b' }", "given twice"),
        ("tracking: { backend: mongodb, connections: 0 }", "tracking.connections"),
        ("tracking: { backend: mongodb, compression: lz4 }", "compression"),
        ("dry_cache: { backend: mongodb, databse: a }", "database"),
    ] {
        let error = parse(text).expect_err("a problem");
        assert!(error.contains(wanted), "{text}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_is_named_with_its_section() {
    let text = "hot_cache: { backend: ram }\ncold_cache: { backend: none }\ntracking: { backend: none }\n\
                dry_cache: { backend: mongodb, uri: 'mongodb://me:s3ntinel@127.0.0.1:1', connect_timeout: 200ms }";
    let config = parse(text).unwrap_or_else(|error| panic!("{error}"));
    let error = config.open().await.expect_err("nobody listens");
    let whole = format!("{error} {}", std::error::Error::source(&error).expect("a cause"));
    assert!(whole.contains("dry_cache") && whole.contains("127.0.0.1:1"), "{whole}");
    assert!(!format!("{whole} {error:?}").contains("s3ntinel"), "{whole}");
}
