pub(crate) use tiercache_core::secret::{HIDDEN, without_credentials};

/// Whether a key of this name holds a secret.
pub(crate) fn is_secret(key: &str) -> bool {
    let key = key.to_lowercase();
    key == "key"
        || ["password", "passwd", "secret", "token", "access_key", "credential", "private_key", "api_key"]
            .iter()
            .any(|word| key.contains(word))
}
