//! The contract of [`Leasing`], one case a line; [`suite`] runs them all.

use std::collections::HashSet;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::lease::{Claim, Holder, LONGEST_TERM, Lease, Leasing};
use crate::{Error, Key};

/// A term that no case lives to see the end of.
const LONG: Duration = Duration::from_secs(600);

/// Runs every case. `open` opens the store of that number, empty at first; opened again it is another process's way
/// to the same store. `term` is as short as the store can tell times apart, such as 200 ms, and cases wait for the
/// end of some leases by the runtime's clock.
pub async fn suite(term: Duration, open: impl AsyncFn(usize) -> Arc<dyn Leasing>) {
    let mut place = 0;
    macro_rules! run {
        ($($case:ident)*) => {$({
            let _named = Named(stringify!($case));
            $case([open(place).await, open(place).await], term).await;
            place += 1;
        })*};
    }
    run! {
        a_name_has_one_holder
        the_holder_gets_its_lease_again
        a_lease_ends_by_itself_and_not_before
        only_the_holder_renews
        only_the_holder_releases
        tokens_rise
        of_a_hundred_at_once_one_gets_it
        taking_turns_gives_everybody_a_higher_token
        a_dropped_call_leaves_all_or_nothing
        odd_names_are_names_of_their_own
        odd_terms_are_refused
    }
    let _ = place;
}

/// Says which case failed.
struct Named(&'static str);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the store of leases fails the case `{}`", self.0);
        }
    }
}

/// Two handles of one store.
pub type Pair = [Arc<dyn Leasing>; 2];

/// Who comes second is told, whichever process it is.
pub async fn a_name_has_one_holder([here, there]: Pair, _: Duration) {
    let began = Instant::now();
    let lease = granted(&here, "n", Holder::new(), LONG).await;
    assert!(lease.until >= began + LONG && lease.until <= Instant::now() + LONG, "a term from the call on");
    for store in [&here, &there] {
        match store.acquire(&key("n"), Holder::new(), LONG).await.expect("an answer") {
            Claim::Taken { left } => assert!(left <= LONG + Duration::from_secs(5), "{left:?}"),
            Claim::Granted(_) => panic!("two have it"),
        }
    }
    granted(&there, "m", Holder::new(), LONG).await;
}

/// The call is repeated when its answer is lost.
pub async fn the_holder_gets_its_lease_again([here, there]: Pair, _: Duration) {
    let holder = Holder::new();
    let first = granted(&here, "n", holder, LONG).await;
    let again = granted(&there, "n", holder, LONG).await;
    assert_eq!(again.token, first.token);
    assert!(there.release(&key("n"), holder).await.expect("released"));
    assert_ne!(granted(&here, "n", holder, LONG).await.token, first.token, "another lease");
}

/// By the store's time: not before its term is over, and soon after.
pub async fn a_lease_ends_by_itself_and_not_before([here, there]: Pair, term: Duration) {
    let holder = Holder::new();
    let lease = granted(&here, "n", holder, term).await;
    let next = once_free(&there, "n", Holder::new(), LONG).await;
    assert!(Instant::now() >= lease.until, "it ended {:?} too soon", lease.until - Instant::now());
    assert!(next.token > lease.token);
    assert_eq!(here.renew(&key("n"), holder, LONG).await.expect("an answer"), None, "another has it");
    assert!(!here.release(&key("n"), holder).await.expect("an answer"));
    let taken = here.acquire(&key("n"), holder, LONG).await.expect("an answer");
    assert!(matches!(taken, Claim::Taken { .. }), "{taken:?}");
}

