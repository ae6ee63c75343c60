//! What loaders bring and callers get, in the view of bytes and in typed ones.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::sealed::Home;
use super::super::typed::encode;
use super::super::{CacheManager, Shared};
use super::Loaded;
use crate::tier::Look;
use crate::{Decoded, Entry, KeyRef, Result};

/// A view of the cache: bytes, or values of one type.
pub trait View: sealed::View {}

/// The view of bytes.
#[derive(Debug)]
pub struct Raw;

/// The view of values of type `T`.
pub struct Of<T>(std::marker::PhantomData<fn() -> T>);

impl<T> fmt::Debug for Of<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::any::type_name::<T>())
    }
}

impl View for Raw {}
impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> View for Of<T> {}

pub(crate) mod sealed {
    use super::*;

    /// The cache that an entry is of.
    #[derive(Clone, Copy)]
    pub struct Home<'a>(pub(in crate::manager) &'a Shared);

    pub trait View: 'static {
        /// What a loader brings.
        type Value: Send + 'static;
        /// What a caller gets.
        type Shared: Clone + Send + Sync + 'static;

        /// A hot hit.
        fn hit(cache: &CacheManager, key: KeyRef<'_>, look: Look) -> Option<Self::Shared>;
        /// As it is kept.
        fn pack(value: Self::Value) -> Result<(Bytes, Option<Decoded>)>;
        /// As it is answered; `None` when the bytes do not decode.
        fn unpack(home: Home<'_>, key: KeyRef<'_>, entry: &Entry) -> Result<Option<Self::Shared>>;
    }
}

impl sealed::View for Raw {
    type Value = Bytes;
    type Shared = Bytes;

    #[inline]
    fn hit(cache: &CacheManager, key: KeyRef<'_>, look: Look) -> Option<Bytes> {
        cache.shared.hit_with(key, look)
    }

    fn pack(value: Bytes) -> Result<(Bytes, Option<Decoded>)> {
        Ok((value, None))
    }

    fn unpack(_: Home<'_>, _: KeyRef<'_>, entry: &Entry) -> Result<Option<Bytes>> {
        Ok(Some(entry.value.clone()))
    }
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> sealed::View for Of<T> {
    type Value = T;
    type Shared = Arc<T>;

    fn hit(cache: &CacheManager, key: KeyRef<'_>, look: Look) -> Option<Arc<T>> {
        cache.shared.hit_decoded(key, look)
    }

    fn pack(value: T) -> Result<(Bytes, Option<Decoded>)> {
        let bytes = encode(&value)?;
        Ok((bytes, Some(Arc::new(value) as Arc<dyn Any + Send + Sync>)))
    }

    fn unpack(home: Home<'_>, key: KeyRef<'_>, entry: &Entry) -> Result<Option<Arc<T>>> {
        home.0.decoded(key, entry)
    }
}

/// What a loader may bring: a value, an `Option` of one (`None` says that there is none), or either as [`Loaded`] with
/// what it decided about it. The view of bytes takes vectors and strings as well.
pub trait Loadable<T>: Send + 'static {
    /// What callers get, where `S` is the value as they share it: `S`, or an `Option` of it.
    type Answer<S: Clone + Send + Sync>: Clone + Send + Sync;

    /// The value, or that there is none.
    fn loaded(self) -> Loaded<Option<T>>;

    /// The answer, if that is one: "there is none" answers only callers whose loader may say so.
    fn answer<S: Clone + Send + Sync>(found: Option<S>) -> Option<Self::Answer<S>>;
}

impl<T> Loaded<T> {
    /// The same, of another value.
    pub fn map<U>(self, map: impl FnOnce(T) -> U) -> Loaded<U> {
        let Self { value, store, ttl, tags, content_type } = self;
        Loaded { value: map(value), store, ttl, tags, content_type }
    }
}

macro_rules! sure {
    () => {
        type Answer<S: Clone + Send + Sync> = S;

        fn answer<S: Clone + Send + Sync>(found: Option<S>) -> Option<S> {
            found
        }
    };
}

macro_rules! optional {
    () => {
        type Answer<S: Clone + Send + Sync> = Option<S>;

        fn answer<S: Clone + Send + Sync>(found: Option<S>) -> Option<Option<S>> {
            Some(found)
        }
    };
}

impl<T: Send + 'static> Loadable<T> for T {
    sure!();

    fn loaded(self) -> Loaded<Option<T>> {
        Loaded::new(Some(self))
    }
}

impl<T: Send + 'static> Loadable<T> for Loaded<T> {
    sure!();

    fn loaded(self) -> Loaded<Option<T>> {
        self.map(Some)
    }
}

impl<T: Send + 'static> Loadable<T> for Option<T> {
    optional!();

    fn loaded(self) -> Loaded<Option<T>> {
        Loaded::new(self)
    }
}

impl<T: Send + 'static> Loadable<T> for Loaded<Option<T>> {
    optional!();

    fn loaded(self) -> Loaded<Option<T>> {
        self
    }
}

macro_rules! bytes_from {
    ($($of:ty),*) => {$(
        impl Loadable<Bytes> for $of {
            sure!();

            fn loaded(self) -> Loaded<Option<Bytes>> {
                Loaded::new(Some(self.into()))
            }
        }
    )*};
}

bytes_from!(Vec<u8>, String, &'static str, &'static [u8]);
