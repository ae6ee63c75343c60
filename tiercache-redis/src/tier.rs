use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::{RedisError, RedisResult, Value, cmd};
use tiercache_core::envelope::{Damage, MAGIC};
use tiercache_core::tier::{
    Counting, Dead, FenceLog, Hold, Listing, Permit, Profile, Put, PutItem, Removal, Scope, Spill, Swept,
    Usage,
};
use tiercache_core::{Codec, Entry, Error, Generation, Key, Leasing, Level, Result, Tier, Timestamp};
use tokio::sync::OnceCell;

use crate::config::Reach;
use crate::keys::Names;
use crate::leases::Leases;
use crate::ledger::{Ledger, Record, cleared_field, number, typed};
use crate::link::{Link, Resend, Script, at_open};
use crate::listing::{Listings, Sweeper};
use crate::{NAME, RedisConfig};

/// How long a removal is remembered: longer than any write may be late.
pub(crate) const REMOVAL_MARK: Duration = Duration::from_secs(60);
/// The longest life the server is told of; beyond, the entry stays for ever and its deadline decides.
const LONGEST_LIFE: u64 = 1 << 50;
/// How often a read or a write is begun anew because the connection or the era changed under it.
pub(crate) const ATTEMPTS: usize = 4;

/// Packing or sealing more bytes than that would hold up the runtime's thread.
const COSTLY: usize = 64 << 10;

/// Bytes up to the end of the generation, in envelopes and marks of removal alike.
pub(crate) const GENERATION_HEAD: usize = 17;
/// Where it begins.
const GENERATION_AT: usize = 11;

/// A level in Redis, shared by every process that opens it.
#[derive(Debug)]
pub struct RedisTier {
    pub(crate) ledger: Ledger,
    pub(crate) codec: Codec,
    pub(crate) leases: Leases,
    pub(crate) listings: Listings,
    sweeper: Sweeper,
    pub(crate) scripts: Scripts,
    max_entry_bytes: u64,
    last_generation: Generation,
    pub(crate) damaged: AtomicU64,
    closed: AtomicBool,
    /// The way additions take: one that does not repeat what may have been done. Of its own in a cluster alone.
    counting: OnceCell<Arc<Link>>,
    reach: Box<Reach>,
    section: String,
    response_timeout: Duration,
}

/// The connection of a level that is being opened, and what it is opened with.
struct Way {
    link: Arc<Link>,
    names: Names,
    codec: Codec,
    reach: Reach,
    section: String,
}

impl Way {
    async fn to(config: &RedisConfig, level: Level) -> Result<Self> {
        let codec = config.codec()?;
        let (reach, section) = (config.reach()?, format!("{level}_cache"));
        let link = Arc::new(Link::open(&reach, Resend::Freely, &section).await?);
        Ok(Self { link, names: Names::new(&config.prefix, level.name()), codec, reach, section })
    }

    fn blamed(&self, error: RedisError) -> Error {
        at_open(error, "open", &self.reach.shown(), &self.section)
    }
}

#[derive(Debug)]
pub(crate) struct Scripts {
    put: Script,
    pub(crate) put_many: Script,
    remove: Script,
    pub(crate) remove_many: Script,
    discard: Script,
    add: Script,
    uncount: Script,
}

impl RedisTier {
    /// Connects and reads what the level remembers.
    ///
    /// # Errors
    /// [`Error::Config`] for values that cannot be meant, [`Error::Refused`] when the server does not let us in,
    /// [`Error::Unavailable`] when it cannot be reached in time.
    pub async fn open(config: RedisConfig, level: Level) -> Result<Self> {
        let way = Way::to(&config, level).await?;
        let opened = Ledger::open(way.link.clone(), way.names.clone()).await;
        let ledger = opened.map_err(|error| way.blamed(error))?;
        Ok(Self::over(&config, way, ledger))
    }

