//! How responses live in the levels.
//!
//! - `r` + the target: the resource, which names its variants. Removing it removes them all.
//! - `x` + the target + parts of the key: the same for an identity or another part of the key. It is void when the
//!   resource it was made with is gone, so that one removal reaches every identity.
//! - `v` + a fresh id: a variant, headers and short body in one entry.
//! - `p` + the id + a number: a piece of a long body. They are written before the variant that names them.
//!
//! A variant is kept by a load of the manager's that begins when the origin is asked and ends with the body: the
//! manager stores no load that an invalidation of one of its tags, or a `clear`, has overtaken.

mod codec;
mod guard;
mod index;
mod pieces;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tiercache_core::{CacheManager, LoadOptions, Loaded, Result, Timestamp, TypedCache};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) use self::codec::{Content, Pieces, Stored};
use self::guard::{Epoch, Guards};
pub(crate) use self::index::{Resource, Variant};
pub(crate) use self::pieces::{PieceWriter, read};
use crate::policy::target::Target;
use crate::policy::vary::Selecting;

/// Fresh for every response.
pub(crate) type Id = [u8; 16];

/// A fetch may take as long as its body does.
const LONGEST_FETCH: Duration = Duration::from_secs(3600);
/// How long a fetch waits for its place among the manager's loads before it goes on without being stored.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the pieces of a body that was replaced are kept for those who are reading them.
const RETIRED: Duration = Duration::from_secs(600);
/// How often the resource is read again when another process changes it meanwhile.
const MOST_OVERTAKEN: usize = 3;

/// Tags of an entry, name and value.
pub(crate) type Tags = Vec<(String, String)>;

#[derive(Debug)]
pub(crate) struct Store {
    manager: CacheManager,
    resources: TypedCache<Resource>,
    guards: Guards,
    seed: u64,
    made: AtomicU64,
}

/// What responses to a request are stored under.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    pub(crate) target: Target,
    resource: Vec<u8>,
    /// With the identity and other parts.
    parted: Option<Vec<u8>>,
}

impl Keys {
    pub(crate) fn new(target: Target, parts: &[String]) -> Self {
        let named = [&*target.scheme, &target.authority, &target.path];
        let resource = key(b'r', &named);
        let parted = (!parts.is_empty()).then(|| {
            let parts = parts.iter().map(String::as_str);
            key(b'x', &named.into_iter().chain(parts).collect::<Vec<_>>())
        });
        Self { target, resource, parted }
    }

    /// The longest of them.
    pub(crate) fn len(&self) -> usize {
        self.parted.as_ref().map_or(self.resource.len(), Vec::len)
    }

    /// What names these and no others.
    pub(crate) fn name(&self) -> &[u8] {
        self.parted.as_deref().unwrap_or(&self.resource)
    }
}

/// Every part with its length in front, so that no two lists of parts are the same key.
fn key(kind: u8, parts: &[&str]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|part| 4 + part.len()).sum::<usize>());
    key.push(kind);
    for part in parts {
        key.extend((part.len() as u32).to_be_bytes());
        key.extend(part.as_bytes());
    }
    key
}

/// What a look-up found.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    /// The whole representation, or the part of it that was asked for.
    pub(crate) found: Option<Found>,
    /// Whether there are variants for other requests.
    pub(crate) others: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Found {
    id: Id,
    pub(crate) stored: Stored,
}

/// A fetch that began.
#[derive(Debug)]
pub(crate) struct Begun {
    id: Id,
    epoch: Epoch,
    /// The resource's epoch when it was there.
    resource: Option<u64>,
    keep: oneshot::Sender<Loaded<Bytes>>,
    load: JoinHandle<Result<Bytes>>,
}

impl Begun {
    pub(crate) fn id(&self) -> Id {
        self.id
    }

    /// As if it had begun behind the one invalidation that it is itself. Any other still counts.
    pub(crate) fn past_own_invalidation(self) -> Self {
        Self { epoch: self.epoch.past_one(), resource: None, ..self }
    }
}

