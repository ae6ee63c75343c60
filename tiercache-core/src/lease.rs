//! Leases: rights to a name that one holder has at a time, and that end by themselves.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::time::Instant;

use crate::{Error, Key, Result};

/// The longest a lease may be asked for.
pub const LONGEST_TERM: Duration = Duration::from_secs(86_400);

/// A store that gives leases out.
///
/// # Contract
/// Every line is a case of the suite in `testing::lease`.
/// - A name has one holder at a time. `acquire` takes it in one step at the store when nobody has it, or when the
///   store's own clock says that the last lease is over: never sooner than its term after the call that it was
///   given or renewed by.
/// - `acquire` by the holder gives it the same lease again, its term begun anew, so that a call whose answer was
///   lost can be repeated.
/// - Only the holder renews and releases. A lease that is over is not renewed, not even when nobody took it since.
/// - Tokens rise: each new lease of a name has a higher one than every lease of that name before, however those
///   ended. Where a store forgets names that are free, or lost everything, it goes on above its clock's
///   microseconds, so that tokens rise as long as that clock does.
/// - Any future may be dropped at any point: the operation happens whole or not at all. Who does not know whether it
///   holds a lease may `release` it, or let it end.
///
/// A lease is a matter of time, and its holder may be stopped longer than its term without noticing. What must not
/// happen twice is guarded by the token: whoever carries it out refuses a lower one than it has seen (M. Kleppmann,
/// *How to do distributed locking*, 2016).
///
/// # Errors
/// [`Error::Unavailable`], [`Error::TimedOut`]: it may have been done, or not. [`Error::InvalidOption`] for a term
/// that is zero or longer than [`LONGEST_TERM`].
#[async_trait]
pub trait Leasing: fmt::Debug + Send + Sync + 'static {
    /// Takes the lease of `name` for `term`, or says that another has it.
    async fn acquire(&self, name: &Key, holder: Holder, term: Duration) -> Result<Claim>;

    /// Has the lease end `term` from now. `None` when the holder does not have it any more.
    async fn renew(&self, name: &Key, holder: Holder, term: Duration) -> Result<Option<Lease>>;

    /// Ends the lease now. `false` when the holder does not have it any more.
    async fn release(&self, name: &Key, holder: Holder) -> Result<bool>;
}

/// Who holds a lease: unlike every other holder in every process.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Holder(u128);

impl Holder {
    /// A holder that nobody else is.
    pub fn new() -> Self {
        // Each state is seeded by the system.
        let half = || {
            let mut hasher = RandomState::new().build_hasher();
            hasher.write_u32(std::process::id());
            u128::from(hasher.finish())
        };
        Self(half() << 64 | half())
    }

    /// The number, for stores to keep.
    pub const fn get(self) -> u128 {
        self.0
    }

    /// The holder of that number.
    pub const fn of(number: u128) -> Self {
        Self(number)
    }
}

impl Default for Holder {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What became of an `acquire`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The lease is the holder's.
    Granted(Lease),
    /// Another has it.
    Taken {
        /// For how long, as far as the store tells; it may be renewed or end sooner.
        left: Duration,
    },
}

impl Claim {
    /// The lease, if it was granted.
    pub fn granted(self) -> Option<Lease> {
        match self {
            Self::Granted(lease) => Some(lease),
            Self::Taken { .. } => None,
        }
    }
}

/// A lease that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Higher than that of every lease of the name before: the fencing token.
    pub token: u64,
    /// Until when it is held at least, by this process's clock: a term after the call began.
    pub until: Instant,
}

/// The term in milliseconds, checked; at least one. Stores that cut the time of day to milliseconds add one.
///
/// # Errors
/// [`Error::InvalidOption`] when it is zero or longer than [`LONGEST_TERM`].
pub fn term_millis(term: Duration) -> Result<u64> {
    if term.is_zero() || term > LONGEST_TERM {
        let reason = format!("a lease is for more than zero and at most {LONGEST_TERM:?}, not {term:?}");
        return Err(Error::InvalidOption { option: "term", reason });
    }
    // Checked: a day has fewer milliseconds than 2³².
    Ok((term.as_micros().div_ceil(1_000) as u64).max(1))
}

