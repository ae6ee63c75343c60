//! How a load goes, and what it brings.

use std::time::Duration;

use super::super::Shared;
use super::super::set::{Ttl, check_tags, checked};
use super::View;
use super::loads::Loads;
use crate::lease::LONGEST_TERM;
use crate::tier::Look;
use crate::{COARSE_SLACK_MILLIS, Entry, Error, Generation, Level, Levels, Result, Tags, Timestamp};

/// The longest window of staleness.
const MOST_STALE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A load that takes longer is given up, whoever still waits for it.
const DEFAULT_LIMIT: Duration = Duration::from_secs(300);
const DEFAULT_BACK_OFF: Duration = Duration::from_secs(1);
/// A chance smaller than one in a hundred million is none: `-ln` of it.
const LEAST_CHANCE: f64 = 18.4;

/// How a load goes: what its value is kept with, how long callers wait, and what they get when it fails.
///
/// Cheap to clone when it has no tags. Options of one kind of value are best made once and given to every
/// [`Load`](super::Load) by [`Load::options`](super::Load::options).
#[derive(Clone, Debug)]
pub struct LoadOptions {
    pub(super) ttl: Ttl,
    pub(super) levels: Levels,
    pub(super) tags: Tags,
    pub(super) stale: Duration,
    pub(super) nothing: Option<Duration>,
    pub(super) errors: Option<Duration>,
    pub(super) soft: Option<Duration>,
    pub(super) hard: Option<Duration>,
    pub(super) limit: Duration,
    pub(super) back_off: Duration,
    pub(super) eager: Eager,
    pub(super) jitter: Option<f32>,
    /// Zero: none.
    pub(super) lease: Option<Duration>,
    pub(super) take_over: bool,
    pub(super) invalid: Option<(&'static str, &'static str)>,
}

/// When a hit refreshes its value ahead of time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Eager {
    /// Never.
    #[default]
    Off,
    /// Once that share of its time to live is over, between 0 and 1.
    After(f32),
    /// By chance, the likelier the nearer its end is and the longer it took to load, so that of many processes
    /// few refresh and seldom two at once. The factor is 1 for what the paper finds best; a larger one refreshes
    /// earlier. Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache Stampede Prevention, VLDB 2015.
    Probably(f32),
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            ttl: Ttl::Unset,
            levels: Levels::ALL,
            tags: Tags::new(),
            stale: Duration::ZERO,
            nothing: None,
            errors: None,
            soft: None,
            hard: None,
            limit: DEFAULT_LIMIT,
            back_off: DEFAULT_BACK_OFF,
            eager: Eager::Off,
            jitter: None,
            lease: None,
            take_over: false,
            invalid: None,
        }
    }
}

impl LoadOptions {
    /// The levels' defaults, no staleness, no time-out.
    pub fn new() -> Self {
        Self::default()
    }

    fn duration(&mut self, option: &'static str, duration: Duration) -> Duration {
        if let Err(Error::InvalidOption { .. }) = checked(duration, option) {
            self.invalid = Some((option, "zero is not a time; leave the option out"));
        }
        duration.max(Duration::from_millis(1))
    }

    fn share(&mut self, option: &'static str, share: f32) -> f32 {
        if !(0.0..=1.0).contains(&share) {
            self.invalid = Some((option, "a share is between 0 and 1"));
        }
        share.clamp(0.0, 1.0)
    }

    pub(super) fn check(&self) -> Result<()> {
        match self.invalid {
            Some((option, reason)) => Err(Error::InvalidOption { option, reason: reason.into() }),
            None => Ok(()),
        }
    }
}

