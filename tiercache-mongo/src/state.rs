//! What a level keeps beside its entries, a small document each:
//!
//! ```text
//! { _id: "live record",                 n }         generations up to n may be in the store
//! { _id: "live all" | "live in <ns>",   n, done }   everything in there below n is dead; `done` (TTL index) when it is gone
//! { _id: "fence …",                     n }         an invalidation of many that the manager must know of
//! ```
//!
//! A clearing is committed by its document; removing what it killed comes after, and what was cut is done by the next
//! sweep of any process. The document remains a minute longer than that, so that what arrives late is refused. Each
//! process looks at the `live` documents about once a second while it is used.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use mongodb::Collection;
use mongodb::bson::{Document, doc};
use mongodb::error::Result;
use mongodb::options::ReturnDocument;
use tiercache_core::Generation;
use tiercache_core::tier::Scope;

use crate::documents::{expiring, number};
use crate::ids;
use crate::link::is_duplicate;

const RECORD: &str = "live record";
const ALL: &str = "live all";
const WITHIN: &str = "live in ";
/// How often the documents are looked at.
const EVERY: Duration = Duration::from_secs(1);
/// How long a floor is remembered that the store has forgotten, as it does when it is done and a minute over.
const REMEMBERED: Duration = Duration::from_secs(120);
const FLOOR_KEPT: Duration = Duration::from_secs(60);

pub(crate) struct State {
    documents: Collection<Document>,
    /// What the record is known to say.
    recorded: AtomicU64,
    floors: Mutex<HashMap<String, (Generation, Instant)>>,
    fences: Mutex<BTreeMap<Scope, Generation>>,
    started: Instant,
    /// When the documents are due to be looked at, in milliseconds since `started`.
    due: AtomicU64,
}

/// A clearing that may not be finished.
#[derive(Clone, Debug)]
pub(crate) struct Floor {
    pub(crate) id: String,
    pub(crate) below: Generation,
}

impl Floor {
    pub(crate) fn of(namespace: Option<&str>, below: Generation) -> Self {
        let id = match namespace {
            None => ALL.to_owned(),
            Some(namespace) => format!("{WITHIN}{}", ids::of_namespace(namespace.as_bytes())),
        };
        Self { id, below }
    }

    /// The names it reaches, as a condition; `None`: all.
    pub(crate) fn names(&self) -> Option<Document> {
        let start = self.id.strip_prefix(WITHIN)?.to_owned();
        Some(doc! { "$gte": &start, "$lt": ids::behind(start.clone()) })
    }
}

impl State {
    pub(crate) fn new(documents: Collection<Document>) -> Self {
        Self {
            documents,
            recorded: AtomicU64::new(0),
            floors: Mutex::default(),
            fences: Mutex::default(),
            started: Instant::now(),
            due: AtomicU64::new(0),
        }
    }

    /// Reads everything, and makes the index.
    pub(crate) async fn open(&self) -> Result<()> {
        self.prepare().await?;
        self.refresh().await?;
        self.read_fences().await
    }

    /// Reads everything, and changes nothing.
    pub(crate) async fn look(&self) -> Result<()> {
        self.read().await?;
        self.read_fences().await
    }

    async fn read_fences(&self) -> Result<()> {
        let fences = self.documents.find(range("fence ")).await?;
        let fences: Vec<Document> = fences.try_collect().await?;
        let known =
            fences.iter().filter_map(|found| Some((scope(found.get_str("_id").ok()?)?, generation(found)?)));
        let mut fences = lock(&self.fences);
        for (scope, raised) in known {
            let known = fences.entry(scope).or_default();
            *known = raised.max(*known);
        }
        Ok(())
    }

    pub(crate) async fn prepare(&self) -> Result<()> {
        self.documents.create_index(expiring("done", FLOOR_KEPT)).await.map(drop)
    }

    /// What the record says, as far as is known.
    pub(crate) fn recorded(&self) -> Generation {
        Generation::new(self.recorded.load(Ordering::Acquire))
    }

    /// Raises the record; returns what it said before and what it says now.
    pub(crate) async fn raise(&self, to: Generation) -> Result<(Generation, Generation)> {
        let to = to.min(Generation::MAX);
        let before = self.raise_to(RECORD, to).await?.unwrap_or_default();
        let after = before.max(to);
        self.recorded.fetch_max(after.get(), Ordering::AcqRel);
        Ok((before, after))
    }

    /// Whether an entry was cleared away.
    pub(crate) fn is_dead(&self, namespace: &str, generation: Generation) -> bool {
        let floors = lock(&self.floors);
        if floors.is_empty() {
            return false;
        }
        let id = Floor::of(Some(namespace), generation).id;
        [ALL, id.as_str()].iter().any(|id| floors.get(*id).is_some_and(|(below, _)| generation < *below))
    }

    /// Commits a clearing.
    pub(crate) async fn lay(&self, floor: &Floor) -> Result<()> {
        self.note(&floor.id, floor.below);
        let update = doc! { "$max": { "n": floor.below.get() as i64 }, "$unset": { "done": "" } };
        self.update(&floor.id, update).await.map(drop)
    }

    /// Notes that nothing of what a clearing killed is left.
    pub(crate) async fn done(&self, floor: &Floor) -> Result<()> {
        let same = doc! { "_id": &floor.id, "n": floor.below.get() as i64 };
        self.documents.update_one(same, doc! { "$currentDate": { "done": true } }).await?;
        Ok(())
    }

    /// A clearing that was begun and is not done.
    pub(crate) async fn unfinished(&self) -> Result<Option<Floor>> {
        let mut open = range("live ");
        open.insert("done", doc! { "$exists": false });
        let found: Vec<Document> = self.documents.find(open).limit(2).await?.try_collect().await?;
        Ok(found.iter().filter_map(floor).next())
    }

