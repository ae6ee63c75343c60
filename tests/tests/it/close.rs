//! Processes that end as they should leave everything behind for the next one.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tiercache::disk::{DiskConfig, DiskTier};
use tiercache_core::{CacheManager, SystemClock};
use tiercache_tests::values::{name, value};

/// Ends the child, however the test ends.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Both fail when it has ended, as it should have.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `closer` until it is filled, tells it to end by `end`, and returns its last words.
fn fill_and_end(folder: &Path, mode: &str, end: impl FnOnce(&mut Child)) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_closer"));
    command.arg(folder).arg(mode).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = Ended(command.spawn().expect("the program"));
    let mut says = BufReader::new(child.0.stdout.take().expect("a pipe"));
    let mut line = String::new();
    says.read_line(&mut line).expect("a line");
    assert_eq!(line.trim(), "ready");
    let told = Instant::now();
    end(&mut child.0);
    let mut words = String::new();
    says.read_to_string(&mut words).expect("its last words");
    let status = child.0.wait().expect("its end");
    assert!(status.success(), "{status}: {words}");
    assert!(told.elapsed() < Duration::from_secs(10), "it took {:?} to end", told.elapsed());
    words
}

async fn all_is_there(folder: &Path) {
    let report = DiskTier::check(folder, false, &mut |_, _| {}).expect("a check");
    assert!(report.is_clean() && report.entries == 100, "{report:?}");
    let config = DiskConfig { path: Some(folder.into()), max_size: 64 << 20, ..DiskConfig::default() };
    let dry = DiskTier::open(config, SystemClock::start()).await.expect("the level");
    let cache = CacheManager::builder().dry(Arc::new(dry)).build().await.expect("a cache");
    for number in 0..100 {
        let found = cache.get(name(number)).await.expect("it is open");
        assert_eq!(found, Some(value(number, number.into())), "key {number}");
    }
    cache.close(Duration::from_secs(5)).await.expect("a close");
}

#[tokio::test]
async fn a_program_that_closes_on_sigterm_leaves_every_value_to_the_next() {
    let place = tempfile::tempdir().expect("a folder");
    let folder = place.path().join("dry");
    let words = fill_and_end(&folder, "async", |child| {
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
    });
    assert!(words.contains("0 dropped"), "{words}");
    all_is_there(&folder).await;
}

#[tokio::test]
async fn a_program_without_a_runtime_that_closes_leaves_every_value_to_the_next() {
    let place = tempfile::tempdir().expect("a folder");
    let folder = place.path().join("dry");
    let words = fill_and_end(&folder, "blocking", |child| drop(child.stdin.take()));
    assert!(words.contains("0 dropped"), "{words}");
    all_is_there(&folder).await;
}