/// The token a store that remembers none begins above: the microseconds of the time of day.
pub fn least_token() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX >> 1)
}

/// Leases among the tasks of one process, for caches without a store that gives any.
#[derive(Debug, Default)]
pub struct LocalLeases(Mutex<Table>);

impl LocalLeases {
    /// No lease is given yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Leasing for LocalLeases {
    async fn acquire(&self, name: &Key, holder: Holder, term: Duration) -> Result<Claim> {
        self.table().acquire(name, holder, term)
    }

    async fn renew(&self, name: &Key, holder: Holder, term: Duration) -> Result<Option<Lease>> {
        self.table().renew(name, holder, term)
    }

    async fn release(&self, name: &Key, holder: Holder) -> Result<bool> {
        Ok(self.table().release(name, holder))
    }
}

/// Leases in memory.
#[derive(Debug, Default)]
pub(crate) struct Table {
    held: HashMap<Key, Held>,
    last: u64,
    /// How many there may be before those that are over are forgotten.
    limit: usize,
}

#[derive(Debug)]
struct Held {
    holder: Holder,
    lease: Lease,
}

impl Table {
    pub(crate) fn acquire(&mut self, name: &Key, holder: Holder, term: Duration) -> Result<Claim> {
        let now = Instant::now();
        let until = now + Duration::from_millis(term_millis(term)?);
        if let Some(held) = self.held.get_mut(name).filter(|held| now < held.lease.until) {
            if held.holder != holder {
                return Ok(Claim::Taken { left: held.lease.until - now });
            }
            held.lease.until = until;
            return Ok(Claim::Granted(held.lease));
        }
        if self.held.len() >= self.limit.max(1_024) {
            self.held.retain(|_, held| now < held.lease.until);
            self.limit = 2 * self.held.len();
        }
        self.last = least_token().max(self.last + 1);
        let lease = Lease { token: self.last, until };
        self.held.insert(name.clone(), Held { holder, lease });
        Ok(Claim::Granted(lease))
    }

    pub(crate) fn renew(&mut self, name: &Key, holder: Holder, term: Duration) -> Result<Option<Lease>> {
        let now = Instant::now();
        let until = now + Duration::from_millis(term_millis(term)?);
        Ok(self.of(name, holder, now).map(|held| {
            held.lease.until = until;
            held.lease
        }))
    }

    pub(crate) fn release(&mut self, name: &Key, holder: Holder) -> bool {
        let held = self.of(name, holder, Instant::now()).is_some();
        if held {
            self.held.remove(name);
        }
        held
    }

    fn of(&mut self, name: &Key, holder: Holder, now: Instant) -> Option<&mut Held> {
        self.held.get_mut(name).filter(|held| held.holder == holder && now < held.lease.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_differ() {
        let some: std::collections::HashSet<_> = (0..1_000).map(|_| Holder::new()).collect();
        assert_eq!(some.len(), 1_000);
        assert_eq!(Holder(10).to_string(), "0000000000000000000000000000000a");
    }

    #[test]
    fn a_term_is_more_than_nothing_and_at_most_a_day() {
        for (term, millis) in
            [(Duration::from_nanos(1), 1), (Duration::from_micros(1_001), 2), (LONGEST_TERM, 86_400_000)]
        {
            assert_eq!(term_millis(term).unwrap(), millis);
        }
        for odd in [Duration::ZERO, LONGEST_TERM + Duration::from_nanos(1), Duration::MAX] {
            assert!(matches!(term_millis(odd), Err(Error::InvalidOption { option: "term", .. })), "{odd:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn leases_that_are_over_take_no_room() {
        let mut table = Table::default();
        for number in 0..100_000 {
            let name = Key::new("", format!("{number}").as_bytes()).unwrap();
            table.acquire(&name, Holder::new(), Duration::from_secs(1)).unwrap().granted().unwrap();
            if number % 100 == 0 {
                tokio::time::advance(Duration::from_millis(200)).await;
            }
        }
        assert!(table.held.len() <= 2_048, "{}", table.held.len());
    }
}
