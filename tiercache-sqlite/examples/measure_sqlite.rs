//! What a put and a get take: `cargo run --release -p tiercache-sqlite --example measure_sqlite`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tiercache_core::tier::{Always, Hold};
use tiercache_core::{Clock, Entry, Generation, Key, Result, Stay, SystemClock, Tier};
use tiercache_sqlite::{SqliteConfig, SqliteTier};

/// Calls under way at a time.
const TOGETHER: [usize; 3] = [1, 16, 64];

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    println!(
        "| value | together | put µs p50 / p99 | puts per s | get µs p50 / p99 | gets per s | disk ÷ key + value |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (name, size, count) in
        [("256 B", 256, 40_000), ("4 KiB", 4 << 10, 20_000), ("64 KiB", 64 << 10, 2_000)]
    {
        for together in TOGETHER {
            let path = std::env::temp_dir().join(format!("tiercache-sqlite-measure-{}", std::process::id()));
            let clock = SystemClock::start();
            let config = SqliteConfig { path: Some(path.clone()), ..SqliteConfig::default() };
            let tier = Arc::new(SqliteTier::open(config, clock.clone()).await?);
            let now = clock.now();
            let count = if together == 1 { count / 8 } else { count };
            let puts = run(&tier, together, count, move |tier, n| async move {
                let entry = Entry::new(vec![n as u8; size], Generation::new(n + 1), now);
                tier.put(&key(n), &entry, Hold { now, stay: Stay::Forever }, &Always).await.map(drop)
            })
            .await?;
            let gets = run(&tier, together, count, move |tier, n| async move {
                let found = tier.get(&key(n.wrapping_mul(7_919) % count)).await?;
                assert!(found.is_some(), "what was put is there");
                Ok(())
            })
            .await?;
            tier.close().await?;
            let report = SqliteTier::inspect(&path)?;
            let ratio = report.file_bytes as f64 / (count * (24 + size as u64)) as f64;
            println!("| {name} | {together} | {puts} | {gets} | {ratio:.2} |");
            let _ = std::fs::remove_dir_all(path);
        }
    }
    Ok(())
}

fn key(n: u64) -> Key {
    Key::new("", format!("key number {n:013}").as_bytes()).expect("a valid key")
}

async fn run<F: Future<Output = Result<()>> + Send + 'static>(
    tier: &Arc<SqliteTier>,
    together: usize,
    count: u64,
    call: impl Fn(Arc<SqliteTier>, u64) -> F + Clone + Send + 'static,
) -> Result<String> {
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for first in 0..together as u64 {
        let (tier, call) = (tier.clone(), call.clone());
        tasks.spawn(async move {
            let mut took = Vec::new();
            for n in (first..count).step_by(together) {
                let began = Instant::now();
                call(tier.clone(), n).await?;
                took.push(began.elapsed());
            }
            Ok(took)
        });
    }
    let mut took: Vec<Duration> = Vec::new();
    while let Some(task) = tasks.join_next().await {
        took.extend(task.expect("no task panics")?);
    }
    let rate = count as f64 / began.elapsed().as_secs_f64();
    took.sort();
    let micros = |part: usize| took[took.len() * part / 100].as_secs_f64() * 1e6;
    Ok(format!("{:.0} / {:.0} | {:.0}", micros(50), micros(99), rate))
}
