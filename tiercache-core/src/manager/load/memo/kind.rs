//! What cached functions return, and what of it is kept.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::super::CacheManager;
use super::super::super::typed::encode;
use super::super::value::{Raw, View, sealed};
use super::super::{Loadable, Of};
use crate::tier::Look;
use crate::{Decoded, Entry, KeyRef, Result};

/// How a value that a function returns is kept and answered.
pub trait Form: 'static {
    /// As the function returns it.
    type Out: Send + 'static;
    /// As callers share it.
    type Shared: Clone + Send + Sync + 'static;
    /// What a validator is shown.
    type Seen: ?Sized;
    /// The view of the cache it is kept in.
    type View: View + sealed::View<Value = Self::Shared, Shared = Self::Shared>;

    /// Of what the function returned.
    fn share(out: Self::Out) -> Self::Shared;
    /// What the caller gets.
    fn out(shared: Self::Shared) -> Self::Out;
    /// What a validator is shown.
    fn seen(shared: &Self::Shared) -> &Self::Seen;
}

/// A `T`; each caller gets a clone.
#[derive(Debug)]
pub struct Cloned<T>(PhantomData<fn() -> T>);

/// An `Arc<T>`, the same for all.
#[derive(Debug)]
pub struct Shared<T>(PhantomData<fn() -> T>);

/// Bytes, as they are.
#[derive(Debug)]
pub struct Bytes;

impl<T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static> Form for Cloned<T> {
    type Out = T;
    type Shared = Arc<T>;
    type Seen = T;
    type View = Memoised<T>;

    fn share(out: T) -> Arc<T> {
        Arc::new(out)
    }

    #[inline]
    fn out(shared: Arc<T>) -> T {
        Arc::unwrap_or_clone(shared)
    }

    fn seen(shared: &Arc<T>) -> &T {
        shared
    }
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Form for Shared<T> {
    type Out = Arc<T>;
    type Shared = Arc<T>;
    type Seen = T;
    type View = Memoised<T>;

    fn share(out: Arc<T>) -> Arc<T> {
        out
    }

    #[inline]
    fn out(shared: Arc<T>) -> Arc<T> {
        shared
    }

    fn seen(shared: &Arc<T>) -> &T {
        shared
    }
}

impl Form for Bytes {
    type Out = bytes::Bytes;
    type Shared = bytes::Bytes;
    type Seen = bytes::Bytes;
    type View = Raw;

    fn share(out: bytes::Bytes) -> bytes::Bytes {
        out
    }

    #[inline]
    fn out(shared: bytes::Bytes) -> bytes::Bytes {
        shared
    }

    fn seen(shared: &bytes::Bytes) -> &bytes::Bytes {
        shared
    }
}

/// What a function returns, but for its errors: a value, or an `Option` of one.
pub trait Kind: 'static {
    /// As the function returns it.
    type Out: Send + 'static;
    /// The values among it.
    type Form: Form;
    /// As it is loaded and answered.
    type Kept: Loadable<Shared_<Self>, Answer<Shared_<Self>> = Self::Kept> + Clone + Send + Sync;

    /// Of what the function returned.
    fn keep(out: Self::Out) -> Self::Kept;
    /// What the caller gets.
    fn out(kept: Self::Kept) -> Self::Out;
    /// What a validator is shown, if there is a value.
    fn seen(kept: &Self::Kept) -> Option<&<Self::Form as Form>::Seen>;
}

/// As callers of that kind share a value.
type Shared_<K> = <<K as Kind>::Form as Form>::Shared;

/// A value, always.
#[derive(Debug)]
pub struct Sure<F>(PhantomData<F>);

/// A value, or none.
#[derive(Debug)]
pub struct Maybe<F>(PhantomData<F>);

impl<F: Form> Kind for Sure<F> {
    type Out = F::Out;
    type Form = F;
    type Kept = F::Shared;

    fn keep(out: F::Out) -> F::Shared {
        F::share(out)
    }

    #[inline]
    fn out(kept: F::Shared) -> F::Out {
        F::out(kept)
    }

    fn seen(kept: &F::Shared) -> Option<&F::Seen> {
        Some(F::seen(kept))
    }
}

impl<F: Form> Kind for Maybe<F> {
    type Out = Option<F::Out>;
    type Form = F;
    type Kept = Option<F::Shared>;

    fn keep(out: Option<F::Out>) -> Option<F::Shared> {
        out.map(F::share)
    }

    #[inline]
    fn out(kept: Option<F::Shared>) -> Option<F::Out> {
        kept.map(F::out)
    }

    fn seen(kept: &Option<F::Shared>) -> Option<&F::Seen> {
        kept.as_ref().map(F::seen)
    }
}

/// The view of values that are shared from the start: as [`Of`], but loaders bring an `Arc`.
pub struct Memoised<T>(PhantomData<fn() -> T>);

impl<T> fmt::Debug for Memoised<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::any::type_name::<T>())
    }
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> View for Memoised<T> {}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> sealed::View for Memoised<T> {
    type Value = Arc<T>;
    type Shared = Arc<T>;

    #[inline]
    fn hit(cache: &CacheManager, key: KeyRef<'_>, look: Look) -> Option<Arc<T>> {
        <Of<T> as sealed::View>::hit(cache, key, look)
    }

    fn pack(value: Arc<T>) -> Result<(bytes::Bytes, Option<Decoded>)> {
        Ok((encode(&*value)?, Some(value as Arc<dyn Any + Send + Sync>)))
    }

    fn unpack(home: sealed::Home<'_>, key: KeyRef<'_>, entry: &Entry) -> Result<Option<Arc<T>>> {
        <Of<T> as sealed::View>::unpack(home, key, entry)
    }
}
