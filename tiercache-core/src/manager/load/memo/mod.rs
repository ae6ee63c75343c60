//! Functions behind the cache: what `#[cached]` calls.
//!
//! A call that hot does not answer is a load, and runs in one of two places:
//! - **in a task of the manager's** ([`Miss::owned`]): whoever is dropped, it goes on. It takes a call that owns what it
//!   needs, and can go on in the background.
//! - **where it was called** ([`Miss::in_place`], [`Miss::here`]): it may borrow. The load waits for it; when the caller
//!   is dropped, one of those who wait runs it anew.
//!
//! A caller is never worse off than without a cache: where that cannot help, the function runs, and where the load was
//! given up, the caller goes on with what had begun.

mod errors;
mod kind;
mod stand;
mod work;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use self::errors::{ByClone, ByCloneAndFrom, ByFrom, Errors, Failed, Fallible, InTurn, Policy};
pub use self::kind::{Bytes, Cloned, Form, Kind, Maybe, Memoised, Shared, Sure};
use self::stand::{Stand, Turn};
use self::work::Slot;
use super::super::set::{Draft, Set, Ttl};
use super::super::{CacheManager, Removed, Written, blocking};
use super::run;
use super::value::{Loadable, sealed::View};
use super::{LoadOptions, Plain, Served};
use crate::memo::CallKey;
use crate::{Error, Key, KeyRef, Result};

/// The tag that all results of a function have: its name.
const FUNCTION: &str = "function";
/// The longest name that can be a tag's value.
const LONGEST_NAME: usize = 1024;
/// How often a value is fetched anew because a validator rejects what others store.
const MOST_REJECTED: u32 = 3;

/// What a function is called. What stands for it besides is the name of a type.
#[derive(Clone, Copy, Debug)]
pub enum Named {
    /// By that type.
    Free,
    /// By that type and this name.
    Method(&'static str),
    /// By this name alone.
    Given(&'static str),
}

/// What all calls of a function have in common.
#[derive(Debug)]
pub struct Memo {
    name: Named,
    namespace: Option<&'static str>,
    options: LoadOptions,
}

/// The form's own types, for short.
type ViewOf<K> = <<K as Kind>::Form as Form>::View;
type SeenOf<K> = <<K as Kind>::Form as Form>::Seen;
/// Whether a stored value is still good.
type Validator<K> = Option<fn(&SeenOf<K>) -> bool>;

impl Memo {
    /// Of a function whose results are kept with `options`, in `namespace` or that of the cache's handle.
    pub fn new(name: Named, namespace: Option<&'static str>, options: LoadOptions) -> Self {
        Self { name, namespace, options }
    }

    /// What hot has, if that is all that is needed.
    #[inline]
    pub fn hit<K: Kind>(
        &self,
        cache: Option<&CacheManager>,
        key: &mut CallKey,
        valid: Validator<K>,
    ) -> Option<K::Out> {
        let cache = cache?;
        let key = KeyRef::new(self.namespace(cache), key.finish().ok()?).ok()?;
        let look = self.options.look(&cache.shared)?;
        let kept = <K::Kept as Loadable<_>>::answer(Some(ViewOf::<K>::hit(cache, key, look)?))?;
        is_valid::<K>(&kept, valid).then(|| K::out(kept))
    }

    /// A call that hot does not answer. `anew` drops what there is.
    pub fn miss<'a, K: Kind>(
        &self,
        cache: Option<&'a CacheManager>,
        key: &mut CallKey,
        function: &'static str,
        anew: bool,
        valid: Validator<K>,
    ) -> Miss<'a, K> {
        let target = cache.and_then(|cache| match self.key(cache, key) {
            Ok(key) => Some((cache, key)),
            Err(error) => {
                tracing::warn!(function, %error, "not cached");
                None
            }
        });
        let options = self.options.clone().tag(FUNCTION, self.tag(function));
        Miss { target, options, anew, valid }
    }

    /// Keeps `value` as if the function had returned it.
    ///
    /// # Errors
    /// As for [`CacheManager::set`]; [`Error::Config`] without a cache.
    pub async fn prime<K: Kind>(
        &self,
        cache: Option<&CacheManager>,
        mut key: CallKey,
        function: &'static str,
        tags: impl FnOnce(LoadOptions) -> LoadOptions,
        value: <K::Form as Form>::Out,
    ) -> Result<Written> {
        let cache = some(cache)?;
        let key = self.key(cache, &mut key)?;
        let options = tags(self.options.clone()).tag(FUNCTION, self.tag(function));
        options.check()?;
        let (bytes, decoded) = ViewOf::<K>::pack(K::Form::share(value))?;
        let mut draft = Draft::new(bytes);
        draft.levels = options.levels;
        let extras = Arc::make_mut(draft.extras.get_or_insert_with(std::default::Default::default));
        extras.stale = options.stale;
        let mut set = Set { manager: cache, of: Ok((key, draft)) };
        if let Some(decoded) = decoded {
            set = set.decoded(decoded);
        }
        for (name, value) in options.tags {
            set = set.tag(name, value);
        }
        if let Ttl::For(ttl) = options.ttl {
            set = set.ttl(ttl);
        }
        set.await
    }

