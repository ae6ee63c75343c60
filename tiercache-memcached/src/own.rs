//! What this process itself wrote last, so that it can be replaced without asking what stands there.

use std::sync::{Mutex, PoisonError};

use tiercache_core::{Generation, Key};

/// How many writes are remembered at most.
const PLACES: usize = 4_096;

/// An item as this process wrote it: an entry or a mark of removal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) cas: u64,
    pub(crate) generation: Generation,
}

/// The last writes to one server. A later one takes the place of an earlier one of another key, so it may be forgotten.
///
/// A CAS is of one item in the life of a server, whatever its name: with that of an item that is gone, or of another
/// key, nothing is written. It counts anew when the server is started again; therefore a CAS is remembered, and sent,
/// only over connections on which the record of its era was read ([`Wire::era`](crate::wire::Wire::era)). That record is never in
/// the memory of two servers, so such connections lead to the one that gave out the CAS.
#[derive(Debug, Default)]
pub(crate) struct OwnWrites(Mutex<Vec<Place>>);

#[derive(Clone, Debug, Default)]
struct Place {
    key: u64,
    era: u64,
    own: Option<Own>,
}

impl OwnWrites {
    /// What was written under a key. It is forgotten: a write that is dropped half-way leaves nothing behind that may be
    /// out of date.
    pub(crate) fn take(&self, key: &Key, era: u64) -> Option<Own> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place =
            places.get_mut(place(key)).filter(|place| (place.key, place.era) == (key.hash64(), era))?;
        place.own.take()
    }

    pub(crate) fn put(&self, key: &Key, era: u64, own: Own) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if places.is_empty() {
            places.resize(PLACES, Place::default());
        }
        places[place(key)] = Place { key: key.hash64(), era, own: Some(own) };
    }
}

fn place(key: &Key) -> usize {
    key.hash64() as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_remembered_once_and_in_its_era_and_never_are_too_many() {
        let writes = OwnWrites::default();
        let keys: Vec<Key> =
            (0..3 * PLACES).map(|at| Key::new("", at.to_string().as_bytes()).unwrap()).collect();
        assert_eq!(writes.take(&keys[0], 7), None);
        for (cas, key) in (1..).zip(&keys) {
            let own = Own { cas, generation: Generation::new(cas) };
            writes.put(key, 7, own);
            assert_eq!(writes.take(key, 8), None, "another era");
            assert_eq!(writes.take(key, 7), Some(own));
            assert_eq!(writes.take(key, 7), None, "taken");
            writes.put(key, 7, own);
        }
        let left = keys.iter().filter(|key| writes.take(key, 7).is_some()).count();
        assert!((PLACES / 2..=PLACES).contains(&left), "{left}");
    }
}
