//! Applying a batch.
//!
//! Events of one key are applied in order, those of different keys in any: a batch becomes as few rounds as there are
//! events of one key, each a command that changes many documents, none twice. Invalidations and flushes are rounds of
//! their own. A command that may have been carried out and was not answered is sent again; what it carries makes that
//! harmless: generations, and its own id where hits are added.

use std::collections::HashMap;
use std::time::Duration;

use mongodb::Collection;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, Document, doc};
use tiercache_core::tier::Scope;
use tiercache_core::tracking::{Event, Record, Totals, What};
use tiercache_core::{Error, Generation, Key, Result, Timestamp};

use super::read::signed;
use crate::documents::expiry;
use crate::ids;
use crate::link::{Link, NAME, is_answer};

/// Statements of a command.
const STATEMENTS: usize = 1_000;
/// Bytes of a command: what it may have at most is 16 MiB.
const BYTES: usize = 4 << 20;
/// How often a command is sent at most.
const TRIES: u32 = 3;
/// Records are removed this long after their deadline: until then they may be asked for.
const AFTER_DEATH: Duration = Duration::from_secs(3_600);
/// Hits beyond this come from a test; adding them must not leave the range.
const MANY: i64 = 1 << 32;
const DUPLICATE_KEY: i64 = 11_000;

/// A batch, as commands.
pub(super) struct Batch {
    rounds: Vec<Round>,
    totals: Totals,
}

/// Statements that may be carried out in any order.
#[derive(Default)]
struct Round {
    updates: Vec<Statement>,
    deletes: Vec<Statement>,
}

/// A statement, and about how many bytes it has.
struct Statement {
    document: Document,
    bytes: usize,
    /// Whether it counts hits, and must not do so twice.
    counts: bool,
}

impl Batch {
    pub(super) fn of(events: &[Event]) -> Self {
        let mut plan = Plan::default();
        for event in events {
            plan.add(event);
        }
        plan.use_all();
        Self { rounds: plan.rounds, totals: plan.totals }
    }

    /// What is to be added to the totals.
    pub(super) fn totals(&self) -> Option<Totals> {
        Some(self.totals).filter(|totals| !totals.is_zero())
    }

    pub(super) async fn apply(&self, link: &Link, records: &Collection<Document>) -> Result<()> {
        for round in &self.rounds {
            for (command, list, statements) in
                [("update", "updates", &round.updates), ("delete", "deletes", &round.deletes)]
            {
                let mut rest = statements.as_slice();
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(portion(rest));
                    let command = Command::new(command, list, records.name(), now);
                    command.send(link).await?;
                    rest = later;
                }
            }
        }
        Ok(())
    }
}

/// How many of the statements go into one command.
fn portion(statements: &[Statement]) -> usize {
    let mut bytes = 0;
    let fitting = statements.iter().take(STATEMENTS).take_while(|statement| {
        bytes += statement.bytes;
        bytes <= BYTES
    });
    fitting.count().max(1)
}

/// Puts events into rounds.
#[derive(Default)]
struct Plan {
    rounds: Vec<Round>,
    /// The first round behind the last that concerned many keys.
    first: usize,
    /// The next round in which a key may be changed.
    next: HashMap<String, usize>,
    /// Uses that are not in a round yet: the last, and how many.
    uses: HashMap<String, (i64, i64)>,
    totals: Totals,
}

impl Plan {
    fn add(&mut self, event: &Event) {
        match &event.what {
            What::Stored(record) => {
                let (name, statement) = stored(record, event.at);
                self.update(name, statement);
            }
            What::Moved { key, generation, to: Some(level) } => {
                let name = ids::record(key);
                let document = doc! {
                    "q": { "_id": &name, "g": { "$lte": signed(generation.get()) } },
                    "u": { "$set": { "level": level.index() as i64 } },
                };
                self.update(name.clone(), Statement { document, bytes: name.len() + 200, counts: false });
            }
            What::Moved { key, generation, to: None } | What::Removed { key, generation } => {
                self.remove(key, *generation);
            }
            What::Used { key, hits } => {
                let uses = self.uses.entry(ids::record(key)).or_default();
                *uses = (uses.0.max(signed(event.at.as_millis())), uses.1.saturating_add(signed(*hits)));
            }
            What::Invalidated { scope, generation } => {
                let mut filter = match scope {
                    Scope::All => Document::new(),
                    Scope::Namespace(namespace) | Scope::Tag { namespace, .. } => within(namespace),
                };
                if let Scope::Tag { name, value, .. } = scope {
                    filter.insert("tags", ids::pair(name, value));
                }
                self.remove_many(filter, *generation);
            }
            What::Flushed { level, namespace, generation } => {
                let mut filter = namespace.as_deref().map(within).unwrap_or_default();
                filter.insert("level", level.index() as i64);
                self.remove_many(filter, *generation);
            }
            What::Counted(more) => self.totals.add(more),
        }
    }

