//! Records by key, and in the order of their last use.

use hashbrown::HashTable;
use tiercache_core::Key;
use tiercache_core::tracking::Record;

/// Instead of a place: there is none.
const NONE: u32 = u32::MAX;
/// The most records there can be.
pub(crate) const MOST_RECORDS: usize = NONE as usize;

/// Records that stand at numbered places, a list through them in the order of their last use, and a table from a key's
/// hash to its place. A place stays a record's own until it is removed.
#[derive(Debug)]
pub(crate) struct Records {
    places: Vec<Option<Kept>>,
    free: Vec<u32>,
    by_key: HashTable<u32>,
    oldest: u32,
    newest: u32,
}

#[derive(Debug)]
struct Kept {
    record: Record,
    older: u32,
    newer: u32,
}

impl Default for Records {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new(), by_key: HashTable::new(), oldest: NONE, newest: NONE }
    }
}

impl Records {
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(crate) fn find(&self, key: &Key) -> Option<u32> {
        self.by_key.find(key.hash64(), |&place| self.key(place) == key).copied()
    }

    /// The record at a place where one is.
    pub(crate) fn at(&self, place: u32) -> &Record {
        &self.kept(place).record
    }

    /// Likewise; its key must not be changed.
    pub(crate) fn at_mut(&mut self, place: u32) -> &mut Record {
        &mut self.kept_mut(place).record
    }

    pub(crate) fn key(&self, place: u32) -> &Key {
        &self.at(place).key
    }

    /// Adds the record of a key that has none, as the last used; returns its place.
    pub(crate) fn insert(&mut self, record: Record) -> u32 {
        let hash = record.key.hash64();
        let kept = Some(Kept { record, older: NONE, newer: NONE });
        let place = if let Some(place) = self.free.pop() {
            self.places[place as usize] = kept;
            place
        } else {
            self.places.push(kept);
            (self.places.len() - 1) as u32
        };
        let places = &self.places;
        let hash_at =
            |&place: &u32| places[place as usize].as_ref().map_or(0, |kept| kept.record.key.hash64());
        self.by_key.insert_unique(hash, place, hash_at);
        self.link(place);
        place
    }

    /// Removes the record at a place. When it was the last of many, their memory is given back.
    pub(crate) fn remove(&mut self, place: u32) {
        self.unlink(place);
        if let Ok(entry) = self.by_key.find_entry(self.key(place).hash64(), |&other| other == place) {
            entry.remove();
        }
        self.places[place as usize] = None;
        self.free.push(place);
        if self.len() == 0 && self.places.len() > 1_024 {
            *self = Self::default();
        }
    }

    /// Makes it the last used.
    pub(crate) fn renew(&mut self, place: u32) {
        if self.newest != place {
            self.unlink(place);
            self.link(place);
        }
    }

    /// The place of the least recently used.
    pub(crate) fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    fn kept(&self, place: u32) -> &Kept {
        self.places[place as usize].as_ref().expect("whoever has a place has its record, too")
    }

    fn kept_mut(&mut self, place: u32) -> &mut Kept {
        self.places[place as usize].as_mut().expect("whoever has a place has its record, too")
    }

    fn link(&mut self, place: u32) {
        let older = std::mem::replace(&mut self.newest, place);
        let kept = self.kept_mut(place);
        (kept.older, kept.newer) = (older, NONE);
        if older == NONE {
            self.oldest = place;
        } else {
            self.kept_mut(older).newer = place;
        }
    }

    fn unlink(&mut self, place: u32) {
        let &Kept { older, newer, .. } = self.kept(place);
        if older == NONE {
            self.oldest = newer;
        } else {
            self.kept_mut(older).newer = newer;
        }
        if newer == NONE {
            self.newest = older;
        } else {
            self.kept_mut(newer).older = older;
        }
    }
}
