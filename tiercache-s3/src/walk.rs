//! Walking over the objects: a page of names at a time, and for at most a second per sweep.
//!
//! 1. What other processes have cleared and fenced is learnt every half minute; that is no walk.
//! 2. When a walk begins, unfinished uploads of age are ended.
//! 3. Page by page the names are listed; where the walk is one that looks, the front of each object is read, and what is
//!    dead is deleted, what has stayed its time handed over. What is counted is what stays.
//! 4. What is over `max_size` is handed over, oldest first.

use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use tiercache_core::tier::{Cause, Dead, Left, Swept};
use tiercache_core::{Generation, Result, Timestamp};

use crate::S3Config;
use crate::client::{Failure, Kind};
use crate::names::{Hash, Name};
use crate::shared::Shared;
use crate::store::{Listed, Read};
use crate::tier::AT_ONCE;

/// How often the records are looked at for what other processes have written.
const REFRESH_EVERY: Duration = Duration::from_secs(30);
/// How long a sweep goes on.
const STEP: Duration = Duration::from_secs(1);
/// The oldest objects that are remembered to be given up at the end of a walk.
const OLDEST: usize = 100_000;

#[derive(Debug)]
pub(crate) struct Walk {
    pub(crate) max_size: Option<u64>,
    walk_every: Option<Duration>,
    list_every: Duration,
    unfinished_after: Duration,
    hastened: AtomicBool,
    /// Entries and bytes, as the last walk counted them.
    counted: Mutex<Option<(u64, u64)>>,
    state: tokio::sync::Mutex<State>,
}

#[derive(Debug)]
struct State {
    next_refresh: Timestamp,
    next_walk: Timestamp,
    next_list: Timestamp,
    under_way: Option<UnderWay>,
}

#[derive(Debug, Default)]
struct UnderWay {
    /// Whether the fronts of objects are read, too.
    looks: bool,
    /// The name the next page begins behind.
    after: Option<String>,
    entries: u64,
    bytes: u64,
    oldest: BinaryHeap<Aged>,
    /// What an end is made of when this one gets there.
    fences: Vec<(Hash, Generation)>,
    /// What is left to give up, the oldest last.
    surplus: Option<Vec<Aged>>,
}

/// An object by its age.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Aged {
    modified: i64,
    name: String,
    size: u64,
}

enum Verdict {
    Stays(Listed),
    Dropped,
    Spilled,
    Gone,
}

impl Walk {
    pub(crate) fn new(config: &S3Config, now: Timestamp) -> Self {
        let first = |wanted: bool| if wanted { now } else { Timestamp::NEVER };
        Self {
            max_size: config.max_size,
            walk_every: config.walk_every,
            list_every: config.list_every,
            unfinished_after: config.unfinished_after,
            hastened: AtomicBool::new(false),
            counted: Mutex::new(None),
            state: tokio::sync::Mutex::new(State {
                next_refresh: now.after(REFRESH_EVERY),
                next_walk: first(config.walk_every.is_some()),
                next_list: first(config.max_size.is_some()),
                under_way: None,
            }),
        }
    }

    /// The next sweep begins a walk.
    pub(crate) fn hasten(&self) {
        self.hastened.store(true, Ordering::Release);
    }

