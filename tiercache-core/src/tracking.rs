//! Memory of where keys are and how they are used, kept outside the tiers.

use std::fmt;

use async_trait::async_trait;

use crate::{Entry, Generation, Key, Leasing, Level, Result, Tags, Timestamp};

/// Remembers placement and use of every key. It may lag behind the tiers, and its failure never fails a cache call.
///
/// # Contract
/// Every line is a case of the suite in `testing::tracking`.
/// - `record` applies its events in order, all or none of them.
/// - An event whose generation is below that of the record it meets changes nothing but totals.
/// - [`What::Stored`] replaces the record, its hits included; [`What::Moved`] changes its level alone.
/// - Totals survive what happens to records, and a restart where the store is persistent.
#[async_trait]
pub trait Tracking: fmt::Debug + Send + Sync + 'static {
    /// For logs, such as `sqlite`.
    fn name(&self) -> &'static str;

    /// Applies a batch.
    async fn record(&self, events: &[Event]) -> Result<()>;

    /// The record of a key.
    async fn lookup(&self, key: &Key) -> Result<Option<Record>>;

    /// A page of the records `query` selects, in ascending order of namespace and key; `after` is where the
    /// page before ended.
    async fn find(&self, query: &Query, after: Option<&Key>, limit: usize) -> Result<Vec<Record>>;

    /// The totals since the store was made, or last reset.
    async fn totals(&self) -> Result<Totals>;

    /// Sets the totals to zero.
    async fn reset_totals(&self) -> Result<()>;

    /// Flushes and releases; the last call.
    async fn close(&self) -> Result<()>;

    /// The store as one that gives out leases.
    fn leasing(&self) -> Option<&dyn Leasing> {
        None
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// A value was set.
    Stored(Record),
    /// The entry of that generation now stands at another level; `None`: at none.
    Moved {
        /// The key.
        key: Key,
        /// Of which mutation.
        generation: Generation,
        /// Where it stands.
        to: Option<Level>,
    },
    /// The entry was used; this many times since it was last reported.
    Used {
        /// The key.
        key: Key,
        /// How often.
        hits: u64,
    },
    /// The key was removed by the mutation of that generation.
    Removed {
        /// The key.
        key: Key,
        /// The mutation.
        generation: Generation,
    },
    /// Everything in scope and below that generation was invalidated.
    Invalidated {
        /// What was invalidated.
        scope: crate::tier::Scope,
        /// The mutation.
        generation: Generation,
    },
    /// A level was emptied of everything below that generation (in that namespace, or in all).
    Flushed {
        /// Which level.
        level: Level,
        /// Where; `None`: everywhere.
        namespace: Option<String>,
        /// The mutation.
        generation: Generation,
    },
    /// This many more of each, since it was last reported.
    Counted(Totals),
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The key.
    pub key: Key,
    /// The mutation that made the entry.
    pub generation: Generation,
    /// The level it stands at.
    pub level: Level,
    /// Bytes of the value.
    pub size: u64,
    /// When it was set.
    pub created: Timestamp,
    /// When it was last used, or set.
    pub used: Timestamp,
    /// When it dies.
    pub deadline: Timestamp,
    /// Hits since it was set.
    pub hits: u64,
    /// Its tags.
    pub tags: Tags,
}

impl Record {
    /// What is kept of an entry that stands at `level` and was not used yet.
    pub fn of(key: Key, entry: &Entry, level: Level) -> Self {
        Self {
            key,
            generation: entry.generation,
            level,
            size: entry.value.len() as u64,
            created: entry.created,
            used: entry.created,
            // To tracking, what `get` does not find is dead.
            deadline: if entry.is_nothing() { Timestamp::EPOCH } else { entry.fresh_until() },
            hits: 0,
            tags: entry.tags().cloned().unwrap_or_default(),
        }
    }
}

/// Counts of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Answers from each level, by [`Level::index`].
    pub hits: [u64; 3],
    /// Gets that found nothing.
    pub misses: u64,
    /// Values set.
    pub sets: u64,
    /// Keys deleted.
    pub deletes: u64,
}

impl Totals {
    /// Whether nothing was counted.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// Adds `more`; a sum that would overflow stays at the highest number.
    pub fn add(&mut self, more: &Self) {
        for (sum, more) in self.hits.iter_mut().zip(more.hits) {
            *sum = sum.saturating_add(more);
        }
        self.misses = self.misses.saturating_add(more.misses);
        self.sets = self.sets.saturating_add(more.sets);
        self.deletes = self.deletes.saturating_add(more.deletes);
    }

