//! Keys, names and sizes.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tiercache::units::parse_size;
use tiercache_core::testing::ManualClock;
use tiercache_core::tier::Resident;
use tiercache_core::{ContentKey, Error, Key, Level};
use tiercache_tests::rig::{builder, disk, get, ram};

// 64
#[tokio::test]
async fn odd_keys_are_entries_of_their_own_and_never_parts_of_a_path() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let hot = ram();
    let cache = builder(&clock).hot(hot.clone()).dry(disk(dir.path(), &clock).await).build().await.unwrap();
    let long = "k".repeat(10_000);
    let keys = [
        "a\0b",
        "a\0c",
        "\0",
        &long,
        "schlüssel",
        "鍵",
        "🗝",
        "a/b",
        "/",
        "/etc/passwd",
        "..",
        ".",
        "../../up",
        "a\\b",
        "con",
        " ",
        "*",
        "k\n",
        "%00",
        "a b",
    ];
    for key in keys {
        cache.set(key, key.to_owned()).await.unwrap();
    }
    hot.drain();
    cache.settle().await.unwrap();
    for key in keys {
        assert_eq!(get(&cache, key).await.unwrap(), key);
    }
    assert!(matches!(cache.set("", "v").await, Err(Error::InvalidKey(_))));
    assert!(matches!(cache.get("k".repeat(20_000)).await, Err(Error::InvalidKey(_))));
    cache.close(Duration::from_secs(5)).await.unwrap();
    let names = |path: &std::path::Path| -> Vec<String> {
        let files = std::fs::read_dir(path).unwrap();
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(names(dir.path()), ["level"]);
    for name in names(&dir.path().join("level")) {
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        assert!(plain && !name.contains(".."), "{name:?}");
    }
}

// 65
#[tokio::test]
async fn a_folder_that_was_moved_still_has_everything() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let before = dir.path().join("before");
    std::fs::create_dir(&before).unwrap();
    let cache = builder(&clock).hot(ram()).dry(disk(&before, &clock).await).build().await.unwrap();
    for n in 0..100 {
        cache.set(format!("key {n}"), n.to_string()).await.unwrap();
    }
    cache.close(Duration::from_secs(5)).await.unwrap();
    let after = dir.path().join("after");
    std::fs::rename(&before, &after).unwrap();
    let cache = builder(&clock).hot(ram()).dry(disk(&after, &clock).await).build().await.unwrap();
    for n in 0..100 {
        assert_eq!(get(&cache, &format!("key {n}")).await.unwrap(), n.to_string());
    }
}

// 66
#[tokio::test]
async fn a_foreign_file_in_the_folder_stays() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let level = dir.path().join("level");
    std::fs::create_dir(&level).unwrap();
    std::fs::set_permissions(&level, PermissionsExt::from_mode(0o700)).unwrap();
    for name in ["notes.txt", "0001.segment", "segment", ".hidden"] {
        std::fs::write(level.join(name), "mine").unwrap();
    }
    std::fs::create_dir(level.join("folder")).unwrap();
    for _ in 0..2 {
        let cache = builder(&clock).hot(ram()).dry(disk(dir.path(), &clock).await).build().await.unwrap();
        for n in 0..2_000 {
            cache.set(format!("key {n}"), vec![b'v'; 1_000]).pin(Level::Dry).await.unwrap();
        }
        cache.flush(Level::Dry).await.unwrap();
        cache.clear().await.unwrap();
        cache.prune().await.unwrap();
        cache.close(Duration::from_secs(5)).await.unwrap();
        tiercache_disk::DiskTier::check(&level, true, &mut |_, _| {}).unwrap();
    }
    for name in ["notes.txt", "0001.segment", "segment", ".hidden"] {
        assert_eq!(std::fs::read_to_string(level.join(name)).unwrap(), "mine", "{name}");
    }
    assert!(level.join("folder").is_dir());
}

// 69
#[test]
fn sizes_are_read_and_what_is_none_is_refused_with_a_message() {
    for (text, bytes) in [
        ("2GB", 2_000_000_000),
        ("512 MB", 512_000_000),
        ("1.5gib", 3 << 29),
        ("100B", 100),
        ("1TB", 1_000_000_000_000),
        ("7", 7),
    ] {
        assert_eq!(parse_size(text), Ok(bytes), "{text}");
    }
    for text in ["-1MB", "abc", "", "1XB", "99999999999TB", "0", "1e3", "1.2.3GB", "NaN"] {
        let message = parse_size(text).unwrap_err();
        assert!(message.contains(&format!("`{text}`")) && message.len() > text.len() + 5, "{message}");
    }
}

// 70
#[test]
fn content_keys_of_different_parts_differ() {
    let begin = || ContentKey::new("f");
    let argument = |key: ContentKey, argument: &dyn Fn(ContentKey) -> ContentKey| argument(key).build();
    let keys = [
        begin().text("ab").text("c").build(),
        begin().text("a").text("bc").build(),
        begin().text("abc").build(),
        begin().content("abc").build(),
        begin().text("1").build(),
        begin().number(1).build(),
        begin().text("12").build(),
        argument(begin(), &|key| key.argument(&[1, 2]).unwrap()),
        argument(begin(), &|key| key.argument(&[[1, 2]]).unwrap()),
        argument(begin(), &|key| key.argument(&[[1], [2]]).unwrap()),
        argument(begin(), &|key| key.argument(&[1u8, 2]).unwrap()),
        argument(begin(), &|key| key.argument(&[1.0, 2.0]).unwrap()),
        argument(begin(), &|key| key.argument(&(1, 2)).unwrap()),
        begin().option("a", "1").build(),
        begin().text("a").number(1).build(),
        begin().text("a").text("1").build(),
        begin().version("a", "1").build(),
        begin().build(),
        ContentKey::new("g").build(),
    ];
    assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len(), "{keys:?}");
    // The order of what has a name does not matter, that of what has none does.
    let (one, other) = (begin().option("a", "1").option("b", "2"), begin().option("b", "2").option("a", "1"));
    assert_eq!(one.build(), other.build());
    assert_ne!(begin().text("a").text("b").build(), begin().text("b").text("a").build());
}

// 71
#[tokio::test]
async fn a_key_whose_version_or_options_changed_is_a_miss() {
    let cache = builder(&ManualClock::new()).hot(ram()).build().await.unwrap();
    let key = |version: &str, build: &str, width: &str| {
        let key = ContentKey::new("thumbnail").content(b"picture").option("width", width);
        key.version("encoder", version).version("build", build).build()
    };
    cache.set(key("2.1", "7", "64"), "v").await.unwrap();
    assert!(cache.contains(key("2.1", "7", "64")).await.unwrap());
    for changed in [key("2.2", "7", "64"), key("2.1", "8", "64"), key("2.1", "7", "65")] {
        assert_eq!(get(&cache, &changed).await, None);
    }
}

// 75
#[test]
fn any_key_can_be_printed() {
    let texts = ["é", "鍵", "🗝", "\u{301}", "\u{202e}", "\0", "\n", "\u{fffd}"];
    for text in texts {
        for offset in 0..70 {
            let mut bytes = "x".repeat(offset).into_bytes();
            bytes.extend(text.bytes());
            bytes.extend("y".repeat(70 - offset).bytes());
            // Cut within the character too.
            for end in [bytes.len(), offset + text.len(), offset + 1] {
                let key = Key::new(text, &bytes[..end]).unwrap();
                let printed = format!("{key:?} {:?} {}", key.as_ref(), key.display());
                assert!(!printed.is_empty() && !format!("{key:?}").contains('\n'));
            }
        }
    }
}
