//! The record of one level: which era it is, up to which generation it may hold something, what was cleared and
//! fenced. It is one hash, so that it is lost as a whole or not at all.
//!
//! The era stands in the name of every entry. When the record is missing, or is older than what this process knows
//! it to have been, a new era begins and everything from before is a miss: what invalidated it may be lost. Each
//! process reads the record again before it uses what it knows of it for longer than [`FRESH`], or over another
//! connection. Scripts look at the era themselves; in a cluster they cannot, and it is looked at behind them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::{FromRedisValue, RedisError, RedisResult, Value, cmd};
use tiercache_core::tier::{HighWater, Scope};
use tiercache_core::{Entry, Error, Generation, Key, Result};

use crate::NAME;
use crate::keys::{ERA_BYTES, Names, new_era};
use crate::link::{Link, Script};
use crate::tier::{GENERATION_HEAD, generation_of};

/// For how long what was read of the record holds.
const FRESH: Duration = Duration::from_millis(900);
/// How many fields the record may have before all fences become one.
const MOST_FIELDS: u32 = 10_000;
/// How often an operation is begun anew because the era changed under it.
const ATTEMPTS: usize = 4;

#[derive(Debug)]
pub(crate) struct Ledger {
    link: Arc<Link>,
    names: Names,
    record: String,
    scripts: Scripts,
    known: Mutex<Option<Checked>>,
    reading: tokio::sync::Mutex<()>,
    water: HighWater,
    /// Up to which generation this process knows the record to reach.
    reached: AtomicU64,
    /// The last write the server confirmed. When it is gone after a restart, so may others be.
    witness: Mutex<Option<Witness>>,
    server: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Scripts {
    renew: Script,
    raise: Script,
    clear: Script,
    fence: Script,
}

#[derive(Clone, Debug)]
struct Checked {
    at: Instant,
    /// The connection it was read over.
    number: u64,
    record: Arc<Record>,
}

#[derive(Clone, Debug)]
struct Witness {
    name: Vec<u8>,
    generation: Generation,
}

/// The record as it was last read.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) era: String,
    version: u64,
    pub(crate) high: Generation,
    cleared_all: Generation,
    cleared: HashMap<String, Generation>,
    fences: HashMap<Scope, Generation>,
}

impl Record {
    /// Below which generation nothing of the namespace is left.
    pub(crate) fn cleared(&self, namespace: &str) -> Generation {
        self.cleared.get(namespace).copied().unwrap_or_default().max(self.cleared_all)
    }

    /// Below which generation nothing at all is left.
    pub(crate) fn cleared_all(&self) -> Generation {
        self.cleared_all
    }

    /// The namespaces that were cleared by themselves.
    pub(crate) fn cleared_namespaces(&self) -> impl Iterator<Item = (&str, Generation)> {
        self.cleared.iter().map(|(namespace, &below)| (namespace.as_str(), below))
    }

    /// Whether an invalidation that stands in the record reaches the entry.
    pub(crate) fn kills(&self, key: &Key, entry: &Entry) -> bool {
        let fenced = |scope: &Scope| self.fences.get(scope).is_some_and(|&fence| entry.generation < fence);
        entry.generation < self.cleared(key.namespace())
            || !self.fences.is_empty()
                && (fenced(&Scope::All)
                    || fenced(&Scope::Namespace(key.namespace().to_owned()))
                    || entry.tags().is_some_and(|tags| {
                        tags.iter().any(|(name, value)| {
                            fenced(&Scope::Tag {
                                namespace: key.namespace().to_owned(),
                                name: name.clone(),
                                value: value.clone(),
                            })
                        })
                    }))
    }

    fn of(fields: HashMap<Vec<u8>, Vec<u8>>) -> Option<Self> {
        let mut record = Self::default();
        for (field, value) in fields {
            let text = std::str::from_utf8(&value).ok()?;
            let generation = || text.parse().ok().map(Generation::new);
            match field.as_slice() {
                b"era" if text.len() == ERA_BYTES => record.era = text.to_owned(),
                b"high" => record.high = generation()?,
                b"version" => record.version = text.parse().ok()?,
                b"all" => record.cleared_all = generation()?,
                [b'n', namespace @ ..] => {
                    record.cleared.insert(String::from_utf8(namespace.to_vec()).ok()?, generation()?);
                }
                [b'f', scope @ ..] => {
                    record.fences.insert(scope_of(scope)?, generation()?);
                }
                _ => return None,
            }
        }
        (!record.era.is_empty()).then_some(record)
    }
}