    /// Removes the result of that call.
    ///
    /// # Errors
    /// As for [`CacheManager::delete`]; [`Error::Config`] without a cache.
    pub async fn invalidate(&self, cache: Option<&CacheManager>, mut key: CallKey) -> Result<Removed> {
        let cache = some(cache)?;
        let key = self.key(cache, &mut key)?;
        cache.namespace(key.namespace())?.delete(key.bytes()).await
    }

    /// Removes the results of all calls: raises one fence, however many there are.
    ///
    /// # Errors
    /// As for [`CacheManager::invalidate_tag`]; [`Error::Config`] without a cache.
    pub async fn invalidate_all(
        &self,
        cache: Option<&CacheManager>,
        function: &'static str,
    ) -> Result<Removed> {
        let cache = some(cache)?;
        cache.namespace(self.namespace(cache))?.invalidate_tag(FUNCTION, &self.tag(function)).await
    }

    /// As for functions that are not async.
    ///
    /// # Errors
    /// Those of `work`; [`Error::WouldBlockRuntime`] inside a runtime.
    pub fn wait<T>(
        &self,
        cache: Option<&CacheManager>,
        call: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        blocking::wait(some(cache)?, call, work)?
    }

    fn namespace<'a>(&'a self, cache: &'a CacheManager) -> &'a str {
        self.namespace.unwrap_or(cache.namespace_name())
    }

    fn key(&self, cache: &CacheManager, key: &mut CallKey) -> Result<Key> {
        let reason = |reason: &str| Error::Codec { what: "a key", reason: reason.into() };
        let bytes = key.finish().map_err(reason)?;
        Key::new(self.namespace(cache), bytes)
    }

    fn tag(&self, function: &'static str) -> String {
        let name = match self.name {
            Named::Free => function.into(),
            Named::Method(name) => format!("{function}::{name}"),
            Named::Given(name) => name.into(),
        };
        if name.len() <= LONGEST_NAME {
            return name;
        }
        format!("{:032x}", xxhash_rust::xxh3::xxh3_128(name.as_bytes()))
    }
}

/// A call on its way to the cache.
#[must_use = "the function has not run"]
#[derive(Debug)]
pub struct Miss<'a, K: Kind> {
    /// `None` where there is no cache, or no key.
    target: Option<(&'a CacheManager, Key)>,
    options: LoadOptions,
    anew: bool,
    valid: Validator<K>,
}

type Answer<K> = Result<Served<<K as Kind>::Kept>>;

impl<'a, K: Kind> Miss<'a, K> {
    /// Adds a tag of this call.
    pub fn tag(mut self, name: &str, value: impl ToString) -> Self {
        self.options = self.options.tag(name, value.to_string());
        self
    }

