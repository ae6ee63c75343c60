//! Batches. Where one server has all keys, what goes there goes in one write: a command for each key that is read, a script
//! for all keys of a namespace that are changed. Each key has its own answer. A cluster is sent single commands, side by
//! side: its client sorts them to their nodes.

use std::collections::BTreeMap;

use redis::{Cmd, RedisError, RedisResult, Value, cmd};
use tiercache_core::tier::{Call, Permit, Put, PutItem, Removal, side_by_side};
use tiercache_core::{Entry, Generation, Key, Result, Tier};

use crate::RedisTier;
use crate::ledger::{Record, cleared_field};
use crate::link::{Script, is_unknown_script};
use crate::tier::{ATTEMPTS, REMOVAL_MARK, life, mark, nonsense};

/// Keys in one write.
const KEYS: usize = 256;
/// About how many bytes are changed at once. A script holds up everybody else at the server, for 2 to 3 ms with so many keys
/// and bytes, and may take it over its limit of memory by as much.
const BYTES: usize = 1 << 20;

/// A change of one key by a script, and what it came to; not yet anything while it waits for another attempt.
struct Change<'a> {
    key: &'a Key,
    generation: Generation,
    args: [Vec<u8>; 2],
    /// The entry that is put, which what was cleared or fenced meanwhile may reach.
    put: Option<(&'a Entry, &'a dyn Permit)>,
    outcome: Option<Outcome>,
}

enum Outcome {
    Answered(RedisResult<(Vec<u8>, Value)>),
    /// The permit did not hold any more, or the entry was dead.
    Withheld,
}

impl Change<'_> {
    fn bytes(&self) -> usize {
        self.args.iter().map(Vec::len).sum()
    }

    /// Whether it still may be made. Asked right before it is sent.
    fn may_be_made(&self, record: &Record) -> bool {
        self.put.is_none_or(|(entry, permit)| !record.kills(self.key, entry) && permit.holds())
    }
}

impl RedisTier {
    pub(crate) async fn get_batch(&self, keys: &[Key]) -> Vec<Result<Option<Entry>>> {
        if self.link().is_cluster() {
            let get = |key| -> Call<'_, _> { self.get(key) };
            return side_by_side(KEYS, keys.iter().map(get).collect()).await;
        }
        let mut answers = Vec::with_capacity(keys.len());
        for keys in keys.chunks(KEYS) {
            match self.get_chunk(keys).await {
                Ok(chunk) => answers.extend(chunk),
                Err(error) => answers.extend(keys.iter().map(|_| Err(error.clone()))),
            }
        }
        answers
    }

    async fn get_chunk(&self, keys: &[Key]) -> Result<Vec<Result<Option<Entry>>>> {
        self.check_open()?;
        let failed = self.failed("get");
        for _ in 0..ATTEMPTS {
            let (record, number) = self.ledger.current_over().await.map_err(&failed)?;
            let names: Vec<Vec<u8>> =
                keys.iter().map(|key| self.ledger.names().entry(&record.era, key)).collect();
            let get = |name: &Vec<u8>| {
                let mut get = cmd("GET");
                get.arg(name);
                get
            };
            let said = self.link().pipeline(names.iter().map(get).collect()).await.map_err(&failed)?;
            if self.link().number() != number {
                // It may come from a server that went back in time.
                continue;
            }
            let mut answers = Vec::with_capacity(keys.len());
            for ((key, name), said) in keys.iter().zip(&names).zip(said) {
                answers.push(match self.value_of(key, name, said).await {
                    Ok(Some(bytes)) => self.entry_of(key, name, bytes, number, &record).await,
                    Ok(None) => Ok(None),
                    Err(error) => Err(failed(error)),
                });
            }
            return Ok(answers);
        }
        Err(failed(RedisError::from((redis::ErrorKind::Client, "the connection changes too often"))))
    }

