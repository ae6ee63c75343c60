use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::Connection;
use tiercache::transfer::{Foreign, ForeignKind, Report, TransferError};
use tiercache_core::testing::MemoryTier;
use tiercache_core::{CacheManager, Entry, SystemClock, Timestamp};

/// What diskcache 5.6.3 makes, word for word.
const DISKCACHE: &str = "
PRAGMA journal_mode = wal;
CREATE TABLE Settings (key TEXT NOT NULL UNIQUE, value);
CREATE TABLE Cache (rowid INTEGER PRIMARY KEY, key BLOB, raw INTEGER, store_time REAL, expire_time REAL,
    access_time REAL, access_count INTEGER DEFAULT 0, tag BLOB, size INTEGER DEFAULT 0, mode INTEGER DEFAULT 0,
    filename TEXT, value BLOB);
CREATE UNIQUE INDEX Cache_key_raw ON Cache(key, raw);
";
/// What pysciqlop-cache 0.3.6 makes.
const SCIQLOP: &str = "
PRAGMA journal_mode = wal;
CREATE TABLE cache (key TEXT PRIMARY KEY NOT NULL, path TEXT DEFAULT NULL, value BLOB DEFAULT NULL,
    size INT NOT NULL DEFAULT 0, expire REAL DEFAULT NULL, last_update REAL NOT NULL DEFAULT 0,
    last_use REAL NOT NULL DEFAULT 0, access_count_since_last_update INT NOT NULL DEFAULT 0,
    tag TEXT DEFAULT NULL) WITHOUT ROWID;
CREATE TABLE meta (key TEXT PRIMARY KEY, value);
INSERT INTO meta VALUES ('serializer', 'pickle');
";

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

async fn cache() -> CacheManager {
    CacheManager::builder()
        .clock(SystemClock::start())
        .dry(MemoryTier::persistent())
        .manual()
        .build()
        .await
        .unwrap()
}

async fn import(cache: &CacheManager, folder: &Path) -> Report {
    let before = listed(folder);
    let report = Foreign::open(folder).unwrap().import_into(cache, false, |_| ()).await.unwrap();
    assert_eq!(listed(folder), before, "the source is only read");
    let unreadable: u64 = report.unreadable.values().sum();
    assert_eq!(report.read, report.stored + report.skipped() + report.failed + unreadable, "{report:?}");
    report
}

/// Every file with its content and when it was changed.
fn listed(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let changed = path.metadata().unwrap().modified().unwrap();
                files.insert(path.clone(), (std::fs::read(&path).unwrap(), changed));
            }
        }
    }
    files
}

fn reasons(report: &Report) -> Vec<(&str, u64)> {
    report.unreadable.iter().map(|(reason, count)| (*reason, *count)).collect()
}

async fn entry(cache: &CacheManager, key: impl tiercache_core::AsKey) -> Entry {
    cache.snapshot(key).await.unwrap().expect("it is there")
}

/// Far from now, to the millisecond.
fn later(now: f64) -> (f64, Timestamp) {
    let at = (now * 1000.0).round() + 3_600_000.0;
    (at / 1000.0, Timestamp::from_millis(at as u64))
}

