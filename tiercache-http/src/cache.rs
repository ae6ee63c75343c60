use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Request, Response, StatusCode, Uri};
use tiercache_core::{CacheManager, Error, Result};

use crate::engine::{Engine, listed_tag};
use crate::policy::status;
use crate::policy::target::Target;
use crate::store::Store;
use crate::{Body, Identity, Origin};

/// How strictly the cache reads the rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// For applications: stores only what says that it may be stored; no heuristics. Nothing with `Set-Cookie`, and
    /// nothing for requests with `Authorization` or `Cookie` unless they have an identity.
    #[default]
    Default,
    /// A shared cache by the letter of RFC 9111, with heuristic freshness.
    Rfc9111,
}

/// Puts an [`HttpCache`] together.
#[derive(Clone)]
pub struct Builder {
    manager: CacheManager,
    settings: Settings,
}

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) profile: Profile,
    /// As `Cache-Status` has it.
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) scheme: String,
    pub(crate) max_body: u64,
    pub(crate) max_variants: usize,
    pub(crate) ttl: Option<Duration>,
    pub(crate) keep_stale: Duration,
    pub(crate) tag_headers: Vec<HeaderName>,
    pub(crate) key_headers: Vec<HeaderName>,
    pub(crate) identity: Option<IdentityOf>,
    pub(crate) negative: Arc<[(StatusCode, Duration)]>,
    pub(crate) status_header: bool,
}

type IdentityOf = Arc<dyn Fn(&http::request::Parts) -> Option<Identity> + Send + Sync>;

impl Builder {
    /// How strictly the rules are read. Default: [`Profile::Default`].
    #[must_use]
    pub fn profile(mut self, profile: Profile) -> Self {
        self.settings.profile = profile;
        self
    }

    /// The name in `Cache-Status` (RFC 9211). Default: `tiercache`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = status::identifier(&name.into());
        self
    }

    /// Whether answers have a `Cache-Status` field. Default: yes.
    #[must_use]
    pub fn cache_status(mut self, shown: bool) -> Self {
        self.settings.status_header = shown;
        self
    }

    /// The namespace of the manager that has the responses. Default: `http`.
    #[must_use]
    pub fn namespace(mut self, name: impl Into<String>) -> Self {
        self.settings.namespace = name.into();
        self
    }

    /// The scheme of requests that do not say theirs. Default: `http`.
    #[must_use]
    pub fn scheme(mut self, scheme: impl Into<String>) -> Self {
        self.settings.scheme = scheme.into();
        self
    }

    /// The longest body that is stored, in bytes; longer ones pass through. Default: 256 MiB.
    #[must_use]
    pub fn max_body(mut self, bytes: u64) -> Self {
        self.settings.max_body = bytes;
        self
    }

    /// How many variants of one resource are kept; the least recently stored goes first. Default: 32.
    #[must_use]
    pub fn max_variants(mut self, variants: usize) -> Self {
        self.settings.max_variants = variants.max(1);
        self
    }

    /// How long what may be stored is fresh, whatever the response says. It does not make a response storable that
    /// forbids it.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.settings.ttl = Some(ttl);
        self
    }

    /// How long a response with a validator is kept after it turned stale, to be revalidated. Default: one day.
    #[must_use]
    pub fn keep_stale(mut self, keep: Duration) -> Self {
        self.settings.keep_stale = keep;
        self
    }

    /// A response header that lists tags, separated by spaces or commas, such as `Surrogate-Key` and `Cache-Tag`. Each
    /// value is a tag of the entry, named `header:value` with the header in lower case and without a value; see
    /// [`HttpCache::purge_tag`]. A response with more than 64 tags is not stored.
    #[must_use]
    pub fn tags_from(mut self, header: HeaderName) -> Self {
        self.settings.tag_headers.push(header);
        self
    }

    /// A request header that is part of every key.
    #[must_use]
    pub fn key_header(mut self, header: HeaderName) -> Self {
        self.settings.key_headers.push(header);
        self
    }

    /// Tells whose answer a response will be. With an identity, requests with `Authorization` or `Cookie` may be
    /// answered from the cache, each identity from its own responses.
    #[must_use]
    pub fn identity(
        mut self,
        identity: impl Fn(&http::request::Parts) -> Option<Identity> + Send + Sync + 'static,
    ) -> Self {
        self.settings.identity = Some(Arc::new(identity));
        self
    }

    /// Responses of that status are stored for `ttl` when they say nothing about caching.
    #[must_use]
    pub fn negative(mut self, status: StatusCode, ttl: Duration) -> Self {
        let chosen = self.settings.negative.iter().copied().chain([(status, ttl)]);
        self.settings.negative = chosen.collect();
        self
    }

    /// Builds the cache.
    ///
    /// # Errors
    /// [`Error::InvalidKey`](tiercache_core::Error::InvalidKey) when the namespace is longer than 255 bytes.
    pub fn build(self) -> Result<HttpCache> {
        let manager = self.manager.namespace(&self.settings.namespace)?;
        Ok(HttpCache(Arc::new(Engine::new(Store::new(manager), self.settings))))
    }
}

