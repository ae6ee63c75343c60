//! Generated histories against the reference model: `torture [--histories N] [--seed S]`.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tiercache_tests::sim::{self, Failure};

const USAGE: &str = "torture [--histories N] [--seed S]";
/// Between two lines of progress where there is no terminal to draw on.
const PAUSE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let (first, count) = match arguments() {
        Ok(arguments) => arguments,
        Err(wrong) => {
            eprintln!("{wrong}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let started = Instant::now();
    let run = Run {
        end: first.saturating_add(count),
        next: AtomicU64::new(first),
        done: AtomicU64::new(0),
        operations: AtomicU64::new(0),
        hits: AtomicU64::new(0),
        failed: Mutex::default(),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(|| run.work(|_| {}))).collect();
        let mut shown = started;
        let drawn = std::io::stderr().is_terminal();
        run.work(|done| {
            let pause = if drawn { Duration::from_millis(200) } else { PAUSE };
            if shown.elapsed() >= pause {
                shown = Instant::now();
                progress(drawn, done, count, started.elapsed());
            }
        });
        others.into_iter().for_each(|other| drop(other.join()));
        if drawn {
            eprintln!();
        }
    });
    if let Some((seed, failure)) = run.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        eprintln!("seed {seed}: {}\n{}\ndecisions: {:?}", failure.reason, failure.log, failure.decisions);
        return ExitCode::FAILURE;
    }
    let done = run.done.into_inner();
    println!(
        "{done} histories from seed {first} in {:.0?}: {} operations, {} hits, no promise broken",
        started.elapsed(),
        run.operations.into_inner(),
        run.hits.into_inner(),
    );
    // Fewer than asked for means that a thread died: the panic has been printed.
    if done == count { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Run {
    end: u64,
    next: AtomicU64,
    done: AtomicU64,
    operations: AtomicU64,
    hits: AtomicU64,
    failed: Mutex<Option<(u64, Box<Failure>)>>,
}

impl Run {
    fn work(&self, mut each: impl FnMut(u64)) {
        loop {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.end {
                return;
            }
            match sim::run_seed(seed) {
                Ok(tally) => {
                    self.operations.fetch_add(tally.operations, Ordering::Relaxed);
                    self.hits.fetch_add(tally.hits, Ordering::Relaxed);
                    each(self.done.fetch_add(1, Ordering::Relaxed) + 1);
                }
                Err(failure) => {
                    self.next.store(self.end, Ordering::Relaxed);
                    let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                    failed.get_or_insert((seed, failure));
                    return;
                }
            }
        }
    }
}

fn progress(drawn: bool, done: u64, count: u64, elapsed: Duration) {
    let rate = done as f64 / elapsed.as_secs_f64().max(0.001);
    let left = Duration::from_secs_f64((count - done) as f64 / rate.max(0.001));
    let line = format!("{done} of {count} histories, {rate:.0} a second, {left:.0?} left");
    let mut stderr = std::io::stderr();
    // A closed terminal is no reason to stop.
    let _ = if drawn { write!(stderr, "\r\x1b[K{line}") } else { writeln!(stderr, "{line}") };
    let _ = stderr.flush();
}

/// The first seed and how many.
fn arguments() -> Result<(u64, u64), String> {
    let (mut first, mut count) = (1, 100_000);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let (name, given) = match argument.split_once('=') {
            Some((name, value)) => (name.to_string(), Some(value.to_string())),
            None => (argument, None),
        };
        let slot = match name.as_str() {
            "--histories" => &mut count,
            "--seed" => &mut first,
            other => return Err(format!("unknown argument `{other}`")),
        };
        let value = given.or_else(|| arguments.next()).ok_or_else(|| format!("{name} needs a number"))?;
        *slot = value.parse().map_err(|_| format!("{name}: `{value}` is not a number"))?;
    }
    Ok((first, count))
}