    fn update(&mut self, name: String, statement: Statement) {
        self.use_one(&name);
        self.round(name).updates.push(statement);
    }

    fn remove(&mut self, key: &Key, generation: Generation) {
        let name = ids::record(key);
        self.use_one(&name);
        let document = doc! { "q": { "_id": &name, "g": { "$lte": signed(generation.get()) } }, "limit": 1 };
        let bytes = name.len() + 200;
        self.round(name).deletes.push(Statement { document, bytes, counts: false });
    }

    fn remove_many(&mut self, mut filter: Document, below: Generation) {
        self.use_all();
        filter.insert("g", doc! { "$lt": signed(below.get()) });
        let statement = Statement { document: doc! { "q": filter, "limit": 0 }, bytes: 1_000, counts: false };
        self.rounds.push(Round { updates: Vec::new(), deletes: vec![statement] });
        self.first = self.rounds.len();
        self.next.clear();
    }

    /// The round in which the key is changed next.
    fn round(&mut self, name: String) -> &mut Round {
        let next = self.next.entry(name).or_insert(self.first);
        let at = *next;
        *next += 1;
        if self.rounds.len() <= at {
            self.rounds.push(Round::default());
        }
        &mut self.rounds[at]
    }

    fn use_one(&mut self, name: &str) {
        if let Some((at, hits)) = self.uses.remove(name) {
            let round = self.round(name.to_owned());
            let bytes = name.len() + 300;
            let counts = |document| Statement { document, bytes, counts: true };
            round.updates.push(counts(doc! {
                "q": { "_id": name, "hits": { "$lte": i64::MAX - hits } },
                "u": { "$inc": { "hits": hits }, "$max": { "used": at } },
            }));
            if hits > MANY {
                round.updates.push(counts(doc! {
                    "q": { "_id": name, "hits": { "$gt": i64::MAX - hits } },
                    "u": { "$set": { "hits": i64::MAX }, "$max": { "used": at } },
                }));
            }
        }
    }

    fn use_all(&mut self) {
        let names: Vec<String> = self.uses.keys().cloned().collect();
        names.iter().for_each(|name| self.use_one(name));
    }
}

fn within(namespace: &str) -> Document {
    let start = ids::of_namespace(namespace.as_bytes());
    doc! { "_id": { "$gte": &start, "$lt": ids::behind(start.clone()) } }
}

fn stored(record: &Record, at: Timestamp) -> (String, Statement) {
    let name = ids::record(&record.key);
    let tags: Vec<String> = record.tags.iter().map(|(name, value)| ids::pair(name, value)).collect();
    let bytes = name.len() + tags.iter().map(|tag| tag.len() + 16).sum::<usize>() + 400;
    let mut set = doc! {
        "g": signed(record.generation.get()),
        "level": record.level.index() as i64,
        "size": signed(record.size),
        "created": signed(record.created.as_millis()),
        "used": signed(record.used.as_millis()),
        "deadline": signed(record.deadline.as_millis()),
        "hits": signed(record.hits),
        "tags": tags,
    };
    let update = match expiry(record.deadline, at, AFTER_DEATH) {
        Some(dies) => {
            set.insert("dies", dies);
            doc! { "$set": set }
        }
        None => doc! { "$set": set, "$unset": { "dies": "" } },
    };
    let document = doc! {
        "q": { "_id": &name, "g": { "$lte": signed(record.generation.get()) } },
        "u": update,
        "upsert": true,
    };
    // Sent again, it must not take back the hits that were added meanwhile.
    (name, Statement { document, bytes, counts: true })
}

/// A command of many statements.
struct Command<'a> {
    command: &'static str,
    list: &'static str,
    collection: &'a str,
    statements: Vec<Document>,
}

impl<'a> Command<'a> {
    fn new(command: &'static str, list: &'static str, collection: &'a str, statements: &[Statement]) -> Self {
        let id = ObjectId::new();
        let statements = statements.iter().map(|statement| statement.carrying(id)).collect();
        Self { command, list, collection, statements }
    }

    /// Sends the command until it is answered. What is refused as a duplicate met a newer record, or one that
    /// another process made in the same moment: it is sent once more, to find out which.
    async fn send(mut self, link: &Link) -> Result<()> {
        for again in [true, false] {
            let refused = self.answered(link).await?;
            if refused.is_empty() || !again {
                break;
            }
            self.statements = refused.into_iter().filter_map(|at| self.statements.get(at).cloned()).collect();
        }
        Ok(())
    }