    /// The level to be looked at, where nothing is changed; `None` when it was never opened.
    pub(crate) async fn look(config: &RedisConfig, level: Level) -> Result<Option<Self>> {
        let way = Way::to(config, level).await?;
        let looked = Ledger::look(way.link.clone(), way.names.clone()).await;
        let ledger = looked.map_err(|error| way.blamed(error));
        match ledger {
            Ok(Some(ledger)) => Ok(Some(Self::over(config, way, ledger))),
            other => {
                way.link.close();
                other.map(|_| None)
            }
        }
    }

    fn over(config: &RedisConfig, way: Way, ledger: Ledger) -> Self {
        let Way { codec, reach, section, .. } = way;
        let last_generation = ledger.last().high;
        let script =
            |parts: &[&str]| Script::new([&[include_str!("lua/prelude.lua")], parts].concat().concat());
        let (put, remove) = (include_str!("lua/put.lua"), include_str!("lua/remove.lua"));
        // Not a batch of one: its answer would have to be put together from a table.
        let (one, many) = (include_str!("lua/one.lua"), include_str!("lua/many.lua"));
        Self {
            leases: Leases::new(ledger.names().record()),
            ledger,
            codec,
            listings: Listings::default(),
            sweeper: Sweeper::default(),
            scripts: Scripts {
                put: script(&[put, one]),
                put_many: script(&[put, many]),
                remove: script(&[remove, one]),
                remove_many: script(&[remove, many]),
                discard: Script::new(include_str!("lua/discard.lua")),
                add: script(&[include_str!("lua/add.lua")]),
                uncount: script(&[include_str!("lua/uncount.lua")]),
            },
            max_entry_bytes: config.max_entry_bytes,
            last_generation,
            damaged: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            counting: OnceCell::new(),
            response_timeout: reach.response_timeout,
            reach: Box::new(reach),
            section,
        }
    }

