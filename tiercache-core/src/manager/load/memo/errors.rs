//! What becomes of a cached function's errors.
//!
//! The caller whose call ran has the error that it made. What those have who waited for that call depends on what the
//! error's type can do, and is chosen where the type is known, by the order in which methods are looked up.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::Error;

/// A `Result`, under whatever name.
pub trait Fallible {
    /// Of `Ok`.
    type Ok;
    /// Of `Err`.
    type Error;

    /// As a plain `Result`.
    fn result(self) -> Result<Self::Ok, Self::Error>;
}

impl<T, E> Fallible for Result<T, E> {
    type Ok = T;
    type Error = E;

    #[inline]
    fn result(self) -> Self {
        self
    }
}

/// What the cache is told when a function failed.
#[derive(Clone)]
pub struct Failed {
    text: String,
    error: Option<Arc<dyn Any + Send + Sync>>,
    pub(super) dropped: bool,
}

impl Failed {
    fn with(text: String, error: Option<Arc<dyn Any + Send + Sync>>) -> Self {
        Self { text, error, dropped: false }
    }

    /// The caller in which it ran is gone.
    pub(super) fn dropped() -> Self {
        Self { dropped: true, ..Self::with("it was dropped".into(), None) }
    }

    /// It did.
    pub(super) fn panicked() -> Self {
        Self::with("it panicked".into(), None)
    }

    /// This, if that is what a load failed with.
    pub(super) fn of(error: &Error) -> Option<&Self> {
        let Error::Load { source } = error else { return None };
        source.downcast_ref()
    }
}

impl fmt::Debug for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failed {}

/// How errors of type `E` reach those who waited.
pub struct Errors<E> {
    pub(super) mark: fn(&E) -> Failed,
    pub(super) back: fn(&Error) -> Option<E>,
    /// They run the function in their turn.
    pub(super) in_turn: bool,
}

impl<E> fmt::Debug for Errors<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Errors").field("in_turn", &self.in_turn).finish_non_exhaustive()
    }
}

impl<E> Errors<E> {
    /// They do not: each runs the function in its turn.
    #[inline]
    pub const fn in_turn() -> Self {
        Self { mark: |_| failed(), back: |_| None, in_turn: true }
    }
}

/// Which of the ways errors of type `E` can go.
#[derive(Debug)]
pub struct Policy<E>(PhantomData<fn() -> E>);

impl<E> Policy<E> {
    /// To be asked for `errors()` behind four references.
    #[inline]
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<E> Default for Policy<E> {
    fn default() -> Self {
        Self::new()
    }
}

/// They get a clone; for a time-out or a panic, what the cache's error converts to.
pub trait ByCloneAndFrom<E> {
    /// This way.
    fn errors(&self) -> Errors<E>;
}

/// They get a clone.
pub trait ByClone<E> {
    /// This way.
    fn errors(&self) -> Errors<E>;
}

/// They get what the cache's error converts to: [`Error::Load`] with the text of the function's.
pub trait ByFrom<E> {
    /// This way.
    fn errors(&self) -> Errors<E>;
}

/// They run the function in their turn.
pub trait InTurn<E> {
    /// This way.
    fn errors(&self) -> Errors<E>;
}

impl<E: Clone + From<Error> + Send + Sync + 'static> ByCloneAndFrom<E> for &&&Policy<E> {
    #[inline]
    fn errors(&self) -> Errors<E> {
        Errors {
            mark: cloned,
            back: |error| clone_of(error).or_else(|| Some(E::from(error.clone()))),
            in_turn: false,
        }
    }
}

impl<E: Clone + Send + Sync + 'static> ByClone<E> for &&Policy<E> {
    #[inline]
    fn errors(&self) -> Errors<E> {
        Errors { mark: cloned, back: clone_of, in_turn: false }
    }
}

impl<E: From<Error> + fmt::Display> ByFrom<E> for &Policy<E> {
    #[inline]
    fn errors(&self) -> Errors<E> {
        Errors {
            mark: |error| Failed::with(format!("{error:#}"), None),
            back: |error| Some(E::from(error.clone())),
            in_turn: false,
        }
    }
}

impl<E> InTurn<E> for Policy<E> {
    #[inline]
    fn errors(&self) -> Errors<E> {
        Errors::in_turn()
    }
}

fn failed() -> Failed {
    Failed::with("it returned an error".into(), None)
}

fn cloned<E: Clone + Send + Sync + 'static>(error: &E) -> Failed {
    Failed { error: Some(Arc::new(error.clone())), ..failed() }
}

fn clone_of<E: Clone + 'static>(error: &Error) -> Option<E> {
    Failed::of(error)?.error.as_ref()?.downcast_ref::<E>().cloned()
}