    /// Which statements were refused as duplicates.
    async fn answered(&self, link: &Link) -> Result<Vec<usize>> {
        let mut tries = TRIES;
        loop {
            let command = doc! {
                self.command: self.collection,
                self.list: &self.statements,
                "ordered": false,
                "writeConcern": link.concern(),
            };
            let database = link.database().clone();
            // The answer to a command that was refused is no failure of the way to the server.
            let call = async move {
                match database.run_command(command).await {
                    Err(error) if is_answer(&error) => Ok(Err(error)),
                    answer => answer.map(Ok),
                }
            };
            tries -= 1;
            match link.run("record", call).await {
                Ok(Ok(answer)) => return refused(&answer),
                Ok(Err(error)) => return Err(Error::unavailable(NAME, "record", error)),
                Err(error) if tries == 0 || !error.is_retryable() => return Err(error),
                Err(error) => tracing::debug!(tracking = NAME, %error, "a command is sent again"),
            }
        }
    }
}

impl Statement {
    fn carrying(&self, id: ObjectId) -> Document {
        let mut document = self.document.clone();
        if self.counts {
            if let Ok(filter) = document.get_document_mut("q") {
                filter.insert("last", doc! { "$ne": id });
            }
            if let Ok(update) = document.get_document_mut("u") {
                match update.get_document_mut("$set") {
                    Ok(set) => drop(set.insert("last", id)),
                    Err(_) => drop(update.insert("$set", doc! { "last": id })),
                }
            }
        }
        document
    }
}

/// The statements that an answer says were refused as duplicates; any other refusal is an error.
fn refused(answer: &Document) -> Result<Vec<usize>> {
    let failed = |found: &Bson| Error::unavailable(NAME, "record", format!("the server refused: {found}"));
    if let Some(concern) = answer.get("writeConcernError") {
        return Err(failed(concern));
    }
    let Ok(errors) = answer.get_array("writeErrors") else { return Ok(Vec::new()) };
    let at = |error: &Bson| {
        let error = error.as_document()?;
        let code = crate::documents::number(error, "code").filter(|code| *code == DUPLICATE_KEY);
        code.and(usize::try_from(crate::documents::number(error, "index")?).ok())
    };
    errors.iter().map(|error| at(error).ok_or_else(|| failed(error))).collect()
}

#[cfg(test)]
mod tests {
    use tiercache_core::{Level, Tags};

    use super::*;

    fn event(what: What) -> Event {
        Event { at: Timestamp::from_millis(1), what }
    }

    fn key(name: &str) -> Key {
        Key::new("", name.as_bytes()).expect("a valid key")
    }

    fn record(name: &str, tags: Tags) -> Record {
        Record {
            key: key(name),
            generation: Generation::new(1),
            level: Level::Hot,
            size: 1,
            created: Timestamp::EPOCH,
            used: Timestamp::EPOCH,
            deadline: Timestamp::NEVER,
            hits: 0,
            tags,
        }
    }

    #[test]
    fn a_batch_has_as_many_rounds_as_events_of_one_key() {
        let used = |name| event(What::Used { key: key(name), hits: 1 });
        let removed = |name| event(What::Removed { key: key(name), generation: Generation::new(2) });
        let stored = |name| event(What::Stored(record(name, Tags::new())));
        let batch = Batch::of(&[
            stored("a"),
            stored("b"),
            used("a"),
            used("b"),
            used("a"),
            removed("b"),
            stored("c"),
        ]);
        let shape: Vec<_> =
            batch.rounds.iter().map(|round| (round.updates.len(), round.deletes.len())).collect();
        assert_eq!(shape, [(3, 0), (2, 0), (0, 1)]);
        let all = event(What::Invalidated { scope: Scope::All, generation: Generation::new(1) });
        let batch = Batch::of(&[used("a"), all, used("a"), stored("b")]);
        let shape: Vec<_> =
            batch.rounds.iter().map(|round| (round.updates.len(), round.deletes.len())).collect();
        assert_eq!(shape, [(1, 0), (0, 1), (2, 0)]);
    }

    #[test]
    fn a_command_stays_within_its_size() {
        let tags: Tags = [("t".to_owned(), "x".repeat(1 << 20))].into();
        let statements: Vec<_> = (0..10)
            .map(|number| stored(&record(&number.to_string(), tags.clone()), Timestamp::EPOCH).1)
            .collect();
        assert_eq!(portion(&statements), 3);
        assert_eq!(portion(&statements[9..]), 1);
    }

    #[test]
    fn only_duplicates_are_refusals_one_may_pass_over() {
        let answer =
            |code: i32| doc! { "ok": 1, "writeErrors": [{ "index": 3, "code": code, "errmsg": "x" }] };
        assert_eq!(refused(&answer(11_000)).expect("a refusal"), [3]);
        assert!(refused(&answer(121)).is_err());
        assert!(refused(&doc! { "ok": 1, "writeConcernError": { "code": 64 } }).is_err());
        assert!(refused(&doc! { "ok": 1 }).expect("all taken").is_empty());
    }
}