    pub(crate) fn link(&self) -> &Link {
        self.ledger.link()
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    /// The client's error as ours.
    pub(crate) fn failed(&self, op: &'static str) -> impl Fn(RedisError) -> Error {
        let after = self.response_timeout;
        move |error| match error.is_timeout() {
            true => Error::TimedOut { backend: NAME, op, after },
            false => Error::unavailable(NAME, op, error),
        }
    }

    /// Removes what is under that name if it still begins with these bytes.
    pub(crate) async fn discard(&self, name: &[u8], head: &[u8]) -> RedisResult<bool> {
        let removed = self.link().eval(&self.scripts.discard, &[name], &[head]).await?;
        Ok(number(removed)? > 0)
    }

    /// Changes what is under a name in one step, in the era that is current when it happens.
    ///
    /// The script sees to the era where it can. In a cluster it is read again behind the script: when it changed,
    /// others may look elsewhere already, and the change is made there, too.
    async fn change(
        &self,
        link: &Link,
        script: &Script,
        key: &Key,
        name: impl Fn(&Names, &str) -> Vec<u8>,
        args: &[&[u8]],
    ) -> RedisResult<(Vec<u8>, Value)> {
        let field = cleared_field(key.namespace());
        for _ in 0..ATTEMPTS {
            let record = self.ledger.current().await?;
            let name = name(self.ledger.names(), &record.era);
            let cleared = record.cleared(key.namespace()).get().to_string();
            let args: Vec<&[u8]> = [record.era.as_bytes(), &field, cleared.as_bytes()]
                .into_iter()
                .chain(args.iter().copied())
                .collect();
            let answer = match self.ledger.beside_entries() {
                Some(beside) => link.eval(script, &[&name, beside.as_bytes()], &args).await?,
                None => {
                    let answer = link.eval(script, &[&name], &args).await?;
                    if self.link().query(cmd("HGET").arg(self.ledger.names().record()).arg("era")).await?
                        != Value::BulkString(record.era.clone().into_bytes())
                    {
                        self.ledger.forget();
                        // What was counted was counted; nobody reads it there any more.
                        continue;
                    }
                    answer
                }
            };
            match answer {
                Value::Int(-1) => self.ledger.forget(),
                answer => return Ok((name, answer)),
            }
        }
        Err(RedisError::from((redis::ErrorKind::Client, "the record of the level changes too often")))
    }

    /// What the store has under the name of `key`, and the record it was read by.
    async fn fetch(&self, key: &Key) -> RedisResult<Option<(Bytes, Vec<u8>, u64, Arc<Record>)>> {
        for _ in 0..ATTEMPTS {
            let (record, number) = self.ledger.current_over().await?;
            let name = self.ledger.names().entry(&record.era, key);
            let answer = self.link().query(cmd("GET").arg(&name)).await;
            if self.link().number() != number && answer.is_ok() {
                // It may come from a server that went back in time.
                continue;
            }
            let value = self.value_of(key, &name, answer).await?;
            return Ok(value.map(|bytes| (bytes, name, number, record)));
        }
        Err(RedisError::from((redis::ErrorKind::Client, "the connection changes too often")))
    }

    /// The bytes in the answer to a `GET`.
    pub(crate) async fn value_of(
        &self,
        key: &Key,
        name: &[u8],
        answer: RedisResult<Value>,
    ) -> RedisResult<Option<Bytes>> {
        match answer {
            // Somebody else's under our name.
            Err(error) if error.code() == Some("WRONGTYPE") => {
                self.damaged.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(tier = NAME, ?key, "something else stands in an entry's place, removed");
                self.link().query(cmd("UNLINK").arg(name)).await?;
                Ok(None)
            }
            Ok(Value::Nil) => Ok(None),
            answer => Ok(Some(Bytes::from(typed::<Vec<u8>>(answer?)?))),
        }
    }

    /// The entry that these bytes are, if they are one that lives.
    pub(crate) async fn entry_of(
        &self,
        key: &Key,
        name: &[u8],
        bytes: Bytes,
        number: u64,
        record: &Record,
    ) -> Result<Option<Entry>> {
        if is_mark(&bytes) {
            return Ok(None);
        }
        match self.decode(key, &bytes).await? {
            Ok(entry) => Ok((!record.kills(key, &entry)).then_some(entry)),
            // Somebody else may have the key.
            Err(damage @ Damage::UnknownKey) => {
                self.damaged.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(tier = NAME, ?key, %damage, "an entry cannot be read");
                Ok(None)
            }
            Err(damage) => {
                self.damaged_entry(key, name, &bytes, number, damage).await;
                Ok(None)
            }
        }
    }

    /// The envelope of an entry, or what a put of it comes to without.
    pub(crate) async fn envelope_of(&self, key: &Key, entry: &Entry) -> Result<Result<Vec<u8>, Put>> {
        match self.encode(key, entry).await? {
            Ok(envelope) if envelope.len() as u64 <= self.max_entry_bytes => Ok(Ok(envelope)),
            Ok(_) | Err(Damage::TooLarge) => Ok(Err(Put::TooLarge)),
            Err(damage) => Err(Error::unavailable(NAME, "put", damage)),
        }
    }

    /// What the script says became of a put.
    pub(crate) fn put_of(
        &self,
        generation: Generation,
        answer: RedisResult<(Vec<u8>, Value)>,
    ) -> Result<Put> {
        let (name, answer) = match answer {
            Ok(answered) => answered,
            Err(error) if error.code() == Some("OOM") => return Ok(Put::Full),
            Err(error) => return Err(self.failed("put")(error)),
        };
        match word(&answer) {
            b"stored" => {
                self.ledger.confirmed(name, generation);
                Ok(Put::Stored)
            }
            b"unchanged" => Ok(Put::Unchanged),
            b"superseded" => Ok(Put::Superseded),
            _ => Err(self.failed("put")(nonsense())),
        }
    }

    /// What the script says became of a removal.
    pub(crate) fn removal_of(
        &self,
        below: Generation,
        answer: RedisResult<(Vec<u8>, Value)>,
    ) -> Result<Removal> {
        let (name, answer) = answer.map_err(self.failed("remove"))?;
        let Value::Array(answer) = answer else { return Err(self.failed("remove")(nonsense())) };
        match answer[..] {
            [Value::Int(found), Value::Int(marked)] if found >= 0 => {
                let found = Generation::new(found.unsigned_abs());
                if marked == 0 {
                    return Ok(Removal::Behind(found));
                }
                self.ledger.confirmed(name, below);
                Ok(Removal::Done { over: found })
            }
            _ => Err(self.failed("remove")(nonsense())),
        }
    }

    async fn encode(&self, key: &Key, entry: &Entry) -> Result<Result<Vec<u8>, Damage>> {
        let encode = |codec: &Codec, key: &Key, entry: &Entry| {
            let mut envelope = Vec::new();
            codec.encode(key.as_ref(), entry, &mut envelope).map(|_| envelope)
        };
        if !self.is_costly(entry.value.len()) {
            return Ok(encode(&self.codec, key, entry));
        }
        let (codec, key, entry) = (self.codec.clone(), key.clone(), entry.clone());
        elsewhere(move || encode(&codec, &key, &entry)).await
    }

    async fn decode(&self, key: &Key, bytes: &Bytes) -> Result<Result<Entry, Damage>> {
        if !self.is_costly(bytes.len()) {
            return Ok(self.codec.decode_for(key.as_ref(), bytes));
        }
        let (codec, key, bytes) = (self.codec.clone(), key.clone(), bytes.clone());
        elsewhere(move || codec.decode_for(key.as_ref(), &bytes)).await
    }

    fn is_costly(&self, bytes: usize) -> bool {
        bytes > COSTLY && self.codec.is_costly()
    }

    async fn damaged_entry(&self, key: &Key, name: &[u8], bytes: &[u8], number: u64, damage: Damage) {
        self.damaged.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(tier = NAME, ?key, %damage, "damaged entry, removed");
        if damage == Damage::OtherKey {
            // Whole, and of another key: answers may have got out of step with questions.
            self.link().distrust(number);
        }
        if let Err(error) = self.discard(name, bytes).await {
            tracing::debug!(tier = NAME, ?key, %error, "the damaged entry could not be removed");
        }
    }

    async fn counting_link(&self) -> Result<&Link> {
        if !self.link().is_cluster() {
            return Ok(self.link());
        }
        let open = async || Link::open(&self.reach, Resend::Never, &self.section).await.map(Arc::new);
        self.counting.get_or_try_init(open).await.map(|link| &**link)
    }
}

#[async_trait]
impl Tier for RedisTier {
    fn name(&self) -> &'static str {
        NAME
    }

