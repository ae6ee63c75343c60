//! Fences of many keys: what an invalidation of a tag, a namespace or everything killed.
//!
//! An entry is dead when a fence that covers it has a higher generation. A hit compares its entry's generation
//! with the newest fence's, one load, and only older entries are looked up in the table.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::bugs::seeded;
use crate::tier::{Dead, Scope};
use crate::{Entry, Generation, KeyRef, Tags};

/// Fences beyond this many are merged into one for the whole namespace: more misses, never an old value.
const MOST_TAG_FENCES: usize = 65_536;

/// The invalidations that something may still be hit by.
#[derive(Debug, Default)]
pub(super) struct Fences {
    /// The newest generation in the tables.
    newest: AtomicU64,
    /// Fences that were merged for want of room.
    merged: AtomicU64,
    removed: RwLock<Table>,
    /// Tags whose entries are dead to `get` and kept for readers that accept a stale value.
    expired: RwLock<Table>,
}

#[derive(Debug, Default)]
struct Table {
    all: Generation,
    tags: usize,
    namespaces: HashMap<String, Namespace>,
}

#[derive(Debug, Default)]
struct Namespace {
    all: Generation,
    /// By name, then by value.
    tags: HashMap<String, HashMap<String, Generation>>,
}

impl Fences {
    /// The newest fence: entries of this generation or a higher one are not dead.
    pub(super) fn newest(&self) -> Generation {
        Generation::new(self.newest.load(Ordering::Acquire))
    }

    /// Kills what is in scope and below `generation`.
    pub(super) fn remove(&self, scope: &Scope, generation: Generation) {
        self.raise(&self.removed, scope, generation);
    }

    /// Kills it for `get`, and keeps it for those who accept a stale value.
    pub(super) fn expire(&self, scope: &Scope, generation: Generation) {
        self.raise(&self.expired, scope, generation);
    }

    /// How many fences were merged into their namespace's.
    pub(super) fn merged(&self) -> u64 {
        self.merged.load(Ordering::Relaxed)
    }

    /// Whether it is over with an entry that is about to get the generation `raised`: it is dead, or what made it expire
    /// meanwhile would not reach it any more.
    pub(super) fn ends(&self, key: KeyRef<'_>, entry: &Entry, raised: Generation) -> bool {
        self.is_dead(key, entry) || raised > entry.generation && self.hides(key, entry)
    }

    /// Whether a `get` must not answer with it.
    pub(super) fn hides(&self, key: KeyRef<'_>, entry: &Entry) -> bool {
        entry.generation < self.newest()
            && (read(&self.removed).covers(key, entry) || read(&self.expired).covers(key, entry))
    }

    /// Forgets fences below `generation` that `keep` does not want: everything they killed is gone.
    pub(super) fn forget(&self, below: Generation, keep: &dyn Fn(&Scope) -> bool) {
        // What expired is kept, and would be fresh again without its fence: that lasts as long as the process.
        write(&self.removed).forget(below, keep);
    }

    /// How many fences there are.
    pub(super) fn len(&self) -> usize {
        read(&self.removed).len() + read(&self.expired).len()
    }

    fn raise(&self, table: &RwLock<Table>, scope: &Scope, generation: Generation) {
        if seeded("no-scope-fence") {
            return;
        }
        let mut table = write(table);
        if table.raise(scope, generation) {
            self.merged.fetch_add(1, Ordering::Relaxed);
        }
        // Inside the lock, so that whoever sees the new number and looks finds the fence.
        self.newest.fetch_max(generation.get(), Ordering::Release);
    }
}

impl Dead for Fences {
    fn is_dead(&self, key: KeyRef<'_>, entry: &Entry) -> bool {
        entry.generation < self.newest() && read(&self.removed).covers(key, entry)
    }
}

impl Table {
    /// Returns whether fences had to be merged.
    fn raise(&mut self, scope: &Scope, generation: Generation) -> bool {
        match scope {
            // What is covered now goes. Fences come in any order, so newer ones may be there already.
            Scope::All => {
                self.all = self.all.max(generation);
                let covered = self.all;
                self.namespaces.retain(|_, namespace| {
                    namespace.forget_covered(covered);
                    namespace.all > covered || !namespace.tags.is_empty()
                });
                self.tags = self.namespaces.values().map(Namespace::tag_count).sum();
                false
            }
            Scope::Namespace(namespace) => {
                let namespace = self.namespaces.entry(namespace.clone()).or_default();
                namespace.all = namespace.all.max(generation);
                self.tags -= namespace.tag_count();
                namespace.forget_covered(namespace.all);
                self.tags += namespace.tag_count();
                false
            }
            Scope::Tag { namespace, name, value } => {
                let merge = self.tags >= MOST_TAG_FENCES;
                if merge {
                    self.raise(&Scope::Namespace(namespace.clone()), generation);
                    return true;
                }
                let values = self
                    .namespaces
                    .entry(namespace.clone())
                    .or_default()
                    .tags
                    .entry(name.clone())
                    .or_default();
                let fence = values.entry(value.clone()).or_insert_with(|| {
                    self.tags += 1;
                    Generation::ZERO
                });
                *fence = (*fence).max(generation);
                false
            }
        }
    }

