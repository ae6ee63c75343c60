//! Levels whose store was away when the cache began.
//!
//! Such a level is as if its breaker were open: reads miss, entries wait or go elsewhere, removals wait for it (and are
//! noted, where there is a journal). Then, in order:
//! 1. It is opened in the background, with growing pauses.
//! 2. Generations go on above what it has, and its invalidations are taken over.
//! 3. It answers. Whatever it holds of a key that was changed meanwhile is doubted until the removal that waits has
//!    been made, above whatever stands there: with what generation it was begun does not matter.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::watch;

use super::Shared;
use super::flow::Flow;
use super::guard::caught;
use super::slot::Slot;
use crate::bugs::seeded;
use crate::late::Patience;
use crate::tier::{Late, Opened};
use crate::{Error, Generation, Level, Result};

/// The first attempt, while the cache begins.
///
/// # Errors
/// What the store said, if trying again cannot help.
pub(super) async fn begin(slot: &Slot) -> Result<Option<Opened>> {
    let Some(late) = slot.tier.late() else { return Ok(None) };
    let backend = slot.tier.name();
    match Patience::default().attempt(backend, caught(backend, late.open())).await {
        Ok(opened) => Ok(Some(opened)),
        Err(error) if error.is_retryable() => {
            let cause = cause(&error);
            tracing::warn!(level = %slot.level, backend, %error, cause, "the level is away: opened when it is back");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Flow {
    /// Takes over what must be known of a store before it answers.
    pub(super) fn take_over(&self, backend: &'static str, opened: Opened) -> Result<()> {
        if seeded("late-not-joined") {
            return Ok(());
        }
        let fenced = opened.fences.iter().map(|(_, generation)| *generation).max();
        self.join(backend, opened.last_generation.max(fenced.unwrap_or(Generation::ZERO)))?;
        for (scope, generation) in opened.fences {
            self.fences.remove(&scope, generation);
        }
        Ok(())
    }
}

impl Shared {
    /// Opens what is still away, until `stop` says so.
    pub(super) fn open_later(self: &Arc<Self>, stop: &watch::Receiver<bool>) {
        for slot in self.slots().filter(|slot| slot.is_away()) {
            let (shared, level) = (self.clone(), slot.level);
            self.run(stop, async move { shared.open_level(level).await });
        }
    }

    async fn open_level(&self, level: Level) {
        let Some((slot, late)) = self.slot(level).and_then(|slot| Some((slot, slot.tier.late()?))) else {
            return;
        };
        let mut patience = Patience::default();
        while !self.closed.load(Ordering::Acquire) {
            tokio::time::sleep(patience.pause(self.flow.now().as_millis())).await;
            match self.try_to_open(slot, late, &mut patience).await {
                Ok(()) => {
                    tracing::info!(%level, backend = slot.tier.name(), "the level was opened");
                    return;
                }
                Err(error) if error.is_retryable() => {
                    tracing::debug!(%level, %error, cause = cause(&error), "the level is still away");
                }
                // It may be put right while the cache runs.
                Err(error) => {
                    tracing::error!(%level, %error, cause = cause(&error), "the level does not open")
                }
            }
        }
    }

    async fn try_to_open(&self, slot: &Slot, late: &dyn Late, patience: &mut Patience) -> Result<()> {
        let backend = slot.tier.name();
        let opened = patience.attempt(backend, caught(backend, late.open())).await?;
        self.flow.take_over(backend, opened)?;
        late.admit();
        if self.closed.load(Ordering::Acquire) {
            // It was closed before there was anything to close.
            return slot.tier.close().await;
        }
        Ok(())
    }
}

fn cause(error: &Error) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}
