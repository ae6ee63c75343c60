//! Measures the level by itself: `cargo run --release -p tiercache-disk --example measure [directory [value bytes]]`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tiercache_core::tier::{Always, Hold, Index, Put, TryGet};
use tiercache_core::{Clock, Entry, Generation, Key, Result, Stay, SystemClock, Tier};
use tiercache_disk::{DiskConfig, DiskTier};

fn main() -> Result<()> {
    let parent = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let only: Option<usize> = std::env::args().nth(2).and_then(|len| len.parse().ok());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|error| tiercache_core::Error::unavailable("measure", "start", error))?;
    runtime.block_on(async {
        println!(
            "{:>9} {:>9} | {:>28} | {:>28} | {:>7}",
            "value", "entries", "put mean/p50/p99 µs", "get mean/p50/p99 µs", "disk/payload"
        );
        for (len, count) in [
            (256, 10_000),
            (256, 100_000),
            (256, 1_000_000),
            (4 << 10, 10_000),
            (4 << 10, 100_000),
            (4 << 10, 250_000),
            (64 << 10, 10_000),
            (1 << 20, 1_000),
        ] {
            if only.is_none_or(|only| only == len) {
                one(&parent, len, count).await?;
            }
        }
        if only.is_none() {
            reclaim(&parent).await?;
        }
        Ok(())
    })
}

