//! The stored form of entries, for any entry and any bytes.

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

mod sealed {
    use tiercache_core::envelope::Damage;
    use tiercache_core::{Codec, EncryptionConfig, OldKey, Packing, Secret};
    use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

    use super::*;

    const NEW: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const OLD: &str = "//////////////////////////////////////////8=";

    fn secret(key: &str) -> Option<Secret> {
        Some(Secret::from(key.to_owned()))
    }

    fn config(key: &str) -> EncryptionConfig {
        EncryptionConfig { key: secret(key), ..EncryptionConfig::default() }
    }

    fn with(config: &EncryptionConfig) -> Codec {
        Codec::default().with_encryption(config).unwrap()
    }

    fn sealed(codec: &Codec, key: &Key, entry: &Entry) -> Vec<u8> {
        let mut out = Vec::new();
        let length = codec.encode(key.as_ref(), entry, &mut out).unwrap();
        assert_eq!((out.len(), envelope::declared_len(&out)), (length, Ok(length)));
        out
    }

    /// Puts the checksum right, as somebody would who can write to the store.
    fn patched(mut bytes: Vec<u8>) -> Bytes {
        let seed = xxh3_64(&bytes[..29]);
        let sum = xxh3_64_with_seed(&bytes[37..], seed);
        bytes[29..37].copy_from_slice(&sum.to_le_bytes());
        assert!(envelope::verify(&bytes).is_ok());
        bytes.into()
    }

    fn any_packing() -> impl Strategy<Value = Packing> {
        prop_oneof![Just(Packing::None), Just(Packing::Lz4), Just(Packing::Zstd)]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_000) })]

        #[test]
        fn any_entry_comes_back_and_nothing_of_it_is_readable(
            key in any_key(),
            entry in any_entry(),
            packing in any_packing(),
        ) {
            let codec = Codec::new(packing).unwrap().with_encryption(&config(NEW)).unwrap();
            let bytes = Bytes::from(sealed(&codec, &key, &entry));
            prop_assert_eq!(&codec.decode(&bytes).unwrap(), &(key.clone(), entry.clone()));
            prop_assert_eq!(&codec.decode_for(key.as_ref(), &bytes).unwrap(), &entry);
            let readable = |secret: &[u8]| secret.len() >= 8 && bytes.windows(secret.len()).any(|part| part == secret);
            prop_assert!(!readable(key.bytes()) && !readable(key.namespace().as_bytes()));
            prop_assert!(!readable(&entry.value));
            prop_assert_ne!(&bytes, &Bytes::from(sealed(&codec, &key, &entry)));
        }

        #[test]
        fn an_entry_is_never_another_keys(key in any_key(), other in any_key(), entry in any_entry()) {
            prop_assume!(key != other);
            let codec = with(&config(NEW));
            let bytes = sealed(&codec, &key, &entry).into();
            prop_assert_eq!(codec.decode_for(other.as_ref(), &bytes), Err(Damage::OtherKey));
        }

        #[test]
        fn another_generation_time_or_note_cannot_be_given_to_it(
            key in any_key(),
            entry in any_entry(),
            at in prop_oneof![4..7usize, 11..29usize, 37..40usize],
            flip in 1..=u8::MAX,
        ) {
            let codec = with(&config(NEW));
            let mut bytes = Vec::new();
            codec.encode_noted(key.as_ref(), &entry, b"abc", &mut bytes).unwrap();
            bytes[at] ^= flip;
            prop_assume!(envelope::declared_len(&bytes) == Ok(bytes.len()));
            prop_assert_eq!(codec.decode(&patched(bytes)), Err(Damage::Forged));
        }

        #[test]
        fn no_byte_can_be_changed_or_cut_even_by_who_puts_the_checksum_right(
            key in any_key(),
            entry in any_entry(),
            at in any::<prop::sample::Index>(),
            flip in 1..=u8::MAX,
            cut in option::of(1..200usize),
        ) {
            let codec = with(&config(NEW));
            let mut bytes = sealed(&codec, &key, &entry);
            match cut {
                Some(cut) => {
                    let stored = u32::from_le_bytes(bytes[7..11].try_into().unwrap());
                    let cut = cut.min(stored as usize);
                    bytes[7..11].copy_from_slice(&(stored - cut as u32).to_le_bytes());
                    bytes.truncate(bytes.len() - cut);
                }
                None => {
                    let at = 37 + at.index(bytes.len() - 37);
                    bytes[at] ^= flip;
                }
            }
            prop_assert!(codec.decode(&patched(bytes)).is_err());
        }

        #[test]
        fn nothing_plain_is_taken_unless_that_is_allowed(key in any_key(), entry in any_entry()) {
            let bytes = sealed(&Codec::default(), &key, &entry).into();
            prop_assert_eq!(with(&config(NEW)).decode_for(key.as_ref(), &bytes), Err(Damage::Unsealed));
            let lenient = EncryptionConfig { require: false, ..config(NEW) };
            prop_assert_eq!(with(&lenient).decode_for(key.as_ref(), &bytes), Ok(entry));
        }

        #[test]
        fn what_an_old_key_sealed_is_read_while_that_key_is_known(
            key in any_key(),
            entry in any_entry(),
            id in option::of(".{0,9}"),
        ) {
            let before = EncryptionConfig { id: id.clone(), ..config(OLD) };
            let bytes = sealed(&with(&before), &key, &entry).into();
            let old_keys = vec![OldKey { key: secret(OLD), key_file: None, id }];
            let rotated = with(&EncryptionConfig { old_keys, ..config(NEW) });
            prop_assert_eq!(&rotated.decode(&bytes).unwrap(), &(key.clone(), entry.clone()));
            prop_assert_eq!(with(&config(NEW)).decode(&bytes), Err(Damage::UnknownKey));
            prop_assert_eq!(Codec::default().decode(&bytes), Err(Damage::UnknownKey));
            let again = sealed(&rotated, &key, &entry).into();
            prop_assert_eq!(with(&config(NEW)).decode(&again).unwrap(), (key, entry));
        }

        #[test]
        fn a_key_of_the_same_id_that_is_another_opens_nothing(key in any_key(), entry in any_entry()) {
            let named = |key| EncryptionConfig { id: Some("1".into()), ..config(key) };
            let bytes = sealed(&with(&named(OLD)), &key, &entry).into();
            prop_assert_eq!(with(&named(NEW)).decode(&bytes), Err(Damage::Forged));
        }
    }
}