    /// Entries and bytes as they were last counted.
    pub(crate) fn counted(&self) -> Option<(u64, u64)> {
        *self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on walking, if there is a walk to make, for a while.
    pub(crate) async fn step(&self, shared: &Arc<Shared>, now: Timestamp, dead: &dyn Dead) -> Result<Swept> {
        let began = Instant::now();
        let mut swept = Swept::default();
        let mut state = self.state.lock().await;
        if now >= state.next_refresh {
            shared.meta.refresh().await?;
            state.next_refresh = now.after(REFRESH_EVERY);
        }
        self.begin(&mut state, shared, now).await?;
        while let Some(walk) = &mut state.under_way {
            if began.elapsed() >= STEP {
                return Ok(swept);
            }
            if walk.surplus.is_none() {
                self.next_page(walk, shared, now, dead, &mut swept).await?;
            } else if !self.give_up_some(walk, shared, now, &mut swept).await? {
                self.finish(&mut state, shared, now).await;
            }
        }
        swept.complete = true;
        Ok(swept)
    }

    async fn begin(&self, state: &mut State, shared: &Arc<Shared>, now: Timestamp) -> Result<()> {
        let hastened = self.hastened.load(Ordering::Acquire);
        let looks = now >= state.next_walk || hastened;
        if state.under_way.as_ref().is_some_and(|walk| walk.looks || !looks) {
            return Ok(());
        }
        if !looks && now < state.next_list {
            return Ok(());
        }
        self.end_uploads(shared, now).await?;
        if looks {
            self.hastened.store(false, Ordering::Release);
        }
        let fences = if looks { shared.meta.old_fences() } else { Vec::new() };
        state.under_way = Some(UnderWay { looks, fences, ..UnderWay::default() });
        Ok(())
    }

    async fn end_uploads(&self, shared: &Arc<Shared>, now: Timestamp) -> Result<()> {
        let unfinished = match shared.store.unfinished(shared.names.root()).await {
            Ok(unfinished) => unfinished,
            // A lifecycle rule has to see to them then.
            Err(Failure { kind: Kind::Unknown | Kind::Denied, code, .. }) => {
                tracing::info!(code, "unfinished uploads cannot be listed here");
                return Ok(());
            }
            Err(failure) => return Err(failure.into()),
        };
        for upload in unfinished {
            let own = shared.active.lock().unwrap_or_else(PoisonError::into_inner).contains(&upload.id);
            let begun = Timestamp::from_millis(u64::try_from(upload.begun).unwrap_or_default());
            if !own && now.since(begun) >= self.unfinished_after {
                shared.store.abort(&upload.name, &upload.id).await?;
                tracing::info!(object = upload.name, "an unfinished upload was ended");
            }
        }
        Ok(())
    }

    async fn next_page(
        &self,
        walk: &mut UnderWay,
        shared: &Arc<Shared>,
        now: Timestamp,
        dead: &dyn Dead,
        swept: &mut Swept,
    ) -> Result<()> {
        let (page, more) =
            shared.store.list(&shared.names.entries(None), walk.after.as_deref(), usize::MAX).await?;
        let last = page.last().map(|listed| listed.name.clone());
        let ours = page.into_iter().filter_map(|listed| Some((shared.names.parse(&listed.name)?, listed)));
        let verdicts: Vec<Result<Verdict, Failure>> = if walk.looks {
            let judged = ours.map(|(name, listed)| judge(shared, name, listed, now, dead));
            stream::iter(judged.collect::<Vec<_>>()).buffer_unordered(AT_ONCE).collect().await
        } else {
            ours.map(|(_, listed)| Ok(Verdict::Stays(listed))).collect()
        };
        // All or none of the page is counted.
        for verdict in verdicts.into_iter().collect::<Result<Vec<_>, Failure>>()? {
            match verdict {
                Verdict::Stays(listed) => {
                    walk.entries += 1;
                    walk.bytes += listed.size;
                    if self.max_size.is_some() {
                        let Listed { name, size, modified } = listed;
                        walk.oldest.push(Aged { modified, name, size });
                        if walk.oldest.len() > OLDEST {
                            walk.oldest.pop();
                        }
                    }
                }
                Verdict::Dropped => swept.dropped += 1,
                Verdict::Spilled => swept.spilled += 1,
                Verdict::Gone => {}
            }
        }
        match last.filter(|_| more) {
            Some(last) => walk.after = Some(last),
            None => {
                let mut surplus = std::mem::take(&mut walk.oldest).into_sorted_vec();
                surplus.reverse();
                walk.surplus = Some(surplus);
            }
        }
        Ok(())
    }

    /// Gives up some of what is over the limit; whether there may be more.
    async fn give_up_some(
        &self,
        walk: &mut UnderWay,
        shared: &Arc<Shared>,
        now: Timestamp,
        swept: &mut Swept,
    ) -> Result<bool> {
        let (Some(max_size), Some(surplus)) = (self.max_size, &mut walk.surplus) else { return Ok(false) };
        let mut over = walk.bytes.saturating_sub(max_size);
        let mut batch = Vec::new();
        while over > 0
            && batch.len() < AT_ONCE
            && let Some(aged) = surplus.pop()
        {
            over = over.saturating_sub(aged.size);
            batch.push(aged);
        }
        if batch.is_empty() {
            return Ok(false);
        }
        let given_up = batch.into_iter().filter_map(|aged| {
            let name = shared.names.parse(&aged.name)?;
            Some(async move { (aged.size, give_up(shared, &name, Cause::Evicted, now).await) })
        });
        let given_up: Vec<_> =
            stream::iter(given_up.collect::<Vec<_>>()).buffer_unordered(AT_ONCE).collect().await;
        for (size, gone) in given_up {
            if gone? {
                shared.evicted.fetch_add(1, Ordering::Relaxed);
                swept.spilled += 1;
            }
            walk.entries = walk.entries.saturating_sub(1);
            walk.bytes = walk.bytes.saturating_sub(size);
        }
        Ok(true)
    }

    async fn finish(&self, state: &mut State, shared: &Arc<Shared>, now: Timestamp) {
        let Some(walk) = state.under_way.take() else { return };
        *self.counted.lock().unwrap_or_else(PoisonError::into_inner) = Some((walk.entries, walk.bytes));
        if walk.looks {
            state.next_walk = self.walk_every.map_or(Timestamp::NEVER, |every| now.after(every));
            shared.meta.forget(walk.fences).await;
        }
        if let Some(max_size) = self.max_size {
            // There was more to give up than was remembered: once more, at once.
            state.next_list = if walk.bytes > max_size { now } else { now.after(self.list_every) };
        }
    }
}

/// Looks at an object, and deletes it if it is dead or has stayed its time.
async fn judge(
    shared: &Arc<Shared>,
    name: Name,
    listed: Listed,
    now: Timestamp,
    dead: &dyn Dead,
) -> Result<Verdict, Failure> {
    if shared.is_surely_alive(&name, now).await? {
        return Ok(Verdict::Stays(listed));
    }
    let Some(front) = shared.front(&name).await? else {
        shared.remove_damaged_later(name);
        return Ok(Verdict::Gone);
    };
    let is_dead = !front.entry.is_live(now)
        || dead.is_dead(front.key.as_ref(), &front.entry)
        || shared.is_dead(&name, &front.key, &front.entry);
    if is_dead {
        let removed = shared.remove_copy(&name, front.etag.as_deref()).await?;
        return Ok(if removed { Verdict::Dropped } else { Verdict::Gone });
    }
    if front.until <= now {
        let gone = give_up(shared, &name, Cause::StayOver, now).await?;
        return Ok(if gone { Verdict::Spilled } else { Verdict::Gone });
    }
    Ok(Verdict::Stays(listed))
}

/// Hands an entry to the way down and deletes it; whether it did.
async fn give_up(shared: &Arc<Shared>, name: &Name, cause: Cause, now: Timestamp) -> Result<bool, Failure> {
    let _turn = shared.turns.take(name.key).await;
    let Read::Object(object) = shared.store.read(&name.object, None, shared.max_entry).await? else {
        return Ok(false);
    };
    let Ok((key, entry)) = shared.codec.decode(&object.bytes) else { return Ok(false) };
    // Written anew since it was looked at.
    if cause == Cause::StayOver && object.until > now {
        return Ok(false);
    }
    if entry.is_live(now)
        && !shared.is_dead(name, &key, &entry)
        && let Some(spill) = shared.spill.get()
    {
        spill.spill(key, entry, Left { cause, uses: 0 });
    }
    match shared.store.delete(&name.object, object.etag.as_deref()).await {
        Ok(()) => Ok(true),
        // Another process wrote it anew.
        Err(Failure { kind: Kind::Conflict, .. }) => Ok(false),
        Err(failure) => Err(failure),
    }
}