    pub(crate) async fn put_batch(&self, items: &[PutItem<'_>]) -> Vec<Result<Put>> {
        if self.link().is_cluster() {
            let put = items.iter().map(|item| self.put(item.key, item.entry, item.hold, item.permit));
            return side_by_side(KEYS, put.collect()).await;
        }
        let mut answers: Vec<Result<Put>> = Vec::with_capacity(items.len());
        let (mut changes, mut places) = (Vec::new(), Vec::new());
        for (at, item) in items.iter().enumerate() {
            let PutItem { key, entry, hold, permit } = *item;
            let envelope = match self.check_open() {
                Ok(()) => self.envelope_of(key, entry).await,
                Err(error) => Err(error),
            };
            // What a change comes to is told below.
            answers.push(envelope.map(|envelope| match envelope {
                Ok(envelope) => {
                    let life = life(hold.now, hold.until(entry)).to_string().into_bytes();
                    let (generation, put) = (entry.generation, Some((entry, permit)));
                    changes.push(Change { key, generation, args: [envelope, life], put, outcome: None });
                    places.push(at);
                    Put::Superseded
                }
                Err(put) => put,
            }));
        }
        let changed = self.change_many(&self.scripts.put_many, &mut changes).await;
        for (at, change) in places.into_iter().zip(changes) {
            answers[at] = match (&changed, change.outcome) {
                (_, Some(Outcome::Answered(answer))) => self.put_of(change.generation, answer),
                (_, Some(Outcome::Withheld)) => Ok(Put::Superseded),
                (Err(error), None) => Err(error.clone()),
                (Ok(()), None) => Err(self.failed("put")(unsettled())),
            };
        }
        answers
    }

    pub(crate) async fn remove_batch(&self, items: &[(Key, Generation)]) -> Vec<Result<Removal>> {
        if self.link().is_cluster() {
            let remove = items.iter().map(|(key, below)| self.remove(key, *below));
            return side_by_side(KEYS, remove.collect()).await;
        }
        let life = REMOVAL_MARK.as_millis().to_string().into_bytes();
        let mut changes: Vec<Change<'_>> = Vec::with_capacity(items.len());
        for (key, below) in items {
            let args = [mark(*below).to_vec(), life.clone()];
            changes.push(Change { key, generation: *below, args, put: None, outcome: None });
        }
        let changed = match self.check_open() {
            Ok(()) => self.change_many(&self.scripts.remove_many, &mut changes).await,
            Err(error) => Err(error),
        };
        let answer = |change: Change<'_>| match (&changed, change.outcome) {
            (_, Some(Outcome::Answered(answer))) => self.removal_of(change.generation, answer),
            (Err(error), None) => Err(error.clone()),
            (_, None | Some(Outcome::Withheld)) => Err(self.failed("remove")(unsettled())),
        };
        changes.into_iter().map(answer).collect()
    }

    /// [`RedisTier::change`] of many keys, in as few writes as they fit in. Those that an error leaves without an
    /// outcome were not made, or nobody knows.
    async fn change_many(&self, script: &Script, changes: &mut [Change<'_>]) -> Result<()> {
        let Some(highest) = changes.iter().map(|change| change.generation).max() else { return Ok(()) };
        self.ledger.cover(highest).await?;
        let mut from = 0;
        while from < changes.len() {
            let mut bytes = 0;
            let mut fits = |change: &Change<'_>| {
                bytes += change.bytes();
                bytes <= BYTES
            };
            let count = changes[from..].iter().take(KEYS).take_while(|change| fits(change)).count().max(1);
            self.change_chunk(script, &mut changes[from..from + count])
                .await
                .map_err(self.failed("change many"))?;
            from += count;
        }
        Ok(())
    }

    async fn change_chunk(&self, script: &Script, changes: &mut [Change<'_>]) -> RedisResult<()> {
        for _ in 0..ATTEMPTS {
            let record = self.ledger.current().await?;
            // By namespace, since what was cleared is by namespace: the numbers of the changes, and their names.
            let mut sent: BTreeMap<&str, Vec<(usize, Vec<u8>)>> = BTreeMap::new();
            for (at, change) in changes.iter_mut().enumerate().filter(|(_, change)| change.outcome.is_none())
            {
                if change.may_be_made(&record) {
                    let name = self.ledger.names().entry(&record.era, change.key);
                    sent.entry(change.key.namespace()).or_default().push((at, name));
                } else {
                    change.outcome = Some(Outcome::Withheld);
                }
            }
            if sent.is_empty() {
                return Ok(());
            }
            let command = |(&namespace, keys): (&&str, &Vec<_>)| {
                self.command(script, &record, namespace, keys, changes)
            };
            let said = self.link().pipeline(sent.iter().map(command).collect()).await?;
            let (mut unknown, mut again) = (false, false);
            for (keys, said) in sent.into_values().zip(said) {
                let answers = match said {
                    // The era changed, or the script is not known: nothing was done.
                    Ok(Value::Int(-1)) => {
                        again = true;
                        continue;
                    }
                    Err(error) if is_unknown_script(&error) => {
                        unknown = true;
                        continue;
                    }
                    Ok(Value::Array(answers)) if answers.len() == keys.len() => {
                        answers.into_iter().map(Value::extract_error).collect()
                    }
                    Ok(_) => vec![Err(nonsense()); keys.len()],
                    Err(error) => vec![Err(error); keys.len()],
                };
                for ((at, name), answer) in keys.into_iter().zip(answers) {
                    changes[at].outcome = Some(Outcome::Answered(answer.map(|answer| (name, answer))));
                }
            }
            if unknown {
                self.link().load(script).await?;
            } else if again {
                self.ledger.forget();
            } else {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The call of a script that makes these changes in one namespace.
    fn command(
        &self,
        script: &Script,
        record: &Record,
        namespace: &str,
        keys: &[(usize, Vec<u8>)],
        changes: &[Change<'_>],
    ) -> Cmd {
        let (field, cleared) = (cleared_field(namespace), record.cleared(namespace).get().to_string());
        let names = keys.iter().map(|(_, name)| &name[..]);
        let names: Vec<&[u8]> = names.chain(self.ledger.beside_entries().map(str::as_bytes)).collect();
        let mut args = vec![record.era.as_bytes(), &field, cleared.as_bytes()];
        args.extend(keys.iter().flat_map(|(at, _)| &changes[*at].args).map(Vec::as_slice));
        script.call(&names, &args)
    }
}

fn unsettled() -> RedisError {
    RedisError::from((redis::ErrorKind::Client, "the record of the level changes too often"))
}
