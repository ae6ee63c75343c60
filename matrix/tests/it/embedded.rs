//! The troubles of levels that live in the process: what a connection's troubles are to them, or their like.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tiercache::{CacheManager, Result};
use tiercache_matrix::{READ_TIMEOUT, WRITE_TIMEOUT, Watch, open, rounds};
use tiercache_services::note;

const STORES: [&str; 2] = ["sqlite", "local"];

/// What tells a child of these tests which file to open.
const CONFIG: &str = "TIERCACHE_MATRIX_CONFIG";

fn config(store: &str, folder: &Path, more: &str) -> String {
    format!(
        "hot_cache: {{ backend: ram }}\ncold_cache: {{ backend: none }}\nwrite: through\n\
         dry_cache: {{ backend: {store}, path: {}, max_size: 64MiB, ttl: null, read_timeout: {READ_TIMEOUT:?}, \
         write_timeout: {WRITE_TIMEOUT:?}{more} }}\ntracking: {{ backend: memory }}",
        folder.join("level").display()
    )
}

async fn opened(store: &str, folder: &Path) -> CacheManager {
    open(&config(store, folder, "")).await.expect("it opens")
}

async fn closed(cache: CacheManager) {
    // What could not be written is in the report; it is no failure here.
    drop(cache.close(Duration::from_secs(5)).await.expect("it closes"));
}

async fn text(cache: &CacheManager, key: &str) -> Option<String> {
    let value = cache.get(key).await.expect("a get does not fail");
    value.map(|value| String::from_utf8_lossy(&value).into_owned())
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// A process of this program that does what that ignored test does.
fn child(test: &str, config: &str) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--ignored", "--exact", "--nocapture", &format!("embedded::{test}")])
        .env(CONFIG, config)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let out = BufReader::new(child.stdout.take().expect("a pipe"));
    (child, out)
}

fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process");
    kill_process(pid, signal).expect("it is ours");
}

fn wait_for(out: &mut BufReader<ChildStdout>, line: &str) {
    let said = out.lines().map(|said| said.expect("it goes on")).any(|said| said.ends_with(line));
    assert!(said, "the child ended before it said {line}");
}

fn end(mut child: Child) {
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
}

/// Writes and removes until it is killed, and says what it begins and what was acknowledged.
#[tokio::test]
#[ignore = "run by the tests below, in a process of its own"]
async fn writes_until_it_is_killed() {
    let Ok(config) = std::env::var(CONFIG) else { return };
    let cache = open(&config).await.expect("it opens");
    let first =
        text(&cache, "count").await.map_or(0, |count| count.parse::<u64>().expect("a number") + 1_000);
    for number in first.. {
        let key = format!("key {}", number % 20);
        println!("\nbegin {number}");
        let reached = if number % 7 == 3 {
            cache.delete(&key).await.expect("removed").degraded.is_empty()
        } else {
            cache.set(&key, format!("{number} {}", "v".repeat(500))).await.expect("set").degraded.is_empty()
        };
        assert!(reached);
        println!("\ndone {number}");
        cache.set("count", number.to_string()).await.expect("set");
    }
}

async fn killed(store: &'static str) {
    let folder = folder();
    let config = config(store, folder.path(), "");
    for round in 0..3 * rounds() {
        let (child, mut out) = child("writes_until_it_is_killed", &config);
        let (mut begun, mut done) = (BTreeMap::new(), BTreeMap::new());
        let mut take = |line: &str| {
            let (map, number) = match line.split_once(' ') {
                Some(("begin", number)) => (&mut begun, number),
                Some(("done", number)) => (&mut done, number),
                _ => return 0,
            };
            let number: u64 = number.parse().expect("a number");
            map.insert(number % 20, number);
            1
        };
        let mut line = String::new();
        let mut lines = 0;
        // So many lines, not so long a time.
        while lines < 300 + round * 37 % 100 {
            line.clear();
            assert!(out.read_line(&mut line).expect("it goes on") > 0, "the child ended by itself");
            lines += take(line.trim_end());
        }
        end(child);
        let mut rest = Vec::new();
        out.read_to_end(&mut rest).expect("what it said before its end");
        let rest = String::from_utf8_lossy(&rest).into_owned();
        // The last line may be half a line.
        rest.rsplit_once('\n').map_or("", |(whole, _)| whole).lines().for_each(|line| {
            take(line);
        });
        let cache = opened(store, folder.path()).await;
        for (key, acknowledged) in done {
            let found = text(&cache, &format!("key {key}")).await;
            let found =
                found.map(|text| text.split(' ').next().unwrap_or_default().parse::<u64>().expect("whole"));
            let what = format!("{store}, round {round}: {found:?} where {acknowledged} was acknowledged");
            let last = begun[&key];
            match found {
                Some(found) => assert!(
                    found == last || found == acknowledged && acknowledged % 7 != 3,
                    "{what}, {last} begun"
                ),
                None => assert!(acknowledged % 7 == 3 || last > acknowledged, "{what}"),
            }
        }
        closed(cache).await;
    }
}

