//! Files that are right, ours and those of the system before us.

use std::time::Duration;

use crate::common::{problems, read};
use serde_json::{Value, json};
use tiercache::core::{Level, Rule, Stay};
use tiercache::{Config, Registry};

const HOUR: u64 = 3600;

fn hours(hours: u64) -> Option<Stay> {
    Some(Stay::For(Duration::from_secs(hours * HOUR)))
}

fn effective(text: &str) -> Value {
    read(text).unwrap_or_else(|error| panic!("{error}")).to_json()
}

#[test]
fn the_first_systems_files_load_unchanged() {
    for text in [include_str!("../files/first-ram.yaml"), include_str!("../files/first-every-key.yaml")] {
        let config = read(text).unwrap_or_else(|error| panic!("{error}"));
        let shown = config.to_json();
        assert_eq!(shown["hot_cache"]["max_size"], "1GiB");
        assert_eq!(shown["cold_cache"]["max_size"], "6GiB");
        assert_eq!(shown["dry_cache"]["max_size"], "250GiB");
        assert_eq!(shown["dry_cache"]["path"], "/srv/app-cache/dry");
        let rules = config.rules();
        assert_eq!(rules.defaults[Level::Hot.index()], hours(3));
        assert_eq!(rules.defaults[Level::Cold.index()], hours(36));
        let preview = Rule {
            tags: [("kind".to_owned(), "preview".to_owned())].into(),
            stays: [hours(2), hours(9), None],
        };
        assert_eq!(rules.rules.first(), Some(&preview));
        assert_eq!(rules.rules.len(), 2);
    }
}

#[test]
fn the_first_systems_files_for_services_lack_nothing_but_the_features_that_are_off() {
    let on = |feature: &str| match feature {
        "memcached" => cfg!(feature = "memcached"),
        "s3" => cfg!(feature = "s3"),
        "redis" => cfg!(feature = "redis"),
        "mongodb" => cfg!(feature = "mongodb"),
        other => other == "postgres" && cfg!(feature = "postgres"),
    };
    for (text, features) in [
        (include_str!("../files/first-memcached.yaml"), &["memcached", "memcached"][..]),
        (include_str!("../files/first-s3.yaml"), &["memcached", "memcached", "s3", "redis"]),
        (include_str!("../files/first-mongodb.yaml"), &["memcached", "memcached", "mongodb", "mongodb"]),
        (include_str!("../files/first-postgres.yaml"), &["postgres"]),
    ] {
        let missing: Vec<&&str> = features.iter().filter(|feature| !on(feature)).collect();
        if missing.is_empty() {
            Config::parse(text, &Registry::builtin()).unwrap_or_else(|error| panic!("{error}\n{text}"));
            continue;
        }
        let message = problems(text);
        let lines: Vec<&str> = message.lines().collect();
        assert_eq!(lines.len(), missing.len(), "{message}");
        for (line, feature) in lines.iter().zip(missing) {
            assert!(
                line.ends_with(&format!("known but not compiled in: enable the feature `{feature}`")),
                "{line}"
            );
        }
    }
}

#[test]
fn both_spellings_mean_the_same() {
    let ours = "hot_cache: { backend: ram, ttl: 90m, max_size: 512MiB }\nttl_rules: [{ tag: { a: b }, dry_ttl: null }]";
    let older = "hot_cache: { backend: ram, ttl_hours: 1.5, max_size_gb: 0.5 }\nttl_rules: [{ tag: { a: b }, dry_ttl_hours: null }]";
    assert_eq!(effective(ours), effective(older));
    assert_eq!(effective(ours)["hot_cache"]["max_size"], "512MiB");
    assert_eq!(effective(ours)["hot_cache"]["ttl"], "1h 30m");
    assert_eq!(effective(ours)["ttl_rules"][0]["dry_ttl"], Value::Null);
}

#[test]
fn gigabytes_are_decimal_in_our_spelling_and_binary_in_the_older() {
    assert_eq!(effective("hot_cache: { max_size: 2GB }")["hot_cache"]["max_size"], "2GB");
    assert_eq!(effective("hot_cache: { max_size: 2000000000 }")["hot_cache"]["max_size"], "2GB");
    assert_eq!(effective("hot_cache: { max_size_gb: 2 }")["hot_cache"]["max_size"], "2GiB");
}

#[test]
fn what_is_left_out_has_the_documented_defaults() {
    let shown = effective("write: back");
    assert_eq!(
        shown["hot_cache"],
        json!({ "backend": "ram", "ttl": "4h", "max_size": "2GiB", "policy": "adaptive" })
    );
    assert_eq!(shown["cold_cache"]["ttl"], "1day");
    assert_eq!(shown["cold_cache"]["max_size"], "10GiB");
    assert_eq!(shown["cold_cache"]["policy"], "fifo");
    assert_eq!(effective("hot_cache: { backend: none }")["cold_cache"]["policy"], "adaptive");
    assert_eq!(effective("cold_cache: { policy: lru }")["cold_cache"]["policy"], "lru");
    assert_eq!(shown["dry_cache"]["backend"], "local");
    assert_eq!(shown["dry_cache"]["ttl"], Value::Null);
    assert_eq!(shown["dry_cache"]["max_size"], "100GiB");
    assert_eq!(shown["tracking"]["backend"], "sqlite");
}

