use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tiercache_core::envelope::Damage;
use tiercache_core::tier::{
    Dead, FenceLog, Hold, Listed, ListedEntry, Listing, Permit, Profile, Put, Removal, Scope, Spill, Swept,
    Usage,
};
use tiercache_core::{Clock, Entry, Error, Generation, Key, Result, Tier, Timestamp};

use crate::S3Config;
use crate::background::Background;
use crate::client::{Clients, Failure, Kind, NAME};
use crate::late::Late;
use crate::meta::Meta;
use crate::names::{Name, Names, hash_namespace};
use crate::shared::{Front, Shared, size};
use crate::store::{Labels, Read, Store, identity_of};
use crate::turns::Turns;
use crate::upload::Active;
use crate::walk::Walk;

/// How often a request whose condition does not hold is decided anew.
const ATTEMPTS: usize = 4;
/// Fronts that are read at once by a listing.
pub(crate) const AT_ONCE: usize = 16;

/// A level in a bucket.
pub struct S3Tier {
    pub(crate) shared: Arc<Shared>,
    walk: Walk,
}

impl S3Tier {
    /// Opens the level of that name, which is a part of its objects' names: one request to see that the bucket
    /// answers, and what it takes to read the records.
    ///
    /// # Errors
    /// [`Error::Config`] when the configuration cannot be used, [`Error::Refused`] when there is no such bucket, no
    /// credentials or no access, [`Error::Unavailable`] when nobody answers within the connect timeout.
    pub async fn open(config: S3Config, level: &str, clock: Arc<dyn Clock>) -> Result<Self> {
        Self::connect(&config, level, clock, false).await
    }

    /// Connects to the level; where it is only looked at, nothing is changed.
    pub(crate) async fn connect(
        config: &S3Config,
        level: &str,
        clock: Arc<dyn Clock>,
        looks: bool,
    ) -> Result<Self> {
        config.check()?;
        let store = Arc::new(Store::new(config, Clients::of(config).await?));
        let names = Names::new(&config.prefix, level);
        let probe = tokio::time::timeout(config.connect_timeout, store.list(names.root(), None, 1)).await;
        let failed = |failure: Failure| failure.when_opening(config);
        probe.unwrap_or_else(|_| Err(Failure::late("open", config.connect_timeout))).map_err(failed)?;
        let meta = Meta::open(store.clone(), names.clone(), clock.clone(), looks).await.map_err(failed)?;
        let shared = Shared {
            names,
            store,
            codec: config.codec()?,
            late: Arc::new(Late::new(clock.clone())),
            meta,
            turns: Turns::new(),
            background: Arc::new(Background::new(tokio::runtime::Handle::current())),
            active: Active::default(),
            spill: OnceLock::new(),
            damaged: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            max_entry: config.max_entry_size,
            closed: AtomicBool::new(false),
        };
        Ok(Self { shared: Arc::new(shared), walk: Walk::new(config, clock.now()) })
    }
}

