//! Belady's optimum: of what is held and what comes, the one that is asked for last goes.

use std::collections::{BTreeSet, HashMap};

/// The share of requests that can at best be answered from so much room.
pub(super) fn hit_ratio(keys: &[u64], room: usize) -> f64 {
    // When each request's key is asked for next.
    let mut next = vec![usize::MAX; keys.len()];
    let mut later = HashMap::new();
    for (at, key) in keys.iter().enumerate().rev() {
        if let Some(again) = later.insert(key, at) {
            next[at] = again;
        }
    }
    // What is held, by when it is asked for next. Nothing asked for never again is worth holding.
    let mut held: BTreeSet<usize> = BTreeSet::new();
    let mut hits = 0u64;
    for (at, again) in next.into_iter().enumerate() {
        hits += u64::from(held.remove(&at));
        if again != usize::MAX {
            held.insert(again);
            if held.len() > room {
                held.pop_last();
            }
        }
    }
    hits as f64 / keys.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optimum_of_a_loop_keeps_what_fits() {
        let loops: Vec<u64> = (0..10).cycle().take(1_000).collect();
        // Nine of ten stay: every round misses about one.
        assert!(hit_ratio(&loops, 9) > 0.87 && hit_ratio(&loops, 9) < 0.91);
        assert_eq!(hit_ratio(&loops, 10), 0.99);
        assert_eq!(hit_ratio(&[1, 2, 3, 4], 10), 0.0);
    }
}
