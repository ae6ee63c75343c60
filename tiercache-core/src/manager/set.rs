//! The options of a write, and its future.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;

use super::CacheManager;
use super::builder::Write;
use super::write::{Begun, Written};
use crate::{Entry, Error, Extras, Generation, Key, Level, Levels, Result, Stay, Tags, Timestamp};

/// A write on its way: options, then `.await`.
#[must_use = "nothing is written until it is awaited"]
#[derive(Debug)]
pub struct Set<'a> {
    pub(super) manager: &'a CacheManager,
    /// In one: what is moved on the way to its first poll is to be small.
    pub(super) of: Result<(Key, Draft)>,
}

/// A value that has no generation yet.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) value: Bytes,
    pub(super) ttl: Ttl,
    pub(super) levels: Levels,
    pub(super) only_if: Option<OnlyIf>,
    pub(super) extras: Option<Arc<Extras>>,
}

/// What must be there for a write to be made.
#[derive(Clone, Copy, Debug)]
pub(super) enum OnlyIf {
    Absent,
    Present,
    Generation(Generation),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Ttl {
    Unset,
    For(Duration),
    Never,
}

impl Set<'_> {
    /// The time the value lives, from now: afterwards it is dead at every level, and until then no stay of the
    /// last level cuts it short. Less than a millisecond counts as one; zero is refused.
    pub fn ttl(self, ttl: Duration) -> Self {
        self.try_with(|draft| {
            draft.ttl = Ttl::For(checked(ttl, "ttl")?);
            Ok(())
        })
    }

    /// The value lives until it is removed or no level has room for it, whatever the levels' stays.
    pub fn never(self) -> Self {
        self.with(|draft| draft.ttl = Ttl::Never)
    }

    /// Adds a tag. Rules choose stays by tags, and `invalidate_tag` removes by them.
    pub fn tag(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.try_with(|draft| draft.add_tag(name.into(), value.into()))
    }

    /// How long the entry stays at `level` without a use, instead of what rules and defaults say.
    pub fn stay(self, level: Level, stay: Stay) -> Self {
        self.try_with(|draft| {
            if let Stay::For(stay) = stay {
                checked(stay, "stay")?;
            }
            draft.extras().stays[level.index()] = Some(stay);
            Ok(())
        })
    }

    /// Only if the key has no live entry; [`Written::stored`] tells.
    pub fn only_if_absent(self) -> Self {
        self.with(|draft| draft.only_if = Some(OnlyIf::Absent))
    }

    /// Only if the key has a live entry; [`Written::stored`] tells.
    pub fn only_if_present(self) -> Self {
        self.with(|draft| draft.only_if = Some(OnlyIf::Present))
    }

    /// Only if the key has the entry of that generation, see [`CacheManager::compare_and_set`].
    pub fn only_if_generation(self, generation: Generation) -> Self {
        self.with(|draft| draft.only_if = Some(OnlyIf::Generation(generation)))
    }

    /// At this level and no other: it does not sink from there, nor rise.
    pub fn pin(self, level: Level) -> Self {
        self.with(|draft| draft.levels = Levels::only(level))
    }

    /// Not at this level.
    pub fn skip(self, level: Level) -> Self {
        self.with(|draft| draft.levels = draft.levels.without(level))
    }

    /// The media type, kept with the value.
    pub fn content_type(self, media_type: impl Into<String>) -> Self {
        self.with(|draft| draft.extras().content_type = Some(media_type.into()))
    }

    /// A field of your own, kept with the value.
    pub fn user(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|draft| {
            draft.extras().user.insert(name.into(), value.into());
        })
    }

    pub(super) fn decoded(self, decoded: crate::Decoded) -> Self {
        self.with(|draft| {
            // Fresh extras: nobody set the cell before.
            let _ = draft.extras().decoded.set(decoded);
        })
    }

    fn with(self, change: impl FnOnce(&mut Draft)) -> Self {
        self.try_with(|draft| {
            change(draft);
            Ok(())
        })
    }

    fn try_with(mut self, change: impl FnOnce(&mut Draft) -> Result<()>) -> Self {
        if let Ok((_, draft)) = &mut self.of
            && let Err(error) = change(draft)
        {
            self.of = Err(error);
        }
        self
    }
}

impl<'a> IntoFuture for Set<'a> {
    type Output = Result<Written>;
    type IntoFuture = SetFuture<'a>;

    fn into_future(self) -> SetFuture<'a> {
        SetFuture(State::Begin(self))
    }
}