    fn covers(&self, key: KeyRef<'_>, entry: &Entry) -> bool {
        if entry.generation < self.all {
            return true;
        }
        let namespace = std::str::from_utf8(key.namespace()).unwrap_or_default();
        let Some(namespace) = self.namespaces.get(namespace) else { return false };
        entry.generation < namespace.all
            || entry.tags().is_some_and(|tags| namespace.covers_tags(tags, entry.generation))
    }

    fn forget(&mut self, below: Generation, keep: &dyn Fn(&Scope) -> bool) {
        if self.all < below && !keep(&Scope::All) {
            self.all = Generation::ZERO;
        }
        let mut tag_count = 0;
        self.namespaces.retain(|name, namespace| {
            if namespace.all < below && !keep(&Scope::Namespace(name.clone())) {
                namespace.all = Generation::ZERO;
            }
            namespace.tags.retain(|tag, values| {
                values.retain(|value, fence| {
                    *fence >= below
                        || keep(&Scope::Tag {
                            namespace: name.clone(),
                            name: tag.clone(),
                            value: value.clone(),
                        })
                });
                !values.is_empty()
            });
            tag_count += namespace.tag_count();
            namespace.all > Generation::ZERO || !namespace.tags.is_empty()
        });
        self.tags = tag_count;
    }

    fn len(&self) -> usize {
        self.tags
            + usize::from(self.all > Generation::ZERO)
            + self.namespaces.values().filter(|namespace| namespace.all > Generation::ZERO).count()
    }
}

impl Namespace {
    fn covers_tags(&self, tags: &Tags, generation: Generation) -> bool {
        tags.iter().any(|(name, value)| {
            let fence = self.tags.get(name).and_then(|values| values.get(value));
            fence.is_some_and(|fence| generation < *fence)
        })
    }

    /// Forgets fences of tags that one for everything up to `covered` makes needless.
    fn forget_covered(&mut self, covered: Generation) {
        self.tags.retain(|_, values| {
            values.retain(|_, fence| *fence > covered);
            !values.is_empty()
        });
    }

    fn tag_count(&self) -> usize {
        self.tags.values().map(HashMap::len).sum()
    }
}

fn read(table: &RwLock<Table>) -> std::sync::RwLockReadGuard<'_, Table> {
    table.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(table: &RwLock<Table>) -> std::sync::RwLockWriteGuard<'_, Table> {
    table.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Key, Timestamp};

    fn tagged(generation: u64, tag: &str) -> Entry {
        let mut entry = Entry::new("v", Generation::new(generation), Timestamp::EPOCH);
        entry.extras_mut().tags.insert("t".into(), tag.into());
        entry
    }

    fn tag(value: &str) -> Scope {
        Scope::Tag { namespace: "ns".into(), name: "t".into(), value: value.into() }
    }

    #[test]
    fn a_wide_fence_does_not_take_away_a_newer_narrow_one() {
        let key = Key::new("ns", b"k").unwrap();
        for wide in [Scope::All, Scope::Namespace("ns".into())] {
            let fences = Fences::default();
            fences.remove(&tag("a"), Generation::new(11));
            fences.remove(&wide, Generation::new(8));
            assert!(fences.hides(key.as_ref(), &tagged(10, "a")), "{wide:?}");
            assert!(!fences.hides(key.as_ref(), &tagged(10, "b")), "{wide:?}");
            assert!(fences.hides(key.as_ref(), &tagged(7, "b")), "{wide:?}");
            fences.forget(Generation::new(12), &|_| false);
            assert_eq!(fences.len(), 0, "{wide:?}");
        }
    }

    #[test]
    fn too_many_fences_become_one_that_kills_more() {
        let key = Key::new("ns", b"k").unwrap();
        let fences = Fences::default();
        for at in 0..=MOST_TAG_FENCES {
            fences.remove(&tag(&at.to_string()), Generation::new(2 + at as u64));
        }
        assert_eq!((fences.merged(), fences.len()), (1, 1));
        assert!(fences.hides(key.as_ref(), &tagged(5, "another")));
    }
}
