//! Locks: a lease of the cache's store, renewed while it is held.
//!
//! 1. Tasks of this process that want one lock wait in line, so that the store hears of one of them at a time.
//! 2. The first in line takes the lease, or asks again when it may be over.
//! 3. A task of the manager's renews it every third of its expiry, until the guard is dropped or released, the cache is
//!    closed, or the lease is lost; then it releases what it still has, and the next in line goes on.

use std::collections::HashMap;
use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, oneshot, watch};
use tokio::time::Instant;

use super::lessor::lease_name;
use super::set::checked;
use super::{CacheManager, Shared};
use crate::lease::{Claim, Holder, LONGEST_TERM, Lease};
use crate::{AsKey, Error, Key, Result};

/// Pauses between two looks at a lease that another process has: doubled each time.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How long `close` waits for locks to be released.
const PARTING: Duration = Duration::from_secs(2);

/// A lock about to be taken: options, then `.await`.
#[must_use = "nothing is locked until it is awaited"]
#[derive(Debug)]
pub struct Lock<'a> {
    manager: &'a CacheManager,
    name: Result<Key>,
    expiry: Duration,
    wait: Option<Duration>,
}

/// A lock that is held, until this is dropped.
///
/// It ends by itself when it can not be renewed for as long as its expiry: see [`LockGuard::is_lost`]. Whatever must not
/// be done by two at once, even then, should be given the [`LockGuard::token`] and refuse a lower one.
#[must_use = "the lock is released when this is dropped"]
pub struct LockGuard {
    token: u64,
    name: Key,
    state: watch::Receiver<State>,
    release: Option<oneshot::Sender<oneshot::Sender<Result<bool>>>>,
    /// The cache lives as long as what it gave out.
    _manager: CacheManager,
}

/// What the task that renews knows.
#[derive(Clone, Copy, Debug)]
struct State {
    /// Until when the lease is held at least.
    until: Instant,
    lost: bool,
}

impl CacheManager {
    /// Takes the lock of that name in this handle's namespace, one holder at a time, waiting as long as it takes:
    ///
    /// ```ignore
    /// let guard = cache.lock("report", Duration::from_secs(30)).await?;
    /// write_report(guard.token()).await?;
    /// guard.release().await?;
    /// ```
    ///
    /// It is a lease of the lowest level that other processes share and that gives leases out (sqlite for the
    /// processes of one machine), else of tracking, else it is among the tasks of this process alone:
    /// [`CacheManager::locks_in`] says which. `expiry` is how long it outlives a holder that is gone without a word;
    /// it is renewed as long as the guard lives.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] when `expiry` is zero or more than a day, [`Error::TimedOut`] when
    /// [`Lock::wait`] is over, [`Error::Unavailable`] when the store cannot be reached, [`Error::Closed`].
    ///
    /// Dropping the future gives up the place in line, and a lock that was just being taken.
    pub fn lock(&self, name: impl AsKey, expiry: Duration) -> Lock<'_> {
        let name = self.key(&name).and_then(|name| lease_name("lock", name));
        Lock { manager: self, name, expiry, wait: None }
    }

    /// Takes the lock if nobody has it.
    ///
    /// # Errors
    /// As for [`CacheManager::lock`].
    pub async fn try_lock(&self, name: impl AsKey, expiry: Duration) -> Result<Option<LockGuard>> {
        let name = lease_name("lock", self.key(&name)?)?;
        let expiry = check(expiry)?;
        self.shared.check_open()?;
        let Ok(turn) = self.shared.locks.line(&name).try_lock_owned() else { return Ok(None) };
        self.take(&name, Holder::new(), expiry, turn).await.map(std::result::Result::ok)
    }

    /// The store that locks stand in, such as `redis`; `process` when only this process's tasks see them.
    pub fn locks_in(&self) -> &'static str {
        self.shared.lessor_name()
    }

    /// Asks the store once. What it gave belongs to a guard from the start, so that it goes when the caller does.
    async fn take(
        &self,
        name: &Key,
        holder: Holder,
        expiry: Duration,
        turn: OwnedMutexGuard<()>,
    ) -> Result<std::result::Result<LockGuard, (OwnedMutexGuard<()>, Duration)>> {
        let (manager, name) = (self.clone(), name.clone());
        let taken = async move {
            let shared = &manager.shared;
            // Before the lease is asked for: `close` waits for those that were.
            let ending = shared.locks.ending.subscribe();
            shared.check_open()?;
            match shared.acquire_lease(&name, holder, expiry).await {
                Ok(Claim::Granted(lease)) => {
                    Ok(Ok(LockGuard::hold(manager, name, holder, (lease, expiry), turn, ending)))
                }
                Ok(Claim::Taken { left }) => Ok(Err((turn, left))),
                Err(error) => {
                    // It may have it all the same.
                    if error.is_retryable() {
                        let _ = shared.release_lease(&name, holder).await;
                    }
                    Err(error)
                }
            }
        };
        self.shared.owned(taken, "a lock").await?
    }
}

