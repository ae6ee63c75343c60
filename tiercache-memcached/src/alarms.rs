//! Limits of time for many short calls.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::{self, Handle};
use tokio::time::{Instant, Sleep, sleep_until};

/// So many timers wait for a call at most.
const IDLE: usize = 64;

/// Ends calls that take too long, as [`tokio::time::timeout`] does, with timers that are kept from one call to the next.
///
/// A timer of a call's own is set for a moment at which hardly any call still runs, and for a call after a pause, where no
/// other timer is due before that, setting it wakes the runtime's driver: two system calls beside the three that such a call
/// makes. One that is kept goes off when the first of its calls would have had to end, and is set anew only then.
#[derive(Debug, Default)]
pub(crate) struct Alarms {
    idle: Mutex<Vec<Alarm>>,
}

#[derive(Debug)]
struct Alarm {
    /// A timer does not outlive its runtime.
    runtime: runtime::Id,
    sleep: Pin<Box<Sleep>>,
}

impl Alarm {
    fn at(deadline: Instant) -> Self {
        Self { runtime: Handle::current().id(), sleep: Box::pin(sleep_until(deadline)) }
    }
}

impl Alarms {
    /// What the call says; `None` when it takes longer than `limit`, and is dropped.
    pub(crate) async fn limit<T>(&self, limit: Duration, call: impl Future<Output = T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut alarm = self.alarm(deadline);
        if alarm.sleep.deadline() > deadline {
            alarm.sleep.as_mut().reset(deadline);
        }
        let mut call = pin!(call);
        let said = poll_fn(|context| {
            if let Poll::Ready(said) = call.as_mut().poll(context) {
                return Poll::Ready(Some(said));
            }
            while alarm.sleep.as_mut().poll(context).is_ready() {
                if Instant::now() >= deadline {
                    return Poll::Ready(None);
                }
                // It was set by a call before.
                alarm.sleep.as_mut().reset(deadline);
            }
            Poll::Pending
        });
        let said = said.await;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE {
            idle.push(alarm);
        }
        said
    }

    fn alarm(&self, deadline: Instant) -> Alarm {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let here = |alarm: &Alarm| alarm.runtime == Handle::current().id();
        idle.filter(here).unwrap_or_else(|| Alarm::at(deadline))
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_call_has_its_limit_whatever_the_timer_was_set_to_before() {
        let alarms = Alarms::default();
        let millis = Duration::from_millis;
        assert_eq!(alarms.limit(millis(100), ready(1)).await, Some(1));
        // At what was the end of the call before, this one has time left.
        assert_eq!(alarms.limit(millis(200), sleep(millis(150))).await, Some(()));
        for limit in [300, 20, 100, 100] {
            let begun = Instant::now();
            assert_eq!(alarms.limit(millis(limit), pending::<()>()).await, None);
            assert_eq!(begun.elapsed().as_millis(), limit.into());
            // Of a timer that is set for later than the next call ends.
            assert_eq!(alarms.limit(millis(10_000), ready(())).await, Some(()));
        }
        assert_eq!(alarms.idle.lock().unwrap().len(), 1, "one after the other");
    }

    #[tokio::test(start_paused = true)]
    async fn calls_side_by_side_and_calls_that_are_dropped_do_not_share_a_timer() {
        let alarms = Alarms::default();
        let millis = Duration::from_millis;
        let begun = Instant::now();
        let ended = async |limit| {
            assert_eq!(alarms.limit(millis(limit), pending::<()>()).await, None);
            begun.elapsed().as_millis()
        };
        let ends = tokio::join!(ended(300), ended(100), ended(200));
        assert_eq!(ends, (300, 100, 200));
        tokio::select! {
            biased;
            _ = alarms.limit(millis(100), pending::<()>()) => panic!("it was not dropped"),
            () = ready(()) => {}
        }
        assert_eq!(alarms.idle.lock().unwrap().len(), 2, "what is dropped takes its timer along");
    }

    #[test]
    fn a_timer_is_left_with_its_runtime() {
        let alarms = Alarms::default();
        for _ in 0..2 {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let limit = Duration::from_millis(1);
            assert_eq!(runtime.block_on(alarms.limit(limit, pending::<()>())), None);
        }
    }
}
