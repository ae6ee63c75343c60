//! How many events a second each store records, in batches of 1,000, and how long its answers take.
//!
//! `cargo run --release -p tiercache-tracking --example measure [RECORDS]`

use std::time::{Duration, Instant};

use tiercache_core::tier::Scope;
use tiercache_core::tracking::{Event, Query, Record, What};
use tiercache_core::{Generation, Key, Level, Result, Tags, Timestamp, Tracking};
use tiercache_tracking::MemoryTracking;

const BATCH: u64 = 1_000;
const AT: Timestamp = Timestamp::from_millis(1_700_000_000_000);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let records = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(200_000);
    println!("{records} records, a tenth of them tagged, batches of {BATCH}");
    measure(&MemoryTracking::default(), records).await?;
    #[cfg(feature = "sqlite")]
    {
        use tiercache_tracking::{SqliteConfig, SqliteTracking};
        let folder = tempfile::TempDir::new()
            .map_err(|error| tiercache_core::Error::unavailable("sqlite", "make a folder", error))?;
        let path = folder.path().join("index.db");
        measure(&SqliteTracking::open(SqliteConfig { path: path.clone() }).await?, records).await?;
        // Dropped without closing: the next to open checks the whole.
        let begun = Instant::now();
        let again = SqliteTracking::open(SqliteConfig { path: path.clone() }).await?;
        let bytes = path.metadata().map_or(0, |found| found.len());
        println!("  {:<44}{:>10.1?}", "open and check after no close", begun.elapsed());
        println!("  {:<44}{:>10.1} MB", "file", bytes as f64 / 1e6);
        again.close().await?;
    }
    Ok(())
}

async fn measure(tracking: &dyn Tracking, records: u64) -> Result<()> {
    println!("{}", tracking.name());
    let shuffled = |n: u64| n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % records;
    write(tracking, "stored, new", records, stored).await?;
    write(tracking, "stored, replacing", records, |n| stored(shuffled(n))).await?;
    write(tracking, "used", records, |n| What::Used { key: key(shuffled(n)), hits: 1 }).await?;
    write(tracking, "moved", records, |n| What::Moved {
        key: key(shuffled(n)),
        generation: Generation::MAX,
        to: Some(Level::ALL[n as usize % 3]),
    })
    .await?;

    read(tracking, "lookup", None).await?;
    let tagged = |value: &str| Query { tags: Tags::from([("type".into(), value.into())]), ..Query::all() };
    let prefixed = Query { namespace: Some(String::new()), prefix: b"item:00017".to_vec(), ..Query::all() };
    for (what, query) in [
        ("page of 100, everything", Query::all()),
        ("page of 100, by prefix", prefixed),
        ("page of 100, by level", Query { level: Some(Level::Dry), ..Query::all() }),
        ("page of 100, by a tag of few", tagged("rare")),
        ("page of 100, by a tag of a tenth", tagged("image")),
        ("page of 100, by a size of few", Query { min_size: Some(records - 50), ..Query::all() }),
        ("page of 100, by a glob of few", Query { glob: Some("*0012*".into()), ..Query::all() }),
    ] {
        read(tracking, what, Some(query)).await?;
    }

    let begun = Instant::now();
    let scope = Scope::Tag { namespace: String::new(), name: "type".into(), value: "image".into() };
    let what = What::Invalidated { scope, generation: Generation::MAX };
    tracking.record(&[Event { at: AT, what }]).await?;
    println!("  {:<44}{:>10.1?}", "invalidated, the tag of a tenth", begun.elapsed());
    Ok(())
}

async fn write(tracking: &dyn Tracking, what: &str, count: u64, event: impl Fn(u64) -> What) -> Result<()> {
    let mut spent = Duration::ZERO;
    for batch in 0..count / BATCH {
        let numbers = batch * BATCH..(batch + 1) * BATCH;
        let events: Vec<_> = numbers.map(|n| Event { at: AT, what: event(n) }).collect();
        let begun = Instant::now();
        tracking.record(&events).await?;
        spent += begun.elapsed();
    }
    println!("  {what:<44}{:>10.0} events/s", (count / BATCH * BATCH) as f64 / spent.as_secs_f64());
    Ok(())
}

/// The median of a hundred answers.
async fn read(tracking: &dyn Tracking, what: &str, query: Option<Query>) -> Result<()> {
    let mut times = Vec::new();
    for n in 0..100 {
        let begun = Instant::now();
        let found = match &query {
            None => usize::from(tracking.lookup(&key(n * 7)).await?.is_some()),
            Some(query) => tracking.find(query, None, 100).await?.len(),
        };
        times.push((begun.elapsed(), found));
    }
    times.sort_unstable();
    let (median, found) = times[50];
    println!("  {what:<44}{median:>10.1?} for {found}");
    Ok(())
}

fn key(n: u64) -> Key {
    Key::new("", format!("item:{n:09}").as_bytes()).expect("a valid key")
}

fn stored(n: u64) -> What {
    let tags = match n {
        n if n % 1_000 == 0 => Tags::from([("type".into(), "rare".into())]),
        n if n % 10 == 0 => {
            Tags::from([("type".into(), "image".into()), ("size".into(), (n % 70).to_string())])
        }
        _ => Tags::new(),
    };
    What::Stored(Record {
        key: key(n),
        generation: Generation::new(n),
        level: Level::Hot,
        size: n,
        created: AT.after_millis(n),
        used: AT,
        deadline: Timestamp::NEVER,
        hits: 0,
        tags,
    })
}