    /// Answers from all levels.
    pub fn total_hits(&self) -> u64 {
        self.hits.iter().fold(0, |sum, &hits| sum.saturating_add(hits))
    }
}

/// Which keys one wants: all that fit every condition that is given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Query {
    /// In this namespace; `None`: in any.
    pub namespace: Option<String>,
    /// At this level.
    pub level: Option<Level>,
    /// With all of these tags.
    pub tags: Tags,
    /// Whose key begins with these bytes.
    pub prefix: Vec<u8>,
    /// Whose key matches this glob: `*` any run, `?` one byte, `[a-z]` one of, `[!a-z]` none of, `\` quotes.
    pub glob: Option<String>,
    /// Set at or after this.
    pub created_from: Option<Timestamp>,
    /// Set before this.
    pub created_before: Option<Timestamp>,
    /// With at least so many bytes.
    pub min_size: Option<u64>,
    /// With at most so many bytes.
    pub max_size: Option<u64>,
    /// With at least so many hits.
    pub min_hits: Option<u64>,
    /// With at most so many hits.
    pub max_hits: Option<u64>,
    /// Not dead at this time.
    pub live_at: Option<Timestamp>,
}

impl Query {
    /// Everything.
    pub fn all() -> Self {
        Self::default()
    }

    /// Whether `record` fits every condition.
    pub fn matches(&self, record: &Record) -> bool {
        let Self { namespace, level, tags, prefix, glob, .. } = self;
        namespace.as_ref().is_none_or(|namespace| namespace == record.key.namespace())
            && level.is_none_or(|level| level == record.level)
            && tags.iter().all(|(name, value)| record.tags.get(name) == Some(value))
            && record.key.bytes().starts_with(prefix)
            && glob.as_ref().is_none_or(|glob| glob_matches(glob.as_bytes(), record.key.bytes()))
            && self.created_from.is_none_or(|from| record.created >= from)
            && self.created_before.is_none_or(|before| record.created < before)
            && self.min_size.is_none_or(|min| record.size >= min)
            && self.max_size.is_none_or(|max| record.size <= max)
            && self.min_hits.is_none_or(|min| record.hits >= min)
            && self.max_hits.is_none_or(|max| record.hits <= max)
            && self.live_at.is_none_or(|at| at < record.deadline)
    }
}

/// Whether all of `text` matches `glob`. Takes time in proportion to the product of the lengths at most.
pub fn glob_matches(glob: &[u8], text: &[u8]) -> bool {
    let last_close = glob.iter().rposition(|&byte| byte == b']').unwrap_or(0);
    let (mut at_glob, mut at_text) = (0, 0);
    // Where to go on after a mismatch: behind the last star, one more byte of text under it.
    let mut star: Option<(usize, usize)> = None;
    while at_text < text.len() {
        if glob.get(at_glob) == Some(&b'*') {
            at_glob += 1;
            star = Some((at_glob, at_text));
        } else if let Some(width) = glob_unit(glob, at_glob, last_close, text[at_text]) {
            at_glob += width;
            at_text += 1;
        } else if let Some((behind, under)) = star {
            at_glob = behind;
            at_text = under + 1;
            star = Some((behind, under + 1));
        } else {
            return false;
        }
    }
    glob[at_glob..].iter().all(|&byte| byte == b'*')
}

/// How many bytes the unit at `at` takes, if it matches `byte`. `last_close` is where the last `]` stands: a
/// bracket behind it is unclosed, which to find out anew at every step would take time in the lengths cubed.
fn glob_unit(glob: &[u8], at: usize, last_close: usize, byte: u8) -> Option<usize> {
    match glob[at..] {
        [] => None,
        [b'?', ..] => Some(1),
        [b'\\', quoted, ..] => (quoted == byte).then_some(2),
        [b'[', ref set @ ..] => {
            let negated = matches!(set.first(), Some(b'!' | b'^'));
            // A `]` that comes first is one of the set.
            let first = usize::from(negated);
            if at + 1 + first >= last_close {
                return (byte == b'[').then_some(1);
            }
            let mut next = first;
            let mut found = false;
            while next == first || set[next] != b']' {
                let low = set[next];
                let high = match set[next + 1..] {
                    [b'-', high, ..] if high != b']' => {
                        next += 2;
                        high
                    }
                    _ => low,
                };
                found |= (low..=high).contains(&byte);
                next += 1;
            }
            (found != negated).then_some(next + 2)
        }
        [plain, ..] => (plain == byte).then_some(1),
    }
}

/// The tracking that remembers nothing: `backend: none`.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTracking;

