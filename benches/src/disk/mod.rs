//! `bench disk`: gets and puts of the disk level beside databases and the machine's own limits.
//!
//! Nothing is synced, the page cache is warm, values are the same bytes under 24-byte keys, gets come in no order. The
//! mean is over the whole run, waiting for everything to be written included; p50 and p99 are of single calls.

mod ours;
#[cfg(feature = "peers")]
mod peers;
mod raw;

use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;

use crate::Options;
use crate::allocations;
use crate::keys::{Random, key};
use crate::measure::Row;

/// Combinations that take more than this are left out.
const MOST_BYTES: usize = 4 << 30;
/// Gets of a run.
const GETS: usize = 100_000;

/// A store in a directory of its own.
pub(crate) trait Store {
    fn put(&mut self, key: &str, value: &Bytes);
    /// How long the value is that it finds.
    fn get(&mut self, key: &str) -> Option<usize>;
    /// Waits until everything put has been handed to the system.
    fn settle(&mut self) {}
    /// Entries it was given and did not keep make its gets misses; `true` when that is how it works.
    fn drops(&self) -> bool {
        false
    }
}

type Open = fn(&Path, usize) -> Box<dyn Store>;

fn contenders() -> Vec<(&'static str, Open)> {
    let ours: [(&str, Open); 5] = [
        ("tiercache", ours::tier),
        ("tiercache-manager", ours::manager),
        ("pread/write", raw::open),
        ("pread/write+sum", raw::with_sums),
        ("files", raw::files),
    ];
    #[cfg(feature = "peers")]
    let peers = peers::all();
    #[cfg(not(feature = "peers"))]
    let peers = Vec::new();
    ours.into_iter().chain(peers).collect()
}

pub(crate) fn run(options: &Options) {
    let parent = options.files.first().map_or_else(std::env::temp_dir, PathBuf::from);
    for (size_name, size) in [("256", 256), ("4K", 4 << 10), ("64K", 64 << 10), ("1M", 1 << 20)] {
        for (count_name, count) in [("1k", 1_000), ("10k", 10_000), ("100k", 100_000), ("1M", 1_000_000)] {
            // A thousand only where ten thousand would be too much.
            let fits = size * count <= MOST_BYTES && (count > 1_000 || size * 10_000 > MOST_BYTES);
            if !fits || !options.wants("size", size_name) || !options.wants("keys", count_name) {
                continue;
            }
            for (name, open) in contenders() {
                // A file or a transaction for each of a million takes minutes and shows nothing new.
                let slow = matches!(name, "files" | "sqlite" | "foyer-disk") && count > 100_000;
                if !slow && options.wants("contender", name) {
                    one(options, &parent, (size_name, size), (count_name, count), name, open);
                }
            }
        }
    }
    if options.wants("contender", "tiercache") {
        ours::reclaim(options, &parent);
    }
}

fn one(
    options: &Options,
    parent: &Path,
    size: (&str, usize),
    count: (&str, usize),
    name: &'static str,
    open: Open,
) {
    let directory = match tempfile::Builder::new().prefix("tiercache-bench-").tempdir_in(parent) {
        Ok(directory) => directory,
        Err(error) => return eprintln!("{}: {error}", parent.display()),
    };
    let mut store = open(directory.path(), size.1 * count.1);
    let keys: Vec<String> =
        (0..count.1).map(|number| key(number.wrapping_mul(0x9E37_79B9_7F4A_7C15))).collect();
    let mut random = Random::new(7);
    // What does not compress, in case somebody tries.
    let value = Bytes::from((0..size.1).map(|_| random.next() as u8).collect::<Vec<_>>());

    let mut times = Vec::with_capacity(keys.len());
    let (begun, allocated) = (Instant::now(), allocations::count());
    for key in &keys {
        let started = Instant::now();
        store.put(key, &value);
        times.push(started.elapsed().as_nanos() as f64);
    }
    store.settle();
    let mean = begun.elapsed().as_nanos() as f64 / keys.len() as f64;
    let allocs = (allocations::count() - allocated) as f64 / keys.len() as f64;
    let payload = (keys.len() * (size.1 + 24)) as f64;
    let note = format!("disk {:.2} × payload", used(directory.path()) as f64 / payload);
    rows(options, "put", size.0, count.0, name, mean, allocs, times, note);

    let gets = GETS.min(count.1 * 4).min((2 << 30) / size.1);
    let mut times = Vec::with_capacity(gets);
    let mut found = 0;
    let (begun, allocated) = (Instant::now(), allocations::count());
    for _ in 0..gets {
        let key = &keys[random.below(keys.len())];
        let started = Instant::now();
        let got = store.get(key);
        times.push(started.elapsed().as_nanos() as f64);
        found += usize::from(got == Some(size.1));
    }
    let mean = begun.elapsed().as_nanos() as f64 / gets as f64;
    let allocs = (allocations::count() - allocated) as f64 / gets as f64;
    assert!(found == gets || store.drops(), "{name} lost {} of {gets}", gets - found);
    let note = if found < gets {
        format!("found {:.0} %", 100.0 * found as f64 / gets as f64)
    } else {
        String::new()
    };
    rows(options, "get", size.0, count.0, name, mean, allocs, times, note);
}

/// The mean and two quantiles, a line each; in the table one line.
#[allow(clippy::too_many_arguments, reason = "a line has so many fields")]
fn rows(
    options: &Options,
    case: &str,
    size: &str,
    count: &str,
    name: &str,
    mean: f64,
    allocs: f64,
    mut times: Vec<f64>,
    note: String,
) {
    times.sort_by(f64::total_cmp);
    let quantile = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    let row = |what: &str, ns_per_op: f64, note: String| Row {
        bench: "disk",
        case: format!("{case}{what} {size}"),
        contender: name.to_string(),
        threads: 1,
        keys: count.to_string(),
        ns_per_op,
        allocs_per_op: allocs,
        note,
    };
    if options.json {
        row("", mean, String::new()).print(true);
        row("_p50", quantile(0.5), String::new()).print(true);
        row("_p99", quantile(0.99), String::new()).print(true);
    } else {
        let note = format!("p50 {:.0} p99 {:.0}  {note}", quantile(0.5), quantile(0.99));
        row("", mean, note).print(false);
    }
}

/// Bytes of a directory's files on disk.
fn used(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => used(&entry.path()),
            Ok(metadata) => (metadata.blocks() * 512).min(metadata.len().next_multiple_of(4096)),
            Err(_) => 0,
        })
        .sum()
}
