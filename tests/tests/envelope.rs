//! The stored form of entries, for any entry and any bytes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use tiercache_core::envelope::{self, Compression};
use tiercache_core::{Entry, Extras, Generation, Key, Levels, Stay, Timestamp};

const LIMIT: usize = 1 << 20;

prop_compose! {
    fn any_key()(namespace in "\\PC{0,20}|[a-c]{0,3}", bytes in vec(any::<u8>(), 1..40)) -> Key {
        Key::new(&namespace, &bytes).unwrap()
    }
}

/// Values that compress and values that do not.
fn any_value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..600),
        (any::<u8>(), 0..5_000usize).prop_map(|(byte, len)| vec![byte; len])
    ]
}

fn any_extras() -> impl Strategy<Value = Extras> {
    let stay = option::of(prop_oneof![
        Just(Stay::Forever),
        (1..u64::MAX / 2).prop_map(|millis| Stay::For(Duration::from_millis(millis))),
    ]);
    let fields = || btree_map(".{0,12}", ".{0,12}", 0..4);
    (fields(), [stay.clone(), stay.clone(), stay], option::of(".{0,20}"), fields()).prop_map(
        |(tags, stays, content_type, user)| Extras { tags, stays, content_type, user, ..Extras::default() },
    )
}

prop_compose! {
    fn any_entry()(
        value in any_value(),
        generation in 0..=Generation::MAX.get(),
        created in 0..1u64 << 48,
        deadline in option::of(0..(1u64 << 48) - 1),
        levels in 0u8..8,
        explicit_ttl: bool,
        extras in option::of(any_extras()),
    ) -> Entry {
        let mut entry = Entry::new(value, Generation::new(generation), Timestamp::from_millis(created));
        entry.deadline = deadline.map_or(Timestamp::NEVER, Timestamp::from_millis);
        entry.levels = Levels::from_bits(levels);
        entry.explicit_ttl = explicit_ttl;
        // Extras that say nothing are not kept: they are as good as none.
        entry.extras = extras.filter(|extras| !extras.is_plain()).map(Into::into);
        entry
    }
}

fn any_compression() -> impl Strategy<Value = Compression> {
    prop_oneof![Just(Compression::None), Just(Compression::Lz4), (1..6).prop_map(Compression::Zstd)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn any_entry_comes_back_as_it_was(
        key in any_key(),
        entry in any_entry(),
        compression in any_compression(),
        before in vec(any::<u8>(), 0..20),
    ) {
        let mut out = before.clone();
        let length = envelope::encode(key.as_ref(), &entry, compression, &mut out).unwrap();
        prop_assert_eq!(&out[..before.len()], &before[..]);
        let bytes = Bytes::from(out).slice(before.len()..);
        prop_assert_eq!(bytes.len(), length);
        prop_assert_eq!(envelope::declared_len(&bytes).unwrap(), length);
        prop_assert_eq!(&envelope::decode(&bytes, LIMIT).unwrap(), &(key.clone(), entry.clone()));
        prop_assert_eq!(envelope::decode_for(key.as_ref(), &bytes, LIMIT).unwrap(), entry);
    }

    #[test]
    fn an_entry_is_never_another_keys(key in any_key(), other in any_key(), entry in any_entry()) {
        prop_assume!(key != other);
        let mut out = Vec::new();
        envelope::encode(key.as_ref(), &entry, Compression::None, &mut out).unwrap();
        let read = envelope::decode_for(other.as_ref(), &out.into(), LIMIT);
        prop_assert_eq!(read, Err(envelope::Damage::OtherKey));
    }

    #[test]
    fn any_change_of_any_bytes_is_noticed(
        key in any_key(),
        entry in any_entry(),
        compression in any_compression(),
        changes in vec((any::<prop::sample::Index>(), 1..=u8::MAX), 1..4),
        cut in option::of(any::<prop::sample::Index>()),
    ) {
        let mut out = Vec::new();
        envelope::encode(key.as_ref(), &entry, compression, &mut out).unwrap();
        let whole = out.clone();
        for (at, flip) in changes {
            let at = at.index(out.len());
            out[at] ^= flip;
        }
        if let Some(cut) = cut {
            out.truncate(cut.index(whole.len()));
        }
        prop_assume!(out != whole);
        prop_assert!(envelope::decode(&out.into(), LIMIT).is_err());
    }

    #[test]
    fn random_bytes_never_decode_nor_panic(mut bytes in vec(any::<u8>(), 0..300), headed: bool) {
        if headed && bytes.len() > 4 {
            // Far enough to be taken for an envelope.
            bytes[..3].copy_from_slice(&[envelope::MAGIC[0], envelope::MAGIC[1], 1]);
            bytes[3] &= 0b1_1110;
        }
        let _ = envelope::declared_len(&bytes);
        let _ = envelope::Header::parse(&bytes);
        prop_assert!(envelope::verify(&bytes).is_err());
        let bytes = Bytes::from(bytes);
        prop_assert!(envelope::decode(&bytes, LIMIT).is_err());
        prop_assert!(envelope::decode_for(Key::new("", b"k").unwrap().as_ref(), &bytes, LIMIT).is_err());
    }

    #[test]
    fn distinct_pairs_of_namespace_and_key_have_distinct_encodings(
        pairs in vec(("[a-c\0\u{1}\u{2}]{0,3}", vec(0u8..4, 1..4)), 2..60),
    ) {
        let distinct: HashSet<_> = pairs.iter().cloned().collect();
        let keys: Vec<Key> = distinct.iter().map(|(space, key)| Key::new(space, key).unwrap()).collect();
        let encodings: HashSet<&[u8]> = keys.iter().map(Key::encoded).collect();
        prop_assert_eq!(encodings.len(), distinct.len());
        for ((namespace, bytes), key) in distinct.iter().zip(&keys) {
            prop_assert_eq!((key.namespace(), key.bytes()), (namespace.as_str(), &bytes[..]));
        }
        prop_assert_eq!(keys.iter().collect::<HashSet<_>>().len(), distinct.len());
    }

    #[test]
    fn a_value_larger_than_the_reader_allows_is_refused_however_small_it_was_packed(
        len in 200..100_000usize,
        compression in any_compression(),
    ) {
        let key = Key::new("", b"k").unwrap();
        let entry = Entry::new(vec![7; len], Generation::new(1), Timestamp::EPOCH);
        let mut out = Vec::new();
        envelope::encode(key.as_ref(), &entry, compression, &mut out).unwrap();
        let bytes = Bytes::from(out);
        prop_assert_eq!(envelope::decode(&bytes, len - 1), Err(envelope::Damage::TooLarge));
        prop_assert!(envelope::decode(&bytes, len).is_ok());
    }
}
