use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use super::{EncryptionConfig, KEY_ID, SEAL_HEAD, SEAL_TAG};
use crate::envelope::Damage;
use crate::{Error, Result, Secret};

/// The keys of one store, the current one first.
pub(crate) struct Keys {
    keys: Vec<([u8; KEY_ID], XChaCha20Poly1305)>,
    require: bool,
}

impl Keys {
    pub(crate) fn of(config: &EncryptionConfig) -> Result<Self> {
        let current = load(&config.key, &config.key_file, &config.id)
            .map_err(|problem| Error::Config(format!("encryption.{problem}")))?;
        let mut keys = vec![current];
        for (n, old) in config.old_keys.iter().enumerate() {
            let at = |problem: &str| Error::Config(format!("encryption.old_keys[{n}].{problem}"));
            let key = load(&old.key, &old.key_file, &old.id).map_err(|problem| at(&problem))?;
            if keys.iter().any(|(id, _)| *id == key.0) {
                return Err(at("id: another key has the same"));
            }
            keys.push(key);
        }
        Ok(Self { keys, require: config.require })
    }

    pub(crate) fn require(&self) -> bool {
        self.require
    }

    /// The id of the current key and a new nonce.
    pub(crate) fn head(&self) -> Result<[u8; SEAL_HEAD], Damage> {
        let mut head = [0; SEAL_HEAD];
        head[..KEY_ID].copy_from_slice(&self.keys[0].0);
        getrandom::fill(&mut head[KEY_ID..]).map_err(|_| Damage::NoRandom)?;
        Ok(head)
    }

    /// Encrypts `body`. `known` is what stands before it, a [`head`](Self::head) at its end, and is bound to it.
    pub(crate) fn seal(&self, known: &[u8], body: &mut [u8]) -> Result<[u8; SEAL_TAG], Damage> {
        let (cipher, nonce) = self.cipher(known)?;
        let tag = cipher.encrypt_inout_detached(&nonce, known, body.into());
        // The cipher takes 256 GiB.
        tag.map(Into::into).map_err(|_| Damage::TooLarge)
    }

    /// Decrypts what [`seal`](Self::seal) made, with the tag behind it.
    pub(crate) fn open(&self, known: &[u8], sealed: &mut [u8]) -> Result<(), Damage> {
        let (cipher, nonce) = self.cipher(known)?;
        let (body, tag) = sealed.split_last_chunk_mut::<SEAL_TAG>().ok_or(Damage::Length)?;
        cipher
            .decrypt_inout_detached(&nonce, known, body.into(), &Tag::from(*tag))
            .map_err(|_| Damage::Forged)
    }

    fn cipher(&self, known: &[u8]) -> Result<(&XChaCha20Poly1305, XNonce), Damage> {
        let head = known.last_chunk::<SEAL_HEAD>().ok_or(Damage::Length)?;
        let (id, nonce) = head.split_at(KEY_ID);
        let (_, cipher) = self.keys.iter().find(|(known, _)| known == id).ok_or(Damage::UnknownKey)?;
        Ok((cipher, nonce.try_into().map_err(|_| Damage::Length)?))
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("keys", &self.keys.len()).field("require", &self.require).finish()
    }
}

/// A key with its id, or what is wrong, beginning with the field it is about.
fn load(
    key: &Option<Secret>,
    file: &Option<PathBuf>,
    id: &Option<String>,
) -> Result<([u8; KEY_ID], XChaCha20Poly1305), String> {
    let bytes = match (key, file) {
        (Some(key), None) => decode(key.reveal()).ok_or("key: it is not 32 bytes in base64")?,
        (None, Some(path)) => {
            let problem = |what: &str| format!("key_file: {}: {what}", path.display());
            let content = read(path).map_err(|error| problem(&error.to_string()))?;
            let text = || std::str::from_utf8(&content).ok().and_then(decode);
            match <[u8; 32]>::try_from(&content[..]) {
                Ok(raw) => Zeroizing::new(raw),
                Err(_) => text().ok_or_else(|| problem("it has neither 32 bytes nor these in base64"))?,
            }
        }
        (None, None) => return Err("key: give it or key_file".into()),
        (Some(_), Some(_)) => return Err("key: give it or key_file, not both".into()),
    };
    let cipher = XChaCha20Poly1305::new((&*bytes).into());
    let id = match id {
        Some(id) => xxhash_rust::xxh3::xxh3_64(id.as_bytes()).to_be_bytes(),
        None => derived_id(&cipher)?,
    };
    Ok((id, cipher))
}

