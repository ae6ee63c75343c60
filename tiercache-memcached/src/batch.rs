//! Batches: for each server one write of questions and one of changes, whose conditions are each item's own.

use std::collections::HashMap;

use async_memcached::MetaValue;
use tiercache_core::tier::{Call, Put, PutItem, Removal, side_by_side};
use tiercache_core::{Entry, Error, Generation, Key, Result};

use crate::names::{exact, expiry, flags};
use crate::server::{NAME, Server, TRIES, Written};
use crate::tier::{REMOVAL_MARK, Shared, mark};
use crate::wire::Write;

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
            let found = server.get_many("get", &names, &["v", "c"]).await?;
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
        let mut answers = Vec::with_capacity(items.len());
        for _ in 0..TRIES {
            if items.is_empty() {
                return answers;
            }
            match self.put_once(server, items, &mut answers).await {
                Ok(again) => items = again,
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
        let stands = async {
            server.cover("put", &known, highest).await?;
            server.get_many("put", &names, &["f", "c"]).await
        };
        let stands = match stands.await {
            Ok(stands) => stands,
            Err(error) => return Err((items, error)),
        };
        let mut sent = Vec::with_capacity(items.len());
        for (((at, ready), name), found) in items.into_iter().zip(names).zip(stands) {
            let PutItem { key, entry, hold, permit } = ready.item;
            let standing = found.as_ref().map(|found| found.flags.unwrap_or_default());
            let ours = flags(entry.generation);
            if standing == Some(ours) {
                // The flags alone do not say which it is: looked at by itself.
                answers.push((at, self.put(server, key, entry, &ready.envelope, hold, permit).await));
            } else if standing > Some(ours) || !permit.holds() {
                answers.push((at, Ok(Put::Superseded)));
            } else {
                sent.push((at, ready, name, found.and_then(|found| found.cas)));
            }
        }
        let writes = sent.iter().map(|(_, ready, name, cas)| {
            let Ready { item, envelope } = ready;
            let flag = format!("F{}", flags(item.entry.generation));
            let flags = [flag, expiry(item.hold.until(item.entry), item.hold.now)];
            Write { name, value: envelope, cas: *cas, flags }
        });
        let written = server.set_many("put", &writes.collect::<Vec<_>>()).await;
        let sent = sent.into_iter().map(|(at, ready, ..)| (at, ready));
        let written = match written {
            Ok(written) => written,
            Err(error) => return Err((sent.collect(), error)),
        };
        let mut again = Vec::new();
        for ((at, ready), written) in sent.zip(written) {
            match written {
                Written::Stored => answers.push((at, Ok(Put::Stored))),
                Written::TooLarge => answers.push((at, Ok(Put::TooLarge))),
                Written::Full => answers.push((at, Ok(Put::Full))),
                Written::Changed => again.push((at, ready)),
            }
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
        let mut answers = Vec::with_capacity(items.len());
        for _ in 0..TRIES {
            if items.is_empty() {
                return answers;
            }
            match self.remove_once(server, &items, &mut answers).await {
                Ok(again) => items = again,
                Err(error) => {
                    items.retain(|(at, _)| answers.iter().all(|(answered, _)| answered != at));
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
        // The record not as it was a second ago: what others put in a new era must be found.
        let before = server.known("remove").await?;
        let name = |(_, (key, _)): &(usize, &(Key, Generation))| self.names.entry(&before.record, key);
        let names: Vec<String> = items.iter().map(name).collect();
        let stands = server.get_many("remove", &names, &["f", "c"]);
        let (known, stands) = tokio::try_join!(server.asked("remove"), stands)?;
        if known.record.era != before.record.era {
            return Ok(items.to_vec());
        }
        let highest = items.iter().map(|(_, (_, below))| *below).max().unwrap_or_default();
        server.cover("remove", &known, highest).await?;
        let mut sent = Vec::with_capacity(items.len());
        for ((&(at, item), name), found) in items.iter().zip(&names).zip(stands) {
            let (key, below) = item;
            let floor = known.record.floor(key.namespace());
            let flag = found.as_ref().map_or(0, |found| found.flags.unwrap_or_default());
            match exact(flag) {
                _ if floor > *below => answers.push((at, Ok(Removal::Behind(floor)))),
                Some(over) if flag < flags(*below) || found.is_none() => {
                    sent.push((at, item, name, found.and_then(|found| found.cas), over));
                }
                // Another process may be ahead: looked at by itself.
                _ => answers.push((at, self.remove(server, key, *below).await)),
            }
        }
        let marks: Vec<Vec<u8>> = sent.iter().map(|(_, (_, below), ..)| mark(*below)).collect();
        let expiry = format!("T{}", REMOVAL_MARK.as_secs() + 1);
        let writes = sent.iter().zip(&marks).map(|((_, (_, below), name, cas, _), mark)| {
            let flags = [format!("F{}", flags(*below)), expiry.clone()];
            Write { name, value: mark, cas: *cas, flags }
        });
        let written = server.set_many("remove", &writes.collect::<Vec<_>>()).await?;
        let mut again = Vec::new();
        for ((at, item, _, _, over), written) in sent.into_iter().zip(written) {
            let full = || Error::unavailable(NAME, "remove", "the server has no room for a mark");
            match written {
                Written::Stored => answers.push((at, Ok(Removal::Done { over }))),
                Written::Changed => again.push((at, item)),
                Written::TooLarge | Written::Full => answers.push((at, Err(full()))),
            }
        }
        Ok(again)
    }
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

/// Those of many items that are there, each in the place of its name.
pub(crate) fn by_name(names: &[String], found: Vec<MetaValue>) -> Vec<Option<MetaValue>> {
    let mut found: HashMap<Vec<u8>, MetaValue> =
        found.into_iter().filter_map(|mut item| Some((item.key.take()?, item))).collect();
    let mut left: HashMap<&str, usize> = HashMap::new();
    names.iter().for_each(|name| *left.entry(name).or_default() += 1);
    let mut take = |name: &String| match left.get_mut(name.as_str()) {
        // Named once more further on.
        Some(times) if *times > 1 => {
            *times -= 1;
            found.get(name.as_bytes()).cloned()
        }
        _ => found.remove(name.as_bytes()),
    };
    names.iter().map(&mut take).collect()
}
