//! Several calls at a time within one task.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// A call that has not begun.
pub type Call<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Makes the calls, at most `limit` of them at a time, and returns what they say in their order. Nothing is spawned:
/// dropping the future drops what is under way.
pub async fn side_by_side<T>(limit: usize, calls: Vec<Call<'_, T>>) -> Vec<T> {
    let mut said = Vec::with_capacity(calls.len());
    let mut waiting = calls.into_iter().enumerate();
    let mut running: Vec<_> = waiting.by_ref().take(limit.max(1)).collect();
    poll_fn(|context| {
        let mut at = 0;
        while let Some((number, call)) = running.get_mut(at) {
            match (call.as_mut().poll(context), *number) {
                (Poll::Pending, _) => at += 1,
                (Poll::Ready(answer), number) => {
                    said.push((number, answer));
                    match waiting.next() {
                        Some(next) => running[at] = next,
                        None => drop(running.swap_remove(at)),
                    }
                }
            }
        }
        if running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    said.sort_unstable_by_key(|(number, _)| *number);
    said.into_iter().map(|(_, answer)| answer).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn answers_are_in_order_and_no_more_run_than_may() {
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let calls = (0..50usize).map(|number| -> Call<'_, usize> {
            let (running, most) = (&running, &most);
            Box::pin(async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                for _ in 0..(number * 7) % 5 {
                    tokio::task::yield_now().await;
                }
                running.fetch_sub(1, Ordering::SeqCst);
                number
            })
        });
        assert_eq!(side_by_side(8, calls.collect()).await, (0..50).collect::<Vec<_>>());
        assert_eq!(most.into_inner(), 8);
        assert_eq!(side_by_side::<()>(8, Vec::new()).await, []);
    }
}
