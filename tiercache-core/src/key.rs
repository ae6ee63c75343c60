use std::borrow::Cow;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::LazyLock;

use triomphe::ThinArc;

use crate::{Error, Result};

/// The most bytes a key may have. Backends with a lower limit of their own hash what is longer.
pub const MAX_KEY_BYTES: usize = 16 * 1024;
/// The most bytes a namespace may have.
pub const MAX_NAMESPACE_BYTES: usize = 255;

// Keys may come from strangers: the seed is this process's own, so that nobody can prepare collisions.
static SEED: LazyLock<foldhash::quality::RandomState> = LazyLock::new(Default::default);

/// A namespace and the bytes of a key within it, validated once; cheap to clone.
///
/// Its encoding puts the namespace's length first, so that no two pairs share one.
#[derive(Clone)]
pub struct Key {
    /// The hash, and `[namespace length][namespace][key]`. One word here, since tables hold many keys.
    data: ThinArc<u64, u8>,
}

impl Key {
    /// A key of `bytes` in `namespace`; the empty namespace is the default one.
    ///
    /// # Errors
    /// [`Error::InvalidKey`] when the key is empty or longer than [`MAX_KEY_BYTES`], or the namespace is longer
    /// than [`MAX_NAMESPACE_BYTES`].
    pub fn new(namespace: &str, bytes: &[u8]) -> Result<Self> {
        Ok(KeyRef::new(namespace, bytes)?.to_key())
    }

    /// The namespace's name.
    pub fn namespace(&self) -> &str {
        std::str::from_utf8(&self.encoded()[1..self.split()]).unwrap_or_default()
    }

    /// The key's bytes within its namespace.
    pub fn bytes(&self) -> &[u8] {
        &self.encoded()[self.split()..]
    }

    /// The injective encoding of namespace and key.
    #[inline]
    pub fn encoded(&self) -> &[u8] {
        &self.data.slice
    }

    /// A hash that differs from process to process.
    #[inline]
    pub fn hash64(&self) -> u64 {
        self.data.header.header
    }

    /// The key borrowed, for look-ups.
    pub fn as_ref(&self) -> KeyRef<'_> {
        let (data, split) = (self.encoded(), self.split());
        KeyRef { hash: self.hash64(), namespace: &data[1..split], bytes: &data[split..] }
    }

    /// The key as text for people: bytes that are not UTF-8 are shown as replacement characters.
    pub fn display(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.bytes())
    }

    fn split(&self) -> usize {
        1 + self.encoded()[0] as usize
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_ref().fmt(f)
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.hash64() == other.hash64() && self.encoded() == other.encoded()
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash64());
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// By namespace, then by key, both byte by byte: the order in which keys are listed.
impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        if self.encoded()[0] == other.encoded()[0] {
            // Namespaces of one length: what follows them is compared only when they are the same.
            return self.encoded().cmp(other.encoded());
        }
        let (this, other) = (self.as_ref(), other.as_ref());
        (this.namespace, this.bytes).cmp(&(other.namespace, other.bytes))
    }
}

/// A [`Key`] that is borrowed: looking up with it allocates nothing. Hashes like the key it stands for.
#[derive(Clone, Copy)]
pub struct KeyRef<'a> {
    hash: u64,
    namespace: &'a [u8],
    bytes: &'a [u8],
}

impl<'a> KeyRef<'a> {
    /// A borrowed key, validated like [`Key::new`].
    ///
    /// # Errors
    /// As for [`Key::new`].
    #[inline]
    pub fn new(namespace: &'a str, bytes: &'a [u8]) -> Result<Self> {
        if namespace.len() > MAX_NAMESPACE_BYTES {
            return Err(Error::InvalidKey("a namespace has at most 255 bytes"));
        }
        Self::within(namespace, bytes)
    }

    /// Likewise, in a namespace that was checked. Inlined, so that a hit does not write it down only to read it again.
    #[inline(always)]
    pub(crate) fn within(namespace: &'a str, bytes: &'a [u8]) -> Result<Self> {
        if bytes.is_empty() || bytes.len() > MAX_KEY_BYTES {
            return Err(wrong_length(bytes));
        }
        let mut hasher = SEED.build_hasher();
        hasher.write(bytes);
        if !namespace.is_empty() {
            hasher.write(namespace.as_bytes());
        }
        Ok(Self { hash: hasher.finish(), namespace: namespace.as_bytes(), bytes })
    }

    /// The key of which that is the hash.
    #[inline]
    pub(crate) const fn hashed(hash: u64, namespace: &'a str, bytes: &'a [u8]) -> Self {
        Self { hash, namespace: namespace.as_bytes(), bytes }
    }

    /// The namespace's bytes, which are UTF-8.
    pub const fn namespace(&self) -> &'a [u8] {
        self.namespace
    }

    /// The key's bytes within its namespace.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The same hash as that of the [`Key`].
    pub const fn hash64(&self) -> u64 {
        self.hash
    }

    /// The owned key: one allocation.
    pub fn to_key(&self) -> Key {
        let length = 1 + self.namespace.len() + self.bytes.len();
        let fill = |buffer: &mut [u8]| {
            // Validated: a namespace has at most 255 bytes.
            buffer[0] = self.namespace.len() as u8;
            buffer[1..=self.namespace.len()].copy_from_slice(self.namespace);
            buffer[1 + self.namespace.len()..].copy_from_slice(self.bytes);
        };
        let mut short = [0u8; 128];
        let data = if length <= short.len() {
            fill(&mut short[..length]);
            ThinArc::from_header_and_slice(self.hash, &short[..length])
        } else {
            let mut long = vec![0u8; length];
            fill(&mut long);
            ThinArc::from_header_and_slice(self.hash, &long)
        };
        Key { data }
    }

    /// Whether this borrows what `key` owns.
    #[inline]
    pub fn is(&self, key: &Key) -> bool {
        let (data, split) = (key.encoded(), 1 + self.namespace.len());
        // The hashes are not compared: whoever looks up by them has done so, and the bytes say it all.
        data.len() == split + self.bytes.len()
            && usize::from(data[0]) == self.namespace.len()
            && (split == 1 || data[1..split] == *self.namespace)
            && data[split..] == *self.bytes
    }
}

