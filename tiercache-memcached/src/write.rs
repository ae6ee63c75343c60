//! Writing of one entry: one step at the server, `ms` on condition of the CAS of what it replaces, or that there is nothing.
//!
//! 1. The record says that the generation may be there (rarely a round trip).
//! 2. In one write to the server: `ms`, if the permit holds, over what this process wrote there last, or where nothing is: the
//!    commit point. And the question what stands there.
//! 3. If it was refused: again from 1. over what stands there, if that is older.
//!
//! A removal asks for the record in the same write, before its mark: what others put in an era that began before the mark is
//! removed too. A mark in an era that is over is in nobody's way, and neither is one below a fence that nobody here had
//! heard of: what it replaced was older than the removal, and is dead. It is left there, and the removal goes on in the new
//! era, or tells of the fence.

use std::cmp::Ordering::{Equal, Greater, Less};
use std::mem::replace;
use std::time::Duration;

use deadpool::managed::Object;
use tiercache_core::envelope::Header;
use tiercache_core::tier::{Hold, Permit, Put, Removal};
use tiercache_core::{Entry, Error, Generation, Key, Result};
use tokio::time::Instant;

use crate::names::{exact, expiry, flags};
use crate::own::Own;
use crate::server::{Known, NAME, Server, TRIES, Written, hung_up};
use crate::tier::Shared;
use crate::wire::{Answer, Ask, Dial, Item, Write};

/// Up to so many bytes an entry is sent before it is known whether it is wanted.
const SMALL: usize = 16 << 10;
/// How long a removal is remembered: longer than any write may be late.
const REMOVAL_MARK: Duration = Duration::from_secs(60);
/// What a mark of removal begins with; its generation follows.
const MARK: [u8; 7] = *b"removed";

impl Shared {
    pub(crate) async fn put(
        &self,
        server: &Server,
        key: &Key,
        entry: &Entry,
        envelope: &[u8],
        hold: Hold,
        permit: &dyn Permit,
    ) -> Result<Put> {
        const OP: &str = "put";
        let generation = entry.generation;
        let content = Content { value: envelope, generation, expiry: &expiry(hold.until(entry), hold.now) };
        let (mut seen, mut hung) = (None, false);
        for _ in 0..TRIES {
            let known = server.known(OP).await?;
            if known.record.kills(key.namespace(), entry) {
                return Ok(Put::Superseded);
            }
            let mut attempt = self.attempt(OP, server, known, key, generation).await?;
            let over = attempt.over(generation, seen.take(), envelope.len() <= SMALL);
            if !permit.holds() {
                return Ok(Put::Superseded);
            }
            let answered = match attempt.send(&content, over, false).await {
                Err(error) if hung_up(&error) && !replace(&mut hung, true) => {
                    server.hang_up();
                    continue;
                }
                answered => answered?,
            };
            if !attempt.is_in_era() {
                // Nobody sees what was written there.
                continue;
            }
            match answered.written {
                Some(Written::Stored) => return Ok(Put::Stored),
                Some(Written::TooLarge) => return Ok(Put::TooLarge),
                Some(Written::Full) => return Ok(Put::Full),
                Some(Written::Changed) | None => {}
            }
            let Some(mut found) = answered.stands else {
                seen = attempt.seen(Over::NOTHING);
                continue;
            };
            match found.flags.cmp(&flags(generation)) {
                Less => {}
                Greater => return Ok(Put::Superseded),
                // The flags alone do not say which it is.
                Equal => {
                    let Some(whole) = attempt.whole().await? else { continue };
                    found = whole;
                    match standing(&found) {
                        Standing::Entry(standing, _) if standing > generation => return Ok(Put::Superseded),
                        Standing::Entry(standing, sum) if standing == generation => {
                            let same = Header::parse(envelope).is_ok_and(|header| header.identity() == sum);
                            return Ok(if same { Put::Unchanged } else { Put::Superseded });
                        }
                        Standing::Mark(mark) if mark > generation => return Ok(Put::Superseded),
                        _ => {}
                    }
                }
            }
            // What a put was over is told to nobody.
            seen = attempt.seen(Over { cas: found.cas, generation: Generation::ZERO });
        }
        Err(Error::unavailable(NAME, OP, "the key changes faster than it can be written"))
    }

