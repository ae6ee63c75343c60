//! Files that are wrong, and what is said about them.

use crate::common::problems;

/// The place of a problem, and what its message must contain.
type Expected = (&'static str, &'static [&'static str]);

/// A file, and for each problem: its place, then what the message must contain.
const TABLE: &[(&str, &[Expected])] = &[
    // Nothing there.
    ("", &[("1:1", &["the file is empty", "hot_cache"])]),
    ("# only a comment\n", &[("", &["the file is empty"])]),
    ("hot_cache:\n", &[("1:10", &["hot_cache", "the section is empty"])]),
    ("cold_cache: ~", &[("1:13", &["cold_cache", "the section is empty"])]),
    ("tracking: null", &[("1:11", &["tracking", "the section is empty"])]),
    ("s3:\n", &[("1:3", &["s3", "the section is empty"])]),
    // Not YAML, or not a mapping.
    ("hot_cache: [", &[("", &["not YAML"])]),
    ("hot_cache: {backend: ram", &[("", &["not YAML"])]),
    ("hot_cache:\n\tbackend: ram", &[("2:", &["not YAML"])]),
    ("- hot_cache", &[("1:1", &["found a list", "a mapping"])]),
    ("hot_cache", &[("1:1", &["found the text \"hot_cache\"", "a mapping"])]),
    ("hot_cache: ram", &[("1:12", &["hot_cache: found the text \"ram\"", "a mapping"])]),
    ("hot_cache: [ram]", &[("1:12", &["hot_cache: found a list", "a mapping"])]),
    ("write: back\nwrite: back", &[("2:1", &["write: the key is given twice"])]),
    ("dry_cache:\n  path: ./a\n  path: ./b", &[("3:3", &["path: the key is given twice", "one of the two"])]),
    ("write: back\n---\nwrite: back", &[("", &["a second document begins"])]),
    ("hot_cache: &a { ttl: *b }", &[("1:22", &["not YAML: alias references unknown anchor"])]),
    // Unknown keys.
    (
        "hot_cach: { backend: ram }",
        &[(
            "1:1",
            &["hot_cach: unknown key", "hot_cache, cold_cache, dry_cache", "did you mean `hot_cache`?"],
        )],
    ),
    ("warm_cache: {}", &[("1:1", &["warm_cache: unknown key", "allowed: hot_cache"])]),
    (
        "dry_cache:\n  backend: local\n  pth: ./x",
        &[("3:3", &["dry_cache.pth: unknown key", "path", "did you mean `path`?"])],
    ),
    (
        "hot_cache: { backend: ram, max_sise: 2GB }",
        &[("1:28", &["hot_cache.max_sise: unknown key", "did you mean `max_size`?"])],
    ),
    (
        "hot_cache: { backend: ram, tll: 2h }",
        &[("1:28", &["hot_cache.tll: unknown key", "did you mean `ttl`?"])],
    ),
    ("tracking: { backend: sqlite, file: x }", &[("1:30", &["tracking.file: unknown key", "path"])]),
    ("redis: { hots: localhost }", &[("1:10", &["redis.hots: unknown key", "did you mean `host`?"])]),
    (
        "ttl_rules:\n  - tag: { a: b }\n    hot_tl: 1h",
        &[("3:5", &["ttl_rules[0].hot_tl: unknown key", "did you mean `hot_ttl`?"])],
    ),
    // Backends.
    (
        "hot_cache: { backend: rom }",
        &[(
            "1:23",
            &[
                "hot_cache.backend: unknown backend `rom`",
                "local, memcached, mongodb, ram, redis, s3, sqlite, none",
                "did you mean `ram`?",
            ],
        )],
    ),
    ("dry_cache: { backend: tape }", &[("1:23", &["unknown backend `tape`", "local"])]),
    (
        "tracking: { backend: sqlit }",
        &[(
            "1:22",
            &[
                "tracking.backend: unknown backend `sqlit`",
                "memory, mongodb, postgres, redis, sqlite, none",
                "did you mean `sqlite`?",
            ],
        )],
    ),
    #[cfg(not(feature = "memcached"))]
    (
        "hot_cache: { backend: memcached }",
        &[("1:23", &["`memcached` is known but not compiled in: enable the feature `memcached`"])],
    ),
    #[cfg(not(feature = "mongodb"))]
    (
        "dry_cache: { backend: mongodb }",
        &[("1:23", &["`mongodb` is known but not compiled in", "feature `mongodb`"])],
    ),
    #[cfg(not(feature = "redis"))]
    (
        "tracking: { backend: redis }",
        &[("1:22", &["`redis` is known but not compiled in", "feature `redis`"])],
    ),
    ("tracking: { backend: ram }", &[("1:22", &["`ram` is a store for a level, not for tracking"])]),
    ("hot_cache: { backend: postgres }", &[("1:23", &["`postgres` is for tracking, not for a level"])]),
    ("hot_cache: { backend: [ram] }", &[("1:23", &["hot_cache.backend: found a list", "text"])]),
    #[cfg(not(feature = "s3"))]
    (
        "dry_cache: { backend: s3 }",
        &[("", &["s3.bucket: the key `bucket` is missing"]), ("1:23", &["enable the feature `s3`"])],
    ),
    #[cfg(not(feature = "s3"))]
    (
        "dry_cache: { backend: s3 }\ns3: { prefix: a }",
        &[("1:23", &["feature `s3`"]), ("2:5", &["s3.bucket", "missing"])],
    ),
    #[cfg(feature = "s3")]
    ("dry_cache: { backend: s3 }", &[("1:12", &["give the name of the bucket"])]),
    #[cfg(feature = "s3")]
    (
        "dry_cache: { backend: s3 }\ns3: { bucket: b, part_size: 1MiB }",
        &[("2:29", &["part_size", "below the least"])],
    ),
    #[cfg(not(feature = "postgres"))]
    (
        "tracking: { backend: postgres }",
        &[("1:11", &["tracking.dsn: the key `dsn` is missing"]), ("1:22", &["feature `postgres`"])],
    ),
    // Times.
    ("hot_cache: { ttl: 0 }", &[("1:19", &["hot_cache.ttl: `0` is not above zero", "null for ever"])]),
    ("hot_cache: { ttl: 0s }", &[("1:19", &["hot_cache.ttl: `0s` is not above zero"])]),
    ("hot_cache: { ttl: 90 }", &[("1:19", &["`90` has no unit", "`90s`"])]),
    ("hot_cache: { ttl: soon }", &[("1:19", &["`soon` is not a duration", "`4h`"])]),
    ("hot_cache: { ttl: -4h }", &[("1:19", &["hot_cache.ttl", "not a duration"])]),
    ("hot_cache: { ttl: true }", &[("1:19", &["hot_cache.ttl: found `true`", "duration"])]),
    ("hot_cache: { ttl: [4h] }", &[("1:19", &["hot_cache.ttl: found a list"])]),
    (
        "hot_cache: { ttl_hours: 0 }",
        &[("1:25", &["hot_cache.ttl_hours: 0 is not a number of hours above zero"])],
    ),
    (
        "cold_cache: { ttl_hours: -1 }",
        &[("1:26", &["cold_cache.ttl_hours: -1 is not a number of hours above zero"])],
    ),
    ("cold_cache: { ttl_hours: 4h }", &[("1:26", &["found the text \"4h\"", "a number of hours"])]),
    ("cold_cache: { ttl_hours: '4' }", &[("1:26", &["found the text \"4\"", "a number of hours"])]),
    (
        "hot_cache: { ttl: 4h, ttl_hours: 4 }",
        &[("1:34", &["hot_cache.ttl_hours: given twice: also as `ttl`"])],
    ),
    // Sizes.
    ("hot_cache: { max_size: 0 }", &[("1:24", &["hot_cache.max_size: `0` is not above zero"])]),
    ("hot_cache: { max_size: -1MB }", &[("1:24", &["hot_cache.max_size: `-1MB` is not a size", "`512MiB`"])]),
    ("hot_cache: { max_size: lots }", &[("1:24", &["`lots` is not a size"])]),
    ("hot_cache: { max_size: 2G }", &[("1:24", &["`2G` is not a size", "`2GB`"])]),
    ("hot_cache: { max_size: null }", &[("1:24", &["hot_cache.max_size: found null"])]),
    (
        "dry_cache: { max_size_gb: -100 }",
        &[("1:27", &["dry_cache.max_size_gb: -100 is not a number of GiB above zero"])],
    ),
    ("dry_cache: { max_size_gb: 0 }", &[("1:27", &["0 is not a number of GiB above zero"])]),
    ("dry_cache: { max_size_gb: big }", &[("1:27", &["found the text \"big\"", "a number of GiB"])]),
    (
        "dry_cache: { max_size: 1GB, max_size_gb: 1 }",
        &[("1:42", &["dry_cache.max_size_gb: given twice: also as `max_size`"])],
    ),
    // A backend's own keys.
    ("dry_cache: { path: [a] }", &[("1:20", &["dry_cache.path: found a list"])]),
    ("dry_cache: { path: { a: b } }", &[("1:20", &["dry_cache.path: found a mapping"])]),
    (
        "hot_cache: { policy: random }",
        &[("1:22", &["hot_cache.policy: unknown value `random`", "adaptive, lru, tinylfu, fifo"])],
    ),
    ("hot_cache: { policy: lfu }", &[("1:22", &["unknown value `lfu`", "did you mean `lru`?"])]),
    ("dry_cache: { max_size: 1kB }", &[("1:24", &["dry_cache.max_size: 1000 is below the least"])]),
    ("dry_cache: { segment_size: 1B }", &[("1:28", &["dry_cache.segment_size: 1 is not between"])]),
    (
        "dry_cache: { flush: often }",
        &[("1:21", &["dry_cache.flush: unknown value `often`", "never, 1s, each"])],
    ),
    (
        "dry_cache: { compression: gzip }",
        &[("1:27", &["dry_cache.compression: unknown value `gzip`", "none, lz4, zstd"])],
    ),
    (
        "tracking: { backend: memory, max_records: 0 }",
        &[("1:43", &["tracking.max_records: found the number `0`", "nonzero"])],
    ),
    (
        "hot_cache: { ttl: '${NOWHERE}' }",
        &[("1:19", &["hot_cache.ttl: the environment variable NOWHERE is not set"])],
    ),
    // Other keys.
    ("pending: 0", &[("1:10", &["pending: `0` is not above zero"])]),
    ("counters: warm", &[("1:11", &["counters: unknown value `warm`", "hot, cold, dry"])]),
    ("loading:\n", &[("1:8", &["loading", "the section is empty"])]),
    (
        "loading: { max_load: 3 }",
        &[("1:12", &["loading.max_load: unknown key", "did you mean `max_loads`?"])],
    ),
    ("loading: { max_loads: 0 }", &[("1:23", &["loading.max_loads: found the number `0`", "from 1 to"])]),
    ("loading: { max_refreshes: 1.5 }", &[("1:27", &["loading.max_refreshes", "a whole number from 0"])]),
    ("loading: { max_refreshes: many }", &[("1:27", &["loading.max_refreshes", "a whole number from 0"])]),
    ("loading: { lease: 10 }", &[("1:19", &["loading.lease: `10` has no unit", "null for no lease"])]),
    ("loading: { lease: 25h }", &[("1:19", &["loading.lease: found the text \"25h\"", "a day at most"])]),
    ("loading: { jitter: 10 }", &[("1:20", &["loading.jitter: found the number `10`", "from 0 to 1"])]),
    ("sweep: 1", &[("1:8", &["sweep: `1` has no unit"])]),
    ("hot_cache: { read_timeout: 5 }", &[("1:28", &["hot_cache.read_timeout: `5` has no unit"])]),
    ("ttl_rules:", &[("1:10", &["ttl_rules: found null", "a list"])]),
    ("write: sideways", &[("1:8", &["write: unknown value `sideways`", "back, behind, through"])]),
    ("write: behnd", &[("1:8", &["did you mean `behind`?"])]),
    ("write: [back]", &[("1:8", &["write: found a list"])]),
    ("redis: { port: 0 }", &[("1:16", &["redis.port", "a whole number from 1 to 65535"])]),
    ("memcached: { port: many }", &[("1:20", &["memcached.port", "number"])]),
    ("memcached: { servers: 127.0.0.1 }", &[("1:23", &["memcached.servers", "a list"])]),
    ("redis: { url: 'redis://a', host: b }", &[("1:34", &["redis.host: the address is given twice"])]),
    ("s3: { secret_key: [hunter2] }", &[("1:19", &["s3.secret_key: found a list"])]),
    // Rules.
    ("ttl_rules: { tag: { a: b } }", &[("1:12", &["ttl_rules: found a mapping", "a list"])]),
    ("ttl_rules: [thumbnail]", &[("1:13", &["ttl_rules[0]: found the text \"thumbnail\""])]),
    (
        "ttl_rules: [{ tag: thumbnail, hot_ttl: 1h }]",
        &[("1:20", &["ttl_rules[0].tag: found the text", "a mapping"])],
    ),
    ("ttl_rules: [{ tag: { a: [b] }, hot_ttl: 1h }]", &[("1:25", &["ttl_rules[0].tag.a: found a list"])]),
    (
        "ttl_rules: [{ tag: { a: b }, hot_ttl: 0s }]",
        &[("1:39", &["ttl_rules[0].hot_ttl: `0s` is not above zero"])],
    ),
    ("ttl_rules: [{ tag: { a: b }, hot_ttl: 1h, hot_ttl_hours: 1 }]", &[("1:58", &["given twice"])]),
    ("ttl_rules: [{ tag: { a: b } }]", &[("1:13", &["ttl_rules[0]: the rule names no level"])]),
    // Together.
    (
        "hot_cache: { backend: none }\ncold_cache: { backend: none }\ndry_cache: { backend: none }",
        &[("3:23", &["every level is `none`"])],
    ),
    (
        "dry_cache: { backend: none, path: x }",
        &[("1:29", &["dry_cache.path: has no meaning beside `backend: none`"])],
    ),
    ("dry_cache: { backend: none }\nwrite: through", &[("2:8", &["write: no level outlives the process"])]),
    (
        "cold_cache: { backend: local, path: ./a }\ndry_cache: { backend: local, path: a/ }",
        &[("2:36", &["dry_cache.path: the same place as cold_cache.path"])],
    ),
    ("cold_cache: { backend: local }", &[("", &["dry_cache.path: the same place as cold_cache.path"])]),
    // Variables.
    (
        "dry_cache: { path: '${NOWHERE}/dry' }",
        &[("1:20", &["dry_cache.path: the environment variable NOWHERE is not set", "${VAR:-default}"])],
    ),
    ("dry_cache: { path: '${HOME' }", &[("1:20", &["dry_cache.path: a `${` has no `}`"])]),
    ("dry_cache: { path: '${A-B}' }", &[("1:20", &["`A-B` is no name of an environment variable"])]),
    ("hot_cache: { ttl: '${WORD}' }", &[("1:19", &["hot_cache.ttl: `a: b` is not a duration"])]),
    // Everything at once, in the order of the file.
    (
        "hot_cache: { ttl: 0s }\ncold_cache: { max_size: 0 }\nwirte: back\n",
        &[
            ("1:19", &["hot_cache.ttl"]),
            ("2:25", &["cold_cache.max_size"]),
            ("3:1", &["wirte", "did you mean `write`?"]),
        ],
    ),
];

#[test]
fn every_bad_file_is_answered_with_place_path_what_is_allowed_and_the_nearest_spelling() {
    let mut wrong = Vec::new();
    for (text, expected) in TABLE {
        let message = problems(text);
        let lines: Vec<&str> = message.lines().collect();
        if lines.len() != expected.len() {
            wrong.push(format!(
                "{text:?}\n  {} problems instead of {}: {message}",
                lines.len(),
                expected.len()
            ));
            continue;
        }
        for (line, (place, parts)) in lines.iter().zip(*expected) {
            let place = format!("tier.yaml:{place}");
            for part in parts.iter().chain([&place.as_str()]).filter(|part| !line.contains(**part)) {
                wrong.push(format!("{text:?}\n  says   {line}\n  lacks  {part}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(TABLE.len() >= 40);
}

#[test]
fn no_problem_shows_a_secret() {
    for text in [
        "s3: { secret_key: { a: hunter2 } }",
        "redis: { password: [hunter2], pasword: x }",
        "dry_cache: { backend: local, password: hunter2 }",
        "s3: { access_key: 'hunter2', access_key: 'hunter2' }",
    ] {
        let message = problems(text);
        assert!(!message.contains("hunter2"), "{message}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(400))]

    #[test]
    fn no_text_makes_the_reader_panic(text in "[ -~\\n]{0,200}") {
        let _ = crate::common::read(&text);
    }

    #[test]
    fn no_damage_to_a_good_file_makes_the_reader_panic(
        at in 0usize..2000,
        cut in 0usize..40,
        put in "[\\[\\]{}:,&*!|>'\"%@`#\\-\\n a-z0-9$é]{0,12}",
    ) {
        let whole: Vec<char> = tiercache::Config::default_yaml().chars().collect();
        let at = at.min(whole.len());
        let text: String =
            whole[..at].iter().copied().chain(put.chars()).chain(whole[at..].iter().copied().skip(cut)).collect();
        let _ = crate::common::read(&text);
    }
}