#[cold]
fn wrong_length(bytes: &[u8]) -> Error {
    Error::InvalidKey(if bytes.is_empty() {
        "a key has at least one byte"
    } else {
        "a key has at most 16384 bytes"
    })
}

impl fmt::Debug for KeyRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", String::from_utf8_lossy(self.namespace).escape_debug())?;
        }
        write!(f, "{}", String::from_utf8_lossy(self.bytes).escape_debug())
    }
}

impl Hash for KeyRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl hashbrown::Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.is(key)
    }
}

/// What can be given as a key: text, bytes, or a [`Key`] (its bytes count, the namespace is the handle's).
pub trait AsKey {
    /// The key's bytes.
    fn key_bytes(&self) -> &[u8];
}

impl AsKey for str {
    fn key_bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl AsKey for String {
    fn key_bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl AsKey for [u8] {
    fn key_bytes(&self) -> &[u8] {
        self
    }
}

impl AsKey for Vec<u8> {
    fn key_bytes(&self) -> &[u8] {
        self
    }
}

impl<const N: usize> AsKey for [u8; N] {
    fn key_bytes(&self) -> &[u8] {
        self
    }
}

impl AsKey for bytes::Bytes {
    fn key_bytes(&self) -> &[u8] {
        self
    }
}

impl AsKey for Key {
    fn key_bytes(&self) -> &[u8] {
        self.bytes()
    }
}

impl<T: AsKey + ?Sized> AsKey for &T {
    fn key_bytes(&self) -> &[u8] {
        (**self).key_bytes()
    }
}

/// A key made of what a result depends on: kind, content, options, versions. A change in any is another key.
///
/// Every part is hashed (XXH3, 128 bit) with its type and length before it, so that `("ab", "c")` differs from
/// `("a", "bc")` and `1` from `"1"`. The same parts give the same key in every process.
///
/// ```
/// use tiercache_core::ContentKey;
/// let key = ContentKey::new("thumbnail").content(b"raw image").option("width", "64").version("encoder", "2.1").build();
/// assert!(key.starts_with("thumbnail:"));
/// ```
#[derive(Clone, Debug)]
pub struct ContentKey {
    kind: String,
    parts: Vec<Vec<u8>>,
    named: std::collections::BTreeMap<String, Vec<u8>>,
}

impl ContentKey {
    /// A key of that kind; the kind stays readable in front of the hash.
    pub fn new(kind: impl Into<String>) -> Self {
        Self { kind: kind.into(), parts: Vec::new(), named: std::collections::BTreeMap::new() }
    }

    /// Adds bytes the result depends on; the order of such parts matters.
    #[must_use]
    pub fn content(mut self, content: impl AsRef<[u8]>) -> Self {
        self.parts.push(tagged(b'b', content.as_ref()));
        self
    }

    /// Adds text the result depends on.
    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        self.parts.push(tagged(b's', text.as_bytes()));
        self
    }

    /// Adds a whole number the result depends on.
    #[must_use]
    pub fn number(mut self, number: i64) -> Self {
        self.parts.push(tagged(b'i', &number.to_le_bytes()));
        self
    }

    /// Adds any serialisable argument, by its type's name and the MessagePack it serialises to.
    ///
    /// # Errors
    /// [`Error::Codec`] when it does not serialise.
    pub fn argument<T: serde::Serialize + ?Sized>(mut self, argument: &T) -> Result<Self> {
        let bytes = rmp_serde::to_vec_named(argument)
            .map_err(|error| Error::Codec { what: "serialisable", reason: error.to_string() })?;
        // MessagePack writes a small u8 and a small i64 alike; the type's name keeps them apart.
        self.parts.push(tagged(b't', std::any::type_name::<T>().as_bytes()));
        self.parts.push(tagged(b'm', &bytes));
        Ok(self)
    }

    /// Sets an option by name; the order of options does not matter.
    #[must_use]
    pub fn option(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.named.insert(format!("o{name}"), tagged(b'o', value.as_ref()));
        self
    }

    /// Sets the version of something the result was made with.
    #[must_use]
    pub fn version(mut self, of: &str, version: &str) -> Self {
        self.named.insert(format!("v{of}"), tagged(b'v', version.as_bytes()));
        self
    }

    /// The key: the kind, a colon and 32 hexadecimal digits.
    pub fn build(&self) -> String {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        let mut feed = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        feed(self.kind.as_bytes());
        feed(&(self.parts.len() as u64).to_le_bytes());
        self.parts.iter().for_each(|part| feed(part));
        for (name, value) in &self.named {
            feed(name.as_bytes());
            feed(value);
        }
        format!("{}:{:032x}", self.kind, hasher.digest128())
    }
}

fn tagged(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let mut part = Vec::with_capacity(1 + bytes.len());
    part.push(kind);
    part.extend_from_slice(bytes);
    part
}
