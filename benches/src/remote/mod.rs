//! `bench remote`: what a level in another process costs over its client alone, on loopback, and what batches save.
//!
//! One call at a time on a runtime of one thread, ours and the client's in turns on the same keys, so that both see the same
//! machine. A figure is the median of the p50s of several rounds, a ratio the median of the rounds' ratios. A batch of 100 is
//! compared with 100 single calls, one after the other, of the same tier.
//!
//! A round trip on loopback takes three times as long when the thread that serves it sleeps on another core and has to be
//! woken there, and for each connection it is chance which core that is. So, against a server of its own, the calls, those of
//! the bare client and the server are kept on one core: a round trip costs both sides the same, and little, so that what
//! is added shows most. For batches against single calls the caller moves to another core than the server's, since there a
//! round trip has to cost what waking somebody costs, as it does over a network. SQLite works on threads of this process and
//! a call to S3 takes milliseconds: they are left where the system puts them.

#[cfg(target_os = "linux")]
mod cores;
mod databases;
mod memcached;
mod redis;
mod s3;

use std::time::{Duration, Instant};

use bytes::Bytes;
#[cfg(target_os = "linux")]
use cores::Cores;
use tiercache_core::tier::{Always, Hold, Put, PutItem};
use tiercache_core::{Clock, Entry, Generation, Key, Stay, SystemClock, Tier};

use crate::Options;
use crate::allocations;
use crate::keys::{Random, key};
use crate::measure::{Row, median};

const ROUNDS: usize = 7;
/// Keys that are written and read again and again.
const KEYS: usize = 512;
/// Keys of a batch.
const BATCH: usize = 100;
/// Bytes of a value, unless a case says otherwise.
const VALUE: usize = 1_024;

pub(crate) fn run(options: &Options) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime of one thread").block_on(async {
        redis::run(options).await;
        memcached::run(options).await;
        databases::run(options).await;
        s3::run(options).await;
    });
}

/// Elsewhere the system puts everything where it likes.
#[cfg(not(target_os = "linux"))]
struct Cores;

#[cfg(not(target_os = "linux"))]
impl Cores {
    fn one() -> Self {
        Self
    }

    fn apart(&self) {}
}

/// What is asked for of one backend and size.
struct Bench<'a> {
    options: &'a Options,
    backend: &'static str,
    /// The client it is compared with, unless a case has several.
    client: &'static str,
    size: String,
    /// Calls of each in a round.
    calls: usize,
}