    /// Whether it is time to look at the documents; says so once each time.
    pub(crate) fn is_due(&self) -> bool {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let due = self.due.load(Ordering::Relaxed);
        let next = now.saturating_add(EVERY.as_millis() as u64);
        now >= due && self.due.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Looks at the documents that all processes must agree on; returns whether the record was gone or had gone back,
    /// as in a store that was wiped. It is raised again then.
    pub(crate) async fn refresh(&self) -> Result<bool> {
        // Before it is read: what is raised beside that may not stand in the answer yet.
        let known = self.recorded();
        let recorded = self.read().await?;
        if recorded < known {
            self.raise(known).await?;
            return Ok(true);
        }
        self.recorded.fetch_max(recorded.get(), Ordering::AcqRel);
        Ok(false)
    }

    /// Reads the documents that all processes must agree on; returns what the record says.
    async fn read(&self) -> Result<Generation> {
        let found: Vec<Document> = self.documents.find(range("live ")).await?.try_collect().await?;
        let mut recorded = Generation::ZERO;
        for document in &found {
            match (document.get_str("_id"), generation(document)) {
                (Ok(RECORD), Some(generation)) => recorded = generation,
                (Ok(id), Some(below)) => self.note(id, below),
                _ => {}
            }
        }
        lock(&self.floors).retain(|_, (_, seen)| seen.elapsed() < REMEMBERED);
        Ok(recorded)
    }

    /// Writes a fence; `raised` is its generation, which the record covers.
    pub(crate) async fn fence(&self, scope: &Scope, raised: Generation) -> Result<()> {
        self.raise_to(&fence_id(scope), raised).await?;
        let mut fences = lock(&self.fences);
        let known = fences.entry(scope.clone()).or_default();
        *known = raised.max(*known);
        Ok(())
    }

    pub(crate) fn remembered(&self) -> Vec<(Scope, Generation)> {
        lock(&self.fences).iter().map(|(scope, generation)| (scope.clone(), *generation)).collect()
    }

    fn note(&self, id: &str, below: Generation) {
        let mut floors = lock(&self.floors);
        let known = floors.entry(id.to_owned()).or_insert((below, Instant::now()));
        *known = (below.max(known.0), Instant::now());
    }

    /// Makes the number of a document at least as high as that; returns what it was.
    async fn raise_to(&self, id: &str, to: Generation) -> Result<Option<Generation>> {
        self.update(id, doc! { "$max": { "n": to.get() as i64 } }).await
    }

    async fn update(&self, id: &str, update: Document) -> Result<Option<Generation>> {
        // Of two that make the document at once one is refused, and finds it the second time.
        let mut tries = 3;
        loop {
            let updated = self
                .documents
                .find_one_and_update(doc! { "_id": id }, update.clone())
                .upsert(true)
                .return_document(ReturnDocument::Before)
                .await;
            match updated {
                Ok(before) => return Ok(before.as_ref().and_then(generation)),
                Err(error) if is_duplicate(&error) && tries > 0 => tries -= 1,
                Err(error) => return Err(error),
            }
        }
    }
}

fn range(start: &str) -> Document {
    doc! { "_id": { "$gte": start, "$lt": ids::behind(start.to_owned()) } }
}

fn generation(document: &Document) -> Option<Generation> {
    u64::try_from(number(document, "n")?).ok().map(|number| Generation::new(number).min(Generation::MAX))
}

fn floor(document: &Document) -> Option<Floor> {
    let id = document.get_str("_id").ok().filter(|id| *id != RECORD)?;
    Some(Floor { id: id.to_owned(), below: generation(document)? })
}

fn fence_id(scope: &Scope) -> String {
    match scope {
        Scope::All => "fence all".to_owned(),
        Scope::Namespace(namespace) => format!("fence in {}", ids::of_namespace(namespace.as_bytes())),
        Scope::Tag { namespace, name, value } => {
            format!("fence tag {}{}", ids::of_namespace(namespace.as_bytes()), ids::pair(name, value))
        }
    }
}

fn scope(id: &str) -> Option<Scope> {
    let rest = id.strip_prefix("fence ")?;
    if rest == "all" {
        return Some(Scope::All);
    }
    if let Some(namespace) = rest.strip_prefix("in ") {
        return ids::unpair(namespace).map(|(namespace, _)| Scope::Namespace(namespace));
    }
    let (namespace, tag) = rest.strip_prefix("tag ")?.split_once(' ')?;
    let (namespace, _) = ids::unpair(&format!("{namespace} "))?;
    let (name, value) = ids::unpair(tag)?;
    Some(Scope::Tag { namespace, name, value })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_come_back_from_their_names() {
        let tag = |namespace: &str, name: &str, value: &str| Scope::Tag {
            namespace: namespace.into(),
            name: name.into(),
            value: value.into(),
        };
        let scopes = [
            Scope::All,
            Scope::Namespace(String::new()),
            Scope::Namespace("a b".into()),
            tag("", "", ""),
            tag("a b", "type", "größe:\0"),
            tag("a", "b type", " "),
        ];
        for known in scopes {
            assert_eq!(scope(&fence_id(&known)), Some(known));
        }
        assert_eq!(scope("fence tag a"), None);
    }

    #[test]
    fn a_floor_reaches_its_namespace_alone() {
        let floor = Floor::of(Some("a"), Generation::new(5));
        let names = floor.names().expect("a range");
        let (start, end) = (names.get_str("$gte").unwrap(), names.get_str("$lt").unwrap());
        assert!(("a k" >= start && "a k" < end) && !("ab k" >= start && "ab k" < end));
        assert!(Floor::of(None, Generation::new(5)).names().is_none());
    }
}