/// Defines each option on [`LoadOptions`] and on [`Load`](super::Load).
macro_rules! options {
    ($($(#[doc = $doc:literal])* $name:ident ($($arg:ident : $of:ty),*) |$self:ident| $set:block)*) => {
        impl LoadOptions {
            $($(#[doc = $doc])* #[must_use] pub fn $name(mut self $(, $arg: $of)*) -> Self {
                let $self = &mut self;
                $set
                self
            })*
        }

        impl<V, K, L> super::Load<'_, V, K, L> {
            $($(#[doc = $doc])* pub fn $name(mut self $(, $arg: $of)*) -> Self {
                let $self = &mut self.options;
                $set
                self
            })*
        }
    };
}

options! {
    /// The time the value lives once it is loaded, unless the loader says otherwise. Default: as long as the levels
    /// keep it.
    ttl(ttl: Duration) |options| { options.ttl = Ttl::For(options.duration("ttl", ttl)); }

    /// A tag of the value, beside those the loader gives. Allocates; a loader's own tags cost hits nothing.
    tag(name: impl Into<String>, value: impl Into<String>) |options| {
        options.tags.insert(name.into(), value.into());
    }

    /// How long after its time to live the value is kept, and answers, marked stale, callers whose load fails or
    /// does not come within its time (RFC 5861 §4). At most ten years. Default: not at all.
    stale_if_error(window: Duration) |options| {
        options.stale = options.duration("stale_if_error", window).min(MOST_STALE);
    }

    /// As [`LoadOptions::stale_if_error`], and within the window nobody waits: the stale value is answered at once and
    /// refreshed in the background (RFC 5861 §3).
    stale_while_revalidate(window: Duration) |options| {
        options.stale = options.duration("stale_while_revalidate", window).min(MOST_STALE);
        options.soft = Some(Duration::ZERO);
    }

    /// How long a caller that could have a stale value waits for the load. It goes on in the background.
    /// Default: until it ends, or the hard time-out.
    soft_timeout(wait: Duration) |options| { options.soft = Some(wait); }

    /// How long a caller waits for the load at most; then it has the stale value, or
    /// [`Error::TimedOut`](crate::Error::TimedOut). The load goes on in the background. Default: until it ends.
    hard_timeout(wait: Duration) |options| { options.hard = Some(options.duration("hard_timeout", wait)); }

    /// How long a load may take before it is given up for everybody. Default: five minutes.
    limit(limit: Duration) |options| { options.limit = options.duration("limit", limit); }

    /// How long it is remembered that a loader found nothing. Only loaders of `Option` do. Default: not at all, the
    /// next caller loads again.
    negative_ttl(ttl: Duration) |options| { options.nothing = Some(options.duration("negative_ttl", ttl)); }

    /// How long callers without a stale value get the error of a load that failed, instead of loading again. Default:
    /// not at all, errors are not cached.
    error_ttl(ttl: Duration) |options| { options.errors = Some(options.duration("error_ttl", ttl)); }

    /// How long after a load that failed callers with a stale value are answered without another. Doubles with each
    /// failure in a row, to 32 times this. Default: one second.
    back_off(pause: Duration) |options| { options.back_off = pause; }

    /// When a hit refreshes its value ahead of time, in the background. Default: never.
    eager(eager: Eager) |options| {
        options.eager = match eager {
            Eager::Off => Eager::Off,
            Eager::After(share) => Eager::After(options.share("eager", share)),
            Eager::Probably(factor) if factor.is_finite() && factor > 0.0 => Eager::Probably(factor),
            Eager::Probably(_) => {
                options.invalid = Some(("eager", "a factor is above 0"));
                Eager::Off
            }
        };
    }

    /// Shortens each time to live by a random share up to this, so that what was loaded together does not expire
    /// together. Default: the cache's, which is 0 unless it was given: see
    /// [`Builder::load_jitter`](crate::Builder::load_jitter).
    jitter(share: f32) |options| { options.jitter = Some(options.share("jitter", share)); }

    /// Of several processes that share a level one loads: it takes a lease of the key for `term`, at most a day, and
    /// stores what it loaded where the others find it. They wait for that, no longer than `term`, then load
    /// themselves; a refresh does not wait, it is left to the holder. Where no store gives leases out, no shared level
    /// may have the value, or the store cannot be reached, each process loads for itself. Default: the cache's,
    /// which is none unless it was given: see [`Builder::load_lease`](crate::Builder::load_lease).
    lease(term: Duration) |options| {
        options.lease = Some(options.duration("lease", term).min(LONGEST_TERM));
    }

    /// No lease, whatever the cache's default is: every process loads for itself.
    no_lease() |options| { options.lease = Some(Duration::ZERO); }

    /// When a load fails, one of those who waited for it loads in its turn, the others wait for that one, and so on.
    /// Default: all of them get its error.
    take_over() |options| { options.take_over = true; }

    /// Keeps the value at this level and no other.
    pin(level: Level) |options| { options.levels = Levels::only(level); }

    /// Keeps the value away from this level.
    skip(level: Level) |options| { options.levels = options.levels.without(level); }
}

/// What a loader brought, with what it decided about it.
#[derive(Clone, Debug)]
pub struct Loaded<T> {
    pub(super) value: T,
    pub(super) store: bool,
    pub(super) ttl: Option<Ttl>,
    pub(super) tags: Tags,
    pub(super) content_type: Option<String>,
}

impl<T> Loaded<T> {
    /// To be kept as the call's options say.
    pub fn new(value: T) -> Self {
        Self { value, store: true, ttl: None, tags: Tags::new(), content_type: None }
    }

    /// The time the value lives, instead of the call's. Less than a millisecond counts as one.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(Ttl::For(ttl.max(Duration::from_millis(1))));
        self
    }

    /// The value lives until it is removed or no level has room for it.
    #[must_use]
    pub fn never(mut self) -> Self {
        self.ttl = Some(Ttl::Never);
        self
    }

    /// Adds a tag.
    #[must_use]
    pub fn tag(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags.insert(name.into(), value.into());
        self
    }

    /// The media type, kept with the value.
    #[must_use]
    pub fn content_type(mut self, media_type: impl Into<String>) -> Self {
        self.content_type = Some(media_type.into());
        self
    }

    /// Answers those who wait, and is not kept.
    #[must_use]
    pub fn do_not_store(mut self) -> Self {
        self.store = false;
        self
    }
}