/// And only a lease that is not over.
pub async fn only_the_holder_renews([here, there]: Pair, term: Duration) {
    let (holder, other) = (Holder::new(), Holder::new());
    assert_eq!(here.renew(&key("n"), holder, term).await.expect("an answer"), None, "there is none");
    let lease = granted(&here, "n", holder, term).await;
    assert_eq!(there.renew(&key("n"), other, LONG).await.expect("an answer"), None);
    let renewed = there.renew(&key("n"), holder, LONG).await.expect("an answer").expect("it has it");
    assert_eq!(renewed.token, lease.token);
    assert!(renewed.until > lease.until);
    tokio::time::sleep_until(lease.until + 2 * term).await;
    let taken = here.acquire(&key("n"), other, term).await.expect("an answer");
    assert!(matches!(taken, Claim::Taken { .. }), "the renewal counts: {taken:?}");

    let lease = granted(&here, "over", holder, term).await;
    tokio::time::sleep_until(lease.until + SOON).await;
    let renewed = here.renew(&key("over"), holder, LONG).await.expect("an answer");
    assert_eq!(renewed, None, "it is over, although nobody took it");
}

/// At once, and once.
pub async fn only_the_holder_releases([here, there]: Pair, _: Duration) {
    let (holder, other) = (Holder::new(), Holder::new());
    assert!(!here.release(&key("n"), holder).await.expect("an answer"), "there is none");
    granted(&here, "n", holder, LONG).await;
    assert!(!there.release(&key("n"), other).await.expect("an answer"));
    assert!(there.acquire(&key("n"), other, LONG).await.expect("an answer").granted().is_none());
    assert!(there.release(&key("n"), holder).await.expect("an answer"));
    assert!(!here.release(&key("n"), holder).await.expect("an answer"), "once");
    granted(&there, "n", other, LONG).await;
}

/// Whatever ended the lease before, and in whichever process.
pub async fn tokens_rise([here, there]: Pair, term: Duration) {
    let mut last = 0;
    for round in 0..12 {
        let (store, holder) = ([&here, &there][round % 2], Holder::new());
        // Every fourth lease nobody releases.
        let ended = round % 4 == 3;
        let lease = once_free(store, "n", holder, if ended { term } else { LONG }).await;
        assert!(lease.token > last, "{} after {last}", lease.token);
        last = lease.token;
        granted(store, &format!("other {round}"), holder, LONG).await;
        if !ended {
            assert!(store.release(&key("n"), holder).await.expect("an answer"));
        }
    }
}

/// The store decides, not the callers.
pub async fn of_a_hundred_at_once_one_gets_it(stores: Pair, _: Duration) {
    let mut claims = JoinSet::new();
    for number in 0..100 {
        let store = stores[number % 2].clone();
        claims.spawn(async move { store.acquire(&key("n"), Holder::new(), LONG).await });
    }
    let claims = claims.join_all().await;
    let granted = claims.into_iter().filter_map(|claim| claim.expect("an answer").granted());
    assert_eq!(granted.count(), 1);
}

/// A hundred holders, each of which takes it once.
pub async fn taking_turns_gives_everybody_a_higher_token(stores: Pair, _: Duration) {
    let held = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut turns = JoinSet::new();
    for number in 0..100 {
        let (store, held) = (stores[number % 2].clone(), held.clone());
        turns.spawn(async move {
            let holder = Holder::new();
            let lease = loop {
                match store.acquire(&key("n"), holder, LONG).await.expect("an answer") {
                    Claim::Granted(lease) => break lease,
                    Claim::Taken { .. } => tokio::time::sleep(POLL).await,
                }
            };
            held.lock().expect("no panic").push(lease.token);
            assert!(store.release(&key("n"), holder).await.expect("an answer"));
        });
    }
    turns.join_all().await;
    let held = held.lock().expect("no panic");
    // In the order they had it: strictly rising.
    assert!(held.windows(2).all(|pair| pair[0] < pair[1]), "{held:?}");
    assert_eq!(held.len(), 100);
}

