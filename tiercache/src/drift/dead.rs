//! What removals have killed, whichever level remembers them.

use std::collections::HashMap;

use tiercache_core::tier::{Reach, Scope, Waiting};
use tiercache_core::{Entry, Generation, Key, Level};

/// The removals that are known of.
#[derive(Debug, Default)]
pub(crate) struct Dead {
    /// Invalidations of many: everywhere, or at a level that has yet to see them.
    fences: HashMap<(Option<Level>, Scope), Generation>,
    /// Removals of keys that a level has yet to see.
    keys: HashMap<(Level, Key), Generation>,
    /// Levels that are to be emptied.
    emptied: [bool; 3],
    /// The highest of all: what is not below it is not dead, unless its level is to be emptied.
    highest: Generation,
}

impl Dead {
    pub(crate) fn add(&mut self, fences: Vec<(Scope, Generation)>) {
        for (scope, generation) in fences {
            self.raise(None, scope, generation);
        }
    }

    /// Adds removals that levels have yet to see.
    pub(crate) fn add_waiting(&mut self, waiting: Vec<Waiting>) {
        for Waiting { level, reach, below } in waiting {
            match reach {
                Reach::Key(key) => {
                    let known = self.keys.entry((level, key)).or_default();
                    *known = below.max(*known);
                    self.highest = below.max(self.highest);
                }
                Reach::Scope(scope) => self.raise(Some(level), scope, below),
                Reach::Level => self.emptied[level.index()] = true,
            }
        }
    }

    /// As it is to a level.
    pub(crate) fn at(&self, level: Level) -> At<'_> {
        At { dead: self, level }
    }

    fn raise(&mut self, level: Option<Level>, scope: Scope, generation: Generation) {
        let known = self.fences.entry((level, scope)).or_default();
        *known = generation.max(*known);
        self.highest = generation.max(self.highest);
    }
}

/// What is dead at a level.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At<'a> {
    dead: &'a Dead,
    level: Level,
}

impl At<'_> {
    /// Whether the level has yet to remove what it holds of `key`.
    pub(crate) fn awaits(&self, key: &Key, generation: Generation) -> bool {
        let Dead { keys, emptied, highest, .. } = self.dead;
        emptied[self.level.index()]
            || generation < *highest
                && keys.get(&(self.level, key.clone())).is_some_and(|&below| generation < below)
    }

    pub(crate) fn kills(&self, key: &Key, entry: &Entry) -> bool {
        let hit = |scope: Scope| {
            let fence = |level| self.dead.fences.get(&(level, scope.clone()));
            [None, Some(self.level)].into_iter().filter_map(fence).any(|&fence| entry.generation < fence)
        };
        let namespace = || key.namespace().to_owned();
        let tagged = |(name, value): (&String, &String)| {
            hit(Scope::Tag { namespace: namespace(), name: name.clone(), value: value.clone() })
        };
        self.awaits(key, entry.generation)
            || entry.generation < self.dead.highest
                && (hit(Scope::All)
                    || hit(Scope::Namespace(namespace()))
                    || entry.tags().is_some_and(|tags| tags.iter().any(tagged)))
    }
}
