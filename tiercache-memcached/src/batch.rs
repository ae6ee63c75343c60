//! Batches: for each server one write of questions, where it is not known what stands there, and one of changes, whose
//! conditions are each item's own.

use std::collections::HashMap;
use std::mem::replace;

use tiercache_core::tier::{Call, Put, PutItem, Removal, side_by_side};
use tiercache_core::{Entry, Error, Generation, Key, Result};
use tokio::time::Instant;

use crate::names::{exact, expiry, flags};
use crate::own::Own;
use crate::server::{Known, NAME, Server, TRIES, Written, hung_up};
use crate::tier::Shared;
use crate::wire::{Answer, Ask, Item, Wire, Write};
use crate::write::{mark, mark_expiry, no_room};

/// Questions in one write: so few that the server has read them all before it waits for us to read its answers.
const QUESTIONS: usize = 100;
/// About how many bytes of values are in one write.
const BYTES: usize = 4 << 20;
/// Writes under way at a time.
const AT_ONCE: usize = 8;

/// Items of a batch that go to one server in one write: their places, and what they are.
type Chunk<'a, T> = (&'a Server, Vec<(usize, T)>);

/// An entry made ready to be put.
struct Ready<'a> {
    item: PutItem<'a>,
    envelope: Vec<u8>,
}