impl Store {
    pub(crate) fn new(manager: CacheManager) -> Self {
        let mut seed = [0; 8];
        // Without randomness from the system there is still that of the hasher.
        let seed = match getrandom::fill(&mut seed) {
            Ok(()) => u64::from_ne_bytes(seed),
            Err(_) => std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0),
        };
        Self { resources: manager.typed(), manager, guards: Guards::new(), seed, made: AtomicU64::new(0) }
    }

    pub(crate) fn manager(&self) -> &CacheManager {
        &self.manager
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.manager.now()
    }

    fn fresh_id(&self) -> Id {
        let made = self.made.fetch_add(1, Ordering::Relaxed);
        ((u128::from(self.seed) << 64) | u128::from(made)).to_be_bytes()
    }

    /// The newest variant for such a request; of parts, one that `wanted` accepts.
    pub(crate) async fn look_up(
        &self,
        keys: &Keys,
        request: &HeaderMap,
        wanted: impl Fn(&Stored) -> bool,
    ) -> Result<Looked> {
        let Some(resource) = self.resource(keys).await? else { return Ok(Looked::default()) };
        for variant in resource.matching(request, self.now()) {
            let Some(entry) = self.manager.get(variant_key(&variant.id)).await? else { continue };
            let Some(stored) = Stored::decode(entry) else { continue };
            if wanted(&stored) {
                return Ok(Looked { found: Some(Found { id: variant.id, stored }), others: false });
            }
        }
        Ok(Looked { found: None, others: resource.has_others(request, self.now()) })
    }

    /// Whether what was found has not been invalidated or replaced meanwhile.
    pub(crate) async fn has(&self, keys: &Keys, found: &Found) -> Result<bool> {
        let Some(resource) = self.resource(keys).await? else { return Ok(false) };
        let named = resource.variants.iter().any(|variant| variant.id == found.id);
        Ok(named && self.manager.contains(variant_key(&found.id)).await?)
    }

    /// Removes what was found, and no other variant.
    pub(crate) async fn forget(&self, found: &Found) -> Result<()> {
        self.manager.delete(variant_key(&found.id)).await.map(drop)
    }

    async fn resource(&self, keys: &Keys) -> Result<Option<Arc<Resource>>> {
        let Some(resource) = self.resources.get(&keys.resource).await? else { return Ok(None) };
        let Some(parted) = &keys.parted else { return Ok(Some(resource)) };
        let parted = self.resources.get(parted).await?;
        Ok(parted.filter(|parted| parted.epoch == resource.epoch))
    }

    /// Begins a fetch: what is invalidated from here on is not stored by it. `None` when it shall not be stored.
    pub(crate) async fn begin(&self, keys: &Keys) -> Option<Begun> {
        let epoch = self.guards.begin(&keys.resource);
        let resource = match self.resources.get(&keys.resource).await {
            Ok(resource) => resource.map(|resource| resource.epoch),
            Err(error) => {
                tracing::debug!(%error, "the store cannot be read, the request passes through");
                return None;
            }
        };
        let id = self.fresh_id();
        let (keep, kept) = oneshot::channel();
        let (started, starting) = oneshot::channel();
        let manager = self.manager.clone();
        let load = tokio::spawn(async move {
            let options = LoadOptions::new().limit(LONGEST_FETCH).no_lease();
            let loader = move || async move {
                // Nobody waits any more: then nothing is kept either.
                let _ = started.send(());
                Ok::<_, std::convert::Infallible>(
                    kept.await.unwrap_or_else(|_| Loaded::new(Bytes::new()).do_not_store()),
                )
            };
            manager.get_or_load(variant_key(&id), loader).options(&options).await
        });
        match tokio::time::timeout(PATIENCE, starting).await {
            Ok(Ok(())) => Some(Begun { id, epoch, resource, keep, load }),
            Ok(Err(_)) | Err(_) => {
                tracing::debug!("too many loads, a response is not stored");
                None
            }
        }
    }

    /// Stores what was fetched, for requests like this one. Whether it was.
    pub(crate) async fn publish(
        &self,
        keys: &Keys,
        begun: Begun,
        request: &HeaderMap,
        selecting: Selecting,
        stored: &Stored,
        keeping: &Keeping,
    ) -> Result<bool> {
        let now = self.now();
        let until = now.after(keeping.ttl).as_millis();
        let pieces = match &stored.content {
            Content::Inline(_) => None,
            Content::Pieces(pieces) => Some((pieces.id, pieces.count())),
        };
        let variant = Variant { id: begun.id, selecting, until, partial: stored.part.is_some(), pieces };
        if !variant.fits() || !Stored::fits(&stored.headers) {
            return Ok(false);
        }
        let loaded = keeping
            .tags
            .iter()
            .fold(Loaded::new(stored.encode()).ttl(keeping.ttl), |loaded, (name, value)| {
                loaded.tag(name, value)
            });
        if begun.keep.send(loaded).is_err() {
            return Ok(false);
        }
        match begun.load.await {
            Ok(kept) => drop(kept?),
            Err(_) => return Ok(false),
        }
        let named = self.name(keys, &begun.epoch, begun.resource, &variant, request, keeping.most).await;
        let Ok(Some(gone)) = named else {
            self.manager.delete(variant_key(&begun.id)).await?;
            return named.map(|_| false);
        };
        self.retire(gone.iter().filter(|gone| gone.pieces.map(|(id, _)| id) != pieces.map(|(id, _)| id)))
            .await?;
        Ok(true)
    }

    /// Names a variant, unless what it is of was invalidated since it was asked for. Returns those it replaces.
    async fn name(
        &self,
        keys: &Keys,
        begun: &Epoch,
        seen: Option<u64>,
        variant: &Variant,
        request: &HeaderMap,
        most: usize,
    ) -> Result<Option<Vec<Variant>>> {
        let Some(_guard) = self.guards.publish(begun).await else { return Ok(None) };
        let now = self.now();
        let put = |resource: &mut Resource| Some(resource.put(variant.clone(), request, most, now));
        let Some(parted) = &keys.parted else {
            let epoch = seen.map_or(Seen::Nothing, Seen::Epoch);
            return Ok(self.change(&keys.resource, epoch, put).await?.map(|(gone, _)| gone));
        };
        // For twice as long as is needed now, so that not each of many identities writes it.
        let reserve = |resource: &mut Resource| {
            let needed = resource.reserved < variant.until;
            needed.then(|| {
                resource.reserved =
                    variant.until.saturating_add(variant.until.saturating_sub(now.as_millis()));
                Vec::new()
            })
        };
        let epoch = seen.map_or(Seen::Nothing, Seen::Epoch);
        let Some((_, epoch)) = self.change(&keys.resource, epoch, reserve).await? else { return Ok(None) };
        Ok(self.change(parted, Seen::Made(epoch), put).await?.map(|(gone, _)| gone))
    }

    /// Changes a resource if it is the one that was seen, or makes it. Returns what the change took out, and the
    /// resource's epoch; a change of nothing writes nothing.
    async fn change(
        &self,
        key: &[u8],
        seen: Seen,
        put: impl Fn(&mut Resource) -> Option<Vec<Variant>>,
    ) -> Result<Option<(Vec<Variant>, u64)>> {
        for _ in 0..MOST_OVERTAKEN {
            let there = self.resources.versioned(key).await?;
            let present = there.as_ref().map(|(resource, _)| Resource::clone(resource));
            let mut resource = match (present, seen) {
                (None, Seen::Epoch(_)) => return Ok(None),
                (Some(present), Seen::Epoch(epoch)) if present.epoch != epoch => return Ok(None),
                (None, Seen::Nothing) => Resource { epoch: self.fresh_epoch(), ..Resource::default() },
                (Some(present), Seen::Made(epoch)) if present.epoch == epoch => present,
                (_, Seen::Made(epoch)) => Resource { epoch, ..Resource::default() },
                (Some(present), _) => present,
            };
            let epoch = resource.epoch;
            let Some(gone) = put(&mut resource) else { return Ok(Some((Vec::new(), epoch))) };
            let ttl = Timestamp::from_millis(resource.until()).since(self.now()).max(Duration::from_secs(1));
            let write = match &there {
                Some((_, generation)) => self.resources.compare_and_set(key, *generation, resource)?,
                None => self.resources.add(key, resource)?,
            };
            if write.ttl(ttl).await?.stored {
                return Ok(Some((gone, epoch)));
            }
        }
        Ok(None)
    }

    /// A number that no other resource has had.
    fn fresh_epoch(&self) -> u64 {
        let mut bytes = [0; 8];
        match getrandom::fill(&mut bytes) {
            Ok(()) => u64::from_ne_bytes(bytes),
            Err(_) => self.seed ^ self.made.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Removes everything stored for the target. What was asked for before is not stored after it.
    pub(crate) async fn invalidate(&self, target: Target) -> Result<()> {
        let keys = Keys::new(target, &[]);
        let _guard = self.guards.invalidate(&keys.resource).await;
        let resource = self.resources.get(&keys.resource).await;
        self.manager.delete(&keys.resource).await?;
        self.retire(resource?.iter().flat_map(|resource| &resource.variants)).await
    }

    /// Makes room of what is out of reach already. Pieces stay for those who are reading them.
    async fn retire(&self, gone: impl Iterator<Item = &Variant>) -> Result<()> {
        for variant in gone {
            self.manager.delete(variant_key(&variant.id)).await?;
            if let Some((id, count)) = variant.pieces {
                self.touch(&id, count, RETIRED).await?;
            }
        }
        Ok(())
    }

    /// Gives the pieces of a body that long to live.
    pub(crate) async fn touch(&self, id: &Id, count: u32, ttl: Duration) -> Result<()> {
        for number in 0..count {
            self.manager.touch(piece_key(id, number), ttl).await?;
        }
        Ok(())
    }

    /// Whether every piece of the body is there.
    pub(crate) async fn is_whole(&self, content: &Content) -> Result<bool> {
        let Content::Pieces(pieces) = content else { return Ok(true) };
        for number in 0..pieces.count() {
            if !self.manager.contains(piece_key(&pieces.id, number)).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// What a resource must be to be changed.
#[derive(Clone, Copy, Debug)]
enum Seen {
    /// Whatever it is; there was none.
    Nothing,
    /// The one of that epoch.
    Epoch(u64),
    /// Of that epoch, or made with it.
    Made(u64),
}

/// How long, with what and beside how many others a response is kept.
#[derive(Clone, Debug)]
pub(crate) struct Keeping {
    pub(crate) ttl: Duration,
    pub(crate) tags: Tags,
    pub(crate) most: usize,
}

fn variant_key(id: &Id) -> [u8; 17] {
    let mut key = [b'v'; 17];
    key[1..].copy_from_slice(id);
    key
}

fn piece_key(id: &Id, number: u32) -> [u8; 21] {
    let mut key = [b'p'; 21];
    key[1..17].copy_from_slice(id);
    key[17..].copy_from_slice(&number.to_be_bytes());
    key
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use tiercache_ram::{Policy, RamConfig, RamTier};

    use super::*;
    use crate::Profile;
    use crate::policy::control::ResponseControl;
    use crate::policy::fresh::{Freshness, Times};
    use crate::policy::testing::{headers, rules};

    async fn store() -> Store {
        let ram = RamTier::new(RamConfig { max_size: 1 << 20, policy: Policy::default() });
        Store::new(CacheManager::builder().hot(Arc::new(ram)).build().await.unwrap())
    }

    fn keys(identity: Option<&str>) -> Keys {
        let target = Target::of_uri(&"http://example.com/a".parse().unwrap(), "http").unwrap();
        Keys::new(target, &identity.map(str::to_owned).into_iter().collect::<Vec<_>>())
    }

    async fn publish(store: &Store, keys: &Keys, begun: Begun) -> bool {
        let headers = headers(&[("cache-control", "max-age=60")]);
        let times = Times { asked: store.now(), came: store.now() };
        let control = ResponseControl::of(&headers);
        let fresh = Freshness::of(StatusCode::OK, &headers, &control, times, &rules(Profile::Default));
        let content = Content::Inline(Bytes::from_static(b"body"));
        let stored = Stored { status: 200, headers, fresh, part: None, content };
        let keeping = Keeping { ttl: Duration::from_secs(60), tags: Vec::new(), most: 4 };
        store.publish(keys, begun, &HeaderMap::new(), Vec::new(), &stored, &keeping).await.unwrap()
    }

    async fn find(store: &Store, keys: &Keys) -> Option<Found> {
        store.look_up(keys, &HeaderMap::new(), |_| true).await.unwrap().found
    }

    #[tokio::test]
    async fn what_was_found_is_not_there_once_it_was_invalidated_or_replaced() {
        let store = store().await;
        for keys in [keys(None), keys(Some("ann"))] {
            assert!(publish(&store, &keys, store.begin(&keys).await.unwrap()).await);
            let found = find(&store, &keys).await.unwrap();
            assert!(store.has(&keys, &found).await.unwrap());
            assert!(publish(&store, &keys, store.begin(&keys).await.unwrap()).await);
            assert!(!store.has(&keys, &found).await.unwrap(), "replaced");
            let found = find(&store, &keys).await.unwrap();
            store.invalidate(keys.target.clone()).await.unwrap();
            assert!(!store.has(&keys, &found).await.unwrap(), "invalidated");
            assert!(find(&store, &keys).await.is_none());
        }
    }

    #[tokio::test]
    async fn a_resource_that_another_process_removed_is_not_made_again_by_an_older_fetch() {
        let store = store().await;
        for keys in [keys(None), keys(Some("ann"))] {
            assert!(publish(&store, &keys, store.begin(&keys).await.unwrap()).await);
            let begun = store.begin(&keys).await.unwrap();
            // As another process does it: nobody here is told.
            store.manager.delete(&keys.resource).await.unwrap();
            assert!(!publish(&store, &keys, begun).await);
            assert!(find(&store, &keys).await.is_none());
        }
    }

    #[tokio::test]
    async fn keys_of_different_parts_are_different() {
        let parts = [&[][..], &["ab"], &["a", "b"], &["b", "a"], &["a"], &["", "ab"]];
        let keys: std::collections::BTreeSet<Vec<u8>> = parts
            .iter()
            .map(|parts| {
                let parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
                Keys::new(keys(None).target, &parts).name().to_vec()
            })
            .collect();
        assert_eq!(keys.len(), parts.len());
    }
}
