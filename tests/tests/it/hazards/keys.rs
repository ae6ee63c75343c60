//! Keys that could be taken for one another.

use tiercache_core::Level;
use tiercache_core::testing::ManualClock;
use tiercache_core::tier::Resident;
use tiercache_tests::rig::{builder, disk, ram};

/// What the disk level does when two keys have one hash, its own tests show with a constant hasher.
#[tokio::test]
async fn h10_crafted_keys_never_give_each_others_values() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let hot = ram();
    let cache = builder(&clock).hot(hot.clone()).dry(disk(dir.path(), &clock).await).build().await.unwrap();
    let long = "x".repeat(255);
    // Pairs that are one text when joined, look like paths, or like the other's encoding.
    let pairs: Vec<(&str, Vec<u8>)> = [
        ("", "abc"),
        ("a", "bc"),
        ("ab", "c"),
        ("a/b", "c"),
        ("a", "b/c"),
        ("", "a/b/c"),
        ("", "../a"),
        ("..", "a"),
        ("", "a\0b"),
        ("a\0", "b"),
        ("", "\u{1}ab"),
        ("", "\u{2}abc"),
        ("A", "bc"),
        ("", "ABC"),
        ("", "e\u{301}"),
        ("", "\u{e9}"),
        (&long, "y"),
        ("", " abc"),
        ("", "abc "),
    ]
    .map(|(namespace, key)| (namespace, key.as_bytes().to_vec()))
    .into_iter()
    .chain([("", [long.as_bytes(), b"y"].concat()), ("", vec![0xff]), ("", vec![0xff, 0xff])])
    .collect();
    for round in ["in RAM", "on disk", "up again"] {
        for (n, (namespace, key)) in pairs.iter().enumerate() {
            let cache = cache.namespace(namespace).unwrap();
            if round == "in RAM" {
                assert!(cache.set(key, n.to_string()).only_if_absent().await.unwrap().stored, "{n}");
            }
        }
        if round == "on disk" {
            hot.drain();
            cache.settle().await.unwrap();
        }
        for (n, (namespace, key)) in pairs.iter().enumerate() {
            let found = cache.namespace(namespace).unwrap().entry(key).await.unwrap().unwrap();
            assert_eq!(found.value, n.to_string(), "{namespace:?} {key:?} {round}");
            assert_eq!(found.level == Level::Dry, round == "on disk");
        }
    }
    for n in 0..pairs.len() {
        let (namespace, key) = &pairs[n];
        assert!(cache.namespace(namespace).unwrap().delete(key).await.unwrap().found);
        for (later, (namespace, key)) in pairs.iter().enumerate().skip(n + 1) {
            let there = cache.namespace(namespace).unwrap().contains(key).await.unwrap();
            assert!(there, "{later} went with {n}");
        }
    }
}