fn key(n: u64) -> Result<Key> {
    // 24 bytes, in no order.
    Key::new("", format!("key:{:020}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15)).as_bytes())
}

fn scratch(parent: &std::path::Path, clock: &Arc<SystemClock>, max_size: u64) -> (PathBuf, DiskConfig, Hold) {
    let path = parent.join(format!("tiercache-measure-{}", std::process::id()));
    let config = DiskConfig { path: Some(path.clone()), max_size, ..DiskConfig::default() };
    (path, config, Hold { now: clock.now(), stay: Stay::Forever })
}

async fn one(parent: &std::path::Path, len: usize, count: u64) -> Result<()> {
    let clock = SystemClock::start();
    let (path, config, hold) = scratch(parent, &clock, 10 << 30);
    let tier = DiskTier::open(config.clone(), clock.clone()).await?;
    let value = bytes::Bytes::from((0..len).map(|n| n as u8).collect::<Vec<_>>());
    let keys = (0..count).map(key).collect::<Result<Vec<_>>>()?;
    let mut entry = Entry::new(value, Generation::ZERO, clock.now());

    let mut puts = Vec::with_capacity(keys.len());
    let begin = Instant::now();
    for (n, key) in keys.iter().enumerate() {
        entry.generation = Generation::new(n as u64 + 1);
        let start = Instant::now();
        assert_eq!(tier.put(key, &entry, hold, &Always).await?, Put::Stored);
        puts.push(start.elapsed());
    }
    tier.sync().await?;
    let put_mean = begin.elapsed() / count as u32;

    let mut gets = Vec::with_capacity(keys.len());
    let mut waited = 0;
    let begin = Instant::now();
    for n in 0..count {
        let key = &keys[(n.wrapping_mul(0x2545_F491_4F6C_DD1D) % count) as usize];
        let start = Instant::now();
        let entry = match tier.try_get(key.as_ref()) {
            TryGet::Done(entry) => entry,
            TryGet::WouldBlock => {
                waited += 1;
                tier.get(key).await?
            }
        };
        gets.push(start.elapsed());
        assert_eq!(entry.map(|entry| entry.value.len()), Some(len));
    }
    let get_mean = begin.elapsed() / count as u32;
    tier.close().await?;
    drop(tier);
    let disk: u64 = std::fs::read_dir(&path)
        .into_iter()
        .flatten()
        .filter_map(|file| file.ok()?.metadata().ok())
        .map(|meta| meta.len())
        .sum();
    let payload = count * (len as u64 + 24);

    let begin = Instant::now();
    let tier = DiskTier::open(config.clone(), clock.clone()).await?;
    let reopened = begin.elapsed();
    assert_eq!(tier.usage().await?.entries, Some(count));
    // Killed: the footer of the last segment is not there. Its header says so as long as the level is open.
    let copy = path.with_extension("killed");
    if count == 1_000_000 {
        std::fs::rename(&path, &copy).ok();
        let begin = Instant::now();
        std::fs::create_dir(&path).ok();
        for file in std::fs::read_dir(&copy).into_iter().flatten().flatten() {
            std::fs::hard_link(file.path(), path.join(file.file_name())).ok();
        }
        std::fs::remove_file(path.join("tiercache.lock")).ok();
        let linked = begin.elapsed();
        let killed = Instant::now();
        let second = DiskTier::open(config, clock.clone()).await?;
        assert_eq!(second.usage().await?.entries, Some(count));
        println!(
            "          open of {count} entries after a kill: {:?} (links made in {linked:?})",
            killed.elapsed()
        );
        drop(second);
    }
    drop(tier);
    let (write, read) = limits(&parent.join(format!("tiercache-limits-{}", std::process::id())), len, count);
    println!(
        "{len:>9} {count:>9} | {} | {} | {:.3}   open {reopened:.1?}, write {write:.2} µs, pread + checksum {read:.2} µs{}",
        show(put_mean, puts),
        show(get_mean, gets),
        disk as f64 / payload as f64,
        if waited > 0 { format!("   {waited} gets waited") } else { String::new() },
    );
    std::fs::remove_dir_all(&path).ok();
    std::fs::remove_dir_all(&copy).ok();
    Ok(())
}

/// What the machine needs to append as many bytes in groups of 256 KiB at least, and to read and sum one value.
fn limits(path: &std::path::Path, len: usize, count: u64) -> (f64, f64) {
    use std::os::unix::fs::FileExt;
    let Ok(file) = std::fs::File::options().read(true).write(true).create_new(true).open(path) else {
        return (f64::NAN, f64::NAN);
    };
    let group = vec![7; (256 << 10) / len.min(256 << 10) * len];
    let groups = (count * len as u64 / group.len() as u64).max(1);
    let begin = Instant::now();
    for n in 0..groups {
        file.write_all_at(&group, n * group.len() as u64).ok();
    }
    let writes = groups * (group.len() / len) as u64;
    let write = begin.elapsed().as_secs_f64() * 1e6 / writes as f64;
    let begin = Instant::now();
    let mut sum = 0;
    for n in 0..count {
        let mut bytes = vec![0; len];
        let at = n.wrapping_mul(0x2545_F491_4F6C_DD1D) % writes * len as u64;
        file.read_exact_at(&mut bytes, at).ok();
        sum ^= xxhash_rust::xxh3::xxh3_64(&bytes);
    }
    std::hint::black_box(sum);
    let read = begin.elapsed().as_secs_f64() * 1e6 / count as f64;
    std::fs::remove_file(path).ok();
    (write, read)
}

/// Overwrites four times the level's size with 80 % of it live, half of which is read.
async fn reclaim(parent: &std::path::Path) -> Result<()> {
    let clock = SystemClock::start();
    let max_size = 512 << 20;
    let (path, config, hold) = scratch(parent, &clock, max_size);
    let tier = DiskTier::open(config, clock.clone()).await?;
    let live = max_size * 8 / 10 / (4096 + 59);
    let mut entry = Entry::new(vec![7; 4096], Generation::ZERO, clock.now());
    let mut puts = Vec::new();
    let begin = Instant::now();
    let mut state = 1u64;
    let count = 4 * max_size / 4155;
    for n in 0..count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let written = key((state >> 33) % live)?;
        entry.generation = Generation::new(n + 1);
        let start = Instant::now();
        tier.put(&written, &entry, hold, &Always).await?;
        puts.push(start.elapsed());
        let _ = tier.try_get(key((state >> 20) % (live / 2))?.as_ref());
    }
    let mean = begin.elapsed() / count as u32;
    let (moved, put) = tier.moved_and_put();
    println!(
        "reclaim, 80 % live, half of it read: put and get {} µs, write amplification {:.3}",
        show(mean, puts),
        1.0 + moved as f64 / put as f64
    );
    tier.close().await?;
    std::fs::remove_dir_all(&path).ok();
    Ok(())
}

fn show(mean: Duration, mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    format!("{:8.2} {:8.2} {:8.2}", mean.as_secs_f64() * 1e6, at(0.5), at(0.99))
}
