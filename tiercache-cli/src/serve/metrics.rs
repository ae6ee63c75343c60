//! The statistics in the text format of Prometheus.

use std::fmt::Write as _;

use tiercache::tier::Usage;
use tiercache::{Level, Stats};

use crate::report;

/// Which of the counters may go down.
const GAUGES: [&str; 3] = ["pending_entries", "pending_bytes", "in_flight"];

/// Name, kind, help, and where it stands.
type Field = (&'static str, &'static str, &'static str, fn(&Usage) -> Option<u64>);

pub(crate) fn text(stats: &Stats) -> String {
    let mut out = String::new();
    let hits = Level::ALL.map(|level| (level.name(), stats.totals.hits[level.index()]));
    per_level(&mut out, "hits_total", "counter", "Gets that a level answered.", hits);
    let totals = &stats.totals;
    for (name, help, value) in [
        ("misses_total", "Gets that found nothing.", totals.misses),
        ("sets_total", "Values set.", totals.sets),
        ("deletes_total", "Keys deleted.", totals.deletes),
    ] {
        single(&mut out, name, "counter", help, value);
    }
    let fields: [Field; 5] = [
        ("bytes", "gauge", "Bytes a level holds.", |usage| usage.bytes),
        ("entries", "gauge", "Entries a level holds.", |usage| usage.entries),
        ("capacity_bytes", "gauge", "Bytes a level may hold.", |usage| usage.capacity),
        ("evicted_total", "counter", "Entries a level gave up for room.", |usage| Some(usage.evicted)),
        ("damaged_total", "counter", "Stored entries that were damaged and became misses.", |usage| {
            Some(usage.damaged)
        }),
    ];
    for (name, kind, help, field) in fields {
        let told =
            stats.levels.iter().filter_map(|told| Some((told.level.name(), field(told.usage.as_ref()?)?)));
        per_level(&mut out, name, kind, help, told);
    }
    let open = stats.levels.iter().map(|told| (told.level.name(), u64::from(told.breaker_open)));
    per_level(&mut out, "breaker_open", "gauge", "Whether calls are kept from a level.", open);
    for (name, value, help) in report::counters(stats) {
        if GAUGES.contains(&name) {
            single(&mut out, name, "gauge", help, value);
        } else {
            single(&mut out, &format!("{name}_total"), "counter", help, value);
        }
    }
    out
}

pub(crate) fn single(out: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    head(out, name, kind, help);
    // Writing to a string cannot fail.
    let _ = writeln!(out, "tiercache_{name} {value}");
}

fn per_level<'a>(
    out: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    values: impl IntoIterator<Item = (&'a str, u64)>,
) {
    head(out, name, kind, help);
    for (level, value) in values {
        let _ = writeln!(out, "tiercache_{name}{{level=\"{level}\"}} {value}");
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP tiercache_{name} {help}\n# TYPE tiercache_{name} {kind}");
}
