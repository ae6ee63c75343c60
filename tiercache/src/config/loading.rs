//! The section `loading`: how many loads run at once, and what they do unless they are told otherwise.

use std::time::Duration;

use serde_json::json;
use tiercache_core::lease::LONGEST_TERM;
use tiercache_core::{Builder, Retune};

use super::error::Problem;
use super::node::Node;
use super::read::File;
use crate::units;

const KEYS: [&str; 4] = ["max_loads", "max_refreshes", "lease", "jitter"];
/// More than any machine runs at once, and few enough to be counted.
const MOST: f64 = 1_000_000.0;

/// What the file says, defaults included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loading {
    max_loads: usize,
    max_refreshes: usize,
    lease: Option<Duration>,
    jitter: f32,
}

impl Default for Loading {
    fn default() -> Self {
        Self { max_loads: 1_000, max_refreshes: 64, lease: None, jitter: 0.0 }
    }
}

impl Loading {
    pub(crate) fn build(self, builder: Builder) -> Builder {
        let builder = builder.max_loads(self.max_loads).max_refreshes(self.max_refreshes);
        let builder = builder.load_jitter(self.jitter);
        match self.lease {
            Some(term) => builder.load_lease(term),
            None => builder,
        }
    }

    pub(crate) fn retune(self, retune: Retune) -> Retune {
        retune
            .max_loads(self.max_loads)
            .max_refreshes(self.max_refreshes)
            .load_lease(self.lease)
            .load_jitter(self.jitter)
    }
}

impl File<'_> {
    pub(super) fn loading(&mut self) -> Loading {
        let mut loading = Loading::default();
        let section = self.key("loading").cloned();
        let entries = section.as_ref().and_then(|section| self.note(section.entries())).unwrap_or_default();
        for (key, value) in entries {
            let read = match key.name.as_str() {
                "max_loads" => number(value, 1).map(|loads| loading.max_loads = loads),
                "max_refreshes" => number(value, 0).map(|refreshes| loading.max_refreshes = refreshes),
                "lease" => term(value).map(|term| loading.lease = term),
                "jitter" => share(value).map(|share| loading.jitter = share),
                name => Err(Problem::new(key.at, value.path.clone(), Problem::UNKNOWN_KEY).among(name, KEYS)),
            };
            self.note(read);
        }
        let Loading { max_loads, max_refreshes, lease, jitter } = loading;
        let shown = json!({
            "max_loads": max_loads,
            "max_refreshes": max_refreshes,
            "lease": lease.map(units::format_duration),
            "jitter": (f64::from(jitter) * 1e6).round() / 1e6,
        });
        self.effective.insert("loading".into(), shown);
        loading
    }
}

fn number(value: &Node, least: u32) -> Result<usize, Problem> {
    let wanted = || format!("a whole number from {least} to {MOST}");
    let number = value.float().map_err(|problem| problem.allowed(wanted()))?;
    if number.fract() != 0.0 || !(f64::from(least)..=MOST).contains(&number) {
        return Err(value.not(wanted()));
    }
    Ok(number as usize)
}

fn term(value: &Node) -> Result<Option<Duration>, Problem> {
    let wanted = format!("{}, a day at most, or null for no lease", units::DURATION_FORM);
    if value.is_null() {
        return Ok(None);
    }
    let term = value.duration().map_err(|problem| problem.allowed(wanted.clone()))?;
    if term > LONGEST_TERM { Err(value.not(wanted)) } else { Ok(Some(term)) }
}

fn share(value: &Node) -> Result<f32, Problem> {
    let wanted = "a share from 0 to 1, such as `0.1`";
    let share = value.float().map_err(|problem| problem.allowed(wanted))?;
    if (0.0..=1.0).contains(&share) { Ok(share as f32) } else { Err(value.not(wanted)) }
}