impl std::fmt::Debug for S3Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Tier")
            .field("bucket", &self.shared.store.bucket)
            .field("root", &self.shared.names.root())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Tier for S3Tier {
    fn name(&self) -> &'static str {
        NAME
    }

    fn profile(&self) -> Profile {
        Profile {
            persistent: true,
            shared: true,
            max_entry_bytes: Some(self.shared.max_entry),
            last_generation: self.shared.meta.last_generation,
        }
    }

    fn attach(&self, spill: Arc<dyn Spill>) {
        if self.shared.spill.set(spill).is_err() {
            tracing::error!("an S3 level was attached twice");
        }
    }

    async fn get(&self, key: &Key) -> Result<Option<Entry>> {
        let shared = &self.shared;
        shared.check_open()?;
        let name = shared.names.entry(key.as_ref());
        let object = match shared.store.read(&name.object, None, shared.max_entry).await? {
            Read::Object(object) => object,
            Read::Absent => return Ok(None),
            Read::TooLarge => {
                tracing::warn!(
                    object = name.object,
                    limit = shared.max_entry,
                    "an object is larger than allowed"
                );
                return Ok(None);
            }
        };
        let codec = shared.codec.clone();
        let (bytes, wanted) = (object.bytes.clone(), key.clone());
        let decoded = shared.aside(bytes.len(), move || codec.decode_for(wanted.as_ref(), &bytes)).await?;
        match decoded {
            Ok(entry) => {
                shared.late.seen(name.key, entry.generation);
                if shared.is_dead(&name, key, &entry) {
                    shared.remove_later(name, object.etag);
                    return Ok(None);
                }
                Ok(Some(entry))
            }
            // Its name has the same hash; it is whole and stays.
            Err(Damage::OtherKey) => Ok(None),
            Err(damage) => {
                shared.damaged.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(object = name.object, %damage, "a damaged object is a miss");
                shared.remove_damaged_later(name);
                Ok(None)
            }
        }
    }

    async fn put(&self, key: &Key, entry: &Entry, hold: Hold, permit: &dyn Permit) -> Result<Put> {
        let shared = &self.shared;
        shared.check_open()?;
        if entry.value.len() as u64 > shared.max_entry {
            return Ok(Put::TooLarge);
        }
        let codec = shared.codec.clone();
        let (to_encode, its_key) = (entry.clone(), key.clone());
        let encoded = shared
            .aside(entry.value.len(), move || codec.encode_in_two(its_key.as_ref(), &to_encode))
            .await?;
        let pieces = match encoded {
            Ok((front, value)) => [Bytes::from(front), value],
            Err(Damage::TooLarge) => return Ok(Put::TooLarge),
            Err(damage) => return Err(Error::unavailable(NAME, "put", damage)),
        };
        if size(&pieces) > shared.max_entry {
            return Ok(Put::TooLarge);
        }
        let identity = identity_of(&pieces[0]).unwrap_or_default();
        let (generation, deadline) = (entry.generation, entry.deadline);
        let labels = Labels { generation, deadline, until: hold.until(entry), identity };
        let name = shared.names.entry(key.as_ref());

        let _turn = shared.turns.take(name.key).await;
        shared.meta.cover(generation).await?;
        for _ in 0..ATTEMPTS {
            let standing = shared.store.head(&name.object).await?;
            if let Some(standing) = &standing {
                shared.late.seen(name.key, standing.generation);
                if standing.generation == generation {
                    let same = standing.identity.is_none_or(|theirs| theirs == identity);
                    return Ok(if same { Put::Unchanged } else { Put::Superseded });
                }
                if standing.generation > generation {
                    return Ok(Put::Superseded);
                }
            }
            if shared.is_dead(&name, key, entry) || !permit.holds() {
                return Ok(Put::Superseded);
            }
            let sending = shared.late.sending(name.key, generation);
            match shared.send(&name, pieces.clone(), &labels, standing.as_ref(), permit).await {
                Ok(stored) => {
                    sending.end();
                    return Ok(if stored { Put::Stored } else { Put::Superseded });
                }
                Err(failure) if failure.kind == Kind::Open => return Err(failure.into()),
                Err(failure) => {
                    sending.end();
                    // The object is gone, or another one: look again.
                    if !matches!(failure.kind, Kind::Conflict | Kind::Absent) {
                        return Err(failure.into());
                    }
                }
            }
        }
        Err(Error::unavailable(NAME, "put", "others write the key all the time"))
    }

    async fn remove(&self, key: &Key, below: Generation) -> Result<Removal> {
        let shared = &self.shared;
        shared.check_open()?;
        let name = shared.names.entry(key.as_ref());
        let _turn = shared.turns.take(name.key).await;
        shared.meta.cover(below).await?;
        // First, so that what arrives between here and the deletion is not answered either.
        shared.late.removing(name.key, below);
        for _ in 0..ATTEMPTS {
            let Some(standing) = shared.store.head(&name.object).await? else { return Ok(Removal::DONE) };
            shared.late.seen(name.key, standing.generation);
            if standing.generation >= below {
                return Ok(Removal::Behind(standing.generation));
            }
            match shared.store.delete(&name.object, standing.etag.as_deref()).await {
                Ok(()) => return Ok(Removal::Done { over: standing.generation }),
                Err(failure) if failure.kind == Kind::Conflict => {}
                Err(failure) => return Err(failure.into()),
            }
        }
        Err(Error::unavailable(NAME, "remove", "others write the key all the time"))
    }

    async fn clear(&self, namespace: Option<&str>, below: Generation) -> Result<()> {
        self.shared.check_open()?;
        self.shared.meta.clear(namespace.map(|name| hash_namespace(name.as_bytes())), below).await?;
        self.walk.hasten();
        Ok(())
    }

    async fn usage(&self) -> Result<Usage> {
        self.shared.check_open()?;
        let (entries, bytes) = self.walk.counted().unzip();
        Ok(Usage {
            entries,
            bytes,
            capacity: self.walk.max_size,
            damaged: self.shared.damaged.load(Ordering::Relaxed),
            evicted: self.shared.evicted.load(Ordering::Relaxed),
        })
    }

    async fn sweep(&self, now: Timestamp, dead: &dyn Dead) -> Result<Swept> {
        self.shared.check_open()?;
        self.walk.step(&self.shared, now, dead).await
    }

    async fn sync(&self) -> Result<()> {
        // A put is answered when the service has it.
        self.shared.check_open()
    }

    async fn close(&self) -> Result<()> {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.background.close().await;
        Ok(())
    }

    fn listing(&self) -> Option<&dyn Listing> {
        Some(self)
    }

    fn fences(&self) -> Option<&dyn FenceLog> {
        Some(self)
    }
}

#[async_trait]
impl Listing for S3Tier {
    async fn list(&self, namespace: Option<&str>, after: Option<Vec<u8>>, limit: usize) -> Result<Listed> {
        let shared = &self.shared;
        shared.check_open()?;
        // In the order of names; a page ends at the last one looked at, shown or not.
        let after = after.and_then(|after| String::from_utf8(after).ok());
        let prefix = shared.names.entries(namespace);
        let (page, more) = shared.store.list(&prefix, after.as_deref(), limit).await?;
        let next = page.last().filter(|_| more).map(|last| last.name.clone().into_bytes());
        let names: Vec<Name> = page.iter().filter_map(|listed| shared.names.parse(&listed.name)).collect();
        let fronts = names.into_iter().map(|name| {
            let shared = shared.clone();
            async move { shared.front(&name).await.map(|front| (name, front)) }
        });
        let fronts: Vec<_> = stream::iter(fronts.collect::<Vec<_>>()).buffered(AT_ONCE).collect().await;
        let mut listed = Listed { entries: Vec::new(), next };
        for front in fronts {
            let (name, front) = front?;
            if let Some(Front { key, entry, size, .. }) = front
                && namespace.is_none_or(|namespace| namespace == key.namespace())
                && !shared.is_dead(&name, &key, &entry)
            {
                listed.entries.push(ListedEntry { key, entry, size });
            }
        }
        Ok(listed)
    }
}

#[async_trait]
impl FenceLog for S3Tier {
    async fn fence(&self, scope: &Scope, generation: Generation) -> Result<Generation> {
        self.shared.check_open()?;
        self.shared.meta.fence(scope, generation).await
    }

    fn remembered(&self) -> Vec<(Scope, Generation)> {
        self.shared.meta.remembered()
    }
}