// 63
#[tokio::test]
async fn a_diskcache_folder_is_migrated_and_every_row_accounted_for() {
    let folder = tempfile::tempdir().unwrap();
    let source = Connection::open(folder.path().join("cache.db")).unwrap();
    source.execute_batch(DISKCACHE).unwrap();
    let (soon, deadline) = later(now());
    std::fs::create_dir_all(folder.path().join("63/af")).unwrap();
    std::fs::write(folder.path().join("63/af/text.val"), "ü".repeat(20_000)).unwrap();
    std::fs::write(folder.path().join("63/af/bytes.val"), [255; 40_000]).unwrap();
    std::fs::write(folder.path().join("63/af/short.val"), [1; 10]).unwrap();
    std::fs::write(folder.path().parent().unwrap().join("outside.val"), "secret").unwrap();
    // key, raw, expires, tag, size, mode, file, value: as text of SQL.
    let rows = [
        format!("'text', 1, {soon}, 'news', 0, 1, NULL, 'hello'"),
        "1, 1, NULL, 3, 0, 1, NULL, x'6279746573ff'".into(),
        "x'6bff', 1, NULL, NULL, 0, 1, NULL, 42".into(),
        "2.5, 1, NULL, x'74c3bc', 0, 1, NULL, 1.5".into(),
        "'file of text', 1, NULL, NULL, 40000, 3, '63/af/text.val', NULL".into(),
        "'file of bytes', 1, NULL, NULL, 40000, 2, '63/af/bytes.val', NULL".into(),
        "'true', 1, NULL, NULL, 0, 4, NULL, x'8005882e'".into(),
        "x'80054b072e', 0, NULL, NULL, 0, 1, NULL, 'of a pickled number'".into(),
        // Not to be taken, each for its reason.
        "'dead', 1, 1000.5, NULL, 0, 1, NULL, 'v'".into(),
        "'dead too', 1, 0, NULL, 0, 9, NULL, 'v'".into(),
        "'none', 1, NULL, NULL, 0, 4, NULL, x'80054e2e'".into(),
        "'list', 1, NULL, NULL, 0, 4, NULL, x'80055d2e'".into(),
        "x'8005296e2e', 0, NULL, NULL, 0, 1, NULL, 'v'".into(),
        "'1', 1, NULL, NULL, 0, 1, NULL, 'the number has it'".into(),
        "'', 1, NULL, NULL, 0, 1, NULL, 'v'".into(),
        format!("'{}', 1, NULL, NULL, 0, 1, NULL, 'v'", "k".repeat(70_000)),
        "'gone', 1, NULL, NULL, 5, 2, '63/af/gone.val', NULL".into(),
        "'short', 1, NULL, NULL, 11, 2, '63/af/short.val', NULL".into(),
        "'out', 1, NULL, NULL, 6, 2, '../outside.val', NULL".into(),
        "'mode', 1, NULL, NULL, 0, 7, NULL, 'v'".into(),
        "'no file', 1, NULL, NULL, 0, 2, NULL, NULL".into(),
        "'tag', 1, NULL, x'ff', 0, 1, NULL, 'v'".into(),
    ];
    for row in &rows {
        let sql = format!(
            "INSERT INTO Cache (key, raw, expire_time, tag, size, mode, filename, value, store_time) VALUES ({row}, 1700000000.25)"
        );
        source.execute(&sql, ()).unwrap_or_else(|error| panic!("{row}: {error}"));
    }
    // Not closed: what was written last stands in the log beside the database.
    let cache = cache().await;
    let report = import(&cache, folder.path()).await;
    let counts = (report.read, report.stored, report.present, report.expired, report.failed);
    assert_eq!(counts, (rows.len() as u64, 8, 1, 2, 0), "{report:?}");
    let wanted = [
        "a file of another size",
        "a file outside the folder",
        "a file that is missing",
        "a key that is too long",
        "a pickled key",
        "a tag that is no text",
        "a value of no known mode",
        "a value without a file",
        "an empty key",
        "none",
        "pickled",
    ];
    assert_eq!(reasons(&report), wanted.map(|reason| (reason, 1)));
    let text = entry(&cache, "text").await;
    assert_eq!((&text.value[..], text.deadline, text.explicit_ttl), (&b"hello"[..], deadline, true));
    assert_eq!(text.tags().unwrap()["tag"], "news");
    assert_eq!(text.created, Timestamp::from_millis(1_700_000_000_250));
    assert_eq!(text.content_type(), Some("text/plain; charset=utf-8"));
    let bytes = entry(&cache, "1").await;
    assert_eq!((&bytes.value[..], bytes.deadline.is_never()), (&b"bytes\xff"[..], true));
    assert_eq!((bytes.tags().unwrap()["tag"].as_str(), bytes.content_type()), ("3", None));
    assert_eq!(entry(&cache, &b"k\xff"[..]).await.value, "42");
    let number = entry(&cache, "2.5").await;
    assert_eq!((&number.value[..], number.tags().unwrap()["tag"].as_str()), (&b"1.5"[..], "tü"));
    assert_eq!(entry(&cache, "file of text").await.value, "ü".repeat(20_000));
    assert_eq!(entry(&cache, "file of bytes").await.value, vec![255; 40_000]);
    assert_eq!(entry(&cache, "true").await.value, "true");
    assert_eq!(entry(&cache, "7").await.value, "of a pickled number");
    drop(source);
    assert!(!folder.path().join("cache.db-wal").exists(), "closed, it has no log");
    let again = import(&cache, folder.path()).await;
    assert_eq!((again.stored, again.present, again.expired), (0, 9, 2));
}

