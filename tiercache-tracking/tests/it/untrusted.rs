//! A database that is damaged, foreign or unsafe: set aside, refused or read around, never a panic.
#![cfg(feature = "sqlite")]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use tempfile::TempDir;
use tiercache_core::tracking::{Event, Query, Record, Totals, What};
use tiercache_core::{Error, Generation, Key, Level, Result, Tags, Timestamp, Tracking};
use tiercache_tracking::{SqliteConfig, SqliteTracking};

fn key(number: u64) -> Key {
    Key::new("", format!("{number:04}").as_bytes()).expect("a valid key")
}

fn stored(number: u64) -> Event {
    let at = Timestamp::from_millis(1_000);
    Event {
        at,
        what: What::Stored(Record {
            key: key(number),
            generation: Generation::new(1),
            level: Level::Hot,
            size: number,
            created: at,
            used: at,
            deadline: Timestamp::NEVER,
            hits: 0,
            tags: Tags::from([("type".into(), "image".into())]),
        }),
    }
}

async fn open(path: &Path) -> Result<SqliteTracking> {
    SqliteTracking::open(SqliteConfig { path: path.to_owned() }).await
}

/// A folder with a closed database of so many records.
async fn filled(records: u64) -> (TempDir, PathBuf) {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("index.db");
    let tracking = open(&path).await.expect("opens");
    tracking.record(&(0..records).map(stored).collect::<Vec<_>>()).await.expect("records");
    tracking.close().await.expect("closes");
    (folder, path)
}

fn files(folder: &TempDir) -> Vec<String> {
    let names = std::fs::read_dir(folder.path()).expect("a folder");
    let mut names: Vec<_> =
        names.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

async fn works(tracking: &SqliteTracking) {
    tracking.record(&[stored(7_777)]).await.expect("records");
    assert!(tracking.lookup(&key(7_777)).await.expect("an answer").is_some());
    assert!(!tracking.find(&Query::all(), None, 10).await.expect("a page").is_empty());
}

#[tokio::test]
async fn rubbish_is_set_aside_and_tracking_begins_anew() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("index.db");
    for number in 1..=2 {
        std::fs::write(&path, vec![b'x'; 10_000]).unwrap();
        let tracking = open(&path).await.unwrap();
        works(&tracking).await;
        tracking.close().await.unwrap();
        assert!(files(&folder).contains(&format!("index.db.damaged-{number}")), "{:?}", files(&folder));
    }
}

#[tokio::test]
async fn a_database_left_open_is_checked_and_one_closed_is_not() {
    let (folder, path) = filled(200).await;
    // A row its table forbids: nothing but a check sees it.
    Connection::open(&path)
        .unwrap()
        .execute_batch("PRAGMA ignore_check_constraints = ON; INSERT INTO totals (id) VALUES (2)")
        .unwrap();
    open(&path).await.unwrap().close().await.unwrap();
    assert!(!files(&folder).iter().any(|name| name.contains("damaged")), "closed in order: not looked at");

    let tracking = open(&path).await.unwrap();
    tracking
        .record(&[Event {
            at: Timestamp::EPOCH,
            what: What::Counted(Totals { misses: 1, ..Totals::default() }),
        }])
        .await
        .unwrap();
    drop(tracking);
    let tracking = open(&path).await.unwrap();
    assert!(files(&folder).iter().any(|name| name == "index.db.damaged-1"), "{:?}", files(&folder));
    works(&tracking).await;
}

#[tokio::test]
async fn a_missing_table_is_damage() {
    for table in ["record", "tag", "totals", "meta"] {
        let (folder, path) = filled(3).await;
        Connection::open(&path).unwrap().execute_batch(&format!("DROP TABLE {table}")).unwrap();
        works(&open(&path).await.unwrap()).await;
        assert!(files(&folder).iter().any(|name| name == "index.db.damaged-1"), "without {table}");
    }
}

#[tokio::test]
async fn any_damaged_byte_is_survived() {
    let (_folder, path) = filled(300).await;
    let sound = std::fs::read(&path).unwrap();
    let body = (100..sound.len()).step_by(sound.len() / 60);
    for at in (0..100).chain(body) {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("index.db");
        let mut damaged = sound.clone();
        damaged[at] ^= 0xff;
        std::fs::write(&path, &damaged).unwrap();
        match open(&path).await {
            // Whether damage that no check looked for is met, and as what, depends on where it is.
            Ok(tracking) => {
                let _ = tracking.record(&[stored(1), stored(9_000)]).await;
                let _ = tracking.lookup(&key(1)).await;
                let _ = tracking.find(&Query::all(), None, 1_000).await;
                let _ = tracking.close().await;
            }
            Err(Error::Refused(_)) => assert!((60..72).contains(&at), "byte {at} refused"),
            Err(error) => panic!("byte {at}: {error:?}"),
        }
    }
}

#[tokio::test]
async fn any_truncation_is_survived() {
    let (_folder, path) = filled(300).await;
    let sound = std::fs::read(&path).unwrap();
    for length in (0..sound.len()).step_by(sound.len() / 40) {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("index.db");
        std::fs::write(&path, &sound[..length]).unwrap();
        let tracking = open(&path).await.unwrap_or_else(|error| panic!("{length} bytes: {error:?}"));
        let _ = tracking.find(&Query::all(), None, 1_000).await;
        let _ = tracking.close().await;
    }
}