    pub(crate) async fn remove(&self, server: &Server, key: &Key, below: Generation) -> Result<Removal> {
        const OP: &str = "remove";
        let (value, expiry) = (mark(below), mark_expiry());
        let content = Content { value: &value, generation: below, expiry: &expiry };
        let (mut seen, mut hung) = (None, false);
        for _ in 0..TRIES {
            let known = server.known(OP).await?;
            let era = known.record.era;
            let floor = known.record.floor(key.namespace());
            let mut attempt = self.attempt(OP, server, known, key, below).await?;
            let over = if floor > below { None } else { attempt.over(below, seen.take(), true) };
            // The record not as it was a second ago: what others put in a new era must be found.
            let answered = match attempt.send(&content, over, true).await {
                Err(error) if hung_up(&error) && !replace(&mut hung, true) => {
                    server.hang_up();
                    continue;
                }
                answered => answered?,
            };
            let over = over.map(|over| over.generation).unwrap_or_default();
            if !answered.confirmed {
                drop(attempt);
                let now = server.asked(OP).await?;
                let floor = now.record.floor(key.namespace());
                match answered.written {
                    _ if now.record.era != era => continue,
                    _ if floor > below => return Ok(Removal::Behind(floor)),
                    Some(Written::Stored) => return Ok(Removal::Done { over }),
                    _ => continue,
                }
            }
            if floor > below {
                return Ok(Removal::Behind(floor));
            }
            match answered.written {
                Some(Written::Stored) => return Ok(Removal::Done { over }),
                Some(Written::TooLarge | Written::Full) => return Err(no_room()),
                Some(Written::Changed) | None => {}
            }
            let Some(mut found) = answered.stands else {
                seen = attempt.seen(Over::NOTHING);
                continue;
            };
            let generation = match exact(found.flags) {
                Some(generation) if generation < below => generation,
                _ => {
                    let Some(whole) = attempt.whole().await? else { continue };
                    found = whole;
                    match standing(&found) {
                        Standing::Entry(standing, _) | Standing::Mark(standing) if standing >= below => {
                            return Ok(Removal::Behind(standing));
                        }
                        Standing::Entry(standing, _) | Standing::Mark(standing) => standing,
                        Standing::Garbage => Generation::ZERO,
                    }
                }
            };
            seen = attempt.seen(Over { cas: found.cas, generation });
        }
        Err(Error::unavailable(NAME, OP, "the key changes faster than it can be removed"))
    }

    /// Returns when a generation may be written, with a connection to do it over.
    async fn attempt<'a>(
        &self,
        op: &'static str,
        server: &'a Server,
        known: Known,
        key: &'a Key,
        generation: Generation,
    ) -> Result<Attempt<'a>> {
        server.cover(op, &known, generation).await?;
        let name = self.names.entry(&known.record, key);
        let wire = server.wire(op).await?;
        Ok(Attempt { op, server, known, key, name, wire })
    }
}

/// An attempt to write under a key.
struct Attempt<'a> {
    op: &'static str,
    server: &'a Server,
    known: Known,
    key: &'a Key,
    name: String,
    wire: Object<Dial>,
}

/// What is written.
struct Content<'a> {
    value: &'a [u8],
    generation: Generation,
    /// The flag `T`.
    expiry: &'a str,
}

/// What is replaced.
#[derive(Clone, Copy)]
struct Over {
    /// Its CAS; `None` when there is nothing.
    cas: Option<u64>,
    generation: Generation,
}

impl Over {
    const NOTHING: Self = Self { cas: None, generation: Generation::ZERO };
}

/// What an attempt found, and in which era.
type Seen = Option<(u64, Over)>;

/// The answers to an attempt.
struct Answered {
    /// Whether the record was asked for and is the one that was known.
    confirmed: bool,
    /// What became of the write, if there was one.
    written: Option<Written>,
    /// What stands there then.
    stands: Option<Item>,
}

impl Attempt<'_> {
    /// Whether the record that was read over this connection is of the era that is written to.
    fn is_in_era(&self) -> bool {
        self.wire.era == Some(self.known.record.era)
    }

    /// What a write of that generation replaces; `None` when that must be asked first. What is not known is taken for
    /// nothing if it may be tried.
    fn over(&self, generation: Generation, seen: Seen, may_try: bool) -> Option<Over> {
        let era = self.known.record.era;
        let proven = self.is_in_era();
        if let Some((found_in, over)) = seen
            && found_in == era
            && (proven || over.cas.is_none())
        {
            return Some(over);
        }
        match if proven { self.server.own.take(self.key, era) } else { None } {
            Some(Own { cas, generation: own }) if own < generation => {
                Some(Over { cas: Some(cas), generation: own })
            }
            Some(own) => {
                self.server.own.put(self.key, era, own);
                None
            }
            None => (may_try && self.server.drops_items()).then_some(Over::NOTHING),
        }
    }

    /// Writes over that, if anything, and asks what stands there; and before for the record, if it is wanted or was not yet
    /// read over this connection.
    async fn send(&mut self, content: &Content<'_>, over: Option<Over>, record: bool) -> Result<Answered> {
        let era = self.known.record.era;
        let record = record || !self.is_in_era();
        let mut asks = Vec::with_capacity(3);
        asks.extend(record.then(|| Ask::Value(self.server.record_name())));
        asks.extend(over.map(|Over { cas, .. }| {
            let Content { value, generation, expiry } = *content;
            Ask::Write(Write { name: &self.name, value, cas, flags: flags(generation), expiry })
        }));
        asks.push(Ask::Stands(&self.name));
        let asked = Instant::now();
        let mut answers = self.server.exchange(self.op, &mut self.wire, &asks).await?.into_iter();
        let mut next = || answers.next().unwrap_or(Answer::Item(None));
        let confirmed = record && self.server.saw(&mut self.wire, &self.known, next().item(), asked);
        let written = over.is_some().then(|| next().written());
        if let Some((Written::Stored, Some(cas))) = written {
            let own = Own { cas, generation: content.generation };
            self.server.wrote(self.key, era, self.wire.era, own);
        }
        Ok(Answered { confirmed, written: written.map(|(written, _)| written), stands: next().item() })
    }

    /// What stands there with its value.
    async fn whole(&mut self) -> Result<Option<Item>> {
        let mut answers = self.server.exchange(self.op, &mut self.wire, &[Ask::Value(&self.name)]).await?;
        Ok(answers.pop().and_then(Answer::item))
    }

    /// What was found, for the next attempt, if this connection vouches for the CAS.
    fn seen(&self, over: Over) -> Seen {
        (over.cas.is_none() || self.is_in_era()).then_some((self.known.record.era, over))
    }
}

