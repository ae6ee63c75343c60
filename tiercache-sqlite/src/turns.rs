//! Whose turn it is, within this process, to write to a shard.

use std::sync::{Condvar, Mutex, PoisonError};

use crate::shard::lock;

/// The shard's writer and transactions over several shards take turns; the latter, which are rarer and hold other
/// shards up meanwhile, go first.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    state: Mutex<State>,
    given_back: Condvar,
}

#[derive(Debug, Default)]
struct State {
    taken: bool,
    ahead: usize,
}

/// Held while writing.
pub(crate) struct Turn<'a>(&'a Turns);

impl Turns {
    /// Waits for the writer's turn.
    pub(crate) fn take(&self) -> Turn<'_> {
        let wait = |state: &mut State| state.taken || state.ahead > 0;
        let state = self.given_back.wait_while(lock(&self.state), wait);
        state.unwrap_or_else(PoisonError::into_inner).taken = true;
        Turn(self)
    }

    /// Waits for the turn before the writer's next.
    pub(crate) fn take_ahead(&self) -> Turn<'_> {
        let mut state = lock(&self.state);
        state.ahead += 1;
        let state = self.given_back.wait_while(state, |state| state.taken);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        state.ahead -= 1;
        state.taken = true;
        drop(state);
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).taken = false;
        self.0.given_back.notify_all();
    }
}
