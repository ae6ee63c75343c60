//! On which cores the calling thread runs, and with it every server it starts.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The cores of a comparison; where the thread ran before is where it runs again when this is dropped.
pub(super) struct Cores {
    before: Option<CpuSet>,
    other: Option<CpuSet>,
}

impl Cores {
    /// Keeps this thread, and what it starts from now on, on one core.
    pub(super) fn one() -> Self {
        let Ok(before) = sched_getaffinity(None) else {
            eprintln!(
                "which cores there are is not known: nothing is kept on one, and the figures vary with chance"
            );
            return Self { before: None, other: None };
        };
        let mut allowed = (0..CpuSet::MAX_CPU).filter(|&core| before.is_set(core)).map(only);
        let (first, other) = (allowed.next(), allowed.next());
        if let Some(first) = first {
            keep_on(&first);
        }
        Self { before: Some(before), other }
    }

    /// Moves this thread, and no server it has started, to another core.
    pub(super) fn apart(&self) {
        match &self.other {
            Some(other) => keep_on(other),
            None => eprintln!("there is but one core: single calls are cheaper here than over a network"),
        }
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            keep_on(before);
        }
    }
}

fn only(core: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(core);
    set
}

fn keep_on(cores: &CpuSet) {
    sched_setaffinity(None, cores).expect("cores that this thread may run on");
}
