//! Clocks, medians and the lines of a result.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::allocations;

/// A pass that has begun.
pub(crate) struct Begun {
    allocated: u64,
    cpu: Duration,
    wall: Instant,
}

impl Begun {
    /// Its end, after that many operations.
    pub(crate) fn end(self, operations: usize) -> Pass {
        Pass {
            operations: operations as u64,
            wall: self.wall.elapsed(),
            cpu: thread_time() - self.cpu,
            allocations: allocations::count() - self.allocated,
        }
    }
}

/// What one pass of many operations took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pass {
    pub(crate) operations: u64,
    pub(crate) wall: Duration,
    /// Of this thread: what the neighbours take does not count.
    pub(crate) cpu: Duration,
    pub(crate) allocations: u64,
}

impl Pass {
    /// Measures `work`, which tells how many operations it did.
    pub(crate) fn of(work: impl FnOnce() -> usize) -> Self {
        let begun = Self::begin();
        let operations = work();
        begun.end(operations)
    }

    /// A pass that begins on this thread.
    pub(crate) fn begin() -> Begun {
        Begun { allocated: allocations::count(), cpu: thread_time(), wall: Instant::now() }
    }

    pub(crate) fn cpu_ns(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.operations.max(1) as f64
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.wall += other.wall;
        self.cpu += other.cpu;
        self.allocations += other.allocations;
    }

    pub(crate) fn wall_ns(&self) -> f64 {
        self.wall.as_nanos() as f64 / self.operations.max(1) as f64
    }

    pub(crate) fn allocations_each(&self) -> f64 {
        self.allocations as f64 / self.operations.max(1) as f64
    }
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The middle one.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The least one.
pub(crate) fn least(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(f64::INFINITY, f64::min)
}

/// A line of the result.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) bench: &'static str,
    pub(crate) case: String,
    pub(crate) contender: String,
    pub(crate) threads: usize,
    pub(crate) keys: String,
    pub(crate) ns_per_op: f64,
    pub(crate) allocs_per_op: f64,
    /// For the reader of the table.
    pub(crate) note: String,
}

impl Row {
    pub(crate) fn print(&self, as_json: bool) {
        if as_json {
            let line = json!({
                "bench": self.bench,
                "case": self.case,
                "contender": self.contender,
                "threads": self.threads,
                "keys": self.keys,
                "ns_per_op": (self.ns_per_op * 10.0).round() / 10.0,
                "allocs_per_op": (self.allocs_per_op * 1000.0).round() / 1000.0,
            });
            println!("{line}");
        } else {
            println!(
                "{:<10} {:>6} {:>2}  {:<20} {:>10.1} ns {:>7.2} allocations  {}",
                self.case,
                self.keys,
                self.threads,
                self.contender,
                self.ns_per_op,
                self.allocs_per_op,
                self.note
            );
        }
    }
}