#[tokio::test]
async fn a_sciqlop_cache_folder_is_migrated_with_its_shards() {
    let folder = tempfile::tempdir().unwrap();
    let (soon, deadline) = later(now());
    let mut sources = Vec::new();
    for shard in ["00", "01"] {
        std::fs::create_dir(folder.path().join(shard)).unwrap();
        let source = Connection::open(folder.path().join(shard).join("sciqlop-cache.db")).unwrap();
        source.execute_batch(SCIQLOP).unwrap();
        sources.push(source);
    }
    let large = [&b"\x80\x05B\x40\x9c\x00\x00"[..], &[7; 40_000], b"."].concat();
    std::fs::write(folder.path().join("01/large"), &large).unwrap();
    let insert = |shard: usize,
                  key: &[u8],
                  path: Option<&str>,
                  value: Option<&[u8]>,
                  size: usize,
                  expire: Option<f64>| {
        let key = std::str::from_utf8(key).unwrap();
        let tag = expire.map(|_| "t");
        let sql = "INSERT INTO cache (key, path, value, size, expire, tag) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        sources[shard].execute(sql, (key, path, value, size as i64, expire, tag)).unwrap();
    };
    let inline =
        |shard, key: &[u8], value: &[u8], expire| insert(shard, key, None, Some(value), value.len(), expire);
    inline(0, b"text", b"\x80\x05\x8c\x05hello\x94.", Some(soon));
    inline(0, b"\0i5", b"\x80\x05C\x06intkey\x94.", None);
    inline(0, "\0b\u{6b}\u{ff}".as_bytes(), b"\x80\x05K\x0c.", None);
    inline(1, b"float", b"\x80\x05G\x3f\xf8\0\0\0\0\0\0.", None);
    insert(1, b"large", Some("large"), None, large.len(), None);
    inline(1, b"none", b"\x80\x05N.", None);
    inline(1, b"list", b"\x80\x05].", None);
    inline(1, b"\0pgAQpLg==", b"\x80\x05K\x01.", None);
    inline(1, b"dead", b"\x80\x05K\x01.", Some(1000.0));
    let cache = cache().await;
    assert_eq!(Foreign::open(folder.path()).unwrap().kind(), ForeignKind::SciqlopCache);
    let report = import(&cache, folder.path()).await;
    assert_eq!((report.read, report.stored, report.expired, report.failed), (9, 5, 1, 0), "{report:?}");
    assert_eq!(reasons(&report), [("a pickled key", 1), ("none", 1), ("pickled", 1)]);
    let text = entry(&cache, "text").await;
    assert_eq!((&text.value[..], text.deadline), (&b"hello"[..], deadline));
    assert_eq!(text.tags().unwrap()["tag"], "t");
    assert_eq!(entry(&cache, "5").await.value, "intkey");
    assert_eq!(entry(&cache, &b"k\xff"[..]).await.value, "12");
    assert_eq!(entry(&cache, "float").await.value, "1.5");
    assert_eq!(entry(&cache, "large").await.value, vec![7; 40_000]);
}

#[tokio::test]
async fn values_of_another_serializer_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let source = Connection::open(folder.path().join("sciqlop-cache.db")).unwrap();
    source.execute_batch(SCIQLOP).unwrap();
    source
        .execute_batch(
            "UPDATE meta SET value = 'msgspec'; INSERT INTO cache (key, value) VALUES ('k', x'a178');",
        )
        .unwrap();
    let report = import(&cache().await, folder.path()).await;
    assert_eq!((report.read, reasons(&report)), (1, vec![("of another serializer", 1)]));
}

