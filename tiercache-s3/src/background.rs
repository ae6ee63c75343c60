use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// More than this at once are not begun: a walk does later what they would have done.
const MOST: usize = 256;
/// How long the end of the tier waits for them.
const PATIENCE: Duration = Duration::from_secs(5);

/// Work that goes on when the call that asked for it is over, owned by the tier.
#[derive(Debug)]
pub(crate) struct Background {
    runtime: Handle,
    tasks: Mutex<Option<JoinSet<()>>>,
}

impl Background {
    pub(crate) fn new(runtime: Handle) -> Self {
        Self { runtime, tasks: Mutex::new(Some(JoinSet::new())) }
    }

    /// Begins `work`, unless there is too much already or the tier is closed.
    pub(crate) fn begin(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(tasks) = tasks.as_mut() else { return };
        while tasks.try_join_next().is_some() {}
        if tasks.len() < MOST {
            tasks.spawn_on(work, &self.runtime);
        }
    }

    /// Waits for what has begun, a while, and begins nothing more.
    pub(crate) async fn close(&self) {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut tasks) = tasks {
            let all = async { while tasks.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(PATIENCE, all).await;
        }
    }
}