impl Ledger {
    /// Reads the record, making it where there is none.
    pub(crate) async fn open(link: Arc<Link>, names: Names) -> RedisResult<Self> {
        let record = names.record();
        let mut ledger = Self {
            link,
            names,
            record,
            scripts: Scripts {
                renew: Script::new(include_str!("lua/renew.lua")),
                raise: Script::new(include_str!("lua/raise.lua")),
                clear: Script::new(include_str!("lua/clear.lua")),
                fence: Script::new(include_str!("lua/fence.lua")),
            },
            known: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            water: HighWater::new(Generation::ZERO),
            reached: AtomicU64::new(0),
            witness: Mutex::default(),
            server: Mutex::default(),
        };
        let record = ledger.current().await?;
        ledger.water = HighWater::new(record.high);
        Ok(ledger)
    }

    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// The name of the record, where a script may look at it together with an entry.
    pub(crate) fn beside_entries(&self) -> Option<&str> {
        (!self.link.is_cluster()).then_some(&self.record)
    }

    /// The record as it was last read, however long ago.
    pub(crate) fn last(&self) -> Arc<Record> {
        lock(&self.known).as_ref().map(|checked| checked.record.clone()).unwrap_or_default()
    }

    /// The record as it is or was a moment ago.
    pub(crate) async fn current(&self) -> RedisResult<Arc<Record>> {
        self.current_over().await.map(|(record, _)| record)
    }

    /// Likewise, and the number of the connection it was read over: over another one, the server may be another, or
    /// may have gone back in time.
    pub(crate) async fn current_over(&self) -> RedisResult<(Arc<Record>, u64)> {
        if let Some(fresh) = self.fresh() {
            return Ok(fresh);
        }
        let _one = self.reading.lock().await;
        match self.fresh() {
            Some(fresh) => Ok(fresh),
            None => self.read().await,
        }
    }

    /// Has the record read again before it is next used.
    pub(crate) fn forget(&self) {
        if let Some(checked) = lock(&self.known).as_mut() {
            checked.number = 0;
        }
    }

    /// Notes the last write the server confirmed.
    pub(crate) fn confirmed(&self, name: Vec<u8>, generation: Generation) {
        if !self.link.is_cluster() {
            *lock(&self.witness) = Some(Witness { name, generation });
        }
    }

    /// Returns when the record reaches as far as `generation`.
    pub(crate) async fn cover(&self, generation: Generation) -> Result<()> {
        self.water.cover(generation, |wanted| self.raise(wanted.min(Generation::MAX))).await
    }

    /// Notes that everything of the namespace, or of all, is dead below a generation.
    pub(crate) async fn clear(&self, namespace: Option<&str>, below: Generation) -> RedisResult<()> {
        let field = namespace.map_or_else(|| b"all".to_vec(), cleared_field);
        let below = below.get().to_string();
        self.in_era(&self.scripts.clear, &[&field, below.as_bytes()]).await?;
        self.forget();
        self.current().await.map(drop)
    }

    /// Notes a fence, above everything that other processes may have put.
    pub(crate) async fn fence(&self, scope: &Scope, generation: Generation) -> RedisResult<Generation> {
        let (field, all) = (fence_field(scope), fence_field(&Scope::All));
        let [generation, highest, most] = [generation.get(), Generation::MAX.get(), u64::from(MOST_FIELDS)]
            .map(|number| number.to_string());
        let args: [&[u8]; 5] = [&field, generation.as_bytes(), highest.as_bytes(), most.as_bytes(), &all];
        let fenced = self.in_era(&self.scripts.fence, &args).await?;
        let fenced = Generation::new(number(fenced)?);
        self.reached.fetch_max(fenced.get(), Ordering::AcqRel);
        self.forget();
        self.current().await?;
        Ok(fenced)
    }

    /// The fences as they were last read.
    pub(crate) fn fences(&self) -> Vec<(Scope, Generation)> {
        self.last().fences.iter().map(|(scope, &generation)| (scope.clone(), generation)).collect()
    }

    /// Runs a script on the record, which answers -1 when the era it is given is over.
    async fn in_era(&self, script: &Script, args: &[&[u8]]) -> RedisResult<Value> {
        for _ in 0..ATTEMPTS {
            let record = self.current().await?;
            let args: Vec<&[u8]> = [record.era.as_bytes()].into_iter().chain(args.iter().copied()).collect();
            match self.link.eval(script, &[self.record.as_bytes()], &args).await? {
                Value::Int(-1) => self.forget(),
                answer => return Ok(answer),
            }
        }
        Err(unsettled())
    }