impl Shared {
    pub(crate) async fn get_batch(&self, keys: &[Key]) -> Vec<Result<Option<Entry>>> {
        let items = keys.iter().enumerate();
        let chunks = match self.by_server(items, |key| key, |_| 0) {
            Ok(chunks) => chunks,
            Err(error) => return vec![Err(error); keys.len()],
        };
        let get = chunks.into_iter().map(|chunk| -> Call<'_, _> { Box::pin(self.get_chunk(chunk)) });
        in_place(keys.len(), side_by_side(AT_ONCE, get.collect()).await)
    }

    pub(crate) async fn put_batch(&self, items: &[PutItem<'_>]) -> Vec<Result<Put>> {
        let mut answers = Vec::new();
        let mut ready = Vec::with_capacity(items.len());
        for (at, item) in items.iter().enumerate() {
            match self.envelope(item.key, item.entry).await {
                Ok(Ok(envelope)) => ready.push((at, Ready { item: *item, envelope })),
                Ok(Err(put)) => answers.push((at, Ok(put))),
                Err(error) => answers.push((at, Err(error))),
            }
        }
        let chunks = match self.by_server(ready, |ready| ready.item.key, |ready| ready.envelope.len()) {
            Ok(chunks) => chunks,
            Err(error) => return vec![Err(error); items.len()],
        };
        let put = chunks.into_iter().map(|chunk| -> Call<'_, _> { Box::pin(self.put_chunk(chunk)) });
        let mut said = side_by_side(AT_ONCE, put.collect()).await;
        said.push(answers);
        in_place(items.len(), said)
    }

    pub(crate) async fn remove_batch(&self, items: &[(Key, Generation)]) -> Vec<Result<Removal>> {
        let chunks = match self.by_server(items.iter().enumerate(), |(key, _)| key, |_| 0) {
            Ok(chunks) => chunks,
            Err(error) => return vec![Err(error); items.len()],
        };
        let remove = chunks.into_iter().map(|chunk| -> Call<'_, _> { Box::pin(self.remove_chunk(chunk)) });
        in_place(items.len(), side_by_side(AT_ONCE, remove.collect()).await)
    }

    /// Sorts items to their servers, in chunks of what goes there at once.
    fn by_server<T>(
        &self,
        items: impl IntoIterator<Item = (usize, T)>,
        key: impl Fn(&T) -> &Key,
        bytes: impl Fn(&T) -> usize,
    ) -> Result<Vec<Chunk<'_, T>>> {
        let mut open: HashMap<&str, (Chunk<'_, T>, usize)> = HashMap::new();
        let mut full = Vec::new();
        for (at, item) in items {
            let server = self.server(key(&item))?;
            let (chunk, size) = open.entry(&server.address).or_insert_with(|| ((server, Vec::new()), 0));
            *size += bytes(&item);
            if chunk.1.len() == QUESTIONS || (*size > BYTES && !chunk.1.is_empty()) {
                full.push((server, std::mem::take(&mut chunk.1)));
                *size = bytes(&item);
            }
            chunk.1.push((at, item));
        }
        full.extend(open.into_values().map(|(chunk, _)| chunk));
        Ok(full)
    }

    async fn get_chunk(&self, (server, keys): Chunk<'_, &Key>) -> Vec<(usize, Result<Option<Entry>>)> {
        if let [(at, key)] = keys[..] {
            return vec![(at, self.get(server, key).await)];
        }
        let asked = async {
            let known = server.known("get").await?;
            let names: Vec<String> =
                keys.iter().map(|(_, key)| self.names.entry(&known.record, key)).collect();
            let asks: Vec<Ask<'_>> = names.iter().map(|name| Ask::Value(name)).collect();
            let found = server.items("get", &asks).await?;
            Ok((known, names, found))
        };
        let (known, names, found) = match asked.await {
            Ok(answered) => answered,
            Err(error) => return all(&keys, &error),
        };
        let mut answers = Vec::with_capacity(keys.len());
        for (((at, key), name), found) in keys.into_iter().zip(&names).zip(found) {
            answers.push((at, self.entry_of(server, &known, key, name, found).await));
        }
        answers
    }

    async fn put_chunk(&self, (server, mut items): Chunk<'_, Ready<'_>>) -> Vec<(usize, Result<Put>)> {
        let (mut answers, mut hung) = (Vec::with_capacity(items.len()), false);
        for _ in 0..TRIES {
            if items.is_empty() {
                return answers;
            }
            match self.put_once(server, items, &mut answers).await {
                Ok(again) => items = again,
                Err((left, error)) if hung_up(&error) && !replace(&mut hung, true) => {
                    server.hang_up();
                    items = left;
                }
                Err((left, error)) => {
                    answers.extend(all(&left, &error));
                    return answers;
                }
            }
        }
        let busy = Error::unavailable(NAME, "put", "the keys change faster than they can be written");
        answers.extend(all(&items, &busy));
        answers
    }

    /// Writes what may be written. Returns what has to be decided anew, or what is left after an error.
    async fn put_once<'a>(
        &self,
        server: &Server,
        items: Vec<(usize, Ready<'a>)>,
        answers: &mut Vec<(usize, Result<Put>)>,
    ) -> Result<Vec<(usize, Ready<'a>)>, (Vec<(usize, Ready<'a>)>, Error)> {
        let known = match server.known("put").await {
            Ok(known) => known,
            Err(error) => return Err((items, error)),
        };
        let may = |(_, Ready { item, .. }): &(usize, Ready<'_>)| {
            !known.record.kills(item.key.namespace(), item.entry) && item.permit.holds()
        };
        let (items, refused): (Vec<_>, Vec<_>) = items.into_iter().partition(may);
        answers.extend(refused.into_iter().map(|(at, _)| (at, Ok(Put::Superseded))));
        let highest = items.iter().map(|(_, ready)| ready.item.entry.generation).max().unwrap_or_default();
        let names: Vec<String> =
            items.iter().map(|(_, ready)| self.names.entry(&known.record, ready.item.key)).collect();
        let connected = async {
            server.cover("put", &known, highest).await?;
            server.wire("put").await
        };
        let mut wire = match connected.await {
            Ok(wire) => wire,
            Err(error) => return Err((items, error)),
        };
        let places: Vec<_> = items
            .iter()
            .zip(&names)
            .map(|((_, ready), name)| (ready.item.key, name.as_str(), ready.item.entry.generation))
            .collect();
        let stands = match stands(server, "put", &mut wire, &known, &places).await {
            // Nobody would see what is written in another era.
            Ok(_) if wire.era != Some(known.record.era) => return Ok(items),
            Ok(stands) => stands,
            Err(error) => return Err((items, error)),
        };
        let (mut sent, mut alone) = (Vec::with_capacity(items.len()), Vec::new());
        for (((at, ready), name), stands) in items.into_iter().zip(&names).zip(stands) {
            let generation = ready.item.entry.generation;
            match stands {
                Stands::Over(own) if own.generation < generation => {
                    sent.push((at, ready, name, Some(own.cas)))
                }
                Stands::Found(Some(found)) if found.flags > flags(generation) => {
                    answers.push((at, Ok(Put::Superseded)));
                }
                Stands::Found(Some(found)) if found.flags < flags(generation) => {
                    sent.push((at, ready, name, found.cas));
                }
                Stands::Found(None) => sent.push((at, ready, name, None)),
                // The flags alone do not say which it is: looked at by itself.
                Stands::Over(_) | Stands::Found(_) => alone.push((at, ready)),
            }
        }
        let expiries: Vec<String> = sent
            .iter()
            .map(|(_, ready, ..)| expiry(ready.item.hold.until(ready.item.entry), ready.item.hold.now))
            .collect();
        let (sent, refused): (Vec<_>, Vec<_>) =
            sent.into_iter().zip(&expiries).partition(|((_, ready, ..), _)| ready.item.permit.holds());
        answers.extend(refused.into_iter().map(|((at, ..), _)| (at, Ok(Put::Superseded))));
        let writes = sent.iter().map(|((_, ready, name, cas), expiry)| {
            let flags = flags(ready.item.entry.generation);
            Ask::Write(Write { name, value: &ready.envelope, cas: *cas, flags, expiry })
        });
        let written = server.exchange("put", &mut wire, &writes.collect::<Vec<_>>()).await;
        let wire_era = wire.era;
        // Those that are looked at alone need a connection too.
        drop(wire);
        let sent = sent.into_iter().map(|((at, ready, ..), _)| (at, ready));
        let written = match written {
            Ok(written) => written,
            Err(error) => return Err((sent.chain(alone).collect(), error)),
        };
        let mut again = Vec::new();
        for ((at, ready), written) in sent.zip(written) {
            let PutItem { key, entry, .. } = ready.item;
            match written.written() {
                (Written::Stored, cas) => {
                    if let Some(cas) = cas {
                        let own = Own { cas, generation: entry.generation };
                        server.wrote(key, known.record.era, wire_era, own);
                    }
                    answers.push((at, Ok(Put::Stored)));
                }
                (Written::TooLarge, _) => answers.push((at, Ok(Put::TooLarge))),
                (Written::Full, _) => answers.push((at, Ok(Put::Full))),
                (Written::Changed, _) => again.push((at, ready)),
            }
        }
        for (at, Ready { item: PutItem { key, entry, hold, permit }, envelope }) in alone {
            answers.push((at, self.put(server, key, entry, &envelope, hold, permit).await));
        }
        Ok(again)
    }

    async fn remove_chunk(
        &self,
        (server, mut items): Chunk<'_, &(Key, Generation)>,
    ) -> Vec<(usize, Result<Removal>)> {
        if let [(at, (key, below))] = items[..] {
            return vec![(at, self.remove(server, key, *below).await)];
        }
        let (mut answers, mut hung) = (Vec::with_capacity(items.len()), false);
        for _ in 0..TRIES {
            if items.is_empty() {
                return answers;
            }
            match self.remove_once(server, &items, &mut answers).await {
                Ok(again) => items = again,
                Err(error) => {
                    items.retain(|(at, _)| answers.iter().all(|(answered, _)| answered != at));
                    if hung_up(&error) && !replace(&mut hung, true) {
                        server.hang_up();
                        continue;
                    }
                    answers.extend(all(&items, &error));
                    return answers;
                }
            }
        }
        let busy = Error::unavailable(NAME, "remove", "the keys change faster than they can be removed");
        answers.extend(all(&items, &busy));
        answers
    }

    /// Leaves the marks that may be left. Returns what has to be decided anew.
    async fn remove_once<'a>(
        &self,
        server: &Server,
        items: &[(usize, &'a (Key, Generation))],
        answers: &mut Vec<(usize, Result<Removal>)>,
    ) -> Result<Vec<(usize, &'a (Key, Generation))>> {
        let known = server.known("remove").await?;
        let era = known.record.era;
        let highest = items.iter().map(|(_, (_, below))| *below).max().unwrap_or_default();
        server.cover("remove", &known, highest).await?;
        let names: Vec<String> =
            items.iter().map(|(_, (key, _))| self.names.entry(&known.record, key)).collect();
        let mut wire = server.wire("remove").await?;
        let places: Vec<_> =
            items.iter().zip(&names).map(|((_, (key, below)), name)| (key, name.as_str(), *below)).collect();
        let stands = stands(server, "remove", &mut wire, &known, &places).await?;
        let (mut sent, mut alone) = (Vec::with_capacity(items.len()), Vec::new());
        for ((&(at, item), name), stands) in items.iter().zip(&names).zip(stands) {
            let below = item.1;
            let below_it = |found: &Item| exact(found.flags).filter(|generation| *generation < below);
            match stands {
                Stands::Over(own) if own.generation < below => {
                    sent.push((at, item, name, Some(own.cas), own.generation));
                }
                Stands::Found(None) => sent.push((at, item, name, None, Generation::ZERO)),
                Stands::Found(Some(found)) if below_it(&found).is_some() => {
                    let over = below_it(&found).unwrap_or_default();
                    sent.push((at, item, name, found.cas, over));
                }
                // Another process may be ahead: looked at by itself.
                Stands::Over(_) | Stands::Found(_) => alone.push((at, item)),
            }
        }
        let marks: Vec<Vec<u8>> = sent.iter().map(|(_, (_, below), ..)| mark(*below)).collect();
        let expiry = mark_expiry();
        let writes = sent.iter().zip(&marks).map(|((_, (_, below), name, cas, _), value)| {
            Ask::Write(Write { name, value, cas: *cas, flags: flags(*below), expiry: &expiry })
        });
        // The record not as it was a second ago: what others put in a new era must be found.
        let asks: Vec<Ask<'_>> = std::iter::once(Ask::Value(server.record_name())).chain(writes).collect();
        let asked = Instant::now();
        let mut written = server.exchange("remove", &mut wire, &asks).await?.into_iter();
        let record = written.next().and_then(Answer::item);
        let confirmed = server.saw(&mut wire, &known, record, asked);
        let wire_era = wire.era;
        drop(wire);
        // Marks of an era that is over, and those below a fence, are in nobody's way, as with a single removal.
        let now = if confirmed { known } else { server.asked("remove").await? };
        if now.record.era != era {
            return Ok(items.to_vec());
        }
        let mut again = Vec::new();
        for ((at, item, _, _, over), written) in sent.into_iter().zip(written) {
            let (key, below) = item;
            let floor = now.record.floor(key.namespace());
            let (written, cas) = written.written();
            if let (Written::Stored, Some(cas)) = (written, cas) {
                server.wrote(key, era, wire_era, Own { cas, generation: *below });
            }
            match written {
                _ if floor > *below => answers.push((at, Ok(Removal::Behind(floor)))),
                Written::Stored => answers.push((at, Ok(Removal::Done { over }))),
                Written::Changed => again.push((at, item)),
                Written::TooLarge | Written::Full => answers.push((at, Err(no_room()))),
            }
        }
        for (at, item) in alone {
            answers.push((at, self.remove(server, &item.0, item.1).await));
        }
        Ok(again)
    }
}

/// What is known of the place of an item.
enum Stands {
    /// What this process wrote there last.
    Over(Own),
    /// What was found there just now.
    Found(Option<Item>),
}

/// What stands in each of these places, for writes of these generations: known, or asked for in one round trip, with the record
/// if it was not read over this connection.
async fn stands(
    server: &Server,
    op: &'static str,
    wire: &mut Wire,
    known: &Known,
    places: &[(&Key, &str, Generation)],
) -> Result<Vec<Stands>> {
    let era = known.record.era;
    let proven = wire.era == Some(era);
    let own = |&(key, _, generation): &(&Key, &str, Generation)| {
        let own = server.own.take(key, era).filter(|_| proven);
        own.filter(|own| own.generation < generation)
    };
    let own: Vec<Option<Own>> = places.iter().map(own).collect();
    let unknown =
        places.iter().zip(&own).filter(|(_, own)| own.is_none()).map(|(place, _)| Ask::Stands(place.1));
    let mut asks: Vec<Ask<'_>> = unknown.collect();
    let mut found = Vec::new().into_iter();
    if !asks.is_empty() {
        if !proven {
            asks.insert(0, Ask::Value(server.record_name()));
        }
        let asked = Instant::now();
        found = server.exchange(op, wire, &asks).await?.into_iter();
        if !proven {
            let record = found.next().and_then(Answer::item);
            server.saw(wire, known, record, asked);
        }
    }
    let stands = |own: Option<Own>| match own {
        Some(own) => Stands::Over(own),
        None => Stands::Found(found.next().and_then(Answer::item)),
    };
    Ok(own.into_iter().map(stands).collect())
}

/// The same error for each.
fn all<T, A>(items: &[(usize, T)], error: &Error) -> Vec<(usize, Result<A>)> {
    items.iter().map(|(at, _)| (*at, Err(error.clone()))).collect()
}

/// Puts answers where they belong.
fn in_place<T>(count: usize, said: Vec<Vec<(usize, Result<T>)>>) -> Vec<Result<T>> {
    let mut said: Vec<(usize, Result<T>)> = said.into_iter().flatten().collect();
    said.sort_unstable_by_key(|(at, _)| *at);
    debug_assert!(said.len() == count && said.iter().enumerate().all(|(place, (at, _))| place == *at));
    said.into_iter().map(|(_, answer)| answer).collect()
}