impl Lock<'_> {
    /// The longest to wait for it. Default: as long as it takes.
    pub fn wait(mut self, limit: Duration) -> Self {
        self.wait = Some(limit);
        self
    }

    async fn take(self) -> Result<LockGuard> {
        let (name, expiry) = (self.name?, check(self.expiry)?);
        let shared = &self.manager.shared;
        let (holder, mut pause) = (Holder::new(), SHORTEST_PAUSE);
        let mut turn = shared.locks.line(&name).lock_owned().await;
        loop {
            shared.check_open()?;
            match self.manager.take(&name, holder, expiry, turn).await? {
                Ok(guard) => return Ok(guard),
                Err((ours, left)) => {
                    turn = ours;
                    tokio::time::sleep(left.clamp(Duration::from_millis(1), pause)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

impl<'a> IntoFuture for Lock<'a> {
    type Output = Result<LockGuard>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<LockGuard>> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        let (wait, backend) = (self.wait, self.manager.shared.lessor_name());
        Box::pin(async move {
            match wait {
                Some(limit) => tokio::time::timeout(limit, self.take())
                    .await
                    .unwrap_or(Err(Error::TimedOut { backend, op: "lock", after: limit })),
                None => self.take().await,
            }
        })
    }
}

impl LockGuard {
    /// The fencing token: higher than that of every holder before, as far as the store remembers.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Whether the lock may have another holder by now: it could not be renewed in time, the store said so, or the
    /// cache was closed.
    pub fn is_lost(&self) -> bool {
        let state = *self.state.borrow();
        state.lost || Instant::now() >= state.until
    }

    /// Returns when [`LockGuard::is_lost`].
    pub async fn lost(&self) {
        let mut state = self.state.clone();
        loop {
            let State { until, lost } = *state.borrow_and_update();
            if lost || Instant::now() >= until {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                // An error means that nobody renews it any more.
                changed = state.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Gives the lock back and says whether it was held until now. Dropping the guard does the same without a word.
    ///
    /// # Errors
    /// [`Error::Unavailable`] or [`Error::TimedOut`] when the store could not be reached: the lock ends with its expiry.
    pub async fn release(mut self) -> Result<bool> {
        let (answer, released) = oneshot::channel();
        let asked = self.release.take().is_some_and(|release| release.send(answer).is_ok());
        if !asked {
            return Ok(false);
        }
        released.await.unwrap_or(Ok(false))
    }

    fn hold(
        manager: CacheManager,
        name: Key,
        holder: Holder,
        (lease, expiry): (Lease, Duration),
        turn: OwnedMutexGuard<()>,
        ending: watch::Receiver<bool>,
    ) -> Self {
        let (told, state) = watch::channel(State { until: lease.until, lost: false });
        let (release, released) = oneshot::channel();
        let shared = manager.shared.clone();
        let keeper = Keeper { shared: shared.clone(), name: name.clone(), holder, expiry, told, ending };
        shared.runtime.spawn(async move {
            keeper.keep(released).await;
            drop(turn);
        });
        Self { token: lease.token, name, state, release: Some(release), _manager: manager }
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token, name, .. } = self;
        f.debug_struct("LockGuard").field("name", name).field("token", token).finish_non_exhaustive()
    }
}

/// Renews a lease as long as its guard lives.
struct Keeper {
    shared: Arc<Shared>,
    name: Key,
    holder: Holder,
    expiry: Duration,
    told: watch::Sender<State>,
    ending: watch::Receiver<bool>,
}

impl Keeper {
    async fn keep(mut self, mut released: oneshot::Receiver<oneshot::Sender<Result<bool>>>) {
        let answer = loop {
            let until = self.told.borrow().until;
            let due = until.checked_sub(self.expiry * 2 / 3).unwrap_or(until);
            tokio::select! {
                biased;
                answer = &mut released => break answer.ok(),
                _ = self.ending.wait_for(|ending| *ending) => break None,
                () = tokio::time::sleep_until(due) => {}
            }
            let renewed = tokio::select! {
                biased;
                answer = &mut released => break answer.ok(),
                renewed = self.renew() => renewed,
            };
            if !renewed {
                self.told.send_modify(|state| state.lost = true);
                return;
            }
        };
        let result = self.shared.release_lease(&self.name, self.holder).await;
        self.told.send_modify(|state| state.lost = true);
        if let Err(error) = &result {
            tracing::debug!(name = ?self.name, %error, "a lock was not released, it ends by itself");
        }
        if let Some(answer) = answer {
            // Whoever asked may have left.
            let _ = answer.send(result);
        }
    }

    /// Renews the lease, trying again as long as it is not over; whether it is still the holder's.
    async fn renew(&self) -> bool {
        let until = self.told.borrow().until;
        let mut pause = (self.expiry / 30).max(Duration::from_millis(1));
        loop {
            let renewed = self.shared.renew_lease(&self.name, self.holder, self.expiry);
            match tokio::time::timeout_at(until, renewed).await {
                Ok(Ok(Some(lease))) => {
                    self.told.send_modify(|state| state.until = lease.until);
                    return true;
                }
                Ok(Ok(None)) | Err(_) => {
                    tracing::warn!(name = ?self.name, "a lock was lost");
                    return false;
                }
                Ok(Err(error)) => {
                    tracing::debug!(name = ?self.name, %error, "a lock was not renewed, tried again");
                    tokio::time::sleep_until(until.min(Instant::now() + pause)).await;
                    pause = (pause * 2).min(self.expiry / 3);
                    if Instant::now() >= until {
                        tracing::warn!(name = ?self.name, %error, "a lock could not be renewed in time");
                        return false;
                    }
                }
            }
        }
    }
}

/// The locks of this process's tasks.
#[derive(Debug)]
pub(super) struct Locks {
    /// Those who want one lock stand in line; lines that nobody stands in are forgotten.
    lines: Mutex<HashMap<Key, Weak<tokio::sync::Mutex<()>>>>,
    /// Set when the cache ends; each lock that is held listens.
    ending: watch::Sender<bool>,
}

impl Locks {
    pub(super) fn new() -> Self {
        Self { lines: Mutex::default(), ending: watch::Sender::new(false) }
    }

    fn line(&self, name: &Key) -> Arc<tokio::sync::Mutex<()>> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get(name).and_then(Weak::upgrade) {
            return line;
        }
        lines.retain(|_, line| line.strong_count() > 0);
        let line = Arc::default();
        lines.insert(name.clone(), Arc::downgrade(&line));
        line
    }

    /// Has every lock released, and waits for that a little.
    pub(super) async fn end(&self, deadline: Duration) {
        self.ending.send_replace(true);
        // What is not released by then ends by itself.
        let _ = tokio::time::timeout(deadline.min(PARTING), self.ending.closed()).await;
    }
}

fn check(expiry: Duration) -> Result<Duration> {
    if expiry > LONGEST_TERM {
        let reason =
            format!("a lock expires after {LONGEST_TERM:?} at most, and is renewed as long as it is held");
        return Err(Error::InvalidOption { option: "expiry", reason });
    }
    checked(expiry, "expiry")
}
