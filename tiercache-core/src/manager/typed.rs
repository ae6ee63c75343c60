//! A view of the cache that holds values of one type: MessagePack below, the value itself above.

use std::any::Any;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::counters::Count;
use super::guard::caught_now;
use super::{CacheManager, Set, Shared};
use crate::tier::Look;
use crate::{AsKey, Entry, Error, KeyRef, Level, Result};

/// Nested deeper than this, stored bytes are not decoded: a task's stack is small.
const MAX_DEPTH: usize = 64;

/// A cache of values of type `T`. Cheap to clone.
///
/// Values are stored as MessagePack with field names, so that a field added with a default still decodes what was
/// stored before. Hot keeps the decoded value beside the bytes: a hot hit decodes nothing.
#[derive(Debug)]
pub struct TypedCache<T> {
    pub(super) manager: CacheManager,
    of: PhantomData<fn() -> T>,
}

impl<T> Clone for TypedCache<T> {
    fn clone(&self) -> Self {
        Self { manager: self.manager.clone(), of: PhantomData }
    }
}

impl CacheManager {
    /// A view of this cache that holds values of type `T`.
    pub fn typed<T: Serialize + DeserializeOwned + Send + Sync + 'static>(&self) -> TypedCache<T> {
        TypedCache { manager: self.clone(), of: PhantomData }
    }
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> TypedCache<T> {
    /// The value of `key`, shared. Bytes that do not decode as a `T` are a miss, and counted.
    ///
    /// # Errors
    /// As for [`CacheManager::get`]; [`Error::Panicked`] when decoding does.
    pub async fn get(&self, key: impl AsKey) -> Result<Option<Arc<T>>> {
        let manager = &self.manager;
        let shared = &manager.shared;
        let hash = {
            let key = manager.key(&key)?;
            if let Some(value) = shared.hit_decoded(key, shared.coarse_look()) {
                return Ok(Some(value));
            }
            key.hash64()
        };
        let key = manager.hashed(hash, &key);
        match shared.find(key).await? {
            Some(found) => shared.decoded(key, &found.entry),
            None => Ok(None),
        }
    }

    /// Keeps `value` under `key`, with options like [`CacheManager::set`]. The value is encoded here and now.
    ///
    /// # Errors
    /// [`Error::Codec`] when it does not encode, [`Error::Panicked`] when encoding does.
    pub fn set(&self, key: impl AsKey, value: impl Into<Arc<T>>) -> Result<Set<'_>> {
        let value: Arc<T> = value.into();
        let bytes = encode(&*value)?;
        Ok(self.manager.set(key, bytes).decoded(value as Arc<dyn Any + Send + Sync>))
    }

    /// The cache this is a view of.
    pub fn bytes(&self) -> &CacheManager {
        &self.manager
    }
}

impl Shared {
    /// What hot has decoded.
    #[inline]
    pub(super) fn hit_decoded<T: Send + Sync + 'static>(
        &self,
        key: KeyRef<'_>,
        look: Look,
    ) -> Option<Arc<T>> {
        let resident = self.slots[0].as_ref()?.resident()?;
        let value = resident.hit_decoded(key, look)?.downcast::<T>().ok()?;
        self.flow.counters.count(Count::Hit(Level::Hot));
        Some(value)
    }

    /// The entry's value, decoded once for all who come after. Bytes that do not decode are no value, and counted.
    pub(super) fn decoded<T>(&self, key: KeyRef<'_>, entry: &Entry) -> Result<Option<Arc<T>>>
    where
        T: DeserializeOwned + Send + Sync + 'static,
    {
        let decoded = entry.extras.as_ref().and_then(|extras| extras.decoded.get()).cloned();
        if let Some(value) = decoded.and_then(|decoded| decoded.downcast::<T>().ok()) {
            return Ok(Some(value));
        }
        let Some(value) = decode::<T>(&entry.value)? else {
            self.flow.counters.count(Count::Undecodable);
            tracing::warn!(?key, wanted = std::any::type_name::<T>(), "stored bytes do not decode");
            return Ok(None);
        };
        let value = Arc::new(value);
        // Under the stripe, like everything that changes what RAM holds of a key.
        let _stripe = self.stripes.lock(key.hash64());
        if let Some(resident) = self.top(entry.levels).and_then(|top| top.resident()) {
            resident.attach_decoded(key, entry.generation, value.clone() as Arc<dyn Any + Send + Sync>);
        }
        Ok(Some(value))
    }
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<Bytes> {
    let mut bytes = Vec::new();
    let mut encoder = rmp_serde::Serializer::new(&mut bytes).with_struct_map();
    let encoded = caught_now("a value's encoder", || Ok(value.serialize(&mut encoder)));
    encoded?.map_err(|error| Error::Codec { what: "encodable", reason: error.to_string() })?;
    Ok(bytes.into())
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &Bytes) -> Result<Option<T>> {
    let mut decoder = rmp_serde::Deserializer::from_read_ref(&bytes[..]);
    decoder.set_max_depth(MAX_DEPTH);
    caught_now("a value's decoder", || Ok(T::deserialize(&mut decoder).ok()))
}