#[async_trait]
impl Tracking for NoTracking {
    fn name(&self) -> &'static str {
        "none"
    }

    async fn record(&self, _events: &[Event]) -> Result<()> {
        Ok(())
    }

    async fn lookup(&self, _key: &Key) -> Result<Option<Record>> {
        Ok(None)
    }

    async fn find(&self, _query: &Query, _after: Option<&Key>, _limit: usize) -> Result<Vec<Record>> {
        Ok(Vec::new())
    }

    async fn totals(&self) -> Result<Totals> {
        Ok(Totals::default())
    }

    async fn reset_totals(&self) -> Result<()> {
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A glob taken apart before anything is matched, each unit as the set of bytes it stands for.
    enum Unit {
        Run,
        One(Vec<bool>),
    }

    fn units(glob: &[u8]) -> Vec<Unit> {
        let only = |byte: u8| Unit::One((0..=255).map(|other| other == byte).collect());
        match glob {
            [] => Vec::new(),
            [head, tail @ ..] => {
                let (unit, rest) = match head {
                    b'*' => (Unit::Run, tail),
                    b'?' => (Unit::One(vec![true; 256]), tail),
                    b'\\' if !tail.is_empty() => (only(tail[0]), &tail[1..]),
                    b'[' => set(tail).unwrap_or((only(b'['), tail)),
                    &plain => (only(plain), tail),
                };
                std::iter::once(unit).chain(units(rest)).collect()
            }
        }
    }

    fn set(text: &[u8]) -> Option<(Unit, &[u8])> {
        let negated = text.first().is_some_and(|byte| b"!^".contains(byte));
        let text = &text[usize::from(negated)..];
        let end = 1 + text.get(1..)?.iter().position(|&byte| byte == b']')?;
        let (mut inside, rest) = (&text[..end], &text[end + 1..]);
        let mut bytes = vec![negated; 256];
        while let [low, tail @ ..] = inside {
            let (high, tail) = match tail {
                [b'-', high, tail @ ..] => (high, tail),
                tail => (low, tail),
            };
            (*low..=*high).for_each(|byte| bytes[usize::from(byte)] = !negated);
            inside = tail;
        }
        Some((Unit::One(bytes), rest))
    }

    fn matches_by_trying(units: &[Unit], text: &[u8]) -> bool {
        match units {
            [] => text.is_empty(),
            [Unit::Run, rest @ ..] => (0..=text.len()).any(|from| matches_by_trying(rest, &text[from..])),
            [Unit::One(bytes), rest @ ..] => {
                text.first().is_some_and(|&byte| bytes[usize::from(byte)])
                    && matches_by_trying(rest, &text[1..])
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]
        #[test]
        fn globs_match_what_trying_everything_finds(glob in "[ab*?!^\\[\\]\\\\-]{0,9}", text in "[abc!\\[\\]\\\\-]{0,7}") {
            let expected = matches_by_trying(&units(glob.as_bytes()), text.as_bytes());
            prop_assert_eq!(glob_matches(glob.as_bytes(), text.as_bytes()), expected);
        }

        #[test]
        fn any_bytes_are_a_glob(glob: Vec<u8>, text: Vec<u8>) {
            glob_matches(&glob, &text);
        }
    }

    #[test]
    fn globs_by_example() {
        for (glob, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("thumb:*", "thumb:1", true),
            ("thumb:*", "thumb", false),
            ("*.png", "a.png.png", true),
            ("a?c", "abc", true),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[^a-c]x", "dx", true),
            ("[]]", "]", true),
            ("[!]]", "]", false),
            ("[a-]", "-", true),
            ("[c-a]", "b", false),
            ("[", "[", true),
            ("[!]", "[!]", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a\\", "a\\", true),
            ("a%_", "a%_", true),
            ("a%_", "abc", false),
        ] {
            assert_eq!(glob_matches(glob.as_bytes(), text.as_bytes()), expected, "{glob:?} against {text:?}");
        }
    }

    #[test]
    fn a_glob_of_open_brackets_takes_no_longer_than_others() {
        // A step that searched for the closing bracket would make this ten thousand million steps.
        let glob = [b"*", [b'['; 2_000].as_slice(), b"x"].concat();
        assert!(!glob_matches(&glob, &[b'['; 6_000]));
    }

    #[test]
    fn totals_stop_at_the_highest_number() {
        let most = Totals { hits: [u64::MAX; 3], misses: u64::MAX, sets: u64::MAX, deletes: u64::MAX };
        let mut sum = most;
        sum.add(&most);
        assert_eq!(sum, most);
        assert_eq!(sum.total_hits(), u64::MAX);
    }
}