    fn fresh(&self) -> Option<(Arc<Record>, u64)> {
        let known = lock(&self.known);
        let checked = known.as_ref()?;
        let fresh =
            checked.at.elapsed() < FRESH && checked.number == self.link.number() && checked.number > 0;
        fresh.then(|| (checked.record.clone(), checked.number))
    }

    async fn raise(&self, wanted: Generation) -> Result<Generation> {
        let text = wanted.get().to_string();
        let raised = self
            .in_era(&self.scripts.raise, &[text.as_bytes()])
            .await
            .and_then(number)
            .map_err(|error| Error::unavailable(NAME, "raise the highest generation", error))?;
        self.reached.fetch_max(raised, Ordering::AcqRel);
        Ok(Generation::new(raised))
    }

    /// Reads the record, and begins a new era when it cannot be relied on.
    async fn read(&self) -> RedisResult<(Arc<Record>, u64)> {
        let before = lock(&self.known).clone();
        let last = before.as_ref().map(|checked| checked.record.clone());
        for _ in 0..ATTEMPTS {
            let (at, number) = (Instant::now(), self.link.number());
            // Before the record is asked for: what is raised beside that may not stand in the answer yet.
            let reached = self.reached.load(Ordering::Acquire);
            let mut brief = cmd("HMGET");
            brief.arg(&self.record).arg("era").arg("high").arg("version");
            let (era, high, version): (Option<String>, Option<u64>, Option<u64>) =
                typed(self.link.query(&brief).await?)?;
            let (Some(era), Some(high), Some(version)) = (era, high, version) else {
                self.renew(last.as_ref().map_or("", |last| &last.era), "the record is missing").await?;
                continue;
            };
            let same_era = last.as_ref().is_some_and(|last| last.era == era);
            if same_era && (high < reached || last.as_ref().is_some_and(|last| version < last.version)) {
                self.renew(&era, "the record went back").await?;
                continue;
            }
            if same_era
                && before.as_ref().is_some_and(|before| before.number != number)
                && self.lost_writes().await?
            {
                self.renew(&era, "the server lost writes").await?;
                continue;
            }
            let unchanged = last.as_ref().filter(|last| same_era && last.version == version);
            let record = match unchanged {
                Some(last) => last.clone(),
                None => {
                    let all = typed(self.link.query(cmd("HGETALL").arg(&self.record)).await?)?;
                    match Record::of(all) {
                        Some(record) => Arc::new(record),
                        None => {
                            self.renew(&era, "the record makes no sense").await?;
                            continue;
                        }
                    }
                }
            };
            if last.as_ref().is_some_and(|last| last.era != record.era) {
                tracing::warn!(
                    record = self.record,
                    "a new era: what was stored before is not answered any more"
                );
                *lock(&self.witness) = None;
                if record.high.get() < reached {
                    // Whoever began it did not know of all generations this process has given out.
                    self.renew("", "generations go on").await?;
                }
            }
            if self.link.number() != number || number == 0 {
                continue;
            }
            self.reached.fetch_max(record.high.get(), Ordering::AcqRel);
            if !self.link.is_cluster() && before.as_ref().is_none_or(|before| before.number != number) {
                *lock(&self.server) = self.server_run().await?;
            }
            *lock(&self.known) = Some(Checked { at, number, record: record.clone() });
            return Ok((record, number));
        }
        Err(unsettled())
    }

    /// Begins a new era in place of `ended`; raises the record where somebody else has begun one.
    async fn renew(&self, ended: &str, reason: &str) -> RedisResult<()> {
        tracing::debug!(record = self.record, reason, "the record is renewed");
        let reached = self.reached.load(Ordering::Acquire).to_string();
        let args = [ended.as_bytes(), &new_era().into_bytes(), reached.as_bytes()];
        self.link.eval(&self.scripts.renew, &[self.record.as_bytes()], &args).await.map(drop)
    }