    fn profile(&self) -> Profile {
        Profile {
            persistent: true,
            shared: true,
            max_entry_bytes: Some(self.max_entry_bytes),
            last_generation: self.last_generation,
        }
    }

    fn attach(&self, _spill: Arc<dyn Spill>) {
        // What the server evicts it hands to nobody.
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        self.check_open()?;
        match self.fetch(key).await.map_err(self.failed("get"))? {
            Some((bytes, name, number, record)) => self.entry_of(key, &name, bytes, number, &record).await,
            None => Ok(None),
        }
    }

    async fn put(&self, key: &Key, entry: &Entry, hold: Hold, permit: &dyn Permit) -> Result<Put> {
        self.check_open()?;
        let envelope = match self.envelope_of(key, entry).await? {
            Ok(envelope) => envelope,
            Err(put) => return Ok(put),
        };
        self.ledger.cover(entry.generation).await?;
        let record = self.ledger.current().await.map_err(self.failed("put"))?;
        if record.kills(key, entry) || !permit.holds() {
            return Ok(Put::Superseded);
        }
        let life = life(hold.now, hold.until(entry)).to_string();
        let answer = self
            .change(
                self.link(),
                &self.scripts.put,
                key,
                |names, era| names.entry(era, key),
                &[&envelope, life.as_bytes()],
            )
            .await;
        self.put_of(entry.generation, answer)
    }

    async fn remove(&self, key: &Key, below: Generation) -> Result<Removal> {
        self.check_open()?;
        self.ledger.cover(below).await?;
        let life = REMOVAL_MARK.as_millis().to_string();
        let answer = self
            .change(
                self.link(),
                &self.scripts.remove,
                key,
                |names, era| names.entry(era, key),
                &[&mark(below), life.as_bytes()],
            )
            .await;
        self.removal_of(below, answer)
    }

