//! What invalidations of many have killed, whichever level remembers them.

use std::collections::HashMap;

use tiercache_core::tier::Scope;
use tiercache_core::{Entry, Generation, Key};

/// The invalidations that are known of.
#[derive(Debug, Default)]
pub(crate) struct Dead {
    fences: HashMap<Scope, Generation>,
    /// The highest of all: what is not below it is not dead.
    highest: Generation,
}

impl Dead {
    pub(crate) fn add(&mut self, fences: Vec<(Scope, Generation)>) {
        for (scope, generation) in fences {
            let known = self.fences.entry(scope).or_default();
            *known = generation.max(*known);
            self.highest = generation.max(self.highest);
        }
    }

    pub(crate) fn kills(&self, key: &Key, entry: &Entry) -> bool {
        let hit = |scope: Scope| self.fences.get(&scope).is_some_and(|&fence| entry.generation < fence);
        let namespace = || key.namespace().to_owned();
        let tagged = |(name, value): (&String, &String)| {
            hit(Scope::Tag { namespace: namespace(), name: name.clone(), value: value.clone() })
        };
        entry.generation < self.highest
            && (hit(Scope::All)
                || hit(Scope::Namespace(namespace()))
                || entry.tags().is_some_and(|tags| tags.iter().any(tagged)))
    }
}