    /// Whether, since the last connection, the server was restarted or replaced and does not have this process's
    /// last write. What was written before that one it has then as well: a log or a copy has everything up to
    /// some point.
    async fn lost_writes(&self) -> RedisResult<bool> {
        let Some(Witness { name, generation }) = lock(&self.witness).clone() else { return Ok(false) };
        let before = lock(&self.server).clone();
        if before.is_some() && before == self.server_run().await? {
            return Ok(false);
        }
        let mut head = cmd("GETRANGE");
        head.arg(name).arg(0).arg(GENERATION_HEAD - 1);
        let head: Vec<u8> = typed(self.link.query(&head).await?)?;
        Ok(generation_of(&head) < Some(generation))
    }

    /// Which run of which server it is; `None` when we may not ask.
    async fn server_run(&self) -> RedisResult<Option<String>> {
        match self.link.query(cmd("INFO").arg("server")).await {
            Ok(info) => {
                let info: String = typed(info)?;
                Ok(info.lines().find_map(|line| line.strip_prefix("run_id:")).map(str::to_owned))
            }
            Err(error) if error.code() == Some("NOPERM") => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The field of a namespace's clearing.
pub(crate) fn cleared_field(namespace: &str) -> Vec<u8> {
    [b"n", namespace.as_bytes()].concat()
}

pub(crate) fn typed<T: FromRedisValue>(value: Value) -> RedisResult<T> {
    T::from_redis_value(value).map_err(RedisError::from)
}

pub(crate) fn number(value: Value) -> RedisResult<u64> {
    typed(value)
}

fn unsettled() -> RedisError {
    RedisError::from((redis::ErrorKind::Client, "the record of the level changes too often"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The field of a fence: lengths before what can hold anything.
fn fence_field(scope: &Scope) -> Vec<u8> {
    match scope {
        Scope::All => b"f*".to_vec(),
        Scope::Namespace(namespace) => [b"fn", namespace.as_bytes()].concat(),
        Scope::Tag { namespace, name, value } => {
            let mut field = b"ft".to_vec();
            for text in [namespace, name] {
                field.extend(format!("{}:", text.len()).into_bytes());
                field.extend(text.as_bytes());
            }
            field.extend(value.as_bytes());
            field
        }
    }
}

/// The scope of a field, behind its first letter.
fn scope_of(field: &[u8]) -> Option<Scope> {
    fn text<'a>(rest: &mut &'a str) -> Option<&'a str> {
        let (length, behind) = rest.split_once(':')?;
        let (text, behind) = behind.split_at_checked(length.parse().ok()?)?;
        *rest = behind;
        Some(text)
    }
    let field = std::str::from_utf8(field).ok()?;
    match field.as_bytes().first()? {
        b'*' => Some(Scope::All),
        b'n' => Some(Scope::Namespace(field[1..].to_owned())),
        b't' => {
            let mut rest = &field[1..];
            let (namespace, name) = (text(&mut rest)?.to_owned(), text(&mut rest)?.to_owned());
            Some(Scope::Tag { namespace, name, value: rest.to_owned() })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scope_has_a_field_of_its_own() {
        let tag = |namespace: &str, name: &str, value: &str| Scope::Tag {
            namespace: namespace.into(),
            name: name.into(),
            value: value.into(),
        };
        for scope in [
            Scope::All,
            Scope::Namespace(String::new()),
            Scope::Namespace("*".into()),
            tag("", "", ""),
            tag("a", "größe", "1:\0x"),
            tag("1:a", "", "b"),
        ] {
            let field = fence_field(&scope);
            assert_eq!(scope_of(&field[1..]), Some(scope));
        }
        for odd in [&b""[..], b"x", b"t", b"t9:a", b"t1:\xff", b"t2:\xc3\xa41:ab"] {
            assert!(scope_of(odd).is_none_or(|scope| fence_field(&scope)[1..] == *odd), "{odd:?}");
        }
    }

    #[test]
    fn a_record_with_fields_we_do_not_know_is_not_read() {
        let field = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let good = [
            field("era", "0123456789abcdef"),
            field("high", "7"),
            field("version", "1"),
            field("nshop", "5"),
        ];
        let record = Record::of(good.clone().into()).unwrap();
        assert_eq!((record.high, record.cleared("shop")), (Generation::new(7), Generation::new(5)));
        assert_eq!(record.cleared("other"), Generation::ZERO);
        for bad in [field("odd", "1"), field("high", "x"), field("fx", "1"), field("era", "short")] {
            let mut fields: HashMap<_, _> = good.clone().into();
            fields.insert(bad.0, bad.1);
            assert!(Record::of(fields).is_none());
        }
    }
}
