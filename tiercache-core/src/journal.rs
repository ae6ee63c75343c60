//! Removals that a level has yet to see, and the power of a tier to remember them.

use async_trait::async_trait;

use crate::tier::Scope;
use crate::{Generation, Key, Level, Result, Tier};

/// What a removal that waits has to reach at its level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// One key.
    Key(Key),
    /// Everything in a scope.
    Scope(Scope),
    /// Whatever the level holds: so many removals waited that it is emptied instead.
    Level,
}

/// A removal that has not reached a level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Which level.
    pub level: Level,
    /// What of it.
    pub reach: Reach,
    /// Everything below this generation is dead.
    pub below: Generation,
}

/// A tier of this machine that remembers, beyond the end of the process, removals that wait for other levels.
///
/// # Contract
/// Every line is a case of the suite in `testing::tier`.
/// - `note` returns when the note would survive the end of the process, with a number that no other note of the store
///   has, or had while it was open.
/// - What was noted and not struck is listed, by whichever process over the store it was noted.
/// - Striking what is not there succeeds. A note whose strike was lost is listed again: a removal that is made twice
///   does no harm.
/// - Notes are no entries: `get`, `clear`, `sweep`, listings and the tier's limit do not touch them.
#[async_trait]
pub trait Journal: Tier {
    /// Remembers a removal that waits.
    async fn note(&self, waiting: &Waiting) -> Result<u64>;

    /// Forgets the notes of these numbers.
    async fn strike(&self, notes: &[u64]) -> Result<()>;

    /// What is noted, with the numbers.
    async fn notes(&self) -> Result<Vec<(u64, Waiting)>>;
}

const KEY: u8 = 0;
const ALL: u8 = 1;
const NAMESPACE: u8 = 2;
const TAG: u8 = 3;
const LEVEL: u8 = 4;

impl Waiting {
    /// The note as bytes: level, kind and generation, then each part with its length before it. The form is kept by
    /// stores across versions.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.level as u8, 0];
        bytes.extend_from_slice(&self.below.get().to_le_bytes());
        let (kind, parts): (u8, Vec<&[u8]>) = match &self.reach {
            Reach::Key(key) => (KEY, vec![key.namespace().as_bytes(), key.bytes()]),
            Reach::Scope(Scope::All) => (ALL, Vec::new()),
            Reach::Scope(Scope::Namespace(namespace)) => (NAMESPACE, vec![namespace.as_bytes()]),
            Reach::Scope(Scope::Tag { namespace, name, value }) => {
                (TAG, vec![namespace.as_bytes(), name.as_bytes(), value.as_bytes()])
            }
            Reach::Level => (LEVEL, Vec::new()),
        };
        bytes[1] = kind;
        for part in parts {
            // A part is no longer than a key.
            bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    }

    /// The note of those bytes; `None` when they are not one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let ([level, kind], rest) = bytes.split_first_chunk()?;
        let (below, mut rest) = rest.split_first_chunk()?;
        let mut part = || {
            let (length, behind) = rest.split_first_chunk()?;
            let (part, behind) = behind.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            rest = behind;
            Some(part)
        };
        let text = |part: &[u8]| String::from_utf8(part.to_vec()).ok();
        let reach = match *kind {
            KEY => {
                let namespace = text(part()?)?;
                Reach::Key(Key::new(&namespace, part()?).ok()?)
            }
            ALL => Reach::Scope(Scope::All),
            NAMESPACE => Reach::Scope(Scope::Namespace(text(part()?)?)),
            TAG => Reach::Scope(Scope::Tag {
                namespace: text(part()?)?,
                name: text(part()?)?,
                value: text(part()?)?,
            }),
            LEVEL => Reach::Level,
            _ => return None,
        };
        let level = Level::ALL.into_iter().find(|known| *known as u8 == *level)?;
        rest.is_empty().then(|| Self { level, reach, below: Generation::new(u64::from_le_bytes(*below)) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn notes() -> Vec<Waiting> {
        let tag = Scope::Tag { namespace: "ns".into(), name: "t".into(), value: "ä".into() };
        let reaches = [
            Reach::Key(Key::new("", b"\0\xff").unwrap()),
            Reach::Key(Key::new("ns", &[7; crate::MAX_KEY_BYTES]).unwrap()),
            Reach::Scope(Scope::All),
            Reach::Scope(Scope::Namespace(String::new())),
            Reach::Scope(tag),
            Reach::Level,
        ];
        let of =
            |reach: &Reach, level| Waiting { level, reach: reach.clone(), below: Generation::new(1 << 40) };
        reaches.iter().flat_map(|reach| Level::ALL.map(|level| of(reach, level))).collect()
    }

    #[test]
    fn a_note_comes_back_whole_and_nothing_cut_short_or_longer_is_one() {
        for note in notes() {
            let bytes = note.encode();
            assert_eq!(Waiting::decode(&bytes), Some(note));
            assert!((0..bytes.len()).all(|length| Waiting::decode(&bytes[..length]).is_none()));
            assert_eq!(Waiting::decode(&[bytes, vec![0]].concat()), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_note_or_none(bytes: Vec<u8>) {
            if let Some(note) = Waiting::decode(&bytes) {
                prop_assert_eq!(note.encode(), bytes);
            }
        }
    }

    #[test]
    fn the_form_is_the_one_that_stores_have() {
        let note = Waiting {
            level: Level::Dry,
            reach: Reach::Key(Key::new("n", b"k").unwrap()),
            below: Generation::new(258),
        };
        let form = [2, 0, 2, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, b'n', 1, 0, 0, 0, b'k'];
        assert_eq!(note.encode(), form);
    }
}
