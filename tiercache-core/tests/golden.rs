//! Envelopes as earlier versions wrote them: whatever was stored once is read for ever, or its version is refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use tiercache_core::envelope::{self, Compression, Damage};
use tiercache_core::{Entry, Generation, Key, Level, Levels, Stay, Timestamp};

const CREATED: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// Every form an envelope of version 1 can have. The names are those of the files.
fn version_1() -> Vec<(&'static str, Key, Entry, Compression)> {
    let key = |namespace, bytes: &[u8]| Key::new(namespace, bytes).unwrap();
    let entry = |value: &[u8], generation| Entry::new(value.to_vec(), Generation::new(generation), CREATED);
    let long = "a long value that repeats itself, ".repeat(40);

    let mut deadline = entry(b"dies", 2);
    deadline.deadline = CREATED.after(Duration::from_secs(60));
    deadline.explicit_ttl = true;
    let mut levels = entry(b"pinned", Generation::MAX.get());
    levels.levels = Levels::only(Level::Cold);
    let mut extras = entry(b"{}", 4);
    let fields = extras.extras_mut();
    fields.tags.insert("type".into(), "thumbnail".into());
    fields.tags.insert("größe".into(), String::new());
    fields.stays = [Some(Stay::For(Duration::from_millis(1_500))), None, Some(Stay::Forever)];
    fields.content_type = Some("application/json".into());
    fields.user.insert("etag".into(), "\"1\"".into());
    let mut all = extras.clone();
    all.value = long.clone().into();
    all.levels = Levels::ALL.without(Level::Hot);
    all.deadline = CREATED.after(Duration::from_secs(60));

    let mut cases = vec![
        ("plain", key("", b"k"), entry(b"value", 1), Compression::None),
        ("empty", key("", b"k"), entry(b"", 1), Compression::None),
        (
            "binary-key",
            key("tenant a", &[0, 0xff, b'/', b'.']),
            entry(&[0, 1, 2, 0xff], 7),
            Compression::None,
        ),
        ("deadline", key("", b"k"), deadline, Compression::None),
        ("levels", key("", b"k"), levels, Compression::None),
        ("extras", key("ns", "schlüssel".as_bytes()), extras, Compression::None),
    ];
    if cfg!(feature = "lz4") {
        cases.push(("lz4", key("", b"k"), entry(long.as_bytes(), 5), Compression::Lz4));
    }
    if cfg!(feature = "zstd") {
        cases.push(("zstd", key("", b"k"), entry(long.as_bytes(), 6), Compression::Zstd(3)));
        cases.push(("zstd-with-all", key("ns", b"k"), all, Compression::Zstd(3)));
    }
    cases
}

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("v1-{name}.bin"))
}

fn golden(name: &str) -> Bytes {
    std::fs::read(file(name)).unwrap_or_else(|error| panic!("{name}: {error}")).into()
}

#[test]
fn what_version_1_wrote_is_read() {
    for (name, key, entry, _) in version_1() {
        let bytes = golden(name);
        assert_eq!(envelope::decode(&bytes, 1 << 20).unwrap(), (key.clone(), entry.clone()), "{name}");
        assert_eq!(envelope::decode_for(key.as_ref(), &bytes, 1 << 20).unwrap(), entry, "{name}");
        assert_eq!(envelope::declared_len(&bytes).unwrap(), bytes.len(), "{name}");
        let header = envelope::verify(&bytes).unwrap();
        assert_eq!((header.generation, header.deadline), (entry.generation, entry.deadline), "{name}");
    }
}

#[test]
fn what_is_written_now_is_what_version_1_wrote() {
    for (name, key, entry, compression) in version_1() {
        let mut out = Vec::new();
        envelope::encode(key.as_ref(), &entry, compression, &mut out).unwrap();
        assert_eq!(out, golden(name), "{name}");
    }
}

#[test]
fn other_versions_and_unknown_flags_are_refused_as_such() {
    for (name, ..) in version_1() {
        let whole = golden(name).to_vec();
        for version in (0..=u8::MAX).filter(|&version| version != 1) {
            let mut bytes = whole.clone();
            bytes[2] = version;
            assert_eq!(envelope::verify(&bytes), Err(Damage::Version), "{name} {version}");
        }
        for flag in [1 << 6, 1 << 7, 0b11] {
            let mut bytes = whole.clone();
            bytes[3] |= flag;
            assert_eq!(envelope::verify(&bytes), Err(Damage::Version), "{name} {flag:b}");
        }
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    for (name, key, ..) in version_1() {
        let whole = golden(name);
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.to_vec();
                bytes[at] ^= 1 << bit;
                let bytes = Bytes::from(bytes);
                assert!(envelope::decode_for(key.as_ref(), &bytes, 1 << 20).is_err(), "{name} {at} {bit}");
                assert!(envelope::decode(&bytes, 1 << 20).is_err(), "{name} {at} {bit}");
            }
            assert!(envelope::decode(&whole.slice(..at), 1 << 20).is_err(), "{name} cut at {at}");
        }
    }
}