impl LoadOptions {
    /// How hot judges a hit; `None` when it may not answer alone.
    pub(super) fn look(&self, shared: &Shared) -> Option<Look> {
        if self.invalid.is_some() {
            return None;
        }
        let mut look = shared.coarse_look();
        let early = match (self.eager, self.ttl) {
            (Eager::Off, _) => 0,
            (Eager::After(share), Ttl::For(ttl)) => {
                (ttl.as_millis() as f64 * f64::from(1.0 - share)).ceil() as u64
            }
            // The loader alone knows how long it lives.
            (Eager::After(_), _) => return None,
            (Eager::Probably(factor), _) => {
                let longest = shared.loads.longest();
                (longest as f64 * f64::from(factor) * LEAST_CHANCE).ceil() as u64
            }
        };
        look.slack = early.max(COARSE_SLACK_MILLIS);
        Some(look)
    }

    /// Whether a hit on `entry` is to refresh it.
    pub(super) fn is_due(&self, loads: &Loads, entry: &Entry, now: Timestamp) -> bool {
        let end = entry.fresh_until();
        if end.is_never() {
            return false;
        }
        match self.eager {
            Eager::Off => false,
            Eager::After(share) => {
                let life = end.since(entry.created).mul_f32(share);
                entry.created.after(life) <= now
            }
            Eager::Probably(factor) => {
                let cost = entry.extras.as_ref().map_or(Duration::ZERO, |extras| extras.cost);
                let early = cost.as_millis() as f64 * f64::from(factor) * -loads.chance().ln();
                end.since(now).as_millis() as f64 <= early
            }
        }
    }

    /// The entry of what was loaded, and whether it is to be kept.
    pub(super) fn entry<V: View>(
        &self,
        loaded: Loaded<Option<V::Value>>,
        generation: Generation,
        cost: Duration,
        shared: &Shared,
    ) -> Result<(Entry, bool)> {
        let (now, chance) = (shared.flow.now(), shared.loads.chance());
        let Loaded { value, store, ttl, tags, content_type } = loaded;
        let nothing = value.is_none();
        let (bytes, decoded) = match value {
            Some(value) => V::pack(value)?,
            None => Default::default(),
        };
        let mut entry = Entry::new(bytes, generation, now);
        entry.levels = self.levels;
        let negative = self.nothing.map(Ttl::For);
        let ttl = ttl.or(if nothing { negative } else { Some(self.ttl) });
        let stale = if nothing { Duration::ZERO } else { self.stale };
        let cost = if matches!(self.eager, Eager::Probably(_)) { cost } else { Duration::ZERO };
        let is_plain = self.tags.is_empty() && tags.is_empty() && content_type.is_none() && decoded.is_none();
        if !is_plain || nothing || !stale.is_zero() || !cost.is_zero() {
            let extras = entry.extras_mut();
            extras.tags = self.tags.clone();
            extras.tags.extend(tags);
            check_tags(&extras.tags)?;
            extras.content_type = content_type;
            (extras.nothing, extras.stale, extras.cost) = (nothing, stale, cost);
            if let Some(decoded) = decoded {
                // Fresh extras: nobody set the cell before.
                let _ = extras.decoded.set(decoded);
            }
        }
        let keep = store && ttl.is_some();
        match ttl.unwrap_or(Ttl::Unset) {
            Ttl::For(ttl) => {
                let jitter = self.jitter.unwrap_or_else(|| shared.loads.jitter());
                let shorter = ttl.mul_f64(1.0 - f64::from(jitter) * chance);
                Ttl::For(shorter.max(Duration::from_millis(1))).apply(&mut entry, now);
            }
            other => other.apply(&mut entry, now),
        }
        Ok((entry, keep))
    }
}
