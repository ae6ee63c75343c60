//! Transactions among everything else that clients do to the same keys.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use tiercache_core::{Error, Result, Value};

use super::{Act, Client, failed, numbered};
use crate::history::{What, Written};
use crate::serial::Transaction;
use crate::values::{name, value};

/// What a transaction says that is given up on purpose.
pub(crate) const GIVEN_UP: &str = "given up";

impl Client {
    /// Reads two keys, sets one and sets or removes the other, or gives up at the end; parts in between are undone.
    pub(super) async fn transact(&mut self, key: u16) -> Result<(), String> {
        let other = (key + 1 + self.random.below(u64::from(self.keys) - 1) as u16) % self.keys;
        let keys = [key, other];
        let news = [(); 3].map(|()| self.board.values.fetch_add(1, Ordering::Relaxed));
        let (removes, gives_up) = (self.random.once_in(4), self.random.once_in(5));
        let tags = [(); 2].map(|()| self.random.once_in(2).then(|| self.random.below(super::TAGS) as u8));
        let saw = Arc::new(Mutex::new(None));
        let (clock, begun) = (self.board.clock(), self.board.moment());
        let work = {
            let saw = saw.clone();
            move |tx: &mut tiercache_core::Transaction<'_>| {
                let found = [read(tx, keys[0])?, read(tx, keys[1])?];
                *saw.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
                tx.set(name(key), tagged(key, news[0], tags[0]))?;
                let undone = tx.nested(|tx| {
                    tx.set(name(other), value(other, news[2]))?;
                    tx.delete(name(key))?;
                    Err::<(), _>(Error::Refused(GIVEN_UP.into()))
                });
                let (now, before) = ([read(tx, key)?, read(tx, other)?], [Some(news[0]), found[1]]);
                // An invalidation meanwhile ends what it had, too.
                if undone.is_ok() || (0..2).any(|at| now[at].is_some() && now[at] != before[at]) {
                    return Err(Error::Refused(format!("{before:?} was {now:?} after an undone part")));
                }
                if removes {
                    tx.delete(name(other))?;
                } else {
                    tx.nested(|tx| tx.set(name(other), tagged(other, news[1], tags[1])))?;
                }
                if gives_up { Err(Error::Refused(GIVEN_UP.into())) } else { Ok(()) }
            }
        };
        let done = self.cache.transaction(&keys.map(name), work).await;
        let ended = self.board.moment();
        match done {
            Ok(()) => {}
            Err(Error::Refused(why)) if gives_up && why == GIVEN_UP => {}
            Err(error) => return Err(failed(Act::Transact)(error)),
        }
        let Some(saw) = *saw.lock().unwrap_or_else(PoisonError::into_inner) else {
            return Err("a transaction ended without its work".into());
        };
        for (key, value) in keys.into_iter().zip(saw) {
            self.note(Some(key), begun, ended, What::Read { value, clock });
        }
        let left = [Some(news[0]), (!removes).then_some(news[1])];
        let changed = if gives_up { 0 } else { 2 };
        for at in 0..changed {
            let written = |value| {
                let (generation, certain, tag) = (None, true, tags[at]);
                What::Write(Written { value, generation, certain, tag, deadline: None, durable: false })
            };
            let what = left[at].map_or(What::Remove { tag: None, certain: true }, written);
            self.note(Some(keys[at]), begun, ended, what);
        }
        self.transactions.push(Transaction {
            process: 0,
            begun,
            ended,
            saw: keys.into_iter().zip(saw).collect(),
            left: keys.into_iter().zip(left).take(changed).collect(),
        });
        Ok(())
    }
}

/// The number of a key's value as a transaction has it.
pub(crate) fn read(tx: &mut tiercache_core::Transaction<'_>, key: u16) -> Result<Option<u64>> {
    numbered(key, tx.get(name(key))?).map_err(Error::Refused)
}

fn tagged(key: u16, number: u64, tag: Option<u8>) -> Value {
    let value = Value::new(value(key, number));
    match tag {
        Some(tag) => value.tag("t", tag.to_string()),
        None => value,
    }
}
