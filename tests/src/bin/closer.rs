//! A program that fills a small cache with 100 values and ends in an orderly way when it is told to:
//! `closer FOLDER async` on SIGTERM, `closer FOLDER blocking` when its standard input ends.

use std::error::Error;
use std::io::{Read, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tiercache::disk::{DiskConfig, DiskTier};
use tiercache_core::{BlockingCache, Builder, CacheManager, CloseReport, SystemClock};
use tiercache_ram::{Policy, RamConfig, RamTier};
use tiercache_tests::values::{name, value};
use tokio::signal::unix::{SignalKind, signal};

type Failure = Box<dyn Error + Send + Sync>;

const DEADLINE: Duration = Duration::from_secs(10);

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().ok_or("give a folder")?);
    let report = match args.next().as_deref() {
        Some("async") => {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(in_a_runtime(folder))?
        }
        _ => without_one(folder)?,
    };
    say(&report.to_string())?;
    if report.is_clean() { Ok(()) } else { Err("not everything was kept".into()) }
}

async fn in_a_runtime(folder: PathBuf) -> Result<CloseReport, Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let cache = builder(folder)?.build().await?;
    for number in 0..100 {
        cache.set(name(number), value(number, number.into())).await?;
    }
    for number in 0..100 {
        let found = cache.get(name(number)).await?;
        if found != Some(value(number, number.into())) {
            return Err(format!("key {number} is not there").into());
        }
    }
    say("ready")?;
    terminate.recv().await;
    Ok(cache.close(DEADLINE).await?)
}

fn without_one(folder: PathBuf) -> Result<CloseReport, Failure> {
    let cache = BlockingCache::build(builder(folder)?)?;
    for number in 0..100 {
        cache.set(name(number), value(number, number.into()))?;
    }
    for number in 0..100 {
        if cache.get(name(number))? != Some(value(number, number.into())) {
            return Err(format!("key {number} is not there").into());
        }
    }
    say("ready")?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(cache.close(DEADLINE)?)
}

/// A hot level for five entries over the disk.
fn builder(folder: PathBuf) -> Result<Builder, Failure> {
    let clock = SystemClock::start();
    let policy = Policy::Adaptive;
    let hot = RamTier::new(RamConfig { max_size: 5 * (policy.overhead() + 120), policy });
    let config = DiskConfig { path: Some(folder), max_size: 64 << 20, ..DiskConfig::default() };
    let dry = DiskTier::open_blocking(config, clock.clone())?;
    Ok(CacheManager::builder().clock(clock).hot(Arc::new(hot)).dry(Arc::new(dry)))
}

fn say(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}
