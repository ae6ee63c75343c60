//! Tags to stay per level. Pure.

use std::time::Duration;

use crate::{Level, Stay, Tags};

/// The stay of a level nobody configured: hot 4 h, cold 24 h, dry for ever.
pub const DEFAULT_STAYS: [Stay; 3] =
    [Stay::For(Duration::from_secs(4 * 3600)), Stay::For(Duration::from_secs(24 * 3600)), Stay::Forever];

/// A rule: entries that carry all of `tags` stay so long at the levels it names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// What an entry must carry; empty fits every entry that has any tag.
    pub tags: Tags,
    /// The stay per level, by [`Level::index`]; a level that is `None` is not named.
    pub stays: [Option<Stay>; 3],
}

/// Decides how long an entry stays at a level. The first that is given counts: the option on `set`, the first
/// matching rule that names the level, the level's default, the global default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// In order of precedence.
    pub rules: Vec<Rule>,
    /// The levels' own defaults, by [`Level::index`].
    pub defaults: [Option<Stay>; 3],
}

impl Rules {
    /// The stay at `level` of an entry with `tags`, where `given` is the option on its `set`.
    pub fn stay(&self, level: Level, given: Option<Stay>, tags: Option<&Tags>) -> Stay {
        given
            .or_else(|| self.by_tags(level, tags?))
            .or(self.defaults[level.index()])
            .unwrap_or(DEFAULT_STAYS[level.index()])
    }

    fn by_tags(&self, level: Level, tags: &Tags) -> Option<Stay> {
        if tags.is_empty() {
            return None;
        }
        self.rules
            .iter()
            .filter(|rule| rule.tags.iter().all(|(name, value)| tags.get(name) == Some(value)))
            .find_map(|rule| rule.stays[level.index()])
    }
}