#[tokio::test]
async fn what_is_no_such_folder_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let empty = Foreign::open(folder.path());
    assert!(matches!(empty, Err(TransferError::Foreign { .. })), "{empty:?}");
    let absent = Foreign::open(&folder.path().join("absent"));
    assert!(matches!(absent, Err(TransferError::Io { .. })), "{absent:?}");
    std::fs::write(
        folder.path().join("cache.db"),
        "no database at all, but long enough to look like one".repeat(100),
    )
    .unwrap();
    let imported = Foreign::open(folder.path()).unwrap().import_into(&cache().await, false, |_| ()).await;
    assert!(matches!(imported, Err(TransferError::Cache(_))), "{imported:?}");
}

/// Made by the systems themselves, where they can be had.
#[tokio::test]
async fn folders_that_python_made_are_migrated() {
    const MAKE: &str = r#"
import sys, diskcache, pysciqlop_cache as sciqlop
for cache in (diskcache.Cache(sys.argv[1] + '/d'), diskcache.FanoutCache(sys.argv[1] + '/df', shards=3),
              sciqlop.Cache(sys.argv[1] + '/s'), sciqlop.FanoutCache(sys.argv[1] + '/sf', shard_count=3)):
    cache.set('text', 'h\u00e9llo', expire=3600, tag='news')
    cache.set('bytes', b'\x00\xff'); cache.set(7, 'of a number'); cache.set(b'k\xff', 'of bytes')
    cache.set('int', -12); cache.set('float', 0.1); cache.set('huge', 1 << 70); cache.set('bool', True)
    cache.set('large text', 'x' * 100000); cache.set('large bytes', b'y' * 100000)
    cache.set('none', None); cache.set('list', [1, 'a']); cache.set(('a', 1), 'of a tuple')
    cache.close()
"#;
    let python = std::env::var_os("TIERCACHE_TEST_VENV").map(|venv| Path::new(&venv).join("bin/python"));
    let folder = tempfile::tempdir().unwrap();
    let made =
        python.map(|python| Command::new(python).args(["-c", MAKE]).arg(folder.path()).output().unwrap());
    if !made.as_ref().is_some_and(|made| made.status.success()) {
        let why = made.map(|made| String::from_utf8_lossy(&made.stderr).into_owned());
        assert!(std::env::var_os("CI").is_none(), "diskcache and pysciqlop-cache are missing: {why:?}");
        eprintln!("SKIPPED: no Python with diskcache and pysciqlop-cache (TIERCACHE_TEST_VENV): {why:?}");
        return;
    }
    for name in ["d", "df", "s", "sf"] {
        let cache = cache().await;
        let report = import(&cache, &folder.path().join(name)).await;
        assert_eq!((report.read, report.stored, report.failed), (13, 10, 0), "{name}: {report:?}");
        assert_eq!(reasons(&report), [("a pickled key", 1), ("none", 1), ("pickled", 1)], "{name}");
        let text = entry(&cache, "text").await;
        assert_eq!(
            (&text.value[..], text.tags().unwrap()["tag"].as_str()),
            ("h\u{e9}llo".as_bytes(), "news")
        );
        let left = text.deadline.since(Timestamp::from_millis((now() * 1000.0) as u64)).as_secs();
        assert!((3_500..=3_600).contains(&left), "{name}: {left}");
        assert_eq!(entry(&cache, "bytes").await.value, &b"\x00\xff"[..]);
        assert_eq!(entry(&cache, "7").await.value, "of a number");
        assert_eq!(entry(&cache, &b"k\xff"[..]).await.value, "of bytes");
        for (key, value) in
            [("int", "-12"), ("float", "0.1"), ("huge", "1180591620717411303424"), ("bool", "true")]
        {
            assert_eq!(entry(&cache, key).await.value, value, "{name}");
        }
        assert_eq!(entry(&cache, "large text").await.value, "x".repeat(100_000));
        assert_eq!(entry(&cache, "large bytes").await.value, "y".repeat(100_000));
    }
}