#[test]
fn variables_are_values_and_never_structure() {
    let shown = effective(
        "dry_cache: { path: '${HOME}/${NONE:-dry}' }\nhot_cache: { ttl_hours: '${HOURS}', max_size: '${NONE:-3MB}' }",
    );
    assert_eq!(shown["dry_cache"]["path"], "/home/me/dry");
    assert_eq!(shown["hot_cache"]["ttl"], "4h");
    assert_eq!(shown["hot_cache"]["max_size"], "3MB");
    let config = read("ttl_rules: [{ tag: { a: '${WORD}', b: '$${HOME}' }, hot_ttl: 1h }]").expect("a rule");
    assert_eq!(config.rules().rules[0].tags["a"], "a: b");
    assert_eq!(config.rules().rules[0].tags["b"], "${HOME}");
}

#[test]
fn sections_of_services_may_stand_there_unused_and_show_no_secret() {
    let text = "s3: { bucket: b, access_key: '${SECRET}', secret_key: '${SECRET}' }\n\
                redis: { url: 'redis://:${SECRET}@127.0.0.1:6379/0' }\n\
                mongodb: { uri: 'mongodb://me:${SECRET}@db/x', database: x }\n\
                memcached: { servers: ['127.0.0.1:11211'] }\n\
                postgres: { dsn: 'host=db password=${SECRET}' }\n";
    let config = read(text).unwrap_or_else(|error| panic!("{error}"));
    for shown in [config.to_yaml(), config.to_json().to_string(), format!("{config:?}")] {
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("(hidden)") && shown.contains("127.0.0.1:6379"), "{shown}");
    }
}

#[test]
#[cfg(feature = "encryption")]
fn a_level_can_be_encrypted_and_its_keys_are_not_shown() {
    let key = "aHVudGVyMmh1bnRlcjJodW50ZXIyaHVudGVyMjMyMzI=";
    let old = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let text =
        format!("dry_cache: {{ encryption: {{ key: '{key}', id: new, old_keys: [{{ key: '{old}' }}] }} }}");
    let config = read(&text).unwrap_or_else(|error| panic!("{error}"));
    for shown in [config.to_yaml(), config.to_json().to_string(), format!("{config:?}")] {
        assert!(!shown.contains(key) && !shown.contains(old) && shown.contains("(hidden)"), "{shown}");
    }
    let secret = "dry_cache: { encryption: { key: '${SECRET}' } }";
    let message = problems(secret);
    assert!(message.contains("encryption.key: it is not 32 bytes in base64"), "{message}");
    let message = problems("dry_cache: { encryption: { key: [hunter2] } }\n");
    assert!(message.contains("dry_cache.encryption.key"), "{message}");
    let message = problems("dry_cache: { encryption: { kee: x } }");
    assert!(message.contains("kee"), "{message}");
}

#[test]
#[cfg(feature = "redis")]
fn redis_stands_at_a_level_and_tracks_and_shows_no_password() {
    let text = "cold_cache: { backend: redis, url: 'redis://u:hunter2@cache/1', password: hunter2, response_timeout: 500ms }\n\
                tracking: { backend: redis, sentinels: ['a:1'], sentinel_password: hunter2 }";
    let config = read(text).unwrap_or_else(|error| panic!("{error}"));
    assert!(!format!("{} {config:?}", config.to_yaml()).contains("hunter2"), "{}", config.to_yaml());
    assert_eq!(config.to_json()["cold_cache"]["prefix"], "tiercache");
    assert!(problems("cold_cache: { backend: redis, uri: x }").contains("did you mean `url`"));
}

#[test]
fn a_level_can_be_left_out_by_one_word() {
    let shown = effective("cold_cache: { backend: none, ttl: 24h, max_size: 10GB }");
    assert_eq!(shown["cold_cache"], json!({ "backend": "none" }));
    assert_eq!(effective("tracking: { backend: null }")["tracking"], json!({ "backend": "none" }));
}

#[test]
fn what_is_shown_loads_again_and_is_shown_the_same() {
    for text in ["write: back", tiercache::Config::default_yaml(), include_str!("../files/first-ram.yaml")] {
        let shown = read(text).unwrap_or_else(|error| panic!("{error}")).to_yaml();
        let again = read(&shown).unwrap_or_else(|error| panic!("{error}\n{shown}"));
        assert_eq!(again.to_json(), effective(text), "{shown}");
    }
}

#[test]
fn defaults_are_marked_where_they_are_shown() {
    let shown = read("hot_cache: { ttl_hours: 2 }").expect("a file").to_yaml();
    assert!(shown.contains("  ttl: 2h\n"), "{shown}");
    assert!(shown.contains("  max_size: 2GiB  # default\n"), "{shown}");
    assert!(shown.contains("write: back  # default\n"), "{shown}");
}

#[test]
fn marks_and_line_ends_of_other_systems_do_no_harm() {
    assert_eq!(effective("\u{feff}write: behind\r\npending: 3MB\r\n")["pending"], "3MB");
}

#[test]
fn anchors_and_merges_keep_their_places() {
    let text = "hot_cache: &ram { backend: ram, ttl: 2h }\ncold_cache: { <<: *ram, max_size: 1GB }";
    let shown = effective(text);
    assert_eq!(
        (&shown["cold_cache"]["ttl"], &shown["cold_cache"]["max_size"]),
        (&json!("2h"), &json!("1GB"))
    );
}

#[test]
fn a_file_that_unfolds_without_end_is_refused() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for depth in 1..12 {
        let item = format!("*a{}", depth - 1);
        text += &format!("a{depth}: &a{depth} [{}]\n", vec![item; 10].join(", "));
    }
    assert!(problems(&text).contains("not YAML"));
    assert!(problems(&"[".repeat(100_000)).contains("not YAML"));
}
