//! Where the cache's leases come from: the lowest level shared with other processes that gives them out, else tracking
//! that does, else this process alone.

use std::future::Future;
use std::time::Duration;

use super::Shared;
use super::guard::caught;
use super::slot::Slot;
use crate::lease::{Claim, Holder, Lease, LocalLeases};
use crate::{Error, Key, Leasing, Level, Result};

/// The longest tracking is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest a store is waited for by those who can do without a lease.
const SOON: Duration = Duration::from_secs(1);

/// Who gives leases out.
#[derive(Debug)]
pub(super) enum Lessor {
    Level(Level),
    Tracking,
    Process(LocalLeases),
}

impl Lessor {
    pub(super) fn of(slots: &[Option<Slot>; 3], tracking: &dyn crate::Tracking) -> Self {
        let leases = |slot: &&Slot| slot.profile.shared && slot.tier.leasing().is_some();
        match slots.iter().rev().flatten().find(leases) {
            Some(slot) => Self::Level(slot.level),
            None if tracking.leasing().is_some() => Self::Tracking,
            None => Self::Process(LocalLeases::new()),
        }
    }
}

impl Shared {
    /// The name of the store that gives leases out: `process` where no other process sees them.
    pub(super) fn lessor_name(&self) -> &'static str {
        match &self.lessor {
            Lessor::Level(level) => self.slot(*level).map_or("process", |slot| slot.tier.name()),
            Lessor::Tracking => self.flow.recorder.tracking().name(),
            Lessor::Process(_) => "process",
        }
    }

    /// [`Leasing::acquire`] of the cache's store, within the time and behind the breaker of its level.
    pub(super) async fn acquire_lease(&self, name: &Key, holder: Holder, term: Duration) -> Result<Claim> {
        self.lease("acquire", None, |leases| async move { leases.acquire(name, holder, term).await }).await
    }

    /// Likewise, for what goes on without a lease when the store does not answer soon.
    pub(super) async fn ask_for_lease(&self, name: &Key, holder: Holder, term: Duration) -> Result<Claim> {
        let soon = Some(SOON);
        self.lease("acquire", soon, |leases| async move { leases.acquire(name, holder, term).await }).await
    }

    /// Likewise [`Leasing::renew`].
    pub(super) async fn renew_lease(
        &self,
        name: &Key,
        holder: Holder,
        term: Duration,
    ) -> Result<Option<Lease>> {
        self.lease("renew", None, |leases| async move { leases.renew(name, holder, term).await }).await
    }

    /// Likewise [`Leasing::release`].
    pub(super) async fn release_lease(&self, name: &Key, holder: Holder) -> Result<bool> {
        self.lease("release", None, |leases| async move { leases.release(name, holder).await }).await
    }

    async fn lease<'a, T, F: Future<Output = Result<T>>>(
        &'a self,
        op: &'static str,
        limit: Option<Duration>,
        call: impl FnOnce(&'a dyn Leasing) -> F,
    ) -> Result<T> {
        let gone = || Error::Unsupported { backend: self.lessor_name(), op: "give out leases" };
        match &self.lessor {
            Lessor::Level(level) => {
                let slot = self.slot(*level).ok_or_else(gone)?;
                let leases = slot.tier.leasing().ok_or_else(gone)?;
                let most = slot.limits().write_timeout;
                slot.call(op, limit.map_or(most, |limit| limit.min(most)), call(leases)).await
            }
            Lessor::Tracking => {
                let tracking = self.flow.recorder.tracking();
                let (backend, leases) = (tracking.name(), tracking.leasing().ok_or_else(gone)?);
                let after = limit.unwrap_or(PATIENCE);
                let late = |_| Error::TimedOut { backend, op, after };
                tokio::time::timeout(after, caught(backend, call(leases))).await.map_err(late)?
            }
            Lessor::Process(leases) => call(leases).await,
        }
    }
}

/// The name of a lease: what it is for keeps leases of one key apart.
pub(super) fn lease_name(purpose: &str, key: crate::KeyRef<'_>) -> Result<Key> {
    let namespace = std::str::from_utf8(key.namespace()).unwrap_or_default();
    Key::new(namespace, &[purpose.as_bytes(), b":", key.bytes()].concat())
}
