//! Invalidations of many, remembered for as long as a record could be hit by them.
//!
//! A fence guards what stands before it in the log. It is forgotten when its segment is reclaimed, and then nothing it
//! guards is left: segments are reclaimed in order, so everything before it went earlier or goes with it; what was
//! appended after it, a put or a record moved out of an older segment, was checked against every fence known at that
//! moment, under the lock that orders fences and appends.

use std::collections::HashMap;

use tiercache_core::tier::Scope;
use tiercache_core::{Entry, Generation};

/// A fence's generation, and the segment its record is in.
#[derive(Clone, Copy, Debug)]
struct Fence {
    below: Generation,
    segment: u32,
}

/// The fences a level remembers.
#[derive(Debug, Default)]
pub(crate) struct Fences(HashMap<Scope, Fence>);

impl Fences {
    /// Remembers a fence; the higher generation of a scope stays.
    pub(crate) fn add(&mut self, scope: &Scope, below: Generation, segment: u32) {
        let known = self.0.entry(scope.clone()).or_insert(Fence { below, segment });
        if known.below <= below {
            *known = Fence { below, segment };
        }
    }

    /// Forgets the fences whose records were in `segment`.
    pub(crate) fn forget(&mut self, segment: u32) {
        self.0.retain(|_, fence| fence.segment != segment);
    }

    pub(crate) fn list(&self) -> Vec<(Scope, Generation)> {
        self.0.iter().map(|(scope, fence)| (scope.clone(), fence.below)).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether what is in `namespace`, of that generation and with those tags, is dead.
    pub(crate) fn kill(&self, namespace: &str, entry: &Entry) -> bool {
        if self.0.is_empty() {
            return false;
        }
        self.kill_untagged(namespace, entry.generation)
            || entry.tags().is_some_and(|tags| {
                tags.iter().any(|(name, value)| {
                    let scope = Scope::Tag {
                        namespace: namespace.to_owned(),
                        name: name.clone(),
                        value: value.clone(),
                    };
                    self.hits(&scope, entry.generation)
                })
            })
    }

    /// Likewise, without its tags.
    pub(crate) fn kill_untagged(&self, namespace: &str, generation: Generation) -> bool {
        !self.0.is_empty()
            && (self.hits(&Scope::All, generation)
                || self.hits(&Scope::Namespace(namespace.to_owned()), generation))
    }

    fn hits(&self, scope: &Scope, generation: Generation) -> bool {
        self.0.get(scope).is_some_and(|fence| generation < fence.below)
    }
}
