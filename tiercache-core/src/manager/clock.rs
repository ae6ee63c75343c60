//! The cache's time, for those who keep times of their own in what they store.

use super::CacheManager;
use crate::Timestamp;

impl CacheManager {
    /// The time by the clock the cache was built with: what its deadlines are measured by.
    pub fn now(&self) -> Timestamp {
        self.shared.flow.now()
    }
}