#[tokio::test]
async fn rows_that_make_no_sense_are_skipped_and_counted() {
    let (_folder, path) = filled(10).await;
    Connection::open(&path)
        .unwrap()
        .execute_batch(
            "UPDATE record SET level = 7 WHERE key = x'30303030';
             UPDATE record SET generation = -1 WHERE key = x'30303031';
             UPDATE record SET namespace = CAST(x'ff' AS TEXT) WHERE key = x'30303032';
             UPDATE record SET key = x'' WHERE key = x'30303033';
             UPDATE record SET key = zeroblob(20000) WHERE key = x'30303034';
             UPDATE record SET size = -5, hits = -5 WHERE key = x'30303035';
             UPDATE tag SET value = CAST(x'ff' AS TEXT)
                 WHERE record_id = (SELECT id FROM record WHERE key = x'30303036');
             UPDATE totals SET misses = -3;",
        )
        .unwrap();
    let tracking = open(&path).await.unwrap();
    let page = tracking.find(&Query::all(), None, 100).await.unwrap();
    assert_eq!(page.into_iter().map(|record| record.key).collect::<Vec<_>>(), [key(7), key(8), key(9)]);
    assert_eq!(tracking.skipped(), 7);
    assert_eq!(tracking.lookup(&key(0)).await.unwrap(), None);
    assert_eq!(tracking.skipped(), 8);
    // What is recorded next is not hindered by them, and puts them right.
    let counted = What::Counted(Totals { misses: 1, ..Totals::default() });
    let used = What::Used { key: key(5), hits: u64::MAX };
    tracking.record(&[counted, used].map(|what| Event { at: Timestamp::EPOCH, what })).await.unwrap();
    tracking.record(&[stored(0), stored(1), stored(5), stored(6)]).await.unwrap();
    assert_eq!(tracking.find(&Query::all(), None, 100).await.unwrap().len(), 7);
    assert_eq!(tracking.totals().await.unwrap().misses, 1);
}

#[tokio::test]
async fn another_application_or_version_is_refused_and_left_alone() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("theirs.db");
    Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE precious (x); INSERT INTO precious VALUES (1)")
        .unwrap();
    refused(&path, "another application").await;
    assert_eq!(
        Connection::open(&path)
            .unwrap()
            .query_row("SELECT x FROM precious", (), |row| row.get::<_, i64>(0))
            .unwrap(),
        1
    );

    let (_folder, path) = filled(1).await;
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 2).unwrap();
    refused(&path, "version 2").await;
}

#[tokio::test]
async fn links_folders_and_open_folders_are_refused() {
    let (folder, path) = filled(1).await;
    let link = folder.path().join("link.db");
    symlink(&path, &link).unwrap();
    refused(&link, "symbolic link").await;

    let elsewhere = TempDir::new().unwrap();
    let linked = folder.path().join("linked");
    symlink(elsewhere.path(), &linked).unwrap();
    refused(&linked.join("index.db"), "symbolic link").await;

    symlink(&path, folder.path().join("other.db-wal")).unwrap();
    refused(&folder.path().join("other.db"), "symbolic link").await;

    refused(elsewhere.path(), "not a file").await;
    std::fs::set_permissions(elsewhere.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    refused(&elsewhere.path().join("index.db"), "writable by everybody").await;
}

#[tokio::test]
async fn files_of_another_user_are_refused() {
    let (_folder, path) = filled(1).await;
    if std::os::unix::fs::chown(&path, Some(12_345), None).is_err() {
        eprintln!("skipped: only root can give a file away");
        return;
    }
    refused(&path, "another user").await;
    let folder = TempDir::new().unwrap();
    std::os::unix::fs::chown(folder.path(), Some(12_345), None).unwrap();
    refused(&folder.path().join("index.db"), "another user").await;
}

#[tokio::test]
async fn what_is_made_is_for_its_owner_alone() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a/b/index.db");
    let tracking = open(&path).await.unwrap();
    tracking.record(&[stored(1)]).await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!([mode(&folder.path().join("a")), mode(&folder.path().join("a/b"))], [0o700; 2]);
    let wal = folder.path().join("a/b/index.db-wal");
    assert_eq!([mode(&path), mode(&wal), mode(&folder.path().join("a/b/index.db.lock"))], [0o600; 3]);
    drop(tracking);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let _again = open(&path).await.unwrap();
    assert_eq!(mode(&path), 0o600, "made private again");
}

#[tokio::test]
async fn no_name_means_something_else_to_sqlite() {
    for path in ["", "/", ".."] {
        assert!(matches!(open(Path::new(path)).await, Err(Error::Config(_) | Error::Refused(_))), "{path:?}");
    }
    let folder = TempDir::new().unwrap();
    for name in [":memory:", "file:x?mode=memory", "a?b=c#d"] {
        let path = folder.path().join(name);
        works(&open(&path).await.unwrap()).await;
        assert!(path.is_file());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_openers_share_one_file() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("index.db");
    let tasks: Vec<_> = (0..4)
        .map(|opener| {
            let path = path.clone();
            tokio::spawn(async move {
                let tracking = open(&path).await.unwrap();
                for round in 0..20 {
                    let counted = What::Counted(Totals { sets: 1, ..Totals::default() });
                    let events =
                        [stored(opener * 100 + round), Event { at: Timestamp::EPOCH, what: counted }];
                    tracking.record(&events).await.unwrap();
                }
                tracking.close().await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let tracking = open(&path).await.unwrap();
    assert_eq!(tracking.find(&Query::all(), None, 1_000).await.unwrap().len(), 80);
    assert_eq!(tracking.totals().await.unwrap().sets, 80);
    assert_eq!(files(&folder), ["index.db", "index.db-shm", "index.db-wal", "index.db.lock"]);
}

async fn refused(path: &Path, reason: &str) {
    match open(path).await {
        Err(Error::Refused(text)) if text.contains(reason) => {}
        other => panic!("{}: {other:?}", path.display()),
    }
}