#[test]
#[ignore = "writes the files of a version that was not released yet"]
fn write_what_is_missing() {
    for (name, key, entry, compression) in version_1() {
        let mut out = Vec::new();
        envelope::encode(key.as_ref(), &entry, compression, &mut out).unwrap();
        if !file(name).exists() {
            std::fs::write(file(name), out).unwrap();
        }
    }
}

/// What differs with encryption: the key is needed, and no two envelopes are alike.
#[cfg(feature = "encryption")]
mod sealed {
    use tiercache_core::{Codec, EncryptionConfig, Packing, Secret};

    use super::*;

    const NOTE: &[u8] = b"note";

    fn codec(packing: Packing) -> Codec {
        let key = Secret::from("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".to_owned());
        let config = EncryptionConfig { key: Some(key), ..EncryptionConfig::default() };
        Codec::new(packing).unwrap().with_encryption(&config).unwrap()
    }

    fn cases() -> impl Iterator<Item = (String, Key, Entry, Codec)> {
        version_1().into_iter().map(|(name, key, entry, compression)| {
            let packing = match compression {
                Compression::None => Packing::None,
                Compression::Lz4 => Packing::Lz4,
                Compression::Zstd(_) => Packing::Zstd,
            };
            (format!("sealed-{name}"), key, entry, codec(packing))
        })
    }

    fn encode(codec: &Codec, key: &Key, entry: &Entry) -> Vec<u8> {
        let mut out = Vec::new();
        codec.encode_noted(key.as_ref(), entry, NOTE, &mut out).unwrap();
        out
    }

    #[test]
    fn what_version_1_sealed_is_opened() {
        for (name, key, entry, codec) in cases() {
            let bytes = golden(&name);
            assert_eq!(codec.decode(&bytes).unwrap(), (key.clone(), entry.clone()), "{name}");
            assert_eq!(codec.decode_for(key.as_ref(), &bytes).unwrap(), entry, "{name}");
            assert_eq!(envelope::declared_len(&bytes).unwrap(), bytes.len(), "{name}");
            let header = envelope::verify(&bytes).unwrap();
            assert_eq!((header.generation, header.deadline), (entry.generation, entry.deadline), "{name}");
            assert_eq!((header.is_sealed(), &bytes[header.key_range()]), (true, NOTE), "{name}");
            assert_eq!(envelope::decode(&bytes, 1 << 20), Err(Damage::UnknownKey), "{name}");
            assert!(!bytes.windows(6).any(|part| part == b"pinned" || part == b"tenant"), "{name}");
        }
    }

    #[test]
    fn what_is_sealed_now_differs_from_version_1_in_nonce_and_ciphertext_only() {
        for (name, key, entry, codec) in cases() {
            let (now, then) = (encode(&codec, &key, &entry), golden(&name));
            assert_eq!(now.len(), then.len(), "{name}");
            assert_eq!((&now[..29], &now[37..49]), (&then[..29], &then[37..49]), "{name}");
            let identity = |bytes| envelope::verify(bytes).unwrap().identity();
            assert_eq!(identity(&now), identity(&then), "{name}");
            assert_ne!(now[49..73], then[49..73], "{name}");
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        for (name, key, _, codec) in cases() {
            let whole = golden(&name);
            for at in 0..whole.len() {
                for bit in 0..8 {
                    let mut bytes = whole.to_vec();
                    bytes[at] ^= 1 << bit;
                    let bytes = Bytes::from(bytes);
                    assert!(codec.decode_for(key.as_ref(), &bytes).is_err(), "{name} {at} {bit}");
                }
                assert!(codec.decode(&whole.slice(..at)).is_err(), "{name} cut at {at}");
            }
        }
    }

    #[test]
    #[ignore = "writes the files of a version that was not released yet"]
    fn write_what_is_missing() {
        for (name, key, entry, codec) in cases().filter(|(name, ..)| !file(name).exists()) {
            std::fs::write(file(&name), encode(&codec, &key, &entry)).unwrap();
        }
    }
}