/// What stands under a key.
enum Standing {
    /// An entry's generation and what tells it from others of that generation.
    Entry(Generation, u64),
    Mark(Generation),
    Garbage,
}

fn standing(found: &Item) -> Standing {
    match (mark_of(&found.value), Header::parse(&found.value)) {
        (Some(mark), _) => Standing::Mark(mark),
        (None, Ok(header)) => Standing::Entry(header.generation, header.identity()),
        (None, Err(_)) => Standing::Garbage,
    }
}

/// What stands in the place of an entry that was removed.
pub(crate) fn mark(below: Generation) -> Vec<u8> {
    [&MARK[..], &below.get().to_le_bytes()].concat()
}

/// The generation of a mark of removal, if this is one.
pub(crate) fn mark_of(bytes: &[u8]) -> Option<Generation> {
    let generation = bytes.strip_prefix(&MARK)?;
    Some(Generation::new(u64::from_le_bytes(generation.try_into().ok()?)))
}

/// The flag that makes a mark expire.
pub(crate) fn mark_expiry() -> String {
    format!("T{}", REMOVAL_MARK.as_secs() + 1)
}

/// Why a removal fails that leaves no mark.
pub(crate) fn no_room() -> Error {
    Error::unavailable(NAME, "remove", "the server has no room for a mark")
}

#[cfg(test)]
mod tests {
    use tiercache_core::Timestamp;
    use tiercache_core::tier::Always;
    use tiercache_services::Memcached;

    use super::*;
    use crate::{MemcachedConfig, MemcachedTier};

    #[tokio::test]
    async fn what_was_written_is_relied_on_where_the_connection_shows_the_same_server() {
        let Some(running) = Memcached::own() else { return };
        let config =
            MemcachedConfig { servers: vec![running.address().to_owned()], ..MemcachedConfig::default() };
        let tier = MemcachedTier::open(config, "cold").await.unwrap();
        let key = Key::new("", b"k").unwrap();
        let server = tier.shared.server(&key).unwrap();
        let hold = Hold { now: Timestamp::EPOCH, stay: tiercache_core::Stay::Forever };
        let entry = Entry::new("value", Generation::new(5), Timestamp::EPOCH);
        let put = tier.shared.put(server, &key, &entry, b"envelope", hold, &Always).await.unwrap();
        assert_eq!(put, Put::Stored);

        let six = Generation::new(6);
        let attempt = async || {
            let known = server.known("put").await.unwrap();
            tier.shared.attempt("put", server, known, &key, six).await.unwrap()
        };
        // A new connection may lead to a server that was started again, and counts anew.
        server.hang_up();
        let mut unproven = attempt().await;
        assert_eq!(unproven.over(six, None, true).unwrap().cas, None, "tried over nothing");
        assert_eq!(
            unproven.over(six, unproven.seen(Over { cas: Some(1), ..Over::NOTHING }), false).map(|_| ()),
            None
        );
        let content = Content { value: b"other", generation: six, expiry: "T0" };
        let answered = unproven.send(&content, None, false).await.unwrap();
        assert!(answered.confirmed && answered.stands.is_some(), "the record is asked for on the way");
        drop(unproven);

        let proven = attempt().await;
        let own = proven.over(six, None, true).unwrap();
        assert_eq!((own.cas.is_some(), own.generation), (true, entry.generation));
        assert_eq!(proven.over(six, None, false).map(|over| over.cas), None, "relied on once");
    }
}