/// The future of a [`Set`]. Boxes nothing when nothing has to be waited for.
#[must_use = "futures do nothing unless polled"]
pub struct SetFuture<'a>(State<'a>);

enum State<'a> {
    Begin(Set<'a>),
    Waiting(Pin<Box<dyn Future<Output = Result<Written>> + Send + 'a>>),
    Over,
}

impl Future for SetFuture<'_> {
    type Output = Result<Written>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if matches!(self.0, State::Begin(_))
            && let State::Begin(set) = std::mem::replace(&mut self.0, State::Over)
        {
            let (key, draft) = match set.of {
                Ok(of) => of,
                Err(error) => return Poll::Ready(Err(error)),
            };
            let shared = &set.manager.shared;
            if let Err(error) = shared.check_open() {
                return Poll::Ready(Err(error));
            }
            let begun = if draft.only_if.is_some() || shared.write != Write::Back {
                Begun::Slow(shared.clone().write_slowly(key, draft))
            } else {
                shared.write_at_once(key, draft)
            };
            match begun {
                Begun::Done(result) if !shared.flow.pending.is_crowded() => return Poll::Ready(result),
                Begun::Done(result) => {
                    self.0 = State::Waiting(Box::pin(async move {
                        shared.wait_for_room().await;
                        result
                    }));
                }
                // Owned: it goes on when the caller does not wait any longer.
                Begun::Slow(work) => {
                    let task = shared.runtime.spawn(work);
                    self.0 = State::Waiting(Box::pin(async move {
                        match task.await {
                            Ok(result) => result,
                            Err(error) if error.is_panic() => Err(Error::Panicked { what: "a tier" }),
                            Err(_) => Err(Error::Closed),
                        }
                    }));
                }
            }
        }
        match &mut self.0 {
            State::Waiting(work) => {
                let result = std::task::ready!(work.as_mut().poll(context));
                self.0 = State::Over;
                Poll::Ready(result)
            }
            State::Begin(_) | State::Over => Poll::Ready(Err(Error::Closed)),
        }
    }
}

impl Draft {
    pub(super) fn new(value: Bytes) -> Self {
        Self { value, ttl: Ttl::Unset, levels: Levels::ALL, only_if: None, extras: None }
    }

    pub(super) fn add_tag(&mut self, name: String, value: String) -> Result<()> {
        let tags = &mut self.extras().tags;
        tags.insert(name, value);
        check_tags(tags)
    }

    fn extras(&mut self) -> &mut Extras {
        Arc::make_mut(self.extras.get_or_insert_with(Default::default))
    }

    pub(super) fn entry(self, now: Timestamp) -> Entry {
        let mut entry = Entry::new(self.value, Generation::ZERO, now);
        entry.levels = self.levels;
        entry.extras = self.extras;
        self.ttl.apply(&mut entry, now);
        entry
    }
}

impl Ttl {
    /// The one asked for; `None` is for one without a deadline.
    pub(super) fn given(ttl: Option<Duration>) -> Result<Self> {
        ttl.map_or(Ok(Self::Never), |ttl| checked(ttl, "ttl").map(Self::For))
    }

    pub(super) fn apply(self, entry: &mut Entry, now: Timestamp) {
        (entry.deadline, entry.explicit_ttl) = match self {
            Self::Unset => (Timestamp::NEVER, false),
            Self::For(ttl) => {
                let stale = entry.extras.as_ref().map_or(Duration::ZERO, |extras| extras.stale);
                (now.after(ttl).after(stale), true)
            }
            Self::Never => (Timestamp::NEVER, true),
        };
    }
}

/// Whether these can be an entry's tags.
pub(super) fn check_tags(tags: &Tags) -> Result<()> {
    let fits =
        |(name, value): (&String, &String)| !name.is_empty() && name.len() <= 255 && value.len() <= 1024;
    let reason = if tags.len() > 64 {
        "an entry has at most 64 tags"
    } else if !tags.iter().all(fits) {
        "a tag's name has 1 to 255 bytes, its value at most 1024"
    } else {
        return Ok(());
    };
    Err(Error::InvalidOption { option: "tag", reason: reason.into() })
}

/// A duration that can be meant: not zero, and at least the clock's millisecond.
pub(super) fn checked(duration: Duration, option: &'static str) -> Result<Duration> {
    if duration.is_zero() {
        let reason = "zero is not a time to keep something; leave it out, or use `never`".into();
        return Err(Error::InvalidOption { option, reason });
    }
    Ok(duration.max(Duration::from_millis(1)))
}
