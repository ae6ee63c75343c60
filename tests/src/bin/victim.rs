//! A process with a cache, made to be killed: it does what it is told on its standard input, as much at a time as
//! comes, and says what came of it. What to expect of it is known elsewhere.
//!
//! `victim FOLDER back|behind|through adaptive|lru|tinylfu roomy|cramped`, then lines of a number and a command:
//! `set KEY VALUE TAG|- MILLISECONDS|-`, `delete KEY`, `touch KEY`, `get KEY`, `invalidate TAG`, `clear`, `settle`.
//! Answers begin with the number: `ok` or `degraded`, with the generation of a `set` or the value of a `get`;
//! `error` and why.

use std::error::Error;
use std::io::{BufRead, Write as _};
use std::sync::Arc;
use std::time::Duration;

use tiercache::disk::{DiskConfig, DiskTier};
use tiercache_core::{CacheManager, Limits, SystemClock, Tier, Write};
use tiercache_ram::{Policy, RamConfig, RamTier};
use tiercache_tests::values::{name, number, value};
use tokio::sync::mpsc;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let cache = runtime.block_on(open(&args))?;
    let (say, mut said) = mpsc::unbounded_channel::<String>();
    say.send("ready".into())?;
    let speaker = std::thread::spawn(move || {
        let mut out = std::io::stdout().lock();
        while let Some(line) = said.blocking_recv() {
            // Nobody listens any more: then it is over soon.
            if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
                return;
            }
        }
    });
    for line in std::io::stdin().lock().lines() {
        let (line, cache, say) = (line?, cache.clone(), say.clone());
        runtime.spawn(async move {
            let mut words = line.split(' ');
            let id = words.next().unwrap_or_default();
            let words: Vec<&str> = words.collect();
            let answer = perform(&cache, &words).await.unwrap_or_else(|error| format!("error {error}"));
            // Likewise.
            let _ = say.send(format!("{id} {answer}"));
        });
    }
    drop(say);
    speaker.join().map_err(|_| "the speaker panicked")?;
    Ok(())
}

async fn open(args: &[String]) -> Result<CacheManager, Failure> {
    let [folder, write, policy, room] = args else { return Err("give four arguments".into()) };
    let write = match write.as_str() {
        "back" => Write::Back,
        "behind" => Write::Behind,
        _ => Write::Through,
    };
    let policy = match policy.as_str() {
        "adaptive" => Policy::Adaptive,
        "lru" => Policy::Lru,
        _ => Policy::TinyLfu,
    };
    let (max_size, segment) = if room == "roomy" { (64 << 20, 64 << 10) } else { (192 << 10, 16 << 10) };
    let disk = DiskConfig {
        path: Some(folder.into()),
        max_size,
        segment_size: Some(segment),
        ..DiskConfig::default()
    };
    let clock = SystemClock::start();
    let dry = Arc::new(DiskTier::open(disk, clock.clone()).await?);
    let ram = |entries: u64| -> Arc<dyn Tier> {
        Arc::new(RamTier::new(RamConfig { max_size: entries * (policy.overhead() + 120), policy }))
    };
    // A machine that is busy is no reason to miss anything.
    let patient = Limits { read_timeout: Duration::from_secs(60), write_timeout: Duration::from_secs(60) };
    let builder = CacheManager::builder()
        .clock(clock)
        .hot(ram(4))
        .cold(ram(6))
        .dry(dry)
        .limits(tiercache_core::Level::Dry, patient)
        .write(write)
        .sweep_every(Duration::from_millis(5));
    Ok(builder.build().await?)
}

async fn perform(cache: &CacheManager, words: &[&str]) -> Result<String, Failure> {
    let outcome = |degraded: bool| if degraded { "degraded" } else { "ok" };
    Ok(match *words {
        ["set", key, new, tag, life] => {
            let key: u16 = key.parse()?;
            let mut set = cache.set(name(key), value(key, new.parse()?));
            if tag != "-" {
                set = set.tag("t", tag);
            }
            if life != "-" {
                set = set.ttl(Duration::from_millis(life.parse()?));
            }
            let written = set.await?;
            format!("{} {}", outcome(!written.degraded.is_empty()), written.generation.get())
        }
        ["get", key] => {
            let key: u16 = key.parse()?;
            match cache.get(name(key)).await? {
                Some(value) => format!("ok {}", number(key, &value)?),
                None => "ok -".into(),
            }
        }
        ["touch", key] => {
            cache.touch(name(key.parse()?), None).await?;
            "ok".into()
        }
        ["delete", key] => outcome(!cache.delete(name(key.parse()?)).await?.degraded.is_empty()).into(),
        ["invalidate", tag] => outcome(!cache.invalidate_tag("t", tag).await?.degraded.is_empty()).into(),
        ["clear"] => outcome(!cache.clear().await?.degraded.is_empty()).into(),
        ["settle"] => {
            cache.settle().await?;
            "ok".into()
        }
        _ => return Err(format!("no such command: {words:?}").into()),
    })
}