/// Dropped at the n-th poll, whichever that is.
pub async fn a_dropped_call_leaves_all_or_nothing([here, there]: Pair, term: Duration) {
    for polls in 1..8 {
        let name = format!("n{polls}");
        let (holder, other) = (Holder::new(), Holder::new());
        poll_at_most(here.acquire(&key(&name), holder, term), polls).await;
        poll_at_most(here.renew(&key(&name), holder, term), polls).await;
        // It has it or not; either way the store works, and the name is free when the term is over.
        let claim = here.acquire(&key(&name), holder, term).await.expect("an answer").granted();
        assert!(claim.is_some(), "nobody else wants it");
        poll_at_most(here.release(&key(&name), holder), polls).await;
        let lease = once_free(&there, &name, Holder::new(), LONG).await;
        assert!(Some(lease.token) > claim.map(|claim| claim.token));
        assert!(here.acquire(&key(&name), other, term).await.expect("an answer").granted().is_none());
    }
}

/// Whatever is in them, and in whichever namespace.
pub async fn odd_names_are_names_of_their_own([here, there]: Pair, _: Duration) {
    let long = vec![b'k'; crate::MAX_KEY_BYTES];
    let names =
        [&b"a"[..], b"A", b"a b", b"\r\n\0", b"\xff\xfe", b"*", b"{a}", b"#a", b"a:b", &long, &long[1..]];
    let mut tokens = HashSet::new();
    for namespace in ["", "a", "a:", "gr\u{f6}\u{df}e"] {
        for bytes in names {
            let name = Key::new(namespace, bytes).expect("a valid key");
            let claim = here.acquire(&name, Holder::new(), LONG).await.expect("an answer");
            let lease = claim.granted().unwrap_or_else(|| panic!("{name:?} is free"));
            tokens.insert(lease.token);
            assert!(there.acquire(&name, Holder::new(), LONG).await.expect("an answer").granted().is_none());
        }
    }
    assert!(!tokens.is_empty());
}

/// As everywhere.
pub async fn odd_terms_are_refused([here, _]: Pair, _: Duration) {
    let holder = Holder::new();
    for odd in [Duration::ZERO, LONGEST_TERM + Duration::from_millis(1), Duration::MAX] {
        let refused = |error: Error| assert!(matches!(error, Error::InvalidOption { .. }), "{error}");
        refused(here.acquire(&key("n"), holder, odd).await.expect_err("an odd term"));
        refused(here.renew(&key("n"), holder, odd).await.expect_err("an odd term"));
    }
    granted(&here, "n", holder, LONGEST_TERM).await;
    granted(&here, "m", holder, Duration::from_nanos(1)).await;
}

/// Between two looks at a lease that will end.
const POLL: Duration = Duration::from_millis(5);
/// A lease that is over has ended by then, also where the store counts seconds.
const SOON: Duration = Duration::from_secs(3);

fn key(name: &str) -> Key {
    Key::new("", name.as_bytes()).expect("a valid key")
}

async fn granted(store: &Arc<dyn Leasing>, name: &str, holder: Holder, term: Duration) -> Lease {
    let claim = store.acquire(&key(name), holder, term).await.expect("an answer");
    claim.granted().unwrap_or_else(|| panic!("{name} is free: {claim:?}"))
}

/// Takes the lease as soon as the store gives it.
async fn once_free(store: &Arc<dyn Leasing>, name: &str, holder: Holder, term: Duration) -> Lease {
    let latest = Instant::now() + Duration::from_secs(20);
    loop {
        let claim = store.acquire(&key(name), holder, term).await.expect("an answer");
        if let Some(lease) = claim.granted() {
            return lease;
        }
        assert!(Instant::now() < latest, "{name} is not free in time: {claim:?}");
        tokio::time::sleep(POLL).await;
    }
}

/// Polls `future` that many times at most and drops it then.
async fn poll_at_most<F: Future>(future: F, polls: usize) {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending => {
            left -= 1;
            if left == 0 { Poll::Ready(()) } else { Poll::Pending }
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::LocalLeases;

    #[tokio::test(start_paused = true)]
    async fn leases_within_a_process_keep_the_contract() {
        let stores = std::sync::Mutex::new(Vec::<Arc<LocalLeases>>::new());
        suite(Duration::from_millis(200), async |place| {
            let mut stores = stores.lock().unwrap();
            if place == stores.len() {
                stores.push(Arc::default());
            }
            stores[place].clone() as Arc<dyn Leasing>
        })
        .await;
    }
}