impl Bench<'_> {
    /// Measures one after the other in turns; each is told the number of the call.
    async fn compare(&self, case: &str, ours: impl AsyncFnMut(usize), mut raw: impl AsyncFnMut(usize)) {
        self.compare_with(case, &[self.client], ours, async |_, number| raw(number).await).await;
    }

    /// Likewise with several clients: `theirs` is told which of them calls, and the number of the call.
    async fn compare_with(
        &self,
        case: &str,
        clients: &[&str],
        mut ours: impl AsyncFnMut(usize),
        mut theirs: impl AsyncFnMut(usize, usize),
    ) {
        if !self.wants(case) {
            return;
        }
        let contenders: Vec<&str> = [&[self.backend], clients].concat();
        let mut call = async |contender: usize, number: usize| match contender.checked_sub(1) {
            None => ours(number).await,
            Some(client) => theirs(client, number).await,
        };
        for number in 0..self.calls.div_ceil(4) {
            for contender in 0..contenders.len() {
                call(contender, number).await;
            }
        }
        let (mut rounds, mut allocs) = (Vec::new(), vec![0; contenders.len()]);
        for round in 0..ROUNDS {
            let mut times = vec![Vec::new(); contenders.len()];
            for number in round * self.calls..(round + 1) * self.calls {
                for (contender, (times, allocs)) in times.iter_mut().zip(&mut allocs).enumerate() {
                    let (begun, allocated) = (Instant::now(), allocations::count());
                    call(contender, number).await;
                    let took = begun.elapsed();
                    *allocs += allocations::count() - allocated;
                    times.push(took);
                }
            }
            rounds.push(times.into_iter().map(p50).collect::<Vec<f64>>());
        }
        let ratio = |client: usize| median(rounds.iter().map(|times| times[0] / times[client]));
        let ratios = (1..).zip(clients).map(|(at, client)| format!("{:.2} × {client}", ratio(at)));
        let mut note = ratios.collect::<Vec<_>>().join(", ");
        let calls = (ROUNDS * self.calls) as f64;
        for (at, contender) in contenders.into_iter().enumerate() {
            let (p50, allocs) = (median(rounds.iter().map(|times| times[at])), allocs[at] as f64 / calls);
            self.row(case, contender, p50, allocs, std::mem::take(&mut note));
        }
    }

    fn wants(&self, case: &str) -> bool {
        self.options.wants("case", case)
    }

    fn row(&self, case: &str, contender: &str, ns_per_op: f64, allocs_per_op: f64, note: String) {
        let row = Row {
            bench: "remote",
            case: case.to_owned(),
            contender: contender.to_owned(),
            threads: 1,
            keys: self.size.clone(),
            ns_per_op,
            allocs_per_op,
            note,
        };
        row.print(self.options.json);
    }

    /// A batch against as many single calls, per key.
    async fn batches(&self, tier: &dyn Tier, writer: &Writer) {
        let calls = self.calls.div_ceil(BATCH).max(3);
        let single = Bench { client: "singly", calls, size: self.size.clone(), ..*self };
        let keys: Vec<Key> = writer.keys[..BATCH].to_vec();
        single
            .compare_each(
                "get_100",
                async |_| {
                    for found in tier.get_many(&keys).await {
                        assert!(found.expect("a get").is_some(), "it is there");
                    }
                },
                async |_| {
                    for key in &keys {
                        assert!(tier.get(key).await.expect("a get").is_some(), "it is there");
                    }
                },
            )
            .await;
        single
            .compare_each(
                "put_100",
                async |_| {
                    let entries: Vec<Entry> = keys.iter().map(|_| writer.next()).collect();
                    let item = |(key, entry)| PutItem { key, entry, hold: writer.hold, permit: &Always };
                    let items: Vec<PutItem<'_>> = keys.iter().zip(&entries).map(item).collect();
                    for put in tier.put_many(&items).await {
                        assert_eq!(put.expect("a put"), Put::Stored);
                    }
                },
                async |_| {
                    for key in &keys {
                        writer.put(tier, key).await;
                    }
                },
            )
            .await;
        single
            .compare_each(
                "remove_100",
                async |_| {
                    let below = writer.next().generation;
                    let items: Vec<_> = keys.iter().map(|key| (key.clone(), below)).collect();
                    for removed in tier.remove_many(&items).await {
                        assert!(removed.expect("a removal").is_done());
                    }
                },
                async |_| {
                    for key in &keys {
                        let removed = tier.remove(key, writer.next().generation).await;
                        assert!(removed.expect("a removal").is_done());
                    }
                },
            )
            .await;
    }

    /// As [`Bench::compare`] with calls of [`BATCH`] keys, told per key.
    async fn compare_each(
        &self,
        case: &str,
        mut ours: impl AsyncFnMut(usize),
        mut singly: impl AsyncFnMut(usize),
    ) {
        if !self.wants(case) {
            return;
        }
        ours(0).await;
        let mut rounds = Vec::new();
        for round in 0..ROUNDS {
            let mut times = [Vec::new(), Vec::new()];
            for call in 0..self.calls {
                let begun = Instant::now();
                ours(round * self.calls + call).await;
                times[0].push(begun.elapsed());
                let begun = Instant::now();
                singly(round * self.calls + call).await;
                times[1].push(begun.elapsed());
            }
            rounds.push(times.map(|times| p50(times) / BATCH as f64));
        }
        let times = median(rounds.iter().map(|[ours, singly]| singly / ours));
        let batch = median(rounds.iter().map(|[ours, _]| *ours));
        self.row(case, self.backend, batch, f64::NAN, format!("{times:.1} × as fast as singly"));
        let singly = median(rounds.iter().map(|[_, singly]| *singly));
        self.row(case, &format!("{}-singly", self.backend), singly, f64::NAN, String::new());
    }
}

/// What is put: always the next generation.
struct Writer {
    keys: Vec<Key>,
    names: Vec<String>,
    value: Bytes,
    hold: Hold,
    generation: std::sync::atomic::AtomicU64,
}

impl Writer {
    fn new(keys: usize, size: usize) -> Self {
        let names: Vec<String> = (0..keys).map(key).collect();
        let mut random = Random::new(7);
        Self {
            keys: names.iter().map(|name| Key::new("", name.as_bytes()).expect("a key")).collect(),
            names,
            // What does not compress, in case somebody tries.
            value: Bytes::from((0..size).map(|_| random.next() as u8).collect::<Vec<_>>()),
            hold: Hold { now: SystemClock::start().now(), stay: Stay::Forever },
            generation: std::sync::atomic::AtomicU64::new(0),
        }
    }

    fn key(&self, number: usize) -> &Key {
        &self.keys[number % self.keys.len()]
    }

    fn name(&self, number: usize) -> &str {
        &self.names[number % self.names.len()]
    }

    fn next(&self) -> Entry {
        let generation = self.generation.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        Entry::new(self.value.clone(), Generation::new(generation), self.hold.now)
    }

    async fn put(&self, tier: &dyn Tier, key: &Key) {
        let put = tier.put(key, &self.next(), self.hold, &Always).await;
        assert_eq!(put.expect("a put"), Put::Stored);
    }

    async fn fill(&self, tier: &dyn Tier) {
        for key in &self.keys {
            self.put(tier, key).await;
        }
    }

    async fn found(&self, tier: &dyn Tier, number: usize) {
        let found = tier.get(self.key(number)).await.expect("a get").expect("it was put");
        assert_eq!(found.value.len(), self.value.len());
    }
}

fn p50(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_nanos() as f64
}

/// Says that there is nothing to measure against.
fn skipped(backend: &str) {
    eprintln!("{backend}: no server here, left out");
}