    /// Runs `work` in a task of the manager's, or has what another call's brought.
    ///
    /// # Errors
    /// Those of the function, and what the cache's convert to.
    pub async fn owned<E: Send + 'static>(
        mut self,
        errors: Errors<E>,
        work: impl Future<Output = Result<K::Out, E>> + Send + 'static,
    ) -> Result<K::Out, E> {
        let Some((cache, key)) = self.target.take() else { return work.await };
        self.options.take_over |= errors.in_turn;
        let slot = Arc::new(Slot::<K, _, E>::new(work, errors.mark));
        for _ in 0..MOST_REJECTED {
            self.forget(cache, &key).await;
            let load = {
                let slot = slot.clone();
                move || async move { slot.load().await }
            };
            let options = self.options.clone();
            let answer = run::obtain::<ViewOf<K>, _>(cache, key.clone(), Plain(load), options).await;
            match answer {
                Ok(served) if self.accepts(&served) => return Ok(K::out(served.value)),
                Ok(_) => self.anew = true,
                Err(error) => return slot.finish(&errors, &error).await,
            }
        }
        slot.finish(&Errors::in_turn(), &Error::Closed).await
    }

    /// Runs `work` here, or has what another call's brought.
    ///
    /// # Errors
    /// As for [`Miss::owned`].
    pub async fn in_place<E>(
        mut self,
        errors: Errors<E>,
        work: impl Future<Output = Result<K::Out, E>>,
    ) -> Result<K::Out, E> {
        let Some((cache, key)) = self.target.take() else { return work.await };
        self.options.take_over |= errors.in_turn;
        for _ in 0..MOST_REJECTED {
            self.forget(cache, &key).await;
            let mut stand = Stand::<K>::new(cache, &key, &self.options);
            match self.judge(stand.turn().await, &errors) {
                Verdict::Mine => return stand.end(work.await, &errors).await,
                Verdict::Answer(answer) => return answer,
                Verdict::Again => {}
                Verdict::Alone => break,
            }
        }
        work.await
    }

    /// As [`Miss::in_place`], in a thread without a runtime. In one that has one the function runs, and its result is
    /// not kept.
    ///
    /// # Errors
    /// As for [`Miss::owned`].
    pub fn here<E>(
        mut self,
        errors: Errors<E>,
        work: impl FnOnce() -> Result<K::Out, E>,
    ) -> Result<K::Out, E> {
        let Some((cache, key)) = self.outside() else { return work() };
        self.options.take_over |= errors.in_turn;
        let wait = &cache.shared.runtime;
        for _ in 0..MOST_REJECTED {
            wait.block_on(self.forget(cache, &key));
            let mut stand = Stand::<K>::new(cache, &key, &self.options);
            match self.judge(wait.block_on(stand.turn()), &errors) {
                Verdict::Mine => return wait.block_on(stand.end(work(), &errors)),
                Verdict::Answer(answer) => return answer,
                Verdict::Again => {}
                Verdict::Alone => break,
            }
        }
        work()
    }

    /// As [`Miss::owned`], on a thread of the runtime's for what blocks. Inside a runtime as [`Miss::here`].
    ///
    /// # Errors
    /// As for [`Miss::owned`].
    pub fn owned_blocking<E: Send + 'static>(
        mut self,
        errors: Errors<E>,
        work: impl FnOnce() -> Result<K::Out, E> + Send + 'static,
    ) -> Result<K::Out, E> {
        let Some((cache, key)) = self.outside() else { return work() };
        self.target = Some((cache, key));
        cache.shared.runtime.block_on(self.owned(errors, blocking::run(work)))
    }

    /// The target, unless this thread must not wait for it.
    fn outside(&mut self) -> Option<(&'a CacheManager, Key)> {
        static TOLD: AtomicBool = AtomicBool::new(false);
        let (cache, key) = self.target.take()?;
        let Err(error) = blocking::outside("a cached async function") else { return Some((cache, key)) };
        if !TOLD.swap(true, Ordering::Relaxed) {
            tracing::warn!(?key, %error, "a cached function that is not async is missed inside a runtime: not kept");
        }
        None
    }

    async fn forget(&mut self, cache: &CacheManager, key: &Key) {
        if std::mem::take(&mut self.anew) {
            let removed = match cache.namespace(key.namespace()) {
                Ok(cache) => cache.delete(key.bytes()).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = removed {
                tracing::debug!(?key, %error, "what is to be replaced could not be removed");
            }
        }
    }

    /// What this call's own load brought is not judged again.
    fn accepts(&self, served: &Served<K::Kept>) -> bool {
        served.level.is_none() || is_valid::<K>(&served.value, self.valid)
    }

    fn judge<E>(&mut self, turn: Turn<K>, errors: &Errors<E>) -> Verdict<K, E> {
        match turn {
            Turn::Mine => Verdict::Mine,
            Turn::Answered(Ok(served)) if self.accepts(&served) => Verdict::Answer(Ok(K::out(served.value))),
            Turn::Answered(Ok(_)) => {
                self.anew = true;
                Verdict::Again
            }
            Turn::Answered(Err(error)) if is_dropped(&error) => Verdict::Again,
            Turn::Answered(Err(error)) => match of_load(&error).then(|| (errors.back)(&error)).flatten() {
                Some(error) => Verdict::Answer(Err(error)),
                None => Verdict::Alone,
            },
        }
    }
}

/// What a caller does that may run the function itself.
enum Verdict<K: Kind, E> {
    /// Runs it; the load waits.
    Mine,
    Answer(Result<K::Out, E>),
    Again,
    /// Runs it for itself.
    Alone,
}

#[inline]
fn is_valid<K: Kind>(kept: &K::Kept, valid: Validator<K>) -> bool {
    match (valid, K::seen(kept)) {
        (Some(valid), Some(value)) => valid(value),
        _ => true,
    }
}

/// Whether the load ended, or was waited for, in vain; everything else leaves the caller to itself.
fn of_load(error: &Error) -> bool {
    matches!(error, Error::Load { .. } | Error::Panicked { .. } | Error::TimedOut { .. })
}

/// Whether the load failed because nobody ran the function any more.
fn is_dropped(error: &Error) -> bool {
    Failed::of(error).is_some_and(|failed| failed.dropped)
}

fn some(cache: Option<&CacheManager>) -> Result<&CacheManager> {
    let unset = "there is no cache: `tiercache::set_default` sets the one for functions that name none";
    cache.ok_or_else(|| Error::Config(unset.into()))
}