    async fn get_many(&self, keys: &[Key]) -> Vec<Result<Option<Entry>>> {
        self.get_batch(keys).await
    }

    async fn put_many(&self, items: &[PutItem<'_>]) -> Vec<Result<Put>> {
        self.put_batch(items).await
    }

    async fn remove_many(&self, items: &[(Key, Generation)]) -> Vec<Result<Removal>> {
        self.remove_batch(items).await
    }

    async fn clear(&self, namespace: Option<&str>, below: Generation) -> Result<()> {
        self.check_open()?;
        self.ledger.cover(below).await?;
        self.ledger.clear(namespace, below).await.map_err(self.failed("clear"))?;
        // Nothing is answered any more; the bytes go with the sweeps.
        self.sweeper.begin();
        Ok(())
    }

    async fn usage(&self) -> Result<Usage> {
        self.check_open()?;
        Ok(Usage { damaged: self.damaged.load(Ordering::Relaxed), ..Usage::default() })
    }

    async fn sweep(&self, _now: Timestamp, _dead: &dyn Dead) -> Result<Swept> {
        self.check_open()?;
        self.sweeper.step(self).await.map_err(self.failed("sweep"))?;
        // The server expires by itself, and what goes here was dropped when it was cleared.
        Ok(Swept { complete: true, ..Swept::default() })
    }

    async fn sync(&self) -> Result<()> {
        self.check_open()
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        self.link().close();
        if let Some(link) = self.counting.get() {
            link.close();
        }
        Ok(())
    }

    fn listing(&self) -> Option<&dyn Listing> {
        Some(self)
    }

    fn fences(&self) -> Option<&dyn FenceLog> {
        Some(self)
    }

    fn counting(&self) -> Option<&dyn Counting> {
        Some(self)
    }

    fn leasing(&self) -> Option<&dyn Leasing> {
        Some(self)
    }
}

#[async_trait]
impl FenceLog for RedisTier {
    async fn fence(&self, scope: &Scope, generation: Generation) -> Result<Generation> {
        self.check_open()?;
        let fenced = self.ledger.fence(scope, generation).await.map_err(self.failed("fence"))?;
        self.sweeper.begin();
        Ok(fenced)
    }

    fn remembered(&self) -> Vec<(Scope, Generation)> {
        self.ledger.fences()
    }

    /// As far as the record is known, which is read again within a second.
    fn kills(&self, key: &Key, entry: &Entry) -> bool {
        self.ledger.last().kills(key, entry)
    }
}

#[async_trait]
impl Counting for RedisTier {
    async fn add(
        &self,
        key: &Key,
        delta: i64,
        start: i64,
        deadline: Timestamp,
        now: Timestamp,
    ) -> Result<i64> {
        self.check_open()?;
        let until = if deadline.is_never() { String::new() } else { deadline.as_millis().to_string() };
        let [delta, start] = [delta, start].map(|number| number.to_string());
        let [now, life] = [now.as_millis(), life(now, deadline)].map(|number| number.to_string());
        let args = [&delta, &start, &until, &now, &life].map(String::as_bytes);
        let link = self.counting_link().await?;
        let (_, sum) = self
            .change(link, &self.scripts.add, key, |names, era| names.counter(era, key), &args)
            .await
            .map_err(self.failed("add"))?;
        match sum {
            Value::Int(0) => Err(Error::InvalidOption {
                option: "delta",
                reason: "the sum would leave the range of 64 bits".to_owned(),
            }),
            sum => typed(sum).map_err(self.failed("add")),
        }
    }