/// An id that tells nothing of the key: the beginning of the tag of a fixed message.
fn derived_id(cipher: &XChaCha20Poly1305) -> Result<[u8; KEY_ID], String> {
    let tag = cipher
        .encrypt_inout_detached(&XNonce::default(), b"tiercache key id", (&mut [][..]).into())
        .map_err(|error| format!("key: {error}"))?;
    let mut id = [0; KEY_ID];
    id.copy_from_slice(&tag[..KEY_ID]);
    Ok(id)
}

fn decode(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let bytes = Zeroizing::new(STANDARD.decode(text.trim()).ok()?);
    Some(Zeroizing::new(bytes[..].try_into().ok()?))
}

fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    use std::io::Read;
    let file = std::fs::File::open(path)?;
    let metadata = file.metadata()?;
    #[cfg(unix)]
    if std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o007 != 0 {
        return Err(io::Error::other("others may read or change it: chmod o= is needed"));
    }
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    // A key is short; reserved at once, so that no copy stays behind when it grows.
    let mut content = Zeroizing::new(Vec::with_capacity(257));
    file.take(256).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn with_key(key: &str) -> EncryptionConfig {
        EncryptionConfig { key: Some(Secret::from(key.to_owned())), ..EncryptionConfig::default() }
    }

    fn with_file(path: &Path) -> EncryptionConfig {
        EncryptionConfig { key_file: Some(path.to_owned()), ..EncryptionConfig::default() }
    }

    fn refused(config: &EncryptionConfig) -> String {
        let message = Keys::of(config).expect_err("it is refused").to_string();
        assert!(!message.contains("AAEC"), "{message}");
        message
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_shown() {
        for bad in ["", "AAEC", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8*", &KEY.repeat(2)] {
            assert_eq!(refused(&with_key(bad)), "encryption.key: it is not 32 bytes in base64");
        }
        assert_eq!(refused(&EncryptionConfig::default()), "encryption.key: give it or key_file");
        let both = EncryptionConfig { key_file: Some("k".into()), ..with_key(KEY) };
        assert_eq!(refused(&both), "encryption.key: give it or key_file, not both");
        let old = super::super::OldKey { key: both.key.clone(), ..Default::default() };
        let twice = EncryptionConfig { old_keys: vec![old], ..with_key(KEY) };
        assert_eq!(refused(&twice), "encryption.old_keys[0].id: another key has the same");
    }

    #[test]
    fn keys_are_never_shown() {
        let shown = format!("{:?} {:?}", with_key(KEY), Keys::of(&with_key(KEY)).expect("a key"));
        assert!(!shown.contains("AAEC"), "{shown}");
        let stored = rmp_serde::to_vec_named(&with_key(KEY)).expect("encodes");
        assert!(!stored.windows(4).any(|part| part == b"AAEC"));
    }

    #[test]
    #[cfg(unix)]
    fn a_key_file_has_bytes_or_base64_and_is_not_for_others() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key");
        let write = |content: &[u8], mode| {
            std::fs::write(&path, content).expect("written");
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("permitted");
        };
        let id = Keys::of(&with_key(KEY)).expect("a key").keys[0].0;
        let raw: Vec<u8> = (0..32).collect();
        for content in [&raw[..], format!("{KEY}\n").as_bytes()] {
            write(content, 0o640);
            assert_eq!(Keys::of(&with_file(&path)).expect("a key").keys[0].0, id);
            write(content, 0o644);
            assert!(refused(&with_file(&path)).contains("chmod"));
        }
        write(&raw[1..], 0o600);
        assert!(refused(&with_file(&path)).contains("neither"));
        assert!(refused(&with_file(dir.path())).starts_with("encryption.key_file: /"));
        assert!(refused(&with_file(&dir.path().join("none"))).contains("No such file"));
    }
}