/// Holds the write locks of every database of the level.
#[test]
#[ignore = "run by the tests below, in a process of its own"]
fn holds_the_write_locks() {
    let Ok(level) = std::env::var(CONFIG) else { return };
    let files = std::fs::read_dir(level).expect("a folder").map(|file| file.expect("a file").path());
    let databases = files.filter(|path| path.extension().is_some_and(|extension| extension == "db"));
    let held: Vec<Connection> = databases
        .map(|path| {
            let connection = Connection::open(path).expect("a database");
            connection.busy_timeout(Duration::from_secs(10)).expect("patience");
            connection.execute_batch("BEGIN IMMEDIATE").expect("the lock");
            connection
        })
        .collect();
    assert!(!held.is_empty());
    println!("\nheld");
    let _ = std::io::stdin().read(&mut [0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_beside_a_stopped_process_that_holds_its_write_locks() {
    let folder = folder();
    let cache = opened("sqlite", folder.path()).await;
    for round in 0..rounds() {
        let mut watch = Watch::before(&cache, "sqlite, stopped".into(), round).await;
        let level = folder.path().join("level").display().to_string();
        let (child, mut out) = child("holds_the_write_locks", &level);
        wait_for(&mut out, "held");
        signal(&child, Signal::STOP);
        assert!(watch.during(&cache).await, "nothing came of it");
        end(child);
        watch.after(&cache).await;
    }
    closed(cache).await;
}

/// Opens the level, sets a key, and waits.
#[tokio::test]
#[ignore = "run by the tests below, in a process of its own"]
async fn owns_the_level() {
    let Ok(config) = std::env::var(CONFIG) else { return };
    let cache = open(&config).await.expect("it opens");
    cache.set("k", "value").await.expect("set");
    println!("\nowned");
    let _ = std::io::stdin().read(&mut [0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_whose_owner_is_stopped() {
    let folder = folder();
    let config = config("local", folder.path(), "");
    let (child, mut out) = child("owns_the_level", &config);
    wait_for(&mut out, "owned");
    signal(&child, Signal::STOP);
    let began = Instant::now();
    let refused = open(&config).await.expect_err("it has an owner").to_string();
    assert!(refused.contains(&format!("process {}", child.id())), "{refused}");
    assert!(began.elapsed() < Duration::from_secs(2), "it took {:?}", began.elapsed());
    end(child);
    let cache = opened("local", folder.path()).await;
    assert_eq!(text(&cache, "k").await.as_deref(), Some("value"));
    closed(cache).await;
}

async fn refused(store: &'static str) {
    let folder = folder();
    let cache = opened(store, folder.path()).await;
    let watch = Watch::before(&cache, format!("{store}, refused"), 0).await;
    closed(cache).await;
    let (level, away) = (folder.path().join("level"), folder.path().join("away"));
    std::fs::rename(&level, &away).expect("moved");
    std::os::unix::fs::symlink(&away, &level).expect("a link");
    let said = open(&config(store, folder.path(), "")).await.expect_err("a link is refused").to_string();
    assert!(said.contains(&level.display().to_string()) && said.contains("symbolic link"), "{said}");
    std::fs::remove_file(&level).expect("the link");
    std::fs::rename(&away, &level).expect("moved");
    let cache = opened(store, folder.path()).await;
    assert_eq!(text(&cache, "below 0").await.as_deref(), Some("old"), "{store}: nothing was touched");
    drop(watch);
    closed(cache).await;
}

/// A file system of its own, that ends with this value.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf) -> Option<Self> {
        std::fs::create_dir(&at).expect("a folder");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=48m,mode=0700", "tmpfs"]).arg(&at);
        let mounted = mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        if !mounted {
            note("SKIPPED: a level whose file system is full: none can be mounted here without being root");
        }
        mounted.then(|| Self(at))
    }

    /// Leaves no byte.
    fn fill(&self) {
        let mut file = File::create(self.0.join("filler")).expect("a file");
        let mut piece = vec![0; 1 << 20];
        while !piece.is_empty() {
            if file.write(&piece).is_err() {
                piece.truncate(piece.len() / 2);
            }
        }
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.join("filler")).expect("the filler");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

async fn full(store: &'static str) {
    let folder = folder();
    let Some(small) = Small::mount(folder.path().join("small")) else { return };
    let cache = opened(store, &small.0).await;
    for round in 0..rounds() {
        let mut watch = Watch::before(&cache, format!("{store}, full"), round).await;
        small.fill();
        // What files are there already have room in them.
        let mut refused: Option<Result<_>> = None;
        for number in 0..64 {
            let set = cache.set(format!("filler {number}"), vec![7; 1 << 20]).await;
            if !set.as_ref().is_ok_and(|written| written.degraded.is_empty()) {
                refused = Some(set);
                break;
            }
        }
        // A local level gives up its oldest segment instead, once it has one.
        assert!(refused.is_some() || store == "local", "{store}: nothing came of it");
        watch.during(&cache).await;
        small.empty();
        watch.after(&cache).await;
        cache.clear().await.expect("cleared");
    }
    closed(cache).await;
}

async fn wiped(store: &'static str) {
    let folder = folder();
    for round in 0..rounds() {
        let cache = opened(store, folder.path()).await;
        let mut watch = Watch::before(&cache, format!("{store}, wiped"), round).await;
        std::fs::remove_dir_all(folder.path().join("level")).expect("deleted");
        watch.during(&cache).await;
        closed(cache).await;
        let cache = opened(store, folder.path()).await;
        watch.after(&cache).await;
        closed(cache).await;
    }
}

async fn another_key(store: &'static str) {
    let folder = folder();
    let sealed = |letter: char| {
        // 32 bytes in base64.
        let key = format!("{}=", letter.to_string().repeat(43));
        config(store, folder.path(), &format!(", encryption: {{ key: \"{key}\" }}"))
    };
    for round in 0..rounds() {
        let cache = open(&sealed('A')).await.expect("it opens");
        let mut watch = Watch::before(&cache, format!("{store}, wrong password"), round).await;
        closed(cache).await;
        let other = open(&sealed('Q')).await.expect("it opens");
        assert_eq!(text(&other, &format!("below {round}")).await, None, "{store}: it cannot be read");
        // Kept above, as the watch expects it.
        other.set(format!("above {round}"), "old").await.expect("set");
        watch.during(&other).await;
        closed(other).await;
        let cache = open(&sealed('A')).await.expect("it opens");
        watch.after(&cache).await;
        closed(cache).await;
    }
}

async fn corrupt(store: &'static str) {
    let folder = folder();
    for round in 0..rounds() {
        let cache = opened(store, folder.path()).await;
        let kept: Vec<String> = (0..50).map(|number| format!("{round}.{number} ").repeat(100)).collect();
        for value in &kept {
            cache.set(&value[..6], value.clone()).await.expect("set");
        }
        let mut watch = Watch::before(&cache, format!("{store}, corrupt"), round).await;
        turn_bytes(&folder.path().join("level"));
        whole_or_missing(&cache, &kept).await;
        watch.during(&cache).await;
        closed(cache).await;
        let cache = opened(store, folder.path()).await;
        assert!(whole_or_missing(&cache, &kept).await > 0, "{store}: nothing came of it");
        watch.after(&cache).await;
        closed(cache).await;
    }
}

/// How many are missing; the others are what they were.
async fn whole_or_missing(cache: &CacheManager, kept: &[String]) -> usize {
    let mut missing = 0;
    for value in kept {
        match text(cache, &value[..6]).await {
            Some(found) => assert_eq!(&found, value),
            None => missing += 1,
        }
    }
    missing
}

/// A bit of every 97th byte of every file, but what is memory that processes share.
fn turn_bytes(folder: &Path) {
    for path in std::fs::read_dir(folder).expect("a folder").map(|file| file.expect("a file").path()) {
        if path.is_dir() {
            turn_bytes(&path);
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Neither is the file that tells the version one of data: without it the level is another application's.
        if name.ends_with("-shm") || name == "format" {
            continue;
        }
        let file = File::options().read(true).write(true).open(&path).expect("a file");
        let mut bytes = Vec::new();
        (&file).read_to_end(&mut bytes).expect("it can be read");
        for (at, byte) in (0..).zip(&bytes).step_by(97) {
            file.write_all_at(&[byte ^ 1], at).expect("it can be written");
        }
    }
}

macro_rules! both {
    ($($trouble:ident),*) => {$(
        mod $trouble {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                super::$trouble(super::STORES[0]).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn local() {
                super::$trouble(super::STORES[1]).await;
            }
        }
    )*};
}

both!(killed, refused, full, wiped, another_key, corrupt);