    async fn counter(&self, key: &Key, now: Timestamp) -> Result<Option<i64>> {
        self.check_open()?;
        let failed = self.failed("read a counter");
        let record = self.ledger.current().await.map_err(&failed)?;
        let mut get = cmd("HMGET");
        get.arg(self.ledger.names().counter(&record.era, key)).arg("sum").arg("deadline").arg("cleared");
        let answer = self.link().query(&get).await.map_err(&failed)?;
        let (sum, deadline, cleared): (Option<i64>, Option<String>, Option<u64>) =
            typed(answer).map_err(&failed)?;
        let deadline = deadline.filter(|text| !text.is_empty()).and_then(|text| text.parse().ok());
        let live = cleared.is_some_and(|cleared| cleared >= record.cleared(key.namespace()).get())
            && now < deadline.map_or(Timestamp::NEVER, Timestamp::from_millis);
        Ok(sum.filter(|_| live))
    }

    async fn remove_counter(&self, key: &Key) -> Result<bool> {
        self.check_open()?;
        let (_, there) = self
            .change(
                self.counting_link().await?,
                &self.scripts.uncount,
                key,
                |names, era| names.counter(era, key),
                &[],
            )
            .await
            .map_err(self.failed("remove a counter"))?;
        Ok(number(there).map_err(self.failed("remove a counter"))? == 1)
    }
}

async fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Error::Panicked { what: "the codec of the redis level" })
}

/// The mark of a removal: what envelopes begin with, version 0, and the generation where they have it.
pub(crate) fn mark(below: Generation) -> [u8; GENERATION_HEAD] {
    let mut mark = [0; GENERATION_HEAD];
    mark[..2].copy_from_slice(&MAGIC);
    mark[GENERATION_AT..].copy_from_slice(&below.get().to_le_bytes()[..6]);
    mark
}

pub(crate) fn is_mark(bytes: &[u8]) -> bool {
    bytes.len() == GENERATION_HEAD && generation_of(bytes).is_some() && bytes[2] == 0
}

/// The generation of the envelope or mark that begins so.
pub(crate) fn generation_of(bytes: &[u8]) -> Option<Generation> {
    let head = bytes.get(..GENERATION_HEAD)?.strip_prefix(&MAGIC)?;
    let mut number = [0; 8];
    number[..6].copy_from_slice(&head[GENERATION_AT - 2..]);
    Some(Generation::new(u64::from_le_bytes(number)))
}

/// For how many milliseconds the server should keep something; 0 for ever. Never less than was asked for, and at
/// least a moment.
pub(crate) fn life(now: Timestamp, until: Timestamp) -> u64 {
    if until.is_never() {
        return 0;
    }
    match until.as_millis().saturating_sub(now.as_millis()).max(1) {
        millis if millis >= LONGEST_LIFE => 0,
        millis => millis,
    }
}

fn word(answer: &Value) -> &[u8] {
    match answer {
        Value::BulkString(word) => word,
        Value::SimpleString(word) => word.as_bytes(),
        _ => b"",
    }
}

pub(crate) fn nonsense() -> RedisError {
    RedisError::from((redis::ErrorKind::UnexpectedReturnType, "the script's answer makes no sense"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_and_envelopes_have_their_generation_at_one_place() {
        let generation = Generation::new(0x0102_0304_0506);
        assert_eq!(generation_of(&mark(generation)), Some(generation));
        assert!(is_mark(&mark(Generation::MAX)));
        let key = Key::new("", b"k").unwrap();
        let mut envelope = Vec::new();
        let entry = Entry::new("value", generation, Timestamp::EPOCH);
        Codec::default().encode(key.as_ref(), &entry, &mut envelope).unwrap();
        assert_eq!(generation_of(&envelope), Some(generation));
        assert!(!is_mark(&envelope) && !is_mark(&envelope[..GENERATION_HEAD]));
        assert_eq!(generation_of(b"something else of some length"), None);
    }

    #[test]
    fn no_life_is_shorter_than_asked_for() {
        let at = Timestamp::from_millis;
        for (until, expected) in [
            (at(1_000), 1),
            (at(999), 1),
            (at(1_001), 1),
            (at(3_000), 2_000),
            (at(u64::MAX - 1), 0),
            (at(u64::MAX), 0),
        ] {
            assert_eq!(life(at(1_000), until), expected, "{until:?}");
        }
    }
}
