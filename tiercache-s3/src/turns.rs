use tokio::sync::{Mutex, MutexGuard};

use crate::names::Hash;

const STRIPES: usize = 1024;

/// One at a time for what changes a key's object: between looking and writing nothing of this process comes in.
#[derive(Debug)]
pub(crate) struct Turns(Box<[Mutex<()>]>);

impl Turns {
    pub(crate) fn new() -> Self {
        Self((0..STRIPES).map(|_| Mutex::new(())).collect())
    }

    pub(crate) async fn take(&self, key: Hash) -> MutexGuard<'_, ()> {
        self.0[key as usize % STRIPES].lock().await
    }
}
