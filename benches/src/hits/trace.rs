//! Traces: what was asked for, in order.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use crate::keys::{Random, Zipf};

/// The most requests of a trace that are replayed.
const MOST: usize = 3_000_000;
pub(super) const KEY_BYTES: usize = 8;

#[derive(Debug)]
pub(super) struct Trace {
    pub(super) name: String,
    pub(super) keys: Vec<u64>,
    pub(super) distinct: usize,
}

/// The traces of the files, or made-up ones when there is none.
pub(super) fn all(files: &[String]) -> Vec<Trace> {
    if files.is_empty() {
        return made_up();
    }
    let read = |file: &String| {
        read(Path::new(file)).map_err(|error| eprintln!("{file}: {error}, left out")).ok().filter(|trace| {
            if trace.keys.is_empty() {
                eprintln!("{file}: no keys in it, left out");
            }
            !trace.keys.is_empty()
        })
    };
    files.iter().filter_map(read).collect()
}

pub(super) fn bytes(number: u64) -> [u8; KEY_BYTES] {
    number.to_le_bytes()
}

/// A key per line, or the caffeine simulator's text formats, told apart by the file's name:
/// `.lis` and `.arc` of ARC (`start count ignored number`: blocks in a row), and lines of which the first word is the key.
fn read(path: &Path) -> std::io::Result<Trace> {
    let arc = path.extension().is_some_and(|extension| extension == "lis" || extension == "arc");
    let mut keys = Vec::new();
    for line in BufReader::new(File::open(path)?).split(b'\n') {
        let line = line?;
        let mut words =
            line.split(|byte| matches!(byte, b' ' | b'\t' | b',' | b'\r')).filter(|word| !word.is_empty());
        let Some(word) = words.next() else { continue };
        // The LIRS traces end each file with a lone asterisk.
        if word == b"*" {
            continue;
        }
        let number = std::str::from_utf8(word).ok().and_then(|word| word.parse::<u64>().ok());
        let count = words.next().and_then(|word| std::str::from_utf8(word).ok()?.parse::<u64>().ok());
        match (arc, number, count) {
            (true, Some(start), Some(count)) => keys.extend((start..start + count).take(MOST)),
            _ => keys.push(number.unwrap_or_else(|| xxhash_rust::xxh3::xxh3_64(word))),
        }
        if keys.len() >= MOST {
            keys.truncate(MOST);
            break;
        }
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(trace(name, keys))
}

fn trace(name: impl Into<String>, keys: Vec<u64>) -> Trace {
    let distinct = keys.iter().collect::<HashSet<_>>().len();
    Trace { name: name.into(), keys, distinct }
}

/// What caches meet: skewed use, skewed use with scans through it, loops, and use that moves on.
fn made_up() -> Vec<Trace> {
    const COUNT: usize = 1_000_000;
    const KEYS: usize = 100_000;
    let zipf = Zipf::new(KEYS, 0.99);
    let mut random = Random::new(42);
    let skewed: Vec<u64> = (0..COUNT).map(|_| zipf.rank(&mut random) as u64).collect();
    let mut scanned = Vec::with_capacity(COUNT + COUNT / 5);
    for (at, part) in skewed.chunks(50_000).enumerate() {
        scanned.extend_from_slice(part);
        let first = (KEYS + at * 10_000) as u64;
        scanned.extend(first..first + 10_000);
    }
    let looped =
        (0..COUNT).map(|at| if at % 2 == 0 { (at / 2 % 20_000) as u64 } else { skewed[at] + 20_000 });
    let moving = (0..COUNT).map(|at| skewed[at] + (at / 100_000 * 2_000) as u64);
    vec![
        trace("zipf", skewed.clone()),
        trace("zipf with scans", scanned),
        trace("zipf beside a loop", looped.collect()),
        trace("zipf that moves on", moving.collect()),
    ]
}