/// What one request, or one route, has otherwise: an extension of the request.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RequestOptions {
    /// The cache takes no part.
    pub bypass: bool,
    /// How long what may be stored is fresh, whatever the response says.
    pub ttl: Option<Duration>,
    /// Whose answer it is.
    pub identity: Option<Identity>,
    /// Tags of what is stored, name and value, besides those of the response's headers.
    pub tags: Vec<(String, String)>,
    /// Parts of the key besides the cache's own.
    pub key: Vec<String>,
}

impl RequestOptions {
    /// Everything as the cache has it.
    pub fn new() -> Self {
        Self::default()
    }

    /// The cache takes no part.
    #[must_use]
    pub fn bypass(mut self) -> Self {
        self.bypass = true;
        self
    }

    /// How long what may be stored is fresh, whatever the response says.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Whose answer it is.
    #[must_use]
    pub fn identity(mut self, identity: impl Into<String>) -> Self {
        self.identity = Some(Identity(identity.into()));
        self
    }

    /// Adds a tag to what is stored.
    #[must_use]
    pub fn tag(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags.push((name.into(), value.into()));
        self
    }

    /// Adds a part to the key.
    #[must_use]
    pub fn key_part(mut self, part: impl Into<String>) -> Self {
        self.key.push(part.into());
        self
    }
}

/// A cache of HTTP responses. Cheap to clone: every clone is the same cache.
#[derive(Clone)]
pub struct HttpCache(Arc<Engine>);

impl HttpCache {
    /// A cache in the namespace `http` of `manager`, with the defaults of [`Builder`].
    ///
    /// # Panics
    /// Never: the name of the namespace is short enough.
    pub fn new(manager: CacheManager) -> Self {
        Self::builder(manager).build().expect("a name of four bytes is short enough")
    }

    /// Begins a cache over `manager`.
    pub fn builder(manager: CacheManager) -> Builder {
        let settings = Settings {
            profile: Profile::Default,
            name: "tiercache".into(),
            namespace: "http".into(),
            scheme: "http".into(),
            max_body: 256 << 20,
            max_variants: 32,
            ttl: None,
            keep_stale: Duration::from_secs(24 * 3600),
            tag_headers: Vec::new(),
            key_headers: Vec::new(),
            identity: None,
            negative: [].into(),
            status_header: true,
        };
        Builder { manager, settings }
    }

    /// Answers `request` from what is stored, or by `origin`.
    ///
    /// The response has an [`Outcome`](crate::Outcome) in its extensions. Trouble with the store is logged, and the request passes
    /// through.
    ///
    /// # Errors
    /// The origin's own, unchanged.
    pub async fn handle<O: Origin>(
        &self,
        request: Request<Body>,
        origin: &O,
    ) -> Result<Response<Body>, O::Error> {
        self.0.handle(request, origin).await
    }

    /// Removes every response to requests for `uri` (scheme, authority, path and query), of every method, variant and
    /// identity. What an origin was asked for before is not stored after it.
    ///
    /// # Errors
    /// As for [`CacheManager::delete`].
    pub async fn purge(&self, uri: &Uri) -> Result<()> {
        let target = Target::of_uri(uri, &self.0.settings.scheme)
            .ok_or(Error::InvalidKey("a URI to purge has a host without user and spaces"))?;
        self.0.store.invalidate(target).await
    }

    /// Removes every response with that tag, as [`CacheManager::invalidate_tag`] does; where `name` is that of a header
    /// given to [`Builder::tags_from`], every response whose header listed `value`.
    ///
    /// # Errors
    /// As for [`CacheManager::invalidate_tag`].
    pub async fn purge_tag(&self, name: &str, value: &str) -> Result<()> {
        let header =
            self.0.settings.tag_headers.iter().find(|header| header.as_str().eq_ignore_ascii_case(name));
        let (name, value) =
            header.map_or_else(|| (name.to_owned(), value.to_owned()), |header| listed_tag(header, value));
        self.0.store.manager().invalidate_tag(name, value).await?;
        Ok(())
    }

    /// The manager whose entries the responses are.
    pub fn manager(&self) -> &CacheManager {
        self.0.store.manager()
    }
}
