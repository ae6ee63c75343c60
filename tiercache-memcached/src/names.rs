//! Names of items, and when they expire.

use std::fmt::{Arguments, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use tiercache_core::{Generation, Key, Timestamp};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::record::Record;

/// The longest name memcached takes.
const MAX_NAME: usize = 250;
/// Up to so many seconds a time counts from now; what is more is a date.
const MONTH: u64 = 30 * 86_400;

/// The names of one level's items: `prefix:level:era:…`, of visible ASCII only.
#[derive(Debug)]
pub(crate) struct Names {
    base: String,
    /// Whether keys may not be read from names.
    hidden: bool,
}

impl Names {
    pub(crate) fn new(prefix: &str, level: &str, hidden: bool) -> Self {
        Self { base: format!("{prefix}:{level}"), hidden }
    }

    /// The one item that is not of an era.
    pub(crate) fn record(&self) -> String {
        format!("{}:record", self.base)
    }

    pub(crate) fn entry(&self, record: &Record, key: &Key) -> String {
        self.join(record, format_args!("e"), key)
    }

    /// A counter's: another one after its namespace was cleared.
    pub(crate) fn counter(&self, record: &Record, key: &Key) -> String {
        self.join(record, format_args!("c{:x}", record.cleared(key.namespace()).get()), key)
    }

    /// A lease's, which outlives eras.
    pub(crate) fn lease(&self, name: &Key) -> String {
        self.named(format_args!("{}:l", self.base), name, 0)
    }

    /// The item of the last lease's token.
    pub(crate) fn token(&self) -> String {
        format!("{}:token", self.base)
    }

    /// Namespace and key as they are with the namespace's length in front, or hashed where they are long, odd or hidden. The
    /// era seeds the hash: nobody can prepare keys that meet.
    fn join(&self, record: &Record, kind: Arguments<'_>, key: &Key) -> String {
        self.named(format_args!("{}:{:016x}:{kind}", self.base, record.era), key, record.era)
    }

    fn named(&self, head: Arguments<'_>, key: &Key, seed: u64) -> String {
        let namespace = key.namespace();
        let mut name = String::with_capacity(MAX_NAME);
        // A text takes what is written to it.
        let _ = name.write_fmt(head);
        let plain = |bytes: &[u8]| bytes.iter().all(u8::is_ascii_graphic);
        if !self.hidden && plain(namespace.as_bytes()) && plain(key.bytes()) {
            let begun = name.len();
            let _ = write!(name, ":{}:{namespace}:{}", namespace.len(), key.display());
            if name.len() <= MAX_NAME {
                return name;
            }
            name.truncate(begun);
        }
        let _ = write!(name, ":#{:032x}", xxh3_128_with_seed(key.encoded(), seed));
        name
    }
}

/// The flag that makes an item expire at `until`, and never before.
pub(crate) fn expiry(until: Timestamp, now: Timestamp) -> String {
    if until.is_never() {
        return "T0".to_owned();
    }
    let date = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    format!("T{}", seconds(until.since(now).as_millis(), date))
}

/// One more than asked for: the server's seconds begin when they like, and 0 would be never. Dates that do not fit
/// its 32 bits would lie in the past: what lives until then lives as long as it can.
fn seconds(millis: u128, date: u64) -> u64 {
    let seconds = u64::try_from(millis.div_ceil(1_000)).unwrap_or(u64::MAX).saturating_add(1);
    match seconds {
        0..=MONTH => seconds,
        _ => Some(date.saturating_add(seconds)).filter(|&date| date < i32::MAX as u64).unwrap_or(0),
    }
}

/// A generation in the 32 bits a client may keep beside an item: exact below 2³¹, from there on to 2¹⁷. Higher
/// generations never have lower flags.
pub(crate) fn flags(generation: Generation) -> u32 {
    const COARSE: u32 = 1 << 31;
    match u32::try_from(generation.get()) {
        Ok(exact) if exact < COARSE => exact,
        // 48 bits less 17 are 31.
        _ => COARSE | (generation.get().min(Generation::MAX.get()) >> 17) as u32,
    }
}

/// The generation of such flags, where they are exact.
pub(crate) fn exact(flags: u32) -> Option<Generation> {
    (flags < 1 << 31).then(|| Generation::new(flags.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: u64 = 1_800_000_000;

    #[test]
    fn times_turn_into_dates_at_thirty_days_and_into_never_where_dates_end() {
        for (millis, given) in [
            (0, 1),
            (1, 2),
            (999, 2),
            (1_000, 2),
            (1_001, 3),
            (u128::from(MONTH - 1) * 1_000, MONTH),
            (u128::from(MONTH) * 1_000, DATE + MONTH + 1),
            (u128::from(MONTH) * 1_000 + 1, DATE + MONTH + 2),
            (10 * 365 * 86_400 * 1_000, DATE + 10 * 365 * 86_400 + 1),
            (12 * 365 * 86_400 * 1_000, 0),
            (u128::from(u64::MAX), 0),
        ] {
            assert_eq!(seconds(millis, DATE), given, "{millis}");
        }
        assert_eq!(expiry(Timestamp::NEVER, Timestamp::EPOCH), "T0");
    }

    #[test]
    fn names_are_visible_short_and_of_one_key_each() {
        let names = Names::new("tiercache", "cold", false);
        let mut record = Record::default();
        record.era = 7;
        let name = |namespace: &str, bytes: &[u8]| names.entry(&record, &Key::new(namespace, bytes).unwrap());
        assert_eq!(name("", b"user:42"), "tiercache:cold:0000000000000007:e:0::user:42");
        assert_eq!(name("shop", b"a"), "tiercache:cold:0000000000000007:e:4:shop:a");
        let (long, odd) = (name("", &[b'k'; 251]), name("", b"a b\r\n\xff"));
        for hashed in [&long, &odd] {
            assert!(hashed.contains(":e:#") && hashed.len() <= MAX_NAME, "{hashed}");
            assert!(hashed.bytes().all(|byte| byte.is_ascii_graphic()));
        }
        assert_ne!(name("a", b"b:c"), name("a:b", b"c"));
        assert_ne!(name("", b"a"), names.counter(&record, &Key::new("", b"a").unwrap()));
        let longest = Names::new(&"p".repeat(100), "cold", true);
        assert!(longest.counter(&record, &Key::new("n", &[b'k'; 16_384]).unwrap()).len() <= MAX_NAME);
    }

    #[test]
    fn flags_order_generations() {
        let marks = [0, 1, (1 << 31) - 1, 1 << 31, (1 << 31) + (1 << 17), 1 << 40, Generation::MAX.get()];
        let flags = marks.map(|generation| flags(Generation::new(generation)));
        assert!(flags.is_sorted(), "{flags:?}");
        assert_eq!(flags[..3], [0, 1, (1 << 31) - 1]);
        assert!(flags[3] < flags[4] && flags[4] < flags[5]);
    }
}
